// @ts-check

import { AvatarError } from './errors.js';
import { GenefaceAvatar } from './geneface-avatar.js';
import { LevelMeter } from './level-meter.js';
import { LivePanel } from './live-panel.js';
import { openMicrophone } from './microphone.js';
import { ProblemPanel } from './problem-panel.js';
import { fetchSpeakers } from './signalling.js';

/**
 * @import { AvatarState } from './geneface-avatar.js'
 * @import { SpeakerEntry } from './signalling.js'
 */

/** @type {Record<AvatarState, string>} */
const STATE_IN_WORDS = {
  idle: 'Not connected',
  'requesting-microphone': 'Allow the microphone in the browser',
  connecting: 'Connecting',
  connected: 'Live',
  reconnecting: 'Connection lost, trying again',
  failed: 'No connection',
  ended: 'Ended by the server',
};

const avatar = /** @type {GenefaceAvatar} */ (part('avatar'));
const startButton = /** @type {HTMLButtonElement} */ (part('start'));
const muteButton = /** @type {HTMLButtonElement} */ (part('mute'));
const hearButton = /** @type {HTMLButtonElement} */ (part('hear'));
const speakerSelect = /** @type {HTMLSelectElement} */ (part('speaker'));
const microphoneSelect = /** @type {HTMLSelectElement} */ (part('microphone'));
const levelMeter = new LevelMeter(part('level'), part('level-bar'));
const livePanel = new LivePanel(part);
const problemPanel = new ProblemPanel({ part, onRetry: retry, onCancel: leaveProblem, onToken: useToken });

/** @type {SpeakerEntry[]} */
let speakers = [];
/** Counts what the person asked for, so that an older wish which comes true late is dropped. */
let wish = 0;
let running = false;

startButton.addEventListener('click', () => (running ? stop() : start()));
muteButton.addEventListener('click', () => setMuted(!avatar.micMuted));
hearButton.addEventListener('click', () => {
  avatar.muted = !avatar.muted;
});
speakerSelect.addEventListener('change', () => {
  chooseSpeaker(speakerSelect.value);
  if (running) start();
});
microphoneSelect.addEventListener('change', () => {
  if (running) changeMicrophone();
});
avatar.addEventListener('statechange', () => showState(avatar.state));
avatar.addEventListener('volumechange', () => setPressed(hearButton, !avatar.muted));
avatar.addEventListener('latency', () => {
  if (!avatar.stats) return;
  livePanel.show(avatar.stats);
  levelMeter.showServerLevel(avatar.stats.microphoneLevelDb);
});
avatar.addEventListener('error', (/** @type {any} */ event) => showProblem(event.detail));
navigator.mediaDevices?.addEventListener('devicechange', listMicrophones);
part('copy').addEventListener('click', copySnippet);
window.addEventListener('hashchange', () => useToken(tokenInAddress()));

part('snippet').textContent = snippet();
avatar.token = tokenInAddress();
listSpeakers();
listMicrophones();

/** Connects, from anew if connected, with the speaker and microphone chosen. */
async function start() {
  const mine = ++wish;
  problemPanel.hide();
  livePanel.clear();
  avatar.disconnect();
  setRunning(true);
  try {
    if (avatar.micTrack?.readyState !== 'live') {
      showState('requesting-microphone');
      const track = await openMicrophone(microphoneSelect.value);
      if (mine !== wish) {
        track.stop();
        return;
      }
      useMicrophone(track);
    }
    await avatar.connect();
  } catch (error) {
    if (mine === wish) showProblem(error);
  }
}

/** Hangs up and lets go of the microphone. */
function stop() {
  wish += 1;
  problemPanel.hide();
  livePanel.clear();
  avatar.disconnect();
  useMicrophone(null);
  setRunning(false);
  showState('idle');
}

/** Sends another microphone's sound without hanging up. */
async function changeMicrophone() {
  const mine = wish;
  try {
    const track = await openMicrophone(microphoneSelect.value);
    if (mine !== wish) track.stop();
    else useMicrophone(track);
  } catch (error) {
    if (mine === wish) showProblem(error);
  }
}

/** @param {MediaStreamTrack | null} track The page's own: stopped when another takes its place. */
function useMicrophone(track) {
  const before = avatar.micTrack;
  avatar.micTrack = track;
  before?.stop();
  if (track) levelMeter.start(track);
  else levelMeter.stop();
  if (track) listMicrophones();
}

