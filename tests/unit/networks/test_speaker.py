from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import bundle_factory
import numpy as np
import pytest

from export.bundle.writer import seal, write_bundle
from models import speaker_folders
from models.bundle_files import BundleError
from models.settings import to_mapping
from models.speaker import load_speaker
from models.speaker_folders import UnknownSpeakerError, find_speaker, list_speakers, user_speakers_dir


def fields_of(scene):
    """Every array and number of a scene by its path of names."""
    found = {}

    def walk(value, name):
        if dataclasses.is_dataclass(value):
            for entry in dataclasses.fields(value):
                walk(getattr(value, entry.name), f"{name}.{entry.name}")
        elif isinstance(value, tuple) and value and isinstance(value[0], np.ndarray):
            for i, array in enumerate(value):
                walk(array, f"{name}[{i}]")
        else:
            found[name] = value

    walk(scene, "scene")
    return found


def test_what_was_written_is_read_back(tmp_path):
    parts = bundle_factory.tiny_parts(
        window_frames=9, condition_window_frames=5, condition_lookahead_frames=2
    )
    read = write_bundle(tmp_path / "Tiny", parts)

    written, again = fields_of(parts.scene), fields_of(read.scene)
    assert written.keys() == again.keys()
    for name, value in written.items():
        # Grids are stored as float16; the factory's grids are exact in it.
        np.testing.assert_array_equal(again[name], value, err_msg=name)
    np.testing.assert_array_equal(read.poses, parts.poses)
    np.testing.assert_array_equal(read.blinks, parts.blinks)
    assert to_mapping(read.motion) == to_mapping(parts.motion)
    assert read.condition == parts.condition
    assert read.motion_onnx.read_bytes() == parts.motion_onnx
    assert read.condition_onnx.read_bytes() == parts.condition_onnx
    assert read.syncnet_onnx is None
    assert read.lookahead_frames == 4 + 2
    assert (read.name, read.synthetic, read.fps, read.sample_rate_hz) == ("Tiny", True, 25, 16000)


def test_the_same_parts_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        bundle_factory.write_tiny_bundle(tmp_path / name)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


def test_a_bundle_without_torso(tmp_path):
    read = load_speaker(bundle_factory.write_tiny_bundle(tmp_path / "Bust", torso=False))
    assert read.scene.torso is None
    assert not (tmp_path / "Bust" / "torso.safetensors").exists()


def test_arrays_are_as_torch_and_compiled_kernels_want_them(tiny_bundle):
    # torch warns of arrays that cannot be written, and a kernel would be compiled again for them.
    read = load_speaker(tiny_bundle)
    for name, value in {**fields_of(read.scene), "poses": read.poses, "blinks": read.blinks}.items():
        if isinstance(value, np.ndarray):
            assert value.flags.writeable, name
            assert value.flags.c_contiguous, name


def test_an_older_bundle_is_replaced_and_nothing_else_is_left(tmp_path):
    out = bundle_factory.write_tiny_bundle(tmp_path / "Tiny", seed=1)
    first = (out / "head.safetensors").read_bytes()
    bundle_factory.write_tiny_bundle(out, seed=2)
    assert (out / "head.safetensors").read_bytes() != first
    assert [entry.name for entry in tmp_path.iterdir()] == ["Tiny"]


@pytest.mark.parametrize("already_there", [False, True])
def test_parts_that_do_not_hold_leave_the_folder_as_it_was(tmp_path, already_there):
    out = tmp_path / "Tiny"
    if already_there:
        bundle_factory.write_tiny_bundle(out)
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
    poses = bundle_factory.swaying_poses(5)
    poses[2, 0, 0] = np.nan
    parts = dataclasses.replace(bundle_factory.tiny_parts(), poses=poses)
    with pytest.raises(BundleError) as refusal:
        write_bundle(out, parts)
    assert refusal.value.file.endswith("poses.safetensors")
    assert (refusal.value.field, refusal.value.expected) == ("c2w", "finite numbers")
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) == before
    if already_there:
        load_speaker(out)


def test_a_disk_that_fails_midway_leaves_nothing(tmp_path, monkeypatch):
    write = Path.write_bytes

    def full_disk(path, content):
        if path.name == "background.png":
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space"):
        bundle_factory.write_tiny_bundle(tmp_path / "Tiny")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_bundle_is_not_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(BundleError) as refusal:
        bundle_factory.write_tiny_bundle(tmp_path / "photos")
    assert refusal.value.file.endswith("photos")
    assert (refusal.value.field, refusal.value.expected) == ("out", "no such folder yet")
    assert (tmp_path / "photos" / "holiday.jpg").exists()


