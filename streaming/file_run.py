"""A recording in, a talking video out: the live pipeline fed from a file, as fast as it goes.

The motion can be had as a video of its own, beside that of the speaker or alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.speaker import Speaker

from .audio_file import AudioFile
from .checked_networks import checked
from .clock import FRAME_RATE_HZ, CpuClock, MonotonicClock, SystemClock
from .engine import DeviceName
from .errors import GpuLostError, InputError, Stopped
from .file_pace import FilePace, SizeStep
from .frame_cost import FrameCostMeter
from .gpu_rendering import GpuRaymarcher, GpuRenderer
from .landmark_output import LandmarkOutput
from .landmark_video import LandmarkVideo
from .landmarks import DrawnLandmarks
from .motion import MotionStream, MovedFrame
from .mouth import FEATHER_SHARE, mouth_boxes
from .networks import SpeakerNetworks
from .pipeline import Frame, Pipeline
from .queues import Overflow
from .render_size import FRAME_BUDGET_MS, RENDER_SIZES_PX, RenderSize, choose_render_size
from .renderer import FrameRenderer, Raymarcher
from .stage_times import StageTimes
from .video_output import VideoOutput

F32 = npt.NDArray[np.float32]

_POLL_S = 0.2


def open_raymarcher(speaker: Speaker, *, threads: int) -> Raymarcher:
    """Returns the CPU raymarcher of a speaker, not warmed up yet."""
    from cuda_kernels.cpu_raymarcher import CpuRaymarcher

    return CpuRaymarcher(speaker.scene(), threads=threads)


def choose_raymarcher(
    speaker: Speaker,
    *,
    threads: int,
    device: DeviceName,
    gpu: GpuRenderer | None,
    say: Callable[[str], None],
) -> Raymarcher:
    """Returns a raymarcher of a speaker on the GPU, or on the CPU; not warmed up yet.

    Args:
        speaker: who is drawn.
        threads: of the CPU raymarcher.
        device: `cuda`: on the GPU or not at all.
        gpu: what draws there, None: the CPU draws.
        say: told in one line why the GPU does not draw this speaker.

    Raises:
        SceneError: the speaker cannot be drawn.
        InputError: the GPU was asked for and cannot draw this speaker.
    """
    if gpu is not None:
        from cuda_kernels.cuda_module import CudaError, CudaUnavailableError
        from cuda_kernels.folding import SceneError

        try:
            return GpuRaymarcher(gpu, speaker.scene())
        except (SceneError, CudaUnavailableError, CudaError, GpuLostError) as error:
            if device == "cuda":
                raise InputError(
                    f"--device cuda: {speaker.name} cannot be drawn on {gpu.name}: {error}; "
                    "leave --device out"
                ) from None
            say(f"the CPU draws {speaker.name}, not {gpu.name}: {error}")
    return open_raymarcher(speaker, threads=threads)


def device_of(raymarcher: Raymarcher, *, threads: int) -> str:
    """Returns what draws, fit to be shown: the GPU's name, or the CPU with its threads."""
    if isinstance(raymarcher, GpuRaymarcher):
        return raymarcher.device
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def make_renderer(speaker: Speaker, raymarcher: Raymarcher, render_px: int) -> FrameRenderer:
    """Returns what draws a speaker at `render_px` and finishes at the bundle's size.

    Raises:
        InputError: `render_px` is larger than the bundle's pictures, or they are of an odd size.
    """
    output_px = speaker.image_size_px
    if output_px % 2:
        raise InputError(
            f"{speaker.name}: expected pictures of an even size, got {output_px} px; export it anew"
        )
    if render_px > output_px:
        raise InputError(
            f"--render-size: expected at most {output_px}, the size of {speaker.name}'s pictures, "
            f"got {render_px}; give a smaller one, or auto"
        )
    feather_px = max(2, round(output_px * FEATHER_SHARE))
    boxes = mouth_boxes(
        speaker.motion,
        speaker.scene().camera,
        speaker.poses,
        image_size_px=output_px,
        feather_px=feather_px,
    )
    return FrameRenderer(
        raymarcher,
        output_px=output_px,
        render_px=render_px,
        mouth_boxes=boxes,
        feather_px=feather_px,
        finished=raymarcher if isinstance(raymarcher, GpuRaymarcher) else None,
    )


