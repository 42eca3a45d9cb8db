"""A motion network that hears features and looks both ways, over a stream of sound."""

from __future__ import annotations

import dataclasses

import feature_bundle
import numpy as np
import pytest
import stand_ins
from hypothesis import given, settings
from hypothesis import strategies as st

from models.latent_noise import latent_noise
from models.pitch import f0_hz
from models.speaker import load_speaker
from streaming.pipeline.input_normalisation import RunningNormalisation
from streaming.pipeline.networks import open_networks

HEARD, KEPT, WINDOW, LOOKAHEAD, BLOCK = 16, 10, 24, 9, 4


class Voice:
    """A speaker with networks open, and the pieces by hand."""

    def __init__(self, folder, **changes):
        self.speaker = load_speaker(
            feature_bundle.write_feature_bundle(folder / "Heard", image_size_px=64, **changes)
        )
        self.networks = open_networks(self.speaker)
        self.motion = self.speaker.motion

    def stream(self):
        return self.networks.motion_stream(self.motion)


@pytest.fixture(scope="module")
def voice(tmp_path_factory):
    return Voice(tmp_path_factory.mktemp("voice"))


@pytest.fixture(scope="module")
def voice_of(tmp_path_factory):
    made = {}

    def voice_of(**changes):
        key = tuple(sorted(changes.items()))
        if key not in made:
            made[key] = Voice(tmp_path_factory.mktemp("voices"), **changes)
        return made[key]

    return voice_of


def sound(seconds=2.0, seed=0):
    return stand_ins.speech_like(seconds, seed=seed).astype(np.float32) / 32768


def pieces(pcm, cuts):
    return np.split(pcm, sorted({min(cut, len(pcm)) for cut in cuts}))


def frames_of(stream, chunks):
    frames = [frame for chunk in chunks for frame in stream.push(chunk)]
    return frames + list(stream.finish())