def test_too_large_a_bundle_is_refused_by_name_of_its_largest_file(tmp_path):
    with pytest.raises(BundleError, match=r"size: expected at most 1000 bytes, got \d+ bytes, of which head"):
        write_bundle(tmp_path / "Tiny", bundle_factory.tiny_parts(), max_bytes=1000)
    assert list(tmp_path.iterdir()) == []


def test_sealing_accepts_a_change_that_is_meant(tmp_path):
    path = bundle_factory.write_tiny_bundle(tmp_path / "Tiny")
    (path / "MODEL_CARD.md").write_text("# Another card\n")
    document = json.loads((path / "speaker.json").read_text())
    document["licence"] = "CC0-1.0"
    (path / "speaker.json").write_text(json.dumps(document))
    with pytest.raises(BundleError, match=r"checksum: .*geneface-export seal"):
        load_speaker(path)
    assert seal(path).licence == "CC0-1.0"
    assert load_speaker(path).licence == "CC0-1.0"


def test_sealing_does_not_bless_what_is_broken(tmp_path):
    path = bundle_factory.write_tiny_bundle(tmp_path / "Tiny")
    before = (path / "speaker.json").read_bytes()
    (path / "head.safetensors").write_bytes(b"nothing")
    with pytest.raises(BundleError) as refusal:
        seal(path)
    assert refusal.value.file.endswith("head.safetensors")
    assert refusal.value.field == "content"
    assert (path / "speaker.json").read_bytes() == before


@pytest.fixture
def places(tmp_path, monkeypatch, tiny_bundle):
    """The three places in which names are looked up, all empty."""
    folders = {name: tmp_path / name for name in ("flag", "user", "packaged")}
    for folder in folders.values():
        folder.mkdir()
    monkeypatch.setattr(speaker_folders, "user_speakers_dir", lambda: folders["user"])
    monkeypatch.setattr(speaker_folders, "packaged_speakers_dir", lambda: folders["packaged"])
    monkeypatch.chdir(tmp_path)

    def put(place, name):
        (folders[place] / name).symlink_to(tiny_bundle, target_is_directory=True)
        return folders[place] / name

    return folders, put


def test_search_order_flag_then_user_then_packaged(places):
    folders, put = places
    packaged = put("packaged", "May")
    assert find_speaker("May") == packaged
    user = put("user", "May")
    assert find_speaker("May") == user
    flag = put("flag", "May")
    assert find_speaker("May", speakers_dir=folders["flag"]) == flag
    assert find_speaker("May") == user
    there_are = list_speakers(speakers_dir=folders["flag"])
    assert [(found.name, found.place) for found in there_are] == [("May", "speakers dir")]


def test_a_path_comes_before_any_name(places, tiny_bundle):
    _, put = places
    put("packaged", "Tiny")
    assert find_speaker(str(tiny_bundle)) == tiny_bundle
    assert find_speaker(str(tiny_bundle / "speaker.json")) == tiny_bundle


def test_an_unknown_speaker_is_told_who_there_is(places):
    _, put = places
    put("packaged", "May")
    put("user", "Anna")
    with pytest.raises(UnknownSpeakerError, match='Anna, May, got "Mya"'):
        find_speaker("Mya")


@pytest.mark.parametrize(
    "name", ["", "..", "../May", "a\0b", "x" * 5000, "~nobody-of-that-name/x", "May/../.."]
)
def test_a_strange_name_is_unknown(places, name):
    _, put = places
    put("packaged", "May")
    with pytest.raises(ValueError, match=r"expected .*bundle") as caught:
        find_speaker(name)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_bundle_says_what_it_lacks(places, tmp_path):
    (tmp_path / "some" / "folder").mkdir(parents=True)
    with pytest.raises(BundleError, match=r"some/folder: speaker\.json: expected a speaker bundle"):
        find_speaker("some/folder")


def test_the_users_folder_is_where_the_desktop_s_standard_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert user_speakers_dir() == tmp_path / "data" / "geneface-stream" / "speakers"
    for ignored in ("", "relative/is/ignored"):
        monkeypatch.setenv("XDG_DATA_HOME", ignored)
        assert user_speakers_dir() == tmp_path / ".local" / "share" / "geneface-stream" / "speakers"
