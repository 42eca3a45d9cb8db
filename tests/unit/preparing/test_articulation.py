"""Phones to lips: closures sealed and on time, lips before the sound, shut in silence, nothing but the
rig's faces.
"""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.lip_track import mouth_of
from cuda_kernels.arrays import F64
from cuda_kernels.errors import InputError
from models.time_base import FRAME_RATE_HZ, FRAME_SAMPLES
from preparation.sounds import CONSONANTS, VOWELS, Phone
from preparation.synthetic.articulation import articulate
from preparation.synthetic.rig import load_rig
from preparation.synthetic.styles import Style

MAY = -1


def spoken(*labels: str, phone_s: float = 0.12, rest_s: float = 0.8) -> tuple[list[Phone], int]:
    """Returns phones of equal length between two silences, and the number of frames."""
    phones: list[Phone] = [("pau", 0.0, rest_s)]
    for label in labels:
        phones.append((label, phones[-1][2], phones[-1][2] + phone_s))
    phones.append(("pau", phones[-1][2], phones[-1][2] + rest_s))
    frames = round(phones[-1][2] * FRAME_RATE_HZ)
    phones[-1] = ("pau", phones[-1][1], frames / FRAME_RATE_HZ)
    return phones, frames


def mouth(phones: list[Phone], frames: int, style: Style | None = None) -> tuple[F64, F64]:
    """Returns opening and width of May's mouth in mm."""
    pcm = np.zeros(frames * FRAME_SAMPLES, np.int16)
    landmarks = articulate(phones, pcm, frames=frames, style=style or Style()).landmarks(MAY)
    opening, width = mouth_of(landmarks)
    return 100 * opening, 100 * width


def middle_frame(phones: list[Phone], label: str) -> float:
    """Returns the frame at a phone's middle."""
    _, start_s, end_s = next(phone for phone in phones if phone[0] == label)
    return (start_s + end_s) / 2 * FRAME_RATE_HZ - 0.5


def test_every_phone_has_a_target_with_stress_or_without() -> None:
    for label in (*CONSONANTS, *VOWELS):
        phones, frames = spoken("ah", label + ("1" if label in VOWELS else ""), "ah")
        opening, width = mouth(phones, frames)
        assert np.isfinite(opening).all()
        assert np.ptp(width) > 0


def test_an_unknown_phone_is_refused_by_name() -> None:
    phones, frames = spoken("ah", "xx", "ah")
    with pytest.raises(InputError) as refused:
        mouth(phones, frames)
    assert '"xx"' in str(refused.value)


@pytest.mark.parametrize("label", ["b", "p", "m"])
@pytest.mark.parametrize("vowel", ["aa", "iy", "uw", "eh"])
def test_bilabials_seal_the_lips_between_any_vowels(label: str, vowel: str) -> None:
    phones, frames = spoken(vowel, label, vowel, phone_s=0.08)
    opening, _ = mouth(phones, frames)
    at = middle_frame(phones, label)
    around = opening[int(at) - 2 : int(at) + 2]
    assert around.min() < opening[0] + 0.5  # as closed as at rest


def test_the_closure_is_before_the_middle_of_its_phone_and_within_a_tenth_of_a_second() -> None:
    phones, frames = spoken("aa", "m", "aa", phone_s=0.16)
    opening, _ = mouth(phones, frames)
    inside = slice(int(middle_frame(phones, "m")) - 5, int(middle_frame(phones, "m")) + 6)
    weight = np.clip(opening[inside].max() / 2 - opening[inside], 0, None)
    centre = (weight * np.arange(inside.start, inside.stop)).sum() / weight.sum()
    lead_ms = 40 * (middle_frame(phones, "m") - centre)
    assert 20 < lead_ms < 90


def test_labiodentals_nearly_close_and_do_not_open() -> None:
    phones, frames = spoken("ah", "f", "ah")
    opening, _ = mouth(phones, frames)
    at = round(middle_frame(phones, "f"))
    assert opening[at - 2 : at + 1].min() < 0.6 * opening.max()


def test_rounding_begins_before_the_vowel_sounds() -> None:
    phones, frames = spoken("s", "t", "uw", "t")
    _, width = mouth(phones, frames)
    start = round(next(start_s for label, start_s, _ in phones if label == "uw") * FRAME_RATE_HZ)
    resting = width[2]
    assert width[start] < resting - 0.3 * (resting - width.min())


def test_the_mouth_is_shut_and_still_inside_silence() -> None:
    phones, frames = spoken("aa", "iy", rest_s=2.0)
    opening, width = mouth(phones, frames)
    inside = slice(5, round(1.7 * FRAME_RATE_HZ))
    assert np.ptp(opening[inside]) < 0.1
    assert np.ptp(width[inside]) < 0.1
    assert opening[inside].max() < opening.max() / 3


def test_lips_stay_parted_in_a_short_pause() -> None:
    phones, frames = spoken("aa", "t", "pau", "t", "aa", phone_s=0.14)
    opening, _ = mouth(phones, frames)
    at = round(middle_frame([phone for phone in phones if phone[1] > 1.0], "pau"))
    assert opening[at] > opening[2] + 1.0


def test_a_style_changes_the_motion_and_a_face_its_rest() -> None:
    phones, frames = spoken("aa", "uw", "iy")
    pcm = np.zeros(frames * FRAME_SAMPLES, np.int16)
    plain = articulate(phones, pcm, frames=frames, style=Style())
    wide = articulate(phones, pcm, frames=frames, style=Style(opening=1.15))
    assert mouth_of(wide.landmarks(MAY))[0].max() > mouth_of(plain.landmarks(MAY))[0].max()
    assert not np.allclose(plain.landmarks(0)[0], plain.landmarks(1)[0], atol=1e-3)


def test_a_louder_vowel_opens_the_jaw_only_a_little_more() -> None:
    phones, frames = spoken("t", "t", "aa", "t", "t", "aa", "t", "t")
    noise = np.random.default_rng(0).standard_normal(frames * FRAME_SAMPLES)
    pcm = 950 * noise  # the median phone, 10 dB from either vowel
    vowels = [(round(s * 16000), round(e * 16000)) for label, s, e in phones if label == "aa"]
    for (first, last), level in zip(vowels, (300, 3000), strict=True):
        pcm[first:last] = level * noise[first:last]
    landmarks = articulate(phones, pcm.astype(np.int16), frames=frames, style=Style()).landmarks(MAY)
    opening, _ = mouth_of(landmarks)
    quiet, loud = (opening[first // 640 - 1 : last // 640].max() for first, last in vowels)
    # By 10 / 6 of the style's tenth more and less, so at most 1.17 / 0.83.
    assert 1.05 < loud / quiet < 1.4


def test_the_rig_holds_fifteen_faces_about_one_mean() -> None:
    rig = load_rig()
    assert rig.neutral.shape == (15, 68, 3)
    assert rig.morphs.shape == (len(rig.names), 68, 3)
    assert float(np.abs(rig.neutral - rig.mean_face).max()) < 0.5
