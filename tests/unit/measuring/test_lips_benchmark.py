"""The lips benchmark: a speaker judged against its own motion, moved on purpose, and against noise."""

import json
import subprocess
import sys

import numpy as np
import pytest
from bundle_factory import schematic_face, write_tiny_bundle
from timed_recordings import write_recording
from tiny_corpus import opening_of, sound_of

from benchmarks import lips
from benchmarks.lip_agreement import lead_of
from benchmarks.lip_track import Lips, LipTrack, TrackError, lips_of_motion, lips_of_track, read_track
from benchmarks.lips import Clip, Judge, table
from benchmarks.live_motion import LiveMotion
from cuda_kernels.errors import InputError
from models.speaker import load_speaker
from preparation.media import write_flac

FRAMES = 250
FRAME_S = 0.04


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("speakers") / "Tiny")


@pytest.fixture(scope="module")
def speaker(bundle):
    return load_speaker(bundle)


@pytest.fixture(scope="module")
def judge(speaker):
    return Judge(speaker)


@pytest.fixture(scope="module")
def pcm():
    """Ten seconds of a voice whose loudness opens the tiny bundle's mouth."""
    return sound_of(opening_of(3, FRAMES), 180.0)


@pytest.fixture(scope="module")
def face(speaker, pcm):
    """The points (T, 68, 3) of the bundle's own motion on that voice."""
    return speaker.motion.mean_face + LiveMotion(speaker)(pcm / np.float32(32768)).reshape(-1, 68, 3) / 10


def points_at(face, times_s):
    """Returns a face (T, 68, 3) of 25 fps at other moments."""
    at = np.clip(np.asarray(times_s) / FRAME_S, 0, len(face) - 1)
    low = np.floor(at).astype(int)
    share = (at - low)[:, None, None]
    return face[low] * (1 - share) + face[np.minimum(low + 1, len(face) - 1)] * share


def moved(points, frames):
    """Returns points of which each comes so many frames later."""
    return points[np.clip(np.arange(len(points)) - frames, 0, len(points) - 1)]


def clip_of(folder, pcm, **arrays):
    """Returns sound alone with a track beside it, as the folder run finds them."""
    write_flac(folder / "voice.flac", pcm)
    np.savez(folder / "voice.npz", **arrays)
    return Clip(name="voice.flac", path=folder / "voice.flac", track=folder / "voice.npz")


# Lateness -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lag", [-2, 0, 3])
def test_lips_that_come_earlier_or_later_are_found_at_that_lag(judge, tmp_path, pcm, face, lag):
    found = judge.judge(clip_of(tmp_path, pcm, landmarks=moved(face, lag), fps=25)).figures
    assert found.opening.best_lag_frames == lag
    assert found.opening.best_r == pytest.approx(1, abs=1e-3)
    assert (found.opening.r_now < 0.95) == (lag != 0)
    assert (found.closure_auc == 1) == (lag == 0)
    assert found.person_lead.lead_ms - found.speaker_lead.lead_ms == pytest.approx(-40 * lag, abs=8)


@pytest.mark.parametrize(
    ("pictures_s", "late_s"),
    [
        (np.arange(300) / 30, 0.12),
        (1.0 + np.arange(300) * 1001 / 30_000, -0.12),
        (np.arange(240) / 24, 0.24),
        (np.arange(600) / 60, 0.0),
        (np.cumsum(np.random.default_rng(1).uniform(0.02, 0.06, 240)), 0.2),
    ],
    ids=["30 fps", "29.97 fps, sound first", "24 fps", "60 fps", "variable"],
)
def test_rates_and_starts_of_a_container_move_no_lag(judge, tmp_path, pcm, face, pictures_s, late_s):
    sound_start_s = pictures_s[0] + late_s
    path = write_recording(
        tmp_path / "person.mkv",
        pictures_s=pictures_s,
        samples=pcm,
        rate_hz=16_000,
        sound_start_s=sound_start_s,
    )
    shown = points_at(moved(face, -2), pictures_s - sound_start_s)
    np.savez(tmp_path / "person.npz", landmarks=shown, times_s=pictures_s)
    found = judge.judge(Clip(name="person", path=path, track=tmp_path / "person.npz")).figures
    assert found.opening.best_lag_frames == -2
    assert found.opening.best_r > 0.97


