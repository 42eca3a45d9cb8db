"""Figures of a live session from the page's records, and their goals."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

from cuda_kernels.arrays import F64
from models.time_base import FRAME_RATE_HZ

from .content_lag import HeardSound, Offset, Signal
from .server_process import Usage

Record = dict[str, Any]  # what `record()` of latency_page.js returns


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A figure's limit."""

    limit: float
    at_least: bool = False  # otherwise the figure stays below
    unit: str = ""

    def __str__(self) -> str:
        """Returns the goal for people."""
        return f"{'>=' if self.at_least else '<'} {self.limit:g}{self.unit}"

    def verdict(self, figure: float | None) -> str:
        """Returns pass or fail; unknown without a figure."""
        if figure is None or not np.isfinite(figure):
            return "unknown"
        return "pass" if (figure >= self.limit if self.at_least else figure < self.limit) else "fail"


READY = Goal(limit=3.0, unit=" s")
FIRST_FRAME = Goal(limit=1.0, unit=" s")
FRAME_RATE = Goal(limit=0.99 * FRAME_RATE_HZ, at_least=True)
DROPPED = Goal(limit=1.0, unit=" %")
GLASS_P50 = Goal(limit=500.0, unit=" ms")
GLASS_P95 = Goal(limit=650.0, unit=" ms")
GROWTH = Goal(limit=1.0, unit=" ms/min")
AV_OFFSET = Goal(limit=40.0, unit=" ms")  # either way; better half of it
RSS_GROWTH = Goal(limit=5.0, unit=" MB")
FAULTS = Goal(limit=1.0)

GROWTH_FROM_S = 300.0  # a shorter run shows no trend
_SLICE_S = 10.0
_RTP_STEP = 90_000 // FRAME_RATE_HZ


class BenchmarkError(Exception):
    """The run broke off; the message says why in one line."""


# What was measured --------------------------------------------------------------------------------------


class Spread(TypedDict):
    """Milliseconds."""

    p50: float | None
    p95: float | None


class ContentFigures(TypedDict):
    """Offsets by content: medians over windows, None where most correlate too weakly."""

    lips_behind_sound_ms: float | None  # as seen and heard, 0 in a video file; negative: the lips are ahead
    lips_behind_sound_farthest_ms: float | None  # of the windows, the one farthest from zero
    microphone_to_glass_ms: float | None
    microphone_to_ear_ms: float | None
    lips_peak: float
    sound_peak: float
    windows: int
    sure_windows: int
    natural_lead_ms: float | None  # of the lips before their sound, in a file too; in no figure above
    note: str  # why there are no figures


class SessionFigures(TypedDict):
    """One session's figures, from two seconds after its first frame on."""

    codec: str
    delay_ms: float
    lookahead_ms: float
    render_px: list[int]  # all that were seen
    drawn_share: float  # of a picture, in the mean
    first_frame_s: float
    fps: float
    frames_expected: int
    frames_presented: int
    dropped_percent: float
    dropped_by_server: int
    dropped_by_browser: int
    freezes: int
    reconnections: int
    stages_ms: dict[str, Spread]
    microphone_to_glass_ms: Spread
    growth_ms_per_minute: float | None
    lips_behind_sound_by_reports_ms: float | None  # by sender reports, without the screen
    concealed_percent: float
    sound_buffer_ms: float
    picture_buffer_ms: float
    sound_device_ms: float
    content: ContentFigures


class CpuFigures(TypedDict):
    """CPU seconds for each second."""

    server_per_stream: float
    chromium_per_stream: float
    others: float  # whatever else ran on the machine


class ChurnFigures(TypedDict):
    """Server resources before and after churn."""

    rounds: int
    seconds: float
    stay_s: float
    rss_mb: list[float]  # after each round from the second on
    growth_mb: float
    slope_mb_per_minute: float
    threads: list[int]  # before and after
    open_files: list[int]


