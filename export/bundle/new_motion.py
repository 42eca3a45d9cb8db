"""Other motion for a bundle that exists: new Audio2Motion, PostNet and SyncNet, the same head and torso."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import torch
from torch import nn

from models.audio2motion import LANDMARK_DIMENSION
from models.bundle_files import BundleError
from models.landmark_subspace import LandmarkSubspace
from models.speaker import Speaker, load_speaker
from preparation.speaker_set import PHONES_FILE

from ..requests import MotionRequest
from .assembly import (
    AssemblyError,
    export_motion_graph,
    export_syncnet_graph,
    motion_facts,
    read_figures,
    read_origin,
    read_speaker_files,
    require_same_face,
    training_of,
)
from .model_card import MOTION_CHECKS, with_motion
from .writer import folder_beside, put_motion, read_card, require_replaceable

log = logging.getLogger(__name__)

OF_MOTION = ("corpus_", "own_voice_")
"""Prefixes of the figures that tell of the motion: they are of the one that goes."""


def replace_motion(request: MotionRequest) -> Speaker:
    """Returns the speaker after other networks took the place of those that move its face.

    Head, torso, path and plates stay. Figures of the old motion go out of bundle and card.

    Raises:
        InputError: an input is missing, broken or does not fit the bundle; the bundle is left as it was.
    """
    path = request.bundle
    require_replaceable(path)
    speaker = load_speaker(path)
    before = speaker.motion
    if before.kind != "pcm" or before.mean_face is None:
        raise BundleError(
            str(path),
            "motion",
            "a bundle whose motion takes samples and has a mean face",
            f"motion of the kind {before.kind}",
            "give a bundle of `geneface-export bundle`",
        )
    card = read_card(path)
    origin = None if request.origin is None else read_origin(request.origin)
    figures = read_figures(request.figures)
    require_same_face(before.mean_face, request.corpus)
    files = read_speaker_files(request.data)
    verification = {
        name: value
        for name, value in speaker.settings.verification.items()
        if not name.startswith(MOTION_CHECKS)
    }
    networks: dict[str, nn.Module] = {}
    with folder_beside(path) as folder:
        own = 10 * (files.landmarks - before.mean_face).reshape(-1, LANDMARK_DIMENSION)
        subspace = None
        if request.unexplained > 0:
            subspace = LandmarkSubspace.fit(torch.from_numpy(own), unexplained=request.unexplained)
            log.info("motion: the face moves in %d ways", len(subspace.basis))
        rest = None
        if request.rest_of_video:
            if not files.resting.any():
                raise AssemblyError(
                    f"{request.data / PHONES_FILE}: expected phones with a pause of half a second, got none; "
                    f"leave out --rest-of-video"
                )
            rest = own[files.resting].mean(axis=0).astype(np.float32)
        motion_onnx, report = export_motion_graph(
            request, subspace, files.audio, folder, networks, verification, rest=rest
        )
        syncnet_onnx = export_syncnet_graph(request, folder, networks, verification)
    log.info("motion.onnx: %d bytes, %.2f ms a frame here", len(motion_onnx), report.ms_per_call)
    motion = dataclasses.replace(
        before,
        window_samples=report.window_samples,
        window_frames=report.window_frames,
        lookahead_frames=report.lookahead_frames,
        clamp_std=request.clamp_std,
        ema=request.ema,
    )
    kept = {
        name: value for name, value in speaker.settings.figures.items() if not name.startswith(OF_MOTION)
    } | figures
    settings: dict[str, Any] = {"motion": motion, "verification": verification, "figures": kept}
    if origin is not None:
        settings |= {"origin": origin.record, "synthetic": origin.synthetic, "licence": origin.licence}
    settings_after = dataclasses.replace(speaker.settings, **settings)
    card = with_motion(
        card,
        origin=settings_after.origin,
        facts=motion_facts(motion, speaker.condition.lookahead_frames),
        trainings=[training_of(task, getattr(request, task), net) for task, net in networks.items()],
        figures=kept,
        verification={name: value for name, value in verification.items() if name.startswith(MOTION_CHECKS)},
    )
    return put_motion(path, settings_after, motion_onnx, syncnet_onnx, card)
