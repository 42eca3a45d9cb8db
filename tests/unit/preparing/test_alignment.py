"""Phones of a recording are found by warping another voice onto it; what does not fit is known."""

import numpy as np
import pytest

from preparation.sounds import PAUSE
from preparation.synthetic.alignment import (
    MAX_COST,
    MAX_SPREAD_S,
    Alignment,
    AlignmentError,
    align,
    fits,
    levels_db,
    settle_pauses,
    silences,
)
from preparation.synthetic.phones import contiguous
from preparation.synthetic.utterance import Utterance
from preparation.synthetic.voices.espeak import Espeak, lacks_espeak
from preparation.synthetic.voices.espeak import references as references_of

_FORMANTS_HZ = {"aa": (700, 1200), "iy": (300, 2300), "uw": (320, 800), "s": (5000, 6500), "eh": (530, 1900)}
_WORDS = ["aa", "s", "iy", "uw", "s", "eh", "aa", "uw", "iy", "s", "aa", "eh"]


def spoken(labels, lasts_s, pitch_hz=120.0, pauses=()):
    """Speech of two resonances a phone, a pause of 0.3 s before the phones whose numbers are given."""
    sounds, phones, at_s = [np.zeros(3200)], [(PAUSE, 0.0, 0.2)], 0.2
    for number, (label, last_s) in enumerate(zip(labels, lasts_s, strict=True)):
        if number in pauses:
            sounds.append(np.zeros(4800))
            phones.append((PAUSE, at_s, at_s + 0.3))
            at_s += 0.3
        time_s = np.arange(round(last_s * 16000)) / 16000
        voice = sum(
            np.sin(2 * np.pi * pitch_hz * k * time_s)
            * sum(np.exp(-(((pitch_hz * k - hz) / 150) ** 2)) for hz in _FORMANTS_HZ[label])
            for k in range(1, int(7000 / pitch_hz))
        )
        sounds.append(voice)
        phones.append((label, at_s, at_s + len(time_s) / 16000))
        at_s += len(time_s) / 16000
    sound = np.concatenate([*sounds, np.zeros(3200)])
    pcm = np.round(9000 * sound / np.abs(sound).max()).astype(np.int16)
    return Utterance(
        pcm=pcm,
        phones=contiguous(phones, len(pcm) / 16000),
        voice="test",
        language="en",
        text=" ".join(labels),
    )


def starts(phones):
    return np.array([start_s for label, start_s, _ in phones if label != PAUSE])


@pytest.fixture
def references():
    return [
        spoken(_WORDS, [last_s] * 12, pitch_hz) for last_s, pitch_hz in ((0.1, 100), (0.12, 140), (0.09, 120))
    ]


def test_phones_are_found_at_another_tempo_pitch_and_with_other_pauses(references):
    lasts_s = np.random.default_rng(3).uniform(0.07, 0.16, 12)
    recording = spoken(_WORDS, lasts_s, 110, pauses=(4, 9))
    found = align(recording.pcm, references)
    assert fits(found)
    assert [label for label, _, _ in found.phones if label != PAUSE] == _WORDS
    assert np.median(np.abs(starts(found.phones) - starts(recording.phones))) <= 0.01
    pauses = [(start_s, end_s) for label, start_s, end_s in found.phones[1:-1] if label == PAUSE]
    meant = [(start_s, end_s) for label, start_s, end_s in recording.phones[1:-1] if label == PAUSE]
    np.testing.assert_allclose(pauses, meant, atol=0.03)


@pytest.mark.skipif(bool(lacks_espeak()), reason="espeak-ng is not installed")
def test_a_transcript_that_does_not_fit_is_known():
    text = "My neighbour borrowed their garden fence in the middle of the park."
    pcm = Espeak("en-gb", "m7").speak(text, {"rate": 150, "pitch": 40}).pcm
    assert fits(align(pcm, references_of(text, "en-us")))
    assert not fits(align(pcm, references_of("Could you show me two cups of coffee, please?", "en-us")))


def test_what_costs_too_much_or_is_told_differently_does_not_fit():
    assert fits(Alignment(phones=(), cost=MAX_COST, spread_s=MAX_SPREAD_S))
    assert not fits(Alignment(phones=(), cost=MAX_COST + 0.01, spread_s=0))
    assert not fits(Alignment(phones=(), cost=0, spread_s=MAX_SPREAD_S + 0.001))


@pytest.mark.parametrize("samples", [0, 16000])
def test_silence_is_no_recording(references, samples):
    with pytest.raises(AlignmentError, match="expected a recording"):
        align(np.zeros(samples, np.int16), references)


def test_a_sound_far_too_short_does_not_fit(references):
    assert not fits(align(spoken(["aa"], [0.08]).pcm, references))


def test_the_level_of_a_sound_is_where_it_is():
    pcm = np.zeros(16000, np.int16)
    pcm[8000:8800] = 10000
    loud = np.flatnonzero(levels_db(pcm) > 60)
    assert 98 <= loud[0] <= 100
    assert 109 <= loud[-1] <= 111


def test_a_closure_is_no_silence_and_a_pause_is():
    time_s = np.arange(16000) / 16000
    pcm = np.round(9000 * np.sin(600 * time_s)).astype(np.int16)
    pcm[3200:4200] = 0
    pcm[8000:12000] = 0
    silent = silences(pcm)
    assert not silent[: 7900 // 80].any()
    assert silent[8500 // 80 : 11500 // 80].all()
    assert not silent[12100 // 80 :].any()


def test_a_pause_ends_where_the_sound_begins():
    recording = spoken(["aa", "iy"], [0.2, 0.2], pauses=(1,))
    late = [(PAUSE, 0.0, 0.25), ("aa", 0.25, 0.45), (PAUSE, 0.45, 0.75), ("iy", 0.75, 1.0), (PAUSE, 1.0, 1.1)]
    settled = settle_pauses(late, recording.pcm)
    np.testing.assert_allclose([phone[1] for phone in settled], [0, 0.2, 0.4, 0.7, 0.9], atol=0.02)
