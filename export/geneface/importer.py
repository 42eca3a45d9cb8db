"""Import of a GeneFace speaker: checkpoints and data in, one verified bundle out.

The recipe's work folders hold the networks, `trainval_dataset.npy` holds what they do not: poses, camera,
background and the landmarks' range. GeneFace's poses count in ten decimetres, a bundle's in decimetres.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import torch

from cuda_kernels.arrays import F32, U8
from cuda_kernels.errors import InputError
from cuda_kernels.scene import Camera
from models.bundle_files import RECORDED_CASES_FILE
from models.hubert import HUBERT_NAME, Hubert
from models.landmark_subspace import LandmarkSubspace
from models.latent_noise import latent_noise
from models.pitch import f0_hz
from models.speaker import Speaker
from models.speaker_settings import ConditionSettings, FeatureSettings, MotionSettings, check_speaker_name
from models.time_base import (
    FEATURE_HOP_SAMPLES,
    FEATURE_RATE_HZ,
    FRAME_MS,
    FRAME_RATE_HZ,
    FRAME_S,
    FRAME_SAMPLES,
)
from preparation.media import read_pcm
from training.fields import draw_head, draw_torso

from ..bundle.assembly import FILES, Origin, read_origin
from ..bundle.condition import export_condition
from ..bundle.head import scene_of, stored
from ..bundle.model_card import Card, Training, model_card
from ..bundle.pose_loop import PerformanceError, pose_loop
from ..bundle.writer import BundleParts, folder_beside, require_free, write_bundle
from ..recorded_cases import LIMITS, ExportedParts, RecordedCases, padded, replay
from ..requests import GenefaceRequest
from .checkpoints import GenefaceNetworks, read_networks
from .dataset import GenefaceDataset, read_dataset
from .hubert import export_features, load_hubert, normalised, offline_features
from .motion import GenefaceMotionChain, export_geneface_motion
from .work_folders import GenefaceFolders, find_folders

log = logging.getLogger(__name__)


DM_PER_UNIT = 10.0  # of a GeneFace pose's translation
MAX_FEATURE_DIFFERENCE = 0.1
"""Root mean square, as a share of the features': other weights differ by about 1."""
_NOBODY_STATED = "nobody stated it when the speaker was imported"
# Sound as long as the data's features, up to a second, is the video's own.
_SAME_SOUND_FEATURES = FEATURE_RATE_HZ
_CASE_FRAMES = 40
_CASE_SAMPLES = FRAME_SAMPLES * _CASE_FRAMES
_WINDOW_CASES = 4


class GenefaceImportError(InputError):
    """Parts of a GeneFace speaker that do not fit together, or that change once exported."""


