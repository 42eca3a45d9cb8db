"""Audio2Motion and PostNet in May's sizes: how far they hear, masks, lengths, noise, the KL term."""

from __future__ import annotations

import math

import pytest
import torch
from causal_networks import unsettled

from models.audio2motion import Audio2Motion, Audio2MotionConfig, Audio2MotionOutput
from models.features import LogMel
from models.latent_noise import latent_noise
from models.postnet import PostNet, PostNetConfig
from models.time_base import FRAME_SAMPLES
from models.time_convolution import WeightNormConv1d, plain_copy, without_padding

TOLERANCE = 1e-5
"""The same sums in another order: float32 leaves some 1e-6 on values around 1."""


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return unsettled(Audio2Motion(Audio2MotionConfig.streaming()))


@pytest.fixture(scope="module")
def postnet():
    torch.manual_seed(0)
    return unsettled(PostNet(PostNetConfig.streaming()))


@pytest.fixture(scope="module")
def pcm():
    return torch.randn(1, 80 * FRAME_SAMPLES, generator=torch.Generator().manual_seed(2)) * 0.1


def landmarks_of(model, postnet, pcm):
    """Returns (1, frames - lookahead, 204)."""
    with torch.no_grad():
        return postnet(model.predict(LogMel().causal(pcm)))


@pytest.mark.parametrize("lookahead_frames", [0, 2, 4])
@pytest.mark.parametrize("frame", [0, 10, 50])
def test_motion_depends_on_nothing_later_than_the_lookahead(postnet, pcm, lookahead_frames, frame):
    torch.manual_seed(0)
    model = unsettled(Audio2Motion(Audio2MotionConfig.streaming(lookahead_frames=lookahead_frames)))
    changed = pcm.clone()
    changed[:, FRAME_SAMPLES * (frame + 1 + lookahead_frames) :] = 0.5
    before, after = landmarks_of(model, postnet, pcm), landmarks_of(model, postnet, changed)
    assert before.shape == (1, 80 - lookahead_frames, 204)
    assert torch.equal(before[:, : frame + 1], after[:, : frame + 1])
    assert not torch.equal(before[:, frame + 1], after[:, frame + 1])


def test_receptive_field_is_what_it_says(model, pcm):
    reach = model.config.receptive_field_frames
    newest = 60 + model.config.lookahead_frames  # the last audio that frame 60 hears
    # without noise the first coupling's kernel sees nothing but zeros
    oldest = newest - reach + 1 + (model.config.flow_kernel - 1)
    features = LogMel().causal(pcm).requires_grad_()
    model.predict(features)[0, 60].sum().backward()
    heard = features.grad[0].abs().sum(dim=1).reshape(-1, 2).sum(dim=1).nonzero().flatten()
    assert (int(heard[0]), int(heard[-1])) == (oldest, newest)


def test_postnets_receptive_field_is_what_it_says(postnet):
    landmarks = torch.randn(1, 60, 204, generator=torch.Generator().manual_seed(3)).requires_grad_()
    postnet(landmarks)[0, 40].sum().backward()
    heard = landmarks.grad[0].abs().sum(dim=1).nonzero().flatten()
    assert (int(heard[0]), int(heard[-1])) == (41 - postnet.config.receptive_field_frames, 40)


def test_a_window_gives_the_motion_of_the_whole_sound(model, postnet, pcm):
    mel = LogMel()
    whole = landmarks_of(model, postnet, pcm)
    reach = model.config.receptive_field_frames + postnet.config.receptive_field_frames - 1
    features = mel.causal(pcm)
    for frame in (reach, reach + 7, 70):
        last = frame + model.config.lookahead_frames + 1
        window = features[:, 2 * (last - reach) : 2 * last]
        with torch.no_grad(), without_padding(model, postnet):
            got = postnet(model.predict(window))
        assert got.shape == (1, 1, 204)
        torch.testing.assert_close(got[:, 0], whole[:, frame], rtol=0, atol=TOLERANCE)


def test_padding_comes_back_after_a_window(model, pcm):
    features = LogMel().causal(pcm)[:, : 2 * model.config.receptive_field_frames]
    with torch.no_grad():
        before = model.predict(features)
        with pytest.raises(ZeroDivisionError), without_padding(model):
            raise ZeroDivisionError
        assert torch.equal(model.predict(features), before)


def test_weight_norm_worked_out_says_the_same(model, pcm):
    plain = plain_copy(model)
    assert not any(isinstance(layer, WeightNormConv1d) for layer in plain.modules())
    features = LogMel().causal(pcm)
    with torch.no_grad():
        torch.testing.assert_close(plain.predict(features), model.predict(features), rtol=0, atol=TOLERANCE)


