"""Training on a GPU: `python -m benchmarks.gpu_training [--data DIR] [--minutes M] [--json F]`.

Steps of a head and of a torso of GeneFace's sizes (16 levels, networks 128 and 64 wide; the torso's second
one too, where GeneFace's is 32), 65,536 rays each, in bfloat16: by plain torch and by the CUDA kernels, each
eager and compiled. All heads resume from one trained briefly before, so that all have the same
occupancy. `median` is of steps after each of which the GPU is synchronised; `in a row` is the mean of as many
steps without, as in training. Both include the density grid's update, one step in 16, but not the visibility
update, one in 500. Below them the parts of a step, kernels against twin.

With `--minutes` a head and then a torso over it are trained for so long together, and their PSNR on
held-out frames is printed over time. Without `--data` the speaker is a synthetic ball with a mouth.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cuda_kernels import torch_encodings, torch_kernels, torch_launcher
from cuda_kernels.arrays import F32
from cuda_kernels.torch_reference import step_length
from models.encodings import GridConfig
from preparation.silhouettes import field_box, torso_plate
from preparation.speaker_set import HEAD, NECK, training_frames
from training.curve import curve_table, write_curve
from training.field_optimizer import Kernels
from training.fields import rays_of
from training.head import HeadTask, HeadTrainingSettings
from training.loop import CHECKPOINT_VERSION, LoopSettings, fit, read_validations, save_checkpoint
from training.ray_sampler import sample_pixels
from training.speaker_data import MOUTH, STD_FLOOR, SpeakerData, load_speaker_data, window_rows
from training.torso import TorsoTask, TorsoTrainingSettings

from .json_file import write_json

WARM_STEPS, WARM_CALLS, CALLS = 12, 10, 50
FIRST_STEP = 640  # past the visibility update, at a step that sets the sample capacity
POINTS, RAYS = 1 << 19, 1 << 16
LOOKAHEAD_FRAMES, WINDOW_FRAMES = 2, 5

HEAD_SETTINGS = HeadTrainingSettings(
    window_frames=WINDOW_FRAMES,
    lookahead_frames=LOOKAHEAD_FRAMES,
    condition_size=64,
    hidden=128,
    geometry_features=128,
    levels=16,
    position_log2_rows=16,
    position_resolution=2048,
    ambient_log2_rows=16,
    ambient_resolution=2048,
    precision="bf16",
)
TORSO_SETTINGS = TorsoTrainingSettings(
    hidden=64,
    levels=16,
    log2_rows=16,
    resolution=2048,
    position_octaves=10,
    pose_octaves=4,
    precision="bf16",
)
VARIANTS: tuple[tuple[Kernels, bool], ...] = (
    ("torch", False),
    ("torch", True),
    ("cuda", False),
    ("cuda", True),
)


# --- a synthetic speaker -----------------------------------------------------------------------------


def ball_landmarks(opening: F32) -> F32:
    """(T, 68, 3) dm: points of a face on a ball of 1 dm whose mouth opens with (T,) 0 to 1."""

    def ring(count: int, x: float, y: float, across: float, up: float) -> F32:
        angle = np.arange(count) * 2 * np.pi / count
        return np.stack((x + across * np.cos(angle), y + up * np.sin(angle)), -1).astype(np.float32)

    jaw = np.linspace(np.pi, 2 * np.pi, 17)
    face = np.concatenate(
        (
            np.stack((0.8 * np.cos(jaw), 0.8 * np.sin(jaw)), -1),
            np.stack((np.linspace(-0.6, 0.6, 10), np.full(10, 0.5)), -1),
            np.stack((np.linspace(-0.1, 0.1, 9), np.linspace(0.2, -0.1, 9)), -1),
            ring(6, -0.35, 0.3, 0.12, 0.06),
            ring(6, 0.35, 0.3, 0.12, 0.06),
            ring(12, 0.0, -0.4, 0.25, 0.1),
            ring(8, 0.0, -0.4, 0.2, 0.05),
        )
    ).astype(np.float32)
    points = np.repeat(face[None], len(opening), 0)
    points[:, MOUTH, 1] = -0.4 + (points[:, MOUTH, 1] + 0.4) * (0.5 + 1.5 * opening[:, None])
    depth = np.sqrt(np.maximum(0.1, 1 - np.square(points).sum(-1)))
    return np.concatenate((points, depth[..., None]), -1).astype(np.float32)


def ball_poses(count: int, distance_dm: float = 13.0) -> F32:
    """(T, 4, 4) camera to head space of a head that turns and nods."""
    phase = 2 * np.pi * np.arange(count) / 200
    poses = np.tile(np.eye(4), (count, 1, 1))
    for pose, yaw, pitch in zip(poses, 0.2 * np.sin(phase), 0.1 * np.cos(0.7 * phase), strict=True):
        turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
        nod = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
        pose[:3, :3] = turn @ nod
        pose[:3, 3] = pose[:3, :3] @ (0, 0, distance_dm)
    return poses.astype(np.float32)


def draw_balls(c2w: Tensor, opening: Tensor, background: Tensor, focal_px: float) -> tuple[Tensor, Tensor]:
    """((F, S, S, 3) uint8, (F, S, S) uint8 labels) of the ball before its torso, of (F, 4, 4) cameras."""
    size_px = background.shape[0]
    at = torch.arange(size_px, device=c2w.device) + 0.5 - size_px / 2
    rows, columns = torch.meshgrid(at, at, indexing="ij")
    local = torch.stack((columns / focal_px, -rows / focal_px, -torch.ones_like(rows)), -1)
    local = local / local.norm(dim=-1, keepdim=True)
    rays = (c2w[:, None, None, :3, :3] * local[..., None, :]).sum(-1)  # (F, S, S, 3)
    origin = c2w[:, None, None, :3, 3]
    along = -(rays * origin).sum(-1)
    miss = origin.square().sum(-1) - along.square()
    point = origin + rays * (along - (1 - miss).clamp(min=0).sqrt())[..., None]
    pattern = 0.1 * torch.sin(40 * point[..., :1]) * torch.sin(40 * point[..., 1:2])
    skin = torch.cat((0.5 + 0.4 * point[..., :2], torch.full_like(point[..., :1], 0.3)), -1) + pattern
    mouth = (point[..., :2] - point.new_tensor((0.0, -0.4))).abs()
    inside = (mouth[..., 0] < 0.22) & (mouth[..., 1] < 0.02 + 0.15 * opening[:, None, None])
    skin = torch.where((inside & (point[..., 2] > 0))[..., None], 0.05, skin).clamp(0, 1)
    head = miss < 1
    torso = (rows > 0.22 * size_px) & (columns.abs() < 0.3 * size_px)
    cloth = torch.stack((0.15 + 0 * rows, 0.25 + 0.1 * torch.sin(rows), 0.6 + 0 * rows), -1)
    behind = torch.where(torso[..., None], cloth, background.float() / 255)
    picture = (torch.where(head[..., None], skin, behind) * 255).round().to(torch.uint8)
    labels = torch.where(head, HEAD, torch.where(torso, NECK, 0).expand(head.shape)).to(torch.uint8)
    return picture, labels


def ball_speaker(frames: int, size_px: int, device: torch.device) -> SpeakerData:
    """A speaker's data without a video: a textured ball that turns, opens its mouth and has a torso."""
    focal_px = 2004.8 * size_px / 512
    opening = (0.5 + 0.5 * np.sin(0.9 * np.arange(frames))).astype(np.float32)
    landmarks, c2w = ball_landmarks(opening), ball_poses(frames)
    ramp = torch.linspace(120, 200, size_px, device=device)
    background = ramp[None, :, None].expand(size_px, size_px, 3).to(torch.uint8).contiguous()
    cameras = torch.from_numpy(c2w).to(device)
    drawn = [
        draw_balls(pose, amount, background, focal_px)
        for pose, amount in zip(
            torch.split(cameras, 16), torch.split(torch.from_numpy(opening).to(device), 16), strict=True
        )
    ]
    pictures, labels = torch.cat([part[0] for part in drawn]), torch.cat([part[1] for part in drawn])
    seen = np.einsum("fpi,fij->fpj", landmarks - c2w[:, None, :3, 3], c2w[:, :3, :3])
    points = np.stack((seen[..., 0], -seen[..., 1]), -1) / -seen[..., 2:] * focal_px + size_px / 2
    face = landmarks.mean(0)
    offsets = 10 * (landmarks - face)
    mean, std = offsets.mean(0), np.maximum(offsets.std(0), STD_FLOOR)
    normalized = ((offsets - mean) / std).reshape(frames, -1).astype(np.float32)
    index, train = np.arange(frames), training_frames(frames)
    windows = normalized[window_rows(index, frames, WINDOW_FRAMES, LOOKAHEAD_FRAMES)]
    plate, plate_alpha = torso_plate(pictures[:train], labels[:train], background)
    return SpeakerData(
        pictures=pictures,
        labels=labels,
        landmarks_normalized=torch.from_numpy(windows).to(device),
        landmarks_2d=torch.from_numpy(points.astype(np.float32)).to(device),
        c2w=cameras,
        background=background,
        plate=plate,
        plate_alpha=plate_alpha,
        train_frames=train,
        frame_index=index,
        mean_face=face,
        landmark_mean=mean.astype(np.float32),
        landmark_std=std.astype(np.float32),
        box=field_box(
            labels[:train],
            landmarks[:train],
            c2w[:train],
            focal_px=focal_px,
            cx_px=size_px / 2,
            cy_px=size_px / 2,
        ),
    )


