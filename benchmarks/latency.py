"""Mic-to-glass latency in a real browser: `python -m benchmarks.latency`.

A headless Chromium whose microphone plays a recording opens the page of a real server and clicks its button.
Stage times are the page's own; A/V offset and microphone to glass are measured a second time by content, see
`content_lag.py`: that offset is what the call adds to a recording's sync; by how much the lips lead their
sound by nature is a row apart. Sound counts as heard when it leaves the browser's jitter buffer, plus the
browser's reported output latency; a picture counts as seen at its `expectedDisplayTime`.

With `--churn` pages connect and leave instead, and the server's leaks are counted.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import platform
import sys
import tempfile
import time
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import psutil

from models.speaker import Speaker, load_speaker
from models.speaker_folders import find_speaker
from models.time_base import FRAME_RATE_HZ
from streaming.errors import InputError
from streaming.files.audio_file import AudioFile
from streaming.files.progress import Progress
from streaming.pipeline.cores import usable_cores

from .chromium import BrowserError, chromium
from .content_lag import SOUND_RATE_HZ, LipsByFile, Offset, lips_yardstick, natural_lead, offsets
from .json_file import write_json
from .latency_figures import (
    BenchmarkError,
    ChurnFigures,
    ContentFigures,
    CpuFigures,
    Figures,
    Record,
    churn_figures,
    content_figures,
    heard_sound,
    lips_signal,
    session_figures,
    table,
    verdicts,
)
from .server_process import ServerError, ServerProcess, Usage

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SETTLE_S = 2.0  # after connecting: jitter buffers fill, the first sender reports come
TAKE_S = 30.0  # of sound, at the beginning and at the end, measured by content
MIN_S = 10.0
MAX_RECORDING_S = 120.0
_PAGE = Path(__file__).with_name("latency_page.js")
_PAGE_PATH = "/benchmark/latency_page.js"
_GONE_S = 8.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The run's settings."""

    audio: Path
    seconds: float
    sessions: int
    churn_s: float  # 0: no churn
    stay_s: float
    delay_sound_ms: float | None
    server_flags: tuple[str, ...]
    quiet: bool


