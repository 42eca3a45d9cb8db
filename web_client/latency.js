// @ts-check

/**
 * From the microphone to the glass: what each presented frame cost, stage by stage.
 *
 * The total needs no common clock: both its ends are stamped by this browser. Only the split into stages
 * crosses over to the server's clock, with the offset that `ClockOffset` estimates. Nothing here touches the
 * DOM, and time comes in as an argument.
 *
 * @import { TelemetryFrame } from './messages.js'
 */

/**
 * A browser's sender report maps the first sample of an Opus packet to the moment the packet was sent. The
 * packet holds this much sound, so its first sample left the microphone this much earlier.
 */
export const PACKET_MS = 20;

/** RTP timestamps of frames still to be matched, presented or told by the server: about 12 s at 25 fps. */
const KEPT_FRAMES = 300;

/** Beyond this a figure is a clock that jumped, not a latency. */
const LONGEST_MS = 10_000;

/**
 * One stage of a frame's way.
 *
 * @typedef {object} Stage
 * @property {string} name
 * @property {keyof Instants} from
 * @property {keyof Instants} to
 */

/**
 * When a frame passed each point, in milliseconds on the client's wall clock; null where unknown.
 *
 * @typedef {object} Instants
 * @property {number | null} captured
 * @property {number | null} arrived
 * @property {number | null} buffered
 * @property {number | null} windowed
 * @property {number | null} rendered
 * @property {number | null} encoded
 * @property {number | null} sent
 * @property {number | null} received
 * @property {number | null} shown
 */

/** The stages in the order in which a word passes them. @type {readonly Stage[]} */
export const STAGES = Object.freeze([
  { name: 'microphone and uplink', from: 'captured', to: 'arrived' },
  { name: 'jitter buffer', from: 'arrived', to: 'buffered' },
  { name: 'look-ahead', from: 'buffered', to: 'windowed' },
  { name: 'render', from: 'windowed', to: 'rendered' },
  { name: 'encode', from: 'rendered', to: 'encoded' },
  { name: 'waiting for its moment', from: 'encoded', to: 'sent' },
  { name: 'network', from: 'sent', to: 'received' },
  { name: 'display', from: 'received', to: 'shown' },
]);

/**
 * A frame as the browser presented it (`requestVideoFrameCallback`), on the client's wall clock.
 *
 * @typedef {object} PresentedFrame
 * @property {number} rtp uint32 at 90 kHz.
 * @property {number | null} receivedMs Its last packet came in; null where the browser does not say.
 * @property {number} shownMs
 */

/**
 * What the `latency` event tells: medians over the last seconds, null while nothing is known.
 *
 * @typedef {object} LatencySummary
 * @property {number | null} p50Ms
 * @property {number | null} p95Ms
 * @property {{name: string, p50Ms: number | null}[]} stages In the order of `STAGES`.
 * @property {number} samples Frames whose total is known.
 */

/**
 * Returns the client's wall clock in Unix epoch milliseconds: monotonic while the page lives.
 *
 * @returns {number}
 */
export function wallClockMs() {
  return performance.timeOrigin + performance.now();
}

/**
 * Returns a percentile, interpolated between neighbours; null of nothing.
 *
 * @param {readonly number[]} values In any order.
 * @param {number} fraction 0 to 1.
 * @returns {number | null}
 */
export function percentile(values, fraction) {
  if (values.length === 0) return null;
  const sorted = [...values].sort((a, b) => a - b);
  const position = fraction * (sorted.length - 1);
  const below = Math.floor(position);
  const above = Math.ceil(position);
  return sorted[below] + (sorted[above] - sorted[below]) * (position - below);
}

/**
 * Returns a server stamp on the client's clock.
 *
 * @param {number | null | undefined} serverMs
 * @param {number | null} offsetMs Server minus client; null while unknown.
 * @returns {number | null}
 */
function onClientClock(serverMs, offsetMs) {
  return typeof serverMs === 'number' && offsetMs !== null ? serverMs - offsetMs : null;
}

