// @ts-check

/** The quietest level shown, in dBFS; speech lies around -30. */
const FLOOR_DB = -60;
const LOUD_DB = -6;
const SPOKEN_INTERVAL_MS = 1000;
const FFT_SIZE = 2048;
/** A context whose time stands for so long is not running, whatever it says. */
const STANDSTILL_MS = 500;

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

/**
 * Shows how loud a track is in an element of role `meter`: as the browser measures it, and where it cannot, as
 * the server hears it. A browser measures nothing without `AudioContext`, and while the context stands still,
 * as it does in some of them on a machine without a sound output.
 */
export class LevelMeter {
  #meter;
  #bar;
  /** @type {AudioContext | null} */
  #context = null;
  /** @type {MediaStreamAudioSourceNode | null} */
  #source = null;
  /** @type {AnalyserNode | null} */
  #analyser = null;
  #samples = new Float32Array(FFT_SIZE);
  #animation = 0;
  #spokenAtMs = 0;
  /** The context's time, and when it last changed. */
  #contextS = 0;
  #movedAtMs = -Infinity;
  /** @type {number | null} */
  #serverDb = null;

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
    this.#listen(track);
    let shownDb = FLOOR_DB;
    const draw = () => {
      const db = this.#measuredDb() ?? this.#serverDb;
      // Up at once, down slowly: a peak can be seen.
      shownDb = Math.max(db ?? FLOOR_DB, shownDb - 0.8, FLOOR_DB);
      this.#show(shownDb, db === null ? 'not measured yet' : levelInWords(shownDb));
      this.#animation = requestAnimationFrame(draw);
    };
    draw();
  }

  /** @param {number | null} db What the server hears, dBFS; null while that is not known. */
  showServerLevel(db) {
    this.#serverDb = db;
  }

  /** @param {MediaStreamTrack} track */
  #listen(track) {
    try {
      this.#context ??= new AudioContext();
      this.#context.resume().catch(() => {});
      this.#analyser = new AnalyserNode(this.#context, { fftSize: FFT_SIZE });
      this.#source = this.#context.createMediaStreamSource(new MediaStream([track]));
      this.#source.connect(this.#analyser);
    } catch {
      this.#analyser = null; // no Web Audio, or none for this track: the server hears it all the same
    }
  }

  /** @returns {number | null} Null where the browser measures nothing. */
  #measuredDb() {
    if (!this.#analyser || !this.#context) return null;
    const nowMs = performance.now();
    if (this.#context.currentTime !== this.#contextS) {
      this.#contextS = this.#context.currentTime;
      this.#movedAtMs = nowMs;
    }
    if (this.#context.state !== 'running' || nowMs - this.#movedAtMs > STANDSTILL_MS) return null;
    this.#analyser.getFloatTimeDomainData(this.#samples);
    // No microphone gives nothing but zeros: it is muted, which the server hears too, or does not get here.
    return this.#samples.some((sample) => sample !== 0) ? levelDb(this.#samples) : null;
  }

  /** Shows nothing; a second time does nothing. */
  stop() {
    cancelAnimationFrame(this.#animation);
    this.#source?.disconnect();
    this.#source = null;
    this.#analyser = null;
    this.#serverDb = null;
    this.#movedAtMs = -Infinity;
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