def test_a_rate_alone_counts_from_the_first_picture(judge, tmp_path, pcm, face):
    pictures_s = 2.0 + np.arange(300) / 30
    path = write_recording(
        tmp_path / "person.mkv", pictures_s=pictures_s, samples=pcm, rate_hz=16_000, sound_start_s=2.2
    )
    np.savez(tmp_path / "person.npz", landmarks=points_at(face, pictures_s - 2.2), fps=30)
    found = judge.judge(Clip(name="person", path=path, track=tmp_path / "person.npz")).figures
    assert (found.opening.best_lag_frames, found.opening.best_r > 0.97) == (0, True)


def test_what_a_speaker_writes_of_its_motion_is_itself(judge, speaker, tmp_path, pcm, face):
    mean_face = speaker.motion.mean_face
    clip = clip_of(tmp_path, pcm, landmarks=10 * (face - mean_face), mean_face=mean_face, fps=25)
    found = judge.judge(clip).figures
    assert (found.frames, found.opening.best_lag_frames) == (FRAMES, 0)
    assert found.opening.r_now == pytest.approx(1, abs=1e-4)


def test_noise_agrees_at_no_lag(judge, tmp_path, pcm, face):
    trembling = face + np.random.default_rng(4).normal(0, 0.05, face.shape)
    still = np.repeat(face[:1], FRAMES, axis=0) + trembling - face
    found = judge.judge(clip_of(tmp_path, pcm, landmarks=still, fps=25)).figures
    assert max(map(abs, (*found.opening.r, *found.width.r))) < 0.25
    assert found.person_lead.lead_ms is None
    assert found.closure_auc == pytest.approx(0.5, abs=0.15)


def test_a_face_that_is_lost_for_a_while_is_left_out_of_the_figures(judge, tmp_path, pcm, face):
    found_there = np.ones(FRAMES, bool)
    found_there[100:130] = False
    found_there[160] = False  # interpolated
    wild = np.where(found_there[:, None, None], face, 1e3 + 50 * face[::-1])
    figures = judge.judge(clip_of(tmp_path, pcm, landmarks=wild, fps=25, found=found_there)).figures
    assert figures.frames == FRAMES - 30
    assert figures.opening.r_now > 0.995


# Lips -----------------------------------------------------------------------------------------------------


def test_a_head_that_rolls_nears_and_moves_changes_no_lips(face):
    times_s = np.arange(FRAMES) / 25
    turn, size = 0.3 * np.sin(times_s), 200 + 4 * times_s
    x, y = face[..., 0], face[..., 1]
    rolled = [np.cos(turn) * x.T - np.sin(turn) * y.T, np.sin(turn) * x.T + np.cos(turn) * y.T]
    picture = np.stack([(part * size).T for part in rolled], axis=-1) + np.array([320, 240])
    flat = LipTrack(times_s=times_s, points=picture.astype(np.float32), found=np.ones(FRAMES, bool))
    still = LipTrack(times_s=times_s, points=face[..., :2], found=np.ones(FRAMES, bool))
    seen, expected = (lips_of_track(track, FRAMES, start_s=0.0) for track in (flat, still))
    assert seen.opening == pytest.approx(expected.opening, rel=0.01)
    assert seen.width == pytest.approx(expected.width, rel=0.01)


def test_lips_are_shares_of_the_distance_of_the_eyes(speaker):
    offsets = np.zeros((2, 68, 3), np.float32)
    offsets[1, [65, 66, 67], 1] = -1.0  # 0.1 dm down
    face = schematic_face()
    eyes = face[45, 0] - face[36, 0]
    found = lips_of_motion(offsets, speaker.motion.mean_face)
    assert found.opening[1] - found.opening[0] == pytest.approx(0.1 / eyes, rel=0.01)
    assert found.width == pytest.approx((face[64, 0] - face[60, 0]) / eyes, rel=1e-3)


def test_frames_beyond_pictures_and_in_wide_gaps_are_not_seen(face):
    times_s = np.array([0.1, 0.15, 0.2, 0.32, 0.36])
    track = LipTrack(times_s=times_s, points=face[:5], found=np.ones(5, bool))
    found = lips_of_track(track, 12, start_s=0.0)
    assert np.flatnonzero(found.seen).tolist() == [3, 4, 5, 8, 9]


