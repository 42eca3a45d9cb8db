"""Sound through Opus and back, in step with what it was."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext
from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]  # its stubs are a separate package

from cuda_kernels.arrays import I16, I64
from models.time_base import SAMPLE_RATE_HZ

MAX_WORKERS = 16
_CODEC_RATE_HZ = 48_000  # a browser's
_OPTIONS = {"application": "voip", "frame_duration": "20", "compression_level": "5"}


def through_opus(pcm: I16, *, bps: int) -> I16:
    """Returns mono sound at 16 kHz (samples,) after Opus in packets of 20 ms, neither late nor longer.

    The decoder leaves out the encoder's delay, which `OpusHead` names (RFC 7845, section 4.2).
    """
    encoder = AudioCodecContext.create("libopus", "w")
    encoder.rate, encoder.layout, encoder.format = _CODEC_RATE_HZ, "mono", "s16"
    encoder.bit_rate, encoder.options = bps, _OPTIONS
    encoder.open()
    frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
    frame.sample_rate = SAMPLE_RATE_HZ
    up = av.AudioResampler("s16", "mono", _CODEC_RATE_HZ, frame_size=encoder.frame_size)
    blocks = [*up.resample(frame), *up.resample(None), None]
    packets = [packet for block in blocks for packet in encoder.encode(block)]
    decoder = AudioCodecContext.create("libopus", "r")
    decoder.extradata = encoder.extradata
    down = av.AudioResampler("s16", "mono", SAMPLE_RATE_HZ)
    decoded = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
    pieces = [piece.to_ndarray()[0] for frame in [*decoded, None] for piece in down.resample(frame)]
    sound: I16 = np.concatenate(pieces)[: len(pcm)]
    return np.pad(sound, (0, len(pcm) - len(sound)))


def through_opus_each(pcm: I16, ends: I64 | Sequence[int], *, bps: int) -> I16:
    """Returns clips (samples,), one after another up to `ends`, each through a codec of its own."""
    clips = np.split(pcm, ends[:-1])
    workers = min(MAX_WORKERS, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers, thread_name_prefix="opus") as pool:
        coded = pool.map(lambda clip: through_opus(clip, bps=bps), clips)
        return np.concatenate([*tqdm(coded, total=len(clips), desc=f"Opus at {bps // 1000} kbit/s")])
