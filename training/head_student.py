"""Knowledge distillation of a head into one with narrower networks; no video is needed.

A step renders rays of random poses and conditions with both. The teacher places the samples and gives the
targets: opacity and colour of each sample, weighted by transmittance and compositing weight, and the ray's
colour over a random background. The student starts from the teacher's grids and random networks; supervising
its ambient coordinates made no picture better.

Neither media nor ONNX is needed here, so that training can run where little is installed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from cuda_kernels.arrays import F32, U8
from cuda_kernels.errors import InputError
from cuda_kernels.scene import Camera
from cuda_kernels.torch_reference import (
    Samples,
    camera_rays,
    composite,
    field_pose,
    pack,
    rays_through,
    unpack,
)
from models.condition import ConditionConfig
from models.density_grid import cell_positions
from models.encodings import GridConfig
from models.head import Head, HeadConfig
from models.partial_files import atomic_write
from models.settings import Option, Range, from_mapping, to_mapping
from models.speaker_settings import SPHERICAL_HARMONICS, GridSettings, HeadSettings
from models.torch_device import device_named

from .field_optimizer import FieldOptimizer, FieldTrainingSettings
from .fields import uses_cuda_kernels
from .loop import LoopSettings, Outcome, Validation, fit
from .ranges import COUNT, RATE, SHARE, WIDTH

LESSONS_FILE = "lessons.safetensors"
HELD_OUT = 0.1  # validation split: the end of the poses and of the conditions
BOX_POINTS = 4096  # occupied cells whose projection bounds the head
MIXED_SHARE = 0.5  # of a step's conditions: inter- or extrapolated from two recorded ones
EXTRAPOLATION = 0.15  # at most, as a share of their distance
COLOR_WEIGHT = 0.3  # of the samples' colours, the rays' counting 1
ALPHA_WEIGHT = 0.1  # of the samples' opacities


class LessonsError(InputError):
    """Lessons that cannot be read, or a head that cannot be distilled."""


@dataclass(frozen=True, kw_only=True)
class StudentTrainingSettings(FieldTrainingSettings):
    """Size of the student and how it is trained."""

    frames_per_step: Annotated[int, Range(1, 10_000), Option("poses and conditions that share a step")] = 32
    pixels_per_frame: Annotated[int, COUNT, Option("rays of each")] = 2048
    net_rate: Annotated[float, RATE, Option("learning rate of the networks")] = 1e-2
    hidden: Annotated[int, WIDTH, Option("width of the three networks")] = 32
    mouth_share: Annotated[float, SHARE, Option("of the rays go to the mouth's box")] = 0.25
    validation_px: Annotated[int, Range(1, 4096), Option("size of the pictures drawn at validation")] = 256
    compile: Annotated[bool, Option("compile both fields with torch.compile")] = False
    samples_per_ray: Annotated[
        int, Range(1, 10_000), Option("room for samples where compiled, mean over rays")
    ] = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class Lessons:
    """Distillation data: the teacher, poses and conditions."""

    settings: HeadSettings
    tensors: Mapping[str, npt.NDArray[Any]]  # of the teacher, under head.safetensors' keys
    camera: Camera
    image_size_px: int
    poses: F32  # (P, 4, 4) camera to head space
    conditions: F32  # (K, C) in the order of time
    mouth: F32  # (m, 3) head space: corners of the lips' range; none where unknown
    source: str  # identifies what they were made from

    def __post_init__(self) -> None:
        """Checks that there is enough for both splits."""
        for name in ("poses", "conditions"):
            if len(getattr(self, name)) < 2:
                raise LessonsError(
                    f"{name}: expected at least 2, got {len(getattr(self, name))}; give more of them"
                )


def save_lessons(path: Path, lessons: Lessons) -> None:
    """Writes the lessons whole or not at all."""
    arrays = {f"teacher.{key}": value for key, value in lessons.tensors.items()}
    arrays |= {name: getattr(lessons, name) for name in ("poses", "conditions", "mouth")}
    notes = {
        "head": json.dumps(to_mapping(lessons.settings)),
        "camera": json.dumps(dataclasses.asdict(lessons.camera)),
        "image_size_px": str(lessons.image_size_px),
        "source": lessons.source,
    }
    with atomic_write(path) as part:
        part.write_bytes(save({name: np.ascontiguousarray(a) for name, a in arrays.items()}, notes))


def load_lessons(path: Path) -> Lessons:
    """Returns the lessons that `save_lessons` wrote.

    Raises:
        LessonsError: the file is missing or no lessons.
    """
    try:
        with safe_open(str(path), framework="numpy") as stored:
            notes = stored.metadata()
            arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 -- no mapping
        camera = json.loads(notes["camera"])
        return Lessons(
            settings=from_mapping(HeadSettings, json.loads(notes["head"])),
            tensors={n.removeprefix("teacher."): a for n, a in arrays.items() if n.startswith("teacher.")},
            camera=Camera(**{**camera, "offset": tuple(camera["offset"])}),
            image_size_px=int(notes["image_size_px"]),
            poses=arrays["poses"],
            conditions=arrays["conditions"],
            mouth=arrays["mouth"],
            source=notes["source"],
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise LessonsError(f"{path}: expected lessons, got: {reason}; delete it to make them anew") from None


# --- heads --------------------------------------------------------------------------------------------


def head_of(lessons: Lessons) -> Head:
    """Returns the teacher in evaluation mode; its condition networks are not stored and stay random.

    Raises:
        LessonsError: its grids or networks are laid out as no `HeadConfig` is.
    """
    settings, tensors, camera = lessons.settings, lessons.tensors, lessons.camera
    a, b, c, d, e, f = (float(edge) for edge in tensors["aabb"])
    sizes = {"ambient": settings.ambient_net, "sigma": settings.sigma_net, "color": settings.color_net}
    for name, widths in sizes.items():
        if len(widths) < 3 or len(set(widths[1:-1])) != 1:
            raise LessonsError(f"head.{name}_net: expected hidden layers of one width, got {list(widths)}")
    config = HeadConfig(
        condition=ConditionConfig(window_frames=1, lookahead_frames=0, outputs=settings.condition_size),
        position_grid=_grid_config(
            "position_grid", settings.position_grid, tensors["position_embedder.offsets"], 3
        ),
        ambient_grid=_grid_config(
            "ambient_grid", settings.ambient_grid, tensors["ambient_embedder.offsets"], 2
        ),
        hidden_ambient=sizes["ambient"][1],
        hidden_sigma=sizes["sigma"][1],
        hidden_color=sizes["color"][1],
        layers_ambient=len(sizes["ambient"]) - 1,
        layers_sigma=len(sizes["sigma"]) - 1,
        layers_color=len(sizes["color"]) - 1,
        geometry_features=sizes["color"][0] - SPHERICAL_HARMONICS - settings.individual_code,
        codes=1,
        code_width=settings.individual_code,
        grid_size=settings.grid_size,
        bound=settings.bound,
        aabb=(a, b, c, d, e, f),
        camera_scale=camera.scale,
        camera_offset=camera.offset,
        max_steps=settings.max_steps,
        min_near=settings.min_near,
        stop_transmittance=settings.stop_transmittance,
    )
    head = Head(config)
    state = head.state_dict()
    state |= {key: torch.from_numpy(np.array(tensors[key])) for key in state if key in tensors}
    state["individual_embeddings"] = torch.from_numpy(np.array(tensors["individual_code"]))[None]
    head.load_state_dict(state)
    return head.eval()


def _grid_config(
    name: str, settings: GridSettings, offsets: npt.NDArray[np.int32], dimensions: int
) -> GridConfig:
    """Returns the configuration whose layout has these offsets."""
    finest = settings.base_resolution * 2 ** (settings.log2_growth * (settings.levels - 1))
    for log2_rows in range(3, 20):
        config = GridConfig(
            levels=settings.levels,
            features=settings.features,
            base_resolution=settings.base_resolution,
            desired_resolution=round(finest),
            log2_rows=log2_rows,
            hashed=settings.hashed,
            smoothstep=settings.smoothstep,
        )
        layout = config.layout(dimensions)
        grows_alike = abs(layout.log2_growth - settings.log2_growth) < 1e-7
        if grows_alike and layout.offsets == tuple(int(row) for row in offsets):
            return config
    raise LessonsError(
        f"head.{name}: expected {settings.levels} levels up to a whole number of cells, a power of two of "
        f"rows at most each, got {finest:.2f} cells and {settings.rows} rows in all; export the head anew"
    )


def narrow_head(wide: Head, hidden: int) -> Head:
    """Returns a head with `hidden` wide random networks and the teacher's grids, box and occupancy."""
    config = dataclasses.replace(
        wide.config,
        hidden_ambient=hidden,
        hidden_sigma=hidden,
        hidden_color=hidden,
        geometry_features=hidden,
    )
    narrow = Head(config)
    state = narrow.state_dict()
    kept = (key for key in state if not key.startswith(("ambient_net.", "sigma_net.", "color_net.")))
    state |= {key: wide.state_dict()[key] for key in kept}
    narrow.load_state_dict(state)
    return narrow


