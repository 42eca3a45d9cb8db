"""A speaker imported from GeneFace's own files against GeneFace's own numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from geneface_checkpoint import read_case, write_checkpoints

from cuda_kernels.scene import Camera
from cuda_kernels.torch_reference import field_pose
from export.geneface.checkpoints import (
    build_audio2motion,
    build_head,
    build_syncnet,
    read_checkpoint,
    read_networks,
)
from export.geneface.dataset import read_dataset
from export.geneface.pickles import GenefaceFileError
from export.geneface.work_folders import find_folders
from models.postnet import nonzero_frames

TOLERANCE = 1e-4
"""The same float32 operators in the same order; see test_audio2motion."""
PSNR_DB = (
    60  # two faithful implementations of the reference's kernels are 68-75 dB apart; see test_radnerf_head
)
LARGEST = 1e-2


@pytest.fixture(scope="module")
def checkpoints(shared_fixtures, tmp_path_factory):
    """GeneFace's folder `checkpoints`, made of the parity cases."""
    return write_checkpoints(shared_fixtures, tmp_path_factory.mktemp("geneface") / "checkpoints")


@pytest.fixture(scope="module")
def may(checkpoints):
    return read_networks(find_folders(checkpoints, "May"), "May")


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)


def close_pictures(got, expected):
    assert -10 * math.log10(float(((got - expected) ** 2).mean())) >= PSNR_DB
    assert float((got - expected).abs().max()) <= LARGEST


def test_where_each_part_comes_from(may):
    taken = {source.part: (source.path.parent.name, source.step) for source in may.sources}
    torso = ("lm3d_radnerf_torso", 250_000)
    postnet = ("lm3d_postnet_sync", 6000)
    assert taken == {
        "postnet": postnet, "audio2motion": postnet, "syncnet": postnet, "head": torso, "torso": torso,
    }  # fmt: skip
    assert (may.camera_scale, may.camera_offset, may.clamp_std, may.window_frames) == (4, (0, 0, 0), 2.5, 5)
    assert not may.takes_pitch


@torch.no_grad()
def test_sound_to_a_speakers_landmarks(may, shared_fixtures):
    case = read_case(shared_fixtures / "postnet" / "io.npz")
    raw = may.audio2motion.predict(case.chain_hubert, z_prior=case.chain_z)
    close(raw, case.chain_raw_lm3d)
    close(may.postnet(raw, mask=nonzero_frames(raw)), case.chain_refine_lm3d)
    close(may.postnet(case.x, mask=nonzero_frames(case.x)), case.refined)


@torch.no_grad()
def test_the_generic_audio2motion(checkpoints, shared_fixtures):
    checkpoint = read_checkpoint(checkpoints / "lrs3" / "lm3d_vae_sync" / "model_ckpt_steps_40000.ckpt")
    case = read_case(shared_fixtures / "audio2motion" / "io.npz")
    model = build_audio2motion(checkpoint)
    close(model.predict(case.hubert, mask=case.y_mask, z_prior=case.z_prior), case.infer_pred_T1)
    assert not build_syncnet(checkpoint).training


@torch.no_grad()
def test_syncnet_s_embeddings(checkpoints, shared_fixtures):
    case = read_case(shared_fixtures / "syncnet" / "io.npz")
    model = build_syncnet(read_checkpoint(checkpoints / "lrs3" / "syncnet" / "model_ckpt_steps_40000.ckpt"))
    audio, mouth = model(case.hubert, case.mouth_lm)
    close(audio, case.audio_embedding)
    close(mouth, case.mouth_embedding)


@torch.no_grad()
def test_a_frame_of_the_head(checkpoints, shared_fixtures):
    file = checkpoints / "May" / "lm3d_radnerf" / "model_ckpt_steps_250000.ckpt"
    head = build_head(read_checkpoint(file))
    case = read_case(shared_fixtures / "radnerf_render" / "head_frame3.npz")
    condition = head.encode_condition(case.cond_wins[:, 0][None])
    drawn = head.draw_in_waves(case.rays_o[0], case.rays_d[0], condition)
    image = drawn.image + (1 - drawn.weights_sum)[:, None] * case.bg_color[0]
    close_pictures(image.clamp(0, 1), case.rgb_map[0])


@torch.no_grad()
def test_a_frame_of_torso_and_head(may, shared_fixtures):
    case = read_case(shared_fixtures / "radnerf_torso" / "torso_frame3.npz")
    behind = may.torso(case.bg_coords[0], case.pose6, case.bg_color[0])
    close(behind.alpha, case.torso_alpha_map[:, 0])
    close(behind.image, case.torso_rgb_map[0])
    condition = may.head.encode_condition(case.cond_wins[:, 0][None])
    drawn = may.head.draw_in_waves(case.rays_o[0], case.rays_d[0], condition)
    image = drawn.image + (1 - drawn.weights_sum)[:, None] * behind.image
    close_pictures(image.clamp(0, 1), case.rgb_map[0])


def test_poses_camera_and_landmarks_of_the_data_set(may, shared_fixtures):
    data = read_dataset(shared_fixtures / "dataset" / "trainval_dataset.npy")
    case = read_case(shared_fixtures / "dataset" / "expected_dataset.npz")
    camera = Camera(
        focal_px=data.focal_px,
        cx_px=data.cx_px,
        cy_px=data.cy_px,
        scale=may.camera_scale,
        offset=may.camera_offset,
    )
    close(torch.tensor([data.focal_px, data.focal_px, data.cx_px, data.cy_px]), case.intrinsics.float())
    close(field_pose(torch.from_numpy(data.poses), camera), case.poses_trainval_raw)
    close(field_pose(torch.from_numpy(data.poses_smoothed), camera), case.poses_trainval_smoothed)
    close(torch.from_numpy(data.landmark_mean), case.idexp_lm3d_mean[0])
    close(torch.from_numpy(data.landmark_std), case.idexp_lm3d_std[0])
    normalized = (data.landmarks - data.landmark_mean) / data.landmark_std
    close(torch.from_numpy(normalized).reshape(-1, 1, 204), case.conds)
    sound = np.load(shared_fixtures / "dataset" / "aud_hubert.npy")
    assert np.array_equal(data.hubert, sound[: len(data.hubert)])


def test_a_real_checkpoint_cut_anywhere_is_refused(checkpoints, tmp_path):
    whole = (checkpoints / "lrs3" / "syncnet" / "model_ckpt_steps_40000.ckpt").read_bytes()
    cut = tmp_path / "cut.ckpt"
    for length in (0, 100, 30_000, 34_000, 35_000, 1_000_000, len(whole) - 1):
        cut.write_bytes(whole[:length])
        with pytest.raises(GenefaceFileError, match="copy it again"):
            read_checkpoint(cut)
