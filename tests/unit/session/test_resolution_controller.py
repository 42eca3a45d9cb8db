import heapq
from dataclasses import dataclass, field

import numpy as np
import pytest

from streaming.pipeline.render_size import RENDER_SIZES_PX
from streaming.session.resolution_controller import ResolutionController

FRAME_S = 0.04
BACKLOG_FRAMES = 5
PLAYOUT_DELAY_S = 0.08  # a frame may be ready this long after its sound was


def calm(now_s):
    return 1.0


@dataclass
class Machine:
    """One frame after another is drawn, at `load(t) * (fixed + per_pixel * px^2)` ms with noise."""

    fixed_ms: float = 6.0
    at_256_ms: float = 24.0
    load: object = calm
    noise: float = 0.03
    spikes_s: tuple[float, ...] = ()  # when everything stands still
    spike_ms: float = 120.0
    changes: list[tuple[float, int]] = field(default_factory=list)
    lost_s: list[float] = field(default_factory=list)
    done: int = 0

    def draw_ms(self, size_px, now_s, random):
        cost = self.fixed_ms + (self.at_256_ms - self.fixed_ms) * (size_px / 256) ** 2
        return cost * self.load(now_s) * (1 + self.noise * abs(random.standard_normal()))

    def run(self, resolution, seconds, *, pipeline_s=0.1):
        """Drives the resolution for a time; frames are heard of `pipeline_s` after they were drawn."""
        random = np.random.default_rng(0)
        spikes = list(self.spikes_s)
        heard = []  # (when, order, what)
        free_s = 0.0
        waiting = []
        arrived = 0

        def tell(until_s):
            while heard and heard[0][0] <= until_s:
                now_s, _, draw_ms, slack_ms = heapq.heappop(heard)
                if draw_ms is None:
                    self.lost_s.append(now_s)
                    changed = resolution.frame_lost(now_s=now_s)
                else:
                    self.done += 1
                    changed = resolution.frame_done(now_s=now_s, draw_ms=draw_ms, slack_ms=slack_ms)
                if changed:
                    self.changes.append((now_s, resolution.size_px))

        while arrived * FRAME_S < seconds:
            waiting.append(arrived * FRAME_S)
            arrived += 1
            until_s = arrived * FRAME_S
            while waiting and max(free_s, waiting[0]) < until_s:
                start_s = max(free_s, waiting[0])
                came_s = waiting.pop(0)
                tell(start_s)
                draw_ms = self.draw_ms(resolution.size_px, start_s, random)
                if spikes and start_s >= spikes[0]:
                    spikes.pop(0)
                    draw_ms += self.spike_ms
                free_s = start_s + draw_ms / 1000
                slack_s = came_s + PLAYOUT_DELAY_S - free_s
                late = slack_s < -FRAME_S
                what = (None, None) if late else (draw_ms, slack_s * 1000)
                heapq.heappush(heard, (free_s + pipeline_s, came_s, *what))
            while len(waiting) > BACKLOG_FRAMES:
                heapq.heappush(heard, (until_s, waiting.pop(0), None, None))
            tell(until_s)
        return resolution.size_px

    def changes_in(self, start_s, end_s):
        return sum(start_s <= at_s < end_s for at_s, _ in self.changes)


def resolution(start_px=256, **options):
    return ResolutionController(sizes_px=RENDER_SIZES_PX, start_px=start_px, **options)


def feed(it, seconds, *, draw_ms, slack_ms=30.0, start_s=0.0):
    """Returns when the size changed while frames of one cost came in."""
    changes = []
    for frame in range(round(seconds / FRAME_S)):
        now_s = start_s + frame * FRAME_S
        if it.frame_done(now_s=now_s, draw_ms=draw_ms, slack_ms=slack_ms):
            changes.append(now_s)
    return changes


def test_a_machine_that_keeps_up_stays_as_it_is():
    it, machine = resolution(), Machine()
    assert machine.run(it, 120) == 256
    assert machine.changes == []
    assert it.note == ""
    assert machine.lost_s == []


def test_too_slow_frames_cost_size_within_a_second():
    it = resolution()
    (change_s,) = feed(it, 1.0, draw_ms=36.0)
    assert change_s <= 0.5
    assert it.size_px == 224
    assert it.note == "smaller: frames took 36 of 40 ms"


def test_a_deep_overload_is_left_in_one_step():
    it = resolution()
    assert len(feed(it, 0.5, draw_ms=70.0, slack_ms=10.0)) == 1
    assert it.size_px == 160  # 70 ms * (160 / 256)^2 = 27 ms


