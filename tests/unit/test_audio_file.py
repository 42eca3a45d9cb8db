import av
import numpy as np
import pytest
import stand_ins

from streaming.audio_file import AudioFile
from streaming.errors import InputError


def speech_of(path):
    return np.concatenate(list(AudioFile(path).speech()))


def tone(seconds, rate_hz, channels=1):
    wave = 0.25 * np.sin(2 * np.pi * 300 * np.arange(int(seconds * rate_hz)) / rate_hz)
    return np.repeat(np.round(wave * 32767).astype(np.int16)[:, None], channels, axis=1)


def test_16_khz_mono_comes_through_untouched(tmp_path):
    pcm = stand_ins.speech_like(1.5)
    path = stand_ins.write_wav(tmp_path / "a.wav", pcm)
    assert np.array_equal(speech_of(path), pcm.astype(np.float32) / 32768)


@pytest.mark.parametrize("rate_hz", [8000, 11025, 44100, 48000, 96000])
@pytest.mark.parametrize("channels", [1, 2, 7])
def test_any_rate_and_channels_become_16_khz_mono(tmp_path, rate_hz, channels):
    path = stand_ins.write_wav(tmp_path / "a.wav", tone(1, rate_hz, channels), rate_hz)
    pcm = speech_of(path)
    assert len(pcm) == pytest.approx(16000, abs=2)
    assert pcm.dtype == np.float32
    reference = 0.25 * np.sin(2 * np.pi * 300 * np.arange(len(pcm)) / 16000)
    inner = slice(800, -800)
    scale = np.dot(pcm[inner], reference[inner]) / np.dot(reference[inner], reference[inner])
    assert scale > 0.9  # mixing down does not lose the speaker's level
    assert np.abs(pcm[inner] / scale - reference[inner]).max() < 0.01  # same phase: nothing shifted


@pytest.mark.parametrize(
    ("rate_hz", "channels", "kept_hz", "layout"),
    [
        (8000, 1, 8000, "mono"),
        (16000, 2, 16000, "stereo"),
        (44100, 1, 44100, "mono"),
        (37800, 1, 44100, "mono"),
        (96000, 7, 48000, "stereo"),
    ],
)
def test_the_videos_sound_keeps_rate_and_channels_where_aac_can(tmp_path, rate_hz, channels, kept_hz, layout):
    path = stand_ins.write_wav(tmp_path / "a.wav", tone(1, rate_hz, channels), rate_hz)
    audio = AudioFile(path)
    assert (audio.sound_format.rate_hz, audio.sound_format.layout) == (kept_hz, layout)
    sound = np.concatenate(list(audio.sound()), axis=1)
    assert sound.shape == (audio.sound_format.channels, pytest.approx(kept_hz, abs=2))


def test_blocks_are_small(tmp_path):
    path = stand_ins.write_wav(tmp_path / "a.wav", stand_ins.speech_like(20))
    assert max(len(block) for block in AudioFile(path).speech()) <= 16000


def test_loud_floats_are_held_within_one(tmp_path):
    path = stand_ins.write_wav(tmp_path / "a.wav", np.full(16000, 7.5, np.float32))
    assert np.abs(speech_of(path)).max() == 1


def test_the_sound_of_a_video_is_used(tmp_path):
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        for _ in range(5):
            picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            container.mux(video.encode(picture))
        block = av.AudioFrame.from_ndarray(tone(0.2, 16000).T, format="s16", layout="mono")
        block.sample_rate = 16000
        block.pts = 0
        container.mux(audio.encode(block))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    assert np.array_equal(speech_of(path), tone(0.2, 16000)[:, 0].astype(np.float32) / 32768)


def test_a_colon_in_the_name_is_no_protocol(tmp_path):
    path = stand_ins.write_wav(tmp_path / "take:2.wav", stand_ins.speech_like(0.1))
    assert len(speech_of(path)) == 1600


def test_a_file_cut_off_in_the_middle_gives_what_is_there(tmp_path):
    whole = stand_ins.write_wav(tmp_path / "a.wav", stand_ins.speech_like(1))
    cut = tmp_path / "cut.wav"
    cut.write_bytes(whole.read_bytes()[: 44 + 2 * 8000 + 1])
    assert len(speech_of(cut)) == 8000


def refused(path):
    with pytest.raises(InputError) as caught:
        list(AudioFile(path).speech())
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_what_is_not_there_or_holds_nothing_is_refused(tmp_path):
    assert "no such file" in refused(tmp_path / "nope.wav")
    assert "folder" in refused(tmp_path)
    (tmp_path / "empty.wav").touch()
    assert "is empty" in refused(tmp_path / "empty.wav")
    (tmp_path / "notes.wav").write_text("buy milk\n" * 50)
    assert "expected sound that ffmpeg decodes" in refused(tmp_path / "notes.wav")
    header_only = stand_ins.write_wav(tmp_path / "none.wav", np.zeros(0, np.int16))
    assert "without samples" in refused(header_only)


def test_a_video_without_sound_is_refused(tmp_path):
    path = tmp_path / "silent.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        container.mux(video.encode(picture))
        container.mux(video.encode(None))
    assert "expected a sound track, got video only" in refused(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_sample_that_is_no_number_is_refused_with_its_place(tmp_path, bad, channels):
    samples = np.zeros((16000, channels), np.float32)
    samples[12000, -1] = bad
    message = refused(stand_ins.write_wav(tmp_path / "a.wav", samples))
    assert f"sample 12000 (0.750 s): expected a number, got {bad}" in message
