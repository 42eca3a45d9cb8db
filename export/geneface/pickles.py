"""A pickle reader for untrusted checkpoints and data sets that executes nothing in them.

`torch.load` and `numpy.load` hand a file's pickle to an interpreter that may call whatever the file names;
torch's restricted one calls less, but a damaged file can crash it (decision 31 in docs/decisions). The one
here knows the containers, numbers and texts of pickle protocol 2 to 4 and the few names of `_CALLS` and
`_STORAGES`, which it never imports: each stands for a function of this module that checks what it is given.
All sizes are compared with the file's own before memory is asked for.
"""

from __future__ import annotations

import io
import math
import os
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cuda_kernels.errors import InputError
from models.settings import one_line

from ..regular_file import open_regular

# The first two pickles of a legacy file: torch/serialization.py, MAGIC_NUMBER and PROTOCOL_VERSION.
_LEGACY_MAGIC: Final = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL: Final = 1001
_MAX_OPERATIONS: Final = 30_000_000  # a frame of a data set has 420; one operation may cost 100 bytes
_MAX_HEADER_BYTES: Final = 10_000  # numpy's own limit
_OBJECT_HEADER: Final = re.compile(rb"\{'descr':'\|O','fortran_order':(True|False),'shape':\(\),?\}")
_MAX_DIMENSIONS: Final = 32
_MAX_ELEMENTS: Final = 2**40  # of a shape, zeros counted as ones: products stay within 64 bits

_STORAGES: Final = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
_NUMBERS: Final = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
_DTYPES: Final = {
    **{code: np.dtype(f"<{code}") for code in _NUMBERS},
    "O8": np.dtype("O"),
}
# Plain values that occur beside weights: harmless to construct, but only tensors are kept.
_HARMLESS: Final = re.compile(
    r"torch\.(Size|device|dtype|layout|memory_format|qscheme|finfo|iinfo|Tensor|Generator|torch_version\.TorchVersion)"
    r"|torch\.(_C\.Generator|serialization\._get_layout|_utils\.torch\.(preserve_format|contiguous_format"
    r"|channels_last(_3d)?))"
    r"|torch\.(cuda\.|sparse\.|storage\.)*[A-Z]\w*(Storage|Tensor)"
    r"|torch\.nn\.parameter\.[A-Z]\w+|torch\.nn\.modules\.\w+\.[A-Z]\w+"
    r"|torch\._utils\._rebuild_((sparse_|q|nested_|xla_)?tensor(_v[23])?|parameter(_with_state)?"
    r"|meta_tensor_no_storage|device_tensor_from_(numpy|cpu_tensor)|wrapper_subclass)"
    r"|collections\.(defaultdict|Counter|deque|ChainMap|UserDict)"
    r"|pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path|argparse\.Namespace|types\.SimpleNamespace"
    r"|(builtins|__builtin__)\.(set|frozenset|complex|bytearray|slice|range|x?range|list|dict|tuple|int|float|str"
    r"|bool|bytes|object|Ellipsis|NotImplemented)"
    r"|datetime\.(datetime|date|time|timedelta|timezone)|decimal\.Decimal|fractions\.Fraction|uuid\.UUID"
    r"|copyreg\._reconstructor|copy_reg\._reconstructor"
    r"|numpy\.(float|int|uint|complex)\d+|numpy\.(bool_?|str_|bytes_|object_|void|record|generic|number)"
    r"|numpy\.(half|single|double|longdouble|clongdouble|u?(byte|short|intc|intp|int_?|long|longlong))"
    r"|numpy\.(datetime64|timedelta64|dtypes\.\w+|matrix|poly1d|recarray|rec\.recarray)"
    r"|numpy\.(matrixlib\.defmatrix\.matrix|_?core\.records\.(recarray|record)|lib\._?polynomial(_impl)?\.poly1d)"
    r"|numpy\._?core\.numeric\._frombuffer|numpy\.ma(\.core)?\.(_mareconstruct|MaskedArray)|numpy\.random\.[\w.]+"
    r"|(omegaconf|easydict|yacs|addict|ml_collections|munch)\.[\w.]+"
)
_WAY_OUT: Final = "take the file as GeneFace wrote it"
_COPY_AGAIN: Final = "it is truncated or damaged: copy it again"
_LITTLE_ENDIAN: Final = "save it again on a little-endian machine"
_ZIP_ERRORS: Final = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    EOFError,
    ValueError,
    OverflowError,
    struct.error,
    zlib.error,
)  # all that zipfile raises for a damaged archive


