"""`python -m preparation.face_mesh` and the converter: what they write, and one line for bad input."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import cv2
import face_videos
import numpy as np
import pytest
import refusals

from preparation.face_mesh import cli, convert

ROOT = Path(__file__).resolve().parents[3]


def test_the_track_and_its_picture_are_written(tmp_path, capsys):
    pictures = [face_videos.may("open")] * 7 + [face_videos.empty()] * 7
    video = face_videos.write(tmp_path / "v.mkv", pictures)
    out, sheet = tmp_path / "t.npz", tmp_path / "t.png"
    assert cli.main(["--video", str(video), "--out", str(out), "--picture", str(sheet), "--crops", "2"]) == 0
    assert capsys.readouterr().out == f"{out}: 14 pictures, a face in 7\n"
    with np.load(out) as track:
        assert {name: (track[name].shape, track[name].dtype.name) for name in track} == {
            "landmarks": ((14, 68, 3), "float32"),
            "times_s": ((14,), "float64"),
            "found": ((14,), "bool"),
        }
        assert track["found"].tolist() == [True] * 7 + [False] * 7
    assert cv2.imread(str(sheet)).shape == (1080, 1440, 3)


def test_a_short_video_fills_its_sheet(tmp_path):
    video = face_videos.write(tmp_path / "v.mkv", [face_videos.may("open")])
    arguments = [
        "--video",
        str(video),
        "--out",
        str(tmp_path / "t.npz"),
        "--picture",
        str(tmp_path / "t.png"),
    ]
    assert cli.main([*arguments, "--no-smooth"]) == 0
    sheet = cv2.imread(str(tmp_path / "t.png"))
    drawn = cv2.inRange(sheet, (60, 220, 0), (120, 255, 40))  # the landmarks' green, in OpenCV's order
    assert all(
        drawn[y : y + 360, x : x + 360].any() for y in range(0, 1080, 360) for x in range(0, 1440, 360)
    )


def refused(run, arguments, capsys):
    assert run(arguments) == 2
    return refusals.parts(capsys.readouterr().err.splitlines()[-1])


def test_a_video_without_a_face_leaves_nothing_behind(tmp_path, capsys):
    video = face_videos.write(tmp_path / "v.mkv", [face_videos.empty()])
    said = refused(cli.main, ["--video", str(video), "--out", str(tmp_path / "t.npz")], capsys)
    assert (said.expected, said.got) == ("a face", "none in 1 pictures")
    assert [file.name for file in tmp_path.iterdir()] == ["v.mkv"]


def test_an_absent_video_is_refused(tmp_path, capsys):
    arguments = ["--video", str(tmp_path / "v.mp4"), "--out", str(tmp_path / "t.npz")]
    assert refused(cli.main, arguments, capsys).got == "no such file"


def test_a_number_of_crops_out_of_range_is_refused(tmp_path, capsys):
    arguments = ["--video", "v.mp4", "--out", str(tmp_path / "t.npz"), "--crops", "9"]
    said = refused(cli.main, arguments, capsys)
    assert (said.expected, said.got) == ("1 to 6", "9")


def archive(path, name, content):
    with tarfile.open(path, "w:gz") as file:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        file.addfile(member, io.BytesIO(content))
    return path


def test_the_converter_refuses_what_is_not_npm_s_archive(tmp_path, capsys):
    absent, other = tmp_path / "absent.tgz", tmp_path / "other.tgz"
    other.write_bytes(b"<html>")
    for source in (absent, other, archive(tmp_path / "empty.tgz", "package/package.json", b"{}")):
        said = refused(convert.main, ["--source", str(source), "--out", str(tmp_path / "out")], capsys)
        assert str(source) in said.where
        assert said.expected == "npm's archive"
        assert "npm pack @mediapipe/face_mesh@" in said.way_out
    assert not (tmp_path / "out").exists()


def test_the_converter_refuses_another_version_by_its_hash(tmp_path, capsys):
    source = archive(tmp_path / "a.tgz", convert.PACKED_FILE, b"of another version")
    said = refused(convert.main, ["--source", str(source), "--out", str(tmp_path / "out")], capsys)
    assert said.expected.startswith("SHA-256 dbe5905c582c")
    assert not (tmp_path / "out").exists()


def varint(number):
    low = bytes([number & 127 | 128 * (number > 127)])
    return low if number < 128 else low + varint(number >> 7)


def message(*numbers):
    """A protocol buffer of canonical face metadata: five floats a vertex, field 3 of field 1."""
    mesh = b"".join(varint(3 << 3 | 5) + np.float32(number).tobytes() for number in numbers)
    mesh = varint(1 << 3) + varint(300) + mesh
    return varint(1 << 3 | 2) + varint(len(mesh)) + mesh + varint(2 << 3 | 2) + varint(3) + b"abc"


def test_the_mean_face_is_read_from_its_metadata():
    vertices = np.arange(468 * 5, dtype=np.float32).reshape(468, 5)
    np.testing.assert_array_equal(convert.canonical_face(message(*vertices.ravel())), vertices[:, :3])
    with pytest.raises(convert.TfliteError, match="got 7 numbers"):
        convert.canonical_face(message(*range(7)))


def test_without_the_training_extra_it_says_what_is_missing():
    program = (
        "import runpy, sys\n"
        "sys.modules['cv2'] = None\n"
        "sys.argv = ['face_mesh', '--video', 'v.mp4', '--out', 't.npz']\n"
        "runpy.run_module('preparation.face_mesh', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("python -m preparation.face_mesh: cv2 is not installed; run pip install ")
    assert len(done.stderr.splitlines()) == 1
