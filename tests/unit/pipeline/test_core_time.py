"""CPU time of a thread and of those that work for it, and what adds it up."""

from __future__ import annotations

import threading

from manual_clock import ManualClock

from benchmarks.synthetic_scene import make_condition, make_pose, make_scene
from cuda_kernels import core_time, cpu_raymarcher
from streaming.pipeline.stage_times import StageTimes, Work

TINY = {"hidden": 8, "levels": 3, "log2_rows": 9, "condition": 4, "grid_size": 16, "image_size_px": 64}


def test_what_helpers_took_counts_for_the_thread_they_helped(monkeypatch):
    monkeypatch.setattr(core_time.time, "thread_time", lambda: 1.0)
    before_s = core_time.core_time_s()
    core_time.add_helpers_time(0.25)
    others = []
    thread = threading.Thread(target=lambda: others.append(core_time.core_time_s()))
    thread.start()
    thread.join()
    assert core_time.core_time_s() - before_s == 0.25
    assert others == [1.0]


def test_the_raymarcher_counts_its_threads_for_who_asks_it(monkeypatch):
    scene = make_scene(**TINY, torso_hidden=8)
    raymarcher = cpu_raymarcher.CpuRaymarcher(scene, threads=3)
    ticks = threading.local()

    def thread_time():
        ticks.count = getattr(ticks, "count", 0) + 1
        return float(ticks.count)

    helped = []
    monkeypatch.setattr(cpu_raymarcher.time, "thread_time", thread_time)
    monkeypatch.setattr(cpu_raymarcher, "add_helpers_time", helped.append)
    raymarcher.render(c2w=make_pose(), condition=make_condition(scene), size_px=32)
    raymarcher.close()
    assert helped == [2.0]  # two helpers, a second of their own each


def test_stages_add_up_their_cpu_time_and_count_frames():
    clock = ManualClock()
    times = StageTimes(clock, clock)
    assert times.work() == Work(frames=0, core_s=0.0)
    for stage in ("motion", "render", "compose", "render"):
        with times.of(stage):
            clock.time_s += 1.0
            clock.cpu_s += 0.125
    clock.cpu_s += 5.0  # between stages
    assert times.work() == Work(frames=2, core_s=0.5)
    assert times.total_s()["render"] == 2.0
    assert (times.core_s()["render"], times.core_s()["decode"]) == (0.25, 0.0)
