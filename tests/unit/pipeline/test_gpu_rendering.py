"""Frames of many sessions on one GPU, which a stand-in plays: who is drawn with whom, and what fails how."""

from __future__ import annotations

import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
from manual_clock import ManualClock
from patience import PATIENCE_S
from stand_in_gpu import StandInRenderer, StandInScene

from cuda_kernels import cuda_raymarcher
from cuda_kernels.cpu_raymarcher import RenderInputError
from cuda_kernels.cuda_module import CudaError, CudaUnavailableError
from cuda_kernels.cuda_raymarcher import FrameRequest
from streaming.errors import GpuLostError, InputError, Stopped
from streaming.pipeline import gpu_renderer
from streaming.pipeline.cuda_device import CudaDevice
from streaming.pipeline.gpu_batching import MAX_FRAMES, RECENT_S, BatchPolicy
from streaming.pipeline.gpu_renderer import GpuRaymarcher, GpuRenderer, open_gpu

POSE = np.eye(4, dtype=np.float32)
GPU = CudaDevice(name="NVIDIA H100", capability=(9, 0))


class CountedPolicy(BatchPolicy):
    """Says when someone asked."""

    def __init__(self, **options):
        super().__init__(**options)
        self.counted = threading.Semaphore(0)

    def asked(self, asker, *, now_s):
        super().asked(asker, now_s=now_s)
        self.counted.release()


def condition(number):
    return np.array([number, 0], np.float32)


def request(scene, number, size_px=16):
    return FrameRequest(scene=scene, c2w=POSE, condition=condition(number), size_px=size_px)


class Asker(threading.Thread):
    """A session's render thread: asks for a picture and keeps what came of it."""

    def __init__(self, gpu, scene, number, frames=1):
        super().__init__(daemon=True)
        self._ask = lambda: [gpu.draw([request(scene, number)])[0] for _ in range(frames)]
        self.pictures, self.error = None, None
        self.start()

    def run(self):
        try:
            self.pictures = self._ask()
        except Exception as error:  # noqa: BLE001 - told to who asks for the result
            self.error = error

    def result(self):
        self.join(PATIENCE_S)
        assert not self.is_alive()
        return self.error if self.error is not None else {int(value) for value in np.unique(self.pictures)}


@pytest.fixture
def opened():
    """Makes renderers that are closed in the end, and sees that no thread is left."""
    made = []

    def open_one(renderer=None, *, start=True, **options):
        renderer = renderer or StandInRenderer()
        gpu = GpuRenderer(renderer, name="A GPU", **options)
        made.append((gpu, renderer))
        if start:
            gpu.start()
        return gpu, renderer

    yield open_one
    for gpu, renderer in made:
        renderer.may_draw.set()
        gpu.close()
        assert gpu.join(PATIENCE_S)
        assert renderer.closed == 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("geneface-gpu")]


# Who is drawn with whom -------------------------------------------------------------------------------


def test_the_frame_of_a_session_alone_does_not_wait():
    policy = BatchPolicy(gather_s=60)
    assert policy.wait_s([], now_s=0.0) is None
    policy.asked(1, now_s=5.0)
    assert policy.wait_s([(1, 5.0)], now_s=5.0) == 0.0


def test_a_frame_waits_for_others_that_asked_lately_and_no_longer_than_it_may():
    policy = BatchPolicy(gather_s=0.0025)
    policy.asked(1, now_s=0.00)
    policy.asked(2, now_s=0.02)
    policy.asked(1, now_s=0.04)
    assert policy.wait_s([(1, 0.04)], now_s=0.04) == pytest.approx(0.0025)
    assert policy.wait_s([(1, 0.04)], now_s=0.042) == pytest.approx(0.0005)
    assert policy.wait_s([(1, 0.04)], now_s=0.0426) == 0.0
    policy.asked(2, now_s=0.041)
    assert policy.wait_s([(1, 0.04), (2, 0.041)], now_s=0.041) == 0.0


def test_a_session_that_has_not_asked_for_two_frames_is_not_waited_for():
    policy = BatchPolicy(gather_s=60)
    policy.asked(1, now_s=0.0)
    later_s = RECENT_S + 0.01
    policy.asked(2, now_s=later_s)
    assert policy.wait_s([(2, later_s)], now_s=later_s) == 0.0


def test_a_full_launch_waits_for_nobody():
    policy = BatchPolicy(gather_s=60, max_frames=2)
    for asker in range(3):
        policy.asked(asker, now_s=0.0)
    assert policy.wait_s([(0, 0.0)], now_s=0.0) > 0
    assert policy.wait_s([(0, 0.0), (1, 0.0)], now_s=0.0) == 0.0


