// @ts-check

import { Connection } from './connection.js';
import { AvatarError } from './errors.js';
import { wallClockMs } from './latency.js';
import { openMicrophone } from './microphone.js';
import { readReceiverStats } from './receiver-stats.js';
import { reportOf, SessionMeter } from './session-meter.js';

/**
 * @import { PresentedFrame } from './latency.js'
 * @import { AvatarStats } from './session-meter.js'
 *
 * @typedef {'idle' | 'requesting-microphone' | 'connecting' | 'connected' | 'reconnecting' | 'failed'
 *   | 'ended'} AvatarState
 */

const MEASURE_INTERVAL_MS = 500;
/** Measurements between two reports to the server. */
const REPORT_EVERY = 10;
const BACK_OFF_MS = [1000, 2000, 4000];
/** What may pass by itself; everything else needs a person, or would only be asked in vain again. */
const PASSING = new Set(['network', 'ice-failed']);

/** Events of the inner `<video>` that the element passes on, without bubbling, as a `<video>` does. */
const PASSED_ON = ['loadedmetadata', 'loadeddata', 'playing', 'waiting', 'resize', 'volumechange'];

const STYLE = `
  :host {
    display: inline-block;
    position: relative;
    inline-size: 512px;
    max-inline-size: 100%;
    aspect-ratio: 1;
    overflow: hidden;
    background: #c9ced6;
  }
  :host([hidden]) { display: none; }
  video, .placeholder { position: absolute; inset: 0; inline-size: 100%; block-size: 100%; }
  video { object-fit: cover; opacity: 0; transition: opacity .25s; }
  .live video { opacity: 1; }
  .placeholder { transition: opacity .25s; }
  .live .placeholder { opacity: 0; }
  .figure { position: absolute; inset: 0; }
  .figure::before, .figure::after {
    content: "";
    position: absolute;
    left: 50%;
    translate: -50% 0;
    background: #aab2bd;
  }
  .figure::before { top: 22%; inline-size: 34%; block-size: 42%; border-radius: 48% 48% 50% 50%; }
  .figure::after { top: 70%; inline-size: 76%; block-size: 60%; border-radius: 50% 50% 0 0 / 42% 42% 0 0; }
  .busy .figure { animation: breathe 1.6s ease-in-out infinite alternate; }
  @keyframes breathe { from { opacity: 1; } to { opacity: .45; } }
  @media (prefers-color-scheme: dark) {
    :host { background: #2a2f37; }
    .figure::before, .figure::after { background: #414853; }
  }
  @media (prefers-reduced-motion: reduce) {
    video, .placeholder { transition: none; }
    .busy .figure { animation: none; opacity: .7; }
  }
`;

/** @type {Record<AvatarState, string>} The class that each state gives to the shadow tree. */
const LOOKS = {
  idle: '',
  'requesting-microphone': 'busy',
  connecting: 'busy',
  connected: 'live',
  reconnecting: 'busy',
  failed: '',
  ended: '',
};

/**
 * `<geneface-avatar src speaker token muted>`: a trained face that speaks what the microphone hears.
 *
 * It behaves like a `<video>` whose source is a conversation. `src` is the server's address (the page's
 * origin by default), `speaker` one of its speakers, `token` what it lets in by; they count from the next
 * `connect()` on. Events, all bubbling and composed, with their `detail`: `statechange` {state, previous},
 * `latency` (a `LatencySummary` twice a second), `error` (an `AvatarError`). Parts to style: `video` and
 * `placeholder`; what is put into the slot `placeholder` takes the place of the drawn figure.
 */
export class GenefaceAvatar extends HTMLElement {
  static observedAttributes = ['muted'];

  /** @type {HTMLVideoElement} */
  #video;
  /** @type {HTMLElement} */
  #frame;

  /** @type {AvatarState} */
  #state = 'idle';
  /** @type {Connection | null} */
  #connection = null;
  /** @type {MediaStream | null} */
  #stream = null;
  /** @type {{promise: Promise<void>, controller: AbortController} | null} To connect, or to reconnect. */
  #attempt = null;

