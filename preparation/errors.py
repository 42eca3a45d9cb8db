"""The error for a file that cannot be used."""

from __future__ import annotations

from pathlib import Path

from cuda_kernels.errors import InputError
from models.settings import escaped


class FileError(InputError):
    """A file that cannot be used; its `field` is a key, a line or a frame, empty for the file as a whole."""

    def __init__(self, file: Path, field: str, expected: str, got: object, way_out: str) -> None:
        """Keeps the parts, each on one line."""
        super().__init__(
            file=escaped(str(file)),
            field=escaped(field),
            expected=escaped(expected),
            got=escaped(str(got)),
            way_out=way_out,
        )
