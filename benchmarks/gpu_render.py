"""CUDA raymarcher times: `python -m benchmarks.gpu_render --widths 64 128 --sizes 256 512 1024`.

Scenes are random weights of GeneFace's sizes (16 levels, a 64-wide torso) whose head covers 40 % (small) or
60 % (big) of the picture and takes the samples that a trained one does; head, torso and background are drawn,
as I420. Kernel times are the GPU's own. Wall times are those of whole calls, from numpy arrays to numpy
arrays: the host's work for each frame and both copies are in them. `--plates` adds frames of which only mouth
and eyes are drawn, the rest copied from plates. With torch, the plain torch twin and the reference's wave
loop are timed in the same run: the twin as it is, with its arrays brought to the device in each call, the
loop with the head alone and everything on the device.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.synthetic_plates import add_flag, face_mask, make_plates
from benchmarks.synthetic_scene import make_condition, make_pose, make_scene
from cuda_kernels.arrays import F32
from cuda_kernels.cuda_module import CudaUnavailableError
from cuda_kernels.cuda_raymarcher import CudaRenderer, CudaScene, FrameRequest
from cuda_kernels.scene import Scene
from models.time_base import FRAME_MS

from .json_file import write_json

DISTANCES = {"small": 1.2, "big": 1.0}  # of the camera, in those of the synthetic scene
SPEAKERS = 8  # distinct ones among live sessions
SESSIONS_STEP = 10
CELL_BYTES = 16  # of one read of a grid
L1_BYTES_A_CLOCK = 128  # of a multiprocessor, on every architecture since Volta
PLATES = 32  # of a speaker
PLATES_PX = 512


@dataclass(frozen=True, kw_only=True)
class Row:
    """One scene's figures at one size."""

    width: int
    head: str
    drawn: float  # share of the picture; the rest is a plate's
    size_px: int
    samples_k: float  # thousands a frame
    lanes_full: float  # share of the network evaluations that belong to a ray
    single_p50_ms: float  # the kernel, a frame alone
    single_p99_ms: float
    batched_ms: float  # the kernel, a frame of a batch
    single_wall_ms: float
    batched_wall_ms: float
    floor_ms: float | None  # the larger of the times for matrix products and grid reads at full rate
    share_of_floor: float | None  # floor over batched
    twin_ms: float | None
    waves_ms: float | None
    times_waves: float | None  # the wave loop over a frame alone


def frame_macs(width: int) -> int:
    """Returns the multiply-adds of one sample in the folded networks, without padding."""
    ambient = 32 * width + width * width + 2 * width
    sigma = 64 * width + width * width + width
    color = (width + 16) * width + 3 * width
    return ambient + sigma + color


def cell_reads(scene: Scene) -> int:
    """Returns the grid cells that one sample reads: two on a level that z enters, else one."""
    from cuda_kernels.folding import pack_grid

    position, ambient = pack_grid(scene.head.position_grid), pack_grid(scene.head.ambient_grid)
    return int((position.stride_z > 0).sum()) + len(position.scale) + len(ambient.scale)


def pose_of(number: int, distance: float) -> F32:
    """Returns a pose (4, 4) of a slow nod."""
    pose = make_pose(0.15 * math.sin(number), 0.08 * math.cos(number))
    pose[:3, 3] *= np.float32(distance)
    return pose


def requests_of(
    scenes: Sequence[CudaScene], count: int, size_px: int, distance: float, *, plates: bool = False
) -> list[FrameRequest]:
    """Returns requests for frames of the scenes in turn, whole or over their plates."""
    return [
        FrameRequest(
            scene=scenes[number % len(scenes)],
            c2w=pose_of(number, distance),
            condition=make_condition(scenes[number % len(scenes)].scene, seed=number),
            size_px=size_px,
            i420=True,
            plate=number % PLATES if plates else None,
        )
        for number in range(count)
    ]


def wall_ms(call: Callable[[], object], count: int) -> list[float]:
    """Returns the wall times of calls."""
    times = []
    for _ in range(count):
        started = time.perf_counter()
        call()
        times.append((time.perf_counter() - started) * 1e3)
    return times


def draw(
    renderer: CudaRenderer, batch: Sequence[FrameRequest], count: int
) -> tuple[list[float], list[float]]:
    """Returns kernel times and wall times of calls that render the batch."""
    kernels = []

    def once() -> None:
        renderer.render(batch)
        kernels.append(renderer.kernel_ms)

    once()
    walls = wall_ms(once, count)
    return kernels[1:], walls


