"""Sessions with a real peer in this process: slow drawing, a stage that fails, and what they leave behind."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
import stand_ins
from live_sessions import LiveSessions
from on_loop import on_loop, until
from patience import PATIENCE_S

from models.speaker_folders import FoundSpeaker
from streaming.session.admission import Admission
from streaming.session.registry import Sessions
from streaming.session.session import SessionSettings
from streaming.session.speaker_list import SpeakerList
from streaming.webrtc.peer import PeerSettings


class SlowRaymarcher(stand_ins.StandInRaymarcher):
    """Takes as long for a whole picture as it is told, by its size; for a mouth alone, next to nothing."""

    def __init__(self, **options):
        super().__init__(**options)
        self.takes_s = {}

    def render(self, *, size_px, region_px=None, **given):
        if region_px is None:
            time.sleep(self.takes_s.get(size_px, 0.0))
        return super().render(size_px=size_px, region_px=region_px, **given)


class Setup(LiveSessions):
    def __init__(self, speaker, networks):
        super().__init__(speaker, networks)
        self.raymarcher = SlowRaymarcher()
        self.sessions = Sessions(
            lambda _: self.host(SlowRaymarcher(fail_at=20), 128, 96),
            self.host(self.raymarcher, 128, 96),
            SessionSettings(peer=PeerSettings(), bitrate=600_000),
            Admission(cores=8),
            self.metrics,
            speakers=SpeakerList(lambda: [FoundSpeaker(name="Fails", path=speaker.path, place="user")]),
        )


@pytest.fixture
def setup(speaker, networks):
    return lambda: Setup(speaker, networks)


async def comes(peer, *, pictures=0, sounds=0):
    wanted = len(peer.pictures) + pictures, len(peer.sounds) + sounds
    await until(
        lambda: len(peer.pictures) >= wanted[0] and len(peer.sounds) >= wanted[1],
        what=f"{pictures} pictures and {sounds} blocks of sound",
    )


def behind_s(session):
    """Returns how long after it was due the newest picture was sent."""
    newest = session.downlink.frames.after(-1)[-1]
    return newest.sent_s - session.schedule.frame_due_s(newest.index)


@on_loop
async def test_slow_drawing_draws_smaller_and_sound_goes_on(setup):
    async with setup() as it:
        peer, session = await it.connect()
        await comes(peer, pictures=5, sounds=10)
        it.raymarcher.takes_s[128] = 0.08  # two frames' time
        await until(lambda: session.downlink.resolution.size_px == 96, what="smaller pictures")
        await comes(peer, sounds=10)
        message, _ = session.telemetry.message(-1)
        assert message["render_px"] == 96
        assert message["render_note"].startswith("smaller: ")
        assert it.sample("render_size_changes_total", direction="down") == 1

        await comes(peer, pictures=25, sounds=50)
        # What was late was left out, not queued: what is sent now is as old as at the beginning.
        await until(lambda: behind_s(session) < 0.5, what="pictures as new as at the beginning")


@on_loop
async def test_drawing_too_slow_at_any_size_still_keeps_the_sound_and_the_delay(setup):
    async with setup() as it:
        peer, session = await it.connect()
        await comes(peer, pictures=5, sounds=10)
        it.raymarcher.takes_s.update({128: 0.15, 96: 0.15})
        await comes(peer, sounds=100)

        def skipped():
            return session.telemetry.message(-1)[0]["frames_dropped"]["skipped"]

        def counted():
            return it.sample("frames_dropped_total", speaker="Tiny", reason="skipped")

        await until(lambda: skipped() > 20, what="pictures left out")
        await until(lambda: counted() == skipped(), what="the metric says what telemetry says")
        assert all(queue.waiting_ms <= queue.bound_ms for queue in session.pipeline._queues)
        assert not session.ended
        it.raymarcher.takes_s.clear()
        await comes(peer, pictures=10, sounds=20)  # and it recovers
        await until(lambda: behind_s(session) < 0.5, what="pictures as new as at the beginning")


@on_loop
async def test_a_stage_that_fails_ends_its_session_and_no_other(setup, caplog):
    async with setup() as it:
        healthy, session = await it.connect()
        doomed, failing = await it.connect("Fails")
        await until(lambda: it.sessions.get(failing.id) is None)
        await until(lambda: doomed.connection.connectionState == "closed", what="the peer was told")
        assert failing.ended == "the video thread failed"
        assert it.sample("sessions_total", end="the video thread failed") == 1
        assert [r.getMessage() for r in caplog.records if r.exc_info] == [
            f"session {failing.label}: the video thread failed"
        ]
        assert it.sessions.get(session.id) is session
        await comes(healthy, pictures=10, sounds=20)

        again, answered = await it.connect()  # its place is free
        await comes(again, pictures=5)
        assert len(it.sessions) == it.sample("sessions_active") == 2
        for peer in it.peers:
            await peer.close()
        await until(lambda: len(it.sessions) == 0, what="the server was told")
        assert answered.ended == "the peer left"


@on_loop
async def test_a_frame_that_never_ends_holds_its_session_but_not_the_others(setup, monkeypatch):
    monkeypatch.setattr("streaming.pipeline.pipeline._JOIN_S", 0.3)
    async with setup() as it:
        peer, session = await it.connect()
        await comes(peer, pictures=3)
        gate = threading.Event()
        monkeypatch.setattr(session.pipeline.renderer, "draw", lambda **_: gate.wait(PATIENCE_S))
        await until(lambda: session.telemetry.message(-1)[0]["fps"] == 0.0, what="no more pictures")
        await comes(peer, sounds=10)
        other, _ = await it.connect()
        await comes(other, pictures=3)
        ending = asyncio.create_task(it.sessions.end(session.id, "ended by the peer"))
        await comes(other, pictures=10)
        await ending
        gate.set()


@on_loop
async def test_sessions_that_come_and_go_leave_no_thread_and_no_task(setup):
    async with setup() as it:
        it.sessions.start()

        async def one():
            peer, session = await it.connect()
            await comes(peer, pictures=3, sounds=5)
            return peer, session

        def running():  # the loop's own executor keeps a few threads, bounded by the number of cores
            names = (thread.name for thread in threading.enumerate())
            return sorted(name for name in names if not name.startswith("asyncio_"))

        peer, _ = await one()  # what a first session starts for all of them is there
        await peer.close()
        await until(lambda: len(it.sessions) == 0)
        await until(lambda: not any("geneface-" in name for name in running()))
        before = running(), len(asyncio.all_tasks())

        for way in range(3):
            peers = await asyncio.gather(one(), one())
            for peer, session in peers:
                if way == 0:
                    await peer.close()  # the peer says good-bye
                elif way == 1:
                    await it.sessions.end(session.id, "ended by the peer")
                    await peer.close()
                else:
                    closing = asyncio.create_task(peer.close())
                    it.sessions.end_soon(session, "timed out")
                    await closing
            await until(lambda: len(it.sessions) == 0)

        await until(lambda: running() == before[0], what=f"threads as before: {before[0]}")
        await until(lambda: len(asyncio.all_tasks()) == before[1], what="tasks as before")
        assert it.sample("sessions_active") == 0
        assert it.sessions._admission.sessions == 0
