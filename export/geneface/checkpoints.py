"""A GeneFace speaker's trained networks, read from its trainer's work folders.

Audio2Motion and SyncNet are taken from inside the PostNet checkpoint, since PostNet's training moved the
batch norms of Audio2Motion.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn

from models.audio2motion import LANDMARK_DIMENSION, Audio2Motion, Audio2MotionConfig
from models.condition import ConditionConfig
from models.encodings import GridConfig
from models.head import Head, HeadConfig
from models.postnet import PostNet, PostNetConfig
from models.settings import SettingsError, one_line, show
from models.syncnet import SyncNet
from models.torso import Torso, TorsoConfig

from .pickles import GenefaceFileError, read_torch
from .trainer_config import CONFIG_NAME, MAX_NUMBER_CHARS, read_config
from .work_folders import TRAIN_FIELDS, GenefaceFolders, newest_checkpoint, postnet_checkpoint

T = TypeVar("T")
Network = TypeVar("Network", bound=nn.Module)
State = Mapping[str, Tensor]

# Prefixes of keys in the child `model`, by kind; a torso's checkpoint holds the head's keys too.
_KINDS: Final = (
    ("PostNet", "block1."),
    ("Audio2Motion", "vae."),
    ("SyncNet", "hubert_encoder."),
    ("torso", "torso_embedder."),
    ("head", "ambient_net."),
)

# Prefixes of keys that only another project's networks have, and why those cannot be imported.
_OTHERS: Final = (
    (
        "ER-NeRF",
        ("encoder_xy.", "aud_ch_att_net.", "unc_net.", "anchor_points"),
        "its head takes audio instead of landmarks and its torso follows anchor points",
    ),
    (
        "GeneFace++",
        ("sr_net.", "blink_embed", "blink_encoder."),
        "its networks have blinks and an upsampler that GeneFace's lack",
    ),
    (
        "a vanilla NeRF",
        ("model_coarse.", "model_fine.", "network_fn_state_dict", "network_audnet_state_dict"),
        "it has no feature grids and takes seconds a frame",
    ),
    ("RAD-NeRF", ("encoder_ambient.", "audio_net."), "its head takes audio instead of landmarks"),
)

# GeneFace's names of our configs' fields, where they differ.
_HEAD_KEYS: Final = {
    "window_frames": "smo_win_size",
    "lookahead_frames": "smo_win_size",
    "outputs": "cond_out_dim",
    "log2_rows": "log2_hashmap_size",
    "hidden_ambient": "hidden_dim_ambient",
    "hidden_sigma": "hidden_dim_sigma",
    "hidden_color": "hidden_dim_color",
    "layers_ambient": "num_layers_ambient",
    "layers_sigma": "num_layers_sigma",
    "layers_color": "num_layers_color",
    "geometry_features": "geo_feat_dim",
    "codes": "individual_embedding_num",
    "code_width": "individual_embedding_dim",
    "density_threshold": "density_thresh",
}
_TORSO_KEYS: Final = {
    "codes": "individual_embedding_num",
    "code_width": "torso_individual_embedding_dim",
    "shrink": "torso_shrink",
    "density_threshold": "density_thresh_torso",
}


@dataclass(frozen=True, kw_only=True)
class CheckpointSource:
    """The file a network was read from, and why this one."""

    part: str
    path: Path
    step: int
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class GenefaceCheckpoint:
    """One checkpoint of GeneFace's trainer.

    Attributes:
        path: The file.
        step: Training steps behind it.
        children: Each child module's state by its name; a task within the task keeps its name in the keys.
        config: The hyper-parameters of its work folder.
    """

    path: Path
    step: int
    children: Mapping[str, State]
    config: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """The kind of network: PostNet, Audio2Motion, SyncNet, torso or head."""
        model = self.children.get("model", {})
        for kind, beginning in _KINDS:
            if any(key.startswith(beginning) for key in model):
                return kind
        kinds = ", ".join(kind for kind, _ in _KINDS)
        raise GenefaceFileError(
            f"{self.path}: state_dict.model: expected the keys of one of {kinds}, got {len(model)} others; "
            f"give a work folder of GeneFace's"
        )

    def setting(self, key: str, kind: type[T], default: T | None = None) -> T:
        """Returns a value of the config; GenefaceFileError if it has another type, or none and no default."""
        value = self.config.get(key, default)
        if kind is float and type(value) is int and abs(value) < 10**MAX_NUMBER_CHARS:
            value = float(value)
        if type(value) is not kind:
            got = "none" if key not in self.config else show(value)
            raise GenefaceFileError(
                f"{self.path.parent / CONFIG_NAME}: {key}: expected {kind.__name__}, got {got}; "
                f"take the config.yaml that GeneFace's trainer wrote there"
            )
        return value

    def require(self, holds: bool, key: str, expected: str) -> None:
        """Raises GenefaceFileError about a value of the config unless `holds`."""
        if not holds:
            raise GenefaceFileError(
                f"{self.path.parent / CONFIG_NAME}: {key}: expected {expected}, got "
                f"{show(self.config.get(key))}; no other can be streamed"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class GenefaceNetworks:
    """A speaker's networks in evaluation mode on the CPU, and what GeneFace's inference does around them.

    Attributes:
        audio2motion: HuBERT features (and pitch) to generic landmarks, as PostNet's training left it.
        postnet: Those landmarks to the speaker's; with pitch it takes `audio2motion.pitch_embed`'s embedding.
        head: The radiance field and its condition networks.
        torso: The torso's field, None for a speaker without.
        syncnet: The lip-sync loss's network, None where the checkpoint lacks it.
        clamp_std: Normalised landmarks are held within so many deviations.
        sources: What was read, part by part.
    """

    audio2motion: Audio2Motion
    postnet: PostNet
    head: Head
    torso: Torso | None
    syncnet: SyncNet | None
    clamp_std: float
    sources: tuple[CheckpointSource, ...]

    @property
    def takes_pitch(self) -> bool:
        """Whether the motion networks take pitch."""
        return self.audio2motion.config.pitch_channels > 0

    @property
    def camera_scale(self) -> float:
        """Field units to a unit of the poses' translation."""
        return self.head.config.camera_scale

    @property
    def camera_offset(self) -> tuple[float, float, float]:
        """Added to the scaled translation."""
        return self.head.config.camera_offset

    @property
    def window_frames(self) -> int:
        """Frames of landmarks in the condition's window."""
        return self.head.config.condition.window_frames


