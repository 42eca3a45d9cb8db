import datetime
import socket
import sys
from dataclasses import replace
from importlib import metadata
from types import SimpleNamespace

import bundle_factory
import feature_bundle
import plate_factory
import pytest
import stand_ins
from cryptography.hazmat.primitives import serialization
from fake_portaudio import WEBCAM, FakePortAudio
from stand_in_gpu import StandInRenderer

from cuda_kernels import cuda_raymarcher
from cuda_kernels.cuda_module import CudaUnavailableError
from export.bundle.writer import put_plates
from models.plates import PlateFiles
from models.speaker_settings import read_settings
from streaming import check
from streaming.check import CheckResult, exit_code, run_checks, table
from streaming.errors import InputError
from streaming.pipeline import compute_settings, engine_choice, gpu_renderer, loaded_speaker, networks
from streaming.pipeline.cuda_device import CudaDevice
from streaming.pipeline.onnx_engine import EngineUnavailableError
from streaming.server import tls
from streaming.settings import StreamSettings
from streaming.webrtc import opus


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """A machine on which everything works."""
    bundle_factory.write_tiny_bundle(tmp_path / "Tiny", image_size_px=128)
    for module in (check, compute_settings):
        monkeypatch.setattr(module, "usable_cores", lambda limit=0: min(limit or 2, 2))
    monkeypatch.setattr(check, "free_memory_bytes", lambda: 3 << 30)
    monkeypatch.setattr(check, "find_cuda_device", lambda: None)
    monkeypatch.setattr(gpu_renderer, "find_cuda_device", lambda: None)
    monkeypatch.setitem(sys.modules, "sounddevice", FakePortAudio(WEBCAM, default=0))
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    return StreamSettings(speaker="Tiny", speakers_dir=tmp_path, port=0)


class SteadyClock:
    """Every look at it is a millisecond later."""

    def __init__(self, step_ms=1.0):
        self._step_s, self._time_s = step_ms / 1000, 0.0

    def now_s(self):
        self._time_s += self._step_s
        return self._time_s

    def thread_s(self):  # all that passes is work
        return self._time_s

    process_s = thread_s


def results_of(settings, **options):
    clock = options.pop("clock", SteadyClock())
    open_raymarcher = options.pop("open_raymarcher", stand_ins.open_raymarcher)
    found = run_checks(settings, clock=clock, cpu=clock, open_raymarcher=open_raymarcher)
    return {result.name: result for result in found}


def test_a_machine_where_everything_works_has_no_complaint(settings):
    found = results_of(settings)
    assert {name: result.status for name, result in found.items()} == dict.fromkeys(found, "ok")
    assert len(found) == 18
    assert not any(result.way_out for result in found.values())
    assert all("\n" not in result.detail for result in found.values())
    assert exit_code(list(found.values())) == 0
    assert found["python"].detail.startswith(f"Python {sys.version_info.major}.")
    assert "numpy 2" in found["python"].detail
    assert "pytest" not in found["python"].detail
    assert found["speaker"].detail.startswith("Tiny, 128 x 128, ")
    assert found["frame"].detail.startswith("drawn at 128 px in 1 ms, all else ")
    assert found["microphone"].detail == "0: Webcam, ALSA"
    assert found["preview"].detail.endswith("on dummy")


