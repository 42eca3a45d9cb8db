"""Who is let in and sent away, what that leaves behind, and speakers opened when first asked for."""

from __future__ import annotations

import asyncio
import logging
import threading
import types

import pytest
from manual_clock import ManualClock
from on_loop import on_loop, until

from models.bundle_files import BundleError
from models.speaker_folders import FoundSpeaker, UnknownSpeakerError
from streaming.pipeline.onnx_engine import EngineTimeoutError
from streaming.pipeline.stage_times import Work
from streaming.session import registry
from streaming.session.admission import Admission
from streaming.session.metrics import Metrics
from streaming.session.registry import LOOK_AGAIN_S, EndedError, FullError, Sessions
from streaming.session.speaker_list import SpeakerEntry
from streaming.webrtc.sdp_offer import OfferError

FRAME_MS = 20.0  # what a frame of the stand-in takes; two cores have room for three of them


class StandInLoaded:
    sizes_px = (256, 128)
    start_px = 256
    on_gpu = False
    gpu_ms = 0.0
    device = "CPU, 2 threads"

    def __init__(self, name):
        self.name = name
        self.speaker = types.SimpleNamespace(name=name, synthetic=True, image_size_px=512)
        self.looked, self.second_look_ms = 0, self.frame_ms
        self.closed = threading.Event()
        self.may_close = threading.Event()
        self.may_close.set()

    frame_ms = FRAME_MS

    def core_ms(self, size_px):
        return self.frame_ms if size_px == 128 else 2 * self.frame_ms

    def remeasure_ms(self):
        self.looked += 1
        if isinstance(self.second_look_ms, Exception):
            raise self.second_look_ms
        return self.second_look_ms

    def to_gpu(self):
        """Lets a GPU draw it, with cores and GPU to spare."""
        self.on_gpu, self.gpu_ms, self.device = True, 1.0, "A GPU"
        self.sizes_px, self.start_px = (512,), 512
        self.core_ms = lambda _: 1.0
        return self

    def close(self):
        self.may_close.wait(10)
        self.closed.set()


class StandInSession:
    """A session that answers and closes as it is told."""

    answers: object = "the answer"
    made: list = []  # noqa: RUF012 - set anew by the fixture

    def __init__(self, session_id, loaded, settings, metrics, *, on_end, clock):
        self.id, self.loaded, self.on_end = session_id, loaded, on_end
        self.label = session_id[:6]
        self.ended = ""
        self.reason = None  # what `check` says
        self.may_close = asyncio.Event()
        self.may_close.set()
        self.closed = False
        self.told = 0
        self.telemetry = self
        self.moved_to = []
        self.render_px = loaded.start_px
        self.worked = Work()
        self.made.append(self)

    def move_to(self, loaded):
        self.loaded = loaded
        self.moved_to.append(loaded)

    async def answer(self, offer):
        answer = self.answers(self) if callable(self.answers) else self.answers
        if asyncio.iscoroutine(answer):
            answer = await answer
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def check(self, now_s):
        if isinstance(self.reason, Exception):
            raise self.reason
        return self.reason

    def update_metrics(self):
        self.told += 1

    def work(self):
        return self.worked

    def draw(self, frames, *, core_ms):
        self.worked = Work(
            frames=self.worked.frames + frames, core_s=self.worked.core_s + frames * core_ms / 1000
        )

    async def aclose(self, reason):
        self.ended = self.ended or reason
        await self.may_close.wait()
        self.closed = True


class StandInList:
    def __init__(self, folder, names):
        self.folder, self.names = folder, names

    def found(self):
        return [FoundSpeaker(name=name, path=self.folder / name, place="user") for name in self.names]

    def path_of(self, name):
        return self.folder / name if name in self.names else None

    def entries(self):
        return [SpeakerEntry(name=name, synthetic=True, image_size_px=512) for name in self.names]


