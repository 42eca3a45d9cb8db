"""Training of a speaker's head: a radiance field driven by the ground-truth landmarks of the video.

Beyond RAD-NeRF's recipe (Tang et al. 2022; GeneFace) it uses the exact masks: cells outside the visual hull
are never evaluated; backgrounds are random, against floaters, except at the head's edge, where the true one
keeps hair soft; and cells that no training ray sees are culled.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from cuda_kernels.errors import InputError
from cuda_kernels.torch_reference import field_pose, morton_of_volume, near_far
from models.density_grid import cell_positions, dilate, mean_density, pack_bits
from models.encodings import GridConfig
from models.head import Head, HeadConfig
from models.settings import Option, Range
from preparation.silhouettes import FieldBox, carve
from preparation.speaker_set import HEAD

from .field_optimizer import FieldOptimizer, FieldTrainingSettings
from .field_validation import measure_and_slim, measure_frames, validation_rows
from .fields import (
    Drawn,
    Field,
    Precision,
    draw_head,
    draw_torso,
    field_values,
    head_config_of,
    load_head,
    load_torso,
    rays_of,
    sample_capacity,
    speaker_metadata,
    trace,
    uses_cuda_kernels,
)
from .loop import LoopSettings, Validation
from .ranges import LEVELS, LOG2_ROWS, RESOLUTION, SHARE, WEIGHT, WIDTH
from .ray_sampler import Pixels, SamplingShares, composite_target, figure_box, sample_pixels
from .speaker_data import SpeakerData, load_speaker_data

log = logging.getLogger(__name__)

DENSITY_EVERY = 16  # steps between updates of the density grid
CAPACITY_EVERY = 128  # steps between updates of the sample buffer's size
COMPILED_HEADROOM = 1.25  # over the samples needed once occupancy settled: each size is compiled for
VISIBLE_EVERY = 500  # steps between cullings of invisible cells
VISIBLE_FRAMES = 256
VISIBLE_PIXELS = 8192
VISIBLE_WEIGHT = 2e-3  # a cell whose compositing weight stays below is invisible
WARM_SAMPLES = 64  # a ray during warm-up

SIZES = HeadConfig.streaming()  # the defaults below
LOOP = LoopSettings(steps=20_000, validate_every=2000, checkpoint_every=2000, validate_at_stop=True)


@dataclass(frozen=True, kw_only=True)
class HeadTrainingSettings(FieldTrainingSettings):
    """Sizes of the head and how it is trained."""

    mean_face: Annotated[
        Path | None, Option("npz with mean_face (68, 3) (../corpus/landmarks.npz, else own mean)")
    ] = None
    window_frames: Annotated[int, Range(1, 64), Option("landmark frames that drive one picture")] = (
        SIZES.condition.window_frames
    )
    lookahead_frames: Annotated[int, Range(0, 63), Option("how many of them lie in the future")] = (
        SIZES.condition.lookahead_frames
    )
    condition_size: Annotated[int, WIDTH, Option("width of the condition")] = SIZES.condition.outputs
    hidden: Annotated[int, WIDTH, Option("width of the three networks")] = SIZES.hidden_sigma
    geometry_features: Annotated[int, Range(0, 1024), Option("numbers from density to colour net")] = (
        SIZES.geometry_features
    )
    levels: Annotated[int, LEVELS, Option("levels of each grid")] = SIZES.position_grid.levels
    position_log2_rows: Annotated[int, LOG2_ROWS, Option("rows a level of the position grid, log2")] = (
        SIZES.position_grid.log2_rows
    )
    position_resolution: Annotated[
        int,
        RESOLUTION,
        Option("finest cells along the field's side; tiling drops an axis above 2^(log2_rows / 2)"),
    ] = SIZES.position_grid.desired_resolution
    ambient_log2_rows: Annotated[int, LOG2_ROWS, Option("rows a level of the ambient grid, log2")] = (
        SIZES.ambient_grid.log2_rows
    )
    ambient_resolution: Annotated[int, RESOLUTION, Option("its finest cells along a side")] = (
        SIZES.ambient_grid.desired_resolution
    )
    hashed: Annotated[bool, Option("hash fine position levels instead of tiling them")] = False
    grid_size: Annotated[int, Range(8, 512), Option("occupancy cells along a side; sets the step")] = (
        SIZES.grid_size
    )
    max_steps: Annotated[int, Range(1, 1024), Option("samples a ray may have")] = SIZES.max_steps
    samples_per_ray: Annotated[
        int, Range(1, 10_000), Option("room for samples in a step, mean over rays")
    ] = 8
    warmup_steps: Annotated[int, Range(0, 10**9), Option("steps before the occupancy is believed")] = 600
    entropy_weight: Annotated[float, WEIGHT, Option("of the opacity's entropy")] = 1e-4
    concentration_weight: Annotated[float, WEIGHT, Option("of the depth's spread, in steps")] = 1e-4
    ambient_weight: Annotated[float, WEIGHT, Option("of ambient motion outside the face")] = 1e-3
    mouth_share: Annotated[float, SHARE, Option("of the rays go to the mouth's box")] = 0.2
    eyes_share: Annotated[float, SHARE, Option("of the rays go to the eyes' boxes")] = 0.1
    edge_random_share: Annotated[
        float, SHARE, Option("of the edge's pixels must be all head or none of it")
    ] = 0.5
    start: Annotated[
        Path | None, Option("trained head of the same sizes (folder or checkpoint) to go on from")
    ] = None
    precision: Annotated[Precision, Option("of the networks' arithmetic")] = "fp32"
    compile: Annotated[bool, Option("compile the field with torch.compile")] = False
    torso: Annotated[
        Path | None, Option("trained torso (folder or checkpoint) to stand behind in pictures")
    ] = None

    def config(self, data: SpeakerData) -> HeadConfig:
        """Returns the head's sizes, in the box of this speaker's head."""
        box = data.box
        a, b, c, d, e, f = (float(edge) for edge in box.aabb)
        return dataclasses.replace(
            SIZES,
            condition=dataclasses.replace(
                SIZES.condition,
                window_frames=self.window_frames,
                lookahead_frames=self.lookahead_frames,
                outputs=self.condition_size,
            ),
            position_grid=GridConfig(
                levels=self.levels,
                desired_resolution=self.position_resolution,
                log2_rows=self.position_log2_rows,
                hashed=self.hashed,
            ),
            ambient_grid=GridConfig(
                levels=self.levels,
                desired_resolution=self.ambient_resolution,
                log2_rows=self.ambient_log2_rows,
            ),
            hidden_ambient=self.hidden,
            hidden_sigma=self.hidden,
            hidden_color=self.hidden,
            geometry_features=self.geometry_features,
            grid_size=self.grid_size,
            aabb=(a, b, c, d, e, f),
            camera_scale=box.camera.scale,
            camera_offset=box.camera.offset,
            max_steps=self.max_steps,
        )


# --- the task -----------------------------------------------------------------------------------------


class HeadTask:
    """Trains one head."""

    name = "head"

    def __init__(self, data: SpeakerData, settings: HeadTrainingSettings, device: torch.device) -> None:
        """Builds the head in the speaker's box; cells in the visual hull start occupied."""
        self.data, self.settings, self.device = data, settings, device
        self.camera = data.box.camera
        self.head = Head(settings.config(data)).to(device).train()
        self.head.use_kernels(uses_cuda_kernels(settings.kernels, device))
        self.poses = field_pose(data.c2w, self.camera)  # (n, 4, 4)
        self.box = figure_box(data.labels[: data.train_frames])
        self.shares = SamplingShares(mouth=settings.mouth_share, eyes=settings.eyes_share)
        self.values: Field = field_values(self.head)
        if settings.compile:
            self.values = torch.compile(self.values, dynamic=False)
        self.order = morton_of_volume(settings.grid_size, device=device)
        self.candidate_cells = self._candidate_cells()
        self.visible = torch.ones(settings.grid_size**3, dtype=torch.bool, device=device)  # in Z-order
        self._set_occupancy(self._candidate_mask())
        self.warmup_steps = settings.warmup_steps
        if settings.start is not None:
            self._start_from(settings.start)
        grids: list[Tensor] = [
            self.head.position_embedder.embeddings,
            self.head.ambient_embedder.embeddings,
        ]
        self.optimizer = FieldOptimizer(self.head, grids, settings)
        self.head.points = min(self.head.points, self._longest_ray())
        self.capacity = settings.frames_per_step * settings.pixels_per_frame * settings.samples_per_ray
        self.settled_capacity: int | None = None  # where compiled: the other size there is code for
        self.torso = None if settings.torso is None else load_torso(settings.torso, device=device).torso
        if self.torso is not None:
            self.torso.use_kernels(self.head.kernels)

    def _start_from(self, path: Path) -> None:
        """Takes a trained head's weights and occupancy; there is no warm-up.

        Raises:
            InputError: it has other sizes or another box.
        """
        before = load_head(path, device=self.device).head
        if before.config != self.head.config:
            raise InputError(f"{path}: config: expected {self.head.config}, got {before.config}")
        self.head.load_state_dict(before.state_dict())
        cells = torch.empty_like(self.visible)
        cells[self.order] = self.head.occupancy.reshape(-1)
        self.visible.copy_(cells)
        self.head.density_grid.copy_(2 * self.head.config.density_threshold * cells.float())
        self.warmup_steps = 0

    # --- steps

    def training_step(self, step: int) -> dict[str, float | Tensor]:
        """Returns the scalars of one step over rays of several frames."""
        settings, data = self.settings, self.data
        share, rate = self.optimizer.begin(step)
        warm = step < self.warmup_steps
        if step % DENSITY_EVERY == 0:
            self._update_occupancy(apply=not warm)
        if step >= 2 * self.warmup_steps and step > 0 and step % VISIBLE_EVERY == 0:
            self._find_visible_cells()

        pixels = sample_pixels(
            data,
            self.box,
            frames=settings.frames_per_step,
            pixels=settings.pixels_per_frame // (4 if warm else 1),
            shares=self.shares,
        )
        scene = composite_target(data, pixels, edge_random_share=settings.edge_random_share)
        rays_o, rays_d, frame = rays_of(pixels, self.poses, self.camera)
        condition = self.head.encode_condition(data.landmarks_normalized[pixels.frames])
        most = self._samples_allowed(step)
        drawn, marched = trace(
            self.head,
            rays_o,
            rays_d,
            condition,
            frame,
            values=self.values,
            max_steps=most,
            capacity=self.capacity,
            precision=settings.precision,
        )
        if not warm and step % CAPACITY_EVERY == 0:
            self._set_capacity(step, int(marched.n_samples_needed))
        fits = marched.fits.float()
        rays = fits.sum().clamp(min=1)
        image = drawn.image + (1 - drawn.weights_sum)[:, None] * scene.behind.reshape(-1, 3)
        error = (image - scene.target.reshape(-1, 3)).square().mean(-1)
        mse = (error * fits).sum() / rays

        alpha = drawn.weights_sum.clamp(1e-5, 1 - 1e-5)
        entropy = -(alpha * alpha.log2() + (1 - alpha) * (1 - alpha).log2())
        outside = self._outside_face(pixels).reshape(-1).float() * fits
        ambient = (drawn.ambient * outside).sum() / (rays * most)
        loss = (
            mse
            + settings.entropy_weight * (entropy * fits).sum() / rays
            + settings.concentration_weight * share * (drawn.spread.clamp(max=64) * fits).sum() / rays
            + settings.ambient_weight * share * ambient
        )
        self.optimizer.step(loss, step)

        with torch.no_grad():
            inside = ((pixels.labels == HEAD) & ~pixels.edge).reshape(-1) & marched.fits
            hit = (drawn.weights_sum > 0.5) & marched.fits
            head_mse = (error * inside).sum() / inside.sum().clamp(min=1)
            return {
                "mse": mse.detach(),
                "psnr_head_db": -10 * torch.log10(head_mse.clamp(min=1e-10)),
                "spread": (drawn.spread * hit).sum() / hit.sum().clamp(min=1),
                "samples": drawn.live.sum() / hit.sum().clamp(min=1),
                "fits": fits.mean(),
                "rate": rate,
            }

    def _samples_allowed(self, step: int) -> int:
        """Returns the samples that a ray may have: more during warm-up and until the occupancy settles."""
        settings = self.settings
        if step < self.warmup_steps:
            return WARM_SAMPLES
        return (
            max(settings.max_steps, WARM_SAMPLES // 2) if step < 2 * self.warmup_steps else settings.max_steps
        )

    def _set_capacity(self, step: int, n_samples_needed: int) -> None:
        """Sets the sample buffer's size to what is needed and some headroom, within the setting.

        A compiled field has two sizes: the setting's, and one chosen once the occupancy has settled.
        """
        settings = self.settings
        limit = settings.frames_per_step * settings.pixels_per_frame * settings.samples_per_ray
        if not settings.compile:
            self.capacity = sample_capacity(1.1 * n_samples_needed, limit)
            return
        if self.settled_capacity is None and step >= 2 * self.warmup_steps + VISIBLE_EVERY:
            self.settled_capacity = sample_capacity(COMPILED_HEADROOM * n_samples_needed, limit)
        if self.settled_capacity is not None:
            self.capacity = self.settled_capacity if n_samples_needed <= self.settled_capacity else limit

    @torch.no_grad()
    def _longest_ray(self) -> int:
        """Returns the most lattice points that a ray of these cameras has in the box."""
        data = self.data
        edge = torch.linspace(0, data.size_px - 1, 64, device=self.device).long()
        rows, columns = torch.meshgrid(edge, edge, indexing="ij")
        frames = torch.linspace(0, len(data.pictures) - 1, min(200, len(data.pictures))).long()
        most = 0
        for part in torch.split(frames.to(self.device), 16):
            shape = (len(part), edge.numel() ** 2)
            nothing = torch.empty(0)
            pixels = Pixels(
                frames=part,
                rows=rows.reshape(1, -1).expand(shape),
                columns=columns.reshape(1, -1).expand(shape),
                truth=nothing,
                labels=nothing,
                edge=nothing,
            )
            rays_o, rays_d, _ = rays_of(pixels, self.poses, self.camera)
            near, far = near_far(rays_o, rays_d, self.head.aabb_train)
            most = max(most, math.ceil(float(((far - near) / self.head.step).max())))
        return most + 4

    def _outside_face(self, pixels: Pixels) -> Tensor:
        """Returns (F, n) bool: outside the landmarks' bounding box, widened by a tenth."""
        points = self.data.landmarks_2d[pixels.frames]  # (F, 68, 2)
        low, high = points.amin(1, keepdim=True), points.amax(1, keepdim=True)
        margin = 0.1 * (high - low)
        at = torch.stack((pixels.columns, pixels.rows), -1) + 0.5
        return ((at < low - margin) | (at > high + margin)).any(-1)

    # --- occupancy

    def _candidate_cells(self) -> Tensor:
        """Returns (M,) Z-order cells of the visual hull: in the box and on the training frames' head masks.

        A cell must project onto the mask in nearly all frames; near the landmarks, where the jaw moves, in
        some.
        """
        data, size = self.data, self.settings.grid_size
        cells = torch.arange(size**3, device=self.device)
        at = cell_positions(cells, size, jitter=False)
        low, high = torch.from_numpy(data.box.aabb).to(self.device).view(2, 3)
        half = 1.0 / size
        cells = cells[((at > low - half) & (at < high + half)).all(-1)]
        at = cell_positions(cells, size, jitter=False)
        offset = torch.tensor(self.camera.offset, device=self.device)
        points = ((at - offset) / self.camera.scale)[:, [2, 0, 1]]  # head space
        chosen = torch.linspace(0, data.train_frames - 1, min(200, data.train_frames)).long().to(self.device)
        width_px = (
            2
            / size
            / self.camera.scale
            * self.camera.focal_px
            / float(data.c2w[:, :3, 3].norm(dim=-1).mean())
        )
        share = carve(
            points,
            data.labels[chosen],
            data.c2w[chosen],
            focal_px=self.camera.focal_px,
            cx_px=self.camera.cx_px,
            cy_px=self.camera.cy_px,
            margin_px=max(1, math.ceil(width_px)),
        )
        normalized = data.landmarks_normalized[chosen][:, -1 - self.settings.lookahead_frames]
        std, mean = (torch.from_numpy(a).to(self.device) for a in (data.landmark_std, data.landmark_mean))
        face = torch.from_numpy(data.mean_face).to(self.device)
        landmarks = face + (normalized.view(-1, 68, 3) * std + mean) / 10
        reach = 0.25 * float((landmarks[0].amax(0) - landmarks[0].amin(0)).max())
        places = landmarks[:: max(1, len(landmarks) // 8)].reshape(-1, 3)
        near = torch.cat([torch.cdist(part, places).amin(1) < reach for part in torch.split(points, 1 << 15)])
        return cells[(share > 0.97) | (near & (share > 0.02))]

    def _candidate_mask(self) -> Tensor:
        mask = torch.zeros(self.settings.grid_size**3, dtype=torch.bool, device=self.device)
        mask[self.candidate_cells] = True
        return mask

    @torch.no_grad()
    def _set_occupancy(self, cells: Tensor) -> None:
        """Sets the occupancy from (size**3,) bool in Z-order."""
        head = self.head
        head.density_bitfield.copy_(pack_bits(cells.float()[None], 0.5))
        head.occupancy.copy_(cells[self.order].view_as(head.occupancy))

    @torch.no_grad()
    def _update_occupancy(self, *, apply: bool) -> None:
        """Updates the density grid under random frames' conditions, and the occupancy if `apply`."""
        head, cells, size = self.head, self.candidate_cells, self.settings.grid_size
        frames = torch.randint(self.data.train_frames, (16,), device=self.device)
        condition = head.encode_condition(self.data.landmarks_normalized[frames])
        row = torch.randint(len(frames), (len(cells),), device=self.device)
        found = torch.full((size**3,), -1.0, device=self.device)
        for part in torch.split(torch.arange(len(cells), device=self.device), 1 << 19):
            at = cell_positions(cells[part], size, jitter=True)
            found[cells[part]] = head.density(at, condition, row[part])[0]
        found = dilate(found, size)
        head.density_grid.copy_(torch.maximum(head.density_grid * 0.95, found).clamp(min=0))
        if apply:
            threshold = mean_density(head.density_grid).clamp(max=head.config.density_threshold)
            self._set_occupancy((head.density_grid[0] > threshold) & self._candidate_mask() & self.visible)

    @torch.no_grad()
    def _find_visible_cells(self) -> None:
        """Marks as visible the cells, and their neighbours, that contribute to a ray of a training frame."""
        data, settings, head = self.data, self.settings, self.head
        size = settings.grid_size
        weight = torch.zeros(size**3, device=self.device)
        together = max(1, settings.frames_per_step * settings.pixels_per_frame // VISIBLE_PIXELS)
        chosen = torch.randint(data.train_frames, (VISIBLE_FRAMES,), device=self.device)
        for frames in torch.split(chosen, together):
            top, left, height, width = self.box
            shape = (len(frames), min(VISIBLE_PIXELS, settings.pixels_per_frame * 4))
            pixels = Pixels(
                frames=frames,
                rows=top + torch.randint(height, shape, device=self.device),
                columns=left + torch.randint(width, shape, device=self.device),
                truth=torch.empty(0),
                labels=torch.empty(0),
                edge=torch.empty(0),
            )
            rays_o, rays_d, frame = rays_of(pixels, self.poses, self.camera)
            condition = head.encode_condition(data.landmarks_normalized[frames])
            traced = trace(
                head,
                rays_o,
                rays_d,
                condition,
                frame,
                values=field_values(head),
                max_steps=settings.max_steps,
                precision=settings.precision,
            )
            cell = (0.5 * (traced.marched.positions / head.config.bound + 1) * size).clamp(0, size - 1).long()
            cell = (cell[:, 0] * size + cell[:, 1]) * size + cell[:, 2]  # (M,) flat [x, y, z]
            weight.scatter_reduce_(0, cell, traced.drawn.weights, "amax", include_self=True)
        flat = torch.empty_like(weight)
        flat[self.order] = weight
        self.visible = dilate(flat, size) > VISIBLE_WEIGHT

    # --- validation and state

    @torch.no_grad()
    def validate(self, step: int) -> Validation:
        """Returns scalars and pictures of the validation split with the averaged weights."""
        counts: list[Drawn] = []

        def draw(i: int) -> tuple[Tensor, Tensor]:
            condition = self.head.encode_condition(self.data.landmarks_normalized[i : i + 1])
            drawn = draw_head(self.head, self.data.c2w[i], condition, self.camera, self.data.size_px)
            counts.append(drawn)
            if self.torso is None:
                return drawn.image, drawn.weights_sum
            behind = draw_torso(self.torso, self.data.c2w[i], self.camera, self.data.background)
            whole = drawn.image + (1 - drawn.weights_sum)[..., None] * behind
            return whole, torch.ones_like(drawn.weights_sum)

        self.head.eval()
        with self.optimizer.average.in_place():
            rows = validation_rows(self.data, self.settings.validation_frames)
            scalars, pictures = measure_frames(self.data, rows, draw)
        self.head.train()
        hit = float(sum(drawn.rays for drawn in counts))
        scalars["samples_per_ray"] = float(sum(drawn.samples for drawn in counts)) / max(hit, 1.0)
        scalars["samples_per_ray_hundredth"] = float(sum(d.samples_hundredth for d in counts)) / max(hit, 1.0)
        scalars["occupied_cells"] = float(self.head.occupancy.sum())
        scalars["minutes"] = self.optimizer.schedule.spent_s / 60
        return Validation(scalars=scalars, pictures=pictures)

    def state_dict(self) -> dict[str, Any]:
        """Returns weights, averaged weights, optimiser state and the speaker's metadata."""
        return {
            "model": self.head.state_dict(),
            "config": dataclasses.asdict(self.head.config),
            "speaker": speaker_metadata(self.data),
            "seen": self.visible,
            **self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores training state."""
        config = head_config_of(state["config"])
        if config != self.head.config:
            raise InputError(f"config: expected {config}, got {self.head.config}")
        self.head.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state)
        self.visible.copy_(state["seen"])


def make_task(data: Path, settings: HeadTrainingSettings, device: torch.device) -> HeadTask:
    """Returns the task of training a head on a speaker's folder."""
    loaded = load_speaker_data(
        data,
        device=device,
        frames=settings.frames,
        window_frames=settings.window_frames,
        lookahead_frames=settings.lookahead_frames,
        mean_face=settings.mean_face,
    )
    if settings.start is not None:
        before = load_head(settings.start)
        aabb = before.head.aabb_infer.numpy()
        loaded = dataclasses.replace(loaded, box=FieldBox(camera=before.camera, aabb=aabb))
    return HeadTask(loaded, settings, device)


def run(data: Path, out: Path, settings: HeadTrainingSettings, device: torch.device) -> bool:
    """Returns whether it replaced training: with `validate_only` it measures and writes `slim.pt`."""
    if not settings.validate_only:
        return False
    task = make_task(data, settings, device)
    measure_and_slim(task, out)
    return True
