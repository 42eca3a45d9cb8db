// @ts-check

import { percentile, SlidingWindow } from './latency.js';

/**
 * What one `RTCPeerConnection.getStats()` says about the way down, and the server's word about the way up.
 *
 * @typedef {object} ReceiverReading
 * @property {number | null} lipsAheadMs Playout of the picture minus playout of the sound, in media time.
 * @property {number} packetsLost Of both tracks so far.
 * @property {number} packetsReceived
 * @property {number} framesDropped By the browser, so far.
 * @property {number | null} framesPerSecond Decoded.
 * @property {number | null} uplinkLossFraction 0 to 1, from the server's last receiver report.
 */

/**
 * Returns what matters here out of a stats report.
 *
 * @param {{forEach(visit: (entry: any) => void): void}} report An `RTCStatsReport`, or a Map like it.
 * @returns {ReceiverReading}
 */
export function readReceiverStats(report) {
  /** @type {Record<string, any>} */
  const inbound = {};
  /** @type {number | null} */
  let uplinkLossFraction = null;
  report.forEach((entry) => {
    if (entry.type === 'inbound-rtp') inbound[entry.kind] = entry;
    if (entry.type === 'remote-inbound-rtp' && entry.kind === 'audio') {
      uplinkLossFraction = entry.fractionLost ?? null;
    }
  });
  const { audio, video } = inbound;
  const soundMs = audio?.estimatedPlayoutTimestamp;
  const pictureMs = video?.estimatedPlayoutTimestamp;
  return {
    // Browsers give 0 or nothing until the first sender report.
    lipsAheadMs: soundMs && pictureMs ? pictureMs - soundMs : null,
    packetsLost: (audio?.packetsLost ?? 0) + (video?.packetsLost ?? 0),
    packetsReceived: (audio?.packetsReceived ?? 0) + (video?.packetsReceived ?? 0),
    framesDropped: video?.framesDropped ?? 0,
    framesPerSecond: video?.framesPerSecond ?? null,
    uplinkLossFraction,
  };
}

/** Sums up the readings of the last 10 s. */
export class ReceiverMeter {
  /** @type {SlidingWindow<ReceiverReading>} */
  #readings;

  /** @param {number} [windowMs] */
  constructor(windowMs = 10_000) {
    this.#readings = new SlidingWindow(windowMs);
  }

  /**
   * @param {ReceiverReading} reading
   * @param {number} nowMs
   */
  add(reading, nowMs) {
    this.#readings.add(nowMs, reading);
  }

  /**
   * Returns how far the lips are ahead of the sound: median, negative when they are behind.
   *
   * @param {number} nowMs
   * @returns {number | null}
   */
  lipsAheadMs(nowMs) {
    const offsets = this.#readings.values(nowMs).map(({ lipsAheadMs }) => lipsAheadMs);
    return percentile(
      offsets.filter((offset) => offset !== null),
      0.5,
    );
  }

  /**
   * Returns the part of the packets that was lost on the way down, 0 to 1; null while none came.
   *
   * @param {number} nowMs
   * @returns {number | null}
   */
  downlinkLossFraction(nowMs) {
    const readings = this.#readings.values(nowMs);
    if (readings.length < 2) return null;
    const first = readings[0];
    const last = readings[readings.length - 1];
    const lost = last.packetsLost - first.packetsLost;
    const sent = lost + last.packetsReceived - first.packetsReceived;
    // A packet counted as lost can still come, so the difference may fall below zero.
    return sent > 0 ? Math.max(0, lost) / sent : null;
  }

  /**
   * Returns the newest reading, if one is recent.
   *
   * @param {number} nowMs
   * @returns {ReceiverReading | null}
   */
  latest(nowMs) {
    return this.#readings.values(nowMs).at(-1) ?? null;
  }
}
