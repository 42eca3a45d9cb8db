"""Optimiser of a neural field: learning rate schedule, Adam, exponential moving average of the weights."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from models.settings import Option, Range, check_ranges

from .ranges import COUNT, MINUTES, RATE, SHARE, STEPS

RATE_WARMUP_STEPS = 100
Kernels = Literal["auto", "cuda", "torch"]


@dataclass(frozen=True, kw_only=True)
class FieldTrainingSettings:
    """Training settings that head and torso share."""

    frames: Annotated[int | None, COUNT, Option("train on that many frames, spread (all)")] = None
    frames_per_step: Annotated[int, Range(1, 10_000), Option("frames that share a step")] = 32
    pixels_per_frame: Annotated[int, COUNT, Option("pixels of each")] = 2048
    net_rate: Annotated[float, RATE, Option("learning rate of the networks")] = 2e-3
    grid_rate: Annotated[float, RATE, Option("learning rate of the grids")] = 1e-2
    final_rate: Annotated[float, SHARE, Option("what is left of the rates at the end")] = 0.02
    anneal_steps: Annotated[int, STEPS, Option("steps over which the rates fall")] = 20_000
    anneal_minutes: Annotated[
        float | None, MINUTES, Option("let the rates fall over this time instead of over steps")
    ] = None
    kernels: Annotated[
        Kernels, Option("cuda: kernels of our own, torch: their twin, auto: kernels where they run")
    ] = "auto"
    average_decay: Annotated[float, SHARE, Option("of the averaged weights that are kept")] = 0.995
    validation_frames: Annotated[int, COUNT, Option("frames drawn at each validation")] = 8
    validate_only: Annotated[bool, Option("measure what --out holds, train nothing")] = False

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_ranges(self)


class Schedule:
    """Learning rate schedule over steps or over training time."""

    def __init__(self, steps: int, minutes: float | None) -> None:
        """Starts with no time spent; `minutes`, if given, take the place of `steps`."""
        self._steps, self._minutes = steps, minutes
        self.spent_s = 0.0
        self._last_s: float | None = None

    def tick(self, step: int) -> float:
        """Returns the progress, 0 to 1, at the start of a step, and counts the time since the last one."""
        now_s = time.monotonic()
        if self._last_s is not None:
            self.spent_s += min(now_s - self._last_s, 60.0)
        self._last_s = now_s
        return self.share(step)

    def share(self, step: int) -> float:
        """Returns the progress, 0 to 1, without counting time."""
        done = step / self._steps if self._minutes is None else self.spent_s / (60 * self._minutes)
        return min(1.0, done)

    def state_dict(self) -> dict[str, float]:
        """Returns the time spent where the rates fall over time; over steps, the step says all."""
        return {} if self._minutes is None else {"spent_s": self.spent_s}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the time spent."""
        self.spent_s = float(state.get("spent_s", 0.0))

    def rate(self, step: int, share: float, final: float) -> float:
        """Returns the factor of the learning rates: linear warm-up, then cosine annealing to `final`."""
        cosine = final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share))
        return min(1.0, (step + 1) / RATE_WARMUP_STEPS) * cosine


class Average:
    """Exponential moving average of a module's parameters."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        """Starts as a copy."""
        self._names = [name for name, _ in module.named_parameters()]
        self._live: list[Tensor] = [parameter for _, parameter in module.named_parameters()]
        self._decay = decay
        self.values = [parameter.detach().clone() for parameter in self._live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the parameters, faster over the first steps."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [parameter.detach() for parameter in self._live], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Swaps the averaged parameters into the module while the block runs."""
        before = [parameter.detach().clone() for parameter in self._live]
        with torch.no_grad():
            torch._foreach_copy_(self._live, self.values)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._live, before)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the averaged parameters by name."""
        return dict(zip(self._names, self.values, strict=True))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores training state."""
        for name, value in zip(self._names, self.values, strict=True):
            value.copy_(state[name])


class FieldOptimizer:
    """Adam with one learning rate for the networks and one for the grids, and the averaged weights."""

    def __init__(self, module: torch.nn.Module, grids: list[Tensor], settings: FieldTrainingSettings) -> None:
        """Starts at the module's weights; `grids` are those of its parameters that are tables."""
        self.average = Average(module, settings.average_decay)
        self.schedule = Schedule(settings.anneal_steps, settings.anneal_minutes)
        self._final_rate = settings.final_rate
        nets = [p for p in module.parameters() if all(p is not grid for grid in grids) and p.numel()]
        self._optimizer = torch.optim.Adam(
            [{"params": nets, "rate": settings.net_rate}, {"params": grids, "rate": settings.grid_rate}],
            lr=settings.net_rate,
            betas=(0.9, 0.99),
            eps=1e-15,
            fused=grids[0].is_cuda,
        )

    def begin(self, step: int) -> tuple[float, float]:
        """Sets the learning rates of a step; returns (progress, factor of the rates)."""
        share = self.schedule.tick(step)
        rate = self.schedule.rate(step, share, self._final_rate)
        for group in self._optimizer.param_groups:
            group["lr"] = group["rate"] * rate
        return share, rate

    def step(self, loss: Tensor, step: int) -> None:
        """Back-propagates the loss () and updates weights and average."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self.average.update(step)

    def state_dict(self) -> dict[str, Any]:
        """Returns averaged weights, optimiser state and training time."""
        return {
            "average": self.average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "spent_s": self.schedule.spent_s,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores training state; ignores other keys."""
        self.average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.schedule.spent_s = float(state["spent_s"])
