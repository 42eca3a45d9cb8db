"""Live sessions without a browser: `python -m benchmarks.webrtc_sessions --speaker May --sessions 1 8 16`.

A real server; clients on aiortc, in processes of their own, that send a recording as their microphone and
decode every picture they get. Prints the rate of pictures, the time to the first, the share of gaps
longer than two frames, and the server's CPU time. Needs no browser; sound is not measured, so for latency and
sync see `benchmarks.latency`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import re
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.contrib.media import MediaBlackhole, MediaPlayer
from aiortc.mediastreams import MediaStreamError
from av import VideoFrame

from models.time_base import FRAME_S

from .json_file import write_json
from .server_process import ServerError, ServerProcess

CLIENTS_A_PROCESS = 4  # a client's decoding takes a tenth of a core
STAGGER_S = 0.25  # between the starts of sessions
LEAVE_S = 30.0
SETTLE_S = 3.0  # before pictures are counted
HELLO = Path(__file__).resolve().parents[1] / "examples" / "hello.wav"


@dataclass(frozen=True, kw_only=True)
class Viewed:
    """The pictures of one client."""

    refused: str  # why there was no session; empty if there was one
    first_s: float  # from the offer to the first picture
    arrivals_s: tuple[float, ...]  # of pictures once it had settled, on the machine's monotonic clock
    side_px: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """The figures of one number of sessions."""

    asked: int
    admitted: int
    fps_mean: float
    fps_worst: float  # of the sessions
    waits_share: float  # of the gaps between pictures longer than two frames' time
    first_s: float  # median
    side_px: int
    left_out_share: float  # of the server's frames, by its own count
    cores: float  # the server's
    frames_a_launch: float | None  # None: no GPU drew
    kernel_ms: float | None  # a frame


async def _view(url: str, audio: Path, delay_s: float, end_s: float) -> Viewed:
    """Stays in a session until a time on the monotonic clock."""
    await asyncio.sleep(delay_s)
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    player, sound = MediaPlayer(str(audio), loop=True), MediaBlackhole()
    arrivals: list[float] = []
    sides: list[int] = []
    watching: list[asyncio.Task[None]] = []

    async def watch(track: MediaStreamTrack) -> None:
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                assert isinstance(frame, VideoFrame)
                arrivals.append(time.monotonic())
                sides.append(frame.width)

    @connection.on("track")
    def take(track: MediaStreamTrack) -> None:
        if track.kind == "video":
            watching.append(asyncio.ensure_future(watch(track)))
        else:
            sound.addTrack(track)

    assert player.audio is not None  # a recording has sound
    connection.addTrack(player.audio)
    connection.addTransceiver("video", direction="recvonly")
    try:
        await connection.setLocalDescription(await connection.createOffer())
        asked_s = time.monotonic()
        request = urllib.request.Request(
            url, connection.localDescription.sdp.encode(), {"Content-Type": "application/sdp"}
        )
        try:
            answer = await asyncio.to_thread(lambda: urllib.request.urlopen(request, timeout=20).read())
        except urllib.error.HTTPError as error:
            return Viewed(refused=f"{error.code} {error.reason}", first_s=0.0, arrivals_s=(), side_px=0)
        except OSError as error:  # timeouts included
            return Viewed(refused=str(error), first_s=0.0, arrivals_s=(), side_px=0)
        await connection.setRemoteDescription(RTCSessionDescription(sdp=answer.decode(), type="answer"))
        await sound.start()
        await asyncio.sleep(max(0.0, end_s - time.monotonic()))
    finally:
        await connection.close()
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
    if not arrivals:
        return Viewed(refused="no picture came", first_s=0.0, arrivals_s=(), side_px=0)
    settled = tuple(at for at in arrivals if at >= arrivals[0] + SETTLE_S)
    return Viewed(refused="", first_s=arrivals[0] - asked_s, arrivals_s=settled, side_px=sides[-1])


async def _view_all(url: str, audio: Path, delays_s: Sequence[float], end_s: float) -> list[Viewed]:
    return list(await asyncio.gather(*(_view(url, audio, delay, end_s) for delay in delays_s)))


def view_together(url: str, audio: Path, delays_s: Sequence[float], end_s: float) -> list[Viewed]:
    """Returns the pictures of one process's clients; for a process pool."""
    return asyncio.run(_view_all(url, audio, delays_s, end_s))


def counted(text: str, name: str) -> float:
    """Returns the sum of a metric over its labels from Prometheus' text."""
    values = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
    return sum(float(value) for value in values)


