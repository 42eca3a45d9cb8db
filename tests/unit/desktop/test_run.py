import sys

import bundle_factory
import numpy as np
import pygame
import pytest
import stand_ins
from fake_portaudio import WEBCAM, FakePortAudio
from manual_clock import ManualClock

from streaming.desktop import run as local_run
from streaming.desktop.run import LiveReport, LiveRun, PlayoutClock, show_frames
from streaming.errors import InputError
from streaming.pipeline import gpu_renderer
from streaming.pipeline.pipeline import Frame
from streaming.session.resolution_controller import ResolutionController
from streaming.settings import StreamSettings

FRAME_S = 0.04


def frame(index, ready_s, *, draw_ms=10.0, took_s=0.02, render_px=256):
    return Frame(
        index=index,
        picture=np.full((3, 2), index % 256, np.uint8),
        sound=np.zeros(640, np.float32),
        landmarks=np.zeros((68, 3), np.float32),
        windowed_s=ready_s - took_s,
        finished_s=ready_s,
        draw_ms=draw_ms,
        render_px=render_px,
        drawn_px=render_px,
        drawn_share=1.0,
    )


class ScriptedFrames:
    """Gives frames when their time has come; waiting moves the clock."""

    def __init__(self, clock, frames):
        self._clock, self._frames = clock, list(frames)
        self.renderer = None
        self.dropped = {"audio": 0, "conditions": 0, "drawings": 0, "frames": 0}

    def next_frame(self, timeout_s=None):
        assert timeout_s is not None
        assert 0 <= timeout_s <= 0.02
        if not self._frames:
            return None
        ready_s = self._frames[0].finished_s
        if ready_s > self._clock.time_s + timeout_s:
            self._clock.time_s += timeout_s
            raise TimeoutError
        self._clock.time_s = max(self._clock.time_s, ready_s)
        return self._frames.pop(0)


class RecordingWindow:
    def __init__(self, clock, *, closed_after_s=1e9):
        self._clock, self._closed_after_s = clock, closed_after_s
        self.shown = []  # (when, index)
        self.titles = []

    def set_title(self, title):
        self.titles.append(title)

    def show(self, picture):
        self.shown.append((self._clock.time_s, int(picture[0, 0])))

    def poll(self):
        return self._clock.time_s < self._closed_after_s


def show(frames, *, resolution=None, stopped=lambda clock: False, **window):
    clock = ManualClock()
    source = frames if callable(frames) else lambda clock: ScriptedFrames(clock, frames)
    scripted, seen = source(clock), RecordingWindow(clock, **window)
    result = show_frames(
        scripted,
        seen,
        name="May",
        resolution=resolution or ResolutionController(sizes_px=(256, 128), start_px=256),
        renderer_of=lambda size_px: f"renderer of {size_px}",
        playout_delay_s=0.08,
        stopped=lambda: stopped(clock),
        clock=clock,
    )
    return result, seen, scripted


def intervals(seen):
    return np.diff([at_s for at_s, _ in seen.shown])


# Pacing ---------------------------------------------------------------------------------------------


def test_frames_that_come_evenly_are_shown_as_they_come():
    result, seen, _ = show([frame(i, 0.3 + i * FRAME_S) for i in range(50)])
    assert [index for _, index in seen.shown] == list(range(50))
    assert seen.shown[0][0] == pytest.approx(0.3)
    assert intervals(seen) == pytest.approx(FRAME_S)
    assert (result.frames, result.stale) == (50, 0)


