"""What the client computes: its modules called one by one, in the browser that they are written for."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(scope="module")
def call(browsers, serve):
    """Calls `(module, argument) => ...` on one of the client's modules."""
    server = serve("Tiny")
    with browsers.get().new_context() as context:
        page = context.new_page()
        page.goto(f"{server.url}healthz")  # a page without scripts of its own

        def call_it(module, function, argument=None):
            source = f"async (argument) => ({function})(await import('/client/{module}'), argument)"
            return page.evaluate(source, argument)

        yield call_it


# Latency --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "fraction", "expected"),
    [
        ([], 0.5, None),
        ([7], 0.95, 7),
        ([3, 1, 2], 0.5, 2),
        ([4, 1, 2, 3], 0.5, 2.5),
        ([10, 0], 0.95, 9.5),
        ([2, 1], 0, 1),
        ([2, 1], 1, 2),
        ([9, 80, 700], 0.5, 80),  # as numbers, not as texts
    ],
)
def test_a_percentile_lies_between_its_neighbours(call, values, fraction, expected):
    assert call("latency.js", "(m, [v, f]) => m.percentile(v, f)", [values, fraction]) == expected


def clock_offset(call, pings, now_ms):
    function = """(m, [pings, nowMs]) => {
        const clock = new m.ClockOffset();
        for (const [sentMs, receivedMs, serverMs] of pings) clock.add({ sentMs, receivedMs, serverMs });
        return clock.estimate(nowMs);
    }"""
    return call("latency.js", function, [pings, now_ms])


def test_the_clock_offset_is_that_of_the_fastest_ping(call):
    pings = [[1000, 1100, 6080], [2000, 2010, 7005], [3000, 3300, 8020]]
    assert clock_offset(call, pings, 3300) == {"offsetMs": 5000, "roundTripMs": 10}


def test_the_clock_offset_forgets_what_is_old(call):
    pings = [[1000, 1004, 6002], [21_000, 21_100, 26_060]]
    assert clock_offset(call, pings, 21_100)["offsetMs"] == 5010
    assert clock_offset(call, pings, 60_000) is None


def test_a_ping_without_sense_counts_for_nothing(call):
    assert clock_offset(call, [[1000, 990, 5], [1000, 1010, None]], 1010) is None


def told(rtp, captured_ms=1000.0):
    """What the server says of a frame; its clock is 5 s ahead."""
    later = {"arrived": 30, "buffered": 60, "windowed": 240, "rendered": 262, "encoded": 265, "sent": 300}
    return {"rtp": rtp, "captured_ms": captured_ms} | {f"{k}_ms": 6000.0 + v for k, v in later.items()}


PRESENTED = {"receivedMs": 1302, "shownMs": 1315}
STAGES_MS = [50, 30, 180, 22, 3, 35, 2, 13]


def test_the_instants_of_a_frame_are_told_by_the_browsers_clock(call):
    instants = call("latency.js", "(m, [t, p]) => m.frameInstants(t, p, 5000)", [told(7), PRESENTED])
    assert instants == {
        "captured": 980,  # the packet that the stamp belongs to took 20 ms to fill
        "arrived": 1030,
        "buffered": 1060,
        "windowed": 1240,
        "rendered": 1262,
        "encoded": 1265,
        "sent": 1300,
        "received": 1302,
        "shown": 1315,
    }


def test_without_a_clock_offset_only_the_browsers_own_instants_are_known(call):
    instants = call("latency.js", "(m, [t, p]) => m.frameInstants(t, p, null)", [told(7), PRESENTED])
    assert {name for name, at in instants.items() if at is not None} == {"captured", "received", "shown"}


def test_a_stamp_that_is_missing_is_unknown(call):
    frame = told(7, captured_ms=None) | {"windowed_ms": None}
    function = "(m, [t, p]) => { const i = m.frameInstants(t, p, 5000); return [i.captured, i.windowed, "
    function += "m.between(i, 'captured', 'shown'), m.between(i, 'arrived', 'buffered')]; }"
    assert call("latency.js", function, [frame, PRESENTED]) == [None, None, None, 30]


