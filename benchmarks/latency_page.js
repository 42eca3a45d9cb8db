/**
 * Runs inside the server's own page: clicks its button, and puts down what passes. Nothing is judged here.
 *
 * Times are milliseconds of `performance.now()`, except where a name says otherwise.
 */

import { Connection } from '/client/connection.js';
import { between, ClockOffset, frameInstants, STAGES, wallClockMs } from '/client/latency.js';
import { SessionMeter } from '/client/session-meter.js';

const SOUND_RATE_HZ = 48_000;
/** Frames that wait for the other side's word on them. */
const KEPT_FRAMES = 1000;
const TAKE_IN_ONE_MS = 1000;

/** Writes down the sound of a track, and when each piece of it passed, until it is stopped. */
class SoundTap {
  #reader;
  #pieces = [];
  /** [samples, when the first one passed], by the browser's own stamps */
  #stamps = [];

  /** @param {MediaStreamTrack} track Stays the caller's. */
  constructor(track) {
    const processor = new MediaStreamTrackProcessor({ track, maxBufferSize: TAKE_IN_ONE_MS / 10 });
    this.#reader = processor.readable.getReader();
    this.#read();
  }

  stop() {
    this.#reader.cancel();
  }

  /** Returns what was heard, the samples as 16 bits in base64. */
  record() {
    const samples = new Int16Array(this.#stamps.reduce((sum, [count]) => sum + count, 0));
    let at = 0;
    for (const piece of this.#pieces) {
      for (const value of piece) samples[at++] = Math.max(-32768, Math.min(32767, Math.round(value * 32768)));
    }
    const bytes = new Uint8Array(samples.buffer);
    let text = '';
    for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
    return { samples: btoa(text), stamps: this.#stamps };
  }

  async #read() {
    for (;;) {
      const { value: piece, done } = await this.#reader.read();
      if (done) return;
      if (piece.sampleRate !== SOUND_RATE_HZ) throw new Error(`a track of ${piece.sampleRate} Hz`);
      const samples = new Float32Array(piece.numberOfFrames);
      piece.copyTo(samples, { planeIndex: 0, format: 'f32-planar' });
      this.#pieces.push(samples);
      this.#stamps.push([samples.length, piece.timestamp / 1000]);
      piece.close();
    }
  }
}

/** The record of this page's session. */
class Recorder {
  /** [x, y, width, height] of the mouth in the picture, even numbers; null: lips are not measured */
  #box;
  #rowsApart;
  #clock = new ClockOffset();
  /** By RTP timestamp: what the server told of frames that were not shown yet. */
  #told = new Map();
  /** By RTP timestamp: frames that the server has told nothing of yet. */
  #presented = new Map();

  clickMs = 0;
  reconnections = 0;
  hello = null;
  /** [RTP timestamp, shown, frames presented so far, the lips' opening or null] */
  frames = [];
  /** [shown, microphone to glass, ...stages], each but the first may be null */
  latencies = [];
  /** [at, frames dropped by the server so far, render_px, drawn_share] */
  telemetry = [];
  /** What `getStats` says, twice a second. */
  readings = [];

  constructor({ box, rowsApart }) {
    this.#box = box;
    this.#rowsApart = rowsApart;
  }

  addPing(ping) {
    this.#clock.add(ping);
  }

  addMessage(message, nowMs) {
    if (message.type === 'hello') this.hello = message;
    if (message.type !== 'telemetry') return;
    const dropped = Object.values(message.frames_dropped).reduce((sum, count) => sum + count, 0);
    this.telemetry.push([performance.now(), dropped, message.render_px, message.drawn_share]);
    for (const told of message.frames) this.#match(told, this.#told, this.#presented, nowMs);
  }

  addReport(report) {
    const entries = {};
    report.forEach((entry) => {
      if (entry.type === 'inbound-rtp') entries[entry.kind] = entry;
      if (entry.type === 'media-playout') entries.playout = entry;
    });
    const { audio, video, playout } = entries;
    if (!audio || !video) return;
    this.readings.push({
      at_ms: performance.now(),
      sound_playout_unix_ms: audio.estimatedPlayoutTimestamp ?? null,
      picture_playout_unix_ms: video.estimatedPlayoutTimestamp ?? null,
      sound_samples: audio.totalSamplesReceived ?? 0,
      concealed_samples: audio.concealedSamples ?? 0,
      sound_buffer_s: audio.jitterBufferDelay ?? 0, // summed over the samples
      sound_emitted: audio.jitterBufferEmittedCount ?? 0,
      picture_buffer_s: video.jitterBufferDelay ?? 0,
      picture_emitted: video.jitterBufferEmittedCount ?? 0,
      frames_dropped: video.framesDropped ?? 0,
      freezes: video.freezeCount ?? 0,
      device_delay_s: playout?.totalPlayoutDelay ?? 0, // summed over the samples
      device_samples: playout?.totalSamplesCount ?? 0,
    });
  }

