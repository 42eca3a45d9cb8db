"""Sound by its time stamps: a clap lies where the container says, whatever begins first."""

import numpy as np
import pytest
from timed_recordings import write_recording

from preparation.media import MediaError, first_picture_s, read_pcm, write_flac

CLAP_S = 1.5  # after the first picture
RATE_HZ = 48_000


def write_clap(path, *, picture_start_s=0.0, sound_start_s=0.0, **how):
    """Writes 3 s of pictures, and sound with a click 1.5 s after the first."""
    click = round((picture_start_s + CLAP_S - sound_start_s) * RATE_HZ)
    samples = np.zeros(3 * RATE_HZ, np.int16)
    samples[click : click + RATE_HZ // 200] = 16_000
    pictures_s = picture_start_s + np.arange(90) / 30
    return write_recording(
        path, pictures_s=pictures_s, samples=samples, rate_hz=RATE_HZ, sound_start_s=sound_start_s, **how
    )


def clap_s(path):
    pcm = np.abs(read_pcm(path, start_s=first_picture_s(path)).astype(np.float32))
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
    path = write_clap(tmp_path / "clap.ts", picture_start_s=1000.3, sound_start_s=1000.0, codec="aac")
    assert first_picture_s(path) > 1000
    assert clap_s(path) == pytest.approx(CLAP_S, abs=0.004)


def test_sound_that_drops_out_keeps_its_place_and_its_length(tmp_path):
    path = write_clap(tmp_path / "clap.mkv", gap_s=(0.5, 1.0))
    assert clap_s(path) == pytest.approx(CLAP_S, abs=0.004)
    assert len(read_pcm(path, start_s=0.0)) - len(read_pcm(path)) == pytest.approx(0.5 * 16_000, abs=400)


def test_sound_that_is_wholly_before_the_first_picture_is_none(tmp_path):
    path = write_clap(tmp_path / "clap.mkv")
    with pytest.raises(MediaError) as refused:
        read_pcm(path, start_s=100.0)
    assert refused.value.field == "sound"


def test_sound_alone_has_no_first_picture(tmp_path):
    write_flac(tmp_path / "a.flac", np.zeros(16_000, np.int16))
    assert first_picture_s(tmp_path / "a.flac") is None
