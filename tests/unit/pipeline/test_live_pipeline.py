import dataclasses
import threading

import bundle_factory
import feature_bundle
import numpy as np
import pytest
import stand_ins
from manual_clock import ManualClock
from patience import PATIENCE_S

from models.speaker import load_speaker
from streaming.errors import GpuLostError, Stopped
from streaming.pipeline.landmarks import BlinkSchedule
from streaming.pipeline.networks import open_networks
from streaming.pipeline.pipeline import Pipeline, QueueBounds
from streaming.pipeline.queues import Overflow
from streaming.pipeline.renderers import make_renderer
from streaming.session.session import LIVE_BOUNDS
from streaming.webrtc.media_schedule import (
    MIN_PLAYOUT_DELAY_TICKS,
    TICK_SAMPLES,
    TICKS_PER_FRAME,
    MediaSchedule,
)


@pytest.fixture(scope="module")
def wide_speaker(tmp_path_factory):
    """A speaker with GeneFace's condition window: five frames, two of them ahead."""
    folder = tmp_path_factory.mktemp("speakers") / "Wide"
    changes = {"image_size_px": 128, "condition_window_frames": 5, "condition_lookahead_frames": 2}
    return load_speaker(bundle_factory.write_tiny_bundle(folder, **changes))


@pytest.fixture(scope="module")
def hearing_speaker(tmp_path_factory):
    """A speaker as GeneFace trains them: four frames are moved at once, two more are waited for."""
    folder = tmp_path_factory.mktemp("speakers") / "Heard"
    changes = {"image_size_px": 128, "condition_window_frames": 5, "condition_lookahead_frames": 2}
    return load_speaker(feature_bundle.write_feature_bundle(folder, **changes))


def pipeline_of(speaker, raymarcher=None, **options):
    renderer = make_renderer(speaker, raymarcher or stand_ins.StandInRaymarcher(), 96)
    return Pipeline(speaker, renderer, **options)


def sound(seconds=2.3):
    return stand_ins.speech_like(seconds).astype(np.float32) / 32768


def run(speaker, chunks, **options):
    with pipeline_of(speaker, **options) as pipeline:
        pipeline.start_feed(chunks)
        return list(pipeline)


def chunks_of(pcm, size):
    return [pcm[at : at + size] for at in range(0, len(pcm), size)]


