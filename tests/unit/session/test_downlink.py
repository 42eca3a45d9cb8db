"""A frame's way: encoded, sent when it is due, or counted as dropped; and what follows from being late."""

import logging
import threading
from types import SimpleNamespace

import pytest
from manual_clock import ManualClock
from session_parts import (
    START_S,
    VIDEO_STEP,
    StandInEncoder,
    StandInSender,
    make_loaded_speaker,
    make_schedule,
)

from streaming.session.downlink import FRAME_S, Downlink
from streaming.session.frame_log import TickLog, TickRecord
from streaming.session.metrics import Metrics
from streaming.session.playout_delay import LOSSES, PlayoutDelay

NO_DROPS = {"skipped": 0, "late": 0, "bandwidth": 0}


class Feed:
    """Stands for the pipeline: gives each frame at its time, and ends a second after the last."""

    def __init__(self, clock):
        self.clock, self.frames = clock, []
        self.renderer = SimpleNamespace(render_px=128)
        self.handling_s = 0.0

    def next_frame(self, timeout_s):
        ends_s = self.clock.time_s + timeout_s
        due_s = self.frames[0].finished_s if self.frames else self.end_s
        self.clock.time_s = max(self.clock.time_s, min(due_s, ends_s))
        if due_s > ends_s:
            raise TimeoutError
        if not self.frames:
            return None
        self.end_s = due_s + 1.0
        return self.frames.pop(0)