def by_hand(voice, pcm):
    """Returns landmarks (T, 204) by the rule of `FeatureSettings`, written down over a whole recording."""
    motion, of = voice.motion, voice.motion.features
    hop, total = of.hop_frames, -(-len(pcm) // 640)
    hops = -(-total // hop)
    space = 4 * (HEARD + WINDOW)  # silence before the first frame, zeros behind the last
    padded = np.pad(pcm, (640 * space, 640 * space))
    features = np.zeros((2 * (total + 2 * space), of.dimension), np.float32)  # of the frames from -space on
    pitch = np.zeros(len(features), np.float32)
    level, landmarks = RunningNormalisation(), []

    def window(end):
        last = -(-end // BLOCK) * BLOCK
        steps = slice(2 * (space + last - WINDOW), 2 * (space + last))
        noise = latent_noise(
            seed=of.seed,
            first_step=(last - WINDOW) // BLOCK,
            steps=WINDOW // BLOCK,
            channels=of.latent_channels,
        )
        inputs = {"features": features[steps][None], "latent": noise * np.float32(of.temperature)}
        if of.hears_pitch:
            inputs["f0_hz"] = pitch[steps][None]
        return last - WINDOW, voice.networks.motion.run(inputs)[0]

    for end in range(hop, hop * hops + 1, hop):
        level.update(pcm[640 * (end - hop) : 640 * end])
        heard = padded[640 * (space + end - HEARD) : 640 * (space + end)]
        new = voice.networks.features.run({"pcm": level.apply(heard)[None]})[0]
        new_pitch = f0_hz(heard)
        for step in range(2 * (end - of.kept_frames), 2 * end - 1):
            if step >= 0 and 320 * step + 400 <= len(pcm):
                features[2 * space + step] = new[step - 2 * (end - HEARD)]
                pitch[2 * space + step] = new_pitch[step - 2 * (end - HEARD)]
        begin, moved = window(end)
        first = end - motion.lookahead_frames - 1
        for frame in range(max(first, 0), min(first + hop, total) if end <= total else 0):
            landmarks.append(moved[frame - begin])
    begin, moved = window(hop * hops)
    for frame in range(len(landmarks), total):
        landmarks.append(moved[frame - begin])
    return np.stack(landmarks)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hop_frames": 2},
        {"hop_frames": 1, "kept_frames": 1, "lookahead_frames": 3},
        {"lookahead_frames": 3},  # a frame may be given out as soon as its hop is heard
        {"lookahead_frames": 12, "kept_frames": 4},
        {"hears_pitch": True},
        {"temperature": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("samples", [640 * 40, 640 * 41 + 123])
def test_the_frames_are_those_of_the_written_rule(voice_of, changes, samples):
    voice, pcm = voice_of(**changes), sound()[:samples]
    expected = by_hand(voice, pcm)
    frames = frames_of(voice.stream(), [pcm])
    assert [frame.frame for frame in frames] == list(range(-(-samples // 640)))
    assert np.array_equal([frame.landmarks for frame in frames], expected)


@settings(deadline=None, max_examples=25)
@given(cuts=st.lists(st.integers(1, 24_000), max_size=25))
def test_a_frame_does_not_depend_on_how_its_sound_came(voice, cuts):
    pcm = sound()[:24_321]
    whole, cut = (frames_of(voice.stream(), chunks) for chunks in ([pcm], pieces(pcm, cuts)))
    assert [frame.frame for frame in whole] == [frame.frame for frame in cut]
    for one, other in zip(whole, cut, strict=True):
        assert np.array_equal(one.landmarks, other.landmarks)
        assert np.array_equal(one.sound, other.sound)


def test_sound_that_comes_sample_by_sample_gives_the_same_frames(voice):
    pcm = sound()[:9000]
    whole = frames_of(voice.stream(), [pcm])
    cut = frames_of(voice.stream(), np.split(pcm, len(pcm)))
    assert np.array_equal([f.landmarks for f in whole], [f.landmarks for f in cut])


@pytest.mark.parametrize("hop", [1, 2, 4])
def test_a_frame_waits_for_its_look_ahead_and_no_longer(voice_of, hop):
    stream = voice_of(hop_frames=hop, lookahead_frames=LOOKAHEAD).stream()
    waits = []
    for known, chunk in enumerate(np.split(sound()[: 640 * 48], 48), 1):
        waits += [known - moved.frame - 1 for moved in stream.push(chunk)]
    assert max(waits) == LOOKAHEAD
    assert min(waits) == LOOKAHEAD - hop + 1
    assert len(waits) == 48 - LOOKAHEAD - 1 + hop


def test_a_hop_gives_its_frames_at_once_and_hears_once(voice):
    calls = []

    class Counted:
        def __init__(self, engine, name):
            self.engine, self.name, self.device = engine, name, "CPU"

        def run(self, inputs):
            calls.append(self.name)
            return self.engine.run(inputs)

    networks = dataclasses.replace(
        voice.networks,
        features=Counted(voice.networks.features, "features"),
        motion=Counted(voice.networks.motion, "motion"),
    )
    stream = networks.motion_stream(voice.motion)
    list(stream.push(sound()[: 640 * 16]))
    calls.clear()
    for _ in range(3):
        assert list(stream.push(np.zeros(640, np.float32))) == []
    assert calls == []
    assert [moved.frame for moved in stream.push(np.zeros(640, np.float32))] == [10, 11, 12, 13]
    assert calls == ["features", "motion"]


def test_frames_carry_their_own_sound(voice):
    pcm = sound()[:20_001]
    joined = np.concatenate([moved.sound for moved in frames_of(voice.stream(), [pcm])])
    assert np.array_equal(joined[: len(pcm)], pcm)
    assert not joined[len(pcm) :].any()


@pytest.mark.parametrize("samples", [1, 399, 640, 641, 640 * 4, 640 * 4 + 1])
def test_the_shortest_sound_gets_its_frames(voice, samples):
    frames = frames_of(voice.stream(), [sound()[5000 : 5000 + samples]])
    assert [moved.frame for moved in frames] == list(range(-(-samples // 640)))
    assert np.isfinite([moved.landmarks for moved in frames]).all()


def test_no_sound_gives_no_frames(voice):
    stream = voice.stream()
    assert list(stream.push(np.zeros(0, np.float32))) == []
    assert list(stream.finish()) == []


def test_lost_sound_becomes_silence_and_the_numbers_stay_true(voice):
    pcm = sound()[:30_000]
    gone = pcm.copy()
    gone[7777:20_000] = 0
    whole = frames_of(voice.stream(), [gone])
    stream = voice.stream()
    frames = list(stream.push(pcm[:7777])) + list(stream.skip_to(20_000)) + list(stream.push(pcm[20_000:]))
    frames += stream.finish()
    assert np.array_equal([f.landmarks for f in whole], [f.landmarks for f in frames])
    assert list(stream.skip_to(1000)) == []  # already passed


@pytest.mark.parametrize("sample", [12_000, 640 * 16, 640 * 17, 640 * 17 + 1, 123_457])
def test_after_a_restart_nothing_earlier_is_heard_and_blocks_stay_where_they_were(voice, sample):
    pcm = sound(1.5, seed=3)
    used, fresh = voice.stream(), voice.stream()
    list(used.push(sound()))
    used.restart(sample)
    fresh.restart(sample)
    first = sample // 640
    one, other = frames_of(used, pieces(pcm, [333, 5000])), frames_of(fresh, [pcm])
    assert [moved.frame for moved in one] == list(range(first, -(-(sample + len(pcm)) // 640)))
    assert np.array_equal([f.landmarks for f in one], [f.landmarks for f in other])
    within = sample - 640 * first
    assert not one[0].sound[:within].any()
    assert np.array_equal(one[0].sound[within:], pcm[: 640 - within])


def test_blocks_lie_at_absolute_frames(voice_of):
    quiet = voice_of(temperature=0.0)

    def moved_from(frame):
        stream = quiet.stream()
        stream.restart(640 * frame)
        return np.stack([moved.landmarks for moved in frames_of(stream, [sound()[: 640 * 30]])])

    at_a_block, later, between = moved_from(16), moved_from(40), moved_from(18)
    assert np.array_equal(at_a_block, later)
    assert not np.array_equal(at_a_block, between)  # other hops, other windows


def test_the_noise_of_a_latent_step_is_its_own(voice_of):
    still, swaying = voice_of(temperature=0.0), voice_of(temperature=1.0)
    silence = np.zeros(640 * 60, np.float32)
    sway, rest = (np.stack([m.landmarks for m in frames_of(v.stream(), [silence])]) for v in (swaying, still))
    inside = slice(8, 48)  # away from the ends, where windows meet no sound
    assert np.abs(rest[inside] - rest[8]).max() < 1e-6
    assert np.abs(np.diff(sway[inside].reshape(10, 4, 204), axis=0)).max() > 1e-3
    again = np.stack([m.landmarks for m in frames_of(swaying.stream(), [silence])])
    assert np.array_equal(sway, again)


def test_what_is_kept_longer_is_heard_better(voice_of):
    """The newest features have heard nothing after themselves; those that are heard again have."""
    heard_once, heard_again = (voice_of(kept_frames=kept) for kept in (4, 12))
    frames = [frames_of(v.stream(), [sound()[: 640 * 44]]) for v in (heard_once, heard_again)]
    assert not np.array_equal(frames[0][20].landmarks, frames[1][20].landmarks)
