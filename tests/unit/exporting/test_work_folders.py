from __future__ import annotations

import os
import struct

import pytest
import yaml
from geneface_checkpoint import refused
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from torch.utils.tensorboard import SummaryWriter

from export.geneface.work_folders import find_folders, postnet_checkpoint

# Folders ---------------------------------------------------------------------------------------------


def folders(root, *names):
    for name in names:
        (root / "May" / name).mkdir(parents=True)
    return root


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["postnet", "lm3d_radnerf"], ("postnet", "lm3d_radnerf", None)),
        (["postnet_pitch", "lm3d_radnerf_torso"], ("postnet_pitch", None, "lm3d_radnerf_torso")),
        (["my_postnet", "my_radnerf", "my_radnerf_torso"], ("my_postnet", "my_radnerf", "my_radnerf_torso")),
        (["postnet", "old_postnet", "lm3d_radnerf", "lm3d_nerf"], ("postnet", "lm3d_radnerf", None)),
        (["postnet", "lm3d_nerf", "lm3d_nerf_torso"], ("postnet", "lm3d_nerf", "lm3d_nerf_torso")),
    ],
)  # fmt: skip
def test_work_folders_are_found_by_name(tmp_path, names, expected):
    found = find_folders(folders(tmp_path, *names), "May")
    got = tuple(path and path.name for path in (found.postnet, found.head, found.torso))
    assert got == expected


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["lm3d_radnerf"], "postnet"),
        (["postnet"], "a head's or a torso's"),
        (["postnet", "lm3d_postnet_sync", "lm3d_radnerf"], "lm3d_postnet_sync, postnet"),
        (["postnet", "a_radnerf", "b_radnerf"], "a_radnerf, b_radnerf"),
    ],
)
def test_work_folders_that_cannot_be_told_are_refused(tmp_path, names, named):
    said = refused(find_folders, folders(tmp_path, *names), "May")
    assert said.where.startswith(str(tmp_path))
    assert named in f"{said.expected}, {said.got}"


# Which step ------------------------------------------------------------------------------------------


@pytest.fixture
def many_steps(tmp_path):
    """A PostNet's folder with checkpoints at 1000 to 6000, which nobody opens."""
    for step in range(1000, 7000, 1000):
        (tmp_path / f"model_ckpt_steps_{step}.ckpt").touch()
    (tmp_path / "config.yaml").write_text("infer_ckpt_steps: 4000\n")
    return tmp_path


def taken(folder, steps=None):
    file, reason = postnet_checkpoint(folder, steps)
    return file.name, reason


def write_logs(folder, *, confident, validations):
    with SummaryWriter(str(folder / "tb_logs")) as board:
        for step, (mse, sync) in validations.items():
            board.add_scalar("val/mse", mse, step)
            board.add_scalar("val/sync", sync, step)
        for step in range(99, 6000, 100):  # GeneFace logs a batch before its step is counted
            board.add_scalar("tr/disc_pos_conf", 0.5 + confident(step), step)
            board.add_scalar("tr/disc_neg_conf", 0.5 - confident(step), step)


def test_the_step_is_chosen_by_the_logs(many_steps):
    write_logs(
        many_steps,
        confident=lambda step: 0.3 if step < 2000 or step == 2999 else 0.02,  # one batch out of line
        validations={1000: (9, 9), 2000: (1, 1), 3000: (1.5, 1.6), 4000: (1.49, 1.58), 5000: (2, 2)},
    )
    name, reason = taken(many_steps)
    assert name == "model_ckpt_steps_3000.ckpt"
    assert "logs" in reason
    assert "smallest converged step" in reason


def test_without_usable_logs_the_config_s_step_is_taken(many_steps):
    with SummaryWriter(str(many_steps / "tb_logs")) as board:
        board.add_scalar("tr/mse", 1.0, 1000)
    name, reason = taken(many_steps)
    assert name == "model_ckpt_steps_4000.ckpt"
    assert "infer_ckpt_steps" in reason


def test_without_anything_to_choose_by_the_newest_is_taken_and_said(many_steps):
    (many_steps / "model_ckpt_steps_4000.ckpt").unlink()
    name, reason = taken(many_steps)
    assert name == "model_ckpt_steps_6000.ckpt"
    assert "newest of 5" in reason
    assert "nothing to choose by" in reason


def test_logs_of_other_steps_or_without_finite_values_choose_nothing(many_steps):
    write_logs(many_steps, confident=lambda step: 0, validations={1500: (1, 1), 2000: (float("nan"), 1)})
    assert taken(many_steps)[0] == "model_ckpt_steps_4000.ckpt"


@pytest.mark.parametrize("steps", [[1], {"a": 1}, True, 4000.5, "4000"])
def test_infer_ckpt_steps_that_is_no_step_chooses_nothing(many_steps, steps):
    (many_steps / "config.yaml").write_text(yaml.safe_dump({"infer_ckpt_steps": steps}))
    assert taken(many_steps)[0] == "model_ckpt_steps_6000.ckpt"


def record(content, length=None):
    """One record of TensorBoard's files, or the beginning of one that says another length."""
    header = struct.pack("<Q", len(content) if length is None else length)
    return b"".join(part + struct.pack("<I", masked_crc32c(part)) for part in (header, content) if part)


BROKEN_LOGS = {
    "rubbish in a whole record": lambda file: file.write_bytes(record(b"\xff" * 4)),
    "a record of 1 TB": lambda file: file.write_bytes(record(b"", 2**40) + b"x"),
    "a record of 2^64 - 1": lambda file: file.write_bytes(record(b"", 2**64 - 1) + b"x"),
    "a pipe": os.mkfifo,
    "a link to itself": lambda file: file.symlink_to(file),
    "a folder": lambda file: file.mkdir(),
}


@pytest.mark.parametrize("name", ["events.out.tfevents.9", "my.tfevents"])
@pytest.mark.parametrize("broken", BROKEN_LOGS)
def test_logs_that_cannot_be_read_choose_nothing(many_steps, broken, name):
    (many_steps / "tb_logs").mkdir()
    BROKEN_LOGS[broken](many_steps / "tb_logs" / name)
    assert taken(many_steps)[0] == "model_ckpt_steps_4000.ckpt"


def test_a_step_given_is_taken_or_missed(many_steps):
    assert taken(many_steps, 2000) == ("model_ckpt_steps_2000.ckpt", "the step given")
    said = refused(taken, many_steps, 2500)
    assert said.where.startswith(str(many_steps))
    assert "model_ckpt_steps_2500.ckpt" in f"{said.where}, {said.expected}"
    assert "1000, 2000, 3000" in said.got