class Setup:
    def __init__(self):
        self.schedule, self.clock = make_schedule(), ManualClock(START_S)
        self.sender, self.encoder, self.ticks = StandInSender(connected=True), None, TickLog()
        self.sent_s, self.metrics = [], Metrics()
        self.downlink = Downlink(
            make_loaded_speaker(),
            self.schedule,
            PlayoutDelay(self.schedule.playout_delay_ticks),
            bitrate=1_200_000,
            ticks=self.ticks,
            sender=lambda: self.sender,
            on_loop=self._send,
            metrics=self.metrics,
            log=logging.getLogger("test"),
            clock=self.clock,
        )
        self.feed = self.downlink.pipeline = Feed(self.clock)
        self.codec = SimpleNamespace(open=self._open)
        self.payloads = [b"picture"]
        for number in range(200):
            self.ticks.add(TickRecord(timestamp=960 * number, arrived_s=1.0, buffered_s=1.02))

    def _send(self, call, *arguments):
        self.sent_s.append(self.clock.time_s)
        call(*arguments)

    def _open(self, **opened):
        self.encoder = StandInEncoder(**opened)
        self.encoder.payloads = self.payloads
        return self.encoder

    def frame(self, index, *, early_s=0.02, draw_ms=10.0, render_px=128, drawn_px=None, drawn_share=1.0):
        """Returns a frame that is drawn so long before it is due."""
        at_s = self.schedule.frame_due_s(index) - early_s
        return SimpleNamespace(
            index=index,
            picture=index,
            windowed_s=at_s - 0.01,
            finished_s=at_s,
            draw_ms=draw_ms,
            render_px=render_px,
            drawn_px=drawn_px or render_px,
            drawn_share=drawn_share,
        )

    def run(self, frames):
        self.feed.frames = list(frames)
        self.downlink.run(threading.Event(), self.codec)

    @property
    def sent(self):
        return [picture.timestamp // VIDEO_STEP for picture in self.sender.pushed]

    def sample(self, name, **labels):
        return self.metrics.registry.get_sample_value(f"geneface_{name}", labels)


@pytest.fixture
def setup():
    return Setup()


def test_pictures_leave_when_they_are_due(setup):
    setup.run(setup.frame(index, early_s=0.05) for index in range(5))
    assert setup.sent == [0, 1, 2, 3, 4]
    assert setup.sent_s == pytest.approx([setup.schedule.frame_due_s(index) for index in range(5)])
    assert {picture.duration_ms for picture in setup.sender.pushed} == {40.0}
    assert setup.encoder.opened == {"size_px": 128, "bitrate": 1_200_000}
    assert setup.downlink.rendered == setup.sample("frames_rendered_total", speaker="Tiny") == 5
    assert setup.downlink.dropped == NO_DROPS
    assert setup.downlink.sent_fps(setup.sent_s[-1]) == pytest.approx(25.0)


def test_each_picture_that_left_is_logged_with_the_sound_it_belongs_to(setup):
    setup.run([setup.frame(6)])
    [record] = setup.downlink.frames.after(-1)
    assert (record.index, record.rtp) == (6, 6 * VIDEO_STEP + 7)  # as on the wire
    assert record.sound_timestamp == 960 * 12
    stages_s = [record.windowed_s, record.finished_s, record.encoded_s, record.sent_s]
    assert stages_s == sorted(stages_s)
    assert record.sent_s == pytest.approx(setup.schedule.frame_due_s(6))
    assert setup.sample("stage_duration_seconds_count", stage="wait") == 1


@pytest.mark.parametrize("sender", [None, StandInSender()])
def test_without_a_connection_nothing_is_encoded_and_nothing_is_lost(setup, sender):
    setup.sender = sender
    setup.run(setup.frame(index) for index in (0, 1, 9))
    assert setup.encoder.numbers == []
    assert setup.downlink.dropped == NO_DROPS
    assert setup.downlink.rendered == 0


def test_a_picture_that_the_bitrate_has_no_room_for_is_counted_as_that(setup):
    setup.payloads = []
    setup.run(setup.frame(index) for index in range(3))
    assert setup.downlink.dropped == {**NO_DROPS, "bandwidth": 3}
    assert setup.sample("frames_dropped_total", speaker="Tiny", reason="bandwidth") == 3
    assert setup.downlink.rendered == 0
    assert setup.sent == []


def test_frames_that_the_pipeline_passed_over_are_counted_as_skipped(setup):
    setup.run(setup.frame(index) for index in (0, 1, 4, 5))
    assert setup.downlink.dropped == {**NO_DROPS, "skipped": 2}
    assert setup.sent == [0, 1, 4, 5]


def test_a_late_picture_is_dropped_unless_the_last_one_has_been_seen_for_long(setup):
    late_s = {1: 1.2 * FRAME_S, 2: 1.2 * FRAME_S, 3: 1.3 * FRAME_S}
    setup.run([setup.frame(0), *(setup.frame(index, early_s=-by_s) for index, by_s in late_s.items())])
    assert setup.sent == [0, 1, 3]
    assert setup.downlink.dropped == {**NO_DROPS, "late": 1}


def test_pictures_that_keep_coming_late_lengthen_the_playout_delay(setup):
    before_ms = setup.schedule.delay_ms
    frames = [setup.frame(index, early_s=-1.2 * FRAME_S) for index in range(LOSSES)]
    setup.run(frames)
    assert setup.schedule.delay_ms == before_ms + 20
    assert setup.downlink.resolution.size_px == 128


def test_frames_that_take_too_long_to_draw_are_drawn_smaller(setup):
    setup.run(setup.frame(index, draw_ms=39.0) for index in range(20))
    assert setup.downlink.resolution.size_px == 96
    assert setup.feed.renderer.render_px == 96
    assert setup.sample("render_size_changes_total", direction="down") == 1


def test_what_was_drawn_of_the_last_picture_is_known(setup):
    assert (setup.downlink.drawn_px, setup.downlink.drawn_share) == (128, 1.0)
    setup.run([setup.frame(0, drawn_share=0.14)])
    assert (setup.downlink.drawn_px, setup.downlink.drawn_share) == (128, 0.14)
    setup.run([setup.frame(1, drawn_px=100)])  # while its plates are being read
    assert (setup.downlink.drawn_px, setup.downlink.drawn_share) == (100, 1.0)


def test_pictures_without_their_plates_are_judged_by_the_size_that_was_asked_for(setup):
    setup.run(setup.frame(index, draw_ms=39.0, drawn_px=100) for index in range(20))
    assert setup.downlink.resolution.size_px == 96


def test_a_frame_of_an_earlier_size_says_nothing_of_the_present_one(setup):
    setup.run(setup.frame(index, draw_ms=39.0, render_px=96) for index in range(20))
    assert setup.downlink.resolution.size_px == 128


def test_keyframes_and_bitrates_reach_the_encoder_while_there_is_one(setup):
    asked = [lambda: setup.downlink.want_keyframe(), lambda: setup.downlink.limit_bitrate(400_000)]

    class Asking(StandInEncoder):
        def encode(self, picture, number):
            for ask in asked:
                ask()
            return super().encode(picture, number)

    encoder = Asking()
    setup.codec = SimpleNamespace(open=lambda **_: encoder)
    for ask in asked:
        ask()
    setup.run([setup.frame(0)])
    for ask in asked:
        ask()
    assert encoder.keyframes == 1
    assert encoder.limits == [400_000]


def test_it_goes_on_with_the_cpu_at_the_smallest_size(setup):
    before_ms = setup.schedule.delay_ms
    setup.downlink.move_to(make_loaded_speaker(frame_latency_ms=80.0))
    assert setup.downlink.resolution.size_px == setup.feed.renderer.render_px == 96
    assert setup.downlink.resolution.note == "the GPU failed, the CPU draws"
    assert setup.schedule.delay_ms > before_ms


def test_it_ends_when_it_is_stopped(setup):
    stopping = threading.Event()
    stopping.set()
    setup.feed.frames = [setup.frame(0)]
    setup.downlink.run(stopping, setup.codec)
    assert setup.encoder.numbers == []
