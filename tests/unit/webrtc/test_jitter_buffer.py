import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.webrtc.jitter_buffer import (
    BOUND_S,
    MAX_TARGET_S,
    MIN_TARGET_S,
    START_TARGET_S,
    AudioPacket,
    JitterBuffer,
    TransitWindow,
    read_offset_s,
    unwrap,
)

PAYLOAD = b"\x08\x00"  # 20 ms


def fill(buffer, *numbers, sequence=0, timestamp=0, late_s=None):
    for i in numbers:
        buffer.put(
            sequence=(sequence + i) % 2**16,
            timestamp=(timestamp + 960 * i) % 2**32,
            payload=PAYLOAD,
            arrived_s=100 + 0.02 * i + (late_s or {}).get(i, 0.0),
        )


def taken(buffer):
    found = []
    while buffer.peek() is not None:
        found.append(buffer.take().sequence)
    return found


@given(st.integers(-(2**40), 2**40), st.sampled_from([16, 32]), st.integers(-(2**15) + 1, 2**15 - 1))
def test_unwrapping_finds_the_nearest_number(near, bits, step):
    assert unwrap((near + step) % 2**bits, near=near, bits=bits) == near + step


def test_packets_come_out_in_order_once():
    buffer = JitterBuffer()
    fill(buffer, 0, 2, 1, 2, 4, 3, 0)
    assert taken(buffer) == [0, 1, 2, 3, 4]
    assert (buffer.lost, buffer.late) == (0, 0)


def test_numbers_go_on_where_they_wrap():
    buffer = JitterBuffer()
    fill(buffer, *range(6), sequence=2**16 - 3, timestamp=2**32 - 2000)
    stamps = []
    while buffer.peek() is not None:
        stamps.append(buffer.take().timestamp)
    assert np.diff(stamps).tolist() == [960] * 5
    assert stamps[-1] % 2**32 == (2**32 - 2000 + 5 * 960) % 2**32
    assert buffer.generation == 0


def test_a_missing_packet_is_lost_and_may_come_late():
    buffer = JitterBuffer()
    fill(buffer, 0, 1, 4)
    taken(buffer)
    assert (buffer.lost, buffer.late) == (2, 0)
    fill(buffer, 2, 2)  # the second is a duplicate
    assert buffer.peek() is None
    assert (buffer.lost, buffer.late) == (2, 1)  # counters never go back


def test_a_duplicate_of_what_was_played_counts_for_nothing():
    buffer = JitterBuffer()
    fill(buffer, 0, 1)
    taken(buffer)
    fill(buffer, 0, 1)
    assert buffer.peek() is None
    assert (buffer.lost, buffer.late) == (0, 0)


def test_what_ends_before_the_place_is_dropped_as_late():
    buffer = JitterBuffer()
    fill(buffer, *range(5))
    buffer.drop_before(2 * 960 + 1)  # of the third a part can still be played
    assert buffer.peek().sequence == 2
    assert buffer.late == 2
    buffer.drop_stale(before=4 * 960)
    assert taken(buffer) == [4]
    assert buffer.late == 4
    assert buffer.lost == 0


def test_nobody_reading_fills_two_seconds_and_no_more():
    buffer = JitterBuffer()
    fill(buffer, *range(500))
    waiting = taken(buffer)
    assert len(waiting) == BOUND_S / 0.02
    assert waiting[-1] == 499
    assert buffer.late == 400


def test_what_is_no_opus_leaves_a_hole():
    buffer = JitterBuffer()
    fill(buffer, 0, 2)
    buffer.put(sequence=1, timestamp=960, payload=b"", arrived_s=100.02)
    assert taken(buffer) == [0, 2]
    assert buffer.lost == 1


def test_a_sender_that_begins_anew_is_believed_the_second_time():
    buffer = JitterBuffer()
    fill(buffer, *range(3))
    fill(buffer, 3, sequence=30_000, timestamp=2**31 + 5)
    assert buffer.generation == 0
    fill(buffer, 4, 5, sequence=30_000, timestamp=2**31 + 5)
    assert buffer.generation == 1
    assert [sequence % 2**16 for sequence in taken(buffer)] == [30_003, 30_004, 30_005]
    assert buffer.lost == 0