# Reading ---------------------------------------------------------------------------------------------


def read_checkpoint(file: Path) -> GenefaceCheckpoint:
    """Returns a checkpoint of GeneFace's trainer, any task's, with the config beside it.

    Raises:
        GenefaceFileError: the file is broken, another project's, or no checkpoint.
    """
    content = read_torch(file)
    if not isinstance(content, dict):
        raise GenefaceFileError(f"{file}: expected a dict, got {type(content).__name__}; give a checkpoint")
    states = content.get("state_dict")
    # Others keep their networks at the top or in `model`.
    children = _children(states if isinstance(states, dict) else {"model": content.get("model")})
    names = {str(key) for key in content} | {key for state in children.values() for key in state}
    for project, beginnings, why in _OTHERS:
        if any(name.startswith(beginnings) for name in names):
            raise GenefaceFileError(
                f"{file}: expected a GeneFace checkpoint, got one of {project}: {why}; {TRAIN_FIELDS}"
            )
    step = content.get("global_step")
    if not isinstance(states, dict) or not isinstance(step, int):
        key = "global_step" if isinstance(states, dict) else "state_dict"
        raise GenefaceFileError(
            f"{file}: {key}: expected what GeneFace's trainer saves, got none; give one of its checkpoints"
        )
    return GenefaceCheckpoint(
        path=file, step=step, children=children, config=read_config(file.parent / CONFIG_NAME)
    )


def _children(states: Mapping[Any, Any]) -> dict[str, State]:
    """Returns each child's state dict; flat keys `child.key` are split."""
    children: dict[str, State] = {}
    for key, value in states.items():
        name, _, rest = str(key).partition(".")
        entries = {rest: value} if rest else value
        if isinstance(entries, dict):
            tensors = {str(k): tensor for k, tensor in entries.items() if isinstance(tensor, Tensor)}
            children[name] = {**children.get(name, {}), **tensors}
    return children


