"""A speaker's plates: for each pose the picture of what speech does not change, and the mask of what it does.

A video and a file of masks in the bundle, proven by hash when the bundle is loaded. All else is checked when
they are read: a speaker whose plates cannot be used speaks on without them.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from cuda_kernels.arrays import U8
from cuda_kernels.errors import InputError
from cuda_kernels.masks import BlockMask, block_count
from cuda_kernels.scene import MAX_SIZE_PX

from .bundle_files import (
    PLATE_MASKS_FILE,
    PLATE_VIDEO_FILE,
    SETTINGS_FILE,
    BundleError,
    FileRecord,
    Tensors,
    read_listed_file,
)
from .settings import one_line

MASK_KEY = "mask"
PIXEL_FORMAT = "yuv420p"
_DECODE_ERRORS = (av.FFmpegError, ValueError, OSError, IndexError)  # all that PyAV raises for a file
_ALIGNMENT_PX = 64  # to which FFmpeg rounds rows up, beyond H.264's macroblocks of 16
_MAKE_ANEW = "make them anew with `geneface-export plates`"


class PlateError(InputError):
    """Plates that cannot be used: which file, which field, what was expected and what was there."""

    def __init__(self, file: Path | str, name: str, expected: str, got: str) -> None:
        """Keeps the parts of the message."""
        super().__init__(
            file=one_line(str(file), 300), field=name, expected=expected, got=got, way_out=_MAKE_ANEW
        )


def packed_masks(covered: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> U8:
    """Returns (2, P, n, ceil(n / 8)) uint8 of masks (2, P, n, n), as the bundle stores them."""
    return np.packbits(covered, axis=-1)


@dataclass(frozen=True, kw_only=True)
class PlateFiles:
    """The plates of a speaker on disk: pictures of `size_px`, one for each pose."""

    path: Path  # of the bundle
    records: Mapping[str, FileRecord]  # of all its files
    made_of: str | None  # the `speaker_settings.scene_hash` that speaker.json states
    scene: str  # the one that it should be
    size_px: int
    poses: int

    @property
    def picture_bytes(self) -> int:
        """Bytes that all pictures take, decoded."""
        return self.poses * self.size_px * self.size_px * 3 // 2

    @property
    def are_of_this_scene(self) -> bool:
        """Whether they were made of the bundle's head, torso, camera, path and background."""
        return self.made_of == self.scene

    def masks(self) -> tuple[BlockMask, ...]:
        """Returns 2 P masks: of each pose while the lids are still, then of each during a blink.

        Raises:
            PlateError: the plates are of another speaker or path, or the file holds something else.
        """
        file = self.path / PLATE_MASKS_FILE
        content = self._read(PLATE_MASKS_FILE)
        side = block_count(self.size_px)
        try:
            tensors = Tensors(file, content)
            packed = tensors.take(MASK_KEY, (2, self.poses, side, -(-side // 8)), "U8")
            tensors.finish()
        except BundleError as error:
            raise PlateError(file, error.field, error.expected, error.got) from None
        covered = np.unpackbits(packed, axis=-1, count=side).astype(bool).reshape(-1, side, side)
        return tuple(BlockMask(size_px=self.size_px, covered=mask) for mask in covered)

    def pictures(self) -> Iterator[U8]:
        """Yields the plate of each pose in the path's order, (size * 3 / 2, size) uint8 I420.

        Raises:
            PlateError: the plates are of another speaker or path, or `decode` refuses the video.
        """
        content = self._read(PLATE_VIDEO_FILE)
        yield from decode(content, self.path / PLATE_VIDEO_FILE, size_px=self.size_px, poses=self.poses)

    def _read(self, name: str) -> bytes:
        """Returns a file's content, proven once more; PlateError where plates cannot be this speaker's."""
        for needed in (PLATE_VIDEO_FILE, PLATE_MASKS_FILE):
            if needed not in self.records:
                expected = "its size and hash, as the plates' other file is there"
                raise PlateError(self.path / SETTINGS_FILE, f"files.{needed}", expected, "nothing")
        if self.made_of is None:
            raise PlateError(self.path / SETTINGS_FILE, "plates", "an object", "null")
        if self.size_px % 2 or self.size_px > MAX_SIZE_PX:
            expected = f"an even number up to {MAX_SIZE_PX}, as there are plates"
            raise PlateError(self.path / SETTINGS_FILE, "image_size_px", expected, str(self.size_px))
        if not self.are_of_this_scene:
            got = f"{one_line(self.made_of[:16])}..., of another head, torso, camera, path or background"
            raise PlateError(self.path / SETTINGS_FILE, "plates.of", f"{self.scene[:16]}...", got)
        try:
            return read_listed_file(self.path / name, self.records[name])
        except BundleError as error:
            raise PlateError(error.file, error.field, error.expected, error.got) from None


def decode(content: bytes, file: Path, *, size_px: int, poses: int) -> Iterator[U8]:
    """Yields the pictures of a video, (size * 3 / 2, size) uint8 I420, decoded on all cores.

    Args:
        content: of the video; nothing else is opened.
        file: its name in messages.
        size_px: of its pictures; even.
        poses: how many there are.

    Raises:
        PlateError: it is of another codec, size or pixel format, does not decode, or not to so many frames.
    """
    number = 0
    try:
        with _open(content, size_px) as container:
            stream = _only_stream(container, file, size_px)
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                _check_frame(file, frame, number, size_px=size_px, poses=poses)
                yield frame.to_ndarray().astype(np.uint8, copy=False)
                number += 1
    except PlateError:
        raise
    except _DECODE_ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error)
        got = f"something else ({one_line(reason, 100)})"
        raise PlateError(file, "content", "H.264 in Matroska", got) from None
    if number < poses:
        raise PlateError(file, "frames", f"{poses}, one for each pose", f"{number}")


def _check_frame(file: Path, frame: av.VideoFrame, number: int, *, size_px: int, poses: int) -> None:
    if number == poses:
        raise PlateError(file, "frames", f"{poses}, one for each pose", "more")
    size = f"{frame.width}x{frame.height}"
    place = f"frame {number}"
    if size != f"{size_px}x{size_px}":
        raise PlateError(file, place, f"{size_px}x{size_px} pixels", size)
    if frame.format.name != PIXEL_FORMAT:
        raise PlateError(file, place, PIXEL_FORMAT, frame.format.name)
    if frame.is_corrupt:
        raise PlateError(file, place, "a whole frame", "one that decodes in part")


def _open(content: bytes, size_px: int) -> InputContainer:
    """Returns PyAV's container of a video in memory."""
    return av.open(
        io.BytesIO(content),
        "r",
        format="matroska",
        metadata_errors="ignore",
        options={"codec_whitelist": "h264", "protocol_whitelist": "", **_limits(size_px)},
    )


def _limits(size_px: int) -> dict[str, str]:
    """Returns a decoder's options that refuse a larger picture before there is memory for it."""
    side = -(-size_px // _ALIGNMENT_PX) * _ALIGNMENT_PX
    return {"max_pixels": str(side * side)}


def _only_stream(container: InputContainer, file: Path, size_px: int) -> VideoStream:
    """Returns the video stream; PlateError for more than one, another codec, size or pixel format."""
    streams = container.streams
    if len(streams) != 1 or len(streams.video) != 1:
        raise PlateError(file, "content", "one video stream and nothing else", f"{len(streams)} streams")
    stream = streams.video[0]
    context = stream.codec_context
    codec = "an unknown one" if context is None else context.name
    if context is None or codec != "h264":
        raise PlateError(file, "codec", "h264", codec)
    size = f"{context.width}x{context.height}"
    if size != f"{size_px}x{size_px}":
        raise PlateError(file, "size", f"{size_px}x{size_px} pixels", size)
    if context.pix_fmt != PIXEL_FORMAT:
        raise PlateError(file, "pixel format", PIXEL_FORMAT, str(context.pix_fmt))
    context.options = _limits(size_px)
    return stream
