"""The head: a radiance field of positions, view and landmarks (RAD-NeRF, Tang et al. 2022).

With the default sizes it is GeneFace's, key for key and number for number.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own convention
from torch import Tensor, nn

from cuda_kernels import torch_kernels
from cuda_kernels.scene import Camera, HeadField
from cuda_kernels.torch_encodings import spherical_harmonics, truncated_exp
from cuda_kernels.torch_reference import (
    Marched,
    Rays,
    WaveRender,
    composite_packed,
    lattice_points,
    march_in_waves,
    march_packed,
    near_far,
    occupancy_volume,
    step_length,
)

from .condition import ConditionConfig, FramePrenet, WindowAttention, encode_windows
from .density_grid import mean_density, pack_bits, updated
from .encodings import GridConfig, GridEncoder, Mlp, as_numpy, shared_rows
from .settings import Range, check_ranges, require

_SH = 16


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Sizes of the head; the defaults are GeneFace's."""

    condition: ConditionConfig = field(default_factory=ConditionConfig)
    position_grid: GridConfig = field(default_factory=GridConfig)
    ambient_grid: GridConfig = field(default_factory=GridConfig)
    hidden_ambient: Annotated[int, Range(1, 1024)] = 128
    hidden_sigma: Annotated[int, Range(1, 1024)] = 128
    hidden_color: Annotated[int, Range(1, 1024)] = 128
    layers_ambient: Annotated[int, Range(1, 16)] = 3
    layers_sigma: Annotated[int, Range(1, 16)] = 3
    layers_color: Annotated[int, Range(1, 16)] = 2
    geometry_features: Annotated[int, Range(0, 1024)] = 128
    # Frames with an individual code; rendering uses row 0.
    codes: Annotated[int, Range(1, 200_000)] = 13000
    code_width: Annotated[int, Range(0, 256)] = 4
    grid_size: int = 128
    bound: float = 1.0
    aabb: tuple[float, float, float, float, float, float] = (-1.0, -0.5, -1.0, 1.0, 0.5, 1.0)
    camera_scale: Annotated[float, Range(1e-4, 1e4)] = 4.0
    camera_offset: Annotated[tuple[float, float, float], Range(-1e4, 1e4)] = (0.0, 0.0, 0.0)
    max_steps: Annotated[int, Range(1, 1024)] = 16
    min_near: Annotated[float, Range(0.0, 100.0)] = 0.05
    density_threshold: Annotated[float, Range(0.0, 1e6)] = 10.0
    stop_transmittance: Annotated[float, Range(0.0, 0.5)] = 1e-4

    def __post_init__(self) -> None:
        """Raises SettingsError for a size out of range, more than one cascade or a box outside the cube."""
        check_ranges(self)
        require(0 < self.bound <= 1, "bound", "above 0 and at most 1", self.bound)
        within = all(abs(edge) <= self.bound for edge in self.aabb)
        require(within, "aabb", f"within ±{self.bound}", self.aabb)
        fits = 8 <= self.grid_size <= 512 and not self.grid_size & (self.grid_size - 1)
        require(fits, "grid_size", "a power of two from 8 to 512", self.grid_size)

    @classmethod
    def streaming(cls) -> HeadConfig:
        """Returns May's sizes, for two CPU cores: 32 wide, 12 levels, one frame of condition."""
        return cls(
            condition=ConditionConfig(
                window_frames=1, lookahead_frames=0, hidden=(64, 64, 64, 64), outputs=32
            ),
            position_grid=GridConfig(levels=12, desired_resolution=340, log2_rows=17),
            ambient_grid=GridConfig(levels=12, desired_resolution=256, log2_rows=15),
            hidden_ambient=32,
            hidden_sigma=32,
            hidden_color=32,
            geometry_features=32,
            codes=1,
            code_width=0,
        )

    def camera(self, *, focal_px: float, cx_px: float, cy_px: float) -> Camera:
        """Returns the camera of this head's field."""
        return Camera(
            focal_px=focal_px, cx_px=cx_px, cy_px=cy_px, scale=self.camera_scale, offset=self.camera_offset
        )


