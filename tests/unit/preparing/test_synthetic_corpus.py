"""A corpus is made clip by clip and goes on where it stopped, to the same bytes."""

import itertools
import json
import signal

import numpy as np
import pytest

from preparation import cli
from preparation.corpus_set import read_corpus_set, read_sound
from preparation.sounds import PAUSE
from preparation.synthetic import corpus
from preparation.synthetic.alignment import AlignmentError
from preparation.synthetic.articulation import articulate
from preparation.synthetic.corpus import CorpusFolderError, CorpusSettings, make_corpus, read_utterance
from preparation.synthetic.plan import ClipPlan
from preparation.synthetic.styles import Style
from preparation.synthetic.utterance import Utterance
from preparation.synthetic.voices.voice import Voice, VoiceError

SETTINGS = CorpusSettings(processes=1, phones_only=True)


class ToneVoice(Voice):
    """Says a tone for each letter; has not recorded `unfit`."""

    name, language, licence = "tone", "en", "CC0"

    def __init__(self):
        self.said = []
        self.lacks = ""

    def missing(self):
        return self.lacks

    def draw(self, rng):
        return {}

    def speak(self, text, params):
        self.said.append(text)
        if text == "unfit":
            raise AlignmentError("unfit: expected a recording, got another")
        samples = 1600 * len(text)
        pcm = np.concatenate([np.zeros(4000), 9000 * np.sin(np.arange(samples) / 5), np.zeros(4000)])
        edges = 0.25 + 0.1 * np.arange(len(text) + 1)
        phones = [("aa1", float(a), float(b)) for a, b in itertools.pairwise(edges)]
        end_s = len(pcm) / 16000
        return Utterance(
            pcm=pcm.astype(np.int16),
            phones=((PAUSE, 0.0, 0.25), *phones, (PAUSE, float(edges[-1]), end_s)),
            voice="tone",
            language="en",
            text=text,
        )


def clip(name, *texts, kind="speech", split="train", identity=0):
    voice = "tone" if texts else ""
    seconds = 0.0 if texts else 1.23
    return ClipPlan(
        id=name,
        kind=kind,
        split=split,
        voice=voice,
        texts=texts,
        params={},
        identity=identity,
        seconds=seconds,
    )


PLANS = [
    clip("a", "hello", "you"),
    clip("b", kind="noise"),
    clip("c", "unfit"),
    clip("d", "good", "unfit", split="val", identity=1),
]


