import numpy as np

from models.landmark_filter import LandmarkFilter
from streaming.pipeline.landmarks import FrameWindows


def test_landmarks_become_the_reference_windows(shared_fixtures):
    case = np.load(shared_fixtures / "postprocess" / "radnerf_lm3d_postprocess.npz")
    smoother = LandmarkFilter(
        mean=case["idexp_lm3d_mean"],
        std=case["idexp_lm3d_std"],
        clamp_std=float(case["clamp_std"]),
        ema=0.2,
    )
    windows = FrameWindows(window_frames=5, lookahead_frames=2)
    conditions, wins = [], []
    for landmarks in case["pred_lm3d"][0]:
        normalized = smoother.step(landmarks)
        conditions.append(normalized.reshape(1, 204))
        wins += windows.push(normalized)
    wins += windows.finish()
    # Rounding of float32 only: both sides do the same four operations.
    assert np.abs(np.stack(conditions) - case["cond"]).max() < 1e-5
    assert np.stack(wins)[:, :, None].shape == case["cond_wins"].shape
    assert np.abs(np.stack(wins)[:, :, None] - case["cond_wins"]).max() < 1e-5