def test_frames_out_of_the_mask_change_neither_the_rest_nor_the_kl():
    torch.manual_seed(0)
    model = unsettled(Audio2Motion(Audio2MotionConfig(feature_dimension=8, hidden_channels=16)))
    features, motion = torch.randn(1, 48, 8), torch.randn(1, 24, 204)
    mask = torch.ones(1, 24)
    mask[:, 16:] = 0
    noise = torch.randn(1, 16, 6)
    other = motion.clone()
    other[:, 18:] += 5  # frames 16 and 17 are within reach of the last counted step's own kernel
    with torch.no_grad():
        first = model(features, motion, mask=mask, noise=noise)
        second = model(features, other, mask=mask, noise=noise)
    assert torch.equal(first.reconstruction, second.reconstruction)
    assert torch.equal(first.kl(), second.kl())
    assert not first.reconstruction[:, 16:].any()
    assert first.step_mask.tolist() == [[1, 1, 1, 1, 0, 0]]


def test_postnet_ignores_what_the_mask_hides(postnet):
    landmarks = torch.randn(2, 20, 204, generator=torch.Generator().manual_seed(4))
    mask = torch.ones(2, 20)
    mask[1, 12:] = 0
    with torch.no_grad():
        out = postnet(landmarks, mask=mask)
    assert torch.equal(out[1, 12:], landmarks[1, 12:])
    assert not torch.equal(out[1, :12], landmarks[1, :12])


def test_new_postnet_begins_as_the_identity():
    landmarks = torch.randn(1, 9, 204)
    assert torch.equal(PostNet(PostNetConfig.streaming()).eval()(landmarks), landmarks)


def test_silence_before_the_sound_is_what_padding_says_at_the_input(model):
    config = model.config
    silence = LogMel().causal(torch.zeros(1, FRAME_SAMPLES))
    assert not ((silence + config.feature_offset) * config.feature_scale).any()


def test_same_audio_same_motion_unless_noise_is_given(model, pcm):
    features = LogMel().causal(pcm)
    noise = torch.from_numpy(latent_noise(seed=0, first_step=0, steps=80, channels=16))
    with torch.no_grad():
        still = model.predict(features)
        assert torch.equal(still, model.predict(features))
        moved = model.predict(features, z_prior=noise[..., :76])
    assert not torch.equal(still, moved)


def test_kl_of_a_standard_normal_is_nought_and_of_a_shifted_one_half_its_square():
    z = torch.randn(4, 5000, 2, generator=torch.Generator().manual_seed(5))
    zero, mask = torch.zeros_like(z), torch.ones(4, 5000)
    out = Audio2MotionOutput(reconstruction=zero, mean=zero, log_std=zero, z=z, z_prior=z, step_mask=mask)
    assert float(out.kl()) == 0
    shifted = out._replace(mean=zero + 2, z=z + 2, z_prior=z + 2)
    assert float(shifted.kl()) == pytest.approx(2, abs=4 * 2 / math.sqrt(z.numel()))  # std of the estimate: 2


def test_gradients_reach_every_part():
    torch.manual_seed(0)
    model = Audio2Motion(Audio2MotionConfig.streaming())
    unsettled(model).train()
    features, motion = torch.randn(2, 2 * 24, 80), torch.randn(2, 20, 204)
    out = model(features, motion)
    (out.kl() + (out.reconstruction - motion).square().mean()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_lengths_that_do_not_fit_are_refused(model):
    with pytest.raises(ValueError, match=r"expected \(batch, two a video frame, 80\), got \(1, 9, 80\)"):
        model.predict(torch.zeros(1, 9, 80))
    with pytest.raises(ValueError, match="4 of lookahead after them, got 4"):
        model.predict(torch.zeros(1, 8, 80))
    reference = Audio2Motion(Audio2MotionConfig(feature_dimension=8, hidden_channels=16))
    with pytest.raises(ValueError, match="positive multiple of 4 video frames"):
        reference.predict(torch.zeros(1, 12, 8))
    hears_pitch = Audio2Motion(Audio2MotionConfig(feature_dimension=8, hidden_channels=16, pitch_channels=4))
    with pytest.raises(ValueError, match="this variant hears pitch"):
        hears_pitch.predict(torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match="PostNet: pitch: expected 0 channels, got 64"):
        PostNet()(torch.zeros(1, 4, 204), pitch=torch.zeros(1, 4, 64))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"causal": True}, "squeeze: expected 1"),
        ({"squeeze": 3}, "squeeze: expected an even number"),
        ({"lookahead_frames": 2}, "lookahead_frames: expected 0"),
        ({"latent_channels": 7}, "latent_channels: expected an even number"),
    ],
)
def test_sizes_that_contradict_are_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        Audio2MotionConfig(**settings)


def test_two_sided_network_has_no_streaming_window():
    with pytest.raises(ValueError, match="receptive_field_frames"):
        _ = Audio2MotionConfig().receptive_field_frames
