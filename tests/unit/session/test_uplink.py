"""The microphone's way: 20 ms of it to the pipeline at each tick, and back to the peer when it is due."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
from manual_clock import ManualClock
from session_parts import SOUND_STEP, START_S, StandInSender, make_schedule

from streaming.session import uplink
from streaming.session.frame_log import TickRecord
from streaming.session.uplink import Uplink


class StandInMicrophone:
    """A tone whose loudness is the test's."""

    def __init__(self):
        self.gain = 0.1
        self.depth_ms, self.target_ms = 60.0, 60.0
        self.timestamp = None  # of what is read next; None: silence
        self.read_at_s, self.packets = [], []
        self.closed = False

    def put(self, **packet):
        self.packets.append(packet)

    def read(self, now_s):
        self.read_at_s.append(now_s)
        timestamp = self.timestamp
        return SimpleNamespace(
            samples=np.full(SOUND_STEP, self.gain, np.float32),
            timestamp=timestamp,
            arrived_s=None if timestamp is None else now_s - 0.06,
        )

    def close(self):
        self.closed = True


class Setup:
    def __init__(self):
        self.schedule, self.clock = make_schedule(), ManualClock(START_S)
        self.sender, self.heard = StandInSender(connected=True), []
        self.uplink = Uplink(
            self.schedule,
            push_audio=self.heard.append,
            sender=lambda: self.sender,
            on_loop=lambda call, *arguments: call(*arguments),
            clock=self.clock,
        )
        self.microphone = self.uplink.microphone = StandInMicrophone()

    def take(self, ticks):
        for tick in ticks:
            self.uplink.take_tick(tick, self.schedule.tick_s(tick))

    @property
    def timestamps(self):
        return [block.timestamp for block in self.sender.pushed]


@pytest.fixture
def setup():
    return Setup()


def test_each_tick_gives_the_pipeline_20_ms_at_16_khz_and_is_logged(setup):
    setup.microphone.timestamp = 4800
    setup.clock.time_s = START_S + 0.001
    setup.take(range(3))
    assert [pcm.shape for pcm in setup.heard] == [(320,)] * 3
    assert {pcm.dtype.name for pcm in setup.heard} == {"float32"}
    assert setup.microphone.read_at_s == pytest.approx([START_S, START_S + 0.02, START_S + 0.04])
    assert setup.uplink.ticks.at(0) == TickRecord(
        timestamp=4800, arrived_s=START_S - 0.06, buffered_s=START_S + 0.001
    )


def test_sound_leaves_after_the_delay_with_the_timestamp_of_its_own_tick(setup):
    delay_ticks = setup.schedule.sound_delay_ticks
    setup.take(range(delay_ticks))
    assert setup.sender.pushed == []
    setup.take(range(delay_ticks, delay_ticks + 3))
    assert setup.timestamps == [0, SOUND_STEP, 2 * SOUND_STEP]
    for block in setup.sender.pushed:
        assert len(block.payloads) == 1
        assert block.payloads[0]
        assert block.duration_ms == 20.0
        assert block.level_db == pytest.approx(-20.0, abs=0.01)


def test_a_longer_playout_delay_holds_sound_back_and_a_shorter_one_sends_two_blocks(setup):
    ticks = iter(range(100))
    setup.take([next(ticks) for _ in range(setup.schedule.sound_delay_ticks + 1)])
    assert setup.timestamps == [0]
    setup.schedule.playout_delay_ticks += 1
    setup.take([next(ticks)])
    assert setup.timestamps == [0]
    setup.schedule.playout_delay_ticks -= 1
    setup.take([next(ticks)])
    assert setup.timestamps == [0, SOUND_STEP, 2 * SOUND_STEP]


@pytest.mark.parametrize("sender", [None, StandInSender()])
def test_without_a_connection_the_pipeline_hears_and_nothing_is_sent(setup, sender):
    setup.sender = sender
    setup.take(range(50))
    assert len(setup.heard) == 50
    assert sender is None or sender.pushed == []
    setup.sender = StandInSender(connected=True)
    setup.take([50])
    assert setup.timestamps == [(50 - setup.schedule.sound_delay_ticks) * SOUND_STEP]  # nothing old


@pytest.mark.parametrize(("depth_ms", "moves"), [(100.0, -1), (0.0, 1)])
def test_ticks_follow_the_clock_of_the_microphone(setup, depth_ms, moves):
    setup.microphone.depth_ms = depth_ms
    setup.take(range(5))
    assert setup.schedule.start_s == START_S  # nothing plays: there is nothing to follow
    setup.microphone.timestamp = 0
    setup.take(range(5, 10))
    assert np.sign(setup.schedule.start_s - START_S) == moves


def test_packets_reach_the_jitter_buffer(setup):
    setup.uplink.take_packet(7, 6720, b"opus", 1.5)
    assert setup.microphone.packets == [
        {"sequence": 7, "timestamp": 6720, "payload": b"opus", "arrived_s": 1.5}
    ]


def test_the_thread_takes_the_ticks_that_are_due_until_it_is_stopped(setup):
    waits = []

    class Stopping(threading.Event):
        def wait(self, timeout=None):
            waits.append(timeout)
            setup.clock.time_s += timeout
            return len(waits) > 3

    setup.clock.time_s += 0.03  # it begins late
    setup.uplink.run(Stopping())
    assert setup.microphone.read_at_s == pytest.approx([START_S, START_S + 0.02, START_S + 0.04])
    assert waits == pytest.approx([0.0, 0.0, 0.01, 0.02])


def test_the_level_is_that_of_the_loudest_of_the_last_ten_ticks(setup):
    assert setup.uplink.level_db == -100.0
    setup.take([0])
    setup.microphone.gain = 0.01
    setup.take(range(1, 10))
    assert setup.uplink.level_db == pytest.approx(-20.0, abs=0.01)
    setup.take([10])
    assert setup.uplink.level_db == pytest.approx(-40.0, abs=0.01)


def test_closing_it_closes_the_decoder(setup):
    setup.uplink.close()
    assert setup.microphone.closed


@pytest.mark.parametrize(
    ("samples", "level_db"),
    [
        (np.zeros(960, np.float32), -100.0),
        (np.full(960, 1e-6, np.float32), -100.0),
        (np.ones(960, np.float32), 0.0),
        (np.full(960, 0.1, np.float32), -20.0),
        (np.sin(2 * np.pi * 50 * np.arange(960) / 960).astype(np.float32), -3.01),
        (np.zeros(0, np.float32), -100.0),
    ],
)
def test_loudness_is_in_decibels_below_full_scale(samples, level_db):
    assert uplink._level_db(samples) == pytest.approx(level_db, abs=0.01)
