"""Training of SyncNet: five frames of mouth and their 200 ms of sound get similar embeddings.

All windows of a batch of crops are embedded once and all pairs compared, instead of sampling pairs. Negatives
are other offsets of the same clip, near offsets (2 to 5 frames) and other clips, in the proportions of
GeneFace's settings. Landmarks are less the resting face, so that SyncNet serves any speaker, and scaled at
random, so that a mouth's size carries no information.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.features import LogMel
from models.settings import BELOW_1, Option, Range, check_ranges
from models.syncnet import AUDIO_FRAMES, MOTION_FRAMES, MOUTH_POINTS, SyncNet, SyncNetConfig

from .corpus import (
    Clips,
    CropSettings,
    DegradeSettings,
    clip_weights,
    crops_at,
    degraded_features,
    load_corpus,
    random_crops,
    require_speech,
)
from .field_optimizer import Schedule
from .loop import LoopSettings, Validation, load_task_state
from .measures import SyncMeasures, measure_sync
from .plots import draw_matrix
from .ranges import BATCH, COUNT, MINUTES, RATE, STEPS, TEMPERATURE, WEIGHT

MOUTH = slice(3 * MOUTH_POINTS.start, 3 * MOUTH_POINTS.stop)

MATMUL_PRECISION = "highest"  # TF32 would fill the quiet bands of the log-mel with rounding noise
LOOP = LoopSettings(
    steps=2000, validate_every=500, checkpoint_every=500, log_every=50, keep_checkpoints=2, seed=9999
)


@dataclass(frozen=True, kw_only=True)
class SyncNetSettings:
    """How SyncNet is trained."""

    steps: Annotated[int, STEPS, Option("steps in all; the rate falls to 0 over them")] = LOOP.steps
    batch: Annotated[int, BATCH, Option("crops a step")] = 96
    frames: Annotated[int, Range(MOTION_FRAMES + 8, 10_000), Option("frames of a crop")] = 40
    learning_rate: Annotated[float, RATE, Option("highest rate of Adam")] = 1e-3
    anneal_minutes: Annotated[
        float | None, MINUTES, Option("let the rate fall over this time instead of over the steps")
    ] = None
    near_share: Annotated[float, WEIGHT, Option("weight of shifts by 2 to 5 frames")] = 0.3
    same_share: Annotated[float, WEIGHT, Option("weight of other offsets of the same clip")] = 0.45
    other_share: Annotated[float, WEIGHT, Option("weight of other clips")] = 0.25
    contrast_weight: Annotated[
        float, WEIGHT, Option("weight of choosing the true offset among all of a crop")
    ] = 1.0
    temperature: Annotated[float, TEMPERATURE, Option("temperature of that choice")] = 0.07
    mouth_scale: Annotated[float, BELOW_1, Option("mouth motion is scaled by 1 plus or minus this")] = 0.3
    mouth_noise: Annotated[float, WEIGHT, Option("noise on the landmarks, their unit")] = 0.01
    max_clips: Annotated[int | None, COUNT, Option("at most so many clips of a split")] = None

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_ranges(self)


def make_task(data: Path, settings: SyncNetSettings, device: torch.device) -> SyncNetTask:
    """Returns the task on a corpus folder."""
    corpus = load_corpus(data, device=device, max_clips=settings.max_clips)
    require_speech(data, corpus.validation, frames=MOTION_FRAMES)
    return SyncNetTask(corpus.train, corpus.validation, settings, device)


def load_syncnet(path: Path, *, device: str | torch.device = "cpu") -> SyncNet:
    """Returns a trained SyncNet from a checkpoint or a training folder, frozen and in evaluation mode."""
    state = load_task_state(path, "syncnet", device=device)
    net = SyncNet(SyncNetConfig(**state["config"])).to(device)
    net.load_state_dict(state["model"])
    return net.eval().requires_grad_(False)


def audio_windows(features: Tensor) -> Tensor:
    """Returns windows (B, T - 4, 10, F) of features (B, 2 T, F); window i begins with video frame i."""
    return features.unfold(1, AUDIO_FRAMES, 2).transpose(2, 3)


def mouth_windows(offsets: Tensor) -> Tensor:
    """Returns windows (B, T - 4, 5, 60) of the mouth's points in offsets (B, T, 204)."""
    return offsets[..., MOUTH].unfold(1, MOTION_FRAMES, 1).transpose(2, 3)


