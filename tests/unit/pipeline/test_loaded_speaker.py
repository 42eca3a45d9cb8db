"""A speaker made ready: what is drawn at first, what it costs, and what is shared."""

from __future__ import annotations

import dataclasses
import threading
from types import SimpleNamespace

import bundle_factory
import feature_bundle
import numpy as np
import plate_files
import pytest
import stand_ins
from patience import PATIENCE_S
from stand_in_gpu import StandInRenderer

from cuda_kernels.cuda_module import CudaError, CudaUnavailableError
from cuda_kernels.folding import SceneError
from models.bundle_files import BundleError
from models.plates import PlateError
from models.speaker import load_speaker
from models.speaker_folders import UnknownSpeakerError, find_speaker
from models.speaker_settings import read_settings
from streaming.errors import InputError
from streaming.pipeline import compute_settings, loaded_speaker
from streaming.pipeline.compute_settings import ComputeSettings
from streaming.pipeline.gpu_batching import MAX_FRAMES
from streaming.pipeline.gpu_renderer import GpuRenderer
from streaming.pipeline.loaded_speaker import LoadedSpeaker, SpeakerOpening
from streaming.pipeline.networks import SharedFeatures, SpeakerNetworks
from streaming.pipeline.plates import PlateMemory
from streaming.pipeline.render_size import FrameCost
from streaming.pipeline.renderers import choose_raymarcher
from streaming.session.playout_delay import playout_delay_ticks_for
from streaming.webrtc.media_schedule import MAX_PLAYOUT_DELAY_TICKS, MIN_PLAYOUT_DELAY_TICKS

OTHER_MS = 3.0


@pytest.fixture(scope="module")
def speakers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speakers")
    for name, size_px in (("Tiny", 512), ("Small", 128), ("Smallest", 64)):
        bundle_factory.write_tiny_bundle(folder / name, name=name, image_size_px=size_px)
    return folder


@pytest.fixture
def raymarchers():
    """The raymarchers that were opened, with their threads; called, it opens one."""
    return Raymarchers()


class Raymarchers(list):
    """Opens stand-ins and keeps them."""

    def __call__(self, speaker, *, threads):
        self.append(stand_ins.StandInRaymarcher())
        self[-1].threads = threads
        return self[-1]


def load(speakers, name, raymarchers, *, gpu=None, shared=None, say=pytest.fail, **compute):
    return LoadedSpeaker.open(
        find_speaker(name, speakers_dir=speakers),
        compute=ComputeSettings(**compute),
        open_raymarcher=raymarchers,
        gpu=gpu,
        shared=shared,
        say=say,
    )


class Machine:
    """Stands for the meter: takes `ns_per_pixel`, and what it is told at single looks."""

    def __init__(self, ns_per_pixel, *, motion_ms=1.0, burst_ms=0.0):
        self.ns_per_pixel = ns_per_pixel
        self.motion_ms, self.burst_ms = motion_ms, burst_ms
        self.looked: list[int] = []
        self.busy_looks: dict[int, float] = {}

    def __call__(self, speaker, networks, make_renderer, **_):
        return self

    def measure(self, size_px):
        busy = self.busy_looks.get(len(self.looked), 1.0)
        self.looked.append(size_px)
        return FrameCost(
            render_ms=busy * self.ns_per_pixel * size_px**2 / 1e6, other_ms=OTHER_MS, burst_ms=self.burst_ms
        )


def opened_on(monkeypatch, machine, speakers, raymarchers, *, name="Tiny", **compute):
    monkeypatch.setattr(loaded_speaker, "FrameCostMeter", machine)
    monkeypatch.setattr(compute_settings, "usable_cores", lambda _: 2)
    return load(speakers, name, raymarchers, **compute)


def test_a_quick_machine_draws_at_full_size(monkeypatch, speakers, raymarchers):
    host = opened_on(monkeypatch, Machine(1), speakers, raymarchers)
    assert host.start_px == 512
    assert host.name == "Tiny"
    assert host.sizes_px[0] == 512
    assert list(host.sizes_px) == sorted(host.sizes_px, reverse=True)
    assert [raymarcher.threads for raymarcher in raymarchers] == [2]