/** Fills the list; devices have names only once a microphone was allowed. */
async function listMicrophones() {
  const devices = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
  const named = devices.filter(({ kind, deviceId, label }) => kind === 'audioinput' && deviceId && label);
  const chosen = microphoneSelect.value;
  microphoneSelect.replaceChildren(
    new Option('Default microphone', ''),
    ...named
      .filter(({ deviceId }) => deviceId !== 'default')
      .map(({ label, deviceId }) => new Option(label, deviceId)),
  );
  microphoneSelect.value = named.some(({ deviceId }) => deviceId === chosen) ? chosen : '';
}

/** Asks the server for its speakers. */
async function listSpeakers() {
  try {
    const list = await fetchSpeakers({ baseUrl: avatar.src, token: avatar.token });
    speakers = list.speakers;
    speakerSelect.replaceChildren(...speakers.map(({ name, title }) => new Option(title ?? name, name)));
    chooseSpeaker(speakers.some(({ name }) => name === avatar.speaker) ? avatar.speaker : list.default);
  } catch (error) {
    showProblem(error);
  }
}

/** @param {string} name */
function chooseSpeaker(name) {
  const speaker = speakers.find((entry) => entry.name === name);
  const title = speaker?.title ?? name;
  speakerSelect.value = name;
  avatar.speaker = name;
  part('hear-label').textContent = `Hear ${title}`;
  part('synthetic').textContent = speaker?.synthetic
    ? `Synthetic: ${title} is a computer-made character, driven by your voice. Say so where you show it.`
    : `Synthetic: a voice-driven face of ${title}, made by a computer. Say so where you show it.`;
  part('snippet').textContent = snippet();
}

/** Tries again what failed: the list of speakers first, then the connection. */
async function retry() {
  leaveProblem();
  if (speakers.length === 0) await listSpeakers();
  if (speakers.length > 0) await start();
}

/** @param {string} token */
function useToken(token) {
  avatar.token = token;
  leaveProblem();
  listSpeakers();
}

/** Takes the problem away; a keyboard that was in it goes on at Start. */
function leaveProblem() {
  if (part('problem').contains(document.activeElement)) startButton.focus();
  problemPanel.hide();
}

/** @returns {string} The token of `#token=...`, which a browser keeps to itself. */
function tokenInAddress() {
  return new URLSearchParams(location.hash.slice(1)).get('token') ?? '';
}

/** @param {boolean} muted */
function setMuted(muted) {
  avatar.micMuted = muted;
  setPressed(muteButton, muted);
}

/** @param {boolean} isRunning */
function setRunning(isRunning) {
  running = isRunning;
  startButton.textContent = isRunning ? 'Stop' : 'Start';
  startButton.classList.toggle('running', isRunning);
  muteButton.disabled = !isRunning;
}

/** @param {AvatarState} state */
function showState(state) {
  const line = part('state');
  line.dataset.state = state;
  line.textContent = STATE_IN_WORDS[state];
}

/** @param {unknown} error */
function showProblem(error) {
  if (!(error instanceof AvatarError)) throw error;
  if (avatar.state !== 'connected' && avatar.state !== 'reconnecting') {
    if (running) {
      setRunning(false);
      useMicrophone(null);
      showState(error.code === 'ended' ? 'ended' : 'failed');
    }
  }
  problemPanel.show(error);
}

/**
 * @param {HTMLButtonElement} button
 * @param {boolean} pressed
 */
function setPressed(button, pressed) {
  button.setAttribute('aria-pressed', `${pressed}`);
}

/** @returns {string} */
function snippet() {
  return `<script type="module" src="${avatar.src}/client/geneface-avatar.js"></script>
<geneface-avatar src="${avatar.src}" speaker="${avatar.speaker}" muted></geneface-avatar>
<button>Join</button>

<script type="module">
  const avatar = document.querySelector('geneface-avatar');
  document.querySelector('button').onclick = async () => {
    await avatar.connect(); // asks for the microphone
    const call = new RTCPeerConnection();
    for (const track of avatar.stream.getTracks()) call.addTrack(track, avatar.stream);
    // ... and from here as in any other call
  };
</script>`;
}

async function copySnippet() {
  try {
    await navigator.clipboard.writeText(snippet());
    part('copied').textContent = 'Copied.';
  } catch {
    part('copied').textContent = 'The browser does not let this page copy; select the text instead.';
  }
}

/**
 * @param {string} id
 * @returns {HTMLElement}
 */
function part(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`index.html has no element #${id}`);
  return element;
}
