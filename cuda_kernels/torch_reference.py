"""The raymarcher in plain torch: differentiable in training, the twin that every kernel is compared with.

It marches and composites as RAD-NeRF (Tang et al. 2022) does, so that its trained weights mean the same here.
Nothing in this file loops over rays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own convention
from torch import Tensor

from .arrays import F32, U8
from .masks import BlockMask
from .scene import Camera, HeadField, Scene, TorsoField
from .torch_encodings import frequency_encode, grid_encode, spherical_harmonics

_MISS = float(np.finfo(np.float32).max)


# --- cameras and rays --------------------------------------------------------------------------------


def field_pose(c2w: Tensor, camera: Camera) -> Tensor:
    """Returns field poses (..., 4, 4) of camera-to-head poses (..., 4, 4): the instant-ngp convention."""
    rotation = c2w[..., [1, 2, 0], :3] * c2w.new_tensor((1.0, -1.0, -1.0))
    translation = c2w[..., [1, 2, 0], 3] * camera.scale + c2w.new_tensor(camera.offset)
    top = torch.cat((rotation, translation.unsqueeze(-1)), -1)
    bottom = c2w.new_tensor((0.0, 0.0, 0.0, 1.0)).expand(*c2w.shape[:-2], 1, 4)
    return torch.cat((top, bottom), -2)


def pose_vector(pose: Tensor) -> Tensor:
    """Returns (..., 6): XYZ Euler angles (R = Rx Ry Rz), then translation, of (..., 4, 4) field poses."""
    rotation = pose[..., :3, :3]
    angles = torch.stack(
        (
            torch.atan2(-rotation[..., 1, 2], rotation[..., 2, 2]),
            torch.asin(rotation[..., 0, 2].clamp(-1, 1)),
            torch.atan2(-rotation[..., 0, 1], rotation[..., 0, 0]),
        ),
        -1,
    )
    return torch.cat((angles, pose[..., :3, 3]), -1)


def pixel_centres(
    size_px: int, image_size_px: int, *, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Returns columns and rows, each (size * size,): pixel centres, row-major, in pixels of the full image.

    Pixel 0 of the full image has its centre at 0.5, at every drawn size.
    """
    along = (torch.arange(size_px, device=device, dtype=torch.float32) + 0.5) * (image_size_px / size_px)
    rows, columns = torch.meshgrid(along, along, indexing="ij")
    return columns.reshape(-1), rows.reshape(-1)


def rays_through(columns: Tensor, rows: Tensor, pose: Tensor, camera: Camera) -> tuple[Tensor, Tensor]:
    """Returns (rays_o, rays_d), each (..., N, 3), through points of the full-size image.

    Args:
        columns: (..., N) in pixels; the centre of pixel 0 is 0.5.
        rows: (..., N) in pixels.
        pose: (4, 4) field pose, or (..., N or 1, 4, 4).
        camera: intrinsics in the same pixels.
    """
    directions = torch.stack(
        (
            (columns - camera.cx_px) / camera.focal_px,
            (rows - camera.cy_px) / camera.focal_px,
            torch.ones_like(rows),
        ),
        -1,
    )
    directions = directions / directions.norm(dim=-1, keepdim=True)
    # Not a matrix product: TF32 would bend the rays by half a pixel.
    rays_d = (pose[..., :3, :3] * directions.unsqueeze(-2)).sum(-1)
    return pose[..., :3, 3].expand_as(rays_d), rays_d


def camera_rays(pose: Tensor, camera: Camera, size_px: int, image_size_px: int) -> tuple[Tensor, Tensor]:
    """Returns (rays_o, rays_d), each (size * size, 3), row-major, of a (4, 4) field pose."""
    columns, rows = pixel_centres(size_px, image_size_px, device=pose.device)
    return rays_through(columns, rows, pose, camera)


