import pytest

from streaming.session.playout_delay import EASY_S, LOSSES, SETTLE_S, SPARE_MS, PlayoutDelay
from streaming.webrtc.media_schedule import MAX_PLAYOUT_DELAY_TICKS, MIN_PLAYOUT_DELAY_TICKS

FRAME_S = 0.04
EASY_MS = 20 + SPARE_MS + 1


def lose(playout_delay, frames, *, at_s=0.0, every_s=FRAME_S):
    return [playout_delay.frame_lost(now_s=at_s + i * every_s) for i in range(frames)]


def run(playout_delay, seconds, *, slack_ms, at_s=0.0):
    frames = round(seconds / FRAME_S)
    return [playout_delay.frame_done(now_s=at_s + i * FRAME_S, slack_ms=slack_ms) for i in range(frames)]


def test_frames_that_keep_coming_too_late_get_a_tick_more():
    playout_delay = PlayoutDelay(3)
    assert lose(playout_delay, LOSSES) == [False] * (LOSSES - 1) + [True]
    assert playout_delay.ticks == 4


def test_a_single_late_frame_now_and_then_changes_nothing():
    playout_delay = PlayoutDelay(3)
    assert not any(lose(playout_delay, 100, every_s=0.5))
    assert playout_delay.ticks == 3


def test_frames_under_way_are_not_judged_by_the_new_allowance():
    playout_delay = PlayoutDelay(3)
    lose(playout_delay, LOSSES)
    assert not any(lose(playout_delay, 5, at_s=LOSSES * FRAME_S))
    assert lose(playout_delay, LOSSES, at_s=LOSSES * FRAME_S + SETTLE_S)[-1]
    assert playout_delay.ticks == 5


def test_the_playout_delay_never_leaves_its_bounds():
    playout_delay = PlayoutDelay(MAX_PLAYOUT_DELAY_TICKS)
    assert not any(lose(playout_delay, 200, every_s=0.1))
    assert playout_delay.ticks == MAX_PLAYOUT_DELAY_TICKS
    playout_delay = PlayoutDelay(MIN_PLAYOUT_DELAY_TICKS)
    assert not any(run(playout_delay, 60, slack_ms=100))
    assert playout_delay.ticks == MIN_PLAYOUT_DELAY_TICKS


def test_a_long_easy_time_gives_a_tick_back():
    playout_delay = PlayoutDelay(4)
    changes = run(playout_delay, EASY_S + 1, slack_ms=EASY_MS)
    assert changes.count(True) == 1
    assert changes.index(True) == pytest.approx(EASY_S / FRAME_S, abs=1)
    assert playout_delay.ticks == 3


@pytest.mark.parametrize("disturb", ["tight", "lost"])
def test_one_tight_or_lost_frame_begins_the_easy_time_anew(disturb):
    playout_delay = PlayoutDelay(4)
    run(playout_delay, EASY_S - 1, slack_ms=EASY_MS)
    if disturb == "tight":
        playout_delay.frame_done(now_s=EASY_S - 1, slack_ms=EASY_MS - 2)
    else:
        playout_delay.frame_lost(now_s=EASY_S - 1)
    assert not any(run(playout_delay, EASY_S - 1, slack_ms=EASY_MS, at_s=EASY_S))
    assert playout_delay.ticks == 4


def test_what_was_given_back_is_not_lost_again_at_once():
    """A machine that needs 45 ms a frame, with 60 ms allowed, keeps them."""
    playout_delay = PlayoutDelay(3)
    run(playout_delay, 120, slack_ms=60 - 45)
    assert playout_delay.ticks == 3


def test_a_tick_that_is_soon_missed_again_is_given_back_ever_more_rarely():
    """Frames that take 35 ms, and for a moment twice as long 2 s after a tick was given back."""
    playout_delay, now_s, changed_s = PlayoutDelay(3), 0.0, []
    while now_s < 600:
        now_s += FRAME_S
        late = playout_delay.ticks == 2 and now_s - changed_s[-1] > 2
        done = playout_delay.frame_lost if late else playout_delay.frame_done
        if done(now_s=now_s, **({} if late else {"slack_ms": playout_delay.ticks * 20 - 25})):
            changed_s.append(now_s)
    assert 4 <= len(changed_s) <= 14
    assert playout_delay.ticks in (2, 3)
