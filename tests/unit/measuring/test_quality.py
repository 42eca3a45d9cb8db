"""The quality benchmark: its table, and a whole run over a tiny bundle and tiny data."""

import json

import numpy as np
import pytest
from bundle_factory import write_tiny_bundle
from tiny_corpus import make_corpus, make_speaker

from benchmarks import quality
from benchmarks.live_motion import LiveMotion
from benchmarks.quality import Row, table
from models.speaker import load_speaker


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("speakers") / "Tiny")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("data") / "corpus")


def test_a_target_gives_a_verdict_in_its_direction():
    assert Row(what="r", figure=0.8, target=0.8).verdict == "pass"
    assert Row(what="r", figure=0.79, target=0.8).verdict == "fail"
    assert Row(what="ms", figure=3.0, target=2.0, at_least=False).verdict == "fail"
    assert Row(what="n", figure=3.0).verdict == ""
    assert Row(what="r", figure=float("nan"), target=0.8).verdict == "fail"


def test_the_table_sets_targets_beside_figures():
    text = table([Row(what="aperture", figure=0.8123, target=0.8), Row(what="count", figure=3, unit="n")])
    lines = text.splitlines()
    assert lines[1].split() == ["aperture", "0.812", ">=", "0.8", "pass"]
    assert lines[2].split() == ["count", "3.000", "n"]


def test_motion_has_a_frame_for_each_of_the_sound_and_keeps_the_clamp(bundle):
    speaker = load_speaker(bundle)
    live = LiveMotion(speaker)
    found = live(np.random.default_rng(0).uniform(-1, 1, 640 * 9).astype(np.float32))
    assert found.shape == (9, 204)
    bound = speaker.motion.clamp_std * speaker.motion.landmark_std.ravel() * 1.0001
    assert (np.abs(found - speaker.motion.landmark_mean.ravel()) <= bound).all()
    assert live.resting().shape == (204,)


def test_a_corpus_is_measured_and_written(bundle, corpus, tmp_path, capsys):
    out = tmp_path / "figures.json"
    arguments = ["--speaker", str(bundle), "--data", str(corpus), "--json", str(out)]
    assert quality.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "validation split" in lines[0]
    assert lines[2].startswith("inner-lip aperture")
    written = json.loads(out.read_text())
    assert written["frames"] == 110
    assert written["rows"][0]["target"] == 0.8
    assert written["lead_ms"] == pytest.approx(0, abs=25)
    assert written["lead_ms_of_truth"] == pytest.approx(0, abs=25)
    assert (
        written["motion"]["aperture_r"] > 0.8
    )  # the tiny bundle opens its mouth with loudness, so does the data


def test_a_speaker_folder_is_measured(bundle, corpus, tmp_path, capsys):
    data = make_speaker(tmp_path / "speaker", corpus)
    assert quality.main(["--speaker", str(bundle), "--data", str(data), "--skip-pictures"]) == 0
    assert "mouth width" in capsys.readouterr().out


def test_a_folder_of_neither_kind_is_one_line_and_exit_code_2(bundle, tmp_path, capsys):
    assert quality.main(["--speaker", str(bundle), "--data", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "got neither" in message