def latency_summary(call, events, now_ms=2000, offset_ms=5000):
    function = """(m, [events, nowMs, offsetMs]) => {
        const meter = new m.LatencyMeter();
        for (const [kind, what, atMs] of events) {
            if (kind === 'told') meter.addTold(what, atMs);
            else meter.addPresented(what, atMs);
        }
        return meter.summary(nowMs, offsetMs);
    }"""
    return call("latency.js", function, [events, now_ms, offset_ms])


@pytest.mark.parametrize("first", ["told", "presented"])
def test_a_frame_is_joined_whoever_speaks_first(call, first):
    events = [["told", [told(7)], 1500], ["presented", {"rtp": 7, **PRESENTED}, 1500]]
    summary = latency_summary(call, events if first == "told" else events[::-1])
    assert summary["samples"] == 1
    assert summary["p50Ms"] == summary["p95Ms"] == 335
    assert [stage["p50Ms"] for stage in summary["stages"]] == STAGES_MS


def test_the_stages_add_up_to_the_whole(call):
    stages = call("latency.js", "(m) => m.STAGES")
    assert [stage["to"] for stage in stages[:-1]] == [stage["from"] for stage in stages[1:]]
    assert (stages[0]["from"], stages[-1]["to"]) == ("captured", "shown")
    assert sum(STAGES_MS) == 335


def test_frames_that_do_not_match_are_not_counted(call):
    events = [["told", [told(7), told(8)], 1500], ["presented", {"rtp": 9, **PRESENTED}, 1500]]
    summary = latency_summary(call, events)
    assert summary["samples"] == 0
    assert summary["p50Ms"] is None
    assert {stage["p50Ms"] for stage in summary["stages"]} == {None}


def test_a_clock_that_jumped_gives_no_latency(call):
    events = []
    for rtp, captured_ms in enumerate((1000, 900_000, -900_000)):
        events += [["told", [told(rtp, captured_ms)], 1500], ["presented", {"rtp": rtp, **PRESENTED}, 1500]]
    assert latency_summary(call, events)["samples"] == 1


def test_latency_forgets_what_is_older_than_ten_seconds(call):
    events = [["told", [told(7)], 1500], ["presented", {"rtp": 7, **PRESENTED}, 1500]]
    assert latency_summary(call, events, now_ms=11_500)["samples"] == 1
    assert latency_summary(call, events, now_ms=11_501)["samples"] == 0


def test_frames_to_be_matched_are_bounded(call):
    many = [["told", [told(rtp) for rtp in range(1000)], 1500]]
    seen = [["presented", {"rtp": rtp, **PRESENTED}, 1600] for rtp in range(1000)]
    assert latency_summary(call, many + seen)["samples"] == 300


def fps(call, counts, now_ms):
    function = """(m, [counts, nowMs]) => {
        const rate = new m.FrameRate();
        for (const [atMs, count] of counts) rate.add(atMs, count);
        return rate.fps(nowMs);
    }"""
    return call("latency.js", function, [counts, now_ms])


def test_the_frame_rate_is_of_the_last_moments(call):
    flowing = [[40 * i, i] for i in range(26)]
    assert fps(call, flowing, 1000) == 25
    assert fps(call, flowing, 1100) == 25  # between two frames nothing has stalled yet
    assert fps(call, flowing, 1500) == pytest.approx(25 * 1000 / 1500)  # it has
    assert fps(call, flowing, 9000) == 0
    assert fps(call, [[0, 0]], 0) == 0


def test_frame_rate_counts_what_the_callback_missed(call):
    assert fps(call, [[0, 10], [400, 20], [800, 30]], 800) == 25


def test_frame_rate_starts_again_with_a_new_stream(call):
    assert fps(call, [[0, 500], [40, 501], [80, 1], [120, 2], [160, 3]], 160) == 25


# Messages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "7",
        "[]",
        '"hello"',
        "{",
        '{"type":"nope"}',
        '{"type":7}',
        '{"kind":"hello"}',
        "\0",
        "[" * 9999,
    ],
)
def test_messages_that_make_no_sense_are_none(call, text):
    assert call("messages.js", "(m, text) => m.parseMessage(text)", text) is None