  /** @param {HTMLVideoElement} video */
  watch(video) {
    video.requestVideoFrameCallback((_now, { rtpTimestamp, receiveTime, expectedDisplayTime, presentedFrames }) => {
      this.watch(video);
      if (rtpTimestamp === undefined) return;
      const frame = [rtpTimestamp, expectedDisplayTime, presentedFrames, null];
      this.frames.push(frame);
      if (this.#box) this.#measureLips(video, frame);
      const presented = {
        rtp: rtpTimestamp,
        receivedMs: receiveTime === undefined ? null : performance.timeOrigin + receiveTime,
        shownMs: performance.timeOrigin + expectedDisplayTime,
      };
      this.#match(presented, this.#presented, this.#told, wallClockMs());
    });
  }

  /** Joins the two halves of a frame, whichever comes first. */
  #match(half, waiting, others, nowMs) {
    const other = others.get(half.rtp);
    if (!other) {
      waiting.set(half.rtp, half);
      if (waiting.size > KEPT_FRAMES) waiting.delete(waiting.keys().next().value);
      return;
    }
    others.delete(half.rtp);
    const [told, presented] = waiting === this.#told ? [half, other] : [other, half];
    const instants = frameInstants(told, presented, this.#clock.estimate(nowMs)?.offsetMs ?? null);
    this.latencies.push([
      presented.shownMs - performance.timeOrigin,
      between(instants, 'captured', 'shown'),
      ...STAGES.map(({ from, to }) => between(instants, from, to)),
    ]);
  }

  /** Puts the lips' opening into `frame[3]`: the same measure as `opening` in content_lag.py. */
  async #measureLips(video, frame) {
    const [x, y, width, height] = this.#box;
    const picture = new VideoFrame(video);
    try {
      // Luma is the first plane of both, and nothing has to be converted for it.
      if (picture.format !== 'I420' && picture.format !== 'NV12') return;
      if (picture.codedWidth < x + width || picture.codedHeight < y + height) return;
      const rect = { x, y, width, height };
      const planes = new Uint8Array(picture.allocationSize({ rect }));
      const [{ offset, stride }] = await picture.copyTo(planes, { rect });
      let sum = 0;
      for (let row = 0; row + this.#rowsApart < height; row += 1) {
        const upper = offset + row * stride;
        const lower = upper + this.#rowsApart * stride;
        for (let column = 0; column < width; column += 1) {
          sum += Math.abs(planes[lower + column] - planes[upper + column]);
        }
      }
      frame[3] = sum / (width * (height - this.#rowsApart));
    } finally {
      picture.close();
    }
  }
}

let avatar = null;
/** @type {AudioContext | null} */
let context = null;
/** @type {Recorder | null} */
let recorder = null;
/** @type {{microphone: SoundTap, sound: SoundTap}[]} */
const takes = [];

/** Lets `hear` have what a method is called with, before it is. */
function tap(type, name, hear) {
  const original = type.prototype[name];
  type.prototype[name] = function (...given) {
    hear(...given);
    return original.apply(this, given);
  };
}

tap(SessionMeter, 'addPing', (ping) => recorder?.addPing(ping));
tap(SessionMeter, 'addMessage', (message, nowMs) => recorder?.addMessage(message, nowMs));

const getStats = Connection.prototype.getStats;
Connection.prototype.getStats = async function () {
  const report = await getStats.call(this);
  if (report) recorder?.addReport(report);
  return report;
};

/**
 * Clicks the page's button, and returns once the first frame shows.
 *
 * @param {{box: number[] | null, rowsApart: number}} how Where lips are looked for, and how far apart rows are.
 */
export async function start(how) {
  avatar = document.querySelector('geneface-avatar');
  recorder = new Recorder(how);
  recorder.watch(avatar.shadowRoot.querySelector('video'));
  avatar.addEventListener('statechange', ({ detail }) => {
    if (detail.state === 'reconnecting') recorder.reconnections += 1;
  });
  recorder.clickMs = performance.now();
  document.getElementById('start').click();
  await connected();
}

/** Returns once the page is connected; refuses with the problem that it shows. */
function connected() {
  return new Promise((resolve, reject) => {
    const timer = setInterval(() => {
      const problem = document.getElementById('problem');
      if (avatar.state !== 'connected' && problem.hidden) return;
      clearInterval(timer);
      if (avatar.state === 'connected') resolve();
      else reject(new Error(document.getElementById('problem-text').textContent));
    }, 50);
  });
}

/** Hangs up, by the same button. */
export function leave() {
  document.getElementById('start').click();
}

/**
 * Begins to write down the microphone and the received sound; `record` has them.
 *
 * @param {{takeMs: number, delayMs: number | null}} how For how long, and whether the received sound goes
 *   through a delay of Web Audio's first.
 */
export function listen({ takeMs, delayMs }) {
  const received = delayMs === null ? avatar.stream : delayed(avatar.stream, delayMs);
  const take = {
    microphone: new SoundTap(avatar.micTrack),
    sound: new SoundTap(received.getAudioTracks()[0]),
  };
  takes.push(take);
  setTimeout(() => {
    take.microphone.stop();
    take.sound.stop();
  }, takeMs);
}

function delayed(stream, delayMs) {
  context ??= new AudioContext({ sampleRate: SOUND_RATE_HZ });
  const delay = new DelayNode(context, { delayTime: delayMs / 1000, maxDelayTime: 1 });
  const out = context.createMediaStreamDestination();
  context.createMediaStreamSource(stream).connect(delay).connect(out);
  return out.stream;
}

/** Returns what time it is in the record. */
export function now() {
  return performance.now();
}

export function record() {
  const { clickMs, reconnections, hello, frames, latencies, telemetry, readings } = recorder;
  return {
    state: avatar.state,
    stages: STAGES.map(({ name }) => name),
    click_ms: clickMs,
    reconnections,
    hello,
    frames,
    latencies,
    telemetry,
    readings,
    takes: takes.map(({ microphone, sound }) => ({ microphone: microphone.record(), sound: sound.record() })),
  };
}