def matrix_rate() -> float | None:
    """Returns torch's half-precision multiply-adds a second in a large product; None without torch."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    a = torch.randn(8192, 8192, device="cuda", dtype=torch.float16)
    torch.matmul(a, a)
    torch.cuda.synchronize()

    def multiply() -> None:
        torch.matmul(a, a)
        torch.cuda.synchronize()

    return float(8192**3 / (np.median(wall_ms(multiply, 10)) * 1e-3))


def floor_ms(
    renderer: CudaRenderer, scene: Scene, width: int, samples: float, rate: float | None
) -> float | None:
    """Returns the roofline's time for so many samples: matrix products or grid reads."""
    if rate is None:
        return None
    reads_s = samples * cell_reads(scene) * CELL_BYTES
    reads_s /= L1_BYTES_A_CLOCK * renderer.device.multiprocessors * renderer.device.clock_hz
    return max(samples * frame_macs(width) / rate, reads_s) * 1e3


def time_torch(scene: Scene, size_px: int, distance: float) -> tuple[float | None, float | None]:
    """Returns (twin, wave loop) in ms: the medians of five frames; None without torch."""
    if importlib.util.find_spec("torch") is None:
        return None, None
    import torch

    from cuda_kernels import torch_reference as twin

    device = torch.device("cuda")
    c2w, condition, head = pose_of(0, distance), make_condition(scene), scene.head
    field = twin.head_field(head, torch.from_numpy(condition).to(device), device=device)
    pose = twin.field_pose(torch.from_numpy(c2w).to(device), scene.camera)
    occupancy = twin.occupancy_volume(torch.from_numpy(head.density_bitfield).to(device), head.grid_size)
    aabb, points = torch.from_numpy(head.aabb).to(device), twin.lattice_points(head.aabb, head.grid_size)

    @torch.no_grad()
    def waves() -> None:
        rays_o, rays_d = twin.camera_rays(pose, scene.camera, size_px, scene.image_size_px)
        near, far = twin.near_far(rays_o, rays_d, aabb, min_near=head.min_near)
        twin.march_in_waves(
            lambda p, ray: field(p, rays_d[ray]), rays_o, rays_d, near, far, occupancy, points=points
        )
        torch.cuda.synchronize()

    def whole() -> None:
        twin.render_scene(scene, c2w=c2w, condition=condition, size_px=size_px, device=device)
        torch.cuda.synchronize()

    results = []
    for call in (whole, waves):
        call()
        results.append(float(np.median(wall_ms(call, 5))))
    return results[0], results[1]


def measure(
    renderer: CudaRenderer,
    loaded: CudaScene,
    *,
    head: str,
    size_px: int,
    frames: int,
    rate: float | None,
    with_torch: bool,
    share: float,
) -> Row:
    """Returns one scene's figures at one size; a share below 1 is drawn over plates."""
    distance, width, plates = DISTANCES[head], loaded.packed.width, share < 1
    batch = requests_of([loaded], frames, size_px, distance, plates=plates)
    single, single_walls = [], []
    for request in batch[:8]:
        kernels, walls = draw(renderer, [request], 25)
        single += kernels
        single_walls += walls
    batched, batched_walls = draw(renderer, batch, 12)
    samples, passed = renderer.samples / frames, renderer.samples_passed / frames
    floor = floor_ms(renderer, loaded.scene, width, samples, rate)
    twin_ms, waves_ms = time_torch(loaded.scene, size_px, distance) if with_torch else (None, None)
    p50_ms, batched_ms = float(np.median(single)), float(np.median(batched)) / frames
    return Row(
        width=width,
        head=head,
        drawn=face_mask(size_px, share=share).share if plates else 1.0,
        size_px=size_px,
        samples_k=samples / 1e3,
        lanes_full=samples / passed,
        single_p50_ms=p50_ms,
        single_p99_ms=float(np.percentile(single, 99)),
        batched_ms=batched_ms,
        single_wall_ms=float(np.median(single_walls)),
        batched_wall_ms=float(np.median(batched_walls)) / frames,
        floor_ms=floor,
        share_of_floor=None if floor is None else floor / batched_ms,
        twin_ms=twin_ms,
        waves_ms=waves_ms,
        times_waves=None if waves_ms is None else waves_ms / p50_ms,
    )


def live_sessions(
    renderer: CudaRenderer, scenes: Sequence[CudaScene], *, size_px: int, most: int, plates: bool
) -> int:
    """Returns how many sessions at 25 fps, all due at once, are rendered with p99 within a frame."""
    fitting, failing = 0, most + SESSIONS_STEP
    while failing - fitting > SESSIONS_STEP:
        count = (fitting + failing) // 2 // SESSIONS_STEP * SESSIONS_STEP
        batch = [
            replace(request, out=np.empty(request.shape, np.uint8))
            for request in requests_of(scenes, count, size_px, DISTANCES["small"], plates=plates)
        ]
        if np.percentile(np.array(draw(renderer, batch, 25)[1]), 99) < FRAME_MS:
            fitting = count
        else:
            failing = count
    return fitting


