"""A GeneFace speaker's trained networks, out of the work folders that its trainer left.

GeneFace (Ye et al., ICLR 2023) keeps one folder a task below `checkpoints/<speaker>`, with `config.yaml`,
`model_ckpt_steps_<N>.ckpt` and `tb_logs`. Audio2Motion and SyncNet are taken from inside the PostNet
checkpoint, since PostNet's training moved the batch norms of Audio2Motion.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeVar

import numpy as np
import torch
import yaml  # type: ignore[import-untyped]  # ships no types; read_config checks what comes
from torch import Tensor, nn

from models.audio2motion import LANDMARK_DIMENSION, Audio2Motion, Audio2MotionConfig
from models.condition import ConditionConfig
from models.encodings import GridConfig
from models.head import Head, HeadConfig
from models.postnet import PostNet, PostNetConfig
from models.settings import SettingsError, one_line, show
from models.syncnet import SyncNet
from models.torso import Torso, TorsoConfig
from training.checkpoint_choice import Curves, choose

from ..regular_file import open_regular
from .pickles import GenefaceFileError, read_torch

log = logging.getLogger(__name__)

T = TypeVar("T")
Network = TypeVar("Network", bound=nn.Module)
State = Mapping[str, Tensor]

_CHECKPOINT_NAME: Final = re.compile(r"model_ckpt_steps_(\d+)\.ckpt")
_BEST_NAME: Final = "model_ckpt_best.pt"
_CONFIG_NAME: Final = "config.yaml"
_MAX_CONFIG_BYTES: Final = 1_000_000
_MAX_NAMED_STEPS: Final = 12
_MAX_NUMBER_CHARS: Final = 40
_MAX_BASES: Final = 32

# Folder names of GeneFace's recipe, else what a name must hold.
_FOLDERS: Final = {
    "postnet": (
        ("lm3d_postnet_sync", "postnet", "lm3d_postnet_sync_pitch", "postnet_pitch"),
        re.compile("postnet"),
    ),
    "torso": (("lm3d_radnerf_torso",), re.compile("nerf.*torso")),
    "head": (("lm3d_radnerf",), re.compile("nerf(?!.*torso)")),
}

# A key of the child `model` that tells what a checkpoint is; a torso's holds the head's keys too.
_KINDS: Final = (
    ("PostNet", "block1."),
    ("Audio2Motion", "vae."),
    ("SyncNet", "hubert_encoder."),
    ("torso", "torso_embedder."),
    ("head", "ambient_net."),
)

# Beginnings of keys that only another project's networks have, and why those cannot be taken.
_OTHERS: Final = (
    (
        "ER-NeRF",
        ("encoder_xy.", "aud_ch_att_net.", "unc_net.", "anchor_points"),
        "its head hears audio instead of landmarks and its torso follows anchor points",
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
    ("RAD-NeRF", ("encoder_ambient.", "audio_net."), "its head hears audio instead of landmarks"),
)
_TRAIN: Final = "train GeneFace's lm3d_radnerf and lm3d_radnerf_torso"

# GeneFace's keys of what has another name in our configs.
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
class GenefaceFolders:
    """A speaker's work folders; each may also be one checkpoint file, with config.yaml beside it.

    Attributes:
        postnet: PostNet's, with or without pitch.
        head: The head's; not read where there is a torso, whose checkpoint holds its head.
        torso: The torso's, None for a speaker without.
    """

    postnet: Path
    head: Path | None = None
    torso: Path | None = None

    def __post_init__(self) -> None:
        """Raises GenefaceFileError where there is neither head nor torso."""
        if self.head is None and self.torso is None:
            raise GenefaceFileError(
                f"{self.postnet}: expected a head's or a torso's work folder beside it, got none; {_TRAIN}"
            )


@dataclass(frozen=True, kw_only=True)
class CheckpointSource:
    """Which file a part was taken from, and why from this one."""

    part: str
    path: Path
    step: int
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class GenefaceCheckpoint:
    """One file of GeneFace's trainer.

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
        """What it is a checkpoint of: PostNet, Audio2Motion, SyncNet, torso or head."""
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
        if kind is float and type(value) is int and abs(value) < 10**_MAX_NUMBER_CHARS:
            value = float(value)
        if type(value) is not kind:
            got = "none" if key not in self.config else show(value)
            raise GenefaceFileError(
                f"{self.path.parent / _CONFIG_NAME}: {key}: expected {kind.__name__}, got {got}; "
                f"take the config.yaml that GeneFace's trainer wrote there"
            )
        return value

    def require(self, holds: bool, key: str, expected: str) -> None:
        """Raises GenefaceFileError about a value of the config unless `holds`."""
        if not holds:
            raise GenefaceFileError(
                f"{self.path.parent / _CONFIG_NAME}: {key}: expected {expected}, got "
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
        syncnet: The one that judged the training, None where the checkpoint lacks it.
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
    def hears_pitch(self) -> bool:
        """Whether the motion needs the voice's pitch."""
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
        """Frames of landmarks that the head's condition looks at."""
        return self.head.config.condition.window_frames


# Finding ---------------------------------------------------------------------------------------------


def find_folders(checkpoints: Path, speaker: str) -> GenefaceFolders:
    """Returns the speaker's work folders below GeneFace's `checkpoints` or the speaker's own folder in it.

    Raises:
        GenefaceFileError: there is no such folder, none of a PostNet or a head, or several of one kind.
    """
    below = checkpoints / speaker
    folder = below if below.is_dir() else checkpoints
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    found = {part: _pick(folder, names, part) for part in _FOLDERS}
    if found["postnet"] is None:
        there = one_line(", ".join(names), 200) or "no folders"
        raise GenefaceFileError(
            f"{folder}: expected a folder {speaker} or its lm3d_postnet_sync or postnet, got {there}; "
            f"give GeneFace's checkpoints or checkpoints/{speaker}, or the work folders one by one"
        )
    return GenefaceFolders(postnet=found["postnet"], head=found["head"], torso=found["torso"])


def _pick(folder: Path, names: list[str], part: str) -> Path | None:
    usual, pattern = _FOLDERS[part]
    fitting = [name for name in names if name in usual] or [name for name in names if pattern.search(name)]
    if len(fitting) > 1:
        raise GenefaceFileError(
            f"{folder}: expected one work folder of a {part}, got {one_line(', '.join(fitting), 200)}; "
            f"name the one to take as the speaker's {part}"
        )
    return folder / fitting[0] if fitting else None


def _saved(folder: Path) -> dict[int, Path]:
    """Returns the checkpoint file of each saved step in a work folder, in the order of the steps."""
    if not folder.is_dir():
        raise GenefaceFileError(
            f"{folder}: expected a work folder or a checkpoint, got no such; check the path"
        )
    matches = ((_CHECKPOINT_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return dict(sorted((int(match[1]), path) for match, path in matches if match))


def _newest(path: Path) -> tuple[Path, str]:
    """Returns a folder's newest checkpoint and the reason; a file is its own."""
    if path.is_file():
        return path, "given"
    saved = _saved(path)
    if saved:
        return saved[max(saved)], f"the newest of {len(saved)}"
    if (path / _BEST_NAME).is_file():
        return path / _BEST_NAME, "the best in validation; no other was kept"
    raise GenefaceFileError(
        f"{path}: expected model_ckpt_steps_N.ckpt or {_BEST_NAME}, got neither; give a trained work folder"
    )


def _postnet_checkpoint(path: Path, steps: int | None) -> tuple[Path, str]:
    """Returns the checkpoint to take and why: the given, else by the logs, else the config's or newest."""
    if path.is_file() or not (saved := _saved(path)):
        return _newest(path)
    if steps is not None:
        if steps not in saved:
            named = ", ".join(map(str, list(saved)[-_MAX_NAMED_STEPS:]))
            raise GenefaceFileError(
                f"{path}: expected model_ckpt_steps_{steps}.ckpt, got steps {named}; give one of them"
            )
        return saved[steps], "the step given"
    if len(saved) == 1:
        return saved[max(saved)], "the only one"
    curves = _read_curves(path, saved)
    if curves is not None:
        choice = choose(curves)
        return saved[choice.step], f"chosen from the training's logs: {choice.reason}"
    intended = read_config(path / _CONFIG_NAME).get("infer_ckpt_steps")
    if type(intended) in (int, float) and intended in saved:
        return saved[intended], "infer_ckpt_steps of its config.yaml; its tb_logs hold nothing to choose by"
    file, newest = _newest(path)
    return (
        file,
        f"{newest}; its tb_logs hold nothing to choose by, and an earlier step may move the lips better",
    )


def _read_curves(folder: Path, saved: Mapping[int, Path]) -> Curves | None:
    """Returns what GeneFace logged at the saved steps, None where that is not there.

    Validation writes `val/mse` and `val/sync` at its step; training `tr/disc_pos_conf` and `tr/disc_neg_conf`
    of single batches in between: a step gets the median of those since the validation before it.
    """
    logs = folder / "tb_logs"
    try:
        scalars = _read_scalars(logs, ("val/mse", "val/sync", "tr/disc_pos_conf", "tr/disc_neg_conf"))
    except ImportError:
        raise
    except Exception as error:  # noqa: BLE001 -- tensorboard checks nothing: a broken file raises anything
        got = getattr(error, "strerror", None) or type(error).__name__
        log.warning("%s: expected TensorBoard's files, got: %s; no step is chosen by them", logs, got)
        return None
    if scalars is None:
        return None
    mse, sync, positive, negative = scalars
    validated = sorted(mse.keys() & sync.keys())
    rows = []
    for before, step in zip([-1, *validated], validated, strict=False):
        between = [i for i in positive.keys() & negative.keys() if before < i <= step]
        if step in saved and between:
            confident, unsure = (
                float(np.median([side[i] for i in between])) for side in (positive, negative)
            )
            rows.append((step, mse[step], sync[step], confident, unsure))
    if not any(np.isfinite(row[1:3]).all() for row in rows):
        return None
    return Curves(
        step=[row[0] for row in rows],
        mse=[row[1] for row in rows],
        sync=[row[2] for row in rows],
        disc_pos_conf=[row[3] for row in rows],
        disc_neg_conf=[row[4] for row in rows],
    )


def _read_scalars(logs: Path, names: Sequence[str]) -> list[dict[int, float]] | None:
    """Returns the values of each name by their step, None where one was not logged."""
    files = list(logs.glob("*tfevents*"))  # those that tensorboard would open
    if not files:
        return None
    for file in files:
        open_regular(file).close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(logs), size_guidance={"scalars": 0})
    events.Reload()
    if not set(names) <= set(events.Tags()["scalars"]):
        return None
    return [{int(event.step): float(event.value) for event in events.Scalars(name)} for name in names]


# Reading ---------------------------------------------------------------------------------------------


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]  # yaml ships no types
    """PyYAML's safe loader without what takes time or memory out of all proportion to the text."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Refuses merged keys: each merge of a merge doubles, and GeneFace's trainer writes none."""
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.constructor.ConstructorError(None, None, "merged keys (<<)", node.start_mark)

    def __init__(self, stream: bytes) -> None:
        super().__init__(stream)
        self._written_chars = 0
        self._whole: set[yaml.Node] = set()

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node:
        """Refuses aliases that nest, multiply or hold themselves; a list shared by two keys comes as one."""
        alias = self.peek_event() if self.check_event(yaml.AliasEvent) else None
        node = super().compose_node(parent, index)
        self._whole.add(node) if alias is None else self._check_alias(alias, node)
        return node

    def _check_alias(self, alias: yaml.AliasEvent, node: yaml.Node) -> None:
        scalar = isinstance(node, yaml.ScalarNode)
        inner = [] if scalar else [part for entry in node.value for part in _parts(entry)]
        if node not in self._whole or not all(isinstance(part, yaml.ScalarNode) for part in inner):
            what = f"an alias (*{alias.anchor}) of more than plain values"
            raise yaml.composer.ComposerError(None, None, what, alias.start_mark)
        self._written_chars += sum(len(part.value) + 1 for part in (inner or [node]))
        if self._written_chars > _MAX_CONFIG_BYTES:
            what = f"aliases of more than {_MAX_CONFIG_BYTES} characters"
            raise yaml.composer.ComposerError(None, None, what, alias.start_mark)


def _parts(entry: yaml.Node | tuple[yaml.Node, yaml.Node]) -> tuple[yaml.Node, ...]:
    return entry if isinstance(entry, tuple) else (entry,)


def _number(loader: _PlainLoader, node: yaml.ScalarNode) -> int | float:
    """Returns a number of at most `_MAX_NUMBER_CHARS`; base 60, of YAML 1.1, multiplies without end."""
    if len(node.value) > _MAX_NUMBER_CHARS:
        raise yaml.constructor.ConstructorError(None, None, "a number of too many digits", node.start_mark)
    read = loader.construct_yaml_int if node.tag.endswith(":int") else loader.construct_yaml_float
    number: int | float = read(node)
    return number


for _tag in ("int", "float"):
    _PlainLoader.add_constructor(f"tag:yaml.org,2002:{_tag}", _number)
_YAML_ERRORS = (  # what PyYAML's constructors raise beside their own
    yaml.YAMLError,
    ValueError,
    RecursionError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
)


def read_config(file: Path) -> dict[str, Any]:
    """Returns the hyper-parameters of a `config.yaml`, with what it inherits.

    The one in a work folder is flat and has a `work_dir`; another is completed by the files of its
    `base_config`, where the last wins, found beside it (`./`) or below one of the folders that hold it.

    Raises:
        GenefaceFileError: the file is absent or no YAML of plain values.
    """
    return _read_config(file, set())


def _read_config(file: Path, seen: set[str]) -> dict[str, Any]:
    try:
        with open_regular(file) as stream:
            seen.add(os.path.realpath(file))
            values = yaml.load(stream.read(_MAX_CONFIG_BYTES), _PlainLoader)
    except OSError as error:
        raise GenefaceFileError(
            f"{file}: expected the settings that GeneFace's trainer wrote, got: "
            f"{error.strerror or type(error).__name__}; copy them beside the checkpoint"
        ) from None
    except _YAML_ERRORS as error:
        got = one_line(" ".join(str(error).split()), 100)
        raise GenefaceFileError(f"{file}: expected YAML of plain values, got: {got}; copy it again") from None
    if not isinstance(values, dict):
        raise GenefaceFileError(f"{file}: expected keys with values, got {show(values)}; copy it again")
    bases = values.get("base_config")
    if values.get("work_dir") or not bases:
        return values
    inherited: dict[str, Any] = {}
    if len(seen) > _MAX_BASES:
        raise GenefaceFileError(f"{file}: base_config: expected at most {_MAX_BASES} files, got more")
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise GenefaceFileError(
                f"{file}: base_config: expected names of files, got {show(base)}; take it out"
            )
        found = _find_base(file, base)
        if found is not None and os.path.realpath(found) not in seen:
            _override(inherited, _read_config(found, seen))
    _override(inherited, values)
    return inherited


def _find_base(file: Path, base: str) -> Path | None:
    folders = [file.parent] if base.startswith(".") else Path(os.path.realpath(file)).parents
    try:
        return next((folder / base for folder in folders if (folder / base).is_file()), None)
    except (OSError, ValueError) as error:  # a name too long, links in a circle, a null byte
        reason = getattr(error, "strerror", None) or str(error)
        raise GenefaceFileError(
            f"{file}: base_config: expected a file's name, got {one_line(base)} ({reason}); take it out"
        ) from None


def _override(values: dict[str, Any], by: Mapping[str, Any]) -> None:
    for key, value in by.items():
        old = values.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            _override(old, value)
        else:
            values[key] = value


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
                f"{file}: expected a GeneFace checkpoint, got one of {project}: {why}; {_TRAIN}"
            )
    step = content.get("global_step")
    if not isinstance(states, dict) or not isinstance(step, int):
        key = "global_step" if isinstance(states, dict) else "state_dict"
        raise GenefaceFileError(
            f"{file}: {key}: expected what GeneFace's trainer saves, got none; give one of its checkpoints"
        )
    return GenefaceCheckpoint(
        path=file, step=step, children=children, config=read_config(file.parent / _CONFIG_NAME)
    )


