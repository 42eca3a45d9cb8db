"""Atomic writing of a speaker bundle."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from cuda_kernels.arrays import F32, U8
from cuda_kernels.scene import Grid, HeadField, Scene, TorsoField
from models.bundle_files import (
    MAX_FILE_BYTES,
    PLATE_MASKS_FILE,
    PLATE_VIDEO_FILE,
    RECORDED_CASES_FILE,
    SETTINGS_FILE,
    BundleError,
    FileRecord,
    read_file,
)
from models.partial_files import aside_path, atomic_write, partial_path, restore_aside, sweep_abandoned
from models.settings import from_mapping, one_line, to_mapping
from models.speaker import Speaker, load_speaker
from models.speaker_settings import (
    SCHEMA_VERSION,
    CameraSettings,
    ConditionSettings,
    GridSettings,
    HeadSettings,
    MotionSettings,
    OriginRecord,
    PlateSettings,
    SpeakerSettings,
    TorsoSettings,
    checksum,
    parse_settings,
    read_settings,
    scene_hash,
)
from models.time_base import FRAME_RATE_HZ, SAMPLE_RATE_HZ

from .model_card import with_figures, with_plates

Tensors = dict[str, npt.NDArray[Any]]

CARD_FILE = "MODEL_CARD.md"
PLATES = "plates_"
"""The prefix of what `verification` says of plates."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BundleParts:
    """A bundle's contents, in memory."""

    name: str
    synthetic: bool
    licence: str
    origin: OriginRecord
    motion: MotionSettings
    condition: ConditionSettings
    scene: Scene
    motion_onnx: bytes
    condition_onnx: bytes
    features_onnx: bytes | None = None  # where motion.kind is "features"
    syncnet_onnx: bytes | None = None
    recorded_cases: bytes | None = None  # see export.recorded_cases
    poses: F32  # (P, 4, 4)
    blinks: F32  # (F, 68, 3)
    model_card: str
    verification: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    fps: int = FRAME_RATE_HZ
    sample_rate_hz: int = SAMPLE_RATE_HZ


def parts_of(speaker: Speaker) -> BundleParts:
    """Returns a bundle's parts but its plates, to be written again with some of them replaced."""

    def content(file: Path | None) -> bytes | None:
        return None if file is None else file.read_bytes()

    recorded = speaker.path / RECORDED_CASES_FILE if RECORDED_CASES_FILE in speaker.settings.files else None
    return BundleParts(
        name=speaker.name,
        synthetic=speaker.synthetic,
        licence=speaker.licence,
        origin=speaker.origin,
        motion=speaker.motion,
        condition=speaker.condition,
        scene=speaker.scene,
        motion_onnx=speaker.motion_onnx.read_bytes(),
        condition_onnx=speaker.condition_onnx.read_bytes(),
        features_onnx=content(speaker.features_onnx),
        syncnet_onnx=content(speaker.syncnet_onnx),
        recorded_cases=content(recorded),
        poses=speaker.poses,
        blinks=speaker.blinks,
        model_card=read_card(speaker.path),
        verification=speaker.verification,
        figures=speaker.figures,
        fps=speaker.fps,
        sample_rate_hz=speaker.sample_rate_hz,
    )


def read_card(path: Path) -> str:
    """Returns the model card of the bundle folder `path`, its lines ending in a plain line feed.

    Raises:
        BundleError: it cannot be read or is no UTF-8.
    """
    file = path / CARD_FILE
    try:
        text = read_file(file, MAX_FILE_BYTES[CARD_FILE]).decode()
    except UnicodeDecodeError:
        way_out = "save it as UTF-8, then run `geneface-export seal`"
        raise BundleError(str(file), "content", "UTF-8 text", "other bytes", way_out) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def require_free(out: Path) -> None:
    """Refuses a folder that no bundle may be written to, before hours of work.

    Raises:
        BundleError: `out` is there and is no bundle, or no folder can be there.
    """
    require_folder(out, "out")
    if out.exists() and not (out / SETTINGS_FILE).is_file():
        way_out = "give a new folder or an older bundle to replace"
        raise BundleError(str(out), "out", "no such folder yet", "one that is no bundle", way_out)


def require_folder(path: Path, name: str) -> None:
    """Refuses a place, called `name`, that is no folder and where none can be made.

    Raises:
        BundleError: it is a file or below one, or no folder can have its name.
    """
    way_out = f"give another place for {name}"
    try:
        place = path.absolute()
        nearest = next(folder for folder in (place, *place.parents) if folder.exists())
        is_folder = nearest.is_dir()
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise BundleError(str(path), name, "a folder's name", reason, way_out) from None
    if not is_folder:
        raise BundleError(str(nearest), name, "a folder", "a file", way_out)


