import os
import random
import re
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import stand_ins

from streaming.errors import InputError
from streaming.files import audio_file
from streaming.files.audio_file import AudioFile


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


def test_stereo_moves_the_face_as_mono_does(tmp_path):
    """Neither louder nor clipped, whatever the sample format."""
    mono = 0.9 * np.sin(2 * np.pi * 300 * np.arange(48000) / 48000).astype(np.float32)[:, None]
    expected = speech_of(stand_ins.write_wav(tmp_path / "mono.wav", mono, 48000))
    stereo = np.repeat(mono, 2, axis=1)
    for samples in (stereo, np.round(stereo * 32767).astype(np.int16)):
        found = speech_of(stand_ins.write_wav(tmp_path / "stereo.wav", samples, 48000))
        np.testing.assert_allclose(found, expected, atol=1e-3)


# Sides that cancel ----------------------------------------------------------------------------------


def level(samples):
    return float(np.sqrt(np.mean(np.square(samples))))


@pytest.mark.parametrize("rate_hz", [8000, 16000, 44100, 48000])
@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_sides_that_cancel_are_heard_by_the_louder_one(tmp_path, rate_hz, kind):
    left = stand_ins.speech_like(3, rate_hz)
    expected = level(speech_of(stand_ins.write_wav(tmp_path / "mono.wav", left, rate_hz)))
    samples = np.stack([left, -left], axis=1)
    samples = (samples / 32768).astype(np.float32) if kind is np.float32 else samples
    heard = speech_of(stand_ins.write_wav(tmp_path / "opposed.wav", samples, rate_hz))
    assert level(heard) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("sides", [(0, 1), (4, 5)])
def test_surround_sound_whose_sides_cancel_is_heard(tmp_path, sides):
    voice = stand_ins.speech_like(3, 48000)
    samples = np.zeros((len(voice), 6), np.int16)  # FL FR FC LFE BL BR
    samples[:, sides[0]], samples[:, sides[1]] = voice, -voice
    heard = speech_of(stand_ins.write_wav(tmp_path / "surround.wav", samples, 48000))
    assert level(heard) > 0.2 * level(voice / 32768)


def test_the_centre_of_surround_sound_is_heard(tmp_path):
    voice = stand_ins.speech_like(3, 48000)
    samples = np.zeros((len(voice), 6), np.int16)
    samples[:, 2] = voice
    heard = speech_of(stand_ins.write_wav(tmp_path / "film.wav", samples, 48000))
    assert level(heard) > 0.25 * level(voice / 32768)


@pytest.mark.parametrize("channels", [8, 9, 16, 64])
def test_many_channels_are_mixed_whether_or_not_they_have_places(tmp_path, channels):
    samples = np.repeat(stand_ins.speech_like(1)[:, None], channels, axis=1)
    audio = AudioFile(stand_ins.write_wav(tmp_path / "many.wav", samples))
    speech = np.concatenate(list(audio.speech()))
    assert len(speech) == 16000
    assert level(speech) > 0.5 * level(samples / 32768)
    assert np.concatenate(list(audio.sound()), axis=1).shape == (2, 16000)


def test_eight_planes_are_read_within_their_bounds(tmp_path):
    """AAC 7.1 decodes into eight planes."""
    path = tmp_path / "theatre.m4a"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000, layout="7.1")
        samples = np.repeat(stand_ins.speech_like(1, 48000), 8)[None]
        block = av.AudioFrame.from_ndarray(samples, format="s16", layout="7.1")
        block.sample_rate = 48000
        container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    assert level(speech_of(path)) > 0.05


# Several tracks -------------------------------------------------------------------------------------


def write_tracks(path, *tracks):
    """Each track is a level of 16 kHz mono PCM and whether it is the default one."""
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("pcm_s16le", rate=16000, layout="mono") for _ in tracks]
        for stream, (_, default) in zip(streams, tracks, strict=True):
            stream.disposition = av.stream.Disposition.default if default else av.stream.Disposition(0)
        for stream, (value, _) in zip(streams, tracks, strict=True):
            block = av.AudioFrame.from_ndarray(np.full((1, 1600), value, np.int16), "s16", "mono")
            block.sample_rate = 16000
            block.pts = 0
            container.mux(stream.encode(block))
    return path


def without_decoder(path, track):
    """Renames the codec of a Matroska file's track, counted from 0, into one that nobody knows."""
    parts = path.read_bytes().split(b"A_PCM/INT/LIT")
    parts[track] += b"A_ABC/INT/LIT"
    content = parts[0]
    for number, part in enumerate(parts[1:]):
        content += (b"" if number == track else b"A_PCM/INT/LIT") + part
    path.write_bytes(content)
    return path


