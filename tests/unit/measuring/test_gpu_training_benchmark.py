"""The benchmark of training: refused without a GPU; a variant that fails leaves the others measured."""

import dataclasses
import itertools
import types

import pytest
import torch
from tiny_fields import SMALL_HEAD, SMALL_TORSO

from benchmarks import gpu_training
from benchmarks.gpu_training import (
    HEAD_SETTINGS,
    TORSO_SETTINGS,
    ball_speaker,
    measure_parts,
    measure_steps,
    part_table,
    prepare_head,
    step_table,
    train_for,
)
from training import field_optimizer, loop

CPU = torch.device("cpu")
HEAD = dataclasses.replace(SMALL_HEAD, window_frames=5, lookahead_frames=2)


@pytest.fixture(scope="module")
def ball():
    return ball_speaker(44, 64, CPU)


def test_without_a_gpu_the_benchmark_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_training.main([]) == 2
    assert "expected a CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--minutes", "0"], ["--minutes", "1", "--head-share", "1"]])
def test_a_training_of_no_length_is_a_usage_error(arguments):
    with pytest.raises(SystemExit, match="2"):
        gpu_training.main(arguments)


def test_the_ball_is_a_speaker(ball):
    assert ball.pictures.shape == (44, 64, 64, 3)
    assert ball.landmarks_normalized.shape == (44, 5, 204)
    inside = torch.stack([(ball.labels == label).float().mean() for label in (0, 1, 2)])
    assert bool((inside > 0.1).all())
    columns, rows = ball.landmarks_2d[0].long().unbind(1)
    assert bool((ball.labels[0, rows, columns] == 1).all())
    opened, closed = ball.landmarks_2d[2, 48:68, 1], ball.landmarks_2d[5, 48:68, 1]
    assert float(opened.max() - opened.min()) > 1.3 * float(closed.max() - closed.min())


def test_the_sizes_are_those_of_geneface(ball):
    head, torso = HEAD_SETTINGS.config(ball), TORSO_SETTINGS.config()
    assert (head.codes, head.code_width, head.condition.window_frames, head.condition.outputs) == (
        1,
        0,
        5,
        64,
    )
    for grid in (head.position_grid, head.ambient_grid, torso.grid):
        assert (grid.levels, grid.log2_rows, grid.desired_resolution) == (16, 16, 2048)
    assert {head.hidden_ambient, head.hidden_sigma, head.hidden_color, head.geometry_features} == {128}
    assert (torso.hidden_deform, torso.position_octaves, torso.pose_octaves) == (64, 10, 4)
    assert HEAD_SETTINGS.frames_per_step * HEAD_SETTINGS.pixels_per_frame == gpu_training.RAYS


def test_a_variant_that_fails_is_a_line_of_the_table(ball, tmp_path):
    start = tmp_path / "start.pt"
    task = prepare_head(ball, HEAD, CPU, steps=40, path=start)
    assert bool(task.head.occupancy.any())
    rows = measure_steps(
        ball, HEAD, SMALL_TORSO, start, CPU, steps=2, variants=(("cuda", False), ("torch", False))
    )
    assert [(row.task, row.kernels) for row in rows] == [
        ("head", "cuda"),
        ("head", "torch"),
        ("torso", "cuda"),
        ("torso", "torch"),
    ]
    for row in rows:
        assert (row.median_ms is None) == (row.kernels == "cuda")
    lines = step_table(rows).splitlines()
    assert "they need --device cuda" in lines[1]
    assert f"{rows[1].median_ms:.2f}" in lines[2]

    parts = measure_parts(task, CPU, points=512, rays=256, calls=2)
    assert len(parts) == 6
    for part in parts:
        assert part.twin_ms > 0
        assert part.kernels_ms is None
        assert "expected a CUDA device" in part.failure
    assert "expected a CUDA device" in part_table(parts).splitlines()[1]
    assert task.head.kernels is False


def test_a_head_and_a_torso_are_trained_by_the_clock(ball, tmp_path, monkeypatch):
    looks = itertools.count()  # a second goes by from each look at the clock to the next
    for module in (loop, field_optimizer):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: float(next(looks))))
    curves = train_for(ball, HEAD, SMALL_TORSO, CPU, minutes=1.0, head_share=0.5, out=tmp_path)
    assert set(curves) == {"head", "torso"}
    for name, rows in curves.items():
        assert len(rows) > 2
        assert 0.3 <= rows[-1]["minutes"] <= 0.5
        assert "psnr_whole_db" in rows[-1]
        assert (tmp_path / name / "curve.csv").is_file()
