"""CPU raymarcher: frame times and PSNR: `python -m benchmarks.render --speaker May --sizes 128 192 256 512`.

Times are wall times of whole frames (head, torso, background, RGB out) along the speaker's path of poses;
the cost of a sample is process time, robust to other load. With torch
installed, each size is also compared with the plain torch twin (PSNR) and timed against the reference's loop
in eager torch.
`--speaker synthetic` draws random weights, 32 wide, with 12 levels.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.synthetic_scene import make_condition, make_pose, make_scene
from cuda_kernels.arrays import F32
from cuda_kernels.cpu_raymarcher import CpuRaymarcher
from cuda_kernels.scene import MAX_SIZE_PX, MIN_SIZE_PX, Scene
from models.speaker import load_speaker
from models.speaker_folders import find_speaker
from streaming.pipeline.engine_choice import open_engine
from streaming.pipeline.networks import network_specs

from .json_file import write_json

SYNTHETIC = "synthetic"
MAX_FOR_TORCH_PX = 256  # eager torch takes seconds a frame there, and minutes for the sizes above


@dataclass(frozen=True, kw_only=True)
class Frames:
    """A scene, and the poses and conditions to render."""

    name: str
    scene: Scene
    poses: F32  # (N, 4, 4)
    conditions: F32  # (N, C)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One size's figures."""

    size_px: int
    p50_ms: float
    p90_ms: float
    fps: float  # of the median
    core_ms: float  # process time of the cheapest frame
    samples_per_pixel: float
    ns_per_sample: float  # process time of the cheapest frame over its samples, all stages in it
    psnr_db: float | None
    eager_torch_ms: float | None
    times_eager_torch: float | None


def read_speaker(name: str, speakers_dir: Path | None) -> Frames:
    """Returns frames of a bundle: its own poses, conditions of landmarks about the mean."""
    speaker = load_speaker(find_speaker(name, speakers_dir=speakers_dir))
    count = min(100, len(speaker.poses))
    poses = speaker.poses[np.linspace(0, len(speaker.poses) - 1, count).astype(int)]
    window = (speaker.condition.window_frames, 204)
    engine = open_engine(network_specs(speaker).condition)
    random = np.random.default_rng(0)
    landmarks = random.normal(size=(count, *window)).astype(np.float32) * np.float32(0.5)
    conditions = np.stack([engine.run({"window": one}) for one in landmarks])
    return Frames(name=speaker.name, scene=speaker.scene, poses=poses, conditions=conditions)


def make_synthetic() -> Frames:
    """Returns frames of random weights that cost what a trained speaker's do."""
    scene = make_scene()
    angles = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    poses = np.stack([make_pose(0.15 * math.sin(a), 0.08 * math.cos(a)) for a in angles])
    conditions = np.stack([make_condition(scene, seed) for seed in range(len(angles))])
    return Frames(name=SYNTHETIC, scene=scene, poses=poses, conditions=conditions)


def measure(
    frames: Frames, size_px: int, *, raymarcher: CpuRaymarcher, count: int, with_torch: bool, eager: bool
) -> Row:
    """Returns one size's figures over `count` frames."""

    def draw(number: int) -> object:
        return raymarcher.render(
            c2w=frames.poses[number % len(frames.poses)],
            condition=frames.conditions[number % len(frames.conditions)],
            size_px=size_px,
        )

    draw(0)
    wall_ms, core_ms, samples = [], [], []
    for number in range(count):
        wall, core = time.perf_counter(), time.process_time()
        draw(number)
        wall_ms.append((time.perf_counter() - wall) * 1e3)
        core_ms.append((time.process_time() - core) * 1e3)
        samples.append(raymarcher.samples)
    p50_ms, p90_ms = (float(np.percentile(wall_ms, p)) for p in (50, 90))
    cost = np.array(core_ms) * 1e6 / np.maximum(samples, 1)
    psnr_db, eager_ms = None, None
    if with_torch:
        psnr_db, eager_ms = compare(frames, size_px, raymarcher=raymarcher, eager=eager)
    return Row(
        size_px=size_px,
        p50_ms=p50_ms,
        p90_ms=p90_ms,
        fps=1e3 / p50_ms,
        core_ms=min(core_ms),
        samples_per_pixel=float(np.mean(samples)) / size_px**2,
        ns_per_sample=float(cost.min()),
        psnr_db=psnr_db,
        eager_torch_ms=eager_ms,
        times_eager_torch=None if eager_ms is None else eager_ms / p50_ms,
    )


