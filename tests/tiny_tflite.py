"""Small TFLite files, written with FlatBuffers: `import tiny_tflite`."""

from __future__ import annotations

from dataclasses import dataclass, field

import flatbuffers
import numpy as np
from flatbuffers import flexbuffers

KINDS = {
    "ADD": 0,
    "CONCATENATION": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 4,
    "DEQUANTIZE": 6,
    "LOGISTIC": 14,
    "MAX_POOL_2D": 17,
    "MUL": 18,
    "RELU": 19,
    "RESHAPE": 22,
    "PAD": 34,
    "STRIDED_SLICE": 45,
    "PRELU": 54,
}
CUSTOM = 32
TYPES = {"float32": 0, "float16": 1, "int32": 2, "int64": 4}


@dataclass
class TinyTflite:
    """A graph as it grows; a tensor is named by its number."""

    tensors: list = field(default_factory=list)  # shape, type, content or None, name
    operators: list = field(default_factory=list)  # kind, inputs, outputs, options

    def computed(self, *shape: int, name: str = "") -> int:
        """Adds a float32 tensor that an operator or the caller gives."""
        self.tensors.append((shape, "float32", b"", name))
        return len(self.tensors) - 1

    def constant(self, values) -> int:
        """Adds a tensor with content."""
        values = np.asarray(values)
        self.tensors.append((values.shape, values.dtype.name, values.tobytes(), ""))
        return len(self.tensors) - 1

    def halved(self, values) -> int:
        """Adds float16 weights and the operator that widens them."""
        wide = self.computed(*np.shape(values))
        self.operators.append(("DEQUANTIZE", (self.constant(np.asarray(values, np.float16)),), (wide,), {}))
        return wide

    def operator(self, kind: str, *inputs: int, shape, name: str = "", **options) -> int:
        """Adds an operator with one output, and that; `b3=1` is an int8 option, `n4=2` an int32, by field."""
        output = self.computed(*shape, name=name)
        self.operators.append((kind, inputs, (output,), options))
        return output

    def content(self, inputs, outputs) -> bytes:
        """The file's bytes."""
        return _Writer().file(self, inputs, outputs)


class _Writer:
    def __init__(self) -> None:
        self.builder = flatbuffers.Builder(1024)

    def table(self, **fields) -> int:
        """Writes a table: `o` an offset, `b` an int8, `n` an int32, and the field's number."""
        add = {
            "o": self.builder.PrependUOffsetTRelativeSlot,
            "b": self.builder.PrependInt8Slot,
            "n": self.builder.PrependInt32Slot,
        }
        self.builder.StartObject(24)
        for key, value in fields.items():
            add[key[0]](int(key[1:]), value, 0)
        return self.builder.EndObject()

    def numbers(self, values) -> int:
        return self.builder.CreateNumpyVector(np.asarray(values, "<i4"))

    def tables(self, offsets) -> int:
        self.builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.builder.PrependUOffsetTRelative(offset)
        return self.builder.EndVector()

    def file(self, graph: TinyTflite, inputs, outputs) -> bytes:
        kinds = list(dict.fromkeys(kind for kind, *_ in graph.operators))
        codes = [self.code(kind) for kind in kinds]
        buffers = [self.table()]
        tensors = []
        for shape, dtype, content, name in graph.tensors:
            fields = {"o0": self.numbers(shape), "b1": TYPES[dtype], "o3": self.builder.CreateString(name)}
            if content:
                buffers.append(self.table(o0=self.builder.CreateByteVector(content)))
                fields["n2"] = len(buffers) - 1
            tensors.append(self.table(**fields))
        operators = []
        for kind, taken, given, options in graph.operators:
            fields = {"n0": kinds.index(kind), "o1": self.numbers(taken), "o2": self.numbers(given)}
            if kind not in KINDS:
                fields["o5"] = self.builder.CreateByteVector(bytes(flexbuffers.Dumps(options)))
            elif options:
                fields["o4"] = self.table(**options)
            operators.append(self.table(**fields))
        graphs = [
            self.table(
                o0=self.tables(tensors),
                o1=self.numbers(inputs),
                o2=self.numbers(outputs),
                o3=self.tables(operators),
            )
        ]
        self.builder.Finish(
            self.table(n0=3, o1=self.tables(codes), o2=self.tables(graphs), o4=self.tables(buffers)),
            file_identifier=b"TFL3",
        )
        return bytes(self.builder.Output())

    def code(self, kind: str) -> int:
        if kind in KINDS:
            return self.table(b0=KINDS[kind], n3=KINDS[kind])
        return self.table(b0=CUSTOM, n3=CUSTOM, o1=self.builder.CreateString(kind))
