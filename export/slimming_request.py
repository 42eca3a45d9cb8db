"""What `geneface-export slim` is asked for; without torch, so that --help needs none."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .regular_file import real_path

WIDTHS = (32, 64)


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
        if self.hidden not in WIDTHS:
            raise ValueError(f"hidden: expected {' or '.join(map(str, WIDTHS))}, got {self.hidden}")
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
