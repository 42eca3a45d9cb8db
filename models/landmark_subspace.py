"""Projection of landmarks onto the principal components of one speaker's landmarks.

A head shows artefacts for landmarks unlike its training set: a jaw that is a millimetre too wide gives spots
on the chin. GeneFace (Ye et al., ICLR 2023) pulls predicted landmarks
towards the nearest of the video's by locally linear embedding; here they are projected onto the principal
components of the video's landmarks, which is one matrix product and never jumps between neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cuda_kernels.errors import InputError


class LandmarkSubspace(nn.Module):
    """Projects landmarks onto the speaker's principal components."""

    mean: Tensor
    basis: Tensor

    def __init__(self, mean: Tensor, basis: Tensor) -> None:
        """Takes the mean (204,) and orthonormal rows (K, 204)."""
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("basis", basis)

    @classmethod
    def fit(cls, landmarks: Tensor, *, unexplained: float = 1e-4) -> LandmarkSubspace:
        """Returns the fewest principal components that leave at most a share of the variance unexplained.

        Args:
            landmarks: (T, 204), the speaker's own, un-normalised.
            unexplained: That share, 0 to 1.

        Raises:
            InputError: Landmarks of another shape, without motion or not finite.
        """
        if landmarks.ndim != 2 or landmarks.shape[0] < 2 or not bool(torch.isfinite(landmarks).all()):
            raise InputError(
                f"LandmarkSubspace: landmarks: expected finite (frames, 204), got {tuple(landmarks.shape)}; "
                f"give the training frames' landmarks"
            )
        exact = landmarks.double()
        mean = exact.mean(0)
        covariance = (exact - mean).T @ (exact - mean)  # (204, 204)
        values, vectors = torch.linalg.eigh(covariance)  # ascending
        values = values.flip(0).clamp(min=0)
        if not float(values[0]) > 0:
            raise InputError("LandmarkSubspace: landmarks: expected some motion, got none; give a video's")
        left = 1 - values.cumsum(0) / values.sum()  # after each component
        count = int((left > unexplained).sum()) + 1
        basis = vectors.flip(1)[:, :count].T.contiguous()  # (K, 204)
        return cls(mean.float(), basis.float())

    def forward(self, landmarks: Tensor) -> Tensor:
        """Returns the nearest landmarks (..., 204) of the subspace."""
        weights = (landmarks - self.mean) @ self.basis.T  # (..., K)
        return self.mean + weights @ self.basis
