"""torchaudio is loaded where it is used only; one that does not load is one line with the pair to install."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from models.torchaudio_pair import TorchaudioError, import_torchaudio

ROOT = Path(__file__).resolve().parents[3]
BROKEN = {
    "of another CUDA": "raise OSError('libtorchaudio.so: undefined symbol: aoti_torch_abi')",
    "of another release": "raise RuntimeError('PyTorch has CUDA 13.0 whereas TorchAudio has CUDA 12.8')",
    "of another Python": "from torchaudio import _torchaudio",
    "that needs what torch lacks": "import torch; torch.of_another_release",
}


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=folder, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(params=BROKEN, ids=BROKEN)
def folder(request, tmp_path):
    """A folder whose torchaudio comes first and does not load."""
    package = tmp_path / "torchaudio"
    package.mkdir()
    (package / "__init__.py").write_text(BROKEN[request.param] + "\n")
    return tmp_path


def test_the_error_of_an_unmatched_torchaudio_names_the_pair_to_install(folder, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(TorchaudioError) as caught:
        import_torchaudio()
    monkeypatch.delitem(sys.modules, "torchaudio", raising=False)
    message = str(caught.value)
    assert "\n" not in message
    version = metadata.version("torch")
    release = version.partition("+")[0]
    assert f"torch {version}" in message
    assert f"pip install torch=={release} torchaudio=={release}" in message


def test_a_torchaudio_that_is_not_installed_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    with pytest.raises(ModuleNotFoundError):
        import_torchaudio()


def test_no_module_loads_torchaudio_before_it_is_used():
    code = (
        "import importlib, pkgutil, sys\n"
        "for name in ('models', 'training', 'export', 'preparation'):\n"
        "    package = importlib.import_module(name)\n"
        "    for module in pkgutil.iter_modules(package.__path__):\n"
        "        importlib.import_module(f'{name}.{module.name}')\n"
        "assert 'torch' in sys.modules\n"
        "assert 'torchaudio' not in sys.modules\n"
    )
    ended = run(ROOT, "-c", code)
    assert ended.returncode == 0, ended.stderr


def test_a_training_with_an_unmatched_torchaudio_ends_in_one_line(folder):
    code = (
        "import sys; from training import cli\n"
        "cli._train = lambda *_: __import__('models.features').features.LogMel()\n"
        "sys.exit(cli.main(['syncnet']))\n"
    )
    ended = run(folder, "-c", code)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert "torchaudio: expected one built for torch" in ended.stderr
