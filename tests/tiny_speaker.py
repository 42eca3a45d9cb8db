"""A tiny speaker's folder with exact truth: `import tiny_speaker` in any test.

The head is a ball, red grows to the picture's right, green upwards; a dark mouth opens with the landmarks.
Under it stands a blue torso, before a gray background and behind the head, that does not move.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from bundle_factory import schematic_face, swaying_poses

from preparation.speaker_set import write_speaker_set

FRAMES = 44
SIZE_PX = 64
FOCAL_PX = 250.6
RADIUS_DM = 1.0
MOUTH_DM = np.array([0.0, -0.4])


def write_tiny_speaker(folder: Path, *, frames: int = FRAMES) -> Path:
    """Returns `folder`, with video, masks, background and truth in it."""
    c2w = swaying_poses(frames)
    opening = 0.5 + 0.5 * np.sin(np.arange(frames))  # 0 closed, 1 open
    landmarks = np.repeat(schematic_face()[None], frames, 0)
    landmarks[:, 55:60, 1] -= 0.15 * opening[:, None]
    landmarks[:, 64:68, 1] -= 0.15 * opening[:, None]
    drawn = [draw(pose, amount) for pose, amount in zip(c2w, opening, strict=True)]
    seen = np.einsum("fpi,fij->fpj", landmarks - c2w[:, None, :3, 3], c2w[:, :3, :3])
    points = np.stack((seen[..., 0], -seen[..., 1]), -1) / -seen[..., 2:] * FOCAL_PX + SIZE_PX / 2
    truth = {
        "landmarks": landmarks.astype(np.float32),
        "landmarks_2d": points.astype(np.float32),
        "c2w": c2w,
        "focal": np.float32(FOCAL_PX),
        "cx": np.float32(SIZE_PX / 2),
        "cy": np.float32(SIZE_PX / 2),
    }
    write_speaker_set(
        folder,
        pictures=(picture for picture, _ in drawn),
        labels=(labels for _, labels in drawn),
        background=background(),
        truth=truth,
        crf=0,
    )
    return folder


def background() -> np.ndarray:
    """Returns (SIZE_PX, SIZE_PX, 3) uint8, a gray gradient."""
    ramp = np.linspace(120, 200, SIZE_PX).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(ramp[:, None, None], (SIZE_PX, SIZE_PX, 3)))


def draw(c2w: np.ndarray, opening: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns ((S, S, 3) uint8 picture, (S, S) uint8 labels) of the ball seen by a (4, 4) camera."""
    at = np.arange(SIZE_PX) + 0.5 - SIZE_PX / 2
    columns, rows = np.meshgrid(at, at)
    rays = np.stack((columns / FOCAL_PX, -rows / FOCAL_PX, -np.ones_like(rows)), -1) @ c2w[:3, :3].T
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    origin = c2w[:3, 3]
    along = -(rays @ origin)
    miss = origin @ origin - along**2
    head = miss < RADIUS_DM**2
    point = origin + rays * (along - np.sqrt(np.maximum(RADIUS_DM**2 - miss, 0)))[..., None]
    picture, labels = background().copy(), np.zeros((SIZE_PX, SIZE_PX), np.uint8)
    torso = (rows > 15) & (np.abs(columns) < 14)
    picture[torso], labels[torso] = (40, 60, 150), 2
    skin = np.stack((0.5 + 0.45 * point[..., 0], 0.5 + 0.45 * point[..., 1], 0.3 + 0 * rows), -1)
    mouth = np.abs(point[..., :2] - MOUTH_DM) < np.array([0.25, 0.05 + 0.2 * opening])
    skin[mouth.all(-1)] = 0.05
    picture[head] = (skin[head].clip(0, 1) * 255).astype(np.uint8)
    labels[head] = 1
    return picture, labels
