"""Every number that a training is told has a range, and what lies outside is refused by its field."""

from __future__ import annotations

import math
import typing

import pytest

from models.settings import SettingsError, from_flags
from training.audio2motion import Audio2MotionSettings, MotionWeights
from training.corpus import CropSettings, DegradeSettings
from training.field_optimizer import FieldTrainingSettings
from training.head import HeadTrainingSettings
from training.head_student import StudentTrainingSettings
from training.loop import LoopSettings
from training.postnet import PostNetSettings
from training.ray_sampler import SamplingShares
from training.syncnet import SyncNetSettings
from training.torso import TorsoTrainingSettings

ALL = [
    Audio2MotionSettings,
    CropSettings,
    DegradeSettings,
    FieldTrainingSettings,
    HeadTrainingSettings,
    LoopSettings,
    MotionWeights,
    PostNetSettings,
    SamplingShares,
    StudentTrainingSettings,
    SyncNetSettings,
    TorsoTrainingSettings,
]
MAY_BE_NEGATIVE = {"gain_low_db", "gain_high_db", "snr_low_db", "snr_high_db"}


def numbers_of(settings):
    """Yields the name and type of each field that is a number."""
    for name, hint in typing.get_type_hints(settings).items():
        kinds = {*typing.get_args(hint), hint} & {int, float}
        if kinds:
            yield name, kinds.pop()


@pytest.mark.parametrize(
    ("settings", "name", "kind"),
    [
        pytest.param(settings, name, kind, id=f"{settings.__name__}-{name}")
        for settings in ALL
        for name, kind in numbers_of(settings)
    ],
)
def test_a_number_out_of_range_is_refused_by_its_field(settings, name, kind):
    for number in (-1e-9, -math.inf, math.nan, math.inf, 1e30) if kind is float else (-1, 10**30):
        if name in MAY_BE_NEGATIVE and number == -1e-9:
            continue
        with pytest.raises(SettingsError) as refusal:
            settings(**{name: number})
        assert refusal.value.field == name


@pytest.mark.parametrize(
    ("settings", "flag", "text"),
    [
        (LoopSettings, "seed", "18446744073709551616"),
        (SyncNetSettings, "max_clips", "0"),
        (PostNetSettings, "batch", "0"),
        (PostNetSettings, "batch", "1000000000000"),
        (Audio2MotionSettings, "frames", "10000000000"),
        (Audio2MotionSettings, "motion.mouth", "-1"),
        (HeadTrainingSettings, "anneal_steps", "0"),
        (HeadTrainingSettings, "pixels_per_frame", "0"),
        (HeadTrainingSettings, "mouth_share", "2"),
        (HeadTrainingSettings, "window_frames", "0"),
        (TorsoTrainingSettings, "validation_frames", "0"),
    ],
)
def test_a_flag_out_of_range_is_refused(settings, flag, text):
    with pytest.raises(SettingsError) as refusal:
        from_flags(settings, {flag: text})
    assert (refusal.value.field, "\n" in str(refusal.value)) == (flag, False)


def test_the_largest_seed_is_taken():
    assert LoopSettings(seed=2**63 - 1).seed == 2**63 - 1


def test_shares_of_the_rays_leave_something_for_the_figure():
    with pytest.raises(SettingsError, match="at most 1 together"):
        SamplingShares(mouth=0.6, eyes=0.6)
