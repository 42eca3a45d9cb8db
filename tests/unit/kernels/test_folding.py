"""Each fold against the maths it replaces, packed forms against the plain ones, and refusals."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest

from benchmarks.synthetic_scene import ellipsoid_bitfield, make_grid, make_pose, make_scene
from cuda_kernels import folding
from cuda_kernels.folding import (
    BLOCK,
    SceneError,
    check_scene,
    distance_field,
    field_pose,
    fold_color,
    fold_condition,
    fold_head,
    fold_torso,
    frequency_row,
    pack_grid,
    pack_net,
    pose_vector,
    resize_by_area,
    unpack_bitfield,
)

EXACT = 1e-5  # the folds are identities: what is left is the order of float32 sums
SMALL = {"hidden": 12, "geometry": 7, "levels": 3, "log2_rows": 8, "condition": 5, "grid_size": 16}


@pytest.fixture
def random():
    return np.random.default_rng(3)


@pytest.fixture(scope="module")
def scene():
    return make_scene(**SMALL)


def relu_net(layers, x, biases=None):
    for number, weight in enumerate(layers):
        x = weight.astype(np.float64) @ x
        if biases is not None and biases[number] is not None:
            x = x + biases[number]
        if number < len(layers) - 1:
            x = np.maximum(x, 0)
    return x


def run_packed(net, biases, x):
    """What the kernel does with a packed net, one sample at a time."""
    layers = len(net.inputs)
    for layer in range(layers):
        count, blocks = int(net.inputs[layer]), int(net.blocks[layer])
        x = np.concatenate([x, np.zeros(max(0, count - len(x)))])[:count]
        first = int(net.weight_at[layer])
        weights = net.weights[first : first + blocks * count * BLOCK].reshape(blocks, count, BLOCK)
        bias = biases[int(net.bias_at[layer]) :][: blocks * BLOCK]
        x = np.einsum("bko,k->bo", weights.astype(np.float64), x).ravel() + bias
        if layer < layers - 1:
            x = np.maximum(x, 0)
    return x


def test_condition_becomes_a_bias(random):
    layer = random.normal(size=(9, 6 + 4)).astype(np.float32)
    position, condition = random.normal(size=6), random.normal(size=4)
    first, rest = fold_condition(layer, 6)
    expected = layer @ np.concatenate([position, condition])
    np.testing.assert_allclose(first @ position + rest @ condition, expected, rtol=0, atol=EXACT)


def test_geometry_merges_and_direction_and_code_become_a_bias(random):
    hidden, geometry, code_size = 12, 7, 4
    sigma = random.normal(size=(1 + geometry, hidden)).astype(np.float32)
    color = random.normal(size=(11, 16 + geometry + code_size)).astype(np.float32)
    code, last_hidden = random.normal(size=code_size).astype(np.float32), random.normal(size=hidden)
    harmonics = random.normal(size=16)
    merged, direction_weights, code_bias = fold_color(sigma, color, code)
    ray_bias = direction_weights @ harmonics + code_bias
    expected = color @ np.concatenate([harmonics, sigma[1:] @ last_hidden, code])
    np.testing.assert_allclose(merged @ last_hidden + ray_bias, expected, rtol=0, atol=EXACT)


def test_the_whole_folded_head(scene, random):
    head, folded = scene.head, fold_head(scene.head)
    features = 2 * 3
    position, ambient = random.normal(size=features), random.normal(size=features)
    condition = random.normal(size=5).astype(np.float32)
    harmonics = random.normal(size=16)
    got = run_packed(folded.ambient_net, folded.ambient_biases(condition), position)
    expected = relu_net(head.ambient_net, np.concatenate([position, condition]))
    np.testing.assert_allclose(got[:2], expected, rtol=0, atol=EXACT)
    seen = np.concatenate([position, ambient])
    density = relu_net(head.sigma_net, seen)
    color = relu_net(head.color_net, np.concatenate([harmonics, density[1:], head.individual_code]))
    hidden = np.maximum(run_packed(folded.sigma_net, folded.sigma_net.biases, seen), 0)
    got = run_packed(folded.density_net, folded.density_net.biases, hidden)
    np.testing.assert_allclose(got[0], density[0], rtol=0, atol=EXACT)
    inputs = np.concatenate([hidden, harmonics])
    got = run_packed(folded.color_net, folded.color_net.biases, inputs)
    np.testing.assert_allclose(got[:3], color, rtol=0, atol=EXACT)


def test_the_whole_folded_torso(scene, random):
    torso, folded = scene.torso, fold_torso(scene.torso)
    pose = field_pose(make_pose(0.3, -0.2), scene.camera)
    x = random.uniform(-1, 1, size=2)
    waves = frequency_row(x, torso.position_octaves)
    constant = np.concatenate([frequency_row(pose_vector(pose), torso.pose_octaves), torso.individual_code])
    deform_biases, canonical_biases = folded.biases(pose)
    expected = relu_net(torso.deform_net, np.concatenate([waves, constant]))
    np.testing.assert_allclose(
        run_packed(folded.deform_net, deform_biases, waves)[:2], expected, rtol=0, atol=EXACT
    )
    features = random.normal(size=6)
    expected = relu_net(torso.canonical_net, np.concatenate([features, waves, constant]))
    got = run_packed(folded.canonical_net, canonical_biases, np.concatenate([features, waves]))
    np.testing.assert_allclose(got, expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("widths", [(3, 4), (5, 1), (6, 7, 2), (4, 9, 5, 3), (1, 1, 1)])
def test_packing_pads_without_changing_anything(random, widths):
    layers = [random.normal(size=(b, a)).astype(np.float32) for a, b in pairwise(widths)]
    biases = [random.normal(size=b).astype(np.float32) for b in widths[1:]]
    net = pack_net(list(zip(layers, biases, strict=True)))
    x = random.normal(size=widths[0])
    got = run_packed(net, net.biases, x)
    np.testing.assert_allclose(got[: widths[-1]], relu_net(layers, x, biases), rtol=0, atol=EXACT)
    assert not got[widths[-1] :].any()


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("log2_rows", [4, 8, 12])
def test_packed_grid_addresses_the_references_rows(random, dimensions, log2_rows):
    """By the reference's rule: an axis counts while its stride is within the table."""
    grid = make_grid(random, dimensions=dimensions, levels=6, log2_rows=log2_rows, resolution=256)
    packed = pack_grid(grid)
    for level in range(6):
        rows = grid.layout.rows[level]
        side = int(np.ceil(packed.scale[level])) + 2
        for cell in random.integers(0, side - 1, size=(20, dimensions)):
            index, stride = 0, 1
            for axis in range(dimensions):
                if stride <= rows:
                    index += int(cell[axis]) * stride
                    stride *= side
            mine = int(cell[0]) + int(cell[1]) * int(packed.stride_y[level])
            mine += int(cell[2]) * int(packed.stride_z[level]) if dimensions == 3 else 0
            mask = int(packed.mask[level])
            mine = mine & mask if mask else mine % int(packed.rows[level])
            assert mine == index % rows
            for ahead in (0, 1):  # the pair (x, x + 1) is one read
                at = int(packed.start[level]) + (mine + ahead) * 2
                row = grid.layout.offsets[level] + (index + ahead) % rows
                np.testing.assert_array_equal(packed.table[at : at + 2], grid.table[row])


