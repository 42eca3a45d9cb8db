"""The ranges that the settings of several trainings share."""

from __future__ import annotations

import math

from models.settings import Range
from models.syncnet import MOTION_FRAMES

STEPS = Range(1, 10**9, words="1 to 1000000000")
COUNT = Range(1, 10**6, words="1 to 1000000")
BATCH = Range(1, 65_536)
CROP_FRAMES = Range(MOTION_FRAMES, 10_000)
SEED = Range(0, 2**63 - 1, words="0 to 9223372036854775807")
MINUTES = Range(math.ulp(0.0), 10**6, words="more than 0 and at most 1000000")

SHARE = Range(0, 1)
RATE = Range(0, 10)
WEIGHT = Range(0, 10**6, words="0 to 1000000")
GRADIENT = Range(math.ulp(0.0), 10**9, words="more than 0 and at most 1000000000")
TEMPERATURE = Range(0.001, 1000)
SPEED = Range(0.1, 10)
DECIBELS = Range(-200, 200)

WIDTH = Range(1, 1024)
LEVELS = Range(2, 32)
LOG2_ROWS = Range(3, 19)
RESOLUTION = Range(16, 2048)
OCTAVES = Range(0, 16)
