"""A bundle's plates: read back, and refused, when they are read, without harm to the speaker."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
from fractions import Fraction
from pathlib import Path

import av
import bundle_factory
import numpy as np
import plate_factory
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from cuda_kernels.masks import BlockMask
from export.bundle.writer import put_plates
from models.bundle_files import FileRecord
from models.plates import PlateError, PlateFiles, packed_masks
from models.speaker import load_speaker
from models.speaker_settings import scene_hash

SIZE_PX = 64


@pytest.fixture(scope="module")
def plated(tmp_path_factory):
    return plate_factory.write_plated_bundle(tmp_path_factory.mktemp("plated") / "Tiny")


def replaced(plated, folder, **contents) -> PlateFiles:
    """Returns the plates with other files of true hashes in `folder`: `mkv=...`, `safetensors=...`."""
    records = dict(plated.settings.files)
    for name in ("plates.mkv", "plates.safetensors"):
        shutil.copy(plated.path / name, folder / name)
    for suffix, content in contents.items():
        name = f"plates.{suffix}"
        (folder / name).write_bytes(content)
        records[name] = FileRecord(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    return dataclasses.replace(plated.plates, path=folder, records=records)


def refused(read):
    """Which file and which field of it are refused, what was expected and what was got."""
    with pytest.raises(PlateError) as caught:
        read()
    error = caught.value
    assert "\n" not in str(error)
    assert "geneface-export plates" in str(error)
    return Path(error.file).name, error.field, error.expected, error.got


def test_what_was_put_is_read_back(plated):
    seen = list(plated.plates.pictures())
    expected = plate_factory.pictures(SIZE_PX)
    assert len(seen) == len(expected) == len(plated.poses)
    for picture, wanted in zip(seen, expected, strict=True):
        assert (picture.shape, picture.dtype) == ((96, 64), np.uint8)
        assert np.abs(picture.astype(int) - wanted).max() <= 3  # nearly without loss
    masks = plated.plates.masks()
    expected = plate_factory.covered(SIZE_PX).reshape(-1, 16, 16)
    np.testing.assert_array_equal([mask.covered for mask in masks], expected)
    assert all(mask.size_px == SIZE_PX for mask in masks)
    assert plated.plates.picture_bytes == sum(picture.nbytes for picture in seen)


def test_a_picture_that_is_no_whole_number_of_blocks(tmp_path):
    plated = plate_factory.write_plated_bundle(tmp_path / "Tiny", image_size_px=66)
    expected = plate_factory.covered(66).reshape(-1, 17, 17)
    np.testing.assert_array_equal([mask.covered for mask in plated.plates.masks()], expected)
    assert [picture.shape for picture in plated.plates.pictures()] == [(99, 66)] * plate_factory.POSES


def test_a_bundle_without_plates_has_none_and_says_nothing_of_them(tiny_bundle):
    assert load_speaker(tiny_bundle).plates is None
    assert "plates" not in (tiny_bundle / "speaker.json").read_text()


def test_the_hash_is_over_what_plates_show(plated):
    document = json.loads((plated.path / "speaker.json").read_text())
    shown = {name: document[name] for name in ("camera", "head", "torso")}
    files = ("head.safetensors", "torso.safetensors", "condition.onnx", "poses.safetensors", "background.png")
    shown["files"] = {name: document["files"][name]["sha256"] for name in files}
    text = json.dumps(shown, sort_keys=True, separators=(",", ":"))
    assert document["plates"]["of"] == hashlib.sha256(text.encode()).hexdigest()
    camera = dataclasses.replace(plated.settings.camera, focal_px=1.15 * plated.settings.camera.focal_px)
    assert scene_hash(dataclasses.replace(plated.settings, camera=camera)) != document["plates"]["of"]
    without_torso = {
        name: file for name, file in plated.settings.files.items() if not name.startswith("torso")
    }
    assert scene_hash(dataclasses.replace(plated.settings, files=without_torso)) != document["plates"]["of"]


@pytest.mark.parametrize(
    ("make", "field", "expected", "got"),
    [
        (lambda: plate_factory.pictures(64, 49), "frames", "50, one for each pose", "49"),
        (lambda: plate_factory.pictures(64, 51), "frames", "50, one for each pose", "more"),
        (lambda: plate_factory.pictures(32), "size", "64x64 pixels", "32x32"),
        (lambda: plate_factory.pictures(128), "size", "64x64 pixels", "128x128"),
    ],
    ids=["fewer", "more", "smaller", "larger"],
)
def test_a_video_of_other_frames_is_refused(plated, tmp_path, make, field, expected, got):
    other = replaced(plated, tmp_path, mkv=plate_factory.video(make()))
    assert refused(lambda: list(other.pictures())) == ("plates.mkv", field, expected, got)
    assert len(other.masks()) == 100


@pytest.mark.parametrize(
    ("given", "field", "expected", "got"),
    [
        ({"pixel_format": "yuv444p"}, "pixel format", "yuv420p", "yuv444p"),
        ({"codec": "mpeg4"}, "codec", "h264", "mpeg4"),
        ({"codec": "ffv1"}, "codec", "h264", "ffv1"),
        ({"streams": 2}, "content", "one video stream and nothing else", "2 streams"),
        (
            {"container": "mpegts"},
            "content",
            "H.264 in Matroska",
            "something else (Invalid data found when processing input)",
        ),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_a_video_of_another_kind_is_refused(plated, tmp_path, given, field, expected, got):
    other = replaced(plated, tmp_path, mkv=plate_factory.video(plate_factory.pictures(SIZE_PX), **given))
    assert refused(lambda: list(other.pictures())) == ("plates.mkv", field, expected, got)


@pytest.mark.parametrize("content", [b"x", b"x" * 5000, b"ffconcat version 1.0\nfile other.mkv\n"])
def test_what_is_no_video_is_refused(plated, tmp_path, content):
    other = replaced(plated, tmp_path, mkv=content)
    assert refused(lambda: list(other.pictures()))[:3] == ("plates.mkv", "content", "H.264 in Matroska")


def test_a_video_that_breaks_off_is_refused(plated, tmp_path):
    whole = (plated.path / "plates.mkv").read_bytes()
    other = replaced(plated, tmp_path, mkv=whole[: len(whole) * 3 // 4])
    assert refused(lambda: list(other.pictures()))[0] == "plates.mkv"


@pytest.mark.parametrize(
    ("arrays", "field", "expected", "got"),
    [
        ({"mask": np.zeros((2, 49, 16, 2), np.uint8)}, "mask", "shape 2x50x16x2", "2x49x16x2"),
        ({"mask": np.zeros((50, 16, 2), np.uint8)}, "mask", "shape 2x50x16x2", "50x16x2"),
        ({"mask": np.zeros((2, 50, 16, 2), np.float32)}, "mask", "dtype U8", "F32"),
        ({"masks": np.zeros((50, 16, 2), np.uint8)}, "mask", "an array", "none: the key is missing"),
        (
            {"mask": np.zeros((2, 50, 16, 2), np.uint8), "more": np.zeros(1, np.uint8)},
            "more",
            "only the known arrays",
            "an unknown key",
        ),
    ],
    ids=["poses", "side", "dtype", "key", "more"],
)
def test_masks_that_do_not_fit_are_refused(plated, tmp_path, arrays, field, expected, got):
    other = replaced(plated, tmp_path, safetensors=save(arrays))
    assert refused(other.masks) == ("plates.safetensors", field, expected, got)
    assert len(list(other.pictures())) == 50


def test_masks_that_are_no_arrays_are_refused(plated, tmp_path):
    other = replaced(plated, tmp_path, safetensors=b"{}")
    assert refused(other.masks)[:3] == ("plates.safetensors", "content", "safetensors")


@pytest.mark.parametrize(
    ("change", "field", "expected"),
    [
        ({"made_of": None}, "plates", "an object"),
        ({"size_px": 63}, "image_size_px", "an even number up to 2048, as there are plates"),
        ({"size_px": 4096}, "image_size_px", "an even number up to 2048, as there are plates"),
    ],
    ids=["nothing", "odd", "large"],
)
def test_plates_that_cannot_be_this_speaker_s_are_refused(plated, change, field, expected):
    other = dataclasses.replace(plated.plates, **change)
    for read in (other.masks, lambda: list(other.pictures())):
        assert refused(read)[:3] == ("speaker.json", field, expected)


def test_plates_of_another_scene_are_refused(plated):
    other = dataclasses.replace(plated.plates, made_of="0" * 64)
    expected = f"{scene_hash(plated.settings)[:16]}..."
    for read in (other.masks, lambda: list(other.pictures())):
        file, field, wanted, got = refused(read)
        assert (file, field, wanted) == ("speaker.json", "plates.of", expected)
        assert got.startswith("0000000000000000..., of another head")


@pytest.mark.parametrize("gone", ["plates.mkv", "plates.safetensors"])
def test_one_file_without_the_other_is_refused(plated, gone):
    records = {name: record for name, record in plated.settings.files.items() if name != gone}
    other = dataclasses.replace(plated.plates, records=records)
    for read in (other.masks, lambda: list(other.pictures())):
        assert refused(read)[:2] == ("speaker.json", f"files.{gone}")


@pytest.mark.parametrize("name", ["plates.mkv", "plates.safetensors"])
def test_a_file_that_changes_after_the_bundle_was_loaded_is_refused(plated, tmp_path, name):
    other = replaced(plated, tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content)
    read = other.masks if name == "plates.safetensors" else lambda: list(other.pictures())
    assert refused(read)[:2] == (name, "sha256")
    (tmp_path / name).unlink()
    assert refused(read) == (name, "file", "a file", "no such file")


def growing_video(small: int, large: int) -> bytes:
    """Returns a video of 100 pictures of one size, which it states, and 100 of another."""
    file = io.BytesIO()
    other = av.CodecContext.create("libx264", "w")
    other.width = other.height = large
    other.pix_fmt, other.time_base, other.options = "yuv420p", Fraction(1, 25), {"tune": "zerolatency"}
    with av.open(file, "w", format="matroska") as out:
        track = out.add_stream("libx264", rate=25, options={"tune": "zerolatency"})
        track.width = track.height = small
        for number in range(200):
            size_px = small if number < 100 else large
            frame = av.VideoFrame.from_ndarray(plate_factory.pictures(size_px, 1)[0], format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            packets = (track if size_px == small else other).encode(frame)
            for packet in packets:
                packet.stream = track
            out.mux(packets)
    return file.getvalue()


def test_a_picture_that_grows_within_the_video_is_refused_before_there_is_memory_for_it(plated, tmp_path):
    other = replaced(plated, tmp_path, mkv=growing_video(64, 1024))
    other = dataclasses.replace(other, poses=200)
    assert refused(lambda: list(other.pictures()))[:3] == ("plates.mkv", "content", "H.264 in Matroska")


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(where=st.floats(0, 1, exclude_max=True), patch=st.binary(min_size=1, max_size=16))
def test_random_damage_raises_nothing_but_a_plate_error(plated, tmp_path, where, patch):
    for name in ("mkv", "safetensors"):
        content = bytearray((plated.path / f"plates.{name}").read_bytes())
        at = int(where * len(content))
        content[at : at + len(patch)] = patch
        other = replaced(plated, tmp_path, **{name: bytes(content)})
        try:
            seen = [list(other.pictures()), other.masks()]
        except PlateError as error:
            seen = [str(error)]
        assert [len(part) for part in seen] == [50, 100] or "\n" not in seen[0]


def test_masks_are_packed_from_the_left():
    covered = np.zeros((1, 9, 9), bool)
    covered[0, 0, 0] = covered[0, 1, 8] = True
    packed = packed_masks(covered)
    assert packed.shape == (1, 9, 2)
    assert packed[0, 0].tolist() == [0b1000_0000, 0]
    assert packed[0, 1].tolist() == [0, 0b1000_0000]
    assert BlockMask(size_px=36, covered=covered[0]).share == 2 / 81


def test_putting_plates_anew_leaves_all_other_files_as_they_were(tmp_path):
    path = bundle_factory.write_tiny_bundle(tmp_path / "Tiny", image_size_px=SIZE_PX)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    put_plates(path, plate_factory.plate_parts(SIZE_PX))
    after = {file.name: file.read_bytes() for file in path.iterdir()}
    assert after.keys() - before.keys() == {"plates.mkv", "plates.safetensors"}
    assert {name for name in before if before[name] != after[name]} <= {"speaker.json", "MODEL_CARD.md"}
    put_plates(path, None)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
