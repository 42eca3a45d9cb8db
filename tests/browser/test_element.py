"""The element by itself, as another site would use it: `<geneface-avatar>` on a bare page."""

from __future__ import annotations

import pytest
from patience import PATIENCE_S

AVATAR = '<geneface-avatar src="/" speaker="Tiny" muted></geneface-avatar>'
WATCHED = ("statechange", "error", "playing", "loadedmetadata")


@pytest.fixture(scope="module")
def server(serve):
    return serve("Tiny")


@pytest.fixture
def tab(open_page, server, microphones):
    tab = open_page(f"{server.url}healthz", microphones.speech)  # a page without scripts of its own
    tab.page.evaluate("(html) => { document.body.innerHTML = html; }", AVATAR)
    tab.page.evaluate("import('/client/geneface-avatar.js').then(() => {})")
    tab.avatar(
        """(window.events = [], argument.forEach((type) => avatar.addEventListener(type, ({ detail }) =>
            window.events.push([type, detail?.state ?? detail?.code ?? '']))))""",
        WATCHED,
    )
    return tab


def events(tab, kind):
    return [detail for name, detail in tab.avatar("window.events") if name == kind]


def test_an_element_that_is_not_connected_is_idle_and_holds_nothing(tab, server):
    assert tab.avatar("[avatar.state, avatar.connectionState, avatar.readyState]") == ["idle", "new", 0]
    assert tab.avatar("[avatar.stream, avatar.stats, avatar.micTrack]") == [None, None, None]
    assert tab.avatar("avatar.src") == server.url.rstrip("/")
    assert events(tab, "statechange") == []


def test_connect_shows_the_face_and_tells_each_state(tab):
    tab.avatar("avatar.connect()")
    assert tab.avatar("[avatar.state, avatar.connectionState]") == ["connected", "connected"]
    assert tab.avatar("avatar.readyState") >= 2
    assert tab.avatar("[avatar.videoWidth, avatar.videoHeight]") == [128, 128]
    assert tab.avatar("avatar.stream.getTracks().map(({ kind }) => kind).sort()") == ["audio", "video"]
    assert events(tab, "statechange") == ["requesting-microphone", "connecting", "connected"]
    assert events(tab, "error") == []
    tab.until("window.events.some(([type]) => type === 'playing')")
    assert events(tab, "loadedmetadata")


def test_connect_twice_is_one_session(tab, server):
    tab.avatar("Promise.all([avatar.connect(), avatar.connect()])")
    tab.avatar("avatar.connect()")
    assert server.sessions() == 1
    assert events(tab, "statechange").count("connected") == 1


def test_a_microphone_that_the_element_opened_stops_on_disconnect(tab, server):
    tab.avatar("avatar.connect()")
    ended = "(window.track = avatar.micTrack, avatar.disconnect(), window.track.readyState)"
    assert tab.avatar(ended) == "ended"
    assert tab.avatar("[avatar.state, avatar.stream, avatar.micTrack]") == ["idle", None, None]
    server.until_sessions(0)


def test_a_microphone_that_the_page_gave_stays_live_on_disconnect(tab):
    tab.avatar(
        "navigator.mediaDevices.getUserMedia({ audio: true })"
        ".then((stream) => { [window.track] = stream.getTracks(); avatar.micTrack = window.track; })"
    )
    tab.avatar("avatar.connect()")
    assert events(tab, "statechange") == ["connecting", "connected"]
    tab.avatar("avatar.disconnect()")
    assert tab.avatar("window.track.readyState") == "live"
    assert tab.avatar("avatar.micTrack === window.track")


@pytest.mark.parametrize("after_ms", [0, 20, 80, 200, 350])
def test_disconnect_while_connecting(tab, server, after_ms):
    told = tab.avatar(
        """new Promise((resolve) => {
            const done = (outcome) => resolve({ outcome, state: avatar.state, stream: avatar.stream });
            avatar.connect().then(() => done('connected'), ({ code }) => done(code));
            setTimeout(() => avatar.disconnect(), argument);
        })""",
        after_ms,
    )
    if told["outcome"] != "connected":  # on a fast machine the longest waits come too late
        assert told == {"outcome": "ended", "state": "idle", "stream": None}
    tab.until("avatar.state === 'idle'")
    server.until_sessions(0)
    assert events(tab, "error") == []
    tab.avatar("avatar.connect()")
    assert tab.avatar("avatar.state") == "connected"