@pytest.mark.parametrize("ns_per_pixel", [1, 100, 300, 600, 1000, 5000])
def test_the_start_leaves_room_for_webrtc_and_the_smallest_is_known(
    monkeypatch, speakers, raymarchers, ns_per_pixel
):
    host = opened_on(monkeypatch, Machine(ns_per_pixel), speakers, raymarchers)
    assert host.start_px in host.sizes_px
    assert {host.start_px, host.sizes_px[-1]} <= set(host.costs)
    if host.start_px > host.sizes_px[-1]:
        assert host.costs[host.start_px].frame_ms(threads=2, cores=2) <= 0.6 * 40


def test_a_size_that_was_asked_for_is_the_only_one(monkeypatch, speakers, raymarchers):
    machine = Machine(5000)
    host = opened_on(monkeypatch, machine, speakers, raymarchers, render_px=160)
    assert (host.sizes_px, host.start_px) == ((160,), 160)
    assert set(machine.looked) == {160}


@pytest.mark.parametrize(("name", "size_px"), [("Small", 128), ("Smallest", 64)])
def test_small_pictures_are_drawn_at_their_own_size(monkeypatch, speakers, raymarchers, name, size_px):
    host = opened_on(monkeypatch, Machine(1), speakers, raymarchers, name=name)
    assert (host.sizes_px, host.start_px) == ((size_px,), size_px)


def test_a_busy_moment_is_not_what_a_frame_costs(monkeypatch, speakers, raymarchers):
    quiet = opened_on(monkeypatch, Machine(100), speakers, raymarchers)
    for look in range(6):
        machine = Machine(100)
        machine.busy_looks = {look: 3.0}
        host = opened_on(monkeypatch, machine, speakers, raymarchers)
        assert host.costs[host.start_px] == quiet.costs[quiet.start_px], look
        assert host.frame_latency_ms == quiet.frame_latency_ms


@pytest.mark.parametrize(
    ("ns_per_pixel", "ticks"), [(1, MIN_PLAYOUT_DELAY_TICKS), (9000, MAX_PLAYOUT_DELAY_TICKS)]
)
def test_the_allowance_follows_the_stages_of_the_first_size(
    monkeypatch, speakers, raymarchers, ns_per_pixel, ticks
):
    host = opened_on(monkeypatch, Machine(ns_per_pixel), speakers, raymarchers)
    assert host.frame_latency_ms == host.costs[host.start_px].render_ms + OTHER_MS
    assert playout_delay_ticks_for(host.frame_latency_ms) == ticks


def test_frames_that_come_at_once_are_allowed_to_wait_for_one_another(monkeypatch, speakers, raymarchers):
    host = opened_on(monkeypatch, Machine(1, burst_ms=60.0), speakers, raymarchers)
    cost = host.costs[host.start_px]
    assert host.frame_latency_ms == cost.render_ms + OTHER_MS + 60.0
    assert host.core_ms(host.start_px) == pytest.approx(2 * cost.render_ms + OTHER_MS)  # they cost no more


def test_networks_that_do_not_keep_up_are_refused_before_anything_is_drawn(
    monkeypatch, speakers, raymarchers
):
    machine = Machine(1, motion_ms=312.4)
    with pytest.raises(InputError) as refusal:
        opened_on(monkeypatch, machine, speakers, raymarchers)
    assert str(refusal.value) == (
        "Tiny: expected motion networks that take at most 24 ms a frame, to speak live, got 312 ms here "
        "(CPU); use an NVIDIA GPU with --device cuda, or make a causal student of it with "
        "`geneface-export distil`"
    )
    assert machine.looked == []
    assert raymarchers[0].closed
    opened_on(monkeypatch, Machine(1, motion_ms=23.9), speakers, raymarchers).close()


@pytest.mark.parametrize(("device", "limit_ms"), [("CPU", 12), ("A GPU (ONNX Runtime)", 24)])
def test_features_on_the_cpu_leave_half_of_the_time_to_what_draws(device, limit_ms):
    small = SimpleNamespace(device="CPU")
    opening = SpeakerOpening(None, ComputeSettings())
    opening._networks = SpeakerNetworks(
        motion=small, condition=small, features=SimpleNamespace(device=device)
    )
    assert opening.motion_limit_ms == pytest.approx(limit_ms)
    opening._networks = SpeakerNetworks(motion=small, condition=small)
    assert opening.motion_limit_ms == pytest.approx(24)


