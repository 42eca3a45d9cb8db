"""The articulation benchmark: statistics of signals with known answers, phones of a known lead, refusals."""

import dataclasses
import json

import numpy as np
import pytest
from refusals import parts
from tiny_corpus import FRAMES, make_corpus, write_wav

from benchmarks import articulation
from benchmarks.articulation import (
    BANDS_HZ,
    PEOPLE,
    PhoneMeans,
    SpokenClip,
    clip_statistics,
    corpus_clips,
    frame_loudness_db,
    lagged_r,
    measure,
    motion_clip,
    power_below,
    table,
)
from benchmarks.lip_track import mouth_of
from cuda_kernels.errors import InputError
from preparation.corpus_set import read_corpus_set, write_corpus_set
from preparation.errors import FileError

LOUD = 3000


def sound(amplitude):
    """Returns samples (640 T,) whose frames have these RMS (T,)."""
    signs = np.tile([1, -1], 320)
    return (np.asarray(amplitude)[:, None] * signs).ravel().astype(np.int16)


def face(opening, width):
    """Returns landmarks (T, 68, 3) of a mouth with this opening and width (T,)."""
    points = np.zeros((len(opening), 68, 3), np.float32)
    points[:, [61, 62, 63], 1] = np.asarray(opening)[:, None]
    points[:, 64, 0] = width
    return points


