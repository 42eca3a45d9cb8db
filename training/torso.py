"""Training of a speaker's torso: a 2-D field over the picture, driven by the head's pose.

Where the torso is visible the frame is the ground truth; where the head hides it, the plate is, so that a
moving head uncovers no hole. With a trained head there is a loss on the composited picture too.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional

from cuda_kernels.errors import InputError
from cuda_kernels.torch_reference import field_pose, image_coordinates, pose_vector
from models.encodings import GridConfig
from models.settings import Option
from models.torso import Query, Torso, TorsoConfig
from preparation.speaker_set import BACKGROUND, HEAD, NECK

from .field_optimizer import FieldOptimizer, FieldTrainingSettings
from .field_validation import measure_and_slim, measure_frames, validation_rows
from .fields import (
    Field,
    Precision,
    Traced,
    TrainedHead,
    draw_head,
    draw_torso,
    field_values,
    load_head,
    load_torso,
    rays_of,
    sample_capacity,
    speaker_metadata,
    torso_config_of,
    trace,
    uses_cuda_kernels,
)
from .loop import LoopSettings, Validation
from .ranges import LEVELS, LOG2_ROWS, OCTAVES, RESOLUTION, STEPS, WEIGHT, WIDTH
from .ray_sampler import Pixels, figure_box, ground_truth_at, labels_around, neighbours, sample_by_weight
from .speaker_data import SpeakerData, load_speaker_data

OCCUPANCY_EVERY = 16
OCCUPANCY_DECAY = 0.98
EDGE_RADIUS_PX = 2
EDGE_WEIGHT = 3.0
EMPTY_WEIGHT = 0.2
CAPACITY_HEADROOM = 1.2  # over the most samples that the head's rays had in a few steps
HEAD_EDGE_SHARE = 0.3  # weight of a pixel at the head's edge in the loss without the head

SIZES = TorsoConfig.streaming()  # the defaults below
LOOP = LoopSettings(steps=10_000, validate_every=2000, checkpoint_every=2000, validate_at_stop=True)


@dataclass(frozen=True, kw_only=True)
class TorsoTrainingSettings(FieldTrainingSettings):
    """Sizes of the torso and how it is trained."""

    mean_face: Annotated[Path | None, Option("npz with mean_face (68, 3)")] = None
    head: Annotated[
        Path | None, Option("trained head (folder or checkpoint) to draw over it, as in the end")
    ] = None
    start: Annotated[
        Path | None, Option("trained torso of the same sizes (folder or checkpoint) to go on from")
    ] = None
    hidden: Annotated[int, WIDTH, Option("width of both networks")] = SIZES.hidden_deform
    levels: Annotated[int, LEVELS, Option("levels of the grid")] = SIZES.grid.levels
    log2_rows: Annotated[int, LOG2_ROWS, Option("rows a level of the grid, log2")] = SIZES.grid.log2_rows
    resolution: Annotated[int, RESOLUTION, Option("finest cells along a side")] = (
        SIZES.grid.desired_resolution
    )
    position_octaves: Annotated[int, OCTAVES, Option("frequencies of the position")] = SIZES.position_octaves
    pose_octaves: Annotated[int, OCTAVES, Option("frequencies of the pose")] = SIZES.pose_octaves
    anneal_steps: Annotated[int, STEPS, Option("steps over which the rates fall")] = 10_000
    hidden_weight: Annotated[float, WEIGHT, Option("of what the head hides")] = 0.1
    deform_weight: Annotated[float, WEIGHT, Option("of the deformation's size")] = 1e-4
    precision: Annotated[Precision, Option("of the networks' arithmetic")] = "fp32"
    compile: Annotated[bool, Option("compile the fields with torch.compile")] = False

    def config(self) -> TorsoConfig:
        """Returns the torso's sizes."""
        return dataclasses.replace(
            SIZES,
            grid=GridConfig(levels=self.levels, log2_rows=self.log2_rows, desired_resolution=self.resolution),
            hidden_deform=self.hidden,
            hidden_canonical=self.hidden,
            position_octaves=self.position_octaves,
            pose_octaves=self.pose_octaves,
        )