def test_hosts_that_hear_the_same_features_share_the_network(speakers, raymarchers):
    for name in ("One", "Two"):
        feature_bundle.write_feature_bundle(speakers / name, name=name, image_size_px=64)
    shared = SharedFeatures()
    one, two = (load(speakers, name, raymarchers, shared=shared) for name in ("One", "Two"))
    assert one.networks.features is two.networks.features
    assert one.networks.motion is not two.networks.motion


def test_other_sizes_cost_by_their_pixels():
    host = host_of(
        {128: FrameCost(render_ms=4.0, other_ms=3.0), 256: FrameCost(render_ms=20.0, other_ms=5.0)}
    )
    assert host.core_ms(128) == pytest.approx(4 * 2 + 3)
    assert host.core_ms(256) == pytest.approx(20 * 2 + 5)
    assert host.core_ms(512) == pytest.approx(4 * 20 * 2 + 5)
    assert host.core_ms(160) == pytest.approx(4 * 2 * (160 / 128) ** 2 + 3)


def test_cores_are_counted_by_cpu_time_where_it_was_measured():
    cost = FrameCost(render_ms=4.0, other_ms=9.0, render_core_ms=6.0, other_core_ms=3.0)
    host = host_of({128: cost})
    assert host.core_ms(128) == pytest.approx(6 + 3)
    assert host.core_ms(256) == pytest.approx(4 * 6 + 3)


def test_a_second_look_draws_at_the_smallest_size(monkeypatch, speakers, raymarchers):
    machine = Machine(100)
    host = opened_on(monkeypatch, machine, speakers, raymarchers)
    machine.looked.clear()
    assert host.remeasure_ms() == pytest.approx(host.core_ms(host.sizes_px[-1]))
    assert set(machine.looked) == {host.sizes_px[-1]}


def host_of(costs, **changes):
    values = {field.name: None for field in dataclasses.fields(LoadedSpeaker)}
    return LoadedSpeaker(**{**values, "costs": costs, "threads": 2, "start_px": max(costs), **changes})


def test_each_session_has_a_renderer_of_its_own(monkeypatch, speakers, raymarchers):
    host = opened_on(monkeypatch, Machine(1), speakers, raymarchers)
    one, another = host.make_renderer(256), host.make_renderer(256)
    assert one is not another
    assert (one.render_px, another.render_px) == (256, 256)
    host.close()
    assert raymarchers[0].closed


def test_a_speaker_opens_with_the_real_meter(speakers, raymarchers):
    host = load(speakers, "Small", raymarchers, render_px=96, threads=1, cores=1)
    assert host.costs[96].render_ms > 0
    assert np.isfinite(host.core_ms(96))
    assert raymarchers[0].drawn > 0


# What goes wrong --------------------------------------------------------------------------------------


def test_an_unknown_speaker(speakers, raymarchers):
    with pytest.raises(UnknownSpeakerError, match="Nobody"):
        load(speakers, "Nobody", raymarchers)
    assert raymarchers == []


def test_a_broken_bundle(tmp_path, raymarchers):
    folder = bundle_factory.write_tiny_bundle(tmp_path / "Broken", name="Broken", image_size_px=64)
    (folder / "speaker.json").write_text("{}")
    with pytest.raises(BundleError):
        load(tmp_path, "Broken", raymarchers)
    assert raymarchers == []


@pytest.mark.parametrize("fault", ["draw", "size", "warm up"])
def test_whatever_goes_wrong_ends_the_raymarcher_s_threads(monkeypatch, speakers, raymarchers, fault):
    monkeypatch.setattr(stand_ins.StandInRaymarcher, "closed", False, raising=False)
    expected, render_size = RuntimeError, 96
    if fault == "draw":
        monkeypatch.setattr(
            loaded_speaker, "make_renderer", lambda *_: (_ for _ in ()).throw(RuntimeError("no memory"))
        )
    elif fault == "size":
        expected, render_size = InputError, 256
    else:
        monkeypatch.setattr(
            stand_ins.StandInRaymarcher, "warm_up", lambda _: (_ for _ in ()).throw(RuntimeError("no kernel"))
        )
    with pytest.raises(expected):
        load(speakers, "Small", raymarchers, render_px=render_size, threads=1, cores=1)
    assert [raymarcher.closed for raymarcher in raymarchers] == [True]


