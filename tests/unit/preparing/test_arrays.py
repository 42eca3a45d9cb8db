"""Files of NumPy that no array can be read from."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest

from preparation.arrays import Kind, read_npy, read_npz
from preparation.errors import FileError


def npy(header):
    """Returns an .npy file with this header."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


HEADERS = [
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (2.5,)}",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), ",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (1" + b"0" * 400 + b",)}",
    b"{1: 2, 'a': 3, b'': ()}",
    b"(" * 300,
    b"{'a': '''",
]


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_that_is_none_is_refused_in_one_line(tmp_path, header):
    path = tmp_path / "array.npy"
    path.write_bytes(npy(header))
    with pytest.raises(FileError, match="what cannot be read") as refusal:
        read_npy(path, Kind((None,)), FileError, "write it anew")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("header", HEADERS)
def test_a_member_with_such_a_header_is_refused_by_name(tmp_path, header):
    path = tmp_path / "arrays.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", npy(header))
    with pytest.raises(FileError) as refusal:
        read_npz(path, {"a": Kind((None,))}, FileError, "write it anew")
    assert (refusal.value.file, refusal.value.field) == (str(path), "a")


def test_damaged_lzma_is_refused(tmp_path):
    path = tmp_path / "arrays.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive, archive.open("a.npy", "w") as member:
        np.save(member, np.arange(5000.0))
    content = bytearray(path.read_bytes())
    content[45:60] = b"\xff" * 15
    path.write_bytes(content)
    with pytest.raises(FileError) as refusal:
        read_npz(path, {"a": Kind((None,))}, FileError, "write it anew")
    assert refusal.value.field == "a"