def require_replaceable(path: Path) -> None:
    """Refuses a bundle that cannot be replaced by a changed one, before minutes of work.

    One that stepped aside for a program that was killed is brought back first.

    Raises:
        BundleError: its folder, or the one that it lies in, is read-only.
    """
    path = Path(path).resolve()
    restore_aside(path)
    for folder in (path, path.parent):
        if folder.exists() and not os.access(folder, os.W_OK):
            way_out = "copy the bundle to a folder of yours"
            raise BundleError(str(folder), "folder", "one that can be written to", "a read-only one", way_out)


def write_bundle(out: Path, parts: BundleParts, *, max_bytes: int | None = None) -> Speaker:
    """Returns the speaker read back from the bundle folder `out`, which replaces an older bundle there.

    The folder is written beside `out` under another name, read back with every check, and renamed. It has no
    plates, which are made of a finished bundle.

    Raises:
        BundleError: the parts do not make a valid bundle, are larger than `max_bytes` or `out` is a folder
            that is no bundle; nothing is left behind.
    """
    out = Path(out).absolute()
    require_free(out)
    contents = _contents(parts)
    _require_size(out, {name: len(content) for name, content in contents.items()}, max_bytes)
    out.parent.mkdir(parents=True, exist_ok=True)
    restore_aside(out)
    partial = _empty_folder(partial_path(out))
    try:
        for name, content in contents.items():
            (partial / name).write_bytes(content)
        load_speaker(partial)
        _replace(out, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return load_speaker(out)


def _require_size(out: Path, sizes: Mapping[str, int], max_bytes: int | None) -> None:
    total_bytes = sum(sizes.values())
    if max_bytes is not None and total_bytes > max_bytes:
        largest = max(sizes, key=lambda name: sizes[name])
        got = f"{total_bytes} bytes, of which {largest} {sizes[largest]}"
        way_out = "train smaller grids or raise --max-mb"
        raise BundleError(str(out), "size", f"at most {max_bytes} bytes", got, way_out)


def _replace(out: Path, partial: Path) -> None:
    if not out.exists():
        partial.rename(out)
        return
    # A folder that is not empty cannot be renamed over: the old one steps aside and comes back on failure.
    aside = aside_path(out)
    out.rename(aside)
    try:
        partial.rename(out)
    except OSError:
        aside.rename(out)
        raise
    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def folder_beside(out: Path) -> Iterator[Path]:
    """Gives an empty folder beside the bundle folder `out` for the files it is made of, and removes it.

    One left by a killed program is removed with the next bundle written there.
    """
    out = Path(out).absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = _empty_folder(partial_path(out.with_name(f"{out.name}.graphs")))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _empty_folder(path: Path) -> Path:
    sweep_abandoned(path.parent)
    shutil.rmtree(path, ignore_errors=True)  # of this very process
    path.mkdir()
    return path


def seal(path: Path) -> Speaker:
    """Returns the speaker after speaker.json's sizes, hashes and checksum were written anew.

    For a deliberate change by hand: the model card, the name, a figure. All else is checked as at any load;
    plates of what was changed are taken out.

    Raises:
        BundleError: the bundle does not hold even with true hashes; speaker.json is left as it was.
    """
    file = path / SETTINGS_FILE
    before = read_file(file, MAX_FILE_BYTES[SETTINGS_FILE])
    document = parse_settings(file, before)
    if not isinstance(document.get("files"), dict):
        raise BundleError(str(file), "files", "an object", "none")
    for name in document["files"]:
        if Path(name).name == name and (path / name).is_file():
            document["files"][name] = to_mapping(_record((path / name).read_bytes()))
    try:
        content = _settings_text(document)
    except (ValueError, RecursionError) as error:  # an infinite number, an unpaired surrogate
        got = f"something else ({one_line(str(error), 100)})"
        raise BundleError(str(file), "content", "finite numbers and whole characters", got) from None
    with atomic_write(file) as part:
        part.write_bytes(content)
    try:
        speaker = load_speaker(path)
    except BundleError:
        with atomic_write(file) as part:
            part.write_bytes(before)
        raise
    stale = speaker.plates is not None and not speaker.plates.are_of_this_scene
    return put_plates(path, None) if stale else speaker


def add_figures(path: Path, figures: Mapping[str, float]) -> Speaker:
    """Returns the speaker after `figures` were added to speaker.json and shown in the model card."""
    require_replaceable(path)
    settings = read_settings(path)
    merged = {**settings.figures, **figures}
    card = with_figures(read_card(path), merged).encode()
    return _rewrite(path, dataclasses.replace(settings, figures=merged), {CARD_FILE: card})


def put_motion(
    path: Path, settings: SpeakerSettings, motion_onnx: bytes, syncnet_onnx: bytes | None, card: str
) -> Speaker:
    """Returns the speaker after other motion took the place of its own; the rest stays, byte for byte.

    Args:
        path: the bundle.
        settings: with the new motion's.
        motion_onnx: its graph.
        syncnet_onnx: SyncNet's, None for none.
        card: the model card.

    Raises:
        BundleError: the bundle cannot be read or written; it is left as it was.
    """
    contents = {"motion.onnx": motion_onnx, "syncnet.onnx": syncnet_onnx, CARD_FILE: card.encode()}
    return _rewrite(path, settings, contents)


@dataclass(frozen=True, kw_only=True, eq=False)
class PlateParts:
    """A bundle's plates, in memory."""

    video: bytes
    masks: bytes
    verification: Mapping[str, float]  # its keys begin with PLATES


def put_plates(path: Path, parts: PlateParts | None, *, max_bytes: int | None = None) -> Speaker:
    """Returns the speaker after plates took the place of those in its bundle, or, with None, went out of it.

    All else stays as it was, byte for byte.

    Raises:
        BundleError: the bundle is larger than `max_bytes` with them, or cannot be read or written; it is left
            as it was.
    """
    require_replaceable(path)
    settings = read_settings(path)
    verification = _without_plates(settings.verification)
    contents: dict[str, bytes | None] = {PLATE_VIDEO_FILE: None, PLATE_MASKS_FILE: None}
    of = None
    if parts is not None:
        verification |= parts.verification
        contents = {PLATE_VIDEO_FILE: parts.video, PLATE_MASKS_FILE: parts.masks}
        of = PlateSettings(of=scene_hash(settings))
    card = with_plates(read_card(path), {} if parts is None else parts.verification).encode()
    settings = dataclasses.replace(settings, plates=of, verification=verification)
    return _rewrite(path, settings, {**contents, CARD_FILE: card}, max_bytes=max_bytes)


def _without_plates(verification: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in verification.items() if not name.startswith(PLATES)}


def _rewrite(
    path: Path,
    settings: SpeakerSettings,
    contents: Mapping[str, bytes | None],
    *,
    max_bytes: int | None = None,
) -> Speaker:
    """Returns the speaker after the bundle's folder was replaced by one with these settings and contents.

    Args:
        path: the bundle's folder, or a link to it, which stays one.
        settings: without the sizes and hashes of `contents`.
        contents: of the files that change; None: taken out.
        max_bytes: that all files may take.
    """
    given, path = path, Path(path).resolve()
    files = {name: record for name, record in settings.files.items() if contents.get(name, b"") is not None}
    files |= {name: _record(content) for name, content in contents.items() if content is not None}
    text = _settings_text(to_mapping(dataclasses.replace(settings, files=files)))
    sizes = {SETTINGS_FILE: len(text), **{name: record.size_bytes for name, record in files.items()}}
    _require_size(path, sizes, max_bytes)
    contents = {**contents, SETTINGS_FILE: text}
    partial = _empty_folder(partial_path(path))
    try:
        for name, content in contents.items():
            if content is not None:
                (partial / name).write_bytes(content)
        shutil.copytree(
            path,
            partial,
            symlinks=True,
            ignore=lambda folder, _: set(contents) if Path(folder) == path else set(),
            dirs_exist_ok=True,
        )
        load_speaker(partial)
        _replace(path, partial)
    except shutil.Error as error:  # says of each file why it could not be copied
        raise OSError(error.args[0][0][2]) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return load_speaker(given)


def _settings_text(document: dict[str, Any]) -> bytes:
    if document.get("plates") is None:  # as in bundles that were written before there were any
        document = {key: value for key, value in document.items() if key != "plates"}
    document = {**document, "checksum": checksum(document)}
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def _record(content: bytes) -> FileRecord:
    return FileRecord(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))


