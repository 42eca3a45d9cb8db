"""The phone set, ARPAbet in lower case, and the maps from engines' sets into it.

A vowel may end in a digit of stress as in CMUdict: 1 primary, 2 secondary, 0 or none without. Sounds that
English lacks become what the lips do alike: front rounded vowels round ones, nasal vowels oral ones, taps and
trills d or l (the English r is rounded), x and the uvular r hh.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from ..sounds import PAUSE, PHONE_CLASSES, VOWELS, Phone, base

MIN_PAUSE_S = 0.04
"""A shorter silence is part of the phones around it."""

_FESTIVAL = {"axr": "er", "dx": "d", "nx": "n", "el": "l", "em": "m", "en": "n", "h#": PAUSE, "brth": PAUSE}
_STRESS = {"ˈ": "1", "'": "1", "ˌ": "2"}
_SILENT = frozenset("ʔ‿·.|-")
_IPA = {
    # diphthongs and affricates, before their parts
    "aɪ": "ay", "aʊ": "aw", "eɪ": "ey", "oʊ": "ow", "əʊ": "ow", "ɔɪ": "oy", "ɔʏ": "oy", "ɔø": "oy", "aɪə": "ay ax",
    "aʊə": "aw ax", "au": "aw", "eu": "eh uw", "ai": "ay", "ei": "ey", "oi": "oy", "ou": "ow", "ɛɪ": "ey",
    "tʃ": "ch", "dʒ": "jh", "ʧ": "ch", "ʤ": "jh", "tɕ": "ch", "dʑ": "jh", "ʨ": "ch", "ʥ": "jh", "ts": "t s",
    "ʦ": "t s", "dz": "d z", "ʣ": "d z", "pf": "p f",
    # vowels
    "i": "iy", "ɪ": "ih", "ᵻ": "ih", "ɨ": "ih", "ɯ": "ih", "e": "eh", "ɛ": "eh", "ε": "eh", "æ": "ae", "a": "aa",
    "ɑ": "aa", "ɐ": "ah", "ə": "ax", "ᵊ": "ax", "ɘ": "ax", "ɚ": "er", "ɜ": "er", "ɝ": "er", "ɞ": "er", "ʌ": "ah",
    "ɤ": "ah", "ɔ": "ao", "ɒ": "ao", "o": "ow", "u": "uw", "ʉ": "uw", "ʊ": "uh", "y": "uw", "ʏ": "uh", "ø": "uh",
    "œ": "uh", "ɵ": "uh",
    # consonants
    "p": "p", "b": "b", "t": "t", "d": "d", "ʈ": "t", "ɖ": "d", "k": "k", "g": "g", "ɡ": "g", "q": "k", "c": "k",
    "ɟ": "g", "m": "m", "ɱ": "v", "n": "n", "ɲ": "n", "ɳ": "n", "ŋ": "ng", "ɴ": "ng", "f": "f", "v": "v", "ɸ": "f",
    "β": "v", "ʋ": "v", "θ": "th", "ð": "dh", "s": "s", "z": "z", "ʃ": "sh", "ʒ": "zh", "ʂ": "sh", "ʐ": "zh",
    "ɕ": "sh", "ʑ": "zh", "ç": "hh", "x": "hh", "χ": "hh", "ɣ": "g", "ɰ": "g", "ʁ": "hh", "ʀ": "hh", "ħ": "hh",
    "h": "hh", "ɦ": "hh", "ɹ": "r", "ɻ": "r", "r": "l", "ɾ": "d", "ɽ": "d", "l": "l", "ɫ": "l", "ɭ": "l", "ʎ": "l",
    "ɬ": "l", "j": "y", "ʝ": "y", "ɥ": "w", "w": "w", "ʍ": "w",
}  # fmt: skip
_LONGEST = max(map(len, _IPA))


def from_festival(name: str) -> str:
    """Returns the label of a phone as festival and flite name it.

    Raises:
        KeyError: there is no such phone.
    """
    label = _FESTIVAL.get(name, name)
    if label not in PHONE_CLASSES:
        raise KeyError(name)
    return label


def from_ipa(text: str) -> tuple[str, ...]:
    """Returns the labels of an IPA text; a mark of stress goes to the next vowel, unknown signs to nothing."""
    plain = "".join(
        sign for sign in unicodedata.normalize("NFD", text.replace("ç", "\0")) if not _is_modifier(sign)
    ).replace("\0", "ç")
    labels: list[str] = []
    stress, at = "", 0
    while at < len(plain):
        if plain[at] in _STRESS:
            stress = _STRESS[plain[at]]
            at += 1
            continue
        for size in range(_LONGEST, 0, -1):
            found = _IPA.get(plain[at : at + size])
            if found is not None:
                break
        else:
            at += 1
            continue
        for label in found.split():
            if label in VOWELS and stress:
                label, stress = label + stress, ""
            labels.append(label)
        at += size
    return tuple(labels)


def _is_modifier(sign: str) -> bool:
    """Returns whether a sign only colours the one before it: a diacritic, a mark of length, a tie."""
    return sign in "ːˑʰʲˠˤ˞̩\u200d" or unicodedata.combining(sign) > 0 or sign in _SILENT


def contiguous(phones: Iterable[Phone], duration_s: float) -> tuple[Phone, ...]:
    """Returns phones in order that leave no gap from 0 to `duration_s`, rounded to 0.1 ms.

    A gap of at least `MIN_PAUSE_S` becomes a pause, a shorter one part of the phone before it; pauses that
    touch become one, and what has no length is dropped.
    """
    whole: list[Phone] = []
    end_s = 0.0

    def append(label: str, start_s: float, until_s: float) -> None:
        nonlocal end_s
        start_s, until_s = round(float(start_s), 4), round(float(until_s), 4)
        if until_s <= start_s:
            return
        if whole and label == PAUSE == whole[-1][0]:
            whole[-1] = (PAUSE, whole[-1][1], until_s)
        else:
            whole.append((label, start_s, until_s))
        end_s = until_s

    for label, start_s, stop_s in [*phones, (PAUSE, duration_s, duration_s)]:
        start_s, stop_s = min(max(start_s, end_s), duration_s), min(stop_s, duration_s)
        if start_s - end_s >= MIN_PAUSE_S or not whole:
            append(PAUSE, end_s, start_s)
        elif start_s > end_s:
            last, begin_s, _ = whole.pop()
            append(last, begin_s, start_s)
        append(label, start_s, stop_s)
    return tuple(whole)


def shifted(phones: Iterable[Phone], by_s: float) -> tuple[Phone, ...]:
    """Returns phones whose times are `by_s` later."""
    return tuple((label, start_s + by_s, end_s + by_s) for label, start_s, end_s in phones)


def with_stress(phones: Sequence[Phone], labels: Sequence[str]) -> tuple[Phone, ...]:
    """Returns phones with the stress of the vowels that they have in common with `labels`, in order.

    Args:
        phones: with times, of an engine that does not tell stress.
        labels: of the same text by another engine, stress at its vowels.
    """
    own = [base(label) for label, _, _ in phones if label != PAUSE]
    other = [base(label) for label in labels]
    vowel_cost = 0.4  # engines differ in vowels far more than in consonants
    cost = [[float(j) for j in range(len(other) + 1)]]
    for i, mine in enumerate(own, start=1):
        row = [float(i)]
        for j, theirs in enumerate(other, start=1):
            both = mine in VOWELS and theirs in VOWELS
            change = 0.0 if mine == theirs else vowel_cost if both else 1.5
            row.append(min(cost[-1][j - 1] + change, cost[-1][j] + 1, row[-1] + 1))
        cost.append(row)
    stress: dict[int, str] = {}
    i, j = len(own), len(other)
    while i and j:
        both = own[i - 1] in VOWELS and other[j - 1] in VOWELS
        change = 0.0 if own[i - 1] == other[j - 1] else vowel_cost if both else 1.5
        if cost[i][j] == cost[i - 1][j - 1] + change:
            i, j = i - 1, j - 1
            if both and labels[j][-1] in "12":
                stress[i] = labels[j][-1]
        elif cost[i][j] == cost[i - 1][j] + 1:
            i -= 1
        else:
            j -= 1
    stressed: list[Phone] = []
    number = 0
    for label, start_s, end_s in phones:
        if label != PAUSE:
            label = base(label) + stress.get(number, "")
            number += 1
        stressed.append((label, start_s, end_s))
    return tuple(stressed)