class Setup:
    def __init__(self, folder, **admission):
        self.folder = folder
        self.opened = []
        self.may_open = threading.Event()
        self.may_open.set()
        self.broken = None
        self.clock = ManualClock()
        self.metrics = Metrics()
        self.admission = Admission(cores=2, **admission)
        self.default = StandInLoaded("Tiny")
        self.sessions = Sessions(
            self._open,
            self.default,
            settings=None,
            admission=self.admission,
            metrics=self.metrics,
            speakers=StandInList(folder, ["Ada", "Ben", "Tiny"]),
            clock=self.clock,
            cpu=self.clock,
            on_cpu=self._open_on_cpu,
        )
        self.on_cpu = []
        self.may_open_on_cpu = threading.Event()
        self.may_open_on_cpu.set()

    def _open_on_cpu(self, loaded):
        self.on_cpu.append(loaded.name)
        self.may_open_on_cpu.wait(10)
        if self.broken is not None:
            raise self.broken
        return StandInLoaded(loaded.name)

    def _open(self, path):
        self.opened.append(path)
        self.may_open.wait(10)
        if self.broken is not None:
            raise self.broken
        return StandInLoaded(path.rsplit("/", 1)[-1])

    def sample(self, name, **labels):
        return self.metrics.registry.get_sample_value(f"geneface_{name}", labels)

    def nothing_is_left(self):
        assert len(self.sessions) == 0
        assert self.admission.sessions == 0
        assert self.sample("sessions_active") == 0
        return True


@pytest.fixture
def setup(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "Session", StandInSession)
    monkeypatch.setattr(StandInSession, "made", [])
    return lambda **admission: Setup(tmp_path, **admission)


@pytest.fixture
def answers(monkeypatch):
    return lambda answer: monkeypatch.setattr(StandInSession, "answers", staticmethod(answer))


# In and out -------------------------------------------------------------------------------------------


@on_loop
async def test_a_session_comes_and_goes(setup):
    it = setup()
    session, answer = await it.sessions.open("Tiny", "offer")
    assert answer == "the answer"
    assert it.sessions.get(session.id) is session
    assert len(it.sessions) == it.sample("sessions_active") == it.admission.sessions == 1
    assert await it.sessions.end(session.id, "ended by the peer")
    assert session.closed
    assert session.ended == "ended by the peer"
    assert it.sessions.get(session.id) is None
    assert it.sample("sessions_total", end="ended by the peer") == 1
    assert it.nothing_is_left()


@on_loop
async def test_ids_cannot_be_guessed(setup):
    it = setup(max_sessions=3)
    ids = [(await it.sessions.open("Tiny", "offer"))[0].id for _ in range(3)]
    assert len({session_id[:6] for session_id in ids}) == 3
    assert all(len(session_id) >= 22 for session_id in ids)  # 128 bits and more
    await it.sessions.aclose()


@on_loop
async def test_a_session_ends_once(setup):
    it = setup()
    session, _ = await it.sessions.open("Tiny", "offer")
    session.may_close.clear()
    first = asyncio.create_task(it.sessions.end(session.id, "one"))
    await asyncio.sleep(0)
    assert not await it.sessions.end(session.id, "two")
    it.sessions.end_soon(session, "three")
    session.may_close.set()
    assert await first
    assert session.ended == "one"
    assert it.sample("sessions_total", end="two") is None
    assert not await it.sessions.end("another", "one")


@on_loop
async def test_there_is_room_again_only_once_its_threads_are_gone(setup):
    it = setup(max_sessions=1)
    session, _ = await it.sessions.open("Tiny", "offer")
    session.may_close.clear()
    ending = asyncio.create_task(it.sessions.end(session.id, "one"))
    await asyncio.sleep(0)
    with pytest.raises(FullError):
        await it.sessions.open("Tiny", "offer")
    session.may_close.set()
    await ending
    another, _ = await it.sessions.open("Tiny", "offer")
    await it.sessions.end(another.id, "two")


@on_loop
async def test_the_caller_that_ends_a_session_may_go_away(setup):
    it = setup()
    session, _ = await it.sessions.open("Tiny", "offer")
    session.may_close.clear()
    ending = asyncio.create_task(it.sessions.end(session.id, "one"))
    await asyncio.sleep(0)
    ending.cancel()
    await asyncio.gather(ending, return_exceptions=True)
    assert it.admission.sessions == 1
    session.may_close.set()
    await until(lambda: session.closed)
    await until(lambda: it.admission.sessions == 0)


@on_loop
async def test_a_session_that_closes_badly_gives_its_place_back(setup, monkeypatch, caplog):
    it = setup()
    session, _ = await it.sessions.open("Tiny", "offer")

    async def broken(reason):
        raise ZeroDivisionError

    monkeypatch.setattr(session, "aclose", broken)
    assert await it.sessions.end(session.id, "one")
    assert it.nothing_is_left()
    assert session.label in caplog.text
    assert session.id not in caplog.text