def flying(count, *, frames=1, kernel_ms=8.0, at_s=0.0, **options):
    """A policy that knows what a frame takes and has launches under way."""
    policy = BatchPolicy(gather_s=0.0025, lead_s=0.001, **options)
    policy.submitted(1, now_s=at_s)
    policy.collected(kernel_ms, now_s=at_s)
    for asker in range(100, 110):
        policy.asked(asker, now_s=at_s)
    for _ in range(count):
        policy.submitted(frames, now_s=at_s)
    return policy


def test_while_the_gpu_draws_frames_gather_until_shortly_before_it_ends():
    policy = flying(1, frames=2, kernel_ms=8.0)
    assert policy.wait_s([(100, 0.0)], now_s=0.0) == pytest.approx(0.015)
    assert policy.wait_s([(100, 0.0)], now_s=0.014) == pytest.approx(0.001)
    assert policy.wait_s([(100, 0.0)], now_s=0.016) == 0.0
    assert policy.wait_s([(who, 0.0) for who in range(100, 110)], now_s=0.0) == 0.0  # nobody is missing


def test_a_frame_that_waited_behind_a_launch_does_not_wait_again():
    policy = flying(1, kernel_ms=40.0)
    assert policy.wait_s([(100, 0.001)], now_s=0.002) > 0.03
    policy.collected(10.0, now_s=0.01)  # sooner than was expected
    assert policy.wait_s([(100, 0.001)], now_s=0.01) == 0.0


def test_behind_two_launches_all_wait_for_one_to_end():
    policy = flying(2, kernel_ms=8.0)
    everyone = [(who, 0.0) for who in range(100, 200)]
    assert policy.wait_s(everyone, now_s=0.0) is None
    assert not policy.should_wake(1000)
    policy.collected(8.0, now_s=0.009)
    assert policy.wait_s(everyone[:3], now_s=0.009) == pytest.approx(0.007)  # the other began just now


def test_a_first_launch_of_which_nothing_is_known_holds_up_nobody():
    policy = BatchPolicy(gather_s=60)
    for asker in (1, 2, 3):
        policy.asked(asker, now_s=0.0)
    policy.submitted(1, now_s=0.0)
    assert policy.wait_s([(2, 0.0)], now_s=0.0) == 0.0


def test_a_launch_that_failed_says_nothing_of_what_a_frame_takes():
    policy = flying(2, kernel_ms=8.0)
    policy.collected(0.0, now_s=0.0)
    assert policy.wait_s([(100, 0.0)], now_s=0.0) == pytest.approx(0.007)


def test_who_asks_is_heeded_only_where_that_may_change_anything():
    policy = flying(0, max_frames=4)
    assert policy.wait_s([], now_s=0.0) is None
    assert policy.should_wake(1)
    assert policy.wait_s([(100, 0.0)], now_s=0.0) > 0
    assert [policy.should_wake(waiting) for waiting in (2, 3, 4)] == [False, False, True]


def test_what_sessions_of_all_speakers_ask_for_meanwhile_is_one_launch_and_each_gets_its_own(opened):
    policy, told = CountedPolicy(max_flying=1), []
    gpu, renderer = opened(policy=policy, observe=lambda *seen: told.append(seen))
    speakers = [StandInScene(0), StandInScene(100)]
    renderer.may_draw.clear()
    first = Asker(gpu, speakers[0], 1)
    assert renderer.drawing.acquire(timeout=PATIENCE_S)
    others = [Asker(gpu, speakers[number % 2], number) for number in range(2, 12)]
    for _ in range(11):
        assert policy.counted.acquire(timeout=PATIENCE_S)
    renderer.may_draw.set()
    assert first.result() == {1}
    assert [asker.result() for asker in others] == [{number + 100 * (number % 2)} for number in range(2, 12)]
    gpu.close()
    assert [len(batch) for batch in renderer.batches] == [1, 10]
    assert told == [(1, 1.5), (10, 1.5)]
    assert renderer.threads == {"geneface-gpu"}


