"""Noise by absolute step: the same wherever a window begins."""

from __future__ import annotations

import math

import numpy as np

from models.latent_noise import latent_noise


def test_noise_belongs_to_its_step():
    whole = latent_noise(seed=7, first_step=-20, steps=400, channels=16)
    assert whole.shape == (1, 16, 400)
    assert whole.dtype == np.float32
    part = latent_noise(seed=7, first_step=103, steps=50, channels=16)
    np.testing.assert_array_equal(part, whole[..., 123:173])
    assert not np.array_equal(latent_noise(seed=8, first_step=-20, steps=400, channels=16), whole)


def test_noise_is_standard_normal_before_and_after_the_first_step():
    for first_step in (-400, 0):
        whole = latent_noise(seed=7, first_step=first_step, steps=400, channels=16)
        assert abs(float(whole.mean())) < 4 / math.sqrt(whole.size)  # four standard errors
        assert abs(float(whole.std()) - 1) < 4 / math.sqrt(2 * whole.size)