class HeadRender(NamedTuple):
    """N rendered rays."""

    image: Tensor  # (N, 3) over the background
    weights_sum: Tensor  # (N,) opacity
    depth: Tensor  # (N,) weighted distance
    ambient: Tensor  # (N,) sum over the samples of the ambient coordinates' absolute values, not weighted
    n_samples_needed: Tensor  # () int; what exceeds the capacity was dropped


class Head(nn.Module):
    """The radiance field with its condition networks and occupancy."""

    aabb_train: Tensor
    aabb_infer: Tensor
    density_grid: Tensor
    density_bitfield: Tensor
    step_counter: Tensor
    occupancy: Tensor

    def __init__(self, config: HeadConfig) -> None:
        """Networks start at random, the occupancy empty: update it before the first step."""
        super().__init__()
        self.config = config
        self.kernels = False
        cond = config.condition.outputs
        self.cond_prenet = FramePrenet(config.condition)
        self.cond_att_net = WindowAttention(config.condition) if config.condition.window_frames > 1 else None
        self.position_embedder = GridEncoder(config.position_grid, dimensions=3, bound=config.bound)
        self.ambient_embedder = GridEncoder(config.ambient_grid, dimensions=2)
        position, ambient = self.position_embedder.width, self.ambient_embedder.width
        geometry, code = config.geometry_features, config.code_width
        self.ambient_net = _mlp(position + cond, config.hidden_ambient, 2, config.layers_ambient)
        self.sigma_net = _mlp(position + ambient, config.hidden_sigma, 1 + geometry, config.layers_sigma)
        self.color_net = _mlp(_SH + geometry + code, config.hidden_color, 3, config.layers_color)
        self.individual_embeddings = nn.Parameter(torch.randn(config.codes, code) * 0.1)
        cells = config.grid_size**3
        self.register_buffer("aabb_train", torch.tensor(config.aabb))
        self.register_buffer("aabb_infer", torch.tensor(config.aabb))
        self.register_buffer("density_grid", torch.zeros(1, cells))
        self.register_buffer("density_bitfield", torch.zeros(cells // 8, dtype=torch.uint8))
        self.register_buffer("step_counter", torch.zeros(16, 2, dtype=torch.int32))
        self.register_buffer(
            "occupancy", torch.zeros((config.grid_size,) * 3, dtype=torch.bool), persistent=False
        )
        self.points = lattice_points(config.aabb, config.grid_size)
        self.step = step_length(config.grid_size)
        self.register_load_state_dict_post_hook(_refresh_occupancy)  # type: ignore[no-untyped-call]

    def use_kernels(self, kernels: bool) -> None:
        """Selects the CUDA kernels or their torch twins for marching, encoding and compositing."""
        self.kernels = kernels
        self.position_embedder.kernels = self.ambient_embedder.kernels = kernels

    # --- the field

    def encode_condition(self, windows: Tensor) -> Tensor:
        """Returns (F, C) conditions of (F, W, 204) windows of normalised landmarks."""
        return encode_windows(windows, self.cond_prenet, self.cond_att_net)

    def density(
        self, positions: Tensor, condition: Tensor, row: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns sigma (M,), geometry features (M, G) and ambient coordinates (M, 2).

        Args:
            positions: (M, 3).
            condition: (F, C).
            row: (M,) the condition of each position; F must be 1 if None.
        """
        where = self.position_embedder(positions)  # (M, P)
        weight = self.ambient_net.first
        driven = F.linear(condition, weight[:, where.shape[1] :])  # (F, H)
        hidden = F.linear(where, weight[:, : where.shape[1]]) + (
            driven if row is None else shared_rows(driven, row)
        )
        ambient = torch.tanh(self.ambient_net.after_first(hidden).float())  # (M, 2)
        out = self.sigma_net(torch.cat((where, self.ambient_embedder(ambient)), 1))  # (M, 1 + G)
        return truncated_exp(out[:, 0].float()), out[:, 1:], ambient

    def view_features(self, directions: Tensor, code: Tensor, row: Tensor | None = None) -> Tensor:
        """Returns (N, H), the part of the colour net's first layer that a ray's samples share.

        Args:
            directions: (N, 3).
            code: (F, I) individual codes.
            row: (N,) the code of each ray; F must be 1 if None.
        """
        weight, last = self.color_net.first, _SH + self.config.geometry_features
        coded = F.linear(code, weight[:, last:])
        return F.linear(spherical_harmonics(directions), weight[:, :_SH]) + (
            coded if row is None else shared_rows(coded, row)
        )

    def color(self, geometry: Tensor, view_features: Tensor) -> Tensor:
        """Returns (M, 3) in [0, 1] of (M, G) geometry features and (M, H) from `view_features`."""
        weight, last = self.color_net.first, _SH + self.config.geometry_features
        hidden = F.linear(geometry, weight[:, _SH:last]) + view_features
        return torch.sigmoid(self.color_net.after_first(hidden).float())

    # --- rendering

    @torch.no_grad()
    def march(
        self,
        rays_o: Tensor,
        rays_d: Tensor,
        *,
        max_steps: int | None = None,
        phase: Tensor | None = None,
        capacity: int | None = None,
        accumulate: bool = False,
    ) -> Marched:
        """Returns samples of (N, 3) rays in occupied cells, at most `max_steps` a ray (the head's if None).

        `phase`, `capacity` and `accumulate` are those of `forward`.
        """
        config = self.config
        max_steps = config.max_steps if max_steps is None else max_steps
        box = self.aabb_train if self.training else self.aabb_infer
        near, far = near_far(rays_o, rays_d, box, min_near=config.min_near)
        # The kernel multiplies the lattice's points out; only the twin can add them up.
        kernels = self.kernels and not accumulate
        march = torch_kernels.march if kernels else partial(march_packed, accumulate=accumulate)
        return march(
            rays_o,
            rays_d,
            near,
            far,
            self.occupancy,
            points=self.points,
            max_steps=max_steps,
            bound=config.bound,
            capacity=capacity,
            phase=phase,
        )

    def composite(self, values: Tensor, marched: Marched) -> Rays:
        """Returns the rays composited from (M, 5) values: density, red, green, blue, ambient motion."""
        composited = torch_kernels.composite_packed if self.kernels else composite_packed
        return composited(values, marched, step=self.step, stop_transmittance=self.config.stop_transmittance)

    def forward(
        self,
        rays_o: Tensor,
        rays_d: Tensor,
        condition: Tensor,
        background: Tensor,
        *,
        frame: Tensor | None = None,
        code: Tensor | None = None,
        phase: Tensor | None = None,
        capacity: int | None = None,
        accumulate: bool = False,
    ) -> HeadRender:
        """Returns rays of one or several frames, rendered over the background.

        Args:
            rays_o: (N, 3) in field space.
            rays_d: (N, 3), unit length.
            condition: (F, C) from `encode_condition`.
            background: (N, 3) behind the head.
            frame: (N,) which condition (and code) each ray takes; F must be 1 if None.
            code: (F, I) or (1, I); row 0 of the individual codes for all if None.
            phase: (N,) in [0, 1), random starts of the lattice in training.
            capacity: the most samples in all; a fixed number keeps shapes static, without synchronisation.
            accumulate: add the lattice's steps up, as the reference's kernel does.
        """
        marched = self.march(rays_o, rays_d, phase=phase, capacity=capacity, accumulate=accumulate)
        ray = marched.ray
        sigma, geometry, ambient = self.density(
            marched.positions, condition, None if frame is None else frame[ray]
        )
        if code is None:
            code = self.individual_embeddings[:1]
        view_features = self.view_features(rays_d, code, frame if code.shape[0] > 1 else None)
        color = self.color(geometry, view_features[ray])
        values = torch.cat((sigma[:, None], color, ambient.abs().sum(-1, keepdim=True)), 1)  # (M, 5)
        drawn = self.composite(values, marched)
        return HeadRender(
            image=drawn.image + (1 - drawn.weights_sum)[:, None] * background,
            weights_sum=drawn.weights_sum,
            depth=drawn.depth,
            ambient=drawn.ambient,
            n_samples_needed=marched.n_samples_needed,
        )

    @torch.no_grad()
    def draw_in_waves(
        self, rays_o: Tensor, rays_d: Tensor, condition: Tensor, *, code: Tensor | None = None
    ) -> WaveRender:
        """Returns (N, 3) rays and a (1, C) condition rendered as by the reference's inference loop."""
        config = self.config
        near, far = near_far(rays_o, rays_d, self.aabb_infer, min_near=config.min_near)
        view_features = self.view_features(rays_d, self.individual_embeddings[:1] if code is None else code)

        def at(positions: Tensor, ray: Tensor) -> tuple[Tensor, Tensor]:
            sigma, geometry, _ = self.density(positions, condition)
            return sigma, self.color(geometry, view_features[ray])

        return march_in_waves(
            at,
            rays_o,
            rays_d,
            near,
            far,
            self.occupancy,
            points=self.points,
            max_steps=config.max_steps,
            bound=config.bound,
            stop_transmittance=config.stop_transmittance,
        )

    # --- occupancy

    @torch.no_grad()
    def update_density(
        self,
        condition: Tensor,
        *,
        jitter: bool = True,
    ) -> Tensor:
        """Updates the density grid and occupancy with a (1, C) condition; returns the mean density ().

        Args:
            condition: (1, C), best that of a random training frame.
            jitter: random points of the cells instead of their centres.
        """
        config = self.config

        self.density_grid.copy_(
            updated(
                self.density_grid,
                lambda positions: self.density(positions, condition)[0],
                config.grid_size,
                bound=config.bound,
                jitter=jitter,
            )
        )
        mean = mean_density(self.density_grid)
        self.density_bitfield.copy_(pack_bits(self.density_grid, mean.clamp(max=config.density_threshold)))
        self.refresh_occupancy()
        return mean

    def refresh_occupancy(self) -> None:
        """Unpacks the bitfield into the volume that `march` reads; needed after the bits were changed."""
        self.occupancy.copy_(occupancy_volume(self.density_bitfield, self.config.grid_size))

    # --- export

    def field(self) -> HeadField:
        """Returns the head as a raymarcher takes it, with the individual code of row 0."""
        config = self.config
        return HeadField(
            position_grid=self.position_embedder.grid(),
            ambient_grid=self.ambient_embedder.grid(),
            ambient_net=self.ambient_net.weights(),
            sigma_net=self.sigma_net.weights(),
            color_net=self.color_net.weights(),
            individual_code=as_numpy(self.individual_embeddings[0]),
            density_bitfield=self.density_bitfield.cpu().numpy().copy(),
            grid_size=config.grid_size,
            bound=config.bound,
            aabb=as_numpy(self.aabb_infer),
            max_steps=config.max_steps,
            min_near=config.min_near,
            stop_transmittance=config.stop_transmittance,
        )


def _refresh_occupancy(head: nn.Module, _incompatible: Any) -> None:  # noqa: ANN401 -- torch's hook type
    assert isinstance(head, Head)
    head.refresh_occupancy()


def _mlp(inputs: int, hidden: int, outputs: int, layers: int) -> Mlp:
    return Mlp((inputs, *([hidden] * (layers - 1)), outputs))
