"""One session without a network: its connection, its threads, its failures and its end."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import types

import numpy as np
import plate_files
import pytest
import stand_ins
from manual_clock import ManualClock
from on_loop import on_loop, until
from session_parts import SOUND_STEP, VIDEO_STEP, StandInEncoder, StandInSender

from streaming.errors import NetworkFailureError
from streaming.pipeline.loaded_speaker import LoadedSpeaker
from streaming.pipeline.plates import PlateMemory
from streaming.pipeline.render_size import FrameCost
from streaming.session.liveness import PEER_TIMEOUT_S
from streaming.session.metrics import Metrics
from streaming.session.session import Session, SessionSettings
from streaming.webrtc.opus import OpusEncoder
from streaming.webrtc.peer import PeerSettings

ID = "abcdef-unguessable-id"
LABEL = "abcdef"
SILENCE = OpusEncoder().encode(np.zeros(960, np.float32))


class StandInPeer:
    """A connection that is there when the test says so."""

    def __init__(
        self, settings, schedule, *, on_packet, on_keyframe_wanted, on_bandwidth, on_state, on_malformed
    ):
        self.on_packet, self.on_state = on_packet, on_state
        self.on_keyframe_wanted, self.on_bandwidth = on_keyframe_wanted, on_bandwidth
        self.on_malformed = on_malformed
        self.packets_received = 0
        self.sound, self.video, self.microphone = StandInSender(), StandInSender(), None
        self.encoder = None
        self.codec = types.SimpleNamespace(name="VP8", open=self._open)
        self.closed = 0
        self.may_close = asyncio.Event()
        self.may_close.set()
        self.fails = None

    def _open(self, **opened):
        self.encoder = StandInEncoder(**opened)
        return self.encoder

    def connect(self):
        self.sound.connected = self.video.connected = True
        self.on_state("connected")

    async def answer(self, offer):
        if isinstance(offer, Exception):
            raise offer
        return "the answer"

    async def aclose(self):
        self.closed += 1
        await self.may_close.wait()
        if self.fails is not None:
            raise self.fails


class Setup:
    def __init__(self, speaker, networks, *, clock=None, raymarcher=None, plates=None):
        self.raymarcher = raymarcher or stand_ins.StandInRaymarcher()
        self.loaded = LoadedSpeaker(
            speaker=speaker,
            networks=networks,
            raymarcher=self.raymarcher,
            sizes_px=(128, 96),
            start_px=128,
            costs={size: FrameCost(render_ms=5.0, other_ms=5.0) for size in (128, 96)},
            threads=1,
            plates=plates,
        )
        self.metrics = Metrics()
        self.ends = []
        self.clock = clock
        self.session = Session(
            ID,
            self.loaded,
            SessionSettings(peer=PeerSettings(), bitrate=1_200_000),
            self.metrics,
            on_end=lambda session, reason: self.ends.append((session, reason)),
            clock=clock,
            open_peer=StandInPeer,
        )
        self.peer = self.session.peer

    def sample(self, name, **labels):
        return self.metrics.registry.get_sample_value(f"geneface_{name}", labels)


@pytest.fixture
def setup(speaker, networks):
    return lambda **changes: Setup(speaker, networks, **changes)


def threads_of_sessions():
    """What a session has running; not what has just told that all of it is through."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("geneface-") and name != f"geneface-close-{LABEL}"]


# The connection ---------------------------------------------------------------------------------------


@on_loop
async def test_a_session_is_over_when_neither_packets_nor_pings_come(setup):
    it = setup(clock=ManualClock(1000.0))
    it.peer.connect()
    it.peer.packets_received += 1
    assert it.session.check(1003.0) is None
    assert it.session.check(1003.0 + PEER_TIMEOUT_S) is None
    assert it.session.check(1003.0 + PEER_TIMEOUT_S + 0.1) == "timed out"
    await it.session.aclose("timed out")


@pytest.mark.parametrize(
    ("state", "reason"), [("failed", "the connection failed"), ("closed", "the peer left")]
)
@on_loop
async def test_a_connection_that_ends_ends_the_session_once(setup, state, reason):
    it = setup()
    it.peer.connect()
    it.peer.on_state("disconnected")
    assert it.ends == []
    it.peer.on_state(state)
    it.peer.on_state("closed")
    assert it.ends == [(it.session, reason)]
    await it.session.aclose(reason)


@on_loop
async def test_a_session_that_closes_itself_asks_for_no_other_end(setup):
    it = setup()
    await it.session.aclose("server stopping")
    it.peer.on_state("closed")
    assert it.ends == []


# A run ------------------------------------------------------------------------------------------------


