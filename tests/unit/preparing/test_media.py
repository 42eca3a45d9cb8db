"""Recordings come in as they are meant, or with one clear line."""

import os
from pathlib import Path

import av
import numpy as np
import pytest

from preparation.media import MediaError, read_pcm, to_picture, video_frames, write_flac, write_video


def refused(read, path):
    """Returns the field, what is expected and what is got where a file is refused in one line."""
    with pytest.raises(MediaError) as caught:
        read(path)
    assert caught.value.file == str(path)
    assert "\n" not in str(caught.value)
    return caught.value.field, caught.value.expected, caught.value.got


def write_wav(path: Path, samples: np.ndarray, rate_hz: int, layout: str) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=rate_hz, layout=layout)
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout=layout)
        frame.sample_rate = rate_hz
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)


def test_mono_16_khz_comes_back_sample_for_sample(tmp_path):
    samples = (np.sin(np.arange(4000) * 0.1) * 9000).astype(np.int16)
    write_wav(tmp_path / "a.wav", samples, 16_000, "mono")
    np.testing.assert_array_equal(read_pcm(tmp_path / "a.wav"), samples)


@pytest.mark.parametrize(("rate_hz", "layout", "channels"), [(8000, "mono", 1), (48_000, "stereo", 2)])
def test_other_rates_and_channels_keep_their_length_and_level(tmp_path, rate_hz, layout, channels):
    time_s = np.arange(rate_hz) / rate_hz
    tone = (np.sin(2 * np.pi * 300 * time_s) * 9000).astype(np.int16)
    write_wav(tmp_path / "a.wav", np.repeat(tone, channels), rate_hz, layout)
    pcm = read_pcm(tmp_path / "a.wav")
    assert pcm.dtype == np.int16
    assert abs(len(pcm) - 16_000) <= 32
    expected = np.sin(2 * np.pi * 300 * np.arange(len(pcm)) / 16_000) * 9000
    assert np.abs(pcm - expected)[500:-500].max() < 200


def test_pictures_come_back_lossless_in_rgb_and_gray(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), dtype=np.uint8)
    write_video(tmp_path / "a.mkv", pictures, "rgb24", codec="ffv1", pixel_format="bgr0")
    np.testing.assert_array_equal(pictures_of(tmp_path / "a.mkv", "rgb24"), pictures)
    write_video(tmp_path / "g.mkv", pictures[..., 0], "gray", codec="ffv1", pixel_format="gray")
    np.testing.assert_array_equal(pictures_of(tmp_path / "g.mkv", "gray"), pictures[..., 0])


def pictures_of(path, pixel_format):
    return np.stack([to_picture(path, frame, pixel_format) for frame in video_frames(path)])


def test_samples_come_back_from_flac(tmp_path):
    samples = (np.sin(np.arange(50_000) * 0.1) * 9000).astype(np.int16)
    write_flac(tmp_path / "a.flac", samples)
    np.testing.assert_array_equal(read_pcm(tmp_path / "a.flac"), samples)


def write_tracks(path, *levels):
    with av.open(str(path), "w") as out:
        streams = [out.add_stream("pcm_s16le", rate=16_000, layout="mono") for _ in levels]
        for stream, level in zip(streams, levels, strict=True):
            frame = av.AudioFrame.from_ndarray(np.full((1, 1600), level, np.int16), "s16", "mono")
            frame.sample_rate, frame.pts = 16_000, 0
            out.mux(stream.encode(frame))


def test_the_first_track_that_decodes_is_read(tmp_path):
    path = tmp_path / "a.mkv"
    write_tracks(path, 1000, 2000)
    assert read_pcm(path)[0] == 1000
    path.write_bytes(path.read_bytes().replace(b"A_PCM/INT/LIT", b"A_ABC/INT/LIT", 1))
    assert read_pcm(path)[0] == 2000
    path.write_bytes(path.read_bytes().replace(b"A_PCM/INT/LIT", b"A_ABC/INT/LIT", 1))
    assert refused(read_pcm, path) == ("sound", "a sound track", "no audio stream that ffmpeg can decode")


def test_what_is_no_regular_file_is_refused_before_it_is_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    for path in (tmp_path / "pipe.wav", tmp_path, Path("/dev/zero")):
        assert refused(read_pcm, path) == ("", "a recording", "a folder or a device")
    assert "cannot be read" in refused(read_pcm, tmp_path / ("x" * 300))[2]


def test_a_list_of_other_files_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.ts")
    (tmp_path / "a.ffconcat").write_text("ffconcat version 1.0\nfile pipe.ts\n")
    _, expected, got = refused(read_pcm, tmp_path / "a.ffconcat")
    assert (expected, got) == ("one recording", "a playlist, a script or a damaged header")


def test_a_title_in_no_known_encoding_does_not_matter(tmp_path):
    path = tmp_path / "a.flac"
    with av.open(str(path), "w") as out:
        out.metadata["title"] = "caf\u00e9"
        stream = out.add_stream("flac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.ones((1, 1600), np.int16), "s16", "mono")
        frame.sample_rate = 16_000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    path.write_bytes(path.read_bytes().replace("caf\u00e9".encode(), b"caf\xe9\xff"))
    assert len(read_pcm(path)) == 1600


def test_bad_files_are_refused_in_one_line(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("not a recording " * 100)
    silent = np.zeros((2, 16, 16), np.uint8)
    write_video(tmp_path / "mute.mkv", silent, "gray", codec="ffv1", pixel_format="gray")
    write_wav(tmp_path / "sound.wav", np.zeros(1600, np.int16), 16_000, "mono")
    for name, *said in [
        ("absent.wav", "", "a recording", "no such file"),
        ("empty.wav", "", "a recording", "an empty file"),
        ("text.wav", "", "a recording that ffmpeg can decode", "something else"),
        ("mute.mkv", "sound", "a sound track", "no audio stream"),
    ]:
        field, expected, got = refused(read_pcm, tmp_path / name)
        assert [field, expected, got.partition(" (")[0]] == said
    frames = video_frames(tmp_path / "sound.wav")
    with pytest.raises(MediaError) as caught:
        next(frames)
    assert (caught.value.field, caught.value.got) == ("pictures", "no video stream")


def test_shared_corpus_of_may_has_the_length_it_states(shared_fixtures):
    audio = shared_fixtures.parent / "may" / "speaker" / "audio.flac"
    if not audio.is_file():
        pytest.skip("May's recording is not here")
    assert len(read_pcm(audio)) == 5_280_000
