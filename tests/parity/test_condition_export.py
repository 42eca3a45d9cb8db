from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from export.bundle.condition import MAX_ERROR, ConditionExportError, condition_error, export_condition
from models.condition import ConditionConfig, ConditionNet

SIZES = [
    ConditionConfig(),
    ConditionConfig(window_frames=1, lookahead_frames=0, hidden=(64, 64, 64, 64), outputs=32),
    ConditionConfig(window_frames=3, lookahead_frames=0, outputs=16),
]


@pytest.mark.parametrize("config", SIZES)
def test_the_graph_says_what_torch_says(config):
    torch.manual_seed(0)
    net = ConditionNet(config).eval()
    exported = export_condition(config, net.cond_prenet, net.cond_att_net)
    assert exported.largest_error <= MAX_ERROR

    session = onnxruntime.InferenceSession(exported.content)
    window = np.random.default_rng(1).normal(size=(config.window_frames, 204)).astype(np.float32)
    got = session.run(["condition"], {"window": window})[0]
    assert got.shape == (config.outputs,)
    with torch.no_grad():
        expected = net(torch.from_numpy(window)[None])[0].numpy()
    np.testing.assert_allclose(got, expected, atol=MAX_ERROR)


def test_the_references_own_weights_and_outputs(shared_fixtures):
    folder = shared_fixtures / "radnerf_cond"
    state = torch.load(folder / "cond_state_dict.pt", weights_only=True)
    net = ConditionNet(ConditionConfig()).eval()
    net.load_state_dict(state)
    exported = export_condition(net.config, net.cond_prenet, net.cond_att_net)
    session = onnxruntime.InferenceSession(exported.content)
    with np.load(next(folder.glob("*.npz"))) as cases:
        windows, expected = cases["cond_wins"], cases["cond_feat"]
    for window, feature in zip(windows, expected, strict=True):
        got = session.run(None, {"window": window.reshape(5, 204).astype(np.float32)})[0]
        np.testing.assert_allclose(got, feature, atol=1e-5)


def test_weights_that_are_no_numbers_are_refused():
    net = ConditionNet(SIZES[1]).eval()
    with torch.no_grad():
        net.cond_prenet.encoder_fc1[2].bias[0] = torch.nan
    with pytest.raises(ConditionExportError, match=r"condition\.onnx: expected the graph within"):
        export_condition(net.config, net.cond_prenet, net.cond_att_net)


def test_another_nets_graph_is_told_apart():
    one, two = ConditionNet(SIZES[1]).eval(), ConditionNet(SIZES[1]).eval()
    content = export_condition(one.config, one.cond_prenet, None).content
    assert condition_error(content, two.config, two.cond_prenet, None) > 100 * MAX_ERROR
