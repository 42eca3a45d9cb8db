// @ts-check

import { AvatarError } from './errors.js';

/**
 * Which server, and what it lets in by.
 *
 * @typedef {object} Server
 * @property {string} baseUrl Absolute, without a slash at its end.
 * @property {string} token Empty when the server asks for none.
 *
 * @typedef {object} SpeakerEntry
 * @property {string} name
 * @property {string} [title]
 * @property {boolean} synthetic Nobody's likeness.
 * @property {number} image_size_px
 *
 * @typedef {object} SpeakerList
 * @property {SpeakerEntry[]} speakers
 * @property {string} default
 *
 * @typedef {object} Answer
 * @property {string} sdp
 * @property {'answer'} type
 * @property {string} session_id
 */

const DEFAULT_RETRY_S = 5;

/**
 * Returns the speakers that the server has.
 *
 * @param {Server} server
 * @param {AbortSignal} [signal]
 * @returns {Promise<SpeakerList>}
 * @throws {AvatarError} As `request`.
 */
export async function fetchSpeakers(server, signal) {
  return readJson(await request(server, '/speakers', { signal }));
}

/**
 * Returns how to find a way to the server.
 *
 * @param {Server} server
 * @param {AbortSignal} [signal]
 * @returns {Promise<RTCConfiguration>}
 * @throws {AvatarError} As `request`.
 */
export async function fetchIceConfiguration(server, signal) {
  const { iceServers = [] } = await readJson(await request(server, '/ice', { signal }));
  return { iceServers };
}

/**
 * Returns the server's answer to an offer.
 *
 * @param {Server} server
 * @param {{sdp: string, type: 'offer', speaker?: string}} offer
 * @returns {Promise<Answer>}
 * @throws {AvatarError} As `request`.
 */
export async function postOffer(server, offer) {
  const response = await request(server, '/offer', {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify(offer),
  });
  return readJson(response);
}

/**
 * Asks the server to end a session, also while the page goes away; a server out of reach ends it by itself.
 *
 * @param {Server} server
 * @param {string} sessionId
 */
export function deleteSession(server, sessionId) {
  request(server, `/sessions/${encodeURIComponent(sessionId)}`, { method: 'DELETE', keepalive: true }).catch(
    () => {},
  );
}

/**
 * Returns the address of a session's WebSocket.
 *
 * @param {Server} server
 * @param {string} sessionId
 * @returns {string}
 */
export function socketUrl({ baseUrl }, sessionId) {
  return `${baseUrl.replace(/^http/, 'ws')}/ws/${encodeURIComponent(sessionId)}`;
}

/**
 * Returns the seconds that a `Retry-After` header asks for (RFC 9110, section 10.2.3); 5 without one.
 *
 * @param {string | null} header Seconds or an HTTP date.
 * @param {number} nowMs Unix epoch.
 * @returns {number}
 */
export function retryAfterS(header, nowMs) {
  if (header === null || header.trim() === '') return DEFAULT_RETRY_S;
  const seconds = Number(header);
  if (Number.isFinite(seconds)) return Math.max(0, Math.ceil(seconds));
  const dateMs = Date.parse(header);
  return Number.isNaN(dateMs) ? DEFAULT_RETRY_S : Math.max(0, Math.ceil((dateMs - nowMs) / 1000));
}

/**
 * Returns the response to a request, if the server granted it.
 *
 * @param {Server} server
 * @param {string} path
 * @param {RequestInit} init
 * @returns {Promise<Response>}
 * @throws {AvatarError} 'network' when no answer came or the server failed; otherwise by status.
 */
async function request({ baseUrl, token }, path, init) {
  const headers = new Headers(init.headers);
  if (token) headers.set('Authorization', `Bearer ${token}`);
  let response;
  try {
    response = await fetch(baseUrl + path, { ...init, headers, cache: 'no-store' });
  } catch (error) {
    if (init.signal?.aborted) throw new AvatarError('ended', 'Disconnected.', { cause: error });
    throw new AvatarError('network', `The server at ${baseUrl} does not answer.`, { cause: error });
  }
  if (response.status === 401) {
    // The server's own words are for programs.
    throw new AvatarError(
      'unauthorized',
      token ? 'The server does not take this access token.' : 'The server asks for an access token.',
    );
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/**
 * Returns what a status other than 2xx and 401 means.
 *
 * @param {Response} response With a body of application/problem+json, or any other.
 * @returns {Promise<AvatarError>}
 */
async function refusal(response) {
  const detail = await problemDetail(response);
  switch (response.status) {
    case 403:
      return new AvatarError('forbidden', detail ?? `The server refuses pages of ${location.origin}.`);
    case 404:
      return new AvatarError('unknown-speaker', detail ?? 'The server does not have this speaker.');
    case 406:
      return new AvatarError('unsupported', detail ?? 'Browser and server share no codec.');
    case 400:
    case 413:
    case 422:
      return new AvatarError('unsupported', detail ?? "The server refuses this browser's offer.");
    case 429:
    case 503:
      return new AvatarError('server-full', detail ?? 'The server is busy.', {
        retryAfterS: retryAfterS(response.headers.get('Retry-After'), Date.now()),
      });
    default:
      return new AvatarError('network', detail ?? `The server failed (HTTP ${response.status}).`);
  }
}

/**
 * Returns the `detail` of a problem (RFC 9457), null when there is none.
 *
 * @param {Response} response
 * @returns {Promise<string | null>}
 */
async function problemDetail(response) {
  try {
    const { detail } = await response.json();
    return typeof detail === 'string' && detail ? detail : null;
  } catch {
    return null;
  }
}

/**
 * Returns the JSON of a response.
 *
 * @param {Response} response
 * @returns {Promise<any>}
 * @throws {AvatarError} 'network' when it is none: something else than the server answered.
 */
async function readJson(response) {
  try {
    return await response.json();
  } catch (error) {
    throw new AvatarError('network', `${response.url} did not answer with JSON.`, { cause: error });
  }
}
