"""Plates made of a bundle, by program and command, and what becomes of them when the bundle changes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import bundle_factory
import numpy as np
import plate_factory
import pytest
from wide_speaker import write_speech

from cuda_kernels.compositing import compose_i420, rgb_to_i420
from cuda_kernels.cpu_raymarcher import CpuRaymarcher
from export import plates
from export.bundle import assembly
from export.bundle.writer import add_figures, parts_of, put_plates, seal, write_bundle
from export.cli import main
from export.plates import add_plates, spanning_conditions
from export.students.offline_motion import OfflineMotion
from export.students.slimming import conditions, still_landmarks
from export.verification import verify_bundle
from models.partial_files import aside_path
from models.plates import PlateError
from models.speaker import load_speaker

SIZE_PX = 64
PLATE_FILES = {"plates.mkv", "plates.safetensors"}


@pytest.fixture(scope="module")
def plated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plated") / "Tiny"
    return add_plates(bundle_factory.write_tiny_bundle(folder, image_size_px=SIZE_PX))


@pytest.fixture
def bundle(tmp_path):
    return bundle_factory.write_tiny_bundle(tmp_path / "Tiny", image_size_px=SIZE_PX)


def contents(path):
    return {
        file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()
    }


def test_a_composite_is_the_picture_drawn_whole(plated):
    said = OfflineMotion(plated).landmarks(np.random.default_rng(3).normal(0, 0.05, 16000).astype(np.float32))
    driven = conditions(plated, still_landmarks(plated, said))
    masks, pictures = plated.plates.masks(), list(plated.plates.pictures())
    with closing(CpuRaymarcher(plated.scene)) as raymarcher:
        for pose in (0, 17, 34):
            drawn = raymarcher.render(c2w=plated.poses[pose], condition=driven[pose % 25], size_px=SIZE_PX)
            composite = compose_i420(pictures[pose], drawn, masks[pose])
            error = np.mean(np.square(composite.astype(float) - rgb_to_i420(drawn)))
            assert 10 * np.log10(255**2 / error) > 45


def test_conditions_span_the_extremes_of_speech_and_a_blink(plated):
    """A face whose lip moves all the time and whose lid moves once, by a little."""
    track = np.zeros((50, 68, 3), np.float32)
    track[:, 57, 1] = np.linspace(-1, 1, 50)
    track[10, 37, 1] = -0.2
    mean = track.mean(0)
    found, blinked = spanning_conditions(plated, track)

    def wanted(*faces):
        return np.concatenate([conditions(plated, np.float32(face)[None]) for face in faces])

    lip = np.zeros_like(mean)
    lip[57, 1] = plates.REACH
    ends = wanted(mean - lip, mean + lip)
    ends = ends if np.allclose(found[1], ends[0], atol=0.02) else ends[::-1]
    np.testing.assert_allclose(found[:3], np.concatenate([wanted(mean), ends]), atol=0.02)
    lids = wanted(mean + plates.REACH * (track[10] - mean))
    assert np.abs(found[3:] - lids).max(1).min() < 1e-4
    peak = (plated.blinks / plated.motion.landmark_std)[3]
    np.testing.assert_allclose(blinked, wanted(mean + peak, mean + peak / 2), atol=1e-4)


@pytest.mark.parametrize("kind", ["speech", "blink"])
def test_a_mask_between_two_measured_poses_covers_what_either_does(plated, kind):
    poses = len(plated.poses)
    masks = plated.plates.masks()[poses * (kind == "blink") :][:poses]
    covered = np.array([mask.covered for mask in masks])
    before, after = covered[0::2], np.roll(covered[0::2], -1, axis=0)
    np.testing.assert_array_equal(covered[1::2], before | after)


def test_during_a_blink_more_is_drawn(plated):
    masks = plated.plates.masks()
    still, blink = (np.array([mask.covered for mask in half]) for half in (masks[:50], masks[50:]))
    assert not (still & ~blink).any()
    assert (blink & ~still).any()


def test_what_was_verified_stands_in_bundle_and_card(plated):
    measured = {name: value for name, value in plated.verification.items() if name.startswith("plates_")}
    assert measured.keys() == {"plates_psnr_db", "plates_share"}
    assert measured["plates_psnr_db"] >= plates.MIN_PLATES_PSNR_DB
    share = np.mean([mask.share for mask in plated.plates.masks()[: len(plated.poses)]])
    assert measured["plates_share"] == pytest.approx(share)
    assert 0 < share < 1
    assert json.loads((plated.path / "speaker.json").read_text())["plates"].keys() == {"of"}
    found = {check.name: check for check in verify_bundle(plated.path, size_px=32)}
    assert found["plates_psnr_db, at export"].limit == ">= 45"
    assert found["plates against pictures drawn whole, here"].holds


def test_verification_finds_plates_that_show_something_else(plated, tmp_path):
    dark = [np.full((SIZE_PX * 3 // 2, SIZE_PX), 16, np.uint8)] * len(plated.poses)
    speaker = write_bundle(tmp_path / "Tiny", parts_of(plated))
    video = plates._encode(dark, SIZE_PX)
    masks = (plated.path / "plates.safetensors").read_bytes()
    put_plates(
        speaker.path, plates.PlateParts(video=video, masks=masks, verification={"plates_psnr_db": 50.0})
    )
    found = {check.name: check for check in verify_bundle(speaker.path, size_px=32)}
    assert found["plates_psnr_db, at export"].holds
    assert not found["plates against pictures drawn whole, here"].holds


def test_all_other_files_stay_as_they_were(bundle):
    before = contents(bundle)
    add_plates(bundle)
    after = contents(bundle)
    assert after.keys() - before.keys() == PLATE_FILES
    assert {name for name in before if before[name] != after[name]} == {"speaker.json"}
    assert [entry.name for entry in bundle.parent.iterdir()] == ["Tiny"]


def test_the_same_bundle_gives_the_same_plates(plated, bundle):
    again = contents(add_plates(bundle).path)
    assert again == contents(plated.path)


def test_a_model_card_shows_plates_in_its_tables_and_once(bundle):
    card = (
        "# Tiny\n\n## How the export was checked\nDifferences.\n\n"
        "| check | value |\n| --- | --- |\n| a | 1 |\n\n"
        "## Files\n| file | content |\n| --- | --- |\n| speaker.json | settings |\n\n## Limits\nMany.\n"
    )
    (bundle / "MODEL_CARD.md").write_text(card)
    seal(bundle)
    for _ in range(2):
        speaker = add_plates(bundle)
    lines = (bundle / "MODEL_CARD.md").read_text().splitlines()
    measured = f"| plates_psnr_db | {speaker.verification['plates_psnr_db']:.4g} |"
    assert lines[lines.index("| a | 1 |") + 1] == measured
    assert lines[lines.index("| speaker.json | settings |") + 1].startswith("| plates.mkv |")
    assert sum(line.startswith("| plates") for line in lines) == 4
    put_plates(bundle, None)
    assert (bundle / "MODEL_CARD.md").read_text() == card


# Bad input ------------------------------------------------------------------------------------------


def refused(bundle, **given):
    """The refusal's parts, once the bundle is seen to be as it was, with nothing beside it."""
    before, beside = contents(bundle), sorted(entry.name for entry in bundle.parent.iterdir())
    with pytest.raises(plates.InputError) as caught:
        add_plates(bundle, **given)
    assert "\n" not in str(caught.value)
    assert contents(bundle) == before
    assert sorted(entry.name for entry in bundle.parent.iterdir()) == beside
    return caught.value


