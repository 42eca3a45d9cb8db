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


def test_a_frame_is_of_what_sounds_after_its_middle_when_its_lips_are_due():
    phones = [
        ("pau", 0.0, 0.79),
        ("m", 0.79, 0.95),
        ("aa", 0.95, 1.23),
        ("pau", 1.23, 1.59),  # too short to reach rest
        ("iy", 1.59, 1.87),
        ("p", 1.87, 2.0),
    ]
    pause, rest, closed, other = Sound.PAUSE, Sound.REST, Sound.BILABIAL, Sound.OTHER
    # Middles lie at 0.02 + 0.04 i; any lead of 50 to 90 ms gives these.
    expected = [pause] * 4  # middles before 0.15
    expected += [rest] * 11  # 0.18 to 0.58, before 0.79 - 0.20
    expected += [pause] * 3  # to 0.70
    expected += [closed] * 4 + [other] * 7 + [pause] * 9 + [other] * 7
    expected += [closed] * 5  # to the end, where no sound is left to prepare
    assert classify_frames(50, phones, "speech").tolist() == expected


def test_the_shortest_pause_with_rest_has_one_frame_of_it():
    found = classify_frames(12, [("pau", 0.0, 0.39), ("m", 0.39, 0.48)], "speech")
    assert np.flatnonzero(found == Sound.REST).tolist() == [4]  # its middle, 0.18, lies in [0.15, 0.19)
    assert (found[8:] == Sound.BILABIAL).all()


def test_a_clip_without_speech_is_all_rest():
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
