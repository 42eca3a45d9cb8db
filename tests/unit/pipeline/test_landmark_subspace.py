"""The projection of landmarks onto what a speaker's face can do."""

import pytest
import torch

from models.landmark_subspace import LandmarkSubspace


def moving_face(ways: int, frames: int = 400, *, noise: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    directions = torch.linalg.qr(torch.randn(204, ways, generator=generator)).Q  # (204, ways)
    strengths = torch.randn(frames, ways, generator=generator) * torch.linspace(2, 1, ways)
    rest = torch.randn(204, generator=generator)
    return rest + strengths @ directions.T + noise * torch.randn(frames, 204, generator=generator)


def test_the_subspace_has_as_many_dimensions_as_the_face():
    assert LandmarkSubspace.fit(moving_face(5)).basis.shape == (5, 204)


def test_the_subspace_leaves_noise_out():
    landmarks = moving_face(5, noise=1e-3)
    assert len(LandmarkSubspace.fit(landmarks, unexplained=1e-3).basis) == 5


def test_projection_keeps_what_the_face_can_do():
    landmarks = moving_face(5)
    subspace = LandmarkSubspace.fit(landmarks[:200])
    # 1e-5: float32 sums of 204 products of order 1
    torch.testing.assert_close(subspace(landmarks[200:]), landmarks[200:], atol=1e-5, rtol=0)


def test_projection_takes_off_only_what_the_face_cannot_do():
    landmarks = moving_face(5)
    subspace = LandmarkSubspace.fit(landmarks)
    foreign = torch.randn(7, 204, generator=torch.Generator().manual_seed(2))
    foreign -= foreign @ subspace.basis.T @ subspace.basis
    torch.testing.assert_close(subspace(landmarks[:7] + foreign), landmarks[:7], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "landmarks",
    [torch.zeros(1, 204), torch.zeros(5, 3, 68), torch.full((5, 204), torch.nan), torch.ones(5, 204)],
    ids=["one frame", "three axes", "NaN", "no motion"],
)
def test_landmarks_without_motion_have_no_subspace(landmarks: torch.Tensor):
    with pytest.raises(ValueError, match="LandmarkSubspace: landmarks: expected"):
        LandmarkSubspace.fit(landmarks)
