"""What is promised of May, on the bundle that ships: look-ahead, silence, blinks, path of the head, looks."""

from __future__ import annotations

import dataclasses
import threading
from contextlib import closing
from pathlib import Path

import av
import numpy as np
import pytest
from stand_ins import StandInRaymarcher, write_wav

from cuda_kernels.cpu_raymarcher import CpuRaymarcher
from export.bundle.pose_loop import rotation_vectors
from export.plates import worst_psnr_db
from export.students.slimming import conditions
from models.speaker import load_speaker
from models.speaker_folders import packaged_speakers_dir
from preparation.corpus_set import read_corpus_set, read_sound, write_corpus_set
from preparation.synthetic.articulation import articulate
from preparation.synthetic.rig import load_rig
from preparation.synthetic.styles import Style
from streaming import cli
from streaming.files.audio_file import AudioFile
from streaming.pipeline.frame_renderer import WholeRenderer
from streaming.pipeline.landmarks import BlinkSchedule
from streaming.pipeline.networks import open_networks
from streaming.pipeline.pipeline import Pipeline
from streaming.pipeline.renderers import make_renderer, open_cpu_raymarcher
from streaming.settings import StreamSettings

HELLO = Path(__file__).resolve().parents[2] / "examples" / "hello.wav"
FRAME = 640  # samples
PROMISED_LOOKAHEAD_FRAMES = 4
MAX_BUNDLE_BYTES = 24_000_000
UPPER_LIDS, LOWER_LIDS = [37, 38, 43, 44], [41, 40, 47, 46]


@pytest.fixture(scope="module")
def may():
    return load_speaker(packaged_speakers_dir() / "May")


@pytest.fixture(scope="module")
def networks(may):
    return open_networks(may)


@pytest.fixture(scope="module")
def hello():
    """The example that ships, (n,) float32 in [-1, 1]."""
    return np.concatenate(list(AudioFile(HELLO).speech()))


@pytest.fixture(scope="module")
def landmarks_of(may, networks):
    """Sound (n,) to the landmarks (T, 68, 3) that the pipeline draws; the drawing itself is a stand-in's."""

    def landmarks(pcm):
        return np.stack([frame.landmarks for frame in pipeline_frames(may, networks, cheap_renderer(), pcm)])

    return landmarks


@pytest.fixture(scope="module")
def raymarcher(may):
    return open_cpu_raymarcher(may, threads=2)


def cheap_renderer():
    return WholeRenderer(StandInRaymarcher(), output_px=16, render_px=16, mouth_boxes=None, feather_px=2)


def pipeline_frames(may, networks, renderer, pcm):
    with Pipeline(may, renderer, networks=networks) as pipeline:
        pipeline.start_feed([pcm])
        return list(pipeline)


def positions_mm(may, landmarks):
    """Head-space positions (T, 68, 3)."""
    return 100 * (may.motion.mean_face + landmarks / 10)


def lip_opening_mm(may, landmarks):
    """How far the inner upper lip lies above the lower (T,); below zero where lips are pressed together."""
    points = positions_mm(may, landmarks)
    return (points[:, [61, 62, 63], 1] - points[:, [67, 66, 65], 1]).mean(1)


def lid_opening_mm(may, landmarks):
    """How far the upper lids lie above the lower (T,)."""
    points = positions_mm(may, landmarks)
    return (points[:, UPPER_LIDS, 1] - points[:, LOWER_LIDS, 1]).mean(1)


def other_sound(samples, seed):
    """Loud noise, unlike whatever was said: (samples,) float32."""
    return np.random.default_rng(seed).normal(0, 0.2, samples).clip(-1, 1).astype(np.float32)


# The look-ahead --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [0, 1, 7, 33, 60, 61, 90, 125, 140, 171])
def test_no_frame_moves_by_sound_later_than_four_frames_after_it(landmarks_of, hello, frame):
    after = FRAME * (frame + 1 + PROMISED_LOOKAHEAD_FRAMES)
    changed = hello.copy()
    changed[after:] = other_sound(len(hello) - after, frame)
    as_it_was, now = landmarks_of(hello), landmarks_of(changed)
    assert len(now) == len(as_it_was)
    np.testing.assert_array_equal(now[: frame + 1], as_it_was[: frame + 1])  # to the bit
    assert (now[frame + 1 :] != as_it_was[frame + 1 :]).any()


