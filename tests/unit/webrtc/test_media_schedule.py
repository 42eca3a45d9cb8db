"""Ticks, frames, their sound and their reports: one clock."""

import itertools

import pytest

from models.time_base import FRAME_RATE_HZ, FRAME_SAMPLES
from streaming.session.playout_delay import playout_delay_ticks_for
from streaming.webrtc.media_schedule import (
    MAX_PLAYOUT_DELAY_TICKS,
    MIN_PLAYOUT_DELAY_TICKS,
    NTP_EPOCH_S,
    SOUND_LEAD_TICKS,
    SOUND_RATE_HZ,
    SPARE_MS,
    TICK_S,
    TICK_SAMPLES,
    TICKS_PER_FRAME,
    VIDEO_CLOCK_HZ,
    MediaSchedule,
    slew_towards,
    video_timestamp,
)

START_S, START_UNIX_S = 1234.5, 1_750_000_000.25
NTP_UNIT_S = 2.0**-32
ROUNDING_S = 1e-6  # float64 holds seconds since 1900 to half a microsecond


def schedule(*, lookahead_frames=4, playout_delay_ticks=3):
    return MediaSchedule(
        start_s=START_S,
        start_unix_s=START_UNIX_S,
        lookahead_frames=lookahead_frames,
        playout_delay_ticks=playout_delay_ticks,
    )


def ntp_to_unix_s(ntp):
    return (ntp >> 32) - NTP_EPOCH_S + (ntp & 0xFFFFFFFF) * NTP_UNIT_S


def test_a_tick_and_a_frame_are_whole_numbers_of_samples():
    assert TICK_SAMPLES * TICKS_PER_FRAME == FRAME_SAMPLES
    assert TICK_S * TICKS_PER_FRAME == 1 / FRAME_RATE_HZ
    assert VIDEO_CLOCK_HZ % FRAME_RATE_HZ == 0


def test_ticks_are_20_ms_apart():
    plan = schedule()
    assert plan.tick_s(0) == START_S
    for tick in (1, 50, 10**7):
        assert plan.tick_s(tick) == pytest.approx(START_S + tick * 0.02, abs=1e-9)


