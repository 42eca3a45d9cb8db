"""Training of Audio2Motion: sound to landmarks of a common face.

Beside GeneFace's losses (reconstruction, continuity, KL, sync) there is one on what inference uses: the
prior's mode, from the sound alone. Errors are weighted by region (lips over jaw over the rest), lip opening
and closure. Blinks, brows and gaze do not correlate with sound, so squared error leaves their mean.
SyncNet is frozen, in evaluation mode.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from models.audio2motion import Audio2Motion, Audio2MotionConfig
from models.features import LogMel
from models.settings import BELOW_1, Option, Range, check_ranges
from models.syncnet import SyncNet
from models.time_base import FRAME_RATE_HZ
from preparation.sounds import Sound

from .corpus import (
    Clips,
    CropSettings,
    DegradeSettings,
    clip_weights,
    crops_at,
    degrade,
    load_corpus,
    random_crops,
)
from .loop import LoopSettings, Validation, load_task_state
from .measures import MotionMeasures, MotionTrack, compare_motion, measure_motion
from .plots import draw_curves
from .ranges import BATCH, COUNT, CROP_FRAMES, GRADIENT, RATE, SHARE, STEPS, WEIGHT
from .syncnet import load_syncnet, sync_loss_of_windows

MATMUL_PRECISION = "highest"  # TF32 would fill the quiet bands of the log-mel with rounding noise
LOOP = LoopSettings(
    steps=6000, validate_every=1000, checkpoint_every=500, log_every=50, keep_checkpoints=2, seed=9999
)
LIP_PAIRS = ((61, 67), (62, 66), (63, 65))  # upper and lower inner lip
CORNERS = (48, 54)
MM_PER_UNIT = 10.0  # landmarks are ten times the offset in dm


@dataclass(frozen=True, kw_only=True)
class MotionWeights:
    """Weights of the motion loss, by region and time."""

    mouth: Annotated[float, WEIGHT, Option("weight of the 20 mouth points")] = 1.0
    jaw: Annotated[float, WEIGHT, Option("weight of the 17 jaw points")] = 0.4
    upper: Annotated[float, WEIGHT, Option("weight of nose, brows and eyes")] = 0.15
    continuity: Annotated[float, WEIGHT, Option("weight of frame differences")] = 3.0
    opening: Annotated[float, WEIGHT, Option("weight of the opening of the inner lips")] = 2.0
    width: Annotated[float, WEIGHT, Option("weight of the distance of the mouth's corners")] = 1.0
    closure: Annotated[float, WEIGHT, Option("weight of b, p, m frames in the opening")] = 5.0
    silence: Annotated[float, WEIGHT, Option("weight of resting frames in the opening")] = 2.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class Audio2MotionSettings:
    """How Audio2Motion is trained."""

    steps: Annotated[int, STEPS, Option("steps in all; the rate falls over them")] = LOOP.steps
    batch: Annotated[int, BATCH, Option("crops a step")] = 128
    frames: Annotated[int, CROP_FRAMES, Option("frames of a crop that count")] = 80
    warm_frames: Annotated[
        int | None, Range(0, 10_000), Option("frames before them that do not; the receptive field if absent")
    ] = None
    lookahead_frames: Annotated[int, Range(0, 100), Option("frames of later sound a frame may take")] = 4
    learning_rate: Annotated[float, RATE, Option("highest rate of Adam")] = 1.5e-3
    last_rate_share: Annotated[float, SHARE, Option("share of it that is left at the end")] = 0.02
    gradient_clip: Annotated[float, GRADIENT, Option("largest norm of the gradient")] = 50.0
    average_decay: Annotated[float, BELOW_1, Option("decay of the averaged weights, exported")] = 0.998
    mode_weight: Annotated[float, WEIGHT, Option("weight of the motion at the prior's mode")] = 1.0
    reconstruction_weight: Annotated[float, WEIGHT, Option("weight of the reconstruction")] = 0.3
    motion: MotionWeights = field(default_factory=lambda: MotionWeights())
    kl_weight: Annotated[float, WEIGHT, Option("weight of the divergence of posterior and prior")] = 0.02
    sync_weight: Annotated[float, WEIGHT, Option("weight of the frozen SyncNet's loss")] = 0.5
    sync_below: Annotated[float, WEIGHT, Option("validation sync at which that term is switched on")] = 0.75
    sync_windows: Annotated[int, COUNT, Option("windows of that term a step")] = 1024
    syncnet: Annotated[Path | None, Option("training folder of SyncNet; no sync term if absent")] = None
    max_clips: Annotated[int | None, COUNT, Option("at most so many clips of a split")] = None

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_ranges(self)


def make_task(data: Path, settings: Audio2MotionSettings, device: torch.device) -> Audio2MotionTask:
    """Returns the task on a corpus folder."""
    corpus = load_corpus(data, device=device, max_clips=settings.max_clips)
    return Audio2MotionTask(corpus.train, corpus.validation, settings, device)


def load_audio2motion(path: Path, *, device: str | torch.device = "cpu") -> Audio2Motion:
    """Returns a trained Audio2Motion (averaged weights), frozen and in evaluation mode.

    Args:
        path: A checkpoint or a training folder.
        device: Where it goes.
    """
    state = load_task_state(path, "audio2motion", device=device)
    net = Audio2Motion(Audio2MotionConfig(**state["config"])).to(device)
    net.load_state_dict(state["model"])
    return net.eval().requires_grad_(False)


class WeightAverage:
    """Exponential moving average of a network's weights and buffers, in a network of its own."""

    def __init__(self, net: torch.nn.Module, average: torch.nn.Module, decay: float) -> None:
        """Copies the weights of `net` to `average`."""
        average.load_state_dict(net.state_dict())
        self.average, self.decay = average.requires_grad_(False).eval(), decay
        pairs = list(zip(average.state_dict().values(), net.state_dict().values(), strict=True))
        self._floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._others = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the weights, faster over the first steps."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([a for a, _ in self._floats], [n for _, n in self._floats], share)
        for average, now in self._others:
            average.copy_(now)


