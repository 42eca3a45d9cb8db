"""Which runtime and which device run a network, chosen once, at start.

Asked for by name, a runtime or a device is used for every network, or refused with the way out. `auto`
decides by network: a small one (`LARGE_BYTES`) stays on the CPU, where it takes a millisecond or two:
host-device transfer would cost more than a GPU saves; a large one goes to the first of ONNX Runtime's
providers for TensorRT, CUDA and the CPU that can run it here; if that is not the first, one line says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import InputError
from .cuda_device import find_cuda_device
from .onnx_engine import CPU, Engine, EngineUnavailableError, NetworkSpec, OnnxEngine
from .tensorrt import open_on_tensorrt

EngineName = Literal["auto", "onnx", "tensorrt"]
DeviceName = Literal["auto", "cpu", "cuda"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Which runtime and which device run the networks."""

    engine: EngineName = "auto"
    device: DeviceName = "auto"
    cache_dir: Path | None = None  # of engines built for this GPU; None: in the user's cache folder
    cores: int = 0  # that large networks may use on the CPU, at most; 0: all there are

    def __post_init__(self) -> None:
        """Refuses what cannot go together.

        Raises:
            InputError: TensorRT on the CPU.
        """
        if self.engine == "tensorrt" and self.device == "cpu":
            raise InputError(
                "--engine tensorrt: expected --device auto or cuda beside it, got cpu; TensorRT needs a GPU"
            )


def open_engine(
    network: NetworkSpec,
    settings: EngineSettings = EngineSettings(),
    *,
    say: Callable[[str], None] = log.warning,
) -> Engine:
    """Returns a network ready to run, after a run on zeros.

    Args:
        network: which, and of what shape.
        settings: what may run it.
        say: takes a line: a long build that begins, a runtime that `auto` had to do without.

    Raises:
        EngineError: another name, shape or type than asked for, or a file that is no network.
        EngineUnavailableError: the runtime or device that was asked for cannot run it here.
    """
    asked_for_gpu = settings.engine == "tensorrt" or settings.device == "cuda"
    if settings.device == "cpu" or not (asked_for_gpu or network.is_large):
        return OnnxEngine(network, cores=settings.cores)
    gpu = find_cuda_device()
    if gpu is None:
        if asked_for_gpu:
            raise EngineUnavailableError(
                "expected a CUDA device, got none; check nvidia-smi, or leave --engine and --device out"
            )
        say(f"{network.model.name} runs on the CPU, where it is slow: there is no CUDA device")
        return OnnxEngine(network, cores=settings.cores)
    missing = []
    if settings.engine != "onnx":
        try:
            return open_on_tensorrt(network, gpu, cache_dir=settings.cache_dir, say=say)
        except EngineUnavailableError as error:
            if settings.engine == "tensorrt":
                raise
            missing.append(str(error))
    engine: Engine
    try:
        engine = OnnxEngine(network, gpu=gpu)
    except EngineUnavailableError as error:
        if settings.device == "cuda":
            raise
        missing.append(str(error))
        engine = OnnxEngine(network, cores=settings.cores)
    if missing:
        say(f"{network.model.name} runs on {engine.device}: {' | '.join(missing)}")
    return engine


def describe_devices(engines: Mapping[str, Engine]) -> str:
    """Returns the device of each network, in words; empty where the CPU runs them all."""
    by_device: dict[str, list[str]] = {}
    for name, engine in engines.items():
        by_device.setdefault(engine.device, []).append(name)
    if set(by_device) <= {CPU}:
        return ""
    return ", ".join(f"{' and '.join(names)} on {device}" for device, names in by_device.items())