def test_distance_field_is_the_chessboard_distance(random):
    side = 16
    bits = np.packbits((random.random(side**3) < 0.003).astype(np.uint8), bitorder="little")
    occupied = np.argwhere(unpack_bitfield(bits, side))
    assert len(occupied) > 3
    cells = np.stack(np.meshgrid(*(np.arange(side),) * 3, indexing="ij"), -1)
    expected = np.abs(cells[..., None, :] - occupied).max(-1).min(-1)
    np.testing.assert_array_equal(distance_field(bits, side), expected)


def test_bitfield_is_in_morton_order():
    for cell, code in [((1, 0, 0), 1), ((0, 1, 0), 2), ((0, 0, 1), 4), ((2, 0, 0), 8), ((3, 3, 3), 63)]:
        bits = np.zeros(8, np.uint8)
        bits[code >> 3] = 1 << (code & 7)
        np.testing.assert_array_equal(np.argwhere(unpack_bitfield(bits, 4)), [cell])


def test_distance_field_of_nothing_is_far_everywhere():
    assert (distance_field(np.zeros(64, np.uint8), 8) == 255).all()
    assert (distance_field(np.full(64, 255, np.uint8), 8) == 0).all()


def test_occupied_box_holds_the_head():
    head = dataclasses.replace(
        make_scene(**SMALL).head, density_bitfield=ellipsoid_bitfield(16, (0.5, 0.3, 0.4))
    )
    box = fold_head(head).occupied_box
    np.testing.assert_allclose(box, [-0.5, -0.25, -0.375, 0.5, 0.25, 0.375])


