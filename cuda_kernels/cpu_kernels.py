"""The CPU raymarcher's Numba kernels: `draw_blocks` renders blocks of a picture until none is left.

One file, long as it is: Numba keeps what it compiled under the file of the outermost function and that file's
date, and knows nothing of functions and types of other files that went into it. After a change there, caches
would go on with the old machine code. Sizes of networks and grids are ordinary arguments: one compilation
serves every speaker. The two hot loops (a block of a dense layer, the corners of a
grid cell) are written as vector instructions; the rest is left to LLVM's loop vectoriser.

Fast maths: `contract` lets a multiply and an add fuse, `nsz` ignores the sign of zero. `reassoc` stays out:
it would undo the argument reduction of exp, sin and cos, and no loop here sums over lanes. `arcp` too:
dividing by the image's side must give the twin's coordinate to the bit, or pixels on the torso's edge change
hands. `nnan` and `ninf` too: a ray parallel to a box's side makes infinities that must compare right.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.extending import intrinsic

from .arrays import F32, I32, I64, U8, U32

CHUNK = 64  # samples in one batch through the networks
TILE = 32  # pixels a side of a block of a whole picture
RAYS = TILE * TILE  # that are marched together: as many as keep the chunks of later waves full
LANES = np.uint64(CHUNK)
"""CHUNK for loops over buffers. An index `at + s` of signed numbers could be negative for all that the
compiler knows, and would then count from the end: that test keeps a loop from being vectorised."""
BLOCK = 4  # outputs of a layer made together; folding.pack_net packs by it

FAST_MATHS = {"contract", "nsz"}


def _float_lanes() -> int:
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 16
    return 8 if features.get("avx") else 4


_LANES = _float_lanes()
GROUP = 16  # samples by which a chunk that is not full is rounded up


class PackedNet(NamedTuple):
    """A net whose layers stand in one flat array, for `BLOCK` outputs at a time.

    Layer l has `inputs[l]` inputs and `blocks[l]` blocks of outputs; block b's weight of input k and output o
    stands at `weight_at[l] + (b * inputs[l] + k) * BLOCK + o`, its bias at `bias_at[l] + b * BLOCK + o`.
    Outputs are padded with zero rows, and the next layer's inputs with zero columns.
    """

    weights: F32
    biases: F32
    weight_at: I64
    bias_at: I64
    inputs: I64
    blocks: I64


class PackedGrid(NamedTuple):
    """A grid whose levels are addressed by integers alone, each followed by its own first rows.

    A tiled level's neighbour at x + 1 is the next row (or row 0 after the last), so with one more row behind
    each level the corners x and x + 1 are one contiguous read.
    """

    table: F32  # flat
    start: I64  # (levels,) first float of each level
    scale: F32  # (levels,)
    stride_y: U32  # (levels,) 0 where the reference leaves y out
    stride_z: U32  # (levels,) 0 where the reference leaves z out, and in 2-D
    rows: U32  # (levels,)
    mask: U32  # (levels,) rows - 1 for a power of two, all ones where no index wraps, 0: modulo by rows
    hashed: U8  # (levels,) 1 where rows are hashed
    features: int
    smoothstep: bool

    @property
    def width(self) -> int:
        """Features of one encoded position."""
        return len(self.scale) * self.features


class HeadArrays(NamedTuple):
    """The head's constants across frames."""

    position_grid: PackedGrid
    ambient_grid: PackedGrid
    ambient_net: PackedNet
    sigma_net: PackedNet
    density_net: PackedNet
    color_net: PackedNet
    hidden_rows: int
    distance: U8  # (side ** 3,)
    side: int
    bound: np.float32
    step: np.float32
    aabb: F32  # (6,)
    box: F32  # (6,) around all that is occupied
    min_near: np.float32
    max_steps: int
    stop_transmittance: np.float32


class TorsoArrays(NamedTuple):
    """The torso's constants across frames."""

    present: bool
    grid: PackedGrid
    deform_net: PackedNet
    canonical_net: PackedNet
    occupancy: F32  # (side, side)
    octaves: int
    shrink: np.float32


class FrameArrays(NamedTuple):
    """Inputs of one frame."""

    pose: F32  # (3, 4)
    ambient_biases: F32
    deform_biases: F32
    canonical_biases: F32
    background: F32  # (size, size, 3)
    focal_px: np.float32  # of the drawn size
    cx_px: np.float32
    cy_px: np.float32
    pixel_px: np.float32  # pixels of the full image to one drawn pixel
    image_size_px: np.float32
    x0: int
    y0: int


class Scratch(NamedTuple):
    """One thread's scratch buffers."""

    rays: F32  # (RAY_ROWS, RAYS)
    steps: I32  # (STEP_ROWS, RAYS)
    points: F32  # (3 * (RAYS + CHUNK),)
    buffers: F32  # (2 * largest layer + features, CHUNK) flat
    corners: U32  # (8 * CHUNK,) rows of a level
    weights: F32  # (8 * CHUNK,)
    where: F32  # (2 * CHUNK,) coordinates in a 2-D grid


