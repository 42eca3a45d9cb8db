"""The files of a speaker's bundle: names, size limits and content, verified by SHA-256.

A file is read in pieces and within its limit. Whatever is invalid is refused with one line: file, field,
expected, got and the way out.
"""

from __future__ import annotations

import hashlib
import os
import stat
import typing
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from cuda_kernels.arrays import U8
from cuda_kernels.errors import InputError

from .onnx_graph import OnnxGraphError, check_graph
from .settings import Range, check_ranges, one_line, require

SETTINGS_FILE = "speaker.json"
REQUIRED_FILES = (
    "motion.onnx",
    "condition.onnx",
    "head.safetensors",
    "poses.safetensors",
    "background.png",
    "MODEL_CARD.md",
)
RECORDED_CASES_FILE = "verification.safetensors"
PLATE_VIDEO_FILE, PLATE_MASKS_FILE = "plates.mkv", "plates.safetensors"
OPTIONAL_FILES = (
    "torso.safetensors",
    "syncnet.onnx",
    "features.onnx",
    RECORDED_CASES_FILE,
    PLATE_VIDEO_FILE,
    PLATE_MASKS_FILE,
)
UNREAD_FILES = ("features.onnx", RECORDED_CASES_FILE, PLATE_VIDEO_FILE, PLATE_MASKS_FILE, "MODEL_CARD.md")
"""Up to a gigabyte, read later, or of no use to a stream: verified by hash, not kept."""
_MIB = 1 << 20
MAX_FILE_BYTES = {
    SETTINGS_FILE: _MIB,
    "MODEL_CARD.md": _MIB,
    "background.png": 64 * _MIB,  # 4096 x 4096 pixels that do not compress
    "motion.onnx": 512 * _MIB,
    "condition.onnx": 64 * _MIB,
    "syncnet.onnx": 256 * _MIB,
    "features.onnx": 2048 * _MIB - 1,  # what a protobuf can hold
    "head.safetensors": 512 * _MIB,
    "torso.safetensors": 512 * _MIB,
    "poses.safetensors": 256 * _MIB,
    RECORDED_CASES_FILE: 512 * _MIB,
    PLATE_VIDEO_FILE: 256 * _MIB,
    PLATE_MASKS_FILE: 16 * _MIB,  # eight times as much in memory; 2.7 minutes of loop at 512 px
}
"""What each file may take, checked before it is read."""

_PIECE_BYTES = _MIB
_REBUILD = "copy the bundle again or rebuild it with `geneface-export bundle`"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER_BYTES = 13


class BundleError(InputError):
    """A bundle that cannot be used: which file, which field, what was expected and what was there."""

    def __init__(self, file: str, name: str, expected: str, got: str, way_out: str = _REBUILD) -> None:
        """Keeps the parts of the message; a name without end is cut."""
        super().__init__(file=one_line(file, 300), field=name, expected=expected, got=got, way_out=way_out)


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """One file of the bundle as it was when the bundle was written."""

    sha256: str
    size_bytes: Annotated[int, Range(1, max(MAX_FILE_BYTES.values()))]

    def __post_init__(self) -> None:
        """Checks ranges and the hash's form."""
        check_ranges(self)
        hexadecimal = len(self.sha256) == 64 and set(self.sha256) <= set("0123456789abcdef")
        require(hexadecimal, "sha256", "64 hexadecimal digits", self.sha256)


# Reading ----------------------------------------------------------------------------------------


def read_network(file: Path, record: FileRecord | None = None) -> bytes:
    """Returns the content of an ONNX file, for a runtime that is to see these bytes and no others.

    Args:
        file: of a bundle.
        record: its size and hash in the bundle; None: not checked.

    Raises:
        BundleError: it cannot be read, is another than the bundle says, or is not all of a network.
    """
    content = read_file(file, MAX_FILE_BYTES.get(file.name, max(MAX_FILE_BYTES.values())))
    if record is not None:
        _check_record(file, record, len(content), hashlib.sha256(content).hexdigest())
    _check_network(file, content)
    return content


def read_listed_file(file: Path, record: FileRecord) -> bytes:
    """Returns the content of a bundle's file; BundleError where it cannot be read or is another."""
    content = read_file(file, MAX_FILE_BYTES[file.name])
    _check_record(file, record, len(content), hashlib.sha256(content).hexdigest())
    return content


def _check_network(file: Path, content: bytes) -> None:
    try:
        check_graph(content)
    except OnnxGraphError as error:
        raise BundleError(str(file), error.field, error.expected, one_line(error.got, 200)) from None


