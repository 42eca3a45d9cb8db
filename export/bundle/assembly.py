"""Bundle assembly: a speaker's trained networks and video, every part exported, verified, documented."""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cuda_kernels.arrays import BOOL, F32, U8
from cuda_kernels.errors import InputError
from models.audio2motion import LANDMARK_DIMENSION, Audio2Motion
from models.features import LogMel
from models.landmark_subspace import LandmarkSubspace
from models.postnet import PostNet
from models.settings import SettingsError, from_mapping, one_line, require
from models.speaker import Speaker
from models.speaker_settings import ConditionSettings, MotionSettings, OriginRecord, check_speaker_name
from models.syncnet import AUDIO_FRAMES, MOTION_FRAMES, MOUTH_DIMENSION, SyncNet
from models.time_base import FRAME_MS, FRAME_RATE_HZ, FRAME_S
from preparation.corpus_set import LANDMARKS_FILE, read_mean_face
from preparation.sounds import SPEECH, Sound, classify_frames
from preparation.speaker_set import (
    SOUND_FILE,
    read_background,
    read_phones,
    read_sound,
    read_truth,
    training_frames,
)
from training.audio2motion import load_audio2motion
from training.checkpoint_choice import chosen_checkpoint
from training.cli import settings_type_of
from training.fields import TrainedHead, load_head, load_torso
from training.loop import checkpoints, load_checkpoint
from training.postnet import load_postnet
from training.syncnet import load_syncnet

from ..onnx.graphs import open_graph, strip_metadata, to_float16_weights
from ..regular_file import open_regular
from ..requests import BundleRequest, MotionRequest
from .condition import ConditionExport, export_condition
from .head import measure_faithfulness, require_faithful, require_same_camera, scene_of, stored
from .model_card import Card, Training, model_card
from .motion import MotionExportReport, export_motion, export_syncnet
from .pose_loop import PoseLoop, mean_blink, pose_loop
from .writer import BundleParts, folder_beside, require_free, write_bundle

log = logging.getLogger(__name__)


FILES = {
    "speaker.json": "settings, sizes, origin, figures, size and hash of every other file",
    "motion.onnx": "sound to landmarks in one graph: log-mel, Audio2Motion, PostNet, projection",
    "condition.onnx": "landmarks to what drives the head",
    "head.safetensors": "the head: grids, networks, occupancy",
    "torso.safetensors": "the torso: grid, networks, occupancy",
    "poses.safetensors": "the head's path (a loop) and one blink",
    "background.png": "what is behind",
    "syncnet.onnx": "SyncNet, for measuring",
}


class AssemblyError(InputError):
    """Parts that do not fit together, or a file that is not what it should be."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The origin file: the bundle's record, and what the model card says besides."""

    subject: str
    consent: str
    data: str
    recipe: str
    synthetic: bool
    licence: str

    def __post_init__(self) -> None:
        """Refuses what cannot be written as UTF-8."""
        for name, value in vars(self).items():
            require(not isinstance(value, str) or _is_whole(value), name, "whole characters", value)

    @property
    def record(self) -> OriginRecord:
        """The part that speaker.json keeps under `origin`."""
        return OriginRecord(subject=self.subject, consent=self.consent, data=self.data, recipe=self.recipe)


@dataclass(frozen=True, kw_only=True, eq=False)
class SpeakerFiles:
    """What a bundle takes from the speaker's training set."""

    landmarks: F32  # (T, 68, 3) of the training frames, head space
    c2w: F32  # (T, 4, 4)
    background: U8  # (S, S, 3) RGB
    resting: BOOL  # (T,), well inside pauses, none where phones are not known
    audio: F32 | None  # (samples,) in [-1, 1]


