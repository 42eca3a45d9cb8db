// Installed into every page under test as `window.probe`: measures what an avatar shows and says.
// Times are Unix epoch milliseconds, so that two browsers on one machine can be compared.

window.probe = (() => {
  const nowMs = () => performance.timeOrigin + performance.now();
  const videoOf = (avatar) => avatar.shadowRoot.querySelector('video');

  /** Returns a part of the picture, as fractions of it, as rows of grey values 0 to 255. */
  function reader({ left, top, right, bottom }, columns, rows) {
    const canvas = new OffscreenCanvas(columns, rows);
    const context = canvas.getContext('2d', { willReadFrequently: true });
    return (video) => {
      const { videoWidth: width, videoHeight: height } = video;
      context.drawImage(
        video,
        left * width,
        top * height,
        (right - left) * width,
        (bottom - top) * height,
        0,
        0,
        columns,
        rows,
      );
      const { data } = context.getImageData(0, 0, columns, rows);
      return Array.from({ length: columns * rows }, (_, pixel) => {
        const at = 4 * pixel;
        return Math.round(0.299 * data[at] + 0.587 * data[at + 1] + 0.114 * data[at + 2]);
      });
    };
  }

  /** Returns every frame presented for some seconds: when, when by its own clock, and its mouth. */
  function frames(avatar, seconds, region, columns, rows) {
    const video = videoOf(avatar);
    const read = reader(region, columns, rows);
    const list = [];
    const endMs = nowMs() + 1000 * seconds;
    return new Promise((resolve) => {
      const timer = setTimeout(() => resolve(list), 1000 * seconds + 500);
      const take = (_, { rtpTimestamp, expectedDisplayTime }) => {
        const shownMs = performance.timeOrigin + expectedDisplayTime;
        list.push({ at_ms: shownMs, rtp: rtpTimestamp, pixels: read(video) });
        if (nowMs() < endMs) {
          video.requestVideoFrameCallback(take);
        } else {
          clearTimeout(timer);
          resolve(list);
        }
      };
      video.requestVideoFrameCallback(take);
    });
  }

  /** Gives each 10 ms or so of a track: its samples, their rate, and when by the track's own clock in ms. */
  async function* blocks(track, seconds) {
    const sounds = new MediaStreamTrackProcessor({ track, maxBufferSize: 1000 }).readable.getReader();
    const endMs = nowMs() + 1000 * seconds;
    while (nowMs() < endMs) {
      const { value: sound, done } = await sounds.read();
      if (done) break;
      const samples = new Float32Array(sound.numberOfFrames);
      sound.copyTo(samples, { planeIndex: 0, format: 'f32-planar' });
      const { sampleRate: rateHz, timestamp } = sound;
      sound.close();
      yield { samples, rateHz, mediaMs: timestamp / 1000 };
    }
    sounds.cancel();
  }

  /** Returns [when, root mean square] of each block of a track; when by its own clock, not by this page's. */
  async function levels(track, seconds) {
    const list = [];
    let originMs = null;
    for await (const { samples, mediaMs } of blocks(track, seconds)) {
      originMs ??= nowMs() - mediaMs;
      list.push([originMs + mediaMs, Math.sqrt(samples.reduce((sum, x) => sum + x * x, 0) / samples.length)]);
    }
    return list;
  }

  /** Returns the energy of a track below and above a frequency, parted by four poles. */
  async function bands(track, seconds, atHz) {
    const low = [0, 0, 0, 0];
    const high = [0, 0, 0, 0];
    const energy = { low: 0, high: 0 };
    for await (const { samples, rateHz } of blocks(track, seconds)) {
      const step = 1 - Math.exp((-2 * Math.PI * atHz) / rateHz);
      for (const sample of samples) {
        let [below, above] = [sample, sample];
        for (let pole = 0; pole < low.length; pole += 1) {
          below = low[pole] += step * (below - low[pole]);
          above -= high[pole] += step * (above - high[pole]);
        }
        energy.low += below * below;
        energy.high += above * above;
      }
    }
    return energy;
  }

  /** Returns the loudest block that comes out within some seconds; null without connection or sound. */
  async function loudest(avatar, seconds) {
    if (avatar.stream === null) return null;
    const list = await levels(avatar.stream.getAudioTracks()[0], seconds);
    return list.length > 0 ? Math.max(...list.map(([, level]) => level)) : null;
  }

  /** Returns what goes in and what comes out, side by side; null while there is no connection. */
  async function record(avatar, { seconds, region, columns, rows }) {
    if (avatar.stream === null) return null;
    const [heard] = avatar.stream.getAudioTracks();
    const [shown, spoken, answered] = await Promise.all([
      frames(avatar, seconds, region, columns, rows),
      levels(avatar.micTrack, seconds),
      levels(heard, seconds),
    ]);
    return { shown, spoken, answered };
  }

  /** Hands the avatar's stream to another call within this page, and returns what arrives there. */
  async function relay(stream, seconds) {
    const [from, to] = [new RTCPeerConnection(), new RTCPeerConnection()];
    from.onicecandidate = ({ candidate }) => to.addIceCandidate(candidate);
    to.onicecandidate = ({ candidate }) => from.addIceCandidate(candidate);
    const video = document.createElement('video');
    video.autoplay = true; // not muted: a muted element's sound counts as none in the statistics
    to.ontrack = ({ streams }) => {
      video.srcObject = streams[0];
    };
    for (const track of stream.getTracks()) from.addTrack(track, stream);
    await from.setLocalDescription();
    await to.setRemoteDescription(from.localDescription);
    await to.setLocalDescription();
    await from.setRemoteDescription(to.localDescription);
    document.body.append(video);
    let presented = 0;
    const endMs = nowMs() + 1000 * seconds;
    const count = () => {
      presented += 1;
      video.requestVideoFrameCallback(count);
    };
    video.requestVideoFrameCallback(count);
    let loudness = 0;
    while (nowMs() < endMs && !(presented >= 10 && loudness > 0)) {
      await new Promise((resolve) => setTimeout(resolve, 100));
      for (const entry of (await to.getStats()).values()) {
        if (entry.type === 'inbound-rtp' && entry.kind === 'audio') loudness = entry.totalAudioEnergy;
      }
    }
    const result = {
      state: to.connectionState,
      kinds: video.srcObject?.getTracks().map(({ kind }) => kind).sort(),
      width: video.videoWidth,
      presented,
      loudness,
    };
    video.remove();
    from.close();
    to.close();
    return result;
  }

  return { record, loudest, bands, relay, videoOf, reader };
})();