def write_microphone(audio: Path, target: Path) -> None:
    """Writes a recording as the fake microphone takes it: WAV, 48 kHz, mono, 16 bits, repeated without a gap.

    Raises:
        InputError: it is no recording, or longer than two minutes.
    """
    recording = AudioFile(audio)
    form = recording.sound_format
    resampler = av.AudioResampler("s16", "mono", SOUND_RATE_HZ)
    pieces = []
    for block in recording.sound():
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), "fltp", form.layout)
        frame.sample_rate = form.rate_hz
        pieces += [part.to_ndarray()[0] for part in resampler.resample(frame)]
        if sum(map(len, pieces)) > MAX_RECORDING_S * SOUND_RATE_HZ:
            raise InputError(
                f"--audio {audio}: expected at most {MAX_RECORDING_S:.0f} s (it is repeated); cut it"
            )
    pieces += [part.to_ndarray()[0] for part in resampler.resample(None)]
    samples = np.concatenate(pieces)
    samples = np.pad(samples, (0, -len(samples) % (SOUND_RATE_HZ // 100)))  # it is played in pieces of 10 ms
    with wave.open(str(target), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SOUND_RATE_HZ)
        out.writeframes(samples.astype("<i2").tobytes())


def measure(speaker: Speaker, plan: Plan) -> Figures:
    """Returns the figures of a run.

    Raises:
        InputError: the recording is none.
        BrowserError: no browser to run.
        ServerError, BenchmarkError: it broke off.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_microphone(plan.audio, folder / "microphone.wav")
        lips: LipsByFile | None = None
        note, lead_ms = "not asked for", None
        if not plan.churn_s:
            try:
                lips = LipsByFile(speaker)
                stack.callback(lips.close)
                lead_ms = natural_lead(speaker, plan.audio).lead_ms
            except ValueError as error:
                note = str(error)
        progress = Progress(None, quiet=plan.quiet)
        progress.note("starting browser and server, the server twice ...")
        log = folder / "server.log"
        with chromium(folder / "microphone.wav") as browser:
            with ServerProcess(plan.server_flags, log) as server:
                ready_first_s = server.ready_s
            faults = server.faults()
            with ServerProcess(plan.server_flags, log) as server:
                progress.clear()
                live = Live(server, browser, plan)
                churn = live.come_and_go() if plan.churn_s else None
                taken = None if plan.churn_s else live.speak(lips)
            faults += server.faults() + len(live.errors)
            version = browser.version
        sessions = []
        if taken is not None:
            for record, start_ms, end_ms in taken.sessions:
                content = _content(record, lips, note, lead_ms, plan.quiet)
                sessions.append(session_figures(record, start_ms, end_ms, content))
    figures = Figures(
        date=datetime.date.today().isoformat(),
        machine=_machine(),
        versions={
            "geneface-stream": _version("geneface-stream"),
            "Chromium": version,
            "Python": platform.python_version(),
            "aiortc": _version("aiortc"),
        },
        speaker=speaker.name,
        audio=str(plan.audio),
        seconds=plan.churn_s or plan.seconds,
        ready_first_s=ready_first_s,
        ready_warm_s=server.ready_s,
        sessions=sessions,
        cpu=taken.cpu if taken is not None else None,
        churn=churn,
        faults=faults,
        verdicts={},
    )
    figures["verdicts"] = verdicts(figures)
    return figures


@dataclass(frozen=True, kw_only=True)
class Taken:
    """The records of a run."""

    sessions: list[tuple[Record, float, float]]  # with its page's clock at the beginning and the end
    cpu: CpuFigures


class Live:
    """Pages of a browser that talk to a server."""

    def __init__(self, server: ServerProcess, browser: Browser, plan: Plan) -> None:
        self._server, self._browser, self._plan = server, browser, plan
        self.errors: list[str] = []  # of the pages

    def speak(self, lips: LipsByFile | None) -> Taken:
        """Runs the sessions concurrently and returns their records."""
        plan = self._plan
        take_s = min(plan.seconds, TAKE_S)
        listen = {"takeMs": take_s * 1000, "delayMs": plan.delay_sound_ms}
        pages = []
        for number in range(plan.sessions):
            page = self._open()
            self._start(page, lips, f"session {number + 1} of {plan.sessions}")
            pages.append(page)
        self._wait(pages[0], SETTLE_S)
        starts_ms = [float(_ask(page, "now")) for page in pages]
        for page in pages:
            _ask(page, "listen", listen)
        meter = CpuMeter(self._server)
        progress = Progress(round(plan.seconds * FRAME_RATE_HZ), quiet=plan.quiet)
        start_s = time.monotonic()
        listen_again_s = plan.seconds - TAKE_S if plan.seconds >= 2 * TAKE_S else float("inf")
        while (spent_s := time.monotonic() - start_s) < plan.seconds:
            progress.at(round(spent_s * FRAME_RATE_HZ))
            if spent_s >= listen_again_s:
                listen_again_s = float("inf")
                for page in pages:
                    _ask(page, "listen", listen)
            self._wait(pages[0], min(0.5, plan.seconds - spent_s))
        progress.clear()
        cpu = meter.figures(plan.sessions)
        ends_ms = [float(_ask(page, "now")) for page in pages]
        records = [_ask(page, "record") for page in pages]
        for page in pages:
            _ask(page, "leave")
            page.close()
        return Taken(sessions=list(zip(records, starts_ms, ends_ms, strict=True)), cpu=cpu)

    def come_and_go(self) -> ChurnFigures:
        """Connects and closes a page repeatedly, by turns with and without hanging up."""
        plan = self._plan
        usages: list[Usage] = []
        times_s: list[float] = []
        progress = Progress(round(plan.churn_s * FRAME_RATE_HZ), quiet=plan.quiet)
        start_s = time.monotonic()
        while len(usages) < 3 or time.monotonic() - start_s < plan.churn_s:
            page = self._open()
            self._start(page, None, f"round {len(usages) + 1}")
            end_s = time.monotonic() + plan.stay_s
            while time.monotonic() < end_s:
                progress.at(round((time.monotonic() - start_s) * FRAME_RATE_HZ))
                self._wait(page, 0.5)
            if len(usages) % 2 == 0:
                _ask(page, "leave")
            page.close()
            self._wait_until_nobody_is_in()
            usages.append(self._server.usage())
            times_s.append(time.monotonic() - start_s)
        progress.clear()
        return churn_figures(usages, times_s, plan.stay_s)

    def _open(self) -> Page:
        page = self._browser.new_page()
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.route(
            self._server.origin + _PAGE_PATH,
            lambda route: route.fulfill(path=_PAGE, content_type="text/javascript"),
        )
        page.goto(self._server.origin + "/")
        return page

    def _start(self, page: Page, lips: LipsByFile | None, which: str) -> None:
        how = {"box": lips.box if lips else None, "rowsApart": lips.rows_apart if lips else 1}
        try:
            _ask(page, "start", how)
        except BenchmarkError as error:
            raise BenchmarkError(f"{which} did not connect: {error}") from None

    def _wait(self, page: Page, seconds: float) -> None:
        self._server.usage()  # raises if it is gone
        page.wait_for_timeout(seconds * 1000)

    def _wait_until_nobody_is_in(self) -> None:
        deadline_s = time.monotonic() + _GONE_S
        while "geneface_sessions_active 0.0" not in self._server.get("/metrics"):
            if time.monotonic() > deadline_s:
                raise BenchmarkError(f"a session was still there {_GONE_S:.0f} s after its page had left")
            time.sleep(0.1)


class CpuMeter:
    """CPU time of server, browser and other processes from now on."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._start_s = time.monotonic()
        self._before = self._now()

    def figures(self, sessions: int) -> CpuFigures:
        """Returns CPU seconds a second (and session) up to now."""
        seconds = time.monotonic() - self._start_s
        server_s, chromium_s, own_s, busy_s = (
            after - before for after, before in zip(self._now(), self._before, strict=True)
        )
        return CpuFigures(
            server_per_stream=server_s / seconds / sessions,
            chromium_per_stream=chromium_s / seconds / sessions,
            others=max(0.0, busy_s - server_s - chromium_s - own_s) / seconds,
        )

    def _now(self) -> tuple[float, float, float, float]:
        server_s = self._server.usage().cpu_s
        chromium_s = own_s = 0.0
        for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                if "chrom" in process.name().lower():
                    chromium_s += times.user + times.system
                elif process.pid != self._server.pid:
                    own_s += times.user + times.system
        times = psutil.cpu_times()
        busy_s = sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)
        return server_s, chromium_s, own_s, busy_s


def _ask(page: Page, name: str, argument: object = None) -> Any:  # noqa: ANN401 - JSON
    """Returns what a function of latency_page.js returns.

    Raises:
        BenchmarkError: it failed, or the page is gone.
    """
    from playwright.sync_api import Error

    try:
        return page.evaluate(f"async (argument) => (await import('{_PAGE_PATH}')).{name}(argument)", argument)
    except Error as error:
        message = error.message.splitlines()[0]
        raise BenchmarkError(message.removeprefix("Page.evaluate: ").removeprefix("Error: ")) from None


def _content(
    record: Record, lips: LipsByFile | None, note: str, lead_ms: float | None, quiet: bool
) -> ContentFigures:
    """Returns a session's offsets by content."""
    if lips is None:
        return content_figures([], note)
    device_s = 0.0
    if record["readings"] and record["readings"][-1]["device_samples"]:
        last = record["readings"][-1]
        device_s = last["device_delay_s"] / last["device_samples"]
    seen = lips_signal(record)
    found: list[Offset] = []
    for take in record["takes"]:
        microphone, sound = heard_sound(take["microphone"]), heard_sound(take["sound"])
        progress = Progress(round(len(microphone.samples) * FRAME_RATE_HZ / SOUND_RATE_HZ), quiet=quiet)
        openings = []
        for number, opening in enumerate(lips.follow(microphone), 1):
            openings.append(opening)
            progress.at(number)
        progress.clear()
        try:
            found += offsets(
                lips=seen,
                sound=sound.later(device_s).loudness(),
                lips_yardstick=lips_yardstick(microphone, np.array(openings)),
                sound_yardstick=microphone.yardstick(),
            )
        except ValueError as error:
            note = str(error)
    return content_figures(found, "" if found else note, natural_lead_ms=lead_ms)


def _machine() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        return f"{usable_cores()} cores of {model}"
    return f"{usable_cores()} cores of {platform.processor() or platform.machine()}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _server_flags(given: argparse.Namespace) -> Iterator[str]:
    for name in ("speaker", "speakers_dir", "codec", "render_size"):
        value = getattr(given, name)
        if value is not None:
            yield from (f"--{name.replace('_', '-')}", str(value))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    parser.add_argument("--speaker", default="May")
    parser.add_argument("--speakers-dir", type=Path)
    parser.add_argument(
        "--audio", type=Path, default=Path("examples/hello.wav"), help="the microphone's sound"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="that are measured (default: 60)")
    parser.add_argument("--sessions", type=int, default=1, help="side by side (default: 1)")
    parser.add_argument("--codec", help="h264 or vp8; left out: the server's choice")
    parser.add_argument("--render-size", type=int, help="pixels drawn; left out: what keeps up here")
    parser.add_argument(
        "--churn", type=float, default=0.0, metavar="SECONDS", help="come and go for so long instead"
    )
    parser.add_argument(
        "--stay", type=float, default=20.0, metavar="SECONDS", help="with --churn (default: 20)"
    )
    parser.add_argument(
        "--delay-sound",
        type=float,
        metavar="MS",
        help="to check the benchmark: received sound is measured behind a delay; 0 and 100 differ by 100",
    )
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, writes JSON where asked, prints the table last; returns 2 for bad input, 1 if broken off."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.seconds < MIN_S:
        parser.error(f"--seconds: expected at least {MIN_S:.0f}, got {given.seconds:g}")
    if given.sessions < 1:
        parser.error(f"--sessions: expected at least 1, got {given.sessions}")
    if given.delay_sound is not None and not 0 <= given.delay_sound <= 1000:
        parser.error(f"--delay-sound: expected 0 to 1000 ms, got {given.delay_sound:g}")
    if given.churn < 0 or given.stay <= 0:
        parser.error("--churn and --stay: expected seconds above zero")
    plan = Plan(
        audio=given.audio,
        seconds=given.seconds,
        sessions=given.sessions,
        churn_s=given.churn,
        stay_s=given.stay,
        delay_sound_ms=given.delay_sound,
        server_flags=tuple(_server_flags(given)),
        quiet=given.quiet,
    )
    try:
        speaker = load_speaker(find_speaker(given.speaker, speakers_dir=given.speakers_dir))
        figures = measure(speaker, plan)
    except ValueError as error:
        parser.error(str(error))
    except BrowserError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except (ServerError, BenchmarkError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    write_json(given.json, figures)
    print(table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