# On a GPU ---------------------------------------------------------------------------------------------


@pytest.fixture
def gpus():
    """Opens GPUs that stand-ins play; they are closed in the end."""
    opened = []

    def open_one(speakers, **options):
        renderer = StandInRenderer(condition_size=read_settings(speakers / "Tiny").condition.size)
        opened.append(GpuRenderer(renderer, name="A GPU", **options))
        opened[-1].start()
        return opened[-1], renderer

    yield open_one
    for gpu in opened:
        gpu.close()


def on_gpu(speakers, raymarchers, gpu, name="Tiny", said=None, **compute):
    say = pytest.fail if said is None else said.append
    return load(speakers, name, raymarchers, gpu=gpu, say=say, threads=2, **compute)


def test_a_gpu_draws_the_bundle_s_size_finished_and_costs_one_thread(speakers, raymarchers, gpus):
    gpu, renderer = gpus(speakers)
    host = on_gpu(speakers, raymarchers, gpu)
    assert (host.on_gpu, host.device, host.threads) == (True, "A GPU", 1)
    assert (host.sizes_px, host.start_px) == ((512,), 512)
    assert raymarchers == []
    cost = host.costs[512]
    assert host.gpu_ms == cost.render_ms > 0
    assert 0 < host.core_ms(512) == pytest.approx(cost.render_core_ms + cost.other_core_ms)
    assert max(len(batch) for batch in renderer.batches) == MAX_FRAMES  # it was measured in company
    drawing = host.make_renderer(512)
    scene_condition = np.full(host.speaker.condition.size, 7, np.float32)
    drawn = drawing.draw(c2w=host.speaker.poses[0], condition=scene_condition, pose=0)
    picture = drawn.finish()
    assert picture.shape == (768, 512)
    assert drawn.finish() is picture  # it came finished
    host.close()
    assert len(renderer.unloaded) == 1


def test_a_smaller_size_on_a_gpu_is_drawn_as_on_the_cpu(speakers, raymarchers, gpus):
    gpu, _ = gpus(speakers)
    host = on_gpu(speakers, raymarchers, gpu, render_px=256)
    assert (host.sizes_px, host.start_px) == ((256,), 256)
    drawing = host.make_renderer(256)
    condition = np.zeros(host.speaker.condition.size, np.float32)
    drawn = drawing.draw(c2w=host.speaker.poses[0], condition=condition, pose=0)
    assert (drawn.drawn_px, drawn.drawn_share) == (256, 1.0)
    assert drawn.finish().shape == (768, 512)
    with pytest.raises(InputError, match="--render-size: expected at most 512"):
        on_gpu(speakers, raymarchers, gpu, render_px=600)


def test_speakers_share_the_gpu(speakers, raymarchers, gpus):
    gpu, _ = gpus(speakers)
    hosts = [on_gpu(speakers, raymarchers, gpu, name) for name in ("Tiny", "Small")]
    assert [host.start_px for host in hosts] == [512, 128]
    assert len({host.raymarcher for host in hosts}) == 2
    assert all(host.on_gpu for host in hosts)


@pytest.mark.parametrize(
    "refusal",
    [
        SceneError("head: expected hidden layers of at most 128, got 256; draw this speaker with the CPU"),
        CudaUnavailableError("nvrtcCompileProgram for sm_130: expected success, got an error; update it"),
        CudaError("cuMemAlloc: expected success, got CUDA_ERROR_OUT_OF_MEMORY"),
    ],
)
def test_a_speaker_that_the_gpu_does_not_take_is_drawn_by_the_cpu_or_refused(
    speakers, raymarchers, gpus, refusal
):
    gpu, renderer = gpus(speakers)
    renderer.refusal, said = refusal, []
    host = on_gpu(speakers, raymarchers, gpu, "Small", said)
    assert said == [f"the CPU draws Small, not A GPU: {refusal}"]
    assert (host.on_gpu, host.device, host.gpu_ms) == (False, "CPU, 2 threads", 0.0)
    assert not gpu.lost
    with pytest.raises(InputError) as error:
        choose_raymarcher(host.speaker, threads=2, device="cuda", gpu=gpu, say=pytest.fail)
    assert str(error.value) == (
        f"--device cuda: Small cannot be drawn on A GPU: {refusal}; leave --device out"
    )


