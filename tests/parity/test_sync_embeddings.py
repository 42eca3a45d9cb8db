"""The exported SyncNet, as the quality benchmark runs it, against torch."""

import numpy as np
import pytest
import torch

from benchmarks.quality import SyncEmbeddings
from export.bundle.motion import export_syncnet
from models.syncnet import SyncNet, SyncNetConfig
from training.syncnet import audio_windows, mouth_windows


def test_embeddings_are_those_of_torch_window_by_window(tmp_path):
    net = SyncNet(SyncNetConfig.streaming()).eval()
    export_syncnet(net, path=tmp_path / "syncnet.onnx")
    rng = np.random.default_rng(1)
    features = rng.normal(-3, 1, (40, 80)).astype(np.float32)
    offsets = rng.normal(0, 0.2, (20, 204)).astype(np.float32)
    audio, mouth = SyncEmbeddings(tmp_path / "syncnet.onnx")(features, offsets)
    with torch.no_grad():
        expected_audio = net.embed_audio(audio_windows(torch.from_numpy(features)[None])[0])
        expected_mouth = net.embed_mouth(mouth_windows(torch.from_numpy(offsets)[None])[0])
    # two orders of float32 sums differ by some 1e-6; a window out of place by more than 1e-2
    assert audio == pytest.approx(expected_audio.numpy(), abs=1e-4)
    assert mouth == pytest.approx(expected_mouth.numpy(), abs=1e-4)
