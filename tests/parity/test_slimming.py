"""From a bundle with a wide head to one with a slim head: the real training, short; the real export."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
import wide_speaker

from cuda_kernels.cpu_raymarcher import CpuRaymarcher
from export.requests import SlimRequest
from export.students import slimming
from export.students.slimming import MEASURED_FRAMES, compare, slim
from export.verification import verify_bundle
from models.speaker import load_speaker
from training import field_optimizer
from training.head_student import HELD_OUT
from training.loop import checkpoints


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """Some dozen steps are over before the rate has risen; what a frame takes is not looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slimming, "TIMED_FRAMES", 1)
        patch.setattr(field_optimizer, "RATE_WARMUP_STEPS", 5)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("slim")
    request = SlimRequest(
        bundle=wide_speaker.write_wide_bundle(root / "Wide"),
        out=root / "made" / "Slim",
        speech=(wide_speaker.write_speech(root / "talk.wav"),),
        steps=40,
        rays=256,
    )
    report = slim(request, open_motion=wide_speaker.loudness_motion)
    assert report is not None
    return request, report


def test_the_slim_bundle_loads_and_draws(made):
    request, report = made
    speaker = load_speaker(request.out)
    assert speaker.settings.head.sigma_net[1:-1] == (32, 32)
    assert speaker.settings.head.color_net == (16 + 32 + 4, 32, 3)
    wide = load_speaker(request.bundle)
    drawn = []
    for scene in (speaker.scene, wide.scene):
        raymarcher = CpuRaymarcher(scene)
        try:
            picture = raymarcher.render(c2w=speaker.poses[3], condition=np.zeros(8, np.float32), size_px=64)
        finally:
            raymarcher.close()
        drawn.append(picture.astype(np.float64) / 255)
    plain = wide.scene.background / 255
    assert np.mean((drawn[0] - drawn[1]) ** 2) < 0.3 * np.mean((plain - drawn[1]) ** 2)
    assert [check.name for check in verify_bundle(request.out, size_px=64) if not check.holds] == []
    assert report.speaker.path == request.out


def test_slimming_leaves_all_but_the_head_as_it_was(made):
    request, _ = made
    wide, narrow = load_speaker(request.bundle), load_speaker(request.out)
    same = {"motion.onnx", "condition.onnx", "poses.safetensors", "background.png", "torso.safetensors"}
    for name in same:
        assert narrow.settings.files[name].sha256 == wide.settings.files[name].sha256, name
    for name in ("motion", "camera", "condition", "torso", "origin", "name", "licence"):
        one, other = getattr(narrow.settings, name), getattr(wide.settings, name)
        assert str(one) == str(other), name
    np.testing.assert_array_equal(narrow.scene.head.density_bitfield, wide.scene.head.density_bitfield)
    for name in ("aabb", "max_steps", "grid_size", "stop_transmittance"):
        np.testing.assert_array_equal(getattr(narrow.scene.head, name), getattr(wide.scene.head, name))


def test_figures_card_and_table_say_how_close_it_comes(made):
    request, report = made
    speaker = load_speaker(request.out)
    slim_figures = {name: value for name, value in speaker.figures.items() if name.startswith("slim.")}
    assert slim_figures == report.figures
    assert {"slim.psnr_whole_db", "slim.psnr_head_db", "slim.psnr_mouth_db", "slim.speedup_256"} <= set(
        slim_figures
    )
    assert slim_figures["slim.psnr_whole_db"] > 15
    assert speaker.figures["wide.psnr_db"] == 31.0
    assert "psnr_db" not in speaker.figures
    assert speaker.verification["raymarcher_psnr_db"] >= 45
    card = (request.out / "MODEL_CARD.md").read_text()
    assert card.count("## Slim head") == 1
    assert "48 wide head's pictures to one of 32" in card
    assert "slim.psnr_mouth_db" in card
    table = report.table()
    assert "48 to 32" in table
    assert "PSNR against the wide head, mouth" in table
    assert "times as fast" in table
    twice = slimming._with_note(card, load_speaker(request.bundle).settings.head, speaker.scene.head)
    assert twice.count("## Slim head") == 1
    assert twice.count("slim.psnr_mouth_db") == 1


def test_figures_are_those_of_the_written_bundle(made):
    request, report = made
    wide, narrow = load_speaker(request.bundle), load_speaker(request.out)
    same = compare(wide.scene, wide.scene, wide.poses[:2], np.zeros((2, 8), np.float32), np.zeros((0, 3)))
    assert same == {"psnr_whole_db": 120.0, "psnr_head_db": 120.0, "largest_error_of_255": 0.0}
    lessons = slimming.load_lessons(request.work_folder / slimming.LESSONS_FILE)
    poses, driven = slimming._held_out(wide.poses, lessons.conditions)
    assert len(poses) == len(driven) == MEASURED_FRAMES
    seen = wide.poses[: int(len(wide.poses) * (1 - HELD_OUT))]
    assert not any((pose == seen).all((1, 2)).any() for pose in poses)
    again = compare(wide.scene, narrow.scene, poses, driven, lessons.mouth)
    assert again == {
        name.removeprefix("slim."): value
        for name, value in report.figures.items()
        if "psnr" in name or "largest" in name
    }


def test_a_stop_keeps_what_was_learnt_and_writes_no_bundle(made, tmp_path, monkeypatch):
    whole, report = made
    request = dataclasses.replace(whole, out=tmp_path / "Slim", steps=40)
    step = slimming.StudentTask.training_step
    done = []

    def killed(task, number):
        if number == 15:
            raise KeyboardInterrupt
        done.append(number)
        return step(task, number)

    monkeypatch.setattr(slimming.StudentTask, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        slim(request, open_motion=wide_speaker.loudness_motion)
    assert not request.out.exists()
    assert list(checkpoints(request.work_folder)) == [6, 12]
    monkeypatch.setattr(slimming.StudentTask, "training_step", lambda t, n: (done.append(n), step(t, n))[1])
    again = slim(request, open_motion=wide_speaker.loudness_motion)
    assert again is not None
    assert done == [*range(15), *range(12, 40)]
    one, other = (
        hashlib.sha256((out / "head.safetensors").read_bytes()).digest() for out in (whole.out, request.out)
    )
    assert one == other
    assert again.figures["slim.psnr_whole_db"] == report.figures["slim.psnr_whole_db"]


def test_slimming_that_a_signal_stops_says_so(made, tmp_path, monkeypatch):
    request = dataclasses.replace(made[0], out=tmp_path / "Slim")

    class Stopped:
        reason = "signal"

    monkeypatch.setattr(slimming, "train", lambda *_: (None, Stopped()))
    assert slim(request, open_motion=wide_speaker.loudness_motion) is None
    assert not request.out.exists()


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda", "device: got cuda, but torch sees no CUDA device here"),
        ("brain", "device: expected cpu or cuda"),
    ],
)
def test_slimming_refuses_a_device_that_is_not_there(made, tmp_path, monkeypatch, device, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    request = dataclasses.replace(made[0], out=tmp_path / "Slim", device=device)
    with pytest.raises(ValueError, match=message):
        slim(request, open_motion=wide_speaker.loudness_motion)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_cannot_be_written_leaves_nothing_behind(made, tmp_path, monkeypatch):
    request = dataclasses.replace(made[0], out=tmp_path / "Slim", work=made[0].work_folder)

    def full(*_args, **_named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(slimming, "write_bundle", full)
    with pytest.raises(OSError, match="No space"):
        slim(request, open_motion=wide_speaker.loudness_motion)
    assert list(tmp_path.iterdir()) == []
