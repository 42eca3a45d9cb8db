"""Live sessions on one GPU: `python -m benchmarks.gpu_serving --sessions 50 100 150 --head big`.

Each session has a thread of its own, as a live one does, and asks for a picture every 40 ms, at a phase of
its own. What is measured goes from the moment a picture is due to be asked for until its session has it:
the thread's waking, gathering, the launch, both copies, and Python's threads. Scenes are random weights of
GeneFace's sizes, drawn as I420; with `--plates` only mouth and eyes of them, over plates. Networks, encoders
and the network are not in it.

All threads share one interpreter. `woke` is how late the sessions' threads woke, which is this program's own
load and not the GPU's; `--pretend-ms` renders nothing and measures Python's share alone.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np

from benchmarks.gpu_render import DISTANCES
from benchmarks.synthetic_plates import add_flag, make_plates
from benchmarks.synthetic_scene import make_condition, make_pose, make_scene
from cuda_kernels import cuda_raymarcher
from cuda_kernels.cuda_module import CudaDevice, CudaUnavailableError, Kernel
from cuda_kernels.cuda_raymarcher import CudaRenderer, FrameRequest
from cuda_kernels.cuda_records import LAUNCH, WORK
from models.time_base import FRAME_S
from streaming.pipeline.gpu_batching import GATHER_S, LEAD_S, MAX_FRAMES, BatchPolicy
from streaming.pipeline.gpu_renderer import GpuRaymarcher, GpuRenderer

if TYPE_CHECKING:
    from cuda_kernels.arrays import U8

SETTLING_S = 0.5
_LEVELS, _TORSO_WIDTH, _CONDITION = 16, 64, 64
_POSES = 64  # of a session's path, made beforehand


@dataclass(frozen=True, kw_only=True)
class Row:
    """The figures of one number of sessions."""

    sessions: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    late: float  # share of the pictures that came after the next was due
    woke_p99_ms: float  # that a session's thread began after its picture was due
    frames_a_launch: float
    kernel_ms: float  # of a frame
    busy: float  # share of the time that kernels ran
    cores: float  # core-seconds a second of this process


class PretendDevice(CudaDevice):
    """A stand-in for a GPU with a fixed time a launch and a frame, kernels in series.

    Each call lets go of the GIL, as the driver's bindings do. Copies out take no time: pictures are grey.
    """

    def __init__(self, *, launch_ms: float, frame_ms: float) -> None:
        self.name, self.architecture, self.multiprocessors = "no GPU", 90, 132
        self._launch_s, self._frame_s = launch_ms / 1000, frame_ms / 1000
        self._free_s = 0.0  # when its kernels end
        self._begin: list[float] | None = None  # event since which no kernel was launched
        self._memory: dict[int, U8] = {}
        self._anywhere = self.allocate(1)
        self.stream = self._context = None

    def call(self, name: str, *arguments: object) -> None:
        """Lets go of the GIL for a moment."""
        ctypes.memset(self._anywhere, 0, 1)

    def kernel(self, width: int) -> Kernel:
        """Returns a kernel that `launch` does not need."""
        return Kernel(function=None, threads=384, shared_bytes=0)

    def allocate(self, size: int) -> int:
        """Returns the address of memory of this process."""
        memory = np.zeros(size, np.uint8)
        self._memory[memory.ctypes.data] = memory
        return memory.ctypes.data

    def free(self, address: int) -> None:
        """Gives it back."""
        del self._memory[address]

    def allocate_pinned(self, size: int) -> int:
        """Returns the address of memory of this process that is there already."""
        address = self.allocate(size)
        self._memory[address][:] = 128
        return address

    free_pinned = free

    def upload(self, data: U8) -> int:
        """Returns the address of a copy."""
        address = self.allocate(max(16, data.nbytes))
        self._memory[address][: data.nbytes] = data
        return address

    def create_stream(self) -> None:
        """There is one."""

    def create_event(self, *, timed: bool) -> list[float]:
        """Returns when the event passes, once it is marked."""
        return [0.0]

    def close(self) -> None:
        """Does nothing."""

    def mark(self, event: list[float], stream: None) -> None:
        """Sets when the kernels before it end, or the one behind it begins."""
        super().mark(event, stream)
        event[0], self._begin = self._free_s, event

    def launch(self, kernel: Kernel, blocks: int, argument: U8, stream: None) -> None:
        """Takes time for the frames of the launch."""
        super().launch(kernel, blocks, argument, stream)
        record = argument.view(LAUNCH)[0]
        size = int(record["work_count"]) * WORK.itemsize
        works = np.frombuffer(ctypes.string_at(int(record["works"]), size), WORK)
        begin_s = max(self._free_s, time.perf_counter())
        self._free_s = begin_s + self._launch_s + self._frame_s * int(works["frames"].sum())
        if self._begin is not None:
            self._begin[0], self._begin = begin_s, None

    def copy_in(self, address: int, source: int, size: int, stream: None) -> None:
        """Copies at once."""
        ctypes.memmove(address, source, size)

    def elapsed_ms(self, begin: list[float], end: list[float]) -> float:
        """Returns the time between two events."""
        self.call("cuEventElapsedTime")
        return 1000 * (end[0] - begin[0])

    def wait(self, event: list[float]) -> None:
        """Blocks until then."""
        time.sleep(max(0.0, event[0] - time.perf_counter()))


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One launch as the renderer reports it."""

    at_s: float
    frames: int
    kernel_ms: float