def test_a_gpu_that_fails_while_it_is_measured_leaves_the_cpu(speakers, raymarchers, gpus):
    gpu, renderer = gpus(speakers)
    renderer.failure, said = CudaError("cuStreamSynchronize: CUDA_ERROR_LAUNCH_FAILED"), []
    host = on_gpu(speakers, raymarchers, gpu, "Small", said)
    assert said == ["the CPU draws Small, not A GPU: cuStreamSynchronize: CUDA_ERROR_LAUNCH_FAILED"]
    assert not host.on_gpu
    assert len(raymarchers) == 1


# Over plates ------------------------------------------------------------------------------------------


def plated_on(speakers, raymarchers, *, name="Small", gate=None, speaker=None, memory=None, **options):
    """Returns the speaker made ready with plates, live unless told otherwise."""
    if speaker is None:
        speaker = plate_files.plated(load_speaker(find_speaker(name, speakers_dir=speakers)), gate=gate)
    options = {"say": pytest.fail, "compute": ComputeSettings(threads=2, cores=2, plates_mb=100)} | options
    return LoadedSpeaker.of(speaker, open_raymarcher=raymarchers, plate_memory=memory, **options)


def frame_of(host, size_px, pose=3):
    condition = np.ones(host.speaker.condition.size, np.float32)
    return host.make_renderer(size_px).draw(
        c2w=host.speaker.poses[pose], condition=condition, pose=pose, blinking=False
    )


def test_a_live_speaker_is_measured_over_its_plates_before_they_are_read(speakers, raymarchers):
    gate = threading.Event()
    host = plated_on(speakers, raymarchers, gate=gate)
    assert (host.start_px, host.plates.ready) == (128, False)
    measured = [mask for mask in raymarchers[0].masks if mask is not None]
    assert len(measured) == raymarchers[0].drawn > 0
    assert host.remeasure_ms() > 0
    assert raymarchers[0].masks[-1] is not None
    assert frame_of(host, 128).drawn_share == 1.0  # the first frame waits for nothing
    gate.set()
    assert host.plates.wait(PATIENCE_S)
    assert frame_of(host, 128).drawn_share < 1
    host.close()
    assert host.plates.size_bytes == 0


def test_over_plates_other_sizes_cost_by_the_pixels_of_their_masks(speakers, raymarchers):
    host = plated_on(speakers, raymarchers)
    cost = FrameCost(render_ms=20.0, other_ms=5.0)
    host = dataclasses.replace(host, costs={128: cost})
    ratio = host.plates.masks.pixels(96) / host.plates.masks.pixels(128)
    assert host.core_ms(96) == pytest.approx(2 * 20 * ratio + 5)
    host.close()


def test_a_recording_waits_for_the_plates(speakers, raymarchers):
    gate = threading.Event()

    def note(what):
        if "kernels" in what:
            gate.set()

    for compute in (ComputeSettings(threads=2, cores=2), ComputeSettings(threads=2, cores=2, render_px=96)):
        gate.clear()
        host = plated_on(speakers, raymarchers, gate=gate, live=False, note=note, compute=compute)
        assert host.plates.ready
        assert frame_of(host, 96).drawn_share < 1
        host.close()


@pytest.mark.parametrize("live", [True, False])
def test_without_memory_or_with_plates_that_do_not_decode_the_whole_is_drawn(speakers, raymarchers, live):
    plain = load_speaker(find_speaker("Small", speakers_dir=speakers))
    broken = PlateError("plates.mkv", "frame 7", "a whole frame", "one that decodes in part")
    said = []
    none = ComputeSettings(threads=2, cores=2, plates_mb=0)
    hosts = [
        plated_on(speakers, raymarchers, compute=none, live=live),
        plated_on(speakers, raymarchers, memory=PlateMemory(1), say=said.append, live=live),
        plated_on(
            speakers,
            raymarchers,
            speaker=plate_files.plates_that_fail(plain, broken, 7),
            say=said.append,
            live=live,
        ),
        plated_on(
            speakers,
            raymarchers,
            speaker=plate_files.plated(plain, masks_fail=broken),
            say=said.append,
            live=live,
        ),
    ]
    assert [line.split(":")[0] for line in said] == ["Small is drawn without plates"] * 3
    assert "expected at most 1 MB, got 2" in said[0]
    for host in hosts:
        drawing = frame_of(host, 96)
        assert (drawing.drawn_px, drawing.drawn_share) == (96, 1.0)
        assert drawing.finish().shape == (192, 128)
        host.close()


