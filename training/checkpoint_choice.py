"""Checkpoint selection for PostNet by a fixed rule, with a report and detection of collapse.

The rule: among the steps at which the discriminator's confidences in the speaker's own landmarks and in
PostNet's have converged, the smallest step whose validation mse and sync loss are both within 2 % of their
best. Where nothing has converged, or no step satisfies both, the nearest is taken, as the report says.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cuda_kernels.arrays import F64
from cuda_kernels.errors import InputError
from models.partial_files import atomic_write

from .loop import CheckpointError, checkpoints, read_validations
from .pictures import write_picture
from .plots import draw_curves

CHOICE_FILE = "choice.json"
REPORT_FILE = "choice.md"
PICTURE_FILE = "choice.png"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The rule's tolerances."""

    confidence_gap: float = 0.1  # converged: the two confidences are at most this far apart
    confidence_range: tuple[float, float] = (0.35, 0.65)  # and both lie here: the discriminator cannot tell
    near_best: float = 0.02  # share above the best that still counts
    collapse_rise: float = 0.1  # a curve that ends so much above its best collapsed


@dataclass(frozen=True, kw_only=True)
class Curves:
    """The validation curves that the rule uses, one value a validated step."""

    step: Sequence[int]
    mse: Sequence[float]
    sync: Sequence[float]
    disc_pos_conf: Sequence[float]
    disc_neg_conf: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The selected checkpoint and why."""

    step: int
    followed_rule: bool
    converged_steps: tuple[int, ...]
    best_mse: float  # the best values that the tolerances refer to
    best_sync: float
    mse: float  # of the chosen step
    sync: float
    collapsed: tuple[str, ...]  # names of the curves that rose while training went on
    reason: str

    @property
    def summary(self) -> str:
        """The choice in one sentence."""
        collapse = f"; collapse: {' and '.join(self.collapsed)} rose" if self.collapsed else ""
        return f"chose step {self.step}: {self.reason}{collapse}"


def choose(curves: Curves, rule: Rule | None = None) -> Choice:
    """Returns the step that the rule selects, or the nearest to it.

    Raises:
        InputError: there is no step, or a value is not finite.
    """
    rule = rule or Rule()
    order = np.argsort(np.asarray(curves.step, np.int64))
    step = np.asarray(curves.step, np.int64)[order]
    mse, sync, positive, negative = (
        np.asarray(values, np.float64)[order]
        for values in (curves.mse, curves.sync, curves.disc_pos_conf, curves.disc_neg_conf)
    )
    if not len(step):
        raise InputError(
            "checkpoint choice: expected validated steps with a checkpoint, got none; train first"
        )
    usable = np.isfinite(mse) & np.isfinite(sync)
    if not usable.any():
        raise InputError("checkpoint choice: mse, sync: expected finite values, got none; lower the rates")
    low, high = rule.confidence_range
    smooth_positive, smooth_negative = _median_of_three(positive), _median_of_three(negative)
    converged = (
        usable
        & (np.abs(smooth_positive - smooth_negative) <= rule.confidence_gap + 1e-9)
        & (np.minimum(smooth_positive, smooth_negative) >= low)
        & (np.maximum(smooth_positive, smooth_negative) <= high)
    )
    among = converged if converged.any() else usable
    best_mse, best_sync = mse[among].min(), sync[among].min()
    excess = np.maximum(mse / max(best_mse, 1e-12), sync / max(best_sync, 1e-12)) - 1
    excess = np.where(among, excess, np.inf)
    near = np.flatnonzero(excess <= rule.near_best)
    followed = bool(converged.any() and len(near))
    place = int(near[0]) if len(near) else int(np.argmin(excess))
    percent = f"{100 * rule.near_best:g} %"
    if followed:
        reason = f"the smallest converged step with mse and sync within {percent} of their best"
    elif converged.any():
        reason = (
            f"no converged step has both mse and sync within {percent} of their best; this one comes closest "
            f"(within {100 * excess[place]:.1f} %)"
        )
    else:
        closest = int(np.argmin(np.abs(smooth_positive - smooth_negative)))
        closeness = (
            f"within {percent} of both bests"
            if len(near)
            else f"closest to both bests (within {100 * excess[place]:.1f} %)"
        )
        reason = (
            "the discriminator's confidences never converged "
            f"(closest at step {step[closest]}: {smooth_positive[closest]:.2f} and "
            f"{smooth_negative[closest]:.2f}); among all steps this is the first {closeness}"
        )
    collapsed = tuple(
        name for name, values in (("mse", mse), ("sync", sync)) if _rose(values[usable], rule.collapse_rise)
    )
    return Choice(
        step=int(step[place]),
        followed_rule=followed,
        converged_steps=tuple(int(s) for s in step[converged]),
        best_mse=float(best_mse),
        best_sync=float(best_sync),
        mse=float(mse[place]),
        sync=float(sync[place]),
        collapsed=collapsed,
        reason=reason,
    )


def choose_checkpoint(out: Path, rule: Rule | None = None) -> Choice:
    """Returns the choice among a PostNet folder's checkpoints; writes choice.json, .md and .png there.

    Raises:
        CheckpointError: no validated step has a checkpoint.
    """
    rule = rule or Rule()
    saved = checkpoints(out)
    rows = [row for row in read_validations(out) if int(row["step"]) in saved]
    names = ("mse", "sync", "disc_pos_conf", "disc_neg_conf")
    rows = [row for row in rows if all(name in row for name in names)]
    if not rows:
        raise CheckpointError(
            f"{out}: expected validations with {', '.join(names)} at steps that have a checkpoint, got none; "
            "run `geneface-train postnet` there first"
        )
    curves = Curves(
        step=[int(row["step"]) for row in rows],
        mse=[row["mse"] for row in rows],
        sync=[row["sync"] for row in rows],
        disc_pos_conf=[row["disc_pos_conf"] for row in rows],
        disc_neg_conf=[row["disc_neg_conf"] for row in rows],
    )
    choice = choose(curves, rule)
    chosen = next(row for row in rows if int(row["step"]) == choice.step)
    content = {
        **asdict(choice),
        "checkpoint": saved[choice.step].name,
        "rule": asdict(rule),
        "figures": chosen,
    }
    for name, text in (
        (CHOICE_FILE, json.dumps(content, indent=1) + "\n"),
        (REPORT_FILE, report(curves, choice, rule)),
    ):
        with atomic_write(out / name) as part:
            part.write_text(text)
    picture = draw_curves(
        {
            "discriminator's confidence": {
                "speaker's own": curves.disc_pos_conf,
                "PostNet's": curves.disc_neg_conf,
            },
            "validation mse, speaker": {"mse": curves.mse},
            "validation sync loss, corpus": {"sync": curves.sync},
        },
        x=curves.step,
        x_label="step (dashed: chosen)",
        marks=[choice.step],
    )
    write_picture(out / PICTURE_FILE, picture)
    return choice


def chosen_checkpoint(folder: Path) -> Path | None:
    """Returns the checkpoint that choice.json of a PostNet folder names, None without one.

    Raises:
        CheckpointError: choice.json is not what `choose_checkpoint` writes.
    """
    file = folder / CHOICE_FILE
    if not file.is_file():
        return None
    try:
        return folder / str(json.loads(file.read_text())["checkpoint"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file}: expected the key checkpoint ({error}); run postnet --choose-only"
        ) from error


def report(curves: Curves, choice: Choice, rule: Rule) -> str:
    """Returns the choice as a page of Markdown."""
    low, high = rule.confidence_range
    converged = ", ".join(map(str, choice.converged_steps)) or "none"
    collapse = (
        f"**Collapse:** validation {' and '.join(choice.collapsed)} ended more than "
        f"{100 * rule.collapse_rise:g} % above the best while training went on."
        if choice.collapsed
        else "No collapse: neither validation curve rose while training went on."
    )
    kind = "by the rule" if choice.followed_rule else "**not by the rule**"
    lines = [
        "# Choice of the PostNet checkpoint",
        "",
        f"Step **{choice.step}**, {kind}: {choice.reason}.",
        "",
        collapse,
        "",
        f"Converged: the discriminator's two confidences (median of three validations) at most "
        f"{rule.confidence_gap:g} apart and within {low:g} to {high:g}. Converged steps: {converged}.",
        f"Best among them: mse {choice.best_mse:.6g}, sync {choice.best_sync:.6g}. "
        f"Chosen: mse {choice.mse:.6g}, sync {choice.sync:.6g}.",
        "",
        f"![curves]({PICTURE_FILE})",
        "",
        "| step | mse | sync | confidence, speaker's own | confidence, PostNet's |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for step, mse, sync, positive, negative in zip(
        curves.step, curves.mse, curves.sync, curves.disc_pos_conf, curves.disc_neg_conf, strict=True
    ):
        mark = "**" if step == choice.step else ""
        lines.append(f"| {mark}{step}{mark} | {mse:.6g} | {sync:.6g} | {positive:.3f} | {negative:.3f} |")
    return "\n".join(lines) + "\n"


def _median_of_three(values: F64) -> F64:
    """Returns the running median of three, so that one outlier decides nothing."""
    padded = np.concatenate([values[:1], values, values[-1:]])
    median: F64 = np.median(np.stack([padded[:-2], padded[1:-1], padded[2:]]), axis=0)
    return median


def _rose(values: F64, share: float) -> bool:
    """Returns whether a curve's last quarter (median) exceeds the best before it by more than `share`."""
    last = max(1, math.ceil(len(values) / 4))
    if len(values) <= last:
        return False
    best = float(values[:-last].min())
    return bool(np.median(values[-last:]) > best * (1 + share))
