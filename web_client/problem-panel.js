// @ts-check

/**
 * @import { AvatarError, AvatarErrorCode } from './errors.js'
 *
 * What to say beside an error's own line.
 *
 * @typedef {object} Advice
 * @property {string} title
 * @property {string} wayOut
 * @property {boolean} [retry] Whether trying again unchanged can help.
 */

/** @type {Record<AvatarErrorCode, Advice>} */
const ADVICE = {
  'no-microphone': {
    title: 'No microphone',
    wayOut: 'Plug one in, or choose another one in the list, then try again.',
    retry: true,
  },
  'permission-refused': {
    title: 'The microphone is not allowed',
    wayOut:
      'Click the icon left of the address, allow the microphone for this page, then try again. ' +
      "If it is allowed there, look into the system's privacy settings.",
    retry: true,
  },
  'insecure-context': {
    title: 'This address is not secure',
    wayOut: 'Open the page by https://, or as http://localhost on the machine that serves it.',
  },
  'server-full': {
    title: 'All places are taken',
    wayOut: 'A place gets free when somebody leaves.',
  },
  unauthorized: {
    title: 'An access token is needed',
    wayOut: 'Whoever runs the server has it: it was given with --token.',
  },
  forbidden: {
    title: 'This page is not let in',
    wayOut: "The page's address has to be among those that the server allows.",
  },
  'unknown-speaker': {
    title: 'Unknown speaker',
    wayOut: 'Choose another speaker, or reload the page for the present list.',
  },
  network: {
    title: 'No connection to the server',
    wayOut: 'Look whether the server runs and your network works, then try again.',
    retry: true,
  },
  'ice-failed': {
    title: 'Picture and sound do not get through',
    wayOut:
      'UDP may be blocked between you and the server, by a firewall or a VPN. ' +
      'Try another network, or give the server a TURN server.',
    retry: true,
  },
  unsupported: {
    title: 'This does not work in this browser',
    wayOut: 'Use a present Chrome, Edge, Firefox or Safari.',
  },
  ended: {
    title: 'The session has ended',
    wayOut: 'Start again when you like.',
    retry: true,
  },
};

/** Says what went wrong and the way out: try again, wait, or give a token. */
export class ProblemPanel {
  /** @type {(id: string) => HTMLElement} */
  #part;
  #onRetry;
  #countdown = 0;
  /** @type {AvatarError | null} */
  #shown = null;

  /**
   * @param {object} parts
   * @param {(id: string) => HTMLElement} parts.part Finds an element of the page by its id.
   * @param {() => void} parts.onRetry The person, or the end of a countdown, asks to try again.
   * @param {() => void} parts.onCancel The person does not want the countdown to go on.
   * @param {(token: string) => void} parts.onToken
   */
  constructor({ part, onRetry, onCancel, onToken }) {
    this.#part = part;
    this.#onRetry = onRetry;
    part('problem-retry').addEventListener('click', onRetry);
    part('problem-cancel').addEventListener('click', onCancel);
    part('token-form').addEventListener('submit', (event) => {
      event.preventDefault();
      const input = /** @type {HTMLInputElement} */ (part('token'));
      onToken(input.value);
      input.value = '';
    });
  }

  /** @param {AvatarError} error The same one a second time changes nothing. */
  show(error) {
    if (error === this.#shown) return;
    const { title, wayOut, retry = false } = ADVICE[error.code];
    this.hide();
    this.#shown = error;
    this.#part('problem').hidden = false;
    this.#part('problem-title').textContent = title;
    this.#part('problem-text').textContent = error.message;
    this.#part('problem-advice').textContent = wayOut;
    this.#part('problem-retry').hidden = !retry;
    this.#part('token-form').hidden = error.code !== 'unauthorized';
    if (error.code === 'unauthorized') this.#part('token').focus();
    if (error.retryAfterS !== undefined) this.#countDown(error.retryAfterS);
  }

  /** Takes the problem away; a countdown stops. */
  hide() {
    this.#shown = null;
    clearInterval(this.#countdown);
    this.#part('problem').hidden = true;
    this.#part('problem-countdown').hidden = true;
    this.#part('problem-cancel').hidden = true;
  }

  /** @param {number} seconds */
  #countDown(seconds) {
    const line = this.#part('problem-countdown');
    const endMs = performance.now() + 1000 * seconds;
    line.hidden = false;
    this.#part('problem-cancel').hidden = false;
    const tick = () => {
      const leftS = Math.ceil((endMs - performance.now()) / 1000);
      line.textContent = `Trying again in ${Math.max(0, leftS)} s.`;
      if (leftS > 0) return;
      clearInterval(this.#countdown);
      this.#onRetry();
    };
    this.#countdown = window.setInterval(tick, 250);
    tick();
  }
}