class GenefaceFileError(InputError):
    """A file of GeneFace's that is refused: file, expected, got and the way out in one line."""


class _RefusedError(Exception):
    """What is wrong with a pickle, before the file's name is added: the parts of a `GenefaceFileError`."""

    def __init__(self, **parts: str) -> None:
        self.parts = parts
        super().__init__(parts)


def read_torch(path: Path) -> object:
    """Returns what `torch.save` wrote, in its legacy or its zip form.

    Tensors come on the CPU, without gradients; an OrderedDict as a dict, a numpy number as a Python number, a
    numpy array read-only.

    Raises:
        GenefaceFileError: the file is absent, broken or truncated, or names anything but tensors, arrays,
            containers and numbers.
    """
    return _reading(path, lambda file, size: (_read_zip if _starts_zip(file) else _read_legacy)(file, size))


def read_npy(path: Path) -> object:
    """Returns the object that `numpy.save` pickled into a `.npy` file; values as in `read_torch`.

    Raises:
        GenefaceFileError: as `read_torch`; also for a plain array, which holds no object.
    """
    return _reading(path, _read_npy)


def _reading(path: Path, read: Callable[[BinaryIO, int], object]) -> object:
    try:
        with open_regular(path) as file:
            return read(file, os.fstat(file.fileno()).st_size)
    except _RefusedError as refusal:
        raise GenefaceFileError(file=str(path), **refusal.parts) from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise GenefaceFileError(
            file=str(path), expected="a readable file", got=reason, way_out="check the path"
        ) from None


def _refused(what: str, expected: str, got: object, way_out: str = _WAY_OUT) -> _RefusedError:
    return _RefusedError(field=what, expected=expected, got=one_line(str(got), 100), way_out=way_out)


# The containers --------------------------------------------------------------------------------------


def _starts_zip(file: BinaryIO) -> bool:
    start = file.read(4)
    file.seek(0)
    return start == b"PK\x03\x04"


def _read_legacy(file: BinaryIO, size: int) -> object:
    """Pickles of magic number, protocol, machine, object and storage keys, then each storage's bytes."""
    source = _Source(file, size)
    if _unpickle(source) != _LEGACY_MAGIC:
        raise _refused("content", "a file of torch.save", "another pickle")
    if _unpickle(source) != _LEGACY_PROTOCOL:
        raise _refused("protocol", f"{_LEGACY_PROTOCOL}", "another one")
    machine = _unpickle(source)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise _refused("little_endian", "true", "something else", _LITTLE_ENDIAN)
    storages = _Storages(size, lambda _, count_bytes: np.empty(count_bytes, np.uint8))
    result = _unpickle(source, storages)
    keys = _unpickle(source)
    if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise _refused("storages", "a list of keys", "something else")
    if sorted(keys) != sorted(storages.made):
        raise _refused("storages", "the keys of the tensors", "other keys")
    for key in keys:
        storage, count = storages.made[key], source.read(8)
        if len(count) < 8 or source.remaining < len(storage.raw):
            got = f"{source.remaining} before the file's end"
            raise _refused(f"storage {one_line(key)}", f"{len(storage.raw)} bytes", got, _COPY_AGAIN)
        if struct.unpack("<q", count)[0] != len(storage.numbers):
            raise _refused(f"storage {one_line(key)}", f"{len(storage.numbers)} numbers", "another count")
        source.fill(storage.raw)
    return result


