"""How the CPU raymarcher is called: wrong arguments, many threads, a folder that cannot be written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from benchmarks.synthetic_scene import make_condition, make_pose, make_scene
from cuda_kernels.cpu_raymarcher import CpuRaymarcher, RenderInputError
from cuda_kernels.masks import BlockMask

TINY = {
    "hidden": 8,
    "levels": 3,
    "log2_rows": 9,
    "condition": 4,
    "grid_size": 16,
    "image_size_px": 64,
    "torso_hidden": 8,
}


@pytest.fixture(scope="module")
def scene():
    return make_scene(**TINY)


@pytest.fixture(scope="module")
def raymarcher(scene):
    return CpuRaymarcher(scene)


@pytest.fixture
def arguments(scene):
    return {"c2w": make_pose(), "condition": make_condition(scene), "size_px": 32}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"condition": np.zeros(5, np.float32)},
            r"condition: expected \(4,\) finite numbers, got shape \(5,\)",
        ),
        ({"condition": np.full(4, np.nan, np.float32)}, "condition: .* got NaN or infinity"),
        ({"c2w": np.full((4, 4), np.nan)}, r"c2w: expected \(4, 4\) finite numbers, got NaN or infinity"),
        ({"c2w": np.eye(3)}, r"c2w: .* got shape \(3, 3\)"),
        ({"size_px": 4}, "size_px: expected 8 to 2048, got 4"),
        ({"size_px": 5000}, "size_px: expected 8 to 2048, got 5000"),
        ({"region_px": (0, 0, 33, 32)}, r"region_px: .* got \(0, 0, 33, 32\)"),
        ({"region_px": (9, 0, 9, 32)}, "region_px"),
        ({"mask": BlockMask(size_px=64, covered=np.ones((16, 16), bool))}, "mask: .* of 32 px, got 64"),
        (
            {"mask": BlockMask(size_px=32, covered=np.ones((8, 8), bool)), "region_px": (0, 0, 8, 8)},
            r"region_px: expected none beside a mask, got \(0, 0, 8, 8\)",
        ),
        (
            {"out": np.zeros((32, 32), np.uint8)},
            r"out: .* shape \(32, 32, 3\), got uint8 of shape \(32, 32\)",
        ),
        ({"out": np.zeros((32, 32, 3), np.float32)}, "out: .* got float32"),
        ({"out": np.zeros((32, 32, 6), np.uint8)[:, :, ::2]}, "out: "),
    ],
)
def test_a_wrong_argument_is_one_clear_error(raymarcher, arguments, changes, message):
    with pytest.raises(RenderInputError, match=message) as caught:
        raymarcher.render(**{**arguments, **changes})
    assert "\n" not in str(caught.value)


def test_i420_refuses_what_it_cannot_halve(raymarcher, arguments):
    with pytest.raises(RenderInputError, match="size_px: expected an even number for I420, got 33"):
        raymarcher.render_i420(**{**arguments, "size_px": 33})
    with pytest.raises(RenderInputError, match=r"out: .* \(48, 32\)"):
        raymarcher.render_i420(**arguments, out=np.zeros((32, 32), np.uint8))


@pytest.mark.parametrize("threads", [0, 65])
def test_refuses_a_number_of_threads(scene, threads):
    with pytest.raises(RenderInputError, match=f"threads: expected 1 to 64, got {threads}"):
        CpuRaymarcher(scene, threads=threads)


def test_a_closed_raymarcher_says_so(scene, arguments):
    raymarcher = CpuRaymarcher(scene)
    raymarcher.close()
    raymarcher.close()
    with pytest.raises(RuntimeError, match="closed"):
        raymarcher.render(**arguments)


def test_calls_from_many_threads_do_not_mix(raymarcher, arguments):
    poses = [make_pose(0.1 * n) for n in range(4)]
    expected = [raymarcher.render(**{**arguments, "c2w": pose}) for pose in poses]
    assert not np.array_equal(expected[0], expected[3])
    wrong = []

    def draw(number):
        for _ in range(10):
            got = raymarcher.render(**{**arguments, "c2w": poses[number]})
            if not np.array_equal(got, expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=draw, args=(n,), name=f"draw-{n}") for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert not any(thread.is_alive() for thread in threads)


def test_weights_that_overflow_do_not_read_outside_the_tables(scene, arguments):
    """Finite weights can still multiply to infinity and NaN: the picture is then wrong, the process alive."""
    fields = {name: getattr(scene.head, name) for name in scene.head.__dataclass_fields__}
    fields["ambient_net"] = tuple(weight * np.float32(1e30) for weight in scene.head.ambient_net)
    fields["sigma_net"] = tuple(weight * np.float32(1e30) for weight in scene.head.sigma_net)
    torso = {name: getattr(scene.torso, name) for name in scene.torso.__dataclass_fields__}
    torso["deform_net"] = tuple(weight * np.float32(1e30) for weight in scene.torso.deform_net)
    parts = {name: getattr(scene, name) for name in scene.__dataclass_fields__}
    parts |= {"head": type(scene.head)(**fields), "torso": type(scene.torso)(**torso)}
    image = CpuRaymarcher(type(scene)(**parts)).render(**arguments)
    assert image.shape == (32, 32, 3)


def test_warm_up_says_how_long_it_took(raymarcher):
    assert 0 < raymarcher.warm_up() < 600


def test_the_kernels_do_not_import_torch():
    code = "import sys, cuda_kernels.cpu_raymarcher; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


DRAW = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import cuda_kernels
from cuda_kernels.folding import distance_field
assert cuda_kernels.__file__.startswith(sys.argv[1]), cuda_kernels.__file__
from numba.core import event
compiled = []
with event.install_recorder("numba:compile") as recorder:
    distance_field(np.zeros(64, np.uint8), 8)
print(len(recorder.buffer))
"""


