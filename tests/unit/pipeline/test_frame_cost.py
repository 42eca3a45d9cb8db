"""What a frame costs, on a clock that only the stand-ins move."""

from __future__ import annotations

import itertools

import bundle_factory
import feature_bundle
import numpy as np
import pytest
import stand_ins

from models.speaker import load_speaker
from streaming.pipeline import frame_cost, onnx_engine
from streaming.pipeline.frame_cost import MEAN_OVER_FRAMES, FrameCostMeter, RunningCost
from streaming.pipeline.frame_renderer import Drawing
from streaming.pipeline.networks import SpeakerNetworks, open_networks
from streaming.pipeline.render_size import choose_render_size
from streaming.pipeline.renderers import make_renderer

IMAGE_PX = 128


class Clock:
    """Wall and CPU time of a machine; where it is busy, the wall clock runs on while the work waits."""

    def __init__(self, *, busy=1.0, others_ms=0.0):
        self.s = self.cpu_s = self.all_cpu_s = 0.0
        self.busy = busy  # wall time by the time that the work takes on free cores
        self.others_ms = others_ms  # CPU time of other threads of the process, meanwhile

    def now_s(self):
        return self.s

    def thread_s(self):
        return self.cpu_s

    def process_s(self):
        return self.all_cpu_s

    def spend(self, ms, *, threads=1, counted=True):
        self.s += self.busy * ms / 1000
        self.cpu_s += ms * (threads if counted else 1) / 1000
        self.all_cpu_s += (ms * threads + self.others_ms) / 1000

    def wait(self, ms):
        """For a GPU: the CPU does nothing."""
        self.s += ms / 1000


class Network:
    """Takes a time of its own at each call, then the last one for good."""

    def __init__(self, clock, engine, *took_ms):
        self.spend, self.engine, self.inputs = clock.spend, engine, []
        self.device = "CPU"
        self._took_ms = itertools.chain(took_ms, itertools.repeat(took_ms[-1]))

    def run(self, inputs):
        self.inputs.append(inputs)
        self.spend(next(self._took_ms))
        return self.engine.run(inputs)


