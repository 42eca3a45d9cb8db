"""Settings dataclasses from plain values (JSON, flags) and back, refusing whatever does not fit.

A field says its range or shape in its type: `focal_px: Annotated[float, Range(1, 1e6)]`,
`landmark_mean: Annotated[F32, Shape(68, 3)]`.
"""

# ruff: noqa: ANN401 -- values read from JSON and type hints themselves have no narrower type
from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np

from cuda_kernels.arrays import F32
from cuda_kernels.errors import InputError

T = TypeVar("T")

_WORDS = {int: "a whole number", bool: "true or false", str: "a text"}


class SettingsError(InputError):
    """A value that does not fit: which `field`, what was `expected` and what was `got`."""

    def __init__(self, name: str, expected: str, got: str) -> None:
        """Keeps the parts of the message, so that a caller can add the file."""
        super().__init__(field=name, expected=expected, got=got)


@dataclass(frozen=True)
class Range:
    """A number, or each number of a tuple, lies in [low, high]."""

    low: float
    high: float


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
    """Raises SettingsError for the first number of the dataclass outside its `Range`."""
    for name, hint in typing.get_type_hints(type(settings), include_extras=True).items():
        limits = next((mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Range)), None)
        value = getattr(settings, name)
        if limits is None or value is None:
            continue
        for number in value if isinstance(value, tuple) else (value,):
            require(limits.low <= number <= limits.high, name, f"{limits.low:g} to {limits.high:g}", number)


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
        raise SettingsError(prefix + error.field, error.expected, error.got) from None


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
        shape = next((mark.sizes for mark in hint.__metadata__ if isinstance(mark, Shape)), None)
        hint = hint.__origin__
        if shape is not None:
            optional = type(None) in typing.get_args(hint)
            return None if optional and value is None else _array(value, name, shape)
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
    return _scalar(hint, value, name)


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