@on_loop
async def test_an_offer_without_room_leaves_nothing_behind(setup):
    it = setup()
    for _ in range(3):
        await it.sessions.open("Tiny", "offer")
    with pytest.raises(FullError) as refused:
        await it.sessions.open("Tiny", "offer")
    assert refused.value.refusal.retry_after_s > 0
    assert len(StandInSession.made) == len(it.sessions) == it.admission.sessions == 3
    await it.sessions.aclose()
    assert it.nothing_is_left()


@on_loop
async def test_two_offers_at_once_for_one_place(setup, answers):
    it = setup(max_sessions=1)
    gate = asyncio.Event()

    async def slow(session):
        await gate.wait()
        return "the answer"

    answers(slow)
    both = [asyncio.create_task(it.sessions.open("Tiny", "offer")) for _ in range(2)]
    await until(lambda: StandInSession.made)
    await asyncio.sleep(0)
    gate.set()
    one, other = await asyncio.gather(*both, return_exceptions=True)
    assert one[1] == "the answer"
    assert isinstance(other, FullError)
    await it.sessions.aclose()


@pytest.mark.parametrize("failure", [OfferError("sdp: no"), OSError("no port"), ZeroDivisionError()])
@on_loop
async def test_an_offer_that_fails_leaves_nothing_behind(setup, answers, failure):
    it = setup()
    answers(lambda session: failure)
    with pytest.raises(type(failure)):
        await it.sessions.open("Tiny", "offer")
    [session] = StandInSession.made
    assert session.closed
    assert it.sample("sessions_total", end="the offer failed") == 1
    assert it.nothing_is_left()


@on_loop
async def test_an_offer_that_is_given_up_leaves_nothing_behind(setup, answers):
    it = setup()
    answers(lambda session: asyncio.sleep(30))
    opening = asyncio.create_task(it.sessions.open("Tiny", "offer"))
    await until(lambda: StandInSession.made)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert it.nothing_is_left()


@on_loop
async def test_a_session_that_cannot_be_made_leaves_nothing_behind(setup, monkeypatch):
    it = setup()

    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(registry, "Session", broken)
    with pytest.raises(ZeroDivisionError):
        await it.sessions.open("Tiny", "offer")
    assert it.nothing_is_left()


@on_loop
async def test_a_session_that_fails_while_it_answers_is_not_given_out(setup, answers):
    it = setup()

    async def fails(session):
        session.on_end(session, "the media thread failed")
        await until(lambda: session.closed)
        return "the answer"

    answers(fails)
    with pytest.raises(EndedError, match="the media thread failed"):
        await it.sessions.open("Tiny", "offer")
    assert it.nothing_is_left()


# Speakers ---------------------------------------------------------------------------------------------


@on_loop
async def test_the_default_speaker_is_listed_first_and_once(setup):
    assert [entry.name for entry in await setup().sessions.speakers()] == ["Tiny", "Ada", "Ben"]


@on_loop
async def test_another_speaker_is_opened_when_first_asked_for(setup):
    it = setup()
    for _ in range(2):
        session, _ = await it.sessions.open("Ada", "offer")
        assert session.loaded.name == "Ada"
        await it.sessions.end(session.id, "one")
    assert it.opened == [str(it.folder / "Ada")]
    await it.sessions.aclose()


@on_loop
async def test_a_speaker_whose_networks_never_return_is_not_opened_again_at_once(setup):
    it = setup()
    it.broken = EngineTimeoutError("motion.onnx: expected an answer within 20 s, got none")
    for _ in range(3):
        with pytest.raises(EngineTimeoutError):
            await it.sessions.open("Ada", "offer")
    assert len(it.opened) == 1
    it.clock.time_s += LOOK_AGAIN_S
    it.broken = None
    await it.sessions.open("Ada", "offer")
    assert len(it.opened) == 2
    await it.sessions.aclose()
    assert it.nothing_is_left()


@on_loop
async def test_a_speaker_asked_for_twice_at_the_same_time_is_opened_once(setup):
    it = setup()
    it.may_open.clear()
    both = [asyncio.create_task(it.sessions.open("Ada", "offer")) for _ in range(2)]
    await until(lambda: it.opened)
    it.may_open.set()
    (one, _), (other, _) = await asyncio.gather(*both)
    assert one.loaded is other.loaded
    assert len(it.opened) == 1
    await it.sessions.aclose()


