"""What the commands of `geneface-export` are asked for; without torch, so that --help needs none."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from models.time_base import FRAME_MS

from .regular_file import real_path

MAX_LOOKAHEAD_MS = 1600
HOPS_FRAMES = (1, 2, 4)
MAX_STUDENT_LOOKAHEAD_MS = 160
SLIM_WIDTHS = (32, 64)


@dataclass(frozen=True, kw_only=True)
class BundleRequest:
    """What a bundle is to be made from."""

    out: Path = field(metadata={"help": "the bundle's folder; an older bundle there is replaced"})
    name: str = field(metadata={"help": "the speaker's name"})
    audio2motion: Path = field(metadata={"help": "training folder or checkpoint"})
    postnet: Path | None = field(default=None, metadata={"help": "training folder or checkpoint"})
    syncnet: Path | None = field(default=None, metadata={"help": "training folder or checkpoint"})
    head: Path = field(metadata={"help": "training folder or checkpoint"})
    torso: Path | None = field(default=None, metadata={"help": "training folder or checkpoint"})
    data: Path = field(metadata={"help": "the speaker's data: truth.npz, background.png, audio.flac"})
    corpus: Path | None = field(
        default=None, metadata={"help": "the corpus Audio2Motion was trained on: its mean face is compared"}
    )
    origin: Path = field(
        metadata={"help": "JSON with subject, consent, data, recipe, synthetic, licence: who may be shown"}
    )
    figures: tuple[Path, ...] = field(
        default=(), metadata={"help": "JSON files of measured figures to put into bundle and card"}
    )
    max_mb: float = field(default=12.0, metadata={"help": "refuse a larger bundle"})
    unexplained: float = field(
        default=1e-4,
        metadata={
            "help": "predicted landmarks are projected onto the video's principal components; the share of "
            "variance these may leave out, 0 for no projection"
        },
    )
    clamp_std: float = field(default=2.5, metadata={"help": "landmarks are held within so many deviations"})
    ema: float = field(default=0.2, metadata={"help": "weight of the previous frame's landmarks"})
    float32_networks: bool = field(
        default=False, metadata={"help": "keep the ONNX networks' weights in float32, twice the size"}
    )
    check_poses: int = field(default=4, metadata={"help": "pictures drawn to check head and torso"})
    check_size_px: int = field(default=256, metadata={"help": "their size"})

    def __post_init__(self) -> None:
        """Checks ranges."""
        if not self.max_mb > 0:
            raise ValueError(f"max_mb: expected more than 0, got {self.max_mb}")
        if not 0 <= self.unexplained < 1:
            raise ValueError(f"unexplained: expected 0 or more and less than 1, got {self.unexplained}")
        if self.check_poses < 1 or not 32 <= self.check_size_px <= 512:
            raise ValueError(
                "check_poses, check_size_px: expected 1 or more and 32 to 512, got "
                f"{self.check_poses} and {self.check_size_px}"
            )


@dataclass(frozen=True, kw_only=True)
class GenefaceRequest:
    """Which GeneFace speaker is imported, and how it is to be streamed."""

    checkpoints: Path = field(
        metadata={"help": "GeneFace's checkpoints folder, or the speaker's folder in it"}
    )
    data: Path = field(metadata={"help": "the speaker's trainval_dataset.npy, out of GeneFace's data/binary"})
    speaker: str = field(metadata={"help": "the speaker's name in GeneFace, its video_id"})
    out: Path = field(metadata={"help": "the bundle's folder; an older bundle there is replaced"})
    name: str | None = field(default=None, metadata={"help": "another name for the bundle"})
    origin: Path | None = field(
        default=None,
        metadata={
            "help": "JSON with subject, consent, data, recipe, synthetic, licence: who may be shown; without "
            "it the bundle says that nobody stated it"
        },
    )
    hubert: Path | None = field(
        default=None,
        metadata={
            "help": "folder of Hugging Face's hubert-large-ls960-ft or torchaudio's .pth file; without it "
            "torchaudio's is downloaded once, 1.3 GB"
        },
    )
    audio: Path | None = field(
        default=None,
        metadata={"help": "speech to compare networks on, best the video's own sound (aud.wav)"},
    )
    postnet: Path | None = field(
        default=None, metadata={"help": "PostNet's work folder or checkpoint, if it is not found"}
    )
    head: Path | None = field(default=None, metadata={"help": "the head's, if it is not found"})
    torso: Path | None = field(default=None, metadata={"help": "the torso's, if it is not found"})
    postnet_steps: int | None = field(
        default=None,
        metadata={"help": "PostNet's checkpoint to take; without it a rule chooses by the training's logs"},
    )
    lookahead_ms: int = field(
        default=320, metadata={"help": "sound after a frame that its motion hears at least"}
    )
    hop_frames: int = field(
        default=2, metadata={"help": "frames between two runs of the networks: 1, 2 or 4; fewer cost more"}
    )
    window_ms: int = field(default=2560, metadata={"help": "sound that HuBERT hears at once"})
    motion_window_ms: int = field(
        default=2560, metadata={"help": "features that Audio2Motion and PostNet see at once"}
    )
    temperature: float = field(
        default=1.0, metadata={"help": "of the motion's noise, which belongs to each frame; 0 for none"}
    )
    unexplained: float = field(
        default=0.0,
        metadata={
            "help": "project landmarks onto the principal components of the video's, of whose variance so "
            "much may be left out (1e-4): no face that the head never saw; 0: as GeneFace gives them"
        },
    )
    float32_networks: bool = field(
        default=False, metadata={"help": "keep HuBERT's weights in float32, twice the size"}
    )
    check_poses: int = field(default=4, metadata={"help": "pictures drawn to check head and torso"})

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name, longest in (("lookahead_ms", MAX_LOOKAHEAD_MS), ("window_ms", 20_000)):
            value = getattr(self, name)
            if not 0 <= value <= longest or value % FRAME_MS:
                raise ValueError(f"{name}: expected 0 to {longest} in steps of {FRAME_MS}, got {value}")
        if self.hop_frames not in HOPS_FRAMES:
            raise ValueError(f"hop_frames: expected 1, 2 or 4, got {self.hop_frames}")
        if not 0 < self.motion_window_ms <= 30_000 or self.motion_window_ms % (4 * FRAME_MS):
            raise ValueError(
                f"motion_window_ms: expected up to 30000 in steps of {4 * FRAME_MS}, "
                f"got {self.motion_window_ms}"
            )
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"temperature: expected 0 to 2, got {self.temperature}")
        if not 0 <= self.unexplained < 1:
            raise ValueError(f"unexplained: expected 0 or more and less than 1, got {self.unexplained}")
        if self.check_poses < 1:
            raise ValueError(f"check_poses: expected 1 or more, got {self.check_poses}")
        if self.postnet is not None and self.head is None and self.torso is None:
            raise ValueError(
                "postnet: expected --head or --torso beside it, got neither; give their folders too"
            )


@dataclass(frozen=True, kw_only=True)
class DistillationRequest:
    """Which speaker's motion a small network is to learn, and from what speech."""

    bundle: Path = field(metadata={"help": "the speaker whose motion is learnt: the teacher"})
    speech: Path = field(
        metadata={
            "help": "folder of recordings, two or more, of anything ffmpeg decodes; many voices are best"
        }
    )
    out: Path = field(metadata={"help": "the student's bundle; an older bundle there is replaced"})
    work: Path | None = field(
        default=None,
        metadata={
            "help": "folder for the teacher's output and the training; OUT.work beside --out if absent"
        },
    )
    lookahead_ms: int = field(
        default=MAX_STUDENT_LOOKAHEAD_MS,
        metadata={
            "help": f"later sound a frame may hear: 0 to {MAX_STUDENT_LOOKAHEAD_MS} in steps of {FRAME_MS}"
        },
    )
    steps: int = field(default=6000, metadata={"help": "training steps in all; the rate falls over them"})
    batch: int = field(default=32, metadata={"help": "crops a step; 128 on a GPU"})
    temperature: float = field(
        default=0.0,
        metadata={"help": "of the teacher's noise; 0: its most likely motion, which can be learnt"},
    )
    device: str = field(default="cpu", metadata={"help": "torch device to train on: cpu, cuda, cuda:1"})
    max_minutes: float | None = field(
        default=None,
        metadata={"help": "stop training with a checkpoint after this long; the same command goes on"},
    )

    def __post_init__(self) -> None:
        """Checks ranges, and that no folder is taken for two things."""
        if not 0 <= self.lookahead_ms <= MAX_STUDENT_LOOKAHEAD_MS or self.lookahead_ms % FRAME_MS:
            raise ValueError(
                f"lookahead_ms: expected 0 to {MAX_STUDENT_LOOKAHEAD_MS} in steps of {FRAME_MS}, "
                f"got {self.lookahead_ms}"
            )
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"temperature: expected 0 to 2, got {self.temperature}")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ValueError(f"max_minutes: expected more than 0, got {self.max_minutes}")
        real = {name: real_path(name, getattr(self, name)) for name in ("bundle", "speech", "out")}
        real["work"] = real_path("work", self.work_folder)
        if real["out"] == real["bundle"]:
            raise ValueError(
                f"out: expected another folder than the teacher's bundle, got {self.out}; the teacher is kept"
            )
        for name, folder in (("out", self.out), ("work", self.work_folder)):
            if real[name].is_relative_to(real["speech"]):
                raise ValueError(
                    f"{name}: expected a folder outside of speech ({self.speech}), got {folder}; give another"
                )

    @property
    def work_folder(self) -> Path:
        """Where the teacher's output and the training go."""
        return self.out.with_name(f"{self.out.name}.work") if self.work is None else self.work

    @property
    def lookahead_frames(self) -> int:
        """The look-ahead in video frames."""
        return self.lookahead_ms // FRAME_MS


