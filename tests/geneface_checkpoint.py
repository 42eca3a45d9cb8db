"""Reads the parity cases' checkpoints: GeneFace's files, packed with lzma."""

from __future__ import annotations

import io
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import torch


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Returns the `state_dict` of a `.ckpt.xz`: child name to that child's own state_dict.

    The optimizers' learning rate is a numpy number, which torch's safe loader has to be told of.
    """
    numpy_number = [np._core.multiarray.scalar, np.dtype, type(np.dtype(np.float64))]
    with lzma.open(path) as file, torch.serialization.safe_globals(numpy_number):
        return torch.load(io.BytesIO(file.read()), weights_only=True, map_location="cpu")["state_dict"]


def child(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Returns the entries under `prefix.`, without it."""
    return {
        key.removeprefix(f"{prefix}."): value for key, value in state.items() if key.startswith(f"{prefix}.")
    }
