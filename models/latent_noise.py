"""The noise that a motion network's latent takes, a number for each absolute step of time."""

from __future__ import annotations

import numpy as np

from cuda_kernels.arrays import F32


def latent_noise(*, seed: int, first_step: int, steps: int, channels: int) -> F32:
    """Returns standard normal noise (1, channels, steps) that depends on each step's absolute index alone.

    Windows that overlap get the same latents where they do, so a voice cut in chunks does not flicker. Steps
    before the first, where a stream's first window begins, have negative indices and noise of their own.
    """
    rows = []
    for step in range(first_step, first_step + steps):
        counter = np.array([0, step % 2**64, 0, 0], np.uint64)
        rows.append(
            np.random.Generator(np.random.Philox(key=seed, counter=counter)).standard_normal(channels)
        )
    return np.stack(rows, axis=1).astype(np.float32)[None]
