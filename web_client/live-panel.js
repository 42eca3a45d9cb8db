// @ts-check

import { STAGES } from './latency.js';

/** @import { AvatarStats } from './session-meter.js' */

const NOTHING = '–';
/** The part of the bar from which on a segment has room for its number. */
const NUMBERED_SHARE = 0.04;

/** The figures of the running session, and the bar of its stages. */
export class LivePanel {
  /** @type {(id: string) => HTMLElement} */
  #part;
  /** @type {{segment: HTMLElement, value: HTMLElement}[]} */
  #stages = [];

  /** @param {(id: string) => HTMLElement} part Finds an element of the page by its id. */
  constructor(part) {
    this.#part = part;
    STAGES.forEach(({ name }, index) => {
      const number = `${index + 1}`;
      const segment = span(`stage-${number}`, '');
      const value = span('value', NOTHING);
      const item = document.createElement('li');
      item.append(span(`number stage-${number}`, number), span('', name), value);
      part('bar').append(segment);
      part('legend').append(item);
      this.#stages.push({ segment, value });
    });
  }

  /** @param {AvatarStats} stats */
  show(stats) {
    const { latency, fps, renderPx, renderNote, notes, lipsAheadMs, droppedFrames, lossFraction } = stats;
    this.#note(notes.join(' '));
    this.#write('p50', latency.p50Ms === null ? NOTHING : latency.p50Ms.toFixed(0));
    this.#write(
      'p95',
      latency.p95Ms === null
        ? 'Waiting for the first figures.'
        : `95 % of frames within ${latency.p95Ms.toFixed(0)} ms`,
    );
    // An offset between the clocks that is off by a little can make a short stage negative.
    const stagesMs = latency.stages.map(({ p50Ms }) => (p50Ms === null ? null : Math.max(0, p50Ms)));
    const sumMs = stagesMs.reduce((/** @type {number} */ sum, stageMs) => sum + (stageMs ?? 0), 0);
    stagesMs.forEach((stageMs, index) => {
      const { segment, value } = this.#stages[index];
      const share = sumMs > 0 ? (stageMs ?? 0) / sumMs : 0;
      segment.style.flexGrow = `${share}`;
      segment.textContent = share < NUMBERED_SHARE ? '' : `${index + 1}`;
      value.textContent = stageMs === null ? NOTHING : `${stageMs.toFixed(stageMs < 9.95 ? 1 : 0)} ms`;
    });
    this.#write('fps', fps.toFixed(1));
    this.#write('render', renderPx === null ? NOTHING : sizeInWords(renderPx, stats.imageSizePx, stats.drawnShare));
    this.#part('render').title = renderNote;
    this.#write('lips', lipsInWords(lipsAheadMs));
    this.#write('dropped', `${droppedFrames.server + droppedFrames.browser}`);
    this.#part('dropped').title = `server ${droppedFrames.server}, browser ${droppedFrames.browser}`;
    this.#write('loss-down', percentInWords(lossFraction.down));
    this.#write('loss-up', percentInWords(lossFraction.up));
  }

  /** Forgets the last session. */
  clear() {
    for (const id of ['p50', 'fps', 'render', 'lips', 'dropped', 'loss-down', 'loss-up']) {
      this.#write(id, NOTHING);
    }
    this.#write('p95', 'Measured while you are live.');
    this.#note('');
    for (const { segment, value } of this.#stages) {
      segment.style.flexGrow = '0';
      value.textContent = NOTHING;
    }
  }

  /** @param {string} text Said aloud when it changes; empty where all is well. */
  #note(text) {
    if (this.#part('note').textContent !== text) this.#write('note', text);
    this.#part('note').hidden = text === '';
  }

  /**
   * @param {string} id
   * @param {string} text
   */
  #write(id, text) {
    this.#part(id).textContent = text;
  }
}

/**
 * Returns how the lips stand to the sound, in words.
 *
 * @param {number | null} lipsAheadMs
 * @returns {string}
 */
export function lipsInWords(lipsAheadMs) {
  if (lipsAheadMs === null) return NOTHING;
  const distanceMs = Math.round(Math.abs(lipsAheadMs));
  if (distanceMs === 0) return 'together';
  return `${distanceMs} ms ${lipsAheadMs > 0 ? 'ahead' : 'behind'}`;
}

/**
 * Returns the size that is drawn, the one that it is scaled up to where that differs, and how much is drawn.
 *
 * @param {number} renderPx
 * @param {number | null} imageSizePx
 * @param {number} drawnShare
 * @returns {string}
 */
export function sizeInWords(renderPx, imageSizePx, drawnShare) {
  const whole = imageSizePx === null || imageSizePx === renderPx;
  const size = whole ? `${renderPx} px` : `${renderPx} of ${imageSizePx} px`;
  return drawnShare < 1 ? `${size}, ${Math.round(100 * drawnShare)} % of it` : size;
}

/**
 * @param {number | null} fraction
 * @returns {string}
 */
function percentInWords(fraction) {
  return fraction === null ? NOTHING : `${(100 * fraction).toFixed(1)} %`;
}

/**
 * @param {string} className
 * @param {string} text
 * @returns {HTMLSpanElement}
 */
function span(className, text) {
  const element = document.createElement('span');
  element.className = className;
  element.textContent = text;
  return element;
}