/**
 * Returns when a frame passed each point, on the client's clock.
 *
 * @param {TelemetryFrame} told
 * @param {PresentedFrame} presented The same frame, by `rtp`.
 * @param {number | null} offsetMs Server minus client clock; null leaves what the server stamped unknown.
 * @returns {Instants}
 */
export function frameInstants(told, presented, offsetMs) {
  return {
    captured: typeof told.captured_ms === 'number' ? told.captured_ms - PACKET_MS : null,
    arrived: onClientClock(told.arrived_ms, offsetMs),
    buffered: onClientClock(told.buffered_ms, offsetMs),
    windowed: onClientClock(told.windowed_ms, offsetMs),
    rendered: onClientClock(told.rendered_ms, offsetMs),
    encoded: onClientClock(told.encoded_ms, offsetMs),
    sent: onClientClock(told.sent_ms, offsetMs),
    received: presented.receivedMs,
    shown: presented.shownMs,
  };
}

/**
 * Returns the milliseconds between two points of a frame's way; null where one is unknown.
 *
 * @param {Instants} instants
 * @param {keyof Instants} from
 * @param {keyof Instants} to
 * @returns {number | null}
 */
export function between(instants, from, to) {
  const start = instants[from];
  const end = instants[to];
  return start === null || end === null ? null : end - start;
}

/**
 * What happened in the last `windowMs`, oldest first.
 *
 * @template T
 */
export class SlidingWindow {
  #windowMs;
  /** @type {{atMs: number, value: T}[]} */
  #entries = [];

  /** @param {number} windowMs */
  constructor(windowMs) {
    this.#windowMs = windowMs;
  }

  /**
   * @param {number} atMs Not before the one added last.
   * @param {T} value
   */
  add(atMs, value) {
    this.#entries.push({ atMs, value });
    this.#forget(atMs);
  }

  /**
   * Returns what is at most `windowMs` old.
   *
   * @param {number} nowMs
   * @returns {T[]}
   */
  values(nowMs) {
    this.#forget(nowMs);
    return this.#entries.map(({ value }) => value);
  }

  /** @param {number} nowMs */
  #forget(nowMs) {
    const oldestMs = nowMs - this.#windowMs;
    let gone = 0;
    while (gone < this.#entries.length && this.#entries[gone].atMs < oldestMs) gone += 1;
    if (gone > 0) this.#entries.splice(0, gone);
  }
}

/**
 * How far the server's clock is ahead of the client's: of the pings in the last 20 s the one that was
 * answered fastest, halved (the clock filter of NTP, RFC 5905 section 10).
 */
export class ClockOffset {
  /** @type {SlidingWindow<{offsetMs: number, roundTripMs: number}>} */
  #pings;

  /** @param {number} [windowMs] */
  constructor(windowMs = 20_000) {
    this.#pings = new SlidingWindow(windowMs);
  }

  /** @param {{sentMs: number, receivedMs: number, serverMs: number}} ping */
  add({ sentMs, receivedMs, serverMs }) {
    const roundTripMs = receivedMs - sentMs;
    if (!(roundTripMs >= 0) || !Number.isFinite(serverMs)) return;
    this.#pings.add(receivedMs, { offsetMs: serverMs - (sentMs + receivedMs) / 2, roundTripMs });
  }

  /**
   * Returns the best estimate; its error is at most half of its round trip.
   *
   * @param {number} nowMs
   * @returns {{offsetMs: number, roundTripMs: number} | null}
   */
  estimate(nowMs) {
    return this.#pings
      .values(nowMs)
      .reduce(
        (best, ping) => (best === null || ping.roundTripMs < best.roundTripMs ? ping : best),
        /** @type {{offsetMs: number, roundTripMs: number} | null} */ (null),
      );
  }
}

/** Joins what the server tells of a frame with when the browser showed it, and sums up the last 10 s. */
export class LatencyMeter {
  /** @type {Map<number, PresentedFrame>} */
  #presented = new Map();
  /** @type {Map<number, TelemetryFrame>} */
  #told = new Map();
  /** @type {SlidingWindow<{told: TelemetryFrame, presented: PresentedFrame}>} */
  #joined;