def test_a_path_of_one_pose_has_no_plates(tmp_path):
    parts = bundle_factory.tiny_parts(image_size_px=SIZE_PX)
    write_bundle(tmp_path / "Tiny", dataclasses.replace(parts, poses=parts.poses[:1]))
    error = refused(tmp_path / "Tiny")
    assert (error.field, error.got) == ("poses", "1")
    assert error.expected.startswith("a loop of 2 to ")


def test_a_path_longer_than_masks_have_room_for_has_no_plates(bundle, monkeypatch):
    monkeypatch.setitem(plates.MAX_FILE_BYTES, "plates.safetensors", 1024 + 49 * 2 * 16 * 2)
    error = refused(bundle)
    assert (error.field, error.expected, error.got) == ("poses", "a loop of 2 to 49 for plates", "50")


def test_a_picture_of_odd_size_has_no_plates(tmp_path):
    error = refused(bundle_factory.write_tiny_bundle(tmp_path / "Tiny", image_size_px=63))
    assert (error.field, error.got) == ("image_size_px", "63")


def test_plates_that_would_be_seen_are_not_put_in(bundle, monkeypatch):
    monkeypatch.setattr(plates, "CRF", 51)
    error = refused(bundle)
    assert (error.field, error.expected) == ("plates", "at least 45 dB against pictures drawn whole")
    assert float(error.got.removesuffix(" dB")) < 45


def test_too_large_a_bundle_stays_without(bundle):
    error = refused(bundle, max_bytes=1000)
    assert (error.field, error.expected) == ("size", "at most 1000 bytes")


