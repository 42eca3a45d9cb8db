"""What is being said during a frame, from phones or from loudness."""

import numpy as np

from preparation.sounds import (
    PHONE_CLASSES,
    UNKNOWN_PHONE,
    Sound,
    classify_frames,
    classify_phones,
    quiet_frames,
)


def test_frames_are_classified_by_their_middle():
    sounds = classify_frames(25, [("pau", 0.0, 0.39), ("m", 0.39, 0.52), ("aa", 0.52, 1.0)], "speech")
    assert sounds[:10].tolist() == [2, 2, 3, 3, 3, 3, 3, 2, 2, 2]
    assert sounds[10:13].tolist() == [Sound.BILABIAL] * 3
    assert (sounds[13:] == Sound.OTHER).all()
    assert (classify_frames(4, [], "noise") == Sound.REST).all()


def test_phones_are_told_twice_a_frame_with_or_without_stress():
    phones = [
        ("pau", 0.0, 0.04),
        ("AA", 0.04, 0.06),
        ("aa1", 0.06, 0.091),
        ("b", 0.091, 0.2),
        ("er0", 0.2, 9.0),
    ]
    found = classify_phones(6, phones, "speech")
    assert found.shape == (6, 2)
    labels = [PHONE_CLASSES[place] if place != UNKNOWN_PHONE else "?" for place in found.flatten()]
    assert labels == ["pau", "pau", "?", "aa", "aa", "b", "b", "b", "b", "b", "er", "er"]


def test_phones_are_silence_where_nobody_speaks_and_unknown_where_none_is_given():
    assert (classify_phones(3, [], "music") == PHONE_CLASSES.index("pau")).all()
    assert (classify_phones(3, [], "speech") == UNKNOWN_PHONE).all()


def test_frames_are_quiet_where_nobody_speaks_around_them():
    pcm = np.zeros(640 * 30, np.int16)
    pcm[640 * 10 : 640 * 20] = 9000
    assert np.flatnonzero(~quiet_frames(pcm)).tolist() == list(range(8, 22))