class Audio2MotionTask:
    """Audio2Motion, the average of its weights, its optimiser and its data."""

    name = "audio2motion"

    def __init__(
        self, train: Clips, validation: Clips, settings: Audio2MotionSettings, device: torch.device
    ) -> None:
        self.train, self.validation, self.settings = train, validation, settings
        config = Audio2MotionConfig.streaming(lookahead_frames=settings.lookahead_frames)
        self.net = Audio2Motion(config).to(device)
        with torch.no_grad():  # start from the resting face
            assert self.net.vae.decoder.out_proj.bias is not None
            self.net.vae.decoder.out_proj.bias.copy_(train.rest)
            self.net.vae.decoder.out_proj.weight.mul_(0.1)
        self.average = WeightAverage(self.net, Audio2Motion(config).to(device), settings.average_decay)
        self.mel = LogMel().to(device)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98))
        self.syncnet = None if settings.syncnet is None else load_syncnet(settings.syncnet, device=device)
        self.sync_on = False
        warm = settings.warm_frames
        context = config.receptive_field_frames - 1 - config.lookahead_frames
        self.warm_frames = context if warm is None else warm
        self.crop_settings = CropSettings(lead_frames=self.warm_frames + 8)
        self.clip_weights = clip_weights(train, nonspeech_share=self.crop_settings.nonspeech_share)
        self.degrade_settings = DegradeSettings()

    def training_step(self, step: int) -> dict[str, float | Tensor]:
        """Returns the scalars of one step on a batch of random crops."""
        settings, warm = self.settings, self.warm_frames
        rate = settings.learning_rate * min(1.0, (step + 1) / 300)
        falling = 0.5 * (1 + math.cos(math.pi * min(1.0, step / settings.steps)))
        rate *= settings.last_rate_share + (1 - settings.last_rate_share) * falling
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.net.train()
        frames = warm + settings.frames
        crops = random_crops(
            self.train,
            batch=settings.batch,
            frames=frames + settings.lookahead_frames,
            left_samples=self.mel.left_context_samples,
            weights=self.clip_weights,
            settings=self.crop_settings,
        )
        with torch.no_grad():
            features = self.mel(degrade(crops.pcm, self.degrade_settings))  # (B, 2 (T + L), 80)
            truth = crops.offsets[:, :frames] + self.train.rest  # (B, T, 204)
            sounds = crops.sounds[:, warm:frames]
        posterior = self.net(features, truth)
        mode = self.net.predict(features)  # (B, T, 204)
        losses: dict[str, float | Tensor] = {
            "mode": motion_loss(mode[:, warm:], truth[:, warm:], sounds, settings.motion),
            "reconstruction": motion_loss(
                posterior.reconstruction[:, warm:], truth[:, warm:], sounds, settings.motion
            ),
            "kl": posterior.kl(),
        }
        loss = (
            settings.mode_weight * losses["mode"]
            + settings.reconstruction_weight * losses["reconstruction"]
            + settings.kl_weight * losses["kl"]
        )
        if self.syncnet is not None and self.sync_on:
            losses["sync"] = sync_loss_of_windows(
                self.syncnet,
                features[:, 2 * warm : 2 * frames],
                mode[:, warm:] - self.train.rest,
                windows=settings.sync_windows,
            )
            loss = loss + settings.sync_weight * losses["sync"]
        assert isinstance(loss, Tensor)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        losses["gradient"] = torch.nn.utils.clip_grad_norm_(self.net.parameters(), settings.gradient_clip)
        self.optimizer.step()
        self.average.update(step)
        return {"loss": loss, **losses, "rate": rate}

    def validate(self, step: int) -> Validation:
        """Returns metrics of the averaged network on the validation split, clean and degraded, and a plot."""
        net = self.average.average
        assert isinstance(net, Audio2Motion)
        clean, tracks, sync = validate_motion(net, self.mel, self.validation, syncnet=self.syncnet)
        hard, _, _ = validate_motion(net, self.mel, self.validation, degraded=self.degrade_settings)
        if sync is not None and sync <= self.settings.sync_below:
            self.sync_on = True
        scalars = {**motion_scalars(clean), "degraded_aperture_r": hard.aperture_r}
        scalars["degraded_closure_auc"] = hard.closure_auc
        scalars["degraded_silence_closed"] = hard.silence_closed
        if sync is not None:
            scalars["sync"] = sync
        return Validation(scalars=scalars, pictures={"mouth": draw_track(tracks[0])})

    def state_dict(self) -> dict[str, Any]:
        """Returns averaged and live weights, sizes, optimiser state."""
        return {
            "model": self.average.average.state_dict(),
            "config": asdict(self.net.config),
            "live": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sync_on": self.sync_on,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores training state."""
        self.average.average.load_state_dict(state["model"])
        self.net.load_state_dict(state["live"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sync_on = state["sync_on"]


def motion_loss(
    motion: Tensor, truth: Tensor, sounds: Tensor, weights: MotionWeights | None = None
) -> Tensor:
    """Returns the loss () in mm^2: squared errors of positions, velocities, lip opening, mouth width.

    Args:
        motion: (B, T, 204) landmarks.
        truth: (B, T, 204) landmarks.
        sounds: (B, T) `Sound` of each frame.
        weights: Of regions and terms.
    """
    weights = weights or MotionWeights()
    error = ((motion - truth) * MM_PER_UNIT).reshape(*motion.shape[:2], 68, 3)
    regions = ((slice(0, 17), weights.jaw), (slice(17, 48), weights.upper), (slice(48, 68), weights.mouth))
    place, change = error.square(), error.diff(dim=1).square()
    loss = torch.zeros((), device=motion.device)
    for points, weight in regions:
        share = weight * (points.stop - points.start) / 68
        loss = loss + share * (place[:, :, points].mean() + weights.continuity * change[:, :, points].mean())
    opening = torch.stack([error[:, :, low] - error[:, :, high] for high, low in LIP_PAIRS], dim=2)
    emphasis = (
        1
        + (weights.closure - 1) * (sounds == Sound.BILABIAL)
        + (weights.silence - 1) * (sounds == Sound.REST)
    )  # (B, T)
    width = error[:, :, CORNERS[1]] - error[:, :, CORNERS[0]]  # (B, T, 3)
    return (
        loss
        + weights.opening * (opening.square().mean(dim=(2, 3)) * emphasis).mean()
        + weights.width * width.square().mean()
    )


def motion_scalars(found: MotionMeasures) -> dict[str, float]:
    """Returns the metrics that are logged."""
    return {
        "aperture_r": found.aperture_r,
        "width_r": found.width_r,
        "closure_auc": found.closure_auc,
        "aperture_error_mm": found.aperture_error_mm,
        "bilabial_gap_mm": found.bilabial_gap_mm,
        "open_share": found.open_share,
        "silence_gap_mm": found.silence_gap_mm,
        "silence_closed": found.silence_closed,
    }


@torch.no_grad()
def validate_motion(
    net: Audio2Motion,
    mel: LogMel,
    clips: Clips,
    *,
    syncnet: SyncNet | None = None,
    degraded: DegradeSettings | None = None,
    batch: int = 16,
) -> tuple[MotionMeasures, list[MotionTrack], float | None]:
    """Returns metrics of predicted motion on whole clips, the tracks, and the sync loss if there is one.

    Args:
        net: Audio2Motion in evaluation mode.
        mel: Its front end.
        clips: Of the validation split.
        syncnet: For the sync loss.
        degraded: Degrades the sound first, if given.
        batch: Clips at once.
    """
    lookahead, warm = net.config.lookahead_frames, net.config.receptive_field_frames - 1
    mean_face, rest = clips.mean_face.cpu().numpy(), clips.rest.cpu().numpy()
    tracks: list[MotionTrack] = []
    sync_losses: list[Tensor] = []
    for first in range(0, len(clips), batch):
        chosen = torch.arange(first, min(first + batch, len(clips)), device=clips.device)
        frames = int(clips.frames[chosen].max())
        crops = crops_at(
            clips,
            clip=chosen,
            first_frame=torch.full((len(chosen),), -float(warm), device=clips.device),
            frames=warm + frames + lookahead,
            left_samples=mel.left_context_samples,
        )
        pcm = crops.pcm if degraded is None else degrade(crops.pcm, degraded)
        features = mel(pcm)
        motion = net.predict(features)  # (B, warm + frames, 204)
        motion = motion[:, warm:]
        if syncnet is not None:
            own = features[:, 2 * warm :][:, : 2 * frames]
            sync_losses.append(sync_loss_of_windows(syncnet, own, motion - clips.rest, windows=2048))
        truth = crops.offsets[:, warm : warm + frames] + clips.rest
        for row, clip in enumerate(chosen.tolist()):
            length = int(clips.frames[clip])
            tracks.append(
                compare_motion(
                    motion[row, :length].cpu().numpy(),
                    truth[row, :length].cpu().numpy(),
                    sounds=crops.sounds[row, warm : warm + length].cpu().numpy(),
                    mean_face=mean_face,
                    predicted_rest=rest,
                    true_rest=rest,
                )
            )
    sync = float(torch.stack(sync_losses).mean()) if sync_losses else None
    return measure_motion(tracks), tracks, sync


def draw_track(track: MotionTrack) -> np.ndarray[Any, Any]:
    """Returns a plot (H, W, 3) of one clip's mouth and the ground truth, bilabial frames marked."""
    marks = np.flatnonzero(track.sounds == Sound.BILABIAL) / FRAME_RATE_HZ
    return draw_curves(
        {
            "inner-lip aperture above rest, mm (dashed: b, p, m)": {
                "truth": track.true_aperture_mm,
                "predicted": track.predicted_aperture_mm,
            },
            "mouth width above rest, mm": {
                "truth": track.true_width_mm,
                "predicted": track.predicted_width_mm,
            },
        },
        marks=[float(mark) for mark in marks],
    )