@on_loop
async def test_the_caller_that_first_asked_for_a_speaker_may_go_away(setup):
    it = setup()
    it.may_open.clear()
    first, second = (asyncio.create_task(it.sessions.open("Ada", "offer")) for _ in range(2))
    await until(lambda: it.opened)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    it.may_open.set()
    session, _ = await second
    assert session.loaded.name == "Ada"
    assert len(it.opened) == len(it.sessions) == 1
    await it.sessions.aclose()


@on_loop
async def test_speakers_beyond_a_few_are_opened_one_after_the_other(setup, monkeypatch):
    monkeypatch.setattr(registry, "MAX_OPENING", 1)
    it = setup()
    it.may_open.clear()
    both = [asyncio.create_task(it.sessions.open(name, "offer")) for name in ("Ada", "Ben")]
    await until(lambda: it.opened)
    # Those that speak already, and who is not there, do not wait.
    await it.sessions.open("Tiny", "offer")
    with pytest.raises(UnknownSpeakerError):
        await it.sessions.open("Nobody", "offer")
    assert len(it.opened) == 1
    it.may_open.set()
    await asyncio.gather(*both)
    assert len(it.opened) == 2
    await it.sessions.aclose()


@on_loop
async def test_a_speaker_that_does_not_open_holds_up_no_other(setup):
    it = setup()
    it.may_open.clear()
    both = [asyncio.create_task(it.sessions.open(name, "offer")) for name in ("Ada", "Ben")]
    await until(lambda: len(it.opened) == 2)
    it.may_open.set()
    await asyncio.gather(*both)
    await it.sessions.aclose()


@pytest.mark.parametrize("name", ["Nobody", "", "..", "../Ada", "Ada/", "\ud800", "x" * 10_000, "a\nb"])
@on_loop
async def test_an_unknown_speaker(setup, name):
    it = setup()
    with pytest.raises(UnknownSpeakerError) as unknown:
        await it.sessions.open(name, "offer")
    said = str(unknown.value)
    assert said.startswith("expected one of Tiny, Ada, Ben, got ")
    assert len(said) < 250
    assert said.isprintable()
    assert str(it.folder) not in said
    assert it.opened == []
    assert it.nothing_is_left()


@on_loop
async def test_a_path_is_no_speaker_for_who_comes_by_network(setup):
    it = setup()
    with pytest.raises(UnknownSpeakerError):
        await it.sessions.open(str(it.folder / "Ada"), "offer")
    assert it.opened == []


@on_loop
async def test_a_broken_speaker_is_said_and_tried_again(setup):
    it = setup()
    it.broken = BundleError("speaker.json", "x", "y", "z")
    both = [it.sessions.open("Ada", "offer") for _ in range(2)]
    for failure in await asyncio.gather(*both, return_exceptions=True):
        assert failure is it.broken
    assert it.nothing_is_left()
    it.broken = None
    assert (await it.sessions.open("Ada", "offer"))[0].loaded.name == "Ada"
    await it.sessions.aclose()


# Watching ---------------------------------------------------------------------------------------------


@on_loop
async def test_sessions_whose_peers_have_gone_are_ended(setup):
    it = setup()
    gone, stays = [(await it.sessions.open("Tiny", "offer"))[0] for _ in range(2)]
    gone.reason = "timed out"
    it.sessions.reap_and_measure(apportion_cpu=False)
    await until(lambda: gone.closed)
    assert it.sessions.get(stays.id) is stays
    assert it.sample("sessions_total", end="timed out") == 1
    await it.sessions.aclose()


@on_loop
async def test_a_session_that_cannot_be_watched_does_not_blind_the_others(setup, caplog):
    it = setup()
    broken, gone = [(await it.sessions.open("Tiny", "offer"))[0] for _ in range(2)]
    broken.reason, gone.reason = ZeroDivisionError(), "timed out"
    it.sessions.reap_and_measure(apportion_cpu=True)
    await until(lambda: broken.closed and gone.closed)
    assert "ZeroDivisionError" in caplog.text
    assert len(it.sessions) == 0


@on_loop
async def test_sessions_are_watched_from_the_start_to_the_end(setup, monkeypatch):
    monkeypatch.setattr(registry, "_WATCH_S", 0.01)
    it = setup()
    it.sessions.start()
    session, _ = await it.sessions.open("Tiny", "offer")
    await until(lambda: session.told > 1)  # brought up to date every other time
    session.reason = "timed out"
    await until(lambda: session.closed)
    await it.sessions.aclose()


