"""`geneface-train TASK --data DIR --out DIR`: trains one network, or resumes it.

The flags of a task mirror its frozen settings dataclass and the loop's; each can also be given as an
environment variable `GENEFACE_TRAIN_<FLAG>`. A task is a module `training.<task>` with
`make_task(data, settings, device)`, whose annotation of `settings` names the dataclass. Optional there:
`LOOP`, a `LoopSettings` with the task's own defaults; `run(data, out, settings, device)`, which may take
the place of training and then returns True; `after_training(data, out, settings, device)`, called once the
last step is done; `MATMUL_PRECISION`, what a GPU may round matrix products to ("high": TF32).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import json
import logging
import os
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cuda_kernels.errors import InputError
from models.partial_files import atomic_write
from models.settings import BAD_INPUT, Parser, add_flags, escaped, flags_of, from_flags, texts_of
from models.terminal import log_to_stderr, with_safe_streams

ENVIRONMENT_PREFIX = "GENEFACE_TRAIN_"
_EXTRA = {"torch", "torchaudio", "cv2", "matplotlib", "onnx", "onnxscript", "tensorboard", "tqdm", "yaml"}
TASKS = {
    "syncnet": "learns whether a sound and a mouth belong together",
    "audio2motion": "learns landmarks from sound",
    "postnet": "brings those landmarks into one speaker's domain",
    "head": "learns a speaker's head as a radiance field",
    "torso": "learns the torso below a trained head",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 bad input (line on stderr), 1 else, or stopped by a signal."""
    return with_safe_streams("geneface-train", functools.partial(_run, argv))


def _run(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser_of_tasks()
    if not arguments or arguments[0] not in TASKS:
        parser.parse_args(arguments)  # exits with help or with usage
        return BAD_INPUT
    try:
        return _train(arguments[0], arguments[1:])
    except ImportError as error:
        print(f"geneface-train: {missing_extra(error)}", file=sys.stderr)
        return BAD_INPUT
    except FloatingPointError as error:  # diverged: no input is to blame
        print(f"geneface-train {arguments[0]}: {escaped(str(error))}", file=sys.stderr)
        return 1
    except (InputError, OSError) as error:
        print(f"geneface-train {arguments[0]}: {escaped(str(error))}", file=sys.stderr)
        return BAD_INPUT


def missing_extra(error: ImportError) -> str:
    """Returns the message for a missing package of the extra [train]; raises any other error again."""
    missing = (error.name or "").partition(".")[0]
    if missing not in _EXTRA:
        raise error
    return f"{missing} is not installed; run pip install '.[train]' in the project's folder"


def _parser_of_tasks() -> Parser:
    listing = "\n".join(f"  {name:14}{what}" for name, what in TASKS.items())
    parser = Parser(
        prog="geneface-train",
        description=f"Trains one network of a speaker.\n\ntasks:\n{listing}",
        epilog="geneface-train TASK --help lists a task's flags.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", choices=list(TASKS), metavar="TASK")
    return parser


def _train(name: str, arguments: list[str]) -> int:
    import torch

    from models.torch_device import device_named

    from .curve import write_curve
    from .loop import LoopSettings, fit

    module = importlib.import_module(f"training.{name}")
    settings_type = settings_type_of(module)
    loop_defaults: LoopSettings = getattr(module, "LOOP", LoopSettings())

    parser = Parser(prog=f"geneface-train {name}", description=TASKS[name])
    parser.add_argument("--data", type=Path, required=True, help="folder of the training data")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for checkpoints, scalars and pictures"
    )
    loop_flags, task_flags = flags_of(LoopSettings, loop_defaults), flags_of(settings_type)
    flags = loop_flags | task_flags
    add_flags(parser, flags.values())
    given = vars(parser.parse_args(arguments))
    data, out = given.pop("data"), given.pop("out")
    given = texts_of(flags.values(), os.environ, prefix=ENVIRONMENT_PREFIX) | given
    own = {flag: text for flag, text in given.items() if flag in task_flags}
    settings = from_flags(settings_type, own, prefix=ENVIRONMENT_PREFIX)
    own = {flag: text for flag, text in given.items() if flag in loop_flags}
    loop = from_flags(LoopSettings, own, defaults=loop_defaults, prefix=ENVIRONMENT_PREFIX)

    if not data.is_dir():
        raise InputError(f"{data}: expected a folder of training data, found nothing; check --data")
    device = device_named(loop.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision(getattr(module, "MATMUL_PRECISION", "high"))
    log_to_stderr(logging.INFO, "%(levelname)s %(name)s: %(message)s")
    torch.manual_seed(loop.seed)  # the networks' first weights are part of the recipe
    run = getattr(module, "run", None)
    if run is not None and run(data, out, settings, device):
        return 0
    task = module.make_task(data, settings, device)
    out.mkdir(parents=True, exist_ok=True)
    write_settings(out / "settings.json", {"task": name, "data": data, "settings": settings, "loop": loop})
    outcome = fit(task, out, loop)
    curve = write_curve(out)
    if curve is not None:
        print(curve)
    if outcome.reason == "finished":
        after = getattr(module, "after_training", None)
        if after is not None:
            after(data, out, settings, device)
        print(escaped(f"{name}: done, {outcome.step} steps in {out}"))
        return 0
    print(
        f"{name}: stopped at step {outcome.step} of {loop.steps}; the same command goes on", file=sys.stderr
    )
    return 0 if outcome.reason == "time" else 1


def settings_type_of(module: types.ModuleType) -> type[Any]:
    """Returns the settings dataclass of a task module, from the annotation of `make_task`."""
    hints = typing.get_type_hints(module.make_task)
    settings_type = hints["settings"]
    assert dataclasses.is_dataclass(settings_type), f"{module.__name__}.make_task: settings: not a dataclass"
    return typing.cast(type[Any], settings_type)


def write_settings(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a run's settings as JSON, for people and the model card."""

    def plain(value: object) -> object:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.asdict(value)
        return str(value)

    with atomic_write(path) as part:
        part.write_text(json.dumps(dict(content), default=plain, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
