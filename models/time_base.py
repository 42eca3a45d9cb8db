"""The time base of everything: 16 kHz mono sound, 25 frames and 50 features a second."""

from __future__ import annotations

SAMPLE_RATE_HZ = 16_000
FRAME_RATE_HZ = 25
FRAME_SAMPLES = SAMPLE_RATE_HZ // FRAME_RATE_HZ  # 640: frame i belongs to samples [640 i, 640 (i + 1))
FRAME_MS = 1000 // FRAME_RATE_HZ
FRAME_S = 1 / FRAME_RATE_HZ
FEATURE_RATE_HZ = 50
FEATURE_HOP_SAMPLES = SAMPLE_RATE_HZ // FEATURE_RATE_HZ  # 320
FEATURES_PER_FRAME = FEATURE_RATE_HZ // FRAME_RATE_HZ
