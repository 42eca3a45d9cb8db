"""File run: a recording in, a talking video out, by the live pipeline as fast as it goes.

The motion can be had as a video of its own, beside that of the speaker or alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from models.speaker import Speaker
from models.time_base import FRAME_RATE_HZ

from ..errors import Stopped
from ..pipeline.checked_networks import checked
from ..pipeline.clock import MonotonicClock, SystemClock
from ..pipeline.frame_renderer import FrameRenderer
from ..pipeline.landmarks import DrawnLandmarks
from ..pipeline.loaded_speaker import LoadedSpeaker
from ..pipeline.networks import SpeakerNetworks
from ..pipeline.pcm_motion import MotionStream, MovedFrame
from ..pipeline.pipeline import Frame, Pipeline
from ..pipeline.queues import Overflow
from ..pipeline.stage_times import StageTimes
from .audio_file import AudioFile
from .landmark_video import LandmarkVideo
from .landmark_writer import LandmarkOutput
from .pace import FilePace, SizeStep
from .video_writer import VideoOutput

_POLL_S = 0.2


def pace_of(loaded: LoadedSpeaker, *, duration_s: float | None) -> FilePace | None:
    """Returns the adaptive render size of a run; None where a smaller one would not help."""
    if loaded.chosen is None or loaded.chosen.cost is None:
        return None
    return FilePace(
        start_px=loaded.start_px,
        sizes_px=loaded.sizes_px,
        core_ms=loaded.core_ms,
        duration_s=duration_s,
    )


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """Statistics of a file run."""

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
        video: where it goes; entered and published here.
        networks: the speaker's, if they are open already.
        landmarks: where the motion goes, if anywhere; entered and published here.
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
        landmark_video: where the video goes; entered and published here.
        networks: the speaker's.
        landmarks: where the motion goes, if anywhere; entered and published here.
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
