from __future__ import annotations

import codecs
import io
import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from export.geneface import pickles as restricted_pickle
from export.geneface.pickles import GenefaceFileError, read_npy, read_torch

DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64,
    torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip
FORMS = pytest.mark.parametrize("zipped", [False, True], ids=["legacy", "zip"])
WINDING = (
    None,
    True,
    False,
    -(2**40),
    0.5,
    float("inf"),
    "a\u00e4\U0001f600",
    b"\x00\xff",
    (),
    (1, (2, [3])),
)


def refused(read, path):
    """Returns what a file is refused with, once it is one line of this file's."""
    with pytest.raises(GenefaceFileError) as caught:
        read(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    assert line.partition("; ")[2]
    assert caught.value.file == str(path)
    return caught.value


def save(content, path, zipped):
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def same(ours, theirs):
    if isinstance(theirs, dict):
        return (
            isinstance(ours, dict)
            and list(ours) == list(theirs)
            and all(map(same, ours.values(), theirs.values()))
        )
    if isinstance(theirs, (list, tuple)):
        return type(ours) is type(theirs) and len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(theirs, torch.Tensor):
        return ours.dtype == theirs.dtype and ours.shape == theirs.shape and torch.equal(ours, theirs)
    if isinstance(theirs, np.ndarray):
        return ours.dtype == theirs.dtype and ours.shape == theirs.shape and np.array_equal(ours, theirs)
    return ours == theirs


def random_state(seed):
    numbers = random.Random(seed)
    torch.manual_seed(seed)
    state = OrderedDict()
    for i in range(numbers.randint(1, 12)):
        shape = [numbers.randint(0, 5) for _ in range(numbers.randint(0, 4))]
        tensor = (torch.randn(shape) * 50).to(numbers.choice(DTYPES))
        if tensor.ndim > 1 and numbers.random() < 0.5:
            tensor = tensor.transpose(0, 1)
        if tensor.ndim and numbers.random() < 0.3:
            tensor = tensor[1:]
        state[f"layer.{i}"] = tensor
    state["shared"] = state["layer.0"]
    return {"state": state, "plain": list(WINDING), 7: {"lr": np.float64(0.125), "steps": np.int64(3)}}


@FORMS
@pytest.mark.parametrize("seed", range(12))
def test_what_torch_saves_is_what_torch_loads(tmp_path, zipped, seed):
    path = save(random_state(seed), tmp_path / "state.pt", zipped)
    assert same(read_torch(path), torch.load(path, weights_only=False))


@FORMS
def test_a_networks_and_its_optimizers_state(tmp_path, zipped):
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(network.parameters(), lr=np.float64(5e-4))
    network(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    content = {"state_dict": {"model": network.state_dict()}, "optimizer_states": [optimizer.state_dict()]}
    read = read_torch(save(content, tmp_path / "model.ckpt", zipped))
    assert same(read, torch.load(tmp_path / "model.ckpt", weights_only=False))
    assert read["optimizer_states"][0]["param_groups"][0]["lr"] == 5e-4
    assert type(read["optimizer_states"][0]["param_groups"][0]["lr"]) is float


@FORMS
def test_a_parameter_comes_as_a_tensor(tmp_path, zipped):
    read = read_torch(save([torch.nn.Parameter(torch.ones(2))], tmp_path / "a.pt", zipped))
    assert torch.equal(read[0], torch.ones(2))
    assert not read[0].requires_grad


def test_tensors_of_one_storage_share_it(tmp_path):
    whole = torch.arange(6.0)
    read = read_torch(save([whole, whole[2:4]], tmp_path / "a.pt", False))
    read[0][2] = 9.0
    assert read[1].tolist() == [9.0, 3.0]


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_of_numpy(tmp_path, protocol):
    table = np.arange(6.0).reshape(2, 3)
    content = {
        "table": table,
        "again": table,
        "fortran": np.asfortranarray(table),
        "empty": np.zeros((0, 3), np.float32),
        "bytes": np.arange(256, dtype=np.uint8),
        "frames": [{"idx": 0, "c2w": np.eye(4), "name": "a/b.png", "flag": np.array(True)}],
        "focal": np.float32(1.5),
    }
    path = tmp_path / "data.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickle.dump(np.array(content, dtype=object), file, protocol=protocol)
    read = read_npy(path)
    assert same(read, np.load(path, allow_pickle=True).item())
    assert read["again"] is read["table"]


def test_the_old_names_of_numpy(tmp_path):
    path = tmp_path / "data.npy"
    np.save(path, np.array({"a": np.ones(3)}, dtype=object))
    # Numpy 1 wrote the shorter module name; its length stands before it.
    old = path.read_bytes().replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
    path.write_bytes(old.replace(b"\x95", b"\x95", 1))
    assert read_npy(path)["a"].tolist() == [1, 1, 1]


def test_neither_torch_nor_numpy_unpickles(tmp_path, monkeypatch):
    path = save({"a": torch.ones(2)}, tmp_path / "a.pt", True)
    np.save(tmp_path / "a.npy", np.array({"a": np.ones(2)}, dtype=object))

    def refuse(*_, **__):
        raise AssertionError("the file was handed on")

    for place, name in (
        (torch, "load"),
        (np, "load"),
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
    ):
        monkeypatch.setattr(place, name, refuse)
    assert read_torch(path)["a"].tolist() == read_npy(tmp_path / "a.npy")["a"].tolist() == [1, 1]


# Hostile files ---------------------------------------------------------------------------------------


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class Stated:
    """Pickles as an object with a state."""

    def __init__(self):
        self.a = 1


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


SYSTEM = f"the global {os.system.__module__}.system"
PATH = f"{type(Path()).__module__}.{type(Path()).__name__}"
TENSORS = "only tensors, arrays, containers and numbers"
NUMPY = "one of f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8 b1"
HOSTILE = {  # a value; the field, what is expected, what is got ("builtins" has another name in protocol 2)
    "system": (lambda: Calls(os.system, "true"), "pickle", TENSORS, SYSTEM),
    "eval": (lambda: Calls(eval, "1"), "pickle", TENSORS, "the global builtins.eval"),
    "getattr": (lambda: Calls(getattr, 1, "real"), "pickle", TENSORS, "the global builtins.getattr"),
    "partial": (lambda: partial(print, 1), "pickle", TENSORS, "the global functools.partial"),
    "torch.load": (lambda: Calls(torch.load, "x"), "pickle", TENSORS, "the global torch.serialization.load"),
    "object": (Stated, "pickle", TENSORS, f"the global {__name__}.Stated"),
    "complex": (lambda: 1j, "pickle", TENSORS, "builtins.complex, which is not read"),
    "path": (lambda: Path("x"), "pickle", TENSORS, f"{PATH}, which is not read"),
    "call with arguments": (
        lambda: Calls(OrderedDict, [(1, 2)]), "OrderedDict", "an empty one to fill", "arguments",
    ),
    "storage": (
        lambda: Calls(torch.FloatStorage, 3),
        "pickle", "a call of a listed function", "one of torch.FloatStorage",
    ),
    "fields": (lambda: np.zeros(2, [("a", "f4")]), "numpy.dtype", NUMPY, "another"),
    "big-endian": (lambda: np.zeros(2, ">f4"), "numpy.dtype", "little-endian", "another state"),
    "objects": (
        lambda: np.array([None, {}], object), "numpy array of objects", "a single object", "more than one",
    ),
    "date": (lambda: np.array(["2020"], "M8[D]"), "numpy.dtype", NUMPY, "another"),
    "key": (lambda: {(1, 2): 3}, "pickle", "texts or whole numbers for keys", "tuple"),
    "encode": (lambda: Calls(codecs.encode, "a", "rot13"), "bytes", "a text in latin1", "something else"),
}  # fmt: skip


def hostile(path, form, value):
    """Returns how to read a file of a value in one of the three forms, once it is written."""
    if form != "npy":
        save(value, path, form == "zip")
        return read_torch
    with path.open("wb") as file:
        np.save(file, np.array(value, dtype=object))
    return read_npy


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("form", ["legacy", "zip", "npy"])
def test_what_is_no_plain_value_is_refused(tmp_path, name, form):
    make, field, expected, got = HOSTILE[name]
    error = refused(hostile(tmp_path / "hostile", form, {"a": make()}), tmp_path / "hostile")
    assert (error.field, error.expected) == (field, expected)
    assert error.got == (got if form == "npy" else got.replace("builtins.", "__builtin__."))


@pytest.mark.parametrize("form", ["legacy", "zip", "npy"])
def test_a_set_is_refused(tmp_path, form):
    error = refused(hostile(tmp_path / "hostile", form, {"a": {1, 2}}), tmp_path / "hostile")
    assert error.got == ("the operation EMPTY_SET" if form == "npy" else "__builtin__.set, which is not read")


@pytest.mark.parametrize("form", ["legacy", "zip", "npy"])
def test_a_bare_name_stays_a_word_that_nothing_can_be_called_by(tmp_path, form):
    read = hostile(tmp_path / "hostile", form, {"a": [OrderedDict]})
    assert type(read(tmp_path / "hostile")["a"][0]).__name__ == "_Name"


def alarm_of(tmp_path, *, value=None, name=""):
    """Returns whether the refusal of a value, or of a name, says that the file would run something."""
    path = tmp_path / "data.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        if name:
            module, _, last = name.rpartition(".")
            file.write(b"\x80\x02c" + f"{module}\n{last}\n.".encode())
        else:
            pickle.dump([value], file, protocol=4)
    error = refused(read_npy, path)
    assert name in error.got
    alarm = "the file would run it: do not open it elsewhere either" in str(error)
    assert alarm != error.got.endswith(", which is not read")
    return alarm


PLAIN = {
    "version": torch.torch_version.TorchVersion("2.0"),
    "size": torch.Size([1]),
    "device": torch.device("cpu"),
    **{str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)},
    **{str(value): value for value in vars(torch).values() if isinstance(value, torch.layout)},
    "quantised": torch.per_tensor_affine,
    "module": torch.nn.Linear(1, 1),
    "datetime64": np.datetime64,
    "timedelta64": np.timedelta64,
    "number type": np.ulonglong,
    "new type": type(np.dtype("f4")),
    "masked": np.ma.array([1, 2], mask=[0, 1]),
    "records": np.rec.array([(1, 2.0)], names="a,b"),
    "matrix": np.matrix,
    "ellipsis": ...,
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_value_of_torch_or_numpy_raises_no_alarm(tmp_path, name):
    assert not alarm_of(tmp_path, value=PLAIN[name])


@pytest.mark.parametrize(
    "name",
    [
        "torch.Size",
        "torch.device",
        "collections.defaultdict",
        "pathlib.PosixPath",
        "argparse.Namespace",
        "datetime.date",
        "builtins.set",
        "omegaconf.dictconfig.DictConfig",
        "torch._utils._rebuild_parameter_with_state",
        "torch._utils._rebuild_sparse_tensor",
        "torch._utils._rebuild_qtensor",
        "torch._utils.torch.channels_last",
        "torch.layout",
        "torch.strided",
        "torch.Tensor",
        "torch.ComplexFloatStorage",
        "torch.cuda.FloatStorage",
        "torch.storage.UntypedStorage",
        "torch.int4",
        "numpy._core.numeric._frombuffer",
        "numpy.core.numeric._frombuffer",
        "numpy.datetime64",
    ],
)
def test_a_name_of_plain_values_raises_no_alarm(tmp_path, name):
    assert not alarm_of(tmp_path, name=name)


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "posix.system",
        "builtins.eval",
        "builtins.exec",
        "builtins.getattr",
        "subprocess.Popen",
        "utils.hparams.HP",
        "pathlib.Path.unlink",
        "torch.Sizes",
        "torch.load",
        "torch.storage._load_from_bytes",
        "torch._utils._rebuild_anything",
        "torch._utils.torch.load",
        "torch.nn.modules.module.torch.load",
        "torch.nn.modules.module.functools",
        "torch.hub.load",
        "torch.os",
        "torch.__builtins__",
        "torch._tensor._rebuild_from_type_v2",
        "numpy.load",
        "numpy.f2py.os.system",
        "numpy.testing._private.utils.runstring",
    ],
)
def test_a_name_that_may_run_something_raises_the_alarm(tmp_path, name):
    assert alarm_of(tmp_path, name=name)


