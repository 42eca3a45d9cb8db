"""The base of errors that a user can mend; here because every folder may import this one."""

from __future__ import annotations


class InputError(ValueError):
    """Unusable input; the message is one line that can be shown to the user.

    Attributes:
        file: where it is; empty where it is in no file, or not known.
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
        """Keeps the parts and composes the message from them where none is given."""
        self.file, self.field, self.expected, self.got = file, field, expected, got
        if not message:
            place = "".join(f"{part}: " for part in (file, field) if part)
            message = f"{place}expected {expected}, got {got}{way_out and f'; {way_out}'}"
        super().__init__(message)
