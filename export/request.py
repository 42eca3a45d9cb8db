"""What `geneface-export bundle` is asked for; without torch, so that --help needs none."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


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
