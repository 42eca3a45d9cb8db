from __future__ import annotations

import functools
import json
import logging
import shutil

import pytest

from models.speaker_folders import FoundSpeaker, list_speakers
from streaming.session.speaker_list import SpeakerEntry, SpeakerList


@pytest.fixture
def folder(tmp_path, tiny_bundle):
    for name in ("Ada", "Ben"):
        (tmp_path / name).mkdir()
        shutil.copy(tiny_bundle / "speaker.json", tmp_path / name)
    return tmp_path


@pytest.fixture
def listed(folder):
    """A list of that folder's bundles alone."""

    def find():
        return [found for found in list_speakers(speakers_dir=folder) if found.place == "speakers dir"]

    return SpeakerList(find)


def test_entries_say_what_a_page_wants_to_know(listed):
    assert listed.entries() == [
        SpeakerEntry(name="Ada", synthetic=True, image_size_px=512),
        SpeakerEntry(name="Ben", synthetic=True, image_size_px=512),
    ]


def test_a_broken_bundle_is_left_out_and_said_once(listed, folder, caplog):
    (folder / "Ben" / "speaker.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert [entry.name for entry in listed.entries()] == ["Ada"]
        assert [entry.name for entry in listed.entries()] == ["Ada"]
    [record] = caplog.records
    assert "speaker Ben is left out" in record.message
    assert str(folder / "Ben" / "speaker.json") in record.message


def test_a_bundle_is_read_again_once_it_has_changed(listed, folder):
    file = folder / "Ben" / "speaker.json"
    whole = file.read_text()
    file.write_text("{")
    assert len(listed.entries()) == 1
    file.write_text(whole)
    assert len(listed.entries()) == 2


def test_a_bundle_is_read_once(folder, monkeypatch):
    read = []
    real = SpeakerList.entries.__globals__["read_settings"]
    monkeypatch.setattr(
        "streaming.session.speaker_list.read_settings", lambda path: (read.append(path), real(path))[1]
    )
    found = [FoundSpeaker(name="Ada", path=folder / "Ada", place="user")]
    listed = SpeakerList(lambda: found)
    assert listed.entries() == listed.entries()
    assert read == [folder / "Ada"]


def test_a_bundle_that_is_gone_meanwhile_is_left_out(tmp_path):
    found = [FoundSpeaker(name="Gone", path=tmp_path / "Gone", place="user")]
    assert SpeakerList(lambda: found).entries() == []


@pytest.mark.parametrize("change", [{"schema_version": 99}, {"image_size_px": 15}, {"name": ""}])
def test_a_bundle_of_another_kind_is_left_out(listed, folder, change):
    file = folder / "Ada" / "speaker.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert [entry.name for entry in listed.entries()] == ["Ben"]


def test_a_name_leads_to_its_bundle(listed, folder):
    assert listed.path_of("Ben") == folder / "Ben"
    assert listed.path_of("Nobody") is None


@pytest.mark.parametrize("name", ["", ".", "..", "/", "../Ada", "Ada/", "Ada\0", "ada", "x" * 5000])
def test_nothing_but_a_name_is_looked_up(listed, name):
    assert listed.path_of(name) is None


def test_a_path_is_no_name_of_a_speaker(listed, folder):
    assert listed.path_of(str(folder / "Ada")) is None


def test_the_packaged_speakers_are_listed_by_default():
    assert "May" in [entry.name for entry in SpeakerList(functools.partial(list_speakers)).entries()]