def test_a_message_that_is_no_text_is_none(call):
    function = "(m) => [new ArrayBuffer(8), new Blob(['{}']), undefined, {type: 'hello'}].map(m.parseMessage)"
    assert call("messages.js", function) == [None] * 4


@pytest.mark.parametrize("kind", ["hello", "telemetry", "pong", "ended"])
def test_messages_that_are_known(call, kind):
    message = {"type": kind, "more": [1, 2]}
    assert call("messages.js", "(m, text) => m.parseMessage(text)", json.dumps(message)) == message


# Signalling -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 5),
        ("", 5),
        ("  ", 5),
        ("10", 10),
        (" 10 ", 10),
        ("0", 0),
        ("-3", 0),
        ("1.2", 2),
        ("soon", 5),
        ("Thu, 01 Jan 1970 00:01:10 GMT", 10),
        ("Thu, 01 Jan 1970 00:00:10 GMT", 0),
    ],
)
def test_retry_after_is_read_in_seconds(call, header, seconds):
    assert call("signalling.js", "(m, header) => m.retryAfterS(header, 60_000)", header) == seconds


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("http://localhost:8010", "ws://localhost:8010/ws/a%2Fb"),
        ("https://example.org/avatar", "wss://example.org/avatar/ws/a%2Fb"),
    ],
)
def test_the_address_of_a_sessions_socket(call, base, url):
    assert call("signalling.js", "(m, base) => m.socketUrl({ baseUrl: base }, 'a/b')", base) == url


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "unsupported"),
        (403, "forbidden"),
        (404, "unknown-speaker"),
        (406, "unsupported"),
        (413, "unsupported"),
        (422, "unsupported"),
        (429, "server-full"),
        (500, "network"),
        (502, "network"),
        (503, "server-full"),
    ],
)
@pytest.mark.parametrize("body", ['{"detail": "why it is so"}', "<html>a proxy's own words</html>"])
def test_each_refusal_has_a_code_and_a_way_out(call, status, code, body):
    function = """async (m, [status, body]) => {
        const fetched = window.fetch;
        window.fetch = async () => new Response(body, { status, headers: { 'Retry-After': '7' } });
        try {
            await m.postOffer({ baseUrl: 'http://server', token: '' }, { sdp: '', type: 'offer' });
        } catch (error) {
            return { name: error.name, code: error.code, message: error.message, after: error.retryAfterS };
        } finally {
            window.fetch = fetched;
        }
    }"""
    error = call("signalling.js", function, [status, body])
    assert error["name"] == "AvatarError"
    assert error["code"] == code
    assert error.get("after") == (7 if code == "server-full" else None)
    assert error["message"] == "why it is so" if body.startswith("{") else len(error["message"]) > 10


@pytest.mark.parametrize(
    ("token", "words"), [("", "asks for an access token"), ("x", "not take this access token")]
)
def test_a_server_that_wants_a_token_says_whether_one_was_wrong(call, token, words):
    function = """async (m, token) => {
        const fetched = window.fetch;
        window.fetch = async () => new Response('{"detail": "Authorization: ..."}', { status: 401 });
        const error = await m.fetchSpeakers({ baseUrl: 'http://server', token }).catch((error) => error);
        window.fetch = fetched;
        return [error.code, error.message];
    }"""
    code, message = call("signalling.js", function, token)
    assert code == "unauthorized"
    assert words in message


def test_a_server_out_of_reach(call):
    function = """(m) => m.fetchSpeakers({ baseUrl: 'http://127.0.0.1:9', token: '' }).catch((e) => e.code)"""
    assert call("signalling.js", function) == "network"


def test_a_token_goes_into_the_header_only(call):
    function = """async (m) => {
        const fetched = window.fetch;
        let seen;
        window.fetch = async (url, { headers }) => {
            seen = [url, headers.get('Authorization')];
            return new Response('{"iceServers": []}');
        };
        await m.fetchIceConfiguration({ baseUrl: 'http://server', token: 'secret' });
        window.fetch = fetched;
        return seen;
    }"""
    assert call("signalling.js", function) == ["http://server/ice", "Bearer secret"]


