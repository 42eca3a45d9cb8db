"""The torso with GeneFace's sizes against GeneFace's own numbers."""

from __future__ import annotations

import pytest
import torch
from geneface_checkpoint import read_case, read_checkpoint

from cuda_kernels.torch_encodings import frequency_encode
from cuda_kernels.torch_reference import pose_vector, torso_over
from models.head import Head, HeadConfig
from models.torso import Torso, TorsoConfig

TOLERANCE = 1e-4
"""The same float32 formulas; sin(512 x) enlarges a rounding of its argument to some 1e-5."""


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def folder(shared_fixtures):
    return shared_fixtures / "radnerf_torso"


@pytest.fixture(scope="module")
def state(folder):
    return read_checkpoint(folder / "model_ckpt_steps_250000.ckpt.xz")["model"]


@pytest.fixture(scope="module")
def torso(state):
    torso = Torso(TorsoConfig()).eval()
    torso.load_state_dict({key: value for key, value in state.items() if "torso" in key})
    return torso


def test_a_checkpoint_is_a_head_and_a_torso(state):
    own = Head(HeadConfig()).state_dict() | Torso(TorsoConfig()).state_dict()
    assert {key: (value.shape, value.dtype) for key, value in own.items()} == {
        key: (value.shape, value.dtype) for key, value in state.items()
    }


def test_has_as_many_parameters_as_the_reference():
    assert sum(p.numel() for p in Torso(TorsoConfig()).parameters()) == 1_231_424


@torch.no_grad()
def test_point_queries(torso, folder):
    case = read_case(folder / "point_queries.npz")
    close(frequency_encode(case.pose6, 4), case.pose_embed)
    close(frequency_encode(case.x * 0.8, 10), case.pos_embed)
    alpha, color, deform = torso.query(case.x, case.pose6, case.code[None])
    close(alpha, case.alpha)
    close(color, case.color)
    close(deform, case.dx)


@torch.no_grad()
def test_a_torso_frame_is_the_references(torso, folder):
    case = read_case(folder / "torso_frame3.npz")
    drawn = torso(case.bg_coords[0], case.pose6, case.bg_color[0])
    close(drawn.deform, case.deform)
    close(drawn.alpha, case.torso_alpha_map[:, 0])
    close(drawn.image, case.torso_rgb_map[0])


@torch.no_grad()
def test_training_shapes_give_the_same_picture(torso, folder):
    case = read_case(folder / "torso_frame3.npz")
    torso.train()
    drawn = torso(case.bg_coords[0], case.pose6, case.bg_color[0])
    torso.eval()
    close(drawn.image, case.torso_rgb_map[0])


def test_the_twin_draws_the_torso_as_the_modules_do(torso, folder, shared_fixtures):
    case = read_case(folder / "torso_frame3.npz")
    pose = read_case(shared_fixtures / "radnerf_render" / "head_frame3.npz").pose_matrix[0]
    close(pose_vector(pose)[None], case.pose6)
    got = torso_over(torso.field(), pose, case.bg_coords[0], case.bg_color[0], device="cpu")
    close(got, case.torso_rgb_map[0])


@torch.no_grad()
def test_an_update_of_the_torsos_occupancy_is_the_references(state, folder):
    case = read_case(folder / "density_update.npz")
    torso = Torso(TorsoConfig()).eval()
    torso.load_state_dict({key: value for key, value in state.items() if "torso" in key})
    torso.density_grid_torso.copy_(case.before)
    row = int(case.train_pose_index)
    torso.update_density(
        pose_vector(case.pose_matrix)[None], code=torso.torso_individual_codes[row : row + 1], jitter=False
    )
    close(torso.density_grid_torso, case.after)
    assert torso.mean_density == pytest.approx(float(case.mean_density), abs=TOLERANCE)