# ------------------------------------------------------------------------------------------- vector code
def _pointer(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    return context.make_array(array_type)(context, builder, array).data


def _load_vector(builder: Any, pointer: Any, index: Any, lanes: int) -> Any:
    vector = ir.VectorType(ir.FloatType(), lanes)
    address = builder.bitcast(builder.gep(pointer, [index]), vector.as_pointer())
    loaded = builder.load(address)
    loaded.align = 4
    return loaded


def _store_vector(builder: Any, value: Any, pointer: Any, index: Any) -> None:
    address = builder.bitcast(builder.gep(pointer, [index]), value.type.as_pointer())
    builder.store(value, address, align=4)


def _splat(builder: Any, scalar: Any, lanes: int) -> Any:
    vector = ir.VectorType(scalar.type, lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
    return builder.shuffle_vector(first, first, zeros)


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return builder.fadd(builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))


@intrinsic
def _dense_block(
    typing: Any,
    x: Any,
    x_at: Any,
    inputs: Any,
    w: Any,
    w_at: Any,
    b: Any,
    b_at: Any,
    y: Any,
    y_at: Any,
    relu: Any,
    groups: Any,
) -> Any:
    """BLOCK outputs of a layer for `groups` (a literal) times GROUP samples.

    y[o] = act(b[o] + sum_k w[k, o] x[k]); all flat float32. The sums stay in registers: with 32 registers
    of 512 bits 4 outputs x 4 vectors, with 16 shorter ones 4 x 2: enough to hide a multiply-add's latency and
    to read less than is multiplied.
    """
    if not isinstance(groups, types.IntegerLiteral):
        return None
    vectors = groups.literal_value * GROUP // _LANES
    at_once = min(vectors, 4 if _LANES == 16 else 2)
    signature = types.void(
        x, types.int64, types.int64, w, types.int64, b, types.int64, y, types.int64, types.boolean, groups
    )

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        i64 = ir.IntType(64)
        xp, wp, bp, yp = (_pointer(context, builder, sig.args[n], args[n]) for n in (0, 3, 5, 7))
        x_first, count, w_first, b_first, y_first = args[1], args[2], args[4], args[6], args[8]
        zero = ir.Constant(ir.VectorType(ir.FloatType(), _LANES), [0.0] * _LANES)
        relu_flag = builder.icmp_unsigned("!=", args[9], ir.Constant(args[9].type, 0))
        for first in range(0, vectors, at_once):
            columns = range(first, min(first + at_once, vectors))
            sums: list[dict[int, Any]] = []
            for o in range(BLOCK):
                start = _splat(builder, builder.load(builder.gep(bp, [builder.add(b_first, i64(o))])), _LANES)
                sums.append({v: cgutils.alloca_once(builder, zero.type) for v in columns})
                for slot in sums[o].values():
                    builder.store(start, slot)
            with cgutils.for_range(builder, count, intp=i64) as loop:
                at = builder.add(x_first, builder.mul(loop.index, i64(CHUNK)))
                xs = {v: _load_vector(builder, xp, builder.add(at, i64(v * _LANES)), _LANES) for v in columns}
                w_row = builder.add(w_first, builder.mul(loop.index, i64(BLOCK)))
                for o in range(BLOCK):
                    ws = _splat(builder, builder.load(builder.gep(wp, [builder.add(w_row, i64(o))])), _LANES)
                    for v, slot in sums[o].items():
                        builder.store(_multiply_add(builder, ws, xs[v], builder.load(slot)), slot)
            for o in range(BLOCK):
                for v, slot in sums[o].items():
                    value = builder.load(slot)
                    positive = builder.select(builder.fcmp_ordered(">", value, zero), value, zero)
                    value = builder.select(relu_flag, positive, value)
                    _store_vector(builder, value, yp, builder.add(y_first, i64(o * CHUNK + v * _LANES)))
        return context.get_dummy_value()

    return signature, emit


@intrinsic
def _blend_cells(
    typing: Any,
    table: Any,
    start: Any,
    index: Any,
    weight: Any,
    out: Any,
    out_at: Any,
    groups: Any,
    pairs: Any,
) -> Any:
    """Two features of `groups` times GROUP samples, each from `pairs` (2 or 4, a literal) pairs of rows.

    index[p, s] counts rows from `start`; weight[0, s], [1, s] and [2, s] are how far the sample lies along
    y, z and x. Pairs come as y, y + 1, then the same at z + 1.
    """
    if not isinstance(pairs, types.IntegerLiteral):
        return None
    count = pairs.literal_value
    signature = types.void(table, types.int64, index, weight, out, types.int64, types.int64, pairs)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        i64, i32 = ir.IntType(64), ir.IntType(32)
        tp, ip, wp, op = (_pointer(context, builder, sig.args[n], args[n]) for n in (0, 2, 3, 4))
        base = builder.gep(tp, [args[1]])
        turns = builder.mul(args[6], i64(GROUP // 4))

        def mask(*lanes: int) -> Any:
            return ir.Constant(ir.VectorType(i32, len(lanes)), list(lanes))

        with cgutils.for_range(builder, turns, intp=i64) as loop:
            first = builder.mul(loop.index, i64(4))
            rows = []
            for s in range(4):
                corners = []
                for p in range(count):
                    at = builder.add(first, i64(p * CHUNK + s))
                    row = builder.zext(builder.load(builder.gep(ip, [at])), i64)
                    corners.append(_load_vector(builder, base, builder.shl(row, i64(1)), 4))
                for axis in range(count // 2):
                    at = builder.add(first, i64(axis * CHUNK + s))
                    along = _splat(builder, builder.load(builder.gep(wp, [at])), 4)
                    corners = [
                        _multiply_add(builder, along, builder.fsub(far, near), near)
                        for near, far in zip(corners[::2], corners[1::2], strict=True)
                    ]
                rows.append(corners[0])
            low = [builder.shuffle_vector(rows[a], rows[a + 1], mask(0, 4, 1, 5)) for a in (0, 2)]
            high = [builder.shuffle_vector(rows[a], rows[a + 1], mask(2, 6, 3, 7)) for a in (0, 2)]
            fraction = _load_vector(builder, wp, builder.add(first, i64(2 * CHUNK)), 4)
            for f in range(2):
                lanes = mask(2 * f, 2 * f + 1, 4 + 2 * f, 5 + 2 * f)
                near = builder.shuffle_vector(low[0], low[1], lanes)
                far = builder.shuffle_vector(high[0], high[1], lanes)
                value = _multiply_add(builder, fraction, builder.fsub(far, near), near)
                at = builder.add(args[5], builder.add(first, i64(f * CHUNK)))
                _store_vector(builder, value, op, at)
        return context.get_dummy_value()

    return signature, emit


@intrinsic
def _take_next(typing: Any, counter: Any) -> Any:
    """Returns a shared counter's value and increments it atomically."""
    signature = types.int64(counter)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, sig.args[0], args[0])
        return builder.atomic_rmw("add", pointer, ir.IntType(64)(1), "monotonic")

    return signature, emit


@intrinsic
def _float_of_bits(typing: Any, bits: Any) -> Any:
    """Returns an int32's bits reinterpreted as a float32."""
    signature = types.float32(types.int32)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return signature, emit


# ------------------------------------------------------------------------------------------- small maths
@njit(fastmath=FAST_MATHS, error_model="numpy", forceinline=True)
def _exp(x: Any) -> Any:
    """Returns exp(x) to 2 ulp, in a form that vectorises; the argument is clamped."""
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    n = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    r = (x - n * np.float32(0.693359375)) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    return p * _float_of_bits(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)))


@njit(fastmath=FAST_MATHS, error_model="numpy", forceinline=True)
def _sigmoid(x: Any) -> Any:
    return np.float32(1.0) / (np.float32(1.0) + _exp(-x))


@njit(fastmath=FAST_MATHS, error_model="numpy", forceinline=True)
def _tanh(x: Any) -> Any:
    return np.float32(1.0) - np.float32(2.0) / (np.float32(1.0) + _exp(x + x))


@njit(fastmath=FAST_MATHS, error_model="numpy", forceinline=True)
def _sin_cos(x: Any) -> tuple[Any, Any]:
    """Returns (sin x, cos x) to 2e-7 for |x| up to some thousands, in a form that vectorises.

    The argument is reduced by multiples of pi / 2 in three parts, then both are polynomials on [-pi/4, pi/4].
    """
    n = np.floor(x * np.float32(0.6366197723675814) + np.float32(0.5))
    r = ((x - n * np.float32(1.5703125)) - n * np.float32(4.837512969970703e-4)) - n * np.float32(
        7.549789948768648e-8
    )
    q = r * r
    sine = r + r * q * (
        np.float32(-1.6666654611e-1) + q * (np.float32(8.3321608736e-3) - q * np.float32(1.9515295891e-4))
    )
    cosine = (
        np.float32(1.0)
        - np.float32(0.5) * q
        + q
        * q
        * (
            np.float32(4.166664568298827e-2)
            + q * (np.float32(2.443315711809948e-5) * q - np.float32(1.388731625493765e-3))
        )
    )
    quadrant = np.int32(n) & np.int32(3)
    odd = (quadrant & np.int32(1)) != np.int32(0)
    s, c = (cosine, sine) if odd else (sine, cosine)
    return (
        -s if (quadrant & np.int32(2)) != np.int32(0) else s,
        -c if ((quadrant + np.int32(1)) & np.int32(2)) != np.int32(0) else c,
    )


# ------------------------------------------------------------------------------------------- networks
@njit(fastmath=FAST_MATHS, error_model="numpy")
def _run_net(
    net: PackedNet, biases: F32, buffers: F32, at: int, even: int, odd: int, relu_layers: int, groups: int
) -> int:
    """Runs a net on a chunk from row `at`, alternating between rows `even` and `odd`; returns its output row.

    ReLU follows the first `relu_layers` layers.
    """
    for layer in range(net.inputs.size):
        to = even if layer % 2 == 0 else odd
        count = net.inputs[layer]
        relu = layer < relu_layers
        for block in range(net.blocks[layer]):
            x, y = at * CHUNK, (to + block * BLOCK) * CHUNK
            w, b = net.weight_at[layer] + block * count * BLOCK, net.bias_at[layer] + block * BLOCK
            if groups == 4:
                _dense_block(buffers, x, count, net.weights, w, biases, b, buffers, y, relu, 4)
            elif groups == 3:
                _dense_block(buffers, x, count, net.weights, w, biases, b, buffers, y, relu, 3)
            elif groups == 2:
                _dense_block(buffers, x, count, net.weights, w, biases, b, buffers, y, relu, 2)
            else:
                _dense_block(buffers, x, count, net.weights, w, biases, b, buffers, y, relu, 1)
        at = to
    return at


# ------------------------------------------------------------------------------------------- grids
@njit(fastmath=FAST_MATHS, error_model="numpy", forceinline=True)
def _wrap(index: Any, mask: Any, rows: Any) -> Any:
    return index & mask if mask != np.uint32(0) else index % rows


@njit(fastmath=FAST_MATHS, error_model="numpy", forceinline=True)
def _smooth(w: Any, smoothstep: bool) -> Any:
    return w * w * (np.float32(3.0) - np.float32(2.0) * w) if smoothstep else w


@njit(fastmath=FAST_MATHS, error_model="numpy")
def _encode_any(
    grid: PackedGrid, level: int, dimensions: int, xs: F32, ys: F32, zs: F32, buffers: F32, at: int
) -> None:
    """One level for CHUNK samples, hashed or of any number of features: plain and slow."""
    scale, half, one = grid.scale[level], np.float32(0.5), np.float32(1.0)
    sy, sz, rows, start = grid.stride_y[level], grid.stride_z[level], grid.rows[level], grid.start[level]
    mask, hashed = grid.mask[level], grid.hashed[level]
    last = np.uint32(np.int32(np.ceil(scale)))
    for s in range(CHUNK):
        x, y = xs[s] * scale + half, ys[s] * scale + half
        z = zs[s] * scale + half if dimensions == 3 else half
        ix, iy = min(np.uint32(np.int32(x)), last), min(np.uint32(np.int32(y)), last)
        iz = min(np.uint32(np.int32(z)), last)
        fx = _smooth(x - np.float32(ix), grid.smoothstep)
        fy = _smooth(y - np.float32(iy), grid.smoothstep)
        fz = _smooth(z - np.float32(iz), grid.smoothstep)
        for f in range(grid.features):
            buffers[(at + f) * CHUNK + s] = np.float32(0.0)
        for corner in range(1 << dimensions):
            cx, cy = np.uint32(corner & 1), np.uint32((corner >> 1) & 1)
            cz = np.uint32((corner >> 2) & 1)
            weight = (fx if cx else one - fx) * (fy if cy else one - fy)
            if dimensions == 3:
                weight *= fz if cz else one - fz
            if hashed:
                index = (ix + cx) ^ np.uint32((iy + cy) * np.uint32(2654435761))
                if dimensions == 3:
                    index = index ^ np.uint32((iz + cz) * np.uint32(805459861))
            else:
                index = np.uint32(ix + cx + (iy + cy) * sy + (iz + cz) * sz)
            row = np.int64(_wrap(np.uint32(index), mask, rows))
            for f in range(grid.features):
                buffers[(at + f) * CHUNK + s] += weight * grid.table[start + row * grid.features + f]


@njit(fastmath=FAST_MATHS, error_model="numpy")
def _encode(
    grid: PackedGrid, dimensions: int, xs: F32, ys: F32, zs: F32, scratch: Scratch, at: int, groups: int
) -> None:
    """Features of a chunk's samples at coordinates in [0, 1], into buffer rows from `at`, level-major."""
    index, weight, buffers = scratch.corners, scratch.weights, scratch.buffers
    half = np.float32(0.5)
    for level in range(grid.scale.size):
        row = at + level * grid.features
        if grid.features != 2 or grid.hashed[level]:
            _encode_any(grid, level, dimensions, xs, ys, zs, buffers, row)
            continue
        scale, smoothstep = grid.scale[level], grid.smoothstep
        sy, sz = grid.stride_y[level], grid.stride_z[level]
        mask, rows = grid.mask[level], grid.rows[level]
        # A NaN coordinate (a network that overflows) must not become an address.
        last = np.uint32(np.int32(np.ceil(scale)))
        if sz == np.uint32(0):  # z does not enter the index: the corners above equal those below
            for s in range(CHUNK):
                x, y = xs[s] * scale + half, ys[s] * scale + half
                ix, iy = min(np.uint32(np.int32(x)), last), min(np.uint32(np.int32(y)), last)
                fx = _smooth(x - np.float32(np.int32(ix)), smoothstep)
                fy = _smooth(y - np.float32(np.int32(iy)), smoothstep)
                i0 = np.uint32(ix + iy * sy)
                index[s] = i0 & mask
                index[CHUNK + s] = np.uint32(i0 + sy) & mask
                weight[s] = fy
                weight[2 * CHUNK + s] = fx
                index[2 * CHUNK + s] = i0
            if mask == np.uint32(0):
                for s in range(CHUNK):
                    i0 = index[2 * CHUNK + s]
                    index[s] = i0 % rows
                    index[CHUNK + s] = np.uint32(i0 + sy) % rows
            _blend_cells(grid.table, grid.start[level], index, weight, buffers, row * CHUNK, groups, 2)
        else:
            for s in range(CHUNK):
                x, y, z = xs[s] * scale + half, ys[s] * scale + half, zs[s] * scale + half
                ix, iy = min(np.uint32(np.int32(x)), last), min(np.uint32(np.int32(y)), last)
                iz = min(np.uint32(np.int32(z)), last)
                fx = _smooth(x - np.float32(np.int32(ix)), smoothstep)
                fy = _smooth(y - np.float32(np.int32(iy)), smoothstep)
                fz = _smooth(z - np.float32(np.int32(iz)), smoothstep)
                i0 = np.uint32(ix + iy * sy + iz * sz)
                index[s] = i0 & mask
                index[CHUNK + s] = np.uint32(i0 + sy) & mask
                index[2 * CHUNK + s] = np.uint32(i0 + sz) & mask
                index[3 * CHUNK + s] = np.uint32(i0 + sy + sz) & mask
                weight[s] = fy
                weight[CHUNK + s] = fz
                weight[2 * CHUNK + s] = fx
                index[4 * CHUNK + s] = i0
            if mask == np.uint32(0):
                for s in range(CHUNK):
                    i0 = index[4 * CHUNK + s]
                    index[s] = i0 % rows
                    index[CHUNK + s] = np.uint32(i0 + sy) % rows
                    index[2 * CHUNK + s] = np.uint32(i0 + sz) % rows
                    index[3 * CHUNK + s] = np.uint32(i0 + sy + sz) % rows
            _blend_cells(grid.table, grid.start[level], index, weight, buffers, row * CHUNK, groups, 4)


# ------------------------------------------------------------------------------------------- rays
# Rows of Scratch.rays.
_DX, _DY, _DZ, _NEAR, _T, _R, _G, _B = range(8)
RAY_ROWS = 8
# Rows of Scratch.steps.
_K, _K_END, _COUNT, _ALIVE, _COLUMN, _ROW = range(6)
STEP_ROWS = 6


@njit(fastmath=FAST_MATHS, error_model="numpy", forceinline=True)
def _slab(low: Any, high: Any, origin: Any, inverse: Any, near: Any, far: Any) -> Any:
    """Returns (near, far) narrowed to where a ray is between two planes."""
    a, b = (low - origin) * inverse, (high - origin) * inverse
    return max(near, min(a, b)), min(far, max(a, b))


@njit(fastmath=FAST_MATHS, error_model="numpy", forceinline=True)
def _inverse(d: Any) -> Any:
    """Returns 1 / d with zero kept from the division, as the reference's slab test has it."""
    return np.float32(1.0) / (np.float32(1e-15) if abs(d) < np.float32(1e-15) else d)


@njit(fastmath=FAST_MATHS, error_model="numpy")
def _place(blocks: I32, edge: int, first: int, width: int, height: int, steps: I32) -> None:
    """Sets column and row in the image of each ray of the blocks from `first` on; -1: of no pixel."""
    q = 0
    for block in range(first, first + RAYS // (edge * edge)):
        missing = block >= blocks.shape[0]
        top = height if missing else blocks[block, 0] * edge
        left = width if missing else blocks[block, 1] * edge
        for y in range(top, top + edge):
            for x in range(left, left + edge):
                inside = y < height and x < width
                steps[_COLUMN, q] = x if inside else -1
                steps[_ROW, q] = y if inside else -1
                q += 1


@njit(fastmath=FAST_MATHS, error_model="numpy")
def _setup(head: HeadArrays, frame: FrameArrays, scratch: Scratch) -> None:
    """Ray directions, lattice starts and ends of the rays that were placed.

    Without branches or calls and with all that is read in local names, so that the loop vectorises.
    """
    rays, steps, pose = scratch.rays, scratch.steps, frame.pose
    half, one, zero = np.float32(0.5), np.float32(1.0), np.float32(0.0)
    least, most = np.float32(-3.0e38), np.float32(3.0e38)
    step, min_near, focal_px = head.step, head.min_near, frame.focal_px
    xx, xy, xz, ox = pose[0, 0], pose[0, 1], pose[0, 2], pose[0, 3]
    yx, yy, yz, oy = pose[1, 0], pose[1, 1], pose[1, 2], pose[1, 3]
    zx, zy, zz, oz = pose[2, 0], pose[2, 1], pose[2, 2], pose[2, 3]
    ax, ay, az, bx, by, bz = (
        head.aabb[0],
        head.aabb[1],
        head.aabb[2],
        head.aabb[3],
        head.aabb[4],
        head.aabb[5],
    )
    cx, cy, cz, ex, ey, ez = head.box[0], head.box[1], head.box[2], head.box[3], head.box[4], head.box[5]
    left, top, cx_px, cy_px = np.int32(frame.x0), np.int32(frame.y0), frame.cx_px, frame.cy_px
    for q in range(RAYS):
        column, row = steps[_COLUMN, q], steps[_ROW, q]
        v = (np.float32(np.int32(top + row)) + half - cy_px) / focal_px
        u = (np.float32(np.int32(left + column)) + half - cx_px) / focal_px
        length = one / np.float32(math.sqrt(u * u + v * v + one))
        dx, dy = (xx * u + xy * v + xz) * length, (yx * u + yy * v + yz) * length
        dz = (zx * u + zy * v + zz) * length
        ix, iy, iz = _inverse(dx), _inverse(dy), _inverse(dz)
        near, far = _slab(ax, bx, ox, ix, least, most)
        near, far = _slab(ay, by, oy, iy, near, far)
        near, far = _slab(az, bz, oz, iz, near, far)
        first, last = _slab(cx, ex, ox, ix, least, most)
        first, last = _slab(cy, ey, oy, iy, first, last)
        first, last = _slab(cz, ez, oz, iz, first, last)
        hit = (column >= 0) & (near <= far) & (first <= last)
        near = max(near, min_near)
        # Lattice points before and after the box around all that is occupied are empty; one more is kept
        # on either side for rounding. Bounded before they become whole numbers: a miss may be far away.
        start = min(max(np.floor((first - near) / step), zero), np.float32(1e6))
        end = min(np.ceil((far - near) / step), np.floor((last - near) / step) + np.float32(2.0))
        end = min(max(end, zero), np.float32(1e6)) if hit else zero
        rays[_DX, q] = dx
        rays[_DY, q] = dy
        rays[_DZ, q] = dz
        rays[_NEAR, q] = near
        rays[_T, q] = one
        rays[_R, q] = zero
        rays[_G, q] = zero
        rays[_B, q] = zero
        steps[_K, q] = np.int32(start)
        steps[_K_END, q] = np.int32(end)
        steps[_COUNT, q] = np.int32(0)


@njit(fastmath=FAST_MATHS, error_model="numpy", forceinline=True)
def _next_occupied(head: HeadArrays, pose: F32, rays: F32, q: int, k: Any, end: Any) -> Any:
    """Returns the first lattice step from k on in an occupied cell, or -1."""
    side = np.int32(head.side)
    top = np.float32(side - 1)
    cells = np.float32(0.5) * np.float32(side) / head.bound  # per unit length
    middle = np.float32(0.5) * np.float32(side)
    # In cells: where the ray starts, and how far a step of the lattice takes it.
    step = head.step * cells
    vx, vy, vz = rays[_DX, q] * step, rays[_DY, q] * step, rays[_DZ, q] * step
    lead = rays[_NEAR, q] * cells
    x0 = pose[0, 3] * cells + middle + rays[_DX, q] * lead
    y0 = pose[1, 3] * cells + middle + rays[_DY, q] * lead
    z0 = pose[2, 3] * cells + middle + rays[_DZ, q] * lead
    steps_a_cell = np.float32(1.0) / max(abs(vx), max(abs(vy), abs(vz)))
    while k < end:
        n = np.float32(k)
        ix = np.int32(min(max(x0 + n * vx, np.float32(0.0)), top))
        iy = np.int32(min(max(y0 + n * vy, np.float32(0.0)), top))
        iz = np.int32(min(max(z0 + n * vz, np.float32(0.0)), top))
        d = np.int32(head.distance[np.uint64((ix * side + iy) * side + iz)])
        if d == 0:
            return k
        # A point at most d - 1 cells further on any axis is still among the empty ones; a hair less, so that
        # rounding can cost a visit to an empty cell but never skip an occupied one.
        k += np.int32(1) + np.int32(np.float32(d - 1) * steps_a_cell * np.float32(0.9999))
    return -1


# ------------------------------------------------------------------------------------------- head
@njit(fastmath=FAST_MATHS, error_model="numpy")
def _harmonics(rays: F32, steps: I32, first: int, count: int, buffers: F32, at: int) -> None:
    """SH of the directions of the rays of one chunk, 16 buffer rows from `at`."""
    b = np.uint64(at * CHUNK)
    one, three, five = np.float32(1.0), np.float32(3.0), np.float32(5.0)
    for s in range(np.uint64(count)):
        q = steps[_ALIVE, first + np.int64(s)]
        buffers[b + s] = rays[_DX, q]
        buffers[b + LANES + s] = rays[_DY, q]
        buffers[b + np.uint64(2) * LANES + s] = rays[_DZ, q]
    for s in range(LANES):
        x, y, z = buffers[b + s], buffers[b + LANES + s], buffers[b + np.uint64(2) * LANES + s]
        xx, yy, zz = x * x, y * y, z * z
        buffers[b + s] = np.float32(0.28209479177387814)
        buffers[b + LANES + s] = np.float32(-0.48860251190291987) * y
        buffers[b + np.uint64(2) * LANES + s] = np.float32(0.48860251190291987) * z
        buffers[b + np.uint64(3) * LANES + s] = np.float32(-0.48860251190291987) * x
        buffers[b + np.uint64(4) * LANES + s] = np.float32(1.0925484305920792) * (x * y)
        buffers[b + np.uint64(5) * LANES + s] = np.float32(-1.0925484305920792) * (y * z)
        buffers[b + np.uint64(6) * LANES + s] = np.float32(0.94617469575755997) * zz - np.float32(
            0.31539156525251999
        )
        buffers[b + np.uint64(7) * LANES + s] = np.float32(-1.0925484305920792) * (x * z)
        buffers[b + np.uint64(8) * LANES + s] = np.float32(0.54627421529603959) * (xx - yy)
        buffers[b + np.uint64(9) * LANES + s] = np.float32(0.59004358992664352) * y * (yy - three * xx)
        buffers[b + np.uint64(10) * LANES + s] = np.float32(2.8906114426405538) * (x * y) * z
        buffers[b + np.uint64(11) * LANES + s] = np.float32(0.45704579946446572) * y * (one - five * zz)
        buffers[b + np.uint64(12) * LANES + s] = np.float32(0.3731763325901154) * z * (five * zz - three)
        buffers[b + np.uint64(13) * LANES + s] = np.float32(0.45704579946446572) * x * (one - five * zz)
        buffers[b + np.uint64(14) * LANES + s] = np.float32(1.4453057213202769) * z * (xx - yy)
        buffers[b + np.uint64(15) * LANES + s] = np.float32(0.59004358992664352) * x * (three * yy - xx)


@njit(fastmath=FAST_MATHS, error_model="numpy")
def _draw_head(head: HeadArrays, frame: FrameArrays, scratch: Scratch) -> int:
    """Marches the rays in waves of one sample a live ray; returns the number of samples."""
    rays, steps, points, buffers = scratch.rays, scratch.steps, scratch.points, scratch.buffers
    pose = frame.pose
    half, one = np.float32(0.5), np.float32(1.0)
    unit = half / head.bound
    step, where = head.step, scratch.where
    levels = head.position_grid.scale.size * head.position_grid.features
    features = levels + head.ambient_grid.scale.size * head.ambient_grid.features
    # Buffer rows: the features, then two that layers alternate between; SH stands behind the hidden layer.
    rows = (buffers.size // CHUNK - features) // 2
    even, odd = features, features + rows
    alive = 0
    for q in range(RAYS):
        if steps[_K, q] < steps[_K_END, q]:
            steps[_ALIVE, alive] = q
            alive += 1
    taken = 0
    while alive > 0:
        living = 0
        for a in range(alive):
            q = steps[_ALIVE, a]
            k = _next_occupied(head, pose, rays, q, steps[_K, q], steps[_K_END, q])
            if k >= 0:
                steps[_K, q] = k
                steps[_ALIVE, living] = q
                t = rays[_NEAR, q] + np.float32(k) * step
                for axis in range(3):
                    p = pose[axis, 3] + t * rays[_DX + axis, q]
                    p = min(max(p, -head.bound), head.bound)
                    points[axis * (RAYS + CHUNK) + living] = (p + head.bound) * unit
                living += 1
        alive, living = living, 0
        for a in range(alive, (alive + CHUNK - 1) // CHUNK * CHUNK):  # padding of the last chunk
            points[a] = points[RAYS + CHUNK + a] = points[2 * (RAYS + CHUNK) + a] = half
        for first in range(0, alive, CHUNK):
            count = min(CHUNK, alive - first)
            groups = (count + GROUP - 1) // GROUP
            xs, ys = points[first:], points[RAYS + CHUNK + first :]
            zs = points[2 * (RAYS + CHUNK) + first :]
            _encode(head.position_grid, 3, xs, ys, zs, scratch, 0, groups)
            relus = head.ambient_net.inputs.size - 1
            to = _run_net(head.ambient_net, frame.ambient_biases, buffers, 0, even, odd, relus, groups)
            first_coordinate = np.uint64(to * CHUNK)
            for s in range(np.uint64(2) * LANES):
                where[s] = _tanh(buffers[first_coordinate + s]) * half + half
            _encode(head.ambient_grid, 2, where, where[CHUNK:], where, scratch, levels, groups)
            relus = head.sigma_net.inputs.size
            at = _run_net(head.sigma_net, head.sigma_net.biases, buffers, 0, even, odd, relus, groups)
            other = even if at == odd else odd
            to = _run_net(head.density_net, head.density_net.biases, buffers, at, other, other, 0, groups)
            density = np.uint64(to * CHUNK)
            opacity = scratch.weights
            for s in range(LANES):
                opacity[s] = one - _exp(-step * _exp(buffers[density + s]))
            _harmonics(rays, steps, first, count, buffers, at + head.hidden_rows)
            relus = head.color_net.inputs.size - 1
            to = _run_net(head.color_net, head.color_net.biases, buffers, at, other, at, relus, groups)
            red = np.uint64(to * CHUNK)
            green, blue = red + LANES, red + np.uint64(2) * LANES
            for s in range(np.uint64(3) * LANES):
                buffers[red + s] = _sigmoid(buffers[red + s])
            taken += count
            for s in range(np.uint64(count)):
                q = steps[_ALIVE, first + np.int64(s)]
                through = rays[_T, q]
                weight = opacity[s] * through
                through -= weight
                rays[_R, q] += weight * buffers[red + s]
                rays[_G, q] += weight * buffers[green + s]
                rays[_B, q] += weight * buffers[blue + s]
                rays[_T, q] = through
                steps[_K, q] += 1
                steps[_COUNT, q] += 1
                if through >= head.stop_transmittance and steps[_COUNT, q] < head.max_steps:
                    steps[_ALIVE, living] = q
                    living += 1
        alive = living
    return taken


# ------------------------------------------------------------------------------------------- torso
@njit(fastmath=FAST_MATHS, error_model="numpy", forceinline=True)
def _occupied_here(occupancy: F32, row: Any, column: Any) -> Any:
    """Returns whether the bilinear sample at (row, column), outermost cells at +-1, is above zero."""
    side = occupancy.shape[0]
    half, one = np.float32(0.5), np.float32(1.0)
    y = (row + one) * half * np.float32(side - 1)
    x = (column + one) * half * np.float32(side - 1)
    y0, x0 = np.floor(y), np.floor(x)
    fy, fx = y - y0, x - x0
    total = np.float32(0.0)
    for a in range(2):
        i = np.int32(y0) + a
        for b in range(2):
            j = np.int32(x0) + b
            if 0 <= i < side and 0 <= j < side:
                total += occupancy[i, j] * (fy if a else one - fy) * (fx if b else one - fx)
    return total > np.float32(0.0)


@njit(fastmath=FAST_MATHS, error_model="numpy")
def _draw_torso(torso: TorsoArrays, frame: FrameArrays, scratch: Scratch) -> None:
    """Composites the torso behind the rays' head, where occupied and not hidden."""
    rays, steps, points, buffers = scratch.rays, scratch.steps, scratch.points, scratch.buffers
    half, one, two = np.float32(0.5), np.float32(1.0), np.float32(2.0)
    seen = 0
    for q in range(RAYS):
        if steps[_COLUMN, q] < 0 or rays[_T, q] <= np.float32(1.0 / 255.0):
            continue
        x, y = np.float32(frame.x0 + steps[_COLUMN, q]), np.float32(frame.y0 + steps[_ROW, q])
        column = ((x + half) * frame.pixel_px - half) / (frame.image_size_px - one) * two - one
        row = ((y + half) * frame.pixel_px - half) / (frame.image_size_px - one) * two - one
        if _occupied_here(torso.occupancy, row, column):
            steps[_ALIVE, seen] = q
            points[seen] = row * torso.shrink
            points[RAYS + CHUNK + seen] = column * torso.shrink
            seen += 1
    features = torso.grid.scale.size * torso.grid.features
    frequencies = 2 * (1 + 2 * torso.octaves)
    rows = (buffers.size // CHUNK - features - frequencies) // 2
    even = features + frequencies
    odd = even + rows
    wave = np.uint64(features * CHUNK)
    where = scratch.where
    for first in range(0, seen, CHUNK):
        count = min(CHUNK, seen - first)
        groups = (count + GROUP - 1) // GROUP
        for s in range(LANES):
            buffers[wave + s] = points[np.uint64(first) + s]
            buffers[wave + LANES + s] = points[np.uint64(RAYS + CHUNK + first) + s]
        for octave in range(torso.octaves):
            factor = np.float32(1 << octave)
            sines = wave + np.uint64(2 + 4 * octave) * LANES
            cosines = sines + np.uint64(2) * LANES
            for s in range(np.uint64(2) * LANES):  # both axes
                sine, cosine = _sin_cos(buffers[wave + s] * factor)
                buffers[sines + s] = sine
                buffers[cosines + s] = cosine
        relus = torso.deform_net.inputs.size - 1
        to = _run_net(torso.deform_net, frame.deform_biases, buffers, features, even, odd, relus, groups)
        moved = np.uint64(to * CHUNK)
        for s in range(np.uint64(2) * LANES):
            where[s] = min(max(buffers[wave + s] + buffers[moved + s], -one), one) * half + half
        _encode(torso.grid, 2, where, where[CHUNK:], where, scratch, 0, groups)
        relus = torso.canonical_net.inputs.size - 1
        to = _run_net(torso.canonical_net, frame.canonical_biases, buffers, 0, even, odd, relus, groups)
        alpha = np.uint64(to * CHUNK)
        red, green, blue = alpha + LANES, alpha + np.uint64(2) * LANES, alpha + np.uint64(3) * LANES
        for s in range(np.uint64(4) * LANES):
            buffers[alpha + s] = _sigmoid(buffers[alpha + s])
        for s in range(np.uint64(count)):
            q = steps[_ALIVE, first + np.int64(s)]
            weight = buffers[alpha + s] * rays[_T, q]
            rays[_R, q] += weight * buffers[red + s]
            rays[_G, q] += weight * buffers[green + s]
            rays[_B, q] += weight * buffers[blue + s]
            rays[_T, q] -= weight


# ------------------------------------------------------------------------------------------- the whole
@njit(fastmath=FAST_MATHS, error_model="numpy", forceinline=True)
def _to_byte(value: Any) -> Any:
    return np.uint8(min(max(value * np.float32(255.0) + np.float32(0.5), np.float32(0.0)), np.float32(255.0)))


def draw_blocks(
    head: HeadArrays,
    torso: TorsoArrays,
    frame: FrameArrays,
    scratch: Scratch,
    counter: I64,
    blocks: I32,
    edge: int,
    image: U8,
) -> int:
    """Draws blocks of `image` (height, width, 3) until the shared counter ends; returns the head samples.

    Several threads may run it at once, each with its own scratch; they share only the counter.

    Args:
        head: constants. torso: constants. frame: inputs. scratch: of the thread. counter: of who came before.
        blocks: (N, 2) row and column of each block, in blocks; what lies beyond the image is left out.
        edge: side of a block in pixels; its square divides RAYS.
        image: where the pixels go.
    """
    together = RAYS // (edge * edge)
    rays, steps = scratch.rays, scratch.steps
    taken = 0
    while True:
        first: int = _take_next(counter) * together
        if first >= blocks.shape[0]:
            return taken
        _place(blocks, edge, first, image.shape[1], image.shape[0], steps)
        _setup(head, frame, scratch)
        taken += _draw_head(head, frame, scratch)
        if torso.present:
            _draw_torso(torso, frame, scratch)
        for q in range(RAYS):
            x, y = steps[_COLUMN, q], steps[_ROW, q]
            if x >= 0:
                through = rays[_T, q]
                for channel in range(3):
                    behind = frame.background[frame.y0 + y, frame.x0 + x, channel]
                    image[y, x, channel] = _to_byte(rays[_R + channel, q] + through * behind)
