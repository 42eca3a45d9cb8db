// @ts-check

/** The quietest level shown, in dBFS; speech lies around -30. */
const FLOOR_DB = -60;
const LOUD_DB = -6;
const SPOKEN_INTERVAL_MS = 1000;

/**
 * Returns the level of samples in dBFS, at least -60.
 *
 * @param {Float32Array} samples -1 to 1.
 * @returns {number}
 */
export function levelDb(samples) {
  let sum = 0;
  for (const sample of samples) sum += sample * sample;
  return sum === 0 ? FLOOR_DB : Math.max(FLOOR_DB, 10 * Math.log10(sum / samples.length));
}

/**
 * Returns a level in words.
 *
 * @param {number} db dBFS
 * @returns {string}
 */
export function levelInWords(db) {
  if (db <= -55) return 'silent';
  if (db <= -42) return 'quiet';
  if (db <= LOUD_DB) return 'good';
  return 'too loud';
}

/** Shows how loud a track is in an element of role `meter`. */
export class LevelMeter {
  #meter;
  #bar;
  /** @type {AudioContext | null} */
  #context = null;
  /** @type {MediaStreamAudioSourceNode | null} */
  #source = null;
  #animation = 0;
  #spokenAtMs = 0;

  /**
   * @param {HTMLElement} meter
   * @param {HTMLElement} bar Inside; its scale is the level.
   */
  constructor(meter, bar) {
    this.#meter = meter;
    this.#bar = bar;
  }

  /**
   * Shows this track instead of any before; call it after a click, else a browser keeps the sound from pages.
   *
   * @param {MediaStreamTrack} track
   */
  start(track) {
    this.stop();
    this.#context ??= new AudioContext();
    this.#context.resume().catch(() => {});
    const analyser = new AnalyserNode(this.#context, { fftSize: 2048 });
    this.#source = this.#context.createMediaStreamSource(new MediaStream([track]));
    this.#source.connect(analyser);
    const samples = new Float32Array(analyser.fftSize);
    let shownDb = FLOOR_DB;
    const draw = () => {
      analyser.getFloatTimeDomainData(samples);
      // Up at once, down slowly: a peak can be seen.
      shownDb = Math.max(levelDb(samples), shownDb - 0.8);
      this.#show(shownDb, levelInWords(shownDb));
      this.#animation = requestAnimationFrame(draw);
    };
    draw();
  }

  /** Shows nothing; a second time does nothing. */
  stop() {
    cancelAnimationFrame(this.#animation);
    this.#source?.disconnect();
    this.#source = null;
    this.#context?.suspend().catch(() => {});
    this.#spokenAtMs = 0;
    this.#show(FLOOR_DB, 'off');
  }

  /**
   * @param {number} db
   * @param {string} words
   */
  #show(db, words) {
    this.#bar.style.transform = `scaleX(${1 - db / FLOOR_DB})`;
    this.#meter.classList.toggle('loud', db > LOUD_DB);
    const nowMs = performance.now();
    if (nowMs - this.#spokenAtMs < SPOKEN_INTERVAL_MS && words !== 'off') return;
    this.#spokenAtMs = nowMs;
    this.#meter.setAttribute('aria-valuenow', db.toFixed(0));
    this.#meter.setAttribute('aria-valuetext', words);
  }
}