@pytest.mark.parametrize("lookahead_frames", [0, 1, 4, 9])
@pytest.mark.parametrize("playout_delay_ticks", [2, 5, 8])
def test_a_frame_is_due_its_allowance_after_its_last_look_ahead_was_taken(
    lookahead_frames, playout_delay_ticks
):
    plan = schedule(lookahead_frames=lookahead_frames, playout_delay_ticks=playout_delay_ticks)
    for frame in (0, 1, 1000):
        last_sample = FRAME_SAMPLES * (frame + 1 + lookahead_frames) - 1
        taken_s = plan.tick_s(last_sample // TICK_SAMPLES)
        assert plan.frame_due_s(frame) == pytest.approx(taken_s + playout_delay_ticks * TICK_S, abs=1e-9)


def test_frames_are_due_25_times_a_second():
    plan = schedule()
    steps = {round(plan.frame_due_s(i + 1) - plan.frame_due_s(i), 9) for i in range(100)}
    assert steps == {0.04}


def test_sound_leaves_a_little_before_its_frame():
    plan = schedule()
    frame = 17
    first_tick = frame * TICKS_PER_FRAME
    sound_s = plan.tick_s(first_tick + plan.sound_delay_ticks)
    assert plan.frame_due_s(frame) - sound_s == pytest.approx(SOUND_LEAD_TICKS * TICK_S)
    assert 0 <= SOUND_LEAD_TICKS * TICK_S <= 0.045  # no ear notices (ITU-R BT.1359)


def test_sound_waits_for_a_tick_at_least_however_short_the_delay():
    plan = schedule(lookahead_frames=0, playout_delay_ticks=MIN_PLAYOUT_DELAY_TICKS)
    assert plan.sound_delay_ticks >= 1


def test_the_delay_that_is_told_is_that_of_a_frame_s_first_sample():
    plan = schedule(lookahead_frames=4, playout_delay_ticks=3)
    assert plan.delay_ticks == 2 * 5 - 1 + 3
    assert plan.delay_ms == pytest.approx(240)
    assert plan.frame_due_s(0) - START_S == pytest.approx(plan.delay_ms / 1000)


def test_wall_time_runs_along_with_the_monotonic_clock():
    plan = schedule()
    assert plan.unix_s(START_S) == START_UNIX_S
    assert plan.unix_s(START_S + 7200.125) - START_UNIX_S == pytest.approx(7200.125, abs=ROUNDING_S)


@pytest.mark.parametrize("frame", [0, 1, 7, 25 * 3600 * 24])
def test_reports_of_both_streams_map_equal_media_time_to_equal_ntp(frame):
    plan = schedule()
    sound_timestamp = frame * SOUND_RATE_HZ // FRAME_RATE_HZ
    video = plan.ntp_at(video_timestamp(frame) / VIDEO_CLOCK_HZ)
    sound = plan.ntp_at(sound_timestamp / SOUND_RATE_HZ)
    assert sound == video


@pytest.mark.parametrize("frame", [0, 1, 999])
def test_a_report_says_when_its_frame_is_due_on_the_wall_clock(frame):
    plan = schedule()
    ntp = plan.ntp_at(video_timestamp(frame) / VIDEO_CLOCK_HZ)
    assert 0 <= ntp < 1 << 64
    assert ntp_to_unix_s(ntp) == pytest.approx(plan.unix_s(plan.frame_due_s(frame)), abs=ROUNDING_S)


def test_ntp_never_goes_back():
    plan = schedule()
    stamps = [plan.ntp_at(tick * TICK_S) for tick in range(500)]
    steps_s = [(later - earlier) * NTP_UNIT_S for earlier, later in itertools.pairwise(stamps)]
    assert min(steps_s) == pytest.approx(TICK_S, abs=ROUNDING_S)
    assert max(steps_s) == pytest.approx(TICK_S, abs=ROUNDING_S)


@pytest.mark.parametrize(
    ("serial_ms", "ticks"),
    [(0, 2), (20, 2), (20.1, 3), (33, 3), (33.4, 4), (46.6, 4), (60, 5), (100, 8), (1e6, 8)],
)
def test_the_allowance_is_half_as_much_again_and_half_a_tick_in_whole_ticks(serial_ms, ticks):
    assert playout_delay_ticks_for(serial_ms) == ticks


def test_a_slower_machine_is_never_allowed_less():
    allowed = [playout_delay_ticks_for(tenth_ms / 10) for tenth_ms in range(2000)]
    assert allowed == sorted(allowed)
    assert set(allowed) == set(range(MIN_PLAYOUT_DELAY_TICKS, MAX_PLAYOUT_DELAY_TICKS + 1))
    assert all(
        ticks * TICK_S * 1000 >= 1.5 * tenth_ms / 10
        for tenth_ms, ticks in enumerate(allowed)
        if ticks < MAX_PLAYOUT_DELAY_TICKS
    )


def test_video_timestamps_count_90_khz():
    assert [video_timestamp(frame) for frame in (0, 1, 25)] == [0, 3600, 90_000]
    assert video_timestamp(10**7) == 36_000_000_000  # unwrapped: the sender wraps


def test_a_larger_allowance_moves_sound_pictures_and_reports_alike():
    plan, later = schedule(playout_delay_ticks=3), schedule(playout_delay_ticks=3)
    later.playout_delay_ticks = 5
    assert later.sound_delay_ticks - plan.sound_delay_ticks == 2
    assert later.frame_due_s(7) - plan.frame_due_s(7) == pytest.approx(2 * TICK_S)
    assert ntp_to_unix_s(later.ntp_at(1.5)) - ntp_to_unix_s(plan.ntp_at(1.5)) == pytest.approx(
        2 * TICK_S, abs=1e-5
    )


def test_slewing_moves_ticks_frames_and_reports_but_no_wall_time():
    plan, still = schedule(), schedule()
    plan.slew(-15e-6)
    assert plan.tick_s(5) - still.tick_s(5) == pytest.approx(-15e-6, abs=1e-9)
    assert plan.frame_due_s(5) - still.frame_due_s(5) == pytest.approx(-15e-6, abs=1e-9)
    assert plan.unix_s(START_S + 7) == pytest.approx(still.unix_s(START_S + 7), abs=1e-6)
    assert ntp_to_unix_s(plan.ntp_at(1)) - ntp_to_unix_s(still.ntp_at(1)) == pytest.approx(-15e-6, abs=2e-6)


def test_the_slew_is_bounded_and_rests_where_packets_are_there_in_time():
    assert slew_towards(SPARE_MS) == 0
    assert slew_towards(1000) == -20e-6
    assert slew_towards(-1000) == 20e-6


@pytest.mark.parametrize("drift_ppm", [-200, -20, 20, 200])
@pytest.mark.parametrize("start_ms", [0.0, 19.0])
def test_ticks_follow_the_microphone_s_clock(drift_ppm, start_ms):
    """Packets arrive by a clock of their own; each waits for the next tick, and for no more than that."""
    plan, spare_ms = schedule(), []
    for packet in range(50 * 600):
        arrived_s = START_S - start_ms / 1000 + packet * TICK_S * (1 + drift_ppm * 1e-6)
        spare_ms.append((plan.tick_s(packet) - arrived_s) * 1000)
        plan.slew(slew_towards(spare_ms[-1]))
    settled = spare_ms[50 * 60 :]
    # A steady drift needs a steady slew, and so a steady distance from the middle.
    assert max(settled) - min(settled) < 1
    assert settled[-1] == pytest.approx(SPARE_MS, abs=4.1)