# Statistics -----------------------------------------------------------------------------------------

AUDIO = {
    "type": "inbound-rtp",
    "kind": "audio",
    "packetsLost": 2,
    "packetsReceived": 500,
    "estimatedPlayoutTimestamp": 9000.0,
}
VIDEO = {
    "type": "inbound-rtp",
    "kind": "video",
    "packetsLost": 1,
    "packetsReceived": 700,
    "framesDropped": 3,
    "framesPerSecond": 25,
    "estimatedPlayoutTimestamp": 9012.0,
}
UPLINK = {"type": "remote-inbound-rtp", "kind": "audio", "fractionLost": 0.25}


def read_stats(call, *entries):
    function = "(m, list) => m.readReceiverStats(new Map(list.map((entry, i) => [`${i}`, entry])))"
    return call("receiver-stats.js", function, list(entries))


def test_receiver_statistics_are_read(call):
    others = (
        {"type": "codec", "kind": "video"},
        {"type": "outbound-rtp", "kind": "audio", "packetsLost": 99},
    )
    assert read_stats(call, *others, AUDIO, VIDEO, UPLINK) == {
        "lipsAheadMs": 12,
        "packetsLost": 3,
        "packetsReceived": 1200,
        "framesDropped": 3,
        "framesPerSecond": 25,
        "uplinkLossFraction": 0.25,
    }


def test_receiver_statistics_that_are_absent_are_unknown(call):
    assert read_stats(call) == {
        "lipsAheadMs": None,
        "packetsLost": 0,
        "packetsReceived": 0,
        "framesDropped": 0,
        "framesPerSecond": None,
        "uplinkLossFraction": None,
    }


@pytest.mark.parametrize("unknown", [0, None])
def test_lips_are_unknown_until_the_first_sender_report(call, unknown):
    assert read_stats(call, AUDIO | {"estimatedPlayoutTimestamp": unknown}, VIDEO)["lipsAheadMs"] is None


def receiver_meter(call, readings, now_ms):
    function = """(m, [readings, nowMs]) => {
        const meter = new m.ReceiverMeter();
        for (const [atMs, reading] of readings) meter.add(reading, atMs);
        return { lips: meter.lipsAheadMs(nowMs), loss: meter.downlinkLossFraction(nowMs) };
    }"""
    return call("receiver-stats.js", function, [readings, now_ms])


def reading(lost, received, lips_ms=None):
    return {"packetsLost": lost, "packetsReceived": received, "lipsAheadMs": lips_ms}


def test_losses_are_those_of_the_last_seconds(call):
    readings = [[0, reading(100, 100)], [5000, reading(100, 200)], [15_000, reading(125, 275)]]
    assert receiver_meter(call, readings, 15_000)["loss"] == pytest.approx(0.25)


def test_a_lost_packet_that_came_after_all_is_no_loss(call):
    assert receiver_meter(call, [[0, reading(9, 100)], [500, reading(5, 200)]], 500)["loss"] == 0


@pytest.mark.parametrize("readings", [[], [[0, reading(0, 0)]], [[0, reading(0, 5)], [1, reading(0, 5)]]])
def test_losses_without_a_packet_are_unknown(call, readings):
    assert receiver_meter(call, readings, 1) == {"lips": None, "loss": None}


def test_the_lips_offset_is_the_median_of_the_last_ones(call):
    readings = [[i, reading(0, i, lips_ms)] for i, lips_ms in enumerate((None, 30, -400, 10, 20))]
    assert receiver_meter(call, readings, 5)["lips"] == 15


def session_stats(call, then):
    function = f"""(m) => {{
        const meter = new m.SessionMeter();
        {then}
        const stats = meter.stats(2000);
        return {{ stats, report: m.reportOf(stats) }};
    }}"""
    return call("session-meter.js", function)


def test_a_session_of_which_nothing_is_known(call):
    known = session_stats(call, "")
    assert known["report"] is None
    stats = known["stats"]
    assert stats["fps"] == 0
    assert stats["droppedFrames"] == {"server": 0, "browser": 0}
    assert stats["renderPx"] is stats["codec"] is stats["roundTripMs"] is None
    assert stats["drawnShare"] == 1


