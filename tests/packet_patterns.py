"""A sender's packets, what a network does to them, and a player on a clock of its own."""

import functools
from dataclasses import dataclass, replace

import av
import numpy as np

from streaming.webrtc.neteq import MicrophoneStream
from streaming.webrtc.opus import BLOCK_SAMPLES, OPUS_RATE_HZ, OpusEncoder

TICK_S = 0.02


@dataclass(frozen=True)
class Sent:
    sequence: int
    timestamp: int
    payload: bytes
    arrives_s: float


def voice(seconds, *, seed=0):
    """Returns (n,) float32 at 48 kHz: a gliding voice with formants, in syllables with pauses."""
    random = np.random.default_rng(seed)
    time = np.arange(int(seconds * OPUS_RATE_HZ)) / OPUS_RATE_HZ
    pitch = 130 + 30 * np.sin(2 * np.pi * 0.7 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / OPUS_RATE_HZ
    sound = np.zeros(len(time))
    for harmonic in range(1, 25):
        near = pitch * harmonic
        strength = np.exp(-(((near - 600) / 300) ** 2)) + 0.5 * np.exp(-(((near - 1700) / 400) ** 2)) + 0.05
        sound += strength * np.sin(harmonic * phase)
    syllables = np.clip(0.6 - np.cos(2 * np.pi * 2.3 * time), 0, 1) * np.clip(5 * time - 0.5, 0, 1)
    return np.asarray(0.15 * syllables * sound + 3e-4 * random.standard_normal(len(time)), np.float32)


@functools.cache
def packets(seconds, *, sequence=100, timestamp=48_000, start_s=10.0):
    """Returns what a sender sends, each packet arriving the moment its last sample was spoken."""
    encoder = OpusEncoder()
    blocks = voice(seconds).reshape(-1, BLOCK_SAMPLES)
    return tuple(
        Sent(
            (sequence + i) % 2**16,
            (timestamp + i * BLOCK_SAMPLES) % 2**32,
            encoder.encode(block),
            start_s + i * TICK_S,
        )
        for i, block in enumerate(blocks)
    )


def tone_payloads(samples, count, *, layout="mono"):
    """Returns `count` packets of `samples` each, of a tone of 300 Hz and amplitude 0.3."""
    codec = av.CodecContext.create("libopus", "w")
    codec.format, codec.layout, codec.sample_rate = "flt", layout, OPUS_RATE_HZ
    codec.options = {"frame_duration": str(samples / 48), "application": "voip"}
    tone = 0.3 * np.sin(2 * np.pi * 300 * np.arange(count * samples) / OPUS_RATE_HZ)
    found = []
    for block in np.split(tone.astype(np.float32), count):
        interleaved = np.repeat(block, 2 if layout == "stereo" else 1)[None]
        frame = av.AudioFrame.from_ndarray(interleaved, format="flt", layout=layout)
        frame.sample_rate, frame.pts = OPUS_RATE_HZ, len(found) * samples
        found += [bytes(packet) for packet in codec.encode(frame)]
    return found


def without(sent, *numbers):
    """Returns the packets less those at the given places."""
    return tuple(packet for i, packet in enumerate(sent) if i not in numbers)


def lossy(sent, share, *, seed=1):
    """Returns the packets less a random share of them."""
    kept = np.random.default_rng(seed).random(len(sent)) >= share
    return tuple(packet for packet, keep in zip(sent, kept, strict=True) if keep)


def jittered(sent, most_s, *, seed=2):
    """Returns the packets delayed by 0 to `most_s` each."""
    delays = np.random.default_rng(seed).uniform(0, most_s, len(sent))
    return tuple(replace(p, arrives_s=p.arrives_s + float(d)) for p, d in zip(sent, delays, strict=True))


def stalled(sent, first, stall_s, *, spacing_s=0.0):
    """Returns the packets with a network that holds still for a while and then gives all it held."""
    begin_s = sent[first].arrives_s
    free_s = begin_s + stall_s
    held = []
    for packet in sent:
        if packet.arrives_s >= begin_s:
            free_s = max(free_s, packet.arrives_s)
            packet = replace(packet, arrives_s=free_s)
            free_s += spacing_s
        held.append(packet)
    return tuple(held)


def drifting(sent, parts_per_million):
    """Returns the packets of a sender whose clock is so much faster than the player's."""
    start_s = sent[0].arrives_s
    rate = 1 + parts_per_million * 1e-6
    return tuple(replace(p, arrives_s=start_s + (p.arrives_s - start_s) / rate) for p in sent)


@dataclass
class Played:
    """What came out, a row per tick."""

    now_s: np.ndarray
    samples: np.ndarray  # (ticks, 960)
    lag_s: np.ndarray  # now less the place in the media; NaN where nothing is known
    depth_ms: np.ndarray
    concealed: np.ndarray
    blocks: list

    @property
    def sound(self):
        return self.samples.reshape(-1)

    def between(self, begin_s, end_s):
        """Returns the delays known in a stretch of time."""
        here = (self.now_s >= begin_s) & (self.now_s < end_s) & np.isfinite(self.lag_s)
        return self.lag_s[here]


def play(sent, *, stream=None, until_s=None, phase_s=0.004, first_timestamp=None):
    """Returns what a player hears that reads every 20 ms while the packets arrive."""
    stream = stream or MicrophoneStream()
    arriving = sorted(sent, key=lambda packet: packet.arrives_s)
    begin_s = arriving[0].arrives_s - 5 * TICK_S + phase_s
    end_s = arriving[-1].arrives_s + TICK_S if until_s is None else until_s
    origin = sent[0].timestamp if first_timestamp is None else first_timestamp
    times = begin_s + TICK_S * np.arange(round((end_s - begin_s) / TICK_S))
    blocks, depth_ms, at = [], [], 0
    for now_s in times:
        while at < len(arriving) and arriving[at].arrives_s <= now_s:
            packet = arriving[at]
            stream.put(
                sequence=packet.sequence,
                timestamp=packet.timestamp,
                payload=packet.payload,
                arrived_s=packet.arrives_s,
            )
            at += 1
        blocks.append(stream.read(float(now_s)))
        depth_ms.append(stream.depth_ms)
    lag_s = [
        np.nan if b.timestamp is None else now_s - (b.timestamp - origin) / OPUS_RATE_HZ
        for now_s, b in zip(times, blocks, strict=True)
    ]
    return Played(
        now_s=times,
        samples=np.stack([b.samples for b in blocks]),
        lag_s=np.array(lag_s),
        depth_ms=np.array(depth_ms),
        concealed=np.array([b.concealed for b in blocks]),
        blocks=blocks,
    )
