"""Networks that fail while they run: a live stream keeps the last good face, a recording is refused."""

from __future__ import annotations

import dataclasses
import types

import feature_bundle
import numpy as np
import pytest
import stand_ins

from models.speaker import load_speaker
from streaming.errors import InputError, NetworkFailureError
from streaming.files.audio_file import AudioFile
from streaming.files.landmark_video import LandmarkVideo
from streaming.files.run import film_landmarks
from streaming.pipeline.checked_networks import MAX_REASON_CHARS, CheckedEngine
from streaming.pipeline.networks import network_specs, open_networks
from streaming.pipeline.pipeline import Pipeline, QueueBounds
from streaming.pipeline.queues import Overflow
from streaming.pipeline.renderers import make_renderer

ROOMY = QueueBounds(audio_ms=60_000, conditions_ms=60_000, drawings_ms=60_000, frames_ms=60_000)


class FailingEngine:
    """Gives what an engine gives, except in some runs."""

    device = "CPU"

    def __init__(self, engine, how, runs):
        self._engine, self._how, self._runs = engine, how, runs
        self.ran = 0

    def run(self, inputs):
        number, self.ran = self.ran, self.ran + 1
        output = self._engine.run(inputs)
        if number not in self._runs:
            return output
        if self._how == "raises":
            raise RuntimeError("Gather: indices element out of data bounds\nin node 5")
        if self._how == "another shape":
            return output[..., :-1]
        spoilt = np.array(output)
        spoilt.reshape(-1)[-1] = {"NaN": np.nan, "infinite": np.inf}[self._how]
        return spoilt


@pytest.fixture(scope="module")
def hearing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speakers") / "Heard"
    return load_speaker(feature_bundle.write_feature_bundle(folder, image_size_px=128))


def networks_of(speaker, *, network=None, how="NaN", runs=()):
    networks = open_networks(speaker)
    if network is None:
        return networks
    return dataclasses.replace(networks, **{network: FailingEngine(getattr(networks, network), how, runs)})


def pipeline_of(speaker, networks, **options):
    renderer = make_renderer(speaker, stand_ins.StandInRaymarcher(), 128)
    return Pipeline(speaker, renderer, networks=networks, **options)


def live(speaker, pcm, failures, **failing):
    """Returns the frames of a live stream of a sound, and the pipeline."""
    pipeline = pipeline_of(
        speaker,
        networks_of(speaker, **failing),
        overflow=Overflow.DROP_OLDEST,
        bounds=ROOMY,
        on_network_failure=failures.append,
    )
    with pipeline:
        pipeline.push_audio(pcm)
        pipeline.end_audio()
        return list(pipeline), pipeline


def sound(seconds=2.4):
    return stand_ins.speech_like(seconds).astype(np.float32) / 32768


HOWS = ["NaN", "infinite", "raises", "another shape"]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(
    ("who", "network", "file"),
    [
        ("speaker", "motion", "motion.onnx"),
        ("speaker", "condition", "condition.onnx"),
        ("hearing", "features", "features.onnx"),
        ("hearing", "motion", "motion.onnx"),
        ("hearing", "condition", "condition.onnx"),
    ],
)
def test_a_network_that_fails_for_a_while_costs_no_frame_and_no_sound(request, who, network, file, how):
    speaker, pcm = request.getfixturevalue(who), sound()
    good, _ = live(speaker, pcm, [])
    failures = []
    frames, pipeline = live(speaker, pcm, failures, network=network, how=how, runs=range(2, 4))
    assert [frame.index for frame in frames] == [frame.index for frame in good]
    assert all(np.array_equal(one.sound, other.sound) for one, other in zip(frames, good, strict=True))
    assert all(np.isfinite(frame.landmarks).all() for frame in frames)
    assert failures
    assert {failure.network for failure in failures} == {file}
    assert pipeline.network_failures == {}  # it works again
    # Before and well after it, the face is the one that there would have been.
    assert np.array_equal(frames[0].picture, good[0].picture)
    if who == "speaker":  # no window keeps what the network did not give
        assert np.abs(frames[-1].landmarks - good[-1].landmarks).max() < 1e-3
        assert np.array_equal(frames[-1].picture, good[-1].picture)


