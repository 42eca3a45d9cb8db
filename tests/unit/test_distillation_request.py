"""What a distillation may be asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from export.distillation_request import DistillationRequest

FOLDERS = {"bundle": Path("a/May"), "speech": Path("b"), "out": Path("c/Small")}


def test_the_work_folder_stands_beside_the_bundle_unless_it_is_given():
    assert DistillationRequest(**FOLDERS).work_folder == Path("c/Small.work")
    assert DistillationRequest(**FOLDERS, work=Path("d")).work_folder == Path("d")


def test_a_lookahead_is_whole_frames():
    assert DistillationRequest(**FOLDERS).lookahead_frames == 4
    assert DistillationRequest(**FOLDERS, lookahead_ms=0).lookahead_frames == 0


def test_every_field_has_its_help():
    assert all(entry.metadata["help"] for entry in dataclasses.fields(DistillationRequest))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lookahead_ms": 200}, "lookahead_ms: expected 0 to 160 in steps of 40, got 200"),
        ({"lookahead_ms": 50}, "lookahead_ms: expected 0 to 160 in steps of 40, got 50"),
        ({"lookahead_ms": -40}, "lookahead_ms"),
        ({"steps": 0}, "steps: expected 1 or more, got 0"),
        ({"batch": 0}, "batch: expected 1 or more, got 0"),
        ({"temperature": 2.5}, "temperature: expected 0 to 2, got 2.5"),
        ({"temperature": float("nan")}, "temperature"),
        ({"max_minutes": 0.0}, "max_minutes: expected more than 0"),
        ({"out": Path("a/../a/May")}, "out: expected another folder than the teacher's bundle"),
        ({"out": Path("b/Small")}, "out: expected a folder outside of speech"),
        ({"work": Path("b")}, "work: expected a folder outside of speech"),
    ],
)
def test_what_cannot_be_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        DistillationRequest(**(FOLDERS | given))


@pytest.mark.parametrize("name", ["bundle", "speech", "out", "work"])
def test_links_in_a_circle_are_left_to_those_who_open_them(tmp_path, name):
    link = tmp_path / "loop"
    link.symlink_to(link)
    assert getattr(DistillationRequest(**{**FOLDERS, name: link}), name) == link
