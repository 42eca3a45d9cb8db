"""A headless Chromium whose microphone plays a recording. Nothing is downloaded for it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

_FLAGS = (
    "--disable-dev-shm-usage",  # a container's is often too small for pictures
    "--disable-gpu",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


class BrowserError(Exception):
    """No browser to drive; the message says in one line why, and how to get one."""


@contextlib.contextmanager
def chromium(microphone: Path) -> Iterator[Browser]:
    """Gives a browser that grants its microphone without asking; it is closed after the block.

    Args:
        microphone: a WAV file, 16-bit PCM, looped as the fake microphone's sound.

    Raises:
        BrowserError: Playwright or Chromium is not installed, or Chromium does not start.
    """
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        raise BrowserError(
            "Playwright was not found; it drives the browser: pip install -e '.[dev]'"
        ) from None
    with sync_playwright() as playwright:
        path = executable(playwright)
        try:
            browser = playwright.chromium.launch(
                executable_path=path,
                args=[*_FLAGS, f"--use-file-for-fake-audio-capture={microphone.resolve()}"],
            )
        except Error as error:
            raise BrowserError(f"{path} does not start: {error.message.splitlines()[0]}") from None
        try:
            yield browser
        finally:
            browser.close()


def executable(playwright: Playwright) -> Path:
    """Returns the system's Chromium or Chrome, else the one that Playwright has downloaded.

    Raises:
        BrowserError: there is none.
    """
    found = next(filter(None, map(shutil.which, NAMES)), None)
    path = Path(found or playwright.chromium.executable_path)
    if not path.exists():
        raise BrowserError("Chromium was not found; on Debian: apt-get install chromium")
    return path
