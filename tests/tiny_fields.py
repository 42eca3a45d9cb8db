"""Settings that learn a head and a torso of `tiny_speaker` in seconds: `import tiny_fields`."""

from __future__ import annotations

from training import head as head_task
from training import torso as torso_task

SMALL_HEAD = head_task.HeadTrainingSettings(
    levels=5,
    hidden=16,
    geometry_features=8,
    condition_size=8,
    position_log2_rows=12,
    position_resolution=60,
    ambient_log2_rows=8,
    ambient_resolution=16,
    grid_size=32,
    frames_per_step=8,
    pixels_per_frame=96,
    warmup_steps=60,
    net_rate=1e-2,
    grid_rate=3e-2,
    anneal_steps=240,
    validation_frames=2,
)
SMALL_TORSO = torso_task.TorsoTrainingSettings(
    levels=4,
    hidden=16,
    log2_rows=10,
    resolution=64,
    position_octaves=2,
    pose_octaves=1,
    frames_per_step=8,
    pixels_per_frame=96,
    net_rate=1e-2,
    grid_rate=3e-2,
    anneal_steps=100,
    validation_frames=2,
)