def test_the_default_track_is_taken_of_those_that_decode(tmp_path):
    first = write_tracks(tmp_path / "a.mkv", (1000, False), (2000, True))
    assert speech_of(first)[100] == pytest.approx(2000 / 32768)
    both = write_tracks(tmp_path / "b.mkv", (1000, True), (2000, True))
    assert speech_of(both)[100] == pytest.approx(1000 / 32768)
    mute = without_decoder(write_tracks(tmp_path / "c.mkv", (1000, False), (2000, True)), 1)
    assert speech_of(mute)[100] == pytest.approx(1000 / 32768)
    mute = without_decoder(write_tracks(tmp_path / "d.mkv", (1000, True), (2000, False)), 0)
    assert speech_of(mute)[100] == pytest.approx(2000 / 32768)


def test_a_track_that_no_decoder_knows_alone_is_refused(tmp_path):
    path = without_decoder(write_tracks(tmp_path / "a.mkv", (1000, True)), 0)
    message = refused(path)
    assert "no decoder" in message
    assert "convert it to WAV" in message


def test_a_phones_first_track_without_a_decoder_is_passed_over(shared_folder):
    path = shared_folder / "cases" / "apac_first.mov"
    if not path.is_file():
        pytest.skip(f"{path}: not there")
    speech = speech_of(path)
    assert len(speech) / 16000 == pytest.approx(1.5, abs=0.05)
    assert level(speech) > 0.01


# Short and damaged ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rate_hz", [8000, 11025, 44100, 48000, 96000])
@pytest.mark.parametrize("samples", [1, 2, 15, 16, 17, 100, 2000])
def test_any_sound_gives_something_to_speak_and_to_hear(tmp_path, rate_hz, samples):
    for channels in (1, 2):
        block = np.full((samples, channels), 3000, np.int16)
        audio = AudioFile(stand_ins.write_wav(tmp_path / "short.wav", block, rate_hz))
        assert sum(map(len, audio.speech())) >= 1
        assert sum(block.shape[1] for block in audio.sound()) >= 1


FORMATS = {
    "wav": ("pcm_s16le", 48000),
    "mp3": ("mp3", 44100),
    "m4a": ("aac", 48000),
    "mov": ("aac", 48000),
    "flac": ("flac", 48000),
    "opus": ("libopus", 48000),
    "webm": ("libopus", 48000),
    "mkv": ("pcm_s16le", 48000),
    "aiff": ("pcm_s16be", 48000),
    "flv": ("aac", 44100),
    "ts": ("mp2", 48000),
    "avi": ("mp3", 44100),
    "ogg": ("flac", 48000),
    "wv": ("wavpack", 48000),
    "au": ("pcm_s16be", 48000),
    "caf": ("pcm_s16le", 48000),
    "amr": ("libopencore_amrnb", 8000),
    "aac": ("aac", 48000),
    "ac3": ("ac3", 48000),
    "tta": ("tta", 48000),
}


def encode(container, stream, samples, rate_hz):
    block = av.AudioFrame.from_ndarray(samples[None], "s16", "mono")
    block.sample_rate = rate_hz
    block.pts = 0
    container.mux(stream.encode(block))
    container.mux(stream.encode(None))


def write_compressed(path, seconds=0.7, **options):
    codec, rate_hz = FORMATS[path.suffix[1:]]
    kind = {"opus": "ogg", "ts": "mpegts", "aac": "adts"}.get(path.suffix[1:])
    with av.open(str(path), "w", format=kind, options=options) as container:
        stream = container.add_stream(codec, rate=rate_hz, layout="mono")
        encode(container, stream, stand_ins.speech_like(seconds, rate_hz), rate_hz)
    return path.read_bytes()


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("seed", range(2))
def test_damage_anywhere_gives_sound_or_one_line(tmp_path, ending, seed):
    whole = write_compressed(tmp_path / f"whole.{ending}")
    assert len(speech_of(tmp_path / f"whole.{ending}")) > 10_000
    places = random.Random(seed)
    damaged = tmp_path / f"damaged.{ending}"
    for kind in range(6):
        content = bytearray(whole)
        if kind % 3 == 0:
            del content[places.randrange(1, len(content)) :]
        for _ in range((0, 1, 40)[kind % 3]):
            area = len(content) if places.random() < 0.5 else min(len(content), 500)
            content[places.randrange(area)] = places.randrange(256)
        damaged.write_bytes(content)
        refusal = ""
        try:
            audio = AudioFile(damaged)
            samples = np.concatenate(list(audio.speech()))
            heard = np.concatenate(list(audio.sound()), axis=1)
        except InputError as error:
            refusal = str(error)
        if refusal:
            assert str(damaged) in refusal
            assert refusal.isprintable()
            continue
        assert len(samples) >= 1
        assert heard.shape[0] == audio.sound_format.channels
        assert np.isfinite(samples).all()