# --- the task -----------------------------------------------------------------------------------------


class _Rays(NamedTuple):
    rays_o: Tensor  # (N, 3)
    rays_d: Tensor  # (N, 3)
    frame: Tensor  # (N,) row of the condition
    condition: Tensor  # (F, C)


Field = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def _values(head: Head) -> Field:
    """Returns a function like `fields.field_values` to (M, 4) density and colour."""

    def values(positions: Tensor, rays_d: Tensor, condition: Tensor, ray: Tensor, frame: Tensor) -> Tensor:
        sigma, geometry, _ = head.density(positions, condition, frame)
        view_features = head.view_features(rays_d, head.individual_embeddings[:1])  # (N, H)
        color = head.color(geometry, view_features.index_select(0, ray))
        return torch.cat((sigma[:, None], color), 1)

    return values


class StudentTask:
    """Distils one head."""

    name = "head_student"

    def __init__(self, lessons: Lessons, settings: StudentTrainingSettings, device: torch.device) -> None:
        """Builds teacher and student, whose networks come from torch's generator.

        Raises:
            LessonsError: the teacher is not wider.
        """
        self.settings, self.device = settings, device
        self.camera, self.size_px = lessons.camera, lessons.image_size_px
        self.teacher = head_of(lessons).to(device).requires_grad_(False)
        require_wider(lessons.settings, settings.hidden)
        self.student = narrow_head(self.teacher, settings.hidden).to(device)
        kernels = uses_cuda_kernels(settings.kernels, device)
        self.teacher.use_kernels(kernels)
        self.student.use_kernels(kernels)
        self.poses = field_pose(torch.from_numpy(lessons.poses).to(device), self.camera)  # (P, 4, 4)
        self.conditions = torch.from_numpy(lessons.conditions).to(device)  # (K, C)
        self.train_poses, self.train_conditions = (
            max(1, int(len(rows) * (1 - HELD_OUT))) for rows in (self.poses, self.conditions)
        )
        self.head_boxes = self._boxes(self._occupied_places())
        offset = torch.tensor(self.camera.offset, device=device)
        mouth = torch.from_numpy(lessons.mouth).to(device)[:, [1, 2, 0]] * self.camera.scale + offset
        self.mouth_boxes = self._boxes(mouth) if len(mouth) else None
        self.teacher_values, self.student_values = _values(self.teacher), _values(self.student)
        rays = settings.frames_per_step * settings.pixels_per_frame
        self.capacity = rays * settings.samples_per_ray if settings.compile else None
        if settings.compile:
            self.teacher_values = torch.compile(self.teacher_values, dynamic=False)
            self.student_values = torch.compile(self.student_values, dynamic=False)
        grids: list[Tensor] = [
            self.student.position_embedder.embeddings,
            self.student.ambient_embedder.embeddings,
        ]
        self.optimizer = FieldOptimizer(self.student, grids, settings)
        self._truth: list[tuple[Tensor, Tensor]] = []

    # --- ray sampling

    def _occupied_places(self) -> Tensor:
        """Returns (M, 3) centres of evenly chosen occupied cells."""
        bits = self.teacher.density_bitfield[:, None] >> torch.arange(8, device=self.device) & 1
        cells = bits.reshape(-1).nonzero()[:, 0]
        chosen = cells[torch.linspace(0, len(cells) - 1, min(BOX_POINTS, len(cells))).long()]
        config = self.teacher.config
        return cell_positions(chosen, config.grid_size, bound=config.bound, jitter=False)

    def _boxes(self, places: Tensor) -> Tensor:
        """Returns (P, 4) bounding boxes x0 y0 x1 y1 in pixels of (M, 3) points in field space, one a pose."""
        local = torch.stack([(places - pose[:3, 3]) @ pose[:3, :3] for pose in self.poses])  # (P, M, 3)
        centre = torch.tensor((self.camera.cx_px, self.camera.cy_px), device=self.device)
        at = local[..., :2] / local[..., 2:].clamp(min=1e-3) * self.camera.focal_px + centre
        cell_px = 2 * self.camera.focal_px / self.teacher.config.grid_size / local[..., 2].mean()
        low, high = at.amin(1) - cell_px, at.amax(1) + cell_px
        return torch.cat((low, high), 1).clamp(0, self.size_px)

    def _rays(self) -> _Rays:
        """Returns rays of random training poses through the head's and the mouth's box."""
        frames, pixels = self.settings.frames_per_step, self.settings.pixels_per_frame
        rows = torch.randint(self.train_poses, (frames,), device=self.device)
        at_mouth = 0 if self.mouth_boxes is None else round(pixels * self.settings.mouth_share)
        box = self.head_boxes[rows, None].expand(-1, pixels, -1)  # (F, n, 4)
        if self.mouth_boxes is not None:
            mouth = self.mouth_boxes[rows, None].expand(-1, at_mouth, -1)
            box = torch.cat((box[:, at_mouth:], mouth), 1)
        where = torch.lerp(
            box[..., :2], box[..., 2:], torch.rand(frames, pixels, 2, device=self.device)
        )  # (F, n, 2)
        rays_o, rays_d = rays_through(where[..., 0], where[..., 1], self.poses[rows][:, None], self.camera)
        frame = torch.arange(frames, device=self.device).repeat_interleave(pixels)
        return _Rays(rays_o.reshape(-1, 3), rays_d.reshape(-1, 3), frame, self._conditions(frames))

    def _conditions(self, count: int) -> Tensor:
        """Returns (count, C) training conditions, some mixed of two."""
        one, other = (
            self.conditions[torch.randint(self.train_conditions, (count,), device=self.device)]
            for _ in range(2)
        )
        mixed = torch.rand(count, 1, device=self.device) < MIXED_SHARE
        share = (1 + 2 * EXTRAPOLATION) * torch.rand(count, 1, device=self.device) - EXTRAPOLATION
        return torch.where(mixed, torch.lerp(one, other, share), one)

    # --- steps

    def training_step(self, step: int) -> dict[str, float | Tensor]:
        """Returns the scalars of one step over rays of several poses and conditions."""
        _, rate = self.optimizer.begin(step)
        rays = self._rays()
        length = self.teacher.step
        with torch.no_grad():
            samples, true = self._teacher_samples(rays)
            shown = composite(
                true[..., 0],
                true[..., 1:],
                samples,
                step=length,
                stop_transmittance=self.teacher.config.stop_transmittance,
            )
            before = 1 - shown.weights.cumsum(1) + shown.weights  # transmittance, (N, S)
            before = torch.where(shown.live, before, 0.0)
            alpha = 1 - torch.exp(-true[..., 0] * length)
            hit = samples.mask[:, 0].sum().clamp(min=1)
        live = Samples(samples.t, shown.live)
        student = self._query(self.student_values, rays, live)
        drawn = composite(student[..., 0], student[..., 1:], live, step=length, stop_transmittance=0.0)

        behind = torch.rand_like(shown.image)
        image, target = (
            picture.image + (1 - picture.weights_sum)[:, None] * behind for picture in (drawn, shown)
        )
        error = (image - target).square().mean(-1)  # (N,)
        pixel = error.sum() / hit
        color = (shown.weights * (student[..., 1:] - true[..., 1:]).square().mean(-1)).sum() / hit
        student_alpha = 1 - torch.exp(-student[..., 0] * length)
        opacity = (before * (student_alpha - alpha).square()).sum() / hit
        self.optimizer.step(pixel + COLOR_WEIGHT * color + ALPHA_WEIGHT * opacity, step)
        return {
            "pixel": pixel.detach(),
            "psnr_db": -10 * torch.log10(pixel.detach().clamp(min=1e-10)),
            "color": color.detach(),
            "alpha": opacity.detach(),
            "samples": shown.live.sum() / hit,
            "rate": rate,
        }

    def _teacher_samples(self, rays: _Rays) -> tuple[Samples, Tensor]:
        """Returns the samples of the rays and the teacher's (N, S, 4) values there."""
        samples = self.teacher.march(rays.rays_o, rays.rays_d, capacity=self.capacity).samples
        if self.capacity is not None:  # samples beyond the buffer are dropped for both heads
            room = samples.mask.reshape(-1).cumsum(0).view_as(samples.mask) <= self.capacity
            samples = Samples(samples.t, samples.mask & room)
        return samples, self._query(self.teacher_values, rays, samples)

    def _query(self, values: Field, rays: _Rays, samples: Samples) -> Tensor:
        """Returns (N, S, 4) values at the samples, zeros where there are none."""
        shape = (samples.t.shape[0], samples.t.shape[1])
        packed = pack(samples.mask, self.capacity)
        ray = packed.slots // shape[1]
        t = samples.t.reshape(-1)[packed.slots]
        bound = self.teacher.config.bound
        positions = (rays.rays_o[ray] + t[:, None] * rays.rays_d[ray]).clamp(-bound, bound)
        found = values(positions, rays.rays_d, rays.condition, ray, rays.frame[ray])
        return unpack(found.float(), packed, shape)

    # --- validation and state

    @torch.no_grad()
    def validate(self, step: int) -> Validation:
        """Returns PSNR between both heads' pictures over gray, on the validation split."""
        with self.optimizer.average.in_place():
            answers = [self._draw(self.student, i) for i in range(self.settings.validation_frames)]
        self._truth = self._truth or [
            self._draw(self.teacher, i) for i in range(self.settings.validation_frames)
        ]
        errors: dict[str, list[Tensor]] = {"whole": [], "head": [], "mouth": []}
        largest = 0.0
        for i, ((image, _), (truth, weights)) in enumerate(zip(answers, self._truth, strict=True)):
            error = (image - truth).square().mean(-1)  # (H, W)
            errors["whole"].append(error.mean())
            errors["head"].append(error[weights > 0.5].mean())
            if self.mouth_boxes is not None:
                x0, y0, x1, y1 = self._mouth(self.mouth_boxes, i)
                errors["mouth"].append(error[y0:y1, x0:x1].mean())
            largest = max(largest, float((image - truth).abs().max()))
        scalars = {
            f"psnr_{name}_db": -10 * float(torch.stack(found).mean().clamp(min=1e-10).log10())
            for name, found in errors.items()
            if found
        }
        scalars |= {"largest_error": largest, "minutes": self.optimizer.schedule.spent_s / 60}
        pictures = {
            f"held_out_{i}": _side_by_side(answers[i][0], self._truth[i][0])
            for i in range(min(2, len(answers)))
        }
        return Validation(scalars=scalars, pictures=pictures)

    def _held_out(self, i: int) -> tuple[int, int]:
        """Returns the rows of the i-th validation picture's pose and condition, spread over the split."""
        part = (i + 0.5) / self.settings.validation_frames
        poses, conditions = len(self.poses), len(self.conditions)
        return (
            self.train_poses + int(part * (poses - self.train_poses)),
            self.train_conditions + int(part * (conditions - self.train_conditions)),
        )

    def _mouth(self, boxes: Tensor, i: int) -> tuple[int, int, int, int]:
        scale = self.settings.validation_px / self.size_px
        x0, y0, x1, y1 = (boxes[self._held_out(i)[0]] * scale).tolist()
        return int(x0), int(y0), max(int(x1), int(x0) + 1), max(int(y1), int(y0) + 1)

    def _draw(self, head: Head, i: int) -> tuple[Tensor, Tensor]:
        """Returns the i-th validation picture (H, W, 3) over gray and the head's opacity (H, W)."""
        pose, condition = self._held_out(i)
        side = self.settings.validation_px
        rays_o, rays_d = camera_rays(self.poses[pose], self.camera, side, self.size_px)
        parts = [
            head(o, d, self.conditions[condition : condition + 1], torch.full_like(o, 0.5))
            for o, d in zip(torch.split(rays_o, 1 << 16), torch.split(rays_d, 1 << 16), strict=True)
        ]
        image = torch.cat([part.image for part in parts]).view(side, side, 3)
        return image, torch.cat([part.weights_sum for part in parts]).view(side, side)

    def state_dict(self) -> dict[str, Any]:
        """Returns the student's parameters, averaged parameters, optimiser state."""
        return {
            "hidden": self.settings.hidden,
            "model": {name: value.detach() for name, value in self.student.named_parameters()},
            **self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores training state."""
        if state["hidden"] != self.settings.hidden:
            raise InputError(f"hidden: expected {self.settings.hidden}, got {state['hidden']}")
        self.student.load_state_dict(self.student.state_dict() | state["model"])
        self.optimizer.load_state_dict(state)


def require_wider(settings: HeadSettings, hidden: int) -> None:
    """Raises LessonsError unless each of the head's networks is wider than `hidden`."""
    for name in ("ambient_net", "sigma_net", "color_net"):
        width = min(getattr(settings, name)[1:-1], default=0)
        if width <= hidden:
            raise LessonsError(
                f"head.{name}: expected wider than the slim head's {hidden}, got {width}; it is slim already"
            )


def _side_by_side(image: Tensor, truth: Tensor) -> U8:
    """Returns (H, 3 W, 3): student, teacher, five times their difference."""
    whole = torch.cat((image, truth, 5 * (image - truth).abs()), 1)
    pixels: U8 = (whole.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return pixels


def train(work: Path, settings: StudentTrainingSettings, loop: LoopSettings) -> tuple[StudentTask, Outcome]:
    """Returns the task and how `fit` ended, trained or resumed on the lessons in `work`.

    Needs torch, numpy, safetensors, tqdm, tensorboard and OpenCV, and no speaker.

    Raises:
        InputError: no lessons in `work`, a head that cannot be distilled, or no such device.
        CheckpointError: the newest checkpoint in `work` is broken or of another width.
    """
    lessons = load_lessons(work / LESSONS_FILE)
    device = device_named(loop.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    torch.manual_seed(loop.seed)
    task = StudentTask(lessons, settings, device)
    return task, fit(task, work, loop)
