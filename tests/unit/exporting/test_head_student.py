"""A narrow head is taught: lessons keep, it learns, resumes to the bit and refuses what does not fit."""

import dataclasses

import numpy as np
import pytest
import torch
import wide_speaker

from cuda_kernels.scene import Camera
from cuda_kernels.torch_reference import render_scene
from export.bundle.head import scene_of
from export.bundle.writer import head_settings, head_tensors
from models.head import Head, HeadConfig
from training.head_student import (
    LESSONS_FILE,
    Lessons,
    LessonsError,
    StudentTask,
    StudentTrainingSettings,
    head_of,
    load_lessons,
    narrow_head,
    save_lessons,
    train,
)
from training.loop import CheckpointError, LoopSettings

CPU = torch.device("cpu")
SMALL = StudentTrainingSettings(
    hidden=32,
    frames_per_step=4,
    pixels_per_frame=48,
    net_rate=2e-2,
    grid_rate=1e-2,
    anneal_steps=100,
    validation_px=32,
    validation_frames=2,
)


@pytest.fixture(scope="module")
def parts():
    return wide_speaker.wide_parts()


@pytest.fixture(scope="module")
def lessons(parts):
    torch.set_num_threads(1)
    random = np.random.default_rng(1)
    head = parts.scene.head
    return Lessons(
        settings=head_settings(head),
        tensors=head_tensors(head),
        camera=parts.scene.camera,
        image_size_px=parts.scene.image_size_px,
        poses=parts.poses,
        conditions=np.tanh(random.normal(size=(60, 8))).astype(np.float32),
        mouth=np.array([[-0.3, -0.6, 0.8], [0.3, -0.2, 0.8]], np.float32),
        source="made up",
    )


@pytest.fixture(scope="module")
def task(lessons):
    torch.manual_seed(0)
    return StudentTask(lessons, SMALL, CPU)


def test_the_teacher_is_the_bundle_s_head(lessons, parts):
    again = head_of(lessons).field()
    for entry in dataclasses.fields(again):
        one, other = getattr(again, entry.name), getattr(parts.scene.head, entry.name)
        if entry.name.endswith("_grid"):
            assert one.layout == other.layout
            one, other = one.table, other.table
        if isinstance(one, tuple):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("config", [HeadConfig(codes=1), HeadConfig.streaming()], ids=["geneface", "may"])
def test_the_sizes_of_real_heads_are_found_again(lessons, config):
    head = Head(config)
    head.density_bitfield[:64] = 255
    field = head.field()
    given = {"settings": head_settings(field), "tensors": head_tensors(field)}
    again = head_of(dataclasses.replace(lessons, camera=Camera(focal_px=9, cx_px=0, cy_px=0), **given))
    assert again.config == dataclasses.replace(config, condition=again.config.condition)
    assert again.config.condition.outputs == config.condition.outputs


def test_a_grid_that_no_configuration_makes_is_refused(lessons):
    grid = dataclasses.replace(lessons.settings.position_grid, log2_growth=0.3)
    settings = dataclasses.replace(lessons.settings, position_grid=grid)
    with pytest.raises(LessonsError, match=r"head.position_grid: expected 4 levels .* cells"):
        head_of(dataclasses.replace(lessons, settings=settings))


def test_networks_of_uneven_width_are_refused(lessons):
    widths = (*lessons.settings.ambient_net[:2], 40, 2)
    settings = dataclasses.replace(lessons.settings, ambient_net=widths)
    with pytest.raises(LessonsError, match=r"head.ambient_net: expected hidden layers of one width, got \["):
        head_of(dataclasses.replace(lessons, settings=settings))


@pytest.mark.parametrize("hidden", [48, 64])
def test_a_teacher_that_is_not_wider_is_refused(lessons, hidden):
    with pytest.raises(LessonsError, match=f" {hidden}, got 48"):
        StudentTask(lessons, dataclasses.replace(SMALL, hidden=hidden), CPU)


def test_the_student_begins_with_the_teacher_s_grids_and_cells(lessons):
    wide = head_of(lessons)
    narrow = narrow_head(wide, 32)
    assert torch.equal(narrow.position_embedder.embeddings, wide.position_embedder.embeddings)
    assert torch.equal(narrow.ambient_embedder.embeddings, wide.ambient_embedder.embeddings)
    assert torch.equal(narrow.occupancy, wide.occupancy)
    assert narrow.occupancy.any()
    field = narrow.field()
    assert [weight.shape[0] for weight in field.sigma_net] == [32, 32, 33]
    assert [weight.shape[0] for weight in field.color_net] == [32, 3]


