"""The loop every training task runs in: progress, scalars, pictures, checkpoints, resume, clean stop.

A task owns its networks, optimisers and data; the loop owns time. What a task draws at random comes from
torch's generators (whose state the loop saves) or from generators that the task saves itself, so that a
resumed run on a CPU ends with the same bits as an uninterrupted one.
"""

from __future__ import annotations

import json
import logging
import math
import pickle
import re
import signal
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]  # its stubs are a separate package

from cuda_kernels.errors import InputError
from models.partial_files import atomic_write
from models.settings import Option, Range, check_ranges, show
from models.torch_device import device_named

from .pictures import write_picture
from .ranges import MINUTES, SEED, STEPS

log = logging.getLogger(__name__)

CHECKPOINT_VERSION = 1
VALIDATION_FILE = "validation.jsonl"  # one JSON object a line: step and the scalars of that validation
_CHECKPOINT_NAME = re.compile(r"checkpoint_(\d{8})\.pt")
_LOAD_ERRORS = (  # what torch.load raises for a file that is damaged or another program's
    RuntimeError,
    EOFError,
    ValueError,
    OSError,
    pickle.UnpicklingError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    ArithmeticError,
    struct.error,
)


class CheckpointError(InputError):
    """A checkpoint that cannot be read, or belongs to another task or other sizes."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What one validation found."""

    scalars: dict[str, float]  # those with a "/" in their name are kept, but not printed
    pictures: dict[str, npt.NDArray[np.uint8]] = field(default_factory=dict)  # (H, W, 3) RGB


class Task(Protocol):
    """One thing to train."""

    name: str

    def training_step(self, step: int) -> dict[str, float | Tensor]:
        """Scalars of one whole step: forward, backward, optimiser. `step` counts from 0.

        Tensors stay on their device; the loop reads them only when it logs.
        """
        ...

    def validate(self, step: int) -> Validation:
        """Scalars and pictures after `step` steps. Runs with its own seeded generator."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimisers and generators, as tensors and plain Python values only."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores training state."""
        ...


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """When the loop logs, validates, saves and stops."""

    steps: Annotated[int, STEPS, Option("steps in all, those before a resume included")] = 10_000
    validate_every: Annotated[int, STEPS, Option("steps between validations")] = 1000
    validate_minutes: Annotated[
        float | None, MINUTES, Option("validate also where this long has passed without")
    ] = None
    checkpoint_every: Annotated[int, STEPS, Option("steps between checkpoints")] = 1000
    log_every: Annotated[int, STEPS, Option("steps between logged training scalars")] = 50
    keep_checkpoints: Annotated[
        int, Range(0, 10**9, words="0 (all) or more"), Option("newest checkpoints to keep, 0 for all")
    ] = 2
    max_minutes: Annotated[
        float | None, MINUTES, Option("stop with a checkpoint after this long; the same command goes on")
    ] = None
    validate_at_stop: Annotated[bool, Option("validate once more where max_minutes stops the run")] = False
    seed: Annotated[int, SEED, Option("seed of torch's generators")] = 9999
    device: Annotated[str, Option("torch device: cpu, cuda, cuda:1")] = "cpu"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call of `fit` ended."""

    step: int  # steps done, over all runs
    reason: Literal["finished", "time", "signal"]


def checkpoints(out: Path) -> dict[int, Path]:
    """Checkpoint of each saved step in a training folder, in the order of the steps."""
    found = {}
    for path in out.glob("checkpoint_*.pt"):
        match = _CHECKPOINT_NAME.fullmatch(path.name)
        if match:
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def load_checkpoint(path: Path, *, device: str | torch.device = "cpu") -> dict[str, Any]:
    """A checkpoint's content: `version`, `task`, `step`, `state` (the task's), `rng`.

    Raises:
        CheckpointError: the file is not a whole checkpoint of this version.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except _LOAD_ERRORS as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{path}: not a readable checkpoint ({reason}); delete it to go on from the one before"
        ) from error
    if not isinstance(content, dict) or content.get("version") != CHECKPOINT_VERSION:
        got = content.get("version") if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            file=str(path),
            field="version",
            expected=str(CHECKPOINT_VERSION),
            got=str(got),
            way_out="train it anew",
        )
    for key, kind in (("task", str), ("step", int), ("state", dict)):
        if not isinstance(content.get(key), kind):
            got = type(content[key]).__name__ if key in content else "none"
            raise CheckpointError(
                file=str(path), field=key, expected=kind.__name__, got=got, way_out="train it anew"
            )
    if isinstance(content["step"], bool) or not 0 <= content["step"] < 2**63:
        raise CheckpointError(
            file=str(path),
            field="step",
            expected="0 or more",
            got=show(content["step"]),
            way_out="delete it to go on from another",
        )
    return content


