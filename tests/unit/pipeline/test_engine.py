import dataclasses
import hashlib
import json
import threading
from types import SimpleNamespace

import bundle_factory
import numpy as np
import onnx
import onnxruntime
import pytest
import refusals
from onnx import TensorProto, helper

from models.bundle_files import BundleError, FileRecord
from streaming.errors import InputError
from streaming.pipeline import engine_choice, onnx_engine, run_watch, tensorrt
from streaming.pipeline.cuda_device import CudaDevice
from streaming.pipeline.engine_choice import EngineSettings, describe_devices, open_engine
from streaming.pipeline.onnx_engine import (
    EngineError,
    EngineTimeoutError,
    EngineUnavailableError,
    NetworkSpec,
    OnnxEngine,
)
from streaming.pipeline.run_watch import RUN_WATCH, RunWatch

GPU = CudaDevice(name="NVIDIA H100", capability=(9, 0))


def written(path, *, free=False, kind=TensorProto.FLOAT):
    """out = 2 left + right, row by row; an output that nobody asks for beside it."""
    rows = "rows" if free else 3
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["left", "left"], ["twice"]),
            helper.make_node("Add", ["twice", "right"], ["out"]),
        ],
        "two inputs",
        [
            helper.make_tensor_value_info("left", kind, [rows, 2]),
            helper.make_tensor_value_info("right", kind, [1, 2]),
        ],
        [helper.make_tensor_value_info(name, kind, [rows, 2]) for name in ("out", "twice")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.fixture
def network(tmp_path):
    return NetworkSpec(
        model=written(tmp_path / "sum.onnx"),
        inputs={"left": (3, 2), "right": (1, 2)},
        output="out",
        output_shape=(3, 2),
    )


@pytest.fixture
def said():
    return []


@pytest.fixture
def opened(network, said):
    def opened(network=network, **settings):
        return open_engine(network, EngineSettings(**settings), say=said.append)

    return opened


def ones(rows=3):
    return {"left": np.ones((rows, 2), np.float32), "right": np.array([[1, 2]], np.float32)}


# ONNX Runtime on the CPU ----------------------------------------------------------------------------


def test_a_network_runs_with_several_inputs(network):
    opened = open_engine(network)
    result = opened.run(ones())
    np.testing.assert_array_equal(result, [[3, 4]] * 3)
    assert (result.dtype, opened.device) == (np.float32, "CPU")


def test_a_free_axis_takes_other_lengths(tmp_path, network):
    free = dataclasses.replace(network, model=written(tmp_path / "free.onnx", free=True))
    assert OnnxEngine(free).run(ones(7)).shape == (7, 2)


def refused(network, error=EngineError):
    """Returns the parts of the line that a network is refused with."""
    with pytest.raises(error) as caught:
        open_engine(network)
    return refusals.parts(str(caught.value))


@pytest.mark.parametrize(
    ("change", "field", "expected", "got"),
    [
        ({"inputs": {"left": (3, 2)}}, "", "the inputs left", "left, right"),
        ({"inputs": {"left": (3, 2), "middle": (1, 2)}}, "", "an input named 'middle'", "left, right"),
        (
            {"inputs": {"left": (4, 2), "right": (1, 2)}},
            ": input 'left'",
            "float32 [4, 2]",
            "tensor(float) [3, 2]",
        ),
        (
            {"inputs": {"left": (3,), "right": (1, 2)}},
            ": input 'left'",
            "float32 [3]",
            "tensor(float) [3, 2]",
        ),
        ({"output": "sum"}, "", "an output named 'sum'", "out, twice"),
        ({"output_shape": (2, 2)}, ": output 'out'", "float32 [2, 2]", "tensor(float) [3, 2]"),
    ],
)
def test_an_input_of_another_name_or_shape_is_refused(network, change, field, expected, got):
    said = refused(dataclasses.replace(network, **change))
    assert said == (f"{network.model}{field}", expected, got, "export it again")


def test_an_input_of_another_type_is_refused(tmp_path, network):
    double = dataclasses.replace(network, model=written(tmp_path / "double.onnx", kind=TensorProto.DOUBLE))
    expected = f"{double.model}: input 'left'", "float32 [3, 2]", "tensor(double) [3, 2]"
    assert refused(double)[:3] == expected


def test_the_output_of_free_axes_is_checked_by_a_run(tmp_path, network):
    free = written(tmp_path / "free.onnx", free=True)
    said = refused(dataclasses.replace(network, model=free, output_shape=(5, 2)))
    assert said[:3] == (f"{free}: out", "float32 [5, 2]", "float32 [3, 2]")


def test_lengths_that_a_network_cannot_run_are_refused(tmp_path, network):
    model = onnx.load(written(tmp_path / "free.onnx", free=True))
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_param = "others"
    onnx.save(model, tmp_path / "free.onnx")
    four = dataclasses.replace(
        network, model=tmp_path / "free.onnx", inputs={"left": (3, 2), "right": (4, 2)}
    )
    said = refused(four)
    assert (said.where, said.expected) == (str(four.model), "it to run on left [3, 2], right [4, 2]")
    assert "Add" in said.got


@pytest.mark.parametrize("content", [b"", b"no network", None])
def test_what_is_no_network_is_refused_in_one_line(tmp_path, network, content):
    model = tmp_path / "other.onnx"
    if content is not None:
        model.write_bytes(content)
    with pytest.raises(BundleError) as raised:
        open_engine(dataclasses.replace(network, model=model))
    assert raised.value.file == str(model)
    assert raised.value.expected == ("a file" if content is None else "an ONNX network")
    assert "\n" not in str(raised.value)


def test_what_runs_is_what_was_hashed(network):
    content = network.model.read_bytes()
    record = FileRecord(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    recorded = dataclasses.replace(network, record=record)
    open_engine(recorded)
    network.model.write_bytes(content.replace(b"twice", b"thrce"))
    with pytest.raises(BundleError) as raised:
        open_engine(recorded)
    assert raised.value.field == "sha256"


def test_weights_in_another_file_are_refused(tmp_path, network):
    model = onnx.load(network.model)
    weights = model.graph.initializer.add(name="w", data_type=onnx.TensorProto.FLOAT, dims=[1])
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=".w")
    (tmp_path / ".w").write_bytes(bytes(4))
    network.model.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError) as raised:
        open_engine(network)
    assert raised.value.field == "tensor 'w'"