# --- steps --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Step times of one variant, or why it failed."""

    task: str
    kernels: str
    compiled: bool
    median_ms: float | None = None  # synchronised after each step
    in_a_row_ms: float | None = None  # mean of steps without synchronisation
    first_s: float | None = None  # the first steps together, compilation included
    memory_gib: float | None = None  # torch's peak
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class PartTimes:
    """Times of a part of a step by the twin and by the kernels."""

    name: str
    twin_ms: float | None = None
    kernels_ms: float | None = None
    failure: str = ""


def wait(device: torch.device) -> None:
    """Synchronises the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory(device: torch.device) -> None:
    """Frees what an earlier variant compiled and allocated."""
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def reason(error: Exception) -> str:
    """Returns an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def step_times(
    make: Callable[[], HeadTask | TorsoTask], device: torch.device, steps: int
) -> dict[str, float | None]:
    """Returns the figures of `StepTimes` for a new task."""
    task = make()
    counted = itertools.count(FIRST_STEP)
    started = time.perf_counter()
    for _ in range(WARM_STEPS):
        task.training_step(next(counted))
    wait(device)
    first_s = time.perf_counter() - started
    times = []
    for _ in range(steps):
        started = time.perf_counter()
        task.training_step(next(counted))
        wait(device)
        times.append((time.perf_counter() - started) * 1e3)
    started = time.perf_counter()
    for _ in range(steps):
        task.training_step(next(counted))
    wait(device)
    in_a_row_ms = (time.perf_counter() - started) * 1e3 / steps
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    return {
        "median_ms": statistics.median(times),
        "in_a_row_ms": in_a_row_ms,
        "first_s": first_s,
        "memory_gib": memory,
    }


