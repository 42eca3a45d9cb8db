"""May drawn for several sessions at once on a GPU, against the CPU raymarcher."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from collections import Counter

import numpy as np
import pytest
from pictures import psnr_db

from cuda_kernels.cpu_raymarcher import CpuRaymarcher, rgb_to_i420
from cuda_kernels.cuda_raymarcher import FrameRequest
from models import bundle_files
from models.speaker import load_speaker
from models.speaker_folders import find_speaker
from models.speaker_settings import read_settings
from streaming.errors import GpuLostError
from streaming.pipeline.gpu_batching import MAX_FRAMES
from streaming.pipeline.gpu_renderer import GpuRaymarcher, open_gpu
from streaming.pipeline.networks import network_specs
from streaming.pipeline.onnx_engine import OnnxEngine

PSNR_DB = 45.0  # what the project asks of any kernel
SESSIONS, FRAMES = 8, 12
JOIN_S = 120


@pytest.fixture(scope="module")
def may():
    with pytest.MonkeyPatch.context() as patch:
        try:
            import av  # noqa: F401
        except ImportError:  # any plate will do: both draw the same one
            side = read_settings(find_speaker("May", speakers_dir=None)).image_size_px
            ramp = np.linspace(0, 255, side)
            plate = np.stack([*np.meshgrid(ramp, ramp), np.full((side, side), 90.0)], -1).astype(np.uint8)
            patch.setattr(bundle_files, "_decode_png", lambda content: plate)
        yield load_speaker(find_speaker("May", speakers_dir=None))


@pytest.fixture(scope="module")
def conditions(may):
    """One for each frame of each session."""
    spec = network_specs(may).condition
    engine, random = OnnxEngine(spec), np.random.default_rng(0)
    windows = 0.5 * random.normal(size=(SESSIONS * FRAMES, *spec.inputs["window"])).astype(np.float32)
    return [engine.run({"window": window}) for window in windows]


@pytest.fixture
def batches():
    return []


@pytest.fixture
def gpu_renderer(gpu, batches):
    renderer = open_gpu("cuda", say=pytest.fail, observe=lambda *seen: batches.append(seen))
    assert renderer is not None
    yield renderer
    renderer.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("geneface-gpu")]


def test_each_session_gets_its_own_pictures_of_may(may, conditions, gpu_renderer, batches, capsys):
    """Sessions ask as fast as they are answered, half of them by a speaker of their own."""
    speakers = [GpuRaymarcher(gpu_renderer, may.scene) for _ in range(2)]
    size_px = may.image_size_px
    eighth_ms = speakers[0].frame_ms(poses=may.poses, condition=conditions[0], size_px=size_px)
    pictures, failures = {}, []
    begin = threading.Barrier(SESSIONS + 1)

    def pose_of(session, frame):
        return may.poses[(37 * session + 5 * frame) % len(may.poses)]

    def draw(session):
        begin.wait(JOIN_S)
        try:
            for frame in range(FRAMES):
                pictures[session, frame] = speakers[session % 2].render_i420(
                    c2w=pose_of(session, frame),
                    condition=conditions[session * FRAMES + frame],
                    size_px=size_px,
                )
        except Exception as error:  # noqa: BLE001 - told to the test
            failures.append(error)

    threads = [threading.Thread(target=draw, args=(session,)) for session in range(SESSIONS)]
    for thread in threads:
        thread.start()
    batches.clear()
    begin.wait(JOIN_S)
    started_s = time.perf_counter()
    for thread in threads:
        thread.join(JOIN_S)
    spent_s = time.perf_counter() - started_s
    assert failures == []
    assert len(pictures) == SESSIONS * FRAMES == sum(frames for frames, _ in batches)
    assert max(frames for frames, _ in batches) > 1  # sessions of both speakers shared launches

    cpu = CpuRaymarcher(may.scene, threads=8)
    worst_db = min(
        psnr_db(
            pictures[session, frame] / 255,
            rgb_to_i420(
                cpu.render(
                    c2w=pose_of(session, frame),
                    condition=conditions[session * FRAMES + frame],
                    size_px=size_px,
                )
            )
            / 255,
        )
        for session in range(SESSIONS)
        for frame in (0, FRAMES - 1)
    )
    cpu.close()
    for raymarcher in speakers:
        raymarcher.close()
    with capsys.disabled():
        kernel_ms = sum(ms for _, ms in batches) / (SESSIONS * FRAMES)
        sys.stdout.write(
            f"\n{gpu_renderer.name}: {SESSIONS} sessions, {size_px} px I420, at worst {worst_db:.1f} dB\n"
            f"a frame: {spent_s * 1000 / (SESSIONS * FRAMES):.3f} ms in all, {kernel_ms:.3f} ms of kernels; "
            f"{eighth_ms:.3f} ms in launches of eight\n"
            f"launches by their frames: {dict(sorted(Counter(frames for frames, _ in batches).items()))}\n"
        )
    assert worst_db >= PSNR_DB


def test_a_region_and_a_smaller_picture_come_out_as_on_the_cpu(may, conditions, gpu_renderer):
    raymarcher, cpu = GpuRaymarcher(gpu_renderer, may.scene), CpuRaymarcher(may.scene, threads=8)
    for place in ({"size_px": 256}, {"size_px": may.image_size_px, "region_px": (180, 300, 340, 420)}):
        given = {"c2w": may.poses[3], "condition": conditions[0], **place}
        assert psnr_db(raymarcher.render(**given) / 255, cpu.render(**given) / 255) >= PSNR_DB
    raymarcher.close()
    cpu.close()


def test_more_frames_than_one_launch_takes_are_drawn_in_order(may, conditions, gpu_renderer, batches):
    scene = gpu_renderer.load(may.scene)
    requests = [
        FrameRequest(scene=scene, c2w=may.poses[number], condition=conditions[0], size_px=64)
        for number in range(MAX_FRAMES + 5)
    ]
    together = gpu_renderer.draw(requests)
    assert [frames for frames, _ in batches] == [MAX_FRAMES, 5]
    for number in (0, MAX_FRAMES - 1, MAX_FRAMES, MAX_FRAMES + 4):
        np.testing.assert_array_equal(gpu_renderer.draw([requests[number]])[0], together[number])


def test_a_device_that_was_broken_is_lost_and_closes(may, conditions, gpu_renderer):
    """The driver itself refuses a launch: no block has a million threads."""
    raymarcher = GpuRaymarcher(gpu_renderer, may.scene)
    device = gpu_renderer._renderer.device
    whole = device.kernel
    device.kernel = lambda width: dataclasses.replace(whole(width), threads=1 << 20)
    with pytest.raises(GpuLostError, match="cuLaunchKernel: expected success, got CUDA_ERROR"):
        raymarcher.render(c2w=may.poses[0], condition=conditions[0], size_px=64)
    assert gpu_renderer.lost.startswith("cuLaunchKernel")
    raymarcher.close()
