"""What `geneface-export distil` is asked for; without torch, so that --help needs none."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .regular_file import real_path

FRAME_MS = 40
LONGEST_LOOKAHEAD_MS = 160


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
        default=LONGEST_LOOKAHEAD_MS,
        metadata={
            "help": f"later sound a frame may hear: 0 to {LONGEST_LOOKAHEAD_MS} in steps of {FRAME_MS}"
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
        if not 0 <= self.lookahead_ms <= LONGEST_LOOKAHEAD_MS or self.lookahead_ms % FRAME_MS:
            raise ValueError(
                f"lookahead_ms: expected 0 to {LONGEST_LOOKAHEAD_MS} in steps of {FRAME_MS}, "
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
