import bundle_factory
import numpy as np
import pytest
import stand_ins

from cuda_kernels.cpu_raymarcher import rgb_to_i420
from streaming.pipeline.frame_renderer import WholeRenderer
from streaming.pipeline.mouth import feathered_mask, mouth_boxes, project


@pytest.fixture(scope="module")
def parts():
    return bundle_factory.tiny_parts(image_size_px=256)


def boxes_of(parts, feather_px=6):
    return mouth_boxes(
        parts.motion, parts.scene.camera, parts.poses, image_size_px=256, feather_px=feather_px
    )


def test_a_point_ahead_of_the_camera_lands_in_the_middle(parts):
    c2w = np.eye(4, dtype=np.float32)
    c2w[2, 3] = 13
    points = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
    pixels = project(points, c2w, parts.scene.camera)
    step = parts.scene.camera.focal_px / 13
    assert np.allclose(pixels, [[128, 128], [128 + step, 128], [128, 128 - step]], atol=1e-3)


def test_the_box_holds_the_open_mouth_in_every_pose(parts):
    boxes = boxes_of(parts)
    face = parts.motion.mean_face + bundle_factory.open_mouth() / 10
    assert boxes.shape == (len(parts.poses), 4)
    for box, c2w in zip(boxes, parts.poses, strict=True):
        mouth = project(face[48:68], c2w, parts.scene.camera)
        assert (mouth > box[:2]).all()
        assert (mouth < box[2:]).all()


def test_all_boxes_are_of_one_even_size_inside_the_picture(parts):
    boxes = boxes_of(parts)
    sizes = boxes[:, 2:] - boxes[:, :2]
    assert (sizes == sizes[0]).all()
    assert (boxes % 2 == 0).all()
    assert boxes.min() >= 0
    assert boxes.max() <= 256


def test_the_box_moves_with_the_head_and_not_with_the_lips(parts):
    centres = boxes_of(parts)[:, :2]
    assert np.ptp(centres[:, 0]) > 4
    assert np.abs(np.diff(centres, axis=0)).max() <= 4  # no jump from one frame to the next


def test_without_a_mean_face_or_out_of_the_picture_there_is_no_box(parts):
    import dataclasses

    blind = dataclasses.replace(parts.motion, mean_face=None)
    assert mouth_boxes(blind, parts.scene.camera, parts.poses, image_size_px=256, feather_px=6) is None
    away = parts.poses.copy()
    away[:, 0, 3] += 50
    assert mouth_boxes(parts.motion, parts.scene.camera, away, image_size_px=256, feather_px=6) is None


def test_the_patch_fades_to_nothing_at_its_edge():
    mask = feathered_mask(20, 12, 4)
    assert mask.shape == (12, 20)
    assert (mask[4:-4, 4:-4] == 1).all()
    assert mask[0].max() < 0.05
    assert mask[:, -1].max() < 0.05


def renderer(parts, render_px, boxes):
    return WholeRenderer(
        stand_ins.StandInRaymarcher(), output_px=256, render_px=render_px, mouth_boxes=boxes, feather_px=6
    )


def draw(frame_renderer, parts, pose=3):
    about = {"c2w": parts.poses[pose], "condition": np.ones(8, np.float32)}
    return frame_renderer.draw(**about, pose=pose, blinking=False).finish()


def test_at_full_size_the_picture_is_the_raymarchers(parts):
    full = renderer(parts, 256, boxes_of(parts))
    about = {"c2w": parts.poses[3], "condition": np.ones(8, np.float32)}
    expected = rgb_to_i420(stand_ins.StandInRaymarcher().render(**about, size_px=256))
    got = draw(full, parts)
    assert np.abs(got[:256].astype(int) - expected[:256]).max() <= 1  # both round
    assert np.abs(got[256:].astype(int) - expected[256:]).max() <= 2  # chroma: a cubic filter, a mean


def test_the_mouth_is_drawn_at_full_resolution(parts):
    boxes = boxes_of(parts)
    whole = draw(renderer(parts, 256, None), parts).astype(int)  # (384, 256)
    patched = draw(renderer(parts, 96, boxes), parts).astype(int)
    x0, y0, x1, y1 = boxes[3]
    assert np.array_equal(patched[y0 + 6 : y1 - 6, x0 + 6 : x1 - 6], whole[y0 + 6 : y1 - 6, x0 + 6 : x1 - 6])
    for plane in (256, 320):  # U and V
        chroma, expected = (i420[plane : plane + 64].reshape(128, 128) for i420 in (patched, whole))
        inner = np.s_[y0 // 2 + 3 : y1 // 2 - 3, x0 // 2 + 3 : x1 // 2 - 3]
        assert np.array_equal(chroma[inner], expected[inner])
    assert np.abs(patched - whole).max() <= 12  # the rest is scaled: smooth, and in its place


def test_scaling_moves_nothing(parts):
    whole = draw(renderer(parts, 256, None), parts).astype(np.float32)[:256]
    scaled = draw(renderer(parts, 96, None), parts).astype(np.float32)[:256]
    inner = np.s_[16:-16, 16:-16]
    error = np.abs(whole - scaled)[inner].mean()
    for axis in (0, 1):
        for shift in (-1, 1):
            assert error < np.abs(np.roll(whole, shift, axis) - scaled)[inner].mean()