def test_frames_that_are_ready_too_late_cost_size():
    it = resolution()
    feed(it, 0.5, draw_ms=25.0, slack_ms=1.0)
    assert it.size_px == 224
    assert it.note == "smaller: frames were ready too late"


def test_a_lost_frame_costs_size_where_drawing_is_dear():
    it = resolution()
    feed(it, 0.5, draw_ms=28.0)
    assert it.frame_lost(now_s=0.5)
    assert it.size_px == 224
    assert it.note == "smaller: frames were lost"


def test_a_hiccup_costs_no_size_where_drawing_is_cheap_but_a_third_does():
    it = resolution()
    feed(it, 0.5, draw_ms=12.0)
    assert not any(it.frame_lost(now_s=0.5 + late / 100) for late in range(5))  # one moment, five frames
    assert not it.frame_lost(now_s=3.0)
    assert it.size_px == 256
    assert it.frame_lost(now_s=6.0)
    assert it.size_px == 224


def test_hiccups_far_apart_cost_no_size():
    it = resolution()
    for minute in range(5):
        feed(it, 0.5, draw_ms=12.0, start_s=60.0 * minute)
        assert not it.frame_lost(now_s=60.0 * minute + 0.5)
    assert it.note == ""


def test_frames_lost_before_any_was_measured_count_by_moments():
    it = resolution()
    assert not it.frame_lost(now_s=0.0)
    assert not it.frame_lost(now_s=0.6)
    assert it.frame_lost(now_s=1.2)
    assert it.size_px == 224


def test_what_comes_right_after_a_change_is_of_the_old_size():
    it = resolution()
    (changed_s,) = feed(it, 0.5, draw_ms=36.0)
    assert feed(it, 0.5, draw_ms=60.0, slack_ms=-20.0, start_s=changed_s + FRAME_S) == []
    assert not it.frame_lost(now_s=changed_s + 0.55)
    assert it.size_px == 224


def test_the_smallest_size_stays():
    it = resolution(128)
    assert feed(it, 5.0, draw_ms=90.0, slack_ms=-50.0) == []
    assert not it.frame_lost(now_s=5.0)
    assert (it.size_px, it.note) == (128, "")


def test_a_size_that_is_not_in_the_list_can_be_the_first():
    it = ResolutionController(sizes_px=(256, 128), start_px=200)
    feed(it, 1.0, draw_ms=36.0)
    assert it.size_px == 128


def test_the_way_up_is_one_size_at_a_time_after_five_easy_seconds():
    it = resolution(160)
    changes = feed(it, 30.0, draw_ms=8.0)
    assert changes[0] == pytest.approx(5.0, abs=0.1)
    # 8 ms never falls with the size here, as if drawing cost nothing by the pixel.
    assert np.diff(changes) == pytest.approx(5.6, abs=0.1)
    assert len(changes) == 5
    assert it.size_px == 512
    assert it.note == ""


@pytest.mark.parametrize(("draw_ms", "slack_ms"), [(19.0, 30.0), (10.0, 6.0)])
def test_no_way_up_without_room_or_slack(draw_ms, slack_ms):
    it = resolution(224)
    assert feed(it, 20.0, draw_ms=draw_ms, slack_ms=slack_ms) == []  # 19 ms * (256 / 224)^2 > 24 ms


def test_no_way_up_for_five_seconds_after_a_loss():
    it = resolution(224)
    feed(it, 4.0, draw_ms=10.0)
    it.frame_lost(now_s=4.0)
    assert feed(it, 8.0, draw_ms=10.0, start_s=4.0)[0] == pytest.approx(9.0, abs=0.1)


def test_a_load_that_passes_costs_size_and_gives_it_back():
    def load(now_s):
        return 2.2 if 20 <= now_s < 50 else 1.0

    it, machine = resolution(), Machine(load=load)
    assert machine.run(it, 120) == 256
    assert machine.changes[0][0] < 21.0
    sizes = [size for _, size in machine.changes]
    lowest = sizes.index(min(sizes))
    assert sizes[:lowest] == sorted(sizes[:lowest], reverse=True)
    assert sizes[lowest:] == sorted(sizes[lowest:])  # back up without a fall
    assert machine.changes_in(20, 50) <= 2
    assert machine.changes[-1][0] < 80.0
    assert it.note == ""
    assert all(20 <= at_s < 22 for at_s in machine.lost_s)


def test_a_size_that_fails_again_and_again_is_tried_less_and_less():
    it = resolution()
    now_s, failures = 0.0, []
    while now_s < 900:
        now_s += FRAME_S
        dear = it.size_px == 256
        if it.frame_done(now_s=now_s, draw_ms=36.0 if dear else 12.0, slack_ms=20.0) and dear:
            failures.append(now_s)
    waits = np.diff(failures)
    assert waits[:4] == pytest.approx([10, 20, 40, 80], abs=8)
    assert waits[4:] == pytest.approx([160] * len(waits[4:]), abs=8)
    assert len(waits) >= 6


