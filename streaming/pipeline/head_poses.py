"""The head pose of each frame: the bundle's path in a loop."""

from __future__ import annotations

import numpy as np

from cuda_kernels.arrays import F32


class PoseLoop:
    """The path of head poses as an endless loop."""

    def __init__(self, poses: F32) -> None:
        """Keeps the path.

        Args:
            poses: (P, 4, 4) float32 camera to head space.
        """
        if not len(poses):
            raise ValueError("poses: expected at least one, got none; export the bundle again")
        self._poses = np.ascontiguousarray(poses, np.float32)

    def __len__(self) -> int:
        """Returns the number of poses in a round."""
        return len(self._poses)

    def at(self, frame: int) -> tuple[int, F32]:
        """Returns a frame's pose: its number in the loop and c2w (4, 4)."""
        number = frame % len(self._poses)
        return number, self._poses[number]
