"""The device that networks are trained and run on."""

from __future__ import annotations

import torch

from cuda_kernels.errors import InputError


def device_named(name: str) -> torch.device:
    """Returns the torch device that `--device` names: cpu, cuda, cuda:1.

    Raises:
        InputError: it is another kind, or torch sees none here.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(field="--device", expected="cpu or cuda", got=repr(name))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device: got {name}, but torch sees no CUDA device here; use --device cpu")
    return device
