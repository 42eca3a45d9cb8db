"""The page as a person meets it: by its buttons, its keyboard, on a phone, and when something is wrong."""

from __future__ import annotations

import io
import re

import av
import numpy as np
import pytest
from chromium import ALLOW, FAKE_DEVICE, NO_SOUND_SYSTEM, PROBE, REFUSE
from playwright.sync_api import expect

PHONE = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}
TOKEN = "a-long-secret-of-25-chars"
# The contrast ratio of each piece of text with what lies behind it: WCAG 2.2, "relative luminance".
CONTRAST = """(() => {
    const context = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
    const parse = (colour) => {
        context.clearRect(0, 0, 1, 1);
        context.fillStyle = colour;
        context.fillRect(0, 0, 1, 1);
        return [...context.getImageData(0, 0, 1, 1).data];
    };
    const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    const luminance = (colour) => {
        const [r, g, b] = colour.map((value) => linear(value / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const colour = parse(getComputedStyle(at).backgroundColor);
            if (colour[3] === 255) return colour;
        }
        return [255, 255, 255];
    };
    return [...document.querySelectorAll('h1, h2, p, label, dt, dd, li, summary, button:enabled, select')]
        .filter((element) => element.offsetParent && element.textContent.trim())
        .map((element) => {
            const colours = [parse(getComputedStyle(element).color), behind(element)];
            const [dark, light] = colours.map(luminance).sort((a, b) => a - b);
            return [(light + 0.05) / (dark + 0.05), element.id || element.textContent];
        });
})()"""


@pytest.fixture(scope="module")
def server(serve):
    return serve("Tiny")


@pytest.fixture(scope="module")
def guarded(serve):
    return serve("Tiny", token=TOKEN)


@pytest.fixture
def tab(open_page, server, microphones):
    return open_page(server.url, microphones.speech)


def state(tab):
    return tab.page.locator("#state")


def problem(tab):
    return tab.page.get_by_role("alert")


def pixels(png):
    with av.open(io.BytesIO(png), format="png_pipe") as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


# In order -------------------------------------------------------------------------------------------


def test_start_and_stop(tab, server):
    expect(state(tab)).to_have_text("Not connected")
    tab.start()
    assert tab.avatar("avatar.connectionState") == "connected"
    assert tab.avatar("avatar.readyState") >= 2
    server.until_sessions(1)
    tab.page.get_by_role("button", name="Stop").click()
    expect(state(tab)).to_have_text("Not connected")
    expect(tab.page.get_by_role("button", name="Start")).to_be_visible()
    assert tab.avatar("[avatar.state, avatar.stream, avatar.micTrack]") == ["idle", None, None]
    server.until_sessions(0)


def test_start_again_after_stop(tab):
    for _ in range(2):
        tab.start()
        tab.page.get_by_role("button", name="Stop").click()
        expect(state(tab)).to_have_text("Not connected")


def test_another_speaker_while_live(tab, server):
    tab.page.get_by_label("Speaker", exact=True).select_option("Other")
    tab.start()
    assert tab.avatar("avatar.videoWidth") == 160
    tab.page.get_by_label("Speaker", exact=True).select_option("Tiny")
    tab.until_live()
    tab.until("avatar.videoWidth === 128")
    server.until_sessions(1)
    expect(tab.page.locator("#hear-label")).to_have_text("Hear Tiny")


def test_the_speakers_are_listed_and_the_default_is_chosen(tab):
    speaker = tab.page.get_by_label("Speaker", exact=True)
    expect(speaker).to_have_value("Tiny")
    assert speaker.locator("option").all_text_contents() == ["Tiny", "May", "Other"]


def test_the_snippet_is_for_this_server(tab, server):
    tab.page.get_by_text("Embed in a call").click()
    snippet = tab.page.locator("#snippet")
    expect(snippet).to_contain_text(f'src="{server.url}client/geneface-avatar.js"')
    expect(snippet).to_contain_text('speaker="Tiny"')


def test_the_speakers_sound_is_off_until_asked_for(tab):
    hear = tab.page.get_by_role("button", name="Hear Tiny")
    expect(hear).to_have_attribute("aria-pressed", "false")
    assert tab.avatar("[avatar.muted, probe.videoOf(avatar).muted]") == [True, True]
    hear.click()
    expect(hear).to_have_attribute("aria-pressed", "true")
    assert tab.avatar("[avatar.muted, probe.videoOf(avatar).muted]") == [False, False]


def test_the_level_moves_with_the_microphone(tab):
    meter = tab.page.get_by_role("meter", name="Level")
    expect(meter).to_have_attribute("aria-valuetext", "off")
    tab.start()
    expect(meter).to_have_attribute("aria-valuetext", re.compile("good|too loud"))
    tab.page.get_by_role("button", name="Stop").click()
    expect(meter).to_have_attribute("aria-valuetext", "off")