class Figures(TypedDict):
    """All figures of a run."""

    date: str
    machine: str
    versions: dict[str, str]
    speaker: str
    audio: str
    seconds: float
    ready_first_s: float
    ready_warm_s: float
    sessions: list[SessionFigures]
    cpu: CpuFigures | None
    churn: ChurnFigures | None
    faults: int  # tracebacks in the server's log, errors of the page
    verdicts: dict[str, str]


# Pure parts ---------------------------------------------------------------------------------------------


def spread(values: F64) -> Spread:
    """Returns median and 95th percentile of what is known of values (n,)."""
    known = values[np.isfinite(values)]
    if not len(known):
        return Spread(p50=None, p95=None)
    return Spread(p50=float(np.median(known)), p95=float(np.percentile(known, 95)))


def slope(times: F64, values: F64) -> float | None:
    """Returns the rise per unit of time: the median of all pairs (Theil and Sen); None of fewer than two."""
    pairs = itertools.combinations(zip(times, values, strict=True), 2)
    rises = [(b - a) / (t - s) for (s, a), (t, b) in pairs if t != s]
    return float(np.median(rises)) if rises else None


def growth_ms_per_minute(times_s: F64, latencies_ms: F64) -> float | None:
    """Returns the rise of the medians of every ten seconds; None of fewer than three."""
    known = np.isfinite(latencies_ms)
    slices = np.floor((times_s[known] - times_s.min()) / _SLICE_S) if known.any() else np.zeros(0)
    numbers = np.unique(slices)
    medians = np.array([np.median(latencies_ms[known][slices == number]) for number in numbers])
    return slope(numbers * _SLICE_S / 60, medians) if len(medians) >= 3 else None


def frames_between(first_rtp: int, last_rtp: int) -> int:
    """Returns the frames that the stream had after the first up to the last, by uint32 RTP timestamps."""
    return round(((last_rtp - first_rtp) & 0xFFFFFFFF) / _RTP_STEP)


def content_figures(
    found: Sequence[Offset], note: str = "", *, natural_lead_ms: float | None = None
) -> ContentFigures:
    """Returns the medians over windows; figures only if most of the windows are sure."""
    sure = [offset for offset in found if offset.sure]
    known = 2 * len(sure) > len(found)

    def median(values: list[float]) -> float | None:
        return float(np.median(values)) if known else None

    behind = [offset.lips_behind_sound_ms for offset in sure]
    return ContentFigures(
        lips_behind_sound_ms=median(behind),
        lips_behind_sound_farthest_ms=max(behind, key=abs) if known else None,
        microphone_to_glass_ms=median([offset.microphone_to_glass_ms for offset in sure]),
        microphone_to_ear_ms=median([offset.microphone_to_ear_ms for offset in sure]),
        lips_peak=float(np.median([offset.lips_peak for offset in found])) if found else 0.0,
        sound_peak=float(np.median([offset.sound_peak for offset in found])) if found else 0.0,
        windows=len(found),
        sure_windows=len(sure),
        natural_lead_ms=natural_lead_ms,
        note=note or ("" if known else "the signals are too unlike to tell"),
    )