@dataclass(frozen=True, kw_only=True)
class SlimRequest:
    """Which bundle's head is to be made narrow, and how."""

    bundle: Path = field(metadata={"help": "the bundle's folder; its head must be wider than --hidden"})
    out: Path = field(metadata={"help": "the slim bundle's folder; an older bundle there is replaced"})
    hidden: int = field(
        default=32, metadata={"help": "width of the slim head's networks: 32 for CPUs, 64 for small GPUs"}
    )
    speech: tuple[Path, ...] = field(
        metadata={"help": "recordings of speech, a minute or more in all, best in several voices"}
    )
    device: str = field(default="cpu", metadata={"help": "torch device: cpu, cuda, cuda:1"})
    steps: int = field(
        default=6000, metadata={"help": "steps of training in all, those before a stop included"}
    )
    rays: int | None = field(
        default=None, metadata={"help": "rays a step (65536 on a GPU, 8192 on a CPU); fewer need less memory"}
    )
    compile: bool = field(default=False, metadata={"help": "compile the networks: faster on a GPU"})
    work: Path | None = field(
        default=None,
        metadata={"help": "folder of checkpoints, from which the same command goes on (OUT.work)"},
    )

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.hidden not in SLIM_WIDTHS:
            raise ValueError(f"hidden: expected {' or '.join(map(str, SLIM_WIDTHS))}, got {self.hidden}")
        if not self.speech:
            raise ValueError("speech: expected at least one recording, got none; a minute of talk is enough")
        if self.steps < 1:
            raise ValueError(f"steps: expected 1 or more, got {self.steps}")
        if self.rays is not None and self.rays < 256:
            raise ValueError(f"rays: expected 256 or more, got {self.rays}")
        if real_path("out", self.out) == real_path("bundle", self.bundle):
            raise ValueError(
                f"out: expected another folder than the bundle's, got {self.out}; keep the wide one"
            )

    @property
    def work_folder(self) -> Path:
        """Where lessons and checkpoints are."""
        return self.work or self.out.with_name(self.out.name + ".work")
