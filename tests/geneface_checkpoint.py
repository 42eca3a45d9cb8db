"""Work folders as GeneFace's trainer leaves them, for tests: the parity cases' and small ones."""

from __future__ import annotations

import lzma
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import refusals
import torch

from export.geneface.pickles import GenefaceFileError, read_torch

WORK_FOLDERS = {
    "audio2motion": ("lrs3/lm3d_vae_sync", "model_ckpt_steps_40000.ckpt"),
    "syncnet": ("lrs3/syncnet", "model_ckpt_steps_40000.ckpt"),
    "postnet": ("May/lm3d_postnet_sync", "model_ckpt_steps_6000.ckpt"),
    "radnerf_render": ("May/lm3d_radnerf", "model_ckpt_steps_250000.ckpt"),
    "radnerf_torso": ("May/lm3d_radnerf_torso", "model_ckpt_steps_250000.ckpt"),
}


def write_checkpoints(fixtures: Path, root: Path) -> Path:
    """Returns `root`, written as GeneFace's folder `checkpoints` from the parity cases."""
    for case, (folder, name) in WORK_FOLDERS.items():
        (packed,) = (fixtures / case).glob("*model_ckpt_*.ckpt.xz")
        unpack(packed, root / folder / name)
        shutil.copy(fixtures / case / "config.yaml", root / folder / "config.yaml")
    return root


def unpack(packed: Path, target: Path) -> Path:
    """Returns `target`, the checkpoint of a parity case's `.ckpt.xz`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with lzma.open(packed) as file:
        target.write_bytes(file.read())
    return target


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Returns the `state_dict` of a `.ckpt.xz`: child name to that child's own state_dict."""
    with tempfile.TemporaryDirectory() as folder:
        content: Any = read_torch(unpack(path, Path(folder) / "unpacked.ckpt"))
    return content["state_dict"]


def read_case(path: Path) -> SimpleNamespace:
    """Returns the arrays of a parity case's `.npz` as tensors, by name."""
    with np.load(path) as file:
        return SimpleNamespace(**{key: torch.from_numpy(file[key]) for key in file})


def child(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Returns the entries under `prefix.`, without it."""
    return {
        key.removeprefix(f"{prefix}."): value for key, value in state.items() if key.startswith(f"{prefix}.")
    }


def write_work_folder(folder: Path, children: dict[str, Any], *, step: int = 10, config: str = "") -> Path:
    """Returns the checkpoint written as GeneFace's trainer does, with its config.yaml beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    if config:
        (folder / "config.yaml").write_text(config)
    content = {
        "epoch": 1,
        "global_step": step,
        "checkpoint_callback_best": float("inf"),
        "optimizer_states": [],
        "state_dict": children,
    }
    path = folder / f"model_ckpt_steps_{step}.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def refused(read: Callable[..., object], *arguments: Any, **named: Any) -> refusals.Refusal:
    """Returns the parts of the line that a call refuses a file of GeneFace's with; it names a way out."""
    with pytest.raises(GenefaceFileError) as caught:
        read(*arguments, **named)
    said = refusals.parts(str(caught.value))
    assert "\n" not in str(caught.value)
    assert said.way_out
    return said
