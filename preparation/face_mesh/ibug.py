"""The 68 landmarks of iBUG among the 478 points of the face mesh.

Jaw and brows are where the mesh has them: its contour, not the fixed points of the skin that 3-D models take.
"""

from __future__ import annotations

import numpy as np

from cuda_kernels.arrays import F32, I64

# fmt: off
IBUG_POINTS: I64 = np.array([
    127, 234, 93, 132, 58, 172, 150, 176, 152, 400, 379, 397, 288, 361, 323, 454, 356,  # jaw
    70, 63, 105, 66, 107, 336, 296, 334, 293, 300,  # brows
    168, 197, 5, 4, 75, 97, 2, 326, 305,  # nose
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,  # eyes
    61, 40, 37, 0, 267, 270, 291, 321, 314, 17, 84, 91,  # outer lips
    78, 81, 13, 311, 308, 402, 14, 178,  # inner lips
])
# fmt: on


def to_ibug(points: F32) -> F32:
    """Returns the 68 landmarks (..., 68, 3) of the mesh's points (..., 478, 3)."""
    return points[..., IBUG_POINTS, :]
