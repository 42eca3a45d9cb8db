"""Settings dataclasses from JSON, flags and environment variables, refusing whatever does not fit.

A field's annotation holds its range, shape and flag: `landmark_mean: Annotated[F32, Shape(68, 3)]`,
`steps: Annotated[int, Range(1), Option("steps in all")] = 6000`.
"""

# ruff: noqa: ANN401 -- values read from JSON and type hints themselves have no narrower type
from __future__ import annotations

import argparse
import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import numpy as np

from cuda_kernels.arrays import F32
from cuda_kernels.errors import InputError

T = TypeVar("T")

BAD_INPUT = 2  # the exit code for it
ABOVE_0 = math.ulp(0.0)  # the lowest number of a range without 0
_WORDS = {int: "a whole number", bool: "true or false", str: "a text", Path: "a path"}
_METAVARS = {int: "N", float: "NUMBER", Path: "PATH"}
_SWITCHES = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


class SettingsError(InputError):
    """A value that does not fit: which `field`, what was `expected` and what was `got`."""

    def __init__(self, name: str, expected: str, got: str, way_out: str = "") -> None:
        """Keeps the parts of the message, so that a caller can add the file."""
        self.way_out = way_out
        super().__init__(field=name, expected=expected, got=got, way_out=way_out)


@dataclass(frozen=True)
class Range:
    """A number, or each number of a tuple, lies in [low, high], in whole steps where `step` is not 0."""

    low: float
    high: float = math.inf
    _: KW_ONLY
    step: int = 0
    words: str = ""  # in place of "0 to 51" in the message

    def __contains__(self, number: float) -> bool:
        """Returns whether a number lies there."""
        return self.low <= number <= self.high and not (self.step and number % self.step)

    def __str__(self) -> str:
        """Returns the range as a message shows it."""
        if self.words:
            return self.words
        low, high = (str(end) if isinstance(end, int) else f"{end:g}" for end in (self.low, self.high))
        if self.low == ABOVE_0:
            limits = "more than 0" if self.high == math.inf else f"more than 0 and at most {high}"
        else:
            limits = f"{low} or more" if self.high == math.inf else f"{low} to {high}"
        return f"{limits} in steps of {self.step}" if self.step else limits


BELOW_1 = Range(0, math.nextafter(1, 0), words="0 or more and less than 1")


@dataclass(frozen=True)
class Option:
    """How a field is given as a text, by flag or environment variable."""

    help: str
    _: KW_ONLY
    metavar: str = ""  # empty: by the field's type
    group: str = ""  # of flags in --help
    parse: Callable[[str], object] | None = None  # one value; None: by the field's type
    repeats: bool = False  # several values: each after a flag of its own; in a variable, between commas
    without_value: str | None = None  # what the flag means when no value follows it
    positional: bool = False


class Shape:
    """An array of finite float32 numbers of this shape."""

    def __init__(self, *sizes: int) -> None:
        """Keeps the sizes."""
        self.sizes = sizes


def one_line(value: object, limit: int = 60) -> str:
    """Returns the value's text on one printable line of at most `limit` characters."""
    text = value if isinstance(value, str) else repr(value)
    text = escaped(text[: 2 * limit])
    return text if len(text) <= limit else text[: limit - 3] + "..."


