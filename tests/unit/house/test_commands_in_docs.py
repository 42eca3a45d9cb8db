"""Commands in the docs, tried against the flags that the programs really have."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

import export.cli
import streaming.cli
from training.cli import TASKS, fields_of, settings_type_of
from training.loop import LoopSettings

ROOT = Path(__file__).resolve().parents[3]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def commands() -> list[str]:
    """The lines of the pages' shell blocks, continued lines joined."""
    blocks = [b for page in PAGES for b in re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL)]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return sorted({" ".join(line.split("#")[0].split()) for line in lines} - {""})


def flags(words: list[str]) -> set[str]:
    return {word for word in words if word.startswith("--")}


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("geneface-train ")])
def test_a_training_command_is_understood(command):
    _, task, *rest = shlex.split(command)
    assert task in TASKS
    known = {
        *fields_of(LoopSettings),
        *fields_of(settings_type_of(importlib.import_module(f"training.{task}"))),
    }
    assert flags(rest) <= {"--data", "--out"} | {"--" + name.replace("_", "-") for name in known}


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("geneface-export ")])
def test_an_export_command_is_understood(command):
    export.cli._parser().parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("command", [c for c in commands() if "geneface-stream " in c])
def test_a_streaming_command_is_understood(command):
    streaming.cli._parser().parse_args(shlex.split(command)[1:])


def test_make_knows_its_targets():
    asked = {c.split()[1] for c in commands() if c.startswith("make ")}
    assert asked
    assert asked <= TARGETS


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("python -m ")])
def test_a_module_that_is_run_exists(command):
    assert importlib.util.find_spec(shlex.split(command)[2])


def test_every_flag_of_the_program_is_an_option_that_the_readme_names_truly():
    named = set(re.findall(r"`(--[a-z-]+)", (ROOT / "README.md").read_text()))
    real = {text for action in streaming.cli._parser()._actions for text in action.option_strings}
    assert "--speaker" in named
    assert named <= real