def size_that_keeps_up(
    speaker: Speaker,
    raymarcher: Raymarcher,
    networks: SpeakerNetworks,
    *,
    threads: int,
    cores: int,
    clock: MonotonicClock | None = None,
    cpu: CpuClock | None = None,
) -> RenderSize:
    """Returns the render size for this machine, from drawing, scaling and encoding a few real frames.

    It is the size for the machine when it is free; what others do on it meanwhile shows only in the run.
    Where the networks alone are slower than the sound, no size keeps up, and the largest is drawn.
    """
    meter = FrameCostMeter(
        speaker,
        networks,
        lambda size_px: make_renderer(speaker, raymarcher, size_px),
        threads=threads,
        cores=cores,
        clock=clock,
        cpu=cpu,
    )
    if meter.motion_ms > FRAME_BUDGET_MS:
        frame_ms = meter.measure(speaker.image_size_px).frame_ms(threads=threads, cores=cores)
        return RenderSize(size_px=speaker.image_size_px, frame_ms=frame_ms, keeps_up=False)
    return choose_render_size(meter.measure, largest_px=speaker.image_size_px, threads=threads, cores=cores)


def pace_of(
    chosen: RenderSize, *, largest_px: int, threads: int, duration_s: float | None
) -> FilePace | None:
    """Returns what steps down from a size that was chosen; None where a smaller one would not help."""
    cost = chosen.cost
    if cost is None:
        return None

    def core_ms(size_px: int) -> float:
        return cost.scaled((size_px / chosen.size_px) ** 2).core_ms(threads=threads)

    return FilePace(
        start_px=chosen.size_px,
        sizes_px=[size for size in RENDER_SIZES_PX if size <= largest_px],
        core_ms=core_ms,
        duration_s=duration_s,
    )


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """What a run wrote and what it took."""

    frames: int
    spent_s: float
    size_bytes: int
    steps: tuple[SizeStep, ...] = ()  # to smaller sizes, to keep up

    @property
    def duration_s(self) -> float:
        """Length of the video."""
        return self.frames / FRAME_RATE_HZ

    @property
    def real_time_factor(self) -> float:
        """Time spent for each second of video."""
        return self.spent_s / self.duration_s


def speak_file(
    speaker: Speaker,
    renderer: FrameRenderer,
    audio: AudioFile,
    video: VideoOutput,
    *,
    networks: SpeakerNetworks | None = None,
    landmarks: LandmarkOutput | None = None,
    landmark_video: LandmarkVideo | None = None,
    seed: int = 0,
    times: StageTimes | None = None,
    pace: FilePace | None = None,
    renderer_of: Callable[[int], FrameRenderer] | None = None,
    on_step: Callable[[SizeStep], None] = lambda _: None,
    on_frame: Callable[[int], None] = lambda _: None,
    stopped: Callable[[], bool] = lambda: False,
    clock: MonotonicClock | None = None,
) -> FileReport:
    """Writes the video of a recording and returns what it took.

    The face is moved by the 16 kHz form of the sound, the video carries the sound as it was recorded; both
    are decoded from the file side by side, so memory does not grow with its length.

    Args:
        speaker: who talks.
        renderer: draws.
        audio: what is said.
        video: where it goes; entered and committed here.
        networks: the speaker's, if they are open already.
        landmarks: where the motion goes, if anywhere; entered and committed here.
        landmark_video: where a video of the motion goes, likewise.
        seed: picks the blinks.
        times: where working times are added up.
        pace: steps down where the run falls behind the sound; None: the size stays.
        renderer_of: gives what draws at a size; with `pace`.
        on_step: told each step as it is made.
        on_frame: told the number of frames written.
        stopped: asked at least every 0.2 s whether to give up.
        clock: measures the run.

    Raises:
        InputError: the recording or the place it goes to is no good, or a network gives nothing usable.
        Stopped: `stopped` said so; nothing is left on disk.
    """
    times = times or StageTimes()
    clock = clock or SystemClock()
    motion_files = [file for file in (landmarks, landmark_video) if file is not None]
    start_s = clock.now_s()
    if pace is not None:
        pace.begin(start_s)
    pipeline = Pipeline(speaker, renderer, networks=networks, overflow=Overflow.BLOCK, seed=seed, times=times)
    with contextlib.ExitStack() as stack:
        stack.callback(pipeline.close)
        stack.enter_context(video)
        for file in motion_files:
            stack.enter_context(file)
        pipeline.start()
        pipeline.start_feed(audio.speech())
        sound = audio.sound()
        for frame in _until_stopped(pipeline, stopped):
            with times.of("encode"):
                video.write_picture(frame.picture)
                video.write_sound_until(video.picture_s, sound)
                for file in motion_files:
                    file.write(frame.landmarks)
            on_frame(video.pictures)
            if pace is not None and pace.frame_done(
                now_s=clock.now_s(), frames=video.pictures, render_px=frame.render_px
            ):
                assert renderer_of is not None
                pipeline.renderer = renderer_of(pace.size_px)
                on_step(pace.steps[-1])
        with times.of("encode"):
            video.write_sound_until(float("inf"), sound)
            size_bytes = video.complete()
        for file in motion_files:  # all is whole before any has its name
            file.complete()
        for file in motion_files:
            file.publish()
        video.publish()
    return FileReport(
        frames=video.pictures,
        spent_s=clock.now_s() - start_s,
        size_bytes=size_bytes,
        steps=() if pace is None else tuple(pace.steps),
    )


