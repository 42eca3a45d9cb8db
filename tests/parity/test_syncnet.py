"""SyncNet with GeneFace's sizes against GeneFace's own numbers."""

from __future__ import annotations

import numpy as np
import torch
from geneface_checkpoint import read_checkpoint

from models.syncnet import SyncNet

TOLERANCE = 1e-4
"""The same float32 operators in the same order; see test_audio2motion."""


def test_embeddings(shared_fixtures):
    state = read_checkpoint(shared_fixtures / "syncnet" / "model_ckpt_steps_40000.ckpt.xz")["model"]
    model = SyncNet().eval()
    assert list(model.state_dict()) == list(state)
    assert sum(p.numel() for p in model.parameters()) == 9_304_352
    model.load_state_dict(state)
    with np.load(shared_fixtures / "syncnet" / "io.npz") as file:
        case = {key: torch.from_numpy(file[key]) for key in file}
    with torch.no_grad():
        audio, mouth = model(case["hubert"], case["mouth_lm"])
    expected = {
        "audio_embedding": audio,
        "mouth_embedding": mouth,
        "cosine": (audio * mouth).sum(dim=1),
    }
    for name, got in expected.items():
        torch.testing.assert_close(got, case[name], rtol=0, atol=TOLERANCE)