def test_a_check_that_breaks_is_one_line_and_the_others_go_on(settings, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(check, "H264VideoEncoder", broken)
    found = results_of(settings)
    assert found["video H.264"].status == "fail"
    assert found["video H.264"].detail == "RuntimeError: two lines"
    assert found["video VP8"].status == "ok"
    assert exit_code(list(found.values())) == 1


def test_without_the_speaker_what_needs_it_is_not_tried(settings):
    found = results_of(replace(settings, speaker="Nobody"))
    assert found["speaker"].status == "fail"
    assert 'got "Nobody"' in found["speaker"].detail
    assert found["speaker"].way_out.startswith("put a bundle into ")
    for name in ("plates", "networks", "kernels", "frame"):
        assert (found[name].status, found[name].detail) == ("warn", "not tried: it needs the speaker")
    assert found["port"].status == "ok"


def test_without_kernels_no_frame_is_tried(settings, monkeypatch):
    def broken(*_, **__):
        raise InputError("kernels: no compiler; install one")

    found = results_of(settings, open_raymarcher=broken)
    assert (found["kernels"].detail, found["kernels"].way_out) == ("kernels: no compiler", "install one")
    assert found["frame"].detail == "not tried: it needs the networks and the kernels"


def test_kernels_that_had_to_be_compiled_say_so(settings, monkeypatch):
    slow = stand_ins.StandInRaymarcher()
    slow.warm_up = lambda: 31.0
    expected = "CPU, 2 threads: compiled, the next start is quick: ready in 31.0 s"
    found = results_of(settings, open_raymarcher=lambda speaker, threads: slow)
    assert found["kernels"].detail == expected


def test_the_raymarcher_is_closed_at_the_end(settings, monkeypatch):
    closed = []
    raymarcher = stand_ins.StandInRaymarcher()
    raymarcher.close = lambda: closed.append(True)
    results_of(settings, open_raymarcher=lambda speaker, threads: raymarcher)
    assert closed == [True]


def test_a_slow_frame_is_a_warning(settings):
    found = results_of(replace(settings, render_size=96, threads=1), clock=SteadyClock(60.0))
    assert found["frame"].status == "warn"
    assert found["frame"].detail.startswith("drawn at 96 px in 60 ms")
    assert exit_code(list(found.values())) == 0


def test_few_cores_and_little_memory_are_warnings(settings, monkeypatch):
    for module in (check, compute_settings):
        monkeypatch.setattr(module, "usable_cores", lambda limit=0: 1)
    monkeypatch.setattr(check, "free_memory_bytes", lambda: 700 << 20)
    found = results_of(settings)
    assert (found["cores"].status, found["cores"].detail) == (
        "warn",
        "1 usable, 1 thread where the CPU draws",
    )
    assert (found["memory"].status, found["memory"].detail) == ("warn", "0.7 GiB free")


def test_a_package_that_is_missing_is_named(settings, monkeypatch):
    version = metadata.version

    def some(name):
        if name == "aiortc":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", some)
    monkeypatch.setattr(
        metadata, "requires", lambda name: ["aiortc<2,>=1.16", "av>=18", 'torch; extra == "t"']
    )
    found = results_of(settings)["python"]
    assert (found.status, found.detail, found.way_out) == (
        "fail",
        "not installed: aiortc",
        "pip install aiortc",
    )


def test_onnx_runtime_for_the_gpu_is_onnx_runtime(settings, monkeypatch):
    version = metadata.version
    there = {"onnxruntime-gpu": "1.20.0"}

    def swapped(name):
        if name == "onnxruntime":
            raise metadata.PackageNotFoundError(name)
        return there.get(name) or version(name)

    monkeypatch.setattr(metadata, "version", swapped)
    found = results_of(settings)["python"]
    assert found.status == "ok"
    assert "onnxruntime-gpu 1.20.0" in found.detail


def test_a_python_that_is_too_old_is_a_failure(settings, monkeypatch):
    monkeypatch.setattr(check, "OLDEST_PYTHON", (4, 0))
    found = results_of(settings)["python"]
    assert found.status == "fail"
    assert found.detail.endswith("expected 4.0 or newer")


def test_opus_without_its_library_is_a_failure(settings, monkeypatch):
    monkeypatch.setattr(opus, "_libopus_paths", list)
    monkeypatch.setattr(opus, "load_libopus", opus.load_libopus.__wrapped__)
    found = results_of(settings)["sound Opus"]
    assert found.status == "fail"
    assert "libopus0" in found.way_out


# The GPU --------------------------------------------------------------------------------------------


@pytest.fixture
def drawing_gpu(settings, monkeypatch):
    """A GPU that a stand-in plays."""
    renderer = StandInRenderer(condition_size=read_settings(settings.speakers_dir / "Tiny").condition.size)
    for module in (check, gpu_renderer):
        monkeypatch.setattr(module, "find_cuda_device", lambda: GPU)
    monkeypatch.setattr(cuda_raymarcher, "CudaRenderer", lambda: renderer)
    return renderer


def test_a_gpu_that_draws_is_said(settings, drawing_gpu):
    found = results_of(settings)
    assert found["gpu"].status == found["kernels"].status == found["frame"].status == "ok"
    assert found["gpu"].detail == "NVIDIA H100, compute 9.0: draws, and runs large networks"
    assert found["kernels"].detail.startswith("NVIDIA H100: ready in ")
    assert found["frame"].detail.startswith("drawn at 128 px in 1.0 ms, all else ")
    assert drawing_gpu.closed == 1


def test_a_gpu_that_is_not_wanted_is_not_opened(settings, drawing_gpu):
    found = results_of(replace(settings, device="cpu"))
    assert found["gpu"].detail == "NVIDIA H100, compute 9.0: not used, as --device cpu says"
    assert found["kernels"].detail.startswith("CPU, 2 threads: ")
    assert drawing_gpu.batches == []


def test_a_gpu_that_cannot_draw_says_the_way_out(settings, drawing_gpu, monkeypatch):
    def refuse():
        raise CudaUnavailableError("cuda.bindings.driver: expected to be installed; install the extra")

    monkeypatch.setattr(cuda_raymarcher, "CudaRenderer", refuse)
    found = results_of(settings)
    assert (found["gpu"].status, found["gpu"].way_out) == ("warn", "install the extra")
    assert found["gpu"].detail == (
        "NVIDIA H100, compute 9.0: the CPU draws, not NVIDIA H100: "
        "cuda.bindings.driver: expected to be installed"
    )
    assert found["frame"].status == "ok"
    wanted = results_of(replace(settings, device="cuda"))
    assert (wanted["gpu"].status, wanted["gpu"].way_out) == ("fail", "install the extra")
    assert wanted["gpu"].detail.startswith("--device cuda: cuda.bindings.driver: ")


def test_a_gpu_that_was_asked_for_and_is_not_there_is_a_failure(settings):
    found = results_of(replace(settings, device="cuda"))
    assert (found["gpu"].status, found["gpu"].detail) == (
        "fail",
        "--device cuda: expected a CUDA device, got none",
    )
    assert found["gpu"].way_out == "check nvidia-smi, or leave --device out"


# The engines ----------------------------------------------------------------------------------------

GPU = CudaDevice(name="NVIDIA H100", capability=(9, 0))


def with_engines(monkeypatch, *, gpu, tensorrt=None, providers=("CPUExecutionProvider",)):
    """A machine with these engines on it."""
    version = metadata.version

    def versions(name):
        if name != "tensorrt":
            return version(name)
        if tensorrt is None:
            raise metadata.PackageNotFoundError(name)
        return tensorrt

    runtime = SimpleNamespace(__version__="1.20.0", get_available_providers=lambda: [*providers])
    monkeypatch.setattr(metadata, "version", versions)
    monkeypatch.setattr(check, "load_onnxruntime", lambda: runtime)
    monkeypatch.setattr(check, "find_cuda_device", lambda: gpu)


CUDA = ("CUDAExecutionProvider", "CPUExecutionProvider")


@pytest.mark.parametrize(
    ("machine", "status", "detail"),
    [
        ({"gpu": None}, "ok", "ONNX Runtime 1.20.0 (CPU), no tensorrt"),
        (
            {"gpu": GPU, "providers": CUDA, "tensorrt": "10.9.0"},
            "ok",
            "ONNX Runtime 1.20.0 (CUDA, CPU), tensorrt 10.9.0",
        ),
        ({"gpu": GPU, "providers": CUDA}, "ok", "ONNX Runtime 1.20.0 (CUDA, CPU), no tensorrt"),
        (
            {"gpu": GPU},
            "warn",
            "ONNX Runtime 1.20.0 (CPU), no tensorrt: the GPU cannot run the networks",
        ),
    ],
)
def test_the_runtimes_of_the_networks_are_named(settings, monkeypatch, machine, status, detail):
    with_engines(monkeypatch, **machine)
    found = results_of(settings)
    assert (found["engines"].status, found["engines"].detail) == (status, detail)
    assert ("pip install onnxruntime-gpu" in found["engines"].way_out) == (status == "warn")
    expected = "NVIDIA H100, compute 9.0" if machine["gpu"] else "no CUDA device"
    assert found["gpu"].detail.startswith(expected)


def test_an_engine_that_was_asked_for_and_is_not_there_is_a_failure(settings, monkeypatch):
    monkeypatch.setattr(engine_choice, "find_cuda_device", lambda: None)
    found = results_of(replace(settings, engine="tensorrt"))
    assert (found["networks"].status, found["networks"].detail) == (
        "fail",
        "expected a CUDA device, got none",
    )
    assert found["frame"].detail == "not tried: it needs the networks and the kernels"


def test_the_networks_are_timed_and_placed(settings, monkeypatch):
    found = results_of(settings)["networks"]
    assert found.detail == "motion takes 1.0 ms a frame; all on the CPU"
    slow = results_of(settings, clock=SteadyClock(60.0))["networks"]
    assert (slow.status, slow.detail) == (
        "warn",
        "motion takes 60.0 ms a frame; all on the CPU: too slow for live use",
    )
    monkeypatch.setattr(networks.SpeakerNetworks, "describe", lambda self: "features on NVIDIA H100")
    assert results_of(settings)["networks"].detail.endswith("; features on NVIDIA H100")


def test_features_and_motion_are_counted_by_the_frame(settings, tmp_path):
    feature_bundle.write_feature_bundle(tmp_path / "Imported", hop_frames=4)
    found = results_of(replace(settings, speaker="Imported"), clock=SteadyClock(40.0))["networks"]
    # 40 ms a hop of four frames
    assert (found.status, found.detail) == ("ok", "features and motion take 10.0 ms a frame; all on the CPU")


def test_a_check_that_takes_long_is_named_while_it_runs(settings, monkeypatch):
    def building(speaker, engine_settings, *, say, shared):
        say(f"building for {speaker.name} with {engine_settings.engine}")
        raise EngineUnavailableError("no engine; --engine onnx does without it")

    monkeypatch.setattr(loaded_speaker, "open_networks", building)
    said = []
    found = {result.name: result for result in run_checks(settings, clock=SteadyClock(), say=said.append)}
    assert said == ["building for Tiny with auto"]
    assert (found["networks"].detail, found["networks"].way_out) == (
        "no engine",
        "--engine onnx does without it",
    )


# The network ----------------------------------------------------------------------------------------


def test_a_port_in_use_is_a_failure(settings):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        port = other.getsockname()[1]
        found = results_of(replace(settings, port=port))["port"]
    assert (found.status, found.way_out) == ("fail", "give another with --port")
    assert found.detail.startswith(f"127.0.0.1:{port}: ")
    assert results_of(replace(settings, port=port))["port"].status == "ok"


def test_a_host_that_is_none_is_a_failure(settings, monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    found = results_of(settings)["port"]
    assert (found.status, found.way_out) == ("fail", "give another with --host")


def test_udp_ports_are_tried_one_by_one(settings):
    with socket.socket(type=socket.SOCK_DGRAM) as other:
        other.bind(("0.0.0.0", 0))
        taken = other.getsockname()[1]
        taken_only = results_of(replace(settings, udp_port_range=(taken, taken)))["UDP ports"]
    assert taken_only.status == "fail"
    assert taken_only.detail.startswith(f"0 of 1 tried in {taken}-{taken} are free: ")
    assert taken_only.way_out == "give other ports with --udp-port-range"
    assert results_of(replace(settings, udp_port_range=(taken, taken)))["UDP ports"].status == "ok"


# TLS ------------------------------------------------------------------------------------------------


def certificate_files(folder, begins):
    certificate, key_pem = tls.make_self_signed(["avatar.example"], now=begins)
    cert, key = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(key_pem)
    return {"tls_cert": cert, "tls_key": key}


@pytest.mark.parametrize(
    ("age_days", "status", "said"),
    [
        (1, "ok", "28 days from now"),
        (20, "warn", "9 days from now"),
        (40, "fail", "expired on "),
        (-5, "fail", "valid only from "),
    ],
)
def test_a_certificate_is_judged_by_its_time(settings, tmp_path, age_days, status, said):
    begins = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=age_days)
    found = results_of(replace(settings, **certificate_files(tmp_path, begins)))["TLS"]
    assert found.status == status
    assert said in found.detail


def test_certificate_files_that_cannot_be_used_are_a_failure(settings, tmp_path):
    files = certificate_files(tmp_path, datetime.datetime.now(datetime.UTC))
    files["tls_key"].unlink()
    found = results_of(replace(settings, **files))["TLS"]
    assert found.status == "fail"
    assert found.detail.startswith("--tls-key: ")
    assert found.way_out == "give both in PEM form, or --tls-self-signed"


def test_without_tls_only_this_machine_s_browsers_are_served(settings):
    assert "browsers on this machine" in results_of(settings)["TLS"].detail
    assert results_of(replace(settings, tls_self_signed=True))["TLS"].detail.startswith("self-signed")


# Local use ------------------------------------------------------------------------------------------


def test_what_only_local_use_needs_is_a_warning(settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    monkeypatch.setitem(sys.modules, "pygame", None)
    found = results_of(settings)
    assert found["microphone"].status == found["preview"].status == "warn"
    assert found["microphone"].detail == "the package sounddevice is not installed (only --mic needs it)"
    assert found["preview"].way_out == "pip install -e '.[preview]'"
    monkeypatch.setitem(sys.modules, "sounddevice", FakePortAudio())
    assert results_of(settings)["microphone"].detail == "none on this machine; only --mic needs one"


def test_several_microphones_are_counted(settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", FakePortAudio(WEBCAM, WEBCAM, WEBCAM, default=1))
    assert results_of(settings)["microphone"].detail == "1: Webcam, ALSA, and 2 more (--list-devices)"


# The table ------------------------------------------------------------------------------------------

THREE = [
    CheckResult(name="cores", status="ok", detail="2 usable"),
    CheckResult(name="frame", status="warn", detail="slow", way_out="draw smaller"),
    CheckResult(name="TLS", status="fail", detail="expired", way_out="renew it"),
]


def test_the_table_is_aligned_and_says_the_way_out():
    assert table(THREE, colour=False).splitlines() == [
        "ok    cores  2 usable",
        "warn  frame  slow",
        "             -> draw smaller",
        "fail  TLS    expired",
        "             -> renew it",
    ]
    assert table([], colour=False) == ""


def test_colour_is_for_terminals_that_want_it(monkeypatch):
    assert "\033[" not in table(THREE)
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: True))
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\033[31mfail\033[0m  TLS    expired" in table(THREE)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033[" not in table(THREE)


def test_only_a_failure_fails():
    assert exit_code(THREE) == 1
    assert exit_code(THREE[:2]) == 0


def test_cores_that_are_not_counted_on_are_said(settings):
    assert results_of(settings)["cores"].detail == "2 usable, 2 threads where the CPU draws"
    found = results_of(replace(settings, cores=1))["cores"]
    assert found.detail == "1 of 2 counted on, 1 thread where the CPU draws"


def test_a_busy_machine_is_no_slow_frame(settings):
    class Busy(SteadyClock):
        """Of the time that passes, an eighth is work."""

        def thread_s(self):
            return self._time_s / 8

        process_s = thread_s

    found = results_of(replace(settings, render_size=96, threads=1), clock=Busy(60.0))
    assert found["frame"].status == "ok"
    assert found["frame"].detail.startswith("drawn at 96 px in 8 ms")
    assert found["networks"].status == "ok"


def test_plates_are_read_and_said_to_be_there(settings):
    plate_factory.write_plated_bundle(settings.speakers_dir / "Plated", name="Plated", image_size_px=128)
    plated = replace(settings, speaker="Plated")
    found = results_of(plated)
    assert (found["plates"].status, found["frame"].status) == ("ok", "ok")
    assert found["plates"].detail == "50, 1 MB in memory: 2 % of each picture is drawn"
    assert results_of(replace(plated, plates_mb=0))["plates"].detail == "not used, as --plates-mb 0 says"
    assert results_of(settings)["plates"].detail.startswith("none in the bundle")


def test_plates_for_which_there_is_no_room_or_that_cannot_be_read_are_a_warning(settings):
    folder = settings.speakers_dir / "Plated"
    plate_factory.write_plated_bundle(folder, name="Plated", image_size_px=512)
    plated = replace(settings, speaker="Plated", plates_mb=3)
    found = results_of(plated)["plates"]
    assert (found.status, found.detail) == (
        "warn",
        "Plated is drawn without plates: expected at most 3 MB, got 20",
    )
    assert "--plates-mb" in found.way_out
    fewer = plate_factory.video(plate_factory.pictures(512, 49))
    put_plates(folder, replace(plate_factory.plate_parts(512), video=fewer))
    found = results_of(replace(plated, plates_mb=None))
    assert (found["speaker"].status, found["plates"].status) == ("ok", "warn")
    assert found["plates"].detail.endswith("frames: expected 50, one for each pose, got 49")
    assert found["plates"].way_out == "make them anew with `geneface-export plates`"
    assert found["frame"].status == "ok"


@pytest.mark.parametrize("failure", [MemoryError(), ZeroDivisionError("by nought")])
def test_plates_whose_reading_fails_are_a_warning_with_a_way_out(settings, monkeypatch, failure):
    def fails(*given, **more):
        raise failure

    plate_factory.write_plated_bundle(settings.speakers_dir / "Plated", name="Plated", image_size_px=128)
    monkeypatch.setattr(PlateFiles, "pictures", fails)
    found = results_of(replace(settings, speaker="Plated"))["plates"]
    assert found.status == "warn"
    assert found.detail.startswith("Plated is drawn without plates: ")
    assert found.way_out
