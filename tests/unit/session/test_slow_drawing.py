"""A session on a clock of its own, whose pictures take as long as they are told: what is seen and heard."""

from __future__ import annotations

import asyncio
import itertools
import threading
import types

import pytest
import stand_ins
from on_loop import until
from patience import PATIENCE_S

from streaming.pipeline.loaded_speaker import LoadedSpeaker
from streaming.pipeline.render_size import FrameCost
from streaming.session.drawing_pace import EASY_FPS, SLOW_FPS, WINDOW_S, DrawingPace, slow_note
from streaming.session.metrics import Metrics
from streaming.session.session import Session, SessionSettings
from streaming.webrtc.media_schedule import MAX_PLAYOUT_DELAY_TICKS, TICK_S, TICKS_PER_FRAME
from streaming.webrtc.peer import PeerSettings

SETTLE_S, MEASURED_S = 4.0, 4.0


class VirtualClock:
    """Goes on when the test says so; threads may wait for its times."""

    def __init__(self):
        self.time_s = 1000.0
        self._moved = threading.Condition()

    def now_s(self):
        return self.time_s

    def set(self, time_s):
        with self._moved:
            self.time_s = time_s
            self._moved.notify_all()

    def wait_until(self, time_s):
        with self._moved:
            assert self._moved.wait_for(lambda: self.time_s >= time_s, PATIENCE_S)


class Costly:
    """Work that takes virtual time."""

    def __init__(self, clock, cost_s=0.0):
        self.clock, self.cost_s = clock, cost_s
        self.ends_s = None  # while it is at work
        self.done = 0

    def work(self):
        self.ends_s = self.clock.now_s() + self.cost_s
        self.clock.wait_until(self.ends_s)
        self.done += 1
        self.ends_s = None

    @property
    def busy(self):
        ends_s = self.ends_s
        return ends_s is not None and ends_s > self.clock.now_s()


class CostlyRaymarcher(stand_ins.StandInRaymarcher):
    def __init__(self, costly):
        super().__init__()
        self.costly = costly

    def render(self, **given):
        picture = super().render(**given)
        self.costly.work()
        return picture


class Sender:
    connected, round_trip_s = True, None

    def __init__(self):
        self.timestamps = []

    def push(self, payloads, timestamp, duration_ms, level_db=None):
        self.timestamps.append(timestamp)

    def wire_timestamp(self, timestamp):
        return timestamp


class Encoder:
    """Notes when each picture was encoded."""

    def __init__(self, costly):
        self.costly, self.pictures = costly, []

    def encode(self, picture, number):
        self.costly.work()
        self.pictures.append((self.costly.clock.now_s(), number))
        return [b"picture"]


