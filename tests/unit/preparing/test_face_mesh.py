"""The points of a face in crops, wherever and however they are cut."""

import hashlib
import math
import re
from dataclasses import replace

import cv2
import face_videos
import numpy as np
import pytest

from preparation.face_mesh.ibug import IBUG_POINTS, to_ibug
from preparation.face_mesh.mesh import FaceMesh, Region, crop, mirrored_points, region_of_points
from preparation.face_mesh.shipped import MODELS, POINTS, canonical_face

REGION = Region(x_px=128, y_px=140, side_px=200, angle_rad=0)
# The points tremble by about 1 px of the crop's 192 with where it is cut.
TREMBLE_PX = 2.0


@pytest.fixture(scope="module")
def mesh():
    return FaceMesh()


@pytest.fixture(scope="module")
def points(mesh):
    (found,), (face,) = mesh([crop(face_videos.may("open"), REGION)])
    assert face > 0.9
    return found


def distance_px(one, other):
    return np.linalg.norm(one[:, :2] - other[:, :2], axis=1).mean()


@pytest.mark.parametrize("mouth", ["open", "closed"])
def test_corners_are_where_the_geometry_has_them(mesh, mouth):
    (found,), _ = mesh([crop(face_videos.may(mouth), REGION)])
    corners = to_ibug(found)[list(face_videos.CORNERS), :2]
    assert np.linalg.norm(corners - face_videos.PLACES_PX[mouth], axis=1).max() < face_videos.MAX_ERROR_PX


def test_an_open_mouth_is_open_and_a_closed_one_closed(mesh):
    opening = {}
    for mouth in ("open", "closed"):
        (found,), _ = mesh([crop(face_videos.may(mouth), REGION)])
        lips = to_ibug(found)
        opening[mouth] = np.linalg.norm(lips[[61, 62, 63], :2] - lips[[67, 66, 65], :2], axis=1).mean()
    assert opening["open"] > 7  # 11 by the geometry
    assert opening["closed"] < 1.5


def test_the_nose_is_nearer_than_the_ears_and_irises_lie_between_the_lids(points):
    assert points[4, 2] < points[[127, 356], 2].min()
    for centre, corners in ((468, (33, 133)), (473, (362, 263))):
        left, right = points[corners, 0]
        assert left < points[centre, 0] < right


def test_a_blank_crop_is_no_face(mesh):
    _, (face,) = mesh([crop(face_videos.empty(), REGION)])
    assert face < 0.1


def test_crops_of_one_run_do_not_mix(mesh, points):
    pieces = [crop(face_videos.empty(), REGION), crop(face_videos.may("open"), REGION)]
    together, face = mesh(pieces)
    assert face[0] < 0.1 < 0.9 < face[1]
    np.testing.assert_allclose(together[1], points, atol=1e-3)  # sums in another order


@pytest.mark.parametrize(
    "other",
    [
        replace(REGION, angle_rad=math.radians(12)),
        REGION.moved(right=0.03, down=-0.03, scale=1.0, turn_rad=0.0),
        REGION.moved(right=0.0, down=0.0, scale=1.08, turn_rad=0.0),
    ],
    ids=["turned", "shifted", "wider"],
)
def test_another_region_gives_the_same_points(mesh, points, other):
    (found,), _ = mesh([crop(face_videos.may("open"), other)])
    assert distance_px(found, points) < TREMBLE_PX


def test_a_mirrored_crop_gives_the_same_points(mesh, points):
    (found,), _ = mesh([crop(face_videos.may("open"), REGION, mirrored=True)])
    assert distance_px(found, points) < TREMBLE_PX
    assert distance_px(found[mirrored_points()], points) > 20


def test_a_large_face_is_shrunk_without_a_shift(mesh, points):
    large = cv2.resize(face_videos.may("open"), None, fx=6, fy=6, interpolation=cv2.INTER_CUBIC)
    region = Region(x_px=6 * 128.5 - 0.5, y_px=6 * 140.5 - 0.5, side_px=1200, angle_rad=0)
    (found,), _ = mesh([crop(large, region)])
    error = (found[:, :2] + 0.5) / 6 - 0.5 - points[:, :2]
    assert np.abs(error.mean(0)).max() < 0.5
    assert np.linalg.norm(error, axis=1).mean() < 1
    np.testing.assert_allclose(found[:, 2] / 6, points[:, 2], atol=3)


def test_the_region_of_points_is_a_square_around_them_that_turns_with_the_eyes():
    points = np.zeros((POINTS, 3), np.float32)
    points[:, 0], points[:, 1] = 50, 60
    points[33, :2], points[263, :2] = (40, 50), (60, 70)
    points[470, :2] = 1000  # an iris
    region = region_of_points(points)
    assert (region.x_px, region.y_px, region.side_px) == (50, 60, 30)
    assert region.angle_rad == pytest.approx(math.pi / 4)


def test_halves_of_the_face_mirror_each_other():
    mirror = mirrored_points()
    pairs = {(33, 263), (61, 291), (127, 356), (468, 473), (469, 476), (470, 475)}
    assert {(one, int(mirror[one])) for one, _ in pairs} == pairs
    assert mirror[4] == 4
    vertices = canonical_face()
    np.testing.assert_allclose(vertices[mirror[:468]], vertices * (-1, 1, 1), atol=1e-5)


def test_the_68_landmarks_are_as_symmetric_as_ibug_s():
    other_half = [
        *range(16, -1, -1),
        *range(26, 16, -1),
        *range(27, 31),
        *range(35, 30, -1),
        *(45, 44, 43, 42, 47, 46),
        *(39, 38, 37, 36, 41, 40),
        *(54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55),
        *(64, 63, 62, 61, 60, 67, 66, 65),
    ]
    np.testing.assert_array_equal(mirrored_points()[IBUG_POINTS], IBUG_POINTS[other_half])
    assert len(set(IBUG_POINTS.tolist())) == 68


def test_the_models_are_those_of_their_readme():
    rows = re.findall(r"\| `(\S+)` \|.*\| ([\d,]+) \| (\w{64}) \|", (MODELS / "README.md").read_text())
    listed = {name: (int(size.replace(",", "")), digest) for name, size, digest in rows}
    found = {
        file.name: (file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest())
        for file in MODELS.iterdir()
        if file.name != "README.md"
    }
    assert listed == found