def test_a_session_sums_up_what_both_sides_say(call):
    frame, presented = json.dumps(told(7)), json.dumps({"rtp": 7, **PRESENTED})
    known = session_stats(
        call,
        f"""
        meter.addPing({{ sentMs: 1000, receivedMs: 1004, serverMs: 6002 }});
        meter.addMessage({{ type: 'hello', render_px: 256, image_size_px: 512, codec: 'VP8' }}, 1000);
        meter.addMessage({{ type: 'telemetry', render_px: 128, drawn_share: 0.25, render_note: 'small',
            frames: [{frame}],
            frames_dropped: {{ late: 2, skipped: 1 }} }}, 1500);
        meter.addPresented({presented}, 40, 1500);
        meter.addPresented(null, 41, 1540);
        """,
    )
    stats = known["stats"]
    assert (stats["renderPx"], stats["imageSizePx"], stats["codec"]) == (128, 512, "VP8")
    assert stats["drawnShare"] == 0.25
    assert stats["droppedFrames"]["server"] == 3
    assert stats["roundTripMs"] == 4
    assert known["report"] == {
        "type": "report",
        "mic_to_glass_ms": {"p50": 335, "p95": 335},
        "av_offset_ms": None,
        "fps": stats["fps"],
    }


# Words and levels -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amplitude", "db", "words"),
    [
        (0, -60, "silent"),
        (1e-9, -60, "silent"),
        (0.004, -48, "quiet"),
        (0.1, -20, "good"),
        (1, 0, "too loud"),
    ],
)
def test_the_level_of_a_microphone_has_a_word(call, amplitude, db, words):
    function = """(m, amplitude) => {
        const db = m.levelDb(new Float32Array(480).map((_, i) => (i % 2 ? amplitude : -amplitude)));
        return [db, m.levelInWords(db)];
    }"""
    found_db, found_words = call("level-meter.js", function, amplitude)
    assert found_db == pytest.approx(db, abs=0.1)
    assert found_words == words


@pytest.mark.parametrize(
    ("ahead_ms", "words"),
    [
        (None, "\N{EN DASH}"),
        (0, "together"),
        (-0.3, "together"),
        (12.4, "12 ms ahead"),
        (-40, "40 ms behind"),
    ],
)
def test_the_lips_offset_has_a_word(call, ahead_ms, words):
    assert call("live-panel.js", "(m, ms) => m.lipsInWords(ms)", ahead_ms) == words


@pytest.mark.parametrize(
    ("render_px", "image_px", "share", "words"),
    [
        (512, 512, 1, "512 px"),
        (192, 512, 1, "192 of 512 px"),
        (512, 512, 0.142, "512 px, 14 % of it"),
        (256, 512, 0.16, "256 of 512 px, 16 % of it"),
        (256, None, 1, "256 px"),
    ],
)
def test_what_is_drawn_in_words(call, render_px, image_px, share, words):
    assert (
        call("live-panel.js", "(m, given) => m.sizeInWords(...given)", [render_px, image_px, share]) == words
    )


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("NotAllowedError", "permission-refused"),
        ("SecurityError", "permission-refused"),
        ("NotFoundError", "no-microphone"),
        ("OverconstrainedError", "no-microphone"),
        ("NotReadableError", "no-microphone"),
        ("AbortError", "no-microphone"),
        ("SomethingNew", "no-microphone"),
    ],
)
def test_what_a_microphone_that_does_not_open_means(call, name, code):
    function = """(m, name) => {
        const { code, message } = m.microphoneError(new DOMException('', name));
        return [code, message.length > 10];
    }"""
    assert call("microphone.js", function, name) == [code, True]


def test_a_page_that_is_not_secure_says_so(call):
    function = """async (m) => {
        Object.defineProperty(globalThis, 'isSecureContext', { value: false, configurable: true });
        try {
            return await m.openMicrophone().catch((error) => error.code);
        } finally {
            delete globalThis.isSecureContext;
        }
    }"""
    assert call("microphone.js", function) == "insecure-context"
