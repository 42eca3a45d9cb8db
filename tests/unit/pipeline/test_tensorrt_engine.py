"""All of the TensorRT engine but TensorRT itself: tests/fake_tensorrt.py stands in for it."""

import gc
import sys
import threading
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from fake_tensorrt import Machine
from onnx import TensorProto, helper, numpy_helper

from cuda_kernels.user_cache import user_cache_dir
from streaming.errors import Stopped
from streaming.pipeline import tensorrt_engine
from streaming.pipeline.cuda_device import CudaDevice
from streaming.pipeline.onnx_engine import EngineError, EngineUnavailableError, NetworkSpec, OnnxEngine
from streaming.pipeline.tensorrt_engine import open_tensorrt_engine

GPU = CudaDevice(name="NVIDIA H100", capability=(9, 0))


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    machine.install(monkeypatch)
    return machine


@pytest.fixture
def network(tmp_path):
    """Products within and at the end of a network, two inputs with free axes that hang together."""
    random = np.random.default_rng(0)
    weights = {"wide": (4, 8), "narrow": (8, 3)}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["features", "wide"], ["hidden"]),
            helper.make_node("Softmax", ["hidden"], ["chosen"], axis=-1),
            helper.make_node("Add", ["hidden", "chosen"], ["sum"]),
            helper.make_node("AveragePool", ["latent"], ["noise"], kernel_shape=[1], strides=[1]),
            helper.make_node("ReduceMean", ["noise"], ["level"], keepdims=1),
            helper.make_node("Add", ["sum", "level"], ["moved"]),
            helper.make_node("MatMul", ["moved", "narrow"], ["landmarks"]),
        ],
        "motion",
        [
            helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, "times", 4]),
            helper.make_tensor_value_info("latent", TensorProto.FLOAT, [1, 2, "steps"]),
        ],
        [helper.make_tensor_value_info("landmarks", TensorProto.FLOAT, [1, "times", 3])],
        [
            numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)
            for name, shape in weights.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path = tmp_path / "motion.onnx"
    onnx.save(model, path)
    return NetworkSpec(
        model=path,
        inputs={"features": (1, 40, 4), "latent": (1, 2, 5)},
        output="landmarks",
        output_shape=(1, 40, 3),
    )


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache" / "engines"


@pytest.fixture
def opened(machine, network, cache):
    """Opens the network; the lines that were said are kept in `opened.said`."""

    def opened(**changes):
        return open_tensorrt_engine(
            changes.get("network", network),
            changes.get("gpu", GPU),
            cache_dir=changes.get("cache", cache),
            say=opened.said.append,
        )

    opened.said = []
    return opened


def inputs(times=40, steps=5, *, seed=1):
    random = np.random.default_rng(seed)
    return {
        "features": random.normal(size=(1, times, 4)).astype(np.float32),
        "latent": random.normal(size=(1, 2, steps)).astype(np.float32),
    }


# Running --------------------------------------------------------------------------------------------


def test_it_gives_what_onnx_runtime_gives(opened, network, machine):
    engine = opened()
    np.testing.assert_array_equal(engine.run(inputs()), OnnxEngine(network).run(inputs()))
    assert engine.device == "NVIDIA H100 (TensorRT fp16)"
    assert machine.copies[-3:] == ["cudaMemcpyHostToDevice"] * 2 + ["cudaMemcpyDeviceToHost"]


def test_each_run_gives_an_array_of_its_own(opened):
    engine = opened()
    first = engine.run(inputs(seed=1))
    kept = first.copy()
    engine.run(inputs(seed=2))
    np.testing.assert_array_equal(first, kept)


def test_free_axes_take_other_lengths_and_memory_grows_with_them(opened, network, machine):
    engine = opened()
    for times, steps in ((24, 3), (80, 10), (40, 5)):
        result = engine.run(inputs(times, steps))
        np.testing.assert_array_equal(result, OnnxEngine(network).run(inputs(times, steps)))
    assert sorted(len(held) for held in machine.memory.values()) == [80, 960, 1280]
    with pytest.raises(EngineError, match=r"input 'features': expected half to twice \[1, 40, 4\] on free"):
        engine.run(inputs(88, 10))


def test_all_free_axes_change_by_the_same_share(opened, machine):
    opened()
    assert machine.builds[0].profile == {
        "features": ((1, 24, 4), (1, 40, 4), (1, 80, 4)),
        "latent": ((1, 2, 3), (1, 2, 5), (1, 2, 10)),
    }


def test_a_network_without_free_axes_has_no_profile(opened, network, machine):
    model = onnx.load(network.model)
    for value, shape in zip(model.graph.input, network.inputs.values(), strict=True):
        for axis, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
            axis.dim_value = size
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 40
    onnx.save(model, network.model)
    assert opened().run(inputs()).shape == (1, 40, 3)
    assert machine.builds[0].profile is None


def test_arrays_of_another_layout_are_taken(opened):
    engine = opened()
    given = inputs()
    other = {name: np.asfortranarray(values.astype(np.float64)) for name, values in given.items()}
    np.testing.assert_allclose(engine.run(other), engine.run(given), rtol=1e-6)


