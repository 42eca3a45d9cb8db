"""Validation of ONNX files without the onnx package: no external data, no foreign operators.

A file's hash does not cover what the file refers to. So weights in another file, operators of another
library and graphs compiled for another device are refused before a runtime sees the bytes.

Source: onnx.proto3 of ONNX 1.17; the wire format, protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator

from cuda_kernels.errors import InputError

MAX_NESTING = 32
"""Graphs within graphs; ours have none."""
MAX_FIELDS = 2_000_000
"""Of a file's messages; HuBERT-large has some ten thousand."""
ONNX_DOMAINS = frozenset({"", "ai.onnx"})

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SIZES = {_FIXED64: 8, _FIXED32: 4}
# Field numbers, by message.
_MODEL_GRAPH, _MODEL_TRAINING, _MODEL_FUNCTIONS = 7, 20, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE_INITIALIZER = 1, 5, 15
_NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_SPARSE_TENSORS = (1, 2)
_TENSOR_NAME, _TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 8, 13, 14


class OnnxGraphError(InputError):
    """A file that is no ONNX network, or not all of one: which `field`, what was `expected` and `got`."""

    def __init__(self, name: str, expected: str, got: str) -> None:
        """Keeps the parts of the message, so that a caller can add the file."""
        super().__init__(field=name, expected=expected, got=got)


class _MalformedError(ValueError):
    """Bytes that are no protobuf message."""


def check_graph(content: bytes | memoryview) -> None:
    """Refuses an ONNX file that is not complete in itself.

    Args:
        content: the file's; weights in it are skipped, not read.

    Raises:
        OnnxGraphError: it is no ONNX file, or has external data, functions, or operators of another domain.
    """
    try:
        graphs = _check_model(memoryview(content))
    except (_MalformedError, UnicodeDecodeError):
        raise OnnxGraphError("content", "an ONNX network", "something else, or a part of one") from None
    if not graphs:
        raise OnnxGraphError("content", "an ONNX network", "something without a graph")


def _check_model(model: memoryview) -> int:
    graphs, budget = 0, _Budget()
    for number, value in budget.fields(model):
        if number == _MODEL_GRAPH:
            graphs += 1
            _check_graph(_message(value), budget, 0)
        elif number in (_MODEL_FUNCTIONS, _MODEL_TRAINING):
            kind = "functions" if number == _MODEL_FUNCTIONS else "training_info"
            raise OnnxGraphError(kind, "one graph of ONNX's own operators", f"a model with {kind}")
    return graphs


def _check_graph(graph: memoryview, budget: _Budget, depth: int) -> None:
    if depth > MAX_NESTING:
        raise OnnxGraphError("graph", f"at most {MAX_NESTING} graphs within one another", "more")
    for number, value in budget.fields(graph):
        if number == _GRAPH_NODE:
            _check_node(_message(value), budget, depth)
        elif number == _GRAPH_INITIALIZER:
            _check_tensor(_message(value), budget)
        elif number == _GRAPH_SPARSE_INITIALIZER:
            _check_sparse(_message(value), budget)


def _check_node(node: memoryview, budget: _Budget, depth: int) -> None:
    operator, domains, attributes = "", [""], []
    for number, value in budget.fields(node):
        if number == _NODE_OPERATOR:
            operator = _text(value)
        elif number == _NODE_DOMAIN:
            domains.append(_text(value))
        elif number == _NODE_ATTRIBUTE:
            attributes.append(_message(value))
    for domain in domains:  # a field that stands twice counts as a parser likes: none of them may be another
        if domain not in ONNX_DOMAINS:
            raise OnnxGraphError("node", "ONNX's own operators", f"{operator[:60]!r} of {domain[:60]!r}")
    for attribute in attributes:
        for number, value in budget.fields(attribute):
            if number in _ATTRIBUTE_TENSORS:
                _check_tensor(_message(value), budget)
            elif number in _ATTRIBUTE_SPARSE:
                _check_sparse(_message(value), budget)
            elif number in _ATTRIBUTE_GRAPHS:
                _check_graph(_message(value), budget, depth + 1)


def _check_sparse(sparse: memoryview, budget: _Budget) -> None:
    for number, value in budget.fields(sparse):
        if number in _SPARSE_TENSORS:
            _check_tensor(_message(value), budget)


def _check_tensor(tensor: memoryview, budget: _Budget) -> None:
    name, external = "", False
    for number, value in budget.fields(tensor):
        if number == _TENSOR_NAME:
            name = _text(value)
        elif number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_DATA_LOCATION and value != 0):
            external = True
    if external:
        raise OnnxGraphError(
            f"tensor {name[:60]!r}", "numbers in the file itself", "external data, which no hash covers"
        )


# The wire format ------------------------------------------------------------------------------------


class _Budget:
    """Counts fields against MAX_FIELDS."""

    def __init__(self) -> None:
        self._left = MAX_FIELDS

    def fields(self, message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
        """Yields the fields of a message while there may be more."""
        for each in _fields(message):
            self._left -= 1
            if self._left < 0:
                raise OnnxGraphError("content", f"at most {MAX_FIELDS} fields", "more")
            yield each


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yields each field's number and value: an int of a varint, the bytes of all else."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if number == 0 or tag >> 32:  # protobuf would cut a longer one off, and read another field
            raise _MalformedError
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _varint(message, at)
        elif kind in _SIZES:
            size = _SIZES[kind]
        else:  # groups, which ONNX has none of
            raise _MalformedError
        if size > end - at:
            raise _MalformedError
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for place in range(10):
        if at >= len(message):
            raise _MalformedError
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at
    raise _MalformedError


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise _MalformedError
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_message(value)).decode()