@pytest.mark.parametrize("form", ["legacy", "zip", "npy"])
def test_a_command_in_a_file_is_not_run(tmp_path, form):
    trace, path = tmp_path / "trace", tmp_path / "hostile"
    read = hostile(path, form, {"state_dict": Evil(trace)})
    assert refused(read, path).got == SYSTEM
    assert not trace.exists()


def test_a_command_is_run_by_others(tmp_path):
    """What the tests above refuse is a live one."""
    pickle.loads(pickle.dumps(Evil(tmp_path / "trace")))
    assert (tmp_path / "trace").exists()


def npy(tmp_path, operations):
    path = tmp_path / "raw.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(operations)
    return path


def deep_key():
    return b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s."


@pytest.mark.parametrize(
    ("operations", "expected", "got"),
    [
        (b"\x80\x02c__builtin__\neval\nX\x01\x00\x00\x001\x85R.", TENSORS, "the global __builtin__.eval"),
        (b"\x80\x02cos\nsys\\yem\n.", "a whole one", "a broken or truncated one (a name with a backslash)"),
        (b"\x80\x02(S'1'\ni__builtin__\neval\n.", "plain values", "the operation STRING"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "plain values", "the operation NEWOBJ"),
        (b"\x80\x02\x82\x01.", "plain values", "the operation EXT1"),
        (b"\x80\x02Pspam\n.", "plain values", "the operation PERSID"),
        (b"\x80\x02K\x01Q.", "no persistent id", "one"),
        (b"\x80\x02K\x01)R.", "a call of a listed function", "one of int"),
        (b"\x80\x02}}b.", None, None),
        (b"\x80\x02]}b.", "no object with a state", "one of list"),
        (b"\x80\x02}X\x01\x00\x00\x00aK\x01s}X\x01\x00\x00\x00aK\x01sb.",
         "no object with a state", "one of dict"),
        (b"\x80\x02K\x01r\xff\xff\xff\x7f.", None, None),  # a memo place of two thousand million
        (b"\x80\x02j\xff\xff\xff\x7f.", "a value that was kept", "a reference to none"),
        (b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"x.", "a whole one", "a broken or truncated one ("),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x.", "a whole one", "a broken or truncated one ("),
        (b"\x80\x02X\xff\xff\xff\x7fx.", "a whole one", "a broken or truncated one ("),
        (b"\x80\x02\x8b\xff\xff\xff\x7f1.", "a whole one", "a broken or truncated one ("),
        (b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"K\x01.", None, None),  # its length is not believed
        (b"\x80\x02K\x01a.", "a whole one", "a broken or truncated one ("),
        (b"\x80\x02K\x01K\x02a.", "a list", "int"),
        (b"\x80\x02}(K\x01u.", "keys with values", "a key without one"),
        (b"\x80\x02K\x01K\x02.", "a whole one", "a broken or truncated one ("),
        (b"\x80\x02.", "a whole one", "a broken or truncated one ("),
        (b"\x80\x02t.", "a whole one", "a broken or truncated one ("),
        (b"\x80\x02cnumpy\nndarray\n.", "a value", "numpy.ndarray"),
        (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85c_codecs\nencode\n"
         b"X\x01\x00\x00\x00bX\x06\x00\x00\x00latin1\x86R\x87R.", "a value", "_UnfilledArray"),
        (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nJ\xff\xff\xff\x7f\x85C\x01b\x87R.",
         "an empty one to fill", "something else"),
        (deep_key(), "texts or whole numbers for keys", "tuple"),
        (b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b".", None, None),
        (b"", "a whole one", "a broken or truncated one ("),
    ],
)  # fmt: skip
def test_pickles_that_no_pickler_writes(tmp_path, operations, expected, got):
    path = npy(tmp_path, operations)
    if expected is None:
        read_npy(path)
        return
    error = refused(read_npy, path)
    assert error.expected == expected
    assert error.got.startswith(got)
    assert len(str(error)) < 400 + len(str(path))


def test_a_text_that_would_be_shown_in_full_is_cut(tmp_path):
    name = b"x" * 100_000
    path = npy(tmp_path, b"\x80\x04X" + struct.pack("<I", len(name)) + name + b"X\x01\x00\x00\x00y\x93.")
    assert len(str(refused(read_npy, path))) < 500 + len(str(path))


def test_more_operations_than_any_file_needs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(restricted_pickle, "_MAX_OPERATIONS", 1000)
    path = npy(tmp_path, b"\x80\x02" + b"]" * 2000 + b".")
    assert refused(read_npy, path).expected == "at most 1000 operations"


# Files of torch.save that it did not write -------------------------------------------------------------


def pushed(value):
    """The operations that push a plain value."""
    return pickle.dumps(value, protocol=2)[2:-1]


def storage(kind=b"ctorch\nFloatStorage\n", key="0", count=4, view=None):
    parts = (pushed("storage"), kind, pushed(key), pushed("cpu"), pushed(count), pushed(view))
    return b"(" + b"".join(parts) + b"tQ"


def view(shape, strides, offset):
    arguments = storage() + pushed(offset) + pushed(shape) + pushed(strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"\x89ccollections\nOrderedDict\n)RtR"


def write_raw(path, zipped, operations):
    """Returns a file of torch.save with a pickle of these operations and one storage, four float32 of 0."""
    pickled, numbers = b"\x80\x02" + operations + b".", bytes(16)
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", pickled)
            archive.writestr("a/version", b"3\n")
            archive.writestr("a/data/0", numbers)
    else:
        start = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
        before = b"".join(pickle.dumps(part, protocol=2) for part in start)
        keys, sized = (["0"], struct.pack("<q", 4) + numbers) if b"Storage" in operations else ([], b"")
        path.write_bytes(before + pickled + pickle.dumps(keys, protocol=2) + sized)
    return path


@FORMS
def test_a_view_within_its_storage_is_read(tmp_path, zipped):
    assert read_torch(write_raw(tmp_path / "a.pt", zipped, view((2, 1), (2, 1), 1))).tolist() == [[0], [0]]


@FORMS
@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((5,), (1,), 0),
        ((4,), (1,), 1),
        ((2, 2), (3, 1), 0),
        ((2,), (1,), -1),
        ((2,), (-1,), 1),
        ((2**62, 2), (0, 0), 0),
        ((10**6,), (0,), 0),
        ((2**20, 2**20, 2**20), (1, 1, 1), 0),
        ((2,), (1, 1), 0),
        ((2,), (1,), 2**70),
        ((1,) * 40, (1,) * 40, 0),
    ],
)
def test_views_that_leave_their_storage_are_refused(tmp_path, zipped, shape, strides, offset):
    path = write_raw(tmp_path / "a.pt", zipped, view(shape, strides, offset))
    assert refused(read_torch, path).field == "tensor"