def figures(asked: int, viewed: Sequence[Viewed], before: str, after: str, *, cores: float) -> Row:
    """Returns the row of one number of sessions.

    Args:
        asked: sessions.
        viewed: what each client saw.
        before: the server's metrics at the start.
        after: the same at the end.
        cores: that the server kept busy.

    Raises:
        ServerError: no client saw anything.
    """
    seen = [view for view in viewed if not view.refused and len(view.arrivals_s) > 1]
    if not seen:
        raise ServerError(f"no session gave pictures: {next((v.refused for v in viewed), 'none was asked')}")
    gaps = np.concatenate([np.diff(view.arrivals_s) for view in seen])
    fps = [(len(view.arrivals_s) - 1) / (view.arrivals_s[-1] - view.arrivals_s[0]) for view in seen]

    def grown(name: str) -> float:
        return counted(after, name) - counted(before, name)

    rendered = grown("geneface_frames_rendered_total")
    dropped = grown("geneface_frames_dropped_total")
    launches = grown("geneface_gpu_batch_frames_count")
    drawn = grown("geneface_gpu_batch_frames_sum")
    return Row(
        asked=asked,
        admitted=len(seen),
        fps_mean=float(np.mean(fps)),
        fps_worst=float(np.min(fps)),
        waits_share=float((gaps > 2 * FRAME_S).mean()),
        first_s=float(np.median([view.first_s for view in seen])),
        side_px=max(view.side_px for view in seen),
        left_out_share=dropped / max(rendered + dropped, 1.0),
        cores=cores,
        frames_a_launch=drawn / launches if launches else None,
        kernel_ms=1e3 * grown("geneface_gpu_kernel_duration_seconds_sum") / drawn if launches else None,
    )


def measure(server: ServerProcess, speaker: str, audio: Path, *, sessions: int, seconds: float) -> Row:
    """Returns the row of sessions that start one after the other and then stay."""
    before, used, start_s = server.get("/metrics"), server.usage(), time.monotonic()
    end_s = start_s + STAGGER_S * sessions + SETTLE_S + seconds
    delays = [STAGGER_S * number for number in range(sessions)]
    groups = [delays[first : first + CLIENTS_A_PROCESS] for first in range(0, sessions, CLIENTS_A_PROCESS)]
    url = f"{server.origin}/whip/{speaker}"
    # Not forked: this process may have threads of its own.
    with ProcessPoolExecutor(len(groups), mp_context=multiprocessing.get_context("spawn")) as pool:
        asked = [pool.submit(view_together, url, audio, group, end_s) for group in groups]
        viewed = [view for clients in asked for view in clients.result()]
    after = server.get("/metrics")
    cores = (server.usage().cpu_s - used.cpu_s) / (time.monotonic() - start_s)
    return figures(sessions, viewed, before, after, cores=cores)


def _wait_until_nobody_is_in(server: ServerProcess) -> None:
    """Waits until the server has noticed that all clients left."""
    end_s = time.monotonic() + LEAVE_S
    while counted(server.get("/metrics"), "geneface_sessions_active") > 0:
        if time.monotonic() > end_s:
            raise ServerError(f"sessions did not end within {LEAVE_S:.0f} s")
        time.sleep(0.2)


def table(rows: Sequence[Row]) -> str:
    """Returns the figures as Markdown."""
    lines = [
        "| sessions asked | admitted | px | fps, mean | worst | waits > 80 ms | left out | first picture |"
        " server's cores | frames a launch | kernel, a frame |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        launch = "CPU" if row.frames_a_launch is None else f"{row.frames_a_launch:.1f}"
        kernel = "" if row.kernel_ms is None else f"{row.kernel_ms:.3f} ms"
        lines.append(
            f"| {row.asked} | {row.admitted} | {row.side_px} | {row.fps_mean:.2f} | {row.fps_worst:.2f} | "
            f"{row.waits_share:.2%} | {row.left_out_share:.2%} | {row.first_s:.2f} s | {row.cores:.1f} | "
            f"{launch} | {kernel} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints the table last; 2 for bad input, 1 if broken off."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--speaker", default="May")
    parser.add_argument("--speakers-dir", type=Path)
    parser.add_argument("--audio", type=Path, default=HELLO, help="the microphones' recording")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 2], help="numbers to try in turn")
    parser.add_argument("--seconds", type=float, default=20.0, help="that all stay together")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="that draws")
    parser.add_argument("--render-size", help="side that the raymarcher draws, in pixels")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    given = parser.parse_args(arguments)
    if min(given.sessions) < 1 or given.seconds <= 0:
        parser.error("--sessions and --seconds: expected numbers above zero")
    if not given.audio.is_file():
        parser.error(f"--audio: expected a recording, got {given.audio}")
    flags = ["--speaker", given.speaker, "--device", given.device, "--max-sessions", str(max(given.sessions))]
    if given.speakers_dir is not None:
        flags += ["--speakers-dir", str(given.speakers_dir)]
    if given.render_size is not None:
        flags += ["--render-size", given.render_size]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        try:
            with ServerProcess(flags, log) as server:
                for sessions in given.sessions:
                    _wait_until_nobody_is_in(server)
                    audio = given.audio.resolve()
                    rows.append(
                        measure(server, given.speaker, audio, sessions=sessions, seconds=given.seconds)
                    )
                    print(f"{sessions} sessions measured", file=sys.stderr, flush=True)
                faults = server.faults()
        except ServerError as error:
            print(f"{parser.prog}: {error}", file=sys.stderr)
            return 1
    write_json(given.json, [asdict(row) for row in rows])
    if faults:
        print(f"{faults} tracebacks in the server's log", file=sys.stderr)
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
