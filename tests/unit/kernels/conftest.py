"""The training kernels, compiled for the CPU."""

from __future__ import annotations

import pytest
import torch
from emulated_raymarcher import COMPILER
from emulated_training import EmulatedTraining

from cuda_kernels import torch_launcher


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The emulated kernels; without a compiler the test is skipped."""
    if COMPILER is None:
        pytest.skip("g++ is not installed")
    return EmulatedTraining(tmp_path_factory.mktemp("training"))


@pytest.fixture
def kernels(built, monkeypatch):
    """The emulated kernels in the CPU's place."""
    monkeypatch.setitem(torch_launcher._launchers, torch.device("cpu"), built)
    built.names.clear()
    return built