@pytest.fixture
def voice(monkeypatch):
    voice = ToneVoice()
    monkeypatch.setattr(corpus, "voice_named", lambda name: voice)
    monkeypatch.setattr(corpus, "draw_plan", lambda minutes, seed: PLANS)
    monkeypatch.setattr(corpus, "missing", lambda names: {"tone": voice.lacks} if voice.lacks else {})
    return voice


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_clips_are_whole_frames_with_phones_from_end_to_end(voice, tmp_path):
    report = make_corpus(tmp_path, SETTINGS)
    rows = [json.loads(line) for line in (tmp_path / "index.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["a", "b", "d"]
    assert [row["voice"] for row in rows] == ["tone", "noise", "tone"]
    assert rows[2]["text"] == "good"
    row0 = 0
    for row in rows:
        assert (row["start"], row["samples"], row["row0"]) == (0, 640 * row["frames"], row0)
        row0 = row["row1"]
        times = [time_s for phone in row["phones"] for time_s in phone[1:]]
        assert times[0] == 0
        assert times[-1] == pytest.approx(row["frames"] / 25)
        assert times[1:-1:2] == times[2::2]
    assert report.left_out == {"tone": 2}
    assert not (tmp_path / "audio" / "c.ogg").exists()


def test_phones_lie_where_the_sound_does(voice, tmp_path):
    make_corpus(tmp_path, SETTINGS)
    record = json.loads((tmp_path / "clips" / "a.json").read_text())
    said = read_utterance(tmp_path, record)
    for label, start_s, end_s in said.phones:
        inside = said.pcm[round(start_s * 16000) + 160 : round(end_s * 16000) - 160].astype(float)
        assert (np.sqrt((inside**2).mean()) > 500) == (label != PAUSE)


def test_a_second_run_makes_nothing_and_the_index_is_the_same(voice, tmp_path):
    make_corpus(tmp_path, SETTINGS)
    before, voice.said = contents(tmp_path), []
    make_corpus(tmp_path, SETTINGS)
    assert voice.said == []
    assert contents(tmp_path) == before


def test_what_a_stopped_run_left_is_gone_on_with(voice, tmp_path):
    make_corpus(tmp_path, SETTINGS)
    before = contents(tmp_path)
    (tmp_path / "clips" / "a.json").unlink()  # its sound is there, its record is not
    (tmp_path / "audio" / "d.ogg").unlink()
    (tmp_path / "clips" / "b.json").write_text("{")
    voice.said = []
    make_corpus(tmp_path, SETTINGS)
    assert voice.said == ["hello", "you", "good", "unfit"]
    assert contents(tmp_path) == before


def test_another_seed_makes_all_anew(voice, tmp_path):
    make_corpus(tmp_path, SETTINGS)
    voice.said = []
    make_corpus(tmp_path, CorpusSettings(processes=1, phones_only=True, seed=2))
    assert len(voice.said) == 5


def test_a_failing_engine_leaves_no_clip_behind(voice, tmp_path, monkeypatch):
    def fails(text, params):
        raise VoiceError("tone: expected exit code 0, got 1 (broken)")

    monkeypatch.setattr(voice, "speak", fails)
    with pytest.raises(VoiceError, match="broken"):
        make_corpus(tmp_path, SETTINGS)
    assert contents(tmp_path) == {}


def test_a_missing_engine_is_refused_or_skipped(voice, tmp_path):
    voice.lacks = "tone is not installed: apt-get install tone"
    with pytest.raises(VoiceError, match="apt-get install tone; or give --skip-missing"):
        make_corpus(tmp_path, SETTINGS)
    report = make_corpus(tmp_path, CorpusSettings(processes=1, phones_only=True, skip_missing=True))
    assert report.minutes == {"train noise": pytest.approx(0.02, abs=0.005)}


def test_a_real_speaker_whose_recordings_are_not_installed_is_missed(voice, tmp_path, monkeypatch):
    monkeypatch.setattr(
        corpus, "missing", lambda names: {"asterisk-es": "not installed"} if "asterisk-es" in names else {}
    )
    with pytest.raises(VoiceError, match="not installed; or give --skip-missing"):
        make_corpus(tmp_path, SETTINGS)


def test_a_sound_that_is_cut_short_is_refused(voice, tmp_path):
    make_corpus(tmp_path, SETTINGS)
    record = json.loads((tmp_path / "clips" / "a.json").read_text())
    record["frames"] += 1
    with pytest.raises(CorpusFolderError, match="run the command again"):
        read_utterance(tmp_path, record)


def test_sigterm_ends_the_run_as_an_exit(monkeypatch):
    with pytest.raises(SystemExit), corpus._stopped_by_sigterm():
        signal.raise_signal(signal.SIGTERM)


def test_landmarks_are_those_of_the_articulation_and_the_whole_reads_back(voice, tmp_path):
    make_corpus(tmp_path, CorpusSettings(processes=1, seed=5))
    read = read_corpus_set(tmp_path)
    assert {made.split for made in read.clips} == {"train", "val"}
    assert set(read.row_identity) == {0, 1}
    assert len(read_sound(tmp_path, read.clips)) == 640 * len(read.row_identity)
    landmarks = read.neutral[read.row_identity] + read.motion().reshape(-1, 68, 3) / 10
    for made, plan in zip(read.clips, [PLANS[0], PLANS[1], PLANS[3]], strict=True):
        said = read_utterance(tmp_path, json.loads((tmp_path / "clips" / f"{made.id}.json").read_text()))
        moved = articulate(
            said.phones, said.pcm, frames=made.frames, style=Style.drawn(plan.rng(5, "style"))
        ).landmarks(plan.identity)
        np.testing.assert_allclose(landmarks[made.row0 : made.row1], moved, atol=1e-4)  # dm; 16 bits
        opening = moved[:, 62, 1] - moved[:, 66, 1]
        assert (np.ptp(opening) > 0.02) == (plan.kind == "speech")


def test_the_command_prints_minutes_and_what_was_left_out(voice, tmp_path, capsys):
    assert cli.main(["synthetic-corpus", "--out", str(tmp_path), "--phones-only", "--processes", "1"]) == 0
    said = capsys.readouterr().out
    assert "train tone" in said
    assert "tone: 2 prompts left out" in said


def test_the_command_says_what_is_missing_on_one_line(voice, tmp_path, capsys):
    voice.lacks = "tone is not installed: apt-get install tone"
    assert cli.main(["synthetic-corpus", "--out", str(tmp_path / "new")]) == 2
    line = capsys.readouterr().err
    assert line.startswith("geneface-prepare synthetic-corpus: tone is not installed")
    assert line.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("flag", "text"), [("minutes", "-5"), ("minutes", "nan"), ("seed", "-1"), ("processes", "0")]
)
def test_a_number_out_of_range_is_one_line_and_makes_nothing(tmp_path, capsys, flag, text):
    out = tmp_path / "corpus"
    assert cli.main(["synthetic-corpus", "--out", str(out), f"--{flag}={text}", "--skip-missing"]) == 2
    error = capsys.readouterr().err
    assert f"{flag}: expected" in error
    assert error.count("\n") == 1
    assert not out.exists()
