"""How motion fares on a call's sound: `python -m benchmarks.robustness --speaker May --data CORPUS`.

The validation clips of a corpus go through the bundle's motion.onnx as the live path runs it, as they are and
by codec, room, noise, gain and telephone band, and the mouth is compared with the truth.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

from cuda_kernels.arrays import F32
from models.speaker import Speaker, load_speaker
from models.speaker_folders import find_speaker
from models.time_base import SAMPLE_RATE_HZ
from training.cli import missing_extra

from .json_file import write_json
from .live_motion import LiveMotion

Change = Callable[[F32], F32]
TELEPHONE_HZ = (300.0, 3400.0)
SEED = 1


@dataclass(frozen=True, kw_only=True)
class Row:
    """The mouth by one kind of sound."""

    sound: str
    aperture_r: float
    width_r: float
    closure_auc: float
    aperture_lag_ms: float  # positive: late
    silence_closed: float  # share of resting frames within 1.5 mm of rest


def changes() -> Iterator[tuple[str, Change]]:
    """Yields what is done to sound (n,) in [-1, 1], by name; none of it moves the sound in time."""
    import torch

    from training.codecs import through_opus
    from training.corpus import DegradeSettings, degrade

    nothing = DegradeSettings(
        share=1.0,
        gain_low_db=0.0,
        gain_high_db=0.0,
        noise_share=0.0,
        tone_db=0.0,
        band_share=0.0,
        room_share=0.0,
        babble_share=0.0,
        gate_share=0.0,
    )

    def opus(bps: int) -> Change:
        def change(pcm: F32) -> F32:
            whole = through_opus(np.round(32767 * pcm).astype(np.int16), bps=bps)
            changed: F32 = np.divide(whole, 32768, dtype=np.float32)
            return changed

        return change

    def degraded(settings: DegradeSettings) -> Change:
        def change(pcm: F32) -> F32:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(SEED)
                changed: F32 = degrade(torch.from_numpy(pcm)[None], settings)[0].numpy()
            return changed

        return change

    yield "as it is", lambda pcm: pcm
    yield "Opus at 32 kbit/s", opus(32_000)
    yield "Opus at 16 kbit/s", opus(16_000)
    yield "in a room", degraded(replace(nothing, room_share=1.0))
    for snr_db in (20.0, 10.0):
        settings = replace(nothing, noise_share=1.0, snr_low_db=snr_db, snr_high_db=snr_db)
        yield f"noise {snr_db:g} dB below", degraded(settings)
    yield "20 dB quieter", degraded(replace(nothing, gain_low_db=-20.0, gain_high_db=-20.0))
    yield "telephone band", telephone_band


def telephone_band(pcm: F32) -> F32:
    """Returns the part of sound (n,) within `TELEPHONE_HZ`."""
    hz = np.fft.rfftfreq(len(pcm), 1 / SAMPLE_RATE_HZ)
    inside = (hz >= TELEPHONE_HZ[0]) & (hz <= TELEPHONE_HZ[1])
    return np.fft.irfft(np.fft.rfft(pcm) * inside, len(pcm)).astype(np.float32)


def measure(speaker: Speaker, data: Path, *, max_clips: int | None = None) -> list[Row]:
    """Returns a row for each kind of sound.

    Raises:
        ValueError: the folder is no corpus, or a package is missing.
    """
    try:
        from training.corpus import load_clips
        from training.measures import compare_motion, measure_motion
    except ImportError as error:
        raise ValueError(missing_extra(error)) from error

    clips = load_clips(data, "val", max_clips=max_clips)
    live = LiveMotion(speaker)
    mean_face, rest, predicted_rest = clips.mean_face.numpy(), clips.rest.numpy(), live.resting()
    rows = []
    for name, change in changes():
        tracks = [
            compare_motion(
                live(change(clips.clip_pcm(clip).numpy())),
                clips.clip_offsets(clip).numpy() + rest,
                sounds=clips.clip_sounds(clip).numpy(),
                mean_face=mean_face,
                predicted_rest=predicted_rest,
                true_rest=rest,
            )
            for clip in range(len(clips))
        ]
        found = asdict(measure_motion(tracks))
        own = [field.name for field in fields(Row)]
        rows.append(Row(sound=name, **{key: figure for key, figure in found.items() if key in own}))
    return rows


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as aligned text."""
    lines = [f"{'sound':20}  aperture r  width r  closure AUC  lag, ms  shut in silence, %"]
    lines += [
        f"{row.sound:20}  {row.aperture_r:10.3f}  {row.width_r:7.3f}  {row.closure_auc:11.3f}  "
        f"{row.aperture_lag_ms:7.0f}  {100 * row.silence_closed:18.1f}"
        for row in rows
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 measured, 2 bad input (one line on stderr)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.robustness", description=__doc__)
    parser.add_argument("--speaker", default="May", help="name or path of the bundle (default May)")
    parser.add_argument("--speakers-dir", type=Path, help="folder with more bundles")
    parser.add_argument("--data", type=Path, required=True, help="folder laid out as a corpus")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--max-clips", type=int, help="measure at most so many clips")
    arguments = parser.parse_args(argv)
    try:
        speaker = load_speaker(find_speaker(arguments.speaker, speakers_dir=arguments.speakers_dir))
        rows = measure(speaker, arguments.data, max_clips=arguments.max_clips)
        found = {"speaker": speaker.name, "data": str(arguments.data), "rows": [asdict(row) for row in rows]}
        write_json(arguments.json, found)
    except (ValueError, OSError) as error:
        print(f"benchmarks.robustness: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"{speaker.name} on {arguments.data}, validation split")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