def compare(
    frames: Frames, size_px: int, *, raymarcher: CpuRaymarcher, eager: bool
) -> tuple[float, float | None]:
    """Returns PSNR (dB) against the torch twin over three frames, and the best eager one's ms of three."""
    import torch

    from cuda_kernels.torch_reference import render_scene

    torch.set_num_threads(raymarcher.threads)
    errors = []
    for number in {0, len(frames.poses) // 3, 2 * len(frames.poses) // 3}:
        c2w, condition = frames.poses[number], frames.conditions[number]
        expected = render_scene(frames.scene, c2w=c2w, condition=condition, size_px=size_px).numpy()
        got = raymarcher.render(c2w=c2w, condition=condition, size_px=size_px)
        errors.append(float(((got / 255.0 - expected) ** 2).mean()))
    eager_ms = None
    if eager:
        runs = []
        for _ in range(3):
            started = time.perf_counter()
            render_scene(
                frames.scene,
                c2w=frames.poses[0],
                condition=frames.conditions[0],
                size_px=size_px,
                waves=True,
            )
            runs.append((time.perf_counter() - started) * 1e3)
        eager_ms = min(runs)
    return -10 * math.log10(max(float(np.mean(errors)), 1e-12)), eager_ms


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as text."""

    def cell(value: float | None, width: int, digits: int) -> str:
        return f"{'-' if value is None else f'{value:.{digits}f}':>{width}}"

    lines = [
        " size   p50 ms   p90 ms     fps  core ms  samples/px  ns/sample  PSNR dB  torch ms  x torch",
    ]
    lines += [
        f"{row.size_px:>5}{cell(row.p50_ms, 9, 2)}{cell(row.p90_ms, 9, 2)}{cell(row.fps, 8, 1)}"
        f"{cell(row.core_ms, 9, 2)}{cell(row.samples_per_pixel, 12, 2)}{cell(row.ns_per_sample, 11, 0)}"
        f"{cell(row.psnr_db, 9, 1)}{cell(row.eager_torch_ms, 10, 0)}{cell(row.times_eager_torch, 9, 0)}"
        for row in rows
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints, and returns the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.render", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--speaker", default="May", help=f"name or folder, or '{SYNTHETIC}'")
    parser.add_argument("--speakers-dir", type=Path, help="folder of speakers that comes first")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 192, 256, 512], metavar="PX")
    parser.add_argument("--frames", type=int, default=50, help="drawn per size")
    parser.add_argument("--threads", type=int, default=2, help="that draw")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument(
        "--twin",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="compare with torch; by default if it is installed",
    )
    options = parser.parse_args(arguments)
    if options.frames < 1 or not all(MIN_SIZE_PX <= size <= MAX_SIZE_PX for size in options.sizes):
        parser.error(f"expected --frames above 0 and --sizes of {MIN_SIZE_PX} to {MAX_SIZE_PX}")
    try:
        if options.speaker == SYNTHETIC:
            frames = make_synthetic()
        else:
            frames = read_speaker(options.speaker, options.speakers_dir)
        raymarcher = CpuRaymarcher(frames.scene, threads=options.threads)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    installed = importlib.util.find_spec("torch") is not None
    if options.twin and not installed:
        print("--twin: expected torch, which is not installed; pip install '.[train]'", file=sys.stderr)
        return 2
    with_torch = installed if options.twin is None else options.twin
    warm_s = raymarcher.warm_up()
    rows = []
    for size_px in options.sizes:
        rows.append(
            measure(
                frames,
                size_px,
                raymarcher=raymarcher,
                count=options.frames,
                with_torch=with_torch,
                eager=size_px <= MAX_FOR_TORCH_PX,
            )
        )
        print(f"{size_px} px: {rows[-1].fps:.1f} fps", file=sys.stderr)
    raymarcher.close()
    write_json(
        options.json,
        {
            "speaker": frames.name,
            "machine": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "threads": options.threads,
            "warm_up_s": warm_s,
            "rows": [asdict(row) for row in rows],
        },
    )
    print(f"{frames.name}, {options.threads} threads, kernels ready after {warm_s:.2f} s")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