def test_frames_of_known_sessions_are_waited_for(opened):
    """Were they not, or were the last not enough, this would take an hour."""
    policy = CountedPolicy(gather_s=3600, max_flying=1)
    gpu, renderer = opened(policy=policy, clock=ManualClock())
    renderer.may_draw.clear()
    first = Asker(gpu, StandInScene(), 1, frames=3)
    assert renderer.drawing.acquire(timeout=PATIENCE_S)
    second = Asker(gpu, StandInScene(), 2, frames=3)
    for _ in range(2):
        assert policy.counted.acquire(timeout=PATIENCE_S)
    # The second's first frame waits until the first asks again; its last one has nobody left to wait for.
    renderer.may_draw.set()
    assert first.result() == {1}
    assert renderer.batches[0] == [1]
    assert [sorted(batch) for batch in renderer.batches[1:3]] == [[1, 2]] * 2
    gpu.close()
    assert isinstance(second.result(), Stopped)


def test_the_oldest_go_first_where_one_launch_has_no_room_for_all(opened):
    policy = CountedPolicy(max_frames=3, max_flying=1)
    gpu, renderer = opened(policy=policy)
    renderer.may_draw.clear()
    askers = [Asker(gpu, StandInScene(), 1)]
    assert renderer.drawing.acquire(timeout=PATIENCE_S)
    assert policy.counted.acquire(timeout=PATIENCE_S)
    for number in range(2, 10):
        askers.append(Asker(gpu, StandInScene(), number))
        assert policy.counted.acquire(timeout=PATIENCE_S)
    renderer.may_draw.set()
    assert [asker.result() for asker in askers] == [{number} for number in range(1, 10)]
    assert renderer.batches == [[1], [2, 3, 4], [5, 6, 7], [8, 9]]


# Two launches at once ---------------------------------------------------------------------------------


def two_flying(gpu, renderer, policy, *, third=False):
    """Askers whose launches the GPU has, and one who waits behind them."""
    renderer.may_draw.clear()
    askers = []
    for number in (1, 2):
        askers.append(Asker(gpu, StandInScene(), number))
        assert renderer.drawing.acquire(timeout=PATIENCE_S)
        assert policy.counted.acquire(timeout=PATIENCE_S)
    if third:
        askers.append(Asker(gpu, StandInScene(), 3))
        assert policy.counted.acquire(timeout=PATIENCE_S)
    return askers


def test_a_second_launch_is_submitted_before_the_first_has_ended_and_no_third(opened):
    policy = CountedPolicy()
    gpu, renderer = opened(policy=policy)
    askers = two_flying(gpu, renderer, policy, third=True)
    assert (renderer.batches, renderer.collected) == ([[1], [2]], [])
    renderer.may_draw.set()
    assert [asker.result() for asker in askers] == [{1}, {2}, {3}]
    assert renderer.batches == renderer.collected == [[1], [2], [3]]


def test_a_gpu_that_fails_at_the_first_of_two_launches_is_lost_to_both_and_to_who_waits(opened):
    policy = CountedPolicy()
    gpu, renderer = opened(policy=policy)
    askers = two_flying(gpu, renderer, policy, third=True)
    renderer.failure = CudaError("cuEventSynchronize: expected success, got CUDA_ERROR_ILLEGAL_ADDRESS")
    renderer.may_draw.set()
    errors = [asker.result() for asker in askers]
    assert [type(error) for error in errors] == [GpuLostError] * 3
    assert len({id(error) for error in errors}) == 3
    assert gpu.join(PATIENCE_S)
    assert (renderer.batches, renderer.closed) == ([[1], [2]], 1)


def test_a_gpu_that_refuses_the_second_launch_is_lost_to_the_first_too(opened):
    policy = CountedPolicy()
    gpu, renderer = opened(policy=policy)
    renderer.may_draw.clear()
    first = Asker(gpu, StandInScene(), 1)
    assert renderer.drawing.acquire(timeout=PATIENCE_S)
    renderer.submit_failure = CudaError("cuMemAlloc: expected success, got CUDA_ERROR_OUT_OF_MEMORY")
    second = Asker(gpu, StandInScene(), 2)
    assert [type(asker.result()) for asker in (first, second)] == [GpuLostError] * 2
    renderer.may_draw.set()
    assert gpu.join(PATIENCE_S)
    assert "OUT_OF_MEMORY" in gpu.lost


def test_a_fault_of_the_program_in_the_first_of_two_launches_leaves_the_second_alone(opened):
    class FailsOnce(StandInRenderer):
        def collect(self, launch):
            pictures = super().collect(launch)
            if len(self.collected) == 1:
                raise ValueError("no such scene")
            return pictures

    policy = CountedPolicy()
    gpu, renderer = opened(FailsOnce(), policy=policy)
    askers = two_flying(gpu, renderer, policy)
    renderer.may_draw.set()
    assert str(askers[0].result()) == "drawing on the GPU failed: no such scene"
    assert askers[1].result() == {2}
    assert not gpu.lost


