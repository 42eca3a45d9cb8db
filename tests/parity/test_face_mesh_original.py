"""The converted models against what the original runtimes gave for the same pixels.

`face_mesh_reference.npz` holds the points (2, 478, 3) that MediaPipe 0.10.21 found in two crops, px of 192;
and 20 of the short-range detector's boxes, the likeliest, as ai-edge-litert 2.3.0 gave them.
"""

from pathlib import Path

import cv2
import face_videos
import numpy as np
import pytest

from preparation.face_mesh.mesh import Crop, FaceMesh
from preparation.face_mesh.shipped import DETECTOR_FILE, open_model

# float32 sums in another order leave 2e-4; another JPEG decoder may round pixels otherwise.
MAX_ERROR_PX = 0.01


@pytest.fixture(scope="module")
def reference():
    with np.load(Path(__file__).parents[1] / "face_mesh_reference.npz") as arrays:
        return dict(arrays)


def test_the_face_mesh_gives_mediapipe_s_points(reference):
    pieces = [
        Crop(pixels=face_videos.may(mouth)[44:236, 32:224], to_picture=np.eye(2, 3), mirrored=False)
        for mouth in ("open", "closed")
    ]
    points, face = FaceMesh()(pieces)
    assert face.min() > 0.9
    np.testing.assert_allclose(points, reference["mesh_points"], rtol=0, atol=MAX_ERROR_PX)


def test_the_detector_gives_litert_s_boxes(reference):
    picture = cv2.resize(face_videos.may("open"), (128, 128), interpolation=cv2.INTER_AREA)
    boxes, scores = open_model(DETECTOR_FILE).run(None, {"picture": picture[None]})
    best = np.argsort(-scores[0, :, 0])[: len(reference["detector_anchors"])]
    assert set(best[:10]) <= set(reference["detector_anchors"].tolist())
    anchors = reference["detector_anchors"]
    np.testing.assert_allclose(boxes[0, anchors], reference["detector_boxes"], rtol=0, atol=MAX_ERROR_PX)
    np.testing.assert_allclose(scores[0, anchors, 0], reference["detector_scores"], rtol=0, atol=0.01)
