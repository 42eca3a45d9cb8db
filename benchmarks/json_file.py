"""JSON output of the benchmarks' `--json FILE`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models.partial_files import atomic_write


def write_json(path: Path | None, document: Any) -> None:  # noqa: ANN401 - whatever JSON takes
    """Writes the figures to a file, if one is given."""
    if path is not None:
        with atomic_write(path) as part:
            part.write_text(json.dumps(document, indent=2) + "\n")
