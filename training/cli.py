"""`geneface-train TASK --data DIR --out DIR`: trains one network, or goes on where it stopped.

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
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from cuda_kernels.errors import InputError
from models.partial_files import atomic_write
from models.settings import escaped
from models.terminal import log_to_stderr, with_safe_streams

if TYPE_CHECKING:
    pass

Settings = TypeVar("Settings")

_EXTRA = {"torch", "torchaudio", "cv2", "matplotlib", "onnx", "onnxscript", "tensorboard", "tqdm", "yaml"}
TASKS = {
    "syncnet": "learns whether a sound and a mouth belong together",
    "audio2motion": "learns landmarks from sound",
    "postnet": "brings those landmarks into one speaker's domain",
    "head": "learns a speaker's head as a radiance field",
    "torso": "learns the torso below a trained head",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 bad input or usage (line on stderr), 1 anything else, or stopped by a signal."""
    return with_safe_streams("geneface-train", functools.partial(_run, argv))


def _run(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser_of_tasks()
    if not arguments or arguments[0] not in TASKS:
        parser.parse_args(arguments)  # exits with help or with usage
        return 2
    try:
        return _train(arguments[0], arguments[1:])
    except ImportError as error:
        print(f"geneface-train: {missing_extra(error)}", file=sys.stderr)
        return 2
    except FloatingPointError as error:  # training went astray: nothing that was given is to blame
        print(f"geneface-train {arguments[0]}: {escaped(str(error))}", file=sys.stderr)
        return 1
    except (InputError, OSError) as error:
        print(f"geneface-train {arguments[0]}: {escaped(str(error))}", file=sys.stderr)
        return 2


class Parser(argparse.ArgumentParser):
    """Says what is wrong with every character visible."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with exit code 2."""
        super().error(escaped(message))


def missing_extra(error: ImportError) -> str:
    """What to say when a package of the extra [train] is absent; any other error is raised again."""
    missing = (error.name or "").partition(".")[0]
    if missing not in _EXTRA:
        raise error
    return f"{missing} is not installed; run pip install '.[train]' in the project's folder"


def _parser_of_tasks() -> argparse.ArgumentParser:
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

    parser = Parser(
        prog=f"geneface-train {name}",
        description=TASKS[name],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the training data")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for checkpoints, scalars and pictures"
    )
    flags = {**fields_of(LoopSettings, loop_defaults), **fields_of(settings_type)}
    for flag in flags.values():
        add_flag(parser, flag)
    parsed = vars(parser.parse_args([*_from_environment(flags), *arguments]))
    data, out = parsed.pop("data"), parsed.pop("out")
    settings = from_mapping(settings_type, _part(parsed, settings_type))
    loop = from_mapping(LoopSettings, _part(parsed, LoopSettings))

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
    """The settings dataclass of a task module, read from the annotation of `make_task`."""
    hints = typing.get_type_hints(module.make_task)
    settings_type = hints["settings"]
    assert dataclasses.is_dataclass(settings_type), f"{module.__name__}.make_task: settings: not a dataclass"
    return typing.cast(type[Any], settings_type)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flag:
    """One field of a settings dataclass as the command line shows it."""

    name: str  # as in the dataclass; fields of a nested dataclass stand behind its name and a dot
    kind: Any  # the field's type
    default: Any
    help: str


def fields_of(settings_type: type[Any], instance: object = None, prefix: str = "") -> dict[str, Flag]:
    """Flags of a settings dataclass, nested ones included.

    Raises:
        TypeError: a field has no default.
    """
    hints = typing.get_type_hints(settings_type)
    base = settings_type() if instance is None else instance
    flags: dict[str, Flag] = {}
    for item in dataclasses.fields(settings_type):
        name, value = prefix + item.name, getattr(base, item.name)
        if dataclasses.is_dataclass(hints[item.name]):
            flags |= fields_of(hints[item.name], value, f"{name}.")
        else:
            flags[name] = Flag(
                name=name, kind=hints[item.name], default=value, help=item.metadata.get("help", " ")
            )
    return flags


def add_flag(parser: argparse.ArgumentParser, flag: Flag) -> None:
    """Adds `--name` of the field's type; a bool also gets `--no-name`, a tuple takes several values.

    A flag whose default is `dataclasses.MISSING` must be given.
    """
    option = "--" + flag.name.replace("_", "-")
    kind = flag.kind
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    shared: dict[str, Any] = {"dest": flag.name, "default": flag.default, "help": flag.help}
    if flag.default is dataclasses.MISSING:
        shared |= {"required": True, "default": argparse.SUPPRESS}
    if kind is bool:
        parser.add_argument(option, action=argparse.BooleanOptionalAction, **shared)
    elif typing.get_origin(kind) is typing.Literal:
        parser.add_argument(option, choices=typing.get_args(kind), **shared)
    elif typing.get_origin(kind) is tuple:
        parser.add_argument(option, type=typing.get_args(kind)[0], nargs="+", **shared)
    else:
        parser.add_argument(option, type=kind, metavar=flag.name.rpartition(".")[2].upper(), **shared)


def from_mapping(settings_type: type[Settings], values: Mapping[str, Any]) -> Settings:
    """A settings dataclass from `{field: value}`, nested fields behind `outer.`.

    Raises:
        InputError: an unknown field, or a value that the dataclass refuses.
    """
    hints = typing.get_type_hints(settings_type)
    own: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        first, dot, rest = name.partition(".")
        if first not in hints:
            raise InputError(f"{settings_type.__name__}: {first}: unknown setting; known: {', '.join(hints)}")
        if dot:
            nested.setdefault(first, {})[rest] = value
        elif isinstance(value, list) and typing.get_origin(hints[first]) is tuple:
            own[first] = tuple(value)
        else:
            own[first] = value
    for name, part in nested.items():
        own[name] = from_mapping(hints[name], part)
    return settings_type(**own)


def write_settings(path: Path, content: Mapping[str, Any]) -> None:
    """Writes what a run was started with as JSON, for the reader and the model card."""

    def plain(value: object) -> object:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.asdict(value)
        return str(value)

    with atomic_write(path) as part:
        part.write_text(json.dumps(dict(content), default=plain, indent=1) + "\n")


def _part(parsed: Mapping[str, Any], settings_type: type[Any]) -> dict[str, Any]:
    names = {item.name for item in dataclasses.fields(settings_type)}
    return {name: value for name, value in parsed.items() if name.partition(".")[0] in names}


def _from_environment(flags: Mapping[str, Flag]) -> list[str]:
    """Flags found in the environment, to stand before those of the command line."""
    found: list[str] = []
    for flag in flags.values():
        value = os.environ.get("GENEFACE_TRAIN_" + flag.name.replace(".", "_").upper())
        if value is None:
            continue
        option = flag.name.replace("_", "-")
        if flag.kind is bool:
            found.append(f"--{option}" if value.lower() in {"1", "true", "yes"} else f"--no-{option}")
        elif typing.get_origin(flag.kind) is tuple:
            found += [f"--{option}", *value.split()]
        else:
            found.append(f"--{option}={value}")
    return found


if __name__ == "__main__":
    sys.exit(main())
