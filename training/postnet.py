"""Training of PostNet: landmarks of the common face to one speaker's domain, adversarially.

Audio2Motion and SyncNet are frozen, so their outputs for every frame of sound, clean and degraded, are
computed once. As in GeneFace, PostNet's motion of the corpus must pass a discriminator of single frames and
SyncNet, and that of the speaker's own sound must equal the ground truth. Brows, eyes and nose do not follow
sound, so the discriminator gets the speaker's mean there. No term draws the motion later than Audio2Motion's,
unless the speaker's own landmarks are later; validation reports by how much it is (`added_lag_ms`).
`training.checkpoint_choice` selects a checkpoint.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from cuda_kernels.errors import InputError
from models.audio2motion import Audio2Motion
from models.features import LogMel
from models.postnet import MotionDiscriminator, PostNet, PostNetConfig
from models.settings import Option, check_ranges
from models.syncnet import MOTION_FRAMES, SyncNet
from models.time_base import FRAME_RATE_HZ
from preparation.sounds import Sound

from .audio2motion import draw_track, load_audio2motion, motion_loss, motion_scalars
from .checkpoint_choice import choose_checkpoint, chosen_checkpoint
from .corpus import (
    Clips,
    Corpus,
    DegradeSettings,
    crops_at,
    degrade,
    load_corpus,
    load_speaker,
    require_speech,
)
from .loop import LoopSettings, Validation, load_task_state
from .measures import MotionTrack, aperture_mm, best_lag_ms, compare_motion, measure_motion
from .ranges import BATCH, COUNT, CROP_FRAMES, RATE, SHARE, STEPS, WEIGHT
from .syncnet import MOUTH, audio_windows, load_syncnet, mouth_windows

MATMUL_PRECISION = "highest"  # TF32 would fill the quiet bands of the log-mel with rounding noise
LOOP = LoopSettings(
    steps=8000, validate_every=400, checkpoint_every=400, log_every=100, keep_checkpoints=0, seed=9999
)


@dataclass(frozen=True, kw_only=True)
class PostNetSettings:
    """How PostNet is trained. `--data` is the speaker's folder."""

    corpus: Annotated[Path | None, Option("corpus folder (needed)")] = None
    audio2motion: Annotated[Path | None, Option("its training folder (needed)")] = None
    syncnet: Annotated[Path | None, Option("SyncNet's training folder (needed)")] = None
    choose_only: Annotated[bool, Option("train nothing, choose among the checkpoints in --out")] = False
    steps: Annotated[int, STEPS, Option("steps in all; the rates fall over them")] = LOOP.steps
    batch: Annotated[int, BATCH, Option("crops of the corpus a step, and as many of the speaker")] = 48
    frames: Annotated[int, CROP_FRAMES, Option("frames of a crop that count")] = 48
    generator_rate: Annotated[float, RATE, Option("first rate of PostNet's RMSprop")] = 3e-4
    discriminator_rate: Annotated[float, RATE, Option("first rate of the discriminator's")] = 1e-4
    last_rate_share: Annotated[float, SHARE, Option("share of both that is left at the end")] = 0.1
    person_weight: Annotated[float, WEIGHT, Option("weight of the speaker's own motion")] = 0.2
    adversarial_weight: Annotated[float, WEIGHT, Option("weight of fooling the discriminator")] = 0.3
    sync_weight: Annotated[float, WEIGHT, Option("weight of SyncNet's loss")] = 0.1
    keep_weight: Annotated[
        float, WEIGHT, Option("weight of keeping the corpus's motion, each less its resting face")
    ] = 0.2
    instance_noise: Annotated[
        float, WEIGHT, Option("noise on what the discriminator sees, the landmarks' unit")
    ] = 0.02
    degraded_share: Annotated[float, SHARE, Option("share of crops with degraded sound")] = 0.3
    max_clips: Annotated[int | None, COUNT, Option("at most so many clips of a split")] = None

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_ranges(self)


def make_task(data: Path, settings: PostNetSettings, device: torch.device) -> PostNetTask:
    """Returns the task on a speaker's folder."""
    for name in ("corpus", "audio2motion", "syncnet"):
        if getattr(settings, name) is None:
            raise InputError(f"{name}: expected a folder, got none; give --{name} DIR")
    assert settings.corpus is not None
    assert settings.audio2motion is not None
    assert settings.syncnet is not None
    audio2motion = load_audio2motion(settings.audio2motion, device=device)
    syncnet = load_syncnet(settings.syncnet, device=device)
    corpus = load_corpus(settings.corpus, device=device, max_clips=settings.max_clips)
    require_speech(settings.corpus, corpus.validation, frames=MOTION_FRAMES)
    speaker = load_speaker(data, corpus.train.mean_face, device=device)
    return PostNetTask(corpus, speaker, audio2motion, syncnet, settings, device)


