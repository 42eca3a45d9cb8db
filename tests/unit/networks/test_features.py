"""The log-mel front end: the reference's numbers, and nothing of the future in them."""

from __future__ import annotations

import pytest
import torch
import torchaudio

from models.features import LogMel, LogMelConfig
from models.time_base import FRAME_SAMPLES

TOLERANCE = 1e-4
"""Of a log10: two float32 transforms differ by 1e-6 of the amplitude, and by more near the floor of 1e-6."""


@pytest.fixture(scope="module")
def mel():
    return LogMel()


@pytest.fixture(scope="module")
def pcm():
    generator = torch.Generator().manual_seed(0)
    time_s = torch.arange(16000) / 16000
    voice = sum(torch.sin(2 * torch.pi * 130 * k * time_s) / k for k in range(1, 30)) * 0.05
    return (voice + 0.01 * torch.randn(16000, generator=generator))[None]  # (1, 16000)


def test_log_mel_is_the_references(mel, pcm):
    reference = torchaudio.transforms.MelSpectrogram(
        sample_rate=16000,
        n_fft=512,
        hop_length=320,
        f_min=80,
        f_max=7600,
        n_mels=80,
        power=1.0,
        center=False,
        norm="slaney",
        mel_scale="slaney",
    )
    expected = torch.log10(reference(pcm).clamp(min=1e-6)).transpose(1, 2)  # (1, 49, 80)
    torch.testing.assert_close(mel(pcm), expected, rtol=0, atol=TOLERANCE)


def test_causal_framing_is_the_same_mel_192_samples_later(mel, pcm):
    causal = mel.causal(pcm)
    assert causal.shape == (1, 50, 80)  # two to each of 25 video frames
    torch.testing.assert_close(causal[:, 1:], mel(pcm[:, 128:]), rtol=0, atol=1e-5)  # other sums' order


@pytest.mark.parametrize("frame", [0, 1, 7, 24])
def test_a_feature_hears_nothing_after_its_own_20_ms(mel, pcm, frame):
    changed = pcm.clone()
    changed[:, FRAME_SAMPLES * (frame + 1) :] = 0.9
    before, after = mel.causal(pcm), mel.causal(changed)
    heard = 2 * (frame + 1)
    assert torch.equal(before[:, :heard], after[:, :heard])
    if heard < 50:
        assert not torch.equal(before[:, heard:], after[:, heard:])


def test_silence_is_the_floor(mel):
    assert torch.equal(mel.causal(torch.zeros(2, FRAME_SAMPLES)), torch.full((2, 2, 80), -6.0))


def test_the_features_describe_themselves(mel):
    assert (mel.dimension, mel.left_context_samples) == (80, 192)
    assert not mel.state_dict()


def test_batch_and_length_do_not_matter(mel, pcm):
    whole = mel(pcm)
    both = mel(torch.cat([pcm[:, :8000], pcm[:, 320:8320]]))
    torch.testing.assert_close(both[0], whole[0, : both.shape[1]], rtol=0, atol=1e-5)
    torch.testing.assert_close(both[1], whole[0, 1 : both.shape[1] + 1], rtol=0, atol=1e-5)


def test_sound_that_cannot_be_framed_is_refused(mel):
    with pytest.raises(ValueError, match=r"pcm: expected \(batch, >= 512\) samples, got \(1, 511\)"):
        mel(torch.zeros(1, 511))
    with pytest.raises(ValueError, match="window_samples: expected hop_samples"):
        LogMelConfig(window_samples=1024)
    with pytest.raises(ValueError, match="narrow the band"):
        LogMelConfig(highest_hz=9000)
