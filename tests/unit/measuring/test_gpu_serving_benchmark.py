"""The benchmark of live sessions, on what pretends to be a GPU: what it counts, not how fast."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from benchmarks import gpu_serving
from benchmarks.gpu_serving import PretendDevice, Seen, full_launch_ms
from cuda_kernels.cuda_module import CudaUnavailableError
from cuda_kernels.cuda_records import LAUNCH, WORK, as_bytes

SMALL = ["--pretend-ms", "0.1", "0.05", "--width", "32", "--size", "64", "--seconds", "0.2"]


def test_each_number_of_sessions_has_a_row_of_its_own(capsys):
    assert gpu_serving.main([*SMALL, "--sessions", "1", "3", "--most-frames", "4", "--head", "small"]) == 0
    about, titles, *rows = capsys.readouterr().out.splitlines()
    assert about.startswith("no GPU: 32 wide, small head, 1 speakers, 64 px I420;")
    # Four frames are a launch of 0.1 + 4 * 0.05 ms.
    assert about.endswith("0.075 ms of kernels in launches of 4: at most 533 sessions")
    columns = [[float(value) for value in row.split("|")] for row in rows]
    assert [len(row) for row in columns] == [len(titles.split("|"))] * 2
    assert [row[0] for row in columns] == [1, 3]
    for _, p50_ms, p95_ms, p99_ms, late, woke_ms, frames, kernel_ms, busy, cores in columns:
        assert 0 < p50_ms <= p95_ms <= p99_ms
        assert woke_ms <= p99_ms
        assert 0 <= late <= 100
        assert 1 <= frames <= 3
        assert 0.05 < kernel_ms <= 0.15
        assert 0 < busy <= 100
        assert cores >= 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("geneface-gpu")]


def test_full_launches_are_those_after_the_first():
    launches = []
    took = iter([90.0, 4.0, 2.0, 2.0, 8.0, 2.0])

    def draw(requests):
        launches.append(Seen(at_s=0.0, frames=len(requests), kernel_ms=next(took)))

    assert full_launch_ms(draw, [None] * 2, launches) == 1.0


def test_launches_of_what_pretends_come_one_after_the_other():
    device = PretendDevice(launch_ms=1.0, frame_ms=2.0)
    works = np.zeros(1, WORK)
    record = np.zeros((), LAUNCH)
    record["works"], record["work_count"] = works.ctypes.data, 1
    marks = []
    for frames in (2, 1):
        works["frames"] = frames
        marks += [device.create_event(timed=True) for _ in range(2)]
        device.mark(marks[-2], device.stream)
        device.launch(device.kernel(32), 1, as_bytes(record), device.stream)
        device.mark(marks[-1], device.stream)
    device.wait(marks[-1])
    assert device.elapsed_ms(*marks[:2]) == pytest.approx(5.0)
    assert device.elapsed_ms(*marks[2:]) == pytest.approx(3.0)
    assert device.elapsed_ms(*marks[1:3]) >= 0


def test_without_a_gpu_the_benchmark_says_what_is_missing(monkeypatch, capsys):
    def refuse():
        raise CudaUnavailableError("the NVIDIA driver: expected one that starts")

    monkeypatch.setattr(gpu_serving, "CudaRenderer", refuse)
    assert gpu_serving.main(["--sessions", "1"]) == 2
    assert "the NVIDIA driver" in capsys.readouterr().err