def _contents(parts: BundleParts) -> dict[str, bytes]:
    """Returns every file's content by name, speaker.json included."""
    scene = parts.scene
    contents = {
        "motion.onnx": parts.motion_onnx,
        "condition.onnx": parts.condition_onnx,
        "head.safetensors": save(head_tensors(scene.head)),
        "poses.safetensors": save(
            {
                "c2w": np.ascontiguousarray(parts.poses, np.float32),
                "blink": np.ascontiguousarray(parts.blinks, np.float32),
            }
        ),
        "background.png": _png(scene.background),
        CARD_FILE: with_plates(parts.model_card, {}).encode(),
    }
    if scene.torso is not None:
        contents["torso.safetensors"] = save(torso_tensors(scene.torso))
    if parts.features_onnx is not None:
        contents["features.onnx"] = parts.features_onnx
    if parts.syncnet_onnx is not None:
        contents["syncnet.onnx"] = parts.syncnet_onnx
    if parts.recorded_cases is not None:
        contents[RECORDED_CASES_FILE] = parts.recorded_cases
    camera = {e.name: getattr(scene.camera, e.name) for e in dataclasses.fields(CameraSettings)}
    settings = SpeakerSettings(
        schema_version=SCHEMA_VERSION,
        name=parts.name,
        synthetic=parts.synthetic,
        licence=parts.licence,
        origin=parts.origin,
        fps=parts.fps,
        image_size_px=scene.image_size_px,
        sample_rate_hz=parts.sample_rate_hz,
        motion=parts.motion,
        condition=parts.condition,
        camera=CameraSettings(**camera),
        head=head_settings(scene.head),
        torso=None if scene.torso is None else torso_settings(scene.torso),
        verification=_without_plates(parts.verification),
        figures={key: float(value) for key, value in parts.figures.items()},
        files={name: _record(content) for name, content in contents.items()},
    )
    document = to_mapping(settings)
    from_mapping(SpeakerSettings, document)  # refuses what could not be read back
    return {**contents, SETTINGS_FILE: _settings_text(document)}