def test_a_close_hands_out_what_the_gpu_has_and_stops_who_waits(opened):
    policy = CountedPolicy()
    gpu, renderer = opened(policy=policy)
    askers = two_flying(gpu, renderer, policy, third=True)
    closing = threading.Thread(target=gpu.close)
    closing.start()
    assert isinstance(askers[2].result(), Stopped)
    renderer.may_draw.set()
    closing.join(PATIENCE_S)
    assert [asker.result() for asker in askers[:2]] == [{1}, {2}]
    assert gpu.join(PATIENCE_S)
    assert renderer.closed == 1


def test_both_launches_of_a_gpu_that_hangs_hear_of_the_close(opened, monkeypatch):
    monkeypatch.setattr(gpu_renderer, "_JOIN_S", 0.01)
    policy = CountedPolicy()
    gpu, renderer = opened(policy=policy, hang_s=3600)
    askers = two_flying(gpu, renderer, policy, third=True)
    gpu.close()
    assert [type(asker.result()) for asker in askers] == [Stopped] * 3
    assert renderer.closed == 0


def test_pictures_are_copied_and_those_of_the_renderer_let_go(opened):
    class Keeps(StandInRenderer):
        def collect(self, launch):
            pictures = super().collect(launch)
            self.drawn = [weakref.ref(picture) for picture in pictures]
            return pictures

    gpu, renderer = opened(Keeps())
    out = np.zeros((16, 16, 3), np.uint8)
    given = FrameRequest(scene=StandInScene(), c2w=POSE, condition=condition(7), size_px=16, out=out)
    pictures = gpu.draw([given, request(StandInScene(), 8)])
    assert pictures[0] is out
    assert [np.unique(picture).tolist() for picture in pictures] == [[7], [8]]
    gpu.close()
    assert [reference() for reference in renderer.drawn] == [None, None]


def test_pictures_that_may_be_kept_are_not_copied_unless_there_is_a_place_for_them(opened):
    class Lends(StandInRenderer):
        may_keep = True

        def collect(self, launch):
            self.drawn = super().collect(launch)
            return self.drawn

    gpu, renderer = opened(Lends())
    out = np.zeros((16, 16, 3), np.uint8)
    given = FrameRequest(scene=StandInScene(), c2w=POSE, condition=condition(7), size_px=16, out=out)
    pictures = gpu.draw([given, request(StandInScene(), 8)])
    assert pictures[0] is out
    assert np.unique(out).tolist() == [7]
    assert pictures[1] is renderer.drawn[1]


def test_many_sessions_get_every_picture_of_their_own(opened):
    """Launches pass each other by the hundred, while threads ask as fast as they are answered."""
    gpu, renderer = opened()
    askers = [Asker(gpu, StandInScene(), number, frames=50) for number in range(1, 25)]
    assert [asker.result() for asker in askers] == [{number} for number in range(1, 25)]
    assert sum(len(batch) for batch in renderer.batches) == 24 * 50
    assert renderer.collected == renderer.batches


# Failures ---------------------------------------------------------------------------------------------


def test_a_request_that_cannot_be_drawn_never_reaches_the_gpu(opened):
    gpu, renderer = opened()
    with pytest.raises(RenderInputError, match="condition"):
        gpu.draw(
            [FrameRequest(scene=StandInScene(), c2w=POSE, condition=np.zeros(3, np.float32), size_px=16)]
        )
    assert gpu.draw([request(StandInScene(), 4)])[0].shape == (16, 16, 3)
    assert renderer.batches == [[4]]


