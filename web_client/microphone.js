// @ts-check

import { AvatarError } from './errors.js';

/**
 * Returns an audio track of the microphone, cleaned of echo and noise; the caller stops it.
 *
 * @param {string} [deviceId] One of `enumerateDevices()`; the browser's default when empty.
 * @returns {Promise<MediaStreamTrack>}
 * @throws {AvatarError} 'insecure-context', 'unsupported', 'permission-refused' or 'no-microphone'.
 */
export async function openMicrophone(deviceId = '') {
  if (!globalThis.isSecureContext) {
    throw new AvatarError(
      'insecure-context',
      `A browser gives a microphone only to https and localhost, and this page came from ${location.origin}.`,
    );
  }
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new AvatarError('unsupported', 'This browser offers no microphone to pages (no getUserMedia).');
  }
  /** @type {MediaTrackConstraints} */
  const audio = { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 };
  if (deviceId) audio.deviceId = { exact: deviceId };
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ audio });
    return stream.getAudioTracks()[0];
  } catch (error) {
    throw microphoneError(error);
  }
}

/**
 * Returns what a failed `getUserMedia` means to the person.
 *
 * @param {unknown} error
 * @returns {AvatarError}
 */
export function microphoneError(error) {
  const name = error instanceof Error ? error.name : '';
  switch (name) {
    case 'NotAllowedError':
    case 'SecurityError':
      return new AvatarError('permission-refused', 'This page was refused the microphone.', { cause: error });
    case 'NotFoundError':
      return new AvatarError('no-microphone', 'No microphone is connected.', { cause: error });
    case 'OverconstrainedError':
      return new AvatarError('no-microphone', 'The chosen microphone is gone.', { cause: error });
    case 'NotReadableError':
    case 'AbortError':
      return new AvatarError('no-microphone', 'The microphone does not open; another program may hold it.', {
        cause: error,
      });
    default:
      return new AvatarError('no-microphone', `The microphone does not open: ${error}.`, { cause: error });
  }
}
