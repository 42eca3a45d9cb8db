"""What a frame costs, on a clock that only the stand-ins move."""

from __future__ import annotations

import itertools

import bundle_factory
import feature_bundle
import numpy as np
import pytest
import stand_ins

from models.speaker import load_speaker
from streaming import frame_cost
from streaming.file_run import make_renderer
from streaming.frame_cost import FrameCostMeter
from streaming.networks import SpeakerNetworks, open_networks

IMAGE_PX = 128


class Clock:
    def __init__(self):
        self.s = 0.0

    def now_s(self):
        return self.s

    def spend(self, ms):
        self.s += ms / 1000


class Network:
    """Takes a time of its own at each call, then the last one for good."""

    def __init__(self, clock, engine, *took_ms):
        self.clock, self.engine, self.inputs = clock, engine, []
        self._took_ms = itertools.chain(took_ms, itertools.repeat(took_ms[-1]))

    def run(self, inputs):
        self.inputs.append(inputs)
        self.clock.spend(next(self._took_ms))
        return self.engine.run(inputs)


class Drawing:
    """A renderer whose calls take what they are told to."""

    def __init__(self, clock, size_px, *, draw_ms, finish_ms=0.0):
        self.clock, self.size_px = clock, size_px
        self._draw_ms, self._finish_ms = itertools.cycle(draw_ms), finish_ms
        self.conditions, self.poses = [], []

    def draw_whole(self, *, c2w, condition):
        self.conditions.append(condition)
        self.clock.spend(next(self._draw_ms))
        return c2w

    def draw_mouth(self, *, c2w, condition, pose):
        self.poses.append(pose)
        self.clock.spend(1.0)
        return None, None

    def finish(self, whole, mouth, box):
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
    monkeypatch.setattr(frame_cost, "encode_ms", lambda pictures, clock: given.append(list(pictures)) or 4.0)
    return given


def meter_of(speaker, clock, drawing, *, motion_ms=(2.0,), condition_ms=(1.0,), features_ms=(30.0,)):
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

    return FrameCostMeter(speaker, networks, make_renderer, clock=clock), networks, asked


def test_a_frame_is_drawn_on_the_raymarcher_s_threads_and_the_rest_beside(speaker, encoded):
    clock = Clock()
    meter, _, asked = meter_of(
        speaker, clock, lambda size: Drawing(clock, size, draw_ms=[10.0], finish_ms=3.0)
    )
    cost = meter.measure(96)
    assert asked == [96]
    assert cost.render_ms == pytest.approx(10 + 1)  # the whole and the mouth
    assert cost.other_ms == pytest.approx(2 + 1 + 3 + 4)  # networks, scaling, encoder


def test_the_faster_of_two_looks_and_the_middle_of_three_poses_count(speaker, encoded):
    clock = Clock()
    slow_once = [50.0, 10.0, 12.0, 90.0, 70.0, 60.0]  # two looks at each of three poses
    meter, _, _ = meter_of(speaker, clock, lambda size: Drawing(clock, size, draw_ms=slow_once))
    assert meter.measure(96).render_ms == pytest.approx(12 + 1)


def test_the_quickest_run_of_the_networks_counts(speaker, encoded):
    clock = Clock()
    meter, networks, _ = meter_of(
        speaker,
        clock,
        lambda size: Drawing(clock, size, draw_ms=[1.0]),
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
        lambda size: Drawing(clock, size, draw_ms=[10.0], finish_ms=3.0),
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
    drawing = Drawing(clock, 96, draw_ms=[1.0])
    meter, _, _ = meter_of(speaker, clock, lambda _: drawing)
    meter.measure(96)
    assert len(drawing.poses) == 6
    assert len(set(drawing.poses)) == 3
    assert max(drawing.poses) < len(speaker.poses)
    assert all(np.array_equal(condition, drawing.conditions[0]) for condition in drawing.conditions)


def test_the_encoder_is_timed_once_whatever_the_size(speaker, encoded):
    clock = Clock()
    meter, _, asked = meter_of(speaker, clock, lambda size: Drawing(clock, size, draw_ms=[size / 10]))
    costs = [meter.measure(size) for size in (96, 128)]
    assert len(encoded) == 1
    assert [picture.shape for picture in encoded[0]] == [(IMAGE_PX * 3 // 2, IMAGE_PX)] * 3
    assert costs[0].other_ms == pytest.approx(costs[1].other_ms)
    assert costs[1].render_ms > costs[0].render_ms
    assert asked == [96, 128]


def test_the_real_stages_can_be_measured(speaker):
    raymarcher = stand_ins.StandInRaymarcher()
    meter = FrameCostMeter(
        speaker, open_networks(speaker), lambda size_px: make_renderer(speaker, raymarcher, size_px)
    )
    cost = meter.measure(96)
    assert cost.render_ms > 0
    assert cost.other_ms > 0
    assert raymarcher.drawn == 2 * 6  # whole and mouth
    assert 96 in raymarcher.sizes