def make_bundle(request: BundleRequest) -> Speaker:
    """Returns the speaker of the bundle written to `request.out`, read back.

    Raises:
        ValueError: an input that is missing, broken or does not fit the others; nothing is written.
    """
    check_speaker_name(request.name)
    require_free(request.out)
    origin = read_origin(request.origin)
    figures = read_figures(request.figures)
    for path in (request.audio2motion, request.postnet, request.syncnet, request.head, request.torso):
        if path is not None:
            _recorded_settings(path)  # refused now rather than after the exports
    files = read_speaker_files(request.data)
    trained = load_head(request.head)
    require_same_face(trained.mean_face, request.corpus)
    torso = None
    if request.torso is not None:
        loaded = load_torso(request.torso)
        require_same_camera(trained.camera, loaded.camera)
        torso = loaded.torso
    if trained.image_size_px != files.background.shape[0]:
        raise AssemblyError(
            f"{request.data / 'background.png'}: size: expected {trained.image_size_px} px, as the head was "
            f"trained on, got {files.background.shape[0]}; give the --data it was trained on"
        )
    verification: dict[str, float] = {}
    loop = pose_loop(files.c2w)
    verification["loop_seam_step"] = loop.seam_step
    verification["loop_seam_acceleration"] = loop.seam_acceleration
    log.info("poses: a loop of %.1f s from frame %d", len(loop.poses) / FRAME_RATE_HZ, loop.first_frame)
    blinks = mean_blink(files.landmarks)
    networks: dict[str, nn.Module] = {}
    with folder_beside(request.out) as folder:
        own = 10 * (files.landmarks - trained.mean_face).reshape(-1, LANDMARK_DIMENSION)
        subspace = None
        if request.unexplained > 0:
            subspace = LandmarkSubspace.fit(torch.from_numpy(own), unexplained=request.unexplained)
            log.info("motion: the face moves in %d ways", len(subspace.basis))
        motion_onnx, report = export_motion_graph(
            request, subspace, files.audio, folder, networks, verification
        )
        syncnet_onnx = export_syncnet_graph(request, folder, networks, verification)
    log.info("motion.onnx: %d bytes, %.2f ms a frame here", len(motion_onnx), report.ms_per_call)

    head = trained.head
    condition = export_condition(head.config.condition, head.cond_prenet, head.cond_att_net)
    verification["condition_largest_error"] = condition.largest_error

    scene = scene_of(head, torso, trained.camera, files.background)
    kept = stored(scene)
    chosen = np.linspace(0, len(loop.poses) - 1, request.check_poses).astype(int)
    faithfulness = measure_faithfulness(
        scene,
        kept,
        poses=loop.poses[chosen],
        conditions=_conditions(trained, condition, files.landmarks, request.check_poses),
        size_px=request.check_size_px,
    )
    require_faithful(faithfulness)
    verification |= dataclasses.asdict(faithfulness)

    networks |= {"head": head} | ({} if torso is None else {"torso": torso})
    paths = {task: getattr(request, task) for task in networks}
    motion = MotionSettings(
        window_samples=report.window_samples,
        window_frames=report.window_frames,
        lookahead_frames=report.lookahead_frames,
        landmark_mean=trained.landmark_mean,
        landmark_std=trained.landmark_std,
        mean_face=trained.mean_face,
        clamp_std=request.clamp_std,
        ema=request.ema,
    )
    config = head.config.condition
    parts = BundleParts(
        name=request.name,
        synthetic=origin.synthetic,
        licence=origin.licence,
        origin=origin.record,
        motion=motion,
        condition=ConditionSettings(
            window_frames=config.window_frames, lookahead_frames=config.lookahead_frames, size=config.outputs
        ),
        scene=scene,
        motion_onnx=motion_onnx,
        condition_onnx=condition.content,
        syncnet_onnx=syncnet_onnx,
        poses=loop.poses,
        blinks=blinks,
        model_card="",
        verification=verification,
        figures=figures,
    )
    card = Card(
        name=request.name,
        synthetic=origin.synthetic,
        licence=origin.licence,
        origin=origin.record,
        facts=_facts(motion, config.lookahead_frames, loop, files.background.shape[0]),
        trainings=[training_of(task, paths[task], net) for task, net in networks.items()],
        figures=figures,
        verification=verification,
        files={name: what for name, what in FILES.items() if _is_in(name, parts)},
    )
    parts = dataclasses.replace(parts, model_card=model_card(card))
    return write_bundle(request.out, parts, max_bytes=round(request.max_mb * 1e6))


def read_origin(path: Path) -> Origin:
    """Returns who may be shown and on what ground, from a JSON file.

    Raises:
        AssemblyError: the file is missing, no JSON, or lacks or has too many keys.
    """
    try:
        return from_mapping(Origin, _read_json(path))
    except SettingsError as error:
        raise AssemblyError(f"{path}: {error}; state it, nobody is shown without it") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "not JSON"
        raise AssemblyError(
            f"{path}: expected a JSON object with subject, consent, data, recipe, synthetic and licence, "
            f"got: {reason}; write one"
        ) from None


