"""TFLite files: graph, tensors and operators, read from the flatbuffer.

Source: tensorflow/lite/schema/schema.fbs, version 3; a table's field number stands beside what it gives.
"""

# ruff: noqa: ANN401 -- the package flatbuffers ships no types
from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
import numpy.typing as npt
from flatbuffers import flexbuffers, number_types

from cuda_kernels.arrays import I32
from cuda_kernels.errors import InputError

IDENTIFIER = b"TFL3"
_OPERATORS = {
    0: "ADD",
    2: "CONCATENATION",
    3: "CONV_2D",
    4: "DEPTHWISE_CONV_2D",
    6: "DEQUANTIZE",
    17: "MAX_POOL_2D",
    18: "MUL",
    19: "RELU",
    22: "RESHAPE",
    34: "PAD",
    45: "STRIDED_SLICE",
    54: "PRELU",
}
_CUSTOM = 32
_TYPES: dict[int, np.dtype[Any]] = {0: np.dtype("<f4"), 1: np.dtype("<f2"), 2: np.dtype("<i4")}
_DEPRECATED_CODES = 127  # larger operator numbers stand in a field of their own


class TfliteError(InputError):
    """A TFLite file that cannot be read, or an operator that is not known here."""

    def __init__(self, expected: str, got: str) -> None:
        """Keeps the parts; the file is named by who reads it."""
        super().__init__(expected=expected, got=got, way_out="take the package's version that is named here")


@dataclass(frozen=True, kw_only=True, eq=False)
class Tensor:
    """A tensor of the graph."""

    name: str
    shape: tuple[int, ...]
    content: npt.NDArray[Any] | None  # None: computed by an operator, or the graph's input


@dataclass(frozen=True, kw_only=True, eq=False)
class Operator:
    """An operator of the graph."""

    kind: str  # the schema's name, or that of a custom operator
    inputs: tuple[int, ...]  # numbers of tensors
    outputs: tuple[int, ...]
    options: Options


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """A file's only graph; operators in the order of execution."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class Options:
    """An operator's options: a table's fields by number, or a custom operator's by name."""

    def __init__(self, table: _Table | None, custom: dict[str, Any]) -> None:
        self._table = table
        self.custom = custom

    def byte(self, field: int) -> int:
        """Returns an int8 field; 0 where it is absent."""
        return 0 if self._table is None else self._table.scalar(field, number_types.Int8Flags)

    def number(self, field: int, default: int = 0) -> int:
        """Returns an int32 field."""
        return default if self._table is None else self._table.scalar(field, number_types.Int32Flags, default)


def read_tflite(content: bytes) -> Graph:
    """Returns the graph of a TFLite file.

    Raises:
        TfliteError: it is none, has several graphs, or an operator or type that is not known here.
    """
    if content[4:8] != IDENTIFIER:
        raise TfliteError("a TFLite file", f"one that begins with {content[:8]!r}")
    try:
        return _read(content)
    except (struct.error, IndexError, ValueError, TypeError, OverflowError) as error:
        if isinstance(error, TfliteError):
            raise
        raise TfliteError("a whole TFLite file", f"a damaged one ({error})") from error


def _read(content: bytes) -> Graph:
    model = _Table(content, flatbuffers.encode.Get(flatbuffers.packer.uoffset, content, 0))
    graphs = model.tables(2)
    if len(graphs) != 1:
        raise TfliteError("one graph", f"{len(graphs)}")
    (graph,) = graphs
    kinds = [_kind(code) for code in model.tables(1)]
    buffers = [table.raw(0) for table in model.tables(4)]
    return Graph(
        tensors=tuple(_tensor(table, buffers) for table in graph.tables(0)),
        operators=tuple(_operator(table, kinds) for table in graph.tables(3)),
        inputs=graph.numbers(1),
        outputs=graph.numbers(2),
    )


def _kind(code: _Table) -> str:
    number = code.scalar(0, number_types.Int8Flags)
    number = code.scalar(3, number_types.Int32Flags) if number == _DEPRECATED_CODES else number
    if number == _CUSTOM:
        return code.text(1)
    if number not in _OPERATORS:
        raise TfliteError(f"operators of {', '.join(_OPERATORS.values())}", f"number {number}")
    return _OPERATORS[number]


def _tensor(table: _Table, buffers: list[bytes]) -> Tensor:
    shape, code = table.numbers(0), table.scalar(1, number_types.Int8Flags)
    if code not in _TYPES:
        raise TfliteError("tensors of float32, float16 or int32", f"type {code}")
    raw = buffers[table.scalar(2, number_types.Uint32Flags)]
    content = np.frombuffer(raw, _TYPES[code]).reshape(shape) if raw else None
    return Tensor(name=table.text(3), shape=shape, content=content)


def _operator(table: _Table, kinds: list[str]) -> Operator:
    custom = table.raw(5)
    return Operator(
        kind=kinds[table.scalar(0, number_types.Uint32Flags)],
        inputs=table.numbers(1),
        outputs=table.numbers(2),
        options=Options(table.table(4), flexbuffers.Loads(custom) if custom else {}),
    )


class _Table:
    """A flatbuffer's table at a position."""

    def __init__(self, content: bytes, position: int) -> None:
        self._content = content
        self._table = flatbuffers.table.Table(content, position)

    def scalar(self, field: int, kind: Any, default: int = 0) -> int:
        at = self._at(field)
        return int(self._table.Get(kind, at + self._table.Pos)) if at else default

    def text(self, field: int) -> str:
        at = self._at(field)
        return self._table.String(at + self._table.Pos).decode() if at else ""

    def numbers(self, field: int) -> tuple[int, ...]:
        numbers: I32 = np.frombuffer(self.raw(field, 4), dtype="<i4")
        return tuple(numbers.tolist())

    def table(self, field: int) -> _Table | None:
        at = self._at(field)
        return _Table(self._content, self._table.Indirect(at + self._table.Pos)) if at else None

    def tables(self, field: int) -> list[_Table]:
        at = self._at(field)
        if not at:
            return []
        start = self._table.Vector(at)
        return [
            _Table(self._content, self._table.Indirect(start + 4 * number))
            for number in range(self._table.VectorLen(at))
        ]

    def raw(self, field: int, size: int = 1) -> bytes:
        at = self._at(field)
        if not at:
            return b""
        start, length = self._table.Vector(at), size * self._table.VectorLen(at)
        found = self._content[start : start + length]
        if len(found) != length:
            raise ValueError("a vector reaches beyond the end")
        return found

    def _at(self, field: int) -> int:
        return int(self._table.Offset(4 + 2 * field))
