import math

import pytest

from streaming.session.admission import RETRY_AFTER_S, Admission


def admission(**changes):
    return Admission(**{"cores": 2, "share": 0.5, **changes})  # 40 core-ms a frame for all


def test_sessions_come_in_until_the_next_would_break_the_others():
    it = admission()
    assert it.admit(session="a", floor_ms=15) is None
    assert it.admit(session="b", floor_ms=15) is None
    refusal = it.admit(session="c", floor_ms=15)
    assert refusal is not None
    assert refusal.retry_after_s == RETRY_AFTER_S
    assert refusal.reason == (
        "full: 2 sessions leave 10 of 40 core-milliseconds a frame, one more takes 15; try again later"
    )
    assert it.sessions == 2
    assert it.admit(session="d", floor_ms=10) is None  # a cheaper speaker still fits, to the brim


def test_a_gpu_s_time_is_shared_out_like_that_of_the_cores():
    it = admission(cores=16, gpu_share=0.5)  # 20 ms of the GPU a frame for all
    for number in range(4):
        assert it.admit(session=f"{number}", floor_ms=2, gpu_ms=4.5) is None
    refusal = it.admit(session="e", floor_ms=2, gpu_ms=4.5)
    assert refusal is not None
    assert refusal.reason == (
        "full: 4 sessions leave 2.0 of 20 milliseconds of the GPU a frame, one more takes 4.5; "
        "try again later"
    )
    assert it.admit(session="cpu", floor_ms=2) is None  # what the CPU draws needs none of it
    it.measured("0", core_ms=9, at_floor_ms=9)  # of the cores: the GPU's share stays
    assert it.admit(session="e", floor_ms=2, gpu_ms=4.5) is not None
    it.admit(session="0", floor_ms=20)  # weighed anew: the CPU draws it now
    assert it.admit(session="e", floor_ms=2, gpu_ms=4.5) is None


def test_one_session_is_served_however_slow_the_gpu():
    assert admission().admit(session="a", floor_ms=2, gpu_ms=100.0) is None


def test_a_session_that_leaves_makes_room_and_may_leave_twice():
    it = admission()
    it.admit(session="a", floor_ms=30)
    assert it.admit(session="b", floor_ms=30) is not None
    it.leave("a")
    it.leave("a")
    it.leave("never came")
    assert it.admit(session="b", floor_ms=30) is None
    assert (it.sessions, it.floor_ms) == (1, 30)


def test_a_session_that_was_refused_takes_no_room():
    it = admission()
    it.admit(session="a", floor_ms=30)
    assert it.admit(session="b", floor_ms=30) is not None
    it.measured("b", core_ms=30, at_floor_ms=30)
    assert it.floor_ms == 30


def test_what_was_measured_replaces_what_was_expected():
    it = admission()
    it.admit(session="a", floor_ms=15)
    it.measured("a", core_ms=60, at_floor_ms=30)  # it draws large now, and can give way
    assert (it.core_ms, it.floor_ms) == (60, 30)
    assert it.admit(session="b", floor_ms=15) is not None
    it.measured("a", core_ms=38, at_floor_ms=20)
    assert it.admit(session="b", floor_ms=15) is None
    assert (it.core_ms, it.floor_ms) == (53, 35)


def test_a_measurement_that_comes_after_the_end_is_ignored():
    it = admission()
    it.admit(session="a", floor_ms=15)
    it.leave("a")
    it.measured("a", core_ms=15, at_floor_ms=15)
    assert (it.sessions, it.core_ms) == (0, 0)


def test_a_machine_too_slow_for_one_session_serves_one():
    it = admission(cores=1)
    assert it.admit(session="a", floor_ms=90) is None
    refusal = it.admit(session="b", floor_ms=1)
    assert refusal is not None
    assert "1 session leaves 0 of 20 core-milliseconds" in refusal.reason


def test_a_session_is_weighed_against_the_others_only():
    it = admission()
    it.admit(session="a", floor_ms=30)
    assert it.admit(session="a", floor_ms=35) is None
    assert (it.sessions, it.floor_ms) == (1, 35)


def test_a_limit_in_sessions_comes_first():
    it = admission(max_sessions=2)
    assert it.admit(session="a", floor_ms=1) is None
    assert it.admit(session="b", floor_ms=1) is None
    refusal = it.admit(session="c", floor_ms=1)
    assert refusal is not None
    assert refusal.reason == "full: 2 sessions, and no more are allowed here; try again later"


def test_the_room_is_a_share_of_all_cores_time():
    assert Admission(cores=4).room_ms == pytest.approx(136)


@pytest.mark.parametrize("floor_ms", [math.nan, math.inf, -1.0])
def test_a_cost_that_is_none_is_refused(floor_ms):
    with pytest.raises(ValueError, match="floor_ms"):
        admission().admit(session="a", floor_ms=floor_ms)


@pytest.mark.parametrize("changes", [{"cores": 0}, {"share": 0}, {"share": 1.5}, {"max_sessions": 0}])
def test_limits_that_make_no_sense_are_refused(changes):
    with pytest.raises(ValueError, match="admission"):
        admission(**changes)
