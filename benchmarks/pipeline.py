"""Stage times from wav to video: `python -m benchmarks.pipeline --speaker May --audio X.wav`."""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from models.speaker import load_speaker
from models.speaker_folders import find_speaker
from models.time_base import FRAME_RATE_HZ
from streaming.files.audio_file import AudioFile
from streaming.files.progress import Progress
from streaming.files.run import speak_file
from streaming.files.video_writer import VideoOutput
from streaming.pipeline.compute_settings import ComputeSettings
from streaming.pipeline.loaded_speaker import SpeakerOpening, size_that_keeps_up
from streaming.pipeline.stage_times import STAGES, StageTimes

from .json_file import write_json


class Figures(TypedDict):
    """The figures of a run."""

    speaker: str
    audio: str
    cores: int
    threads: int
    render_px: int
    output_px: int
    drawn: str
    chosen_here: bool
    load_s: float
    kernels_s: float
    plates_s: float
    choose_s: float
    frames: int
    video_s: float
    run_s: float
    fps: float
    real_time_factor: float
    core_ms_per_frame: float
    stage_ms_per_frame: dict[str, float]
    stage_core_ms_per_frame: dict[str, float]
    peak_memory_mb: float
    video_mb: float


def peak_memory_mb() -> float:
    """Returns the most memory this process has held so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def measure(
    speaker_name: str,
    audio_path: Path,
    *,
    speakers_dir: Path | None,
    render_px: int | None,
    threads: int,
    plates_mb: int | None = None,
    quiet: bool = False,
) -> Figures:
    """Returns the figures of turning one recording into a discarded video."""
    start_s = time.perf_counter()
    speaker = load_speaker(find_speaker(speaker_name, speakers_dir=speakers_dir))
    compute = ComputeSettings(device="cpu", threads=threads, plates_mb=plates_mb)
    opening = SpeakerOpening(speaker, compute)
    opening.open_plates()
    networks = opening.networks
    loaded_s = time.perf_counter()
    opening.warm_up()
    warm_s = time.perf_counter()
    opening.wait_for_plates()
    plates_s = time.perf_counter()
    chosen_here = render_px is None
    if render_px is None:
        render_px = size_that_keeps_up(opening).size_px
    chosen_s = time.perf_counter()
    renderer = opening.make_renderer(render_px)
    audio = AudioFile(audio_path)
    times = StageTimes()
    total = round(audio.duration_s * FRAME_RATE_HZ + 0.5) if audio.duration_s else None
    progress = Progress(total, quiet=quiet)
    with tempfile.TemporaryDirectory() as folder:
        video = VideoOutput(
            Path(folder) / "talking.mp4", size_px=speaker.image_size_px, sound=audio.sound_format, crf=20
        )
        cpu_s = time.process_time()
        report = speak_file(
            speaker, renderer, audio, video, networks=networks, times=times, on_frame=progress.at
        )
        cpu_s = time.process_time() - cpu_s
    progress.clear()
    return Figures(
        speaker=speaker.name,
        audio=str(audio_path),
        cores=opening.cores,
        threads=opening.threads,
        render_px=render_px,
        output_px=speaker.image_size_px,
        drawn=renderer.describe(),
        chosen_here=chosen_here,
        load_s=loaded_s - start_s,
        kernels_s=warm_s - loaded_s,
        plates_s=plates_s - warm_s,
        choose_s=chosen_s - plates_s,
        frames=report.frames,
        video_s=report.duration_s,
        run_s=report.spent_s,
        fps=report.frames / report.spent_s,
        real_time_factor=report.real_time_factor,
        core_ms_per_frame=cpu_s * 1000 / report.frames,
        stage_ms_per_frame={stage: s * 1000 / report.frames for stage, s in times.total_s().items()},
        stage_core_ms_per_frame={stage: s * 1000 / report.frames for stage, s in times.core_s().items()},
        peak_memory_mb=peak_memory_mb(),
        video_mb=report.size_bytes / 1e6,
    )


def table(figures: Figures) -> str:
    """Returns the figures as a table for people."""
    chosen = "chosen here" if figures["chosen_here"] else "given"
    took, core = figures["stage_ms_per_frame"], figures["stage_core_ms_per_frame"]
    rows = [
        (f"stage: {stage}", f"{took[stage]:.2f} ms a frame, {core[stage]:.2f} core-ms") for stage in STAGES
    ]
    rows += [
        ("all stages, CPU time", f"{figures['core_ms_per_frame']:.1f} core-ms a frame"),
        (
            "start: load / kernels / rest of plates / choose size",
            "{load_s:.2f} / {kernels_s:.2f} / {plates_s:.2f} / {choose_s:.2f} s",
        ),
        ("render size", f"{{drawn}} ({chosen})"),
        ("threads on cores", "{threads} on {cores}"),
        ("frames", "{frames} ({video_s:.2f} s) in {run_s:.2f} s, {fps:.1f} fps"),
        ("real-time factor", "{real_time_factor:.3f}"),
        ("peak memory", "{peak_memory_mb:.0f} MB"),
        ("video", "{video_mb:.2f} MB"),
    ]
    width = max(len(name) for name, _ in rows)
    head = f"{figures['speaker']} says {figures['audio']} (stages overlap, so their times do not add up)"
    return "\n".join([head, *(f"  {name.ljust(width)}  {text.format(**figures)}" for name, text in rows)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, writes JSON where asked, prints the table last."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=__doc__)
    parser.add_argument("--speaker", default="May")
    parser.add_argument("--speakers-dir", type=Path)
    parser.add_argument("--audio", type=Path, required=True, help="the recording to speak")
    parser.add_argument("--render-size", type=int, help="pixels drawn; left out: what keeps up here")
    parser.add_argument("--threads", type=int, default=0, help="of the raymarcher; 0: one a core")
    parser.add_argument("--plates-mb", type=int, help="memory for plates; 0: none")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    given = parser.parse_args(arguments)
    try:
        figures = measure(
            given.speaker,
            given.audio,
            speakers_dir=given.speakers_dir,
            render_px=given.render_size,
            threads=given.threads,
            plates_mb=given.plates_mb,
        )
    except ValueError as error:
        parser.error(str(error))
    write_json(given.json, figures)
    print(table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
