// @ts-check

/**
 * What passes over the WebSocket, as JSON text. Times ending in `_ms` are Unix epoch milliseconds on the
 * server's clock, `captured_ms` on the clock of the client that spoke.
 *
 * @typedef {object} Hello
 * @property {'hello'} type
 * @property {string} session_id
 * @property {string} speaker
 * @property {number} server_ms
 * @property {number} fps
 * @property {number} image_size_px What is sent.
 * @property {number} render_px What is drawn, scaled up to `image_size_px`.
 * @property {number[]} render_sizes_px
 * @property {number} lookahead_ms
 * @property {number} delay_ms From sound into the pipeline to its frame out.
 * @property {string} codec
 *
 * @typedef {object} TelemetryFrame
 * @property {number} rtp RTP timestamp of the video frame, uint32 at 90 kHz.
 * @property {number | null} captured_ms
 * @property {number} arrived_ms
 * @property {number} buffered_ms
 * @property {number} windowed_ms
 * @property {number} rendered_ms
 * @property {number} encoded_ms
 * @property {number} sent_ms
 *
 * @typedef {object} MicrophoneTelemetry
 * @property {number} depth_ms Of the jitter buffer.
 * @property {number} target_ms
 * @property {number} lost Packets.
 * @property {number} concealed_ms
 * @property {number} level_db dBFS, -100 to 0; the loudest of the last 200 ms.
 *
 * @typedef {object} Telemetry
 * @property {'telemetry'} type
 * @property {number} server_ms
 * @property {number} fps
 * @property {number} render_px
 * @property {number} drawn_share Of the picture; the rest was drawn before the call.
 * @property {string} render_note
 * @property {number} delay_ms
 * @property {string[]} notes What a person should know of a session that is not as it should be.
 * @property {number} frames_rendered
 * @property {Record<string, number>} frames_dropped Count by reason.
 * @property {MicrophoneTelemetry} microphone
 * @property {TelemetryFrame[]} frames
 *
 * @typedef {object} Pong
 * @property {'pong'} type
 * @property {number} id
 * @property {number} server_ms
 *
 * @typedef {object} Ended
 * @property {'ended'} type
 * @property {string} reason
 *
 * @typedef {Hello | Telemetry | Pong | Ended} ServerMessage
 *
 * @typedef {object} Report
 * @property {'report'} type
 * @property {{p50: number, p95: number}} mic_to_glass_ms
 * @property {number | null} av_offset_ms
 * @property {number} fps
 *
 * @typedef {{type: 'ping', id: number} | Report | {type: 'end'}} ClientMessage
 */

const KNOWN_TYPES = new Set(['hello', 'telemetry', 'pong', 'ended']);

/**
 * Returns the message in a WebSocket text, or null for what this client does not know.
 *
 * @param {unknown} data
 * @returns {ServerMessage | null}
 */
export function parseMessage(data) {
  if (typeof data !== 'string') return null;
  try {
    const message = JSON.parse(data);
    return KNOWN_TYPES.has(message?.type) ? message : null;
  } catch {
    return null;
  }
}
