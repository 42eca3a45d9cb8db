import cv2
import numpy as np

from models.landmark_filter import EYES, MOUTH, POINTS
from streaming.files.landmark_video import SIZE_PX, LandmarkDrawing, landmark_px


def test_points_lie_where_the_reference_draws_them(shared_fixtures):
    """All 68 points of 30 frames, to the pixel, those far out of the picture too."""
    folder = shared_fixtures / "postprocess"
    case = np.load(folder / "lm_visualizer_xy.npz")
    mean_face = np.load(folder / "face3d.npz")["key_mean_shape"]
    landmarks = case["pred_lm3d"].reshape(-1, POINTS, 3)
    np.testing.assert_array_equal(landmark_px(landmarks, mean_face), case["xy"])


def test_pictures_are_the_reference_pictures_but_for_the_numbers(shared_fixtures):
    """Circles by OpenCV in the reference's order and colours, then its flip; ours adds blue digits."""
    folder = shared_fixtures / "postprocess"
    case = np.load(folder / "lm_visualizer_xy.npz")
    drawing = LandmarkDrawing(np.load(folder / "face3d.npz")["key_mean_shape"])
    colours = np.tile((0, 0, 255), (POINTS, 1))
    colours[EYES], colours[MOUTH] = (255, 0, 0), (0, 255, 0)
    for landmarks, xy in zip(case["pred_lm3d"].reshape(-1, POINTS, 3), case["xy"], strict=True):
        expected = np.full((SIZE_PX, SIZE_PX, 3), 255, np.uint8)
        for at, colour in zip(xy.tolist(), colours.tolist(), strict=True):
            cv2.circle(expected, at, 3, colour, -1)
        expected = cv2.flip(expected, 0)
        picture = drawing.draw(landmarks)
        differs = (picture != expected).any(-1)
        assert (picture[differs] == (0, 0, 255)).all()
        assert 0 < differs.sum() < POINTS * 2 * 15  # two digits of at most 15 pixels a point
