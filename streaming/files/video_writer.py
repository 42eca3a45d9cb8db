"""Video output: H.264 and AAC, written to a temporary file and renamed when it is complete."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import av.error
import numpy as np

from cuda_kernels.arrays import F32, U8
from models.partial_files import PartialFile, sweep_abandoned
from models.time_base import FRAME_RATE_HZ

from ..errors import InputError
from ..pipeline.frame_cost import X264_PRESET
from ..pipeline.i420 import BT601, LIMITED_RANGE, video_frame
from .audio_file import SoundFormat

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}


def check_writable(path: Path, flag: str) -> None:
    """Refuses a path that no file can be written to, before any work is done for it.

    Raises:
        InputError: it is a folder or no name of a file, or its folder does not exist or may not be written.
    """
    folder = path.parent
    with writing_errors(path):
        if "\0" in str(path):
            raise OSError(errno.EINVAL, "a null byte in its name")
        if path.is_dir():
            raise InputError(
                file=str(path),
                expected=f"a file's name for {flag}",
                got="a folder",
                way_out="add a name to it",
            )
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; create it, or give {flag} another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: may not be written to; give {flag} another place")
    sweep_abandoned(folder)


@contextlib.contextmanager
def writing_errors(path: Path) -> Iterator[None]:
    """Turns errors of writing `path` into an `InputError` of one line."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = "the disk is full" if full else (error.strerror or type(error).__name__).lower()
        way_out = "free some space or write elsewhere" if full else "write elsewhere"
        raise InputError(
            f"{path}: could not be written: {reason}; nothing was left there, {way_out}"
        ) from None


class VideoOutput:
    """One video file. Use as a context: leaving it before `publish` leaves nothing on disk."""

    def __init__(
        self, path: Path, *, size_px: int, sound: SoundFormat, crf: int, flag: str = "--output"
    ) -> None:
        """Checks the name; nothing is written before the context is entered.

        Args:
            path: the video's name.
            size_px: side of its pictures.
            sound: what is written beside them.
            crf: quality, 0 (best) to 51 (worst).
            flag: what named the video; errors say it.

        Raises:
            InputError: an unknown ending, or a place that cannot be written to.
        """
        container = CONTAINERS.get(path.suffix.lower())
        if container is None:
            raise InputError(
                file=str(path),
                expected=f"a name ending in {', '.join(CONTAINERS)} for {flag}",
                got=path.suffix or "no ending",
                way_out="call it talking.mp4",
            )
        if size_px % 2:
            raise InputError(f"speaker: expected pictures of an even size for H.264, got {size_px} px")
        check_writable(path, flag)
        self.path = path
        self._file = PartialFile(path)
        self._container_name = container
        self.size_px = size_px
        self._sound_format = sound
        self._crf = crf
        self._container: av.container.OutputContainer | None = None
        self._pictures = 0
        self._samples = 0

    @property
    def pictures(self) -> int:
        """Pictures written so far."""
        return self._pictures

    @property
    def picture_s(self) -> float:
        """Where the pictures end."""
        return self._pictures / FRAME_RATE_HZ

    @property
    def sound_s(self) -> float:
        """Where the sound ends."""
        return self._samples / self._sound_format.rate_hz

    def __enter__(self) -> VideoOutput:
        """Opens the temporary file."""
        with writing_errors(self.path):
            options = {"movflags": "+faststart"} if self._container_name != "matroska" else {}
            self._container = av.open(
                f"file:{self._file.part}", "w", format=self._container_name, options=options
            )
            video = self._container.add_stream(
                "libx264", rate=FRAME_RATE_HZ, options={"preset": X264_PRESET, "crf": str(self._crf)}
            )
            video.width = video.height = self.size_px
            video.pix_fmt = "yuv420p"
            video.time_base = Fraction(1, FRAME_RATE_HZ)
            context = video.codec_context
            context.thread_count = 1  # the raymarcher has the cores
            context.color_range = LIMITED_RANGE
            context.colorspace = context.color_primaries = context.color_trc = BT601
            self._video = video
            self._audio = self._container.add_stream(
                "aac", rate=self._sound_format.rate_hz, layout=self._sound_format.layout
            )
            self._audio.bit_rate = 64_000 * self._sound_format.channels
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes what was not published."""
        self.discard()

    def write_picture(self, picture: U8) -> None:
        """Adds one frame (size * 3 / 2, size) uint8 I420, BT.601, limited range."""
        frame = video_frame(picture, self._pictures)
        self._pictures += 1
        with writing_errors(self.path):
            self._mux(self._video.encode(frame))

    def write_sound(self, block: F32) -> None:
        """Adds sound (channels, n) float32; the first sample sounds with the first frame."""
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(block), format="fltp", layout=self._sound_format.layout
        )
        frame.sample_rate = self._sound_format.rate_hz
        frame.pts = self._samples
        frame.time_base = Fraction(1, self._sound_format.rate_hz)
        self._samples += block.shape[1]
        with writing_errors(self.path):
            self._mux(self._audio.encode(frame))

    def write_sound_until(self, until_s: float, sound: Iterator[F32]) -> None:
        """Adds blocks of `sound` until it reaches `until_s` or ends."""
        while self.sound_s < until_s:
            block = next(sound, None)
            if block is None:
                return
            self.write_sound(block)

    def complete(self) -> int:
        """Ends the file, still under its temporary name, and returns its size in bytes.

        Raises:
            InputError: nothing was drawn, or the file cannot be written.
        """
        assert self._container is not None
        if not self._pictures:
            raise InputError(f"{self.path}: expected sound for a picture at least, got none; record it again")
        with writing_errors(self.path):
            self._mux(self._video.encode(None))
            self._mux(self._audio.encode(None))
            container, self._container = self._container, None
            container.close()
            self._file.flush()
            return self._file.part.stat().st_size

    def publish(self) -> None:
        """Renames the complete file to its name."""
        with writing_errors(self.path):
            self._file.publish()

    def discard(self) -> None:
        """Closes and removes what is not published; does nothing a second time."""
        container, self._container = self._container, None
        if container is not None:
            with contextlib.suppress(av.error.FFmpegError, OSError, ValueError):
                container.close()
        self._file.discard()

    def _mux(self, packets: Iterable[av.Packet[Any]]) -> None:
        assert self._container is not None
        for packet in packets:
            self._container.mux(packet)