def calls_of_a_frame(renderer: CudaRenderer, request: FrameRequest) -> Counter[str]:
    """Returns the count of each driver call for one frame."""
    made: Counter[str] = Counter()
    plain = renderer.device.call

    def counted(name: str, *arguments: object) -> object:
        made[name] += 1
        return plain(name, *arguments)

    renderer.device.call = counted  # type: ignore[method-assign]
    try:
        renderer.render([request])
    finally:
        renderer.device.call = plain  # type: ignore[method-assign]
    return made


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as text."""
    lines = [
        "width head  drawn  size  samples  lanes  one frame p50/p99 ms  batched ms  wall one/batched ms  "
        "floor ms  share  twin ms  waves ms  x waves"
    ]

    def shown(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    for row in rows:
        lines.append(
            f"{row.width:5d} {row.head:5s} {row.drawn:5.0%} {row.size_px:5d} {row.samples_k:7.0f}k "
            f"{row.lanes_full:6.2f}  "
            f"{row.single_p50_ms:9.3f} / {row.single_p99_ms:5.3f}   {row.batched_ms:9.3f}   "
            f"{row.single_wall_ms:9.3f} / {row.batched_wall_ms:5.3f}  {shown(row.floor_ms, 3):>8s} "
            f"{shown(row.share_of_floor, 2):>6s} {shown(row.twin_ms, 1):>8s} {shown(row.waves_ms, 1):>9s} "
            f"{shown(row.times_waves, 0):>8s}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; 0, or 2 where there is no GPU to measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 96, 128])
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--frames", type=int, default=32, help="of a batch")
    parser.add_argument("--most-sessions", type=int, default=300, help="that are tried; 0: none")
    parser.add_argument("--session-widths", type=int, nargs="*", default=[64, 128])
    add_flag(parser, f"also over plates, at {PLATES_PX} px")
    parser.add_argument("--json", type=Path, help="writes the figures here too")
    options = parser.parse_args(arguments)
    try:
        renderer = CudaRenderer()
    except CudaUnavailableError as error:
        print(error, file=sys.stderr)
        return 2
    rate = matrix_rate()
    rows: list[Row] = []
    sessions: dict[str, int] = {}
    calls: Counter[str] = Counter()
    for width in options.widths:
        sizes = {"hidden": width, "levels": 16, "log2_rows": 16, "condition": 64, "torso_hidden": 64}
        loaded = renderer.load(make_scene(**sizes))
        cases = [(size_px, 1.0) for size_px in options.sizes]
        if options.plates:
            renderer.load_plates(loaded, *make_plates(PLATES_PX, PLATES, share=options.plates))
            cases.append((PLATES_PX, options.plates))
        for head, (size_px, share) in itertools.product(DISTANCES, cases):
            with_torch = size_px == 512 and rate is not None and share == 1  # as the loop's figures are known
            rows.append(
                measure(
                    renderer,
                    loaded,
                    head=head,
                    size_px=size_px,
                    frames=options.frames,
                    rate=rate,
                    with_torch=with_torch,
                    share=share,
                )
            )
            print(
                f"{width} wide, {head} head, {rows[-1].drawn:.0%} of {size_px} px: "
                f"{rows[-1].batched_ms:.3f} ms",
                file=sys.stderr,
            )
        calls = calls_of_a_frame(renderer, requests_of([loaded], 1, 512, 1.0)[0])
        if options.most_sessions and width in options.session_widths:
            others = [renderer.load(make_scene(**sizes, seed=seed)) for seed in range(1, SPEAKERS)]
            if options.plates:
                for scene in others:
                    renderer.load_plates(scene, *make_plates(PLATES_PX, PLATES, share=options.plates))
            for name, scenes in (("one speaker", [loaded]), (f"{SPEAKERS} speakers", [loaded, *others])):
                for plates in (False, True)[: 1 + bool(options.plates)]:
                    over = " over plates" if plates else ""
                    sessions[f"{width} wide, {name}{over}"] = live_sessions(
                        renderer, scenes, size_px=PLATES_PX, most=options.most_sessions, plates=plates
                    )
            for scene in others:
                renderer.unload(scene)
        renderer.unload(loaded)
    write_json(
        options.json,
        {
            "gpu": renderer.device.name,
            "matrix_flops": None if rate is None else 2 * rate,
            "rows": [asdict(row) for row in rows],
            "sessions": sessions,
            "calls_of_a_frame": dict(calls),
        },
    )
    print(f"{renderer.device.name}; batches of {options.frames}")
    if rate is not None:
        print(f"a large product of halves: {2 * rate / 1e12:.0f} TFLOP/s")
    print(table(rows))
    print(
        f"a frame alone: {calls['cuLaunchKernel']} kernel launch, {calls['cuMemsetD32Async']} fill, "
        f"{calls['cuMemcpyHtoDAsync']} copy in, {calls['cuMemcpyDtoHAsync']} copies out, "
        f"{calls['cuEventSynchronize']} wait"
    )
    for name, count in sessions.items():
        print(f"live sessions, 512 px, 25 fps, p99 below {FRAME_MS} ms: {name}: {count}")
    renderer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