def _read_zip(file: BinaryIO, size: int) -> object:
    """An archive of data.pkl and one member for each storage, none of them compressed."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = _Members(archive, size)
            if "byteorder" in members and members.read("byteorder") != b"little":
                raise _refused("byteorder", "little", "another", _LITTLE_ENDIAN)
            pickled = members.read("data.pkl")

            def load(key: str, count_bytes: int) -> npt.NDArray[np.uint8]:
                return np.frombuffer(bytearray(members.read(f"data/{key}", count_bytes)), np.uint8)

            return _unpickle(_Source(io.BytesIO(pickled), len(pickled)), _Storages(size, load))
    except _ZIP_ERRORS as error:
        raise _refused("content", "a whole archive", f"a broken one ({error})", _COPY_AGAIN) from None


class _Members:
    """The members of torch's archive, which lie in one folder of any name."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self._archive = archive
        self._size = size
        self._entries = {entry.filename: entry for entry in archive.infolist()}
        pickles = [name for name in self._entries if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise _refused("content", "an archive of torch.save", f"one with {len(pickles)} data.pkl")
        self._folder = pickles[0].removesuffix("data.pkl")

    def __contains__(self, name: str) -> bool:
        return self._folder + name in self._entries

    def read(self, name: str, count_bytes: int | None = None) -> bytes:
        """Returns a member that is stored as it is and of `count_bytes`, if given."""
        entry = self._entries.get(self._folder + name)
        if entry is None:
            raise _refused(one_line(name), "in the archive", "no such member", _COPY_AGAIN)
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > self._size:
            raise _refused(one_line(name), "a member as torch.save stores it", "a compressed one")
        if count_bytes is not None and entry.file_size != count_bytes:
            raise _refused(one_line(name), f"{count_bytes} bytes", f"{entry.file_size}", _COPY_AGAIN)
        return self._archive.read(entry)


def _read_npy(file: BinaryIO, size: int) -> object:
    """numpy.lib.format: magic, version, length of the header, header, and for objects a pickle."""
    source = _Source(file, size)
    magic, version = source.read(6), source.read(2)
    if magic != b"\x93NUMPY" or version not in (b"\x01\x00", b"\x02\x00"):
        raise _refused("content", "a .npy file", "something else")
    length = int.from_bytes(source.read(2 if version[0] == 1 else 4), "little")
    header = source.read(min(length, _MAX_HEADER_BYTES))
    if not _OBJECT_HEADER.fullmatch(b"".join(header.split())):
        got = one_line(header.decode("latin1").strip(), 100)
        raise _refused("content", "one pickled object", got)
    return _unpickle(source)


class _Source:
    """The next bytes of a file, at most `remaining` of them: no reader can ask memory for more."""

    def __init__(self, file: BinaryIO, remaining: int) -> None:
        self._file = file
        self.remaining = remaining

    def read(self, count: int) -> bytes:
        content = self._file.read(min(count, self.remaining))
        self.remaining -= len(content)
        return content

    def readline(self) -> bytes:
        line = self._file.readline(min(1000, self.remaining))  # the names of a GLOBAL
        self.remaining -= len(line)
        if b"\\" in line:  # pickletools would unescape it, and warn of what is no escape
            raise ValueError("a name with a backslash")
        return line

    def fill(self, raw: npt.NDArray[np.uint8]) -> None:
        """Reads as many bytes as `raw` holds; the caller has compared them with `remaining`."""
        view = raw.data
        while view:
            count = self._file.readinto(view)  # type: ignore[attr-defined]  # BinaryIO forgets it
            if not count:
                raise _refused("storage", f"{len(raw)} bytes", "the file's end", _COPY_AGAIN)
            view = view[count:]
        self.remaining -= len(raw)


class _Storage(NamedTuple):
    """A storage's bytes, and the same memory as numbers (N,)."""

    raw: npt.NDArray[np.uint8]
    numbers: Tensor


class _Storages:
    """The storages that persistent ids name, each made once; together no larger than the file."""

    def __init__(self, size: int, load: Callable[[str, int], npt.NDArray[np.uint8]]) -> None:
        self._left_bytes = size
        self._load = load
        self.made: dict[str, _Storage] = {}

    def get(self, identity: object) -> _Storage:
        """Returns the storage of ("storage", type, key, location, count, no view)."""
        match identity:
            case ("storage", _Name() as kind, str() as key, str(), int() as count, *view) if (
                kind.name in _STORAGES and count >= 0 and view in ([], [None])
            ):
                dtype = _STORAGES[kind.name]
            case _:
                raise _refused("persistent id", "a tensor's storage", "something else")
        if key not in self.made:
            count_bytes = count * dtype.itemsize
            if count_bytes > self._left_bytes:
                got = f"{self._left_bytes} left in the file"
                raise _refused(f"storage {one_line(key)}", f"{count_bytes} bytes", got, _COPY_AGAIN)
            self._left_bytes -= count_bytes
            raw = self._load(key, count_bytes)
            numbers = torch.from_numpy(raw).view(dtype) if count else torch.empty(0, dtype=dtype)
            self.made[key] = _Storage(raw, numbers)
        storage = self.made[key]
        if storage.numbers.dtype != dtype or len(storage.numbers) != count:
            raise _refused(f"storage {one_line(key)}", "one size and type", "two")
        return storage


# The interpreter -------------------------------------------------------------------------------------


class _Name:
    """A name of the table that a pickle mentioned, never imported."""

    def __init__(self, name: str) -> None:
        self.name = name


class _UnfilledArray:
    """A numpy array between its making and its BUILD; `places` are those of the memo that hold it."""

    def __init__(self) -> None:
        self.places: list[int] = []


def _kind(value: object) -> str:
    return value.name if isinstance(value, _Name) else type(value).__name__


def _unpickle(source: _Source, storages: _Storages | None = None) -> object:
    """Returns the object of the pickle that begins at `source`, which is left right behind it."""
    machine = _Machine(storages)
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], source))):
            if number >= _MAX_OPERATIONS:
                raise _refused("pickle", f"at most {_MAX_OPERATIONS} operations", "more")
            machine.step(opcode.name, argument)
        (result,) = machine.stack
    except (ValueError, IndexError) as error:
        got = f"a broken or truncated one ({error})"
        raise _refused("pickle", "a whole one", got, _COPY_AGAIN) from None
    if isinstance(result, (_Name, _UnfilledArray)):
        raise _refused("pickle", "a value", _kind(result))
    return result


