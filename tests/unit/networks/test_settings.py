from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import pytest

from cuda_kernels.arrays import F32
from models.settings import Range, SettingsError, Shape, check_ranges, from_mapping, to_mapping


@dataclass(frozen=True, kw_only=True)
class Inner:
    depth: Annotated[int, Range(1, 5)]

    def __post_init__(self):
        check_ranges(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Outer:
    name: str
    speed: float
    inner: Inner
    other: Inner | None
    widths: tuple[int, ...] = (1, 2)
    offset: Annotated[tuple[float, float], Range(-1, 1)] = (0.0, 0.0)
    enabled: bool = False
    points: Annotated[F32 | None, Shape(2, 3)] = None
    errors: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        check_ranges(self)


WITHIN = "2x3 numbers within 1e6"
GOOD = {"name": "a", "speed": 1, "inner": {"depth": 2}, "other": None}


def test_round_trip_is_exact():
    points = np.random.default_rng(0).normal(0, 100, (2, 3)).astype(np.float32)
    mapping = GOOD | {"other": {"depth": 5}, "points": points.tolist(), "errors": {"x": 1e-7}, "widths": [3]}
    settings = from_mapping(Outer, mapping)
    again = from_mapping(Outer, to_mapping(settings))
    np.testing.assert_array_equal(again.points, points)
    assert again.widths == (3,)
    assert again.other == Inner(depth=5)
    assert to_mapping(again) == to_mapping(settings)
    assert isinstance(again.speed, float)


@pytest.mark.parametrize(
    ("change", "field", "expected", "got"),
    [
        ({"nmae": 1}, "nmae", "enabled, errors, offset, points, widths", "an unknown key"),
        ({"inner": {"depth": 2, "width": 1}}, "inner.width", "no further key", "an unknown key"),
        ({"inner": {}}, "inner.depth", "a value", "none: the key is missing"),
        ({"inner": None}, "inner", "an object", "null"),
        ({"inner": {"depth": 9}}, "inner.depth", "1 to 5", "9"),
        ({"inner": {"depth": True}}, "inner.depth", "a whole number", "true"),
        ({"inner": {"depth": 2.0}}, "inner.depth", "a whole number", "2.0"),
        ({"name": 3}, "name", "a text", "3"),
        ({"speed": "fast"}, "speed", "a number", '"fast"'),
        ({"speed": float("nan")}, "speed", "a finite number", "nan"),
        ({"speed": 10**400}, "speed", "a finite number", "a huge number"),
        ({"enabled": 1}, "enabled", "true or false", "1"),
        ({"widths": [1, "2"]}, "widths[1]", "a whole number", '"2"'),
        ({"offset": [1.0]}, "offset", "a list of 2", "a list of 1"),
        ({"offset": [1.0, -1.5]}, "offset", "-1 to 1", "-1.5"),
        ({"points": [[1, 2, 3]]}, "points", WITHIN, "1x3"),
        ({"points": [[1, 2, 3], [1, 2]]}, "points", WITHIN, "something else"),
        (
            {"points": [[1, 2, 3], [1, 2, 1e30]]},
            "points",
            "2x3 numbers within 1e6",
            "a value outside or not finite",
        ),
        ({"points": "x"}, "points", WITHIN, "something else"),
        ({"errors": {"psnr": None}}, "errors.psnr", "a number", "null"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_its_field(change, field, expected, got):
    with pytest.raises(SettingsError) as caught:
        from_mapping(Outer, GOOD | change)
    assert (caught.value.field, caught.value.expected, caught.value.got) == (field, expected, got)


def test_a_missing_key_is_refused_by_its_field():
    with pytest.raises(SettingsError) as caught:
        from_mapping(Outer, {key: value for key, value in GOOD.items() if key != "speed"})
    assert caught.value.field == "speed"
