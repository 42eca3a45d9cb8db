"""Audio2Motion with GeneFace's sizes against GeneFace's own numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from geneface_checkpoint import read_case, read_checkpoint

from models.audio2motion import Audio2Motion, Audio2MotionConfig, f0_to_coarse

TOLERANCE = 1e-4
"""The same float32 operators in the same order leave at most 1e-6; a wrong pad or order shows above 1e-2."""

PITCH_VARIANT_SHAPES = {
    "pitch_embed.weight": (300, 64),
    "pitch_encoder.0.weight": (64, 64, 3),
    "pitch_encoder.1.weight": (64,),
    "pitch_encoder.1.bias": (64,),
    "pitch_encoder.1.running_mean": (64,),
    "pitch_encoder.1.running_var": (64,),
    "pitch_encoder.1.num_batches_tracked": (),
    "pitch_encoder.3.weight": (32, 64, 3),
    "vae.g_pre_net.0.weight": (96, 96, 8),
    "vae.g_pre_net.0.bias": (96,),
    "vae.encoder.wn.cond_layer.weight_v": (4096, 96, 1),
    "vae.prior_flow.flows.0.enc.cond_layer.weight_v": (512, 96, 1),
    "vae.prior_flow.flows.2.enc.cond_layer.weight_v": (512, 96, 1),
    "vae.prior_flow.flows.4.enc.cond_layer.weight_v": (512, 96, 1),
    "vae.prior_flow.flows.6.enc.cond_layer.weight_v": (512, 96, 1),
    "vae.decoder.wn.cond_layer.weight_v": (2048, 96, 1),
}


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def case(shared_fixtures):
    return read_case(shared_fixtures / "audio2motion" / "io.npz")


@pytest.fixture(scope="module")
def model(shared_fixtures):
    path = shared_fixtures / "audio2motion" / "model_ckpt_steps_40000.ckpt.xz"
    state = read_checkpoint(path)["model"]
    model = Audio2Motion().eval()
    assert list(model.state_dict()) == list(state)
    model.load_state_dict(state)
    return model


def test_has_as_many_parameters_as_the_reference():
    plain, pitch = Audio2Motion(), Audio2Motion(Audio2MotionConfig(pitch_channels=32))
    assert sum(p.numel() for p in plain.parameters()) == 11_127_500
    assert sum(p.numel() for p in pitch.parameters()) == 11_468_396


def test_pitch_variant_differs_in_the_keys_of_the_reference():
    plain = {k: tuple(v.shape) for k, v in Audio2Motion().state_dict().items()}
    pitch = Audio2Motion(Audio2MotionConfig(pitch_channels=32)).state_dict()
    different = {k: tuple(v.shape) for k, v in pitch.items() if plain.get(k) != tuple(v.shape)}
    assert different == PITCH_VARIANT_SHAPES
    assert plain.keys() <= pitch.keys()


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, "infer_pred_T1"), (0.5, "infer_pred_T05")])
def test_predicted_motion_is_the_references(case, model, temperature, expected):
    with torch.no_grad():
        got = model.predict(case.hubert, mask=case.y_mask, z_prior=case.z_prior * temperature)
    close(got, getattr(case, expected))


def test_what_lies_between_audio_and_latent(case, model):
    with torch.no_grad():
        g = model.condition(case.hubert)
        steps = model.vae.g_pre_net(g)
        z = model.vae.prior_flow(case.z_prior, None, steps, reverse=True)
        back = model.vae.prior_flow(z, None, steps, reverse=False)
    close(g, case.infer_mel_encoder_out)
    close(steps, case.infer_g_sqz)
    close(z, case.infer_flow_out)
    close(back, case.z_prior)


def test_a_training_pass_is_the_references(case, model):
    with torch.no_grad():
        out = model(case.hubert, case.y, mask=case.y_mask, noise=case.eps_posterior)
    close(out.reconstruction, case.train_x_recon)
    close(out.mean, case.train_m_q)
    close(out.log_std, case.train_logs_q)
    close(out.z_prior, case.train_z_p)
    close(out.kl(), case.train_loss_kl)


def test_pitch_variant_runs_and_hears_the_pitch(case):
    torch.manual_seed(0)
    model = Audio2Motion(Audio2MotionConfig(pitch_channels=32)).eval()
    with torch.no_grad():
        out = model.predict(case.hubert, f0_hz=case.f0, mask=case.y_mask)
        flat = model.predict(case.hubert, f0_hz=torch.zeros_like(case.f0), mask=case.y_mask)
    assert out.shape == (2, 48, 204)
    assert (out[0] - flat[0]).abs().max() > 1e-3
    assert not out[1, 40:].any()


def test_coarse_pitch(shared_fixtures):
    with np.load(shared_fixtures / "postprocess" / "f0_to_coarse.npz") as file:
        f0, coarse = torch.from_numpy(file["f0"]), torch.from_numpy(file["coarse"])
    assert torch.equal(f0_to_coarse(f0), coarse)