def import_geneface(request: GenefaceRequest) -> Speaker:
    """Returns the speaker of the bundle written to `request.out`, read back.

    Raises:
        ValueError: an input that is missing, broken or does not fit the others, or a part that differs from
            its source once exported; nothing is written.
    """
    check_speaker_name(request.name or request.speaker)
    require_free(request.out)
    origin = read_origin(request.origin) if request.origin else _unstated_origin(request.speaker)
    networks = _read_networks(request)
    for source in networks.sources:
        log.info("%s: step %d of %s, %s", source.part, source.step, source.path, source.reason)
    data = read_dataset(request.data)
    log.info("%s: %d frames of %d px", request.data, len(data.poses), data.image_size_px)
    pcm = None
    if request.audio is not None:
        pcm = np.multiply(read_pcm(request.audio), 1 / 32768, dtype=np.float32)
    hubert = load_hubert(request.hubert)
    chain = GenefaceMotionChain(
        networks.audio2motion,
        networks.postnet,
        networks.audio2motion.pitch_embed if networks.takes_pitch else None,
        _subspace(request, data),
    ).eval()
    verification: dict[str, float] = {}
    if pcm is not None and abs(len(pcm) // FEATURE_HOP_SAMPLES - len(data.hubert)) <= _SAME_SOUND_FEATURES:
        verification["hubert_against_dataset"] = _feature_difference(hubert, pcm, data)

    with folder_beside(request.out) as folder:
        log.info("features.onnx: writing, and comparing with torch ...")
        features = export_features(
            hubert, path=folder / "features.onnx", audio=pcm, float32_weights=request.float32_networks
        )
        log.info("motion.onnx: writing, and comparing with torch ...")
        motion = export_geneface_motion(
            chain,
            path=folder / "motion.onnx",
            features=data.hubert if data.hubert.any() else None,
            f0_hz=data.f0_hz,
            float32_weights=True,  # small beside HuBERT
        )
        features_onnx, motion_onnx = features.path.read_bytes(), motion.path.read_bytes()
    verification["features_largest_error"] = features.largest_error / features.largest_feature
    if features.float16_change is not None:
        verification["features_float16_change"] = features.float16_change / features.largest_feature
    verification["motion_largest_error"] = motion.largest_error
    config = networks.head.config.condition
    condition = export_condition(config, networks.head.cond_prenet, networks.head.cond_att_net)
    verification["condition_largest_error"] = condition.largest_error

    camera = Camera(
        focal_px=data.focal_px,
        cx_px=data.cx_px,
        cy_px=data.cy_px,
        scale=networks.camera_scale / DM_PER_UNIT,
        offset=networks.camera_offset,
    )
    poses, path_said = _head_path(data, verification)
    scene = scene_of(networks.head, networks.torso, camera, data.background)
    log.info("drawing %d pictures with torch, and again from the bundle ...", request.check_poses)
    cases = _record(request, networks, chain, data, hubert, pcm, camera, poses)
    kept = ExportedParts(
        features_onnx=features_onnx,
        motion_onnx=motion_onnx,
        condition_onnx=condition.content,
        scene=stored(scene),
    )
    found = replay(cases, kept)
    _require(found)
    verification |= found

    parts = BundleParts(
        name=request.name or request.speaker,
        synthetic=origin.synthetic,
        licence=origin.licence,
        origin=origin.record,
        motion=_motion_settings(request, networks, data),
        condition=ConditionSettings(
            window_frames=config.window_frames, lookahead_frames=config.lookahead_frames, size=config.outputs
        ),
        scene=scene,
        motion_onnx=motion_onnx,
        condition_onnx=condition.content,
        features_onnx=features_onnx,
        recorded_cases=cases.content(),
        poses=poses,
        blinks=np.zeros((1, 68, 3), np.float32),  # GeneFace's head has none of its own
        model_card="",
        verification=verification,
    )
    return write_bundle(request.out, replace(parts, model_card=_card(parts, origin, networks, path_said)))


def _read_networks(request: GenefaceRequest) -> GenefaceNetworks:
    if request.postnet is not None:
        folders = GenefaceFolders(postnet=request.postnet, head=request.head, torso=request.torso)
    else:
        found = find_folders(request.checkpoints, request.speaker)
        folders = replace(found, head=request.head or found.head, torso=request.torso or found.torso)
    return read_networks(folders, request.speaker, postnet_steps=request.postnet_steps)


def _unstated_origin(speaker: str) -> Origin:
    log.warning(
        "who may be shown, and on what ground: %s; state it with --origin before you show %s to others",
        _NOBODY_STATED,
        speaker,
    )
    return Origin(
        subject=f"whoever GeneFace's video of {speaker} shows",
        consent=_NOBODY_STATED,
        data=f"GeneFace's data of {speaker}",
        recipe="GeneFace's (Ye et al., ICLR 2023), imported",
        synthetic=False,
        licence="not stated",
    )


def _subspace(request: GenefaceRequest, data: GenefaceDataset) -> LandmarkSubspace | None:
    if not request.unexplained:
        return None
    own = torch.from_numpy(data.landmarks.reshape(len(data.landmarks), -1))
    subspace = LandmarkSubspace.fit(own, unexplained=request.unexplained)
    log.info("motion: the face moves in %d ways", len(subspace.basis))
    return subspace


def _feature_difference(hubert: Hubert, pcm: F32, data: GenefaceDataset) -> float:
    """Returns how far this HuBERT's features of the video's first seconds are from those it was trained on.

    Raises:
        GenefaceImportError: beyond the limit: another HuBERT, or another sound.
    """
    with torch.no_grad():
        found = offline_features(lambda sound: hubert(torch.from_numpy(sound)).numpy(), pcm)
    frames = min(len(found), len(data.hubert))
    theirs = data.hubert[:frames]
    difference = float(np.sqrt(np.mean((found[:frames] - theirs) ** 2) / np.mean(theirs**2)))
    if not difference <= MAX_FEATURE_DIFFERENCE:
        raise GenefaceImportError(
            f"hubert: expected features of --audio within {MAX_FEATURE_DIFFERENCE:g} of the data's, got "
            f"{difference:.3g}; give the weights of {HUBERT_NAME} and the video's own sound, or no --audio"
        )
    return difference


def _head_path(data: GenefaceDataset, verification: dict[str, float]) -> tuple[F32, str]:
    """Returns the poses that a stream repeats, in decimetres, and their description."""
    c2w = data.poses_smoothed.copy()
    c2w[:, :3, 3] *= DM_PER_UNIT
    try:
        loop = pose_loop(c2w)
    except PerformanceError as error:
        log.info("poses: there and back again, since no loop was found: %s", error)
        back = c2w[-2:0:-1]
        there_s = len(c2w) / FRAME_RATE_HZ
        return np.concatenate([c2w, back]), f"{there_s:.1f} s of the video, there and back again"
    verification["loop_seam_step"] = loop.seam_step
    verification["loop_seam_acceleration"] = loop.seam_acceleration
    seconds = len(loop.poses) / FRAME_RATE_HZ
    log.info("poses: a loop of %.1f s from frame %d", seconds, loop.first_frame)
    return loop.poses, f"a loop of {seconds:.1f} s of the video, from frame {loop.first_frame}"


def _motion_settings(
    request: GenefaceRequest, networks: GenefaceNetworks, data: GenefaceDataset
) -> MotionSettings:
    sizes = networks.audio2motion.config
    window_frames = request.window_ms // FRAME_MS
    features = FeatureSettings(
        name=HUBERT_NAME,
        dimension=sizes.feature_dimension,
        window_frames=window_frames,
        kept_frames=window_frames // 2,
        hop_frames=request.hop_frames,
        block_frames=sizes.squeeze,
        latent_channels=sizes.latent_channels,
        temperature=request.temperature,
        hears_pitch=networks.takes_pitch,
    )
    return MotionSettings(
        kind="features",
        features=features,
        window_samples=features.window_samples,
        window_frames=request.motion_window_ms // FRAME_MS,
        lookahead_frames=request.lookahead_ms // FRAME_MS + request.hop_frames - 1,
        landmark_mean=data.landmark_mean,
        landmark_std=data.landmark_std,
        clamp_std=networks.clamp_std,
    )


# What is compared ------------------------------------------------------------------------------------


def _record(
    request: GenefaceRequest,
    networks: GenefaceNetworks,
    chain: GenefaceMotionChain,
    data: GenefaceDataset,
    hubert: Hubert,
    pcm: F32 | None,
    camera: Camera,
    poses: F32,
) -> RecordedCases:
    """Returns the imported networks' own outputs for random and real inputs."""
    random = np.random.default_rng(0)
    sounds = [random.normal(0, 0.1, _CASE_SAMPLES).astype(np.float32)]
    if pcm is not None and len(pcm) >= _CASE_SAMPLES:
        start = (len(pcm) - _CASE_SAMPLES) // 2
        sounds.append(pcm[start : start + _CASE_SAMPLES])
    steps = 2 * _CASE_FRAMES

    def moved(encoded: F32, pitch: F32) -> dict[str, F32]:
        sizes = networks.audio2motion.config
        feed = {
            "features": encoded,
            "latent": latent_noise(
                seed=0, first_step=0, steps=_CASE_FRAMES // sizes.squeeze, channels=sizes.latent_channels
            ),
        }
        if networks.takes_pitch:
            feed["f0_hz"] = pitch[None, :steps]
        with torch.no_grad():
            landmarks = chain(*(torch.from_numpy(array) for array in feed.values())).numpy()
        return {**feed, "landmarks": landmarks}

    features, chained = [], []
    for sound in sounds:
        scaled = normalised(sound)[None]
        with torch.no_grad():
            features.append({"pcm": scaled, "features": hubert(torch.from_numpy(scaled)).numpy()})
        pitch = f0_hz(sound)
        case = moved(padded(features[-1]["features"], steps), np.pad(pitch, (0, max(0, steps - len(pitch)))))
        chained.append({"pcm": scaled, **{name: array for name, array in case.items() if name != "features"}})
    noise = random.normal(0, 0.5, (1, steps, data.hubert.shape[1])).astype(np.float32)
    motion = [moved(noise, np.zeros(steps, np.float32))]
    if len(data.hubert) >= steps:
        start = (len(data.hubert) - steps) // 2
        real = slice(start, start + steps)
        pitch = np.zeros(steps, np.float32) if data.f0_hz is None else data.f0_hz[real]
        motion.append(moved(np.ascontiguousarray(data.hubert[None, real]), pitch))

    windows = _windows(networks, data, random)
    with torch.no_grad():
        conditions = networks.head.encode_condition(torch.from_numpy(windows)).numpy()
    chosen = np.linspace(0, len(poses) - 1, request.check_poses).astype(int)
    pictures = []
    for number, pose in enumerate(poses[chosen]):
        condition = conditions[-1 - number % _WINDOW_CASES]  # the real ones come last
        picture = _draw(networks, pose, condition, camera, data.background)
        pictures.append({"c2w": pose, "condition": condition, "picture": picture})
    return RecordedCases(
        features=features,
        motion=motion,
        chain=chained,
        condition=[{"window": w, "condition": c} for w, c in zip(windows, conditions, strict=True)],
        pictures=pictures,
    )


def _windows(networks: GenefaceNetworks, data: GenefaceDataset, random: np.random.Generator) -> F32:
    """Returns (2 * _WINDOW_CASES, window_frames, 204) normalised landmarks: random ones, then the video's."""
    width = networks.window_frames
    normalized = ((data.landmarks - data.landmark_mean) / data.landmark_std).reshape(len(data.landmarks), -1)
    rows = np.linspace(0, len(normalized) - 1, _WINDOW_CASES).astype(int)
    span = np.arange(width) - width // 2
    real = normalized[np.clip(rows[:, None] + span, 0, len(normalized) - 1)]
    drawn = random.normal(0, 1, real.shape)
    windows: F32 = np.concatenate([drawn, real]).astype(np.float32)
    return windows


def _draw(networks: GenefaceNetworks, c2w: F32, condition: F32, camera: Camera, background: U8) -> U8:
    """Returns (S, S, 3): torso and head as the torch networks draw them."""
    pose = torch.from_numpy(c2w)
    plate = torch.from_numpy(background)
    behind = plate.float() / 255
    if networks.torso is not None:
        behind = draw_torso(networks.torso, pose, camera, plate)
    drawn = draw_head(networks.head, pose, torch.from_numpy(condition)[None], camera, background.shape[0])
    image = drawn.image + (1 - drawn.weights_sum)[..., None] * behind
    picture: U8 = (image.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return picture


def _require(found: dict[str, float]) -> None:
    for name, value in found.items():
        low, high = LIMITS[name]
        if not ((low is None or value >= low) and (high is None or value <= high)):  # also refuses NaN
            limit = f"at least {low:g}" if low is not None else f"at most {high:g}"
            raise GenefaceImportError(
                f"{name}: expected {limit} between the imported networks and the bundle, got {value:.3g}; "
                "are the weights finite and of one training?"
            )


def _card(parts: BundleParts, origin: Origin, networks: GenefaceNetworks, path_said: str) -> str:
    motion = parts.motion
    assert motion.features is not None
    lookahead = motion.lookahead_frames + parts.condition.lookahead_frames
    nets = {
        "audio2motion": networks.audio2motion,
        "postnet": networks.postnet,
        "head": networks.head,
        "torso": networks.torso,
    }
    trainings = [
        Training(
            task=source.part,
            step=source.step,
            parameters=sum(parameter.numel() for parameter in net.parameters()),
            settings={"checkpoint": source.reason},
        )
        for source in networks.sources
        if (net := nets.get(source.part)) is not None
    ]
    size_px, memory_s = parts.scene.image_size_px, motion.window_frames * FRAME_S
    there = {
        "torso.safetensors": parts.scene.torso is not None,
        "syncnet.onnx": False,
    }
    files = {name: what for name, what in FILES.items() if there.get(name, True)}
    files["motion.onnx"] = "features to landmarks: Audio2Motion and PostNet"
    files["features.onnx"] = f"sound to features: {motion.features.name}"
    files[RECORDED_CASES_FILE] = "what the networks made of some inputs before export, to be tried again"
    return model_card(
        Card(
            name=parts.name,
            synthetic=parts.synthetic,
            licence=parts.licence,
            origin=origin.record,
            facts={
                "takes": "16 kHz mono sound",
                "gives": f"{size_px} x {size_px} pixels, {FRAME_RATE_HZ} frames a second",
                "look-ahead": f"up to {lookahead} frames ({FRAME_MS * lookahead} ms) of sound after a frame",
                "memory": f"{motion.window_frames} frames ({memory_s:.2f} s) of features",
                "head's path": path_said,
            },
            trainings=trainings,
            figures={},
            verification=parts.verification,
            files=files,
        )
    )
