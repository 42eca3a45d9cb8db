// @ts-check

import { AvatarError } from './errors.js';
import { wallClockMs } from './latency.js';
import { parseMessage } from './messages.js';
import { deleteSession, fetchIceConfiguration, postOffer, socketUrl } from './signalling.js';

/**
 * @import { ClientMessage, ServerMessage } from './messages.js'
 * @import { Server } from './signalling.js'
 *
 * @typedef {object} ConnectionHandlers
 * @property {(stream: MediaStream) => Promise<void>} showStream Takes the server's picture and sound before
 *   they flow; returns once the first frame shows.
 * @property {(message: ServerMessage) => void} onMessage All but pongs and the end.
 * @property {(ping: {sentMs: number, receivedMs: number, serverMs: number}) => void} onPing
 * @property {(error: AvatarError) => void} onLost Once, after `open()`: 'network', or 'ended' by the server.
 */

const GATHER_HOST_MS = 1000;
const GATHER_SERVERS_MS = 3000;
const CONNECT_MS = 10_000;
const FIRST_FRAME_MS = 10_000;
const DISCONNECTED_MS = 3000;
const PING_INTERVAL_MS = 1000;
const KEPT_PINGS = 10;

/** One session with the server, from its offer to its end: a peer connection and a WebSocket. */
export class Connection {
  #server;
  #speaker;
  #track;
  #handlers;

  /** @type {RTCPeerConnection | null} */
  #peer = null;
  /** @type {WebSocket | null} */
  #socket = null;
  #sessionId = '';

  /** @type {'opening' | 'open' | 'closed'} */
  #phase = 'opening';
  #serverEnded = false;
  /** @type {PromiseWithEnds<void>} */
  #connected = promiseWithEnds();
  /** @type {PromiseWithEnds<never>} */
  #failed = promiseWithEnds();
  /** @type {Promise<void> | null} */
  #shown = null;

  /** @type {Map<number, number>} Ping number to when it was sent, of the last few. */
  #pings = new Map();
  #nextPing = 0;
  /** @type {Set<number>} */
  #timers = new Set();
  #graceTimer = 0;

  /**
   * @param {object} parts
   * @param {Server} parts.server
   * @param {string} parts.speaker Empty for the server's default.
   * @param {MediaStreamTrack | null} parts.track
   * @param {ConnectionHandlers} parts.handlers
   */
  constructor({ server, speaker, track, handlers }) {
    this.#server = server;
    this.#speaker = speaker;
    this.#track = track;
    this.#handlers = handlers;
    // Each may be rejected while nobody waits.
    this.#connected.promise.catch(() => {});
    this.#failed.promise.catch(() => {});
  }

