"""How a field's training goes on: the share done, the learning rate, the averaged weights."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

RATE_WARMUP_STEPS = 100


class Course:
    """How far a training is, by steps or by the time spent in it."""

    def __init__(self, steps: int, minutes: float | None) -> None:
        """Starts at nothing spent."""
        self._steps, self._minutes = steps, minutes
        self.spent_s = 0.0
        self._last_s: float | None = None

    def tick(self, step: int) -> float:
        """The share done, 0 to 1, at the start of a step."""
        now_s = time.monotonic()
        if self._last_s is not None:
            self.spent_s += min(now_s - self._last_s, 60.0)
        self._last_s = now_s
        return self.share(step)

    def share(self, step: int) -> float:
        """The share done, without counting time."""
        done = step / self._steps if self._minutes is None else self.spent_s / (60 * self._minutes)
        return min(1.0, done)

    def rate(self, step: int, share: float, final: float) -> float:
        """What the learning rates are multiplied with: a short rise, then a cosine down to `final`."""
        cosine = final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share))
        return min(1.0, (step + 1) / RATE_WARMUP_STEPS) * cosine


class Average:
    """An exponential average of a module's parameters."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        """Starts as a copy."""
        self._names = [name for name, _ in module.named_parameters()]
        self._live: list[Tensor] = [parameter for _, parameter in module.named_parameters()]
        self._decay = decay
        self.values = [parameter.detach().clone() for parameter in self._live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the parameters after a step in."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [parameter.detach() for parameter in self._live], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The module has the averaged parameters while the block runs."""
        before = [parameter.detach().clone() for parameter in self._live]
        with torch.no_grad():
            torch._foreach_copy_(self._live, self.values)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._live, before)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged parameters by name."""
        return dict(zip(self._names, self.values, strict=True))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes back what `state_dict` gave."""
        for name, value in zip(self._names, self.values, strict=True):
            value.copy_(state[name])