@pytest.mark.parametrize("path", ["ice", "offer"])
def test_disconnect_while_the_server_thinks(tab, server, path):
    held, opened = [], server.metric("geneface_sessions_total")
    tab.page.route(f"**/{path}", lambda route: held.append(route))
    tab.avatar("(window.outcome = '', avatar.connect().catch(({ code }) => { window.outcome = code; }), 0)")
    tab.wait_until(lambda: held)
    tab.avatar("avatar.disconnect()")
    tab.until("window.outcome === 'ended'")
    assert tab.avatar("avatar.state") == "idle"
    if path == "offer":  # the server answers a page that hung up meanwhile
        held[0].continue_()
        tab.wait_until(lambda: server.metric("geneface_sessions_total") == opened + 1)
    tab.page.unroute(f"**/{path}")
    server.until_sessions(0)
    tab.avatar("avatar.connect()")
    assert server.sessions() == 1


def test_the_elements_stream_arrives_in_another_call(tab):
    tab.avatar("avatar.connect()")
    arrived = tab.avatar("probe.relay(avatar.stream, argument)", PATIENCE_S)
    assert arrived["state"] == "connected"
    assert arrived["kinds"] == ["audio", "video"]
    assert arrived["width"] > 0
    assert arrived["presented"] >= 10
    assert arrived["loudness"] > 0
    assert tab.avatar("avatar.state") == "connected"


def test_an_element_whose_session_the_server_ends_says_so_and_lets_go(tab, server):
    with tab.page.expect_websocket() as opened:
        tab.avatar("avatar.connect()")
    session_id = opened.value.url.rpartition("/")[2]
    tab.page.request.delete(f"{server.url}sessions/{session_id}")
    tab.until("avatar.state === 'ended'")
    assert events(tab, "error") == ["ended"]
    assert tab.avatar("[avatar.stream, avatar.micTrack]") == [None, None]


def test_an_element_that_loses_its_connection_connects_again(tab, server):
    sockets = []

    def pass_on(socket):
        sockets.append(socket)
        socket.connect_to_server()

    tab.page.route_web_socket("**/ws/*", pass_on)
    tab.avatar("avatar.connect()")
    tab.avatar("(window.before = avatar.stream, 0)")
    sockets[0].close()
    tab.until("avatar.state === 'reconnecting'")
    tab.until("avatar.state === 'connected'")
    assert tab.avatar("avatar.stream !== window.before")
    assert tab.avatar("avatar.micTrack.readyState") == "live"
    assert events(tab, "error") == []
    server.until_sessions(1)


def test_an_element_whose_connection_does_not_come_back_fails(tab, server):
    sockets = []

    def pass_on(socket):
        sockets.append(socket)
        socket.connect_to_server()

    tab.page.route_web_socket("**/ws/*", pass_on)
    tab.avatar("avatar.connect()")
    tab.page.route("**/ice", lambda route: route.abort())
    sockets[0].close()
    tab.until("avatar.state === 'failed'")
    assert events(tab, "statechange")[-2:] == ["reconnecting", "failed"]
    assert events(tab, "error") == ["network"]
    server.until_sessions(0)


def test_moving_the_element_in_the_page_does_not_hang_up(tab):
    tab.avatar("avatar.connect()")
    tab.avatar("document.body.append(document.createElement('div'), avatar)")
    tab.page.wait_for_timeout(200)  # taking it out counts at the end of the task
    assert tab.avatar("avatar.state") == "connected"


def test_the_element_is_as_large_as_its_style_says(tab):
    tab.avatar("avatar.style.inlineSize = '200px'")
    box = tab.page.locator("geneface-avatar").bounding_box()
    assert (box["width"], box["height"]) == (200, 200)
