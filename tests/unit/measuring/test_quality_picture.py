"""A bundle's pictures are compared with the validation frames of the folder, region by region."""

import bundle_factory
import pytest
import tiny_speaker

from benchmarks.quality_picture import picture_quality
from models.speaker import load_speaker
from preparation.media import MediaError
from preparation.speaker_set import SpeakerDataError


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "Tiny"
    return load_speaker(bundle_factory.write_tiny_bundle(folder, image_size_px=64))


def test_every_region_is_measured_at_both_sizes(speaker, tmp_path):
    folder = tiny_speaker.write_tiny_speaker(tmp_path / "speaker")
    found = picture_quality(speaker, folder, frames=3, threads=1)
    assert {"psnr_db", "mouth_psnr_db", "ssim", "psnr_at_32_db", "mouth_psnr_at_32_db"} <= set(found)
    assert all(0 < value < 60 for name, value in found.items() if name.endswith("_db"))
    assert all(-1 <= value <= 1 for name, value in found.items() if "ssim" in name)
    assert found["torso_psnr_db"] != found["head_psnr_db"]


def test_a_folder_without_its_masks_is_refused(speaker, tmp_path):
    folder = tiny_speaker.write_tiny_speaker(tmp_path / "speaker", frames=22)
    (folder / "masks.mkv").unlink()
    with pytest.raises(MediaError) as caught:
        picture_quality(speaker, folder, frames=1, threads=1)
    assert (caught.value.file, caught.value.got) == (str(folder / "masks.mkv"), "no such file")


def test_pictures_of_another_size_are_refused(tmp_path):
    other = load_speaker(bundle_factory.write_tiny_bundle(tmp_path / "Tiny", image_size_px=128))
    folder = tiny_speaker.write_tiny_speaker(tmp_path / "speaker", frames=22)
    with pytest.raises(SpeakerDataError) as caught:
        picture_quality(other, folder, frames=1, threads=1)
    assert (caught.value.file, caught.value.expected) == (str(folder / "video.mp4"), "128 x 128 pixels")
