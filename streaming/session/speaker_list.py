"""The speakers that a server offers, with what a page shows of each."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from models.bundle_files import SETTINGS_FILE, BundleError
from models.speaker_folders import FoundSpeaker, list_speakers
from models.speaker_settings import read_settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SpeakerEntry:
    """One speaker that can be asked for."""

    name: str
    synthetic: bool  # nobody's likeness
    image_size_px: int


class SpeakerList:
    """Finds bundles by name and caches their settings. Its methods read the disk."""

    def __init__(self, find: Callable[[], list[FoundSpeaker]] = list_speakers) -> None:
        """Reads nothing yet.

        Args:
            find: the bundles there are.
        """
        self._find = find
        self._read: dict[Path, tuple[tuple[int, int], SpeakerEntry | None]] = {}

    def path_of(self, name: str) -> Path | None:
        """Returns the bundle of that name; nothing but a name is looked up, least of all a path."""
        return next((found.path for found in self._find() if found.name == name), None)

    def entries(self) -> list[SpeakerEntry]:
        """Returns the speakers that can be opened; a broken bundle is left out and logged once."""
        entries = (self._entry(found) for found in self._find())
        return [entry for entry in entries if entry is not None]

    def _entry(self, found: FoundSpeaker) -> SpeakerEntry | None:
        try:
            status = (found.path / SETTINGS_FILE).stat()
        except OSError:
            return None  # gone since it was found
        version = (status.st_mtime_ns, status.st_size)
        known = self._read.get(found.path)
        if known is not None and known[0] == version:
            return known[1]
        entry = None
        try:
            settings = read_settings(found.path)
            entry = SpeakerEntry(
                name=found.name, synthetic=settings.synthetic, image_size_px=settings.image_size_px
            )
        except (BundleError, OSError) as error:
            log.warning("speaker %s is left out: %s", found.name, error)
        self._read[found.path] = (version, entry)
        return entry
