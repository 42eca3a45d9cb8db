"""The speakers of this machine: bundle folders, found by name or path and listed, not yet read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import platformdirs

from cuda_kernels.errors import InputError

from .bundle_files import SETTINGS_FILE, BundleError
from .settings import show


class UnknownSpeakerError(InputError):
    """No bundle of that name; the message lists those there are."""


@dataclass(frozen=True, kw_only=True)
class FoundSpeaker:
    """A bundle folder that was found, not yet read."""

    name: str
    path: Path
    place: str  # "speakers dir", "user" or "packaged"


def user_speakers_dir() -> Path:
    """Returns the folder where a user's own bundles live on this platform; it need not exist."""
    return platformdirs.user_data_path("geneface-stream", appauthor=False) / "speakers"


def packaged_speakers_dir() -> Path:
    """Returns the folder of the bundles that ship with the program."""
    return Path(__file__).resolve().parent / "speakers"


def list_speakers(*, speakers_dir: Path | None = None) -> list[FoundSpeaker]:
    """Returns every bundle that `find_speaker` finds by name, sorted by name; the first place wins."""
    places: list[tuple[str, Path]] = [] if speakers_dir is None else [("speakers dir", Path(speakers_dir))]
    places += [("user", user_speakers_dir()), ("packaged", packaged_speakers_dir())]
    found: dict[str, FoundSpeaker] = {}
    for place, folder in places:
        for settings_file in _glob(folder):
            path = settings_file.parent
            if not path.name.startswith(".") and path.name.isprintable():  # what is no UTF-8 is not
                found.setdefault(path.name, FoundSpeaker(name=path.name, path=path, place=place))
    return [found[name] for name in sorted(found)]


def _glob(folder: Path) -> list[Path]:
    try:
        return sorted(folder.glob(f"*/{SETTINGS_FILE}"))
    except OSError:
        return []


def find_speaker(name_or_path: str, *, speakers_dir: Path | None = None) -> Path:
    """Returns the bundle's folder: a path, or a name looked up in `speakers_dir`, the user's, the packaged.

    Raises:
        UnknownSpeakerError: there is no such bundle; lists those there are.
    """
    try:
        path = Path(name_or_path).expanduser()
        if path.name == SETTINGS_FILE and path.is_file():
            return path.parent
        if name_or_path and (path / SETTINGS_FILE).is_file():
            return path
        looks_like_path = path.is_dir() and len(path.parts) > 1
    except (OSError, ValueError, RuntimeError):  # a name too long, a null byte, no home
        looks_like_path = False
    if looks_like_path:
        raise BundleError(
            name_or_path, SETTINGS_FILE, "a speaker bundle", "a folder without it", "check the path"
        )
    there_are = list_speakers(speakers_dir=speakers_dir)
    for found in there_are:
        if found.name == name_or_path:
            return found.path
    names = ", ".join(found.name for found in there_are) or "none"
    raise UnknownSpeakerError(
        f"speaker: expected a bundle's folder or one of: {names}, got {show(name_or_path)}; "
        f"put a bundle into {user_speakers_dir()} or give its path"
    )