def session_figures(
    record: Record, start_ms: float, end_ms: float, content: ContentFigures
) -> SessionFigures:
    """Returns a session's figures of [start_ms, end_ms) of its page's clock.

    Raises:
        BenchmarkError: hardly anything came.
    """
    frames = _between(record["frames"], 1, start_ms, end_ms)  # (n, 4)
    if len(frames) < FRAME_RATE_HZ:
        raise BenchmarkError(
            f"the session broke off: {len(frames)} frames came, its state is {record['state']}"
        )
    latencies = _between(record["latencies"], 0, start_ms, end_ms)  # (n, 2 + stages)
    telemetry = _between(record["telemetry"], 0, start_ms, end_ms)  # (n, 4)
    readings = [reading for reading in record["readings"] if start_ms <= reading["at_ms"] < end_ms]

    def rise(name: str) -> float:
        return float(readings[-1][name] - readings[0][name]) if readings else 0.0

    def ratio(part: str, whole: str) -> float:
        return rise(part) / rise(whole) if rise(whole) else 0.0

    expected = frames_between(int(frames[0, 0]), int(frames[-1, 0]))
    presented = int(frames[-1, 2] - frames[0, 2])
    leads = [
        reading["picture_playout_unix_ms"] - reading["sound_playout_unix_ms"]
        for reading in readings
        if reading["picture_playout_unix_ms"] and reading["sound_playout_unix_ms"]
    ]
    glass_ms = latencies[:, 1]
    return SessionFigures(
        codec=record["hello"]["codec"],
        delay_ms=record["hello"]["delay_ms"],
        lookahead_ms=record["hello"]["lookahead_ms"],
        render_px=[int(size) for size in np.unique(telemetry[:, 2])],
        drawn_share=float(telemetry[:, 3].mean()) if len(telemetry) else 1.0,
        first_frame_s=(record["frames"][0][1] - record["click_ms"]) / 1000,
        fps=1000 * presented / (end_ms - start_ms),  # a stall at the end counts too
        frames_expected=expected,
        frames_presented=presented,
        dropped_percent=100 * max(0.0, 1 - presented / expected) if expected else 100.0,
        dropped_by_server=int(telemetry[-1, 1] - telemetry[0, 1]) if len(telemetry) else 0,
        dropped_by_browser=int(rise("frames_dropped")),
        freezes=int(rise("freezes")),
        reconnections=record["reconnections"],
        stages_ms={name: spread(latencies[:, 2 + n]) for n, name in enumerate(record["stages"])},
        microphone_to_glass_ms=spread(glass_ms),
        growth_ms_per_minute=growth_ms_per_minute(latencies[:, 0] / 1000, glass_ms),
        lips_behind_sound_by_reports_ms=-float(np.median(leads)) if leads else None,
        concealed_percent=100 * ratio("concealed_samples", "sound_samples"),
        sound_buffer_ms=1000 * ratio("sound_buffer_s", "sound_emitted"),
        picture_buffer_ms=1000 * ratio("picture_buffer_s", "picture_emitted"),
        sound_device_ms=1000 * ratio("device_delay_s", "device_samples"),
        content=content,
    )


def churn_figures(usages: Sequence[Usage], times_s: Sequence[float], stay_s: float) -> ChurnFigures:
    """Returns the resources' growth, from the second round on: the first fills caches.

    Args:
        usages: after each round, at least three.
        times_s: when that was.
        stay_s: how long the page stayed.
    """
    rss_mb = [usage.rss_mb for usage in usages[1:]]
    rise = slope(np.array(times_s[1:]) / 60, np.array(rss_mb))
    return ChurnFigures(
        rounds=len(usages),
        seconds=times_s[-1],
        stay_s=stay_s,
        rss_mb=[round(size, 2) for size in rss_mb],
        growth_mb=rss_mb[-1] - rss_mb[0],
        slope_mb_per_minute=rise if rise is not None else 0.0,
        threads=[usages[1].threads, usages[-1].threads],
        open_files=[usages[1].open_files, usages[-1].open_files],
    )


def heard_sound(tapped: Record) -> HeardSound:
    """Returns sound recorded by the page."""
    stamps = np.array(tapped["stamps"], np.float64).reshape(-1, 2)
    samples = np.frombuffer(base64.b64decode(tapped["samples"]), "<i2")
    return HeardSound(
        samples=np.asarray(samples / 32768, np.float32),
        lengths=stamps[:, 0].astype(np.int64),
        times_s=stamps[:, 1] / 1000,
    )


def lips_signal(record: Record) -> Signal:
    """Returns the lips' opening as displayed."""
    frames = np.array(record["frames"], np.float64).reshape(-1, 4)  # null becomes NaN
    order = np.argsort(frames[:, 1], kind="stable")
    frames = frames[order][np.isfinite(frames[order, 3])]
    return Signal(times_s=frames[:, 1] / 1000, values=frames[:, 3])