def read_figures(paths: tuple[Path, ...]) -> dict[str, float]:
    """Returns every number in the JSON files by its dotted path of keys; later files win.

    Raises:
        AssemblyError: a file is missing, no JSON object or holds a number that is not finite.
    """
    figures: dict[str, float] = {}
    for path in paths:
        try:
            content = _read_json(path)
            found = _numbers(content, "") if isinstance(content, dict) else None
        except (OSError, ValueError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or "not JSON"
            raise AssemblyError(
                f"{path}: expected JSON with measured figures, got: {reason}; give what a benchmark wrote"
            ) from None
        if found is None:
            raise AssemblyError(f"{path}: expected a JSON object of figures, got a {type(content).__name__}")
        for name, value in found.items():
            if not _is_whole(name):
                raise AssemblyError(
                    f"{path}: {one_line(name)}: expected whole characters, got half of one; name it anew"
                )
            if not math.isfinite(value):
                raise AssemblyError(
                    f"{path}: {one_line(name)}: expected a finite number, got {value}; measure it anew"
                )
        figures |= found
    return figures


def _is_whole(text: str) -> bool:
    r"""Returns whether a text can be written as UTF-8; JSON's "\ud800" alone cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _read_json(path: Path) -> object:
    with open_regular(path) as file:
        return json.loads(str(file.read(), "utf-8"))


def _numbers(value: Mapping[str, Any], prefix: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for key, entry in value.items():
        if isinstance(entry, Mapping):
            found |= _numbers(entry, f"{prefix}{key}.")
        elif isinstance(entry, (int, float)) and not isinstance(entry, bool):
            too_large = isinstance(entry, int) and abs(entry) > sys.float_info.max
            found[prefix + key] = math.inf if too_large else float(entry)
    return found


def training_of(task: str, path: Path, net: nn.Module) -> Training:
    """Returns how a network was trained: from its checkpoint and settings.json beside it, if there."""
    step = int(load_checkpoint(_checkpoint_of(path))["step"])
    parameters = sum(parameter.numel() for parameter in net.parameters())
    content = _recorded_settings(path)
    if content is None:
        return Training(task=task, step=step, parameters=parameters)
    defaults = dataclasses.asdict(settings_type_of(importlib.import_module(f"training.{task}"))())
    plain = json.loads(json.dumps(defaults, default=str))
    differing = {
        key: value
        for key, value in content["settings"].items()
        # Paths of one machine are no part of the recipe.
        if key in plain and key != "steps" and value != plain[key] and "/" not in str(value)
    }
    seed = content["loop"].get("seed")
    return Training(task=task, step=step, parameters=parameters, seed=seed, settings=differing)


def _recorded_settings(path: Path) -> dict[str, dict[str, Any]] | None:
    """Returns `settings` and `loop` of the settings.json beside a checkpoint; None where there is none."""
    file = (path if path.is_dir() else path.parent) / "settings.json"
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        content = None
    parts = ("settings", "loop")
    if not isinstance(content, dict) or not all(isinstance(content.get(name, {}), dict) for name in parts):
        raise AssemblyError(
            f"{file}: expected the JSON that training wrote, got something else; delete it to go without"
        )
    return {name: content.get(name, {}) for name in parts}


def _checkpoint_of(path: Path) -> Path:
    """Returns the file that the loaders of `training` take: itself, the chosen one, the newest."""
    if not path.is_dir():
        return path
    return chosen_checkpoint(path) or list(checkpoints(path).values())[-1]


def read_speaker_files(data: Path) -> SpeakerFiles:
    """Returns what a bundle takes from a speaker's training set.

    Raises:
        FileError: a file is missing or broken.
    """
    truth = read_truth(data, "landmarks", "c2w")
    frames = training_frames(len(truth["c2w"]))
    audio: F32 | None = None
    if (data / SOUND_FILE).is_file():
        audio = np.multiply(read_sound(data, len(truth["c2w"])), 1 / 32768, dtype=np.float32)
    phones = read_phones(data) or ()
    return SpeakerFiles(
        landmarks=truth["landmarks"][:frames],
        resting=classify_frames(frames, phones, SPEECH) == Sound.REST,
        c2w=truth["c2w"][:frames],
        background=read_background(data),
        audio=audio,
    )


def require_same_face(mean_face: F32, corpus: Path | None) -> None:
    """Refuses a head trained on offsets from another mean face (68, 3) than Audio2Motion's."""
    if corpus is None:
        return
    file = corpus / LANDMARKS_FILE
    face = read_mean_face(file)
    difference = float(np.abs(face - mean_face).max())
    if not difference < 1e-4:
        raise AssemblyError(
            f"head: mean_face: expected the corpus's, got one {difference:.3g} dm away; train the head with "
            f"--mean-face {file}"
        )


def export_motion_graph(
    request: BundleRequest | MotionRequest,
    subspace: LandmarkSubspace | None,
    audio: F32 | None,
    folder: Path,
    networks: dict[str, nn.Module],
    verification: dict[str, float],
    *,
    rest: F32 | None = None,
) -> tuple[bytes, MotionExportReport]:
    """Returns motion.onnx and what was found; the networks and their checks go into the two mappings."""
    audio2motion: Audio2Motion = load_audio2motion(request.audio2motion)
    networks["audio2motion"] = audio2motion
    postnet: PostNet | None = None
    if request.postnet is not None:
        postnet = load_postnet(request.postnet)
        networks["postnet"] = postnet
    path = folder / "motion.onnx"
    report = export_motion(
        audio2motion,
        postnet,
        LogMel(),
        path=path,
        subspace=subspace,
        audio=audio,
        advance_features=request.advance_features,
        rest=rest,
    )
    verification["motion_largest_error"] = report.largest_error
    random = np.random.default_rng(0)
    sound = random.normal(0, 0.1, report.window_samples * 8).astype(np.float32) if audio is None else audio
    starts = np.linspace(0, len(sound) - report.window_samples, 32).astype(int)
    feeds = [{"pcm": sound[None, start : start + report.window_samples]} for start in starts]
    return _small(request, "motion", path.read_bytes(), feeds, verification), report


def export_syncnet_graph(
    request: BundleRequest | MotionRequest,
    folder: Path,
    networks: dict[str, nn.Module],
    verification: dict[str, float],
) -> bytes | None:
    """Returns syncnet.onnx, None without a SyncNet; the network and its check go into the two mappings."""
    if request.syncnet is None:
        return None
    syncnet: SyncNet = load_syncnet(request.syncnet)
    networks["syncnet"] = syncnet
    path = folder / "syncnet.onnx"
    verification["syncnet_largest_error"] = export_syncnet(syncnet, path=path).largest_error
    random = np.random.default_rng(0)
    sizes = {
        "audio": (AUDIO_FRAMES, syncnet.config.feature_dimension),
        "mouth": (MOTION_FRAMES, MOUTH_DIMENSION),
    }
    feed = {name: random.normal(-1, 1, (16, *size)).astype(np.float32) for name, size in sizes.items()}
    return _small(request, "syncnet", path.read_bytes(), [feed], verification)


def _small(
    request: BundleRequest | MotionRequest,
    name: str,
    content: bytes,
    feeds: list[dict[str, F32]],
    verification: dict[str, float],
) -> bytes:
    content = strip_metadata(content)
    if request.float32_networks:
        return content
    small = to_float16_weights(content, feeds)
    verification[f"{name}_float16_change"] = small.rounding
    return small.content


def _conditions(trained: TrainedHead, exported: ConditionExport, landmarks: F32, count: int) -> list[F32]:
    """Returns what condition.onnx makes of `count` windows spread over the video."""
    session = open_graph(exported.content)
    offsets = 10 * (landmarks - trained.mean_face)
    normalized = ((offsets - trained.landmark_mean) / trained.landmark_std).reshape(len(landmarks), -1)
    width = trained.head.config.condition.window_frames
    starts = np.linspace(0, len(landmarks) - width, count).astype(int)
    windows = [normalized[start : start + width].astype(np.float32) for start in starts]
    return [session.run(None, {"window": window})[0] for window in windows]


def _facts(
    motion: MotionSettings, condition_lookahead_frames: int, loop: PoseLoop, size_px: int
) -> dict[str, str]:
    loop_s = len(loop.poses) * FRAME_S
    return {
        "takes": "16 kHz mono sound",
        "gives": f"{size_px} x {size_px} pixels, {FRAME_RATE_HZ} frames a second",
        **motion_facts(motion, condition_lookahead_frames),
        "head's path": f"a loop of {loop_s:.1f} s of the video, from frame {loop.first_frame}",
    }


def motion_facts(motion: MotionSettings, condition_lookahead_frames: int) -> dict[str, str]:
    """Returns what the model card says of how much sound the motion takes."""
    lookahead = motion.lookahead_frames + condition_lookahead_frames
    return {
        "look-ahead": f"{lookahead} frames ({FRAME_MS * lookahead} ms) of sound after the frame it moves",
        "memory": f"{motion.window_frames} frames ({motion.window_frames * FRAME_S:.2f} s) of sound",
    }


def _is_in(name: str, parts: BundleParts) -> bool:
    if name == "torso.safetensors":
        return parts.scene.torso is not None
    return name != "syncnet.onnx" or parts.syncnet_onnx is not None
