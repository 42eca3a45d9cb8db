"""ONNX Runtime, imported when it is first needed and kept from reporting to its maker."""

from __future__ import annotations

import os
from typing import Any


def load_onnxruntime() -> Any:  # noqa: ANN401 - the package ships no types
    """Returns the package `onnxruntime`.

    Its builds for Linux report to their maker, unless ORT_DISABLE_TELEMETRY is set before they are imported;
    a value that is set already stays.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)  # what is wrong is raised, and said once
    return onnxruntime
