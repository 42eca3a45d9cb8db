"""Heads and torsos loaded from checkpoints, and volume rendering of them by ray marching."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from cuda_kernels import torch_launcher
from cuda_kernels.arrays import F32
from cuda_kernels.errors import InputError
from cuda_kernels.scene import Camera
from cuda_kernels.torch_reference import (
    Marched,
    Rays,
    field_pose,
    image_coordinates,
    pixel_centres,
    pose_vector,
    rays_through,
    unpack,
)
from models.condition import ConditionConfig
from models.encodings import GridConfig
from models.head import Head, HeadConfig
from models.torso import Torso, TorsoConfig

from .field_optimizer import Kernels
from .loop import checkpoints, load_task_state, save_checkpoint
from .ray_sampler import Pixels
from .speaker_data import SpeakerData

log = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16"]

RAYS_AT_ONCE = 1 << 17  # in pictures
CAPACITY_STEP = 1 << 14


def uses_cuda_kernels(kernels: Kernels, device: torch.device) -> bool:
    """Returns whether training on the device uses the CUDA kernels instead of their torch twins.

    Raises:
        InputError: they were asked for and do not run there.
    """
    runs = kernels != "torch" and device.type == "cuda" and torch_launcher.usable(device)
    if kernels == "cuda" and not runs:
        why = "the log says why" if device.type == "cuda" else "they need --device cuda"
        raise InputError(f"kernels: got cuda, but they do not run on {device}: {why}; use --kernels auto")
    log.info("marching, grids and compositing: %s", "CUDA kernels" if runs else "plain torch")
    return runs


# --- checkpoints --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TrainedHead:
    """A head loaded from a checkpoint, with its camera and landmark statistics."""

    head: Head
    camera: Camera
    image_size_px: int
    mean_face: F32  # (68, 3) dm
    landmark_mean: F32  # (68, 3)
    landmark_std: F32  # (68, 3)


def _camera_of(values: dict[str, Any]) -> Camera:
    """Returns the camera that `dataclasses.asdict` made a dict of."""
    return Camera(**{**values, "offset": tuple(values["offset"])})


def head_config_of(values: dict[str, Any]) -> HeadConfig:
    """Returns the configuration that `dataclasses.asdict` made a dict of."""
    return HeadConfig(
        **{
            **values,
            "condition": ConditionConfig(**values["condition"]),
            "position_grid": GridConfig(**values["position_grid"]),
            "ambient_grid": GridConfig(**values["ambient_grid"]),
        }
    )


def load_head(path: Path, *, device: torch.device | str = "cpu") -> TrainedHead:
    """Returns the head, averaged weights, of a training folder or checkpoint, in evaluation mode.

    Raises:
        CheckpointError: nothing there, unreadable or another task's.
    """
    state = load_task_state(path, "head", device="cpu")
    head = Head(head_config_of(state["config"]))
    head.load_state_dict(state["model"] | state.get("average", {}))
    head.to(device).eval()
    speaker = state["speaker"]
    return TrainedHead(
        head=head,
        camera=_camera_of(speaker["camera"]),
        image_size_px=int(speaker["image_size_px"]),
        mean_face=speaker["mean_face"].cpu().numpy(),
        landmark_mean=speaker["landmark_mean"].cpu().numpy(),
        landmark_std=speaker["landmark_std"].cpu().numpy(),
    )


@dataclass(frozen=True, kw_only=True)
class TrainedTorso:
    """A torso loaded from a checkpoint, with the camera whose field poses drive it."""

    torso: Torso
    camera: Camera
    image_size_px: int


def torso_config_of(values: dict[str, Any]) -> TorsoConfig:
    """Returns the configuration that `dataclasses.asdict` made a dict of."""
    return TorsoConfig(**{**values, "grid": GridConfig(**values["grid"])})


def load_torso(path: Path, *, device: torch.device | str = "cpu") -> TrainedTorso:
    """Returns the torso, averaged weights, of a training folder or checkpoint, in evaluation mode.

    Raises:
        CheckpointError: nothing there, unreadable or another task's.
    """
    state = load_task_state(path, "torso", device="cpu")
    torso = Torso(torso_config_of(state["config"]))
    torso.load_state_dict(state["model"] | state.get("average", {}))
    torso.to(device).eval()
    torso.mean_density = float(torso.density_grid_torso.mean())
    return TrainedTorso(
        torso=torso,
        camera=_camera_of(state["speaker"]["camera"]),
        image_size_px=int(state["speaker"]["image_size_px"]),
    )


def speaker_metadata(data: SpeakerData) -> dict[str, Any]:
    """Returns what a checkpoint stores of its speaker, in tensors and plain values."""
    return {
        "camera": dataclasses.asdict(data.box.camera),
        "image_size_px": data.size_px,
        "mean_face": torch.from_numpy(data.mean_face),
        "landmark_mean": torch.from_numpy(data.landmark_mean),
        "landmark_std": torch.from_numpy(data.landmark_std),
    }


def write_slim(out: Path, task: str) -> Path:
    """Writes `slim.pt`, the newest checkpoint with averaged weights and no optimiser; returns its path.

    Grid tables are float16, as in the bundle. `load_head` and `load_torso` read it.
    """
    newest = list(checkpoints(out))[-1]
    state = dict(load_task_state(out, task))
    model = state["model"] | state.pop("average", {})
    for name in ("optimizer", "seen"):
        state.pop(name, None)
    if "density_grid" in model:  # rendering needs only its bitfield; the densities would be half the file
        model["density_grid"] = torch.zeros_like(model["density_grid"][:, :1]).expand_as(
            model["density_grid"]
        )
    state["model"] = {
        name: value.half() if name.endswith("_embedder.embeddings") else value
        for name, value in model.items()
    }
    path = out / "slim.pt"
    save_checkpoint(path, {"version": 1, "task": task, "step": newest, "state": state, "rng": {}})
    return path


# --- rays ---------------------------------------------------------------------------------------------


def sample_capacity(samples: float, limit: int) -> int:
    """Returns the sample buffer size for `samples`: a multiple of CAPACITY_STEP, at most `limit`."""
    return min(limit, max(1, math.ceil(samples / CAPACITY_STEP)) * CAPACITY_STEP)


class Traced(NamedTuple):
    """N rays, marched and composited."""

    drawn: Rays  # `ambient` sums the absolute values of both ambient coordinates
    marched: Marched


Field = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def field_values(head: Head) -> Field:
    """Returns a function of (M, 3) positions, (N, 3) directions, (F, C) conditions, ray and frame indices.

    Its (M, 5) values are density, red, green, blue and the ambient coordinates' absolute sum.
    """

    def values(positions: Tensor, rays_d: Tensor, condition: Tensor, ray: Tensor, frame: Tensor) -> Tensor:
        sigma, geometry, ambient = head.density(positions, condition, frame)
        # View features per sample, not per ray: the gradient of a gather would be a sum over each ray's
        # samples, that of this is a matrix product.
        directions = rays_d.index_select(0, ray)
        view_features = head.view_features(directions, head.individual_embeddings[:1])  # (M, H)
        color = head.color(geometry, view_features)
        return torch.cat((sigma[:, None], color, ambient.abs().sum(-1, keepdim=True)), 1)

    return values


def trace(
    head: Head,
    rays_o: Tensor,
    rays_d: Tensor,
    condition: Tensor,
    frame: Tensor,
    *,
    values: Field,
    max_steps: int,
    capacity: int | None = None,
    precision: Precision = "fp32",
) -> Traced:
    """Returns (N, 3) rays of frames (N,) with conditions (F, C), rendered through the head.

    With a `capacity` all shapes are static and nothing synchronises; rays beyond it have `fits` false.
    """
    marched = head.march(rays_o, rays_d, max_steps=max_steps, capacity=capacity)
    with torch.autocast(rays_o.device.type, torch.bfloat16, enabled=precision == "bf16"):
        found = values(marched.positions, rays_d, condition, marched.ray, frame[marched.ray])
    return Traced(head.composite(found.float(), marched), marched)


def rays_of(pixels: Pixels, poses: Tensor, camera: Camera) -> tuple[Tensor, Tensor, Tensor]:
    """Returns rays_o (N, 3), rays_d (N, 3) and frame (N,), 0 to F - 1, of sampled pixels, N = F * n."""
    frames, count = pixels.rows.shape
    frame = torch.arange(frames, device=poses.device).repeat_interleave(count)
    pose = poses[pixels.frames][:, None]  # (F, 1, 4, 4)
    rays_o, rays_d = rays_through(pixels.columns + 0.5, pixels.rows + 0.5, pose, camera)  # (F, n, 3)
    return rays_o.reshape(-1, 3), rays_d.reshape(-1, 3), frame


class Drawn(NamedTuple):
    """One rendered frame of the head."""

    image: Tensor  # (H, W, 3), before any background
    weights_sum: Tensor  # (H, W)
    samples: Tensor  # () evaluated before rays terminated
    samples_hundredth: Tensor  # () the same, terminated at a transmittance of 1e-2
    rays: Tensor  # () that hit the head


@torch.no_grad()
def draw_head(head: Head, c2w: Tensor, condition: Tensor, camera: Camera, size_px: int) -> Drawn:
    """Returns the head alone at full size, from a (4, 4) camera pose and a (1, C) condition."""
    pose = field_pose(c2w, camera)
    columns, rows = pixel_centres(size_px, size_px, device=c2w.device)
    rays_o, rays_d = rays_through(columns, rows, pose, camera)
    values = field_values(head)
    images, sums, counts, fewer, hits = [], [], [], [], []
    for part in torch.split(torch.arange(len(rays_o), device=c2w.device), RAYS_AT_ONCE):
        traced = trace(
            head,
            rays_o[part],
            rays_d[part],
            condition,
            torch.zeros_like(part),
            values=values,
            max_steps=head.config.max_steps,
        )
        drawn, shape = traced.drawn, (len(part), head.config.max_steps)
        weights = unpack(drawn.weights, traced.marched.packed, shape)  # (N, S)
        before = 1 - weights.cumsum(1) + weights
        live = torch.arange(shape[1], device=c2w.device) < drawn.live[:, None]
        images.append(drawn.image)
        sums.append(drawn.weights_sum)
        counts.append(drawn.live.sum())
        fewer.append((live & (before >= 1e-2)).sum())
        hits.append((drawn.weights_sum > 0.5).sum())
    return Drawn(
        image=torch.cat(images).view(size_px, size_px, 3),
        weights_sum=torch.cat(sums).view(size_px, size_px),
        samples=torch.stack(counts).sum(),
        samples_hundredth=torch.stack(fewer).sum(),
        rays=torch.stack(hits).sum(),
    )


@torch.no_grad()
def draw_torso(torso: Torso, c2w: Tensor, camera: Camera, background: Tensor) -> Tensor:
    """Returns (H, W, 3) in [0, 1], the torso over the background (H, W, 3) uint8, from a camera pose."""
    size_px = background.shape[0]
    columns, rows = pixel_centres(size_px, size_px, device=c2w.device)
    pose6 = pose_vector(field_pose(c2w, camera))[None]
    plain = background.reshape(-1, 3).float() / 255
    drawn = torso(image_coordinates(columns, rows, size_px), pose6, plain)
    image: Tensor = drawn.image.view(size_px, size_px, 3)
    return image
