"""A refusal's one line, taken apart: `import refusals`."""

from __future__ import annotations

import re
from typing import NamedTuple

# "got: " is followed by what another library says.
LINE = re.compile(r"(?P<where>.+?): expected (?P<expected>.+?), got:? (?P<got>.+?)(?:; (?P<way_out>.+))?")


class Refusal(NamedTuple):
    where: str  # program, file, field
    expected: str
    got: str
    way_out: str


def parts(line: str) -> Refusal:
    """Returns the parts of "WHERE: expected EXPECTED, got GOT; WAY OUT".

    Raises:
        AssertionError: it is no such line.
    """
    found = LINE.fullmatch(line.removesuffix("\n"))
    assert found, line
    return Refusal(**found.groupdict(default=""))
