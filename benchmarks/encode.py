"""Cost of encoding a picture, by codec: `python -m benchmarks.encode --speaker May --audio X.wav`."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TypedDict

import av
import numpy as np
from aiortc.codecs import depayload
from aiortc.codecs.base import Encoder
from aiortc.codecs.h264 import H264Encoder
from aiortc.codecs.vpx import Vp8Encoder
from aiortc.rtcrtpparameters import RTCRtpCodecParameters

from cuda_kernels.arrays import U8
from models.speaker import load_speaker
from models.speaker_folders import find_speaker
from models.time_base import FRAME_RATE_HZ
from streaming.files.audio_file import AudioFile
from streaming.files.progress import Progress
from streaming.pipeline.compute_settings import ComputeSettings
from streaming.pipeline.i420 import video_frame
from streaming.pipeline.loaded_speaker import LoadedSpeaker
from streaming.pipeline.pipeline import Pipeline
from streaming.webrtc.video_encoder import CODECS, VideoEncoder

from .json_file import write_json

Encode = Callable[[U8, int], list[bytes]]

_DECODERS = {"H264": "h264", "VP8": "libvpx"}
_ROUNDS = 3  # interleaved, so that load affects all alike


class Row(TypedDict):
    """One encoder's figures."""

    name: str
    cpu_ms_p50: float
    cpu_ms_p95: float
    kbit_per_s: float
    psnr_db: float


def ours(make: Callable[[], VideoEncoder]) -> Callable[[], Encode]:
    """Returns a maker of encoders as the server uses them."""
    return lambda: make().encode


def theirs(make: Callable[[], Encoder], bitrate: int) -> Callable[[], Encode]:
    """Returns a maker of aiortc's own encoders at their defaults, but for the bitrate."""

    def made() -> Encode:
        encoder = make()
        encoder.target_bitrate = bitrate  # type: ignore[attr-defined] # both video encoders have it
        return lambda picture, number: encoder.encode(video_frame(picture, number))[0]

    return made


def measure(name: str, codec: str, make: Callable[[], Encode], pictures: list[U8]) -> Row:
    """Returns the cost and quality of encoding these I420 pictures."""
    encode = make()
    decoder = av.CodecContext.create(_DECODERS[codec], "r")
    assert isinstance(decoder, av.VideoCodecContext)
    parameters = RTCRtpCodecParameters(mimeType=f"video/{codec}", clockRate=90000)
    size_px = pictures[0].shape[1]
    cpu_ms, sent_bytes, errors = [], 0, []
    for number, picture in enumerate(pictures):
        start_s = time.process_time()  # of all threads: some encoders have their own
        payloads = encode(picture, number)
        cpu_ms.append((time.process_time() - start_s) * 1000)
        sent_bytes += sum(len(payload) for payload in payloads)
        packet = av.Packet(b"".join(depayload(parameters, payload) for payload in payloads))
        packet.time_base = Fraction(1, FRAME_RATE_HZ)
        for frame in decoder.decode(packet):
            seen = frame.to_ndarray(format="yuv420p")[:size_px].astype(np.float32)
            errors.append(float(np.mean((seen - picture[:size_px]) ** 2)))
    return Row(
        name=name,
        cpu_ms_p50=float(np.median(cpu_ms)),
        cpu_ms_p95=float(np.percentile(cpu_ms, 95)),
        kbit_per_s=sent_bytes * 8 * FRAME_RATE_HZ / len(pictures) / 1000,
        psnr_db=10 * float(np.log10(255**2 / np.mean(errors))),
    )


def draw(speaker_name: str, audio: Path, *, speakers_dir: Path | None, render_px: int) -> list[U8]:
    """Returns the I420 pictures of a speaker saying a recording."""
    speaker = load_speaker(find_speaker(speaker_name, speakers_dir=speakers_dir))
    compute = ComputeSettings(device="cpu", threads=2, render_px=render_px)
    recording = AudioFile(audio)
    progress = Progress(round((recording.duration_s or 0) * FRAME_RATE_HZ) or None, quiet=False)
    pictures = []
    with contextlib.ExitStack() as stack:
        loaded = LoadedSpeaker.of(speaker, compute=compute, live=False)
        stack.callback(loaded.close)
        renderer = loaded.make_renderer(render_px)
        pipeline = stack.enter_context(Pipeline(speaker, renderer, networks=loaded.networks))
        pipeline.start_feed(recording.speech())
        for frame in pipeline:
            pictures.append(frame.picture)
            progress.at(len(pictures))
    progress.clear()
    return pictures


def table(rows: list[Row], head: str) -> str:
    """Returns the rows as a table for people."""
    width = max(len(row["name"]) for row in rows)
    lines = [head, f"  {'encoder'.ljust(width)}  CPU ms p50   p95  kbit/s  PSNR dB"]
    lines += [
        f"  {row['name'].ljust(width)}  {row['cpu_ms_p50']:10.2f}  {row['cpu_ms_p95']:4.2f}"
        f"  {row['kbit_per_s']:6.0f}  {row['psnr_db']:7.2f}"
        for row in rows
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, writes JSON where asked, prints the table last."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encode", description=__doc__)
    parser.add_argument("--speaker", default="May")
    parser.add_argument("--speakers-dir", type=Path)
    parser.add_argument("--audio", type=Path, required=True, help="the recording to speak")
    parser.add_argument("--render-size", type=int, default=256, help="pixels drawn (default: 256)")
    parser.add_argument("--bitrate-kbps", type=int, default=1200, help="(default: 1200)")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    given = parser.parse_args(arguments)
    try:
        pictures = draw(
            given.speaker, given.audio, speakers_dir=given.speakers_dir, render_px=given.render_size
        )
    except ValueError as error:
        parser.error(str(error))
    bitrate, size_px = given.bitrate_kbps * 1000, pictures[0].shape[1]
    makers: list[tuple[str, str, Callable[[], Encode]]] = [
        (f"{codec.name}, ours", codec.name, ours(lambda c=codec: c.open(size_px=size_px, bitrate=bitrate)))  # type: ignore[misc]
        for codec in CODECS
    ]
    makers += [
        ("H264, aiortc", "H264", theirs(H264Encoder, bitrate)),
        ("VP8, aiortc", "VP8", theirs(Vp8Encoder, bitrate)),
    ]
    rounds = [[measure(*maker, pictures) for maker in makers] for _ in range(_ROUNDS)]
    rows = [min(tries, key=lambda row: row["cpu_ms_p50"]) for tries in zip(*rounds, strict=True)]
    write_json(given.json, rows)
    head = f"{given.speaker} says {given.audio}: {len(pictures)} pictures of {size_px} px, best of {_ROUNDS}"
    print(table(rows, head))
    return 0


if __name__ == "__main__":
    sys.exit(main())