class TimedRenderer:
    """A renderer whose calls take what they are told to."""

    def __init__(self, clock, size_px, *, draw_ms, finish_ms=0.0):
        self.clock, self.size_px = clock, size_px
        self._draw_ms, self._finish_ms = itertools.cycle(draw_ms), finish_ms
        self.conditions, self.poses = [], []

    def draw(self, *, c2w, condition, pose, blinking):
        self.conditions.append(condition)
        self.poses.append(pose)
        self.clock.spend(next(self._draw_ms), threads=2)
        return Drawing(finish=self.finish, drawn_px=self.size_px)

    def finish(self):
        self.clock.spend(self._finish_ms)
        return np.full((IMAGE_PX * 3 // 2, IMAGE_PX), 100, np.uint8)


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speakers") / "Tiny"
    return load_speaker(bundle_factory.write_tiny_bundle(folder, image_size_px=IMAGE_PX))


@pytest.fixture(scope="module")
def feature_speaker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speakers") / "Heard"
    return load_speaker(feature_bundle.write_feature_bundle(folder, image_size_px=IMAGE_PX))


@pytest.fixture
def encoded(monkeypatch):
    """The pictures that were given to be encoded, at 4 ms each."""
    given = []
    monkeypatch.setattr(frame_cost, "encode_ms", lambda pictures, cpu: given.append(list(pictures)) or 4.0)
    return given


def meter_of(
    speaker, clock, drawing, *, threads=2, motion_ms=(2.0,), condition_ms=(1.0,), features_ms=(30.0,)
):
    real = open_networks(speaker)
    networks = SpeakerNetworks(
        motion=Network(clock, real.motion, *motion_ms),
        condition=Network(clock, real.condition, *condition_ms),
        features=real.features and Network(clock, real.features, *features_ms),
    )
    asked = []

    def make_renderer(size_px):
        asked.append(size_px)
        return drawing(size_px)

    return (
        FrameCostMeter(speaker, networks, make_renderer, threads=threads, cores=2, clock=clock, cpu=clock),
        networks,
        asked,
    )


def quick_meter(speaker, networks, clock):
    """Returns a meter of what is drawn in 1 ms."""

    def make_renderer(size):
        return TimedRenderer(clock, size, draw_ms=[1.0])

    return FrameCostMeter(speaker, networks, make_renderer, threads=2, cores=2, clock=clock, cpu=clock)


def test_a_frame_is_drawn_on_the_raymarcher_s_threads_and_the_rest_beside(speaker, encoded):
    clock = Clock()
    meter, _, asked = meter_of(
        speaker, clock, lambda size: TimedRenderer(clock, size, draw_ms=[10.0], finish_ms=3.0)
    )
    cost = meter.measure(96)
    assert asked == [96]
    assert cost.render_ms == pytest.approx(10)
    assert cost.other_ms == pytest.approx(2 + 1 + 3 + 4)  # networks, scaling, encoder


def test_the_faster_of_two_looks_and_the_middle_of_three_poses_count(speaker, encoded):
    clock = Clock()
    slow_once = [50.0, 10.0, 12.0, 90.0, 70.0, 60.0]  # two looks at each of three poses
    meter, _, _ = meter_of(speaker, clock, lambda size: TimedRenderer(clock, size, draw_ms=slow_once))
    assert meter.measure(96).render_ms == pytest.approx(12)


def test_the_quickest_run_of_the_networks_counts(speaker, encoded):
    clock = Clock()
    meter, networks, _ = meter_of(
        speaker,
        clock,
        lambda size: TimedRenderer(clock, size, draw_ms=[1.0]),
        motion_ms=(40.0, 2.5, 9.0),
        condition_ms=(1.5,),
    )
    assert meter.measure(96).other_ms == pytest.approx(2.5 + 1.5 + 4)
    sounds = [inputs["pcm"] for inputs in networks.motion.inputs]
    assert all(not sound.any() for sound in sounds)
    assert {sound.shape for sound in sounds} == {(1, speaker.motion.window_samples)}
    windows = [inputs["window"] for inputs in networks.condition.inputs]
    assert {len(window) for window in windows} == {speaker.condition.window_frames}


def test_networks_that_move_several_frames_at_once_cost_each_of_them_a_share(feature_speaker, encoded):
    clock = Clock()
    meter, networks, _ = meter_of(
        feature_speaker,
        clock,
        lambda size: TimedRenderer(clock, size, draw_ms=[10.0], finish_ms=3.0),
        motion_ms=(6.0,),
        features_ms=(90.0, 50.0, 42.0, 60.0),
    )
    assert meter.motion_ms == pytest.approx((42 + 6) / 4)
    cost = meter.measure(96)
    assert cost.other_ms == pytest.approx(12 + 1 + 3 + 4)
    assert cost.burst_ms == pytest.approx(48 - 12)  # what the first of the four waits for the other three
    assert all(not values.any() for inputs in networks.motion.inputs for values in inputs.values())
    assert {inputs["pcm"].shape for inputs in networks.features.inputs} == {(1, 16 * 640)}


def test_what_is_drawn_is_the_face_at_rest_along_its_path(speaker, encoded):
    clock = Clock()
    drawing = TimedRenderer(clock, 96, draw_ms=[1.0])
    meter, _, _ = meter_of(speaker, clock, lambda _: drawing)
    meter.measure(96)
    assert len(drawing.poses) == 6
    assert len(set(drawing.poses)) == 3
    assert max(drawing.poses) < len(speaker.poses)
    assert all(np.array_equal(condition, drawing.conditions[0]) for condition in drawing.conditions)


def test_the_encoder_is_timed_once_whatever_the_size(speaker, encoded):
    clock = Clock()
    meter, _, asked = meter_of(speaker, clock, lambda size: TimedRenderer(clock, size, draw_ms=[size / 10]))
    costs = [meter.measure(size) for size in (96, 128)]
    assert len(encoded) == 1
    assert [picture.shape for picture in encoded[0]] == [(IMAGE_PX * 3 // 2, IMAGE_PX)] * 3
    assert costs[0].other_ms == pytest.approx(costs[1].other_ms)
    assert costs[1].render_ms > costs[0].render_ms
    assert asked == [96, 128]


def test_the_real_stages_can_be_measured(speaker):
    raymarcher = stand_ins.StandInRaymarcher()
    meter = FrameCostMeter(
        speaker,
        open_networks(speaker),
        lambda size_px: make_renderer(speaker, raymarcher, size_px),
        threads=2,
        cores=2,
    )
    cost = meter.measure(96)
    assert cost.render_ms > 0
    assert cost.other_ms > 0
    assert raymarcher.drawn == 2 * 6  # whole and mouth
    assert 96 in raymarcher.sizes


# On a busy machine ------------------------------------------------------------------------------------


def small_cost(speaker, clock):
    """Of a frame that takes 7 core-milliseconds with the encoder's 1."""
    meter, _, _ = meter_of(
        speaker,
        clock,
        lambda size: TimedRenderer(clock, size, draw_ms=[1.5], finish_ms=1.0),
        motion_ms=(1.0,),
        condition_ms=(1.0,),
    )
    return meter.measure(96)


@pytest.mark.parametrize("busy", [1.0, 2.5, 8.0])
def test_what_others_do_on_the_machine_is_not_what_a_frame_costs(speaker, monkeypatch, busy):
    monkeypatch.setattr(frame_cost, "encode_ms", lambda pictures, cpu: 1.0)
    cost = small_cost(speaker, Clock(busy=busy))
    assert cost.core_ms(threads=2) == pytest.approx(7.0)
    assert cost.other_ms == pytest.approx(4.0)
    assert 1.5 - 1e-9 <= cost.render_ms <= 1.5 * 1.15 + 1e-9  # wall time on free cores


def test_what_other_sessions_of_the_process_do_is_not_what_a_frame_costs(speaker, monkeypatch):
    monkeypatch.setattr(frame_cost, "encode_ms", lambda pictures, cpu: 1.0)
    cost = small_cost(speaker, Clock(busy=3.0, others_ms=50.0))
    assert cost.core_ms(threads=2) == pytest.approx(7.0)


def test_the_size_is_that_of_the_machine_not_of_the_moment(speaker, encoded):
    def chosen_where(busy):
        clock = Clock(busy=busy)
        meter, _, _ = meter_of(
            speaker, clock, lambda size: TimedRenderer(clock, size, draw_ms=[size**2 / 3000])
        )
        return choose_render_size(meter.measure, largest_px=512, threads=2, cores=2)

    free, busy = chosen_where(1.0), chosen_where(8.0)
    assert free.keeps_up
    assert busy.keeps_up
    assert free.size_px == busy.size_px == 256


def test_threads_that_wait_for_one_another_take_the_time_they_take(speaker, encoded):
    clock = Clock(busy=1.1)  # a little beyond an even share: tiles are not all alike
    meter, _, _ = meter_of(speaker, clock, lambda size: TimedRenderer(clock, size, draw_ms=[10.0]))
    cost = meter.measure(96)
    assert cost.render_ms == pytest.approx(1.1 * 10)
    assert cost.render_core_ms == pytest.approx(2 * 10)


def test_a_gpu_s_time_passes_while_the_cpu_waits(speaker, encoded):
    clock = Clock()

    class OnGpu(TimedRenderer):
        def draw(self, **drawn):
            clock.spend(0.5)
            clock.wait(9.5)
            return super().draw(**drawn)

    meter, _, _ = meter_of(speaker, clock, lambda size: OnGpu(clock, size, draw_ms=[0.0]), threads=0)
    cost = meter.measure(96)
    assert cost.render_ms == pytest.approx(10)
    assert 0.5 <= cost.render_core_ms < 3


def test_networks_on_a_gpu_are_timed_by_the_clock(speaker, encoded):
    clock = Clock()
    real = open_networks(speaker)
    motion = Network(clock, real.motion, 8.0)
    motion.device, motion.spend = "A GPU", clock.wait
    networks = SpeakerNetworks(motion=motion, condition=Network(clock, real.condition, 1.0))
    meter = quick_meter(speaker, networks, clock)
    cost = meter.measure(96)
    assert meter.motion_ms == pytest.approx(8.0)
    assert cost.other_ms == pytest.approx(8 + 1 + 4)
    assert cost.other_core_ms == pytest.approx(0 + 1 + 4)


@pytest.mark.parametrize("busy", [1.0, 8.0])
def test_a_large_network_takes_all_cores_and_is_counted_by_all_of_them(speaker, encoded, monkeypatch, busy):
    monkeypatch.setattr(onnx_engine, "LARGE_BYTES", 0)
    clock = Clock(busy=busy)
    real = open_networks(speaker)
    networks = SpeakerNetworks(
        motion=Network(clock, real.motion, 10.0), condition=Network(clock, real.condition, 1.0)
    )
    networks.motion.spend = lambda ms: clock.spend(ms, threads=2, counted=False)
    meter = quick_meter(speaker, networks, clock)
    assert 10 - 1e-9 <= meter.motion_ms <= 11.5 + 1e-9
    assert meter.measure(96).other_core_ms == pytest.approx(20 + 1 + 4)


# Of running sessions ----------------------------------------------------------------------------------


def by_pixels(size_px):
    return size_px**2 / 1000


def test_where_nothing_ran_what_was_measured_counts():
    assert RunningCost().core_ms(128, by_pixels) == by_pixels(128)
    assert not RunningCost().known


def test_the_running_mean_takes_the_place_of_the_first_figure_both_ways():
    for true_ms in (7.0, 57.0):
        running = RunningCost()
        running.add(128, frames=25, core_ms=true_ms)
        assert running.core_ms(128, lambda _: 20.0) == pytest.approx(true_ms)


def test_a_mean_forgets_what_was_long_ago():
    running = RunningCost()
    running.add(128, frames=25, core_ms=50.0)
    running.add(128, frames=25, core_ms=10.0)
    assert running.core_ms(128, by_pixels) == pytest.approx(30.0)
    for _ in range(4 * MEAN_OVER_FRAMES // 25):
        running.add(128, frames=25, core_ms=10.0)
    assert running.core_ms(128, by_pixels) == pytest.approx(10.0, abs=0.5)
    running.add(128, frames=25, core_ms=60.0)  # one busy second
    assert running.core_ms(128, by_pixels) < 21


def test_other_sizes_follow_the_nearest_that_ran():
    running = RunningCost()
    running.add(256, frames=25, core_ms=2 * by_pixels(256))
    assert running.core_ms(128, by_pixels) == pytest.approx(2 * by_pixels(128))
    running.add(128, frames=25, core_ms=9.0)
    assert running.core_ms(128, by_pixels) == pytest.approx(9.0)
    assert running.core_ms(160, by_pixels) == pytest.approx(9.0 * (160 / 128) ** 2)


def test_a_smaller_size_takes_no_more_than_a_larger_one_that_ran():
    running = RunningCost()
    running.add(256, frames=25, core_ms=20.0)
    wrong_once = {128: 57.0, 256: 25.0}
    assert running.core_ms(128, wrong_once.__getitem__) == pytest.approx(20.0)


def test_what_is_said_to_cost_nothing_can_be_scaled():
    running = RunningCost()
    running.add(256, frames=25, core_ms=20.0)
    assert running.core_ms(128, lambda _: 0.0) == pytest.approx(20.0)
