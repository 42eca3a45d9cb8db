"""Two people at once: each has the own voice and the own face, and nothing of the other's."""

from __future__ import annotations

import json

import numpy as np
import pytest
import recordings

RECORD_S = 9.0
HEAR = (
    "Promise.all([avatar.micTrack, avatar.stream.getAudioTracks()[0]]"
    ".map((track) => probe.levels(track, argument)))"
)


@pytest.fixture(scope="module")
def server(serve):
    return serve("Tiny")


def spoken_to(open_page, server, microphone, speaker):
    """Returns a tab that is live with a speaker, and what its server says first."""
    tab, said = open_page(server.url, microphone), []
    tab.page.on("websocket", lambda socket: socket.on("framereceived", lambda text: said.append(text)))
    tab.page.get_by_label("Speaker", exact=True).select_option(speaker)
    tab.start()
    tab.until("avatar.stats !== null", within_s=10)
    return tab, json.loads(said[0])


def likenesses(tabs):
    """Returns for each tab how alike its sound is to its own microphone's, and to the other's."""
    for tab in tabs:  # side by side
        tab.avatar(f"(window.heard = null, {HEAR}.then((heard) => {{ window.heard = heard; }}), 0)", RECORD_S)
    heard = [tab.until("window.heard", within_s=3 * RECORD_S) for tab in tabs]
    spoken = [said for said, _ in heard]
    return [
        (recordings.alikeness(mine, answer)[0], recordings.alikeness(theirs, answer)[0])
        for (mine, answer), theirs in zip(heard, spoken[::-1], strict=True)
    ]


def test_two_people(open_page, server, microphones):
    first, first_hello = spoken_to(open_page, server, microphones.quick_turns, "Other")
    second, second_hello = spoken_to(open_page, server, microphones.slow_turns, "Tiny")
    assert server.sessions() == 2
    assert (first_hello["type"], second_hello["type"]) == ("hello", "hello")
    assert (first_hello["speaker"], second_hello["speaker"]) == ("Other", "Tiny")
    assert first_hello["session_id"] != second_hello["session_id"]

    tabs = (first, second)
    for _ in range(4):  # a browser takes its time to settle how long it buffers sound
        found = likenesses(tabs)
        if min(own for own, _ in found) > 0.8:
            break
    for own, foreign in found:
        # A browser that gets too little time makes up some of the sound; exchanged voices show all the same.
        assert own > max(0.3, foreign + 0.2), f"what is heard: r = {own:.2f}, the other's {foreign:.2f}"

    pictures = [np.array([tab.picture() for _ in range(3)], float) for tab in tabs]
    for picture in pictures:
        assert np.abs(picture[0] - picture[2]).mean() < 10  # the same face a moment later
    assert np.abs(pictures[0] - pictures[1]).mean() > 20
    assert [tab.avatar("avatar.videoWidth") for tab in tabs] == [160, 128]
