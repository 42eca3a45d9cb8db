"""The rule that chooses PostNet's checkpoint, on made-up curves."""

import json

import numpy as np
import pytest

from training import checkpoint_choice
from training.checkpoint_choice import Curves, Rule, choose, choose_checkpoint
from training.loop import CheckpointError, save_checkpoint

STEPS = list(range(1000, 11000, 1000))


def curves(mse=None, sync=None, positive=None, negative=None):
    fall = np.array([2.0, 1.5, 1.2, 1.05, 1.01, 1.0, 1.0, 1.0, 1.0, 1.0])
    return Curves(
        step=STEPS,
        mse=fall if mse is None else mse,
        sync=0.5 * fall if sync is None else sync,
        disc_pos_conf=[0.9, 0.8, 0.7, 0.55, 0.52, 0.5, 0.5, 0.5, 0.5, 0.5] if positive is None else positive,
        disc_neg_conf=[0.1, 0.2, 0.3, 0.45, 0.48, 0.5, 0.5, 0.5, 0.5, 0.5] if negative is None else negative,
    )


def test_the_smallest_good_step_among_the_converged_is_chosen():
    choice = choose(curves())
    assert choice.step == 5000
    assert choice.followed_rule
    assert choice.converged_steps == tuple(STEPS[3:])
    assert choice.collapsed == ()


def test_a_good_step_before_convergence_is_passed_over():
    flat = np.ones(10)
    assert choose(curves(mse=flat, sync=flat)).step == 4000


def test_one_validation_out_of_line_decides_nothing():
    lucky = choose(curves(positive=[0.9, 0.5] + [0.9] * 8, negative=[0.1, 0.5] + [0.1] * 8))
    assert lucky.converged_steps == ()


def test_collapse_is_said_and_a_step_before_it_is_chosen():
    rising = [2.0, 1.5, 1.2, 1.0, 1.0, 1.1, 1.3, 1.6, 2.0, 2.5]
    choice = choose(curves(sync=rising))
    assert choice.collapsed == ("sync",)
    assert choice.step == 5000
    assert "collapse: sync rose" in choice.summary


def test_a_curve_that_falls_to_its_end_is_no_collapse():
    assert choose(curves(mse=np.linspace(2, 1, 10))).collapsed == ()


def test_without_convergence_the_report_says_so_and_takes_the_best():
    choice = choose(curves(positive=[0.95] * 10, negative=[0.05] * 10))
    assert not choice.followed_rule
    assert choice.converged_steps == ()
    assert choice.step == 5000
    assert "never converged" in choice.reason


def test_equal_confidences_far_from_a_half_are_no_convergence():
    assert choose(curves(positive=[0.95] * 10, negative=[0.94] * 10)).converged_steps == ()


def test_where_mse_and_sync_disagree_the_closest_converged_step_is_taken():
    choice = choose(
        curves(
            mse=[9, 9, 9, 1.00, 1.05, 1.10, 1.2, 1.3, 1.4, 1.5],
            sync=[9, 9, 9, 1.50, 1.20, 1.09, 1.06, 1.03, 1.01, 1.0],
        )
    )
    assert not choice.followed_rule
    assert choice.step == 6000
    assert "closest" in choice.reason


def test_steps_out_of_order_and_values_not_finite_are_handled():
    mse = np.array([2.0, 1.5, 1.2, 1.05, np.nan, 1.0, 1.0, 1.0, 1.0, 1.0])
    found = choose(
        Curves(
            step=STEPS[::-1],
            mse=mse[::-1],
            sync=np.ones(10),
            disc_pos_conf=[0.5] * 10,
            disc_neg_conf=[0.5] * 10,
        )
    )
    assert found.step == 6000


def test_no_steps_and_no_finite_values_are_refused():
    with pytest.raises(ValueError, match="got none; train first"):
        choose(Curves(step=[], mse=[], sync=[], disc_pos_conf=[], disc_neg_conf=[]))
    with pytest.raises(ValueError, match="lower the rates"):
        choose(curves(mse=[np.nan] * 10))


def test_the_choice_is_written_with_its_curves_and_only_among_saved_steps(tmp_path):
    found = curves()
    with (tmp_path / "validation.jsonl").open("w") as stream:
        for row in zip(
            found.step, found.mse, found.sync, found.disc_pos_conf, found.disc_neg_conf, strict=True
        ):
            names = ("step", "mse", "sync", "disc_pos_conf", "disc_neg_conf")
            values = dict(zip(names, map(float, row), strict=True)) | {"step": int(row[0])}
            stream.write(json.dumps(values) + "\n")
    for step in STEPS[5:]:
        save_checkpoint(tmp_path / f"checkpoint_{step:08d}.pt", {})
    choice = choose_checkpoint(tmp_path)
    assert choice.step == 6000
    written = json.loads((tmp_path / checkpoint_choice.CHOICE_FILE).read_text())
    assert written["checkpoint"] == "checkpoint_00006000.pt"
    assert written["rule"]["near_best"] == Rule().near_best
    report = (tmp_path / checkpoint_choice.REPORT_FILE).read_text()
    assert "Step **6000**, by the rule" in report
    assert "No collapse" in report
    assert (tmp_path / checkpoint_choice.PICTURE_FILE).read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_curves_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="got none"):
        choose_checkpoint(tmp_path)


@pytest.mark.parametrize("mse", ["x", None, [1], True, 10**400], ids=lambda mse: str(mse)[:8])
def test_a_validation_of_something_else_than_numbers_does_not_count(tmp_path, mse):
    row = {"step": 1, "mse": mse, "sync": 1.0, "disc_pos_conf": 0.5, "disc_neg_conf": 0.5}
    (tmp_path / "validation.jsonl").write_text(json.dumps(row) + "\n")
    save_checkpoint(tmp_path / "checkpoint_00000001.pt", {})
    with pytest.raises(CheckpointError, match="got none"):
        choose_checkpoint(tmp_path)
