"""Output checks of a speaker's networks: an exception, or an output that is unusable, gets a name.

A recording is refused with it. A live stream goes on: see `Pipeline`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from cuda_kernels.arrays import F32
from models.speaker import Speaker

from ..errors import NetworkFailureError
from .networks import SpeakerNetworks, network_specs
from .onnx_engine import Engine, NetworkSpec

MAX_REASON_CHARS = 200  # of what a runtime says


class CheckedEngine:
    """An engine whose runs give a finite array of the promised shape, or raise `NetworkFailureError`."""

    def __init__(self, engine: Engine, network: NetworkSpec, *, speaker: str) -> None:
        """Runs what `engine` runs.

        Args:
            engine: of the network.
            network: what the bundle promises of it.
            speaker: whose it is.
        """
        self._engine = engine
        self._network = network
        self._speaker = speaker
        self.device = engine.device

    def run(self, inputs: Mapping[str, F32]) -> F32:
        """Returns the network's output for its inputs, by name.

        Raises:
            NetworkFailureError: it raised, or its output is of another shape or not finite.
        """
        try:
            output = self._engine.run(inputs)
        except Exception as error:  # noqa: BLE001 - the runtimes' own errors share no base but Exception
            raise self._failure((str(error).splitlines() or [""])[0] or type(error).__name__) from None
        if output.shape != self._network.output_shape:
            raise self._failure(f"the shape {list(output.shape)}")
        unusable = output.size - int(np.isfinite(output).sum())
        if unusable:
            wrong = [name for name, values in inputs.items() if not np.isfinite(values).all()]
            given = f" from {', '.join(wrong)} that is not finite either" if wrong else ""
            raise self._failure(f"{unusable} of {output.size} numbers NaN or infinite{given}")
        return output

    def _failure(self, got: str) -> NetworkFailureError:
        network = self._network
        return NetworkFailureError(
            network.model.name,
            speaker=self._speaker,
            expected=f"{network.output} {list(network.output_shape)}, all finite",
            got=got[:MAX_REASON_CHARS],
        )


def checked(speaker: Speaker, networks: SpeakerNetworks) -> SpeakerNetworks:
    """Returns the same networks, each run of them checked.

    Args:
        speaker: whose they are.
        networks: open ones.
    """
    specs, name = network_specs(speaker), speaker.name
    features = networks.features
    if features is not None and specs.features is not None:
        features = CheckedEngine(features, specs.features, speaker=name)
    return dataclasses.replace(
        networks,
        motion=CheckedEngine(networks.motion, specs.motion, speaker=name),
        condition=CheckedEngine(networks.condition, specs.condition, speaker=name),
        features=features,
    )
