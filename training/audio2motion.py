"""Training of Audio2Motion: sound to landmarks of a common face.

Beside GeneFace's losses (reconstruction, continuity, KL, sync) there is one on what inference uses: the
prior's mode, from the sound alone. Errors are weighted by region (lips over jaw over the rest), lip opening
and closure. Blinks, brows and gaze do not correlate with sound, so squared error leaves their mean.
SyncNet is frozen, in evaluation mode.

The encoder also learns to tell the phones of a frame and of the next ones, from what the frame's motion has
to go by. The head for it serves training alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.audio2motion import Audio2Motion, Audio2MotionConfig
from models.features import LogMel
from models.settings import BELOW_1, Option, Range, check_ranges
from models.syncnet import SyncNet
from models.time_base import FRAME_RATE_HZ
from preparation.sounds import PHONE_CLASSES, PHONES_PER_FRAME, UNKNOWN_PHONE, Sound

from .corpus import (
    Clips,
    CropSettings,
    DegradeSettings,
    clip_weights,
    crops_at,
    degraded_features,
    load_corpus,
    random_crops,
)
from .field_optimizer import Schedule
from .loop import LoopSettings, Validation, load_task_state
from .measures import MotionMeasures, MotionTrack, compare_motion, measure_motion
from .plots import draw_curves
from .ranges import BATCH, COUNT, CROP_FRAMES, GRADIENT, MINUTES, RATE, SHARE, STEPS, WEIGHT, WIDTH
from .syncnet import load_syncnet, sync_loss_of_windows

MATMUL_PRECISION = "highest"  # TF32 would fill the quiet bands of the log-mel with rounding noise
LOOP = LoopSettings(
    steps=6000, validate_every=1000, checkpoint_every=500, log_every=50, keep_checkpoints=2, seed=9999
)
CODEC_BPS = (16_000, 32_000)  # what a browser sends a voice with on a poor line and on a good one
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
    condition_channels: Annotated[int, WIDTH, Option("channels of the encoded sound")] = 128
    context_layers: Annotated[int, Range(0, 32), Option("layers that encode it after the first two")] = 6
    learning_rate: Annotated[float, RATE, Option("highest rate of Adam")] = 1.5e-3
    last_rate_share: Annotated[float, SHARE, Option("share of it that is left at the end")] = 0.02
    anneal_minutes: Annotated[
        float | None, MINUTES, Option("let the rate fall over this time instead of over the steps")
    ] = None
    gradient_clip: Annotated[float, GRADIENT, Option("largest norm of the gradient")] = 50.0
    average_decay: Annotated[float, BELOW_1, Option("decay of the averaged weights, exported")] = 0.998
    mode_weight: Annotated[float, WEIGHT, Option("weight of the motion at the prior's mode")] = 1.0
    reconstruction_weight: Annotated[float, WEIGHT, Option("weight of the reconstruction")] = 0.3
    motion: MotionWeights = field(default_factory=lambda: MotionWeights())
    phone_weight: Annotated[float, WEIGHT, Option("weight of telling phones; 0 for no such head")] = 4.0
    phone_ahead_frames: Annotated[
        int, Range(0, 100), Option("so many coming frames' phones are told too, within the look-ahead")
    ] = 2
    kl_weight: Annotated[float, WEIGHT, Option("weight of the divergence of posterior and prior")] = 0.02
    sync_weight: Annotated[float, WEIGHT, Option("weight of the frozen SyncNet's loss")] = 0.5
    sync_below: Annotated[float, WEIGHT, Option("validation sync at which that term is switched on")] = 0.75
    sync_windows: Annotated[int, COUNT, Option("windows of that term a step")] = 1024
    syncnet: Annotated[Path | None, Option("training folder of SyncNet; no sync term if absent")] = None
    codec_share: Annotated[float, SHARE, Option("share of crops whose sound has been through Opus")] = 0.3
    max_clips: Annotated[int | None, COUNT, Option("at most so many clips of a split")] = None

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_ranges(self)


def make_task(data: Path, settings: Audio2MotionSettings, device: torch.device) -> Audio2MotionTask:
    """Returns the task on a corpus folder."""
    codec_bps = CODEC_BPS if settings.codec_share else ()
    corpus = load_corpus(data, device=device, max_clips=settings.max_clips, codec_bps=codec_bps)
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


class PhoneHead(torch.nn.Module):
    """Phones of each frame and the next ones, by a linear map of the encoded sound that its motion sees."""

    def __init__(self, channels: int, ahead_frames: int) -> None:
        """Makes a head for an encoding of `channels`."""
        super().__init__()
        self.ahead_frames = ahead_frames
        self.halves = PHONES_PER_FRAME * (1 + ahead_frames)
        self.classify = torch.nn.Conv1d(channels, self.halves * len(PHONE_CLASSES), 1)

    def forward(self, g: Tensor) -> Tensor:
        """Returns logits (B, T, halves, classes) of the encoded sound (B, C, T)."""
        return self.classify(g).transpose(1, 2).unflatten(2, (self.halves, -1))  # type: ignore[no-any-return]

    def own_phones(self, g: Tensor) -> Tensor:
        """Returns the likeliest classes of the frames' own halves (B, 2 T) of the encoded sound (B, C, T)."""
        return self(g)[:, :, :PHONES_PER_FRAME].argmax(dim=3).flatten(1)  # type: ignore[no-any-return]

    def loss(self, g: Tensor, phones: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the cross entropy () and the share of a frame's own halves that are wrong ().

        Args:
            g: (B, C, T), the encoded sound.
            phones: (B, 2 (T + ahead_frames)), classes of half frames; those of `UNKNOWN_PHONE` do not count.
        """
        logits = self(g)  # (B, T, halves, classes)
        wanted = phones.unfold(1, self.halves, PHONES_PER_FRAME)  # (B, T, halves)
        known = wanted != UNKNOWN_PHONE
        total = functional.cross_entropy(
            logits.flatten(0, 2), wanted.flatten(), ignore_index=UNKNOWN_PHONE, reduction="sum"
        )
        own = slice(0, PHONES_PER_FRAME)
        wrong = (logits[:, :, own].argmax(dim=3) != wanted[:, :, own]) & known[:, :, own]
        return total / known.sum().clamp(min=1), wrong.sum() / known[:, :, own].sum().clamp(min=1)


class Audio2MotionTask:
    """Audio2Motion, the average of its weights, its optimiser and its data."""

    name = "audio2motion"

    def __init__(
        self, train: Clips, validation: Clips, settings: Audio2MotionSettings, device: torch.device
    ) -> None:
        self.train, self.validation, self.settings = train, validation, settings
        config = Audio2MotionConfig.streaming(
            lookahead_frames=settings.lookahead_frames,
            condition_channels=settings.condition_channels,
            context_layers=settings.context_layers,
        )
        self.net = Audio2Motion(config).to(device)
        with torch.no_grad():  # start from the resting face
            assert self.net.vae.decoder.out_proj.bias is not None
            self.net.vae.decoder.out_proj.bias.copy_(train.rest)
            self.net.vae.decoder.out_proj.weight.mul_(0.1)
        self.average = WeightAverage(self.net, Audio2Motion(config).to(device), settings.average_decay)
        self.phone_head, self.phone_average = None, None
        self.parameters = list(self.net.parameters())
        if settings.phone_weight:
            ahead = min(settings.phone_ahead_frames, settings.lookahead_frames)
            sizes = (config.total_condition_channels, ahead)
            self.phone_head = PhoneHead(*sizes).to(device)
            self.phone_average = WeightAverage(
                self.phone_head, PhoneHead(*sizes).to(device), settings.average_decay
            )
            self.parameters += self.phone_head.parameters()
        self.mel = LogMel().to(device)
        self.schedule = Schedule(settings.steps, settings.anneal_minutes)
        self.optimizer = torch.optim.Adam(self.parameters, lr=settings.learning_rate, betas=(0.9, 0.98))
        self.syncnet = None if settings.syncnet is None else load_syncnet(settings.syncnet, device=device)
        self.sync_on = False
        warm = settings.warm_frames
        context = config.receptive_field_frames - 1 - config.lookahead_frames
        self.warm_frames = context if warm is None else warm
        self.crop_settings = CropSettings(lead_frames=self.warm_frames + 8, codec_share=settings.codec_share)
        self.clip_weights = clip_weights(train, nonspeech_share=self.crop_settings.nonspeech_share)
        self.degrade_settings = DegradeSettings()

    def training_step(self, step: int) -> dict[str, float | Tensor]:
        """Returns the scalars of one step on a batch of random crops."""
        settings, warm = self.settings, self.warm_frames
        rate = settings.learning_rate * min(1.0, (step + 1) / 300)
        falling = 0.5 * (1 + math.cos(math.pi * self.schedule.tick(step)))
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
            features = degraded_features(self.mel, crops.pcm, self.degrade_settings)  # (B, 2 (T + L), 80)
            truth = crops.offsets[:, :frames] + self.train.rest  # (B, T, 204)
            sounds = crops.sounds[:, warm:frames]
        g = self.net.condition(features)  # (B, C, T)
        posterior = self.net.reconstruct(g, truth)
        mode = self.net.decode_prior(g)  # (B, T, 204)
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
        if self.phone_head is not None:
            first, last = warm, frames + self.phone_head.ahead_frames
            losses["phones"], losses["phone_error"] = self.phone_head.loss(
                g[..., warm:], crops.phones[:, PHONES_PER_FRAME * first : PHONES_PER_FRAME * last]
            )
            loss = loss + settings.phone_weight * losses["phones"]
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
        losses["gradient"] = torch.nn.utils.clip_grad_norm_(self.parameters, settings.gradient_clip)
        self.optimizer.step()
        self.average.update(step)
        if self.phone_average is not None:
            self.phone_average.update(step)
        return {"loss": loss, **losses, "rate": rate}

    def validate(self, step: int) -> Validation:
        """Returns metrics of the averaged network on the validation split, clean and degraded, and a plot."""
        net = self.average.average
        assert isinstance(net, Audio2Motion)
        head = None if self.phone_average is None else self.phone_average.average
        assert head is None or isinstance(head, PhoneHead)
        clean = validate_motion(net, self.mel, self.validation, syncnet=self.syncnet, phone_head=head)
        hard = validate_motion(
            net, self.mel, self.validation, phone_head=head, degraded=self.degrade_settings
        )
        if clean.sync is not None and clean.sync <= self.settings.sync_below:
            self.sync_on = True
        degraded = measure_motion(hard.tracks)
        scalars = {
            **motion_scalars(measure_motion(clean.tracks)),
            "degraded_aperture_r": degraded.aperture_r,
            "degraded_width_r": degraded.width_r,
            "degraded_closure_auc": degraded.closure_auc,
            "degraded_silence_closed": degraded.silence_closed,
        }
        if clean.sync is not None:
            scalars["sync"] = clean.sync
        if clean.phone_error is not None and hard.phone_error is not None:
            scalars |= {"phone_error": clean.phone_error, "degraded_phone_error": hard.phone_error}
        scalars |= voice_scalars(clean.tracks, self.validation.voices, self.train.voices)
        return Validation(scalars=scalars, pictures={"mouth": draw_track(clean.tracks[0])})

    def state_dict(self) -> dict[str, Any]:
        """Returns averaged and live weights, sizes, optimiser state."""
        return {
            "model": self.average.average.state_dict(),
            "config": asdict(self.net.config),
            "live": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sync_on": self.sync_on,
            **self.schedule.state_dict(),
            **self._phone_states(),
        }

    def _phone_states(self) -> dict[str, Any]:
        if self.phone_head is None or self.phone_average is None:
            return {}
        return {
            "phone_head": self.phone_average.average.state_dict(),
            "live_phone_head": self.phone_head.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores training state."""
        self.average.average.load_state_dict(state["model"])
        self.net.load_state_dict(state["live"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sync_on = state["sync_on"]
        self.schedule.load_state_dict(state)
        if self.phone_head is not None and self.phone_average is not None:
            self.phone_average.average.load_state_dict(state["phone_head"])
            self.phone_head.load_state_dict(state["live_phone_head"])


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
        "aperture_lag_ms": found.aperture_lag_ms,
        "width_lag_ms": found.width_lag_ms,
        "closure_auc": found.closure_auc,
        "aperture_error_mm": found.aperture_error_mm,
        "bilabial_gap_mm": found.bilabial_gap_mm,
        "open_share": found.open_share,
        "silence_gap_mm": found.silence_gap_mm,
        "silence_closed": found.silence_closed,
    }


def voice_scalars(
    tracks: Sequence[MotionTrack], voices: Sequence[str], trained: Sequence[str]
) -> dict[str, float]:
    """Returns the metrics of clips by voices that were not `trained` on, and r of each known voice.

    A voice's variants, after a "+", count as it.
    """
    unheard = [track for track, voice in zip(tracks, voices, strict=True) if voice not in {"", *trained}]
    scalars = {}
    if unheard:
        scalars = {
            f"unheard_{name}": value for name, value in motion_scalars(measure_motion(unheard)).items()
        }
    known = [voice.partition("+")[0] for voice in voices]
    for name in sorted({*known} - {""}):
        found = measure_motion([track for track, voice in zip(tracks, known, strict=True) if voice == name])
        scalars |= {f"voice/{name}/aperture_r": found.aperture_r, f"voice/{name}/width_r": found.width_r}
    return scalars


@dataclass(frozen=True, kw_only=True)
class MotionValidation:
    """What whole clips gave."""

    tracks: list[MotionTrack]
    sync: float | None  # the sync loss
    phone_error: float | None  # share of half frames whose phone was not told


@torch.no_grad()
def validate_motion(
    net: Audio2Motion,
    mel: LogMel,
    clips: Clips,
    *,
    syncnet: SyncNet | None = None,
    phone_head: PhoneHead | None = None,
    degraded: DegradeSettings | None = None,
    batch: int = 16,
) -> MotionValidation:
    """Returns predicted motion on whole clips beside the truth.

    Args:
        net: Audio2Motion in evaluation mode.
        mel: Its front end.
        clips: Of the validation split.
        syncnet: For the sync loss.
        phone_head: For the phone error, of the network's own encoding.
        degraded: Degrades the sound first, if given.
        batch: Clips at once.
    """
    lookahead, warm = net.config.lookahead_frames, net.config.receptive_field_frames - 1
    mean_face, rest = clips.mean_face.cpu().numpy(), clips.rest.cpu().numpy()
    tracks: list[MotionTrack] = []
    sync_losses: list[Tensor] = []
    wrong, known = torch.zeros(2, device=clips.device)
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
        features = mel(crops.pcm) if degraded is None else degraded_features(mel, crops.pcm, degraded)
        g = net.condition(features)  # (B, C, warm + frames)
        motion = net.decode_prior(g)[:, warm:]  # (B, frames, 204)
        if phone_head is not None:
            own = phone_head.own_phones(g[..., warm:])  # (B, 2 frames)
            place = torch.arange(frames, device=clips.device).repeat_interleave(PHONES_PER_FRAME)
            wanted = crops.phones[:, PHONES_PER_FRAME * warm :][:, : PHONES_PER_FRAME * frames]
            counted = (wanted != UNKNOWN_PHONE) & (place < clips.frames[chosen][:, None])
            wrong, known = wrong + ((own != wanted) & counted).sum(), known + counted.sum()
        if syncnet is not None:
            heard = features[:, 2 * warm :][:, : 2 * frames]
            sync_losses.append(sync_loss_of_windows(syncnet, heard, motion - clips.rest, windows=2048))
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
    return MotionValidation(
        tracks=tracks,
        sync=float(torch.stack(sync_losses).mean()) if sync_losses else None,
        phone_error=float(wrong / known) if phone_head is not None and bool(known) else None,
    )


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