class TorsoTask:
    """Trains one torso."""

    name = "torso"

    def __init__(self, data: SpeakerData, settings: TorsoTrainingSettings, device: torch.device) -> None:
        """Builds the torso; with a trained head, in that head's field space."""
        self.data, self.settings, self.device = data, settings, device
        self.trained_head: TrainedHead | None = None
        self.camera = data.box.camera
        if settings.head is not None:
            self.trained_head = load_head(settings.head, device=device)
            self.camera = self.trained_head.camera
        self.torso = Torso(settings.config()).to(device).train()
        kernels = uses_cuda_kernels(settings.kernels, device)
        self.torso.use_kernels(kernels)
        self.query: Query = self.torso.query
        if settings.compile:
            self.query = torch.compile(self.query, dynamic=False)
        if settings.start is not None:
            before = load_torso(settings.start, device=device)
            if before.torso.config != self.torso.config:
                raise InputError(
                    f"{settings.start}: config: expected {self.torso.config}, got {before.torso.config}"
                )
            self.torso.load_state_dict(before.torso.state_dict())
            self.torso.mean_density = before.torso.mean_density
            if self.trained_head is None:
                self.camera = before.camera
        self.poses = field_pose(data.c2w, self.camera)
        self.pose6 = pose_vector(self.poses)  # (n, 6)
        self.box = _torso_box(data)
        self.possible = _possible_cells(data, self.torso.config.grid_size)
        self.optimizer = FieldOptimizer(self.torso, [self.torso.torso_embedder.embeddings], settings)
        self.capacity: int | None = None  # none: `_head_capacity` measures without a limit
        if self.trained_head is not None:
            self.trained_head.head.use_kernels(kernels)
            self.values: Field = field_values(self.trained_head.head)
            self.capacity = self._head_capacity()
            if settings.compile:
                self.values = torch.compile(self.values, dynamic=False)

    def training_step(self, step: int) -> dict[str, float | Tensor]:
        """Returns the scalars of one step over pixels of several frames."""
        settings, data = self.settings, self.data
        _, rate = self.optimizer.begin(step)
        if step % OCCUPANCY_EVERY == 0:
            i = torch.randint(data.train_frames, (1,), device=self.device)
            self.torso.update_density(self.pose6[i], decay=OCCUPANCY_DECAY)
            self.torso.density_grid_torso *= self.possible

        pixels = self._sample_pixels()
        at = (pixels.rows, pixels.columns)
        labels, truth = pixels.labels, pixels.truth
        plain = data.background[at].float() / 255
        plate = data.plate[at].float() / 255
        covered = labels == HEAD
        continued = covered & (data.plate_alpha[at] > 0.5)
        # Random backgrounds except at the torso's own border; the target follows from the masks.
        border = self._border(pixels)
        random = torch.rand_like(truth)
        behind = torch.where(border[..., None], plain, random)
        target = torch.where((labels >= NECK)[..., None], truth, behind)
        target = torch.where(continued[..., None], plate, target)
        target = torch.where((border & (labels == BACKGROUND))[..., None], truth, target)
        weight = torch.where(covered, settings.hidden_weight, 1.0)
        weight = torch.where(pixels.edge & ~covered, HEAD_EDGE_SHARE, weight)

        frame = torch.arange(len(pixels.frames), device=self.device).repeat_interleave(at[0].shape[1])
        coordinates = image_coordinates(
            pixels.columns.reshape(-1) + 0.5, pixels.rows.reshape(-1) + 0.5, data.size_px
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            drawn = self.torso(
                coordinates,
                self.pose6[pixels.frames],
                behind.reshape(-1, 3),
                frame=frame,
                query=self.query,
            )
        error = (drawn.image - target.reshape(-1, 3)).square().mean(-1)
        mse = (error * weight.reshape(-1)).mean()
        loss = mse + settings.deform_weight * drawn.deform.square().sum(-1).mean()

        whole_mse = torch.zeros((), device=self.device)
        if self.trained_head is not None:
            head, marched = self._trace_head(pixels)
            # The same torso composited over the true background instead of the random one.
            over = drawn.image + (1 - drawn.alpha)[:, None] * (plain - behind).reshape(-1, 3)
            whole = head.image + (1 - head.weights_sum)[:, None] * over
            fits = marched.fits.float()
            wrong = (whole - truth.reshape(-1, 3)).square().mean(-1)
            whole_mse = (wrong * fits).sum() / fits.sum().clamp(min=1)
            loss = loss + whole_mse
        self.optimizer.step(loss, step)
        with torch.no_grad():
            seen = ((labels >= NECK) & ~pixels.edge).reshape(-1)
            torso_mse = (error * seen).sum() / seen.sum().clamp(min=1)
        return {
            "mse": mse.detach(),
            "psnr_torso_db": -10 * torch.log10(torso_mse.clamp(min=1e-10)),
            "whole_mse": whole_mse.detach(),
            "rate": rate,
        }

    @torch.no_grad()
    def _sample_pixels(self) -> Pixels:
        """Returns random pixels of random training frames around the torso, more at its borders."""
        settings, data = self.settings, self.data
        frames = torch.randint(data.train_frames, (settings.frames_per_step,), device=self.device)
        top, left, height, width = self.box
        shape = (settings.frames_per_step, 2 * settings.pixels_per_frame)
        rows = top + torch.randint(height, shape, device=self.device)
        columns = left + torch.randint(width, shape, device=self.device)
        labels = data.labels[frames[:, None], rows, columns]
        weight = torch.where(labels >= NECK, 1.0, EMPTY_WEIGHT)
        weight = weight.masked_fill(self._differs(frames, rows, columns, labels), EDGE_WEIGHT)
        best = sample_by_weight(weight, settings.pixels_per_frame)
        return ground_truth_at(data, frames, rows.gather(1, best), columns.gather(1, best))

    def _differs(self, frames: Tensor, rows: Tensor, columns: Tensor, labels: Tensor) -> Tensor:
        """Returns (F, n) bool: the label differs EDGE_RADIUS_PX to the left, right, above or below."""
        r = EDGE_RADIUS_PX
        places = ((-r, 0), (r, 0), (0, -r), (0, r))
        return (labels_around(self.data.labels, frames, rows, columns, places) != labels[..., None]).any(-1)

    def _border(self, pixels: Pixels) -> Tensor:
        """Returns (F, n) bool: torso and background meet within EDGE_RADIUS_PX, away from the head."""
        around = labels_around(
            self.data.labels, pixels.frames, pixels.rows, pixels.columns, neighbours(EDGE_RADIUS_PX)
        )  # (F, n, k)
        to_background = (pixels.labels >= NECK) & (around == BACKGROUND).any(-1)
        to_torso = (pixels.labels == BACKGROUND) & (around >= NECK).any(-1)
        return (to_background | to_torso) & ~pixels.edge

    def _head_capacity(self) -> int:
        """Returns the sample buffer's size for the frozen head: what a few steps need, and headroom."""
        assert self.trained_head is not None
        needed = (self._trace_head(self._sample_pixels()).marched.n_samples_needed for _ in range(4))
        rays = self.settings.frames_per_step * self.settings.pixels_per_frame
        limit = rays * self.trained_head.head.config.max_steps
        return sample_capacity(CAPACITY_HEADROOM * max(map(int, needed)), limit)

    @torch.no_grad()
    def _trace_head(self, pixels: Pixels) -> Traced:
        """Returns the frozen head at the sampled pixels."""
        assert self.trained_head is not None
        head = self.trained_head.head
        rays_o, rays_d, frame = rays_of(pixels, self.poses, self.camera)
        return trace(
            head,
            rays_o,
            rays_d,
            head.encode_condition(self.data.landmarks_normalized[pixels.frames]),
            frame,
            values=self.values,
            max_steps=head.config.max_steps,
            capacity=self.capacity,
            precision=self.settings.precision,
        )

    @torch.no_grad()
    def validate(self, step: int) -> Validation:
        """Returns scalars and pictures of the validation split; the ground truth replaces an absent head."""
        data = self.data

        def draw(i: int) -> tuple[Tensor, Tensor]:
            behind = draw_torso(self.torso, data.c2w[i], self.camera, data.background)
            if self.trained_head is None:
                covered = (data.labels[i] == HEAD)[..., None]
                whole = torch.where(covered, data.pictures[i].float() / 255, behind)
            else:
                head = self.trained_head.head
                condition = head.encode_condition(data.landmarks_normalized[i : i + 1])
                drawn = draw_head(head, data.c2w[i], condition, self.camera, data.size_px)
                whole = drawn.image + (1 - drawn.weights_sum)[..., None] * behind
            return whole, torch.ones(whole.shape[:2], device=whole.device)

        self.torso.eval()
        with self.optimizer.average.in_place():
            rows = validation_rows(data, self.settings.validation_frames)
            scalars, pictures = measure_frames(data, rows, draw)
            alone = draw_torso(self.torso, data.c2w[rows[0]], self.camera, data.background)
        self.torso.train()
        pictures["torso_alone"] = (alone.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        scalars["occupied_share"] = float((self.torso.density_grid_torso > 0.01).float().mean())
        scalars["minutes"] = self.optimizer.schedule.spent_s / 60
        return Validation(scalars=scalars, pictures=pictures)

    def state_dict(self) -> dict[str, Any]:
        """Returns weights, averaged weights, optimiser state and the speaker's metadata."""
        facts = speaker_metadata(self.data)
        facts["camera"] = dataclasses.asdict(self.camera)
        return {
            "model": self.torso.state_dict(),
            "config": dataclasses.asdict(self.torso.config),
            "speaker": facts,
            "mean_density": float(self.torso.mean_density),
            **self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores training state."""
        config = torso_config_of(state["config"])
        if config != self.torso.config:
            raise InputError(f"config: expected {config}, got {self.torso.config}")
        self.torso.load_state_dict(state["model"])
        self.torso.mean_density = float(state["mean_density"])
        self.optimizer.load_state_dict(state)


def _torso_box(data: SpeakerData) -> tuple[int, int, int, int]:
    """Returns the bounding box (row, column, rows, columns) of the torso in all frames and the plate."""
    top, left, height, width = figure_box(data.labels[: data.train_frames], least_label=NECK)
    rows = (data.plate_alpha > 0.5).any(1).nonzero()[:, 0]
    first = min(top, max(0, int(rows[0]) - 6))
    return first, left, top + height - first, width


def _possible_cells(data: SpeakerData, size: int) -> Tensor:
    """Returns (size * size,) float, column-major as the torso's grid: 1 at and next to the plate's torso."""
    ever = (data.plate_alpha > 0).float()[None, None]
    cells = functional.adaptive_max_pool2d(ever, size)  # (1, 1, rows, columns)
    return functional.max_pool2d(cells, 3, 1, 1)[0, 0].T.reshape(-1)


def make_task(data: Path, settings: TorsoTrainingSettings, device: torch.device) -> TorsoTask:
    """Returns the task of training a torso on a speaker's folder."""
    loaded = load_speaker_data(data, device=device, frames=settings.frames, mean_face=settings.mean_face)
    return TorsoTask(loaded, settings, device)


def run(data: Path, out: Path, settings: TorsoTrainingSettings, device: torch.device) -> bool:
    """Returns whether it replaced training: with `validate_only` it measures and writes `slim.pt`."""
    if not settings.validate_only:
        return False
    measure_and_slim(make_task(data, settings, device), out)
    return True
