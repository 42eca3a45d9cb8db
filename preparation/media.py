"""Sound and pictures out of anything ffmpeg decodes."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, cast

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition

from cuda_kernels.arrays import I16, U8
from cuda_kernels.errors import InputError
from models.recording import open_recording
from models.time_base import SAMPLE_RATE_HZ

_DECODE_ERRORS = (av.FFmpegError, ValueError, OSError, IndexError)  # all that PyAV raises for a file


class MediaError(InputError):
    """A recording that cannot be read: file, what is wrong, the way out, in one line."""


def _open(path: Path) -> InputContainer:
    """Returns PyAV's input container of `path`; MediaError where there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise MediaError(f"{path}: {reason}; give the path of a recording") from error
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for its writer
        raise MediaError(f"{path}: expected a file, got a folder or a device; give the path of a recording")
    if found.st_size == 0:
        raise MediaError(f"{path}: the file is empty; expected a recording that ffmpeg can decode")
    try:
        return open_recording(path)
    except av.error.ArgumentError:
        raise MediaError(
            f"{path}: expected one recording, got a playlist, a script or a damaged header; "
            "give the recording itself"
        ) from None
    except _DECODE_ERRORS as error:
        raise MediaError(
            f"{path}: not a recording that ffmpeg can decode ({error}); convert it first"
        ) from error


def _sound_track(path: Path) -> int:
    """Returns which sound track is read: the first that decodes, those marked as default first.

    Raises:
        MediaError: there is none, or none that decodes.
    """
    with _open(path) as container:
        tracks = container.streams.audio
        default = [bool(track.disposition & Disposition.default) for track in tracks]
    if not default:
        raise MediaError(f"{path}: no audio stream; expected a recording with sound")
    without_samples = False
    for track in sorted(range(len(default)), key=lambda number: not default[number]):
        with _open(path) as container:
            stream = container.streams.audio[track]
            if stream.codec_context is None:
                continue
            try:
                if next(container.decode(stream), None) is not None:
                    return track
                without_samples = True
            except _DECODE_ERRORS:
                continue
    if without_samples:
        raise MediaError(f"{path}: the audio stream holds no samples; expected a recording with sound")
    raise MediaError(f"{path}: no audio stream that ffmpeg can decode; convert it first")


def read_pcm(path: Path) -> I16:
    """Returns a recording's sound as 16 kHz mono, int16 (N,), all channels mixed.

    Raises:
        MediaError: the file is absent, empty, undecodable or has no sound.
    """
    path = Path(path)
    parts: list[I16] = []
    track = _sound_track(path)
    with _open(path) as container:
        resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE_HZ)
        try:
            for frame in container.decode(container.streams.audio[track]):
                parts += [piece.to_ndarray()[0] for piece in resampler.resample(frame)]
            parts += [piece.to_ndarray()[0] for piece in resampler.resample(None)]
        except _DECODE_ERRORS as error:
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
        if stream.codec_context is None:
            raise MediaError(f"{path}: no video stream that ffmpeg can decode; convert it first")
        stream.thread_type = "AUTO"
        empty = True
        try:
            for i, frame in enumerate(container.decode(stream)):
                empty = False
                if i < first_frame:
                    continue  # decoded, since others are built on it, but not converted, which takes longer
                yield cast(U8, frame.to_ndarray(format=pixel_format))
        except _DECODE_ERRORS as error:
            raise MediaError(
                f"{path}: the video breaks off undecodable ({error}); convert it first"
            ) from error
        if empty:
            raise MediaError(f"{path}: the video stream holds no pictures; expected a video")