def run(data: Path, out: Path, settings: PostNetSettings, device: torch.device) -> bool:
    """Returns whether it replaced training: with `choose_only` it selects a checkpoint."""
    if not settings.choose_only:
        return False
    after_training(data, out, settings, device)
    return True


def after_training(data: Path, out: Path, settings: PostNetSettings, device: torch.device) -> None:
    """Selects the checkpoint and writes the report beside it."""
    choice = choose_checkpoint(out)
    print(f"postnet: {choice.summary}")  # noqa: T201 -- the command's result


def load_postnet(path: Path, *, device: str | torch.device = "cpu") -> PostNet:
    """Returns a trained PostNet, frozen and in evaluation mode.

    Args:
        path: A checkpoint, or a training folder: the chosen checkpoint, or the newest if none was chosen.
        device: Where it goes.
    """
    state = load_task_state(chosen_checkpoint(path) or path, "postnet", device=device)
    net = PostNet(PostNetConfig(**state["config"])).to(device)
    net.load_state_dict(state["model"])
    return net.eval().requires_grad_(False)


@dataclass(frozen=True, kw_only=True)
class FrozenOutputs:
    """Outputs of the frozen networks for every frame of some clips, clean and degraded."""

    motion: Tensor  # (2, rows, 204) Audio2Motion's landmarks
    sound: Tensor  # (2, rows, E) SyncNet's embedding of the sound of the five frames from each row


@torch.no_grad()
def frozen_outputs(
    clips: Clips, audio2motion: Audio2Motion, syncnet: SyncNet, mel: LogMel, *, batch: int = 16
) -> FrozenOutputs:
    """Returns landmarks and sound embeddings of all rows of the clips."""
    config = audio2motion.config
    warm = config.receptive_field_frames - 1 - config.lookahead_frames
    rows = len(clips.offsets)
    width = syncnet.config.audio_widths[-1]
    motion = torch.zeros(2, rows, clips.offsets.shape[1], device=clips.device)
    sound = torch.zeros(2, rows, width, device=clips.device)
    for first in range(0, len(clips), batch):
        chosen = torch.arange(first, min(first + batch, len(clips)), device=clips.device)
        frames = int(clips.frames[chosen].max())
        # Four more frames, so that the last ones have a whole sound window (of silence).
        ahead = max(config.lookahead_frames, MOTION_FRAMES - 1)
        crops = crops_at(
            clips,
            clip=chosen,
            first_frame=torch.full((len(chosen),), -float(warm), device=clips.device),
            frames=warm + frames + ahead,
            left_samples=mel.left_context_samples,
        )
        for variant, pcm in enumerate((crops.pcm, degrade(crops.pcm, DegradeSettings(share=1.0)))):
            features = mel(pcm)  # (B, 2 (warm + frames + ahead), 80)
            needed = 2 * (warm + frames + config.lookahead_frames)
            moved = audio2motion.predict(features[:, :needed])[:, warm:]  # (B, frames, 204)
            own = features[:, 2 * warm : 2 * (warm + frames + MOTION_FRAMES - 1)]
            windows = audio_windows(own)  # (B, frames, 10, 80)
            for row, clip in enumerate(chosen.tolist()):
                length, at = int(clips.frames[clip]), int(clips.first_row[clip])
                motion[variant, at : at + length] = moved[row, :length]
                sound[variant, at : at + length] = syncnet.embed_audio(windows[row, :length])
    return FrozenOutputs(motion=motion, sound=sound)