def test_plates_that_fail_while_a_live_speaker_is_measured_are_measured_without(
    monkeypatch, speakers, raymarchers
):
    plain = load_speaker(find_speaker("Tiny", speakers_dir=speakers))
    gate, said = threading.Event(), []
    broken = plate_files.plated(plain, gate=gate)
    broken.plates.fail_at, broken.plates.failure = 0, PlateError("plates.mkv", "codec", "h264", "vp8")

    class KnownMemory(PlateMemory):
        def open(self, speaker, *, say):
            self.opened = super().open(speaker, say=say)
            return self.opened

    memory = KnownMemory(100)

    class FailingMachine(Machine):
        """Draws over plates ten times as fast; they fail while it is first measured."""

        def __call__(self, speaker, networks, make_renderer, **_):
            self.make_renderer = make_renderer
            return self

        def measure(self, size_px):
            self.ns_per_pixel = 1000 if "over plates" not in self.make_renderer(size_px).describe() else 10
            cost = super().measure(size_px)
            gate.set()
            memory.opened.wait(PATIENCE_S)
            return cost

    monkeypatch.setattr(loaded_speaker, "FrameCostMeter", FailingMachine(10))
    monkeypatch.setattr(compute_settings, "usable_cores", lambda _: 2)
    host = plated_on(speakers, raymarchers, speaker=broken, memory=memory, say=said.append)
    assert len(said) == 1
    assert host.plates is None
    assert host.start_px < 192
    host.close()


def test_a_gpu_is_given_the_plates_and_a_frame_costs_what_it_does_over_them(speakers, raymarchers, gpus):
    gpu, renderer = gpus(speakers)
    host = plated_on(speakers, raymarchers, gpu=gpu)
    assert host.plates.ready
    assert len(renderer.over_plates) >= sum(map(len, renderer.batches)) - 1  # but for the warm-up
    del renderer.over_plates[:]
    drawing = frame_of(host, 128, pose=3)
    assert renderer.over_plates == [3]
    assert drawing.drawn_share == host.plates.masks.whole[3].share
    assert drawing.finish() is drawing.finish()
    assert host.make_renderer(128).describe().endswith("over plates")
    host.close()


def test_a_gpu_without_room_for_plates_draws_the_whole(speakers, raymarchers, gpus):
    gpu, renderer = gpus(speakers)
    renderer.plates_refusal = CudaError("cuMemAlloc: expected success, got CUDA_ERROR_OUT_OF_MEMORY")
    said, memory = [], PlateMemory(100)
    host = plated_on(speakers, raymarchers, gpu=gpu, memory=memory, say=said.append)
    assert said == [f"A GPU draws Small without plates: {renderer.plates_refusal}"]
    assert frame_of(host, 128).drawn_share == 1.0
    assert (host.plates, memory.size_bytes) == (None, 0)


def test_a_gpu_that_draws_smaller_needs_no_plates(speakers, raymarchers, gpus):
    gpu, renderer = gpus(speakers)
    host = plated_on(speakers, raymarchers, gpu=gpu, compute=ComputeSettings(render_px=96, plates_mb=100))
    drawing = frame_of(host, 96)
    assert (drawing.drawn_px, drawing.drawn_share, renderer.over_plates) == (96, 1.0, [])


def test_the_cpu_draws_over_the_same_plates_once_the_gpu_is_lost(speakers, raymarchers, gpus):
    gpu, _ = gpus(speakers)
    memory = PlateMemory(100)
    lost = plated_on(speakers, raymarchers, gpu=gpu, memory=memory)
    host = plated_on(speakers, raymarchers, speaker=lost.speaker, memory=memory)
    assert host.plates is lost.plates
    lost.close()
    assert frame_of(host, 128).drawn_share < 1
    assert host.speaker.plates.read == 1
    host.close()
    assert memory.size_bytes == 0