@on_loop
async def test_watching_goes_on_after_a_failure(setup, monkeypatch, caplog):
    monkeypatch.setattr(registry, "_WATCH_S", 0.01)
    it = setup()
    monkeypatch.setattr(it.admission, "measured", None)
    it.sessions.start()
    session, _ = await it.sessions.open("Tiny", "offer")
    await until(lambda: "watching the sessions failed" in caplog.text)
    session.reason = "timed out"
    await until(lambda: session.closed)
    await it.sessions.aclose()


def second_of(it, drawn, *, beside_s=0.0):
    """A second passes in which each session draws `frames` frames at `core_ms`."""
    it.clock.time_s += 1.0
    it.clock.cpu_s += beside_s
    for session, (frames, core_ms) in drawn.items():
        session.draw(frames, core_ms=core_ms)
        it.clock.cpu_s += frames * core_ms / 1000
    it.sessions.reap_and_measure(apportion_cpu=True)


@on_loop
async def test_a_session_takes_what_its_stages_took_and_a_share_of_all_beside_them(setup):
    it = setup()
    one, two = [(await it.sessions.open("Tiny", "offer"))[0] for _ in range(2)]
    it.sessions.reap_and_measure(apportion_cpu=True)
    second_of(it, {one: (25, 24.0), two: (25, 24.0)}, beside_s=0.3)
    assert it.admission.core_ms == pytest.approx(2 * (24 + 6))
    assert it.admission.floor_ms == pytest.approx(2 * (12 + 6))  # half of it at the smallest size
    assert b"geneface_admission_taken_core_seconds 0.036" in it.metrics.text()
    assert b"geneface_admission_room_core_seconds 0.068" in it.metrics.text()
    await it.sessions.aclose()


@on_loop
async def test_a_first_figure_that_was_too_large_heals_and_stays_healed(setup):
    it = setup()
    it.default.frame_ms = 57.0  # 7 are true; 68 are there
    one, _ = await it.sessions.open("Tiny", "offer")
    with pytest.raises(FullError):
        await it.sessions.open("Tiny", "offer")
    it.sessions.reap_and_measure(apportion_cpu=True)
    second_of(it, {one: (25, 14.0)})
    assert it.admission.floor_ms == pytest.approx(7.0)
    two, _ = await it.sessions.open("Tiny", "offer")
    for session in (one, two):
        await it.sessions.end(session.id, "enough")
    for _ in range(3):  # nobody was in: what ran last is what counts
        await it.sessions.open("Tiny", "offer")
    assert it.admission.floor_ms == pytest.approx(3 * 7.0)
    await it.sessions.aclose()


@on_loop
async def test_a_first_figure_that_was_too_small_heals(setup):
    it = setup()
    it.default.frame_ms = 2.0
    one, _ = await it.sessions.open("Tiny", "offer")
    it.sessions.reap_and_measure(apportion_cpu=True)
    one.render_px = 128
    second_of(it, {one: (25, 40.0)})
    second_of(it, {one: (25, 40.0)})
    assert it.admission.floor_ms == pytest.approx(40.0)
    with pytest.raises(FullError):
        await it.sessions.open("Tiny", "offer")
    await it.sessions.aclose()


@on_loop
async def test_each_speaker_heals_by_its_own_sessions(setup):
    it = setup()
    it.default.frame_ms = 30.0
    wrong, _ = await it.sessions.open("Tiny", "offer")
    right, _ = await it.sessions.open("Ada", "offer")  # 20 at the smallest size, 40 now
    it.sessions.reap_and_measure(apportion_cpu=True)
    second_of(it, {wrong: (25, 14.0), right: (25, 40.0)})
    assert it.admission.core_ms == pytest.approx(14 + 40)
    assert it.admission.floor_ms == pytest.approx(7 + 20)
    await it.sessions.aclose()