  /** @type {MediaStreamTrack | null} */
  #micTrack = null;
  /** Whether the element opened `#micTrack`, and so has to stop it. */
  #micIsOurs = false;
  #micMuted = false;

  #meter = new SessionMeter();
  /** @type {AvatarStats | null} */
  #stats = null;
  #measureTimer = 0;
  #measured = 0;

  constructor() {
    super();
    const root = this.attachShadow({ mode: 'open' });
    // A constructed sheet is no inline style, so a strict content security policy lets it through.
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(STYLE);
    root.adoptedStyleSheets = [sheet];
    this.#video = document.createElement('video');
    this.#video.playsInline = true;
    this.#video.autoplay = true;
    this.#video.part.add('video');
    this.#video.setAttribute('aria-label', 'Live picture of the speaker');
    for (const type of PASSED_ON) {
      this.#video.addEventListener(type, () => this.dispatchEvent(new Event(type)));
    }
    const placeholder = document.createElement('slot');
    placeholder.name = 'placeholder';
    const figure = document.createElement('div');
    figure.className = 'figure';
    placeholder.append(figure);
    const behind = document.createElement('div');
    behind.className = 'placeholder';
    behind.part.add('placeholder');
    behind.setAttribute('aria-hidden', 'true');
    behind.append(placeholder);
    this.#frame = document.createElement('div');
    this.#frame.append(behind, this.#video);
    root.append(this.#frame);
    this.#watchFrames();
  }

  disconnectedCallback() {
    // Moving an element takes it out and puts it in again; only one that stays out hangs up.
    queueMicrotask(() => {
      if (!this.isConnected) this.disconnect();
    });
  }

  /**
   * @param {string} name
   * @param {string | null} _before
   * @param {string | null} value
   */
  attributeChangedCallback(name, _before, value) {
    if (name === 'muted') this.#video.muted = value !== null;
  }

  /** The server's address, absolute; the page's origin by default. */
  get src() {
    const src = this.getAttribute('src');
    return (src === null ? location.origin : new URL(src, document.baseURI).href).replace(/\/+$/, '');
  }

  set src(value) {
    this.setAttribute('src', value);
  }

  /** One of the server's speakers; empty for its default. */
  get speaker() {
    return this.getAttribute('speaker') ?? '';
  }

  set speaker(value) {
    this.setAttribute('speaker', value);
  }

  /** What the server lets in by; empty when it asks for nothing. */
  get token() {
    return this.getAttribute('token') ?? '';
  }

  set token(value) {
    this.setAttribute('token', value);
  }

  /** Whether the speaker's sound is not played here; `stream` carries it all the same. */
  get muted() {
    return this.hasAttribute('muted');
  }

  set muted(value) {
    this.toggleAttribute('muted', Boolean(value));
  }

  /** @returns {AvatarState} */
  get state() {
    return this.#state;
  }

  /** The picture and sound to hand to any other `RTCPeerConnection`; a new one after each (re)connection. */
  get stream() {
    return this.#stream;
  }

  /** The microphone in use or to be used. The one who sets a track also stops it. */
  get micTrack() {
    return this.#micTrack;
  }

  set micTrack(track) {
    if (track === this.#micTrack) return;
    this.#useMicrophone(track, { ours: false });
    this.#connection?.replaceTrack(track).catch((cause) => {
      const message = `The microphone was not taken: ${cause}.`;
      this.#emit('error', new AvatarError('no-microphone', message, { cause }));
    });
  }

  /** Whether silence is sent instead of the microphone, by the `enabled` of its track. */
  get micMuted() {
    return this.#micMuted;
  }

