"""Two people at once: each has the own voice and the own face, and nothing of the other's."""

from __future__ import annotations

import json

import numpy as np
import pytest

RECORD_S = 5.0
HEAR = "avatar.stream && probe.bands(avatar.stream.getAudioTracks()[0], argument, 1000)"


@pytest.fixture(scope="module")
def server(serve):
    return serve("Tiny")


def spoken_to(open_page, server, microphone, speaker):
    """Returns a tab that is live with a speaker, and what its server says first."""
    tab, said = open_page(server.url, microphone), []
    tab.page.on("websocket", lambda socket: socket.on("framereceived", lambda text: said.append(text)))
    tab.page.get_by_label("Speaker", exact=True).select_option(speaker)
    tab.start()
    tab.until("avatar.stats !== null")
    return tab, json.loads(said[0])


def share_of_high(tab):
    """Returns what part of a tab's sound lies above 1 kHz, once there is some."""
    heard = tab.wait_until(
        lambda: (found := tab.avatar(HEAR, RECORD_S)) and sum(found.values()) > 1 and found
    )
    return heard["high"] / sum(heard.values())


def test_two_people_each_hear_and_see_only_their_own_speaker(open_page, server, microphones):
    first, first_hello = spoken_to(open_page, server, microphones.low_voice, "Other")
    second, second_hello = spoken_to(open_page, server, microphones.high_voice, "Tiny")
    assert server.sessions() == 2
    assert (first_hello["type"], second_hello["type"]) == ("hello", "hello")
    assert (first_hello["speaker"], second_hello["speaker"]) == ("Other", "Tiny")
    assert first_hello["session_id"] != second_hello["session_id"]

    tabs = (first, second)
    # By pitch, not by time: a browser that gets too little of the machine stretches and makes up sound.
    assert share_of_high(first) < 0.05
    assert share_of_high(second) > 0.95

    pictures = [np.array([tab.picture() for _ in range(3)], float) for tab in tabs]
    for picture in pictures:
        assert np.abs(picture[0] - picture[2]).mean() < 10  # the same face a moment later
    assert np.abs(pictures[0] - pictures[1]).mean() > 20
    assert [tab.avatar("avatar.videoWidth") for tab in tabs] == [160, 128]