def scalar_network(path, nodes, initializers=()):
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], list(initializers))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return NetworkSpec(model=path, inputs={"x": (1, 1)}, output="y", output_shape=(1, 1))


NOT_FINITE = {
    "silence": [helper.make_node("Log", ["x"], ["y"])],
    "noise": [
        helper.make_node("Abs", ["x"], ["a"]),
        helper.make_node("Neg", ["a"], ["n"]),
        helper.make_node("Sqrt", ["n"], ["y"]),
    ],
}


@pytest.mark.parametrize("heard", NOT_FINITE)
def test_numbers_that_are_none_are_the_bundle_s_fault(tmp_path, heard):
    network = scalar_network(tmp_path / "odd.onnx", NOT_FINITE[heard])
    said = refused(network)
    assert said[:2] == (f"{network.model}: y", "finite numbers")
    assert said.got.startswith("1 of 1 ")
    assert said.got.endswith(f" of {heard}")


def endless(path):
    infos = [helper.make_tensor_value_info("i", TensorProto.INT64, [])]
    infos += [helper.make_tensor_value_info("c", TensorProto.BOOL, [])]
    infos += [helper.make_tensor_value_info("v", TensorProto.FLOAT, [1, 1])]
    outs = [helper.make_tensor_value_info("co", TensorProto.BOOL, [])]
    outs += [helper.make_tensor_value_info("vo", TensorProto.FLOAT, [1, 1])]
    nodes = [helper.make_node("Identity", ["c"], ["co"]), helper.make_node("Identity", ["v"], ["vo"])]
    body = helper.make_graph(nodes, "body", infos, outs)
    true = helper.make_tensor("t", TensorProto.BOOL, [], [True])
    return scalar_network(path, [helper.make_node("Loop", ["", "t", "x"], ["y"], body=body)], [true])


def test_a_network_that_never_returns_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_engine, "MAX_FIRST_RUN_S", 0.2)
    said = refused(endless(tmp_path / "endless.onnx"), EngineTimeoutError)
    assert said.where.endswith("endless.onnx")
    assert said[1:3] == ("an answer within 0 s", "none")


def test_runs_end_with_the_program(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_engine, "MAX_FIRST_RUN_S", 3600.0)
    network, raised = endless(tmp_path / "endless.onnx"), []

    def opens():
        try:
            open_engine(network)
        except EngineError as error:
            raised.append(error)

    opening = threading.Thread(target=opens, daemon=True)
    opening.start()
    while opening.is_alive():  # it may not run yet
        RUN_WATCH.terminate_all()
        opening.join(0.05)
    assert isinstance(raised[0], EngineTimeoutError)


