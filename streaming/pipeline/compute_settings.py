"""Settings of computation: inference engine, device, cores, threads, render size."""

from __future__ import annotations

from dataclasses import dataclass

from .cores import drawing_threads, usable_cores
from .engine_choice import DeviceName, EngineName, EngineSettings


@dataclass(frozen=True, kw_only=True)
class ComputeSettings:
    """Settings of whatever draws a speaker or runs its networks."""

    device: DeviceName = "auto"
    engine: EngineName = "auto"
    threads: int = 0  # of the CPU raymarcher; 0: one a core, within reason
    cores: int = 0  # to count on; 0: all that affinity and container leave
    render_px: int | None = None  # side of what the raymarcher draws; None: the largest that keeps up
    plates_mb: int | None = None  # memory of the plates of all speakers; None: see `PlateMemory`

    def __post_init__(self) -> None:
        """Refuses what does not go together.

        Raises:
            InputError: TensorRT on the CPU.
        """
        _ = self.engines

    @property
    def engines(self) -> EngineSettings:
        """The engine settings of the networks."""
        return EngineSettings(engine=self.engine, device=self.device, cores=self.cores)

    @property
    def usable_cores(self) -> int:
        """Cores that this process may use."""
        return usable_cores(self.cores)

    @property
    def drawing_threads(self) -> int:
        """Threads that draw where the CPU does."""
        return drawing_threads(self.threads, cores=self.usable_cores)
