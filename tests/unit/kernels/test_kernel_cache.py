"""A damaged cache of compiled kernels costs a compilation, never a start."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import logging, sys
from cuda_kernels.compilation import compiled
from twice import twice
logging.basicConfig(level=logging.WARNING, format="%(message)s")
fast = compiled(twice)
assert fast(21.0) == 42.0
print("hits", sum(fast.stats.cache_hits.values()))
"""


def start(folder):
    """Returns whether a process of its own read one function instead of compiling it, and what it said."""
    path = os.pathsep.join([str(folder), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "NUMBA_CACHE_DIR": str(folder / "cache")}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    return "hits 1" in ended.stdout, ended.stderr


def files(folder, kind):
    return sorted((folder / "cache").rglob(f"*.{kind}"))


def flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder whose cache is filled and well."""
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "twice.py").write_text("def twice(value):\n    return 2 * value\n")
    assert start(folder) == (False, "")
    assert start(folder) == (True, "")
    return folder


DAMAGES = {
    "empty": lambda _: b"",
    "cut off": lambda content: content[: len(content) // 2],
    "garbage": lambda content: os.urandom(len(content)),
    "another": lambda _: b"\x80\x04N.",
    "one bit": flip,
}


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_replaced(kept, kind, damage):
    (file,) = files(kept, kind)
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    was_read, said = start(kept)
    assert not was_read
    assert said.count("\n") <= 1
    assert start(kept) == (True, "")


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
def test_where_a_folder_stands_in_its_place_it_goes_without(kept, kind):
    (file,) = files(kept, kind)
    content = file.read_bytes()
    file.unlink()
    file.mkdir()
    was_read, said = start(kept)
    assert not was_read
    assert 1 <= said.count("\n") <= 2
    file.rmdir()
    file.write_bytes(content)
    start(kept)
    assert start(kept) == (True, "")


def test_a_full_disk_is_said_once(kept, monkeypatch, caplog):
    sys.path.insert(0, str(kept))
    try:
        from twice import twice
    finally:
        sys.path.remove(str(kept))
    from cuda_kernels import compilation

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compilation._CheckedFile, "save", full)
    with caplog.at_level(logging.WARNING):
        assert compilation.compiled.__wrapped__(twice)(21) == 42
    assert [record.message for record in caplog.records] == [
        "compiled kernels could not be kept for the next start: [Errno 28] No space left on device"
    ]
