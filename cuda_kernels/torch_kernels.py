"""Training kernels as torch operators: grid encoding, ray marching, compositing, with gradients.

Each function is the twin of that in torch_reference.py. The kernels are in training.cu; they run on torch's
current stream and context. Each is a custom operator, opaque to `torch.compile`.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from . import torch_encodings
from .scene import GridLayout
from .torch_encodings import HASH_PRIMES
from .torch_launcher import launcher_of
from .torch_reference import Marched, Packed, Rays, Samples, step_length

MAX_LEVELS, LEVELS_AT_ONCE = 16, 4  # as training.cu has them
FEATURES, DIMENSIONS = 2, (2, 3)
VALUES = 5  # of a sample: density, red, green, blue, ambient
_HASHED = 8
_MAX_ITEMS = (1 << 31) - 1


# ---------------------------------------------------------------------------------------------- records
class GridLevel(ctypes.Structure):
    """One level of a grid; training.cu's record."""

    _fields_ = (
        ("scale", ctypes.c_float),
        ("stride", ctypes.c_uint32 * 3),
        ("first", ctypes.c_uint32),
        ("rows", ctypes.c_uint32),
        ("mask", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
    )


class GridArguments(ctypes.Structure):
    """Arguments of the grid encoding kernels."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "table", "gradient", "result")),
        *((name, ctypes.c_uint32) for name in ("count", "levels", "smoothstep")),
        ("bound", ctypes.c_float),
        ("level", GridLevel * MAX_LEVELS),
    )


class MarchArguments(ctypes.Structure):
    """Arguments of the ray marching kernel."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("rays_o", "rays_d", "near", "far", "phase", "occupancy")),
        *((name, ctypes.c_void_p) for name in ("t", "mask", "counts")),
        *((name, ctypes.c_uint32) for name in ("rays", "size", "points", "max_steps")),
        *((name, ctypes.c_float) for name in ("step", "bound")),
    )


class PackArguments(ctypes.Structure):
    """Arguments of the kernel that packs samples."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("rays_o", "rays_d", "t", "ends", "slots", "valid", "ray")),
        *((name, ctypes.c_void_p) for name in ("positions", "fits", "n_samples_needed")),
        *((name, ctypes.c_uint32) for name in ("rays", "max_steps", "capacity")),
        ("bound", ctypes.c_float),
    )


class CompositeArguments(ctypes.Structure):
    """Arguments of the compositing kernel."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("values", "t", "ends", "image", "weights_sum", "depth")),
        *((name, ctypes.c_void_p) for name in ("ambient", "centre", "spread", "weights", "live")),
        *((name, ctypes.c_uint32) for name in ("rays", "max_steps", "capacity")),
        *((name, ctypes.c_float) for name in ("step", "stop_transmittance")),
    )