  set micMuted(value) {
    this.#micMuted = Boolean(value);
    if (this.#micTrack) this.#micTrack.enabled = !this.#micMuted;
  }

  /** @returns {AvatarStats | null} Null before the first connection. */
  get stats() {
    return this.#stats;
  }

  get connectionState() {
    return this.#connection?.connectionState ?? 'new';
  }

  get readyState() {
    return this.#video.readyState;
  }

  get videoWidth() {
    return this.#video.videoWidth;
  }

  get videoHeight() {
    return this.#video.videoHeight;
  }

  /** @returns {Promise<void>} */
  play() {
    return this.#video.play();
  }

  /**
   * Returns once connected and the first frame shows. Calls while connecting share one attempt. Opens the
   * microphone unless `micTrack` was set, so call it from a click.
   *
   * @returns {Promise<void>}
   * @throws {AvatarError} Why not, after an `error` event; 'ended' without one after `disconnect()`.
   */
  connect() {
    if (this.#attempt) return this.#attempt.promise;
    if (this.#state === 'connected') return Promise.resolve();
    const state = this.#micTrack ? 'connecting' : 'requesting-microphone';
    return this.#start((signal) => this.#establish(signal), state);
  }

  /** Hangs up, in whatever state; stops the microphone that the element opened. */
  disconnect() {
    this.#hangUp();
    this.#setState('idle');
  }

  /**
   * @param {(signal: AbortSignal) => Promise<void>} run Tells nobody anything before it first waits.
   * @param {AvatarState} state
   * @returns {Promise<void>}
   */
  #start(run, state) {
    const controller = new AbortController();
    const promise = run(controller.signal)
      .catch((cause) => {
        const known = cause instanceof AvatarError;
        const error = known ? cause : new AvatarError('unsupported', `${cause}`, { cause });
        if (!controller.signal.aborted) this.#giveUp(error);
        throw error;
      })
      .finally(() => {
        if (this.#attempt?.controller === controller) this.#attempt = null;
      });
    this.#attempt = { promise, controller };
    window.addEventListener('pagehide', this.#leavePage);
    this.#setState(state);
    return promise;
  }

  /** @param {AbortSignal} signal */
  async #establish(signal) {
    if (typeof RTCPeerConnection === 'undefined') {
      throw new AvatarError('unsupported', 'This browser has no WebRTC, or it is switched off.');
    }
    if (!this.#micTrack) {
      const track = await openMicrophone();
      // Meanwhile someone may have hung up, or brought a microphone.
      if (signal.aborted || this.#micTrack) track.stop();
      else this.#useMicrophone(track, { ours: true });
      refuseIfAborted(signal);
      this.#setState('connecting');
    }
    await this.#openConnection(signal);
  }

  /** @param {AbortSignal} signal */
  async #reestablish(signal) {
    for (const backOffMs of BACK_OFF_MS) {
      await sleep(backOffMs);
      refuseIfAborted(signal);
      try {
        return await this.#openConnection(signal);
      } catch (error) {
        if (!(error instanceof AvatarError && PASSING.has(error.code))) throw error;
      }
    }
    throw new AvatarError('network', 'The connection was lost and did not come back.');
  }

  /** @param {AbortSignal} signal */
  async #openConnection(signal) {
    const meter = new SessionMeter();
    this.#meter = meter;
    const connection = new Connection({
      server: { baseUrl: this.src, token: this.token },
      speaker: this.speaker,
      track: this.#micTrack,
      handlers: {
        showStream: (stream) => this.#show(stream),
        onMessage: (message) => meter.addMessage(message, wallClockMs()),
        onPing: (ping) => meter.addPing(ping),
        onLost: (error) => this.#onLost(error),
      },
    });
    this.#connection = connection;
    await connection.open(signal);
    this.#attempt = null;
    this.#measured = 0;
    this.#measureTimer = window.setInterval(() => this.#measure(connection, meter), MEASURE_INTERVAL_MS);
    this.#setState('connected');
  }

  /**
   * Returns once the stream's first frame can be seen.
   *
   * @param {MediaStream} stream
   * @returns {Promise<void>}
   */
  #show(stream) {
    const video = this.#video;
    this.#stream = stream;
    video.srcObject = stream;
    video.play().catch((error) => {
      // Before the first click on a page a browser plays only without sound.
      if (error.name !== 'NotAllowedError' || this.muted) return;
      this.muted = true;
      video.play().catch(() => {});
    });
    return new Promise((resolve) => {
      // Not `requestVideoFrameCallback`: it rests while the page is hidden.
      const check = () => {
        if (video.readyState < HTMLMediaElement.HAVE_CURRENT_DATA || video.videoWidth === 0) return;
        for (const type of ['loadeddata', 'resize']) video.removeEventListener(type, check);
        resolve();
      };
      for (const type of ['loadeddata', 'resize']) video.addEventListener(type, check);
      check();
    });
  }

  #watchFrames() {
    if (!('requestVideoFrameCallback' in this.#video)) return;
    this.#video.requestVideoFrameCallback((_now, metadata) => {
      this.#meter.addPresented(presentedFrame(metadata), metadata.presentedFrames, wallClockMs());
      this.#watchFrames();
    });
  }

