"""Which kernel is found or compiled for a GPU, with no GPU here."""

from __future__ import annotations

import importlib.util
import lzma
from pathlib import Path

import pytest

from cuda_kernels import build_cubins, cuda_module
from cuda_kernels.cuda_module import (
    ARCHITECTURES,
    CudaUnavailableError,
    Variant,
    cache_directory,
    machine_code,
    prebuilt_architecture,
    sources_digest,
    variant_for,
)
from cuda_kernels.cuda_records import WIDTHS

ELF = b"\x7fELF"
KIB_OF_THE_SCENE, KIB_OF_A_WARP = 2, 5


def has_nvrtc():
    try:
        return importlib.util.find_spec("cuda.bindings.nvrtc") is not None
    except ImportError:
        return False


needs_nvrtc = pytest.mark.skipif(not has_nvrtc(), reason="NVRTC is not installed: extra [cuda]")


@pytest.fixture
def cubins(tmp_path, monkeypatch):
    """An empty folder in place of the prebuilt kernels, and one in place of the user's cache."""
    folder = tmp_path / "cubins"
    folder.mkdir()
    monkeypatch.setattr(cuda_module, "CUBINS", folder)
    monkeypatch.setattr(cuda_module, "MANIFEST", folder / "SOURCES.sha256")
    monkeypatch.setenv("GENEFACE_KERNEL_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def compiled(monkeypatch):
    """The variants that were compiled, which takes no time and gives their names."""
    variants = []

    def compile_it(variant):
        variants.append(variant)
        return repr(variant).encode()

    monkeypatch.setattr(cuda_module, "compile_with_nvrtc", compile_it)
    return variants


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, 87, 103, 110, 121])
def test_a_variant_fits_into_the_shared_memory_of_its_architecture(width, architecture):
    room_kib = {75: 64, 80: 163, 87: 163, 90: 227, 100: 227, 103: 227, 110: 227}.get(architecture, 99)
    variant = variant_for(width, architecture)
    macs = (32 + width + 8) * width + (64 + width + 8) * width + (width + 16 + 8) * width
    needed_kib = KIB_OF_THE_SCENE + KIB_OF_A_WARP * variant.warps
    needed_kib += 2 * macs / 1024 if variant.weights_in_shared else 0
    assert needed_kib <= room_kib
    assert variant.warps % 4 == 0
    assert variant.warps >= 8


def test_geneface_keeps_its_weights_in_shared_memory_where_there_is_room():
    assert variant_for(128, 90).weights_in_shared
    assert not variant_for(128, 89).weights_in_shared


@pytest.mark.parametrize(
    ("architecture", "expected"), [(75, 75), (87, 86), (89, 89), (90, 90), (103, 100), (121, 120), (70, None)]
)
def test_the_nearest_architecture_below_of_the_same_generation_serves(architecture, expected):
    assert prebuilt_architecture(architecture) == expected


def test_a_prebuilt_kernel_of_todays_sources_is_taken(cubins, compiled):
    variant = variant_for(64, 86)
    (cubins / variant.file_name).write_bytes(lzma.compress(b"prebuilt"))
    (cubins / "SOURCES.sha256").write_text(sources_digest() + "\n")
    assert machine_code(64, 87) == (variant, b"prebuilt")
    assert not compiled


@pytest.mark.parametrize("manifest", [None, "of other sources\n"])
def test_a_prebuilt_kernel_of_other_sources_is_compiled_anew(cubins, compiled, manifest):
    (cubins / variant_for(64, 90).file_name).write_bytes(lzma.compress(b"prebuilt"))
    if manifest is not None:
        (cubins / "SOURCES.sha256").write_text(manifest)
    assert machine_code(64, 90)[1] != b"prebuilt"
    assert compiled == [variant_for(64, 90)]


def test_what_was_compiled_once_comes_from_the_cache(cubins, compiled):
    first = machine_code(32, 90)
    assert machine_code(32, 90) == first
    assert len(compiled) == 1
    machine_code(32, 86)
    machine_code(64, 90)
    assert len(compiled) == 3
    assert not list(cubins.iterdir())


def test_without_a_place_for_the_cache_it_compiles_each_time(cubins, compiled, monkeypatch, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("GENEFACE_KERNEL_CACHE", str(tmp_path / "file" / "below"))
    assert machine_code(32, 90) == machine_code(32, 90)
    assert len(compiled) == 2


def test_a_kernel_that_cannot_be_kept_leaves_nothing(cubins, compiled, monkeypatch):
    def full(path, content):
        path.touch()
        raise OSError("the disk is full")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert machine_code(32, 90) == machine_code(32, 90)
    assert len(compiled) == 2
    assert not list(cache_directory().iterdir())


def test_the_cache_lies_in_the_users_cache_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("GENEFACE_KERNEL_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_directory() == tmp_path / "cache" / "geneface-stream" / "kernels"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert cache_directory() == tmp_path / ".cache" / "geneface-stream" / "kernels"


def test_without_the_extra_the_error_names_it(cubins, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(cuda_module.importlib, "import_module", missing)
    with pytest.raises(CudaUnavailableError, match=r"pip install -e '\.\[cuda\]'"):
        machine_code(32, 90)


@needs_nvrtc
def test_nvrtc_compiles_the_kernel_without_a_gpu(cubins):
    variant, code = machine_code(32, 90)
    assert code.startswith(ELF)
    assert b"raymarch_block" in code
    assert variant.architecture == 90


@needs_nvrtc
def test_an_architecture_that_nvrtc_does_not_know_is_refused(cubins):
    with pytest.raises(CudaUnavailableError, match="sm_35: expected success, got NVRTC_ERROR"):
        cuda_module.compile_with_nvrtc(Variant(width=32, architecture=35, warps=8, weights_in_shared=False))


def test_the_build_writes_every_kernel_and_the_manifest_last(cubins, monkeypatch, capsys):
    monkeypatch.setattr(build_cubins, "CUBINS", cubins)
    monkeypatch.setattr(build_cubins, "MANIFEST", cubins / "SOURCES.sha256")
    monkeypatch.setattr(build_cubins, "ProcessPoolExecutor", SameProcess)
    monkeypatch.setattr(build_cubins, "compile_with_nvrtc", lambda variant: variant.file_name.encode())
    (cubins / "raymarcher_1.sm_1.cubin.xz").write_bytes(b"stale")
    assert build_cubins.main([]) == 0
    assert len(list(cubins.glob("*.cubin.xz"))) == len(WIDTHS) * len(ARCHITECTURES)
    assert machine_code(96, 120)[1] == b"raymarcher_96.sm_120.cubin.xz"
    assert "raymarcher_96.sm_120.cubin.xz" in capsys.readouterr().out


class SameProcess:
    """A pool of this process alone: a patched function would not reach another."""

    def __init__(self, **_):
        self.map = map

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def test_the_prebuilt_kernels_are_those_of_todays_sources():
    if not cuda_module.CUBINS.is_dir():
        pytest.skip("none are built here: python -m cuda_kernels.build_cubins")
    assert cuda_module.MANIFEST.read_text().strip() == sources_digest()
    names = {variant_for(width, number).file_name for width in WIDTHS for number in ARCHITECTURES}
    assert {path.name for path in cuda_module.CUBINS.glob("*.xz")} == names