def escaped(text: str) -> str:
    """Returns a text on one line with every character visible: breaks, controls, turns of direction."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def show(value: object) -> str:
    """Returns how a message names a value that was read: short, on one line."""
    if isinstance(value, Mapping):
        return f"an object with {len(value)} keys"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if isinstance(value, int) and abs(value) > 10**15:
        return "a huge number"
    return one_line(json.dumps(value) if value is None or isinstance(value, (str, bool)) else repr(value))


def require(holds: bool, name: str, expected: str, got: object) -> None:
    """Raises SettingsError unless `holds`."""
    if not holds:
        raise SettingsError(name, expected, show(got))


def check_ranges(settings: Any) -> None:
    """Raises SettingsError for the first value of the dataclass outside its `Range` or `Literal`."""
    for name, hint in typing.get_type_hints(type(settings), include_extras=True).items():
        limits = _mark(hint, Range)
        value = getattr(settings, name)
        _check_choice(hint, value, name)
        if limits is None or value is None:
            continue
        for number in value if isinstance(value, tuple) else (value,):
            require(number in limits, name, str(limits), number)


def from_mapping(cls: type[T], mapping: object, *, prefix: str = "") -> T:
    """Returns a settings dataclass built from plain values.

    Raises:
        SettingsError: a key that is unknown or missing, a value of the wrong type, shape or range.
    """
    if not isinstance(mapping, Mapping):
        raise SettingsError(prefix.rstrip(".") or cls.__name__, "an object", show(mapping))
    entries = {entry.name: entry for entry in dataclasses.fields(typing.cast(Any, cls))}
    hints = typing.get_type_hints(cls, include_extras=True)
    for key in mapping:
        if key not in entries:
            known = ", ".join(sorted(set(entries) - set(mapping))) or "no further key"
            raise SettingsError(f"{prefix}{one_line(str(key))}", known, "an unknown key")
    values: dict[str, Any] = {}
    for name, entry in entries.items():
        if name in mapping:
            values[name] = _convert(hints[name], mapping[name], prefix + name)
        elif entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING:
            raise SettingsError(prefix + name, "a value", "none: the key is missing")
    try:
        return cls(**values)
    except SettingsError as error:
        raise SettingsError(prefix + error.field, error.expected, error.got, error.way_out) from None


def to_mapping(settings: Any) -> dict[str, Any]:
    """Returns plain JSON values from which `from_mapping` makes the same settings again."""
    return {entry.name: _plain(getattr(settings, entry.name)) for entry in dataclasses.fields(settings)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_mapping(value)
    if isinstance(value, np.ndarray):
        # The shortest decimal that float32 reads back: a small file and an exact round trip.
        return [_plain(row) if row.ndim else float(str(row)) for row in value]
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _convert(hint: Any, value: Any, name: str) -> Any:
    if typing.get_origin(hint) is Annotated:
        shape = _mark(hint, Shape)
        hint = hint.__origin__
        if shape is not None:
            optional = type(None) in typing.get_args(hint)
            return None if optional and value is None else _array(value, name, shape.sizes)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = next(argument for argument in arguments if argument is not type(None))
        return None if value is None else _convert(inner, value, name)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_mapping(hint, value, prefix=f"{name}.")
    if origin is dict:
        require(isinstance(value, Mapping), name, "an object", value)
        return {
            str(key): _convert(arguments[1], entry, f"{name}.{one_line(str(key))}")
            for key, entry in value.items()
        }
    if origin is tuple:
        count = None if Ellipsis in arguments else len(arguments)
        fits = isinstance(value, (list, tuple)) and count in (None, len(value))
        require(fits, name, "a list" if count is None else f"a list of {count}", value)
        return tuple(_convert(arguments[0], entry, f"{name}[{i}]") for i, entry in enumerate(value))
    if origin is Literal:
        _check_choice(hint, value, name)
        return value
    if hint is Path and isinstance(value, str):
        return Path(value)
    return _scalar(hint, value, name)


def _check_choice(hint: Any, value: Any, name: str) -> None:
    hint = hint.__origin__ if typing.get_origin(hint) is Annotated else hint
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        require(value in choices, name, " or ".join(map(str, choices)), value)


def _mark(hint: Any, kind: type[T]) -> T | None:
    """Returns the mark of that kind in an annotation."""
    return next((mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, kind)), None)


def _scalar(hint: Any, value: Any, name: str) -> Any:
    if hint is not float:
        fits = isinstance(value, hint) and not (hint is int and isinstance(value, bool))
        require(fits, name, _WORDS[hint], value)
        return value
    require(isinstance(value, (int, float)) and not isinstance(value, bool), name, "a number", value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    require(math.isfinite(number), name, "a finite number", value)
    return number


def _array(value: Any, name: str, shape: tuple[int, ...]) -> F32:
    expected = "x".join(map(str, shape)) + " numbers within 1e6"
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise SettingsError(name, expected, "something else") from None
    if array.shape != shape:
        got = "x".join(map(str, array.shape)) or "a single value"
        raise SettingsError(name, expected, got)
    if not (np.abs(array) <= 1e6).all():
        raise SettingsError(name, expected, "a value outside or not finite")
    narrowed: F32 = array.astype(np.float32)
    return narrowed


# Flags and environment variables --------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line with every character visible, without the usage in front of it."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with exit code 2."""
        self.exit(BAD_INPUT, f"{self.prog}: {escaped(message)}; {self.prog} --help shows what there is\n")


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A field of a settings dataclass as a command line and the environment show it."""

    name: str  # of the field; that of a field of a nested dataclass begins with the outer one's and a dot
    option: Option
    default: Any  # dataclasses.MISSING: it must be given
    kind: Any  # the type of a value
    several: bool  # whether it has any number of them

    def __str__(self) -> str:
        """Returns `--render-size` of `render_size`."""
        return "--" + self.name.replace("_", "-")

    def variable(self, prefix: str) -> str:
        """Returns the name of its environment variable."""
        return prefix + self.name.replace(".", "_").upper()

    @property
    def metavar(self) -> str:
        """What stands for a value."""
        choices = typing.get_args(self.kind) if typing.get_origin(self.kind) is Literal else ()
        by_type = "|".join(map(str, choices)) or _METAVARS.get(self.kind)
        return self.option.metavar or by_type or self.name.rpartition(".")[2].upper()

    def read(self, given: bool | str | list[str]) -> Any:
        """Returns the value of a text or command-line argument, not yet validated.

        Raises:
            ValueError, KeyError: it is not of the flag's type.
        """
        if isinstance(given, bool):
            return given
        if not self.several:
            return self._read_one(typing.cast(str, given))
        if self.option.repeats:
            given = given if isinstance(given, str) else ",".join(given)
            return [self._read_one(part.strip()) for part in given.split(",") if part.strip()]
        return [self._read_one(part) for part in (given.split() if isinstance(given, str) else given)]

    def _read_one(self, text: str) -> Any:
        if self.option.parse is not None:
            return self.option.parse(text)
        if typing.get_origin(self.kind) is Literal:
            return {str(choice): choice for choice in typing.get_args(self.kind)}[text]
        return _SWITCHES[text.lower()] if self.kind is bool else self.kind(text)


def flags_of(settings_type: type[Any], defaults: object = None, *, prefix: str = "") -> dict[str, Flag]:
    """Returns the flags of a settings dataclass by name: its fields with an `Option`, nested ones included.

    Args:
        settings_type: the dataclass.
        defaults: one whose values stand in for the fields' own defaults.
        prefix: of the names.
    """
    flags: dict[str, Flag] = {}
    hints = typing.get_type_hints(settings_type, include_extras=True)
    for entry in dataclasses.fields(settings_type):
        hint, name, default = hints[entry.name], prefix + entry.name, entry.default
        if defaults is not None:
            default = getattr(defaults, entry.name)
        elif entry.default_factory is not dataclasses.MISSING:
            default = entry.default_factory()
        if dataclasses.is_dataclass(hint):
            flags |= flags_of(typing.cast(type[Any], hint), default, prefix=f"{name}.")
        elif (option := _mark(hint, Option)) is not None:
            kind = hint.__origin__
            if typing.get_origin(kind) in (typing.Union, types.UnionType):
                kind = next(part for part in typing.get_args(kind) if part is not type(None))
            several = typing.get_origin(kind) is tuple and Ellipsis in typing.get_args(kind)
            kind = typing.get_args(kind)[0] if several else kind
            flags[name] = Flag(name=name, option=option, default=default, kind=kind, several=several)
    return flags


def add_flags(parser: argparse.ArgumentParser, flags: Iterable[Flag], *, negatable: bool = True) -> None:
    """Adds flags to a parser, which then tells, by name, what was given and only that.

    Args:
        parser: of the program or of one of its commands.
        flags: in the order of --help.
        negatable: whether a switch can also be turned off, by `--no-name`.
    """
    groups: dict[str, Any] = {"": parser}
    for flag in flags:
        option, default = flag.option, flag.default
        group = option.group
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        needed = default is dataclasses.MISSING
        shown = "" if needed or default in (None, ()) or default is False else f" (default: {default})"
        given: dict[str, Any] = {"default": argparse.SUPPRESS, "help": option.help + shown}
        if option.positional:
            groups[group].add_argument(flag.name, **given)
            continue
        if flag.kind is bool:
            given["action"] = argparse.BooleanOptionalAction if negatable else "store_true"
        else:
            given["metavar"] = flag.metavar
        if option.repeats:
            given["action"] = "append"
        elif flag.several:
            given["nargs"] = "+"
        elif option.without_value is not None:
            given |= {"nargs": "?", "const": option.without_value}
        groups[group].add_argument(str(flag), dest=flag.name, required=needed, **given)


def texts_of(flags: Iterable[Flag], environment: Mapping[str, str], *, prefix: str) -> dict[str, str]:
    """Returns the texts that the environment has, by name of their flag; an empty variable counts as none."""
    found = {flag.name: environment.get(flag.variable(prefix)) for flag in flags}
    return {name: text for name, text in found.items() if text}


def from_flags(
    settings_type: type[T], given: Mapping[str, Any], *, defaults: T | None = None, prefix: str = ""
) -> T:
    """Returns a settings dataclass from what is given, as a text or argument by name of its flag.

    Args:
        settings_type: the dataclass.
        given: on the command line or in the environment.
        defaults: one whose values stand in for what is not given.
        prefix: of its environment variables, for messages; empty: it has none.

    Raises:
        SettingsError: an unknown name, a text that is not of its type, and all that `from_mapping`
            refuses.
    """
    flags = flags_of(settings_type, defaults)
    values = {} if defaults is None else to_mapping(defaults)
    for name, text in given.items():
        if name not in flags:
            raise SettingsError(name, ", ".join(flags), "an unknown setting")
        flag = flags[name]
        outer, _, inner = name.rpartition(".")
        part = values.setdefault(outer, {}) if outer else values
        try:
            part[inner] = flag.read(text)
        except (ValueError, KeyError):
            label = f"{flag} (or {flag.variable(prefix)})" if prefix else str(flag)
            expected = _WORDS[bool] if flag.kind is bool else flag.metavar
            raise SettingsError(label, expected, repr(text), flag.option.help) from None
    return from_mapping(settings_type, values)
