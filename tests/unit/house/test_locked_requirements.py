"""requirements/*.txt hold what pyproject.toml asks for: one version of each, by hash, and no address."""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = {"run": (), "cuda": ("cuda",), "dev": ("train", "dev")}
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORMS = (("linux", "Linux", "x86_64"), ("darwin", "Darwin", "arm64"), ("win32", "Windows", "AMD64"))
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def text_of(lock: str) -> str:
    return (ROOT / "requirements" / f"{lock}.txt").read_text()


def pins_of(lock: str) -> list[tuple[Requirement, int]]:
    """Each pinned requirement and how many hashes it has."""
    joined = text_of(lock).replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return [(Requirement(HASH.sub("", line).strip()), len(HASH.findall(line))) for line in lines]


def asked_for(lock: str) -> list[Requirement]:
    project = PROJECT["project"]
    texts = [*project["dependencies"], *PROJECT["build-system"]["requires"]]
    for extra in EXTRAS[lock]:
        texts += project["optional-dependencies"][extra]
    return [Requirement(text) for text in texts]


def environment(python: str, platform: tuple[str, str, str]) -> dict[str, str]:
    system, name, machine = platform
    return {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": system,
        "platform_system": name,
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "os_name": "nt" if system == "win32" else "posix",
    }


@pytest.mark.parametrize("lock", EXTRAS)
def test_each_pin_is_one_version_with_hashes(lock):
    pins = pins_of(lock)
    assert pins
    for pin, hashes in pins:
        operators = [specifier.operator for specifier in pin.specifier]
        assert operators == ["=="], f"{pin}: not pinned"
        assert hashes, f"{pin}: no hash"


@pytest.mark.parametrize("lock", EXTRAS)
def test_no_lock_names_an_address(lock):
    for line in text_of(lock).splitlines():
        assert not re.search(r"://|^\s*-(i|f|-index|-extra|-find)", line), line
        assert " @ " not in line, line


@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda platform: platform[0])
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("lock", EXTRAS)
def test_the_lock_satisfies_the_project(lock, python, platform):
    here = environment(python, platform)
    pinned = defaultdict(set)
    for pin, _ in pins_of(lock):
        if pin.marker is None or pin.marker.evaluate(here):
            pinned[canonicalize_name(pin.name)] |= {specifier.version for specifier in pin.specifier}
    assert {name: versions for name, versions in pinned.items() if len(versions) > 1} == {}
    for asked in asked_for(lock):
        if asked.marker is not None and not asked.marker.evaluate(here):
            continue
        versions = pinned[canonicalize_name(asked.name)]
        assert versions, f"{asked.name} is not locked; run make lock"
        (version,) = versions
        assert asked.specifier.contains(version, prereleases=True), (
            f"{asked}, locked: {version}; run make lock"
        )


@pytest.mark.parametrize("lock", sorted(set(EXTRAS) - {"dev"}))
def test_what_runs_is_what_was_tested(lock):
    tested = {(pin.name, str(pin.specifier)) for pin, _ in pins_of("dev")}
    differing = {
        f"{pin.name}{pin.specifier}"
        for pin, _ in pins_of(lock)
        if (pin.name, str(pin.specifier)) not in tested and not pin.name.startswith(("cuda-", "nvidia-"))
    }
    assert differing == set()


def test_serving_is_locked_without_torch():
    names = {pin.name for pin, _ in pins_of("run")}
    assert "aiortc" in names
    assert names.isdisjoint({"torch", "torchaudio", "onnx", "opencv-python-headless"})


def test_torch_and_torchaudio_are_one_pair():
    locked = {pin.name: Version(next(iter(pin.specifier)).version) for pin, _ in pins_of("dev")}
    asked = {
        r.name: str(r.specifier)
        for r in map(Requirement, PROJECT["project"]["optional-dependencies"]["train"])
    }
    assert asked["torch"] == asked["torchaudio"] == f"=={locked['torch']}"
    assert locked["torch"] == locked["torchaudio"]
