"""Knowledge distillation of a speaker's motion into a small causal student, and the student's bundle.

An imported speaker's motion (a large speech encoder, Audio2Motion, PostNet) needs a GPU and is not causal.
It is run offline over a folder of speech; a log-mel Audio2Motion of May's sizes, with at most 160 ms
of look-ahead, is trained to give the same landmarks, directly in the speaker's domain, without a PostNet.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cuda_kernels.arrays import F32
from cuda_kernels.errors import InputError
from models.audio2motion import Audio2Motion
from models.features import LogMel
from models.landmark_subspace import LandmarkSubspace
from models.speaker import Speaker, load_speaker
from models.speaker_settings import MotionSettings, OriginRecord
from models.time_base import FRAME_MS, FRAME_RATE_HZ, FRAME_S
from models.torch_device import device_named
from training.audio2motion import LOOP, MATMUL_PRECISION, Audio2MotionSettings, load_audio2motion, make_task
from training.cli import write_settings
from training.loop import checkpoints, fit

from ..bundle.assembly import FILES, training_of
from ..bundle.model_card import Card, model_card
from ..bundle.motion import MotionExportReport, export_motion
from ..bundle.writer import (
    BundleParts,
    folder_beside,
    parts_of,
    read_card,
    require_folder,
    require_free,
    write_bundle,
)
from ..onnx.graphs import strip_metadata, to_float16_weights
from ..requests import DistillationRequest
from .agreement import Agreement, measure_agreement
from .teacher_corpus import Teacher, TeacherCorpus, make_teacher_corpus

log = logging.getLogger(__name__)


UNEXPLAINED = 1e-4  # share of the teacher's variance that the student's face may leave out
LITTLE_SPEECH_MINUTES = 10.0
OF_THE_MOTION = (
    "motion",
    "features",
    "audio2motion",
    "postnet",
    "hubert",
    "recorded_features",
    "recorded_landmarks",
    "recorded_chain",
)
"""Prefixes of the checks that concern only the teacher's motion."""


class DistillationError(InputError):
    """A student that cannot be trained, or whose motion lags its teacher's."""


class StoppedError(RuntimeError):
    """Training was stopped with a checkpoint, by a signal or at --max-minutes: the same command goes on."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DistillationReport:
    """The student's bundle, its agreement with the teacher and its corpus."""

    speaker: Speaker  # of the student's bundle
    agreement: Agreement
    corpus: TeacherCorpus
    step: int

    def lines(self) -> list[str]:
        """Returns the report's lines."""
        found = self.agreement
        rows = [
            (
                "speech, trained on",
                f"{self.corpus.train_minutes:.1f} min, {len(self.corpus.train)} recordings",
            ),
            (
                "speech, held out",
                f"{self.corpus.held_out_minutes:.1f} min, {len(self.corpus.held_out)} recordings",
            ),
            ("files left out", f"{len(self.corpus.left_out)}"),
            ("training steps", f"{self.step}"),
            ("inner-lip aperture, Pearson r", f"{found.aperture_r:.3f}"),
            ("mouth width, Pearson r", f"{found.width_r:.3f}"),
            ("spread of the aperture, share of the teacher's", f"{found.open_share:.2f}"),
            ("landmarks, RMSE", f"{found.rmse_mm:.2f} mm"),
            ("  of the mouth", f"{found.mouth_rmse_mm:.2f} mm"),
            ("best lag", f"{found.best_lag_frames} frames"),
            ("look-ahead of the motion", f"{found.lookahead_ms} ms"),
            ("motion.onnx, one thread", f"{found.ms_per_frame:.2f} ms a frame"),
        ]
        width = max(len(name) for name, _ in rows)
        return [f"{name:{width}}  {value}" for name, value in rows]