@pytest.mark.parametrize("where", ["open", "run"])
def test_a_runtime_that_itself_never_returns_is_left_alone(network, monkeypatch, where):
    """Within one operator nothing can be terminated; folding constants may be one, too."""
    gate, real = threading.Event(), onnxruntime.InferenceSession
    if where == "open":
        monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: gate.wait())
    else:
        monkeypatch.setattr(
            onnxruntime,
            "InferenceSession",
            lambda *given, **named: Deaf(real(*given, **named), gate),
        )
    monkeypatch.setattr(onnx_engine, "MAX_FIRST_RUN_S", 0.1)
    monkeypatch.setattr(onnx_engine, "_GRACE_S", 0.1)
    try:
        assert refused(network, EngineTimeoutError)[1:3] == ("an answer within 0 s", "none")
    finally:
        gate.set()


class Deaf:
    """A session whose runs wait, whatever their options say."""

    def __init__(self, session, gate):
        self._session, self._gate = session, gate

    def __getattr__(self, name):
        return getattr(self._session, name)

    def run(self, *given):
        self._gate.wait()
        return self._session.run(*given)


def test_while_the_program_is_stopped_no_run_is_late(monkeypatch):
    """SIGSTOP, a laptop that sleeps, `docker pause`."""
    now_s, looked = [0.0], threading.Semaphore(0)

    def sleep(_):
        now_s[0] += 1000.0
        looked.release()
        threading.Event().wait(0.001)

    monkeypatch.setattr(run_watch, "time", SimpleNamespace(monotonic=lambda: now_s[0], sleep=sleep))
    watch, options = RunWatch(), onnxruntime.RunOptions()
    with watch.bounded(options, 1.0):
        for _ in range(4):
            looked.acquire(timeout=10)
        assert not options.terminate
        for _ in range(10):
            looked.acquire(timeout=10)
        assert options.terminate


# Which runtime --------------------------------------------------------------------------------------


class FakeRuntime(SimpleNamespace):
    """ONNX Runtime with CUDA, or with what is left of it; runs on the CPU and tells what it was asked."""

    def __init__(self, *, built_for_cuda=True, cuda_works=True, tensorrt_works=True, errors=(0.0, 0.0)):
        super().__init__(
            SessionOptions=onnxruntime.SessionOptions,
            RunOptions=onnxruntime.RunOptions,
            __version__="1.20.0",
            threads=[],
            asked=[],
            preloaded=0,
        )
        self._built_for_cuda, self._cuda_works = built_for_cuda, cuda_works
        self.tensorrt_works = tensorrt_works
        self.errors = {"True": errors[0], "False": errors[1]}  # relative, of fp16 and of fp32

    def get_available_providers(self):
        on_gpu = ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
        return [*on_gpu * self._built_for_cuda, "CPUExecutionProvider"]

    def preload_dlls(self):
        self.preloaded += 1

    def InferenceSession(self, path, *, sess_options, providers, enable_fallback):  # noqa: N802 - its own name
        assert enable_fallback == 0  # with it, it prints and goes on without the provider
        self.asked.append(providers)
        if providers[0][0] == "TensorrtExecutionProvider" and not self.tensorrt_works:
            raise RuntimeError(
                "onnxruntime_pybind_state.cc:729 Please install TensorRT libraries as mentioned"
            )
        self.threads.append(sess_options.intra_op_num_threads)
        real = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        on_cuda = len(providers) > 1 and self._cuda_works
        on_tensorrt = providers[0][0] == "TensorrtExecutionProvider"
        error = self.errors[providers[0][1]["trt_fp16_enable"]] if on_tensorrt else 0.0
        found = ["TensorrtExecutionProvider"] * on_tensorrt + ["CUDAExecutionProvider"] * on_cuda

        def run(*given):
            with np.errstate(invalid="ignore"):  # 0 times infinity
                return [answer * np.float32(1 + error) for answer in real.run(*given)]

        return SimpleNamespace(
            run=run,
            get_inputs=real.get_inputs,
            get_outputs=real.get_outputs,
            get_providers=lambda: [*found, "CPUExecutionProvider"],
        )

    @property
    def tensorrt_asked(self):
        """The options that TensorRT was asked with, session by session."""
        return [given[0][1] for given in self.asked if given[0][0] == "TensorrtExecutionProvider"]


