"""What is being said during a frame, from phones or from loudness."""

import numpy as np

from preparation.sounds import Sound, classify_frames, quiet_frames


def test_frames_are_classified_by_their_middle():
    sounds = classify_frames(25, [("pau", 0.0, 0.39), ("m", 0.39, 0.52), ("aa", 0.52, 1.0)], "speech")
    assert sounds[:10].tolist() == [2, 2, 3, 3, 3, 3, 3, 2, 2, 2]
    assert sounds[10:13].tolist() == [Sound.BILABIAL] * 3
    assert (sounds[13:] == Sound.OTHER).all()
    assert (classify_frames(4, [], "noise") == Sound.REST).all()


def test_frames_are_quiet_where_nobody_speaks_around_them():
    pcm = np.zeros(640 * 30, np.int16)
    pcm[640 * 10 : 640 * 20] = 9000
    assert np.flatnonzero(~quiet_frames(pcm)).tolist() == list(range(8, 22))
