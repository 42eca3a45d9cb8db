"""GeneFace trainer's work folders, and the choice of a checkpoint in them.

GeneFace (Ye et al., ICLR 2023) keeps one folder a task below `checkpoints/<speaker>`, with `config.yaml`,
`model_ckpt_steps_<N>.ckpt` and `tb_logs`. The recipe's own folder names come first, then any that match a
pattern.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from models.settings import one_line
from training.checkpoint_choice import Curves, choose

from ..regular_file import open_regular
from .pickles import GenefaceFileError
from .trainer_config import CONFIG_NAME, read_config

log = logging.getLogger(__name__)

TRAIN_FIELDS: Final = "train GeneFace's lm3d_radnerf and lm3d_radnerf_torso"
"""The way out where a speaker has no head that we can draw."""

_CHECKPOINT_NAME: Final = re.compile(r"model_ckpt_steps_(\d+)\.ckpt")
_BEST_NAME: Final = "model_ckpt_best.pt"
_MAX_NAMED_STEPS: Final = 12

# Folder names of GeneFace's recipe, else the pattern of a name.
_FOLDERS: Final = {
    "postnet": (
        ("lm3d_postnet_sync", "postnet", "lm3d_postnet_sync_pitch", "postnet_pitch"),
        re.compile("postnet"),
    ),
    "torso": (("lm3d_radnerf_torso",), re.compile("nerf.*torso")),
    "head": (("lm3d_radnerf",), re.compile("nerf(?!.*torso)")),
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
                f"{self.postnet}: expected a head's or a torso's work folder beside it, got none; "
                f"{TRAIN_FIELDS}"
            )


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


def newest_checkpoint(path: Path) -> tuple[Path, str]:
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


def postnet_checkpoint(path: Path, steps: int | None) -> tuple[Path, str]:
    """Returns the checkpoint to take and why: the given, else by the logs, else the config's or newest."""
    if path.is_file() or not (saved := _saved(path)):
        return newest_checkpoint(path)
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
    intended = read_config(path / CONFIG_NAME).get("infer_ckpt_steps")
    if type(intended) in (int, float) and intended in saved:
        return saved[intended], "infer_ckpt_steps of its config.yaml; its tb_logs hold nothing to choose by"
    file, newest = newest_checkpoint(path)
    return (
        file,
        f"{newest}; its tb_logs hold nothing to choose by, and an earlier step may move the lips better",
    )


def _read_curves(folder: Path, saved: Mapping[int, Path]) -> Curves | None:
    """Returns the validation curves logged at the saved steps, None where they are missing.

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