@pytest.fixture
def machine(monkeypatch):
    """A machine with a GPU, on which everything works."""
    monkeypatch.setattr(engine_choice, "find_cuda_device", lambda: GPU)
    monkeypatch.setattr(onnx_engine, "usable_cores", lambda limit: min(limit or 6, 6))
    return GPU


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr(onnx_engine, "LARGE_BYTES", 10)


@pytest.fixture
def cache(tmp_path):
    return {"cache_dir": tmp_path / "engines"}


def runtime(monkeypatch, **changes):
    fake = FakeRuntime(**changes)
    for module in (onnx_engine, tensorrt):
        monkeypatch.setattr(module, "load_onnxruntime", lambda: fake)
    return fake


def test_small_networks_stay_on_the_cpu_on_one_thread(opened, machine, monkeypatch, said):
    fake = runtime(monkeypatch)
    for settings in ({}, {"engine": "onnx"}, {"device": "cpu"}):
        assert opened(**settings).device == "CPU"
    assert fake.threads == [1, 1, 1]
    assert said == []
    assert fake.tensorrt_asked == []


@pytest.mark.usefixtures("large", "machine")
def test_large_ones_go_to_tensorrt_in_half_precision(opened, monkeypatch, said, cache):
    fake = runtime(monkeypatch)
    took = opened(**cache)
    assert took.device == "NVIDIA H100 (ONNX Runtime, TensorRT)"
    np.testing.assert_array_equal(took.run(ones()), [[3, 4]] * 3)
    assert {options["trt_fp16_enable"] for options in fake.tensorrt_asked} == {"True"}
    assert {options["trt_engine_cache_path"] for options in fake.tensorrt_asked} == {str(cache["cache_dir"])}
    assert said == ["sum.onnx: trying TensorRT on NVIDIA H100; a build takes minutes, once ..."]
    assert not any("trt_profile_opt_shapes" in options for options in fake.tensorrt_asked)
    opened(**cache)  # at a later start it is known
    assert len(said) == 1


@pytest.mark.usefixtures("large", "machine")
def test_half_precision_that_is_too_far_off_gives_way_to_single(opened, monkeypatch, cache):
    fake = runtime(monkeypatch, errors=(0.02, 0.001))
    opened(**cache)
    assert [options["trt_fp16_enable"] for options in fake.tensorrt_asked] == ["True", "False", "False"]
    opened(**cache)
    assert fake.tensorrt_asked[-1]["trt_fp16_enable"] == "False"
    assert len(fake.tensorrt_asked) == 4


@pytest.mark.usefixtures("large", "machine")
@pytest.mark.parametrize("errors", [(0.02, 0.02), (float("nan"), float("inf"))])
def test_answers_that_are_too_far_off_are_left_to_cuda_with_one_line(
    opened, monkeypatch, said, cache, errors
):
    fake = runtime(monkeypatch, errors=errors)
    for _ in range(2):
        assert opened(**cache).device == "NVIDIA H100 (ONNX Runtime)"
        assert "expected answers within 0.01 of the CPU's" in said[-1]
        assert "; --engine onnx does without it" in said[-1]
    assert len(fake.tensorrt_asked) == 2  # tried out once


@pytest.mark.usefixtures("large", "machine")
def test_a_cache_that_is_damaged_is_made_anew(opened, monkeypatch, said, cache):
    runtime(monkeypatch)
    opened(**cache)
    (kept,) = cache["cache_dir"].glob("sum-*.json")
    kept.write_text("{")
    opened(**cache)
    assert len(said) == 2
    assert json.loads(kept.read_text())["precision"] == "fp16"


@pytest.mark.usefixtures("large", "machine")
def test_free_axes_are_built_for_half_to_twice_their_length(tmp_path, monkeypatch, cache, said):
    fake = runtime(monkeypatch)
    free = NetworkSpec(
        model=written(tmp_path / "free.onnx", free=True),
        inputs={"left": (3, 2), "right": (1, 2)},
        output="out",
        output_shape=(3, 2),
    )
    open_engine(free, EngineSettings(**cache), say=said.append)
    options = fake.tensorrt_asked[-1]
    shapes = [options[f"trt_profile_{end}_shapes"] for end in ("min", "opt", "max")]
    assert shapes == ["left:2x2", "left:3x2", "left:6x2"]