@FORMS
@pytest.mark.parametrize(
    "identity",
    [
        pushed(("module", "a", "b")) + b"Q",
        pushed("storage") + b"Q",
        storage(kind=pushed("torch.FloatStorage")),
        storage(kind=b"ccollections\nOrderedDict\n"),
        storage(key=0),
        storage(count=-1),
        storage(view=("1", 0, 4)),
    ],
)
def test_other_persistent_ids_are_refused(tmp_path, zipped, identity):
    path = write_raw(tmp_path / "a.pt", zipped, identity)
    assert refused(read_torch, path).field == "persistent id"


@FORMS
@pytest.mark.parametrize("count", [1000, 2**45])
def test_storages_larger_than_the_file_are_not_made(tmp_path, zipped, count):
    error = refused(read_torch, write_raw(tmp_path / "a.pt", zipped, storage(count=count)))
    assert (error.field, error.expected) == ("storage 0", f"{4 * count} bytes")


@FORMS
def test_one_storage_has_one_type(tmp_path, zipped):
    twice = b"](" + storage() + storage(kind=b"ctorch\nLongStorage\n", count=2) + b"e"
    error = refused(read_torch, write_raw(tmp_path / "a.pt", zipped, twice))
    assert (error.field, error.expected, error.got) == ("storage 0", "one size and type", "two")


