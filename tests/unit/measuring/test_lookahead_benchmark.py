"""What the look-ahead benchmark measures, on networks that are small enough to know the answers."""

from __future__ import annotations

import dataclasses
import json

import bundle_factory
import feature_bundle
import numpy as np
import pytest
import stand_ins

from benchmarks import lookahead
from benchmarks.lookahead import Row, compare, measure, recommend, stream, table, with_windows
from export.students.offline_motion import OfflineMotion
from models.speaker import load_speaker
from streaming.pipeline.networks import open_networks


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speakers") / "Heard"
    return load_speaker(feature_bundle.write_feature_bundle(folder, image_size_px=64))


@pytest.fixture(scope="module")
def speech():
    return stand_ins.speech_like(6).astype(np.float32) / 32768


@pytest.fixture(scope="module")
def figures(speaker, speech):
    return measure(
        speaker,
        [speech, speech[: 16000 * 2 + 100]],
        lookaheads_ms=(80, 160, 320),
        heard_s=(0.64, 2.56),
        seen_s=(1.28, 2.56),
    )


def landmarks(frames, seed=0):
    return np.random.default_rng(seed).normal(size=(frames, 68, 3)).astype(np.float32)


# Figures ----------------------------------------------------------------------------------------------


def test_equal_motions_are_equal():
    same = compare([landmarks(30)], [landmarks(30)])
    assert not same.error_mm.any()
    assert same.aperture_r == pytest.approx(1)
    assert same.movement_mm.mean() > 5  # a unit is 10 mm


def test_distances_are_in_mm_of_mouth_points_alone():
    true = landmarks(20)
    moved = true.copy()
    moved[:, 48:68] += np.float32([0.3, 0, 0.4])  # 0.5 units: 5 mm
    moved[:, :48] += 100
    got = compare([moved[:12], moved[12:]], [true[:12], true[12:]])
    assert got.error_mm == pytest.approx(np.full((20, 20), 5.0), rel=1e-5)
    assert got.aperture_r == pytest.approx(1)


def test_frames_beyond_the_offline_ones_do_not_count():
    true = landmarks(10)
    assert not compare([np.concatenate([true, landmarks(3, seed=1)])], [true]).error_mm.any()


def test_the_aperture_is_that_of_the_inner_lips():
    true, against = np.zeros((2, 40, 68, 3), np.float32)
    true[:, 66, 1] = -np.arange(40)
    against[:, 62, 1] = -np.arange(40)  # the upper lip comes down where the lower should go
    assert compare([against], [true]).aperture_r == pytest.approx(-1)
    assert compare([np.zeros_like(true)], [true]).aperture_r == 0


# The stream -------------------------------------------------------------------------------------------


def test_a_setting_is_what_its_figures_say(speaker):
    motion = with_windows(speaker.motion, lookahead_ms=320, heard_s=2.56, seen_s=1.3)
    assert motion.lookahead_frames == 3 + 8
    assert motion.features.window_frames == 64
    assert motion.features.kept_frames == 32
    assert motion.window_frames == 32  # whole blocks
    assert motion.window_samples == 64 * 640
    assert with_windows(speaker.motion, lookahead_ms=1280, heard_s=2.56, seen_s=1.28) is None


def test_the_networks_run_at_other_lengths_than_the_bundle_s(speaker, speech):
    motion = with_windows(speaker.motion, lookahead_ms=160, heard_s=1.28, seen_s=2.56)
    networks = open_networks(speaker)
    got = stream(networks, motion, speech)
    assert got.shape == (150, 68, 3)
    other = stream(networks, with_windows(speaker.motion, lookahead_ms=0, heard_s=1.28, seen_s=2.56), speech)
    assert not np.array_equal(got, other)


def test_features_of_a_sound_are_computed_once(speaker, speech):
    runs = []

    class Counted:
        device = "CPU"

        def run(self, inputs):
            runs.append(inputs["pcm"].shape)
            return networks.features.run(inputs)

    networks = open_networks(speaker)
    memoised = dataclasses.replace(networks, features=lookahead._Memoised(Counted()))
    for lookahead_ms in (80, 320):
        motion = with_windows(speaker.motion, lookahead_ms=lookahead_ms, heard_s=1.28, seen_s=2.56)
        plain, quick = stream(networks, motion, speech), stream(memoised, motion, speech)
        assert np.array_equal(plain, quick)
    assert len(runs) == 150 // 4 + 1