def test_speech_that_says_nothing_of_the_face_is_refused(bundle, tmp_path):
    (tmp_path / "text.wav").write_text("hello")
    assert refused(bundle, speech=(tmp_path / "text.wav",)).file == str(tmp_path / "text.wav")
    assert refused(bundle, speech=(tmp_path / "none.wav",)).got == "no such file"
    short = write_speech(tmp_path / "short.wav", seconds=0.5)
    error = refused(bundle, speech=(short,))
    assert (error.file, error.field, error.expected) == (str(short), "length", "at least 1 s")


def test_silence_is_speech_without_a_spread(bundle, tmp_path):
    silent = write_speech(tmp_path / "silent.wav", seconds=1.5, loudness=0)
    assert plates.make_plates(load_speaker(bundle), speech=(silent,)).video


def test_recordings_are_gone_by_beside_the_packaged_sentence(bundle, tmp_path, monkeypatch):
    """Else silence would give masks without a mouth."""
    silent, taken, track = write_speech(tmp_path / "silent.wav", seconds=1.5, loudness=0), [], plates._track
    monkeypatch.setattr(plates, "_track", lambda *given: taken.append(given[-1]) or track(*given))
    add_plates(bundle, speech=(silent,))
    assert taken == [plates.SPEECH_FILE, silent]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("step", ["_changed", "rgb_to_i420", "_encode", "put_plates"])
def test_an_export_that_is_stopped_leaves_the_bundle_as_it_was(bundle, monkeypatch, step, error):
    def stopped(*given, **more):
        raise error

    monkeypatch.setattr(plates, step, stopped)
    before = contents(bundle)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else OSError):
        add_plates(bundle)
    assert contents(bundle) == before
    assert [entry.name for entry in bundle.parent.iterdir()] == ["Tiny"]


def parts_for(bundle):
    return plate_factory.plate_parts(SIZE_PX, len(load_speaker(bundle).poses))


def test_a_link_to_a_bundle_stays_one(bundle, tmp_path):
    link = tmp_path / "speakers" / "Tiny"
    link.parent.mkdir()
    link.symlink_to(bundle)
    assert put_plates(link, parts_for(bundle)).path == link
    assert link.is_symlink()
    assert contents(bundle).keys() > PLATE_FILES
    assert [entry.name for entry in link.parent.iterdir()] == ["Tiny"]


def test_a_bundle_that_a_killed_program_left_aside_is_brought_back(bundle, monkeypatch):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    monkeypatch.setattr(os, "getpid", lambda: ended.pid)
    bundle.rename(aside_path(bundle))
    assert add_plates(bundle).plates is not None
    assert [entry.name for entry in bundle.parent.iterdir()] == ["Tiny"]


@pytest.mark.parametrize("which", ["bundle", "parent"])
def test_a_bundle_that_is_read_only_is_refused_before_anything_is_drawn(bundle, monkeypatch, which):
    read_only = {"bundle": bundle, "parent": bundle.parent}[which]
    monkeypatch.setattr(os, "access", lambda folder, mode: folder != read_only)
    monkeypatch.setattr(plates, "make_plates", lambda *given, **more: pytest.fail("drawn"))
    error = refused(bundle)
    assert (error.file, error.got) == (str(read_only), "a read-only one")


def test_files_that_are_read_only_are_replaced(bundle, monkeypatch):
    """As root may write to them, writing is refused here."""
    write = Path.write_bytes

    def checked(path, content):
        assert not path.exists() or path.stat().st_mode & 0o200, path.name
        return write(path, content)

    for file in bundle.iterdir():
        file.chmod(0o444)
    monkeypatch.setattr(Path, "write_bytes", checked)
    assert put_plates(bundle, parts_for(bundle)).plates is not None


def test_what_else_lies_hidden_in_the_folder_stays(bundle):
    (bundle / ".git").mkdir()
    (bundle / ".git" / "speaker.json").write_text("mine")
    (bundle / ".link").symlink_to("nowhere")
    put_plates(bundle, parts_for(bundle))
    assert (bundle / ".git" / "speaker.json").read_text() == "mine"
    assert (bundle / ".link").readlink() == Path("nowhere")