# What torch's own restricted loader dies of: see docs/decisions/0009-our-own-pickle-reader.md.
MANY_LETTERS = "".join(map(chr, range(0x4E00, 0x9E00))) * 20
DEADLY = {
    "a deep key": (deep_key()[2:-1], "pickle", "texts or whole numbers for keys"),
    "8 GB of zeros": (b"cbuiltins\nbytearray\n" + pushed(2**33) + b"\x85R", "pickle", TENSORS),
    "a codec without end": (
        b"c_codecs\nencode\n" + pushed(MANY_LETTERS) + pushed("punycode") + b"\x86R",
        "bytes",
        "a text in latin1",
    ),
    "a state of a type, two entries short": (
        b"cnumpy\ndtype\n" + pushed("f8") + b"\x89\x88\x87R" + pushed((3, "<", None, -1, -1, 0)) + b"b",
        "numpy.dtype",
        "a plain type",
    ),
}


@FORMS
@pytest.mark.parametrize("name", DEADLY)
def test_a_pickle_that_ends_other_readers_is_one_line(tmp_path, zipped, name):
    operations, field, expected = DEADLY[name]
    error = refused(read_torch, write_raw(tmp_path / "a.pt", zipped, operations))
    assert (error.field, error.expected) == (field, expected)


# Damaged files ---------------------------------------------------------------------------------------