class Simulation:
    """One session at its only size, driven event by event."""

    def __init__(self, speaker, networks, *, draw_s, encode_s=0.0):
        self.clock = VirtualClock()
        self.drawing, self.encoding = Costly(self.clock, draw_s), Costly(self.clock, encode_s)
        self.encoder = Encoder(self.encoding)
        self.sound, self.video = Sender(), Sender()
        peer = types.SimpleNamespace(
            sound=self.sound,
            video=self.video,
            microphone=None,
            packets_received=0,
            codec=types.SimpleNamespace(name="VP8", open=lambda **_: self.encoder),
            aclose=lambda: asyncio.sleep(0),
        )
        host = LoadedSpeaker(
            speaker=speaker,
            networks=networks,
            raymarcher=CostlyRaymarcher(self.drawing),
            sizes_px=(128,),
            start_px=128,
            costs={128: FrameCost(render_ms=5.0, other_ms=5.0)},
            threads=1,
        )
        settings = SessionSettings(peer=PeerSettings(), bitrate=1_000_000)
        self.session = Session(
            "simulated",
            host,
            settings,
            Metrics(),
            on_end=lambda *_: None,
            clock=self.clock,
            open_peer=lambda *_, **__: peer,
        )
        self.conditioned = 0
        put = self.session.pipeline._conditions.put

        def counted(item):
            put(item)
            self.conditioned += 1

        self.session.pipeline._conditions.put = counted
        self.ticks = 0

    async def run(self, seconds):
        schedule = self.session.schedule
        end_s = self.clock.now_s() + seconds
        while True:
            tick_s = schedule.tick_s(self.ticks)
            ends = [work.ends_s for work in (self.drawing, self.encoding) if work.busy]
            now_s = min([tick_s, *ends])
            if now_s >= end_s:
                return
            self.clock.set(now_s)
            if now_s == tick_s:
                self.session.uplink.take_tick(self.ticks, tick_s)
                self.ticks += 1
            await self._settle()

    async def _settle(self):
        """Waits until each thread has done what it can at this time."""
        ready = max(0, self.ticks // TICKS_PER_FRAME - self.session.loaded.speaker.lookahead_frames)
        queue, late = self.session.pipeline._conditions, lambda: self.session.downlink.dropped["late"]

        def settled():
            seen = self.encoding.busy or len(self.encoder.pictures) + late() == self.drawing.done
            drawing = self.drawing.busy or self.encoding.busy or queue.waiting_ms == 0
            return self.conditioned == ready and seen and drawing

        await asyncio.sleep(0)  # what was sent by the threads is taken by the loop
        deadline_s = asyncio.get_running_loop().time() + PATIENCE_S
        while not settled():
            assert asyncio.get_running_loop().time() < deadline_s
            await asyncio.sleep(0.0005)


@pytest.fixture
def simulate(speaker, networks):
    """Runs a session until it has settled, then for a while, and returns what it did in that while."""

    async def run(**costs):
        it = Simulation(speaker, networks, **costs)
        session = it.session
        session.pipeline.start()
        session._threads.start("video", lambda stopping: session.downlink.run(stopping, session.peer.codec))
        try:
            await it.run(SETTLE_S)
            drawn, shown = it.drawing.done, len(it.encoder.pictures)
            await it.run(MEASURED_S)
            found = types.SimpleNamespace(
                drawn=it.drawing.done - drawn,
                pictures=it.encoder.pictures[shown:],
                numbers=[number for _, number in it.encoder.pictures],
                sounds=list(it.sound.timestamps),
                ticks=it.ticks,
                schedule=session.schedule,
                telemetry=session.telemetry.message(-1)[0],
            )
        finally:
            it.drawing.cost_s = it.encoding.cost_s = 0.0
            it.clock.set(it.clock.now_s() + 10.0)
            await until(lambda: session.downlink.rendered == len(it.encoder.pictures))
            await asyncio.sleep(0)
            await session.aclose("done")
        assert it.video.timestamps[: len(found.numbers)] == [3600 * number for number in found.numbers]
        return found

    return lambda **costs: asyncio.run(run(**costs))


@pytest.mark.parametrize("draw_ms", [20, 60, 100, 150, 180, 250, 600])
def test_what_the_machine_can_draw_is_seen_and_the_sound_goes_on(simulate, draw_ms):
    found = simulate(draw_s=draw_ms / 1000)
    possible = min(25.0, 1000 / draw_ms) * MEASURED_S
    assert len(found.pictures) >= 0.93 * possible - 1
    assert len(found.pictures) >= found.drawn - 1
    assert found.numbers == sorted(set(found.numbers))
    gaps_s = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(found.pictures)]
    assert max(gaps_s) <= max(0.04, draw_ms / 1000) + 0.045
    # Not a block of sound is missing, and each left after the delay of the moment.
    assert found.sounds == [960 * tick for tick in range(len(found.sounds))]
    assert len(found.sounds) == pytest.approx(found.ticks - found.schedule.sound_delay_ticks, abs=2)


@pytest.mark.parametrize("draw_ms", [20, 60, 100, 150])
def test_pictures_are_in_time_as_long_as_the_longest_allowance_has_room(simulate, draw_ms):
    found = simulate(draw_s=draw_ms / 1000)
    late_s = [at_s - found.schedule.frame_due_s(number) for at_s, number in found.pictures]
    assert max(late_s) <= 0.04 + TICK_S  # the playout delay grows by a tick, once several are late
    assert found.telemetry["frames_dropped"]["late"] <= 12  # while the playout delay grew