NO_MEASURE = {
    "no Web Audio": "delete window.AudioContext;",
    "Web Audio that throws": "AudioContext = class { constructor() { throw new Error('no device'); } };",
    "no source for the track": """AudioContext.prototype.createMediaStreamSource =
        () => { throw new DOMException('none', 'NotSupportedError'); };""",
    "a context that stays suspended": """AudioContext = class extends AudioContext {
        constructor() { super(); super.suspend(); }
        resume() { return new Promise(() => {}); }
    };""",
    "a context whose time stands": """
        Object.defineProperty(BaseAudioContext.prototype, 'currentTime', { get: () => 0 });
        AnalyserNode.prototype.getFloatTimeDomainData = (samples) => { samples.fill(1e-5); };""",
    "zeros alone": "AnalyserNode.prototype.getFloatTimeDomainData = (samples) => { samples.fill(0); };",
}


@pytest.mark.parametrize("kind", NO_MEASURE)
def test_where_the_browser_measures_no_level_the_server_s_is_shown(
    open_page, browsers, server, microphones, kind
):
    with browsers.get(*microphones.speech).new_context() as context:
        context.add_init_script(path=PROBE)
        context.add_init_script(NO_MEASURE[kind])
        tab = open_page(server.url, microphones.speech, context=context)
        meter = tab.page.get_by_role("meter", name="Level")
        tab.start()
        expect(meter).to_have_attribute("aria-valuetext", re.compile("good|too loud"))
        assert float(meter.get_attribute("aria-valuenow")) > -42
        tab.page.get_by_role("button", name="Mute").click()
        expect(meter).to_have_attribute("aria-valuetext", "silent")
        tab.page.get_by_role("button", name="Stop").click()
        expect(meter).to_have_attribute("aria-valuetext", "off")


# For everybody --------------------------------------------------------------------------------------


def test_the_keyboard_reaches_start_and_starts(tab):
    focused = "document.activeElement.id"
    for _ in range(5):
        tab.page.keyboard.press("Tab")
        if tab.avatar(focused) == "start":
            break
    assert tab.avatar(focused) == "start"
    tab.page.keyboard.press("Enter")
    tab.until_live()
    tab.page.keyboard.press("Enter")
    expect(state(tab)).to_have_text("Not connected")


def test_everything_has_its_role_and_name(tab):
    tab.page.locator("details").evaluate("details => { details.open = true; }")
    for role, name in [
        ("button", "Start"),
        ("button", "Mute"),
        ("button", "Hear Tiny"),
        ("button", "Copy"),
        ("combobox", "Speaker"),
        ("combobox", "Microphone"),
        ("meter", "Level"),
        ("region", "Avatar"),
        ("region", "Voice"),
        ("region", "From microphone to picture"),
        ("list", "Median of each stage"),
    ]:
        expect(tab.page.get_by_role(role, name=name, exact=True)).to_have_count(1)


def test_nothing_to_operate_is_without_a_name(tab):
    operable = tab.page.locator("button, select, input, summary, [tabindex]").filter(visible=True)
    described = [operable.nth(i).aria_snapshot() for i in range(operable.count())]
    assert len(described) >= 6
    assert [text for text in described if not re.search(r'^- (\S+ "|text: |group: )\S', text)] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_can_be_read(open_page, server, microphones, scheme):
    tab = open_page(server.url, microphones.speech, color_scheme=scheme)
    found = tab.avatar(CONTRAST)
    assert len(found) > 20
    assert [what for ratio, what in found if ratio < 4.5] == []  # WCAG 2.2, 1.4.3


@pytest.mark.parametrize("width_px", [320, 390, 880, 1280])
def test_nothing_is_wider_than_the_window(open_page, server, microphones, width_px):
    tab = open_page(server.url, microphones.speech, viewport={"width": width_px, "height": 844})
    tab.page.locator("details").evaluate("details => { details.open = true; }")
    assert tab.avatar("document.documentElement.scrollWidth") <= width_px
    start = tab.page.get_by_role("button", name="Start").bounding_box()
    assert start["x"] >= 0
    assert start["x"] + start["width"] <= width_px


def test_the_page_works_on_a_phone(open_page, server, microphones, tmp_path):
    tab = open_page(server.url, microphones.speech, **PHONE)
    tab.page.get_by_role("button", name="Start").tap()
    tab.until_live()
    tab.until("avatar.stats?.latency.p50Ms > 0")
    assert tab.avatar("document.documentElement.scrollWidth") <= 390
    expect(tab.page.get_by_role("button", name="Stop")).to_be_in_viewport()
    png = tab.page.screenshot(path=tmp_path / "phone.png")
    assert pixels(png).shape == (2 * 844, 2 * 390, 3)
    face = pixels(tab.page.locator("geneface-avatar").screenshot())
    assert face.std() > 10
    assert len(np.unique(face.reshape(-1, 3), axis=0)) > 1000  # a picture, no flat placeholder