  /** The state of the peer connection; 'closed' after `close()`. */
  get connectionState() {
    if (this.#phase === 'closed') return 'closed';
    return this.#peer?.connectionState ?? 'new';
  }

  /**
   * Returns once the first frame shows; closed again if it fails. Call it once.
   *
   * @param {AbortSignal} signal
   * @throws {AvatarError} 'ended' when aborted; otherwise why it could not connect.
   */
  async open(signal) {
    const abort = () => this.close();
    signal.addEventListener('abort', abort);
    try {
      if (signal.aborted) abort();
      await Promise.race([this.#failed.promise, this.#negotiate(signal)]);
      this.#phase = 'open';
    } catch (error) {
      this.close();
      throw error instanceof AvatarError
        ? error
        : new AvatarError('unsupported', `This browser does not connect: ${error}.`, { cause: error });
    } finally {
      signal.removeEventListener('abort', abort);
    }
  }

  /**
   * Sends another microphone's sound from now on.
   *
   * @param {MediaStreamTrack | null} track
   */
  async replaceTrack(track) {
    this.#track = track;
    const [audio] = this.#peer?.getSenders() ?? [];
    if (this.#phase !== 'closed') await audio?.replaceTrack(track);
  }

  /** Returns the peer connection's statistics, null before there is one. */
  async getStats() {
    return this.#phase === 'open' && this.#peer ? this.#peer.getStats() : null;
  }

  /**
   * Sends a message if the WebSocket is open.
   *
   * @param {ClientMessage} message
   * @returns {boolean} Whether it was handed over.
   */
  send(message) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(JSON.stringify(message));
    return true;
  }

  /**
   * Ends the session on both sides; a second time does nothing.
   *
   * @param {{leavingPage?: boolean}} [how] While a page goes away only a keep-alive request is sure to leave.
   */
  close({ leavingPage = false } = {}) {
    if (this.#phase === 'closed') return;
    this.#phase = 'closed';
    for (const timer of this.#timers) clearTimeout(timer);
    this.#timers.clear();
    const told = this.send({ type: 'end' });
    this.#socket?.close();
    if (this.#sessionId && !this.#serverEnded && (leavingPage || !told)) {
      deleteSession(this.#server, this.#sessionId);
    }
    this.#peer?.close();
    const error = new AvatarError('ended', 'Disconnected while connecting.');
    this.#failed.reject(error);
    this.#connected.reject(error);
  }

  /** @param {AbortSignal} signal */
  async #negotiate(signal) {
    const configuration = await fetchIceConfiguration(this.#server, signal);
    this.#refuseIfClosed();
    const peer = this.#createPeer(configuration);
    await peer.setLocalDescription();
    await gathered(peer, configuration.iceServers?.length ? GATHER_SERVERS_MS : GATHER_HOST_MS);
    this.#refuseIfClosed();
    // Without `signal`: the server may have opened a session already, and only its answer says which to end.
    const answer = await postOffer(this.#server, {
      sdp: peer.localDescription?.sdp ?? '',
      type: 'offer',
      ...(this.#speaker && { speaker: this.#speaker }),
    });
    this.#sessionId = answer.session_id;
    if (this.#phase === 'closed') {
      deleteSession(this.#server, this.#sessionId);
      this.#refuseIfClosed();
    }
    await peer.setRemoteDescription({ sdp: answer.sdp, type: answer.type });
    this.#refuseIfClosed();
    if (!this.#shown) throw new AvatarError('unsupported', 'The server sends no picture.');
    this.#openSocket();
    this.#after(CONNECT_MS, () => {
      if (this.#phase === 'opening' && this.connectionState !== 'connected') this.#fail(iceError());
    });
    await this.#connected.promise;
    this.#after(FIRST_FRAME_MS, () => {
      if (this.#phase !== 'opening') return;
      this.#fail(new AvatarError('network', 'Connected, but no picture came.'));
    });
    await this.#shown;
  }

  /**
   * @param {RTCConfiguration} configuration
   * @returns {RTCPeerConnection}
   */
  #createPeer(configuration) {
    const peer = new RTCPeerConnection({ ...configuration, bundlePolicy: 'max-bundle' });
    this.#peer = peer;
    peer.addEventListener('track', ({ streams: [stream] }) => {
      // Both tracks come in one stream. A stream put together here instead stays black in Safari.
      if (stream && !this.#shown) this.#shown = this.#handlers.showStream(stream);
    });
    peer.addEventListener('connectionstatechange', () => this.#watchPeer(peer.connectionState));
    peer.addTransceiver(this.#track ?? 'audio', { direction: 'sendrecv' });
    peer.addTransceiver('video', { direction: 'recvonly' });
    for (const receiver of peer.getReceivers()) {
      if ('jitterBufferTarget' in receiver) receiver.jitterBufferTarget = 0;
    }
    return peer;
  }

  /** @param {RTCPeerConnectionState} state */
  #watchPeer(state) {
    this.#cancel(this.#graceTimer);
    if (state === 'connected') {
      this.#connected.resolve();
    } else if (state === 'failed') {
      this.#fail(this.#phase === 'opening' ? iceError() : lostError());
    } else if (state === 'disconnected') {
      this.#graceTimer = this.#after(DISCONNECTED_MS, () => this.#fail(lostError()));
    }
  }

  #openSocket() {
    const socket = new WebSocket(socketUrl(this.#server, this.#sessionId));
    this.#socket = socket;
    socket.addEventListener('open', () => this.#ping());
    socket.addEventListener('message', ({ data }) => this.#receive(data));
    socket.addEventListener('close', () => {
      this.#fail(
        this.#phase === 'opening'
          ? new AvatarError('network', 'The WebSocket does not open; a proxy may block it.')
          : lostError(),
      );
    });
  }

  #ping() {
    const id = this.#nextPing++;
    this.#pings.set(id, wallClockMs());
    this.#pings.delete(id - KEPT_PINGS);
    this.send({ type: 'ping', id });
    this.#after(PING_INTERVAL_MS, () => this.#ping());
  }

  /** @param {unknown} data */
  #receive(data) {
    const message = parseMessage(data);
    if (message === null || this.#phase === 'closed') return;
    if (message.type === 'pong') {
      const sentMs = this.#pings.get(message.id);
      this.#pings.delete(message.id);
      if (sentMs === undefined) return;
      this.#handlers.onPing({ sentMs, receivedMs: wallClockMs(), serverMs: message.server_ms });
    } else if (message.type === 'ended') {
      this.#serverEnded = true;
      // The server heard nothing for seconds: that is the network, and worth another try.
      this.#fail(
        message.reason === 'timed out'
          ? lostError()
          : new AvatarError('ended', `The server ended the session: ${message.reason || 'no reason given'}.`),
      );
    } else {
      this.#handlers.onMessage(message);
    }
  }

  /** @param {AvatarError} error */
  #fail(error) {
    if (this.#phase === 'closed') return;
    const wasOpen = this.#phase === 'open';
    this.#failed.reject(error);
    this.close();
    if (wasOpen) this.#handlers.onLost(error);
  }

  #refuseIfClosed() {
    if (this.#phase === 'closed') throw new AvatarError('ended', 'Disconnected while connecting.');
  }

  /**
   * @param {number} delayMs
   * @param {() => void} action Not called once closed.
   * @returns {number} To cancel it by.
   */
  #after(delayMs, action) {
    const timer = window.setTimeout(() => {
      this.#timers.delete(timer);
      action();
    }, delayMs);
    this.#timers.add(timer);
    return timer;
  }

  /** @param {number} timer */
  #cancel(timer) {
    clearTimeout(timer);
    this.#timers.delete(timer);
  }
}

/**
 * Returns when all ways to this browser are found, or after `limitMs`: what was found by then must do.
 *
 * @param {RTCPeerConnection} peer
 * @param {number} limitMs
 * @returns {Promise<void>}
 */
function gathered(peer, limitMs) {
  if (peer.iceGatheringState === 'complete') return Promise.resolve();
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      peer.removeEventListener('icegatheringstatechange', check);
      resolve();
    };
    const check = () => {
      if (peer.iceGatheringState === 'complete') done();
    };
    const timer = setTimeout(done, limitMs);
    peer.addEventListener('icegatheringstatechange', check);
  });
}

/** @returns {AvatarError} */
function iceError() {
  return new AvatarError('ice-failed', 'No way for picture and sound was found between browser and server.');
}

/** @returns {AvatarError} */
function lostError() {
  return new AvatarError('network', 'The connection to the server was lost.');
}

/**
 * @template T
 * @typedef {object} PromiseWithEnds
 * @property {Promise<T>} promise
 * @property {(value: T) => void} resolve
 * @property {(error: AvatarError) => void} reject
 */

/**
 * Returns a promise with what settles it (`Promise.withResolvers` is missing in browsers still in use).
 *
 * @template T
 * @returns {PromiseWithEnds<T>}
 */
function promiseWithEnds() {
  /** @type {(value: T) => void} */
  let resolve = () => {};
  /** @type {(error: AvatarError) => void} */
  let reject = () => {};
  /** @type {Promise<T>} */
  const promise = new Promise((whenResolved, whenRejected) => {
    resolve = whenResolved;
    reject = whenRejected;
  });
  return { promise, resolve, reject };
}
