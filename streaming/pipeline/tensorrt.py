"""A network on TensorRT, by ONNX Runtime's provider: compared with the CPU's answer once, then cached.

TensorRT's libraries come with `pip install tensorrt`; ONNX Runtime for CUDA loads them. Engines and timings
are kept in the user's cache folder. Not run yet: its libraries were not to be had beside a GPU.

Source: ONNX Runtime, "TensorRT Execution Provider" (options `trt_*`).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cuda_kernels.user_cache import user_cache_dir
from models.onnx_runtime import load_onnxruntime
from models.partial_files import atomic_write

from .cuda_device import CudaDevice
from .onnx_engine import TENSORRT_PROVIDER, Engine, EngineUnavailableError, NetworkSpec, OnnxEngine

MAX_ERROR = 1e-2
"""Root mean square of the difference from the CPU, of that of its output: a hundredth of a motion."""
PRECISIONS = ("fp16", "fp32")

log = logging.getLogger(__name__)


def open_on_tensorrt(
    network: NetworkSpec,
    gpu: CudaDevice,
    *,
    cache_dir: Path | None = None,
    say: Callable[[str], None] = log.warning,
) -> Engine:
    """Returns a network ready to run, in half precision where that is near enough to the CPU's answer.

    Args:
        network: which, and of what shape; free axes take half to twice the lengths given there.
        gpu: runs it.
        cache_dir: where engines are kept; None: `engines` in the user's cache folder.
        say: takes a line when a build begins.

    Raises:
        EngineError: the network is another than the bundle promises.
        EngineUnavailableError: TensorRT is not there, or its answers are too far off.
    """
    onnxruntime = load_onnxruntime()
    if TENSORRT_PROVIDER not in onnxruntime.get_available_providers():
        raise EngineUnavailableError(
            f"ONNX Runtime {onnxruntime.__version__}: expected a build for TensorRT, got one without; "
            "pip uninstall onnxruntime, then pip install onnxruntime-gpu"
        )
    with contextlib.suppress(ImportError, OSError, RuntimeError):
        importlib.import_module("tensorrt")  # loads its libraries, where it was installed by pip
    folder = cache_dir or user_cache_dir() / "engines"
    kept = folder / f"{network.model.stem}-{_key(network, gpu, onnxruntime.__version__)}.json"
    found = _read(kept)
    if found is None:
        say(f"{network.model.name}: trying TensorRT on {gpu.name}; a build takes minutes, once ...")
        found = _try_out(network, gpu, folder, kept)
    if found["precision"] is None:
        raise EngineUnavailableError(
            f"TensorRT: {network.model.name}: expected answers within {MAX_ERROR:g} of the CPU's, got "
            f"{found['errors']} (see {kept}); --engine onnx does without it"
        )
    return OnnxEngine(network, gpu=gpu, tensorrt=_options(found["precision"], folder, found["profiles"]))


def _try_out(network: NetworkSpec, gpu: CudaDevice, folder: Path, kept: Path) -> dict[str, Any]:
    """Returns the first precision whose answers are near the CPU's, and keeps it for later starts."""
    cpu = OnnxEngine(network)
    expected = cpu.run(network.noise()).astype(np.float64)
    profiles = _profiles(network, cpu.input_shapes)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found: dict[str, Any] = {"precision": None, "errors": {}, "profiles": profiles}
    for precision in PRECISIONS:
        engine = OnnxEngine(network, gpu=gpu, tensorrt=_options(precision, folder, profiles))
        difference = engine.run(network.noise()) - expected
        error = math.sqrt(float(np.mean(difference**2)) / max(float(np.mean(expected**2)), 1e-12))
        found["errors"][precision] = error if math.isfinite(error) else None
        if math.isfinite(error) and error <= MAX_ERROR:
            found["precision"] = precision
            break
    try:
        with atomic_write(kept) as part:
            part.write_text(json.dumps(found, indent=1))
    except OSError as error:
        log.warning("%s: cannot be kept (%s); it is tried out at the next start", kept, error.strerror)
    return found


def _options(precision: str, folder: Path, profiles: Mapping[str, str]) -> dict[str, str]:
    return {
        "trt_fp16_enable": str(precision == "fp16"),
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(folder),
        **profiles,
    }


def _profiles(network: NetworkSpec, shapes: Mapping[str, list[Any]]) -> dict[str, str]:
    """Returns the provider's options for free axes: half to twice the network's lengths; none without any."""
    free = {
        name: [not isinstance(got, int) for got in shape]
        for name, shape in shapes.items()
        if not all(isinstance(got, int) for got in shape)
    }
    if not free:
        return {}

    def listed(scale: float) -> str:
        return ",".join(
            f"{name}:"
            + "x".join(
                str(max(1, math.ceil(length * scale)) if is_free else length)
                for length, is_free in zip(network.inputs[name], axes, strict=True)
            )
            for name, axes in free.items()
        )

    return {
        "trt_profile_min_shapes": listed(0.5),
        "trt_profile_opt_shapes": listed(1.0),
        "trt_profile_max_shapes": listed(2.0),
    }


def _key(network: NetworkSpec, gpu: CudaDevice, version: str) -> str:
    """Returns a text that changes with whatever an engine depends on."""
    with network.model.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    depends_on = json.dumps([content, version, gpu.name, gpu.capability, dict(network.inputs)])
    return hashlib.sha256(depends_on.encode()).hexdigest()[:32]


def _read(kept: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(kept.read_text())
    except (OSError, ValueError):
        return None
    whole = isinstance(found, dict) and found.keys() == {"precision", "errors", "profiles"}
    return found if whole and found["precision"] in (*PRECISIONS, None) else None