def measure_steps(
    data: SpeakerData,
    head: HeadTrainingSettings,
    torso: TorsoTrainingSettings,
    start: Path,
    device: torch.device,
    *,
    steps: int,
    variants: Sequence[tuple[Kernels, bool]] = VARIANTS,
) -> list[StepTimes]:
    """Returns the times of all variants of head and torso; a failure is recorded, the rest measured."""
    found = []
    for name in ("head", "torso"):
        for kernels, compiled in variants:

            def make(
                name: str = name, kernels: Kernels = kernels, compiled: bool = compiled
            ) -> HeadTask | TorsoTask:
                torch.manual_seed(0)
                if name == "head":
                    of_head = dataclasses.replace(head, start=start, kernels=kernels, compile=compiled)
                    return HeadTask(data, of_head, device)
                of_torso = dataclasses.replace(torso, head=start, kernels=kernels, compile=compiled)
                return TorsoTask(data, of_torso, device)

            free_memory(device)
            about = {"task": name, "kernels": kernels, "compiled": compiled}
            try:
                times = StepTimes(**about, **step_times(make, device, steps))  # type: ignore[arg-type]
            except Exception as error:  # noqa: BLE001 -- a variant's failure is a line of the table
                times = StepTimes(**about, failure=reason(error))  # type: ignore[arg-type]
            print(step_line(times), file=sys.stderr, flush=True)
            found.append(times)
    return found