@pytest.mark.usefixtures("large", "machine")
def test_without_tensorrt_s_libraries_cuda_takes_it_and_one_line_says_so(opened, monkeypatch, said, cache):
    fake = runtime(monkeypatch, tensorrt_works=False)
    took = opened(**cache)
    assert took.device == "NVIDIA H100 (ONNX Runtime)"
    np.testing.assert_array_equal(took.run(ones()), [[3, 4]] * 3)
    assert said[-1].startswith("sum.onnx runs on NVIDIA H100 (ONNX Runtime): ONNX Runtime 1.20.0: expected")
    assert said[-1].endswith("; pip install tensorrt")
    assert fake.asked[-1] == [
        ("CUDAExecutionProvider", {"cudnn_conv_algo_search": "HEURISTIC"}),
        "CPUExecutionProvider",
    ]
    assert fake.preloaded > 0


@pytest.mark.usefixtures("large", "machine")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"built_for_cuda": False}, "expected a build for CUDA, got one without"),
        ({"cuda_works": False}, "expected CUDA and cuDNN as it was built for, got others or none"),
    ],
)
def test_where_neither_can_the_cpu_does_on_all_cores(opened, monkeypatch, said, changes, reason):
    fake = runtime(monkeypatch, **changes)
    assert opened(engine="onnx").device == "CPU"
    assert fake.threads[-1] == 6
    (line,) = said
    assert line.startswith("sum.onnx runs on CPU: ONNX Runtime 1.20.0: ")
    assert reason in line
    with pytest.raises(EngineUnavailableError, match=f"{reason}.*; pip "):
        opened(engine="onnx", device="cuda")


@pytest.mark.usefixtures("large")
def test_without_a_gpu_one_line_says_that_it_is_slow(opened, monkeypatch, said):
    monkeypatch.setattr(engine_choice, "find_cuda_device", lambda: None)
    assert opened().device == "CPU"
    assert said == ["sum.onnx runs on the CPU, where it is slow: there is no CUDA device"]
    opened(device="cpu")
    assert len(said) == 1


def test_what_was_asked_for_is_used_for_small_ones_too(opened, machine, monkeypatch, cache):
    runtime(monkeypatch)
    assert opened(engine="onnx", device="cuda").device == "NVIDIA H100 (ONNX Runtime)"
    assert opened(engine="tensorrt", **cache).device == "NVIDIA H100 (ONNX Runtime, TensorRT)"
    assert opened(device="cuda", **cache).device == "NVIDIA H100 (ONNX Runtime, TensorRT)"


@pytest.mark.parametrize("settings", [{"engine": "tensorrt"}, {"device": "cuda"}])
def test_a_gpu_that_was_asked_for_must_be_there(opened, monkeypatch, settings):
    monkeypatch.setattr(engine_choice, "find_cuda_device", lambda: None)
    with pytest.raises(EngineUnavailableError, match="expected a CUDA device, got none; check nvidia-smi"):
        opened(**settings)


def test_tensorrt_that_was_asked_for_is_not_replaced(opened, machine, monkeypatch, said, cache):
    runtime(monkeypatch, tensorrt_works=False)
    with pytest.raises(EngineUnavailableError, match="expected TensorRT's libraries"):
        opened(engine="tensorrt", **cache)
    assert not any("runs on" in line for line in said)


def test_tensorrt_on_the_cpu_is_refused():
    with pytest.raises(
        InputError, match="--engine tensorrt: expected --device auto or cuda beside it, got cpu"
    ):
        EngineSettings(engine="tensorrt", device="cpu")


def test_devices_are_described_where_they_are_not_all_the_cpu(network):
    cpu, gpu = OnnxEngine(network), SimpleNamespace(device="NVIDIA H100 (ONNX Runtime, TensorRT)")
    assert describe_devices({"motion": cpu, "condition": cpu}) == ""
    assert (
        describe_devices({"features": gpu, "motion": gpu, "condition": cpu})
        == "features and motion on NVIDIA H100 (ONNX Runtime, TensorRT), condition on CPU"
    )


def test_the_tiny_bundle_is_small(tmp_path):
    model = tmp_path / "motion.onnx"
    model.write_bytes(bundle_factory.tiny_parts().motion_onnx)
    spec = NetworkSpec(model=model, inputs={}, output="", output_shape=())
    assert not spec.is_large
    with model.open("r+b") as file:
        file.truncate(onnx_engine.LARGE_BYTES + 1)
    assert spec.is_large


@pytest.mark.usefixtures("large", "machine")
def test_a_large_network_has_no_more_cores_than_are_counted_on(opened, monkeypatch):
    fake = runtime(monkeypatch)
    opened(device="cpu", cores=2)
    opened(device="cpu", cores=0)
    monkeypatch.setattr(engine_choice, "find_cuda_device", lambda: None)
    opened(cores=3)
    assert fake.threads == [2, 6, 3]
