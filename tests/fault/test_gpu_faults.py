"""A GPU that fails under live sessions: pictures go on from the CPU, or the session ends with a word."""

from __future__ import annotations

import threading

import httpx
import pytest
import stand_ins
from live_sessions import LiveSessions
from on_loop import on_loop, until
from patience import PATIENCE_S
from quick_server import OWN_PLATES, QuickServer, client_process
from stand_in_gpu import StandInRenderer

from cuda_kernels.cuda_module import CudaError
from streaming.pipeline.gpu_renderer import GpuRaymarcher, GpuRenderer
from streaming.server.server import on_loop_when_lost
from streaming.session.admission import Admission
from streaming.session.registry import Sessions
from streaming.session.session import SessionSettings
from streaming.webrtc.peer import PeerSettings

LOST = "cuStreamSynchronize: expected success, got CUDA_ERROR_ILLEGAL_ADDRESS"


class Setup(LiveSessions):
    def __init__(self, speaker, networks, *, hang_s):
        super().__init__(speaker, networks)
        self.renderer = StandInRenderer(condition_size=speaker.condition.size)
        self.cpu = stand_ins.StandInRaymarcher()
        self.cpu_works = True
        self.gpu = GpuRenderer(self.renderer, name="A GPU", observe=self.metrics.gpu_drew, hang_s=hang_s)
        self.gpu.start()
        self.sessions = Sessions(
            lambda _: pytest.fail("no other speaker is asked for"),
            self.host(GpuRaymarcher(self.gpu, speaker.scene), 128),
            SessionSettings(peer=PeerSettings(), bitrate=600_000),
            Admission(cores=8),
            self.metrics,
            on_cpu=self._on_cpu,
        )

    def _on_cpu(self, _):
        if not self.cpu_works:
            raise RuntimeError("no kernel")
        return self.host(self.cpu, 128, 96)

    async def __aenter__(self):
        on_loop_when_lost(self.gpu, self.sessions)
        return self

    async def __aexit__(self, *_):
        await super().__aexit__()
        self.renderer.may_draw.set()
        self.gpu.close()
        assert self.gpu.join(PATIENCE_S)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("geneface-gpu")]


@pytest.fixture
def setup(speaker, networks):
    return lambda hang_s=10.0: Setup(speaker, networks, hang_s=hang_s)


async def pictures(peer, count):
    wanted = len(peer.pictures) + count
    await until(lambda: len(peer.pictures) >= wanted, what=f"{count} pictures")


@pytest.mark.parametrize("fault", ["fails", "hangs"])
@on_loop
async def test_sessions_whose_gpu_fails_go_on_with_the_cpu(setup, fault):
    async with setup(hang_s=10.0 if fault == "fails" else 0.3) as it:
        first, session = await it.connect()
        second, other = await it.connect()
        await pictures(first, 5)
        await pictures(second, 5)
        assert it.sample("gpu_batch_frames_count") >= 5
        assert it.cpu.drawn == 0
        if fault == "fails":
            it.renderer.failure = CudaError(LOST)
        else:
            it.renderer.may_draw.clear()
        await until(lambda: it.cpu.drawn > 0, what="the CPU draws")
        await pictures(first, 10)
        await pictures(second, 10)
        assert session.loaded.device == "CPU, 1 thread"
        assert it.cpu.sizes[0] == 96
        assert it.sessions.gpu_failure == (LOST if fault == "fails" else "it gave no picture within 0.3 s")
        assert (session.ended, other.ended) == ("", "")
        third, late = await it.connect()
        await pictures(third, 5)
        assert not late.loaded.on_gpu


@on_loop
async def test_sessions_whose_gpu_fails_end_with_a_word_where_the_cpu_cannot_draw(setup):
    async with setup() as it:
        peer, session = await it.connect()
        await pictures(peer, 5)
        it.cpu_works, it.renderer.failure = False, CudaError(LOST)
        await until(lambda: peer.connection.connectionState == "closed", what="the peer was told")
        assert session.ended == "the GPU failed, and the CPU cannot draw this speaker"
        assert len(it.sessions) == 0


@on_loop
async def test_a_gpu_that_hangs_does_not_hold_up_the_end_of_the_server(setup, monkeypatch):
    monkeypatch.setattr("streaming.pipeline.gpu_renderer._JOIN_S", 0.05)
    monkeypatch.setattr("streaming.pipeline.pipeline._JOIN_S", 5.0)
    it = setup(hang_s=0.5)
    on_loop_when_lost(it.gpu, it.sessions)
    peer, session = await it.connect()
    await pictures(peer, 5)
    it.renderer.may_draw.clear()
    begun = len(it.renderer.batches)
    await until(lambda: len(it.renderer.batches) > begun, what="a launch that never ends")
    await it.sessions.aclose()
    assert session.ended == "server stopping"
    assert not [thread.name for thread in threading.enumerate() if thread.name == "geneface-render"]
    it.gpu.close()  # left behind: its thread is in the device's hands
    assert it.renderer.closed == 0
    it.renderer.may_draw.set()
    assert it.gpu.join(PATIENCE_S)
    assert it.renderer.closed == 1
    await peer.close()


# The whole server -------------------------------------------------------------------------------------

FAILING_GPU = """
from cuda_kernels import cuda_raymarcher
from cuda_kernels.cuda_module import CudaError
from stand_in_gpu import StandInRenderer
from streaming.pipeline import gpu_renderer
from streaming.pipeline.cuda_device import CudaDevice
def submit(requests, renderer=StandInRenderer(condition_size={condition_size})):
    if len(renderer.batches) >= 80:
        raise CudaError("cuLaunchKernel: expected success, got CUDA_ERROR_LAUNCH_FAILED")
    return StandInRenderer.submit(renderer, requests)
renderer = submit.__defaults__[0]
renderer.submit = submit
gpu_renderer.find_cuda_device = lambda: CudaDevice(name="A GPU", capability=(9, 0))
cuda_raymarcher.CudaRenderer = lambda: renderer
"""


def test_a_server_outlives_its_gpu(speaker, tmp_path):
    prepare = OWN_PLATES + FAILING_GPU.format(condition_size=speaker.condition.size)
    with QuickServer(tmp_path / "log.txt", speaker.path.parent, prepare=prepare) as server:
        ready = httpx.get(f"{server.url}readyz", trust_env=False, timeout=PATIENCE_S).json()
        assert ready == {"status": "ready", "speaker": "Tiny", "device": "A GPU"}
        assert "Tiny on A GPU, draws 128 x 128" in server.log()
        assert server.metric("gpu_draws") == 1
        client = client_process(server.url)
        try:
            server.wait_said("drawn by CPU, ")
            told = httpx.get(f"{server.url}readyz", trust_env=False, timeout=PATIENCE_S).json()
            assert told["device"].startswith("CPU, ")
            assert told["gpu_failure"].startswith("cuLaunchKernel: ")
            assert (server.metric("gpu_draws"), server.metric("sessions_active")) == (0, 1)
            drawn = server.metric("frames_rendered_total")
            server.until_metric("frames_rendered_total", above=drawn + 10)
        finally:
            client.kill()
            client.communicate()
    assert "Traceback" not in server.log()