def load_task_state(path: Path, task: str, *, device: str | torch.device = "cpu") -> dict[str, Any]:
    """A task's state from a checkpoint file, or from the newest checkpoint of a training folder.

    Raises:
        CheckpointError: nothing there, unreadable, or another task's.
    """
    file = path
    if path.is_dir():
        found = checkpoints(path)
        if not found:
            raise CheckpointError(
                f"{path}: expected checkpoint_*.pt, got none; run `geneface-train {task} --out {path}` first"
            )
        file = list(found.values())[-1]
    elif not path.exists():
        raise CheckpointError(
            f"{path}: expected a training folder or a checkpoint, found nothing; "
            f"run `geneface-train {task} --out {path}` first"
        )
    content = load_checkpoint(file, device=device)
    if content["task"] != task:
        raise CheckpointError(
            file=str(file),
            field="task",
            expected=task,
            got=content["task"],
            way_out="name that task's folder",
        )
    state: dict[str, Any] = content["state"]
    return state


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Writes a checkpoint whole or not at all."""
    # Given a path, torch writes its name into the file.
    with atomic_write(path, flush=True) as part, part.open("wb") as stream:
        torch.save(content, stream)


def read_validations(out: Path) -> list[dict[str, float]]:
    """Scalars of every validation in a training folder, in the order of the steps.

    A damaged line is left out.
    """
    path = out / VALIDATION_FILE
    if not path.exists():
        return []
    rows: dict[int, dict[str, float]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # a line cut short by a crash; the resumed run writes that step again
        if isinstance(row, dict) and type(row.get("step")) is int and all(map(_is_number, row.values())):
            rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]


def _is_number(value: object) -> bool:
    """Whether that is a number a validation may have found, not finite ones included."""
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def fit(task: Task, out: Path, settings: LoopSettings) -> Outcome:
    """How training ended, once it ran to `steps`, `max_minutes`, SIGTERM or SIGINT; a checkpoint is saved.

    Goes on from the newest `out/checkpoint_*.pt` when there is one. Scalars go to `out/tensorboard`, each
    validation's also to `out/validation.jsonl`, pictures to both TensorBoard and `out/pictures`.

    Raises:
        CheckpointError: the newest checkpoint is broken or of another task.
        FloatingPointError: a logged training scalar is not finite.
    """
    start_s = validated_s = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    device = device_named(settings.device)
    torch.manual_seed(settings.seed)
    first_step = _resume(task, out, device)
    _forget_validations_after(out, first_step)
    saved_step = validated_step = first_step
    step = first_step
    reason: Literal["finished", "time", "signal"] = "finished"
    sums: dict[str, Tensor] = {}
    summed_steps = 0

    with (
        _stop_signals() as stop,
        SummaryWriter(str(out / "tensorboard"), purge_step=first_step + 1) as board,
        tqdm(total=settings.steps, initial=first_step, desc=task.name, unit="step", mininterval=1.0) as bar,
    ):
        while step < settings.steps:
            scalars = task.training_step(step)
            step += 1
            for name, value in scalars.items():
                value_now = (
                    value.detach().float() if isinstance(value, Tensor) else torch.tensor(float(value))
                )
                sums[name] = sums[name] + value_now if name in sums else value_now
            summed_steps += 1
            last = step == settings.steps
            if step % settings.log_every == 0 or last:
                means = {name: float(total) / summed_steps for name, total in sums.items()}
                sums, summed_steps = {}, 0
                _write_scalars(board, "train", means, step)
                bar.set_postfix(
                    {name: f"{value:.4g}" for name, value in list(means.items())[:6]}, refresh=False
                )
                bad = [name for name, value in means.items() if not math.isfinite(value)]
                if bad:
                    raise FloatingPointError(
                        f"{task.name}: step {step}: {', '.join(bad)} not finite; "
                        f"go on from step {saved_step} with a lower learning rate"
                    )
            bar.update()
            if step % settings.validate_every == 0 or last or _passed(validated_s, settings.validate_minutes):
                _validate(task, out, board, bar, step, settings.seed, device)
                validated_s, validated_step = time.monotonic(), step
            if step % settings.checkpoint_every == 0 or last:
                _save(task, out, step, device, settings.keep_checkpoints)
                saved_step = step
            if last:
                break
            if stop.is_set():
                reason = "signal"
                break
            if _passed(start_s, settings.max_minutes):
                reason = "time"
                break
        if reason == "time" and settings.validate_at_stop and validated_step != step:
            _validate(task, out, board, bar, step, settings.seed, device)
        if saved_step != step:
            _save(task, out, step, device, settings.keep_checkpoints)
    log.info("%s: %s at step %d of %d", task.name, reason, step, settings.steps)
    return Outcome(step=step, reason=reason)


def _passed(since_s: float, minutes: float | None) -> bool:
    """Whether so many minutes have passed, if any are given."""
    return minutes is not None and time.monotonic() - since_s >= 60 * minutes


def _resume(task: Task, out: Path, device: torch.device) -> int:
    """Steps done so far, once the newest checkpoint's state is in the task and the generators."""
    found = checkpoints(out)
    if not found:
        return 0
    path = list(found.values())[-1]
    content = load_checkpoint(path, device="cpu")
    if content["task"] != task.name:
        raise CheckpointError(
            file=str(path),
            field="task",
            expected=task.name,
            got=content["task"],
            way_out="choose another --out folder",
        )
    rng = content.get("rng")
    if not isinstance(rng, dict) or "cpu" not in rng:  # `write_slim` leaves them out
        raise CheckpointError(
            file=str(path),
            field="rng",
            expected="the state of torch's generators",
            got="none",
            way_out="nothing can go on from it: choose another --out folder",
        )
    try:
        task.load_state_dict(content["state"])
        torch.set_rng_state(rng["cpu"])
        if device.type == "cuda" and "cuda" in rng:
            torch.cuda.set_rng_state(rng["cuda"], device)
    except (RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{path}: state does not fit these settings ({reason}); use the settings in settings.json "
            "beside it or another --out folder"
        ) from error
    step: int = content["step"]
    log.info("%s: goes on from %s", task.name, path)
    return step