def prepare_head(
    data: SpeakerData, settings: HeadTrainingSettings, device: torch.device, *, steps: int, path: Path
) -> HeadTask:
    """Returns a head trained for `steps`, also written to `path`."""
    torch.manual_seed(0)
    task = HeadTask(data, dataclasses.replace(settings, warmup_steps=max(1, steps // 4)), device)
    for step in range(steps):
        task.training_step(step)
    task._find_visible_cells()
    task._update_occupancy(apply=True)
    state = task.state_dict()
    save_checkpoint(
        path, {"version": CHECKPOINT_VERSION, "task": "head", "step": steps, "state": state, "rng": {}}
    )
    return task


# --- parts --------------------------------------------------------------------------------------------


def call_ms(call: Callable[[], object], device: torch.device, *, calls: int = CALLS) -> float:
    """Returns the median time of a call, synchronised after each."""
    for _ in range(WARM_CALLS):
        call()
    wait(device)
    times = []
    for _ in range(calls):
        started = time.perf_counter()
        call()
        wait(device)
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


def points_on_rays(dimensions: int, count: int, device: torch.device) -> Tensor:
    """Returns (count, D) in [-1, 1]: eight in a row, a step apart, on each of count / 8 rays."""
    random = torch.Generator(device).manual_seed(3)
    start = 1.6 * torch.rand(count // 8, 1, dimensions, device=device, generator=random) - 0.8
    along = torch.zeros(8, dimensions, device=device)
    along[:, -1] = torch.arange(8, device=device) * step_length(128)
    return (start + along).reshape(-1, dimensions).clamp(-1, 1)


def part_calls(
    task: HeadTask, device: torch.device, *, points: int, rays: int
) -> dict[str, Callable[[bool], Callable[[], object]]]:
    """Returns, by part, a function from whether the kernels are used to the call to time."""

    def encode(dimensions: int, backward: bool) -> Callable[[bool], Callable[[], object]]:
        layout = GridConfig().layout(dimensions)
        x = points_on_rays(dimensions, points, device).requires_grad_(backward and dimensions == 2)
        table = torch.rand(layout.offsets[-1], 2, device=device, requires_grad=backward)

        def of(kernels: bool) -> Callable[[], object]:
            encoder = torch_kernels.grid_encode if kernels else torch_encodings.grid_encode

            def call() -> None:
                table.grad = x.grad = None
                encoded = encoder(x, table, layout)
                if backward:
                    encoded.sum().backward()  # type: ignore[no-untyped-call]

            return call

        return of

    pixels = sample_pixels(
        task.data,
        task.box,
        frames=task.settings.frames_per_step,
        pixels=max(1, rays // task.settings.frames_per_step),
        shares=task.shares,
    )
    rays_o, rays_d, _ = rays_of(pixels, task.poses, task.camera)
    head, capacity = task.head, 8 * len(rays_o)

    def march(kernels: bool) -> Callable[[], object]:
        def call() -> object:
            head.use_kernels(kernels)
            return head.march(rays_o, rays_d, capacity=capacity)

        return call

    def composite(kernels: bool) -> Callable[[], object]:
        head.use_kernels(kernels)
        marched = head.march(rays_o, rays_d, capacity=capacity)
        values = 10 * torch.rand(capacity, 5, device=device)
        values.requires_grad_(True)

        def call() -> None:
            head.use_kernels(kernels)
            values.grad = None
            drawn = head.composite(values, marched)
            total = drawn.image.sum() + drawn.weights_sum.sum() + drawn.spread.sum() + drawn.ambient.sum()
            total.backward()  # type: ignore[no-untyped-call]

        return call

    return {
        f"position grid, {points} points": encode(3, False),
        "  with its gradient": encode(3, True),
        f"ambient grid, {points} points": encode(2, False),
        "  with its gradients, the points' included": encode(2, True),
        f"march and pack, {len(rays_o)} rays": march,
        f"composite with its gradient, {capacity} samples": composite,
    }


def measure_parts(
    task: HeadTask, device: torch.device, *, points: int = POINTS, rays: int = RAYS, calls: int = CALLS
) -> list[PartTimes]:
    """Returns the times of the parts that the kernels replace; a failure is recorded."""
    found = []
    was = task.head.kernels
    for name, part in part_calls(task, device, points=points, rays=rays).items():
        times: dict[bool, float] = {}
        failure = ""
        for kernels in (False, True):
            try:
                times[kernels] = call_ms(part(kernels), device, calls=calls)
            except Exception as error:  # noqa: BLE001 -- a part's failure is a line of the table
                failure = reason(error)
        found.append(
            PartTimes(name=name, twin_ms=times.get(False), kernels_ms=times.get(True), failure=failure)
        )
    task.head.use_kernels(was)
    return found


# --- a training ---------------------------------------------------------------------------------------


def train_for(
    data: SpeakerData,
    head: HeadTrainingSettings,
    torso: TorsoTrainingSettings,
    device: torch.device,
    *,
    minutes: float,
    head_share: float,
    out: Path,
) -> dict[str, list[dict[str, float]]]:
    """Returns the validations of a head and then a torso trained for `minutes` together."""
    found = {}
    for name, part in (("head", head_share * minutes), ("torso", (1 - head_share) * minutes)):
        loop = LoopSettings(
            steps=10_000_000,
            validate_every=10_000_000,
            validate_minutes=part / 8,
            checkpoint_every=10_000_000,
            max_minutes=part,
            validate_at_stop=True,
            device=str(device),
        )
        torch.manual_seed(loop.seed)
        task: HeadTask | TorsoTask
        if name == "head":
            task = HeadTask(data, dataclasses.replace(head, anneal_minutes=part), device)
        else:
            settings = dataclasses.replace(torso, anneal_minutes=part, head=out / "head")
            task = TorsoTask(data, settings, device)
        fit(task, out / name, loop)
        write_curve(out / name)
        found[name] = read_validations(out / name)
        del task
        free_memory(device)
    return found


# --- tables ----------------------------------------------------------------------------------


def _shown(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def step_line(times: StepTimes) -> str:
    """Returns a variant as a line of the table."""
    line = f"{times.task:5s}  {times.kernels:7s}  {'compiled' if times.compiled else 'eager':8s}"
    if times.failure:
        return f"{line}  {times.failure}"
    return (
        f"{line}  {_shown(times.median_ms, 2):>9s}  {_shown(times.in_a_row_ms, 2):>11s}  "
        f"{_shown(times.first_s, 1):>12s}  {_shown(times.memory_gib, 1):>10s}"
    )


def step_table(rows: Sequence[StepTimes]) -> str:
    """Returns the variants as text."""
    head = "task   kernels  networks  median ms  in a row ms  first steps s  memory GiB"
    return "\n".join([head, *(step_line(row) for row in rows)])


def part_table(rows: Sequence[PartTimes]) -> str:
    """Returns the parts as text."""
    lines = [f"{'part':44s}  twin ms  kernels ms  times as fast"]
    for row in rows:
        both = row.twin_ms is not None and row.kernels_ms
        times = row.twin_ms / row.kernels_ms if both and row.twin_ms and row.kernels_ms else None
        lines.append(
            f"{row.name:44s}  {_shown(row.twin_ms, 3):>7s}  {_shown(row.kernels_ms, 3):>10s}  "
            f"{_shown(times, 1):>13s}  {row.failure}".rstrip()
        )
    return "\n".join(lines)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a speaker's folder; a ball with a mouth without")
    parser.add_argument("--mean-face", type=Path, help="npz with mean_face (68, 3)")
    parser.add_argument("--frames", type=int, help="of the data, spread (all); of the ball (550)")
    parser.add_argument("--size", type=int, default=512, help="px, of the ball")
    parser.add_argument("--steps", type=int, default=64, help="timed steps of each variant; 0: none")
    parser.add_argument("--prepare-steps", type=int, default=800, help="of the head that all go on from")
    parser.add_argument("--minutes", type=float, help="train a head and a torso for so long together")
    parser.add_argument("--head-share", type=float, default=0.75, help="of those minutes")
    parser.add_argument("--out", type=Path, help="where that training is kept; nowhere without")
    parser.add_argument("--json", type=Path, help="writes the figures here too")
    options = parser.parse_args(arguments)
    if options.minutes is not None and not (options.minutes > 0 and 0 < options.head_share < 1):
        parser.error("--minutes: expected more than 0, and --head-share between 0 and 1")
    if options.frames is not None and options.frames < 11:
        parser.error(f"--frames: expected 11 or more, got {options.frames}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; 0, or 2 where there is no GPU to measure or the data cannot be read."""
    options = _options(arguments)
    if not torch.cuda.is_available():
        print(
            "gpu_training: expected a CUDA device, torch sees none; run it on a GPU machine", file=sys.stderr
        )
        return 2
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda", torch.cuda.current_device())
    started = time.perf_counter()
    if options.data is None:
        data = ball_speaker(options.frames or 550, options.size, device)
    else:
        try:
            data = load_speaker_data(
                options.data,
                device=device,
                frames=options.frames,
                window_frames=WINDOW_FRAMES,
                lookahead_frames=LOOKAHEAD_FRAMES,
                mean_face=options.mean_face,
            )
        except (ValueError, OSError) as error:
            print(f"gpu_training: {error}", file=sys.stderr)
            return 2
    loaded_s = time.perf_counter() - started
    document: dict[str, object] = {
        "gpu": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "data": str(options.data) if options.data else "ball",
        "frames": len(data.pictures),
        "size_px": data.size_px,
        "loading_s": loaded_s,
    }
    steps: list[StepTimes] = []
    parts: list[PartTimes] = []
    kernels: Kernels = "cuda" if torch_launcher.usable(device) else "torch"
    with tempfile.TemporaryDirectory() as folder:
        if options.steps:
            start = Path(folder) / "start.pt"
            task = prepare_head(data, HEAD_SETTINGS, device, steps=options.prepare_steps, path=start)
            parts = measure_parts(task, device)
            print(part_table(parts), file=sys.stderr, flush=True)
            del task
            steps = measure_steps(data, HEAD_SETTINGS, TORSO_SETTINGS, start, device, steps=options.steps)
            document |= {
                "steps": [dataclasses.asdict(row) for row in steps],
                "parts": [dataclasses.asdict(row) for row in parts],
            }
            write_json(options.json, document)
        out = options.out or Path(folder) / "training"
        curves: dict[str, list[dict[str, float]]] = {}
        if options.minutes is not None:
            free_memory(device)
            began = time.perf_counter()
            curves = train_for(
                data,
                dataclasses.replace(HEAD_SETTINGS, kernels=kernels, compile=True),
                dataclasses.replace(TORSO_SETTINGS, kernels=kernels, compile=True),
                device,
                minutes=options.minutes,
                head_share=options.head_share,
                out=out,
            )
            document |= {"curves": curves, "training_s": time.perf_counter() - began}
            write_json(options.json, document)
    print(f"{document['gpu']}, torch {document['torch']}; {document['data']}, {len(data.pictures)} frames")
    if options.steps:
        print(f"{part_table(parts)}\n\n{step_table(steps)}")
    for name, rows in curves.items():
        print(f"\n{name}\n{curve_table(rows)}")
    if curves:
        print(f"\nboth, without {loaded_s:.0f} s to load the data: {document['training_s']:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