@on_loop
async def test_sound_and_pictures_leave_by_one_media_clock(setup):
    it = setup()
    assert await it.session.answer("offer") == "the answer"
    it.peer.connect()
    await until(lambda: len(it.peer.video.pushed) >= 5 and len(it.peer.sound.pushed) >= 10)
    message, last = it.session.telemetry.message(-1)
    await it.session.aclose("done")

    sound, video = it.peer.sound.pushed, it.peer.video.pushed
    first = sound[0].timestamp // SOUND_STEP
    assert [block.timestamp for block in sound] == [SOUND_STEP * (first + k) for k in range(len(sound))]
    assert all(len(block.payloads) == 1 and block.payloads[0] for block in sound)
    assert {block.duration_ms for block in sound} == {20.0}
    assert {block.level_db for block in sound} == {-100.0}
    assert [picture.timestamp for picture in video] == [
        VIDEO_STEP * number for number in it.peer.encoder.numbers[: len(video)]
    ]
    assert {picture.duration_ms for picture in video} == {40.0}

    assert it.peer.encoder.opened == {"size_px": 128, "bitrate": 1_200_000}
    assert it.peer.encoder.thread == f"geneface-video-{LABEL}"
    assert message["frames_rendered"] >= len(message["frames"]) >= 4
    assert it.sample("frames_rendered_total", speaker="Tiny") == it.session.downlink.rendered
    for frame in message["frames"]:
        assert (frame["rtp"] - 7) % VIDEO_STEP == 0  # as on the wire
        assert frame["captured_ms"] is None  # no microphone
        assert frame["arrived_ms"] is None
        stages = [frame[f"{name}_ms"] for name in ("buffered", "windowed", "rendered", "encoded", "sent")]
        assert stages == sorted(stages)
    again, same = it.session.telemetry.message(last)
    assert all(frame["rtp"] > message["frames"][-1]["rtp"] for frame in again["frames"])
    assert same >= last


@on_loop
async def test_a_frame_leaves_with_the_sound_of_its_first_samples(setup):
    it = setup()
    schedule = it.session.schedule
    frame_s = schedule.frame_due_s(10)
    tick_s = schedule.tick_s(20 + schedule.sound_delay_ticks)  # frame 10 begins with tick 20
    assert 0 <= frame_s - tick_s <= 0.05  # receivers hold sound a little longer
    await it.session.aclose("done")


@on_loop
async def test_what_the_connection_tells_reaches_uplink_downlink_and_telemetry(setup, caplog):
    it = setup()
    await it.session.answer("offer")
    await until(lambda: it.peer.encoder)
    it.peer.on_keyframe_wanted()
    it.peer.on_bandwidth(400_000)
    assert (it.peer.encoder.keyframes, it.peer.encoder.limits) == (1, [400_000])
    it.peer.on_malformed("rtp", "too short")
    assert it.sample("malformed_packets_total", kind="rtp") == 1
    assert f"session {LABEL}: a malformed packet" in caplog.text
    assert it.session.uplink.microphone.packets_lost == 0
    for sequence in (1, 3, 4, 5, 6, 7, 8, 9):
        it.peer.on_packet(sequence, 960 * sequence, SILENCE, it.session.schedule.start_s)
    await until(lambda: it.session.uplink.microphone.packets_lost)
    await it.session.aclose("done")


@on_loop
async def test_a_network_that_fails_is_told_to_the_page(setup):
    it = setup()
    it.session.pipeline._network_failed(
        NetworkFailureError("motion.onnx", speaker="Tiny", expected="landmarks", got="NaN")
    )
    assert len(it.session.telemetry.message(-1)[0]["notes"]) == 1
    assert it.sample("network_failures_total", speaker="Tiny", network="motion.onnx") == 1
    await it.session.aclose("done")


# Failures ---------------------------------------------------------------------------------------------


@on_loop
async def test_a_stage_that_fails_ends_the_session_and_is_logged_once(setup, caplog):
    it = setup(raymarcher=stand_ins.StandInRaymarcher(fail_at=2))
    await it.session.answer("offer")
    it.peer.connect()
    await until(lambda: it.ends)
    assert it.ends == [(it.session, "the video thread failed")]
    await it.session.aclose("the video thread failed")
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.getMessage() == f"session {LABEL}: the video thread failed"
    assert "told to fail" in str(record.exc_info[1])
    assert threads_of_sessions() == []


@on_loop
async def test_a_microphone_that_fails_ends_the_session(setup, monkeypatch, caplog):
    it = setup()
    monkeypatch.setattr(it.session.uplink.microphone, "read", lambda now_s: 1 / 0)
    await it.session.answer("offer")
    await until(lambda: it.ends)
    assert it.ends == [(it.session, "the media thread failed")]
    await it.session.aclose("the media thread failed")
    assert "ZeroDivisionError" in caplog.text


@on_loop
async def test_an_encoder_that_does_not_open_ends_the_session(setup, monkeypatch, caplog):
    it = setup()
    monkeypatch.setattr(it.peer.codec, "open", lambda **_: 1 / 0)
    await it.session.answer("offer")
    await until(lambda: it.ends)
    await it.session.aclose(it.ends[0][1])
    assert it.ends == [(it.session, "the video thread failed")]
    assert threads_of_sessions() == []


@on_loop
async def test_an_offer_that_fails_leaves_no_thread(setup):
    it = setup()
    with pytest.raises(OSError, match="no port"):
        await it.session.answer(OSError("no port"))
    await it.session.aclose("the offer failed")
    assert threads_of_sessions() == []
    assert it.peer.closed == 1


