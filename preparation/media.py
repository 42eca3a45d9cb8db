"""Sound and pictures out of anything ffmpeg decodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, cast

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer

SAMPLE_RATE_HZ = 16_000

I16 = npt.NDArray[np.int16]
U8 = npt.NDArray[np.uint8]


class MediaError(ValueError):
    """A recording that cannot be read: file, what is wrong, the way out, in one line."""


def _open(path: Path) -> InputContainer:
    """Returns PyAV's input container of `path`; MediaError where there is none."""
    if not path.is_file():
        raise MediaError(f"{path}: no such file; give the path of a recording")
    if path.stat().st_size == 0:
        raise MediaError(f"{path}: the file is empty; expected a recording that ffmpeg can decode")
    try:
        return av.open(str(path), "r")
    except (av.FFmpegError, ValueError) as error:
        raise MediaError(
            f"{path}: not a recording that ffmpeg can decode ({error}); convert it first"
        ) from error


def read_pcm(path: Path) -> I16:
    """Returns a recording's sound as 16 kHz mono, int16 (N,), all channels mixed.

    Raises:
        MediaError: the file is absent, empty, undecodable or has no sound.
    """
    path = Path(path)
    parts: list[I16] = []
    with _open(path) as container:
        if not container.streams.audio:
            raise MediaError(f"{path}: no audio stream; expected a recording with sound")
        resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE_HZ)
        try:
            for frame in container.decode(container.streams.audio[0]):
                parts += [piece.to_ndarray()[0] for piece in resampler.resample(frame)]
            parts += [piece.to_ndarray()[0] for piece in resampler.resample(None)]
        except (av.FFmpegError, ValueError) as error:
            raise MediaError(
                f"{path}: the sound breaks off undecodable ({error}); convert it first"
            ) from error
    if not parts:
        raise MediaError(f"{path}: the audio stream holds no samples; expected a recording with sound")
    return np.concatenate(parts)


def video_frames(
    path: Path, pixel_format: Literal["rgb24", "gray"] = "rgb24", *, first_frame: int = 0
) -> Iterator[U8]:
    """Yields a video's pictures in order from `first_frame` on, uint8 (H, W, 3) for rgb24, (H, W) for gray.

    Raises:
        MediaError: the file is absent, empty, undecodable or has no pictures.
    """
    path = Path(path)
    with _open(path) as container:
        if not container.streams.video:
            raise MediaError(f"{path}: no video stream; expected a video")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        empty = True
        try:
            for i, frame in enumerate(container.decode(stream)):
                empty = False
                if i < first_frame:
                    continue  # decoded, since others are built on it, but not converted, which takes longer
                yield cast(U8, frame.to_ndarray(format=pixel_format))
        except (av.FFmpegError, ValueError) as error:
            raise MediaError(
                f"{path}: the video breaks off undecodable ({error}); convert it first"
            ) from error
        if empty:
            raise MediaError(f"{path}: the video stream holds no pictures; expected a video")
