"""A student against its teacher: the figures, and windows as the live path cuts them."""

from __future__ import annotations

import numpy as np
import pytest
from bundle_factory import open_mouth, schematic_face, tiny_parts
from tiny_corpus import opening_of, sound_of

from export.onnx.graphs import open_graph
from export.students.agreement import compare, stream
from streaming.pipeline.pcm_motion import PcmRing

FACE = schematic_face()
COSTS = {"lookahead_ms": 160, "ms_per_frame": 1.0}


def motion_of(opening):
    return (np.asarray(opening)[:, None, None] * open_mouth()).reshape(-1, 204).astype(np.float32)


def test_a_copy_of_the_teacher_agrees_wholly():
    teachers = [motion_of(opening_of(seed)) for seed in (1, 2)]
    found = compare(teachers, teachers, FACE, **COSTS)
    assert (found.aperture_r, found.open_share) == pytest.approx((1, 1))
    assert found.rmse_mm == found.mouth_rmse_mm == found.best_lag_frames == 0
    assert found.frames == 220
    assert found.figures()["student.aperture_r"] == pytest.approx(1)
    assert found.figures()["student.lookahead_ms"] == 160


def test_distances_are_in_millimetres():
    teacher = motion_of(opening_of(1))
    student = teacher.reshape(-1, 68, 3).copy()
    student[:, 48:68] += np.float32([0.3, 0.4, 0])  # 5 mm
    found = compare([student.reshape(-1, 204)], [teacher], FACE, **COSTS)
    assert found.mouth_rmse_mm == pytest.approx(5)
    assert found.rmse_mm == pytest.approx(5 * (20 / 68) ** 0.5)
    half = compare([0.5 * teacher], [teacher], FACE, **COSTS)
    assert half.open_share == pytest.approx(0.5)
    assert half.aperture_r == pytest.approx(1)


def test_width_follows_the_mouths_corners():
    width = opening_of(3)
    teacher = np.zeros((len(width), 68, 3), np.float32)
    teacher[:, 54, 0] = width
    teacher = teacher.reshape(-1, 204)
    assert compare([0.2 * teacher], [teacher], FACE, **COSTS).width_r == pytest.approx(1, abs=1e-3)
    assert compare([-0.2 * teacher], [teacher], FACE, **COSTS).width_r == pytest.approx(-1, abs=1e-3)


@pytest.mark.parametrize("lag", [-3, 0, 4])
def test_a_late_student_has_a_lag_above_zero(lag):
    opening = [opening_of(seed) for seed in (1, 2)]
    students = [motion_of(np.roll(one, lag)) for one in opening]
    assert compare(students, [motion_of(one) for one in opening], FACE, **COSTS).best_lag_frames == lag


def test_a_student_that_does_not_move_has_no_lag():
    teacher = motion_of(opening_of(1))
    found = compare([np.zeros_like(teacher)], [teacher], FACE, **COSTS)
    assert found.best_lag_frames == 0
    assert found.aperture_r == 0


def test_windows_are_those_of_the_live_path():
    parts = tiny_parts()
    pcm = (sound_of(opening_of(4), 200.0) / 32768).astype(np.float32)
    landmarks, taken_ms = stream(parts.motion_onnx, parts.motion, pcm)
    ring = PcmRing(window_samples=parts.motion.window_samples, lookahead_frames=parts.motion.lookahead_frames)
    session = open_graph(parts.motion_onnx)
    live = [
        session.run(None, {"pcm": window.samples})[0][0]
        for windows in (ring.push(pcm), ring.finish())
        for window in windows
    ]
    assert np.array_equal(landmarks, np.stack(live))
    assert landmarks.shape == (110, 204)
    assert taken_ms.shape == (110,)
    assert taken_ms.min() > 0
