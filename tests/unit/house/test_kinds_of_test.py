"""The rules of tests/conftest.py, tried on a suite of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parents[2] / "conftest.py"
SETTINGS = '[tool.pytest.ini_options]\nmarkers = ["unit", "parity", "browser", "fault"]\n'


def run_suite(folder: Path, test_file: str, source: str, *, args: tuple[str, ...] = (), **environment: str):
    target = folder / "tests" / test_file
    target.parent.mkdir(parents=True)
    target.write_text(source)
    shutil.copy(CONFTEST, folder / "tests" / "conftest.py")
    (folder / "pyproject.toml").write_text(SETTINGS)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("GENEFACE_", "PYTEST_"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "--strict-markers", "-rs", "-p", "no:cacheprovider", *args],
        cwd=folder,
        env={**clean, **environment},
        capture_output=True,
        text=True,
    )


def test_the_folder_is_the_marker(tmp_path):
    source = "def test_a(): pass\n"
    done = run_suite(tmp_path, "parity/test_a.py", source, args=("-m", "parity"))
    assert "1 passed" in done.stdout
    assert done.returncode == 0


@pytest.mark.parametrize("place", ["test_a.py", "elsewhere/test_a.py"])
def test_a_test_of_no_kind_stops_the_run(tmp_path, place):
    done = run_suite(tmp_path, place, "def test_a(): pass\n")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "move it there" in done.stdout + done.stderr


def test_missing_reference_data_is_a_skip_that_names_the_folder(tmp_path):
    source = "def test_a(shared_fixtures): assert False\n"
    done = run_suite(tmp_path, "unit/test_a.py", source, GENEFACE_SHARED=str(tmp_path / "absent"))
    assert "1 skipped" in done.stdout
    assert str(tmp_path / "absent") in done.stdout


def test_present_reference_data_is_found_by_the_environment(tmp_path):
    (tmp_path / "data" / "fixtures").mkdir(parents=True)
    source = "def test_a(shared_fixtures): assert shared_fixtures.name == 'fixtures'\n"
    done = run_suite(tmp_path, "unit/test_a.py", source, GENEFACE_SHARED=str(tmp_path / "data"))
    assert "1 passed" in done.stdout


def test_a_gpu_run_that_used_no_gpu_fails(tmp_path):
    done = run_suite(tmp_path, "unit/test_a.py", "def test_a(): pass\n", GENEFACE_REQUIRE_GPU="1")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "no test passed on a GPU" in done.stdout


def test_a_gpu_run_that_used_the_gpu_passes(tmp_path):
    source = "import pytest\n@pytest.fixture\ndef gpu(): return 'cuda'\ndef test_a(gpu): assert gpu\n"
    done = run_suite(tmp_path, "unit/test_a.py", source, GENEFACE_REQUIRE_GPU="1")
    assert "1 passed" in done.stdout
    assert done.returncode == 0