class _Machine:
    """The stack and memo of pickle's virtual machine."""

    def __init__(self, storages: _Storages | None) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._storages = storages

    def step(self, operation: str, argument: Any) -> None:  # noqa: ANN401 -- whatever the opcode carries
        """Carries out one operation."""
        stack = self.stack
        match operation:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[operation])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8":
                stack.append(argument)
            case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8":
                stack.append(argument)
            case "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_TUPLE":
                stack.append({"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}[operation]())
            case "MARK":
                self._marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(self._since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(reversed([stack.pop() for _ in range(int(operation[-1]))])))
            case "APPEND" | "APPENDS":
                values = [stack.pop()] if operation == "APPEND" else self._since_mark()
                self._top(list, operation).extend(values)
            case "SETITEM" | "SETITEMS":
                pairs = [stack.pop(-2), stack.pop()] if operation == "SETITEM" else self._since_mark()
                self._set_items(self._top(dict, operation), pairs)
            case "MEMOIZE" | "BINPUT" | "LONG_BINPUT":
                place = len(self._memo) if operation == "MEMOIZE" else argument
                self._memo[place] = stack[-1]
                if isinstance(stack[-1], _UnfilledArray):
                    stack[-1].places.append(place)
            case "BINGET" | "LONG_BINGET":
                if argument not in self._memo:
                    raise _refused("pickle", "a value that was kept", "a reference to none")
                stack.append(self._memo[argument])
            case "GLOBAL" | "STACK_GLOBAL":
                stack.append(self._name(operation, argument))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                if not isinstance(function, _Name) or function.name not in _CALLS:
                    raise _refused("pickle", "a call of a listed function", f"one of {_kind(function)}")
                if not isinstance(arguments, tuple):
                    raise _refused(function.name, "arguments", _kind(arguments))
                stack.append(_CALLS[function.name](arguments))
            case "BUILD":
                state = stack.pop()
                stack.append(self._build(stack.pop(), state))
            case "BINPERSID":
                if self._storages is None:
                    raise _refused("pickle", "no persistent id", "one")
                stack.append(self._storages.get(stack.pop()))
            case _:
                raise _refused(
                    "pickle", "plain values", f"the operation {operation}", f"do not open it; {_WAY_OUT}"
                )

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def _top(self, kind: type, operation: str) -> Any:  # noqa: ANN401 -- list or dict, as `kind` says
        if type(self.stack[-1]) is not kind:
            raise _refused(f"pickle, {operation}", f"a {kind.__name__}", _kind(self.stack[-1]))
        return self.stack[-1]

    @staticmethod
    def _set_items(target: dict[Any, Any], pairs: list[Any]) -> None:
        if len(pairs) % 2:
            raise _refused("pickle", "keys with values", "a key without one")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, (str, int)):  # hashing a deep tuple overflows the C stack
                raise _refused("pickle", "texts or whole numbers for keys", _kind(key))
            target[key] = value

    def _name(self, operation: str, argument: Any) -> _Name:  # noqa: ANN401
        if operation == "STACK_GLOBAL":
            last, module = self.stack.pop(), self.stack.pop()
            name = f"{module}.{last}" if isinstance(module, str) and isinstance(last, str) else "not a text"
        else:
            name = argument.replace(" ", ".")
        if name not in _CALLS and name not in _STORAGES and name != "numpy.ndarray":
            expected = "only tensors, arrays, containers and numbers"
            if _is_harmless(name):
                way_out = "save the tensors alone, torch.save(model.state_dict(), ...)"
                raise _refused("pickle", expected, f"{name}, which is not read", way_out)
            way_out = f"the file would run it: do not open it elsewhere either; {_WAY_OUT}"
            raise _refused("pickle", expected, f"the global {name}", way_out)
        return _Name(name)

    def _build(self, value: object, state: object) -> object:
        match value:
            case np.dtype():
                # (version, byte order, no sub-array, no fields, ...): _DTYPES decides.
                if not (isinstance(state, tuple) and len(state) >= 5 and state[1] in ("<", "|", "=")):
                    raise _refused("numpy.dtype", "little-endian", "another state")
                if any(part is not None for part in state[2:5]):
                    raise _refused("numpy.dtype", "a plain type", "one with fields")
                return value
            case _UnfilledArray():
                array = _array(state)
                for place in value.places:
                    self._memo[place] = array
                return array
            case dict() if isinstance(state, dict) and state.keys() <= {"_metadata"}:
                return value  # a state_dict's version numbers
        raise _refused("pickle", "no object with a state", f"one of {_kind(value)}")


# The table -------------------------------------------------------------------------------------------


def _is_harmless(name: str) -> bool:
    """Whether a name is one of a plain value: of `_HARMLESS`, or a type or layout of torch's numbers."""
    value = vars(torch).get(name.removeprefix("torch.")) if name.startswith("torch.") else None
    return isinstance(value, (torch.dtype, torch.layout, torch.qscheme)) or bool(_HARMLESS.fullmatch(name))


def _is_shape(shape: object) -> bool:
    return (
        isinstance(shape, tuple)
        and len(shape) <= _MAX_DIMENSIONS
        and all(type(size) is int and size >= 0 for size in shape)
        and math.prod(max(1, size) for size in shape) <= _MAX_ELEMENTS
    )


def _array(state: object) -> object:
    match state:
        case (1, tuple() as shape, np.dtype() as dtype, bool() as fortran, (bytes() | list()) as data) if (
            _is_shape(shape)
        ):
            pass
        case _:
            raise _refused("numpy array", "version, shape, dtype, order and bytes", "another state")
    if dtype.hasobject:
        if shape != () or not isinstance(data, list) or len(data) != 1:
            raise _refused("numpy array of objects", "a single object", "more than one")
        return data[0]
    count_bytes = math.prod(shape) * dtype.itemsize
    if not isinstance(data, bytes) or len(data) != count_bytes:
        got = f"{len(data)}" if isinstance(data, bytes) else "a list"
        raise _refused(f"numpy array {shape}", f"{count_bytes} bytes", got)
    if not count_bytes:
        return np.zeros(shape, dtype)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _unfilled_array(arguments: tuple[Any, ...]) -> object:
    match arguments:
        case (_Name(name="numpy.ndarray"), (0,), b"b"):
            return _UnfilledArray()
    raise _refused("numpy array", "an empty one to fill", "something else")


def _dtype(arguments: tuple[Any, ...]) -> object:
    match arguments:
        case (str() as code, *_) if code in _DTYPES:
            return _DTYPES[code]
    raise _refused("numpy.dtype", f"one of {' '.join(_NUMBERS)}", "another")


def _scalar(arguments: tuple[Any, ...]) -> object:
    match arguments:
        case (np.dtype() as dtype, bytes() as data) if not dtype.hasobject and len(data) == dtype.itemsize:
            return np.frombuffer(data, dtype)[0].item()
    raise _refused("numpy number", "a type and its bytes", "something else")


def _no_bytes(arguments: tuple[Any, ...]) -> object:
    if arguments:
        raise _refused("bytes", "no arguments", "some")
    return b""


def _latin1(arguments: tuple[Any, ...]) -> object:
    """Protocol 2 has no bytes: they are texts of as many characters."""
    match arguments:
        case (str() as text, "latin1" | "latin-1"):
            return text.encode("latin1")
    raise _refused("bytes", "a text in latin1", "something else")


def _ordered_dict(arguments: tuple[Any, ...]) -> object:
    if arguments:
        raise _refused("OrderedDict", "an empty one to fill", "arguments")
    return {}


def _tensor(arguments: tuple[Any, ...]) -> object:
    match arguments:
        case (_Storage() as storage, int() as offset, shape, strides, *_) if (
            _is_shape(shape)
            and _is_shape(strides)
            and len(shape) == len(strides)
            and 0 <= offset <= _MAX_ELEMENTS
        ):
            pass
        case _:
            raise _refused("tensor", "storage, offset, shape and strides", "something else", _COPY_AGAIN)
    held, count = len(storage.numbers), math.prod(shape)
    if not count:
        return torch.empty(shape, dtype=storage.numbers.dtype)
    reach = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    # A view that repeats numbers (a stride of 0) could be any size; no state has one.
    if offset + reach >= held or count > held:
        got = f"shape {shape}, strides {strides}, offset {offset} of {held} numbers"
        raise _refused("tensor", "a view within its storage", got, _COPY_AGAIN)
    return torch.as_strided(storage.numbers, shape, strides, offset)


def _parameter(arguments: tuple[Any, ...]) -> object:
    match arguments:
        case (Tensor() as tensor, bool(), dict()):
            return tensor
    raise _refused("parameter", "a tensor", "something else")


_CALLS: Final[dict[str, Callable[[tuple[Any, ...]], object]]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "_codecs.encode": _latin1,
    "__builtin__.bytes": _no_bytes,  # how protocol 2 writes those of length 0
    "numpy.dtype": _dtype,
    **{
        f"numpy.{core}.multiarray.{name}": call
        for core in ("core", "_core")  # numpy 1 and 2
        for name, call in (("_reconstruct", _unfilled_array), ("scalar", _scalar))
    },
}