def test_the_last_good_landmarks_hold(speaker):
    pcm = np.zeros(16000, np.float32)
    pcm[640 * 10 : 640 * 15] = 0.5 * np.sin(np.arange(640 * 5) / 3)
    shut, _ = live(speaker, pcm, [])
    held, pipeline = live(speaker, pcm, [], network="motion", runs=range(14, 100))
    lip = lambda frames: np.array([frame.landmarks[66, 1] for frame in frames])  # noqa: E731
    assert lip(shut)[13] < -0.9
    assert lip(shut)[18:] == pytest.approx(0, abs=0.01)
    assert (lip(held)[14:] < -0.9).all()
    assert "motion.onnx" in pipeline.network_failures["motion.onnx"]


@pytest.mark.parametrize(
    ("who", "network"), [("speaker", "motion"), ("hearing", "motion"), ("hearing", "features")]
)
def test_what_never_worked_leaves_the_neutral_face(request, who, network):
    speaker = request.getfixturevalue(who)
    frames, _ = live(speaker, sound(), [], network=network, runs=range(1000))
    mean = speaker.motion.landmark_mean.reshape(68, 3)
    assert np.allclose(frames[0].landmarks[48:], mean[48:], atol=1e-6)  # the mouth: eyes blink on
    assert np.allclose(frames[-1].landmarks[48:], mean[48:], atol=1e-6)


def test_a_condition_that_never_worked_still_gives_every_frame(speaker):
    frames, _ = live(speaker, sound(), [], network="condition", how="raises", runs=range(1000))
    assert len(frames) == 60


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("network", ["features", "motion", "condition"])
def test_a_recording_is_refused_in_one_line(hearing, network, how):
    pipeline = pipeline_of(hearing, networks_of(hearing, network=network, how=how, runs=[2]))
    with pipeline:
        pipeline.start_feed([sound()])
        with pytest.raises(NetworkFailureError) as refused:
            list(pipeline)
    error = refused.value
    assert isinstance(error, InputError)  # one line, exit code 2
    assert error.network == f"{network}.onnx"
    assert "finite" in error.expected
    assert error.got
    assert "\n" not in str(error)
    assert str(error).startswith(f"{hearing.name}: {network}.onnx: expected ")


def test_a_video_of_the_motion_is_refused_and_nothing_is_left(speaker, tmp_path):
    wav = stand_ins.write_wav(tmp_path / "said.wav", stand_ins.speech_like(1.0))
    audio = AudioFile(wav)
    video = LandmarkVideo(tmp_path / "motion.mp4", mean_face=speaker.motion.mean_face, audio=audio, crf=30)
    with pytest.raises(NetworkFailureError) as refused:
        film_landmarks(speaker, audio, video, networks=networks_of(speaker, network="motion", runs=[5]))
    assert refused.value.network == "motion.onnx"
    assert list(tmp_path.iterdir()) == [wav]


def test_a_failure_says_what_was_given_and_no_more_than_a_line(speaker):
    spec = network_specs(speaker).motion

    def failure_of(run, inputs):
        engine = CheckedEngine(types.SimpleNamespace(device="CPU", run=run), spec, speaker="Tiny")
        with pytest.raises(NetworkFailureError) as failed:
            engine.run(inputs)
        return failed.value

    def raises(_):
        raise RuntimeError("x" * 1000 + "\nsecond line")

    assert failure_of(raises, {}).got == "x" * MAX_REASON_CHARS
    nan = np.full(spec.output_shape, np.nan, np.float32)
    assert failure_of(lambda _: nan, {}).got == f"{nan.size} of {nan.size} numbers NaN or infinite"
    assert "from pcm" in failure_of(lambda _: nan, {"pcm": np.full((1, 4), np.inf, np.float32)}).got