def test_threads_take_turns(opened):
    engine = opened()
    expected = [engine.run(inputs(seed=seed)) for seed in range(4)]
    wrong = []

    def run(seed):
        for _ in range(20):
            if not np.array_equal(engine.run(inputs(seed=seed)), expected[seed]):
                wrong.append(seed)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_it_held_on_the_gpu_is_given_back(opened, machine):
    engine = opened()
    held = set(machine.memory)
    assert len(held) == 3
    del engine
    gc.collect()
    assert machine.memory == {}
    assert held <= set(machine.freed)
    assert machine.streams == set()


# Precision ------------------------------------------------------------------------------------------


def test_matrix_products_are_in_half_and_all_else_is_not(opened, machine):
    opened()
    (build,) = machine.builds
    assert (build.precision, build.tf32, build.definition.disagreement()) == ("fp16", True, "")
    (output,) = build.definition.outputs
    assert (output.name, output.dtype.name) == ("landmarks", "FLOAT")
    names = [layer.outputs[0].name for layer in build.definition.layers]
    assert names.count("landmarks") == 1
    assert "landmarks.float16" in names


def test_too_far_from_onnx_runtime_it_is_built_in_float32(opened, machine):
    machine.noise["fp16"] = 0.1
    engine = opened()
    assert engine.device == "NVIDIA H100 (TensorRT fp32)"
    assert [(build.precision, build.tf32) for build in machine.builds] == [("fp16", True), ("fp32", False)]
    again = opened()
    assert again.device == engine.device
    assert len(machine.builds) == 2


def test_close_to_onnx_runtime_is_good_enough(opened, machine):
    machine.noise["fp16"] = 1e-3
    assert opened().device == "NVIDIA H100 (TensorRT fp16)"


@pytest.mark.parametrize("noise", [0.1, float("nan")])
def test_far_from_onnx_runtime_in_either_it_is_refused_and_not_kept(opened, machine, cache, noise):
    machine.noise.update(fp16=noise, fp32=noise)
    with pytest.raises(
        EngineUnavailableError,
        match=r"^TensorRT 10\.13\.3: motion\.onnx: .*error of .* in fp16, .* in fp32, above 0\.01; --engine",
    ):
        opened()
    assert list(cache.glob("*.engine")) == []


def test_what_was_refused_is_not_built_again_at_every_start(opened, machine, cache):
    machine.noise.update(fp16=0.1, fp32=0.1)
    with pytest.raises(EngineUnavailableError, match="above"):
        opened()
    with pytest.raises(EngineUnavailableError, match=r"0\.01 \(found at an earlier start, see .*refused\);"):
        opened()
    assert len(machine.builds) == 2
    (refused,) = cache.glob("*.refused")
    refused.unlink()
    machine.noise.update(fp16=0.0)
    assert opened().run(inputs()).shape == (1, 40, 3)


def test_what_did_not_build_is_tried_again(opened, machine):
    machine.build_error = "out of memory"
    with pytest.raises(EngineUnavailableError, match="out of memory"):
        opened()
    machine.build_error = ""
    assert opened().run(inputs()).shape == (1, 40, 3)


# The cache ------------------------------------------------------------------------------------------


def test_it_is_built_once(opened, machine, cache):
    first = opened().run(inputs())
    said = len(opened.said)
    np.testing.assert_array_equal(opened().run(inputs()), first)
    assert (len(machine.builds), len(opened.said)) == (1, said)
    assert [path.suffix for path in sorted(cache.iterdir())] == [".engine", ".cache"]


def test_anything_it_depends_on_makes_it_new(opened, machine, network, monkeypatch):
    opened()
    opened(gpu=CudaDevice(name="NVIDIA L4", capability=(8, 9)))
    opened(gpu=CudaDevice(name="NVIDIA H100", capability=(9, 1)))
    shapes = {"features": (1, 80, 4), "latent": (1, 2, 10)}
    opened(
        network=NetworkSpec(model=network.model, inputs=shapes, output="landmarks", output_shape=(1, 80, 3))
    )
    assert len(machine.builds) == 4
    model = onnx.load(network.model)
    model.doc_string = "another"
    onnx.save(model, network.model)
    opened()
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", "11.0.0")
    opened()
    assert len(machine.builds) == 6


@pytest.mark.parametrize(
    "spoil", [lambda content: content[:-1], lambda content: b"", lambda content: b"x" * 99]
)
def test_what_is_not_whole_is_built_anew(opened, machine, cache, spoil):
    opened()
    (kept,) = cache.glob("*.engine")
    whole = kept.read_bytes()
    kept.write_bytes(spoil(whole))
    loads = machine.loads
    opened()
    assert kept.read_bytes() == whole
    assert machine.loads == loads + 1  # what was spoilt never came to TensorRT


def test_what_tensorrt_does_not_load_any_more_is_built_anew(opened, machine, cache):
    opened()
    (kept,) = cache.glob("*.engine")
    tensorrt_engine._keep(kept, b"of another driver", pytest.fail)
    assert opened().run(inputs()).shape == (1, 40, 3)
    assert len(machine.builds) == 2


