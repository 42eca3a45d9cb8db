"""The `config.yaml` in a work folder of GeneFace's trainer, read as plain values at a bounded cost."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml  # type: ignore[import-untyped]  # ships no types; read_config checks what comes

from models.settings import one_line, show

from ..regular_file import open_regular
from .pickles import GenefaceFileError

CONFIG_NAME: Final = "config.yaml"
_MAX_CONFIG_BYTES: Final = 1_000_000
MAX_NUMBER_CHARS: Final = 40
_MAX_BASES: Final = 32


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]  # yaml ships no types
    """PyYAML's safe loader without constructs that cost time or memory out of proportion to the text."""

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
    """Returns a number of at most `MAX_NUMBER_CHARS`; base 60, of YAML 1.1, multiplies without end."""
    if len(node.value) > MAX_NUMBER_CHARS:
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
