"""A speaker bundle on disk: found, checked and read without torch and without pickle.

A bundle is a folder. `speaker.json` names every other file with its size and SHA-256 and holds the sizes
and settings; arrays are safetensors, networks are ONNX, the background is a PNG. Whatever does not hold is
refused with one line: file, field, what was expected, what was there and the way out. The ONNX files are
checked by hash here; the engine that runs them checks their inputs and outputs when it starts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
import sys
import typing
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from cuda_kernels.arrays import F32, U8
from cuda_kernels.scene import Camera, Grid, HeadField, Scene, TorsoField

from .onnx_graph import OnnxGraphError, check_graph
from .settings import Range, SettingsError, Shape, check_ranges, from_mapping, one_line, require, show
from .time_base import FEATURE_HOP_SAMPLES, FRAME_RATE_HZ, FRAME_SAMPLES, SAMPLE_RATE_HZ

SCHEMA_VERSION = 1
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
OPTIONAL_FILES = ("torso.safetensors", "syncnet.onnx", "features.onnx", RECORDED_CASES_FILE)
UNREAD_FILES = ("features.onnx", RECORDED_CASES_FILE, "MODEL_CARD.md")
"""Up to a gigabyte, or of no use to a stream: proven by their hashes, read by whoever needs them."""
_MIB = 1 << 20
MAX_CAMERA_DISTANCE = 1e4
MAX_RESOLUTION = 1 << 20
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
}
"""What each file may take, checked before it is read."""
LANDMARKS = 68
MEL_HISTORY_SAMPLES = 192  # left of the window, so that the first mel frame is whole without future sound
FEATURE_SAMPLES = 400  # that one 50 Hz feature hears: feature j, samples [320 j, 320 j + 400)
SPHERICAL_HARMONICS = 16

_PIECE_BYTES = _MIB
_REBUILD = "copy the bundle again or rebuild it with `geneface-export bundle`"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER_BYTES = 13


class BundleError(ValueError):
    """A bundle that cannot be used: which file, which field, what was expected and what was there."""

    def __init__(self, file: str, name: str, expected: str, got: str, way_out: str = _REBUILD) -> None:
        """Holds `file` and `field` beside the one-line message."""
        self.file = file
        self.field = name
        super().__init__(f"{one_line(file, 300)}: {name}: expected {expected}, got {got}; {way_out}")


class UnknownSpeakerError(ValueError):
    """No bundle of that name; the message lists those there are."""


# Settings -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OriginRecord:
    """Where the face and the voice come from, and on what ground they may be shown."""

    subject: str  # who is shown
    consent: str  # on what ground
    data: str  # what the networks were trained on
    recipe: str  # how they were trained


@dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """How features.onnx and a motion network that looks both ways are run over a stream.

    Every `hop_frames` video frames features.onnx hears the last `window_frames` of sound; its features of the
    newest `kept_frames` of them replace what earlier calls gave for the same time. motion.onnx then sees the
    features of `MotionSettings.window_frames` frames, a whole number of blocks from an absolute multiple of
    `block_frames` on; what lies beyond the known sound is zero.
    """

    name: str  # of the encoder, "hubert-large-ls960-ft"
    dimension: Annotated[int, Range(1, 8192)]  # numbers in one 50 Hz feature
    window_frames: Annotated[int, Range(2, FRAME_RATE_HZ * 60)]
    kept_frames: Annotated[int, Range(1, FRAME_RATE_HZ * 60)]
    hop_frames: Annotated[int, Range(1, 64)]
    block_frames: Annotated[int, Range(1, 64)]  # video frames to one step of the latent
    latent_channels: Annotated[int, Range(1, 1024)]
    temperature: Annotated[float, Range(0.0, 2.0)]  # of the latent's noise; 0: the prior's mode
    seed: Annotated[int, Range(0, 2**31 - 1)] = 0  # of that noise, which belongs to the absolute frame
    hears_pitch: bool = False

    def __post_init__(self) -> None:
        """Checks ranges and how the fields hang together."""
        check_ranges(self)
        require(
            0 < len(self.name) <= 100 and self.name.isprintable(), "name", "1 to 100 characters", self.name
        )
        fits = self.hop_frames <= self.kept_frames < self.window_frames
        expected = f"hop_frames ({self.hop_frames}) to less than window_frames ({self.window_frames})"
        require(fits, "kept_frames", expected, self.kept_frames)
        require(
            self.block_frames % self.hop_frames == 0,
            "hop_frames",
            f"a divisor of block_frames ({self.block_frames})",
            self.hop_frames,
        )

    @property
    def window_samples(self) -> int:
        """Samples that features.onnx takes."""
        return FRAME_SAMPLES * self.window_frames


@dataclass(frozen=True, kw_only=True, eq=False)
class MotionSettings:
    """How sound becomes landmarks: the windows that motion.onnx takes and the speaker's landmark range.

    Of kind "pcm", motion.onnx takes the samples of one window to one frame. Of kind "features", it takes
    features of `window_frames` frames to as many frames; `features` says which and how they come about.
    """

    window_samples: Annotated[int, Range(FRAME_SAMPLES, SAMPLE_RATE_HZ * 60)]
    window_frames: Annotated[int, Range(1, FRAME_RATE_HZ * 60)]
    lookahead_frames: Annotated[int, Range(0, 50)]  # sound that a frame may wait for, at most
    landmark_mean: Annotated[F32, Shape(LANDMARKS, 3)]  # idexp: ten times decimetres from the mean face
    landmark_std: Annotated[F32, Shape(LANDMARKS, 3)]  # > 0
    mean_face: Annotated[F32 | None, Shape(LANDMARKS, 3)] = None  # head space, decimetres
    clamp_std: Annotated[float, Range(0.1, 100.0)] = 2.5  # landmarks are held within this many deviations
    ema: Annotated[float, Range(0.0, 0.99)] = 0.2  # weight of the previous frame
    kind: str = "pcm"
    features: FeatureSettings | None = None

    def __post_init__(self) -> None:
        """Checks ranges and how the fields hang together."""
        check_ranges(self)
        require(self.kind in ("pcm", "features"), "kind", '"pcm" or "features"', self.kind)
        features = self.features
        if self.kind == "features":
            require(features is not None, "features", "an object, as kind is features", "null")
        else:
            require(features is None, "features", "null, as kind is pcm", "an object")
        if features is None:
            samples = FRAME_SAMPLES * self.window_frames + MEL_HISTORY_SAMPLES
            expected = f"{samples} ({FRAME_SAMPLES} x window_frames + {MEL_HISTORY_SAMPLES})"
        else:
            samples = features.window_samples
            expected = f"{samples} ({FRAME_SAMPLES} x features.window_frames)"
            block, hop = features.block_frames, features.hop_frames
            require(
                self.window_frames % block == 0,
                "window_frames",
                f"a multiple of features.block_frames ({block})",
                self.window_frames,
            )
            require(
                self.lookahead_frames >= hop - 1,
                "lookahead_frames",
                f"at least {hop - 1} (features.hop_frames - 1)",
                self.lookahead_frames,
            )
            # The newest block may be begun by one frame only; the frames given out lie before the look-ahead.
            least = self.lookahead_frames + 1 + block
            require(
                self.window_frames >= least,
                "window_frames",
                f"at least {least} (lookahead_frames + 1 + features.block_frames)",
                self.window_frames,
            )
        require(self.window_samples == samples, "window_samples", expected, self.window_samples)
        require(
            self.lookahead_frames < self.window_frames,
            "lookahead_frames",
            f"less than window_frames ({self.window_frames})",
            self.lookahead_frames,
        )
        smallest = float(np.min(self.landmark_std))
        require(smallest > 0, "landmark_std", "values above 0", smallest)


@dataclass(frozen=True, kw_only=True)
class ConditionSettings:
    """The window of landmark frames that condition.onnx takes and the width of what it returns."""

    window_frames: Annotated[int, Range(1, 64)]
    lookahead_frames: Annotated[int, Range(0, 25)]
    size: Annotated[int, Range(1, 1024)]

    def __post_init__(self) -> None:
        """Checks ranges and that the frame itself lies in the window."""
        check_ranges(self)
        require(
            self.lookahead_frames < self.window_frames,
            "lookahead_frames",
            f"less than window_frames ({self.window_frames})",
            self.lookahead_frames,
        )


@dataclass(frozen=True, kw_only=True)
class CameraSettings:
    """Pinhole intrinsics in pixels of the full image and the map from head space to the field's space."""

    focal_px: Annotated[float, Range(1.0, 1e6)]
    cx_px: Annotated[float, Range(0.0, 4096.0)]
    cy_px: Annotated[float, Range(0.0, 4096.0)]
    scale: Annotated[float, Range(1e-4, 1e4)]
    offset: Annotated[tuple[float, float, float], Range(-1e4, 1e4)] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        """Checks ranges."""
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class GridSettings:
    """The sizes of one multiresolution grid."""

    levels: Annotated[int, Range(1, 32)]
    features: Annotated[int, Range(1, 16)]
    rows: Annotated[int, Range(1, 1 << 26)]
    base_resolution: Annotated[int, Range(1, 4096)]
    log2_growth: Annotated[float, Range(0.0, 4.0)]
    hashed: bool = False
    smoothstep: bool = False

    def __post_init__(self) -> None:
        """Checks ranges."""
        check_ranges(self)
        finest = self.base_resolution * 2.0 ** ((self.levels - 1) * self.log2_growth)
        expected = f"at most {MAX_RESOLUTION} cells a side at the last level"
        require(finest <= MAX_RESOLUTION, "log2_growth", expected, f"{finest:g}")

    @property
    def width(self) -> int:
        """The number of features that the grid returns for a point."""
        return self.levels * self.features


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """The sizes of the head; nets are given as widths from input to output."""

    position_grid: GridSettings
    ambient_grid: GridSettings
    ambient_net: Annotated[tuple[int, ...], Range(1, 4096)]
    sigma_net: Annotated[tuple[int, ...], Range(1, 4096)]
    color_net: Annotated[tuple[int, ...], Range(1, 4096)]
    individual_code: Annotated[int, Range(0, 256)]
    grid_size: Annotated[int, Range(8, 512)]
    bound: Annotated[float, Range(1e-3, 1.0)]
    max_steps: Annotated[int, Range(1, 1024)]
    min_near: Annotated[float, Range(0.0, 100.0)]
    stop_transmittance: Annotated[float, Range(0.0, 0.5)]

    def __post_init__(self) -> None:
        """Checks ranges and that each net takes what the parts before it give."""
        check_ranges(self)
        require(self.grid_size & (self.grid_size - 1) == 0, "grid_size", "a power of two", self.grid_size)
        position = self.position_grid.width
        _check_net("ambient_net", self.ambient_net, above=position, outputs=2)
        _check_net("sigma_net", self.sigma_net, inputs=position + self.ambient_grid.width)
        geometry = self.sigma_net[-1] - 1
        color = SPHERICAL_HARMONICS + geometry + self.individual_code
        _check_net("color_net", self.color_net, inputs=color, outputs=3)

    @property
    def condition_size(self) -> int:
        """The width of the condition that the head takes."""
        return self.ambient_net[0] - self.position_grid.width