class PostNetTask:
    """PostNet and its discriminator, their optimisers and the outputs of the frozen networks."""

    name = "postnet"

    def __init__(
        self,
        corpus: Corpus,
        speaker: Corpus,
        audio2motion: Audio2Motion,
        syncnet: SyncNet,
        settings: PostNetSettings,
        device: torch.device,
    ) -> None:
        self.corpus, self.speaker, self.settings, self.syncnet = corpus, speaker, settings, syncnet
        mel = LogMel().to(device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)  # the same degraded sounds after a resume
            self.frozen = {
                "corpus train": frozen_outputs(corpus.train, audio2motion, syncnet, mel),
                "corpus validation": frozen_outputs(corpus.validation, audio2motion, syncnet, mel),
                "speaker train": frozen_outputs(speaker.train, audio2motion, syncnet, mel),
                "speaker validation": frozen_outputs(speaker.validation, audio2motion, syncnet, mel),
            }
        at_rest = speaker.train.sounds == Sound.REST
        if not bool(at_rest.any()):
            raise InputError(
                "speaker: expected pauses of 0.3 s or more in the train split, to know its rest, got none; "
                "record some silence"
            )
        self.speaker_rest = speaker.train.offsets[at_rest].mean(dim=0)  # (204,)
        self.speaker_mean = speaker.train.offsets.mean(dim=0)  # (204,)
        mouth_std = speaker.train.offsets[:, MOUTH].std(dim=0).mean()
        self.discriminator_scale = 1 / mouth_std
        mask = torch.ones(68, 3, device=device)
        mask[17:48] = 0  # brows, nose, eyes
        self.discriminator_mask = mask.reshape(-1)  # (204,)
        self.net = PostNet(PostNetConfig.streaming()).to(device)
        bias = self.net.block3[1].bias
        assert isinstance(bias, Tensor)
        with torch.no_grad():  # start by mapping one resting face to the other
            bias.copy_(self.speaker_rest - corpus.train.rest)
        self.discriminator = MotionDiscriminator().to(device)
        self.generator_optimizer = torch.optim.RMSprop(self.net.parameters(), lr=settings.generator_rate)
        self.discriminator_optimizer = torch.optim.RMSprop(
            self.discriminator.parameters(), lr=settings.discriminator_rate
        )
        self.warm_frames = self.net.config.receptive_field_frames - 1

    def training_step(self, step: int) -> dict[str, float | Tensor]:
        """Returns the scalars of one step of PostNet, then one of the discriminator."""
        settings, warm = self.settings, self.warm_frames
        falling = settings.last_rate_share ** min(1.0, step / settings.steps)
        for optimizer, rate in (
            (self.generator_optimizer, settings.generator_rate),
            (self.discriminator_optimizer, settings.discriminator_rate),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * falling
        self.net.train()
        self.discriminator.train()
        foreign, sound, _, foreign_sounds = self._crops("corpus train", self.corpus.train)
        own, _, truth, sounds = self._crops("speaker train", self.speaker.train)
        moved = self.net(torch.cat([foreign, own]))[:, warm:]  # (2 B, T, 204)
        fake, mine = moved[: settings.batch], moved[settings.batch :]

        verdict = self.discriminator(self._discriminator_input(fake))
        person = motion_loss(mine, truth[:, warm:], sounds[:, warm:])
        adversarial = (1 - verdict).square().mean()
        sync = self._sync(fake, sound[:, warm:])
        shift = self.speaker_rest - self.corpus.train.rest
        keep = motion_loss(fake, foreign[:, warm:] + shift, foreign_sounds[:, warm:])
        loss = (
            settings.person_weight * person
            + settings.adversarial_weight * adversarial
            + settings.sync_weight * sync
            + settings.keep_weight * keep
        )
        self.generator_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
        self.generator_optimizer.step()

        negative = self.discriminator(self._discriminator_input(fake.detach()))
        positive = self.discriminator(self._discriminator_input(truth[:, warm:]))
        discriminator_loss = negative.square().mean() + (positive - 1).square().mean()
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        discriminator_loss.backward()
        torch.nn.utils.clip_grad_norm_(self.discriminator.parameters(), 1.0)
        self.discriminator_optimizer.step()
        return {
            "loss": loss,
            "person": person,
            "adversarial": adversarial,
            "sync": sync,
            "keep": keep,
            "discriminator": discriminator_loss,
            "disc_pos_conf": positive.mean(),
            "disc_neg_conf": negative.mean(),
        }

    def _crops(self, name: str, clips: Clips) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns random crops: motion (B, n, 204), sound (B, n, E), truth (B, n, 204), sounds (B, n)."""
        settings, frozen, device = self.settings, self.frozen[name], clips.device
        length = self.warm_frames + settings.frames
        weight = clips.frames.float()
        clip = torch.multinomial(weight / weight.sum(), settings.batch, replacement=True)
        first = (
            torch.rand(settings.batch, device=device) * (clips.frames[clip] - length).clamp(min=1)
        ).long()
        place = first[:, None] + torch.arange(length, device=device)  # (B, n)
        row = clips.first_row[clip][:, None] + place.minimum((clips.frames[clip] - 1)[:, None])
        variant = (torch.rand(settings.batch, device=device) < settings.degraded_share).long()[:, None]
        return frozen.motion[variant, row], frozen.sound[variant, row], clips.offsets[row], clips.sounds[row]

    def _discriminator_input(self, landmarks: Tensor) -> Tensor:
        """Returns the discriminator's input (N, 204) of landmarks (..., 204): no upper face, with noise."""
        noise = (
            self.settings.instance_noise * torch.randn_like(landmarks) if self.discriminator.training else 0
        )
        seen = (landmarks - self.speaker_mean + noise) * self.discriminator_mask * self.discriminator_scale
        return seen.reshape(-1, seen.shape[-1])

    def _sync(self, landmarks: Tensor, sound: Tensor) -> Tensor:
        """Returns the sync loss () of landmarks (B, T, 204) in the speaker's domain with sound (B, T, E)."""
        windows = mouth_windows(landmarks - self.speaker_rest)  # (B, T - 4, 5, 60)
        mouth = self.syncnet.embed_mouth(windows.flatten(0, 1))
        audio = sound[:, : windows.shape[1]].flatten(0, 1)
        return -torch.log((mouth * audio).sum(-1).clamp(min=1e-4)).mean()

    @torch.no_grad()
    def validate(self, step: int) -> Validation:
        """Returns the curves for checkpoint selection and the motion metrics of corpus and speaker."""
        self.net.eval()
        self.discriminator.eval()
        own, fakes, syncs, apertures = [], [], [], []
        tracks: dict[str, list[MotionTrack]] = {"corpus": [], "speaker": []}
        for kind, clips in (("speaker", self.speaker.validation), ("corpus", self.corpus.validation)):
            frozen = self.frozen[f"{kind} validation"]
            true_rest = self.speaker_rest if kind == "speaker" else clips.rest
            for clip in range(len(clips)):
                first, frames = int(clips.first_row[clip]), int(clips.frames[clip])
                rows = slice(first, first + frames)
                moved = self.net(frozen.motion[0, rows][None])  # (1, T, 204)
                truth = clips.clip_offsets(clip) + (0 if kind == "speaker" else clips.rest)
                if kind == "speaker":
                    own.append((moved[0] - truth).square().mean())
                else:
                    fakes.append(self.discriminator(self._discriminator_input(moved)))
                    mean_face = clips.mean_face.cpu().numpy()
                    given = frozen.motion[0, rows].cpu().numpy()
                    moved_mm = aperture_mm(moved[0].cpu().numpy(), mean_face)
                    apertures.append((moved_mm, aperture_mm(given, mean_face)))
                    if bool(clips.speech[clip]):
                        syncs.append(self._sync(moved, frozen.sound[0, rows][None]))
                tracks[kind].append(
                    compare_motion(
                        moved[0].cpu().numpy(),
                        truth.cpu().numpy(),
                        sounds=clips.clip_sounds(clip).cpu().numpy(),
                        mean_face=clips.mean_face.cpu().numpy(),
                        predicted_rest=self.speaker_rest.cpu().numpy(),
                        true_rest=true_rest.cpu().numpy(),
                    )
                )
        positives = self.discriminator(self._discriminator_input(self.speaker.validation.offsets))
        corpus, speaker = measure_motion(tracks["corpus"]), measure_motion(tracks["speaker"])
        return Validation(
            scalars={
                "mse": float(torch.stack(own).mean()),
                "sync": float(torch.stack(syncs).mean()),
                "added_lag_ms": best_lag_ms(apertures),
                "disc_pos_conf": float(positives.mean()),
                "disc_neg_conf": float(torch.cat(fakes).mean()),
                **motion_scalars(corpus),
                **{f"speaker_{name}": value for name, value in motion_scalars(speaker).items()},
            },
            pictures={
                "speaker_mouth": draw_track(_first_seconds(tracks["speaker"][0], 12)),
                "corpus_mouth": draw_track(tracks["corpus"][0]),
            },
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns PostNet, its sizes, the discriminator, both optimisers' states."""
        return {
            "model": self.net.state_dict(),
            "config": asdict(self.net.config),
            "discriminator": self.discriminator.state_dict(),
            "generator_optimizer": self.generator_optimizer.state_dict(),
            "discriminator_optimizer": self.discriminator_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores training state."""
        self.net.load_state_dict(state["model"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.generator_optimizer.load_state_dict(state["generator_optimizer"])
        self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])


def _first_seconds(track: MotionTrack, seconds: int) -> MotionTrack:
    frames = FRAME_RATE_HZ * seconds
    return MotionTrack(
        predicted_aperture_mm=track.predicted_aperture_mm[:frames],
        predicted_width_mm=track.predicted_width_mm[:frames],
        true_aperture_mm=track.true_aperture_mm[:frames],
        true_width_mm=track.true_width_mm[:frames],
        sounds=track.sounds[:frames],
    )
