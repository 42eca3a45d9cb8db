"""A bundle's model card: subject, training data, recipe and quality figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from models.bundle_files import PLATE_MASKS_FILE, PLATE_VIDEO_FILE
from models.speaker_settings import OriginRecord

MOTION_CHECKS = ("motion_", "syncnet_")
"""Prefixes of what `verification` says of the networks that move the face."""
NOBODY = "a synthetic character, nobody's likeness"


@dataclass(frozen=True, kw_only=True)
class Training:
    """How one network was trained."""

    task: str
    step: int
    parameters: int
    seed: int | None = None
    settings: Mapping[str, object] = field(default_factory=dict)  # those that differ from the defaults


@dataclass(frozen=True, kw_only=True)
class Card:
    """The card's contents."""

    name: str
    synthetic: bool
    licence: str
    origin: OriginRecord
    facts: Mapping[str, str]  # what it takes and gives
    trainings: Sequence[Training]
    figures: Mapping[str, float]  # quality on validation data
    verification: Mapping[str, float]  # export against source
    files: Mapping[str, str]


def model_card(card: Card) -> str:
    """Returns the card as Markdown."""
    who = NOBODY if card.synthetic else card.origin.subject
    parts = [
        f"# {card.name}",
        f"{card.name} is {who}." if card.synthetic else f"{card.name} shows {who}.",
        "",
        _table(
            ("", ""),
            [
                ("shows", card.origin.subject),
                ("on what ground", card.origin.consent),
                ("trained on", card.origin.data),
                ("licence", card.licence),
                *card.facts.items(),
            ],
        ),
        _RECIPE_HEAD,
        card.origin.recipe,
        "",
        _table(
            ("network", "steps", "parameters", "seed", "settings that differ from the defaults"),
            [*map(_training_row, card.trainings)],
        ),
        _FIGURES_HEAD,
        _figures(card.figures),
        _CHECKS_HEAD,
        "Largest differences to the trained networks, and the closeness of pictures to the plain torch twin.",
        "",
        _table(("check", "value"), [(key, _number(value)) for key, value in card.verification.items()]),
        _FILES_HEAD,
        _table(("file", "content"), list(card.files.items())),
        "## Limits",
        _LIMITS_OF_SYNTHETIC if card.synthetic else _LIMITS,
    ]
    return "\n".join(parts).rstrip() + "\n"


def with_figures(card: str, figures: Mapping[str, float]) -> str:
    """Returns the card's text with its table of figures replaced."""
    before, head, rest = card.partition(_FIGURES_HEAD)
    if not head:
        return f"{card.rstrip()}\n\n{_FIGURES_HEAD}\n{_figures(figures)}"
    _, next_head, after = rest.partition("\n## ")
    return f"{before}{head}\n{_figures(figures)}{next_head}{after}"


def with_plates(card: str, checks: Mapping[str, float]) -> str:
    """Returns the card's text with what was checked of plates, and their files; without them if nothing."""
    card = "".join(line for line in card.splitlines(keepends=True) if not line.startswith("| plates"))
    if not checks:
        return card
    card = _with_rows(card, _CHECKS_HEAD, [(name, _number(value)) for name, value in checks.items()])
    return _with_rows(card, _FILES_HEAD, list(_PLATE_FILES.items()))


def with_motion(
    card: str,
    *,
    origin: OriginRecord,
    facts: Mapping[str, str],
    trainings: Sequence[Training],
    figures: Mapping[str, float],
    verification: Mapping[str, float],
) -> str:
    """Returns the card's text with what it says of the motion and of its training replaced."""
    rows = {"shows": origin.subject, "on what ground": origin.consent, "trained on": origin.data, **facts}
    rows |= {name: _number(value) for name, value in verification.items()}
    lines = {name: _line((name, cell)) for name, cell in rows.items()}
    lines |= dict.fromkeys(("postnet", "syncnet", "syncnet.onnx"), "")  # for motion that has none
    lines |= {training.task: _line(_training_row(training)) for training in trainings}
    if lines["syncnet"]:
        lines["syncnet.onnx"] = _line(("syncnet.onnx", _SYNCNET_FILE))
    found = []
    for line in card.splitlines(keepends=True):
        name = line[2:].partition(" |")[0] if line.startswith("| ") else ""
        found.append(lines.get(name, "" if name.startswith(MOTION_CHECKS) else line))
    card = "".join(found)
    before, head, rest = card.partition(f"{_RECIPE_HEAD}\n")
    _, table, after = rest.partition("\n\n| network |")
    if table:
        card = f"{before}{head}{origin.recipe}{table}{after}"
    return with_figures(card, figures)


def _with_rows(card: str, head: str, rows: Sequence[Sequence[str]]) -> str:
    """Returns the card with rows at the end of the table under a heading; as it was where there is none."""
    before, head, rest = card.partition(f"{head}\n")
    section, next_head, after = rest.partition("\n## ")
    table, end, below = f"{section}\n".rpartition("|\n")
    if not end:
        return card
    return f"{before}{head}{table}{end}{''.join(map(_line, rows))}{below[:-1]}{next_head}{after}"


def _training_row(training: Training) -> tuple[str, ...]:
    return (
        training.task,
        f"{training.step}",
        f"{training.parameters}",
        "-" if training.seed is None else f"{training.seed}",
        ", ".join(f"{key} {value}" for key, value in training.settings.items()) or "none",
    )


def _figures(figures: Mapping[str, float]) -> str:
    if not figures:
        return "Not measured yet: `benchmarks.quality` does, `geneface-export figures` puts it here.\n"
    rows = [(name, _number(value)) for name, value in figures.items()]
    return "On validation data that no network was trained on.\n\n" + _table(("figure", "value"), rows)


_RECIPE_HEAD = "## How it was trained"
_FIGURES_HEAD = "## How good it is"
_CHECKS_HEAD = "## How the export was checked"
_FILES_HEAD = "## Files"
_SYNCNET_FILE = "SyncNet, for measuring"
_PLATE_FILES = {
    PLATE_VIDEO_FILE: "for each pose of the path the picture of what speech does not change",
    PLATE_MASKS_FILE: "for each pose which blocks of the picture speech changes",
}
_LIMITS_OF_SYNTHETIC = (
    "A computer-graphics look. What moves the face was learnt from synthetic voices and rule-made "
    "articulation: on human speech it keeps time, its style is the rules'. Label videos made with it as "
    "generated."
)
_LIMITS = (
    "Use only what the consent above covers, and label videos made with it as generated. Poses and "
    "expressions beyond those of the training video are guesses."
)


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 0.01 and value else f"{value:.4g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "".join(map(_line, (head, ["---"] * len(head), *rows)))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |\n"
