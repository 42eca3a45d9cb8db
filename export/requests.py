"""The settings of `geneface-export`'s commands; without torch, so that --help needs none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cuda_kernels.errors import InputError
from models.settings import ABOVE_0, BELOW_1, Option, Range, check_ranges
from models.time_base import FRAME_MS

from .regular_file import real_path

MAX_LOOKAHEAD_MS = 1600
MAX_STUDENT_LOOKAHEAD_MS = 160

_UP_TO_A_MILLION = Range(ABOVE_0, 10**6)
_STEPS = Range(1, 10_000_000)
_POSES = Range(1, 1000)
_Plates = Annotated[
    bool,
    Option(
        "make plates: pictures of what speech does not change, so that only the rest is drawn while speaking"
    ),
]


@dataclass(frozen=True, kw_only=True)
class BundleRequest:
    """Settings of `bundle`: checkpoints, data and limits."""

    out: Annotated[Path, Option("the bundle's folder; an older bundle there is replaced")]
    name: Annotated[str, Option("the speaker's name")]
    audio2motion: Annotated[Path, Option("training folder or checkpoint")]
    postnet: Annotated[Path | None, Option("training folder or checkpoint")] = None
    syncnet: Annotated[Path | None, Option("training folder or checkpoint")] = None
    head: Annotated[Path, Option("training folder or checkpoint")]
    torso: Annotated[Path | None, Option("training folder or checkpoint")] = None
    data: Annotated[Path, Option("the speaker's data: truth.npz, background.png, audio.flac")]
    corpus: Annotated[
        Path | None, Option("the corpus Audio2Motion was trained on: its mean face is compared")
    ] = None
    origin: Annotated[
        Path, Option("JSON with subject, consent, data, recipe, synthetic, licence: who may be shown")
    ]
    figures: Annotated[
        tuple[Path, ...], Option("JSON files of measured figures to put into bundle and card")
    ] = ()
    max_mb: Annotated[float, _UP_TO_A_MILLION, Option("refuse a larger bundle")] = 24.0
    unexplained: Annotated[
        float,
        BELOW_1,
        Option(
            "predicted landmarks are projected onto the video's principal components; the share of "
            "variance these may leave out, 0 for no projection"
        ),
    ] = 1e-4
    clamp_std: Annotated[float, Range(0.1, 100), Option("landmarks are held within so many deviations")] = 2.5
    ema: Annotated[float, Range(0, 0.99), Option("weight of the previous frame's landmarks")] = 0.2
    advance_features: Annotated[
        int, Range(0, 4), Option("lips move so many feature frames of 20 ms earlier than was learnt")
    ] = 0
    float32_networks: Annotated[
        bool, Option("keep the ONNX networks' weights in float32, twice the size")
    ] = False
    check_poses: Annotated[int, _POSES, Option("pictures drawn to check head and torso")] = 4
    check_size_px: Annotated[int, Range(32, 512), Option("their size")] = 256
    plates: _Plates = True

    def __post_init__(self) -> None:
        """Checks ranges."""
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class MotionRequest:
    """Settings of `motion`: the bundle, the networks that will move its face, and their data."""

    bundle: Annotated[Path, Option("the bundle's folder", positional=True)]
    audio2motion: Annotated[Path, Option("training folder or checkpoint")]
    postnet: Annotated[Path | None, Option("training folder or checkpoint")] = None
    syncnet: Annotated[Path | None, Option("training folder or checkpoint")] = None
    data: Annotated[Path, Option("the speaker's data that head and torso were trained on")]
    corpus: Annotated[
        Path | None, Option("the corpus Audio2Motion was trained on: its mean face is compared")
    ] = None
    origin: Annotated[Path | None, Option("JSON as of `bundle`, in place of the bundle's record")] = None
    figures: Annotated[
        tuple[Path, ...], Option("JSON files of measured figures to put into bundle and card")
    ] = ()
    unexplained: Annotated[float, BELOW_1, Option("as of `bundle`")] = 1e-4
    clamp_std: Annotated[float, Range(0.1, 100), Option("as of `bundle`")] = 2.5
    ema: Annotated[float, Range(0, 0.99), Option("as of `bundle`")] = 0.2
    advance_features: Annotated[int, Range(0, 4), Option("as of `bundle`")] = 0
    rest_of_video: Annotated[
        bool,
        Option("move all landmarks so that silence gives the face of the video's pauses"),
    ] = False
    float32_networks: Annotated[bool, Option("as of `bundle`")] = False
    plates: _Plates = True

    def __post_init__(self) -> None:
        """Checks ranges."""
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class GenefaceRequest:
    """Settings of `geneface`: the speaker to import, and how it streams."""

    checkpoints: Annotated[Path, Option("GeneFace's checkpoints folder, or the speaker's folder in it")]
    data: Annotated[Path, Option("the speaker's trainval_dataset.npy, out of GeneFace's data/binary")]
    speaker: Annotated[str, Option("the speaker's name in GeneFace, its video_id")]
    out: Annotated[Path, Option("the bundle's folder; an older bundle there is replaced")]
    name: Annotated[str | None, Option("another name for the bundle")] = None
    origin: Annotated[
        Path | None,
        Option(
            "JSON with subject, consent, data, recipe, synthetic, licence: who may be shown; without "
            "it the bundle says that nobody stated it"
        ),
    ] = None
    hubert: Annotated[
        Path | None,
        Option(
            "folder of Hugging Face's hubert-large-ls960-ft or torchaudio's .pth file; without it "
            "torchaudio's is downloaded once, 1.3 GB"
        ),
    ] = None
    audio: Annotated[
        Path | None, Option("speech to compare networks on, best the video's own sound (aud.wav)")
    ] = None
    postnet: Annotated[Path | None, Option("PostNet's work folder or checkpoint, if it is not found")] = None
    head: Annotated[Path | None, Option("the head's, if it is not found")] = None
    torso: Annotated[Path | None, Option("the torso's, if it is not found")] = None
    postnet_steps: Annotated[
        int | None,
        Range(0, 10**9),
        Option("PostNet's checkpoint to take; without it a rule chooses by the training's logs"),
    ] = None
    lookahead_ms: Annotated[
        int,
        Range(0, MAX_LOOKAHEAD_MS, step=FRAME_MS),
        Option("sound after a frame that its motion takes at least"),
    ] = 320
    hop_frames: Annotated[
        Literal[1, 2, 4], Option("frames between two runs of the networks: 1, 2 or 4; fewer cost more")
    ] = 2
    window_ms: Annotated[int, Range(0, 20_000, step=FRAME_MS), Option("sound that HuBERT takes at once")] = (
        2560
    )
    motion_window_ms: Annotated[
        int,
        Range(4 * FRAME_MS, 30_000, step=4 * FRAME_MS),
        Option("features that Audio2Motion and PostNet take at once"),
    ] = 2560
    temperature: Annotated[
        float, Range(0, 2), Option("of the motion's noise, which belongs to each frame; 0 for none")
    ] = 1.0
    unexplained: Annotated[
        float,
        BELOW_1,
        Option(
            "project landmarks onto the principal components of the video's, of whose variance so "
            "much may be left out (1e-4): no face that the head never saw; 0: as GeneFace gives them"
        ),
    ] = 0.0
    float32_networks: Annotated[bool, Option("keep HuBERT's weights in float32, twice the size")] = False
    check_poses: Annotated[int, _POSES, Option("pictures drawn to check head and torso")] = 4
    plates: _Plates = True

    def __post_init__(self) -> None:
        """Checks ranges."""
        check_ranges(self)
        if self.postnet is not None and self.head is None and self.torso is None:
            raise InputError(
                "postnet: expected --head or --torso beside it, got neither; give their folders too"
            )


@dataclass(frozen=True, kw_only=True)
class DistillationRequest:
    """Settings of `distil`: the teacher, the speech and the student's training."""

    bundle: Annotated[Path, Option("the speaker whose motion is distilled: the teacher", positional=True)]
    speech: Annotated[
        Path, Option("folder of recordings, two or more, of anything ffmpeg decodes; many voices are best")
    ]
    out: Annotated[Path, Option("the student's bundle; an older bundle there is replaced")]
    work: Annotated[
        Path | None,
        Option("folder for the teacher's output and the training; OUT.work beside --out if absent"),
    ] = None
    lookahead_ms: Annotated[
        int,
        Range(0, MAX_STUDENT_LOOKAHEAD_MS, step=FRAME_MS),
        Option(f"later sound a frame may depend on: 0 to {MAX_STUDENT_LOOKAHEAD_MS} in steps of {FRAME_MS}"),
    ] = MAX_STUDENT_LOOKAHEAD_MS
    steps: Annotated[int, _STEPS, Option("training steps in all; the rate falls over them")] = 6000
    batch: Annotated[int, Range(1, 65_536), Option("crops a step; 128 on a GPU")] = 32
    temperature: Annotated[
        float, Range(0, 2), Option("of the teacher's noise; 0: its most likely motion, which can be learnt")
    ] = 0.0
    device: Annotated[str, Option("torch device to train on: cpu, cuda, cuda:1")] = "cpu"
    max_minutes: Annotated[
        float | None,
        _UP_TO_A_MILLION,
        Option("stop training with a checkpoint after this long; the same command goes on"),
    ] = None
    plates: _Plates = True

    def __post_init__(self) -> None:
        """Checks ranges, and that no folder is taken for two things."""
        check_ranges(self)
        real = {name: real_path(name, getattr(self, name)) for name in ("bundle", "speech", "out")}
        real["work"] = real_path("work", self.work_folder)
        if real["out"] == real["bundle"]:
            raise InputError(
                f"out: expected another folder than the teacher's bundle, got {self.out}; the teacher is kept"
            )
        for name, folder in (("out", self.out), ("work", self.work_folder)):
            if real[name].is_relative_to(real["speech"]):
                raise InputError(
                    f"{name}: expected a folder outside of speech ({self.speech}), got {folder}; give another"
                )

    @property
    def work_folder(self) -> Path:
        """The folder of the teacher's output and of the training."""
        return self.out.with_name(f"{self.out.name}.work") if self.work is None else self.work

    @property
    def lookahead_frames(self) -> int:
        """The look-ahead in video frames."""
        return self.lookahead_ms // FRAME_MS