def serve(
    speakers: Sequence[GpuRaymarcher],
    launches: list[Seen],
    *,
    sessions: int,
    size_px: int,
    distance: float,
    seconds: float,
    plates: bool,
) -> Row:
    """Returns the figures of sessions that ran for `seconds`, after half a second to settle.

    Args:
        speakers: drawn in turn.
        launches: filled by the renderer's observer; cleared.
        sessions: how many.
        size_px: side of the pictures.
        distance: of the camera, in those of the synthetic scene.
        seconds: how long.
        plates: pictures are drawn over their poses' plates.
    """
    phases_s = np.random.default_rng(sessions).uniform(0, FRAME_S, sessions)
    frames, settling = round(seconds / FRAME_S), round(SETTLING_S / FRAME_S)
    conditions = [make_condition(speaker.scene) for speaker in speakers]
    path = np.stack([make_pose(0.2 * np.sin(0.1 * number), 0.05) for number in range(_POSES)])
    path[:, :3, 3] *= np.float32(distance)
    waits_ms: list[list[float]] = [[] for _ in range(sessions)]
    woke_ms: list[list[float]] = [[] for _ in range(sessions)]
    kept: list[U8 | None] = [None] * sessions  # as its encoder keeps a picture, until there is another
    ready, start_s = threading.Event(), 0.0

    def run(session: int) -> None:
        ready.wait()
        raymarcher = speakers[session % len(speakers)]
        condition = conditions[session % len(speakers)]
        frame = 0
        while frame < settling + frames:
            due_s = start_s + phases_s[session] + FRAME_S * frame
            time.sleep(max(0.0, due_s - time.perf_counter()))
            begun_s = time.perf_counter()
            pose = (frame + 7 * session) % _POSES
            if plates:
                kept[session] = raymarcher.render_composite(c2w=path[pose], condition=condition, number=pose)
            else:
                kept[session] = raymarcher.render_i420(c2w=path[pose], condition=condition, size_px=size_px)
            waited_s = time.perf_counter() - due_s
            if frame >= settling:
                waits_ms[session].append(waited_s * 1000)
                woke_ms[session].append((begun_s - due_s) * 1000)
            frame += max(1, int(waited_s / FRAME_S))  # late frames are dropped

    threads = [threading.Thread(target=run, args=(session,)) for session in range(sessions)]
    launches.clear()
    for thread in threads:
        thread.start()
    start_s = time.perf_counter() + 0.2  # all wake meanwhile
    ready.set()
    time.sleep(max(0.0, start_s + SETTLING_S - time.perf_counter()))
    from_s, cpu_s = time.perf_counter(), time.process_time()
    time.sleep(max(0.0, start_s + SETTLING_S + seconds - time.perf_counter()))
    until_s, cpu_s = time.perf_counter(), time.process_time() - cpu_s
    for thread in threads:
        thread.join()
    waits, woke = np.concatenate(waits_ms), np.concatenate(woke_ms)
    seen = [launch for launch in launches if from_s <= launch.at_s <= until_s]
    drawn, busy_ms = sum(launch.frames for launch in seen), sum(launch.kernel_ms for launch in seen)
    p50_ms, p95_ms, p99_ms = (float(value) for value in np.quantile(waits, (0.5, 0.95, 0.99)))
    return Row(
        sessions=sessions,
        p50_ms=p50_ms,
        p95_ms=p95_ms,
        p99_ms=p99_ms,
        late=float((waits > FRAME_S * 1000).mean()),
        woke_p99_ms=float(np.quantile(woke, 0.99)),
        frames_a_launch=drawn / max(len(seen), 1),
        kernel_ms=busy_ms / max(drawn, 1),
        busy=busy_ms / 1000 / (until_s - from_s),
        cores=cpu_s / (until_s - from_s),
    )