# When something is wrong ----------------------------------------------------------------------------


def test_the_page_says_what_to_do_when_the_microphone_is_refused(open_page, server):
    tab = open_page(server.url, (FAKE_DEVICE, REFUSE))
    tab.avatar("avatar.addEventListener('error', ({ detail }) => { window.code = detail.code; })")
    tab.page.get_by_role("button", name="Start").click()
    expect(problem(tab)).to_contain_text("The microphone is not allowed")
    expect(problem(tab)).to_contain_text("allow the microphone for this page, then try again")
    expect(state(tab)).to_have_text("No connection")
    expect(tab.page.get_by_role("button", name="Try again")).to_be_visible()
    expect(tab.page.get_by_role("button", name="Start")).to_be_enabled()
    assert server.sessions() == 0


def test_the_element_fails_when_the_microphone_is_refused(open_page, server):
    tab = open_page(server.url, (FAKE_DEVICE, REFUSE))
    told = tab.avatar(
        """new Promise((resolve) => {
            const codes = [];
            avatar.addEventListener('error', ({ detail }) => codes.push(detail.code));
            avatar.connect().catch(({ code }) => resolve({ thrown: code, codes, state: avatar.state }));
        })"""
    )
    assert told == {"thrown": "permission-refused", "codes": ["permission-refused"], "state": "failed"}


def test_the_page_says_that_there_is_no_microphone(open_page, server):
    tab = open_page(server.url, (ALLOW,), env=NO_SOUND_SYSTEM)
    tab.page.get_by_role("button", name="Start").click()
    expect(problem(tab)).to_contain_text("No microphone")
    expect(problem(tab)).to_contain_text("Plug one in")
    assert tab.avatar("avatar.connect().catch(({ code }) => code)") == "no-microphone"


def test_a_microphone_that_goes_away(tab):
    tab.start()
    tab.avatar("avatar.micTrack.dispatchEvent(new Event('ended'))")  # what unplugging does
    expect(problem(tab)).to_contain_text("The microphone went away; choose another one.")
    assert tab.avatar("avatar.state") == "connected"


def test_the_page_says_that_a_speaker_is_unknown(tab):
    # The page sets the speaker itself once it knows the list.
    expect(tab.page.get_by_role("combobox", name="Speaker")).to_have_value("Tiny")
    tab.avatar("avatar.speaker = 'Nobody'")
    tab.page.get_by_role("button", name="Start").click()
    expect(problem(tab)).to_contain_text("Unknown speaker")
    assert tab.avatar("[avatar.state, avatar.micTrack]") == ["failed", None]
    tab.avatar("avatar.speaker = 'Tiny'")
    tab.start()
    expect(problem(tab)).to_be_hidden()


def test_the_page_says_that_the_server_is_out_of_reach(tab):
    tab.page.route("**/ice", lambda route: route.abort())
    tab.page.get_by_role("button", name="Start").click()
    expect(problem(tab)).to_contain_text("No connection to the server")
    tab.page.unroute("**/ice")
    tab.page.get_by_role("button", name="Try again").click()
    tab.until_live()
    expect(problem(tab)).to_be_hidden()


def test_the_page_says_that_the_server_stopped(open_page, serve, microphones):
    server = serve("Tiny")
    tab = open_page(server.url, microphones.speech)
    tab.start()
    server.stop()
    expect(problem(tab)).to_contain_text("The server ended the session: server stopping.")
    expect(state(tab)).to_have_text("Ended by the server")
    assert tab.avatar("avatar.micTrack") is None


def test_the_page_asks_for_a_token_until_it_is_right(open_page, guarded, microphones):
    tab = open_page(guarded.url, microphones.speech)
    field = tab.page.get_by_label("Access token")
    expect(problem(tab)).to_contain_text("An access token is needed")
    expect(field).to_be_focused()
    field.fill("something else")
    tab.page.keyboard.press("Enter")
    expect(problem(tab)).to_contain_text("The server does not take this access token.")
    expect(field).to_have_value("")
    expect(field).to_be_focused()
    field.fill(TOKEN)
    tab.page.get_by_role("button", name="Use it").click()
    expect(problem(tab)).to_be_hidden()
    expect(tab.page.get_by_label("Speaker", exact=True)).to_have_value("Tiny")
    tab.start()


def test_a_token_in_the_pages_address_is_sent_in_no_address(open_page, guarded, microphones):
    tab = open_page(f"{guarded.url}#token={TOKEN}", microphones.speech)
    tab.start()
    assert problem(tab).is_hidden()
    assert len(tab.requested) > 5
    assert [url for url in tab.requested if TOKEN in url.partition("#")[0]] == []