# Building --------------------------------------------------------------------------------------------


def read_networks(
    folders: GenefaceFolders, speaker: str, *, postnet_steps: int | None = None
) -> GenefaceNetworks:
    """Returns the speaker's networks.

    Args:
        folders: From `find_folders`, or given one by one.
        speaker: GeneFace's `video_id`; the checkpoints must be this speaker's.
        postnet_steps: PostNet's checkpoint to take. Absent, the rule of `training.checkpoint_choice` takes
            one by the training's logs; without these it is the one in the config, or the newest.

    Raises:
        GenefaceFileError: a file is broken, of another kind, speaker, size or project.
    """
    file, why = postnet_checkpoint(folders.postnet, postnet_steps)
    motion = read_checkpoint(file)
    _check_speaker(motion, speaker)
    _check_kind(motion, "PostNet")
    sources = [
        CheckpointSource(part=part, path=file, step=motion.step, reason=reason)
        for part, reason in (("postnet", why), ("audio2motion", "PostNet's"), ("syncnet", "PostNet's"))
    ]
    place = folders.torso or folders.head
    assert place is not None
    file, why = newest_checkpoint(place)
    fields = read_checkpoint(file)
    _check_speaker(fields, speaker)
    head = build_head(fields)
    sources.append(CheckpointSource(part="head", path=file, step=fields.step, reason=why))
    torso = None
    if folders.torso is not None:
        torso = build_torso(fields)
        sources.append(CheckpointSource(part="torso", path=file, step=fields.step, reason=why))
    syncnet = build_syncnet(motion) if "syncnet_task" in motion.children else None
    return GenefaceNetworks(
        audio2motion=build_audio2motion(motion),
        postnet=build_postnet(motion),
        head=head,
        torso=torso,
        syncnet=syncnet,
        clamp_std=fields.setting("infer_lm3d_clamp_std", float, 2.5),
        sources=tuple(source for source in sources if syncnet is not None or source.part != "syncnet"),
    )


def build_audio2motion(checkpoint: GenefaceCheckpoint) -> Audio2Motion:
    """Returns Audio2Motion out of a PostNet's checkpoint or its own; it takes pitch if it has such keys."""
    if _check_kind(checkpoint, "PostNet", "Audio2Motion") == "PostNet":
        place, state = _nested(checkpoint, "audio2motion_task", "model")
    else:
        place, state = "model", checkpoint.children["model"]
    pitch_channels = 32 if "pitch_embed.weight" in state else 0
    return _load(Audio2Motion(Audio2MotionConfig(pitch_channels=pitch_channels)), state, checkpoint, place)


def build_postnet(checkpoint: GenefaceCheckpoint) -> PostNet:
    """Returns PostNet out of its checkpoint; it takes pitch if its input is wide enough."""
    _check_kind(checkpoint, "PostNet")
    state = checkpoint.children["model"]
    first = state.get("block1.0.conv_block.0.weight")
    takes_pitch = first is not None and first.ndim == 3 and first.shape[1] > LANDMARK_DIMENSION
    embedded = (
        "audio2motion_task" in checkpoint.children
        and "model.pitch_embed.weight" in (checkpoint.children["audio2motion_task"])
    )
    if takes_pitch and not embedded:
        raise GenefaceFileError(
            f"{checkpoint.path}: state_dict.audio2motion_task.model.pitch_embed.weight: expected 300x64 "
            f"float32, which its PostNet takes, got none; take the checkpoint as GeneFace wrote it"
        )
    return _load(PostNet(PostNetConfig(pitch_channels=64 if takes_pitch else 0)), state, checkpoint, "model")


def build_syncnet(checkpoint: GenefaceCheckpoint) -> SyncNet:
    """Returns SyncNet out of its own checkpoint or that of a network it trained."""
    if _check_kind(checkpoint, "SyncNet", "Audio2Motion", "PostNet") == "SyncNet":
        return _load(SyncNet(), checkpoint.children["model"], checkpoint, "model")
    place, state = _nested(checkpoint, "syncnet_task", "model")
    return _load(SyncNet(), state, checkpoint, place)


