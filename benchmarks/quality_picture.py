"""PSNR and SSIM of a bundle's pictures on held-out video, driven by the true landmarks.

The live path from the landmarks on: normalised, through condition.onnx, drawn by the CPU
raymarcher, at full size and at half size scaled up with the mouth drawn apart. Clamp and smoothing, which
belong to predicted landmarks, are left out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cuda_kernels.arrays import F32, I64
from cuda_kernels.cpu_raymarcher import CpuRaymarcher
from cuda_kernels.errors import InputError
from models.speaker import Speaker
from preparation.speaker_set import read_labels, read_pictures, read_truth, training_frames
from streaming.pipeline.engine_choice import open_engine
from streaming.pipeline.frame_renderer import WholeRenderer
from streaming.pipeline.i420 import to_rgb
from streaming.pipeline.mouth import FEATHER_SHARE, mouth_boxes
from streaming.pipeline.networks import network_specs
from training.pictures import ClosenessMeter, regions_of
from training.speaker_data import window_rows

REGIONS = ("whole", "head", "mouth", "torso")


class PictureDataError(InputError):
    """A bundle that cannot be driven by true landmarks."""


def picture_quality(
    speaker: Speaker, data_dir: Path, *, frames: int = 24, threads: int = 2
) -> dict[str, float]:
    """Returns figures over `frames` validation frames of a folder laid out as a speaker's training set.

    Returns:
        PSNR in dB and SSIM of the whole picture and its parts, by name; those drawn at half size and scaled
        up end in `_at_<size>`.

    Raises:
        PictureDataError: the bundle does not say what its landmarks are offsets from.
        FileError: a file is absent or broken, or does not fit the others or the bundle.
    """
    truth = read_truth(data_dir, "landmarks", "landmarks_2d", "c2w")
    landmarks, points, c2w = truth["landmarks"], truth["landmarks_2d"], truth["c2w"]
    total = len(landmarks)
    rows = np.unique(np.linspace(training_frames(total), total - 1, frames).astype(np.int64))
    if speaker.motion.mean_face is None:
        raise PictureDataError(
            f"{speaker.path}: motion.mean_face: expected (68, 3), got none; true landmarks need it"
        )
    size_px = speaker.image_size_px
    half_px = size_px // 2
    conditions = _conditions(speaker, landmarks, rows)
    scene = speaker.scene
    raymarcher = CpuRaymarcher(scene, threads=threads)
    feather_px = max(2, round(FEATHER_SHARE * size_px))
    boxes = mouth_boxes(speaker.motion, scene.camera, c2w[rows], image_size_px=size_px, feather_px=feather_px)
    renderers = {
        drawn_px: WholeRenderer(
            raymarcher, output_px=size_px, render_px=drawn_px, mouth_boxes=boxes, feather_px=feather_px
        )
        for drawn_px in (size_px, half_px)
    }
    meters = {drawn_px: ClosenessMeter() for drawn_px in renderers}
    pictures = read_pictures(data_dir, rows, frames=total, size_px=size_px)
    masks = read_labels(data_dir, rows, frames=total, size_px=size_px)
    try:
        for place, (picture, labels) in enumerate(zip(pictures, masks, strict=True)):
            i = int(rows[place])
            regions = regions_of(labels, points[i])
            for drawn_px, renderer in renderers.items():
                drawing = renderer.draw(c2w=c2w[i], condition=conditions[place], pose=place, blinking=True)
                meters[drawn_px].add(to_rgb(drawing.finish()), picture, regions)
    finally:
        raymarcher.close()

    figures: dict[str, float] = {}
    for drawn_px, meter in meters.items():
        closeness = meter.closeness()
        for name in REGIONS:
            if name not in closeness.psnr_db:
                continue
            part = "" if name == "whole" else f"{name}_"
            ending = "" if drawn_px == size_px else f"_at_{drawn_px}"
            figures[f"{part}psnr{ending}_db"] = closeness.psnr_db[name]
            figures[f"{part}ssim{ending}"] = closeness.ssim[name]
    return figures


def _conditions(speaker: Speaker, landmarks: F32, rows: I64) -> list[F32]:
    """Returns the conditions (C,) of frames `rows` from the true landmarks (T, 68, 3) in head space."""
    motion, condition = speaker.motion, speaker.condition
    assert motion.mean_face is not None
    window = condition.window_frames
    offsets = 10 * (landmarks - motion.mean_face)
    normalized = ((offsets - motion.landmark_mean) / motion.landmark_std).reshape(len(landmarks), -1)
    engine = open_engine(network_specs(speaker).condition)
    windows = normalized[window_rows(rows, len(landmarks), window, condition.lookahead_frames)]
    return [engine.run({"window": np.ascontiguousarray(one, np.float32)}) for one in windows]