def _save(task: Task, out: Path, step: int, device: torch.device, keep: int) -> None:
    """Writes the checkpoint of `step` and deletes those beyond the newest `keep`."""
    rng = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state(device)
    save_checkpoint(
        out / f"checkpoint_{step:08d}.pt",
        {
            "version": CHECKPOINT_VERSION,
            "task": task.name,
            "step": step,
            "state": task.state_dict(),
            "rng": rng,
        },
    )
    if keep:
        for path in list(checkpoints(out).values())[:-keep]:
            path.unlink()


def _validate(
    task: Task, out: Path, board: SummaryWriter, bar: tqdm[None], step: int, seed: int, device: torch.device
) -> None:
    """Runs one validation apart from the training generators and writes what it found."""
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        found = task.validate(step)
    _write_scalars(board, "validation", found.scalars, step)
    row = {"step": step, **{name: float(value) for name, value in found.scalars.items()}}
    with (out / VALIDATION_FILE).open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    for name, picture in found.pictures.items():
        board.add_image(name, picture, step, dataformats="HWC")
        folder = out / "pictures"
        folder.mkdir(exist_ok=True)
        write_picture(folder / f"{name}_{step:08d}.png", picture)
    board.flush()
    line = "  ".join(f"{name} {value:.4g}" for name, value in found.scalars.items() if "/" not in name)
    bar.write(f"{task.name} step {step}: {line}")


def _write_scalars(board: SummaryWriter, group: str, scalars: dict[str, float], step: int) -> None:
    for name, value in scalars.items():
        board.add_scalar(f"{group}/{name}", float(value), step)


def _forget_validations_after(out: Path, step: int) -> None:
    """Drops the validations that a resumed run is going to do again."""
    rows = read_validations(out)
    if not (out / VALIDATION_FILE).exists():
        return
    with atomic_write(out / VALIDATION_FILE) as part:
        part.write_text("".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step))


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set while the block runs; a second signal has its usual effect.

    Outside the main thread, where Python takes no handlers, the event is never set.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        restore()

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        restore()
