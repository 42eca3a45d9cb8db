"""SyncNet in May's sizes: unit embeddings, windows refused, learning at all."""

from __future__ import annotations

import pytest
import torch

from models.syncnet import SyncNet, SyncNetConfig


def test_embeddings_are_unit_and_not_negative():
    torch.manual_seed(0)
    model = SyncNet(SyncNetConfig.streaming()).eval()
    with torch.no_grad():
        audio, mouth = model(torch.randn(3, 10, 80), torch.randn(3, 5, 60))
    assert audio.shape == mouth.shape == (3, 128)
    for embedding in (audio, mouth):
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(3))
        assert (embedding >= 0).all()


def test_wrong_windows_are_refused():
    model = SyncNet(SyncNetConfig.streaming())
    with pytest.raises(ValueError, match=r"features: expected \(batch, 10, 80\), got \(1, 9, 80\)"):
        model.embed_audio(torch.zeros(1, 9, 80))
    with pytest.raises(ValueError, match=r"mouth: expected \(batch, 5, 60\), got \(1, 5, 204\)"):
        model.embed_mouth(torch.zeros(1, 5, 204))


def test_embeddings_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match="expected the same last width, got 512 and 256"):
        SyncNetConfig(mouth_widths=(128, 256, 256))