def _children(states: Mapping[Any, Any]) -> dict[str, State]:
    """Returns each child's state; flat keys `child.key` are parted."""
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
    file, why = _postnet_checkpoint(folders.postnet, postnet_steps)
    motion = read_checkpoint(file)
    _check_speaker(motion, speaker)
    _check_kind(motion, "PostNet")
    sources = [
        CheckpointSource(part=part, path=file, step=motion.step, reason=reason)
        for part, reason in (("postnet", why), ("audio2motion", "PostNet's"), ("syncnet", "PostNet's"))
    ]
    place = folders.torso or folders.head
    assert place is not None
    file, why = _newest(place)
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
    """Returns Audio2Motion out of a PostNet's checkpoint or its own; it hears pitch if it has such keys."""
    if _check_kind(checkpoint, "PostNet", "Audio2Motion") == "PostNet":
        place, state = _nested(checkpoint, "audio2motion_task", "model")
    else:
        place, state = "model", checkpoint.children["model"]
    pitch_channels = 32 if "pitch_embed.weight" in state else 0
    return _load(Audio2Motion(Audio2MotionConfig(pitch_channels=pitch_channels)), state, checkpoint, place)


def build_postnet(checkpoint: GenefaceCheckpoint) -> PostNet:
    """Returns PostNet out of its checkpoint; it hears pitch if it is wide enough for it."""
    _check_kind(checkpoint, "PostNet")
    state = checkpoint.children["model"]
    first = state.get("block1.0.conv_block.0.weight")
    hears_pitch = first is not None and first.ndim == 3 and first.shape[1] > LANDMARK_DIMENSION
    heard = (
        "audio2motion_task" in checkpoint.children
        and "model.pitch_embed.weight" in (checkpoint.children["audio2motion_task"])
    )
    if hears_pitch and not heard:
        raise GenefaceFileError(
            f"{checkpoint.path}: state_dict.audio2motion_task.model.pitch_embed.weight: expected 300x64 "
            f"float32, which its PostNet hears, got none; take the checkpoint as GeneFace wrote it"
        )
    return _load(PostNet(PostNetConfig(pitch_channels=64 if hears_pitch else 0)), state, checkpoint, "model")


def build_syncnet(checkpoint: GenefaceCheckpoint) -> SyncNet:
    """Returns SyncNet out of its own checkpoint or one that it judged."""
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
            f"got one that looks at the drawn head too, by chance in half of the frames; "
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
    """Says which config it was, and which of its `keys`, where ours refuses a size."""
    try:
        yield
    except SettingsError as error:
        file, key = checkpoint.path.parent / _CONFIG_NAME, keys.get(error.field, error.field)
        raise GenefaceFileError(
            f"{file}: {key}: expected {error.expected}, got {error.got}; {_TRAIN}"
        ) from None


def _check_speaker(checkpoint: GenefaceCheckpoint, speaker: str) -> None:
    """Raises GenefaceFileError if the config names another speaker; a renamed folder is no other speaker."""
    key = "video_id" if "video_id" in checkpoint.config else "work_dir"
    stated = str(checkpoint.config.get(key, ""))
    got = stated if key == "video_id" else PurePosixPath(stated).parent.name
    if got != speaker:
        raise GenefaceFileError(
            f"{checkpoint.path.parent / _CONFIG_NAME}: {key}: expected {speaker}, got "
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
