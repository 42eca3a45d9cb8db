"""What `geneface-export geneface` is asked for; without torch, so that --help needs none."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

FRAME_MS = 40
LONGEST_LOOKAHEAD_MS = 1600
HOPS_FRAMES = (1, 2, 4)


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
        for name, longest in (("lookahead_ms", LONGEST_LOOKAHEAD_MS), ("window_ms", 20_000)):
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
