import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.pipeline.pcm_motion import PcmRing


def windows_of(pcm, chunks, *, window_samples=3 * 640 + 192, lookahead_frames=2):
    ring = PcmRing(window_samples=window_samples, lookahead_frames=lookahead_frames)
    found = []

    def take(windows):
        found.extend((w.frame, w.samples.copy(), w.sound) for w in windows)

    at = 0
    for chunk in chunks:
        take(ring.push(pcm[at : at + chunk]))
        at += chunk
    take(ring.push(pcm[at:]))
    take(ring.finish())
    return found


def expected(pcm, frame, window_samples, lookahead_frames):
    before = np.zeros(window_samples + 640 * 8)  # silence; after the end the sound runs backwards
    padded = np.concatenate([before, pcm, pcm[::-1], before])
    end = len(before) + 640 * (frame + 1 + lookahead_frames)
    return padded[end - window_samples : end].astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(
    samples=st.integers(1, 9000),
    chunks=st.lists(st.integers(1, 3000), max_size=20),
    window_frames=st.integers(1, 6),
    lookahead=st.integers(0, 4),
)
def test_each_frame_has_its_window_however_the_sound_came(samples, chunks, window_frames, lookahead):
    pcm = np.arange(1, samples + 1, dtype=np.float32)
    window_samples = 640 * window_frames + 192
    found = windows_of(pcm, chunks, window_samples=window_samples, lookahead_frames=lookahead)
    assert [frame for frame, _, _ in found] == list(range(-(-samples // 640)))
    for frame, window, sound in found:
        assert np.array_equal(window[0], expected(pcm, frame, window_samples, lookahead))
        own = np.zeros(640, np.float32)
        own[: len(pcm[640 * frame : 640 * (frame + 1)])] = pcm[640 * frame : 640 * (frame + 1)]
        assert np.array_equal(sound, own)


@pytest.mark.parametrize("lookahead", [0, 4])
def test_a_frame_comes_as_soon_as_its_lookahead_is_there(lookahead):
    ring = PcmRing(window_samples=5 * 640, lookahead_frames=lookahead)
    due = 640 * (1 + lookahead)
    assert list(ring.push(np.ones(due - 1, np.float32))) == []
    assert [w.frame for w in ring.push(np.ones(1, np.float32))] == [0]


def test_no_sound_has_no_windows():
    ring = PcmRing(window_samples=832, lookahead_frames=4)
    assert list(ring.finish()) == []


def test_lost_sound_becomes_silence_and_the_numbers_stay_true():
    ring = PcmRing(window_samples=640, lookahead_frames=0)
    assert [w.frame for w in ring.push(np.ones(1280, np.float32))] == [0, 1]
    gap = [(w.frame, float(w.samples.sum())) for w in ring.skip_to(2240)]
    assert gap == [(2, 0.0)]
    after = [(w.frame, float(w.samples.sum())) for w in ring.push(np.ones(320, np.float32))]
    assert after == [(3, 320.0)]


def test_after_a_restart_earlier_sound_is_gone():
    ring = PcmRing(window_samples=1280, lookahead_frames=1)
    list(ring.push(np.ones(5000, np.float32)))
    ring.restart(5000)
    found = [(w.frame, float(w.samples.sum())) for w in ring.push(np.full(1500, 2, np.float32))]
    # Frame 7 holds samples [4480, 5120), its window ends at 5760.
    assert found == [(7, 2.0 * 760), (8, 2.0 * 1280)]