def film_landmarks(
    speaker: Speaker,
    audio: AudioFile,
    landmark_video: LandmarkVideo,
    *,
    networks: SpeakerNetworks,
    landmarks: LandmarkOutput | None = None,
    seed: int = 0,
    on_frame: Callable[[int], None] = lambda _: None,
    stopped: Callable[[], bool] = lambda: False,
) -> FileReport:
    """Writes a video of a recording's motion, without rendering, and returns what it took.

    The motion is that which `speak_file` draws for the same recording and seed.

    Args:
        speaker: who talks.
        audio: what is said.
        landmark_video: where the video goes; entered and committed here.
        networks: the speaker's.
        landmarks: where the motion goes, if anywhere; entered and committed here.
        seed: picks the blinks.
        on_frame: told the number of frames written.
        stopped: asked after every frame whether to give up.

    Raises:
        InputError: the recording or a place that something goes to is no good, or a network gives nothing
            usable.
        Stopped: `stopped` said so; nothing is left on disk.
    """
    start_s = time.perf_counter()
    drawn = DrawnLandmarks(speaker, seed=seed)
    with contextlib.ExitStack() as stack:
        stack.enter_context(landmark_video)
        if landmarks is not None:
            stack.enter_context(landmarks)
        for moved in _moved_frames(checked(speaker, networks).motion_stream(speaker.motion), audio):
            if moved.failure is not None:
                raise moved.failure
            motion = drawn.restore(drawn.step(moved.frame, moved.landmarks))
            landmark_video.write(motion)
            if landmarks is not None:
                landmarks.write(motion)
            on_frame(landmark_video.pictures)
            if stopped():
                raise Stopped("the run was stopped")
        size_bytes = landmark_video.complete()
        if landmarks is not None:  # both are whole before either has its name
            landmarks.complete()
            landmarks.publish()
        landmark_video.publish()
    return FileReport(
        frames=landmark_video.pictures, spent_s=time.perf_counter() - start_s, size_bytes=size_bytes
    )


def _moved_frames(stream: MotionStream, audio: AudioFile) -> Iterator[MovedFrame]:
    for block in audio.speech():
        yield from stream.push(block)
    yield from stream.finish()


def _until_stopped(pipeline: Pipeline, stopped: Callable[[], bool]) -> Iterator[Frame]:
    while True:
        if stopped():
            raise Stopped("the run was stopped")
        try:
            frame = pipeline.next_frame(_POLL_S)
        except TimeoutError:
            continue
        if frame is None:
            return
        yield frame


def describe(renderer: FrameRenderer, pace: RenderSize | None) -> str:
    """Returns what is drawn, in one line, and if the size was chosen here, whether it keeps up."""
    drawn = f"draws {renderer.render_px} x {renderer.render_px}"
    if renderer.render_px < renderer.output_px:
        mouth = ", the mouth at full size" if renderer.draws_mouth_apart else ""
        drawn += f" scaled up to {renderer.output_px} x {renderer.output_px}{mouth}"
    if pace is None:
        return drawn
    smallest = pace.size_px <= RENDER_SIZES_PX[-1]
    slow = "but the smallest size there is" if smallest else "as the networks alone are"
    verdict = "keeps up" if pace.keeps_up else f"slower than the sound, {slow}"
    return f"{drawn}: {pace.frame_ms:.0f} ms of {FRAME_BUDGET_MS:.0f} a frame, {verdict}"