def _between(rows: list[list[Any]], column: int, start_ms: float, end_ms: float) -> F64:
    """Returns the rows (n, columns) whose time is in [start_ms, end_ms)."""
    values = np.array(rows, np.float64)
    if not len(values):
        return np.zeros((0, 16))  # wider than any of them
    return values[(values[:, column] >= start_ms) & (values[:, column] < end_ms)]


# The table ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    what: str
    text: str
    goal: Goal | None = None
    figure: float | None = None

    @property
    def verdict(self) -> str:
        """Pass, fail, unknown, or nothing without a goal."""
        return self.goal.verdict(self.figure) if self.goal else ""


def session_rows(session: SessionFigures, seconds: float) -> list[Row]:
    """Returns the rows of one session."""
    glass, content = session["microphone_to_glass_ms"], session["content"]
    sizes = ", ".join(map(str, session["render_px"]))
    share = f"{100 * session['drawn_share']:.0f} %"
    rows = [
        Row(
            what="sent as",
            text=f"{session['codec']}, {share} of each picture drawn at {sizes} px, "
            f"{session['delay_ms']:.0f} ms delay",
        ),
        *(Row(what=name, text=_both(times)) for name, times in session["stages_ms"].items()),
        Row(what="microphone to glass", text=_both(glass)),
        Row(what="  median", text=_ms(glass["p50"]), goal=GLASS_P50, figure=glass["p50"]),
        Row(what="  95th percentile", text=_ms(glass["p95"]), goal=GLASS_P95, figure=glass["p95"]),
    ]
    growth, long = session["growth_ms_per_minute"], seconds >= GROWTH_FROM_S
    text = _figure(growth, "+.2f", " ms/min")
    if not long:
        text += f" (judged from {GROWTH_FROM_S:.0f} s on)"
    rows.append(Row(what="  growth", text=text, goal=GROWTH if long else None, figure=growth))
    behind = content["lips_behind_sound_ms"]
    rows += [
        Row(what="by content (likeness)", text=content["note"] or _likeness(content)),
        Row(what="  microphone to glass", text=_ms(content["microphone_to_glass_ms"])),
        Row(what="  microphone to ear", text=_ms(content["microphone_to_ear_ms"])),
        Row(
            what="  lips behind the sound",
            text=f"{_figure(behind, '+.0f', ' ms')} (0: as in a video file; "
            f"farthest {_figure(content['lips_behind_sound_farthest_ms'], '+.0f', '')}; "
            f"before the output device {_figure(_plus(behind, session['sound_device_ms']), '+.0f', '')})",
            goal=AV_OFFSET,
            figure=None if behind is None else abs(behind),
        ),
        Row(
            what="  the same as the page tells",
            text=f"{_figure(session['lips_behind_sound_by_reports_ms'], '+.0f', ' ms')} (by sender reports)",
        ),
        Row(
            what="  lips ahead of the sound by nature",
            text=f"{_figure(content['natural_lead_ms'], '+.0f', ' ms')} "
            "(in a video file too; in no figure here)",
        ),
        Row(
            what="frames a second",
            text=f"{session['fps']:.2f}",
            goal=FRAME_RATE,
            figure=session["fps"],
        ),
        Row(
            what="frames dropped",
            text=f"{session['dropped_percent']:.2f} % of {session['frames_expected']} "
            f"(server {session['dropped_by_server']}, browser {session['dropped_by_browser']}, "
            f"{session['freezes']} freezes)",
            goal=DROPPED,
            figure=session["dropped_percent"],
        ),
        Row(
            what="first frame after the click",
            text=f"{session['first_frame_s']:.2f} s",
            goal=FIRST_FRAME,
            figure=session["first_frame_s"],
        ),
        Row(
            what="in the browser",
            text=f"sound waits {session['sound_buffer_ms']:.0f} ms, {session['sound_device_ms']:.0f} ms more "
            f"in the device, pictures {session['picture_buffer_ms']:.0f} ms; "
            f"{session['concealed_percent']:.2f} % of the sound made up",
        ),
    ]
    if session["reconnections"]:
        lost = float(session["reconnections"])
        rows.append(Row(what="connections lost", text=f"{lost:.0f}", goal=FAULTS, figure=lost))
    return rows


