"""PostNet and its discriminator with GeneFace's sizes against GeneFace's own numbers."""

from __future__ import annotations

import pytest
import torch
from geneface_checkpoint import child, read_case, read_checkpoint

from models.audio2motion import Audio2Motion
from models.postnet import MotionDiscriminator, PostNet, PostNetConfig, nonzero_frames
from models.syncnet import SyncNet

TOLERANCE = 1e-4
"""The same float32 operators in the same order; see test_audio2motion."""


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def case(shared_fixtures):
    return read_case(shared_fixtures / "postnet" / "io.npz")


@pytest.fixture(scope="module")
def checkpoint(shared_fixtures):
    return read_checkpoint(shared_fixtures / "postnet" / "model_ckpt_steps_6000.ckpt.xz")


@pytest.fixture(scope="module")
def postnet(checkpoint):
    model = PostNet().eval()
    assert list(model.state_dict()) == list(checkpoint["model"])
    model.load_state_dict(checkpoint["model"])
    return model


def test_sizes_are_the_references():
    assert sum(p.numel() for p in PostNet().parameters()) == 796_620
    pitch = PostNet(PostNetConfig(pitch_channels=64))
    assert sum(p.numel() for p in pitch.parameters()) == 821_196
    assert pitch.state_dict()["block1.0.conv_block.0.weight"].shape == (128, 268, 3)
    assert sum(p.numel() for p in MotionDiscriminator().parameters()) == 158_080


def test_refined_landmarks(case, postnet):
    with torch.no_grad():
        close(postnet(case.x, mask=nonzero_frames(case.x)), case.refined)


def test_the_discriminators_scores_are_the_references(case, checkpoint):
    model = MotionDiscriminator().eval()
    assert list(model.state_dict()) == list(checkpoint["disc_model"])
    model.load_state_dict(checkpoint["disc_model"])
    with torch.no_grad():
        close(model(case.x[nonzero_frames(case.x) > 0]), case.disc_validity)


def test_chain_from_audio_to_refined_landmarks(case, checkpoint, postnet):
    """The networks that a PostNet checkpoint carries along are the ones to use: their batch norms moved."""
    carried = checkpoint["audio2motion_task"]
    audio2motion = Audio2Motion().eval()
    audio2motion.load_state_dict(child(carried, "model"))
    SyncNet().load_state_dict(child(carried, "syncnet_task.model"))
    SyncNet().load_state_dict(child(checkpoint["syncnet_task"], "model"))
    with torch.no_grad():
        raw = audio2motion.predict(case.chain_hubert, z_prior=case.chain_z)
        close(raw, case.chain_raw_lm3d)
        close(postnet(raw, mask=nonzero_frames(raw)), case.chain_refine_lm3d)
