"""The schema of a bundle's speaker.json: sizes and settings, one dataclass a stage, and files with hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from cuda_kernels.arrays import F32

from .bundle_files import (
    MAX_FILE_BYTES,
    OPTIONAL_FILES,
    REQUIRED_FILES,
    SETTINGS_FILE,
    BundleError,
    FileRecord,
    read_file,
)
from .settings import (
    Range,
    SettingsError,
    Shape,
    check_ranges,
    from_mapping,
    one_line,
    require,
    show,
    to_mapping,
)
from .time_base import FEATURE_HOP_SAMPLES, FRAME_RATE_HZ, FRAME_SAMPLES, SAMPLE_RATE_HZ

SCHEMA_VERSION = 1
MAX_RESOLUTION = 1 << 20
LANDMARKS = 68
MEL_HISTORY_SAMPLES = 192  # left of the window, so that the first mel frame is whole without future sound
FEATURE_SAMPLES = 400  # one 50 Hz feature takes: feature j, samples [320 j, 320 j + 400)
SPHERICAL_HARMONICS = 16


@dataclass(frozen=True, kw_only=True)
class OriginRecord:
    """Provenance of face and voice, and the consent to show them."""

    subject: str  # who is shown
    consent: str  # on what ground
    data: str  # what the networks were trained on
    recipe: str  # how they were trained


@dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """How features.onnx and a motion network that looks both ways are run over a stream.

    Every `hop_frames` video frames features.onnx takes the last `window_frames` of sound; its features of the
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
        """Checks ranges and that the fields are consistent."""
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
        """Checks ranges and that the fields are consistent."""
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


SCENE_FILES = (
    "head.safetensors",
    "torso.safetensors",
    "condition.onnx",
    "poses.safetensors",
    "background.png",
)


@dataclass(frozen=True, kw_only=True)
class PlateSettings:
    """What the plates were made of."""

    of: str  # see `scene_hash`


@dataclass(frozen=True, kw_only=True, eq=False)
class SpeakerSettings:
    """All that speaker.json holds beside its own checksum."""

    schema_version: int
    name: str
    synthetic: bool  # True: a synthetic character, nobody's likeness
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
    plates: PlateSettings | None = None
    verification: dict[str, float] = field(default_factory=dict)  # errors measured at export
    figures: dict[str, float] = field(default_factory=dict)  # quality measured on validation data
    files: dict[str, FileRecord] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks ranges and that the parts are consistent."""
        check_ranges(self)
        require(
            self.schema_version == SCHEMA_VERSION, "schema_version", f"{SCHEMA_VERSION}", self.schema_version
        )
        check_speaker_name(self.name)
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


def check_speaker_name(name: str) -> None:
    """Raises SettingsError for a name that no speaker may have."""
    named = 0 < len(name) <= 100 and name.isprintable() and name == name.strip()
    require(named, "name", "1 to 100 printable characters", name)


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


def scene_hash(settings: SpeakerSettings) -> str:
    """Returns the SHA-256 that ties plates to what they show and to what moves it.

    It is taken over a JSON object of `camera`, `head` and `torso` as they stand in speaker.json and, under
    `files`, the hexadecimal SHA-256 of each of `SCENE_FILES` that there is; keys in order, no spaces.
    """
    whole = to_mapping(settings)
    shown = {name: whole[name] for name in ("camera", "head", "torso")}
    shown["files"] = {name: settings.files[name].sha256 for name in SCENE_FILES if name in settings.files}
    text = json.dumps(shown, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def checksum(document: Mapping[str, Any]) -> str:
    """Returns the SHA-256 over speaker.json's content, its own `checksum` left out, layout ignored."""
    rest = {key: value for key, value in document.items() if key != "checksum"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_settings(path: Path) -> SpeakerSettings:
    """Returns the settings in the bundle's speaker.json, validated; no other file is read.

    Raises:
        BundleError: the folder or the file is missing or does not hold what it should.
    """
    file = path / SETTINGS_FILE
    if not path.is_dir():
        raise BundleError(str(path), "folder", "a speaker bundle", "no such folder", "check the path")
    raw = read_file(file, MAX_FILE_BYTES[SETTINGS_FILE])
    document = parse_settings(file, raw)
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


def parse_settings(file: Path, raw: bytes) -> dict[str, Any]:
    """Returns the object that speaker.json's content holds; BundleError where it is no JSON object."""
    try:
        document = json.loads(raw, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        reason = one_line(str(error), 100)
        raise BundleError(str(file), "content", "JSON", f"something else ({reason})") from None
    if not isinstance(document, dict):
        raise BundleError(str(file), "content", "an object", show(document))
    return document


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
