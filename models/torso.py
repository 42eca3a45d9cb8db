"""The torso: a 2-D field over the image that moves with the head's pose only (RAD-NeRF, Tang et al. 2022).

With the default sizes it is GeneFace's, key for key and number for number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own convention
from torch import Tensor, nn

from cuda_kernels.scene import TorsoField
from cuda_kernels.torch_encodings import frequency_encode
from cuda_kernels.torch_reference import sample_occupancy

from .density_grid import updated_torso
from .encodings import GridConfig, GridEncoder, Mlp, as_numpy, shared_rows
from .settings import Range, check_ranges


@dataclass(frozen=True, kw_only=True)
class TorsoConfig:
    """Sizes of the torso; the defaults are GeneFace's."""

    grid: GridConfig = field(default_factory=GridConfig)
    hidden_deform: Annotated[int, Range(1, 1024)] = 64
    hidden_canonical: Annotated[int, Range(1, 1024)] = 32
    position_octaves: Annotated[int, Range(0, 16)] = 10
    pose_octaves: Annotated[int, Range(0, 16)] = 4
    # Frames with an individual code; rendering uses row 0.
    codes: Annotated[int, Range(1, 200_000)] = 13000
    code_width: Annotated[int, Range(0, 256)] = 8
    shrink: Annotated[float, Range(0.05, 1.0)] = 0.8
    grid_size: Annotated[int, Range(2, 1024)] = 128
    density_threshold: Annotated[float, Range(0.0, 1e6)] = 0.01

    def __post_init__(self) -> None:
        """Raises SettingsError for a size out of range."""
        check_ranges(self)

    @classmethod
    def streaming(cls) -> TorsoConfig:
        """Returns May's sizes, for two CPU cores."""
        return cls(
            grid=GridConfig(levels=10, desired_resolution=768, log2_rows=16),
            hidden_deform=32,
            hidden_canonical=32,
            position_octaves=6,
            pose_octaves=2,
            codes=1,
            code_width=0,
        )


class TorsoRender(NamedTuple):
    """N rendered pixels without the head."""

    image: Tensor  # (N, 3) over the background
    alpha: Tensor  # (N,) in [0, 1]
    deform: Tensor  # (M, 2) deformation of the queried points


Query = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor]]