def full_launch_ms(
    draw: Callable[[Sequence[FrameRequest]], object],
    requests: Sequence[FrameRequest],
    launches: list[Seen],
) -> float:
    """Returns the kernel time a frame of a launch of all the requests: the median of five."""
    draw(requests)  # buffers are made
    launches.clear()
    for _ in range(5):
        draw(requests)
    return float(np.median([seen.kernel_ms / seen.frames for seen in launches]))


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as text."""
    lines = [
        "sessions | p50 ms | p95 ms | p99 ms | late % | woke p99 ms | frames a launch | kernel ms a frame | "
        "GPU busy % | cores"
    ]
    lines += [
        f"{row.sessions:8d} | {row.p50_ms:6.2f} | {row.p95_ms:6.2f} | {row.p99_ms:6.2f} | "
        f"{100 * row.late:6.2f} | {row.woke_p99_ms:11.2f} | {row.frames_a_launch:15.1f} | "
        f"{row.kernel_ms:17.3f} | {100 * row.busy:10.1f} | {row.cores:5.2f}"
        for row in rows
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 2 where there is no GPU that can draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, nargs="+", default=[50, 75, 100, 110, 120, 130, 140, 150])
    parser.add_argument("--speakers", type=int, default=1, help="different ones, in turn")
    parser.add_argument("--width", type=int, default=128, choices=(32, 64, 96, 128))
    parser.add_argument("--head", default="big", choices=DISTANCES, help="how much of the picture it covers")
    parser.add_argument("--size", type=int, default=512)
    add_flag(parser, "draws over plates")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each number of sessions")
    parser.add_argument("--gather-ms", type=float, default=1000 * GATHER_S, help="see BatchPolicy")
    parser.add_argument("--lead-ms", type=float, default=1000 * LEAD_S, help="see BatchPolicy")
    parser.add_argument("--most-frames", type=int, default=MAX_FRAMES, help="of a launch")
    parser.add_argument(
        "--pretend-ms",
        type=float,
        nargs=2,
        metavar=("LAUNCH", "FRAME"),
        help="needs no GPU and draws nothing: what a launch takes, and each of its frames",
    )
    given = parser.parse_args(arguments)
    if given.pretend_ms is None:
        return _measure(given)
    launch_ms, frame_ms = given.pretend_ms
    device = PretendDevice(launch_ms=launch_ms, frame_ms=frame_ms)
    with mock.patch.multiple(
        cuda_raymarcher, CudaDevice=lambda number: device, machine_code=lambda width, architecture: None
    ):
        return _measure(given)


def _measure(given: argparse.Namespace) -> int:
    launches: list[Seen] = []

    def observe(frames: int, kernel_ms: float) -> None:
        launches.append(Seen(at_s=time.perf_counter(), frames=frames, kernel_ms=kernel_ms))

    try:
        renderer = CudaRenderer()
    except CudaUnavailableError as error:
        print(error, file=sys.stderr)
        return 2
    name = renderer.device.name
    policy = BatchPolicy(
        gather_s=given.gather_ms / 1000, lead_s=given.lead_ms / 1000, max_frames=given.most_frames
    )
    gpu = GpuRenderer(renderer, name=name, observe=observe, policy=policy)
    gpu.start()
    speakers = [
        GpuRaymarcher(
            gpu,
            make_scene(
                hidden=given.width,
                levels=_LEVELS,
                log2_rows=16,
                condition=_CONDITION,
                torso_hidden=_TORSO_WIDTH,
                seed=seed,
            ),
        )
        for seed in range(given.speakers)
    ]
    distance = DISTANCES[given.head]
    poses = np.stack([make_pose(0.2 * np.sin(number), 0.05) for number in range(8)])
    poses[:, :3, 3] *= np.float32(distance)
    condition = make_condition(speakers[0].scene)
    frame_ms = speakers[0].frame_ms(poses=poses, condition=condition, size_px=given.size)
    loaded = gpu.load(speakers[0].scene)
    if given.plates:
        pictures, masks = make_plates(given.size, _POSES, share=given.plates)
        for speaker in speakers:
            speaker.load_plates(pictures, masks)
        gpu.load_plates(loaded, pictures, masks)
    full_ms = full_launch_ms(
        gpu.draw,
        [
            FrameRequest(
                scene=loaded,
                c2w=poses[number % 8],
                condition=condition,
                size_px=given.size,
                i420=True,
                plate=number % _POSES if given.plates else None,
            )
            for number in range(given.most_frames)
        ],
        launches,
    )
    gpu.unload(loaded)
    rows = []
    for sessions in given.sessions:
        rows.append(
            serve(
                speakers,
                launches,
                sessions=sessions,
                size_px=given.size,
                distance=distance,
                seconds=given.seconds,
                plates=given.plates is not None,
            )
        )
        print(f"{sessions} sessions: p99 {rows[-1].p99_ms:.1f} ms", file=sys.stderr, flush=True)
    gpu.close()
    print(
        f"{name}: {given.width} wide, {given.head} head, {given.speakers} speakers, {given.size} px I420"
        f"{' over plates' if given.plates else ''}; "
        f"{frame_ms:.3f} ms a frame in launches of eight; {full_ms:.3f} ms of kernels in launches of "
        f"{given.most_frames}: at most {1000 * FRAME_S / full_ms:.0f} sessions"
    )
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