def image_coordinates(columns: Tensor, rows: Tensor, image_size_px: int) -> Tensor:
    """Returns (N, 2) torso coordinates, row first; the outermost pixels' centres are at -1 and 1."""
    return (torch.stack((rows, columns), -1) - 0.5) / (image_size_px - 1) * 2 - 1


def near_far(
    rays_o: Tensor, rays_d: Tensor, aabb: Tensor, *, min_near: float = 0.05
) -> tuple[Tensor, Tensor]:
    """Returns (near, far), each (N,), of rays and a box; both float32's largest value on a miss."""
    safe = torch.where(rays_d.abs() < 1e-15, torch.full_like(rays_d, 1e-15), rays_d)
    first = (aabb[:3] - rays_o) / safe
    second = (aabb[3:] - rays_o) / safe
    near = torch.minimum(first, second).amax(-1)
    far = torch.maximum(first, second).amin(-1)
    miss = near > far
    near = torch.where(miss, _MISS, near.clamp(min=min_near))
    return near, torch.where(miss, _MISS, far)


# --- occupancy ---------------------------------------------------------------------------------------


def morton_index(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Returns the Morton index of cells whose coordinates are below 1024; x has the lowest bit."""

    def spread(v: Tensor) -> Tensor:
        v = (v | (v << 16)) & 0x030000FF
        v = (v | (v << 8)) & 0x0300F00F
        v = (v | (v << 4)) & 0x030C30C3
        return (v | (v << 2)) & 0x09249249

    return spread(x) | (spread(y) << 1) | (spread(z) << 2)


def morton_cells(index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (x, y, z) of Morton indices."""

    def gather(v: Tensor) -> Tensor:
        v = v & 0x09249249
        v = (v | (v >> 2)) & 0x030C30C3
        v = (v | (v >> 4)) & 0x0300F00F
        v = (v | (v >> 8)) & 0x030000FF
        return (v | (v >> 16)) & 0x000003FF

    return gather(index), gather(index >> 1), gather(index >> 2)


def morton_of_volume(size: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Returns (size**3,) int64: the Morton index of each cell of an [x, y, z] volume."""
    x, y, z = torch.meshgrid(*(torch.arange(size, device=device),) * 3, indexing="ij")
    return morton_index(x, y, z).reshape(-1)


def occupancy_volume(bitfield: Tensor, size: int) -> Tensor:
    """Returns occupancy (size, size, size), [x, y, z], of a Morton-ordered bitfield, low bit first."""
    bits = (bitfield[:, None] >> torch.arange(8, device=bitfield.device, dtype=torch.uint8)) & 1
    order = morton_of_volume(size, device=bitfield.device)
    return bits.reshape(-1)[order].reshape(size, size, size).bool()


# --- marching ----------------------------------------------------------------------------------------


class Samples(NamedTuple):
    """Samples of N rays, padded to S a ray."""

    t: Tensor  # (N, S) float32, where each sample is taken
    mask: Tensor  # (N, S) bool


def step_length(grid_size: int) -> float:
    """Returns the distance between lattice points: the cube's diagonal over the number of cells a side."""
    return 2 * math.sqrt(3) / grid_size


def lattice_points(aabb: F32 | tuple[float, ...], grid_size: int) -> int:
    """Returns how many lattice points the longest ray through the box can have."""
    lower, upper = np.asarray(aabb[:3], np.float64), np.asarray(aabb[3:], np.float64)
    return math.ceil(float(np.linalg.norm(upper - lower)) / step_length(grid_size)) + 1


def march(
    rays_o: Tensor,
    rays_d: Tensor,
    near: Tensor,
    far: Tensor,
    occupancy: Tensor,
    *,
    points: int,
    max_steps: int = 16,
    bound: float = 1.0,
    phase: Tensor | None = None,
    accumulate: bool = False,
) -> Samples:
    """Returns the first `max_steps` lattice points of each ray that lie in occupied cells.

    Lattice point k is at near + (k + phase) * step_length(size), below far.

    Args:
        rays_o: (N, 3).
        rays_d: (N, 3), unit length.
        near: (N,).
        far: (N,).
        occupancy: (size, size, size) bool over [-bound, bound]^3.
        points: how many lattice points to test, see `lattice_points`.
        max_steps: samples a ray, S.
        bound: half the side of the cube.
        phase: (N,) in [0, 1), a random start in training; 0 if None.
        accumulate: add the steps up one by one in float32, as the reference's kernel does, at the price of
            one pass per lattice point. Its points lie up to 1e-5 elsewhere, which a field with random
            weights turns into 1e-2 of a colour.
    """
    size = occupancy.shape[0]
    length = step_length(size)
    start = near if phase is None else near + phase * length
    if accumulate:
        points_t = [start]
        for _ in range(points - 1):
            points_t.append(points_t[-1] + length)
        t = torch.stack(points_t, 1)  # (N, K)
    else:
        t = start[:, None] + torch.arange(points, device=near.device, dtype=torch.float32) * length
    valid = t < far[:, None]
    t = torch.where(valid, t, 0.0)
    flat: Tensor | None = None
    for axis in range(3):
        p = (rays_o[:, axis, None] + t * rays_d[:, axis, None]).clamp(-bound, bound)
        cell = (0.5 * (p / bound + 1) * size).clamp(0, size - 1).to(torch.int32)
        flat = cell if flat is None else flat * size + cell
    assert flat is not None
    hit = occupancy.reshape(-1)[flat] & valid  # (N, K)
    rank = hit.cumsum(1, dtype=torch.int32)
    slot = torch.where(hit & (rank <= max_steps), rank - 1, max_steps)
    samples = t.new_zeros(t.shape[0], max_steps + 1).scatter(1, slot.long(), t)[:, :max_steps]
    mask = torch.arange(max_steps, device=t.device) < rank[:, -1:]
    return Samples(samples * mask, mask)


def sample_positions(rays_o: Tensor, rays_d: Tensor, t: Tensor, *, bound: float = 1.0) -> Tensor:
    """Returns (N, S, 3) points at distances (N, S), clamped to the cube."""
    return (rays_o[:, None] + t[..., None] * rays_d[:, None]).clamp(-bound, bound)


class Composite(NamedTuple):
    """Rays composited, before any background."""

    image: Tensor  # (N, 3), weighted colours
    weights_sum: Tensor  # (N,)
    depth: Tensor  # (N,) weighted distance to the far end of each sample's step
    weights: Tensor  # (N, S)
    live: Tensor  # (N, S) bool: samples before early ray termination


def composite(
    sigma: Tensor, color: Tensor, samples: Samples, *, step: float, stop_transmittance: float = 1e-4
) -> Composite:
    """Returns samples composited front to back with alpha = 1 - exp(-sigma * step).

    Args:
        sigma: (N, S) densities.
        color: (N, S, 3).
        samples: where they were taken.
        step: the length each sample stands for.
        stop_transmittance: nothing is added once less than this passes.
    """
    optical = torch.where(samples.mask, sigma, 0.0) * step
    # Shifted, not cumsum - optical: beside an optical depth of 1e8 the sum before it would be lost.
    before = torch.exp(-F.pad(optical.cumsum(1)[:, :-1], (1, 0)))  # transmittance before the sample, (N, S)
    live = samples.mask & (before >= stop_transmittance)
    weights = torch.where(live, (1 - torch.exp(-optical)) * before, 0.0)
    return Composite(
        image=(weights[..., None] * color).sum(1),
        weights_sum=weights.sum(1),
        depth=(weights * (samples.t + step)).sum(1),
        weights=weights,
        live=live,
    )


class Packed(NamedTuple):
    """Indices of the samples that exist, packed."""

    slots: Tensor  # (M,) int64 into the flattened (N, S)
    valid: Tensor  # (M,) bool; false for the unused end of a fixed-size row


def pack(mask: Tensor, capacity: int | None = None) -> Packed:
    """Returns the set entries of an (N, S) mask, packed.

    With a `capacity` the result has that fixed length and the host does not synchronise; what does not fit is
    dropped, last rays first.
    """
    flat = mask.reshape(-1)
    if capacity is None:
        index = flat.nonzero().squeeze(1)
        return Packed(index, torch.ones_like(index, dtype=torch.bool))
    rank = flat.cumsum(0, dtype=torch.int32)
    slot = torch.where(flat & (rank <= capacity), rank - 1, capacity).long()
    index = slot.new_zeros(capacity + 1).scatter(0, slot, torch.arange(flat.numel(), device=flat.device))
    valid = torch.arange(capacity, device=flat.device) < rank[-1]
    return Packed(torch.where(valid, index[:capacity], 0), valid)


def unpack(values: Tensor, packed: Packed, shape: tuple[int, int]) -> Tensor:
    """Returns packed (M, ...) values scattered to (N, S, ...), zeros elsewhere."""
    total = shape[0] * shape[1]
    target = torch.where(packed.valid, packed.slots, total)
    empty = values.new_zeros(total + 1, *values.shape[1:])
    return empty.index_copy(0, target, values)[:total].reshape(*shape, *values.shape[1:])


class Marched(NamedTuple):
    """The samples of N rays, padded, and the same packed in the order of the rays."""

    samples: Samples  # t (N, S), mask (N, S)
    packed: Packed  # slots (M,), valid (M,)
    ray: Tensor  # (M,) int64; 0 where not valid
    positions: Tensor  # (M, 3)
    fits: Tensor  # (N,) bool: all samples of the ray had room
    n_samples_needed: Tensor  # () int64: samples in all, also those without room
    ends: Tensor  # (N,) int32: samples of the rays up to and with this one, also those without room


def march_packed(
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
    accumulate: bool = False,
) -> Marched:
    """Returns packed samples of rays and their positions; arguments as those of `march` and `pack`."""
    samples = march(
        rays_o,
        rays_d,
        near,
        far,
        occupancy,
        points=points,
        max_steps=max_steps,
        bound=bound,
        phase=phase,
        accumulate=accumulate,
    )
    packed = pack(samples.mask, capacity)
    ends = samples.mask.sum(1, dtype=torch.int32).cumsum(0, dtype=torch.int32)
    ray = packed.slots // max_steps
    t = samples.t.reshape(-1)[packed.slots]
    return Marched(
        samples=samples,
        packed=packed,
        ray=ray,
        positions=(rays_o[ray] + t[:, None] * rays_d[ray]).clamp(-bound, bound),
        fits=torch.ones_like(ends, dtype=torch.bool) if capacity is None else ends <= capacity,
        n_samples_needed=samples.mask.sum(),
        ends=ends,
    )


class Rays(NamedTuple):
    """N rays composited from M packed samples, before any background."""

    image: Tensor  # (N, 3), weighted colours
    weights_sum: Tensor  # (N,)
    depth: Tensor  # (N,) weighted distance to the far end of each sample's step
    ambient: Tensor  # (N,) unweighted sum over the live samples
    centre: Tensor  # (N,) weighted mean of how many steps a sample lies behind the ray's first; no gradient
    spread: Tensor  # (N,) weighted squared distance from there, in steps; the centre taken as a constant
    weights: Tensor  # (M,); no gradient
    live: Tensor  # (N,) int32: samples before early ray termination


def composite_packed(
    values: Tensor, marched: Marched, *, step: float, stop_transmittance: float = 1e-4
) -> Rays:
    """Returns packed samples composited front to back; what had no room is empty space.

    Differentiable in `values` through image, weights_sum, depth, ambient and spread.

    Args:
        values: (M, 5) density, red, green, blue, and a number that is summed for itself.
        marched: where the samples were taken.
        step: the length each sample stands for.
        stop_transmittance: nothing is added once less than this passes.
    """
    samples, packed = marched.samples, marched.packed
    rays, most = samples.t.shape
    padded = unpack(values.float(), packed, (rays, most))  # (N, S, 5)
    drawn = composite(
        padded[..., 0], padded[..., 1:4], samples, step=step, stop_transmittance=stop_transmittance
    )
    deep = (samples.t - samples.t[:, :1]) / step  # (N, S)
    centre = ((drawn.weights * deep).sum(1) / drawn.weights_sum.clamp(min=1e-5)).detach()
    return Rays(
        image=drawn.image,
        weights_sum=drawn.weights_sum,
        depth=drawn.depth,
        ambient=torch.where(drawn.live, padded[..., 4], 0.0).sum(1),
        centre=centre,
        spread=(drawn.weights * (deep - centre[:, None]).square()).sum(1),
        weights=(drawn.weights.reshape(-1)[packed.slots] * packed.valid).detach(),
        live=drawn.live.sum(1, dtype=torch.int32),
    )


# --- the reference's inference schedule ---------------------------------------------------------------


class WaveRender(NamedTuple):
    """The head rendered by the reference's inference loop, before any background."""

    image: Tensor  # (N, 3)
    weights_sum: Tensor  # (N,)
    depth: Tensor  # (N,)
    schedule: list[tuple[int, int]]  # (rays alive, samples a ray) of each wave


def march_in_waves(
    field: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    rays_o: Tensor,
    rays_d: Tensor,
    near: Tensor,
    far: Tensor,
    occupancy: Tensor,
    *,
    points: int,
    max_steps: int = 16,
    bound: float = 1.0,
    stop_transmittance: float = 1e-4,
) -> WaveRender:
    """Returns the head by the reference's inference loop: waves of 1 to 8 samples for the rays still alive.

    A ray gets up to max_steps + 7 samples and one more after it has become opaque, and how many depends
    on how many rays there are: only for comparison with the reference.

    Args:
        field: (M, 3) positions and (M,) ray numbers to (M,) densities and (M, 3) colours.
        rays_o: (N, 3).
        rays_d: (N, 3).
        near: (N,).
        far: (N,).
        occupancy: (size, size, size) bool.
        points: lattice points to test a ray.
        max_steps: the loop ends once this many samples have been asked for.
        bound: half the side of the cube.
        stop_transmittance: a ray dies after a sample before which less than this passed.
    """
    rays = rays_o.shape[0]
    step = step_length(occupancy.shape[0])
    everything = march(
        rays_o,
        rays_d,
        near,
        far,
        occupancy,
        points=points,
        max_steps=max_steps + 8,
        bound=bound,
        accumulate=True,
    )
    image, weights_sum, depth = near.new_zeros(rays, 3), near.new_zeros(rays), near.new_zeros(rays)
    alive, done, schedule = torch.arange(rays, device=near.device), 0, []
    while done < max_steps and alive.numel() > 0:
        wave = max(1, min(8, rays // alive.numel()))
        schedule.append((alive.numel(), wave))
        t = everything.t[alive, done : done + wave]  # (A, wave)
        exists = everything.mask[alive, done : done + wave]
        positions = sample_positions(rays_o[alive], rays_d[alive], t, bound=bound)
        sigma, color = field(positions.reshape(-1, 3), alive.repeat_interleave(wave))
        sigma, color = sigma.view(-1, wave), color.view(-1, wave, 3)
        living = torch.ones_like(alive, dtype=torch.bool)
        for k in range(wave):
            living = living & exists[:, k]
            through = 1 - weights_sum[alive]
            weight = torch.where(living, (1 - torch.exp(-sigma[:, k] * step)) * through, 0.0)
            weights_sum[alive] += weight
            depth[alive] += weight * (t[:, k] + step)
            image[alive] += weight[:, None] * color[:, k]
            living = living & (through >= stop_transmittance)
        alive = alive[living]
        done += wave
    return WaveRender(image, weights_sum, depth, schedule)


# --- a whole scene ------------------------------------------------------------------------------------


def mlp(x: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
    """Returns the outputs of a multilayer perceptron without bias, ReLU between its layers."""
    for weight in weights[:-1]:
        x = F.relu(F.linear(x, weight))
    return F.linear(x, weights[-1])


def resize_by_area(image: Tensor, size_px: int) -> Tensor:
    """Returns an (S, S, C) float image resampled by area to (size, size, C)."""
    source = image.shape[0]
    if size_px == source:
        return image
    edges = torch.arange(size_px + 1, dtype=torch.float64, device=image.device) * (source / size_px)
    cells = torch.arange(source, dtype=torch.float64, device=image.device)
    overlap = torch.minimum(edges[1:, None], cells + 1) - torch.maximum(edges[:-1, None], cells)
    share = (overlap.clamp(min=0) * (size_px / source)).to(image.dtype)  # (size, S)
    lines = (share @ image.flatten(1)).view(size_px, source, -1)  # one axis after the other
    return share @ lines


class _Tensors:
    """A scene's arrays as torch tensors."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = device

    def one(self, array: F32 | U8) -> Tensor:
        return torch.from_numpy(np.array(array)).to(self.device)

    def all(self, arrays: tuple[F32, ...]) -> tuple[Tensor, ...]:
        return tuple(self.one(array).float() for array in arrays)


def head_field(
    head: HeadField, condition: Tensor, *, device: torch.device | str = "cpu"
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Returns a function from (M, 3) positions and (M, 3) directions to (M,) densities and (M, 3) colours.

    Nothing is folded: the networks as trained.
    """
    make = _Tensors(device)
    position_layout, ambient_layout = head.position_grid.layout, head.ambient_grid.layout
    position_table = make.one(head.position_grid.table).float()
    ambient_table = make.one(head.ambient_grid.table).float()
    ambient_net, sigma_net, color_net = (
        make.all(net) for net in (head.ambient_net, head.sigma_net, head.color_net)
    )
    code = make.one(head.individual_code)

    def field(positions: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        count = positions.shape[0]
        where = grid_encode(positions, position_table, position_layout, bound=head.bound)
        ambient = torch.tanh(mlp(torch.cat((where, condition.expand(count, -1)), 1), ambient_net))
        moved = grid_encode(ambient, ambient_table, ambient_layout)
        density = mlp(torch.cat((where, moved), 1), sigma_net)
        view = torch.cat((spherical_harmonics(directions), density[:, 1:], code.expand(count, -1)), 1)
        return density[:, 0].exp(), torch.sigmoid(mlp(view, color_net))

    return field


def torso_over(
    torso: TorsoField, pose: Tensor, coordinates: Tensor, background: Tensor, *, device: torch.device | str
) -> Tensor:
    """Returns (N, 3): the torso over the background.

    Args:
        torso: the field.
        pose: (4, 4) field pose of the head.
        coordinates: (N, 2), row first, from `image_coordinates`.
        background: (N, 3) in [0, 1].
        device: where the arrays go.
    """
    make = _Tensors(device)
    occupancy = make.one(torso.occupancy).float()
    seen = sample_occupancy(occupancy, coordinates) > 0
    x = coordinates[seen] * torso.shrink
    fixed = torch.cat(
        (frequency_encode(pose_vector(pose)[None], torso.pose_octaves)[0], make.one(torso.individual_code))
    )
    driven = torch.cat(
        (frequency_encode(x, torso.position_octaves), fixed.expand(x.shape[0], -1)), 1
    )  # (M, freq + pose + code)
    moved = (x + mlp(driven, make.all(torso.deform_net))).clamp(-1, 1)
    features = grid_encode(moved, make.one(torso.grid.table).float(), torso.grid.layout)
    out = torch.sigmoid(mlp(torch.cat((features, driven), 1), make.all(torso.canonical_net)))  # (M, 4)
    alpha = out[:, :1]
    result = background.clone()
    result[seen] = alpha * out[:, 1:] + (1 - alpha) * background[seen]
    return result


def sample_occupancy(occupancy: Tensor, coordinates: Tensor) -> Tensor:
    """Returns (N,): a [row, column] grid sampled bilinearly at (N, 2) row-first coordinates in [-1, 1]."""
    grid = coordinates.flip(-1)[None, :, None]  # grid_sample takes columns first
    return F.grid_sample(occupancy[None, None], grid, align_corners=True)[0, 0, :, 0]


@torch.no_grad()
def render_scene(
    scene: Scene,
    *,
    c2w: F32 | Tensor,
    condition: F32 | Tensor,
    size_px: int,
    device: torch.device | str = "cpu",
    mask: BlockMask | None = None,
    waves: bool = False,
    rays_at_once: int = 1 << 16,
) -> Tensor:
    """Returns (size, size, 3) float32 in [0, 1], row-major: head over torso over background.

    Args:
        scene: what to draw.
        c2w: (4, 4) camera to head space.
        condition: (C,).
        size_px: any size; the picture's corners are those of the full-size image.
        device: where it is computed.
        mask: of that size; only the pixels of its blocks are drawn, the others are zero.
        waves: draw the head by the reference's wave schedule instead (all rays in one call).
        rays_at_once: how many rays share the memory of one pass.
    """
    head, camera = scene.head, scene.camera
    make = _Tensors(device)
    pose = field_pose(torch.as_tensor(c2w, dtype=torch.float32).to(device), camera)
    cond = torch.as_tensor(condition, dtype=torch.float32).to(device)
    columns, rows = pixel_centres(size_px, scene.image_size_px, device=device)
    behind = resize_by_area(make.one(scene.background).float() / 255, size_px).reshape(-1, 3)
    if mask is not None:
        covered = torch.as_tensor(mask.pixels.reshape(-1)).to(device)
        columns, rows, behind = columns[covered], rows[covered], behind[covered]
    if scene.torso is not None:
        coordinates = image_coordinates(columns, rows, scene.image_size_px)
        behind = torso_over(scene.torso, pose, coordinates, behind, device=device)
    rays_o, rays_d = rays_through(columns, rows, pose, camera)
    near, far = near_far(rays_o, rays_d, make.one(head.aabb).float(), min_near=head.min_near)
    occupancy = occupancy_volume(make.one(head.density_bitfield), head.grid_size)
    points = lattice_points(head.aabb, head.grid_size)
    field = head_field(head, cond, device=device)
    if waves:
        drawn = march_in_waves(
            lambda p, ray: field(p, rays_d[ray]),
            rays_o,
            rays_d,
            near,
            far,
            occupancy,
            points=points,
            max_steps=head.max_steps,
            bound=head.bound,
            stop_transmittance=head.stop_transmittance,
        )
        image, weights_sum = drawn.image, drawn.weights_sum
    else:
        step = step_length(head.grid_size)
        parts = []
        for part in torch.split(torch.arange(rays_o.shape[0], device=device), rays_at_once):
            o, d = rays_o[part], rays_d[part]
            samples = march(
                o,
                d,
                near[part],
                far[part],
                occupancy,
                points=points,
                max_steps=head.max_steps,
                bound=head.bound,
            )
            shape = (o.shape[0], head.max_steps)
            packed = pack(samples.mask)
            positions = sample_positions(o, d, samples.t, bound=head.bound).reshape(-1, 3)[packed.slots]
            sigma, color = field(positions, d[packed.slots // head.max_steps])
            parts.append(
                composite(
                    unpack(sigma, packed, shape),
                    unpack(color, packed, shape),
                    samples,
                    step=step,
                    stop_transmittance=head.stop_transmittance,
                )
            )
        image = torch.cat([part.image for part in parts])
        weights_sum = torch.cat([part.weights_sum for part in parts])
    picture = (image + (1 - weights_sum)[:, None] * behind).clamp(0, 1)
    if mask is not None:
        picture = torch.zeros((size_px**2, 3), device=device).masked_scatter_(covered[:, None], picture)
    return picture.reshape(size_px, size_px, 3)
