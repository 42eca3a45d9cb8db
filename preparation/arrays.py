"""Reading of .npy and .npz files, validated: finite numbers of the expected shape."""

from __future__ import annotations

import lzma
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cuda_kernels.arrays import F32

from .errors import FileError

# All that NumPy and zipfile raise for a file.
_READ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    OverflowError,
    tokenize.TokenError,
    lzma.LZMAError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class Kind:
    """What an array must be."""

    shape: tuple[int | None, ...]  # None stands for any size above 0
    whole: bool = False  # whole numbers or bools, which come back as int64; others come back as float32

    def check(
        self, path: Path, name: str, array: npt.NDArray[Any], refuse: type[FileError], way_out: str
    ) -> npt.NDArray[Any]:
        """Returns the array as int64 or float32.

        Raises:
            FileError: as `refuse`; it is of another shape, or holds something else than finite numbers.
        """
        if array.dtype.kind not in ("biu" if self.whole else "fiu"):
            expected = "whole numbers" if self.whole else "numbers"
            raise refuse(path, name, expected, f"an array of {array.dtype}", way_out)
        fits = len(self.shape) == array.ndim and all(
            given == size if size is not None else given > 0
            for size, given in zip(self.shape, array.shape, strict=True)
        )
        if not fits:
            raise refuse(path, name, f"the shape {_words(self.shape)}", _words(array.shape), way_out)
        with np.errstate(over="ignore"):
            numbers = array.astype(np.int64 if self.whole else np.float32)
        if not np.isfinite(numbers).all():
            raise refuse(path, name, "finite numbers, in float32 too", "others", way_out)
        return numbers


def read_npz(
    path: Path, kinds: Mapping[str, Kind], refuse: type[FileError], way_out: str
) -> dict[str, npt.NDArray[Any]]:
    """Returns the arrays named by `kinds` of an .npz file; anything else in it is ignored.

    Raises:
        FileError: as `refuse`; the file is absent or broken, an array is missing or not of its kind.
    """
    expected = f"an npz with {', '.join(kinds)}"
    if not path.is_file():  # opening a pipe would wait for its writer
        raise refuse(path, "", expected, "no such file", way_out)
    name, found = "", {}
    try:
        with path.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise refuse(path, "", expected, "a single array", way_out)
            for name, kind in kinds.items():
                if name not in archive.files:
                    raise refuse(path, name, "an array", "none", way_out)
                found[name] = kind.check(path, name, archive[name], refuse, way_out)
    except FileError:
        raise
    except _READ_ERRORS as error:
        expected = "an array of numbers" if name else expected
        raise refuse(path, name, expected, f"what cannot be read ({error})", way_out) from error
    return found


def read_npy(path: Path, kind: Kind, refuse: type[FileError], way_out: str) -> F32:
    """Returns the float32 array of an .npy file.

    Raises:
        FileError: as `refuse`; the file is absent or broken, or its array is not of that kind.
    """
    if not path.is_file():
        raise refuse(path, "", "an array of numbers", "no such file", way_out)
    try:
        with path.open("rb") as stream:
            array = np.lib.format.read_array(stream, allow_pickle=False)
    except _READ_ERRORS as error:
        got = f"what cannot be read ({error})"
        raise refuse(path, "", "an array of numbers", got, way_out) from error
    return kind.check(path, "array", array, refuse, way_out)


def _words(shape: tuple[int | None, ...]) -> str:
    return " x ".join("any" if size is None else str(size) for size in shape) or "of a single value"