def build_head(checkpoint: GenefaceCheckpoint) -> Head:
    """Returns the head out of its own checkpoint or a torso's."""
    _check_kind(checkpoint, "head", "torso")
    setting = checkpoint.setting
    window = setting("smo_win_size", int)
    checkpoint.require(
        setting("cond_type", str) == "idexp_lm3d_normalized", "cond_type", "idexp_lm3d_normalized"
    )
    checkpoint.require(setting("cond_win_size", int) == 1, "cond_win_size", "1")
    checkpoint.require(setting("with_att", bool), "with_att", "true")
    checkpoint.require(setting("ambient_out_dim", int, 2) == 2, "ambient_out_dim", "2")
    offset = setting("camera_offset", list)
    checkpoint.require(
        len(offset) == 3 and all(type(x) in (int, float) and abs(x) <= 1e4 for x in offset),
        "camera_offset",
        "3 numbers within 1e4",
    )
    bound, resolution = setting("bound", float), setting("desired_resolution", int)
    checkpoint.require(0 < bound <= 1, "bound", "above 0 and at most 1")

    with _sizes_of(checkpoint, _HEAD_KEYS):
        ambient_grid = _grid(checkpoint, resolution)
        config = HeadConfig(
            condition=ConditionConfig(
                window_frames=window,
                lookahead_frames=window - window // 2 - 1,
                outputs=setting("cond_out_dim", int),
            ),
            position_grid=_grid(checkpoint, int(resolution * bound)),
            ambient_grid=ambient_grid,
            hidden_ambient=setting("hidden_dim_ambient", int),
            hidden_sigma=setting("hidden_dim_sigma", int),
            hidden_color=setting("hidden_dim_color", int),
            layers_ambient=setting("num_layers_ambient", int),
            layers_sigma=setting("num_layers_sigma", int),
            layers_color=setting("num_layers_color", int),
            geometry_features=setting("geo_feat_dim", int),
            codes=setting("individual_embedding_num", int),
            code_width=setting("individual_embedding_dim", int),
            grid_size=setting("grid_size", int),
            bound=bound,
            aabb=(-bound, -bound / 2, -bound, bound, bound / 2, bound),
            camera_scale=setting("camera_scale", float),
            camera_offset=(float(offset[0]), float(offset[1]), float(offset[2])),
            max_steps=setting("max_steps", int),
            min_near=setting("min_near", float),
            density_threshold=setting("density_thresh", float),
        )

    state = {key: value for key, value in checkpoint.children["model"].items() if not _is_torso(key)}
    return _load(Head(config), state, checkpoint, "model")


def build_torso(checkpoint: GenefaceCheckpoint) -> Torso:
    """Returns the torso out of its checkpoint."""
    _check_kind(checkpoint, "torso")
    state = {key: value for key, value in checkpoint.children["model"].items() if _is_torso(key)}
    aware = next((key for key in state if key.startswith("head_color_weights_encoder")), None)
    if aware or checkpoint.setting("torso_head_aware", bool, False):
        raise GenefaceFileError(
            f"{checkpoint.path}: {aware or 'torso_head_aware'}: expected a torso that sees the pose alone, "
            f"got one that takes the drawn head too, by chance in half of the frames; "
            f"train with torso_head_aware: false"
        )
    setting = checkpoint.setting

    with _sizes_of(checkpoint, _TORSO_KEYS):
        config = TorsoConfig(
            codes=setting("individual_embedding_num", int),
            code_width=setting("torso_individual_embedding_dim", int),
            shrink=setting("torso_shrink", float),
            grid_size=setting("grid_size", int),
            density_threshold=setting("density_thresh_torso", float),
        )

    return _load(Torso(config), state, checkpoint, "model")


def _is_torso(key: str) -> bool:
    return "torso" in key or key.startswith("head_color_weights_encoder")