def test_late_pictures_are_as_new_as_they_can_be(simulate):
    found = simulate(draw_s=0.25)
    assert found.schedule.playout_delay_ticks == MAX_PLAYOUT_DELAY_TICKS
    late_s = [at_s - found.schedule.frame_due_s(number) for at_s, number in found.pictures]
    # A drawing, and the frame's time that the newest may have waited, less what was allowed.
    assert max(late_s) <= 0.25 + 0.04 - MAX_PLAYOUT_DELAY_TICKS * TICK_S + 0.001


def test_too_many_pictures_cost_no_delay_that_would_not_help(simulate):
    """At 60 ms a picture a third has to be skipped, whatever the playout delay."""
    assert simulate(draw_s=0.06).schedule.playout_delay_ticks <= 6


@pytest.mark.parametrize("encode_ms", [60, 150])
def test_what_a_slow_encoder_can_encode_is_seen_and_is_new(simulate, encode_ms):
    found = simulate(draw_s=0.02, encode_s=encode_ms / 1000)
    assert len(found.pictures) >= 0.9 * 1000 / encode_ms * MEASURED_S - 1
    late_s = [at_s - found.schedule.frame_due_s(number) for at_s, number in found.pictures]
    assert max(late_s) <= 2 * encode_ms / 1000 + 0.06
    assert found.sounds == [960 * tick for tick in range(len(found.sounds))]


@pytest.mark.parametrize(
    ("draw_ms", "says"), [(20, None), (150, "about 7 pictures a second"), (600, "about 2")]
)
def test_a_page_is_told_of_a_slow_machine_and_the_way_out(simulate, caplog, draw_ms, says):
    message = simulate(draw_s=draw_ms / 1000).telemetry
    logged = [record.getMessage() for record in caplog.records if "pictures a second" in record.getMessage()]
    if says is None:
        assert message["notes"] == logged == []
        assert message["frames_dropped"] == {"skipped": 0, "late": 0, "bandwidth": 0}
        return
    [note] = message["notes"]
    assert says in note
    assert "the sound goes on" in note
    assert "--render-size auto" in note
    assert len(logged) == 1
    assert message["frames_dropped"]["skipped"] > 50


# The pace ---------------------------------------------------------------------------------------------


def drawn_at(fps, seconds, pace, since_s=0.0):
    for k in range(int(fps * seconds)):
        pace.picture_drawn(since_s + k / fps)


def test_the_pace_is_unknown_at_first_and_slow_until_it_is_well_again():
    pace = DrawingPace()
    assert pace.slow_fps(0.0) is None
    drawn_at(10.0, 10.0, pace)
    assert pace.slow_fps(WINDOW_S - 0.1) is None
    assert pace.slow_fps(10.0) == pytest.approx(10.0, abs=0.3)
    between = (SLOW_FPS + EASY_FPS) / 2
    drawn_at(between, 10.0, pace, 10.0)
    assert pace.slow_fps(20.0) == pytest.approx(between, abs=0.3)
    drawn_at(25.0, 10.0, pace, 20.0)
    assert pace.slow_fps(30.0) is None
    drawn_at(between, 10.0, pace, 30.0)
    assert pace.slow_fps(40.0) is None


def test_a_machine_that_draws_nothing_more_is_slow():
    pace = DrawingPace()
    drawn_at(25.0, 10.0, pace)
    assert pace.slow_fps(60.0) == 0.0


def test_the_ways_out_fit_what_draws():
    assert "less than one picture a second" in slow_note(0.3, on_gpu=False, can_draw_smaller=False)
    assert "about 1 picture a second" in slow_note(1.2, on_gpu=False, can_draw_smaller=False)
    on_cpu = slow_note(6.6, on_gpu=False, can_draw_smaller=False)
    assert "--max-sessions" in on_cpu
    assert "GPU" in on_cpu
    assert "--render-size" not in on_cpu
    assert "NVIDIA" not in slow_note(6.6, on_gpu=True, can_draw_smaller=True)
