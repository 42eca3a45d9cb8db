"""When a recording's render size is stepped down, on a clock that only the tests move."""

from __future__ import annotations

import itertools

import pytest

from streaming.files.pace import MIN_LEFT_S, PART_FRAMES, PARTS, FilePace, describe_steps

SIZES = (512, 384, 256, 224, 192, 160, 128)


def by_pixels(size_px):
    return size_px**2 / 1000 + 5


class Run:
    """Writes frames; a frame takes `busy` times what its size takes on a free machine."""

    def __init__(self, *, start_px=384, duration_s=60.0, in_pipeline=6, sizes_px=SIZES):
        self.pace = FilePace(start_px=start_px, sizes_px=sizes_px, core_ms=by_pixels, duration_s=duration_s)
        self.pace.begin(0.0)
        self.time_s, self.frames = 0.0, 0
        self._sizes = [start_px] * in_pipeline  # drawn already
        self.changes = []

    def write(self, frames, *, factor_at_384=None, frame_s=None):
        for _ in range(frames):
            self._sizes.append(self.pace.size_px)
            render_px = self._sizes.pop(0)
            scale = by_pixels(render_px) / by_pixels(384)
            self.time_s += frame_s if frame_s is not None else factor_at_384 * scale / 25
            self.frames += 1
            if self.pace.frame_done(now_s=self.time_s, frames=self.frames, render_px=render_px):
                self.changes.append((self.frames, self.pace.size_px))
        return self

    @property
    def factor(self):
        return self.time_s * 25 / self.frames


def test_a_run_that_keeps_up_is_left_alone():
    run = Run().write(1500, factor_at_384=0.98)
    assert run.changes == []
    assert run.pace.steps == []


def test_a_run_that_falls_behind_goes_on_smaller_and_ends_with_the_sound():
    run = Run().write(1500, factor_at_384=1.26)
    assert [size for _, size in run.changes] == [256]
    assert run.changes[0][0] <= 60  # it took two seconds of output to know
    assert run.factor <= 1.0
    step = run.pace.steps[0]
    assert (step.size_px, step.at_s) == (256, pytest.approx(run.changes[0][0] / 25))
    assert step.real_time_factor == pytest.approx(1.26, abs=0.01)


def test_a_deep_overload_is_left_in_one_step():
    run = Run(duration_s=None).write(200, factor_at_384=3.0)
    assert [size for _, size in run.changes] == [192]


def test_where_no_size_is_small_enough_the_smallest_is_drawn():
    run = Run(duration_s=None).write(1000, factor_at_384=30.0)
    assert [size for _, size in run.changes] == [128]


@pytest.mark.parametrize("duration_s", [None, 400.0])
def test_the_size_never_swings_whatever_the_machine_does(duration_s):
    run = Run(duration_s=duration_s)
    for factor in itertools.islice(itertools.cycle([1.4, 0.3, 2.5, 0.2, 5.0, 0.1]), 60):
        run.write(100, factor_at_384=factor)
    sizes = [384, *(size for _, size in run.changes)]
    assert sizes == sorted(set(sizes), reverse=True)
    assert len(sizes) <= len(SIZES)


def test_a_single_stall_does_not_change_the_size():
    run = Run(duration_s=None).write(100, factor_at_384=0.9).write(1, frame_s=4.0)
    run.write(100, factor_at_384=0.9)
    assert run.changes == []


def test_frames_that_were_drawn_before_a_step_do_not_count_against_the_new_size():
    run = Run(duration_s=None, in_pipeline=10).write(400, factor_at_384=1.3)
    assert len(run.changes) == 1
    again = Run(duration_s=None, in_pipeline=10).write(60, factor_at_384=1.3)
    assert again.changes == run.changes


def test_time_that_was_gained_before_may_be_spent():
    """The first minute was quick, so the end is in time even at this pace."""
    run = Run(duration_s=70.0).write(1500, factor_at_384=0.6).write(240, factor_at_384=1.3)
    assert run.changes == []
    assert run.factor < 1


def test_the_last_moment_of_a_run_changes_no_size():
    frames = PARTS * PART_FRAMES + 20
    run = Run(duration_s=frames / 25 + MIN_LEFT_S / 2 - 20 / 25)
    run.write(frames - 20, factor_at_384=2.0)
    assert run.changes == []


def test_lost_time_is_made_up_for_where_that_is_possible():
    run = Run(duration_s=8.0).write(200, factor_at_384=1.26)
    assert run.changes[0][1] <= 256
    assert run.factor <= 1.0


def test_without_a_smaller_size_nothing_is_changed():
    run = Run(start_px=384, sizes_px=(512, 384), duration_s=None).write(300, factor_at_384=4.0)
    assert run.changes == []


def test_each_change_of_size_has_a_line():
    run = Run(duration_s=None).write(60, factor_at_384=1.26)
    at_s = run.pace.steps[0].at_s
    assert describe_steps(384, run.pace.steps) == (
        f"drawn at 384 px, from {at_s:.1f} s on at 256 px, to keep up with the sound"
    )
    assert describe_steps(384, []) == ""
