"""What a run of `geneface-stream` is told, mirrored by its flags and `GENEFACE_*` variables."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from .errors import InputError

ENVIRONMENT_PREFIX = "GENEFACE_"
SMALLEST_RENDER_PX = 96


def _render_size(text: str) -> int | None:
    return None if text == "auto" else int(text)


def _switch(text: str) -> bool:
    return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]


@dataclass(frozen=True, kw_only=True)
class Option:
    """How a setting is given as a text, by flag or environment variable."""

    parse: Callable[[str], object]
    help: str
    metavar: str = ""  # empty: a switch, which takes no value as a flag


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """Settings of one run; a flag wins over its environment variable, which wins over the default."""

    speaker: Annotated[
        str, Option(parse=str, help="a speaker's name, or the path of its bundle", metavar="NAME")
    ] = "May"
    speakers_dir: Annotated[
        Path | None, Option(parse=Path, help="a folder of bundles, searched first", metavar="DIR")
    ] = None
    input: Annotated[
        Path | None,
        Option(
            parse=Path,
            help="the recording to speak: anything ffmpeg decodes, sound or video",
            metavar="FILE",
        ),
    ] = None
    output: Annotated[
        Path | None,
        Option(parse=Path, help="the video to write (.mp4, .m4v, .mov or .mkv)", metavar="FILE"),
    ] = None
    landmarks: Annotated[
        Path | None, Option(parse=Path, help="also write the motion that was drawn, as .npz", metavar="FILE")
    ] = None
    render_size: Annotated[
        int | None,
        Option(
            parse=_render_size,
            help="pixels a side that the raymarcher draws, or auto: the largest that keeps up here "
            "(default: auto)",
            metavar="N|auto",
        ),
    ] = None
    seed: Annotated[
        int,
        Option(
            parse=int,
            help="picks the blinks; the same sound, seed and render size give the same pictures",
            metavar="N",
        ),
    ] = 0
    threads: Annotated[
        int, Option(parse=int, help="threads of the raymarcher; 0: one a core, at most 8", metavar="N")
    ] = 0
    crf: Annotated[
        int, Option(parse=int, help="quality of the video, 0 (best) to 51 (worst)", metavar="N")
    ] = 20
    quiet: Annotated[bool, Option(parse=_switch, help="show no progress")] = False

    def __post_init__(self) -> None:
        """Refuses values out of range.

        Raises:
            InputError: with the flag, what was expected, what came.
        """
        size = self.render_size
        if size is not None and size < SMALLEST_RENDER_PX:
            raise InputError(
                f"--render-size: expected auto or at least {SMALLEST_RENDER_PX} pixels, got {size}; "
                "give 256, or leave it out"
            )
        if not 0 <= self.crf <= 51:
            raise InputError(f"--crf: expected 0 (best) to 51 (worst), got {self.crf}; 20 is the default")
        if not 0 <= self.threads <= 64:
            raise InputError(f"--threads: expected 0 (one a core) to 64, got {self.threads}; leave it out")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed: expected 0 to 2**63 - 1, got {self.seed}; leave it out")
        if not self.speaker:
            raise InputError("--speaker: expected a name or a path, got nothing; --list-speakers shows names")

    @classmethod
    def from_mapping(cls, values: Mapping[str, str]) -> StreamSettings:
        """Returns settings from texts by field name; what is absent keeps its default.

        Raises:
            InputError: an unknown name, or a text that does not read as the field's type.
        """
        known = options()
        parsed: dict[str, typing.Any] = {}
        for name, text in values.items():
            if name not in known:
                raise InputError(f"{name}: no such setting; expected one of {', '.join(known)}")
            option = known[name]
            try:
                parsed[name] = option.parse(text)
            except (ValueError, KeyError):
                expected = option.metavar or "true or false"
                raise InputError(
                    f"{flag(name)} (or {variable(name)}): expected {expected}, got {text!r}; {option.help}"
                ) from None
        return cls(**parsed)


def options() -> dict[str, Option]:
    """Returns each setting's option, by field name and in their order."""
    hints = typing.get_type_hints(StreamSettings, include_extras=True)
    return {field.name: hints[field.name].__metadata__[0] for field in dataclasses.fields(StreamSettings)}


def flag(name: str) -> str:
    """Returns a field's flag."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """Returns a field's environment variable."""
    return ENVIRONMENT_PREFIX + name.upper()


def resolve_settings(flags: Mapping[str, str], environment: Mapping[str, str]) -> StreamSettings:
    """Returns the settings of a run: flag, else environment, else default.

    Args:
        flags: texts by field name, of the flags that were given.
        environment: the process environment; names that are not ours are ignored.
    """
    texts = {name: environment[variable(name)] for name in options() if environment.get(variable(name))}
    return StreamSettings.from_mapping(texts | dict(flags))