  /** @param {number} [windowMs] */
  constructor(windowMs = 10_000) {
    this.#joined = new SlidingWindow(windowMs);
  }

  /**
   * @param {PresentedFrame} presented
   * @param {number} nowMs
   */
  addPresented(presented, nowMs) {
    const told = this.#told.get(presented.rtp);
    if (told) this.#join(told, presented, nowMs);
    else remember(this.#presented, presented.rtp, presented);
  }

  /**
   * @param {readonly TelemetryFrame[]} frames
   * @param {number} nowMs
   */
  addTold(frames, nowMs) {
    for (const told of frames) {
      const presented = this.#presented.get(told.rtp);
      if (presented) this.#join(told, presented, nowMs);
      else remember(this.#told, told.rtp, told);
    }
  }

  /**
   * @param {number} nowMs
   * @param {number | null} offsetMs Server minus client clock; null while unknown.
   * @returns {LatencySummary}
   */
  summary(nowMs, offsetMs) {
    const frames = this.#joined
      .values(nowMs)
      .map(({ told, presented }) => frameInstants(told, presented, offsetMs));
    const totals = known(frames.map((frame) => between(frame, 'captured', 'shown'))).filter(
      (totalMs) => totalMs > 0 && totalMs < LONGEST_MS,
    );
    return {
      p50Ms: percentile(totals, 0.5),
      p95Ms: percentile(totals, 0.95),
      stages: STAGES.map(({ name, from, to }) => ({
        name,
        p50Ms: percentile(known(frames.map((frame) => between(frame, from, to))), 0.5),
      })),
      samples: totals.length,
    };
  }

  /**
   * @param {TelemetryFrame} told
   * @param {PresentedFrame} presented
   * @param {number} nowMs
   */
  #join(told, presented, nowMs) {
    this.#told.delete(told.rtp);
    this.#presented.delete(told.rtp);
    this.#joined.add(nowMs, { told, presented });
  }
}

/**
 * How many frames a second reached the glass, from the counter that the browser gives with each.
 */
export class FrameRate {
  #windowMs;
  /** @type {SlidingWindow<{atMs: number, count: number}>} */
  #counts;
  #lastCount = 0;

  /** @param {number} [windowMs] */
  constructor(windowMs = 2000) {
    this.#windowMs = windowMs;
    this.#counts = new SlidingWindow(windowMs);
  }

  /**
   * @param {number} atMs
   * @param {number} presentedFrames Of the element so far; it starts again with a new stream.
   */
  add(atMs, presentedFrames) {
    if (presentedFrames < this.#lastCount) this.#counts = new SlidingWindow(this.#windowMs);
    this.#lastCount = presentedFrames;
    this.#counts.add(atMs, { atMs, count: presentedFrames });
  }

  /**
   * Returns frames a second over the last 2 s; 0 when none came in them.
   *
   * @param {number} nowMs
   * @returns {number}
   */
  fps(nowMs) {
    const counts = this.#counts.values(nowMs);
    if (counts.length < 2) return 0;
    const first = counts[0];
    const last = counts[counts.length - 1];
    // Counted to the last frame while they flow, to now once they stall.
    const endMs = nowMs - last.atMs > 250 ? nowMs : last.atMs;
    return endMs > first.atMs ? (1000 * (last.count - first.count)) / (endMs - first.atMs) : 0;
  }
}

/**
 * Returns the numbers among numbers and nulls.
 *
 * @param {readonly (number | null)[]} values
 * @returns {number[]}
 */
function known(values) {
  return values.filter((value) => value !== null);
}

/**
 * Puts a frame into a map that keeps the newest `KEPT_FRAMES`.
 *
 * @template T
 * @param {Map<number, T>} frames
 * @param {number} rtp
 * @param {T} frame
 */
function remember(frames, rtp, frame) {
  frames.set(rtp, frame);
  if (frames.size > KEPT_FRAMES) {
    const [oldest] = frames.keys();
    frames.delete(oldest);
  }
}
