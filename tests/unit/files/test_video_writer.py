import av
import numpy as np
import pytest
import stand_ins

from streaming.errors import InputError
from streaming.files.audio_file import AudioFile, SoundFormat
from streaming.files.landmark_writer import LandmarkOutput
from streaming.files.video_writer import VideoOutput
from streaming.pipeline.i420 import I420Converter

STEREO = SoundFormat(rate_hz=48000, layout="stereo")


def output(path, sound=STEREO, crf=18):
    return VideoOutput(path, size_px=64, sound=sound, crf=crf)


def picture(*colour):
    """I420 of one colour; a single level is a grey."""
    return I420Converter(width_px=64, height_px=64).convert(np.full((64, 64, 3), colour, np.uint8))


def decoded(path, kind):
    with av.open(str(path)) as container:
        return list(container.decode(**{kind: 0}))


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "m4v", "MP4"])
@pytest.mark.parametrize("sound", [STEREO, SoundFormat(rate_hz=16000, layout="mono")])
def test_picture_and_sound_begin_together(tmp_path, ending, sound):
    """A flash at frame 30 and a click at its first sample are found at the same time again."""
    path = tmp_path / f"out.{ending}"
    click = 30 * sound.rate_hz // 25
    block = np.zeros((sound.channels, 2 * sound.rate_hz), np.float32)
    block[:, click : click + 40] = 0.8
    with output(path, sound) as video:
        video.write_sound(block)
        for i in range(50):
            video.write_picture(picture(255 if i == 30 else 0))
        size_bytes = video.complete()
        video.publish()
        assert size_bytes == path.stat().st_size
    flashes = [frame.time for frame in decoded(path, "video") if frame.to_ndarray(format="gray").mean() > 128]
    assert flashes == [pytest.approx(30 / 25, abs=1e-3)]
    blocks = decoded(path, "audio")
    assert float(blocks[0].time) == pytest.approx(0, abs=1e-3)
    wave = np.abs(np.concatenate([b.to_ndarray()[0] for b in blocks]))
    heard_s = float(blocks[0].time) + np.argmax(wave > 0.3) / sound.rate_hz
    # AAC spreads a click over a few samples.
    assert heard_s == pytest.approx(30 / 25, abs=0.003)


def test_the_stream_is_what_players_expect(tmp_path):
    path = tmp_path / "out.mp4"
    with output(path) as video:
        video.write_sound(np.zeros((2, 48000), np.float32))
        for _ in range(25):
            video.write_picture(picture(100))
        video.complete()
        video.publish()
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.pix_fmt, video.average_rate) == ("h264", "yuv420p", 25)
        assert (video.frames, video.width, video.height) == (25, 64, 64)
        context = video.codec_context  # limited range; SMPTE 170M is BT.601
        assert (context.color_range, context.colorspace) == (1, 6)
        assert (context.color_primaries, context.color_trc) == (6, 6)
        assert (audio.codec_context.name, audio.rate, audio.layout.name) == ("aac", 48000, "stereo")
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # plays while it is still loading


def test_colours_come_back(tmp_path):
    path = tmp_path / "out.mp4"
    colour = np.array([200, 120, 90])
    with output(path, crf=5) as video:
        video.write_picture(picture(*colour))
        video.write_sound(np.zeros((2, 1920), np.float32))
        video.complete()
        video.publish()
    assert np.abs(decoded(path, "video")[0].to_ndarray(format="rgb24").astype(int) - colour).max() <= 3


def test_nothing_has_the_name_before_it_is_whole(tmp_path):
    path = tmp_path / "out.mp4"
    path.write_text("the video of last time")
    with output(path) as video:
        video.write_picture(picture(0))
        assert path.read_text() == "the video of last time"
        video.write_sound(np.zeros((2, 1920), np.float32))
        video.complete()
        video.publish()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.mp4"]
    assert len(decoded(path, "video")) == 1


def test_leaving_without_commit_leaves_nothing(tmp_path):
    def broken():
        with output(tmp_path / "out.mp4") as video:
            video.write_picture(picture(0))
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        broken()
    assert list(tmp_path.iterdir()) == []


