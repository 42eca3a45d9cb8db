from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest

from cuda_kernels.arrays import F32
from models.settings import (
    ABOVE_0,
    BELOW_1,
    Option,
    Parser,
    Range,
    SettingsError,
    Shape,
    add_flags,
    check_ranges,
    flags_of,
    from_flags,
    from_mapping,
    texts_of,
    to_mapping,
)


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


@dataclass(frozen=True, kw_only=True)
class Limited:
    share: Annotated[float, BELOW_1] = 0.0
    minutes: Annotated[float | None, Range(ABOVE_0)] = None
    lag_ms: Annotated[int, Range(0, 160, step=40)] = 0
    rays: Annotated[int, Range(256)] = 256
    crf: Annotated[int, Range(0, 51, words="0 (best) to 51 (worst)")] = 20
    width: Literal[32, 64] = 32

    def __post_init__(self):
        check_ranges(self)


@pytest.mark.parametrize(
    ("name", "fits", "does_not", "expected"),
    [
        ("share", 0.99, 1.0, "0 or more and less than 1"),
        ("minutes", 1e-300, 0.0, "more than 0"),
        ("minutes", None, float("nan"), "more than 0"),
        ("lag_ms", 80, 100, "0 to 160 in steps of 40"),
        ("rays", 10**9, 255, "256 or more"),
        ("crf", 51, 52, "0 (best) to 51 (worst)"),
        ("width", 64, 48, "32 or 64"),
    ],
)
def test_a_range_says_what_it_expects(name, fits, does_not, expected):
    assert getattr(Limited(**{name: fits}), name) == fits
    with pytest.raises(SettingsError) as refused:
        Limited(**{name: does_not})
    assert (refused.value.field, refused.value.expected) == (name, expected)


# Flags and variables --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Weights:
    mouth_share: Annotated[float, Option("of the mouth")] = 0.5
    jaw: Annotated[float, Option("of the jaw")] = 0.25


def size_or_auto(text):
    return None if text == "auto" else int(text)


@dataclass(frozen=True, kw_only=True)
class Run:
    source: Annotated[Path, Option("what is read", positional=True)]
    out: Annotated[Path, Option("what is written")]
    steps: Annotated[int, Range(1), Option("in all")] = 10
    size: Annotated[int | None, Option("px", metavar="N|auto", parse=size_or_auto)] = 5
    kernels: Annotated[Literal["own", "torch"], Option("which run")] = "own"
    compile: Annotated[bool, Option("compile")] = False
    files: Annotated[tuple[Path, ...], Option("more")] = ()
    sites: Annotated[tuple[str, ...], Option("who may", repeats=True, parse=str.upper, group="who")] = ()
    mic: Annotated[str | None, Option("which", without_value="default", group="who")] = None
    weights: Weights = field(default_factory=Weights)
    at: int = 0

    def __post_init__(self):
        check_ranges(self)


GIVEN = {"source": "a", "out": "b"}


def parse(*arguments, defaults=None, **more):
    parser = Parser(prog="program")
    add_flags(parser, flags_of(Run, defaults).values(), **more)
    return vars(parser.parse_args(arguments))


def test_each_field_with_an_option_is_a_flag_and_a_variable():
    flags = flags_of(Run)
    metavars = {str(flag): flag.metavar for flag in flags.values()}
    assert metavars == {
        "--source": "PATH",
        "--out": "PATH",
        "--steps": "N",
        "--size": "N|auto",
        "--kernels": "own|torch",
        "--compile": "COMPILE",
        "--files": "PATH",
        "--sites": "SITES",
        "--mic": "MIC",
        "--weights.mouth-share": "NUMBER",
        "--weights.jaw": "NUMBER",
    }
    assert flags["weights.mouth_share"].variable("MINE_") == "MINE_WEIGHTS_MOUTH_SHARE"