def test_rays_go_through_the_head_and_the_mouth(task):
    torch.manual_seed(3)
    rays = task._rays()
    samples = task.teacher.march(rays.rays_o, rays.rays_d).samples
    assert samples.mask[:, 0].float().mean() > 0.6  # of the whole picture it is a quarter
    per_frame = SMALL.pixels_per_frame
    mouth = rays.rays_d.view(SMALL.frames_per_step, per_frame, 3)[:, -per_frame // 4 :]
    head = rays.rays_d.view(SMALL.frames_per_step, per_frame, 3)[:, : -per_frame // 4]
    assert (mouth.std(1) < 0.6 * head.std(1)).any(1).all()  # a smaller box
    assert rays.frame.tolist() == np.repeat(range(4), per_frame).tolist()


def test_what_has_no_room_is_left_out_of_the_lesson(task):
    torch.manual_seed(3)
    rays = task._rays()
    whole, _ = task._teacher_samples(rays)
    task.capacity = int(whole.mask.sum()) // 2
    try:
        part, values = task._teacher_samples(rays)
    finally:
        task.capacity = None
    assert int(part.mask.sum()) == int(whole.mask.sum()) // 2
    assert (values[..., 0] > 0).equal(part.mask)


def test_pictures_are_of_poses_and_conditions_that_training_never_draws(task):
    rows = [task._held_out(i) for i in range(SMALL.validation_frames)]
    assert all(task.train_poses <= pose < 50 and task.train_conditions <= row < 60 for pose, row in rows)


def test_the_validation_draws_what_the_renderer_draws(task, lessons, parts):
    pose, condition = task._held_out(0)
    gray = np.full_like(parts.scene.background, 128)
    scene = scene_of(task.teacher, None, lessons.camera, gray)
    expected = render_scene(
        scene, c2w=lessons.poses[pose], condition=lessons.conditions[condition], size_px=SMALL.validation_px
    )
    image, weights = task._draw(task.teacher, 0)
    # The plain gray is 0.5 in one and 128 / 255 in the other.
    torch.testing.assert_close(image, expected, rtol=0, atol=3e-3)
    assert 0.05 < float((weights > 0.5).float().mean()) < 0.6


def test_a_student_comes_closer_to_its_teacher(lessons):
    torch.manual_seed(0)
    task = StudentTask(lessons, SMALL, CPU)
    before = task.validate(0).scalars
    for step in range(100):
        task.training_step(step)
    after = task.validate(100)
    assert after.scalars["psnr_head_db"] > before["psnr_head_db"] + 4
    assert after.scalars["psnr_mouth_db"] > before["psnr_mouth_db"] + 4
    assert after.scalars["psnr_whole_db"] > after.scalars["psnr_head_db"]
    assert after.scalars["largest_error"] < before["largest_error"]
    assert after.pictures["held_out_0"].shape == (32, 96, 3)


def test_a_resumed_student_ends_with_the_same_bits(lessons, tmp_path):
    ends = []
    for name, stops in (("at_once", (6,)), ("in_two", (3, 6))):
        work = tmp_path / name
        work.mkdir()
        save_lessons(work / LESSONS_FILE, lessons)
        for steps in stops:
            loop = LoopSettings(steps=steps, validate_every=4, checkpoint_every=3)
            task, outcome = train(work, SMALL, loop)
            assert outcome.reason == "finished"
        ends.append(task.state_dict())
    for part in ("model", "average"):
        for key, value in ends[0][part].items():
            assert torch.equal(value, ends[1][part][key]), key
    other = dataclasses.replace(SMALL, hidden=16)
    with pytest.raises(CheckpointError, match="hidden: expected 16, got 32"):
        train(tmp_path / "in_two", other, LoopSettings(steps=9))


def test_lessons_come_back_as_they_were(lessons, tmp_path):
    file = tmp_path / LESSONS_FILE
    save_lessons(file, lessons)
    again = load_lessons(file)
    assert again.settings == lessons.settings
    assert again.camera == lessons.camera
    assert again.source == lessons.source
    assert again.tensors.keys() == lessons.tensors.keys()
    for name in ("poses", "conditions", "mouth"):
        np.testing.assert_array_equal(getattr(again, name), getattr(lessons, name))
    assert [entry.name for entry in tmp_path.iterdir()] == [LESSONS_FILE]


@pytest.mark.parametrize("content", [None, b"", b"no safetensors at all", b"\x02\0\0\0\0\0\0\0{}"])
def test_a_file_that_holds_no_lessons_is_refused(tmp_path, content):
    file = tmp_path / LESSONS_FILE
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(LessonsError, match="expected lessons, got") as caught:
        load_lessons(file)
    assert "\n" not in str(caught.value)


def test_too_little_to_learn_from_is_refused(lessons):
    with pytest.raises(LessonsError, match="conditions: expected at least 2, got 1"):
        dataclasses.replace(lessons, conditions=lessons.conditions[:1])
