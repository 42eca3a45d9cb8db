"""Image quality of a head or a torso on the validation split."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cuda_kernels.arrays import U8
from models.partial_files import atomic_write

from .fields import write_slim
from .loop import Task, checkpoints, load_task_state
from .pictures import ClosenessMeter, regions_of, side_by_side, write_picture
from .ray_sampler import visible_behind
from .speaker_data import SpeakerData

log = logging.getLogger(__name__)


def measure_frames(
    data: SpeakerData,
    frames: list[int],
    draw: Callable[[int], tuple[Tensor, Tensor]],
    *,
    pictures: int = 2,
) -> tuple[dict[str, float], dict[str, U8]]:
    """Returns PSNR and SSIM by region, and the first `pictures` beside the ground truth.

    Args:
        data: the speaker.
        frames: rows of the data.
        draw: a frame's row to colour (H, W, 3) before any background and opacity (H, W); what is
            transparent shows the frame's own torso or the plate.
        pictures: how many to return.
    """
    meter, shown = ClosenessMeter(), {}
    for place, i in enumerate(frames):
        image, weights = draw(i)
        truth = data.pictures[i]
        behind = visible_behind(data, data.labels[i], truth.float() / 255)
        whole = image + (1 - weights)[..., None] * behind
        picture = (whole.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        landmarks = data.landmarks_2d[i].cpu().numpy()
        true = truth.cpu().numpy()
        meter.add(picture, true, regions_of(data.labels[i].cpu().numpy(), landmarks))
        if place < pictures:
            shown[f"frame_{int(data.frame_index[i]):05d}"] = side_by_side(picture, true, landmarks)
    closeness = meter.closeness()
    scalars = {f"psnr_{name}_db": value for name, value in closeness.psnr_db.items()}
    scalars |= {f"ssim_{name}": value for name, value in closeness.ssim.items()}
    return scalars, shown


def validation_rows(data: SpeakerData, count: int) -> list[int]:
    """Returns the rows of `count` evenly spaced frames of the validation split."""
    last = len(data.pictures) - 1
    return sorted({round(i) for i in np.linspace(data.train_frames, last, count)})


def measure_and_slim(task: Task, out: Path) -> dict[str, float]:
    """Returns the newest checkpoint's validation scalars; writes `figures.json` and `slim.pt`.

    Pictures go to `out/pictures`, their names beginning with `final_`.
    """
    task.load_state_dict(load_task_state(out, task.name))
    step = list(checkpoints(out))[-1]
    found = task.validate(step)
    (out / "pictures").mkdir(exist_ok=True)
    for name, picture in found.pictures.items():
        write_picture(out / "pictures" / f"final_{name}.png", picture)
    figures = {"step": float(step), **found.scalars}
    with atomic_write(out / "figures.json") as part:
        part.write_text(json.dumps(figures, indent=1) + "\n")
    slim = write_slim(out, task.name)
    log.info("%s: %s", slim, json.dumps({name: round(value, 4) for name, value in figures.items()}))
    return figures
