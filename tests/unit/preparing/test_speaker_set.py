"""A speaker's set comes back as it was written; what does not fit is refused by file and field."""

import os
import struct
import zlib
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
import tiny_speaker

from preparation.errors import FileError
from preparation.media import write_video
from preparation.speaker_set import (
    read_background,
    read_labels,
    read_phones,
    read_pictures,
    read_sound,
    read_truth,
    training_frames,
    write_speaker_set,
)

FRAMES, SIZE_PX = 22, tiny_speaker.SIZE_PX


@pytest.fixture(scope="module")
def drawn():
    poses = tiny_speaker.swaying_poses(FRAMES)
    return [tiny_speaker.draw(pose, 0.5 + 0.5 * np.sin(i)) for i, pose in enumerate(poses)]


@pytest.fixture
def folder(tmp_path):
    return tiny_speaker.write_tiny_speaker(tmp_path / "speaker", frames=FRAMES)


def pictures_of(folder, rows=range(FRAMES), **changes):
    given = {"frames": FRAMES, "size_px": SIZE_PX} | changes
    return list(read_pictures(folder, np.array(rows), **given))


def labels_of(folder, rows=range(FRAMES), **changes):
    given = {"frames": FRAMES, "size_px": SIZE_PX} | changes
    return list(read_labels(folder, np.array(rows), **given))


def refused(read, *arguments, **changes):
    with pytest.raises(FileError) as caught:
        read(*arguments, **changes)
    assert "\n" not in str(caught.value)
    return caught.value


