"""Knowledge distillation of a bundle's wide head into a narrow one, for CPUs and small GPUs.

`prepare` makes lessons of the bundle and recordings of speech, `training.head_student` trains the narrow
head on them alone, and `finish` measures both heads and writes the bundle. The training may run on another
machine: copy the work folder there and back.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cuda_kernels.arrays import F32
from cuda_kernels.cpu_raymarcher import CpuRaymarcher
from cuda_kernels.scene import HeadField, Scene
from models.bundle_files import BundleError
from models.landmark_filter import MOUTH, LandmarkFilter
from models.speaker import Speaker, load_speaker
from models.speaker_settings import LANDMARKS, HeadSettings
from models.time_base import FRAME_RATE_HZ
from models.torch_device import device_named
from preparation.media import read_pcm
from training.head_student import (
    HELD_OUT,
    LESSONS_FILE,
    Lessons,
    StudentTask,
    StudentTrainingSettings,
    head_of,
    load_lessons,
    require_wider,
    save_lessons,
    train,
)
from training.loop import LoopSettings

from ..bundle.head import measure_faithfulness, psnr_db, require_faithful, stored
from ..bundle.model_card import with_figures
from ..bundle.writer import head_tensors, parts_of, read_card, require_folder, require_free, write_bundle
from ..onnx.graphs import open_graph
from ..recorded_cases import PICTURES, read_cases
from ..requests import SlimRequest
from .offline_motion import OfflineMotion

log = logging.getLogger(__name__)

Motion = Callable[[F32], F32]
"""(n,) samples at 16 kHz to (T, 68, 3) landmarks in the speaker's domain."""

FRAMES_BETWEEN_BLINKS = 70
MEASURED_FRAMES = 16
TIMED_FRAMES = 12
TIMED_SIZES_PX = (192, 256)
MIN_FRAMES = 2 * FRAME_RATE_HZ  # of speech
CARD_HEAD = "## Slim head"


@dataclass(frozen=True, kw_only=True)
class SlimReport:
    """The slim bundle and its figures."""

    speaker: Speaker  # the slim bundle, read back
    figures: dict[str, float]  # those under `slim.` in the bundle
    rows: tuple[tuple[str, str], ...]

    def table(self) -> str:
        """Returns the rows as aligned lines."""
        width = max(len(name) for name, _ in self.rows)
        return "\n".join(f"{name:{width}}  {value}" for name, value in self.rows)


def offline_motion(speaker: Speaker) -> Motion:
    """Returns the bundle's own motion over whole recordings."""
    return OfflineMotion(speaker).landmarks