@pytest.mark.parametrize("frame", [0, 7, 60, 125])
def test_a_frame_moves_by_the_last_sound_of_its_look_ahead(landmarks_of, hello, frame):
    """Without this the test above would pass for a face that hears nothing."""
    after = FRAME * (frame + 1 + PROMISED_LOOKAHEAD_FRAMES)
    changed = hello.copy()
    changed[after - FRAME // 2 : after] = other_sound(FRAME // 2, frame)
    as_it_was, now = landmarks_of(hello), landmarks_of(changed)
    assert np.abs(now[frame] - as_it_was[frame]).max() > 1e-4  # in tenths of decimetres: 1 um
    np.testing.assert_array_equal(now[:frame], as_it_was[:frame])


def test_no_picture_shows_sound_later_than_four_frames_after_it(may, networks, raymarcher, hello):
    begin, frame = 52 * FRAME, 4
    after = FRAME * (frame + 1 + PROMISED_LOOKAHEAD_FRAMES)
    pcm = hello[begin : begin + after + 3 * FRAME]
    changed = pcm.copy()
    changed[after:] = other_sound(len(pcm) - after, 0)
    as_it_was, now = (
        [f.picture for f in pipeline_frames(may, networks, size_96(may, raymarcher), sound)]
        for sound in (pcm, changed)
    )
    for i in range(frame + 1):
        np.testing.assert_array_equal(now[i], as_it_was[i])
    assert any((a != b).any() for a, b in zip(now[frame + 1 :], as_it_was[frame + 1 :], strict=True))


def size_96(may, raymarcher):
    return make_renderer(may, raymarcher, 96)


def test_a_frame_is_given_out_as_soon_as_its_look_ahead_is_heard(may, networks, landmarks_of, hello):
    """While a call goes on: no end of the sound is needed, and what comes later changes nothing."""
    frame, more = 20, threading.Event()
    heard = FRAME * (frame + 1 + PROMISED_LOOKAHEAD_FRAMES)

    def feed():
        yield hello[:heard]
        assert more.wait(30)
        yield other_sound(8 * FRAME, 1)

    with Pipeline(may, cheap_renderer(), networks=networks) as pipeline:
        pipeline.start_feed(feed())
        live = [pipeline.next_frame(30).landmarks for _ in range(frame + 1)]
        more.set()
        rest = list(pipeline)
    np.testing.assert_array_equal(live, landmarks_of(hello)[: frame + 1])
    assert len(rest) == PROMISED_LOOKAHEAD_FRAMES + 8


def test_the_bundle_says_what_it_looks_ahead(may):
    ahead = may.motion.lookahead_frames + may.condition.lookahead_frames
    assert ahead <= PROMISED_LOOKAHEAD_FRAMES


# Silence ---------------------------------------------------------------------------------------------------


def test_silence_keeps_the_mouth_closed(may, landmarks_of, hello):
    resting = lip_opening_mm(may, landmarks_of(np.zeros(3 * 16000, np.float32)))
    speaking = lip_opening_mm(may, landmarks_of(hello))
    # The points lie a little behind the lips' edges: lips that touch read about -1.3 mm on May's own video.
    assert resting.max() < 0.0
    assert np.ptp(resting) < 0.05  # still, too
    assert np.percentile(speaking, 75) > resting.max() + 6.0


@pytest.mark.parametrize("room_db", [None, -60.0, -45.0], ids=["digital", "quiet", "room"])
def test_the_mouth_closes_after_speech_and_stays_closed(may, landmarks_of, hello, room_db):
    room = np.zeros(3 * 16000, np.float32)
    if room_db is not None:
        noise = np.random.default_rng(0).normal(0, 10 ** (room_db / 20), len(room))
        room = noise.astype(np.float32)
    opening = lip_opening_mm(may, landmarks_of(np.concatenate([hello, room])))
    said = -(-len(hello) // FRAME)
    after = opening[said + 8 :]  # a third of a second to close, then shut to the last frame
    assert len(after) > 50
    assert after.max() < 0.3


# Blinks ----------------------------------------------------------------------------------------------------


def planned_blinks(may, frames):
    """Frames at which a blink begins, with the seed that is used where none is given."""
    schedule = BlinkSchedule(seed=StreamSettings().seed, blink_frames=len(may.blinks))
    return [i for i in range(frames) if schedule.phase(i) == 0]


def test_may_blinks_as_often_as_people(may):
    starts = planned_blinks(may, 10 * 60 * 25)
    assert 12 <= len(starts) / 10 <= 20  # a minute; people who talk blink 10 to 25 times
    between_s = np.diff([0, *starts]) / 25
    assert between_s.min() >= 1.2 - 0.02  # rounded to frames
    assert between_s.max() <= 7.0 + 0.02
    assert between_s.std() > 0.8  # not like clockwork


def test_each_planned_blink_closes_the_eyes_and_nothing_else_does(may, landmarks_of):
    frames = 40 * 25
    opening = lid_opening_mm(may, landmarks_of(np.zeros(frames * FRAME, np.float32)))
    usual = np.median(opening)
    assert usual > 5.0
    starts = planned_blinks(may, frames - len(may.blinks))
    assert len(starts) >= 6
    blinking = np.zeros(frames, bool)
    for start in starts:
        during = slice(start, start + len(may.blinks))
        blinking[during] = True
        assert opening[during].min() < 0.1 * usual
        assert abs(opening[start] - usual) < 0.1 * usual
    blinking[frames - len(may.blinks) :] = True  # one that began there is not whole
    assert opening[~blinking].min() > 0.8 * usual


def test_eyes_close_in_speech_as_in_silence(may, landmarks_of, hello):
    start = planned_blinks(may, len(hello) // FRAME - len(may.blinks))[0]
    opening = lid_opening_mm(may, landmarks_of(hello))
    assert opening[start : start + len(may.blinks)].min() < 0.15 * np.median(opening)


# The head's path -------------------------------------------------------------------------------------------


def motion_along(poses):
    """Sizes of each step of the closed path: position (P,) dm, turn (P,) rad, and the change of either."""
    following = np.roll(poses, -1, axis=0).astype(np.float64)
    poses = poses.astype(np.float64)
    moved = following[:, :3, 3] - poses[:, :3, 3]
    turned = rotation_vectors(following[:, :3, :3] @ poses[:, :3, :3].transpose(0, 2, 1))
    return {
        "position": np.linalg.norm(moved, axis=1),
        "rotation": np.linalg.norm(turned, axis=1),
        "velocity": np.linalg.norm(np.roll(moved, -1, axis=0) - moved, axis=1),
        "angular velocity": np.linalg.norm(np.roll(turned, -1, axis=0) - turned, axis=1),
    }


@pytest.mark.parametrize("what", ["position", "rotation", "velocity", "angular velocity"])
def test_the_heads_path_loops_without_a_seam(may, what):
    sizes = motion_along(may.poses)[what]
    over_the_seam, ordinary = sizes[-2:], sizes[:-2]  # a change of step spans three poses
    assert over_the_seam.max() <= np.percentile(ordinary, 95)
    assert ordinary.max() > 0
    # Where the loop's end was faded into its start may lie anywhere in it: no step stands out.
    assert sizes.max() <= 4 * np.percentile(sizes, 95)


def test_a_path_with_a_seam_would_be_found(may):
    cut = may.poses[: len(may.poses) // 2]
    sizes = motion_along(cut)
    assert sizes["position"][-1] > np.percentile(sizes["position"][:-2], 95)


def test_the_loop_is_long_enough_not_to_be_noticed(may):
    assert len(may.poses) >= 20 * 25


# The bundle ------------------------------------------------------------------------------------------------


def test_the_bundle_is_small_and_holds_no_pickle(may):
    files = [path for path in may.path.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_BUNDLE_BYTES
    assert {path.suffix for path in files} == {".json", ".md", ".mkv", ".onnx", ".png", ".safetensors"}
    for path in files:
        start = path.read_bytes()[:4]
        # A pickle of protocol 2 to 5, a zip (torch.save, npz), a numpy array of objects.
        assert not (start[0] == 0x80 and start[1] in (2, 3, 4, 5)), path
        assert start not in (b"PK\x03\x04", b"\x93NUM"), path


def test_her_plates_are_those_of_her_path_and_show_what_is_drawn_whole(may):
    masks, pictures = may.plates.masks(), may.plates.pictures()
    assert np.mean([mask.share for mask in masks[: len(may.poses)]]) <= 0.06
    with closing(CpuRaymarcher(may.scene)) as raymarcher:
        silent = conditions(may, np.zeros((1, 68, 3), np.float32))
        still = np.zeros(1, bool)
        worst_db = worst_psnr_db(raymarcher, may.poses, pictures, masks, silent, still, frames=4)
    assert worst_db >= 50
    assert may.verification["plates_psnr_db"] >= 50


def test_may_is_the_likeness_of_nobody(may):
    assert may.synthetic is True
    card = (may.path / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "synthetic character, nobody's likeness" in " ".join(card.split())


# The same again --------------------------------------------------------------------------------------------


def test_two_runs_of_a_file_give_the_same_frames(may, tmp_path, hello):
    speech = write_wav(tmp_path / "speech.wav", hello[: int(1.2 * 16000)])
    videos, motions = [], []
    for name in ("one", "two"):
        video, motion = tmp_path / f"{name}.mp4", tmp_path / f"{name}.npz"
        where = ["--speaker", may.path, "--input", speech, "--output", video, "--landmarks", motion]
        assert cli.main([*map(str, where), "--render-size", "96", "--quiet"]) == 0
        with np.load(motion, allow_pickle=False) as archive:
            motions.append({key: archive[key] for key in archive.files})
        with av.open(str(video)) as container:
            videos.append([frame.to_ndarray() for frame in container.decode(video=0)])
    assert motions[0].keys() == motions[1].keys()
    for key, value in motions[0].items():
        np.testing.assert_array_equal(motions[1][key], value)
    assert len(videos[0]) == len(motions[0]["landmarks"]) == 30
    np.testing.assert_array_equal(videos[1], videos[0])
    assert videos[0][0].shape == (768, 512)  # I420


# How good she is -------------------------------------------------------------------------------------------


def data_folder(shared_folder, name):
    folder = shared_folder / "may" / name
    if not folder.is_dir():
        pytest.skip(f"{folder}: not there; it holds what May was trained and validated on")
    return folder


def test_pictures_are_close_to_those_of_mays_video(may, shared_folder):
    """The whole measurement is `python -m benchmarks.quality`; this is a sample of it."""
    from benchmarks.quality_picture import picture_quality

    found = picture_quality(may, data_folder(shared_folder, "speaker"), frames=5)
    assert found["psnr_db"] >= 30.0
    assert found["mouth_psnr_db"] >= 27.0


def moved_as_people_move(corpus, out, clips):
    """A corpus of some held-out clips of another, its landmarks made anew by articulation from its phones."""
    whole = read_corpus_set(corpus)
    held_out = [clip for clip in whole.clips if clip.split == "val"]
    kept, weights, identities, row = [], [], [], 0
    for place in np.linspace(0, len(held_out) - 1, clips).astype(int):
        clip = held_out[place]
        phones = clip.phones or (("pau", 0.0, clip.frames / 25),)
        pcm = read_sound(corpus, [clip])
        weights.append(articulate(phones, pcm, frames=clip.frames, style=Style()).weights)
        identities.append(whole.row_identity[clip.row0 : clip.row1])
        file = str((corpus / clip.file).resolve())
        kept.append(dataclasses.replace(clip, file=file, row0=row, row1=row + clip.frames))
        row += clip.frames
    coeff = np.concatenate(weights)
    scale = np.maximum(np.abs(coeff).max(axis=0), 1e-6) / 32767
    labels = {
        "coeff": coeff / scale,
        "scale": scale.astype(np.float32),
        "basis": load_rig().morphs.reshape(-1, 204),
        "row_identity": np.concatenate(identities),
    }
    write_corpus_set(out, dataclasses.replace(whole, clips=tuple(kept), **labels))
    return out


def test_mays_lips_follow_voices_as_people_do(may, shared_folder, tmp_path):
    from benchmarks.quality import motion_rows

    corpus = moved_as_people_move(data_folder(shared_folder, "corpus"), tmp_path / "corpus", clips=12)
    _, figures = motion_rows(may, corpus)
    motion = figures["motion"]
    assert motion["aperture_r"] >= 0.80
    assert motion["width_r"] >= 0.70
    assert motion["closure_auc"] >= 0.85  # of the labels: .98
    assert motion["silence_closed"] >= 0.95
    assert figures["sync"]["near_wins"] >= 0.95  # within a frame