def change_truth(folder, **changes):
    path = folder / "truth.npz"
    with np.load(path) as archive:
        arrays = dict(archive) | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def encode(path, pictures, source, codec, pixel_format, *, rate=25, times=None, **options):
    """Writes a video by any codec, at any rate or with any times (in ms)."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixel_format
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=source)
            if times is not None:
                frame.pts, frame.time_base = times[i], stream.codec_context.time_base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def test_what_is_written_is_read(tmp_path, drawn):
    pcm = np.random.default_rng(0).integers(-9000, 9000, 640 * FRAMES, dtype=np.int16)
    truth = {
        "landmarks": np.random.default_rng(1).normal(size=(FRAMES, 68, 3)).astype(np.float32),
        "landmarks_2d": np.zeros((FRAMES, 68, 2), np.float32),
        "c2w": tiny_speaker.swaying_poses(FRAMES),
        "focal": np.float32(250),
        "cx": np.float32(32),
        "cy": np.float32(31),
    }
    folder = tmp_path / "new" / "speaker"
    write_speaker_set(
        folder,
        pictures=(picture for picture, _ in drawn),
        labels=(labels for _, labels in drawn),
        background=tiny_speaker.background(),
        truth=truth,
        pcm=pcm,
        phones=[("pau", 0.0, 0.4), ("m", 0.4, 0.88)],
        crf=0,
    )
    for picture, (expected, _) in zip(pictures_of(folder), drawn, strict=True):
        assert np.abs(picture.astype(int) - expected).max() <= 1
    for labels, (_, expected) in zip(labels_of(folder), drawn, strict=True):
        np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(read_background(folder), tiny_speaker.background())
    np.testing.assert_array_equal(read_sound(folder, FRAMES), pcm)
    assert read_phones(folder) == (("pau", 0.0, 0.4), ("m", 0.4, 0.88))
    read = read_truth(folder)
    assert list(read) == list(truth)
    for name, array in truth.items():
        np.testing.assert_array_equal(read[name], array)
    assert len(list(folder.iterdir())) == 6


def test_a_set_is_smaller_where_its_pictures_may_lose_a_little(folder, tmp_path, drawn):
    pictures, labels = zip(*drawn, strict=True)
    small = tmp_path / "small"
    write_speaker_set(
        small,
        pictures=pictures,
        labels=labels,
        background=tiny_speaker.background(),
        truth=read_truth(folder),
        crf=30,
    )
    assert (small / "video.mp4").stat().st_size < (folder / "video.mp4").stat().st_size
    assert np.abs(np.array(pictures_of(small), int) - np.array(pictures, int)).mean() < 10
    np.testing.assert_array_equal(labels_of(small), labels)


def test_frames_are_read_at_rows(folder, drawn):
    rows = [0, 3, 20]
    np.testing.assert_array_equal(labels_of(folder, rows), [drawn[row][1] for row in rows])
    assert len(pictures_of(folder, rows)) == 3


def test_eleven_frames_are_ten_to_train_on():
    assert [training_frames(total) for total in (11, 12, 8250)] == [10, 10, 7500]


@pytest.mark.parametrize(
    ("rate", "got"),
    [
        (24, "24 a second (frame 5 comes after 0.208 s)"),
        (30, "30 a second (frame 2 comes after 0.067 s)"),
        (50, "50 a second (frame 1 comes after 0.020 s)"),
    ],
)
def test_a_video_of_another_frame_rate_is_refused(folder, drawn, rate, got):
    encode(folder / "video.mp4", [p for p, _ in drawn], "rgb24", "libx264", "yuv420p", rate=rate)
    error = refused(pictures_of, folder)
    assert (error.file, error.field, error.expected) == (
        str(folder / "video.mp4"),
        "frame rate",
        "25 a second",
    )
    assert error.got == got


def test_masks_of_another_frame_rate_are_refused(folder, drawn):
    encode(folder / "masks.mkv", [80 * m for _, m in drawn], "gray", "ffv1", "gray", rate=30)
    error = refused(labels_of, folder)
    assert (error.file, error.field) == (str(folder / "masks.mkv"), "frame rate")


def test_a_video_whose_frames_come_unevenly_is_refused(folder, drawn):
    times = [40 * i + (40 if i >= 5 else 0) for i in range(FRAMES)]  # a frame was dropped
    encode(folder / "masks.mkv", [80 * m for _, m in drawn], "gray", "ffv1", "gray", times=times)
    error = refused(labels_of, folder)
    assert (error.field, error.got) == ("frame rate", "20.83 a second (frame 5 comes after 0.240 s)")


def test_a_video_may_begin_late(folder, drawn):
    times = [3000 + 40 * i for i in range(FRAMES)]
    encode(folder / "masks.mkv", [80 * m for _, m in drawn], "gray", "ffv1", "gray", times=times)
    np.testing.assert_array_equal(labels_of(folder), [m for _, m in drawn])


def test_frames_without_times_are_refused(folder, drawn):
    encode(folder / "video.h264", [p for p, _ in drawn], "rgb24", "libx264", "yuv420p", bf="0")
    (folder / "video.h264").replace(folder / "video.mp4")
    error = refused(pictures_of, folder)
    assert error.field == "frame rate"


@pytest.mark.parametrize(
    ("codec", "pixel_format", "options"),
    [("libx264", "yuvj420p", {"crf": "30"}), ("mjpeg", "yuvj420p", {}), ("libx264", "gray", {"crf": "20"})],
)
def test_masks_of_a_lossy_codec_are_refused(folder, drawn, codec, pixel_format, options):
    encode(folder / "masks.mkv", [80 * m for _, m in drawn], "gray", codec, pixel_format, **options)
    error = refused(labels_of, folder)
    assert (error.file, error.expected) == (str(folder / "masks.mkv"), "0, 80, 160 and 240 alone")
    assert error.field.startswith("frame ")
    assert int(error.got) not in (0, 80, 160, 240)


@pytest.mark.parametrize("value", [1, 79, 81, 241, 255])
def test_masks_of_another_value_are_refused_by_frame(folder, drawn, value):
    masks = [80 * labels for _, labels in drawn]
    masks[9][5, 7] = value
    write_video(folder / "masks.mkv", masks, "gray", codec="ffv1", pixel_format="gray")
    error = refused(labels_of, folder)
    assert (error.field, error.got) == ("frame 9", str(value))
    assert len(labels_of(folder, [0, 8])) == 2


def test_lossless_masks_may_be_of_any_codec(folder, drawn):
    masks = [80 * labels for _, labels in drawn]
    encode(folder / "masks.mkv", masks, "gray", "libx264", "yuvj420p", qp="0")
    np.testing.assert_array_equal(labels_of(folder), [labels for _, labels in drawn])


@pytest.mark.parametrize(("frames", "got"), [(FRAMES + 1, "22"), (FRAMES - 1, "more")])
@pytest.mark.parametrize("read", [pictures_of, labels_of])
def test_more_or_fewer_frames_than_the_truth_has_are_refused(folder, read, frames, got):
    error = refused(read, folder, [0, 5], frames=frames)
    assert (error.field, error.expected, error.got) == ("frames", f"{frames}, as truth.npz has", got)


def test_pictures_of_another_size_are_refused(folder):
    error = refused(pictures_of, folder, size_px=128)
    assert (error.field, error.expected, error.got) == ("frame 0", "128 x 128 pixels", "64 x 64")


@pytest.mark.parametrize("name", ["video.mp4", "masks.mkv"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not a video " * 99),
        lambda path: (path.unlink(), os.mkfifo(path)),
    ],
    ids=["absent", "empty", "text", "pipe"],
)
def test_what_is_no_video_is_refused(folder, name, spoil):
    spoil(folder / name)
    read = pictures_of if name == "video.mp4" else labels_of
    assert refused(read, folder).file == str(folder / name)


def test_truth_is_read_by_name_and_nothing_else_is_asked_for(folder):
    change_truth(folder, landmarks_2d=None, focal=None, morph_names=np.array(["a"]))
    assert list(read_truth(folder, "landmarks", "c2w")) == ["landmarks", "c2w"]
    error = refused(read_truth, folder)
    assert (error.file, error.field, error.got) == (str(folder / "truth.npz"), "landmarks_2d", "none")


@pytest.mark.parametrize(
    ("name", "array", "expected"),
    [
        ("landmarks", np.array([{"a": 1}], object), "an array of numbers"),
        ("c2w", np.array([[1, 2], [3]], object), "an array of numbers"),
        ("landmarks", np.zeros((FRAMES, 204)), "the shape any x 68 x 3"),
        ("landmarks", np.full((FRAMES, 68, 3), np.nan), "finite numbers, in float32 too"),
        ("landmarks_2d", np.zeros((FRAMES - 1, 68, 2)), "22 frames, as landmarks has"),
        ("c2w", np.zeros((FRAMES, 3, 4)), "the shape any x 4 x 4"),
        ("focal", np.array("250.6"), "numbers"),
        ("focal", np.array([250.6]), "the shape of a single value"),
        ("focal", np.float64(-3), "more than 0 px"),
        ("cx", np.float64(np.inf), "finite numbers, in float32 too"),
    ],
)
def test_truth_that_does_not_fit_is_refused_by_name(folder, name, array, expected):
    change_truth(folder, **{name: array})
    error = refused(read_truth, folder)
    assert (error.file, error.field, error.expected) == (str(folder / "truth.npz"), name, expected)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda pose: pose.fill(0),
        lambda pose: pose[:3, :3].__imul__(2),
        lambda pose: pose[0, :3].__imul__(-1),
        lambda pose: pose[:3, 0].fill(0),
        lambda pose: pose[3].fill(0),
        lambda pose: pose[3].__setitem__(0, 1),
        lambda pose: pose[0].__setitem__(3, 1e30),
        lambda pose: pose[0].__setitem__(0, 1e38),
    ],
    ids=["zeros", "scaled", "mirrored", "flat", "without 1", "projecting", "far", "huge"],
)
def test_a_pose_that_is_not_rigid_is_refused_by_its_frame(folder, spoil):
    poses = tiny_speaker.swaying_poses(FRAMES)
    spoil(poses[5])
    change_truth(folder, c2w=poses)
    error = refused(read_truth, folder)
    assert (error.file, error.field) == (str(folder / "truth.npz"), "c2w of frame 5")


def png_header(width, height):
    """Returns the beginning of a PNG of that size, and an end without pixels."""
    chunks = [
        b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0),
        b"IDAT" + zlib.compress(b""),
        b"IEND",
    ]
    packed = [
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (lambda path: path.unlink(), ""),
        (lambda path: path.write_bytes(path.read_bytes()[:99]), ""),
        (lambda path: path.write_bytes(png_header(100_000, 100_000)), ""),
        (lambda path: cv2.imwrite(str(path), np.zeros((64, 32, 3), np.uint8)), "size"),
    ],
    ids=["absent", "cut short", "too large", "not square"],
)
def test_a_background_that_does_not_fit_is_refused(folder, spoil, field):
    spoil(folder / "background.png")
    error = refused(read_background, folder)
    assert (error.file, error.field) == (str(folder / "background.png"), field)


@pytest.mark.parametrize("samples", [640 * 21, 640 * 22 - 1, 640 * 22, 640 * 23])
def test_a_frame_of_sound_may_be_missing_or_too_many(folder, samples):
    write_sound(folder, samples)
    pcm = read_sound(folder, FRAMES)
    assert pcm.shape == (640 * FRAMES,)
    assert (pcm[:samples] == 100).all()
    assert (pcm[samples:] == 0).all()


@pytest.mark.parametrize("samples", [640 * 21 - 1, 640 * 23 + 1])
def test_sound_of_another_length_is_refused(folder, samples):
    write_sound(folder, samples)
    error = refused(read_sound, folder, FRAMES)
    assert (error.file, error.field, error.got) == (str(folder / "audio.flac"), "length", str(samples))


def test_sound_that_is_absent_is_refused(folder):
    error = refused(read_sound, folder, FRAMES)
    assert (error.file, error.got) == (str(folder / "audio.flac"), "no such file")


def write_sound(folder, samples):
    with av.open(str(folder / "audio.flac"), "w") as out:
        stream = out.add_stream("flac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.full((1, samples), 100, np.int16), "s16", "mono")
        frame.sample_rate = 16_000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def test_phones_may_be_absent_or_marked(folder):
    assert read_phones(folder) is None
    (folder / "phones.json").write_bytes(b'\xef\xbb\xbf{"phones": [["pau", 0, 0.5]], "fps": 25}')
    assert read_phones(folder) == (("pau", 0, 0.5),)


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (b"{", ""),
        (b"\xff\xfe", ""),
        (b"{}", "phones"),
        (b"[]", "phones"),
        (b'{"phones": [["pau", 0]]}', "phones"),
        (b'{"phones": [["pau", 0, 1' + b"0" * 400 + b"]]}", "phones"),
        (b'{"phones": [["pau", 0, NaN]]}', "phones"),
    ],
)
def test_broken_phones_are_refused(folder, content, field):
    (folder / "phones.json").write_bytes(content)
    error = refused(read_phones, folder)
    assert (error.file, error.field) == (str(folder / "phones.json"), field)