def test_pose_vector_gives_the_angles_back():
    from math import cos, sin

    a, b, c = 0.3, -0.7, 1.1
    rx = np.array([[1, 0, 0], [0, cos(a), -sin(a)], [0, sin(a), cos(a)]])
    ry = np.array([[cos(b), 0, sin(b)], [0, 1, 0], [-sin(b), 0, cos(b)]])
    rz = np.array([[cos(c), -sin(c), 0], [sin(c), cos(c), 0], [0, 0, 1]])
    pose = np.concatenate([rx @ ry @ rz, [[1.0], [2.0], [3.0]]], axis=1)
    np.testing.assert_allclose(pose_vector(pose), [a, b, c, 1, 2, 3], atol=1e-12)


def test_resize_by_area_keeps_the_mean_and_constants(random):
    image = random.integers(0, 256, size=(40, 40, 3)).astype(np.uint8)
    for size in (40, 20, 13, 64):
        small = resize_by_area(image, size)
        assert small.shape == (size, size, 3)
        np.testing.assert_allclose(small.mean(axis=(0, 1)), image.mean(axis=(0, 1)) / 255, atol=1e-5)
    np.testing.assert_allclose(resize_by_area(np.full_like(image, 77), 27), 77 / 255, atol=1e-6)
    half = image.reshape(20, 2, 20, 2, 3).mean(axis=(1, 3)) / 255
    np.testing.assert_allclose(resize_by_area(image, 20), half, atol=1e-6)


def test_a_sound_scene_passes(scene):
    check_scene(scene)
    check_scene(dataclasses.replace(scene, torso=None))


def turned(layout):
    return dataclasses.replace(layout, offsets=layout.offsets[::-1])


REFUSALS = {
    "ambient_net": lambda s: {"ambient_net": (*s.ambient_net[:-1], s.ambient_net[-1][:1])},
    "sigma_net": lambda s: {"sigma_net": (s.sigma_net[0][:, :-1], *s.sigma_net[1:])},
    "color_net": lambda s: {"color_net": (s.color_net[0][:, :-1], *s.color_net[1:])},
    "sigma_net[-1]": lambda s: {"sigma_net": (*s.sigma_net[:-1], s.sigma_net[-1][:1])},
    "density_bitfield": lambda s: {"density_bitfield": s.density_bitfield[:-1]},
    "grid_size": lambda s: {"grid_size": 17},
    "bound": lambda s: {"bound": 2.0},
    "aabb": lambda s: {"aabb": s.aabb[::-1].copy()},
    "max_steps": lambda s: {"max_steps": 0},
    "individual_code": lambda s: {"individual_code": s.individual_code.astype(np.float64)},
    "position_grid.offsets": lambda s: {
        "position_grid": dataclasses.replace(s.position_grid, layout=turned(s.position_grid.layout))
    },
    "position_grid.table": lambda s: {
        "position_grid": dataclasses.replace(s.position_grid, table=s.position_grid.table[:-1])
    },
    "position_grid.dimensions": lambda s: {"position_grid": s.ambient_grid},
    "ambient_grid.table": lambda s: {
        "ambient_grid": dataclasses.replace(s.ambient_grid, table=s.ambient_grid.table * np.float32(np.nan))
    },
}


@pytest.mark.parametrize("field", REFUSALS)
def test_a_head_that_does_not_fit_is_refused(scene, field):
    broken = dataclasses.replace(scene, head=dataclasses.replace(scene.head, **REFUSALS[field](scene.head)))
    with pytest.raises(
        SceneError, match=rf"head\.{field.replace('[', '.').split('.')[0]}.*expected .* got"
    ) as caught:
        check_scene(broken)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_a_torso_background_or_camera_that_does_not_fit_is_refused(scene):
    torso = scene.torso
    for changes in (
        {"occupancy": torso.occupancy[:-1]},
        {"position_octaves": 3},
        {"individual_code": torso.individual_code[:-1]},
        {"canonical_net": torso.deform_net},
    ):
        with pytest.raises(SceneError, match=r"torso\.\w+.*: expected"):
            check_scene(dataclasses.replace(scene, torso=dataclasses.replace(torso, **changes)))
    with pytest.raises(SceneError, match=r"background: expected shape \(512, 512, 3\), got \(512, 511, 3\)"):
        check_scene(dataclasses.replace(scene, background=scene.background[:, :-1]))
    with pytest.raises(SceneError, match="camera: expected finite numbers"):
        check_scene(
            dataclasses.replace(scene, camera=dataclasses.replace(scene.camera, focal_px=float("nan")))
        )


def test_blocks_are_what_the_kernel_makes():
    from cuda_kernels import cpu_kernels

    assert folding.BLOCK == cpu_kernels.BLOCK
