"""Commands in the docs, tried against the flags that the programs really have."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

import export.cli
import preparation.cli
import streaming.cli
from models.settings import flags_of
from training.cli import TASKS, settings_type_of
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
    settings_type = settings_type_of(importlib.import_module(f"training.{task}"))
    known = flags_of(LoopSettings) | flags_of(settings_type)
    assert flags(rest) <= {"--data", "--out"} | {str(flag) for flag in known.values()}


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("geneface-export ")])
def test_an_export_command_is_understood(command):
    export.cli._parser().parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("geneface-prepare ")])
def test_a_preparing_command_is_understood(command):
    preparation.cli._parser().parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("command", [c for c in commands() if "geneface-stream " in c])
def test_a_streaming_command_is_understood(command):
    streaming.cli._parser().parse_args(shlex.split(command)[1:])


def test_make_knows_its_targets():
    asked = {c.split()[1] for c in commands() if c.startswith("make ")}
    assert asked
    assert asked <= TARGETS


# Stands in for Python: makes environments in which it and the program note what they are called with.
PYTHON = """#!/bin/bash
case "$*" in
    "-c import pip") [ -e "${0%/*}/pip" ] ;;
    -c*) ;;
    --version) echo "Python 3.11.0" ;;
    "-m venv "*)
        mkdir -p "$3/bin" && touch "$3/bin/pip"
        cp "$0" "$3/bin/python"; cp "$0" "$3/bin/geneface-stream"
        echo "made $3" >>calls ;;
    "-m pip "*) ;;
    *) printf '%s|' "${0##*/}" "$@" >>calls; echo >>calls ;;
esac
"""


@pytest.fixture
def make(tmp_path):
    """Returns a function that runs make in a copy of the project, and returns the calls of that run."""
    if shutil.which("make") is None:
        pytest.skip("make: not installed")
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "requirements").mkdir()
    for name in ("run.txt", "dev.txt"):
        (tmp_path / "requirements" / name).touch()
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}

    def run(*arguments):
        calls = tmp_path / "calls"
        calls.write_text("")
        subprocess.run(
            ["make", f"PYTHON={python}", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            check=True,
        )
        return calls.read_text().splitlines()

    return run


@pytest.mark.parametrize("name", ["my speech.wav", "a;touch here.wav", "it's.wav", '$$(touch here) "b".wav'])
def test_make_passes_names_on_whatever_is_in_them(make, tmp_path, name):
    made, called = make("video", f"INPUT={name}", f"OUTPUT=o {name}", f"SPEAKER=s {name}", "ARGS=--crf 20")
    name = name.replace("$$", "$")
    assert made == "made .venv-run"
    assert called == (f"geneface-stream|--speaker|s {name}|--input|{name}|--output|o {name}|--crf|20|")
    (called,) = make("run", f"SPEAKER={name.replace('$', '$$')}")
    assert called == f"geneface-stream|--speaker|{name}|"
    calls = make("bench", f"INPUT={name.replace('$', '$$')}")
    assert [call.split("|")[-2] for call in calls if "--audio" in call] == [name, name]
    assert not (tmp_path / "here").exists()


def test_make_makes_an_environment_anew_whose_python_is_gone(make, tmp_path):
    assert make("run") == ["made .venv-run", "geneface-stream|--speaker|May|"]
    assert make("run") == ["geneface-stream|--speaker|May|"]
    python = tmp_path / ".venv-run" / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python3.10")
    assert make("run")[0] == "made .venv-run"
    (python.parent / "pip").unlink()  # the link leads to a newer Python, which has none of the packages
    assert make("run")[0] == "made .venv-run"
    assert make("run") == ["geneface-stream|--speaker|May|"]


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("python -m ")])
def test_a_module_that_is_run_exists(command):
    assert importlib.util.find_spec(shlex.split(command)[2])


def test_every_flag_of_the_program_is_an_option_that_the_readme_names_truly():
    named = set(re.findall(r"`(--[a-z-]+)", (ROOT / "README.md").read_text()))
    real = {text for action in streaming.cli._parser()._actions for text in action.option_strings}
    assert "--speaker" in named
    assert named <= real