@on_loop
async def test_what_opening_a_speaker_takes_is_not_the_running_sessions(setup):
    it = setup()
    one, _ = await it.sessions.open("Tiny", "offer")
    it.sessions.reap_and_measure(apportion_cpu=True)
    second_of(it, {one: (25, 40.0)}, beside_s=0.05)
    before_ms = it.admission.core_ms
    it.may_open.clear()
    opening = asyncio.create_task(it.sessions.open("Ada", "offer"))
    await until(lambda: it.opened)
    second_of(it, {one: (25, 40.0)}, beside_s=1.9)  # it takes the other core
    assert it.admission.core_ms == pytest.approx(before_ms)
    it.clock.cpu_s += 0.9
    it.may_open.set()
    await opening  # not refused for what it took itself
    second_of(it, {one: (25, 40.0)})
    second_of(it, {one: (25, 40.0)}, beside_s=0.1)
    assert it.admission.core_ms < before_ms + 2 * FRAME_MS + 5
    await it.sessions.aclose()


@on_loop
async def test_a_session_that_leaves_out_frames_does_not_look_cheaper(setup):
    it = setup()
    one, _ = await it.sessions.open("Tiny", "offer")
    it.sessions.reap_and_measure(apportion_cpu=True)
    second_of(it, {one: (5, 40.0)})
    assert it.admission.core_ms == pytest.approx(40.0)
    second_of(it, {one: (0, 0.0)})  # and none at all says nothing
    assert it.admission.core_ms == pytest.approx(40.0)
    await it.sessions.aclose()


@on_loop
async def test_frames_of_two_sizes_are_not_taken_for_one(setup):
    it = setup()
    one, _ = await it.sessions.open("Tiny", "offer")
    it.sessions.reap_and_measure(apportion_cpu=True)
    second_of(it, {one: (25, 40.0)})
    one.render_px = 128
    second_of(it, {one: (25, 33.0)})  # most of them were still large
    assert it.admission.core_ms == pytest.approx(20.0)
    second_of(it, {one: (25, 18.0)})
    assert it.admission.core_ms == pytest.approx(18.0)
    await it.sessions.aclose()


@on_loop
async def test_what_costs_nothing_can_be_weighed(setup):
    it = setup()
    it.default.frame_ms = 0.0
    await it.sessions.open("Tiny", "offer")
    it.sessions.reap_and_measure(apportion_cpu=True)
    assert it.admission.core_ms == 0
    await it.sessions.aclose()


@on_loop
async def test_a_speaker_that_was_refused_and_never_ran_is_measured_anew(setup):
    it = setup()
    await it.sessions.open("Tiny", "offer")
    wrong = await it.sessions._loaded_speaker("Ada")
    wrong.frame_ms, wrong.second_look_ms = 57.0, 7.0
    with pytest.raises(FullError):
        await it.sessions.open("Ada", "offer")
    await until(lambda: wrong.looked and not it.sessions._remeasuring)
    session, _ = await it.sessions.open("Ada", "offer")
    assert session.loaded is wrong
    assert it.admission.floor_ms == pytest.approx(FRAME_MS + 7)
    await it.sessions.aclose()


@pytest.mark.parametrize("second_look_ms", [90.0, RuntimeError("no memory")])
@on_loop
async def test_a_second_look_is_rare_and_never_makes_it_worse(setup, second_look_ms):
    it = setup()
    await it.sessions.open("Tiny", "offer")
    costly = await it.sessions._loaded_speaker("Ada")
    costly.frame_ms, costly.second_look_ms = 57.0, second_look_ms
    for _ in range(4):
        with pytest.raises(FullError):
            await it.sessions.open("Ada", "offer")
        await until(lambda: costly.looked == 1 and not it.sessions._remeasuring)
    it.clock.time_s += registry.LOOK_AGAIN_S
    with pytest.raises(FullError) as refused:
        await it.sessions.open("Ada", "offer")
    assert "one more takes 57" in refused.value.refusal.reason
    await until(lambda: costly.looked == 2 and not it.sessions._remeasuring)
    await it.sessions.aclose()


# The end ----------------------------------------------------------------------------------------------


@on_loop
async def test_the_end_closes_sessions_then_speakers(setup):
    it = setup()
    ended = [(await it.sessions.open(name, "offer"))[0] for name in ("Tiny", "Ada")]
    it.sessions.start()
    await it.sessions.aclose()
    assert [session.ended for session in ended] == ["server stopping"] * 2
    assert all(session.closed for session in ended)
    assert all(session.loaded.closed.is_set() for session in ended)
    assert it.nothing_is_left()
    assert it.sessions.closed
    await it.sessions.aclose()