def test_a_video_without_a_picture_is_refused(tmp_path):
    def empty():
        with output(tmp_path / "out.mp4") as video:
            video.write_sound(np.zeros((2, 10), np.float32))
            video.complete()

    with pytest.raises(InputError, match=r"out\.mp4: expected sound for a picture"):
        empty()
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written_to_are_refused(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    for name, expected, got in (
        ("a.avi", "a name ending in .mp4", ".avi"),
        ("a", "a name ending in .mp4", "no ending"),
        ("folder.mp4", "a file's name", "a folder"),
    ):
        with pytest.raises(InputError) as refusal:
            output(tmp_path / name)
        assert (refusal.value.file, refusal.value.got) == (str(tmp_path / name), got)
        assert refusal.value.expected.startswith(expected)
    with pytest.raises(InputError, match="no such folder"):
        output(tmp_path / "no" / "a.mp4")


def test_landmarks_are_written_whole(tmp_path):
    path = tmp_path / "motion.npz"
    rows = np.random.default_rng(0).normal(size=(130, 68, 3)).astype(np.float32)
    face = np.arange(204, dtype=np.float32).reshape(68, 3)
    with LandmarkOutput(path, mean_face=face) as landmarks:
        for row in rows:
            landmarks.write(row)
        assert not path.exists()
        landmarks.complete()
        landmarks.publish()
    with np.load(path, allow_pickle=False) as archive:
        assert archive["landmarks"].dtype == np.float32
        assert np.array_equal(archive["landmarks"], rows)
        assert np.array_equal(archive["mean_face"], face)
        assert archive["fps"] == 25
    assert [entry.name for entry in tmp_path.iterdir()] == ["motion.npz"]


def test_landmarks_without_a_mean_face_say_so_by_its_absence(tmp_path):
    with LandmarkOutput(tmp_path / "motion.npz", mean_face=None) as landmarks:
        landmarks.complete()
        landmarks.publish()
    with np.load(tmp_path / "motion.npz") as archive:
        assert sorted(archive) == ["fps", "landmarks"]
        assert archive["landmarks"].shape == (0, 68, 3)


@pytest.mark.parametrize(("name", "got"), [("out.csv", ".csv"), ("out", "no ending")])
def test_landmarks_need_their_ending(tmp_path, name, got):
    with pytest.raises(InputError) as refusal:
        LandmarkOutput(tmp_path / name, mean_face=None)
    assert (refusal.value.file, refusal.value.got) == (str(tmp_path / name), got)
    assert refusal.value.expected == "a name ending in .npz for --landmarks"


def test_a_long_sound_is_written_in_its_own_time(tmp_path):
    """Blocks of any size, not only of the encoder's."""
    path = tmp_path / "out.mp4"
    pcm = stand_ins.speech_like(1.7, 44100).astype(np.float32)[None] / 32768
    with output(path, SoundFormat(rate_hz=44100, layout="mono")) as video:
        video.write_picture(picture(0))
        for at in range(0, pcm.shape[1], 777):
            video.write_sound(pcm[:, at : at + 777])
        video.complete()
        video.publish()
    heard = np.concatenate([b.to_ndarray()[0] for b in decoded(path, "audio")])[: pcm.shape[1]]
    assert np.corrcoef(heard, pcm[0, : len(heard)])[0, 1] > 0.98


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + "/x", "a\0b"], ids=["name", "folder", "null byte"])
@pytest.mark.parametrize(
    "open_output",
    [
        lambda path: output(path.with_name(f"{path.name}.mp4")),
        lambda path: LandmarkOutput(path.with_name(f"{path.name}.npz"), mean_face=None),
    ],
    ids=["video", "landmarks"],
)
def test_a_name_that_no_file_can_have_is_refused(tmp_path, open_output, name):
    with pytest.raises(InputError) as refused:
        open_output(tmp_path / name)
    assert str(refused.value).startswith(f"{tmp_path / name}")
    assert "; nothing was left there, write elsewhere" in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"], ids=["long", "null byte"])
def test_a_recording_under_a_name_that_no_file_can_have_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"expected a readable file, got (file name too long|.*null byte)"):
        AudioFile(tmp_path / name)