def test_a_long_success_makes_the_wait_short_again():
    it, now_s = resolution(), 0.0
    waits = []
    for minutes in (0, 0, 0, 3, 0):  # how long 256 holds before it fails
        good_until_s = now_s + 60 * minutes
        while it.size_px == 256:
            now_s += FRAME_S
            it.frame_done(now_s=now_s, draw_ms=20.0 if now_s < good_until_s else 36.0, slack_ms=20.0)
        failed_s = now_s
        while it.size_px != 256:
            now_s += FRAME_S
            it.frame_done(now_s=now_s, draw_ms=12.0, slack_ms=20.0)
        waits.append(now_s - failed_s)
    assert waits == pytest.approx([10, 20, 40, 10, 20], abs=1)


def test_what_a_pixel_costs_is_learnt_from_the_sizes_seen():
    mostly_fixed = Machine(fixed_ms=14.0, at_256_ms=20.0, noise=0.0)
    it = resolution(192)
    mostly_fixed.run(it, 60)
    # 224 is foretold to take 20.3 ms by pixels alone from 192's 17.4, and 18.6 in truth; 256 then fits too.
    assert it.size_px == 256
    by_pixels = Machine(fixed_ms=0.0, at_256_ms=30.9, noise=0.0)
    it = resolution(192)
    by_pixels.run(it, 60)
    assert it.size_px == 224


@pytest.mark.parametrize("at_256_ms", [20, 28, 30, 32, 33, 34, 35, 36, 38, 45, 60, 90])
@pytest.mark.parametrize("fixed_ms", [0, 14])
def test_a_steady_machine_finds_its_size_and_keeps_it(at_256_ms, fixed_ms):
    machine, it = Machine(fixed_ms=fixed_ms, at_256_ms=at_256_ms), resolution()
    machine.run(it, 150)
    assert machine.changes_in(60, 150) == 0
    assert all(at_s < 2.5 for at_s in machine.lost_s)
    assert machine.draw_ms(it.size_px, 0, np.random.default_rng(0)) < 36


@pytest.mark.parametrize("period_s", [4, 10, 20, 40, 90])
@pytest.mark.parametrize("height", [1.7, 2.5])
def test_a_load_that_comes_and_goes_makes_no_swing(period_s, height):
    def load(now_s):
        return height if now_s % period_s < period_s / 2 else 1.0

    machine, it = Machine(load=load), resolution()
    machine.run(it, 360)
    for minute in range(6):
        assert machine.changes_in(60 * minute, 60 * minute + 60) <= (9 if minute < 2 else 6)
    assert len(machine.lost_s) <= 0.01 * machine.done


@pytest.mark.parametrize("every_s", [3.0, 7.7, 15.0, 33.0])
@pytest.mark.parametrize("spike_ms", [60.0, 300.0])
@pytest.mark.parametrize("at_256_ms", [12.0, 22.0, 28.0])
def test_spikes_make_no_swing(every_s, spike_ms, at_256_ms):
    spikes_s = tuple(np.arange(2, 240, every_s))
    machine = Machine(fixed_ms=4.0, at_256_ms=at_256_ms, spikes_s=spikes_s, spike_ms=spike_ms)
    it = ResolutionController(sizes_px=(256, 224, 192, 160, 128), start_px=256)
    machine.run(it, 240)
    for minute in range(4):
        assert machine.changes_in(60 * minute, 60 * minute + 60) <= 5
    if every_s > 5 and at_256_ms < 24:  # a smaller size would not have helped
        assert machine.changes == []


def test_a_step_that_saves_few_pixels_is_passed_over():
    pixels = {512: 15000, 384: 13000, 256: 6000, 128: 2400}
    it = ResolutionController(sizes_px=tuple(pixels), start_px=512, pixels=pixels.__getitem__)
    feed(it, 1.0, draw_ms=36.0)
    assert it.size_px == 256  # 384 would take 31 ms, by its pixels
    by_the_square = ResolutionController(sizes_px=tuple(pixels), start_px=512)
    feed(by_the_square, 1.0, draw_ms=36.0)
    assert by_the_square.size_px == 384


def test_a_larger_size_is_tried_where_its_pixels_fit():
    pixels = {512: 15000, 384: 13000, 256: 6000, 128: 2400}
    it = ResolutionController(sizes_px=tuple(pixels), start_px=512, pixels=pixels.__getitem__)
    it.size_px = 384
    feed(it, 8.0, draw_ms=25.0)
    assert it.size_px == 512  # 29 ms