@pytest.mark.parametrize("kind", ["speaker", "wide_speaker", "hearing_speaker"])
def test_frames_do_not_depend_on_how_the_sound_was_cut(kind, request):
    speaker = request.getfixturevalue(kind)
    pcm = sound()
    whole = run(speaker, [pcm])
    assert [frame.index for frame in whole] == list(range(-(-len(pcm) // 640)))
    for size in (320, 1, 777, 16000):
        cut = run(speaker, chunks_of(pcm, size) if size > 1 else [*chunks_of(pcm[:700], 1), pcm[700:]])
        assert len(cut) == len(whole)
        for one, other in zip(whole, cut, strict=True):
            assert one.index == other.index
            assert np.array_equal(one.picture, other.picture)
            assert np.array_equal(one.landmarks, other.landmarks)
            assert np.array_equal(one.sound, other.sound)


def test_frames_carry_their_own_sound(speaker):
    pcm = sound(1.01)
    frames = run(speaker, [pcm])
    joined = np.concatenate([frame.sound for frame in frames])
    assert np.array_equal(joined[: len(pcm)], pcm)
    assert not joined[len(pcm) :].any()


def test_loud_opens_the_mouth_and_silence_closes_it(speaker):
    pcm = np.zeros(16000, np.float32)
    pcm[640 * 10 : 640 * 15] = 0.5 * np.sin(np.arange(640 * 5) / 3)
    lower_lip = np.array([frame.landmarks[66, 1] for frame in run(speaker, [pcm])])
    assert lower_lip[:10] == pytest.approx(0, abs=1e-6)
    assert (lower_lip[11:15] < -0.9).all()
    assert lower_lip[18:] == pytest.approx(0, abs=0.01)


def test_blinks_come_by_the_seed(speaker):
    pcm = np.zeros(16000 * 8, np.float32)
    lids = [np.array([f.landmarks[37, 1] for f in run(speaker, [pcm], seed=seed)]) for seed in (0, 0, 1)]
    assert np.array_equal(lids[0], lids[1])
    assert not np.array_equal(lids[0], lids[2])
    assert lids[0].min() == pytest.approx(speaker.blinks[:, 37, 1].min(), abs=1e-5)  # the whole way down


class NotingRenderer:
    """Draws as another does and keeps the frames of which it is told that a blink is in them."""

    def __init__(self, renderer):
        self._renderer = renderer
        self.render_px = renderer.render_px
        self.blinking = []

    def draw(self, *, blinking, **frame):
        self.blinking.append(blinking)
        return self._renderer.draw(blinking=blinking, **frame)


@pytest.mark.parametrize(("name", "behind", "ahead"), [("speaker", 0, 0), ("wide_speaker", 2, 2)])
def test_what_draws_is_told_of_each_frame_whose_window_has_a_blink(name, behind, ahead, request):
    speaker = request.getfixturevalue(name)
    pcm = np.zeros(16000 * 8, np.float32)
    renderer = NotingRenderer(make_renderer(speaker, stand_ins.StandInRaymarcher(), 96))
    with Pipeline(speaker, renderer) as pipeline:
        pipeline.start_feed([pcm])
        frames = list(pipeline)
    schedule = BlinkSchedule(seed=0, blink_frames=len(speaker.blinks))
    shown = [schedule.phase(frame) is not None for frame in range(len(frames))]
    wanted = [any(shown[max(0, i - behind) : i + ahead + 1]) for i in range(len(frames))]
    assert renderer.blinking == wanted
    assert 0 < sum(wanted) < len(wanted)


def test_the_head_goes_round_its_loop(speaker):
    frames = run(speaker, [np.zeros(640 * 55, np.float32)])
    blink_free = [i for i in range(5) if not np.any(frames[i].landmarks - frames[50 + i].landmarks)]
    assert blink_free
    for i in blink_free:
        assert np.array_equal(frames[i].picture, frames[50 + i].picture)


@pytest.mark.parametrize("samples", [1, 640, 641])
def test_the_shortest_sound_gets_its_frames(speaker, samples):
    assert len(run(speaker, [np.ones(samples, np.float32)])) == -(-samples // 640)


def test_no_sound_gives_no_frames(speaker):
    assert run(speaker, []) == []


def test_what_is_not_fetched_is_not_drawn_ahead(speaker):
    raymarcher = stand_ins.StandInRaymarcher()
    bounds = QueueBounds(conditions_ms=80, drawings_ms=80, frames_ms=80)
    with pipeline_of(speaker, raymarcher, bounds=bounds) as pipeline:
        pipeline.start_feed([sound(4)])
        for fetched, _ in enumerate(pipeline, 1):
            # Two calls a frame (whole, mouth); two queues of two frames and two stages at work.
            assert raymarcher.drawn <= 2 * (fetched + 2 + 2 + 2)
    assert fetched == 100


def test_each_stage_has_its_own_named_thread(speaker):
    raymarcher = stand_ins.StandInRaymarcher()
    with pipeline_of(speaker, raymarcher) as pipeline:
        pipeline.start_feed([sound(0.5)])
        list(pipeline)
    assert raymarcher.threads_seen == {"geneface-render"}


def test_live_drops_the_oldest_sound_and_keeps_the_clock(speaker):
    pcm = sound(3)
    pipeline = pipeline_of(speaker, overflow=Overflow.DROP_OLDEST, bounds=QueueBounds(audio_ms=400))
    for chunk in chunks_of(pcm, 320):  # not started yet: nobody takes it away
        pipeline.push_audio(chunk)
    pipeline.end_audio()
    assert pipeline.dropped["audio"] == 150 - 20
    with pipeline:
        frames = list(pipeline)
    assert frames[-1].index == 74
    # The last frames, whose windows lie in what was kept, are those of the undisturbed run.
    assert np.array_equal(frames[-1].sound, pcm[-640:])


class PacedRaymarcher(stand_ins.StandInRaymarcher):
    """Draws a frame when it is told to."""

    def __init__(self):
        super().__init__()
        self.permits = threading.Semaphore(0)

    def render(self, **drawn):
        assert self.permits.acquire(timeout=PATIENCE_S)
        return super().render(**drawn)


def test_live_frames_that_come_at_once_are_all_drawn_when_they_are_due(hearing_speaker):
    """One frame is drawn in 40 ms, as late as can be: what waits meanwhile has room, and nothing is late."""
    speaker, clock, raymarcher = hearing_speaker, ManualClock(1000.0), PacedRaymarcher()
    schedule = MediaSchedule(
        start_s=clock.time_s,
        start_unix_s=0.0,
        lookahead_frames=speaker.lookahead_frames,
        playout_delay_ticks=MIN_PLAYOUT_DELAY_TICKS,
    )
    pcm, ticks = sound(3), 2 * 74
    # The sound's own queue would drop what this test pushes faster than the clock goes.
    bounds = dataclasses.replace(LIVE_BOUNDS, audio_ms=4000)
    pipeline = Pipeline(
        speaker,
        make_renderer(speaker, raymarcher, 128),
        overflow=Overflow.DROP_OLDEST,
        bounds=bounds,
        clock=clock,
    )
    frames = []
    with pipeline:
        for tick in range(ticks):
            clock.time_s = schedule.tick_s(tick)
            pipeline.push_audio(pcm[TICK_SAMPLES * tick : TICK_SAMPLES * (tick + 1)])
            known = (tick + 1) // TICKS_PER_FRAME
            if (tick + 1) % TICKS_PER_FRAME == 0 and known > speaker.lookahead_frames:
                raymarcher.permits.release()
                frames.append(pipeline.next_frame(20))
        raymarcher.permits.release(100)  # what is under way may end
    assert [frame.index for frame in frames] == list(range(74 - speaker.lookahead_frames))
    assert all(frame.finished_s <= schedule.frame_due_s(frame.index) for frame in frames)
    assert set(pipeline.dropped.values()) == {0}


def test_clear_buffer_forgets_what_was_not_given_out(speaker):
    pcm = sound(2)
    bounds = QueueBounds(audio_ms=4000, conditions_ms=4000, drawings_ms=4000, frames_ms=4000)
    with pipeline_of(speaker, overflow=Overflow.DROP_OLDEST, bounds=bounds) as pipeline:
        for chunk in chunks_of(pcm, 320):
            pipeline.push_audio(chunk)
        pipeline.clear_buffer()
        pipeline.push_audio(np.zeros(640 * 6, np.float32))
        pipeline.end_audio()
        frames = list(pipeline)
    assert [frame.index for frame in frames] == list(range(50, 56))
    assert not any(frame.sound.any() for frame in frames)


def test_a_failing_stage_is_told_to_who_iterates(speaker):
    with pipeline_of(speaker, stand_ins.StandInRaymarcher(fail_at=8)) as pipeline:
        pipeline.start_feed([sound()])
        with pytest.raises(RuntimeError, match="told to fail"):
            list(pipeline)
        with pytest.raises(Stopped):
            pipeline.push_audio(np.zeros(64000, np.float32))


class LostRaymarcher(stand_ins.StandInRaymarcher):
    """Draws some frames, then its GPU is lost."""

    def render(self, **drawn):
        if self.drawn >= 10:
            self.lost = True
            raise GpuLostError("cuLaunchKernel: CUDA_ERROR_LAUNCH_FAILED")
        return super().render(**drawn)


def test_a_lost_gpu_fails_a_pipeline_that_has_nothing_else(speaker):
    with pipeline_of(speaker, LostRaymarcher()) as pipeline:
        pipeline.start_feed([sound()])
        with pytest.raises(GpuLostError, match="LAUNCH_FAILED"):
            list(pipeline)


def test_a_pipeline_that_outlives_its_gpu_leaves_frames_out_until_it_has_another_renderer(speaker):
    pcm, lost, cpu = sound(2), LostRaymarcher(), stand_ins.StandInRaymarcher()
    with pipeline_of(speaker, lost, outlives_gpu=True) as pipeline:
        pipeline.push_audio(pcm[:16000])  # two calls a frame: five of about 24 are drawn
        first = [pipeline.next_frame(20).index for _ in range(5)]
        with pytest.raises(TimeoutError):
            pipeline.next_frame(0.1)
        pipeline.renderer = make_renderer(speaker, cpu, 96)
        pipeline.push_audio(pcm[16000:])
        pipeline.end_audio()
        rest = [frame.index for frame in pipeline]
    assert lost.lost
    assert first == [0, 1, 2, 3, 4]
    assert rest == list(range(rest[0], 50))
    assert 5 < rest[0] <= 25
    assert cpu.drawn == 2 * len(rest)


def test_a_failing_source_is_told_to_who_iterates(speaker):
    def broken():
        yield sound(0.5)
        raise ValueError("the source broke")

    with pytest.raises(ValueError, match="the source broke"):
        run(speaker, broken())


def test_close_ends_waiting_threads_and_closes_twice(speaker):
    pipeline = pipeline_of(speaker)
    pipeline.start()
    pipeline.start_feed([sound(5)])
    pipeline.next_frame(timeout_s=30)
    pipeline.close()
    pipeline.close()
    with pytest.raises(Stopped):
        pipeline.next_frame()


def test_a_pipeline_closes_unstarted(speaker):
    pipeline = pipeline_of(speaker)
    pipeline.close()
    with pytest.raises(RuntimeError, match="closed"):
        pipeline.start()


def test_engines_are_checked_against_the_bundle(speaker, wide_speaker):
    import dataclasses

    mixed = dataclasses.replace(speaker, condition=wide_speaker.condition)
    with pytest.raises(ValueError, match=r"condition\.onnx: input 'window': expected float32 \[5, 204\]"):
        open_networks(mixed)
    swapped = dataclasses.replace(speaker, motion_onnx=speaker.condition_onnx)
    with pytest.raises(ValueError, match="expected an input named 'pcm', got window"):
        open_networks(swapped)


def test_nothing_comes_after_clear_buffer_when_no_more_sound_comes(speaker):
    with pipeline_of(speaker, overflow=Overflow.DROP_OLDEST) as pipeline:
        pipeline.push_audio(sound(1))
        pipeline.clear_buffer()
        pipeline.end_audio()
        assert list(pipeline) == []