@on_loop
async def test_a_session_goes_on_with_the_cpu_at_its_smallest_size(setup):
    it = setup()
    raymarcher = stand_ins.StandInRaymarcher()
    cpu = dataclasses.replace(
        it.loaded,
        raymarcher=raymarcher,
        costs={size: FrameCost(render_ms=25.0, other_ms=5.0) for size in (128, 96)},
    )
    await it.session.answer("offer")
    it.peer.connect()
    before_ms = it.session.schedule.delay_ms
    it.session.move_to(cpu)
    await until(lambda: 96 in raymarcher.sizes)
    message, _ = it.session.telemetry.message(-1)
    assert message["render_px"] == 96
    assert message["render_note"] == "the GPU failed, the CPU draws"
    assert it.session.schedule.delay_ms > before_ms
    assert it.session.render_px == 96
    assert not it.ends
    await it.session.aclose("done")
    assert threads_of_sessions() == []


@on_loop
async def test_the_first_frame_does_not_wait_for_the_plates_and_later_ones_are_drawn_over_them(
    setup, speaker
):
    gate = threading.Event()
    plates = PlateMemory(100).open(plate_files.plated(speaker, gate=gate), say=pytest.fail)
    it = setup(plates=plates)
    await it.session.answer("an offer")
    it.peer.connect()
    await until(lambda: it.raymarcher.masks)
    assert it.raymarcher.masks[0] is None
    assert it.session.telemetry.message(-1)[0]["drawn_share"] == 1.0
    gate.set()
    await until(lambda: it.raymarcher.masks[-1] is not None)
    await until(lambda: it.session.telemetry.message(-1)[0]["drawn_share"] < 1)
    it.session.telemetry.update_metrics()
    assert 0 < it.sample("drawn_ratio", session=LABEL) < 1
    await it.session.aclose("done")
    plates.close()
    assert threads_of_sessions() == []


# The end ----------------------------------------------------------------------------------------------


@on_loop
async def test_an_ended_session_leaves_no_thread_and_says_so_at_once(setup):
    it = setup()
    await it.session.answer("offer")
    assert len(threads_of_sessions()) == 5  # media, video, motion, render, finish
    assert not await it.session.wait_ended(0.001)
    waiting = asyncio.create_task(it.session.wait_ended(30))
    await asyncio.sleep(0)
    await it.session.aclose("server stopping")
    assert await waiting
    assert it.session.ended == "server stopping"
    assert it.peer.closed == 1
    assert threads_of_sessions() == []


@on_loop
async def test_a_session_that_never_began_ends(setup):
    it = setup()
    await it.session.aclose("no room")
    await it.session.aclose("again")
    assert it.session.ended == "no room"
    assert it.peer.closed == 1


@on_loop
async def test_two_callers_may_end_a_session_at_the_same_time_and_both_wait(setup):
    it = setup()
    await it.session.answer("offer")
    it.peer.may_close.clear()
    both = [asyncio.create_task(it.session.aclose(reason)) for reason in ("one", "two")]
    await until(lambda: it.peer.closed)
    assert not any(task.done() for task in both)
    it.peer.may_close.set()
    await asyncio.gather(*both)
    assert it.session.ended == "one"
    assert it.peer.closed == 1
    assert threads_of_sessions() == []


@on_loop
async def test_the_caller_that_closes_a_session_may_go_away(setup):
    it = setup()
    await it.session.answer("offer")
    it.peer.may_close.clear()
    first = asyncio.create_task(it.session.aclose("one"))
    await until(lambda: it.peer.closed)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    it.peer.may_close.set()
    await it.session.aclose("two")
    assert threads_of_sessions() == []


@on_loop
async def test_a_connection_that_closes_badly_keeps_no_thread(setup, caplog):
    it = setup()
    await it.session.answer("offer")
    it.session.telemetry.update_metrics()
    it.peer.fails = ZeroDivisionError()
    await it.session.aclose("one")
    assert threads_of_sessions() == []
    assert "the connection did not close well" in caplog.text
    assert LABEL not in it.metrics.text().decode()


@on_loop
async def test_threads_stop_while_the_connection_still_closes(setup):
    it = setup()
    await it.session.answer("offer")
    it.peer.may_close.clear()
    closing = asyncio.create_task(it.session.aclose("one"))
    await until(lambda: not any("media" in name or "video" in name for name in threads_of_sessions()))
    it.peer.may_close.set()
    await closing


def test_threads_outlive_no_loop_that_ended_without_them(setup):
    async def begin():
        it = setup()
        await it.session.answer("offer")
        it.peer.connect()
        await until(lambda: it.peer.sound.pushed)
        return it.session

    session = asyncio.run(begin())  # nobody closed it: its threads talk to a loop that is no more
    sent = threading.Semaphore(0)
    on_loop_before = session.uplink._on_loop
    session.uplink._on_loop = lambda *call: (on_loop_before(*call), sent.release())
    assert all(sent.acquire(timeout=10) for _ in range(5))
    assert len(threads_of_sessions()) == 5
    session._threads.stopping.set()
    session._join()
    assert threads_of_sessions() == []