def run_rows(figures: Figures) -> list[Row]:
    """Returns the rows of the server as a whole."""
    rows = [
        Row(
            what="ready after",
            text=f"{figures['ready_warm_s']:.2f} s (first start {figures['ready_first_s']:.2f} s)",
            goal=READY,
            figure=figures["ready_warm_s"],
        )
    ]
    cpu, churn = figures["cpu"], figures["churn"]
    if cpu is not None:
        rows.append(
            Row(
                what="CPU s a stream's second",
                text=f"server {cpu['server_per_stream']:.2f}, Chromium {cpu['chromium_per_stream']:.2f} "
                f"(others on the machine took {cpu['others']:.2f} cores)",
            )
        )
    if churn is not None:
        rows += [
            Row(what="came and went", text=f"{churn['rounds']} times for {churn['stay_s']:.0f} s"),
            Row(
                what="memory (RSS)",
                text=f"{churn['growth_mb']:+.1f} MB, from {churn['rss_mb'][0]:.0f} to "
                f"{churn['rss_mb'][-1]:.0f}, {churn['slope_mb_per_minute']:+.2f} MB/min",
                goal=RSS_GROWTH,
                figure=churn["growth_mb"],
            ),
            Row(what="threads", text=_before_after(churn["threads"])),
            Row(what="open files and sockets", text=_before_after(churn["open_files"])),
        ]
    faults = figures["faults"]
    rows.append(Row(what="faults in the logs", text=f"{faults}", goal=FAULTS, figure=float(faults)))
    return rows


def verdicts(figures: Figures) -> dict[str, str]:
    """Returns each judged figure's verdict; with several sessions by number."""
    found = {row.what.strip(): row.verdict for row in run_rows(figures) if row.verdict}
    for number, session in enumerate(figures["sessions"], 1):
        of = f"session {number}: " if len(figures["sessions"]) > 1 else ""
        rows = session_rows(session, figures["seconds"])
        found |= {of + row.what.strip(): row.verdict for row in rows if row.verdict}
    return found


def table(figures: Figures) -> str:
    """Returns the figures as a table for people."""
    versions = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    lines = [
        f"{figures['speaker']} says {figures['audio']}, {figures['seconds']:.0f} s, {figures['date']}",
        f"{figures['machine']}; {versions}",
    ]
    blocks = [
        (
            f"session {number}" if len(figures["sessions"]) > 1 else "",
            session_rows(session, figures["seconds"]),
        )
        for number, session in enumerate(figures["sessions"], 1)
    ]
    blocks.append(("server" if len(blocks) > 1 else "", run_rows(figures)))
    width = max(len(row.what) for _, rows in blocks for row in rows)
    for title, rows in blocks:
        if title:
            lines.append(f" {title}")
        for row in rows:
            judged = f"  [{row.goal}: {row.verdict}]" if row.goal else ""
            lines.append(f"  {row.what.ljust(width)}  {row.text}{judged}")
    return "\n".join(lines)


def _figure(value: float | None, form: str, unit: str) -> str:
    return "not measured" if value is None else f"{value:{form}}{unit}"


def _ms(value: float | None) -> str:
    return _figure(value, ".0f", " ms")


def _both(times: Spread) -> str:
    return f"{_figure(times['p50'], '6.1f', '')} {_figure(times['p95'], '6.1f', ' ms')}"


def _plus(value: float | None, more: float) -> float | None:
    return None if value is None else value + more


def _likeness(content: ContentFigures) -> str:
    return (
        f"lips {content['lips_peak']:.2f}, sound {content['sound_peak']:.2f}; "
        f"{content['sure_windows']} of {content['windows']} windows sure"
    )


def _before_after(counts: list[int]) -> str:
    return f"{counts[1]}, {counts[0]} at the beginning"