def test_what_came_before_the_damage_is_used_with_a_warning(tmp_path, caplog):
    """Errors of a decoder come in many kinds; all are met where a packet is decoded."""
    path = tmp_path / "a.m4a"
    content = bytearray(write_compressed(path))
    start = content.index(b"mdat") + 4
    middle = start + (len(content) - start) // 3
    content[middle : middle + 400] = random.Random(1).randbytes(400)
    path.write_bytes(content)
    samples = speech_of(path)
    assert level(samples[:2000]) > 0.01
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"{path}: the sound is damaged in ")


@pytest.mark.parametrize("ending", FORMATS)
def test_a_whole_file_gives_no_warning(tmp_path, caplog, ending):
    write_compressed(tmp_path / f"whole.{ending}")
    assert len(speech_of(tmp_path / f"whole.{ending}")) > 10_000
    assert caplog.records == []


@pytest.mark.parametrize("ending", ["mp3", "webm", "aiff", "wv", "au"])
def test_half_a_file_says_how_much_is_missing(tmp_path, caplog, ending):
    whole, half = tmp_path / f"whole.{ending}", tmp_path / f"half.{ending}"
    content = write_compressed(whole, 4.0)
    speech_of(whole)
    assert caplog.records == []
    half.write_bytes(content[: len(content) // 2])
    samples = speech_of(half)
    (said,) = [record.getMessage() for record in caplog.records]
    found = re.search(r"states ([0-9.]+) s of sound, ([0-9.]+) s of it could be read", said)
    assert said.startswith(f"{half}: ")
    assert float(found[1]) == pytest.approx(4.0, abs=0.1)
    assert float(found[2]) == pytest.approx(len(samples) / 16000, abs=0.01)
    assert float(found[2]) < 3


def test_pages_that_ogg_passes_over_are_missed(tmp_path, caplog):
    path = tmp_path / "a.opus"
    content = bytearray(write_compressed(path, 10.0, page_duration="1000000"))
    pages = [place.start() for place in re.finditer(b"OggS", content)]
    for page in pages[4:7]:
        content[page + 60] ^= 0x55  # its checksum is wrong now
    path.write_bytes(content)
    assert len(speech_of(path)) == pytest.approx(7 * 16000, rel=0.02)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "the file states 10.01 s of sound, 7.00 s of it could be read" in said


@pytest.mark.parametrize("ending", ["mp3", "aac"])
def test_a_length_that_is_guessed_from_the_bit_rate_is_no_statement(tmp_path, caplog, ending):
    """Without a header, and quiet at first: FFmpeg takes the whole file to be as sparse."""
    path = tmp_path / f"a.{ending}"
    samples = np.random.default_rng(0).integers(-9000, 9000, 480_000).astype(np.int16)
    samples[:240_000] = 0
    with av.open(
        str(path),
        "w",
        format="adts" if ending == "aac" else "mp3",
        options={} if ending == "aac" else {"write_xing": "0"},
    ) as container:
        stream = container.add_stream(ending, rate=48000, layout="mono")
        if ending == "mp3":
            stream.codec_context.qscale = True
            stream.codec_context.global_quality = 236
        encode(container, stream, samples, 48000)
    audio = AudioFile(path)
    assert audio.duration_s > 10.1
    assert sum(map(len, audio.speech())) == pytest.approx(160_000, rel=0.01)
    assert caplog.records == []


@pytest.mark.parametrize(
    "error",
    [av.error.PermissionError(1, "x"), av.error.ArgumentError(22, "x"), ValueError("x"), OSError(5, "x")],
)
def test_any_error_of_a_decoder_leaves_out_one_packet(tmp_path, monkeypatch, caplog, error):
    audio = AudioFile(stand_ins.write_wav(tmp_path / "a.wav", stand_ins.speech_like(1)))
    lengths = []

    class FailingPacket:
        def __init__(self, packet):
            self._packet = packet

        def decode(self):
            frames = self._packet.decode()
            lengths.append(sum(frame.samples for frame in frames))
            if len(lengths) == 2:
                raise error
            return frames

    class FailingContainer:
        def __init__(self, container):
            self._container = container
            self.streams = container.streams

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._container.close()

        def demux(self, stream):
            return map(FailingPacket, self._container.demux(stream))

    opened = audio_file.open_recording
    monkeypatch.setattr(audio_file, "open_recording", lambda path: FailingContainer(opened(path)))
    samples = np.concatenate(list(audio.speech()))
    assert len(samples) == 16000 - lengths[1]
    assert lengths[1] > 0
    assert "damaged in 1 place" in caplog.text


def header(path, *, rate_hz=16000, channels=1):
    """Changes what a WAV states about itself."""
    content = bytearray(path.read_bytes())
    struct.pack_into("<HI", content, 22, channels, rate_hz)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("stated", [{"rate_hz": n} for n in (0, 1, 999, 2**31 - 1, 2**32 - 1)] + [
    {"channels": n} for n in (0, 65, 255, 65535)
])  # fmt: skip
def test_absurd_headers_are_refused(tmp_path, stated):
    refused(header(stand_ins.write_wav(tmp_path / "a.wav", stand_ins.speech_like(1)), **stated))


def test_samples_that_overflow_when_they_are_mixed_stay_numbers(tmp_path):
    samples = np.full((16000, 2), 3e38, np.float32)
    samples[::2, 1] *= -1
    heard = speech_of(stand_ins.write_wav(tmp_path / "a.wav", samples, 48000))
    assert np.isfinite(heard).all()
    assert np.abs(heard).max() <= 1


def test_a_title_in_no_known_encoding_does_not_matter(tmp_path):
    path = tmp_path / "a.flac"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "caf\u00e9"
        stream = container.add_stream("flac", rate=16000, layout="mono")
        block = av.AudioFrame.from_ndarray(stand_ins.speech_like(1)[None], "s16", "mono")
        block.sample_rate = 16000
        container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    content = path.read_bytes()
    assert "caf\u00e9".encode() in content
    path.write_bytes(content.replace("caf\u00e9".encode(), b"caf\xe9\xff"))
    assert len(speech_of(path)) == 16000


def test_a_playlist_is_no_way_to_other_places(tmp_path):
    path = tmp_path / "a.m3u8"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    refused(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("live.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other}\n"),
        ("ended.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other}\n#EXT-X-ENDLIST\n"),
        ("variants.m3u8", "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{other}\n"),
        ("list.ffconcat", "ffconcat version 1.0\nfile {other}\n"),
        ("call.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 9 RTP/AVP 0\n"),
        ("endless.sbg", "hum: 100+10/10\nNOW hum\n"),
    ],
)
@pytest.mark.parametrize("other", ["pipe.ts", "part.wav"])
def test_a_list_of_other_files_is_refused_before_any_of_them_is_opened(tmp_path, name, content, other):
    os.mkfifo(tmp_path / "pipe.ts")
    stand_ins.write_wav(tmp_path / "part.wav", stand_ins.speech_like(1))
    (tmp_path / name).write_text(content.format(other=other))
    message = refused(tmp_path / name)
    assert (
        "expected one recording, got a playlist, a script or a damaged header; give the recording" in message
    )


def test_what_is_no_regular_file_is_refused_before_it_is_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    assert "folder or a device" in refused(tmp_path / "pipe.wav")
    assert "folder or a device" in refused(Path("/dev/zero"))
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    refused(tmp_path / "loop.wav")
    (tmp_path / "dangling.wav").symlink_to(tmp_path / "nowhere")
    assert "no such file" in refused(tmp_path / "dangling.wav")
    refused(tmp_path / ("x" * 300))


def test_a_file_that_vanishes_or_changes_is_one_line(tmp_path):
    path = stand_ins.write_wav(tmp_path / "a.wav", stand_ins.speech_like(1))
    audio = AudioFile(path)
    path.write_text("buy milk")
    with pytest.raises(InputError, match=r"a\.wav"):
        list(audio.speech())
    path.unlink()
    with pytest.raises(InputError, match=r"a\.wav"):
        list(audio.sound())


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
    path = stand_ins.write_mute_video(tmp_path / "silent.mp4")
    expected = "expected a sound track, got video only; give a recording with sound"
    assert refused(path) == f"{path}: {expected}"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_sample_that_is_no_number_is_refused_with_its_place(tmp_path, bad, channels):
    samples = np.zeros((16000, channels), np.float32)
    samples[12000, -1] = bad
    message = refused(stand_ins.write_wav(tmp_path / "a.wav", samples))
    assert f"sample 12000 (0.750 s): expected a number, got {bad}" in message
