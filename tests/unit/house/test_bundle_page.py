"""docs/bundle.md against the code that it describes."""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path

from models import bundle_files, speaker_settings

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "bundle.md").read_text()


def fields_of(settings: type) -> set[str]:
    """The field names of a settings dataclass and of those inside it."""
    names = set()
    for name, hint in typing.get_type_hints(settings).items():
        names.add(name)
        for part in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(part):
                names |= fields_of(part)
    return names


def test_every_field_and_file_is_described():
    described = set(re.findall(r"`([\w.]+)`", PAGE))
    files = {bundle_files.SETTINGS_FILE, *bundle_files.REQUIRED_FILES, *bundle_files.OPTIONAL_FILES}
    assert (fields_of(speaker_settings.SpeakerSettings) | files | {"checksum"}) - described == set()


def test_the_numbers_are_the_code_s():
    assert f"| `schema_version` | {speaker_settings.SCHEMA_VERSION};" in PAGE
    assert f"640 `motion.window_frames` + {speaker_settings.MEL_HISTORY_SAMPLES} samples" in PAGE
