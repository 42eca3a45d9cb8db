"""Engines' phones become one set; phones leave no gap; stress goes where the vowels agree."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preparation.sounds import PAUSE, PHONE_CLASSES, base
from preparation.synthetic.phones import contiguous, from_festival, from_ipa, with_stress


@pytest.mark.parametrize(
    ("ipa", "labels"),
    [
        ("həlˈoʊ", ("hh", "ax", "l", "ow1")),
        ("tʃˈɪldɹən", ("ch", "ih1", "l", "d", "r", "ax", "n")),
        ("bɔ̃ʒuʁ", ("b", "ao", "zh", "uw", "hh")),
        ("ʃˈøːn", ("sh", "uh1", "n")),
        ("pˈɛro", ("p", "eh1", "l", "ow")),
        ("tsvaɪ", ("t", "s", "v", "ay")),
        ("ç", ("hh",)),
        ("ʔ", ()),
        ("", ()),
    ],
)
def test_ipa_becomes_labels(ipa, labels):
    assert from_ipa(ipa) == labels


@given(st.text(max_size=30))
def test_any_text_gives_labels_of_the_set(text):
    assert {base(label) for label in from_ipa(text)} <= set(PHONE_CLASSES)


def test_festivals_flap_is_a_d_and_its_unknown_phones_are_refused():
    assert from_festival("dx") == "d"
    with pytest.raises(KeyError):
        from_festival("qq")


def test_short_gaps_belong_to_the_phone_before_and_long_ones_are_pauses():
    phones = contiguous([("b", 0.1, 0.2), ("aa1", 0.21, 0.3), ("m", 0.5, 0.6)], 0.8)
    assert phones == (
        (PAUSE, 0.0, 0.1),
        ("b", 0.1, 0.21),
        ("aa1", 0.21, 0.3),
        (PAUSE, 0.3, 0.5),
        ("m", 0.5, 0.6),
        (PAUSE, 0.6, 0.8),
    )


@given(
    st.lists(st.tuples(st.sampled_from(["aa", "b", PAUSE]), st.floats(-1, 3), st.floats(-1, 3)), max_size=12)
)
def test_contiguous_phones_cover_the_sound(phones):
    whole = contiguous(phones, 2.0)
    assert whole[0][1] == 0
    assert whole[-1][2] == 2.0
    assert all(first[2] == second[1] for first, second in itertools.pairwise(whole))
    assert all(end_s > start_s for _, start_s, end_s in whole)
    assert not any(first[0] == second[0] == PAUSE for first, second in itertools.pairwise(whole))


def test_stress_comes_from_another_engine_whose_vowels_differ():
    phones = [("hh", 0, 1), ("eh", 1, 2), ("l", 2, 3), (PAUSE, 3, 4), ("ow", 4, 5)]
    stressed = with_stress(phones, ("hh", "ax", "l", "ow1"))
    assert [label for label, _, _ in stressed] == ["hh", "eh", "l", PAUSE, "ow1"]
    assert [phone[1:] for phone in stressed] == [phone[1:] for phone in phones]
