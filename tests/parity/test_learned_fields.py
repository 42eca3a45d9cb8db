"""A head and a torso learnt from a tiny video look like it, upright and unmirrored."""

import json

import numpy as np
import pytest
import tiny_speaker
import torch
from tiny_fields import SMALL_HEAD, SMALL_TORSO

from training import head as head_task
from training import torso as torso_task
from training.fields import draw_head, load_head, load_torso
from training.loop import LoopSettings, fit

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_speaker.write_tiny_speaker(tmp_path_factory.mktemp("speaker"))


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("head")
    task = head_task.make_task(folder, SMALL_HEAD, CPU)
    losses = [float(task.training_step(step)["mse"]) for step in range(240)]
    fit(task, out, LoopSettings(steps=1, validate_every=1, checkpoint_every=1, log_every=1))
    return task, losses, out


def test_the_loss_falls(trained):
    _, losses, _ = trained
    assert np.isfinite(losses).all()
    assert np.mean(losses[-10:]) < 0.25 * np.mean(losses[:10])


def test_the_head_stands_upright_and_unmirrored(trained):
    task, _, out = trained
    loaded = load_head(out)
    data = task.data
    for i in (5, 41):  # one trained on, one not
        condition = loaded.head.encode_condition(data.landmarks_normalized[i : i + 1])
        drawn = draw_head(loaded.head, data.c2w[i], condition, loaded.camera, 64)
        truth = data.pictures[i].float() / 255
        inside = data.labels[i] == 1

        def error(image, truth=truth, inside=inside):
            return float((image - truth)[inside].square().mean())

        assert error(drawn.image) < 0.01
        assert error(drawn.image) < 0.2 * error(drawn.image.flip(1))
        assert error(drawn.image) < 0.2 * error(drawn.image.flip(0))
        weights = drawn.weights_sum
        assert float(weights[inside].mean()) > 0.9
        assert float(weights[~inside].mean()) < 0.15


def test_the_field_of_the_checkpoint_is_within_its_box(trained):
    _, _, out = trained
    field = load_head(out).head.field()
    assert field.individual_code.shape == (0,)
    assert np.abs(field.aabb).max() <= field.bound
    assert 0 < np.unpackbits(field.density_bitfield).mean() < 0.7


def test_cells_that_no_ray_needs_are_emptied(trained):
    task, _, _ = trained
    before = int(task.head.occupancy.sum())
    task._find_visible_cells()
    task._update_occupancy(apply=True)
    assert 0 < int(task.head.occupancy.sum()) <= before


def test_validation_reports_regions_and_pictures(trained):
    task, _, _ = trained
    found = task.validate(1)
    assert {"psnr_whole_db", "psnr_head_db", "psnr_mouth_db", "ssim_whole", "samples_per_ray"} <= set(
        found.scalars
    )
    assert found.scalars["psnr_whole_db"] > 18
    assert 1 <= found.scalars["samples_per_ray"] <= 16
    assert all(
        picture.dtype == np.uint8 and picture.shape[1] == 3 * 64 for picture in found.pictures.values()
    )


def test_a_trained_head_can_be_gone_on_from(trained, folder):
    _, _, out = trained
    settings = head_task.HeadTrainingSettings(
        **{**vars(SMALL_HEAD), "start": out, "net_rate": 1e-4, "grid_rate": 1e-4}
    )
    again = head_task.make_task(folder, settings, CPU)
    assert torch.equal(again.head.occupancy, load_head(out).head.occupancy)
    before = again.validate(0).scalars["psnr_whole_db"]
    for step in range(20):
        again.training_step(step)
    assert again.validate(20).scalars["psnr_whole_db"] > before - 0.5
    other = head_task.HeadTrainingSettings(**{**vars(SMALL_HEAD), "start": out, "hidden": 8})
    with pytest.raises(ValueError, match="config: expected"):
        head_task.make_task(folder, other, CPU)


def test_measuring_writes_figures_and_a_slim_checkpoint(trained, folder):
    _, _, out = trained
    assert head_task.run(folder, out, SMALL_HEAD, CPU) is False
    measure = head_task.HeadTrainingSettings(**{**vars(SMALL_HEAD), "validate_only": True})
    assert head_task.run(folder, out, measure, CPU) is True
    figures = json.loads((out / "figures.json").read_text())
    assert figures["psnr_whole_db"] > 18
    whole, slim = load_head(out), load_head(out / "slim.pt")
    assert (out / "slim.pt").stat().st_size < 0.5 * max(p.stat().st_size for p in out.glob("checkpoint_*.pt"))
    assert torch.equal(whole.head.density_bitfield, slim.head.density_bitfield)
    np.testing.assert_array_equal(whole.landmark_std, slim.landmark_std)
    for (name, a), b in zip(whole.head.named_parameters(), slim.head.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)  # float16 tables


def test_a_torso_is_learnt_and_goes_on_under_the_head(folder, trained, tmp_path):
    torch.manual_seed(0)
    task = torso_task.make_task(folder, SMALL_TORSO, CPU)
    losses = [float(task.training_step(step)["mse"]) for step in range(100)]
    assert np.mean(losses[-10:]) < 0.2 * np.mean(losses[:10])
    found = task.validate(100)
    assert found.scalars["psnr_torso_db"] > 22
    alone = found.pictures["torso_alone"]
    assert np.abs(alone[46, 32].astype(int) - (40, 60, 150)).max() < 60  # hidden by the head in every frame
    assert np.abs(alone[3, 3].astype(int) - tiny_speaker.background()[3, 3]).max() <= 1
    fit(task, tmp_path / "torso", LoopSettings(steps=1, validate_every=99, checkpoint_every=1))
    torso = load_torso(tmp_path / "torso")
    assert torso.camera == task.camera
    assert torso.torso.field().occupancy.max() > 0

    _, _, head_out = trained
    over = torso_task.TorsoTrainingSettings(**{**vars(SMALL_TORSO), "head": head_out})
    joint = torso_task.make_task(folder, over, CPU)
    joint.load_state_dict(task.state_dict())
    scalars = [joint.training_step(step) for step in range(100, 110)]
    assert all(np.isfinite(float(step["whole_mse"])) for step in scalars)
    whole = joint.validate(110)
    assert whole.scalars["psnr_whole_db"] > 18
    behind = head_task.HeadTrainingSettings(**{**vars(SMALL_HEAD), "torso": tmp_path / "torso"})
    shown = head_task.make_task(folder, behind, CPU)
    shown.load_state_dict(trained[0].state_dict())
    assert shown.validate(1).scalars["psnr_torso_db"] > 20