def babble(frames=200, seed=0):
    """Returns opening, width and RMS of a mouth that opens two frames before it is loud, and narrows then."""
    level_db = np.random.default_rng(seed).uniform(0, 12, frames + 2)
    opening = level_db[2:] / 12 + 0.1
    return opening, 2 - opening, LOUD * 10 ** (level_db[:frames] / 20)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Returns a tiny corpus whose inner corners go apart with the outer ones."""
    folder = make_corpus(tmp_path_factory.mktemp("data") / "corpus")
    whole = read_corpus_set(folder)
    whole.basis[1].reshape(68, 3)[[60, 64], 0] = [-1, 1]
    write_corpus_set(folder, whole)
    return folder


# Statistics -----------------------------------------------------------------------------------------------


def test_the_opening_is_the_mean_of_three_distances_and_the_width_that_of_the_corners():
    points = np.zeros((2, 68, 3), np.float32)
    points[0, [61, 62, 63], 1] = [1, 2, 6]
    points[1, 66] = [2, 3, 6]
    points[1, 64] = [0, 3, 4]
    opening, width = mouth_of(points)
    assert opening == pytest.approx([3, 7 / 3])
    assert width == pytest.approx([0, 5])


@pytest.mark.parametrize("lag", [-4, -2, 0, 2])
def test_a_lag_below_zero_is_that_of_lips_that_come_first(lag):
    series = np.random.default_rng(0).normal(size=200)
    mouth, voice = series[10:110], series[10 + lag : 110 + lag]
    assert lagged_r(mouth, voice, lag) == pytest.approx(1)
    assert lagged_r(-mouth, voice, lag) == pytest.approx(-1)
    assert abs(lagged_r(mouth, voice, lag + 1)) < 0.5
    assert np.isnan(lagged_r(np.ones(100), voice, lag))


def test_two_tones_share_the_power_by_their_squares():
    time_s = np.arange(100) / 25
    series = 7 + 2 * np.sin(2 * np.pi * 1.5 * time_s) + np.sin(2 * np.pi * 5 * time_s)
    assert power_below(series, BANDS_HZ) == pytest.approx([0, 0.8, 0.8, 0.8, 1, 1])


def test_loudness_is_the_level_of_each_frame():
    assert frame_loudness_db(sound([1000, 100, 0])) == pytest.approx([60, 40, 0], abs=1e-3)


def test_a_mouth_that_opens_and_closes_evenly_has_the_statistics_of_its_ramp():
    # 0 to 20 and back, five times: of each of 1 to 19 ten frames, of 0 and 20 five; percentiles 5, 95: 1, 19.
    opening = 20.0 - np.abs(np.arange(200) % 40 - 20)
    amplitude = np.where(opening == 0, LOUD * 10 ** (-28 / 20), LOUD)  # unvoiced, yet no silence
    found = clip_statistics(opening, 3 - 2 * opening, sound(amplitude))
    assert set(found) == set(PEOPLE)
    assert found["a frame's change, p95 over range"] == pytest.approx(1 / 18)
    assert found["voiced frames nearly closed"] == pytest.approx(20 / 195)  # 1 and 2 are below 1 + 18 / 10
    assert found["std over mean of the opening"] == pytest.approx(np.sqrt(33.5) / 10)
    assert found["opening with width"] == pytest.approx(-1)
    assert found["opening below 1 Hz"] == pytest.approx(found["width below 1 Hz"])
    assert found["opening below 1 Hz"] > 0.95  # a triangle of 0.625 Hz: 0.986 of it in its first harmonic


def test_lips_that_open_two_frames_before_the_sound_are_told_so():
    opening, width, amplitude = babble()
    found = clip_statistics(opening, width, sound(amplitude))
    assert found["opening with loudness, lag -2"] == pytest.approx(1, abs=1e-3)
    assert found["width with loudness, lag -2"] == pytest.approx(-1, abs=1e-3)
    for lag in (-4, 0, 2):
        assert abs(found[f"opening with loudness, lag {lag:+d}"]) < 0.3


def test_long_silence_counts_nowhere():
    opening, width, amplitude = babble()
    pause = np.zeros(40)
    wild = np.random.default_rng(9).uniform(5, 9, 40)
    whole = (
        np.concatenate([opening, wild]),
        np.concatenate([width, wild]),
        np.concatenate([amplitude, pause]),
    )
    spoken = [series[:202] for series in whole]  # silence begins 0.2 s around the sound
    expected = clip_statistics(spoken[0], spoken[1], sound(spoken[2]))
    assert clip_statistics(whole[0], whole[1], sound(whole[2])) == pytest.approx(expected, nan_ok=True)


# Phones ---------------------------------------------------------------------------------------------------


def test_a_phone_is_found_at_the_lead_that_its_lips_have():
    frames = 200
    opening, width = np.ones(frames), np.full(frames, 2.0)
    phones = []
    for middle in range(5, frames, 10):  # of an m; that of a vowel lies five frames later
        opening[middle - 2] = 0
        width[middle + 5 - 1] = 1
        at_s = (middle + 0.5) / 25
        phones += [("m", at_s - 0.1, at_s + 0.1), ("uw1", at_s + 0.1, at_s + 0.3), ("xx", 0, 1)]
    clip = SpokenClip(landmarks=face(opening, width), pcm=sound(babble()[2]), phones=tuple(phones))
    quartiles, by_phone = measure([clip, clip])
    # Shut in a tenth of the frames: by mean 0.9 and deviation 0.3 three deviations below.
    assert by_phone.largest("b p m")[:3] == (40, pytest.approx(-3), -80)
    count, _, _, narrow, narrow_ms = by_phone.largest("round vowels, w")
    assert (count, narrow, narrow_ms) == (40, pytest.approx(-3), -40)
    assert set(by_phone.opening) == {"b p m", "round vowels, w"}
    lines = table(quartiles, by_phone).splitlines()
    assert " ".join(lines[-2].split()).startswith("b p m 40 -3.00 -80 ms -1.17 -63 ms")
    assert " ".join(lines[-1].split()).endswith("-3.00 -40 ms -1.30 -43 ms")


def test_the_table_says_whether_a_median_is_one_of_people():
    text = table(
        {"opening with width": (0.1, 0.28, 0.5), "std over mean of the opening": (0.4, 0.5, 0.6)},
        PhoneMeans(),
    )
    lines = text.splitlines()
    expected = "opening with width 0.28 (0.10, 0.50) 0.37 (0.27, 0.54) inside"
    assert " ".join(lines[1].split()) == expected
    assert lines[2].endswith("(0.54, 0.69) outside")
    assert len(lines) == 3


# A corpus, a motion file ----------------------------------------------------------------------------------


def test_the_speech_of_a_corpus_is_measured_and_written(corpus, tmp_path, capsys):
    out = tmp_path / "figures.json"
    assert articulation.main(["--data", str(corpus), "--json", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"3 clips, {3 * FRAMES / 25 / 60:.1f} min"
    written = json.loads(out.read_text())
    assert written["clips"] == 3
    assert set(written["quartiles"]) == set(PEOPLE)
    assert written["quartiles"]["opening with loudness, lag +0"][1] > 0.5  # louder means wider open there
    count, opening, opening_ms, _, _ = written["phones"]["b p m"]
    assert count == 12  # four a clip, shut from their start to their end
    assert abs(opening_ms) <= 40
    assert opening < -0.5


@pytest.mark.parametrize(
    ("chosen", "count"),
    [(["--split", "val"], 1), (["--voices", "low", "high"], 2), (["--max-clips", "2"], 2)],
    ids=["split", "voices", "number"],
)
def test_a_part_of_a_corpus_is_measured(corpus, capsys, chosen, count):
    assert articulation.main(["--data", str(corpus), *chosen]) == 0
    assert capsys.readouterr().out.startswith(f"{count} clips, ")


def test_a_corpus_clip_has_the_face_of_its_identity_and_the_sound_of_its_frames(corpus):
    clips = corpus_clips(corpus, split="val", voices=[], max_clips=None)
    whole = read_corpus_set(corpus)
    rows = slice(3 * FRAMES, 4 * FRAMES)
    expected = whole.neutral[1] + ((whole.coeff * whole.scale) @ whole.basis)[rows].reshape(-1, 68, 3)
    assert clips[0].landmarks == pytest.approx(expected, abs=1e-5)
    assert clips[0].pcm.shape == (640 * FRAMES,)
    assert clips[0].phones == whole.clips[3].phones


def test_a_motion_file_is_measured_as_far_as_its_sound_goes(tmp_path, capsys):
    opening, width, amplitude = babble()
    mean_face = np.random.default_rng(1).normal(size=(68, 3)).astype(np.float32)
    motion, audio = tmp_path / "motion.npz", tmp_path / "voice.wav"
    np.savez(motion, landmarks=10 * (face(opening, width) - mean_face), mean_face=mean_face, fps=25)
    write_wav(audio, sound(amplitude)[: 640 * 150 + 300])
    clip = motion_clip(motion, audio)
    assert clip.landmarks == pytest.approx(face(opening, width)[:150], abs=1e-5)
    assert np.array_equal(clip.pcm, sound(amplitude)[: 640 * 150])
    assert articulation.main(["--motion", str(motion), "--audio", str(audio)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 clips, 0.1 min"
    assert any(line.startswith("opening with width") and " -1.00 " in line for line in lines)


# Refusals -------------------------------------------------------------------------------------------------


def test_a_corpus_without_speech_is_refused_in_a_line(corpus, tmp_path, capsys):
    whole = read_corpus_set(corpus)
    clips = tuple(dataclasses.replace(clip, kind="noise") for clip in whole.clips)
    write_corpus_set(tmp_path, dataclasses.replace(whole, clips=clips))
    out = tmp_path / "figures.json"
    assert articulation.main(["--data", str(tmp_path), "--json", str(out)]) == 2
    refusal = parts(capsys.readouterr().err)
    assert refusal.where.endswith(": clips")
    assert refusal.expected.startswith("speech of 50 frames")
    assert not out.exists()
    assert articulation.main(["--data", str(corpus), "--voices", "nobody"]) == 2
    assert articulation.main(["--data", str(tmp_path / "nowhere")]) == 2


@pytest.mark.parametrize(
    ("arrays", "field"),
    [
        ({"landmarks": np.zeros((60, 68, 3))}, "mean_face"),
        ({"mean_face": np.zeros((68, 3))}, "landmarks"),
        ({"landmarks": np.zeros((60, 204)), "mean_face": np.zeros((68, 3))}, "landmarks"),
        ({"landmarks": np.full((60, 68, 3), np.nan), "mean_face": np.zeros((68, 3))}, "landmarks"),
        ({"landmarks": np.zeros((49, 68, 3)), "mean_face": np.zeros((68, 3))}, "landmarks"),
    ],
    ids=["no mean face", "no landmarks", "flat", "not finite", "short"],
)
def test_a_motion_file_without_its_arrays_is_refused_by_their_name(tmp_path, capsys, arrays, field):
    motion, audio = tmp_path / "motion.npz", tmp_path / "voice.wav"
    np.savez(motion, **arrays)
    write_wav(audio, sound(np.full(60, LOUD)))
    with pytest.raises(FileError) as refused:
        motion_clip(motion, audio)
    assert (refused.value.file, refused.value.field) == (str(motion), field)
    assert articulation.main(["--motion", str(motion), "--audio", str(audio)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "content", [None, b"", b"PK\x03\x04 cut short"], ids=["absent", "empty", "no archive"]
)
def test_what_is_no_motion_file_is_refused_in_a_line(tmp_path, capsys, content):
    motion, audio = tmp_path / "motion.npz", tmp_path / "voice.wav"
    if content is not None:
        motion.write_bytes(content)
    write_wav(audio, sound(np.full(60, LOUD)))
    assert articulation.main(["--motion", str(motion), "--audio", str(audio)]) == 2
    assert parts(capsys.readouterr().err).where.endswith(str(motion))


def test_a_mouth_that_does_not_move_is_left_out_and_alone_is_refused():
    opening, width, amplitude = babble()
    still = SpokenClip(landmarks=face(0 * opening, width), pcm=sound(amplitude))
    with pytest.raises(InputError) as refused:
        measure([still])
    assert refused.value.field == "clips"
    moving = SpokenClip(landmarks=face(opening, width), pcm=sound(amplitude))
    assert measure([still, moving])[0] == measure([moving])[0]


@pytest.mark.parametrize(
    "arguments", [[], ["--motion", "m.npz"], ["--data", "corpus", "--audio", "voice.wav"]], ids=str
)
def test_a_motion_and_its_sound_go_together(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        articulation.main(arguments)
    assert left.value.code == 2
    assert "--motion" in capsys.readouterr().err