  /**
   * @param {Connection} connection
   * @param {SessionMeter} meter
   */
  async #measure(connection, meter) {
    const report = await connection.getStats();
    if (!report || connection !== this.#connection) return;
    const nowMs = wallClockMs();
    meter.addReceiverReading(readReceiverStats(report), nowMs);
    this.#stats = meter.stats(nowMs);
    this.#measured += 1;
    if (this.#measured % REPORT_EVERY === 0) {
      const message = reportOf(this.#stats);
      if (message) connection.send(message);
    }
    this.#emit('latency', this.#stats.latency);
  }

  /** @param {AvatarError} error */
  #onLost(error) {
    if (!PASSING.has(error.code)) {
      this.#giveUp(error);
      return;
    }
    clearInterval(this.#measureTimer);
    // Nobody waits for it; a failure is told by its event.
    this.#start((signal) => this.#reestablish(signal), 'reconnecting').catch(() => {});
  }

  /** @param {AvatarError} error */
  #giveUp(error) {
    this.#hangUp();
    this.#setState(error.code === 'ended' ? 'ended' : 'failed');
    this.#emit('error', error);
  }

  #hangUp() {
    window.removeEventListener('pagehide', this.#leavePage);
    clearInterval(this.#measureTimer);
    const attempt = this.#attempt;
    this.#attempt = null;
    attempt?.controller.abort();
    this.#connection?.close();
    this.#connection = null;
    if (this.#micIsOurs) this.#useMicrophone(null, { ours: false });
    this.#stream = null;
    this.#video.srcObject = null;
  }

  #leavePage = () => {
    this.#connection?.close({ leavingPage: true });
    this.disconnect();
  };

  /**
   * @param {MediaStreamTrack | null} track
   * @param {{ours: boolean}} whose
   */
  #useMicrophone(track, { ours }) {
    if (this.#micIsOurs) this.#micTrack?.stop();
    this.#micTrack = track;
    this.#micIsOurs = ours;
    if (!track) return;
    track.enabled = !this.#micMuted;
    track.addEventListener('ended', () => {
      if (track !== this.#micTrack) return;
      this.#emit('error', new AvatarError('no-microphone', 'The microphone went away; choose another one.'));
    });
  }

  /** @param {AvatarState} state */
  #setState(state) {
    if (state === this.#state) return;
    const previous = this.#state;
    this.#state = state;
    this.#frame.className = LOOKS[state];
    this.#emit('statechange', { state, previous });
  }

  /**
   * @param {string} type
   * @param {unknown} detail
   */
  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail, bubbles: true, composed: true }));
  }
}

/**
 * Returns a presented frame on the wall clock; null where the browser gives no RTP timestamp.
 *
 * @param {VideoFrameCallbackMetadata} metadata
 * @returns {PresentedFrame | null}
 */
function presentedFrame({ rtpTimestamp, receiveTime, expectedDisplayTime }) {
  if (rtpTimestamp === undefined) return null;
  return {
    rtp: rtpTimestamp,
    receivedMs: receiveTime === undefined ? null : performance.timeOrigin + receiveTime,
    shownMs: performance.timeOrigin + expectedDisplayTime,
  };
}

/**
 * @param {number} delayMs
 * @returns {Promise<void>}
 */
function sleep(delayMs) {
  return new Promise((resolve) => setTimeout(resolve, delayMs));
}

/** @param {AbortSignal} signal */
function refuseIfAborted(signal) {
  if (signal.aborted) throw new AvatarError('ended', 'Disconnected while connecting.');
}

if (!customElements.get('geneface-avatar')) customElements.define('geneface-avatar', GenefaceAvatar);