def distil(request: DistillationRequest, *, teacher: Teacher | None = None) -> DistillationReport:
    """Returns the report of the student's bundle written to `request.out`.

    The work folder keeps the teacher's landmarks of each recording and the training's checkpoints; the same
    request resumes there after a stop.

    Args:
        request: The settings.
        teacher: Used in place of the bundle's own motion.

    Raises:
        ValueError: an input that is missing, broken or does not fit, or a student that is out of step with
            its teacher; no bundle is written.
        StoppedError: stopped before the last step.
        FloatingPointError: the training diverged.
    """
    speaker = load_speaker(request.bundle)
    require_free(request.out)
    require_folder(request.work_folder, "work")
    read_card(speaker.path)  # refused now rather than after the training
    device = device_named(request.device)
    mean_face = _mean_face(speaker.motion)
    corpus = make_teacher_corpus(
        request.speech,
        request.work_folder,
        (lambda: _offline_motion(speaker)) if teacher is None else (lambda: teacher),
        identity=" ".join(
            record.sha256
            for name, record in sorted(speaker.settings.files.items())
            if name in ("motion.onnx", "features.onnx")
        ),
        temperature=request.temperature,
        mean_face=mean_face,
    )
    log.info("speech: %.1f minutes to train on, %.1f held out", corpus.train_minutes, corpus.held_out_minutes)
    if corpus.train_minutes < LITTLE_SPEECH_MINUTES:
        log.warning("speech: %.1f minutes are little to learn from; 30 do", corpus.train_minutes)
    folder = request.work_folder / f"student-{request.lookahead_ms}ms"
    _require_same_speech(folder, corpus)
    step = _train(request, corpus, folder, device)
    student = load_audio2motion(folder)
    content, exported, verification = _export(student, corpus, request.out)
    motion = dataclasses.replace(
        speaker.motion,
        kind="pcm",
        features=None,
        window_samples=exported.window_samples,
        window_frames=exported.window_frames,
        lookahead_frames=exported.lookahead_frames,
    )
    agreement = measure_agreement(content, motion, corpus.held_out, mean_face)
    if agreement.best_lag_frames:
        raise DistillationError(
            f"student: best lag: expected 0 frames, got {agreement.best_lag_frames} (aperture r "
            f"{agreement.aperture_r:.2f}); raise --steps, give more speech or a longer --lookahead-ms"
        )
    own = {name: value for name, value in speaker.verification.items() if not name.startswith(OF_THE_MOTION)}
    parts = dataclasses.replace(
        parts_of(speaker),
        origin=_origin(speaker, corpus, step),
        motion=motion,
        motion_onnx=content,
        features_onnx=None,
        recorded_cases=None,  # they begin with features
        verification={**own, **verification},
        figures=_figures(speaker, agreement),
    )
    parts = dataclasses.replace(parts, model_card=_card(parts, folder, student))
    return DistillationReport(
        speaker=write_bundle(request.out, parts), agreement=agreement, corpus=corpus, step=step
    )


def _offline_motion(speaker: Speaker) -> Teacher:
    from .offline_motion import OfflineMotion  # opens networks of up to a gigabyte

    return OfflineMotion(speaker)


def _mean_face(motion: MotionSettings) -> F32:
    """Returns the mean face (68, 3) dm: the speaker's, else one of mouth corners only, to measure widths.

    A bundle imported from GeneFace has none. Apertures are then off by a constant, which no figure here sees.
    """
    if motion.mean_face is not None:
        return motion.mean_face
    face = np.zeros((68, 3), np.float32)
    face[48, 0], face[54, 0] = -0.25, 0.25
    return face


def _require_same_speech(folder: Path, corpus: TeacherCorpus) -> None:
    """Refuses a training that was begun with another teacher or other recordings."""
    file = folder / "settings.json"
    if not checkpoints(folder) or not file.is_file():
        return
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise DistillationError(
            f"{file}: expected the JSON object that training wrote, got something else; delete that folder "
            "to begin anew"
        )
    if content.get("speech") != corpus.digest:
        raise DistillationError(
            f"{folder}: expected the teacher and the recordings that its training began with, got others; "
            "give another --work, or delete that folder to begin anew"
        )


def _train(request: DistillationRequest, corpus: TeacherCorpus, folder: Path, device: torch.device) -> int:
    """Returns the step of the student in `folder`, trained to the last one."""
    settings = Audio2MotionSettings(
        steps=request.steps,
        batch=request.batch,
        lookahead_frames=request.lookahead_frames,
        phone_weight=0,  # recordings come without phones
    )
    loop = dataclasses.replace(
        LOOP, steps=request.steps, device=request.device, max_minutes=request.max_minutes
    )
    if device.type == "cuda":
        torch.set_float32_matmul_precision(MATMUL_PRECISION)
    torch.manual_seed(loop.seed)  # the network's first weights are part of the recipe
    task = make_task(corpus.folder, settings, device)
    folder.mkdir(parents=True, exist_ok=True)
    write_settings(
        folder / "settings.json",
        {
            "task": task.name,
            "data": corpus.folder,
            "settings": settings,
            "loop": loop,
            "speech": corpus.digest,
        },
    )
    outcome = fit(task, folder, loop)
    if outcome.reason != "finished":
        raise StoppedError(f"stopped at step {outcome.step} of {loop.steps}; the same command goes on")
    return outcome.step