@pytest.mark.parametrize(
    "text",
    [
        "cuStreamSynchronize: expected success, got CUDA_ERROR_ILLEGAL_ADDRESS",
        "cuMemAlloc: expected success, got CUDA_ERROR_OUT_OF_MEMORY",
        "cuLaunchKernel: expected success, got CUDA_ERROR_LAUNCH_FAILED",
    ],
)
def test_a_gpu_that_fails_is_lost_to_all_who_ask_and_told_once(opened, caplog, text):
    policy = CountedPolicy()
    gpu, renderer = opened(policy=policy)
    lost = []
    gpu.when_lost(lost.append)
    raymarcher = GpuRaymarcher(gpu, StandInScene())
    renderer.may_draw.clear()
    askers = [Asker(gpu, StandInScene(), 1)]
    assert renderer.drawing.acquire(timeout=PATIENCE_S)
    askers += [Asker(gpu, StandInScene(), number) for number in (2, 3)]
    for _ in range(3):
        assert policy.counted.acquire(timeout=PATIENCE_S)
    renderer.failure = CudaError(text)
    renderer.may_draw.set()
    errors = [asker.result() for asker in askers]
    assert [(type(error), str(error)) for error in errors] == [(GpuLostError, text)] * 3
    assert len({id(error) for error in errors}) == 3  # a traceback belongs to one thread
    assert [len(batch) for batch in renderer.batches] in ([1], [1, 1], [1, 2])  # none after the failure
    for ask in (lambda: gpu.draw([request(StandInScene(), 4)]), lambda: gpu.load(StandInScene())):
        with pytest.raises(GpuLostError, match="CUDA_ERROR"):
            ask()
    raymarcher.close()  # without a word to the device
    assert gpu.join(PATIENCE_S)
    assert renderer.closed == 1
    assert (lost, gpu.lost) == ([text], text)
    gpu.when_lost(lost.append)  # too late to hear of it otherwise
    assert lost == [text, text]
    assert caplog.text.count("A GPU draws no more") == 1


def test_a_gpu_that_hangs_is_lost_and_holds_up_nobody_s_end(opened, monkeypatch, caplog):
    monkeypatch.setattr(gpu_renderer, "_JOIN_S", 0.01)
    gpu, renderer = opened(hang_s=0.05)
    renderer.may_draw.clear()
    with pytest.raises(GpuLostError, match=r"it gave no picture within 0\.05 s"):
        gpu.draw([request(StandInScene(), 1)])
    gpu.close()
    assert "is left behind" in caplog.text
    assert renderer.closed == 0  # it might never return
    renderer.may_draw.set()  # it does, after all
    assert gpu.join(PATIENCE_S)
    assert renderer.closed == 1


def test_who_waits_for_a_gpu_that_hangs_hears_of_the_close(opened, monkeypatch):
    monkeypatch.setattr(gpu_renderer, "_JOIN_S", 0.01)
    gpu, renderer = opened(hang_s=3600)
    renderer.may_draw.clear()
    asker = Asker(gpu, StandInScene(), 1)
    assert renderer.drawing.acquire(timeout=PATIENCE_S)
    gpu.close()
    assert isinstance(asker.result(), Stopped)


def test_a_fault_of_the_program_fails_its_launch_and_no_other(opened, caplog):
    gpu, renderer = opened()
    renderer.failure = ValueError("no such scene")
    with pytest.raises(RuntimeError, match="drawing on the GPU failed: no such scene"):
        gpu.draw([request(StandInScene(), 1)])
    renderer.failure = None
    assert np.unique(gpu.draw([request(StandInScene(), 2)])[0]).tolist() == [2]
    assert not gpu.lost
    assert "a fault of the program" in caplog.text


def test_an_observer_that_fails_loses_the_gpu_and_is_logged(opened, caplog):
    gpu, _ = opened(observe=lambda *_: 1 / 0)
    gpu.draw([request(StandInScene(), 1)])
    assert gpu.join(PATIENCE_S)
    assert gpu.lost == "its thread failed, the log says why"
    assert "ZeroDivisionError" in caplog.text


def test_a_device_that_fails_to_give_memory_back_is_lost(opened):
    gpu, renderer = opened()
    raymarcher = GpuRaymarcher(gpu, StandInScene())
    renderer.failure = CudaError("cuMemFree: expected success, got CUDA_ERROR_ECC_UNCORRECTABLE")
    raymarcher.close()
    assert "ECC" in gpu.lost


# Life -------------------------------------------------------------------------------------------------


def test_a_gpu_renderer_closes_twice_and_unstarted(opened):
    gpu, renderer = opened(start=False)
    with pytest.raises(RuntimeError, match="before it was started"):
        gpu.draw([request(StandInScene(), 1)])
    gpu.close()
    gpu.close()
    assert renderer.closed == 1
    with pytest.raises(RuntimeError, match="closed"):
        gpu.start()
    with pytest.raises(Stopped):
        gpu.draw([request(StandInScene(), 1)])


def test_a_close_that_fails_is_no_failure_of_the_program(opened):
    class Stubborn(StandInRenderer):
        def close(self):
            super().close()
            raise CudaError("cuMemFree: expected success, got CUDA_ERROR_CONTEXT_IS_DESTROYED")

    gpu, renderer = opened(Stubborn())
    gpu.draw([request(StandInScene(), 1)])
    gpu.close()
    assert renderer.closed == 1