@pytest.fixture
def unwritable_package(tmp_path):
    package = tmp_path / "installed"
    shutil.copytree(
        Path(sys.modules["cuda_kernels"].__file__).parent,
        package / "cuda_kernels",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    # A file where __pycache__ would be: also root, who may write anywhere, cannot make that folder.
    (package / "cuda_kernels" / "__pycache__").write_text("")
    return package


def compilations(package, *, cache, home):
    """How many functions a new process compiles."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "HOME": str(home)}
    environment.pop("NUMBA_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-B", "-c", DRAW, str(package)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return int(done.stdout)


@pytest.mark.skipif(os.name != "posix", reason="write permissions are POSIX's")
def test_a_package_that_cannot_be_written_is_cached_elsewhere(unwritable_package, tmp_path):
    places = {"cache": tmp_path / "cache", "home": tmp_path / "home"}
    assert compilations(unwritable_package, **places) > 0
    assert compilations(unwritable_package, **places) == 0
    assert any((tmp_path / "cache").rglob("*.nbc"))


@pytest.mark.skipif(os.name != "posix", reason="write permissions are POSIX's")
def test_with_no_place_for_a_cache_it_compiles_anew(unwritable_package, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    assert compilations(unwritable_package, cache=file / "cache", home=file / "home") > 0


@pytest.mark.parametrize("size_px", [32, 50])
def test_the_blocks_of_a_mask_equal_the_whole_picture(raymarcher, arguments, size_px):
    arguments["size_px"] = size_px
    side = -(-size_px // 4)
    covered = np.random.default_rng(3).random((side, side)) < 0.4
    mask = BlockMask(size_px=size_px, covered=covered)
    drawn = raymarcher.render(**arguments, mask=mask)
    samples = raymarcher.samples
    whole = raymarcher.render(**arguments)
    assert whole[mask.pixels].any()
    np.testing.assert_array_equal(drawn, np.where(mask.pixels[..., None], whole, 0))
    assert 0 < samples < raymarcher.samples


def test_what_lies_beyond_the_mask_stays_in_out(raymarcher, arguments):
    mask = BlockMask(size_px=32, covered=np.zeros((8, 8), bool))
    out = np.full((32, 32, 3), 77, np.uint8)
    assert raymarcher.render(**arguments, mask=mask, out=out) is out
    assert (out == 77).all()
