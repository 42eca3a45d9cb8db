"""What is installed: our names, and nobody else's; all of our files, and no torch for serving."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import pkgutil
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES: list[str] = PROJECT["tool"]["setuptools"]["packages"]
TRAINING_ONLY = (
    "torch",
    "torchaudio",
    "cv2",
    "matplotlib",
    "onnx",
    "onnxscript",
    "scipy",
    "tensorboard",
    "tqdm",
)


@pytest.mark.parametrize("name", PACKAGES)
def test_the_name_is_ours(name):
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).resolve() == ROOT / name.replace(".", "/") / "__init__.py"


@pytest.mark.parametrize("name", [name for name in PACKAGES if "." not in name])
def test_no_other_distribution_ships_the_name(name):
    owners = set(importlib.metadata.packages_distributions().get(name, []))
    assert owners <= {PROJECT["project"]["name"]}, (
        f"{owners} ship a top-level `{name}` too; uninstall the other"
    )


def test_every_package_of_the_tree_is_installed():
    with_init = {p.parent.relative_to(ROOT).as_posix() for p in ROOT.glob("[a-z]*/**/__init__.py")}
    outside = {p for p in with_init if p.split("/")[0] in {"tests", "benchmarks", "build", "node_modules"}}
    assert with_init - outside == {p.replace(".", "/") for p in PACKAGES}


def test_serving_imports_nothing_that_only_training_needs():
    modules = [m.name for m in pkgutil.walk_packages([str(ROOT / "streaming")], "streaming.")]
    assert {"streaming.cli", "streaming.session.session"} <= set(modules)
    serving = [
        *(m for m in modules if m != "streaming.__main__"),
        "models.speaker",
        "cuda_kernels.cpu_raymarcher",
        "benchmarks.pipeline",
        "benchmarks.render",
    ]
    program = (
        "import importlib, sys\n"
        f"for name in {serving!r}: importlib.import_module(name)\n"
        # Numba takes scipy along where there is one.
        f"print([m for m in {TRAINING_ONLY!r} if m in sys.modules and m != 'scipy'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.strip() == "[]"


def test_serving_starts_where_nothing_of_training_is_installed():
    program = (
        "import sys\n"
        f"for name in {TRAINING_ONLY!r}: sys.modules[name] = None\n"
        "import streaming.cli\n"
        "try: streaming.cli.main(['--help'])\n"
        "except SystemExit as end: sys.exit(end.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--speaker" in done.stdout


@pytest.fixture(scope="module")
def wheel_files(tmp_path_factory) -> dict[str, int]:
    """The wheel's files and their sizes in bytes, built from a copy of the tree."""
    copy = tmp_path_factory.mktemp("tree")
    ours = shutil.ignore_patterns("__pycache__", "*.nbi", "*.nbc")
    for package in {name.split(".")[0] for name in PACKAGES}:
        shutil.copytree(ROOT / package, copy / package, ignore=ours)
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, copy / name)
    program = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    done = subprocess.run([sys.executable, "-c", program], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = (copy / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {item.filename: item.file_size for item in archive.infolist()}


def test_the_wheel_holds_every_file_of_the_packages(wheel_files):
    expected = {
        file.relative_to(ROOT).as_posix(): file.stat().st_size
        for package in PACKAGES
        for file in (ROOT / package.replace(".", "/")).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and file.suffix not in {".md", ".nbi", ".nbc"}
    }
    missing = {name for name in expected if wheel_files.get(name) != expected[name]}
    assert not missing, f"{sorted(missing)}: not in the wheel; name them in [tool.setuptools.package-data]"


def test_the_wheel_holds_nothing_else(wheel_files):
    allowed = {
        *(name.split(".")[0] for name in PACKAGES),
        f"geneface_stream-{PROJECT['project']['version']}.dist-info",
    }
    assert {name.split("/")[0] for name in wheel_files} == allowed


def test_the_wheel_carries_licence_and_speaker(wheel_files):
    names = set(wheel_files)
    assert {n.rsplit("/", 1)[1] for n in names if ".dist-info/licenses/" in n} == {"LICENSE", "NOTICE"}
    speaker = {n for n in names if n.startswith("models/speakers/May/")}
    assert {"speaker.json", "motion.onnx", "head.safetensors", "MODEL_CARD.md"} <= {
        Path(n).name for n in speaker
    }
    assert sum(wheel_files[n] for n in speaker) <= 24_000_000  # what a clone may cost for one speaker


@pytest.mark.parametrize("script", PROJECT["project"]["scripts"].values())
def test_a_console_script_leads_somewhere(script):
    module, _, function = script.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
