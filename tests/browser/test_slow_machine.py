"""A machine that draws too slowly, as a person meets it."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect
from quick_server import QuickServer

AFTER, DELAY_S = 100, 0.25
# From a picture on, each takes longer than any playout delay.
SLOW = f"""
import time
import quick_server

class Slow(quick_server.PlateRaymarcher):
    drawn_whole = 0

    def render(self, *, region_px=None, **given):
        if region_px is None:
            Slow.drawn_whole += 1
            if Slow.drawn_whole > {AFTER}:
                time.sleep({DELAY_S})
        return super().render(region_px=region_px, **given)

open_raymarcher = lambda speaker, threads: Slow(speaker)
"""


@pytest.fixture(scope="module")
def server(speakers, tmp_path_factory):
    with QuickServer(tmp_path_factory.mktemp("server") / "log.txt", speakers, prepare=SLOW) as running:
        yield running


def test_what_is_drawn_is_seen_and_the_page_says_what_to_do(open_page, server, microphones):
    tab = open_page(server.url, microphones.speech)
    tab.start()
    note = tab.page.locator("#note")
    expect(note).to_contain_text("not 25; the sound goes on.")
    expect(note).to_contain_text("--render-size auto")
    frames = "probe.videoOf(avatar).getVideoPlaybackQuality().totalVideoFrames"
    tab.until(f"{frames} >= argument", tab.avatar(frames) + 12)
    assert server.metric("frames_dropped_total") > 0
    tab.page.get_by_role("button", name="Stop").click()
    expect(note).to_be_hidden()