def test_frames_that_come_in_lumps_are_shown_evenly():
    lumps = [frame(i, 0.3 + (i // 3 * 3 + 2) * FRAME_S) for i in range(90)]  # three at a time
    result, seen, _ = show(lumps)
    assert result.stale == 0
    assert intervals(seen) == pytest.approx(FRAME_S, abs=1e-6)


def test_after_a_stall_the_newest_frame_is_shown_and_the_delay_comes_back():
    def ready_s(i):
        at_s = 0.3 + i * FRAME_S
        return 2.6 if 2.2 <= at_s < 2.6 else at_s  # 0.4 s in which nothing was ready

    result, seen, _ = show([frame(i, ready_s(i)) for i in range(250)])
    indexes = [index for _, index in seen.shown]
    assert indexes == sorted(indexes)
    assert 0 < result.stale <= 11
    at_s, index = seen.shown[-1]
    assert at_s - (0.3 + index * FRAME_S) < 0.01


def test_no_more_than_a_third_of_a_second_of_frames_is_kept_waiting():
    def source(clock):
        late = [frame(0, 0.0), frame(1, 2.0)]  # so late that all that follows would wait two seconds
        return ScriptedFrames(clock, late + [frame(i, 2.0 + 0.001 * i) for i in range(2, 40)])

    result, seen, _ = show(source)
    assert result.frames + result.stale >= 30
    assert seen.shown[-1][0] < 2.5


def test_the_playout_clock_forgets_what_was_two_seconds_ago():
    playout = PlayoutClock()
    assert playout.due_s(index=0, ready_s=1.0) == 1.0
    assert playout.due_s(index=1, ready_s=1.14) == pytest.approx(1.14)
    assert playout.due_s(index=2, ready_s=1.08) == pytest.approx(1.18)  # keeps the distance of index 1
    for index in range(3, 51):
        playout.due_s(index=index, ready_s=1.0 + index * FRAME_S)
    assert playout.due_s(index=51, ready_s=1.0 + 51 * FRAME_S) == pytest.approx(1.0 + 51 * FRAME_S)


# The end --------------------------------------------------------------------------------------------


def test_a_live_run_ends_when_its_window_is_closed_or_it_is_told_to():
    endless = [frame(i, i * FRAME_S) for i in range(1000)]
    _, seen, _ = show(endless, closed_after_s=1.0)
    assert seen.shown[-1][0] <= 1.0
    _, seen, _ = show(endless, stopped=lambda clock: clock.time_s >= 0.5)
    assert seen.shown[-1][0] <= 0.5
    assert len(seen.shown) > 10


def test_what_a_stage_failed_with_comes_through():
    class Failing(ScriptedFrames):
        def next_frame(self, timeout_s=None):
            raise InputError("--mic: gone")

    with pytest.raises(InputError, match="gone"):
        show(lambda clock: Failing(clock, []))


def test_the_title_tells_the_frame_rate():
    _, seen, _ = show([frame(i, i * FRAME_S) for i in range(100)])
    assert len(seen.titles) == 3
    assert set(seen.titles[1:]) == {"May - 25 fps"}


# The size -------------------------------------------------------------------------------------------


def test_slow_frames_change_the_renderer_and_the_title_says_why():
    result, seen, scripted = show([frame(i, i * FRAME_S, draw_ms=38.0) for i in range(100)])
    assert scripted.renderer == "renderer of 128"
    assert seen.titles[-1] == "May - 25 fps, smaller: frames took 38 of 40 ms"
    assert result.frames == 100


def test_frames_of_another_size_do_not_change_the_size():
    _, _, scripted = show([frame(i, i * FRAME_S, draw_ms=38.0, render_px=512) for i in range(100)])
    assert scripted.renderer is None


def test_frames_ready_too_long_after_their_sound_cost_size():
    _, _, scripted = show([frame(i, i * FRAME_S, took_s=0.09) for i in range(50)])
    assert scripted.renderer == "renderer of 128"


@pytest.mark.parametrize(("queue", "costs"), [("drawings", True), ("audio", True), ("frames", False)])
def test_frames_dropped_to_keep_up_cost_size_and_a_slow_window_does_not(queue, costs):
    class Dropping(ScriptedFrames):
        def next_frame(self, timeout_s=None):
            self.dropped[queue] += 1
            return super().next_frame(timeout_s)

    _, _, scripted = show(
        lambda clock: Dropping(clock, [frame(i, i * FRAME_S, draw_ms=26.0) for i in range(50)])
    )
    assert scripted.renderer == ("renderer of 128" if costs else None)


# The whole ------------------------------------------------------------------------------------------


class TalkingPortAudio(FakePortAudio):
    """Says 60 ms each time the window is looked after, and is pulled out after a while if it is told so."""

    def __init__(self, *, lost_after=None):
        super().__init__(WEBCAM, default=0)
        self._said = stand_ins.speech_like(30).astype(np.float32) / 32768
        self._at = 0
        self._lost_after = lost_after

    def talk(self):
        if self.stream is None:
            return
        if self._lost_after is not None and self._at >= self._lost_after:
            if self.stream.running:
                self.stream.__exit__()
            return
        self.stream.hear(self._said[self._at : self._at + 960])
        self._at = (self._at + 960) % 400_000


@pytest.fixture
def settings(tmp_path, monkeypatch):
    bundle_factory.write_tiny_bundle(tmp_path / "Tiny", image_size_px=128)
    monkeypatch.setattr(gpu_renderer, "find_cuda_device", lambda: None)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    return StreamSettings(speaker="Tiny", speakers_dir=tmp_path, mic="web", preview=True, render_size=96)


def run_live(settings, portaudio, monkeypatch, stopped):
    monkeypatch.setitem(sys.modules, "sounddevice", portaudio)
    shown = []
    show_picture = local_run.PreviewWindow.show
    monkeypatch.setattr(
        local_run.PreviewWindow,
        "show",
        lambda window, picture: (shown.append(picture), show_picture(window, picture)),
    )

    def look_after():
        portaudio.talk()
        return stopped(shown)

    with LiveRun(settings, open_raymarcher=stand_ins.open_raymarcher) as live:
        said = live.describe()
        return said, live.run(stopped=look_after), shown


def test_the_microphone_moves_the_speaker_in_the_window(settings, monkeypatch):
    portaudio = TalkingPortAudio()
    said, report, shown = run_live(settings, portaudio, monkeypatch, lambda shown: len(shown) >= 20)
    assert said.startswith("Tiny on CPU, ")
    assert "draws 96 x 96 scaled up to 128 x 128, the mouth at full size; hears 0: Webcam, ALSA; " in said
    assert report.shown == len(shown) == 20
    assert all(picture.shape == (192, 128) for picture in shown)
    assert report.render_px == 96
    assert not portaudio.stream.running
    assert not pygame.display.get_init()


def test_a_run_that_is_stopped_at_once_says_so_in_one_line(settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", TalkingPortAudio())
    with LiveRun(settings, open_raymarcher=stand_ins.open_raymarcher) as live:
        report = live.run(stopped=lambda: True)
    assert report.shown == 0
    assert ": 0 frames shown" in report.summary()
    assert report.summary().count("\n") == 0


def test_a_microphone_that_is_pulled_out_ends_the_run_in_one_line(settings, monkeypatch):
    portaudio = TalkingPortAudio(lost_after=320 * 100)
    with pytest.raises(InputError, match="0: Webcam, ALSA stopped giving sound"):
        run_live(settings, portaudio, monkeypatch, lambda shown: False)
    assert not pygame.display.get_init()


def test_a_missing_microphone_or_window_is_refused_before_the_speaker_opens(settings, monkeypatch):
    def never(*_, **__):
        raise AssertionError("the speaker was opened")

    monkeypatch.setattr(local_run.LoadedSpeaker, "open", never)
    monkeypatch.setitem(sys.modules, "sounddevice", FakePortAudio())
    with pytest.raises(InputError, match="no microphone was found"):
        LiveRun(settings)
    monkeypatch.setitem(sys.modules, "sounddevice", FakePortAudio(WEBCAM))
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(InputError, match="--preview: pygame"):
        LiveRun(settings)


def test_a_speaker_that_cannot_be_used_closes_the_window(settings, monkeypatch):
    def broken(*_, **__):
        assert pygame.display.get_init()
        raise InputError("broken")

    monkeypatch.setattr(local_run.LoadedSpeaker, "open", broken)
    monkeypatch.setitem(sys.modules, "sounddevice", FakePortAudio(WEBCAM))
    with pytest.raises(InputError, match="broken"):
        LiveRun(settings)
    assert not pygame.display.get_init()


def test_the_summary_is_one_line():
    report = LiveReport(
        spent_s=10.0,
        shown=245,
        stale=3,
        dropped={"microphone": 0, "audio": 2, "drawings": 1},
        overflows=4,
        render_px=224,
    )
    assert report.summary() == (
        "10.0 s: 245 frames shown (24.5 a second), 3 skipped as stale, dropped to keep up: 2 audio, "
        "1 drawings, sound lost before it was read 4 times, drawn at 224 px in the end"
    )
    quiet = LiveReport(spent_s=0, shown=0, stale=0, dropped={}, overflows=0, render_px=96)
    assert "dropped to keep up: none, drawn" in quiet.summary()
