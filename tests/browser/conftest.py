"""A real Chromium, a real server, and microphones that play recordings."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import recordings
from chromium import PATIENCE_MS, PROBE, AvatarPage, Browsers, find_chromium, hears
from live_server import LiveServer

NO_BROWSER = "GENEFACE_NO_BROWSER"


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """The path of Chromium; without one the tests fail, unless they were switched off."""
    if os.environ.get(NO_BROWSER) == "1":
        pytest.skip(f"{NO_BROWSER}=1")
    path = find_chromium()
    if path is None:
        pytest.fail(
            f"Chromium was not found; apt-get install chromium, or {NO_BROWSER}=1 to go without",
            pytrace=False,
        )
    return path


# Playwright's loop counts as running between its calls, which other tests' asyncio.run() would refuse:
# it ends with each module.
@pytest.fixture(scope="module")
def browsers(chromium_path: str) -> Iterator[Browsers]:
    """The Chromiums of a module."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browsers = Browsers(playwright, chromium_path)
        try:
            yield browsers
        finally:
            browsers.close()


@dataclass(frozen=True, kw_only=True)
class Microphones:
    """Chromium's flags for a microphone that plays each recording."""

    speech: tuple[str, ...]
    turns: tuple[str, ...]  # 2 s of speech, 2 s of silence
    low_voice: tuple[str, ...]  # below 500 Hz
    high_voice: tuple[str, ...]  # above 2000 Hz


@pytest.fixture(scope="session")
def microphones(tmp_path_factory: pytest.TempPathFactory) -> Microphones:
    """Microphones by what they hear."""
    folder = tmp_path_factory.mktemp("microphones")
    sounds = {
        "speech": recordings.speech(),
        "turns": recordings.words_and_pauses(2.0),
        "low_voice": recordings.voice_within(100, 500),
        "high_voice": recordings.voice_within(2000, 4000),
    }
    return Microphones(
        **{
            name: hears(recordings.write_recording(folder / f"{name}.wav", samples))
            for name, samples in sounds.items()
        }
    )


@pytest.fixture(scope="session")
def speakers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `Tiny` and `Other`, of other size and colours: pictures that cost next to nothing."""
    from bundle_factory import tiny_parts, write_tiny_bundle

    from export.bundle.writer import write_bundle

    folder = tmp_path_factory.mktemp("speakers")
    write_tiny_bundle(folder / "Tiny", image_size_px=128)
    other = tiny_parts(name="Other", seed=1, image_size_px=160)
    negative = dataclasses.replace(other.scene, background=255 - other.scene.background)
    write_bundle(folder / "Other", dataclasses.replace(other, scene=negative))
    return folder


@pytest.fixture(scope="module")
def serve(
    chromium_path: str, speakers: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., LiveServer]]:
    """Starts servers; each must have ended in order when the module is through."""
    running: list[LiveServer] = []

    def start(speaker: str, *flags: str, token: str = "") -> LiveServer:
        log = tmp_path_factory.mktemp("server") / "log.txt"
        given = ("--speaker", speaker, "--speakers-dir", str(speakers), *flags)
        running.append(LiveServer(log, *given, token=token))
        return running[-1]

    yield start
    failures = []
    for server in running:
        try:
            server.stop()
        except AssertionError as failure:
            failures.append(str(failure))
    assert not failures, "\n".join(failures)


@pytest.fixture
def open_page(browsers: Browsers) -> Iterator[Callable[..., AvatarPage]]:
    """Opens tabs, each in a context of its own unless it is given one; no script may have failed in them."""
    contexts, pages = [], []

    def open_it(url: str, microphone: tuple[str, ...], *, context: Any = None, **settings: Any) -> AvatarPage:
        env = settings.pop("env", None)
        if context is None:
            context = browsers.get(*microphone, env=env).new_context(**settings)
            context.set_default_timeout(PATIENCE_MS)
            context.add_init_script(path=PROBE)
            contexts.append(context)
        pages.append(AvatarPage(context.new_page()))
        pages[-1].page.goto(url)
        return pages[-1]

    yield open_it
    for context in contexts:
        context.close()
    errors = [error for page in pages for error in page.errors]
    assert not errors, errors
