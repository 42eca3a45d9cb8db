"""The kinds of test, and what they share.

A test's folder is its kind and its marker: ``pytest -m unit`` runs what lies in ``tests/unit``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parent
# Two test runs on two cores spin in each other's OpenMP barriers: sixty times slower than one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
KINDS = ("unit", "parity", "browser", "fault")
MAX_ID = 80  # characters
REQUIRE_GPU = os.environ.get("GENEFACE_REQUIRE_GPU", "") == "1"

passed_on_gpu: list[str] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks every test with the folder it lies in; refuses one that lies in none of them."""
    astray = set()
    for item in items:
        kind = item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""
        if kind in KINDS:
            item.add_marker(getattr(pytest.mark, kind))
        else:
            astray.add(str(item.path))
    if astray:
        raise pytest.UsageError(
            f"{', '.join(sorted(astray))}: expected a test under tests/{{{','.join(KINDS)}}}; move it there"
        )


def pytest_make_parametrize_id(val: object) -> str | None:
    """Returns what a container holds, where pytest would number it."""
    text = ascii(val)
    if not isinstance(val, tuple | list | dict) or " at 0x" in text:
        return None
    return text if len(text) <= MAX_ID else f"{text[: MAX_ID - 3]}..."


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remembers which tests did run on a GPU."""
    if report.when == "call" and report.passed and "gpu" in report.keywords:
        passed_on_gpu.append(report.nodeid)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Makes the need of a GPU visible to the report and to ``-k gpu``."""
    if "gpu" in getattr(item, "fixturenames", ()):
        item.keywords["gpu"] = True


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails a GPU run that never touched the GPU."""
    if REQUIRE_GPU and not passed_on_gpu and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says why a GPU run failed that never touched the GPU."""
    if REQUIRE_GPU and not passed_on_gpu:
        terminalreporter.write_line("GENEFACE_REQUIRE_GPU=1, but no test passed on a GPU", red=True)


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder of reference data beside the checkout (``GENEFACE_SHARED`` names another)."""
    folder = Path(os.environ.get("GENEFACE_SHARED") or TESTS.parent.parent / "shared").resolve()
    if not folder.is_dir():
        pytest.skip(f"{folder}: no reference data there; set GENEFACE_SHARED to its folder")
    return folder


@pytest.fixture(scope="session")
def shared_fixtures(shared_folder: Path) -> Path:
    """The parity cases, ``fixtures/`` in the folder of reference data."""
    folder = shared_folder / "fixtures"
    if not folder.is_dir():
        pytest.skip(f"{folder}: no parity cases there; set GENEFACE_SHARED to the folder that holds them")
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small valid speaker bundle with random weights; not to be changed by a test."""
    from bundle_factory import write_tiny_bundle

    return write_tiny_bundle(tmp_path_factory.mktemp("speakers") / "Tiny")


@pytest.fixture(scope="session")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small speaker, read; its pictures are 128 pixels a side."""
    from bundle_factory import write_tiny_bundle

    from models.speaker import load_speaker

    return load_speaker(write_tiny_bundle(tmp_path_factory.mktemp("speakers") / "Tiny", image_size_px=128))


@pytest.fixture(scope="session")
def networks(speaker: Any) -> Any:
    """Its networks, open."""
    from streaming.pipeline.networks import open_networks

    return open_networks(speaker)


@pytest.fixture(scope="session")
def speakers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `Tiny` and `Other`, 128 pixels a side; not to be changed by a test."""
    from bundle_factory import write_tiny_bundle

    folder = tmp_path_factory.mktemp("speakers")
    for name in ("Tiny", "Other"):
        write_tiny_bundle(folder / name, name=name, image_size_px=128)
    return folder


@pytest.fixture(scope="session")
def gpu() -> Any:
    """The CUDA device to test on; without one the test is skipped, or fails if a GPU is required."""
    reason = ""
    try:
        import torch
    except ImportError:
        reason = "torch is not installed"
    else:
        if torch.cuda.is_available():
            return torch.device("cuda")
        reason = "torch sees no CUDA device"
    if REQUIRE_GPU:
        pytest.fail(f"GENEFACE_REQUIRE_GPU=1, but {reason}")
    return pytest.skip(reason)