class Torso(nn.Module):
    """The field with its occupancy."""

    density_grid_torso: Tensor

    def __init__(self, config: TorsoConfig) -> None:
        """Networks start at random, the occupancy empty: update it before the first step."""
        super().__init__()
        self.config = config
        self.torso_individual_codes = nn.Parameter(torch.randn(config.codes, config.code_width) * 0.1)
        self.register_buffer("density_grid_torso", torch.zeros(config.grid_size**2))
        self.torso_embedder = GridEncoder(config.grid, dimensions=2)
        position, pose = 2 * (1 + 2 * config.position_octaves), 6 * (1 + 2 * config.pose_octaves)
        driven = position + pose + config.code_width
        deform, canonical = config.hidden_deform, config.hidden_canonical
        self.torso_deform_net = Mlp((driven, deform, deform, 2))
        # The reference's spelling: it is a key of its checkpoints.
        self.torso_canonicial_net = Mlp((self.torso_embedder.width + driven, canonical, canonical, 4))
        self.mean_density = 0.0  # not saved by the reference, and 0 after loading

    def use_kernels(self, kernels: bool) -> None:
        """Selects the CUDA kernels or their torch twin for encoding positions."""
        self.torso_embedder.kernels = kernels

    def query(
        self, x: Tensor, pose6: Tensor, code: Tensor, row: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns alpha (M, 1), rgb (M, 3) and deform (M, 2) at (M, 2) row-first coordinates in [-1, 1].

        Args:
            x: (M, 2).
            pose6: (F, 6) Euler angles and translation of the field's pose.
            code: (F, I) or (1, I).
            row: (M,) the pose (and code) of each point; F must be 1 if None.
        """
        x = x * self.config.shrink
        pose = frequency_encode(pose6, self.config.pose_octaves)  # (F, 54)
        fixed = torch.cat((pose, code.expand(pose.shape[0], -1)), 1)  # (F, 54 + I)
        waves = frequency_encode(x, self.config.position_octaves)  # (M, 42)
        own = waves.shape[1]
        weight = self.torso_deform_net.first
        shared = F.linear(fixed, weight[:, own:])
        hidden = F.linear(waves, weight[:, :own]) + (shared if row is None else shared_rows(shared, row))
        deform = self.torso_deform_net.after_first(hidden).float()  # (M, 2)
        features = self.torso_embedder((x + deform).clamp(-1, 1))  # (M, L * F)
        weight, own = self.torso_canonicial_net.first, own + features.shape[1]
        shared = F.linear(fixed, weight[:, own:])
        hidden = F.linear(torch.cat((features, waves), 1), weight[:, :own]) + (
            shared if row is None else shared_rows(shared, row)
        )
        out = torch.sigmoid(self.torso_canonicial_net.after_first(hidden).float())  # (M, 4)
        return out[:, :1], out[:, 1:], deform

    def occupied(self, coordinates: Tensor) -> Tensor:
        """Returns the occupancy (N,) bool at (N, 2) row-first coordinates."""
        side = self.config.grid_size
        grid = self.density_grid_torso.view(side, side).T  # [row, column]
        return sample_occupancy(grid, coordinates) > min(self.config.density_threshold, self.mean_density)

    def forward(
        self,
        coordinates: Tensor,
        pose6: Tensor,
        background: Tensor,
        *,
        frame: Tensor | None = None,
        code: Tensor | None = None,
        query: Query | None = None,
    ) -> TorsoRender:
        """Returns pixels of one or several frames over the background; shapes are static in training.

        Args:
            coordinates: (N, 2), row first, from `image_coordinates`.
            pose6: (F, 6) from `pose_vector`.
            background: (N, 3).
            frame: (N,) which pose (and code) each pixel takes; F must be 1 if None.
            code: (F, I) or (1, I); row 0 of the individual codes for all if None.
            query: a compiled stand-in for `query` in training.
        """
        if code is None:
            code = self.torso_individual_codes[:1]
        with torch.no_grad():
            occupied = self.occupied(coordinates)  # (N,)
        if self.training:
            alpha, rgb, deform = (query or self.query)(coordinates, pose6, code, frame)
            alpha = alpha * occupied[:, None]
            return TorsoRender(alpha * rgb + (1 - alpha) * background, alpha[:, 0], deform)
        index = occupied.nonzero().squeeze(1)
        row = None if frame is None else frame[index]
        seen, rgb, deform = self.query(coordinates[index], pose6, code, row)
        alpha = seen.new_zeros(coordinates.shape[0], 1).index_copy(0, index, seen)
        color = rgb.new_zeros(coordinates.shape[0], 3).index_copy(0, index, rgb)
        return TorsoRender(alpha * color + (1 - alpha) * background, alpha[:, 0], deform)

    @torch.no_grad()
    def update_density(
        self,
        pose6: Tensor,
        *,
        code: Tensor | None = None,
        jitter: bool = True,
        decay: float = 0.95,
    ) -> None:
        """Updates the density grid with one (1, 6) pose, best that of a random training frame."""
        if code is None:
            code = self.torso_individual_codes[:1]
        self.density_grid_torso.copy_(
            updated_torso(
                self.density_grid_torso,
                lambda x: self.query(x, pose6, code)[0][:, 0],
                self.config.grid_size,
                decay=decay,
                jitter=jitter,
            )
        )
        self.mean_density = float(self.density_grid_torso.mean())

    def field(self) -> TorsoField:
        """Returns the torso as a raymarcher takes it; cells below the threshold are empty.

        A raymarcher queries wherever the interpolated grid is above 0: up to one cell further than `forward`,
        where opacity is below the threshold.
        """
        config = self.config
        grid = self.density_grid_torso.view(config.grid_size, config.grid_size).T
        threshold = min(config.density_threshold, self.mean_density)
        return TorsoField(
            grid=self.torso_embedder.grid(),
            deform_net=self.torso_deform_net.weights(),
            canonical_net=self.torso_canonicial_net.weights(),
            individual_code=as_numpy(self.torso_individual_codes[0]),
            occupancy=as_numpy(torch.where(grid > threshold, grid, 0.0)),
            position_octaves=config.position_octaves,
            pose_octaves=config.pose_octaves,
            shrink=config.shrink,
        )
