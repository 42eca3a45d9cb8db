"""The ranges that the settings of several trainings share."""

from __future__ import annotations

from models.settings import ABOVE_0, Range
from models.syncnet import MOTION_FRAMES

STEPS = Range(1, 10**9)
COUNT = Range(1, 10**6)
BATCH = Range(1, 65_536)
CROP_FRAMES = Range(MOTION_FRAMES, 10_000)
SEED = Range(0, 2**63 - 1)
MINUTES = Range(ABOVE_0, 10**6)

SHARE = Range(0, 1)
RATE = Range(0, 10)
WEIGHT = Range(0, 10**6)
GRADIENT = Range(ABOVE_0, 10**9)
TEMPERATURE = Range(0.001, 1000)
SPEED = Range(0.1, 10)
DECIBELS = Range(-200, 200)

WIDTH = Range(1, 1024)
LEVELS = Range(2, 32)
LOG2_ROWS = Range(3, 19)
RESOLUTION = Range(16, 2048)
OCTAVES = Range(0, 16)
