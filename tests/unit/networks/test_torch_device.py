from __future__ import annotations

import pytest
import torch

from cuda_kernels.errors import InputError
from models.torch_device import device_named


def test_a_device_has_the_name_that_torch_gives_it():
    assert device_named("cpu") == torch.device("cpu")


def test_what_torch_does_not_know_is_refused():
    with pytest.raises(InputError) as refusal:
        device_named("abacus")
    assert (refusal.value.field, refusal.value.got) == ("--device", "'abacus'")


def test_a_device_that_is_not_here_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="use --device cpu"):
        device_named("cuda:1")