def test_the_command_line_tells_only_what_was_given():
    assert parse("a", "--out", "b") == GIVEN
    assert from_flags(Run, GIVEN) == Run(source=Path("a"), out=Path("b"))


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--steps", "3"], "steps", 3),
        (["--size", "auto"], "size", None),
        (["--size", "7"], "size", 7),
        (["--kernels", "torch"], "kernels", "torch"),
        (["--compile"], "compile", True),
        (["--compile", "--no-compile"], "compile", False),
        (["--files", "my file", "b"], "files", (Path("my file"), Path("b"))),
        (["--sites", "x, y", "--sites", "z"], "sites", ("X", "Y", "Z")),
        (["--mic"], "mic", "default"),
        (["--mic", "2"], "mic", "2"),
        (["--weights.jaw", "1"], "weights", Weights(jaw=1.0)),
    ],
)
def test_a_flag_becomes_the_value_of_its_field(arguments, name, value):
    assert getattr(from_flags(Run, parse("a", "--out", "b", *arguments)), name) == value


def test_a_variable_is_read_as_its_flag_is_and_an_empty_one_counts_as_none():
    environment = {"MINE_OUT": "b", "MINE_STEPS": "4", "MINE_SIZE": "", "MINE_COMPILE": "yes", "OTHER": "x"}
    environment |= {"MINE_FILES": "c d", "MINE_SITES": "x,y", "MINE_WEIGHTS_JAW": "2"}
    texts = texts_of(flags_of(Run).values(), environment, prefix="MINE_")
    run = from_flags(Run, texts | {"source": "a", "steps": "5"})
    files = (Path("c"), Path("d"))
    expected = {"compile": True, "files": files, "sites": ("X", "Y"), "weights": Weights(jaw=2.0)}
    assert run == Run(source=Path("a"), out=Path("b"), steps=5, **expected)


def test_values_of_an_instance_stand_in_for_the_defaults():
    own = Run(source=Path("a"), out=Path("b"), steps=7, compile=True, weights=Weights(jaw=3.0))
    given = parse("c", "--weights.mouth-share", "1", "--no-compile", defaults=own)
    weights = Weights(mouth_share=1.0, jaw=3.0)
    assert from_flags(Run, given, defaults=own) == Run(
        source=Path("c"), out=Path("b"), steps=7, weights=weights
    )


@pytest.mark.parametrize(
    ("given", "prefix", "field", "expected", "got", "way_out"),
    [
        ({"steps": "x"}, "MINE_", "--steps (or MINE_STEPS)", "N", "'x'", "in all"),
        ({"steps": "1.5"}, "", "--steps", "N", "'1.5'", "in all"),
        ({"size": "big"}, "", "--size", "N|auto", "'big'", "px"),
        ({"kernels": "cuda"}, "", "--kernels", "own|torch", "'cuda'", "which run"),
        ({"compile": "maybe"}, "", "--compile", "true or false", "'maybe'", "compile"),
        ({"weights.jaw": "x"}, "", "--weights.jaw", "NUMBER", "'x'", "of the jaw"),
        ({"steps": "0"}, "MINE_", "steps", "1 or more", "0", ""),
    ],
)
def test_a_text_that_does_not_fit_is_refused(given, prefix, field, expected, got, way_out):
    with pytest.raises(SettingsError) as refused:
        from_flags(Run, GIVEN | given, prefix=prefix)
    error = refused.value
    assert (error.field, error.expected, error.got, error.way_out) == (field, expected, got, way_out)


def test_a_name_that_is_no_flags_is_refused():
    with pytest.raises(SettingsError) as refused:
        from_flags(Weights, {"jam": "1"})
    assert (refused.value.field, refused.value.expected) == ("jam", "mouth_share, jaw")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a"], "the following arguments are required: --out"),
        (["--out", "b"], "the following arguments are required: source"),
        (["a", "--out", "b", "--\rx"], "unrecognized arguments: --\\rx"),
    ],
)
def test_wrong_usage_is_one_visible_line_and_exit_code_2(capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        parse(*arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"program: {said}; program --help shows what there is\n"


def test_help_shows_what_stands_at_the_field(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "--out PATH what is written --steps N in all (default: 10)" in shown
    assert "who: --sites SITES who may" in shown


def test_a_switch_has_its_opposite_only_where_that_is_wanted():
    with pytest.raises(SystemExit):
        parse("a", "--out", "b", "--no-compile", negatable=False)
    assert parse("a", "--out", "b", "--compile", negatable=False)["compile"] is True
