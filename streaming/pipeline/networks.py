"""A speaker's networks, open and ready to run: from sound to landmarks, from landmarks to the condition."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass

from models.landmark_filter import POINTS
from models.speaker import Speaker
from models.speaker_settings import MotionSettings, feature_count

from .engine_choice import EngineSettings, describe_devices, open_engine
from .feature_motion import FeatureMotion
from .onnx_engine import Engine, NetworkSpec
from .pcm_motion import MotionStream, PcmMotion

log = logging.getLogger(__name__)

_FLAT = 3 * POINTS


@dataclass(frozen=True, kw_only=True)
class SpeakerNetworks:
    """The engines of one speaker; streams may share them."""

    motion: Engine
    condition: Engine
    features: Engine | None = None  # where the motion network takes features

    def motion_stream(self, motion: MotionSettings) -> MotionStream:
        """Returns a stream at sample 0 that these networks move.

        Args:
            motion: the speaker's.
        """
        if motion.features is None:
            return PcmMotion(
                self.motion, window_samples=motion.window_samples, lookahead_frames=motion.lookahead_frames
            )
        assert self.features is not None  # opened for every speaker whose motion network takes features
        return FeatureMotion(motion, features=self.features, motion=self.motion)

    def describe(self) -> str:
        """Returns the device of each network, in words; empty where the CPU runs them all."""
        features = {} if self.features is None else {"features": self.features}
        return describe_devices({**features, "motion": self.motion, "condition": self.condition})


@dataclass(frozen=True, kw_only=True)
class NetworkSpecs:
    """The specifications of a speaker's networks."""

    motion: NetworkSpec
    condition: NetworkSpec
    features: NetworkSpec | None


class SharedFeatures:
    """The feature networks that are open, by content: speakers that have the same one share it.

    HuBERT-large is a gigabyte. A network lives as long as a speaker that uses it. Not for several threads.
    """

    def __init__(self) -> None:
        """Has none."""
        self._open: weakref.WeakValueDictionary[tuple[str, int], Engine] = weakref.WeakValueDictionary()

    def engine(
        self, speaker: Speaker, network: NetworkSpec, settings: EngineSettings, *, say: Callable[[str], None]
    ) -> Engine:
        """Returns the speaker's feature network, opened unless it is open already.

        Raises:
            EngineError: see `open_engine`.
        """
        key = (speaker.settings.files["features.onnx"].sha256, speaker.motion.window_samples)
        engine = self._open.get(key)
        if engine is None:
            engine = self._open[key] = open_engine(network, settings, say=say)
        return engine


def network_specs(speaker: Speaker) -> NetworkSpecs:
    """Returns the specifications of a bundle's networks, with the lengths of streaming."""
    motion, condition, features = speaker.motion, speaker.condition, speaker.motion.features
    records = speaker.settings.files
    condition_network = NetworkSpec(
        model=speaker.condition_onnx,
        record=records[speaker.condition_onnx.name],
        inputs={"window": (condition.window_frames, _FLAT)},
        output="condition",
        output_shape=(condition.size,),
    )
    if features is None:
        motion_network = NetworkSpec(
            model=speaker.motion_onnx,
            record=records[speaker.motion_onnx.name],
            inputs={"pcm": (1, motion.window_samples)},
            output="landmarks",
            output_shape=(1, _FLAT),
        )
        return NetworkSpecs(motion=motion_network, condition=condition_network, features=None)
    assert speaker.features_onnx is not None  # `load_speaker` refuses a bundle without it
    steps = 2 * motion.window_frames
    inputs: dict[str, tuple[int, ...]] = {
        "features": (1, steps, features.dimension),
        "latent": (1, features.latent_channels, motion.window_frames // features.block_frames),
    }
    if features.hears_pitch:
        inputs["f0_hz"] = (1, steps)
    return NetworkSpecs(
        motion=NetworkSpec(
            model=speaker.motion_onnx,
            record=records[speaker.motion_onnx.name],
            inputs=inputs,
            output="landmarks",
            output_shape=(1, motion.window_frames, _FLAT),
        ),
        condition=condition_network,
        features=NetworkSpec(
            model=speaker.features_onnx,
            record=records[speaker.features_onnx.name],
            inputs={"pcm": (1, features.window_samples)},
            output="features",
            output_shape=(1, feature_count(features.window_samples), features.dimension),
        ),
    )


def open_networks(
    speaker: Speaker,
    settings: EngineSettings | None = None,
    *,
    say: Callable[[str], None] = log.warning,
    shared: SharedFeatures | None = None,
) -> SpeakerNetworks:
    """Returns the speaker's networks, ready to run.

    Args:
        speaker: whose.
        settings: which runtime and device run them.
        say: told what a person should know of the choice, line by line.
        shared: feature networks that other speakers of this process have open.

    Raises:
        EngineError: a network does not fit what the bundle says of it, or cannot run as asked for.
    """
    specs, settings = network_specs(speaker), settings or EngineSettings()
    features = None
    if specs.features is not None:
        features = (shared or SharedFeatures()).engine(speaker, specs.features, settings, say=say)
    return SpeakerNetworks(
        motion=open_engine(specs.motion, settings, say=say),
        condition=open_engine(specs.condition, settings, say=say),
        features=features,
    )