@on_loop
async def test_a_registry_that_never_started_ends(setup):
    it = setup()
    await it.sessions.aclose()
    assert it.default.closed.is_set()


@pytest.mark.parametrize("speaker", ["Tiny", "Ada", "Nobody"])
@on_loop
async def test_nobody_is_let_in_after_the_end(setup, speaker):
    it = setup()
    await it.sessions.aclose()
    with pytest.raises(FullError, match="stopping"):
        await it.sessions.open(speaker, "offer")
    assert it.opened == []
    assert StandInSession.made == []


@on_loop
async def test_the_end_does_not_wait_for_a_speaker_that_is_being_opened(setup):
    it = setup()
    it.may_open.clear()
    both = [asyncio.create_task(it.sessions.open(name, "offer")) for name in ("Ada", "Ben")]
    await until(lambda: it.opened)
    await it.sessions.aclose()
    for failure in await asyncio.gather(*both, return_exceptions=True):
        assert isinstance(failure, FullError)
    it.may_open.set()
    assert it.nothing_is_left()


@on_loop
async def test_the_end_while_an_offer_is_answered(setup, answers):
    it = setup()
    answers(lambda session: until(lambda: session.ended))
    opening = asyncio.create_task(it.sessions.open("Tiny", "offer"))
    await until(lambda: StandInSession.made)
    await it.sessions.aclose()
    with pytest.raises(FullError, match="stopping"):
        await opening
    assert it.nothing_is_left()


@on_loop
async def test_the_end_while_an_offer_fails_because_of_it(setup, answers):
    it = setup()

    async def fails(session):
        await until(lambda: session.ended)
        raise OfferError("sdp: the offer could not be applied (the connection is closed)")

    answers(fails)
    opening = asyncio.create_task(it.sessions.open("Tiny", "offer"))
    await until(lambda: StandInSession.made)
    await it.sessions.aclose()
    with pytest.raises(FullError, match="stopping"):
        await opening


@on_loop
async def test_the_end_waits_for_sessions_that_already_end_but_not_for_ever(setup, monkeypatch, caplog):
    monkeypatch.setattr(registry, "_CLOSE_S", 0.05)
    it = setup()
    quick, stuck = [(await it.sessions.open("Tiny", "offer"))[0] for _ in range(2)]
    stuck.may_close.clear()
    it.sessions.end_soon(stuck, "timed out")
    with caplog.at_level(logging.ERROR):
        await it.sessions.aclose()
    assert quick.closed
    assert not stuck.closed
    assert "1 sessions did not end" in caplog.text
    stuck.may_close.set()
    await until(lambda: stuck.closed)


@on_loop
async def test_the_end_does_not_wait_for_ever_for_a_speaker_to_close(setup, monkeypatch):
    monkeypatch.setattr(registry, "_CLOSE_SPEAKERS_S", 0.05)
    it = setup()
    it.default.may_close.clear()
    await it.sessions.aclose()
    assert not it.default.closed.is_set()
    it.default.may_close.set()
    await until(it.default.closed.is_set)
    await until(lambda: not any("close-speakers" in thread.name for thread in threading.enumerate()))


# A GPU that fails -------------------------------------------------------------------------------------

LOST = "cuStreamSynchronize: expected success, got CUDA_ERROR_LAUNCH_FAILED"


@on_loop
async def test_without_the_gpu_the_cpu_draws_the_oldest_sessions_and_the_others_end(setup):
    it = setup()
    it.default.to_gpu()
    sessions = [(await it.sessions.open("Tiny", "offer"))[0] for _ in range(5)]
    it.metrics.gpu_draws.set(1)
    it.may_open_on_cpu.clear()
    it.sessions.gpu_lost(LOST)
    it.sessions.gpu_lost(LOST)
    assert it.sessions.falling_back
    assert it.sessions.gpu_failure == LOST
    assert it.sample("gpu_draws") == 0
    assert len(it.sessions) == 5  # frames are left out meanwhile
    it.may_open_on_cpu.set()
    await until(lambda: not it.sessions.falling_back)
    assert it.on_cpu == ["Tiny"]
    assert [len(session.moved_to) for session in sessions] == [1, 1, 1, 0, 0]  # two cores draw three
    assert not sessions[0].loaded.on_gpu
    await until(lambda: len(it.sessions) == it.admission.sessions == 3)
    assert [session.ended for session in sessions[3:]] == [
        "the GPU failed, and the CPU has no room for this session"
    ] * 2
    assert it.default.closed.is_set()
    assert it.sessions.drawable
    assert it.sessions.device == "CPU, 2 threads"
    with pytest.raises(FullError, match="core-milliseconds"):  # by what the CPU takes
        await it.sessions.open("Tiny", "offer")
    await it.sessions.aclose()
    assert it.nothing_is_left()


