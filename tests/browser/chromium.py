"""Chromium with a microphone that plays a recording, driven by Playwright; nothing is downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from patience import PATIENCE_S, until
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, expect

from benchmarks.chromium import NAMES

PROBE = Path(__file__).with_name("probe.js")

PATIENCE_MS = 1000 * PATIENCE_S
FLAGS = ("--disable-gpu", "--disable-sync")  # beside those that Playwright gives
FAKE_DEVICE = "--use-fake-device-for-media-stream"
ALLOW = "--use-fake-ui-for-media-stream"
REFUSE = "--deny-permission-prompts"
NO_SOUND_SYSTEM = {"PULSE_SERVER": "unix:/nonexistent", "ALSA_CONFIG_PATH": os.devnull}
# Where May's mouth is, with room for the sway of her head.
MOUTH = {"left": 0.38, "top": 0.6, "right": 0.62, "bottom": 0.8}
WHOLE = {"left": 0, "top": 0, "right": 1, "bottom": 1}


def find_chromium() -> str | None:
    """Returns the path of this machine's Chromium."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


def hears(recording: Path) -> tuple[str, ...]:
    """Returns the flags of a microphone that plays a recording over and over, and is allowed."""
    return FAKE_DEVICE, ALLOW, f"--use-file-for-fake-audio-capture={recording}"


class Browsers:
    """The Chromiums of a test module, one for each set of flags; `close` ends them all."""

    def __init__(self, playwright: Playwright, executable: str) -> None:
        self._playwright, self._executable = playwright, executable
        self._browsers: dict[tuple[str, ...], Browser] = {}

    def get(self, *flags: str, env: dict[str, str] | None = None) -> Browser:
        """Returns the Chromium with these flags, started when first asked for."""
        if flags not in self._browsers:
            self._browsers[flags] = self._playwright.chromium.launch(
                executable_path=self._executable, args=[*FLAGS, *flags], env={**os.environ, **(env or {})}
            )
        return self._browsers[flags]

    def own(self, profile: Path, *flags: str) -> BrowserContext:
        """Returns a Chromium whose processes can be told from those of others by its profile."""
        return self._playwright.chromium.launch_persistent_context(
            profile, executable_path=self._executable, args=[*FLAGS, *flags]
        )

    def close(self) -> None:
        """Ends all Chromiums."""
        for browser in self._browsers.values():
            browser.close()
        self._browsers.clear()


def processes_of(profile: Path) -> list[psutil.Process]:
    """Returns Chromium's processes that run with a profile: the browser first, then its children."""
    for process in psutil.Process().children(recursive=True):
        command = process.cmdline()
        is_child = any(part.startswith("--type=") for part in command)
        if f"--user-data-dir={profile}" in command and not is_child:
            return [process, *process.children(recursive=True)]
    raise AssertionError(f"no Chromium with the profile {profile}")


class AvatarPage:
    """A tab with the avatar, and everything that went wrong in it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        self.requested: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._note)
        page.on("request", lambda request: self.requested.append(request.url))

    def _note(self, message: Any) -> None:
        # What the browser says of a request that the server refused; the page says it in its own words.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.errors.append(message.text)

    def start(self) -> None:
        """Clicks Start, and waits until the speaker shows."""
        self.page.get_by_role("button", name="Start").click()
        self.until_live()

    def until_live(self) -> None:
        """Waits until the page says that it is live."""
        expect(self.page.get_by_role("status").first).to_have_text("Live")

    def avatar(self, expression: str, argument: Any = None) -> Any:
        """Returns what an expression of `avatar` (and `argument`) gives, awaited."""
        return self.page.evaluate(
            f"(argument) => {{ const avatar = document.querySelector('geneface-avatar'); "
            f"return {expression}; }}",
            argument,
        )

    def until(self, expression: str, argument: Any = None) -> Any:
        """Returns what an expression of `avatar` gives, once it is true.

        Raises:
            AssertionError: it does not become true in time.
        """
        return self.wait_until(lambda: self.avatar(expression, argument), what=expression)

    def wait_until(self, check: Callable[[], Any], *, what: str = "") -> Any:
        """Returns what `check` gives, once it is true; the page's events are heard meanwhile.

        Raises:
            AssertionError: it does not become true in time.
        """
        return until(check, what=what, pause=lambda s: self.page.wait_for_timeout(1000 * s))

    def record(self, seconds: float, *, region: dict[str, float] = MOUTH) -> dict[str, Any] | None:
        """Returns `shown`, `spoken` and `answered` of so many seconds, None unconnected; see probe.js."""
        settings = {"seconds": seconds, "region": region, "columns": 24, "rows": 20}
        return self.avatar("probe.record(avatar, argument)", settings)

    def picture(self) -> list[int]:
        """Returns what is shown now, 16 x 16 grey values."""
        return self.avatar("probe.reader(argument, 16, 16)(probe.videoOf(avatar))", WHOLE)
