"""What a distillation may be asked for."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest

from export.requests import BundleRequest, DistillationRequest, GenefaceRequest, SlimRequest
from models.settings import SettingsError, flags_of

FOLDERS = {"bundle": Path("a/May"), "speech": Path("b"), "out": Path("c/Small")}
REQUIRED = {
    BundleRequest: {
        **dict.fromkeys(("audio2motion", "head", "data", "origin"), Path("a")),
        "out": Path("b"),
        "name": "A",
    },
    GenefaceRequest: {"checkpoints": Path("a"), "data": Path("b"), "speaker": "A", "out": Path("c")},
    DistillationRequest: FOLDERS,
    SlimRequest: {"bundle": Path("a"), "out": Path("b"), "speech": (Path("c"),)},
}


def test_the_work_folder_stands_beside_the_bundle_unless_it_is_given():
    assert DistillationRequest(**FOLDERS).work_folder == Path("c/Small.work")
    assert DistillationRequest(**FOLDERS, work=Path("d")).work_folder == Path("d")


def test_a_lookahead_is_whole_frames():
    assert DistillationRequest(**FOLDERS).lookahead_frames == 4
    assert DistillationRequest(**FOLDERS, lookahead_ms=0).lookahead_frames == 0


@pytest.mark.parametrize("request_type", [BundleRequest, DistillationRequest, GenefaceRequest, SlimRequest])
def test_every_field_of_a_request_is_a_flag(request_type):
    assert list(flags_of(request_type)) == [entry.name for entry in dataclasses.fields(request_type)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lookahead_ms": 200}, "lookahead_ms: expected 0 to 160 in steps of 40, got 200"),
        ({"lookahead_ms": 50}, "lookahead_ms: expected 0 to 160 in steps of 40, got 50"),
        ({"lookahead_ms": -40}, "lookahead_ms"),
        ({"steps": 0}, "steps: expected 1 to 10000000, got 0"),
        ({"batch": 0}, "batch: expected 1 to 65536, got 0"),
        ({"temperature": 2.5}, "temperature: expected 0 to 2, got 2.5"),
        ({"temperature": float("nan")}, "temperature"),
        ({"max_minutes": 0.0}, "max_minutes: expected more than 0"),
        ({"out": Path("a/../a/May")}, "out: expected another folder than the teacher's bundle"),
        ({"out": Path("b/Small")}, "out: expected a folder outside of speech"),
        ({"work": Path("b")}, "work: expected a folder outside of speech"),
    ],
)
def test_a_request_that_cannot_be_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        DistillationRequest(**(FOLDERS | given))


@pytest.mark.parametrize("name", ["bundle", "speech", "out", "work"])
def test_a_link_to_itself_is_left_to_whoever_opens_it(tmp_path, name):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert getattr(DistillationRequest(**(FOLDERS | {name: loop})), name) == loop


def test_one_folder_is_found_out_behind_links(tmp_path):
    (tmp_path / "May").mkdir()
    (tmp_path / "link").symlink_to("May")
    with pytest.raises(ValueError, match="out: expected another folder than the teacher's bundle"):
        DistillationRequest(bundle=tmp_path / "May", speech=Path("b"), out=tmp_path / "link")
    with pytest.raises(ValueError, match="out: expected another folder than the bundle's"):
        SlimRequest(bundle=tmp_path / "May", out=tmp_path / "link", speech=(Path("b"),))


@pytest.mark.skipif(os.name == "nt", reason="a working folder cannot be deleted there")
@pytest.mark.parametrize(
    "make",
    [
        lambda: DistillationRequest(**FOLDERS),
        lambda: SlimRequest(bundle=Path("a"), out=Path("b"), speech=(Path("c"),)),
    ],
)
def test_a_relative_path_in_a_deleted_working_folder_is_one_line(tmp_path, monkeypatch, make):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ValueError, match="expected a path that can be followed") as error:
        make()
    assert "\n" not in str(error.value)


NUMBERS = [
    (request_type, entry.name)
    for request_type in REQUIRED
    for entry in dataclasses.fields(request_type)
    if re.search(r"Annotated\[\s*(int|float)\b", str(entry.type))
]


@pytest.mark.parametrize(("request_type", "name"), NUMBERS)
def test_no_number_of_a_request_is_without_limits(request_type, name):
    assert len(NUMBERS) >= 20
    for number in (float("nan"), float("inf"), float("-inf"), -(10**30), 10**30, 1e308):
        with pytest.raises(SettingsError) as refused:
            request_type(**{**REQUIRED[request_type], name: number})
        assert refused.value.field == name