@dataclass(frozen=True, kw_only=True)
class TorsoSettings:
    """The sizes of the torso; nets are given as widths from input to output."""

    grid: GridSettings
    deform_net: Annotated[tuple[int, ...], Range(1, 4096)]
    canonical_net: Annotated[tuple[int, ...], Range(1, 4096)]
    individual_code: Annotated[int, Range(0, 256)]
    occupancy_side: Annotated[int, Range(2, 1024)]
    position_octaves: Annotated[int, Range(0, 16)]
    pose_octaves: Annotated[int, Range(0, 16)]
    shrink: Annotated[float, Range(0.05, 1.0)]

    def __post_init__(self) -> None:
        """Checks ranges and that each net takes what the parts before it give."""
        check_ranges(self)
        position = 2 * (1 + 2 * self.position_octaves)
        pose = 6 * (1 + 2 * self.pose_octaves)
        inputs = position + pose + self.individual_code
        _check_net("deform_net", self.deform_net, inputs=inputs, outputs=2)
        _check_net("canonical_net", self.canonical_net, inputs=self.grid.width + inputs, outputs=4)


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


@dataclass(frozen=True, kw_only=True, eq=False)
class SpeakerSettings:
    """All that speaker.json holds beside its own checksum."""

    schema_version: int
    name: str
    synthetic: bool  # True: a made-up character, nobody's likeness
    licence: str
    origin: OriginRecord
    fps: int
    image_size_px: Annotated[int, Range(16, 4096)]
    sample_rate_hz: int
    motion: MotionSettings
    condition: ConditionSettings
    camera: CameraSettings
    head: HeadSettings
    torso: TorsoSettings | None
    verification: dict[str, float] = field(default_factory=dict)  # errors measured at export
    figures: dict[str, float] = field(default_factory=dict)  # quality measured on validation data
    files: dict[str, FileRecord] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks ranges and how the parts hang together."""
        check_ranges(self)
        require(
            self.schema_version == SCHEMA_VERSION, "schema_version", f"{SCHEMA_VERSION}", self.schema_version
        )
        named = 0 < len(self.name) <= 100 and self.name.isprintable() and self.name == self.name.strip()
        require(named, "name", "1 to 100 printable characters", self.name)
        require(self.fps == FRAME_RATE_HZ, "fps", f"{FRAME_RATE_HZ}", self.fps)
        rate_hz = self.sample_rate_hz
        require(rate_hz == SAMPLE_RATE_HZ, "sample_rate_hz", f"{SAMPLE_RATE_HZ}", rate_hz)
        for axis in ("cx_px", "cy_px"):
            value = getattr(self.camera, axis)
            require(value <= self.image_size_px, f"camera.{axis}", f"0 to {self.image_size_px}", value)
        require(
            self.head.condition_size == self.condition.size,
            "condition.size",
            f"{self.head.condition_size} (what head.ambient_net takes)",
            self.condition.size,
        )


def _check_net(
    name: str,
    widths: tuple[int, ...],
    *,
    inputs: int | None = None,
    above: int = 0,
    outputs: int | None = None,
) -> None:
    require(2 <= len(widths) <= 9, name, "2 to 9 widths", widths)
    require(inputs is None or widths[0] == inputs, f"{name}[0]", f"{inputs}", widths[0])
    require(widths[0] > above, f"{name}[0]", f"more than {above}", widths[0])
    require(outputs is None or widths[-1] == outputs, f"{name}[-1]", f"{outputs}", widths[-1])


def feature_count(samples: int) -> int:
    """Returns how many features `samples` samples give."""
    return max(0, (samples - FEATURE_SAMPLES) // FEATURE_HOP_SAMPLES + 1)


def checksum(document: Mapping[str, Any]) -> str:
    """Returns the SHA-256 over speaker.json's content, its own `checksum` left out, layout ignored."""
    rest = {key: value for key, value in document.items() if key != "checksum"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# Speaker --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Speaker:
    """One speaker, read and checked."""

    name: str
    path: Path
    synthetic: bool
    licence: str
    origin: OriginRecord
    image_size_px: int
    fps: int = FRAME_RATE_HZ
    sample_rate_hz: int = SAMPLE_RATE_HZ
    motion: MotionSettings
    condition: ConditionSettings
    motion_onnx: Path
    condition_onnx: Path
    features_onnx: Path | None = None  # where motion.kind is "features"
    syncnet_onnx: Path | None = None
    poses: F32  # (P, 4, 4) camera to head space; frame i shows pose i mod P
    blinks: F32  # (F, 68, 3) what one blink adds to the landmarks, first and last frame 0
    verification: Mapping[str, float]
    figures: Mapping[str, float]
    settings: SpeakerSettings
    drawn: Scene

    def scene(self) -> Scene:
        """Returns what the raymarcher draws."""
        return self.drawn

    @property
    def lookahead_frames(self) -> int:
        """Frames of sound after a frame that its picture depends on."""
        return self.motion.lookahead_frames + self.condition.lookahead_frames


def load_speaker(path: Path) -> Speaker:
    """Returns the speaker in the bundle folder `path`, everything checked.

    Raises:
        BundleError: the first thing that does not hold, in one line.
    """
    path = Path(path)
    settings = read_settings(path)
    contents = _read_files(path, settings)
    head = _read_head(path / "head.safetensors", contents["head.safetensors"], settings.head)
    torso = None
    if settings.torso is not None:
        torso = _read_torso(path / "torso.safetensors", contents["torso.safetensors"], settings.torso)
    poses, blinks = _read_poses(path / "poses.safetensors", contents["poses.safetensors"])
    background = _read_background(path / "background.png", contents["background.png"], settings.image_size_px)
    camera = Camera(**{e.name: getattr(settings.camera, e.name) for e in dataclasses.fields(CameraSettings)})
    return Speaker(
        name=settings.name,
        path=path,
        synthetic=settings.synthetic,
        licence=settings.licence,
        origin=settings.origin,
        image_size_px=settings.image_size_px,
        fps=settings.fps,
        sample_rate_hz=settings.sample_rate_hz,
        motion=settings.motion,
        condition=settings.condition,
        motion_onnx=path / "motion.onnx",
        condition_onnx=path / "condition.onnx",
        features_onnx=path / "features.onnx" if "features.onnx" in settings.files else None,
        syncnet_onnx=path / "syncnet.onnx" if "syncnet.onnx" in settings.files else None,
        poses=poses,
        blinks=blinks,
        verification=settings.verification,
        figures=settings.figures,
        settings=settings,
        drawn=Scene(
            head=head,
            torso=torso,
            camera=camera,
            background=background,
            image_size_px=settings.image_size_px,
        ),
    )


def read_settings(path: Path) -> SpeakerSettings:
    """Returns what the bundle's speaker.json says, checked in itself; no other file is read.

    Raises:
        BundleError: the folder or the file is missing or does not hold what it should.
    """
    file = path / SETTINGS_FILE
    if not path.is_dir():
        raise BundleError(str(path), "folder", "a speaker bundle", "no such folder", "check the path")
    raw = _read(file, MAX_FILE_BYTES[SETTINGS_FILE])
    try:
        document = json.loads(raw, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        reason = one_line(str(error), 100)
        raise BundleError(str(file), "content", "JSON", f"something else ({reason})") from None
    if not isinstance(document, dict):
        raise BundleError(str(file), "content", "an object", show(document))
    version = document.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise BundleError(
            str(file),
            "schema_version",
            str(SCHEMA_VERSION),
            show(version),
            "install the geneface-stream release that wrote it, or rebuild it with `geneface-export bundle`",
        )
    stated = document.pop("checksum", None)
    try:
        settings = from_mapping(SpeakerSettings, document)
    except SettingsError as error:
        raise BundleError(str(file), error.field, error.expected, error.got) from None
    if stated != checksum(document):
        raise BundleError(
            str(file),
            "checksum",
            "the hash of the file's content",
            show(stated),
            "copy the bundle again, or run `geneface-export seal` if the change is meant",
        )
    _check_file_table(file, settings)
    return settings


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key stands twice")
    return document


def _check_file_table(file: Path, settings: SpeakerSettings) -> None:
    known = (*REQUIRED_FILES, *OPTIONAL_FILES)
    for name in settings.files:
        if name not in known:
            raise BundleError(
                str(file), f"files.{one_line(name)}", f"one of {', '.join(known)}", "another name"
            )
        limit_bytes = MAX_FILE_BYTES[name]
        if settings.files[name].size_bytes > limit_bytes:
            got = str(settings.files[name].size_bytes)
            raise BundleError(str(file), f"files.{name}.size_bytes", f"at most {limit_bytes}", got)
    required = [*REQUIRED_FILES, *(["torso.safetensors"] if settings.torso else [])]
    required += ["features.onnx"] if settings.motion.features else []
    for name in required:
        if name not in settings.files:
            raise BundleError(str(file), f"files.{name}", "its size and hash", "nothing")
    if settings.torso is None and "torso.safetensors" in settings.files:
        raise BundleError(str(file), "files.torso.safetensors", "none, as torso is null", "an entry")
    if settings.motion.features is None and "features.onnx" in settings.files:
        raise BundleError(str(file), "files.features.onnx", "none, as motion.features is null", "an entry")


def read_network(file: Path, record: FileRecord | None = None) -> bytes:
    """Returns the content of an ONNX file, for a runtime that is to see these bytes and no others.

    Args:
        file: of a bundle.
        record: what the bundle says of it; None: nothing.

    Raises:
        BundleError: it cannot be read, is another than the bundle says, or is not all of a network.
    """
    content = _read(file, MAX_FILE_BYTES.get(file.name, max(MAX_FILE_BYTES.values())))
    if record is not None:
        _check_record(file, record, len(content), hashlib.sha256(content).hexdigest())
    _check_network(file, content)
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


def _read(file: Path, limit_bytes: int) -> bytes:
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


def _read_files(path: Path, settings: SpeakerSettings) -> dict[str, bytes]:
    """Returns the content of the arrays and the picture; every listed file is proven by size and hash."""
    try:
        entries = sorted(path.iterdir())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BundleError(str(path), "folder", "one that can be read", reason) from None
    for entry in entries:
        strange = entry.name not in settings.files and entry.name != SETTINGS_FILE
        if strange and not entry.name.startswith("."):
            way_out = "take it out of the bundle's folder"
            raise BundleError(
                str(entry), "file", f"only files that {SETTINGS_FILE} lists", "an unlisted one", way_out
            )
    contents = {}
    for name, record in settings.files.items():
        file = path / name
        if name in UNREAD_FILES:
            _check_record(file, record, *_digest(file, MAX_FILE_BYTES[name]))
        elif name.endswith(".onnx"):
            read_network(file, record)  # read again by whoever runs it
        else:
            content = _read(file, MAX_FILE_BYTES[name])
            _check_record(file, record, len(content), hashlib.sha256(content).hexdigest())
            contents[name] = content
    return contents


# Arrays ---------------------------------------------------------------------------------------------


class _Tensors:
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
        """Refuses arrays that nobody asked for."""
        if self._left:
            key = one_line(min(self._left))
            raise BundleError(self.file, key, "only the known arrays", "an unknown key")


def _read_grid(tensors: _Tensors, prefix: str, settings: GridSettings, dimensions: int) -> Grid:
    table = tensors.take(f"{prefix}.embeddings", (settings.rows, settings.features), "F16", "F32")
    offsets = tensors.take(f"{prefix}.offsets", (settings.levels + 1,), "I32")
    if offsets[0] != 0 or offsets[-1] != settings.rows or (np.diff(offsets.astype(np.int64)) <= 0).any():
        expected = f"rising from 0 to {settings.rows}"
        raise BundleError(tensors.file, f"{prefix}.offsets", expected, one_line(str(offsets.tolist())))
    return Grid(
        table=table,
        offsets=offsets,
        dimensions=dimensions,
        base_resolution=settings.base_resolution,
        log2_growth=settings.log2_growth,
        hashed=settings.hashed,
        smoothstep=settings.smoothstep,
    )


def _read_net(tensors: _Tensors, prefix: str, widths: tuple[int, ...]) -> tuple[F32, ...]:
    return tuple(
        tensors.take(f"{prefix}.net.{i}.weight", (widths[i + 1], widths[i]), "F16", "F32")
        for i in range(len(widths) - 1)
    )


def _read_head(file: Path, content: bytes, settings: HeadSettings) -> HeadField:
    tensors = _Tensors(file, content)
    head = HeadField(
        position_grid=_read_grid(tensors, "position_embedder", settings.position_grid, 3),
        ambient_grid=_read_grid(tensors, "ambient_embedder", settings.ambient_grid, 2),
        ambient_net=_read_net(tensors, "ambient_net", settings.ambient_net),
        sigma_net=_read_net(tensors, "sigma_net", settings.sigma_net),
        color_net=_read_net(tensors, "color_net", settings.color_net),
        individual_code=tensors.take("individual_code", (settings.individual_code,), "F32"),
        density_bitfield=tensors.take("density_bitfield", (settings.grid_size**3 // 8,), "U8"),
        grid_size=settings.grid_size,
        bound=settings.bound,
        aabb=tensors.take("aabb", (6,), "F32"),
        max_steps=settings.max_steps,
        min_near=settings.min_near,
        stop_transmittance=settings.stop_transmittance,
    )
    tensors.finish()
    low, high = head.aabb[:3], head.aabb[3:]
    if not (low < high).all() or np.abs(head.aabb).max() > settings.bound:
        expected = f"a box within +-{settings.bound:g}"
        raise BundleError(str(file), "aabb", expected, one_line(str(head.aabb.tolist()), 100))
    if not head.density_bitfield.any():
        raise BundleError(str(file), "density_bitfield", "at least one occupied cell", "an empty grid")
    return head


def _read_torso(file: Path, content: bytes, settings: TorsoSettings) -> TorsoField:
    tensors = _Tensors(file, content)
    side = settings.occupancy_side
    torso = TorsoField(
        grid=_read_grid(tensors, "torso_embedder", settings.grid, 2),
        deform_net=_read_net(tensors, "torso_deform_net", settings.deform_net),
        canonical_net=_read_net(tensors, "torso_canonicial_net", settings.canonical_net),
        individual_code=tensors.take("individual_code", (settings.individual_code,), "F32"),
        occupancy=tensors.take("occupancy", (side, side), "F16", "F32"),
        position_octaves=settings.position_octaves,
        pose_octaves=settings.pose_octaves,
        shrink=settings.shrink,
    )
    tensors.finish()
    return torso


def _read_poses(file: Path, content: bytes) -> tuple[F32, F32]:
    tensors = _Tensors(file, content)
    poses = tensors.take("c2w", (None, 4, 4), "F32")
    blinks = tensors.take("blink", (None, LANDMARKS, 3), "F32")
    tensors.finish()
    for key, array in (("c2w", poses), ("blink", blinks)):
        if not len(array):
            raise BundleError(str(file), key, "at least one frame", "none")
    rotations = poses[:, :3, :3].astype(np.float64)
    error = np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
    error = np.maximum(error, np.abs(np.linalg.det(rotations) - 1))
    error = np.maximum(error, np.abs(poses[:, 3] - np.array([0, 0, 0, 1])).max(axis=1))
    worst = int(error.argmax())
    if not error[worst] <= 1e-3:
        expected = "rotations (orthonormal within 1e-3, last row 0 0 0 1)"
        raise BundleError(str(file), f"c2w[{worst}]", expected, f"an error of {error[worst]:.3g}")
    far = float(np.abs(poses[:, :3, 3]).max())
    if not far <= MAX_CAMERA_DISTANCE:
        raise BundleError(
            str(file), "c2w", f"a camera within {MAX_CAMERA_DISTANCE:g} of the head", f"one at {far:.3g}"
        )
    if np.abs(blinks[[0, -1]]).max() > 1e-6:
        got = f"{np.abs(blinks[[0, -1]]).max():.3g}"
        raise BundleError(str(file), "blink", "0 in the first and last frame", got)
    return poses, blinks


def _read_background(file: Path, content: bytes, size_px: int) -> U8:
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


# Search ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FoundSpeaker:
    """A bundle folder that was found, not yet read."""

    name: str
    path: Path
    place: str  # "speakers dir", "user" or "packaged"


def user_speakers_dir() -> Path:
    """Returns the folder where a user's own bundles live on this platform; it need not exist."""
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Application Support"
    else:
        stated = os.environ.get("XDG_DATA_HOME", "")
        # The XDG base directory specification: a relative path is to be ignored.
        base = Path(stated) if stated and Path(stated).is_absolute() else home / ".local" / "share"
    return base / "geneface-stream" / "speakers"


def packaged_speakers_dir() -> Path:
    """Returns the folder of the bundles that ship with the program."""
    return Path(__file__).resolve().parent / "speakers"


def list_speakers(*, speakers_dir: Path | None = None) -> list[FoundSpeaker]:
    """Returns every bundle that `find_speaker` finds by name, sorted by name; the first place wins."""
    places: list[tuple[str, Path]] = [] if speakers_dir is None else [("speakers dir", Path(speakers_dir))]
    places += [("user", user_speakers_dir()), ("packaged", packaged_speakers_dir())]
    found: dict[str, FoundSpeaker] = {}
    for place, folder in places:
        for settings_file in _glob(folder):
            path = settings_file.parent
            if not path.name.startswith(".") and path.name.isprintable():  # what is no UTF-8 is not
                found.setdefault(path.name, FoundSpeaker(name=path.name, path=path, place=place))
    return [found[name] for name in sorted(found)]


def _glob(folder: Path) -> list[Path]:
    try:
        return sorted(folder.glob(f"*/{SETTINGS_FILE}"))
    except OSError:
        return []


def find_speaker(name_or_path: str, *, speakers_dir: Path | None = None) -> Path:
    """Returns the bundle's folder: a path, or a name looked up in `speakers_dir`, the user's, the packaged.

    Raises:
        UnknownSpeakerError: there is no such bundle; lists those there are.
    """
    try:
        path = Path(name_or_path).expanduser()
        if path.name == SETTINGS_FILE and path.is_file():
            return path.parent
        if name_or_path and (path / SETTINGS_FILE).is_file():
            return path
        looks_like_path = path.is_dir() and len(path.parts) > 1
    except (OSError, ValueError, RuntimeError):  # a name too long, a null byte, no home
        looks_like_path = False
    if looks_like_path:
        raise BundleError(
            name_or_path, SETTINGS_FILE, "a speaker bundle", "a folder without it", "check the path"
        )
    there_are = list_speakers(speakers_dir=speakers_dir)
    for found in there_are:
        if found.name == name_or_path:
            return found.path
    names = ", ".join(found.name for found in there_are) or "none"
    raise UnknownSpeakerError(
        f"speaker: expected a bundle's folder or one of: {names}, got {show(name_or_path)}; "
        f"put a bundle into {user_speakers_dir()} or give its path"
    )
