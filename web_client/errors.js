// @ts-check

/**
 * Why the avatar is not live, as a word that a program can act on.
 *
 * @typedef {'no-microphone' | 'permission-refused' | 'insecure-context' | 'server-full' | 'unauthorized'
 *   | 'forbidden' | 'unknown-speaker' | 'network' | 'ice-failed' | 'unsupported' | 'ended'} AvatarErrorCode
 */

/** What went wrong; `message` is one line fit to be shown, `code` is what a program decides by. */
export class AvatarError extends Error {
  /**
   * @param {AvatarErrorCode} code
   * @param {string} message
   * @param {{retryAfterS?: number, cause?: unknown}} [more] `retryAfterS` comes with 'server-full'.
   */
  constructor(code, message, { retryAfterS, cause } = {}) {
    super(message, { cause });
    this.name = 'AvatarError';
    /** @readonly */
    this.code = code;
    /** @readonly Seconds to wait before another try makes sense. */
    this.retryAfterS = retryAfterS;
  }
}