def test_timings_are_kept_for_the_next_network(opened, machine, network):
    opened()
    model = onnx.load(network.model)
    model.doc_string = "another"
    onnx.save(model, network.model)
    opened()
    assert [build.timings for build in machine.builds] == [b"", b"timed;"]


def test_a_cache_that_cannot_be_written_is_one_line_and_the_engine_runs(opened, tmp_path):
    (tmp_path / "file").write_text("")
    assert opened(cache=tmp_path / "file").run(inputs()).shape == (1, 40, 3)
    refused = [line for line in opened.said if "cannot be kept" in line]
    assert len(refused) == 2
    assert all("built again at the next start" in line for line in refused)


def test_a_full_disk_leaves_no_half_file(opened, cache, monkeypatch):
    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    opened()
    assert list(cache.iterdir()) == []
    assert any("No space left on device" in line for line in opened.said)


@pytest.mark.parametrize(
    ("platform", "variable", "stated", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", "/var/cache/me", "/var/cache/me/geneface-stream/engines"),
        ("linux", "XDG_CACHE_HOME", "relative", "~/.cache/geneface-stream/engines"),
        ("linux", "XDG_CACHE_HOME", None, "~/.cache/geneface-stream/engines"),
        ("darwin", "XDG_CACHE_HOME", None, "~/Library/Caches/geneface-stream/engines"),
        ("win32", "LOCALAPPDATA", "/local", "/local/geneface-stream/engines"),
    ],
)
def test_the_cache_is_where_the_platform_has_them(monkeypatch, platform, variable, stated, expected):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.delenv(variable, raising=False)
    if stated:
        monkeypatch.setenv(variable, stated)
    assert user_cache_dir() / "engines" == Path(expected).expanduser()


# Progress -------------------------------------------------------------------------------------------


def test_a_build_says_that_it_takes_long_and_how_far_it_is(opened):
    opened()
    assert opened.said[0] == (
        "building motion.onnx for NVIDIA H100: TensorRT 10.13.3, fp16 (once on this GPU; minutes) ..."
    )
    assert opened.said[1:] == [f"building motion.onnx: {tenth}0 %" for tenth in range(1, 10)]


def test_a_signal_in_a_build_ends_it_in_order(opened, machine, cache):
    class Interrupted(list):
        def append(self, line):
            super().append(line)
            if "30 %" in line:
                raise Stopped("SIGINT")

    opened.said = Interrupted()
    with pytest.raises(Stopped, match="SIGINT"):
        opened()
    assert opened.said[-1] == "building motion.onnx: 30 %"
    assert not cache.exists()


# What cannot be ---------------------------------------------------------------------------------------


def test_without_the_packages_it_says_how_to_get_them(machine, network, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(EngineUnavailableError, match=r"expected the package cuda\.bindings\.runtime, got"):
        open_tensorrt_engine(network, GPU)
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(
        EngineUnavailableError,
        match=r"expected the package tensorrt, got none; pip install -e '\.\[tensorrt\]'",
    ):
        open_tensorrt_engine(network, GPU)


def test_a_network_that_it_cannot_read_is_refused_in_its_words(opened, machine):
    machine.parse_error = "no importer registered\nfor op: Bernoulli"
    with pytest.raises(EngineUnavailableError, match=r"cannot read \(no importer registered for op: Bern"):
        opened()


def test_a_network_that_it_cannot_build_is_refused_in_its_words(opened, machine):
    machine.build_error = "could not find any implementation"
    with pytest.raises(EngineUnavailableError, match=r"could not find any implementation.* in fp32"):
        opened()
    assert [build.precision for build in machine.builds] == ["fp16", "fp32"]


def test_a_gpu_that_refuses_is_named(opened, machine):
    machine.cuda_error = "cudaMalloc"
    with pytest.raises(EngineUnavailableError, match="cudaErrorMemoryAllocation of cudaMalloc"):
        opened()


def test_whatever_its_bindings_raise_is_one_line(opened, monkeypatch):
    def broken(*_):
        raise TypeError("incompatible\nconstructor arguments")

    monkeypatch.setattr(sys.modules["tensorrt"], "Builder", broken)
    with pytest.raises(EngineUnavailableError, match="got TypeError: incompatible constructor arguments;"):
        opened()


def test_a_network_other_than_promised_is_refused_before_it_is_built(opened, machine, network):
    other = NetworkSpec(
        model=network.model, inputs={"features": (1, 40, 5)}, output="landmarks", output_shape=(1, 40, 3)
    )
    with pytest.raises(
        EngineError, match=r"input 'features': expected float32 \[1, 40, 5\], got .*4\]"
    ) as raised:
        opened(network=other)
    assert not isinstance(raised.value, EngineUnavailableError)
    assert machine.builds == []


def test_a_package_that_is_broken_is_named(machine, network, monkeypatch):
    def missing_library(name):
        raise ImportError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(tensorrt_engine.importlib, "import_module", missing_library)
    with pytest.raises(EngineUnavailableError, match=r"that cannot be imported \(libnvinfer\.so\.10"):
        open_tensorrt_engine(network, GPU)
    assert isinstance(sys.modules["tensorrt"], ModuleType)