def test_a_single_stray_packet_changes_nothing():
    buffer = JitterBuffer()
    fill(buffer, *range(3))
    fill(buffer, 3, sequence=30_000, timestamp=2**31)
    fill(buffer, 3, 4)
    fill(buffer, 5, sequence=30_000, timestamp=2**31)  # does not follow: the stream spoke in between
    assert buffer.generation == 0
    assert taken(buffer) == list(range(5))


@pytest.mark.parametrize("clock_goes_on", [True, False])
def test_a_pause_is_no_new_beginning(clock_goes_on):
    buffer = JitterBuffer()
    fill(buffer, *range(3))
    for i in range(3, 6):
        buffer.put(
            sequence=i,
            timestamp=960 * i + (48_000 * 30 if clock_goes_on else 0),
            payload=PAYLOAD,
            arrived_s=130 + 0.02 * i,
        )
    assert buffer.generation == 0
    assert taken(buffer) == list(range(6))
    assert buffer.lost == 0


def window_of(transits_s, *, window=None, start=0):
    window = window or TransitWindow()
    order = sorted((0.02 * i + transit_s, i) for i, transit_s in enumerate(transits_s, start=start))
    for arrived_s, i in order:
        window.add(
            AudioPacket(sequence=i, timestamp=960 * i, payload=PAYLOAD, samples=960, arrived_s=arrived_s)
        )
    return window


def test_at_first_the_target_is_a_guess():
    window = TransitWindow()
    assert not window.known
    window_of([0.1] * 9, window=window)
    assert window.known
    assert window.target_s == START_TARGET_S
    assert window.base_s == pytest.approx(0.1)
    assert window.wait_s == pytest.approx(0.1 + START_TARGET_S)


def test_a_still_network_needs_the_least():
    assert window_of([0.1] * 100).target_s == MIN_TARGET_S


@pytest.mark.parametrize("most_s", [0.03, 0.06])
def test_the_target_covers_the_jitter(most_s):
    transits_s = np.random.default_rng(0).uniform(0, most_s, 200)
    assert 0.85 * most_s < window_of(transits_s).target_s < most_s + 0.005


def test_the_target_has_an_end():
    assert window_of(np.tile([0.0, 0.0, 0.4], 50)).target_s == MAX_TARGET_S


@pytest.mark.parametrize("spacing_s", [0.0, 0.005, 0.010])
def test_a_stall_is_one_event(spacing_s):
    """Half a second held up, then given at once or twice as fast as it was spoken."""
    falling = np.arange(0.5, 0, -(0.02 - spacing_s))
    window = window_of([0.0] * 100 + [*falling] + [0.0] * 20)
    assert window.target_s == MIN_TARGET_S
    assert window.base_s == 0


def test_steady_stalls_are_waited_for():
    """A sender that gives two packets every 40 ms."""
    assert window_of(np.tile([0.02, 0.0], 50)).target_s == pytest.approx(0.023)


def test_a_longer_route_is_followed_in_a_fifth_of_a_second():
    window = window_of([0.0] * 100)
    window_of([0.3] * 9, window=window, start=100)
    assert window.base_s == 0
    window_of([0.3], window=window, start=109)
    assert window.base_s == pytest.approx(0.3)
    assert window.target_s == MIN_TARGET_S


def test_a_queue_that_empties_is_no_longer_route():
    window = window_of([0.0] * 100)
    window_of(np.arange(0.5, 0.2, -0.014), window=window, start=100)
    assert window.base_s == 0


def test_a_shorter_route_is_followed_at_once():
    assert window_of([0.3] * 50 + [0.1]).base_s == pytest.approx(0.1)


def test_what_is_two_seconds_old_is_forgotten():
    assert window_of([0.0] * 100 + [0.05] * 101).base_s == pytest.approx(0.05)


def test_a_pause_keeps_the_target_and_nothing_else():
    window = window_of(np.tile([0.02, 0.0], 50))
    window_of([0.7], window=window, start=400)
    assert window.base_s == pytest.approx(0.7)
    assert window.target_s == pytest.approx(0.023)


@pytest.mark.parametrize(("samples", "offset_s"), [(480, 0.01), (960, 0.0), (2880, 0.0)])
def test_short_packets_are_needed_earlier(samples, offset_s):
    assert read_offset_s(samples) == offset_s