def sync_loss_of_windows(net: SyncNet, features: Tensor, offsets: Tensor, *, windows: int) -> Tensor:
    """Returns GeneFace's sync loss () of random windows of landmarks with their sound.

    Args:
        net: Frozen SyncNet in evaluation mode.
        features: (B, 2 T, F), frame i of the offsets begins at feature 2 i.
        offsets: (B, T, 204), landmarks less the face's own resting landmarks.
        windows: How many windows are sampled.
    """
    batch, frames = offsets.shape[:2]
    crop = torch.randint(batch, (windows,), device=offsets.device)
    first = torch.randint(frames - MOTION_FRAMES + 1, (windows,), device=offsets.device)
    motion = first[:, None] + torch.arange(MOTION_FRAMES, device=offsets.device)
    sound = 2 * first[:, None] + torch.arange(AUDIO_FRAMES, device=offsets.device)
    mouth = net.embed_mouth(offsets[crop[:, None], motion][..., MOUTH])  # (windows, E)
    audio = net.embed_audio(features[crop[:, None], sound])  # (windows, E)
    return -torch.log((audio * mouth).sum(-1).clamp(min=1e-4)).mean()


class SyncNetTask:
    """SyncNet, its optimiser and its data."""

    name = "syncnet"

    def __init__(
        self, train: Clips, validation: Clips, settings: SyncNetSettings, device: torch.device
    ) -> None:
        self.train, self.validation, self.settings = train, validation, settings
        self.net = SyncNet(SyncNetConfig.streaming()).to(device)
        self.mel = LogMel().to(device)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=settings.learning_rate)
        self.schedule = Schedule(settings.steps, settings.anneal_minutes)
        self.crop_settings = CropSettings(nonspeech_share=0.02, lead_frames=4)
        self.clip_weights = clip_weights(train, nonspeech_share=self.crop_settings.nonspeech_share)
        self.degrade_settings = DegradeSettings()
        windows = settings.frames - MOTION_FRAMES + 1
        place = torch.arange(windows, device=device)
        self.distance = (place[:, None] - place).abs()  # (W, W)

    def training_step(self, step: int) -> dict[str, float | Tensor]:
        """Returns the scalars of one step on a batch of random crops."""
        settings = self.settings
        rate = settings.learning_rate * min(1.0, (step + 1) / 200)
        rate *= 0.5 * (1 + math.cos(math.pi * self.schedule.tick(step)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.net.train()
        crops = random_crops(
            self.train,
            batch=settings.batch,
            frames=settings.frames,
            left_samples=self.mel.left_context_samples,
            weights=self.clip_weights,
            settings=self.crop_settings,
        )
        with torch.no_grad():
            features = degraded_features(self.mel, crops.pcm, self.degrade_settings)  # (B, 2 T, 80)
            drawn = 1 + settings.mouth_scale * (2 * torch.rand_like(crops.offsets[:, :1, :1]) - 1)
            noise = settings.mouth_noise * torch.randn_like(crops.offsets)
            motion = drawn * crops.offsets + noise  # (B, T, 204)
        audio = self.net.embed_audio(audio_windows(features).flatten(0, 1))  # (B W, E)
        mouth = self.net.embed_mouth(mouth_windows(motion).flatten(0, 1))  # (B W, E)
        losses = self._losses(audio, mouth, settings.batch)
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        return {**losses, "rate": rate}

    def _losses(self, audio: Tensor, mouth: Tensor, batch: int) -> dict[str, Tensor]:
        """Returns the binary and the contrastive cross entropy, and their weighted sum as `loss`."""
        settings = self.settings
        windows = self.distance.shape[0]
        a, m = audio.reshape(batch, windows, -1), mouth.reshape(batch, windows, -1)  # (B, W, E)
        own = torch.einsum("bie,bje->bij", m, a)  # (B, W, W) cosines of mouth i and sound j of one crop
        positive = own.diagonal(dim1=1, dim2=2)
        apart = -torch.log((1 - own).clamp(min=1e-4))  # (B, W, W)
        near = ((self.distance >= 2) & (self.distance <= 5)).float()
        far = (self.distance > 5).float()
        shift = (
            1 + torch.randint(batch - 1, (), device=audio.device)
            if batch > 1
            else torch.zeros((), dtype=torch.int64)
        )
        rolled = a[(torch.arange(batch, device=audio.device) + shift) % batch]
        other = torch.einsum("bie,bje->bij", m, rolled)  # (B, W, W) sounds of another crop
        negative = (
            settings.near_share * (apart * near).sum() / (near.sum() * batch)
            + settings.same_share * (apart * far).sum() / (far.sum() * batch)
            + settings.other_share * -torch.log((1 - other).clamp(min=1e-4)).mean()
        )
        belong = 0.5 * (-torch.log(positive.clamp(min=1e-4)).mean() + negative)
        target = torch.arange(windows, device=audio.device).expand(batch, windows).flatten()
        logits = own / settings.temperature
        contrast = 0.5 * (
            functional.cross_entropy(logits.flatten(0, 1), target)
            + functional.cross_entropy(logits.transpose(1, 2).flatten(0, 1), target)
        )
        loss = belong + settings.contrast_weight * contrast
        return {"loss": loss, "belong": belong, "contrast": contrast, "positive_cosine": positive.mean()}

    def validate(self, step: int) -> Validation:
        """Returns the loss and the share of 2 s windows whose true offset wins, on clean validation clips."""
        self.net.eval()
        found, loss, curve = validate_sync(self.net, self.mel, self.validation)
        picture = draw_matrix(
            curve,
            title=f"mean cosine of mouth and sound by offset, one row a clip, step {step}",
            x_label="offset, frames + 15",
            y_label="clip",
        )
        return Validation(
            scalars={
                "loss": loss,
                "true_offset_wins": found.true_wins,
                "near_offset_wins": found.near_wins,
                "confidence": found.confidence,
            },
            pictures={"offsets": picture},
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns weights, sizes, optimiser state."""
        return {
            "model": self.net.state_dict(),
            "config": asdict(self.net.config),
            "optimizer": self.optimizer.state_dict(),
            **self.schedule.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores training state."""
        self.net.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state)


@torch.no_grad()
def validate_sync(
    net: SyncNet, mel: LogMel, clips: Clips
) -> tuple[SyncMeasures, float, np.ndarray[Any, Any]]:
    """Returns sync metrics over the speech clips, the loss, and the mean cosine (clips, 31) by offset."""
    pairs = []
    positives, negatives, curves = [], [], []
    for clip in torch.nonzero(clips.speech).flatten().tolist():
        frames = int(clips.frames[clip])
        at = torch.tensor([clip], device=clips.device)
        crop = crops_at(
            clips,
            clip=at,
            first_frame=torch.zeros(1, device=clips.device),
            frames=frames,
            left_samples=mel.left_context_samples,
        )
        audio = net.embed_audio(audio_windows(mel(crop.pcm))[0])  # (N, E)
        mouth = net.embed_mouth(mouth_windows(crop.offsets)[0])  # (N, E)
        cosine = (mouth @ audio.T).cpu()  # (N, N)
        apart = (torch.arange(len(cosine))[:, None] - torch.arange(len(cosine))).abs() >= 2
        positives.append(-torch.log(cosine.diagonal().clamp(min=1e-4)).mean())
        negatives.append(-torch.log((1 - cosine[apart]).clamp(min=1e-4)).mean())
        curves.append([float(cosine.diagonal(d).mean()) for d in range(-15, 16)])
        pairs.append((audio.cpu().numpy(), mouth.cpu().numpy()))
    loss = 0.5 * float(torch.stack(positives).mean() + torch.stack(negatives).mean())
    return measure_sync(pairs), loss, np.array(curves)