def _grid(checkpoint: GenefaceCheckpoint, resolution: int) -> GridConfig:
    kind = checkpoint.setting("grid_type", str, "tiledgrid")
    checkpoint.require(kind in ("tiledgrid", "hashgrid"), "grid_type", "tiledgrid or hashgrid")
    blend = checkpoint.setting("grid_interpolation_type", str, "linear")
    checkpoint.require(blend in ("linear", "smoothstep"), "grid_interpolation_type", "linear or smoothstep")
    return GridConfig(
        desired_resolution=resolution,
        log2_rows=checkpoint.setting("log2_hashmap_size", int),
        hashed=kind == "hashgrid",
        smoothstep=blend == "smoothstep",
    )


@contextmanager
def _sizes_of(checkpoint: GenefaceCheckpoint, keys: Mapping[str, str]) -> Iterator[None]:
    """Names the config and its key where our config refuses a size."""
    try:
        yield
    except SettingsError as error:
        file, key = checkpoint.path.parent / CONFIG_NAME, keys.get(error.field, error.field)
        raise GenefaceFileError(
            f"{file}: {key}: expected {error.expected}, got {error.got}; {TRAIN_FIELDS}"
        ) from None


def _check_speaker(checkpoint: GenefaceCheckpoint, speaker: str) -> None:
    """Raises GenefaceFileError if the config names another speaker; a renamed folder is no other speaker."""
    key = "video_id" if "video_id" in checkpoint.config else "work_dir"
    stated = str(checkpoint.config.get(key, ""))
    got = stated if key == "video_id" else PurePosixPath(stated).parent.name
    if got != speaker:
        raise GenefaceFileError(
            f"{checkpoint.path.parent / CONFIG_NAME}: {key}: expected {speaker}, got "
            f"{one_line(got) or 'none'}; give {speaker}'s work folders, or the name in video_id"
        )


def _check_kind(checkpoint: GenefaceCheckpoint, *kinds: str) -> str:
    if checkpoint.kind not in kinds:
        raise GenefaceFileError(
            f"{checkpoint.path}: expected a checkpoint of {' or '.join(kinds)}, got one of "
            f"{checkpoint.kind}; give the work folder of {kinds[0]}"
        )
    return checkpoint.kind


def _nested(checkpoint: GenefaceCheckpoint, task: str, child: str) -> tuple[str, State]:
    """Returns the place and state of a task's child that another task's checkpoint carries."""
    prefix = f"{child}."
    carried = checkpoint.children.get(task, {})
    state = {key.removeprefix(prefix): value for key, value in carried.items() if key.startswith(prefix)}
    if not state:
        raise GenefaceFileError(
            f"{checkpoint.path}: state_dict.{task}: expected the keys {prefix}*, got none; "
            f"take the checkpoint as GeneFace wrote it"
        )
    return f"{task}.{child}", state


def _load(network: Network, state: State, checkpoint: GenefaceCheckpoint, place: str) -> Network:
    """Returns the network with the state of `place`, for evaluation.

    Raises:
        GenefaceFileError: a key is missing, unknown, of another shape or type, or not finite.
    """
    own = network.state_dict()
    problems = [(key, _form(own[key]), "none") for key in own if key not in state]
    problems += [(key, "no such key", _form(state[key])) for key in state if key not in own]
    for key in (key for key in own if key in state):  # in the network's order: the first is named
        if (own[key].shape, own[key].dtype) != (state[key].shape, state[key].dtype):
            problems.append((key, _form(own[key]), _form(state[key])))
        elif state[key].is_floating_point() and not bool(torch.isfinite(state[key]).all()):
            problems.append((key, "finite numbers", "others"))
    if problems:
        key, expected, got = problems[0]
        more = f" (and {len(problems) - 1} keys more)" if len(problems) > 1 else ""
        raise GenefaceFileError(
            f"{checkpoint.path}: state_dict.{place}.{one_line(key, 100)}: expected {expected}, got "
            f"{got}{more}; take checkpoint and config.yaml of one training of GeneFace's"
        )
    network.load_state_dict(state)
    return network.eval()


def _form(tensor: Tensor) -> str:
    return f"{'x'.join(map(str, tensor.shape)) or 'one'} {str(tensor.dtype).removeprefix('torch.')}"