@FORMS
def test_a_file_cut_anywhere_is_refused(tmp_path, zipped):
    path = save(random_state(3), tmp_path / "whole.pt", zipped)
    content = path.read_bytes()
    lengths = sorted(
        {*range(0, len(content), max(1, len(content) // 400)), *range(len(content) - 40, len(content))}
    )
    cut = tmp_path / "cut.pt"
    for length in lengths:
        cut.write_bytes(content[:length])
        refused(read_torch, cut)


def test_a_data_set_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "whole.npy"
    np.save(path, np.array({"a": np.ones(30), "b": [{"c": np.eye(4)}] * 3}, dtype=object))
    content, cut = path.read_bytes(), tmp_path / "cut.npy"
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        refused(read_npy, cut)


def test_a_damaged_weight_in_an_archive_is_refused(tmp_path):
    path = save({"a": torch.arange(100.0)}, tmp_path / "a.pt", True)
    content = path.read_bytes()
    assert content.count(struct.pack("<f", 77.0)) == 1
    path.write_bytes(content.replace(struct.pack("<f", 77.0), struct.pack("<f", 78.0)))
    assert "data/0" in refused(read_torch, path).got


@FORMS
def test_a_file_with_changed_bytes_is_read_or_refused(tmp_path, zipped):
    content = save(random_state(5), tmp_path / "whole.pt", zipped).read_bytes()
    numbers, changed, refused = random.Random(1), tmp_path / "changed.pt", 0
    for _ in range(600):
        damaged = bytearray(content)
        for _ in range(numbers.randint(1, 4)):
            damaged[numbers.randrange(len(damaged))] = numbers.randrange(256)
        changed.write_bytes(damaged)
        try:
            read_torch(changed)
        except GenefaceFileError:
            refused += 1
    assert refused > 50


def test_a_data_set_with_changed_bytes_is_read_or_refused(tmp_path):
    path = tmp_path / "whole.npy"
    np.save(path, np.array({"a": np.ones(30), "b": [{"c": np.eye(4)}] * 3}, dtype=object))
    content, numbers, refused = path.read_bytes(), random.Random(2), 0
    for _ in range(700):
        damaged = bytearray(content)
        damaged[numbers.randrange(len(damaged))] = numbers.randrange(256)
        path.write_bytes(damaged)
        try:
            read_npy(path)
        except GenefaceFileError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "a whole one"),
        (b"GIF89a", "a whole one"),
        (pickle.dumps(3, protocol=2), "a file of torch.save"),
        (b"PK\x03\x04 and no more", "a whole archive"),
    ],
)
def test_other_files_are_refused(tmp_path, content, expected):
    path = tmp_path / "other"
    path.write_bytes(content)
    assert refused(read_torch, path).expected == expected