def slim(
    request: SlimRequest, *, open_motion: Callable[[Speaker], Motion] = offline_motion
) -> SlimReport | None:
    """Returns the report once the slim bundle is written; None if training was stopped before its end.

    The same call resumes it.

    Raises:
        ValueError: an input that is missing, broken or does not fit; no bundle is written.
    """
    device_named(request.device)  # before the motion has run for minutes
    speaker = prepare(request, open_motion=open_motion)
    frames, pixels = _rays(request)
    settings = StudentTrainingSettings(
        hidden=request.hidden,
        frames_per_step=frames,
        pixels_per_frame=pixels,
        anneal_steps=request.steps,
        # Plain torch takes seconds a picture on a CPU; the raymarcher measures at the end.
        validation_px=min(128 if request.device == "cpu" else 256, speaker.image_size_px),
        validation_frames=4 if request.device == "cpu" else 8,
        compile=request.compile,
    )
    sixth = max(1, request.steps // 6)
    loop = LoopSettings(
        steps=request.steps,
        validate_every=sixth,
        checkpoint_every=min(250, sixth),
        device=request.device,
    )
    task, outcome = train(request.work_folder, settings, loop)
    if outcome.reason != "finished":
        return None
    return finish(request, speaker, task)


def _rays(request: SlimRequest) -> tuple[int, int]:
    """Returns how many poses share a step and how many rays each has."""
    rays = request.rays or (8192 if request.device == "cpu" else 65536)
    frames = 32 if rays >= 32768 else 16
    return frames, rays // frames


# --- before training ----------------------------------------------------------------------------------


def prepare(request: SlimRequest, *, open_motion: Callable[[Speaker], Motion] = offline_motion) -> Speaker:
    """Returns the speaker, once the lessons are in the work folder; those there are taken if they fit.

    Raises:
        ValueError: the bundle or a recording cannot be read, its head is not wider than asked for, or the
            work folder holds other lessons.
    """
    speaker = load_speaker(request.bundle)
    require_free(request.out)
    require_folder(request.work_folder, "work")
    require_wider(speaker.settings.head, request.hidden)
    read_card(speaker.path)  # refused now rather than after the training
    source = _source(speaker, request)
    file = request.work_folder / LESSONS_FILE
    if file.is_file():
        found = load_lessons(file)
        if found.source != source:
            raise BundleError(
                str(file),
                "source",
                "lessons of this bundle and these recordings",
                "others",
                "give another --work or delete this one",
            )
        return speaker
    motion = open_motion(speaker)
    recordings = [np.multiply(read_pcm(path), 1 / 32768, dtype=np.float32) for path in request.speech]
    tracks = [with_blinks(speaker, still_landmarks(speaker, motion(pcm))) for pcm in recordings]
    frames = sum(map(len, tracks))
    if frames < MIN_FRAMES:
        raise BundleError(
            ", ".join(map(str, request.speech)),
            "length",
            f"at least {MIN_FRAMES / speaker.fps:g} s of speech",
            f"{frames / speaker.fps:g} s",
            "give longer recordings",
        )
    log.info("lessons: %.1f s of speech, %d poses", frames / speaker.fps, len(speaker.poses))
    scene = speaker.scene
    lessons = Lessons(
        settings=speaker.settings.head,
        tensors=head_tensors(scene.head),
        camera=scene.camera,
        image_size_px=scene.image_size_px,
        poses=speaker.poses,
        conditions=np.concatenate([conditions(speaker, track) for track in tracks]),
        mouth=mouth_reach(speaker),
        source=source,
    )
    head_of(lessons)  # refused now rather than on another machine
    request.work_folder.mkdir(parents=True, exist_ok=True)
    save_lessons(file, lessons)
    return speaker


def _source(speaker: Speaker, request: SlimRequest) -> str:
    """Returns the lessons' identity: hashes of all that they are made from."""
    names = ("head.safetensors", "poses.safetensors", "condition.onnx", "motion.onnx")
    hashes = [speaker.settings.files[name].sha256 for name in names]
    for path in request.speech:
        if not path.is_file():
            raise BundleError(str(path), "speech", "a recording", "no such file", "check --speech")
        with path.open("rb") as stream:
            hashes.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def still_landmarks(speaker: Speaker, landmarks: F32) -> F32:
    """Returns (T, 68, 3) landmarks as the live path has them, but for blinks: clamped and smoothed."""
    motion = speaker.motion
    settle = LandmarkFilter(
        mean=motion.landmark_mean, std=motion.landmark_std, clamp_std=motion.clamp_std, ema=motion.ema
    )
    track: F32 = np.array([settle.step(row) for row in landmarks], np.float32).reshape(-1, LANDMARKS, 3)
    return track


def with_blinks(speaker: Speaker, track: F32) -> F32:
    """Returns (T, 68, 3) normalised landmarks with blinks at regular moments, as the live path adds them."""
    blink, track = speaker.blinks / speaker.motion.landmark_std, track.copy()
    for start in range(FRAMES_BETWEEN_BLINKS // 2, len(track) - len(blink), FRAMES_BETWEEN_BLINKS):
        track[start : start + len(blink)] += blink
    return track


def conditions(speaker: Speaker, track: F32) -> F32:
    """Returns what condition.onnx makes (T, C) of the windows of (T, 68, 3); edge frames are repeated."""
    session = open_graph(speaker.condition_onnx)
    flat = track.reshape(len(track), 3 * LANDMARKS)
    rows = window_rows(speaker, len(track))
    driven: F32 = np.stack([session.run(None, {"window": flat[window]})[0] for window in rows])
    return driven


def window_rows(speaker: Speaker, frames: int) -> npt.NDArray[np.integer]:
    """Returns the frames (T, W) of each frame's window; edge frames are repeated."""
    width, ahead = speaker.condition.window_frames, speaker.condition.lookahead_frames
    offsets = np.arange(width) - (width - 1 - ahead)
    return np.asarray(np.clip(np.arange(frames)[:, None] + offsets, 0, frames - 1))


def mouth_reach(speaker: Speaker) -> F32:
    """Returns (80, 3) corners in head space of the lips' reach; (0, 3) without a mean face."""
    motion = speaker.motion
    if motion.mean_face is None:
        return np.zeros((0, 3), np.float32)
    centre = (motion.mean_face + motion.landmark_mean / 10)[MOUTH]  # (20, 3) dm
    reach = motion.clamp_std * motion.landmark_std[MOUTH] / 10
    signs = np.array([[x, y, 0] for x in (-1, 1) for y in (-1, 1)], np.float32)  # depth moves little
    return (centre[:, None] + signs * reach[:, None]).reshape(-1, 3).astype(np.float32)


# --- after training -----------------------------------------------------------------------------------


def finish(request: SlimRequest, speaker: Speaker, task: StudentTask) -> SlimReport:
    """Returns the report, once the slim head is measured and its bundle written.

    Raises:
        SceneExportError: the slim head is not drawn as torch draws it.
        BundleError: the bundle cannot be written; nothing is left behind.
    """
    with task.optimizer.average.in_place():
        narrow = task.student.field()
    wide_scene = speaker.scene
    trained = dataclasses.replace(wide_scene, head=narrow)
    kept = stored(trained)
    lessons = load_lessons(request.work_folder / LESSONS_FILE)
    poses, driven = _held_out(speaker.poses, lessons.conditions)
    faithfulness = measure_faithfulness(
        trained,
        kept,
        poses=poses[:: MEASURED_FRAMES // 2],
        conditions=list(driven[:: MEASURED_FRAMES // 2]),
        size_px=min(256, speaker.image_size_px),
    )
    require_faithful(faithfulness)
    compared = compare(wide_scene, kept, poses, driven, lessons.mouth)
    times = {
        size_px: draw_times(wide_scene, kept, poses, driven, size_px=size_px) for size_px in TIMED_SIZES_PX
    }
    figures = {"hidden": float(request.hidden), "steps": float(request.steps), **compared}
    for size_px, (wide_ms, slim_ms) in times.items():
        figures |= {
            f"wide_{size_px}_ms": wide_ms,
            f"slim_{size_px}_ms": slim_ms,
            f"speedup_{size_px}": wide_ms / slim_ms,
        }
    figures = {f"slim.{name}": value for name, value in figures.items()}
    written = _write(request.out, speaker, kept, figures, dataclasses.asdict(faithfulness))
    return SlimReport(speaker=written, figures=figures, rows=tuple(_rows(speaker, figures)))


def _held_out(poses: F32, driven: F32) -> tuple[F32, F32]:
    """Returns `MEASURED_FRAMES` poses and conditions that the training never saw."""
    parts = (np.arange(MEASURED_FRAMES) + 0.5) / MEASURED_FRAMES
    chosen = []
    for rows in (poses, driven):
        first = max(1, int(len(rows) * (1 - HELD_OUT)))
        chosen.append(rows[first + (parts * (len(rows) - first)).astype(int)])
    return chosen[0], chosen[1]


def compare(wide: Scene, narrow: Scene, poses: F32, driven: F32, mouth: F32) -> dict[str, float]:
    """Returns the PSNR of the narrow scene's full-size pictures against the wide one's, at the given poses.

    PSNR over whole pictures, over what the wide head covers for the most part, and over the mouth's box;
    and the largest error of any channel of any pixel, of 255.
    """
    side = wide.image_size_px
    squares: dict[str, list[np.floating]] = {"whole": [], "head": [], "mouth": []}
    largest = 0
    with _raymarcher(wide) as one, _raymarcher(narrow) as other, _silhouettes(wide) as silhouette:
        for c2w, condition in zip(poses, driven, strict=True):
            truth, drawn = (
                r.render(c2w=c2w, condition=condition, size_px=side).astype(np.int16) for r in (one, other)
            )
            error = np.square((drawn - truth) / np.float32(255)).mean(-1)  # (S, S)
            squares["whole"].append(error.mean())
            covered = silhouette(c2w, condition)
            if covered.any():
                squares["head"].append(error[covered].mean())
            x0, y0, x1, y1 = _box_of(mouth, c2w, wide)
            if x0 < x1 and y0 < y1:
                squares["mouth"].append(error[y0:y1, x0:x1].mean())
            largest = max(largest, int(np.abs(drawn - truth).max()))
    figures = {f"psnr_{name}_db": psnr_db(found) for name, found in squares.items() if found}
    return {**figures, "largest_error_of_255": float(largest)}


@contextmanager
def _raymarcher(scene: Scene) -> Iterator[CpuRaymarcher]:
    raymarcher = CpuRaymarcher(scene)
    try:
        yield raymarcher
    finally:
        raymarcher.close()


@contextmanager
def _silhouettes(scene: Scene) -> Iterator[Callable[[F32, F32], npt.NDArray[np.bool_]]]:
    """Gives a function from pose and condition to (S, S) bool: the head's opacity is a half or more."""
    plain = [
        dataclasses.replace(scene, torso=None, background=np.full_like(scene.background, value))
        for value in (0, 255)
    ]
    with _raymarcher(plain[0]) as black, _raymarcher(plain[1]) as white:

        def silhouette(c2w: F32, condition: F32) -> npt.NDArray[np.bool_]:
            dark, light = (
                r.render(c2w=c2w, condition=condition, size_px=scene.image_size_px)[..., 0].astype(np.int16)
                for r in (black, white)
            )
            covered: npt.NDArray[np.bool_] = light - dark < 128
            return covered

        yield silhouette


def _box_of(points: F32, c2w: F32, scene: Scene) -> tuple[int, int, int, int]:
    """Returns x0 y0 x1 y1 in pixels of the picture around (m, 3) points in head space; 0 0 0 0 of none."""
    if not len(points):
        return 0, 0, 0, 0
    camera, side = scene.camera, scene.image_size_px
    seen = (points - c2w[:3, 3]) @ c2w[:3, :3]
    x = camera.cx_px + camera.focal_px * seen[:, 0] / -seen[:, 2]
    y = camera.cy_px + camera.focal_px * seen[:, 1] / seen[:, 2]
    x0, y0, x1, y1 = np.clip([x.min(), y.min(), x.max(), y.max()], 0, side).astype(int).tolist()
    return x0, y0, x1, y1


def draw_times(wide: Scene, narrow: Scene, poses: F32, driven: F32, *, size_px: int) -> tuple[float, float]:
    """Returns the median ms a frame of the wide and of the narrow scene, drawn in turn by two threads."""
    taken: tuple[list[float], list[float]] = ([], [])
    with _raymarcher(wide) as one, _raymarcher(narrow) as other:
        for i in range(TIMED_FRAMES + 1):  # the first compiles and warms up
            for raymarcher, times in zip((one, other), taken, strict=True):
                start_s = time.perf_counter()
                raymarcher.render(
                    c2w=poses[i % len(poses)], condition=driven[i % len(driven)], size_px=size_px
                )
                times.append(1000 * (time.perf_counter() - start_s))
    return float(np.median(taken[0][1:])), float(np.median(taken[1][1:]))


def _rows(speaker: Speaker, figures: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Yields the lines of the report's table."""
    settings = speaker.settings.head
    width = max(settings.ambient_net[1], settings.sigma_net[1], settings.color_net[1])
    yield "head's width", f"{width} to {figures['slim.hidden']:.0f}"
    for region in ("whole", "head", "mouth"):
        value = figures.get(f"slim.psnr_{region}_db")
        if value is not None:
            yield f"PSNR against the wide head, {region}", f"{value:.2f} dB"
    yield "largest error", f"{figures['slim.largest_error_of_255']:.0f} of 255"
    for size_px in TIMED_SIZES_PX:
        wide_ms, slim_ms = figures[f"slim.wide_{size_px}_ms"], figures[f"slim.slim_{size_px}_ms"]
        yield (
            f"CPU, {size_px} px",
            f"{wide_ms:.1f} to {slim_ms:.1f} ms a frame, {wide_ms / slim_ms:.2f} times as fast",
        )


def _write(
    out: Path, speaker: Speaker, scene: Scene, slim_figures: dict[str, float], checks: dict[str, float]
) -> Speaker:
    """Returns the slim bundle read back: the wide one's parts but for head, figures, checks and card."""
    # The wide head's figures do not hold for the slim one.
    before = {
        name if name.startswith("wide.") else f"wide.{name}": value
        for name, value in speaker.figures.items()
        if not name.startswith("slim.")
    }
    figures = {**slim_figures, **before}
    parts = parts_of(speaker)
    settings = speaker.settings
    cases = read_cases(speaker)  # the pictures among them are the wide head's
    parts = dataclasses.replace(
        parts,
        scene=scene,
        recorded_cases=None if cases is None else dataclasses.replace(cases, pictures=()).content(),
        model_card=with_figures(_with_note(parts.model_card, settings.head, scene.head), figures),
        verification={
            **{name: value for name, value in speaker.verification.items() if name != PICTURES},
            **checks,
        },
        figures=figures,
    )
    return write_bundle(out, parts)


def _with_note(card: str, wide: HeadSettings, narrow: HeadField) -> str:
    """Returns the card with a section on the slim head, an older one replaced."""
    before, _, older = card.partition(f"\n{CARD_HEAD}\n")
    _, next_head, after = older.partition("\n## ")
    widths = max(wide.sigma_net[1:-1]), narrow.sigma_net[0].shape[0]
    return (
        f"{before.rstrip()}\n{next_head}{after}".rstrip()
        + f"\n\n{CARD_HEAD}\n`geneface-export slim` taught the {widths[0]} wide head's pictures to one of "
        f"{widths[1]}, over this speaker's own path and the motion that recordings of speech give. Figures "
        "under `slim.` compare the two, on poses and conditions that were held out; those under `wide.` were "
        "measured before, with the wide head.\n"
    )
