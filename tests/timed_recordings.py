"""Recordings whose pictures and sound begin when a test says, at any rate, in any container."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

_CLOCK_HZ = 90_000
_PIECE = 1024


def write_recording(
    path: Path,
    *,
    pictures_s: Sequence[float],
    samples: np.ndarray | None,
    rate_hz: int,
    sound_start_s: float = 0.0,
    codec: str = "pcm_s16le",
    gap_s: tuple[float, float] = (0.0, 0.0),
) -> Path:
    """Writes gray pictures of 64 x 64 at these time stamps, B-frames among them, and int16 samples (n,).

    Sound from `gap_s` after its beginning on has no packets; without samples there is no sound track.
    """
    with av.open(str(path), "w") as out:
        pictures = out.add_stream("libx264", rate=30, options={"bf": "2"})
        pictures.width = pictures.height = 64
        pictures.pix_fmt = "yuv420p"
        pictures.codec_context.time_base = Fraction(1, _CLOCK_HZ)
        if samples is not None:
            sound = out.add_stream(codec, rate=rate_hz, layout="mono")
            sound.codec_context.time_base = Fraction(1, rate_hz)
        packets = []
        picture = av.VideoFrame.from_ndarray(np.full((64, 64), 128, np.uint8), "gray")
        for time_s in pictures_s:
            frame = picture.reformat(format="yuv420p")
            frame.pts, frame.time_base = round(time_s * _CLOCK_HZ), Fraction(1, _CLOCK_HZ)
            packets += pictures.encode(frame)
        packets += pictures.encode(None)
        for at in range(0, 0 if samples is None else len(samples), _PIECE):
            if gap_s[0] <= at / rate_hz < gap_s[1]:
                continue
            frame = av.AudioFrame.from_ndarray(samples[None, at : at + _PIECE], "s16", "mono")
            frame.sample_rate, frame.time_base = rate_hz, Fraction(1, rate_hz)
            frame.pts = round(sound_start_s * rate_hz) + at
            packets += sound.encode(frame)
        packets += [] if samples is None else sound.encode(None)
        for packet in sorted(packets, key=lambda one: one.dts * one.time_base):
            out.mux(packet)
    return path
