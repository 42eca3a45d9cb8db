"""Sound by its time stamps: a clap lies where the container says, whatever begins first."""

from fractions import Fraction

import av
import numpy as np
import pytest

from preparation.media import MediaError, read_pcm, video_frames

CLAP_S = 1.5  # after the first picture
RATE_HZ = 48_000


def write_clap(
    path, *, picture_start_s=0.0, sound_start_s=0.0, codec="aac", gap_s=None, rate_hz=RATE_HZ, origin_s=0.0
):
    """Writes 3 s of black pictures, and sound with a click 1.5 s after the first; `gap_s`: none around it."""
    with av.open(str(path), "w") as out:
        pictures = out.add_stream("libx264", rate=30, options={"bf": "2"})
        pictures.width = pictures.height = 64
        pictures.pix_fmt = "yuv420p"
        pictures.codec_context.time_base = Fraction(1, 90_000)
        sound = out.add_stream(codec, rate=rate_hz, layout="mono")
        sound.codec_context.time_base = Fraction(1, rate_hz)
        click = round((picture_start_s + CLAP_S - sound_start_s) * rate_hz)
        samples = np.zeros(3 * rate_hz, np.float32)
        samples[click : click + rate_hz // 200] = 0.5
        packets = []
        for number in range(90):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64), np.uint8), "gray").reformat(
                format="yuv420p"
            )
            frame.pts = round((origin_s + picture_start_s + number / 30) * 90_000)
            frame.time_base = Fraction(1, 90_000)
            packets += pictures.encode(frame)
        packets += pictures.encode(None)
        kind = "s16" if codec == "pcm_s16le" else "fltp"
        for at in range(0, len(samples) // 1024 * 1024, 1024):
            if gap_s is not None and gap_s[0] <= at / rate_hz < gap_s[1]:
                continue
            piece = samples[None, at : at + 1024]
            piece = (piece * 32767).astype(np.int16) if kind == "s16" else piece
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece), kind, "mono")
            frame.sample_rate, frame.time_base = rate_hz, Fraction(1, rate_hz)
            frame.pts = round((origin_s + sound_start_s) * rate_hz) + at
            packets += sound.encode(frame)
        packets += sound.encode(None)
        for packet in sorted(packets, key=lambda one: one.dts * one.time_base):
            out.mux(packet)


def clap_s(path):
    first = next(video_frames(path)).time
    pcm = np.abs(read_pcm(path, start_s=first).astype(np.float32))
    return float(np.argmax(pcm > 0.3 * pcm.max()) / 16_000)


@pytest.mark.parametrize(("ending", "codec"), [("mp4", "aac"), ("mkv", "pcm_s16le"), ("mov", "pcm_s16le")])
@pytest.mark.parametrize(
    ("picture_start_s", "sound_start_s"), [(0.0, 0.0), (0.0, 0.4), (0.4, 0.0), (0.5, 0.2)]
)
def test_a_clap_lies_where_the_pictures_show_it(tmp_path, ending, codec, picture_start_s, sound_start_s):
    path = tmp_path / f"clap.{ending}"
    write_clap(path, picture_start_s=picture_start_s, sound_start_s=sound_start_s, codec=codec)
    assert clap_s(path) == pytest.approx(CLAP_S, abs=0.004)


def test_a_container_whose_clock_begins_late_changes_nothing(tmp_path):
    path = tmp_path / "clap.ts"
    write_clap(path, picture_start_s=0.3, sound_start_s=0.0, codec="aac", origin_s=1000.0)
    assert next(video_frames(path)).time > 1000
    assert clap_s(path) == pytest.approx(CLAP_S, abs=0.004)


def test_sound_that_drops_out_keeps_its_place_and_its_length(tmp_path):
    path = tmp_path / "clap.mkv"
    write_clap(path, codec="pcm_s16le", gap_s=(0.5, 1.0))
    assert clap_s(path) == pytest.approx(CLAP_S, abs=0.004)
    assert len(read_pcm(path, start_s=0.0)) - len(read_pcm(path)) == pytest.approx(0.5 * 16_000, abs=400)


def test_sound_that_is_wholly_before_the_first_picture_is_none(tmp_path):
    path = tmp_path / "clap.mkv"
    write_clap(path, codec="pcm_s16le")
    with pytest.raises(MediaError) as refused:
        read_pcm(path, start_s=100.0)
    assert refused.value.field == "sound"
