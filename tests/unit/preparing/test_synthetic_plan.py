"""What a corpus will hold is drawn from its seed alone; validation has voices, texts and faces of its own."""

import numpy as np
import pytest

from preparation.synthetic import plan as plans
from preparation.synthetic.nonspeech import KINDS, draw_sound
from preparation.synthetic.plan import HELD_OUT_IDENTITIES, HELD_OUT_VOICES, VALIDATION, ClipPlan, draw_plan
from preparation.synthetic.texts import LANGUAGES, draw_text
from preparation.synthetic.voices import prompts


@pytest.fixture(autouse=True)
def recordings(monkeypatch):
    """Real speakers with the same thirty recordings each, wherever the test runs."""
    texts = tuple(f"prompt number {number}" for number in range(30))
    monkeypatch.setattr(prompts.Prompts, "texts", lambda self: texts)


def test_the_same_seed_draws_the_same_clips_and_another_others():
    assert draw_plan(5, 1) == draw_plan(5, 1)
    assert draw_plan(5, 1) != draw_plan(5, 2)


def test_a_plan_comes_back_from_json():
    for plan in draw_plan(3, 1):
        assert ClipPlan.from_json(plan.to_json()) == plan


def test_names_are_unique():
    clips = draw_plan(20, 3)
    assert len({clip.id for clip in clips}) == len(clips)


def test_validation_has_sentences_voices_and_faces_of_its_own():
    clips = draw_plan(20, 3)
    train = [clip for clip in clips if clip.split != VALIDATION]
    validation = [clip for clip in clips if clip.split == VALIDATION]
    assert not {clip.identity for clip in train} & set(HELD_OUT_IDENTITIES)
    assert set(HELD_OUT_IDENTITIES) <= {clip.identity for clip in validation}
    spoken = {text for clip in train for text in clip.texts}
    assert not spoken & {
        text for clip in validation for text in clip.texts if not clip.voice.startswith("asterisk")
    }
    for voice in HELD_OUT_VOICES:
        assert not any(clip.voice == voice or clip.voice.endswith(f"+{voice}") for clip in train)
    assert {"hibari-low", "asterisk-it", "flite-kal16"} <= {clip.voice for clip in validation}


def test_what_one_speaker_recorded_changes_no_other_clip(monkeypatch):
    before = {clip.id: clip for clip in draw_plan(6, 3)}
    monkeypatch.setattr(
        prompts.Prompts, "texts", lambda self: () if self.name == "asterisk-en" else ("a" * 99,)
    )
    for clip in draw_plan(6, 3):
        assert clip.voice.startswith("asterisk") or before[clip.id] == clip


def test_every_recording_is_in_one_clip_of_its_speaker_at_most():
    said = [text for clip in draw_plan(3, 3) if clip.voice == "asterisk-fr" for text in clip.texts]
    assert len(said) == len(set(said)) > 20


def test_a_clips_generators_are_its_own():
    first, second = draw_plan(3, 1)[:2]
    assert first.rng(1, "style").random() == first.rng(1, "style").random()
    assert len({c.rng(s, p).random() for c in (first, second) for s in (1, 2) for p in "ab"}) == 8


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_language_has_varied_sentences(language):
    rng = np.random.default_rng(4)
    texts = {draw_text(language, rng) for _ in range(100)}
    assert len(texts) > 60
    assert all(not set(text) & set("{}|") and text[-1] in ".?!" for text in texts)
    assert all(text.lstrip("¿¡")[0].isupper() for text in texts)


def test_a_language_without_a_grammar_is_refused():
    with pytest.raises(KeyError):
        draw_text("xx", np.random.default_rng(0))


@pytest.mark.parametrize("kind", KINDS)
def test_sounds_that_nobody_says_are_bounded_and_repeat(kind):
    sound = draw_sound(kind, 32000, np.random.default_rng(2))
    assert len(sound) == 32000
    assert (sound.any()) == (kind != "silence")
    assert np.abs(sound.astype(int)).max() < 32767 * 10 ** (-8 / 20) + 1
    np.testing.assert_array_equal(sound, draw_sound(kind, 32000, np.random.default_rng(2)))


def test_validation_is_a_part_of_what_is_asked_for():
    seconds = {"train": 0.0, "val": 0.0}
    for clip in draw_plan(60, 3):
        if clip.voice and not clip.voice.startswith("asterisk"):
            seconds[clip.split] += sum(map(len, clip.texts)) / plans._TEXT_RATE
    assert 0.05 < seconds["val"] / sum(seconds.values()) < 0.12