@dataclass(frozen=True, kw_only=True)
class SlimRequest:
    """Settings of `slim`: the teacher's bundle, the student's width and its training."""

    bundle: Annotated[
        Path, Option("the bundle's folder; its head must be wider than --hidden", positional=True)
    ]
    out: Annotated[Path, Option("the slim bundle's folder; an older bundle there is replaced")]
    hidden: Annotated[
        Literal[32, 64], Option("width of the slim head's networks: 32 for CPUs, 64 for small GPUs")
    ] = 32
    speech: Annotated[
        tuple[Path, ...], Option("recordings of speech, a minute or more in all, best in several voices")
    ]
    device: Annotated[str, Option("torch device: cpu, cuda, cuda:1")] = "cpu"
    steps: Annotated[int, _STEPS, Option("steps of training in all, those before a stop included")] = 6000
    rays: Annotated[
        int | None,
        Range(256, 1 << 24),
        Option("rays a step (65536 on a GPU, 8192 on a CPU); fewer need less memory"),
    ] = None
    compile: Annotated[bool, Option("compile the networks: faster on a GPU")] = False
    work: Annotated[
        Path | None, Option("folder of checkpoints, from which the same command goes on (OUT.work)")
    ] = None
    plates: _Plates = True

    def __post_init__(self) -> None:
        """Checks ranges."""
        check_ranges(self)
        if not self.speech:
            raise InputError("speech: expected at least one recording, got none; a minute of talk is enough")
        if real_path("out", self.out) == real_path("bundle", self.bundle):
            raise InputError(
                f"out: expected another folder than the bundle's, got {self.out}; keep the wide one"
            )

    @property
    def work_folder(self) -> Path:
        """The folder of the lessons and of the checkpoints."""
        return self.work or self.out.with_name(self.out.name + ".work")


@dataclass(frozen=True, kw_only=True)
class PlatesRequest:
    """Settings of `plates`: the bundle, and speech that shows what its face does."""

    bundle: Annotated[Path, Option("the bundle's folder", positional=True)]
    speech: Annotated[
        tuple[Path, ...], Option("recordings of a second or more, to go by beside a packaged sentence")
    ] = ()
    max_mb: Annotated[float | None, _UP_TO_A_MILLION, Option("refuse a larger bundle")] = None

    def __post_init__(self) -> None:
        """Checks ranges."""
        check_ranges(self)