def test_a_big_endian_machines_file_is_refused(tmp_path):
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": False}]
    path = tmp_path / "other"
    path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts))
    assert refused(read_torch, path).field == "little_endian"


def rezipped(path, change):
    """Returns the archive written anew, each member as `change` gives it; None leaves it out."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, value in members.items():
            changed = change(name, value)
            if changed is not None:
                archive.writestr(name, *changed)
    path.write_bytes(content.getvalue())
    return path


@pytest.mark.parametrize(
    ("change", "field", "got"),
    [
        (
            lambda name, value: None if name.endswith("data.pkl") else (value,),
            "content",
            "one with 0 data.pkl",
        ),
        (lambda name, value: None if name.endswith("data/0") else (value,), "data/0", "no such member"),
        (lambda name, value: (value[:-4] if name.endswith("data/0") else value,), "data/0", "396"),
        (lambda name, value: (value, zipfile.ZIP_DEFLATED), "byteorder", "a compressed one"),
        (lambda name, value: (b"big" if name.endswith("byteorder") else value,), "byteorder", "another"),
    ],
)
def test_archives_that_torch_does_not_write_are_refused(tmp_path, change, field, got):
    path = rezipped(save({"a": torch.arange(100.0)}, tmp_path / "a.pt", True), change)
    error = refused(read_torch, path)
    assert (error.field, error.got) == (field, got)


def test_an_absent_file_and_a_plain_array_are_refused(tmp_path):
    assert refused(read_torch, tmp_path / "none").got == "No such file or directory"
    np.save(tmp_path / "plain.npy", np.ones(3))
    assert refused(read_npy, tmp_path / "plain.npy").expected == "one pickled object"
    assert refused(read_npy, Path(__file__)).expected == "a .npy file"
