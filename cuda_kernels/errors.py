"""What bad input is refused with; it lies here because every folder may import this one."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one line fit to be shown as it is.

    Attributes:
        file: where it is; empty where it is in no file, or not told apart.
        field: which part of it.
        expected: what should be there.
        got: what is there instead.
    """

    def __init__(
        self,
        message: str = "",
        *,
        file: str = "",
        field: str = "",
        expected: str = "",
        got: str = "",
        way_out: str = "",
    ) -> None:
        """Keeps the parts; they make up the message where none is given."""
        self.file, self.field, self.expected, self.got = file, field, expected, got
        if not message:
            place = "".join(f"{part}: " for part in (file, field) if part)
            message = f"{place}expected {expected}, got {got}{way_out and f'; {way_out}'}"
        super().__init__(message)