def test_a_lead_needs_a_mouth_that_follows_the_sound(pcm):
    mouth = opening_of(3, FRAMES).astype(np.float32)
    ahead = Lips(opening=moved(mouth, -2), width=mouth, seen=np.ones(FRAMES, bool))
    assert lead_of(ahead, pcm).lead_ms == pytest.approx(80, abs=12)
    noise = np.convolve(np.random.default_rng(2).standard_normal(FRAMES + 4), np.ones(5), "valid")
    other = Lips(opening=noise.astype(np.float32), width=mouth, seen=ahead.seen)
    assert lead_of(other, pcm).lead_ms is None


# Bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"landmarks": np.zeros((9, 68, 4))}, "landmarks"),
        ({"landmarks": np.zeros((9, 67, 2))}, "landmarks"),
        ({"landmarks": np.zeros((9, 68, 2))}, "landmarks"),
        ({"fps": None}, "times_s"),
        ({"fps": 0}, "fps"),
        ({"times_s": np.arange(8)}, "times_s"),
        ({"times_s": np.zeros(9)}, "times_s"),
        ({"found": np.ones(8, bool)}, "found"),
        ({"landmarks": np.ones((9, 68, 2)), "mean_face": schematic_face()}, "landmarks"),
    ],
)
def test_a_track_that_is_none_is_refused_by_its_field(tmp_path, change, field):
    arrays = {"landmarks": np.repeat(schematic_face()[None], 9, axis=0), "fps": 25} | change
    np.savez(tmp_path / "a.npz", **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(TrackError) as refused:
        read_track(tmp_path / "a.npz", start_s=0.0)
    assert refused.value.field == field
    assert "\n" not in str(refused.value)


def test_a_file_that_holds_no_arrays_is_refused(tmp_path):
    (tmp_path / "a.npz").write_text("lips")
    with pytest.raises(TrackError) as refused:
        read_track(tmp_path / "a.npz", start_s=0.0)
    assert refused.value.file == str(tmp_path / "a.npz")


def test_what_cannot_be_judged_says_what_it_lacks(judge, tmp_path, pcm, face):
    def lacks(samples, **change):
        arrays = {"landmarks": face, "fps": 25} | change
        with pytest.raises(InputError) as refused:
            judge.judge(clip_of(tmp_path, samples, **arrays))
        return refused.value.expected, refused.value.got

    hiss = np.random.default_rng(0).integers(-3000, 3000, len(pcm)).astype(np.int16)
    assert lacks(pcm[: 640 * 50]) == ("100 frames of sound", "50")
    assert lacks(hiss)[0] == "speech, at least 1 s of it voiced"
    assert lacks(np.zeros_like(pcm))[1] == "0.0 s of voice"
    assert lacks(pcm, found=np.zeros(FRAMES, bool)) == ("a face", "none in any picture")
    assert lacks(pcm, fps=100)[1] == "63 of 250"
    assert lacks(pcm, landmarks=np.repeat(face[:1], FRAMES, axis=0))[1] == "a still mouth"


@pytest.mark.parametrize(
    ("pictures", "sounds", "complaint"),
    [(True, False, "no audio stream"), (True, True, "expected a face"), (False, True, "no video stream")],
)
def test_a_video_that_lacks_something_is_one_line_and_exit_code_2(
    bundle, tmp_path, pcm, capsys, pictures, sounds, complaint
):
    path = tmp_path / "person.flac"
    write_flac(path, pcm)
    if pictures:
        path = write_recording(
            tmp_path / "person.mkv",
            pictures_s=np.arange(30) / 3,
            samples=pcm if sounds else None,
            rate_hz=16_000,
        )
    assert lips.main(["--speaker", str(bundle), "--video", str(path)]) == 2
    written = capsys.readouterr().err
    assert complaint in written
    assert written.count("\n") == 1


def test_without_the_face_mesh_a_track_is_asked_for(bundle, tmp_path, pcm, monkeypatch, capsys):
    path = write_recording(tmp_path / "person.mkv", pictures_s=np.arange(30) / 3, samples=pcm, rate_hz=16_000)
    monkeypatch.setitem(sys.modules, "cv2", None)
    for name in [name for name in sys.modules if name.startswith("preparation.face_mesh")]:
        monkeypatch.delitem(sys.modules, name)
    assert lips.main(["--speaker", str(bundle), "--video", str(path)]) == 2
    complaint = capsys.readouterr().err
    assert "cv2 is not installed" in complaint
    assert "--track FILE.npz" in complaint


def test_the_mesh_follows_lips_where_no_track_is_given(judge, tmp_path, pcm, face, monkeypatch):
    from preparation.face_mesh import track as mesh

    asked = []

    def track_face(video, *, keep, quiet):
        asked.append((video, len(keep), quiet))
        return mesh.FaceTrack(
            times_s=np.arange(FRAMES) / 25, points=face, found=np.ones(FRAMES, bool), size_px=(640, 480)
        )

    monkeypatch.setattr(mesh, "track_face", track_face)
    path = write_recording(
        tmp_path / "person.mkv", pictures_s=np.arange(FRAMES) / 25, samples=pcm, rate_hz=16_000
    )
    found = judge.judge(Clip(name="person", path=path, track=None)).figures
    assert asked == [(path, 68, True)]
    assert (found.opening.best_lag_frames, found.opening.r_now > 0.999) == (0, True)


# The run --------------------------------------------------------------------------------------------------


def test_a_folder_has_a_row_a_clip_medians_last_and_counts_what_is_left_out(
    bundle, tmp_path, pcm, face, capsys
):
    for name, lag in (("a", -2), ("b", -1), ("c", -4)):
        (tmp_path / name).mkdir()
        clip_of(tmp_path / name, pcm, landmarks=moved(face, lag), fps=25)
    (tmp_path / "d").mkdir()
    clip_of(tmp_path / "d", pcm, landmarks=face, fps=25, found=np.zeros(FRAMES, bool))
    write_recording(tmp_path / "e.mp4", pictures_s=np.arange(120) / 30, samples=None, rate_hz=16_000)
    (tmp_path / "notes.txt").write_text("no clip")
    out = tmp_path / "figures.json"
    assert lips.main(["--speaker", str(bundle), "--folder", str(tmp_path), "--json", str(out)]) == 0
    printed = capsys.readouterr()
    rows = {line.split("  ")[0]: line.split() for line in printed.out.splitlines()}
    assert rows["a/voice.flac"][3] == "-2"
    assert rows["median of 3"][4] == "-2"
    assert rows["farthest"][1] == "-4"
    assert list(rows).index("c/voice.flac") < list(rows).index("median of 3")
    assert printed.out.splitlines()[-1] == "left out: 2 of 5"
    assert [line.split(": ")[1] for line in printed.err.splitlines()] == ["left out"] * 2
    written = json.loads(out.read_text())
    assert [clip["clip"] for clip in written["clips"]] == ["a/voice.flac", "b/voice.flac", "c/voice.flac"]
    assert written["medians"]["opening"]["best_lag_frames"] == -2
    assert written["lags_frames"][0] == -6
    assert [left["clip"] for left in written["left_out"]] == ["d/voice.flac", "e.mp4"]


def test_a_folder_of_which_nothing_can_be_judged_is_bad_input(bundle, tmp_path, capsys):
    assert lips.main(["--speaker", str(bundle), "--folder", str(tmp_path)]) == 2
    assert "a folder with videos" in capsys.readouterr().err
    write_recording(tmp_path / "e.mp4", pictures_s=np.arange(120) / 30, samples=None, rate_hz=16_000)
    assert lips.main(["--speaker", str(bundle), "--folder", str(tmp_path)]) == 2
    assert capsys.readouterr().out.splitlines() == ["left out: 1 of 1"]


def test_a_figure_that_is_none_is_a_dash(judge, tmp_path, pcm, face):
    stiff = face.copy()
    stiff[:, [60, 64]] = face[:1, [60, 64]]
    judged = judge.judge(clip_of(tmp_path, pcm, landmarks=stiff, fps=25))
    assert judged.figures.width.best_lag_frames is None
    assert table([judged]).splitlines()[-2].split()[6] == "-"


def test_it_runs_without_torch_and_opencv():
    block = "import sys; sys.modules.update(torch=None, torchaudio=None, cv2=None); import benchmarks.lips"
    assert subprocess.run([sys.executable, "-c", block], check=False).returncode == 0