# The measurement --------------------------------------------------------------------------------------


def test_every_setting_has_its_row(figures, speaker):
    keys = [(row.heard_s, row.lookahead_ms, row.seen_s) for row in figures.rows]
    assert keys == [(h, ms, s) for h in (0.64, 2.56) for ms in (80, 160, 320) for s in (1.28, 2.56)]
    assert figures.frames == 150 + 50
    assert {row.delay_ms - row.lookahead_ms for row in figures.rows} == {3 * 40}  # the rest of the hop
    assert all(row.ms_per_frame > 0 for row in figures.rows)
    assert all(row.error_p95_mm >= row.error_mm for row in figures.rows)


def test_the_network_s_reach_is_worth_its_look_ahead_and_no_more(figures):
    """It looks four frames ahead, 160 ms: with less it misses something, with more it learns nothing."""
    errors = {
        (row.lookahead_ms, row.heard_s, row.seen_s): row.error_mm for row in figures.rows if row.heard_s > 1
    }
    for seen_s in (1.28, 2.56):
        short, whole, long = (errors[ms, 2.56, seen_s] for ms in (80, 160, 320))
        assert short - whole > 2 * abs(whole - long)
    assert max(row.aperture_r for row in figures.rows) > 0.95


def test_offline_and_stream_agree_where_nothing_is_cut(speaker, speech):
    """All of a recording in one window: what remains is that its level was not known from the start."""
    motion = with_windows(speaker.motion, lookahead_ms=640, heard_s=8, seen_s=8)
    streamed = stream(open_networks(speaker), motion, speech)
    compared = compare([streamed], [OfflineMotion(speaker).landmarks(speech)])
    late = compared.error_mm[100:140]
    assert late.mean() < 0.2 * compared.movement_mm.mean()


def test_the_shortest_delay_that_is_nearly_as_good_is_recommended():
    def row(delay_ms, error_mm, ms_per_frame=1.0):
        return Row(
            lookahead_ms=delay_ms,
            heard_s=1.28,
            seen_s=2.56,
            error_mm=error_mm,
            error_p95_mm=error_mm,
            aperture_r=1.0,
            delay_ms=delay_ms,
            ms_per_frame=ms_per_frame,
        )

    rows = [row(80, 1.0), row(160, 0.5, 9.0), row(160, 0.55, 3.0), row(320, 0.4), row(640, 0.38)]
    assert recommend(rows, movement_mm=2.0) == rows[2]
    assert recommend(rows, movement_mm=1.0) == rows[3]
    assert recommend(rows, movement_mm=0.1) == rows[4]
    assert recommend(rows, movement_mm=10.0) == rows[0]


# The command ------------------------------------------------------------------------------------------


def test_the_table_comes_last_and_marks_one_row(speaker, tmp_path, capsys, speech):
    audio = stand_ins.write_wav(tmp_path / "speech.wav", speech)
    arguments = ["--speaker", str(speaker.path), "--audio", str(audio), "--json", str(tmp_path / "out.json")]
    assert lookahead.main([*arguments, "--lookahead", "80", "160", "--feature-window", "1.28"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Tiny on 1 recordings, 6 s, CPU"
    assert sum("<- recommended" in line for line in lines) == 1
    assert lines[-1].startswith("recommended: the shortest delay")
    written = json.loads((tmp_path / "out.json").read_text())
    assert len(written["rows"]) == len(lines) - 3 == 4
    assert written["recommended"] in written["rows"]


def test_the_table_has_a_row_for_each_setting_in_mm_and_ms(figures):
    lines = table(figures).splitlines()
    assert len(lines) == 1 + len(figures.rows) + 1
    assert f"{figures.rows[0].error_mm:.2f} mm" in lines[1]
    assert "80 ms" in lines[1]


def test_a_causal_speaker_has_nothing_to_measure(tmp_path, capsys, speech):
    folder = bundle_factory.write_tiny_bundle(tmp_path / "Tiny", image_size_px=64)
    audio = stand_ins.write_wav(tmp_path / "speech.wav", speech)
    assert lookahead.main(["--speaker", str(folder), "--audio", str(audio)]) == 2
    assert "motion.kind: expected features, got pcm" in capsys.readouterr().err


def test_windows_that_hold_no_look_ahead(speaker, speech):
    with pytest.raises(ValueError, match="--motion-window"):
        measure(speaker, [speech], lookaheads_ms=(1280,), heard_s=(1.28,), seen_s=(0.64,))
