"""The threads of a session: their names, their ends, and who is told of a failure."""

import logging
import threading

import pytest

from streaming.errors import Stopped
from streaming.session import threads
from streaming.session.threads import SessionThreads


@pytest.fixture
def failed():
    return []


@pytest.fixture
def of_session(failed):
    return SessionThreads("abcdef", on_failure=failed.append, log=logging.getLogger("test"))


def named(name):
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_work_runs_in_a_thread_of_its_name_until_all_are_told_to_stop(of_session, failed):
    begun = threading.Event()

    def work(stopping):
        begun.set()
        stopping.wait(30)

    of_session.start("video", work)
    assert begun.wait(30)
    [thread] = named("geneface-video-abcdef")
    assert thread.daemon
    of_session.stopping.set()
    of_session.join()
    assert named("geneface-video-abcdef") == failed == []


def test_work_that_raises_is_logged_and_told_of_and_being_stopped_is_no_failure(of_session, failed, caplog):
    def stopped(_):
        raise Stopped

    of_session.start("media", stopped)
    of_session.start("video", lambda _: 1 / 0)
    of_session.join()
    assert failed == ["video"]
    assert [record.getMessage() for record in caplog.records] == ["the video thread failed"]
    assert "ZeroDivisionError" in caplog.text


def test_a_thread_that_does_not_end_is_logged_and_left_behind(of_session, monkeypatch, caplog):
    monkeypatch.setattr(threads, "_JOIN_S", 0.01)
    gate = threading.Event()
    of_session.start("video", lambda _: gate.wait(30))
    of_session.join()
    assert "geneface-video-abcdef did not end" in caplog.text
    gate.set()
    of_session.join()  # it holds none any more
