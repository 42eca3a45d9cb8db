"""One real session with May, measured in the browser: pace, lips, sound, latency."""

from __future__ import annotations

import numpy as np
import pytest
import recordings
from live_server import until
from playwright.sync_api import expect

RECORD_S = 9.0
LOUD, QUIET = 0.02, 0.002  # root mean square; the browser's own gain brings speech to about 0.2

SOMETHING_IS_HEARD = (
    "probe.levels(avatar.stream.getAudioTracks()[0], 0.3)"
    ".then((levels) => levels.some(([, level]) => level > argument))"
)


@pytest.fixture(scope="module")
def server(serve):
    return serve("May")


@pytest.fixture
def tab(open_page, server, microphones):
    return open_page(server.url, microphones.turns)


def shown_fps(shown):
    first, last = shown[0], shown[-1]
    return 1000 * (last["count"] - first["count"]) / (last["at_ms"] - first["at_ms"])


def mouths_of(record):
    """Returns when frames were shown, their mouths, and how far (grey values) each is from the one before."""
    at_ms = np.array([frame["at_ms"] for frame in record["shown"]])
    mouths = np.array([frame["pixels"] for frame in record["shown"]], float)
    return at_ms[1:], mouths[1:], np.abs(np.diff(mouths, axis=0)).mean(axis=1)


def loudness_at(at_ms, levels, over_ms):
    """Returns the quietest and the loudest level around each moment."""
    when, level = np.array(levels).T
    around = [level[np.abs(when - moment) <= over_ms] for moment in at_ms]
    return (
        np.array([part.min(initial=1.0) for part in around]),
        np.array([part.max(initial=0.0) for part in around]),
    )


def test_pace_sound_and_lips(tab):
    """One session, three questions: sessions are what takes time here."""
    tab.start()
    assert tab.avatar("[avatar.connectionState, avatar.state]") == ["connected", "connected"]
    assert tab.avatar("avatar.readyState") >= 2
    assert tab.avatar("[avatar.videoWidth, avatar.videoHeight]") == [512, 512]

    for _ in range(3):  # at first the server looks for the size that this machine can draw
        record = tab.record(RECORD_S)
        fps = shown_fps(record["shown"])
        likeness, lag_ms = recordings.alikeness(record["spoken"], record["answered"])
        if likeness > 0.8:
            break
    assert fps <= 26  # how many it draws is the machine's affair: benchmarks.latency
    # A browser that gets too little time makes up some of the sound.
    assert likeness > 0.5, f"what is heard is not what was said: r = {likeness:.2f} at {lag_ms:.0f} ms"

    at_ms, mouths, motion = mouths_of(record)
    quietest, loudest = loudness_at(at_ms, record["answered"], 100)
    speaking, resting = quietest > LOUD, loudest < QUIET
    assert min(speaking.sum(), resting.sum()) >= 8
    # The head sways all the time: speech moves the mouth by about four times that.
    assert motion[speaking].mean() > 2 * motion[resting].mean()
    assert motion[resting].mean() < 1.0
    shut = np.median(mouths[resting], axis=0)
    assert np.abs(mouths[resting] - shut).mean() < np.abs(mouths[speaking] - shut).mean()


def test_the_panel_fills(tab):
    tab.start()
    figure_ms = float(tab.until("/^[0-9]+$/.test(p50.textContent) && p50.textContent", within_s=10))
    assert 100 <= figure_ms <= 1500
    expect(tab.page.locator("#p95")).to_contain_text("95 % of frames within")
    expect(tab.page.locator("#render")).to_contain_text("px")
    tab.until("parseFloat(fps.textContent) > 0", within_s=10)
    values = tab.page.locator("#legend .value").all_text_contents()
    assert len(values) == 8
    assert all(value.endswith(" ms") for value in values)


def test_the_latency_event(tab, server):
    tab.start()
    tab.avatar("avatar.addEventListener('latency', (event) => { window.last = event; })")
    tab.until("window.last?.detail.samples >= 50", within_s=15)
    assert tab.avatar("[window.last.bubbles, window.last.composed]") == [True, True]
    event = tab.avatar("window.last.detail")
    assert 100 <= event["p50Ms"] <= event["p95Ms"] <= 1500
    stages = {stage["name"]: stage["p50Ms"] for stage in event["stages"]}
    assert list(stages) == [
        "microphone and uplink",
        "jitter buffer",
        "look-ahead",
        "render",
        "encode",
        "waiting for its moment",
        "network",
        "display",
    ]
    assert all(value is not None and -5 < value < 1000 for value in stages.values())
    assert stages["look-ahead"] == max(stages.values())
    # Medians do not add up exactly, stages that leave nothing out nearly do.
    assert sum(stages.values()) == pytest.approx(event["p50Ms"], rel=0.25)
    until(lambda: server.metric("geneface_mic_to_glass_seconds_count") >= 1, within_s=10)


def test_mute(tab):
    tab.start()
    tab.until(SOMETHING_IS_HEARD, within_s=10, argument=LOUD)
    tab.page.get_by_role("button", name="Mute").click()
    assert tab.avatar("avatar.micMuted")
    record = tab.record(5.0)  # longer than a pause of the recording
    end_ms = record["answered"][-1][0]
    late = [level for at_ms, level in record["answered"] if end_ms - at_ms < 3000]
    assert max(late) < QUIET
    at_ms, _, motion = mouths_of(record)
    assert motion[at_ms > end_ms - 2500].mean() < 1.0
    tab.page.get_by_role("button", name="Mute").click()
    assert not tab.avatar("avatar.micMuted")
    tab.until(SOMETHING_IS_HEARD, within_s=10, argument=LOUD)
