"""How many sessions one GPU draws live: `python -m benchmarks.gpu_serving --sessions 25 50 100 150`.

Each session has a thread of its own, as a live one does, and asks for a picture every 40 ms, at a phase of
its own. What is measured goes from the moment a picture is due to be asked for until its session has it:
gathering, the launch, both copies, and Python's threads. Scenes are random weights of GeneFace's sizes, drawn
as I420. Networks, encoders and the network are not in it.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.synthetic_scene import make_condition, make_pose, make_scene
from streaming.errors import InputError
from streaming.gpu_rendering import GpuRaymarcher, open_gpu

FRAME_S = 0.04
_LEVELS, _TORSO_WIDTH, _CONDITION = 16, 64, 64


@dataclass(frozen=True, kw_only=True)
class Row:
    """What so many sessions got."""

    sessions: int
    p50_ms: float
    p99_ms: float
    late: float  # share of the pictures that came after the next was due
    frames_a_launch: float
    kernel_ms: float  # of a frame


def serve(
    speakers: Sequence[GpuRaymarcher],
    launches: list[tuple[int, float]],
    *,
    sessions: int,
    size_px: int,
    seconds: float,
) -> Row:
    """Returns what sessions got that ran for so long, after half a second to settle."""
    random = np.random.default_rng(sessions)
    phases_s = random.uniform(0, FRAME_S, sessions)
    frames, settling = round(seconds / FRAME_S), round(0.5 / FRAME_S)
    conditions = [make_condition(speaker.scene) for speaker in speakers]
    waits_ms: list[list[float]] = [[] for _ in range(sessions)]
    start_s = time.perf_counter() + 0.2

    def run(session: int) -> None:
        raymarcher = speakers[session % len(speakers)]
        condition = conditions[session % len(speakers)]
        frame = 0
        while frame < settling + frames:
            due_s = start_s + phases_s[session] + FRAME_S * frame
            time.sleep(max(0.0, due_s - time.perf_counter()))
            pose = make_pose(0.2 * np.sin(0.1 * frame + session), 0.05)
            raymarcher.render_i420(c2w=pose, condition=condition, size_px=size_px)
            waited_s = time.perf_counter() - due_s
            if frame >= settling:
                waits_ms[session].append(waited_s * 1000)
            frame += max(1, int(waited_s / FRAME_S))  # what is late is left out

    threads = [threading.Thread(target=run, args=(session,)) for session in range(sessions)]
    launches.clear()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    waits = np.concatenate(waits_ms)
    drawn = sum(count for count, _ in launches)
    return Row(
        sessions=sessions,
        p50_ms=float(np.quantile(waits, 0.5)),
        p99_ms=float(np.quantile(waits, 0.99)),
        late=float((waits > FRAME_S * 1000).mean()),
        frames_a_launch=drawn / max(len(launches), 1),
        kernel_ms=sum(ms for _, ms in launches) / max(drawn, 1),
    )


def main() -> int:
    """Prints the table; 2 where there is no GPU that can draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 25, 50, 100, 150])
    parser.add_argument("--speakers", type=int, default=1, help="different ones, in turn")
    parser.add_argument("--width", type=int, default=128, choices=(32, 64, 96, 128))
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each number of sessions")
    given = parser.parse_args()
    launches: list[tuple[int, float]] = []
    try:
        gpu = open_gpu("cuda", say=print, observe=lambda frames, ms: launches.append((frames, ms)))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    assert gpu is not None  # asked for by name
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
    poses = np.stack([make_pose(0.2 * np.sin(number), 0.05) for number in range(8)])
    condition = make_condition(speakers[0].scene)
    frame_ms = speakers[0].frame_ms(poses=poses, condition=condition, size_px=given.size)
    print(
        f"{gpu.name}: {given.width} wide, {given.speakers} speakers, {given.size} px I420, "
        f"{frame_ms:.3f} ms a frame in launches of eight"
    )
    print("sessions | p50 ms | p99 ms | late % | frames a launch | kernel ms a frame")
    for sessions in given.sessions:
        row = serve(speakers, launches, sessions=sessions, size_px=given.size, seconds=given.seconds)
        print(
            f"{row.sessions:8d} | {row.p50_ms:6.2f} | {row.p99_ms:6.2f} | {100 * row.late:6.2f} | "
            f"{row.frames_a_launch:15.1f} | {row.kernel_ms:.3f}",
            flush=True,
        )
    gpu.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
