"""A head and a torso learn on a GPU, by the kernels as by their twins."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_fields import SMALL_HEAD, SMALL_TORSO

from benchmarks.gpu_training import ball_speaker, prepare_head
from cuda_kernels import torch_launcher
from training.head import HeadTask
from training.torso import TorsoTask

HEAD = dataclasses.replace(SMALL_HEAD, window_frames=5, lookahead_frames=2)


@pytest.fixture(scope="module")
def device(gpu):
    device = torch.device("cuda", torch.cuda.current_device())
    assert torch_launcher.usable(device)
    return device


@pytest.fixture(scope="module")
def ball(device):
    return ball_speaker(44, 64, device)


@pytest.fixture(scope="module")
def start(ball, device, tmp_path_factory):
    """A head that the kernels have taught for a while."""
    path = tmp_path_factory.mktemp("head") / "start.pt"
    prepare_head(ball, dataclasses.replace(HEAD, kernels="cuda"), device, steps=200, path=path)
    return path


def step_of(task, module):
    """The scalars of one step and the gradients that it took."""
    torch.manual_seed(5)
    scalars = {name: float(value) for name, value in task.training_step(1).items()}
    grads = {
        name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None and p.numel()
    }
    return scalars, grads


def agree(one, other):
    for name, value in one[0].items():
        assert other[0][name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    assert one[1].keys() == other[1].keys()
    assert max(float(grad.abs().max()) for grad in one[1].values()) > 0
    for name, grad in one[1].items():
        # As a whole: sums are taken in another order, and an ambient coordinate that lies a rounding off
        # is now and then in another cell, whose slope is another.
        assert float((other[1][name] - grad).norm()) <= 1e-2 * float(grad.norm()) + 1e-12, name


def test_a_head_steps_the_same(ball, start, device):
    found = []
    for kernels in ("torch", "cuda"):
        torch.manual_seed(4)
        task = HeadTask(ball, dataclasses.replace(HEAD, start=start, kernels=kernels), device)
        assert task.head.kernels == (kernels == "cuda")
        found.append(step_of(task, task.head))
    agree(*found)


def test_a_torso_steps_the_same(ball, start, device):
    found = []
    for kernels in ("torch", "cuda"):
        torch.manual_seed(4)
        task = TorsoTask(ball, dataclasses.replace(SMALL_TORSO, head=start, kernels=kernels), device)
        found.append(step_of(task, task.torso))
    agree(*found)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch's own compiling
def test_a_head_and_its_torso_are_learnt_by_the_kernels(ball, start, device, compiled):
    torch.manual_seed(0)
    settings = {"kernels": "cuda", "compile": compiled, "precision": "bf16"}
    task = HeadTask(ball, dataclasses.replace(HEAD, **settings), device)
    losses = [float(task.training_step(step)["mse"]) for step in range(240)]
    assert sum(losses[-10:]) < 0.3 * sum(losses[:10])
    assert task.validate(240).scalars["psnr_whole_db"] > 18

    torso = TorsoTask(ball, dataclasses.replace(SMALL_TORSO, head=start, **settings), device)
    losses = [float(torso.training_step(step)["mse"]) for step in range(100)]
    assert sum(losses[-10:]) < 0.3 * sum(losses[:10])
    assert torso.validate(100).scalars["psnr_torso_db"] > 20