def _png(image: U8) -> bytes:
    written, content = cv2.imencode(".png", np.ascontiguousarray(image[:, :, ::-1]))
    if not written:
        raise BundleError("background.png", "content", "an image", "one that cannot be written", "check it")
    return content.tobytes()


def head_settings(head: HeadField) -> HeadSettings:
    """Returns the sizes of a head as speaker.json holds them."""
    return HeadSettings(
        position_grid=_grid_settings(head.position_grid),
        ambient_grid=_grid_settings(head.ambient_grid),
        ambient_net=_widths(head.ambient_net),
        sigma_net=_widths(head.sigma_net),
        color_net=_widths(head.color_net),
        individual_code=len(head.individual_code),
        grid_size=head.grid_size,
        bound=head.bound,
        max_steps=head.max_steps,
        min_near=head.min_near,
        stop_transmittance=head.stop_transmittance,
    )


def torso_settings(torso: TorsoField) -> TorsoSettings:
    """Returns the sizes of a torso as speaker.json holds them."""
    return TorsoSettings(
        grid=_grid_settings(torso.grid),
        deform_net=_widths(torso.deform_net),
        canonical_net=_widths(torso.canonical_net),
        individual_code=len(torso.individual_code),
        occupancy_side=len(torso.occupancy),
        position_octaves=torso.position_octaves,
        pose_octaves=torso.pose_octaves,
        shrink=torso.shrink,
    )


def _grid_settings(grid: Grid) -> GridSettings:
    rows, features = grid.table.shape
    layout = grid.layout
    return GridSettings(
        levels=layout.levels,
        features=features,
        rows=rows,
        base_resolution=layout.base_resolution,
        log2_growth=float(layout.log2_growth),
        hashed=layout.hashed,
        smoothstep=layout.smoothstep,
    )


def _widths(net: tuple[F32, ...]) -> tuple[int, ...]:
    return (net[0].shape[1], *(weight.shape[0] for weight in net))


def head_tensors(head: HeadField) -> Tensors:
    """Returns head.safetensors' arrays by key: grids as float16, the reference's key names."""
    return {
        **_grid_tensors("position_embedder", head.position_grid),
        **_grid_tensors("ambient_embedder", head.ambient_grid),
        **_net_tensors("ambient_net", head.ambient_net),
        **_net_tensors("sigma_net", head.sigma_net),
        **_net_tensors("color_net", head.color_net),
        "individual_code": np.ascontiguousarray(head.individual_code, np.float32),
        "density_bitfield": np.ascontiguousarray(head.density_bitfield, np.uint8),
        "aabb": np.ascontiguousarray(head.aabb, np.float32),
    }


def torso_tensors(torso: TorsoField) -> Tensors:
    """Returns torso.safetensors' arrays by key: grid and occupancy as float16, the reference's key names."""
    occupancy = (torso.occupancy > 0).astype(np.float16)  # only the sign decides
    return {
        **_grid_tensors("torso_embedder", torso.grid),
        **_net_tensors("torso_deform_net", torso.deform_net),
        **_net_tensors("torso_canonicial_net", torso.canonical_net),
        "individual_code": np.ascontiguousarray(torso.individual_code, np.float32),
        "occupancy": np.ascontiguousarray(occupancy),
    }


def _grid_tensors(prefix: str, grid: Grid) -> Tensors:
    largest = float(np.abs(grid.table).max(initial=0.0))
    # float16 ends at 65504; a grid beyond it has diverged, and inf would be refused by the reader.
    dtype = np.float16 if largest < 6e4 else np.float32
    return {
        f"{prefix}.embeddings": np.ascontiguousarray(grid.table, dtype),
        f"{prefix}.offsets": np.array(grid.layout.offsets, np.int32),
    }


def _net_tensors(prefix: str, net: tuple[F32, ...]) -> Tensors:
    return {f"{prefix}.net.{i}.weight": np.ascontiguousarray(w, np.float32) for i, w in enumerate(net)}
