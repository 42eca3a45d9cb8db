"""The condition networks with GeneFace's sizes against GeneFace's own numbers."""

from __future__ import annotations

import pytest
import torch
from geneface_checkpoint import read_case

from models.condition import ConditionConfig, ConditionNet

TOLERANCE = 1e-4
"""The same float32 operators in the same order leave at most 1e-6; a wrong slope shows above 1e-2."""


@pytest.fixture(scope="module")
def case(shared_fixtures):
    return read_case(shared_fixtures / "radnerf_cond" / "io.npz")


@pytest.fixture(scope="module")
def net(shared_fixtures):
    state = torch.load(shared_fixtures / "radnerf_cond" / "cond_state_dict.pt", weights_only=True)
    net = ConditionNet(ConditionConfig()).eval()
    assert set(net.state_dict()) == set(state)
    net.load_state_dict(state)
    return net


@torch.no_grad()
def test_each_frame_on_its_own(net, case):
    frames = case.cond_wins[:, :, 0]  # (3, 5, 204)
    got = net.cond_prenet(frames.flatten(0, 1)).unflatten(0, (3, 5))
    torch.testing.assert_close(got, case.prenet_out, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_weights_of_the_window(net, case):
    got = net.cond_att_net.weights(case.prenet_out)
    torch.testing.assert_close(got, case.attention, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_the_condition_is_the_references(net, case):
    torch.testing.assert_close(net(case.cond_wins[:, :, 0]), case.cond_feat, rtol=0, atol=TOLERANCE)