@on_loop
async def test_an_offer_that_comes_while_the_gpu_falls_back_waits_for_the_cpu(setup):
    it = setup()
    it.default.to_gpu()
    it.may_open_on_cpu.clear()
    it.sessions.gpu_lost(LOST)
    coming = asyncio.create_task(it.sessions.open("Tiny", "offer"))
    await until(lambda: it.on_cpu)
    assert not coming.done()
    it.may_open_on_cpu.set()
    session, _ = await coming
    assert not session.loaded.on_gpu
    assert session.moved_to == []
    await it.sessions.aclose()


@on_loop
async def test_all_speakers_of_the_gpu_fall_back_those_of_the_cpu_stay(setup, monkeypatch):
    it = setup()
    it.default.to_gpu()
    _, ada = await it.sessions.open("Tiny", "offer"), await it.sessions.open("Ada", "offer")
    it.sessions._loaded["Ada"].to_gpu()
    ben, _ = await it.sessions.open("Ben", "offer")
    it.sessions.gpu_lost(LOST)
    await until(lambda: not it.sessions.falling_back)
    assert sorted(it.on_cpu) == ["Ada", "Tiny"]
    assert len(ada[0].moved_to) == 1
    assert ben.moved_to == []
    await it.sessions.aclose()


@on_loop
async def test_a_speaker_that_was_being_opened_on_the_gpu_falls_back_too(setup):
    it = setup()
    it.may_open.clear()
    opened = it._open
    it.sessions._open_bundle = lambda path: opened(path).to_gpu()
    coming = asyncio.create_task(it.sessions.open("Ada", "offer"))
    await until(lambda: it.opened)
    it.sessions.gpu_lost(LOST)
    await until(lambda: not it.sessions.falling_back)
    assert it.on_cpu == []  # nothing yet
    it.may_open.set()
    session, _ = await coming
    await until(lambda: not session.loaded.on_gpu)
    assert it.on_cpu == ["Ada"]
    await it.sessions.aclose()


@on_loop
async def test_where_the_cpu_cannot_draw_sessions_end_with_a_word_and_the_server_lives_on(setup, caplog):
    it = setup()
    it.default.to_gpu()
    session, _ = await it.sessions.open("Tiny", "offer")
    it.broken = RuntimeError("no kernel")
    it.sessions.gpu_lost(LOST)
    await until(lambda: session.closed)
    assert session.ended == "the GPU failed, and the CPU cannot draw this speaker"
    assert it.sample("sessions_total", end=session.ended) == 1
    assert not it.sessions.drawable
    assert "no kernel" in caplog.text
    it.broken = None
    again, _ = await it.sessions.open("Tiny", "offer")  # it is opened anew
    assert it.opened == [str(it.folder / "Tiny")]
    assert it.sessions.drawable
    assert not again.loaded.on_gpu
    await it.sessions.aclose()
    assert it.nothing_is_left()


@on_loop
async def test_a_server_that_stops_does_not_wait_for_the_cpu(setup):
    it = setup()
    it.default.to_gpu()
    session, _ = await it.sessions.open("Tiny", "offer")
    it.may_open_on_cpu.clear()
    it.sessions.gpu_lost(LOST)
    await until(lambda: it.on_cpu)
    coming = asyncio.create_task(it.sessions.open("Tiny", "offer"))
    await asyncio.sleep(0)
    await it.sessions.aclose()
    assert session.closed
    with pytest.raises(FullError, match="stopping"):
        await coming
    it.sessions.gpu_lost(LOST)
    assert not it.sessions.falling_back
    it.may_open_on_cpu.set()


@on_loop
async def test_no_way_to_draw_on_the_cpu_ends_the_sessions(setup):
    it = setup()
    it.default.to_gpu()
    it.sessions._on_cpu = None
    session, _ = await it.sessions.open("Tiny", "offer")
    it.sessions.gpu_lost(LOST)
    await until(lambda: session.closed)
    assert session.ended.startswith("the GPU failed")
    await it.sessions.aclose()
