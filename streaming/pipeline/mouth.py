"""The mouth's region of interest, drawn at full resolution where the rest is scaled up."""

from __future__ import annotations

import numpy as np

from cuda_kernels.arrays import F32, I32
from cuda_kernels.scene import Camera
from models.landmark_filter import MOUTH, clamp_limits
from models.speaker_settings import MotionSettings

FEATHER_SHARE = 1 / 40  # of the picture's side: width of the blend at the patch's edges


def project(points: F32, c2w: F32, camera: Camera) -> F32:
    """Returns pixels (..., 2) of points (..., 3) in head space, x to the right and y down.

    Pixel (0, 0) covers [0, 1) x [0, 1). The camera looks along its own -z.
    """
    rotation, position = c2w[:3, :3], c2w[:3, 3]
    seen = (points - position) @ rotation  # (..., 3): R^T (p - t)
    depth = -seen[..., 2]
    x = camera.cx_px + camera.focal_px * seen[..., 0] / depth
    y = camera.cy_px - camera.focal_px * seen[..., 1] / depth
    pixels: F32 = np.stack((x, y), -1).astype(np.float32)
    return pixels


def mouth_boxes(
    motion: MotionSettings, camera: Camera, poses: F32, *, image_size_px: int, feather_px: int
) -> I32 | None:
    """Returns each pose's box (P, 4) int32 x0 y0 x1 y1 around all that the lips can reach, of one size.

    The lips' reach is the clamp's: mean face plus mean offset, `clamp_std` deviations either way. The box
    depends on the pose alone, so it sits still on the face; its corners are even, for chroma's sake.
    None where the bundle has no mean face, or the mouth is not in the picture in some pose.
    """
    if motion.mean_face is None:
        return None
    centre = (motion.mean_face + motion.landmark_mean / 10)[MOUTH]  # (20, 3) dm
    reach = (clamp_limits(motion.clamp_std) * motion.landmark_std / 10)[MOUTH]
    signs = np.array([[x, y, 0] for x in (-1, 1) for y in (-1, 1)], np.float32)  # depth moves little
    corners = (centre[:, None] + signs * reach[:, None]).reshape(-1, 3).astype(np.float32)  # (80, 3)
    pixels = np.stack([project(corners, c2w, camera) for c2w in poses])  # (P, 80, 2)
    if not np.isfinite(pixels).all():
        return None
    low, high = pixels.min(1), pixels.max(1)  # (P, 2)
    size = np.ceil((high - low).max(0) + 2 * feather_px)
    size = (np.minimum(size, image_size_px) / 2).astype(np.int32) * 2  # (2,) even
    at = np.round(((low + high - size) / 2) / 2).astype(np.int32) * 2
    if (at + size <= 0).any() or (at >= image_size_px).any():
        return None
    at = np.clip(at, 0, (image_size_px - size) // 2 * 2)
    return np.concatenate((at, at + size), 1).astype(np.int32)


def feathered_mask(width_px: int, height_px: int, feather_px: int) -> F32:
    """Returns (height, width) float32: 1 inside, falling smoothly to 0 over `feather_px` at each edge."""

    def ramp(length: int) -> F32:
        at = np.arange(length) + 0.5
        inside = np.clip(np.minimum(at, length - at) / max(feather_px, 1), 0, 1)
        smooth: F32 = (inside * inside * (3 - 2 * inside)).astype(np.float32)
        return smooth

    weights: F32 = ramp(height_px)[:, None] * ramp(width_px)[None, :]
    return weights