def test_what_cannot_be_copied_is_said_once_and_the_bundle_stays(bundle, capsys):
    os.mkfifo(bundle / ".pipe")
    assert main(["plates", str(bundle)]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("geneface-export plates: `")
    assert message.endswith(".pipe` is a named pipe")
    assert load_speaker(bundle).plates is None
    assert [entry.name for entry in bundle.parent.iterdir()] == ["Tiny"]


# Changes of the bundle ------------------------------------------------------------------------------


def test_a_bundle_written_again_has_no_plates_of_the_older_one(plated, tmp_path):
    parts = parts_of(plated)
    darker = dataclasses.replace(parts.scene, background=parts.scene.background // 2)
    speaker = write_bundle(tmp_path / "Tiny", dataclasses.replace(parts, scene=darker))
    assert speaker.plates is None
    assert not any(name.startswith("plates") for name in speaker.verification)
    assert PLATE_FILES.isdisjoint(contents(speaker.path))


@pytest.mark.parametrize("name", ["head.safetensors", "poses.safetensors", "background.png"])
def test_sealing_takes_out_plates_of_what_was_changed(plated, tmp_path, name):
    path = write_bundle(tmp_path / "Tiny", parts_of(plated)).path
    other = bundle_factory.tiny_parts(image_size_px=SIZE_PX, seed=1)
    turned = dataclasses.replace(other, poses=other.poses[::-1])
    flipped = dataclasses.replace(other.scene, background=other.scene.background[::-1])
    write_bundle(tmp_path / "Other", dataclasses.replace(turned, scene=flipped))
    add_plates(path)
    (path / name).write_bytes((tmp_path / "Other" / name).read_bytes())
    speaker = seal(path)
    assert speaker.plates is None
    assert PLATE_FILES.isdisjoint(contents(path))
    assert not any(key.startswith("plates") for key in speaker.verification)


def test_sealing_keeps_plates_where_only_words_were_changed(plated, tmp_path):
    path = write_bundle(tmp_path / "Tiny", parts_of(plated)).path
    add_plates(path)
    (path / "MODEL_CARD.md").write_text("# Another card\n")
    assert len(list(seal(path).plates.pictures())) == len(plated.poses)


def test_figures_are_added_beside_plates(bundle):
    add_plates(bundle)
    speaker = add_figures(bundle, {"psnr_db": 31.0})
    assert speaker.figures == {"psnr_db": 31.0}
    assert len(list(speaker.plates.pictures())) == len(speaker.poses)


def test_a_sealed_bundle_with_a_damaged_video_speaks_on(bundle, capsys):
    add_plates(bundle)
    (bundle / "plates.mkv").write_bytes(b"no video")
    speaker = seal(bundle)
    with pytest.raises(PlateError) as caught:
        list(speaker.plates.pictures())
    assert caught.value.field == "content"
    assert load_speaker(bundle).scene.head is not None
    assert main(["verify", str(bundle)]) == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith(f"geneface-export verify: {bundle / 'plates.mkv'}")
    )


# Commands -------------------------------------------------------------------------------------------


def test_the_command_makes_plates(bundle, tmp_path, capsys):
    file = write_speech(tmp_path / "speech.wav", seconds=1.5)
    assert main(["plates", str(bundle), "--speech", str(file)]) == 0
    assert "plates_psnr_db, at export" in capsys.readouterr().out
    assert load_speaker(bundle).plates is not None


@pytest.mark.parametrize("more", [["--max-mb", "0.001"], ["--speech", "none.wav"]], ids=["large", "speech"])
def test_the_command_says_why_it_makes_none(bundle, capsys, more):
    assert main(["plates", str(bundle), *more]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("geneface-export plates: ")
    assert load_speaker(bundle).plates is None


FLAGS = {"out": "Out", "name": "Tiny", "audio2motion": "a", "head": "h", "data": "d", "origin": "o"}
BUNDLE_FLAGS = [f"--{name}={value}" for name, value in FLAGS.items()]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A bundle that `geneface-export bundle` is taken to have made."""
    parts = bundle_factory.tiny_parts(image_size_px=SIZE_PX)
    bundle = tmp_path / "Tiny"
    write_bundle(bundle, dataclasses.replace(parts, verification={"loop_seam_step": 0.5}))
    monkeypatch.setattr(assembly, "make_bundle", lambda _: load_speaker(bundle))
    return bundle


def test_a_bundle_gets_plates_once_it_is_made(made):
    assert main(["bundle", *BUNDLE_FLAGS]) == 0
    assert load_speaker(made).plates is not None


def test_a_bundle_goes_without_where_they_are_not_asked_for(made, capsys):
    assert main(["bundle", *BUNDLE_FLAGS, "--no-plates"]) == 0
    assert load_speaker(made).plates is None
    assert capsys.readouterr().err == ""


def test_a_bundle_goes_without_where_they_would_be_seen(made, capsys, monkeypatch):
    monkeypatch.setattr(plates, "CRF", 51)
    assert main(["bundle", *BUNDLE_FLAGS]) == 0
    assert load_speaker(made).plates is None
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"geneface-export: {made}: goes without plates: plates: expected at least 45 dB")


def test_a_bundle_goes_without_where_the_disk_is_full(made, capsys, monkeypatch):
    def full(*given, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plates, "put_plates", full)
    assert main(["bundle", *BUNDLE_FLAGS]) == 0
    assert load_speaker(made).plates is None
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith("without plates: [Errno 28] No space left on device")
    )
