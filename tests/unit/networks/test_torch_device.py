from __future__ import annotations

import pytest
import torch

from cuda_kernels.errors import InputError
from models.torch_device import device_named


def test_a_device_has_the_name_that_torch_gives_it():
    assert device_named("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["abacus", "meta", "xla", "mps"])
def test_another_kind_of_device_is_refused(name):
    with pytest.raises(InputError) as refusal:
        device_named(name)
    assert (refusal.value.field, refusal.value.got) == ("--device", repr(name))


def test_a_device_that_is_not_here_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="use --device cpu"):
        device_named("cuda:1")
