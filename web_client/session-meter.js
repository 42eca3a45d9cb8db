// @ts-check

import { ClockOffset, FrameRate, LatencyMeter } from './latency.js';
import { ReceiverMeter } from './receiver-stats.js';

/**
 * @import { LatencySummary, PresentedFrame } from './latency.js'
 * @import { Hello, Report, ServerMessage, Telemetry } from './messages.js'
 * @import { ReceiverReading } from './receiver-stats.js'
 *
 * What is known of a session. Null where nothing is known (yet).
 *
 * @typedef {object} AvatarStats
 * @property {LatencySummary} latency
 * @property {number} fps Frames presented a second; decoded, where the browser does not tell.
 * @property {number | null} lipsAheadMs Positive: the lips lead the sound.
 * @property {{server: number, browser: number}} droppedFrames
 * @property {{down: number | null, up: number | null}} lossFraction Packets lost, 0 to 1.
 * @property {number | null} roundTripMs The fastest ping of the last 20 s.
 * @property {number | null} renderPx What the server draws and scales up to `imageSizePx`.
 * @property {number} drawnShare Of the picture, that the server draws anew; 1: the whole.
 * @property {string} renderNote What there is to say about it; often empty.
 * @property {string[]} notes What a person should know of a session that is not as it should be.
 * @property {number | null} imageSizePx
 * @property {number | null} lookaheadMs
 * @property {number | null} delayMs From sound into the pipeline to its frame out.
 * @property {string | null} codec
 * @property {number | null} microphoneLevelDb As the server hears it, in dBFS; the loudest since it was last told.
 */

/** Gathers what server and browser say during one session; all times on the client's wall clock. */
export class SessionMeter {
  #clock = new ClockOffset();
  #latency = new LatencyMeter();
  #frameRate = new FrameRate();
  #receiver = new ReceiverMeter();
  #countsPresented = false;
  /** @type {Hello | null} */
  #hello = null;
  /** @type {Telemetry | null} */
  #telemetry = null;
  /** @type {number | null} Since `stats()` told it. */
  #loudestDb = null;

  /** @param {{sentMs: number, receivedMs: number, serverMs: number}} ping */
  addPing(ping) {
    this.#clock.add(ping);
  }

  /**
   * @param {ServerMessage} message
   * @param {number} nowMs
   */
  addMessage(message, nowMs) {
    if (message.type === 'hello') {
      this.#hello = message;
    } else if (message.type === 'telemetry') {
      this.#telemetry = message;
      this.#loudestDb = Math.max(this.#loudestDb ?? -Infinity, message.microphone?.level_db ?? -Infinity);
      this.#latency.addTold(message.frames ?? [], nowMs);
    }
  }

  /**
   * @param {PresentedFrame | null} frame Null where the browser gives no RTP timestamp.
   * @param {number} presentedFrames Of the element so far.
   * @param {number} nowMs
   */
  addPresented(frame, presentedFrames, nowMs) {
    this.#countsPresented = true;
    this.#frameRate.add(nowMs, presentedFrames);
    if (frame) this.#latency.addPresented(frame, nowMs);
  }

  /**
   * @param {ReceiverReading} reading
   * @param {number} nowMs
   */
  addReceiverReading(reading, nowMs) {
    this.#receiver.add(reading, nowMs);
  }

  /**
   * @param {number} nowMs
   * @returns {AvatarStats}
   */
  stats(nowMs) {
    const clock = this.#clock.estimate(nowMs);
    const reading = this.#receiver.latest(nowMs);
    const hello = this.#hello;
    const telemetry = this.#telemetry;
    const microphoneLevelDb = this.#loudestDb ?? telemetry?.microphone?.level_db ?? null;
    this.#loudestDb = null;
    return {
      latency: this.#latency.summary(nowMs, clock?.offsetMs ?? null),
      fps: this.#countsPresented ? this.#frameRate.fps(nowMs) : (reading?.framesPerSecond ?? 0),
      lipsAheadMs: this.#receiver.lipsAheadMs(nowMs),
      droppedFrames: {
        server: Object.values(telemetry?.frames_dropped ?? {}).reduce((sum, count) => sum + count, 0),
        browser: reading?.framesDropped ?? 0,
      },
      lossFraction: {
        down: this.#receiver.downlinkLossFraction(nowMs),
        up: reading?.uplinkLossFraction ?? null,
      },
      roundTripMs: clock?.roundTripMs ?? null,
      renderPx: telemetry?.render_px ?? hello?.render_px ?? null,
      drawnShare: telemetry?.drawn_share ?? 1,
      renderNote: telemetry?.render_note ?? '',
      notes: telemetry?.notes ?? [],
      imageSizePx: hello?.image_size_px ?? null,
      lookaheadMs: hello?.lookahead_ms ?? null,
      delayMs: hello?.delay_ms ?? null,
      codec: hello?.codec ?? null,
      microphoneLevelDb,
    };
  }
}

/**
 * Returns what the server shall count among its metrics; null while no latency is known.
 *
 * @param {AvatarStats} stats
 * @returns {Report | null}
 */
export function reportOf({ latency, lipsAheadMs, fps }) {
  if (latency.p50Ms === null || latency.p95Ms === null) return null;
  return {
    type: 'report',
    mic_to_glass_ms: { p50: latency.p50Ms, p95: latency.p95Ms },
    av_offset_ms: lipsAheadMs,
    fps,
  };
}