def _export(
    student: Audio2Motion, corpus: TeacherCorpus, out: Path
) -> tuple[bytes, MotionExportReport, dict[str, float]]:
    """Returns motion.onnx, its export report, and its checks against torch."""
    subspace = LandmarkSubspace.fit(torch.from_numpy(corpus.train_landmarks()), unexplained=UNEXPLAINED)
    log.info("motion: the face moves in %d ways", len(subspace.basis))
    heard = corpus.held_out[0].pcm()
    with folder_beside(out) as folder:
        path = folder / "motion.onnx"
        report = export_motion(student, None, LogMel(), path=path, subspace=subspace, audio=heard)
        content = strip_metadata(path.read_bytes())
    width = report.window_samples
    heard = np.pad(heard, (0, max(0, width - len(heard))))
    starts = np.linspace(0, len(heard) - width, 32).astype(int)
    small = to_float16_weights(content, [{"pcm": heard[None, start : start + width]} for start in starts])
    found = {"motion_largest_error": report.largest_error, "motion_float16_change": small.rounding}
    return small.content, report, found


def _figures(speaker: Speaker, agreement: Agreement) -> dict[str, float]:
    """Returns the student's figures, and the teacher's under a prefix."""
    own = {
        f"teacher.{name}": value
        for name, value in speaker.figures.items()
        if not name.startswith(("teacher.", "student."))
    }
    return {**own, **agreement.figures()}


def _origin(speaker: Speaker, corpus: TeacherCorpus, step: int) -> OriginRecord:
    """Returns the speaker's record with how its motion was learnt."""
    features = speaker.motion.features
    teacher = "its own motion.onnx" if features is None else f"{features.name}, Audio2Motion and PostNet"
    learnt = (
        f"The motion is a student's: {step} steps of `geneface-export distil` on what {teacher} made of "
        f"{corpus.train_minutes:.1f} minutes of speech in {len(corpus.train)} recordings."
    )
    return dataclasses.replace(speaker.origin, recipe=f"{speaker.origin.recipe.rstrip('. ')}. {learnt}")


def _card(parts: BundleParts, folder: Path, student: Audio2Motion) -> str:
    """Returns the student's model card with its teacher's, which `parts` still hold, below it."""
    motion, size_px = parts.motion, parts.scene.image_size_px
    lookahead = motion.lookahead_frames + parts.condition.lookahead_frames
    lookahead_ms = FRAME_MS * lookahead
    absent = {
        "torso.safetensors": parts.scene.torso is None,
        "syncnet.onnx": parts.syncnet_onnx is None,
    }
    files = {name: what for name, what in FILES.items() if not absent.get(name, False)}
    card = model_card(
        Card(
            name=parts.name,
            synthetic=parts.synthetic,
            licence=parts.licence,
            origin=parts.origin,
            facts={
                "takes": "16 kHz mono sound",
                "gives": f"{size_px} x {size_px} pixels, {FRAME_RATE_HZ} frames a second",
                "look-ahead": f"{lookahead} frames ({lookahead_ms} ms) of sound after the frame it moves",
                "memory": f"{motion.window_frames} frames ({motion.window_frames * FRAME_S:.2f} s) of sound",
            },
            trainings=[training_of("audio2motion", folder, student)],
            figures=parts.figures,
            verification=parts.verification,
            files={
                **files,
                "motion.onnx": "sound to landmarks in one graph: log-mel, Audio2Motion, projection",
            },
        )
    )
    return (
        f"{card}\n## The teacher\nThe card of the bundle that the motion was learnt from and all else is "
        f"taken from.\n\n{re.sub(r'^#', '###', parts.model_card, flags=re.MULTILINE)}"
    )
