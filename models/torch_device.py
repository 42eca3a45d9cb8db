"""The device that networks are trained and run on."""

from __future__ import annotations

import torch

from cuda_kernels.errors import InputError


def device_named(name: str) -> torch.device:
    """Returns the torch device that `--device` names: cpu, cuda, cuda:1.

    Raises:
        InputError: torch knows none of that kind, or sees none here.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(field="--device", expected="cpu or cuda", got=repr(name)) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device: got {name}, but torch sees no CUDA device here; use --device cpu")
    return device