def _check_record(file: Path, record: FileRecord, size_bytes: int, digest: str) -> None:
    if size_bytes != record.size_bytes:
        raise BundleError(str(file), "size", f"{record.size_bytes} bytes", f"{size_bytes} bytes")
    if digest != record.sha256:
        raise BundleError(str(file), "sha256", f"{record.sha256[:16]}...", f"{digest[:16]}...")


def read_file(file: Path, limit_bytes: int) -> bytes:
    """Returns the content of a file; BundleError for what is no file, too large or cannot be read."""
    return b"".join(_pieces(file, limit_bytes))


def _digest(file: Path, limit_bytes: int) -> tuple[int, str]:
    """Returns size and SHA-256 of a file that is not kept in memory."""
    size_bytes, digest = 0, hashlib.sha256()
    for piece in _pieces(file, limit_bytes):
        size_bytes += len(piece)
        digest.update(piece)
    return size_bytes, digest.hexdigest()


def _pieces(file: Path, limit_bytes: int) -> Iterator[bytes]:
    """Yields a file's content; refuses what is no file, too large, grows meanwhile or cannot be read."""
    try:
        if not file.is_file():
            got = "something else" if file.exists() else "no such file"
            raise BundleError(str(file), "file", "a file", got)
        with open(file, "rb", opener=_open_without_waiting) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):  # another since it was looked at
                raise BundleError(str(file), "file", "a file", "something else")
            size_bytes = status.st_size
            if size_bytes > limit_bytes:
                raise BundleError(str(file), "size", f"at most {limit_bytes} bytes", f"{size_bytes} bytes")
            while piece := stream.read(_PIECE_BYTES):
                size_bytes -= len(piece)
                if size_bytes < 0:
                    raise BundleError(
                        str(file), "size", f"{status.st_size} bytes", "more: it grew while it was read"
                    )
                yield piece
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise BundleError(str(file), "file", "a readable file", reason, "check its permissions") from None


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # of a FIFO, nobody may ever come


def read_files(path: Path, records: Mapping[str, FileRecord]) -> dict[str, bytes]:
    """Returns the content of the arrays and the picture; every listed file is proven by size and hash.

    Args:
        path: the bundle's folder.
        records: each file's size and hash in speaker.json.

    Raises:
        BundleError: a file that is missing, unlisted or another than its record says.
    """
    try:
        entries = sorted(path.iterdir())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BundleError(str(path), "folder", "one that can be read", reason) from None
    for entry in entries:
        strange = entry.name not in records and entry.name != SETTINGS_FILE
        if strange and not entry.name.startswith("."):
            way_out = "take it out of the bundle's folder"
            raise BundleError(
                str(entry), "file", f"only files that {SETTINGS_FILE} lists", "an unlisted one", way_out
            )
    contents = {}
    for name, record in records.items():
        file = path / name
        if name in UNREAD_FILES:
            _check_record(file, record, *_digest(file, MAX_FILE_BYTES[name]))
        elif name.endswith(".onnx"):
            read_network(file, record)  # read again by whoever runs it
        else:
            contents[name] = read_listed_file(file, record)
    return contents


# Arrays ---------------------------------------------------------------------------------------------


class Tensors:
    """The arrays of one safetensors file, handed out once each, checked for shape, dtype and finiteness."""

    _DTYPES: typing.ClassVar = {
        "F16": np.float16,
        "F32": np.float32,
        "U8": np.uint8,
        "I32": np.int32,
    }

    def __init__(self, file: Path, content: bytes) -> None:
        from safetensors import SafetensorError, deserialize

        self.file = str(file)
        try:
            self._left: dict[str, Any] = dict(deserialize(content))  # type: ignore[no-untyped-call]  # the package types only its wrappers
        except SafetensorError as error:
            reason = one_line(str(error), 100)
            raise BundleError(self.file, "content", "safetensors", f"something else ({reason})") from None

    def take(self, key: str, shape: tuple[int | None, ...], *dtypes: str) -> npt.NDArray[Any]:
        """Returns the array under `key`; float16 becomes float32. None in `shape` is any size."""
        if key not in self._left:
            raise BundleError(self.file, key, "an array", "none: the key is missing")
        info = self._left.pop(key)
        got_shape, dtype = tuple(info["shape"]), str(info["dtype"])
        if dtype not in dtypes:
            raise BundleError(self.file, key, f"dtype {' or '.join(dtypes)}", dtype)
        fits = len(got_shape) == len(shape) and all(
            a is None or a == b for a, b in zip(shape, got_shape, strict=True)
        )
        if not fits:
            wanted = "x".join("any" if size is None else str(size) for size in shape)
            raise BundleError(
                self.file, key, f"shape {wanted}", "x".join(map(str, got_shape)) or "a single value"
            )
        array = np.frombuffer(info["data"], dtype=self._DTYPES[dtype]).reshape(got_shape)
        if dtype in ("F16", "F32"):
            array = array.astype(np.float32)
            if not np.isfinite(array).all():
                where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
                raise BundleError(self.file, key, "finite numbers", f"{array[where]} at {list(where)}")
        else:
            array = array.copy()
        return array

    def finish(self) -> None:
        """Refuses arrays that were not taken."""
        if self._left:
            key = one_line(min(self._left))
            raise BundleError(self.file, key, "only the known arrays", "an unknown key")


