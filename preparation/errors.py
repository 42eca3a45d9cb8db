"""What a file that cannot be used is refused with: one line of file, field, expected, got and the way out."""

from __future__ import annotations

from pathlib import Path

from models.settings import escaped


class FileError(ValueError):
    """A file that cannot be used.

    Attributes:
        file: Its path.
        field: What of it: a key, a line, a frame; empty where it is the file as a whole.
        expected, got: What should have been there and what was.
    """

    def __init__(self, file: Path, field: str, expected: str, got: object, way_out: str) -> None:
        """Keeps the parts of the message."""
        self.file, self.field, self.expected, self.got = file, field, expected, str(got)
        place = f"{file}: {field}" if field else f"{file}"
        super().__init__(escaped(f"{place}: expected {expected}, got {got}; {way_out}"))