def test_a_gpu_renderer_starts_once(opened):
    gpu, _ = opened()
    with pytest.raises(RuntimeError, match="started twice"):
        gpu.start()


# One speaker ------------------------------------------------------------------------------------------


def test_a_speaker_is_drawn_as_rgb_as_i420_and_in_part(opened):
    gpu, renderer = opened()
    scene = StandInScene(50)
    raymarcher = GpuRaymarcher(gpu, scene)
    given = {"c2w": POSE, "condition": condition(3)}
    assert raymarcher.device == "A GPU"
    assert raymarcher.render(**given, size_px=16).shape == (16, 16, 3)
    assert raymarcher.render(**given, size_px=16, region_px=(2, 4, 10, 8)).shape == (4, 8, 3)
    out = np.zeros((16, 16, 3), np.uint8)
    assert raymarcher.render(**given, size_px=16, out=out) is out
    picture = raymarcher.render_i420(**given, size_px=16)
    assert (picture.shape, int(picture[0, 0])) == ((24, 16), 53)
    assert raymarcher.warm_up() >= 0
    raymarcher.close()
    raymarcher.close()
    assert renderer.unloaded == [scene]


def test_a_frame_s_time_is_measured_among_others(opened):
    gpu, renderer = opened()
    raymarcher = GpuRaymarcher(gpu, StandInScene())
    spent_ms = raymarcher.frame_ms(poses=np.stack([POSE] * 3), condition=condition(0), size_px=16)
    assert [len(batch) for batch in renderer.batches] == [MAX_FRAMES] * 8  # each time two launches
    assert spent_ms > 0


# Whether there is one ---------------------------------------------------------------------------------


def no_renderer(error):
    def refuse():
        raise error

    return refuse


def test_without_a_gpu_the_cpu_draws_and_nothing_is_said(monkeypatch):
    monkeypatch.setattr(gpu_renderer, "find_cuda_device", lambda: None)
    said = []
    assert open_gpu("auto", say=said.append) is None
    assert said == []
    with pytest.raises(InputError, match=r"--device cuda: .*, got none"):
        open_gpu("cuda", say=said.append)


def test_device_cpu_never_looks_for_a_gpu(monkeypatch):
    monkeypatch.setattr(gpu_renderer, "find_cuda_device", lambda: pytest.fail("it looked"))
    assert open_gpu("cpu", say=print) is None


@pytest.mark.parametrize(
    "error",
    [
        CudaUnavailableError("cuda.bindings.driver: expected to be installed; install the extra"),
        CudaError("cuStreamCreate: expected success, got CUDA_ERROR_OUT_OF_MEMORY"),
    ],
)
def test_a_gpu_that_cannot_draw_is_said_in_a_line_or_refused(monkeypatch, error):
    monkeypatch.setattr(gpu_renderer, "find_cuda_device", lambda: GPU)
    monkeypatch.setattr(cuda_raymarcher, "CudaRenderer", no_renderer(error))
    said = []
    assert open_gpu("auto", say=said.append) is None
    assert said == [f"the CPU draws, not NVIDIA H100: {error}"]
    with pytest.raises(InputError) as refusal:
        open_gpu("cuda", say=said.append)
    assert str(refusal.value) == f"--device cuda: {error}"
    assert len(said) == 1


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_gpu_that_can_draw_is_used(monkeypatch, device):
    renderer, told = StandInRenderer(), []
    monkeypatch.setattr(gpu_renderer, "find_cuda_device", lambda: GPU)
    monkeypatch.setattr(cuda_raymarcher, "CudaRenderer", lambda: renderer)
    gpu = open_gpu(device, say=pytest.fail, observe=lambda *seen: told.append(seen))
    gpu.draw([request(StandInScene(), 1)])
    gpu.close()
    assert (gpu.name, told, renderer.closed) == ("NVIDIA H100", [(1, 1.5)], 1)


def test_where_the_cpu_draws_nothing_of_cuda_is_imported():
    program = """
import sys
from streaming.pipeline import gpu_renderer
gpu_renderer.find_cuda_device = lambda: None
assert gpu_renderer.open_gpu("auto", say=print) is None
for name in ("cuda", "cuda_kernels.cuda_raymarcher", "cuda_kernels.cuda_module", "av", "numba"):
    assert name not in sys.modules, name
"""
    root = Path(gpu_renderer.__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True)
