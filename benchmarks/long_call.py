"""Server resources during a long call: `python -m benchmarks.long_call --speaker May --minutes 60`.

A real server and one client on aiortc in a process of its own, which sends a recording over and over as its
microphone and decodes every picture. Prints the server's memory, threads and descriptors by the minute, and
memory's growth at the end: bounded memory levels off, a leak grows linearly.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .json_file import write_json
from .server_process import ServerError, ServerProcess
from .webrtc_sessions import HELLO, counted, view_together

MINUTE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Minute:
    """The server's resources at the end of a minute."""

    minute: int
    rss_mb: float
    threads: int
    open_files: int
    cores: float  # busy in this minute, the server's
    rendered: int  # frames in this minute
    dropped: int


def growth_mb(minutes: Sequence[Minute]) -> float:
    """Returns the slope of memory over some minutes by least squares, in MB a minute."""
    if len(minutes) < 2:
        return 0.0
    at = [minute.minute for minute in minutes]
    return float(np.polyfit(at, [minute.rss_mb for minute in minutes], 1)[0])


def watch(server: ServerProcess, speaker: str, audio: Path, *, minutes: int) -> tuple[list[Minute], float]:
    """Returns the minutes of one call, and its client's pictures a second.

    Raises:
        ServerError: the server ended, or the client saw nothing.
    """
    rows: list[Minute] = []
    start_s = time.monotonic()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        url, end_s = f"{server.origin}/whip/{speaker}", start_s + minutes * MINUTE_S + 5.0
        client = pool.submit(view_together, url, audio, [0.0], end_s)
        used, metrics = server.usage(), server.get("/metrics")
        for minute in range(1, minutes + 1):
            time.sleep(max(0.0, start_s + minute * MINUTE_S - time.monotonic()))
            now, text = server.usage(), server.get("/metrics")
            rows.append(
                Minute(
                    minute=minute,
                    rss_mb=now.rss_mb,
                    threads=now.threads,
                    open_files=now.open_files,
                    cores=(now.cpu_s - used.cpu_s) / MINUTE_S,
                    rendered=round(_grown(metrics, text, "geneface_frames_rendered_total")),
                    dropped=round(_grown(metrics, text, "geneface_frames_dropped_total")),
                )
            )
            print(line(rows[-1]), file=sys.stderr, flush=True)
            used, metrics = now, text
        (viewed,) = client.result()
    if viewed.refused or len(viewed.arrivals_s) < 2:
        raise ServerError(f"the call gave no pictures: {viewed.refused or 'too few came'}")
    seen_s = viewed.arrivals_s[-1] - viewed.arrivals_s[0]
    return rows, (len(viewed.arrivals_s) - 1) / seen_s


def _grown(before: str, after: str, name: str) -> float:
    return counted(after, name) - counted(before, name)


def line(row: Minute) -> str:
    """Returns a row of the table."""
    return (
        f"| {row.minute} | {row.rss_mb:.1f} | {row.threads} | {row.open_files} | {row.cores:.2f} | "
        f"{row.rendered} | {row.dropped} |"
    )


def table(rows: Sequence[Minute], fps: float) -> str:
    """Returns the minutes as Markdown, and a summary."""
    half = rows[len(rows) // 2 :]
    lines = [
        "| minute | resident, MB | threads | descriptors | cores | frames | left out |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(line(row) for row in rows),
        "",
        f"{fps:.2f} pictures a second at the client; memory grew by {growth_mb(rows):z.3f} MB a minute, "
        f"in the second half by {growth_mb(half):z.3f}.",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints the table last; 2 for bad input, 1 if broken off."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--speaker", default="May")
    parser.add_argument("--speakers-dir", type=Path)
    parser.add_argument("--audio", type=Path, default=HELLO, help="the microphone's recording")
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--json", type=Path, help="also write the minutes there")
    given = parser.parse_args(arguments)
    if given.minutes < 1:
        parser.error("--minutes: expected a number above zero")
    if not given.audio.is_file():
        parser.error(f"--audio: expected a recording, got {given.audio}")
    flags = ["--speaker", given.speaker]
    if given.speakers_dir is not None:
        flags += ["--speakers-dir", str(given.speakers_dir)]
    with tempfile.TemporaryDirectory() as folder:
        try:
            with ServerProcess(flags, Path(folder) / "server.log") as server:
                rows, fps = watch(server, given.speaker, given.audio.resolve(), minutes=given.minutes)
                faults = server.faults()
        except ServerError as error:
            print(f"{parser.prog}: {error}", file=sys.stderr)
            return 1
    write_json(given.json, [asdict(row) for row in rows])
    if faults:
        print(f"{faults} tracebacks in the server's log", file=sys.stderr)
    print(table(rows, fps))
    return 0


if __name__ == "__main__":
    sys.exit(main())