class CompositeGradientArguments(ctypes.Structure):
    """Arguments of the compositing gradient's kernel."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("values", "t", "ends", "centre", "weights", "live", "image")),
        *((name, ctypes.c_void_p) for name in ("weights_sum", "depth", "ambient", "spread", "result")),
        *((name, ctypes.c_uint32) for name in ("rays", "max_steps", "capacity")),
        ("step", ctypes.c_float),
    )


@functools.lru_cache(maxsize=64)
def _grid_levels(layout: GridLayout) -> ctypes.Array[GridLevel]:
    """Returns the layout's levels as training.cu's records."""
    levels = (GridLevel * MAX_LEVELS)()
    for level in range(layout.levels):
        record, axes, hashed = levels[level], layout.axes[level], layout.hashes[level]
        record.scale, record.first, record.rows = (
            layout.scales[level],
            layout.offsets[level],
            layout.rows[level],
        )
        record.stride[:axes] = (HASH_PRIMES if hashed else layout.strides[level])[:axes]
        record.mask = layout.masks[level] & 0xFFFFFFFF
        record.kind = axes + (_HASHED if hashed else 0)
    return levels


def _address(tensor: Tensor) -> int | None:
    return tensor.data_ptr() or None


def _refuse(what: str, expected: str, got: object) -> None:
    raise ValueError(f"{what}: expected {expected}, got {got}")


def _check(what: str, tensor: Tensor, shape: tuple[int | None, ...], device: torch.device) -> None:
    """Raises ValueError for a tensor of another shape (None: any size) or device."""
    expected = tuple("any" if side is None else side for side in shape)
    if tensor.dim() != len(shape) or any(
        side is not None and side != has for side, has in zip(shape, tensor.shape, strict=True)
    ):
        _refuse(what, f"shape {expected}", tuple(tensor.shape))
    if tensor.device != device:
        _refuse(what, f"a tensor on {device}", tensor.device)
    if tensor.numel() > _MAX_ITEMS:
        _refuse(what, f"at most {_MAX_ITEMS} numbers", tensor.numel())


def _float(what: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        _refuse(what, "floats", tensor.dtype)
    return tensor.float()


# ---------------------------------------------------------------------------------------------- encoding
def grid_encode(x: Tensor, table: Tensor, layout: GridLayout, *, bound: float = 1.0) -> Tensor:
    """Returns (N, levels * features) float32 interpolated features, level-major; zeros outside the box.

    Differentiable, once, in `x` and `table`. Float32 under autocast too. A grid that the kernels do not
    support (more than 16 levels, other than 2 features or 2 or 3 dimensions) is encoded by the torch twin.

    Args:
        x: (N, D) positions in [-bound, bound].
        table: (rows, features).
        layout: how the table is addressed.
        bound: half the side of the box.

    Raises:
        ValueError: a tensor of another shape, dtype or device.
        CudaUnavailableError: the tensors are on no GPU that the kernels run on.
    """
    _check("x", x, (None, layout.dimensions), x.device)
    _check("table", table, (layout.offsets[-1], None), x.device)
    x, table = _float("x", x), _float("table", table)
    known = table.shape[1] == FEATURES and layout.dimensions in DIMENSIONS and layout.levels <= MAX_LEVELS
    if not known:
        return torch_encodings.grid_encode(x, table, layout, bound=bound)
    encoded: Tensor = _encode(
        x,
        table,
        list(layout.offsets),
        layout.base_resolution,
        layout.log2_growth,
        layout.hashed,
        layout.smoothstep,
        bound,
    )
    return encoded


def _launch_grid(
    name: str,
    x: Tensor,
    table: Tensor | None,
    gradient: Tensor | None,
    result: Tensor,
    layout: GridLayout,
    bound: float,
    groups: int,
) -> None:
    arguments = GridArguments(
        x=_address(x),
        table=None if table is None else _address(table),
        gradient=None if gradient is None else _address(gradient),
        result=_address(result),
        count=x.shape[0],
        levels=layout.levels,
        smoothstep=layout.smoothstep,
        bound=bound,
        level=_grid_levels(layout),
    )
    launcher_of(x.device).launch(f"{name}_{layout.dimensions}d", arguments, x.shape[0], groups)


@functools.lru_cache(maxsize=64)
def _layout(
    dimensions: int,
    offsets: tuple[int, ...],
    base_resolution: int,
    log2_growth: float,
    hashed: bool,
    smoothstep: bool,
) -> GridLayout:
    return GridLayout(
        dimensions=dimensions,
        offsets=offsets,
        base_resolution=base_resolution,
        log2_growth=log2_growth,
        hashed=hashed,
        smoothstep=smoothstep,
    )


@torch.library.custom_op("geneface::grid_encode", mutates_args=())
def _encode(
    x: Tensor,
    table: Tensor,
    offsets: Sequence[int],
    base_resolution: int,
    log2_growth: float,
    hashed: bool,
    smoothstep: bool,
    bound: float,
) -> Tensor:
    layout = _layout(x.shape[1], tuple(offsets), base_resolution, log2_growth, hashed, smoothstep)
    result = table.new_empty(x.shape[0], layout.levels * FEATURES)
    groups = -(-layout.levels // LEVELS_AT_ONCE)
    x, table = x.contiguous(), table.contiguous()
    _launch_grid("encode", x, table, None, result, layout, bound, groups)
    return result


@_encode.register_fake
def _(x: Tensor, table: Tensor, offsets: Sequence[int], *_: object) -> Tensor:
    return table.new_empty(x.shape[0], (len(offsets) - 1) * FEATURES)


@torch.library.custom_op("geneface::grid_encode_table_gradient", mutates_args=())
def _table_gradient(
    gradient: Tensor,
    x: Tensor,
    offsets: Sequence[int],
    base_resolution: int,
    log2_growth: float,
    hashed: bool,
    smoothstep: bool,
    bound: float,
) -> Tensor:
    layout = _layout(x.shape[1], tuple(offsets), base_resolution, log2_growth, hashed, smoothstep)
    result = gradient.new_zeros(offsets[-1], FEATURES)
    groups = -(-layout.levels // LEVELS_AT_ONCE)
    x, gradient = x.contiguous(), gradient.contiguous()
    _launch_grid("encode_table_gradient", x, None, gradient, result, layout, bound, groups)
    return result


@_table_gradient.register_fake
def _(gradient: Tensor, x: Tensor, offsets: Sequence[int], *_: object) -> Tensor:
    return gradient.new_empty(offsets[-1], FEATURES)


@torch.library.custom_op("geneface::grid_encode_point_gradient", mutates_args=())
def _point_gradient(
    gradient: Tensor,
    x: Tensor,
    table: Tensor,
    offsets: Sequence[int],
    base_resolution: int,
    log2_growth: float,
    hashed: bool,
    smoothstep: bool,
    bound: float,
) -> Tensor:
    layout = _layout(x.shape[1], tuple(offsets), base_resolution, log2_growth, hashed, smoothstep)
    x, table, gradient = x.contiguous(), table.contiguous(), gradient.contiguous()
    result = torch.empty_like(x)
    _launch_grid("encode_point_gradient", x, table, gradient, result, layout, bound, 1)
    return result


@_point_gradient.register_fake
def _(gradient: Tensor, x: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape)


def _encode_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401 -- torch's own
    x, table, *ctx.layout = inputs
    ctx.save_for_backward(x, table)


def _encode_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 -- torch's own
    x, table = ctx.saved_tensors
    of_x = _point_gradient(gradient, x, table, *ctx.layout) if ctx.needs_input_grad[0] else None
    of_table = _table_gradient(gradient, x, *ctx.layout) if ctx.needs_input_grad[1] else None
    return (of_x, of_table, *(None for _ in ctx.layout))


_encode.register_autograd(_encode_backward, setup_context=_encode_setup)


# ---------------------------------------------------------------------------------------------- marching
@torch.no_grad()
def march(
    rays_o: Tensor,
    rays_d: Tensor,
    near: Tensor,
    far: Tensor,
    occupancy: Tensor,
    *,
    points: int,
    max_steps: int,
    bound: float,
    capacity: int | None,
    phase: Tensor | None = None,
) -> Marched:
    """Returns packed samples of rays and their positions, as `torch_reference.march_packed` does.

    With a `capacity` the host does not synchronise. No gradient.

    Args:
        rays_o: (N, 3).
        rays_d: (N, 3), unit length.
        near: (N,).
        far: (N,).
        occupancy: (size, size, size) bool over [-bound, bound]^3.
        points: how many lattice points to test.
        max_steps: samples a ray, S.
        bound: half the side of the cube.
        capacity: length of the row, M; as many as there are if None.
        phase: (N,) in [0, 1), where the lattices start; 0 if None.

    Raises:
        ValueError: a tensor of another shape, dtype or device.
        CudaUnavailableError: the tensors are on no GPU that the kernels run on.
    """
    device, rays = rays_o.device, rays_o.shape[0]
    _check("rays_o", rays_o, (None, 3), device)
    _check("rays_d", rays_d, (rays, 3), device)
    _check("near", near, (rays,), device)
    _check("far", far, (rays,), device)
    _check("occupancy", occupancy, (occupancy.shape[0],) * 3, device)
    if occupancy.dtype is not torch.bool:
        _refuse("occupancy", "bool", occupancy.dtype)
    if phase is not None:
        _check("phase", phase, (rays,), device)
        phase = _float("phase", phase)
    if max_steps < 1 or rays * max_steps > _MAX_ITEMS:
        _refuse("max_steps", f"at least 1 and at most {_MAX_ITEMS} samples in all", max_steps)
    rays_o, rays_d = _float("rays_o", rays_o), _float("rays_d", rays_d)
    near, far = _float("near", near), _float("far", far)
    t, mask, counts = _march_rays(rays_o, rays_d, near, far, occupancy, phase, points, max_steps, bound)
    ends = counts.cumsum(0, dtype=torch.int32)
    if capacity is None:
        capacity = int(ends[-1]) if rays else 0
    slots, valid, ray, positions, fits, n_samples_needed = _pack_samples(
        rays_o, rays_d, t, ends, max_steps, capacity, bound
    )
    return Marched(Samples(t, mask), Packed(slots, valid), ray, positions, fits, n_samples_needed, ends)


@torch.library.custom_op("geneface::march_rays", mutates_args=())
def _march_rays(
    rays_o: Tensor,
    rays_d: Tensor,
    near: Tensor,
    far: Tensor,
    occupancy: Tensor,
    phase: Tensor | None,
    points: int,
    max_steps: int,
    bound: float,
) -> tuple[Tensor, Tensor, Tensor]:
    rays, size = rays_o.shape[0], occupancy.shape[0]
    t = rays_o.new_empty(rays, max_steps)
    mask = torch.empty(rays, max_steps, dtype=torch.bool, device=t.device)
    counts = torch.empty(rays, dtype=torch.int32, device=t.device)
    rays_o, rays_d, near, far = (a.contiguous() for a in (rays_o, rays_d, near, far))
    occupancy = occupancy.contiguous()
    phase = None if phase is None else phase.contiguous()
    arguments = MarchArguments(
        rays_o=_address(rays_o),
        rays_d=_address(rays_d),
        near=_address(near),
        far=_address(far),
        phase=None if phase is None else _address(phase),
        occupancy=_address(occupancy),
        t=_address(t),
        mask=_address(mask),
        counts=_address(counts),
        rays=rays,
        size=size,
        points=points,
        max_steps=max_steps,
        step=step_length(size),
        bound=bound,
    )
    launcher_of(t.device).launch("march_rays", arguments, rays)
    return t, mask, counts


@_march_rays.register_fake
def _(
    rays_o: Tensor,
    rays_d: Tensor,
    near: Tensor,
    far: Tensor,
    occupancy: Tensor,
    phase: Tensor | None,
    points: int,
    max_steps: int,
    bound: float,
) -> tuple[Tensor, Tensor, Tensor]:
    rays = rays_o.shape[0]
    return (
        rays_o.new_empty(rays, max_steps),
        rays_o.new_empty(rays, max_steps, dtype=torch.bool),
        rays_o.new_empty(rays, dtype=torch.int32),
    )


@torch.library.custom_op("geneface::pack_samples", mutates_args=())
def _pack_samples(
    rays_o: Tensor, rays_d: Tensor, t: Tensor, ends: Tensor, max_steps: int, capacity: int, bound: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    rays, device = rays_o.shape[0], t.device
    # Zeros are the result where there are no rays: the kernel does not run.
    make = torch.empty if rays else torch.zeros
    slots, ray = (make(capacity, dtype=torch.int64, device=device) for _ in range(2))
    valid = make(capacity, dtype=torch.bool, device=device)
    positions = make(capacity, 3, dtype=torch.float32, device=device)
    fits = make(rays, dtype=torch.bool, device=device)
    n_samples_needed = make((), dtype=torch.int64, device=device)
    rays_o, rays_d = rays_o.contiguous(), rays_d.contiguous()
    t, ends = t.contiguous(), ends.contiguous()
    arguments = PackArguments(
        rays_o=_address(rays_o),
        rays_d=_address(rays_d),
        t=_address(t),
        ends=_address(ends),
        slots=_address(slots),
        valid=_address(valid),
        ray=_address(ray),
        positions=_address(positions),
        fits=_address(fits),
        n_samples_needed=_address(n_samples_needed),
        rays=rays,
        max_steps=max_steps,
        capacity=capacity,
        bound=bound,
    )
    if rays:
        launcher_of(device).launch("pack_samples", arguments, max(rays * max_steps, capacity))
    return slots, valid, ray, positions, fits, n_samples_needed


@_pack_samples.register_fake
def _(
    rays_o: Tensor, rays_d: Tensor, t: Tensor, ends: Tensor, max_steps: int, capacity: int, bound: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        t.new_empty(capacity, dtype=torch.int64),
        t.new_empty(capacity, dtype=torch.bool),
        t.new_empty(capacity, dtype=torch.int64),
        t.new_empty(capacity, 3),
        t.new_empty(rays_o.shape[0], dtype=torch.bool),
        t.new_empty((), dtype=torch.int64),
    )


# ---------------------------------------------------------------------------------------------- compositing
def composite_packed(
    values: Tensor, marched: Marched, *, step: float, stop_transmittance: float = 1e-4
) -> Rays:
    """Returns packed samples composited front to back, as `torch_reference.composite_packed` does.

    Differentiable, once, in `values` through image, weights_sum, depth, ambient and spread.

    Args:
        values: (M, 5) density, red, green, blue, and a number that is summed for itself.
        marched: where the samples were taken; what had no room is empty space.
        step: the length each sample stands for.
        stop_transmittance: nothing is added once less than this passes.

    Raises:
        ValueError: a tensor of another shape, dtype or device.
        CudaUnavailableError: the tensors are on no GPU that the kernels run on.
    """
    _check("values", values, (marched.packed.slots.shape[0], VALUES), marched.ends.device)
    image, weights_sum, depth, ambient, spread, centre, weights, live = _composite(
        _float("values", values), marched.samples.t, marched.ends, step, stop_transmittance
    )
    return Rays(image, weights_sum, depth, ambient, centre.detach(), spread, weights.detach(), live)


@torch.library.custom_op("geneface::composite", mutates_args=())
def _composite(
    values: Tensor, t: Tensor, ends: Tensor, step: float, stop_transmittance: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    rays, max_steps = t.shape
    values, t, ends = values.contiguous(), t.contiguous(), ends.contiguous()
    image = values.new_empty(rays, 3)
    weights_sum, depth, ambient, spread, centre = (values.new_empty(rays) for _ in range(5))
    weights = values.new_zeros(values.shape[0])
    live = torch.empty(rays, dtype=torch.int32, device=t.device)
    arguments = CompositeArguments(
        values=_address(values),
        t=_address(t),
        ends=_address(ends),
        image=_address(image),
        weights_sum=_address(weights_sum),
        depth=_address(depth),
        ambient=_address(ambient),
        centre=_address(centre),
        spread=_address(spread),
        weights=_address(weights),
        live=_address(live),
        rays=rays,
        max_steps=max_steps,
        capacity=values.shape[0],
        step=step,
        stop_transmittance=stop_transmittance,
    )
    launcher_of(t.device).launch("composite_rays", arguments, rays)
    return image, weights_sum, depth, ambient, spread, centre, weights, live


@_composite.register_fake
def _(
    values: Tensor, t: Tensor, ends: Tensor, step: float, stop_transmittance: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    rays = t.shape[0]
    return (
        values.new_empty(rays, 3),
        values.new_empty(rays),
        values.new_empty(rays),
        values.new_empty(rays),
        values.new_empty(rays),
        values.new_empty(rays),
        values.new_empty(values.shape[0]),
        values.new_empty(rays, dtype=torch.int32),
    )


@torch.library.custom_op("geneface::composite_gradient", mutates_args=())
def _composite_gradient(
    of_image: Tensor,
    of_weights_sum: Tensor,
    of_depth: Tensor,
    of_ambient: Tensor,
    of_spread: Tensor,
    values: Tensor,
    t: Tensor,
    ends: Tensor,
    centre: Tensor,
    weights: Tensor,
    live: Tensor,
    step: float,
) -> Tensor:
    rays, max_steps = t.shape
    given = [a.contiguous() for a in (of_image, of_weights_sum, of_depth, of_ambient, of_spread)]
    values, t, ends = values.contiguous(), t.contiguous(), ends.contiguous()
    result = torch.zeros_like(values)
    arguments = CompositeGradientArguments(
        values=_address(values),
        t=_address(t),
        ends=_address(ends),
        centre=_address(centre),
        weights=_address(weights),
        live=_address(live),
        image=_address(given[0]),
        weights_sum=_address(given[1]),
        depth=_address(given[2]),
        ambient=_address(given[3]),
        spread=_address(given[4]),
        result=_address(result),
        rays=rays,
        max_steps=max_steps,
        capacity=values.shape[0],
        step=step,
    )
    launcher_of(t.device).launch("composite_gradient", arguments, rays)
    return result


@_composite_gradient.register_fake
def _(*tensors: Tensor, **_: object) -> Tensor:
    values = tensors[5]
    return values.new_empty(values.shape)


def _composite_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:  # noqa: ANN401
    values, t, ends, ctx.step, _ = inputs
    centre, weights, live = output[5:]
    ctx.save_for_backward(values, t, ends, centre, weights, live)


def _composite_backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
    values, t, ends, centre, weights, live = ctx.saved_tensors
    result = _composite_gradient(*gradients[:5], values, t, ends, centre, weights, live, ctx.step)
    return cast(Tensor, result), None, None, None, None


_composite.register_autograd(_composite_backward, setup_context=_composite_setup)