# Picture ----------------------------------------------------------------------------------------


def read_background(file: Path, content: bytes, size_px: int) -> U8:
    """Returns (size, size, 3) uint8 RGB of a PNG's content; BundleError for any other picture."""
    # Size and kind stand at fixed places in a PNG; they are checked before anything is unpacked.
    if len(content) < 29 or not content.startswith(_PNG_SIGNATURE) or content[12:16] != b"IHDR":
        raise BundleError(str(file), "content", "a PNG", "something else")
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    if (width, height) != (size_px, size_px):
        raise BundleError(str(file), "size", f"{size_px}x{size_px} pixels", f"{width}x{height}")
    if content[24:26] != b"\x08\x02" or content[28] != 0:
        expected = "8 bits a channel, RGB, no alpha, not interlaced"
        raise BundleError(str(file), "content", expected, "a PNG of another kind")
    smallest = _only_pixels(content, size_px * (3 * size_px + 1))
    image = None if smallest is None else _decode_png(smallest)
    if image is None or image.shape != (size_px, size_px, 3):
        raise BundleError(
            str(file), "content", f"a {size_px}x{size_px} RGB PNG", "one that cannot be decoded"
        )
    return image


def _decode_png(content: bytes) -> U8 | None:
    """Returns (H, W, 3) uint8 RGB, or None for what is not an RGB picture."""
    import av
    import av.error

    decoder = av.CodecContext.create("png", "r")
    assert isinstance(decoder, av.VideoCodecContext)
    decoder.thread_count = 1
    try:
        frames = [*decoder.decode(av.Packet(content)), *decoder.decode(None)]
    except av.error.FFmpegError:
        return None
    if len(frames) != 1 or frames[0].format.name != "rgb24":
        return None
    return frames[0].to_ndarray().astype(np.uint8, copy=False)


def _only_pixels(content: bytes, size_bytes: int) -> bytes | None:
    """Returns the PNG without all that is neither its header nor its pixels, None where it is not whole.

    A decoder unpacks profiles and texts, too, however large they become; and ffmpeg leaves pixels that are
    missing as memory was.

    Args:
        content: a PNG.
        size_bytes: what its pixels unpack to.
    """
    header, packed, at = b"", [], len(_PNG_SIGNATURE)
    while at + 12 <= len(content):
        length, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(content):
            return None
        chunk = content[at + 4 : end - 4]
        if content[end - 4 : end] != zlib.crc32(chunk).to_bytes(4, "big"):
            return None
        at = end
        if kind == b"IHDR":
            if header or length != _PNG_HEADER_BYTES:
                return None
            header = chunk
        elif kind == b"IDAT":
            packed.append(chunk[4:])
        elif kind == b"IEND":
            break
        elif kind == b"tRNS" or (kind[0] < ord("a") and kind != b"PLTE"):
            return None  # transparent, or not to be understood without this chunk
    if not header or kind != b"IEND" or at != len(content):
        return None
    pixels = b"".join(packed)
    try:
        whole = len(zlib.decompressobj().decompress(pixels, size_bytes + 1)) == size_bytes
    except zlib.error:
        return None
    if not whole:
        return None
    return b"".join([_PNG_SIGNATURE, *map(_png_chunk, (header, b"IDAT" + pixels, b"IEND"))])


def _png_chunk(content: bytes) -> bytes:
    """Returns a chunk of a kind and its data, with its length before and its sum behind it."""
    return (len(content) - 4).to_bytes(4, "big") + content + zlib.crc32(content).to_bytes(4, "big")
