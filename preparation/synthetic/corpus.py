"""A corpus from seeds: sound and phones clip by clip, then landmarks, then the index.

`clips/ID.json` is written last, so a clip that has one is whole; it is not made again while its plan is the
same. Landmarks depend on a clip's seed, phones and sound only and are made anew at each run.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import signal
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import av
import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]  # its stubs are a separate package

from cuda_kernels.arrays import I16
from models.partial_files import atomic_write
from models.settings import Range, check_ranges
from models.time_base import FRAME_SAMPLES, SAMPLE_RATE_HZ

from ..corpus_set import INDEX_FILE
from ..errors import FileError
from ..media import MediaError, read_pcm
from ..sounds import PAUSE, SPEECH, Phone
from .alignment import AlignmentError, levels_db, settle_pauses, silence_from_db
from .landmarks import write_landmarks
from .nonspeech import draw_sound
from .phones import contiguous, shifted
from .plan import PROMPTS, ClipPlan, draw_plan
from .utterance import Utterance
from .voices.catalogue import missing, voice_named
from .voices.voice import VoiceError

MANIFEST_FILE = "manifest.json"
RECIPE = 2
"""Changes with what a clip's plan does not show: then all clips are made again."""
_BIT_RATE = 32_000
_EDGE_S = 0.12  # of an utterance's own silence kept around it
_LEVEL_DB = (-24.0, 3.0)


class CorpusFolderError(FileError):
    """A folder that does not hold a synthetic corpus's clips."""


@dataclass(frozen=True, kw_only=True)
class CorpusSettings:
    """What is made."""

    minutes: Annotated[float, Range(1, 10_000)] = 150.0
    seed: Annotated[int, Range(0, 2**32 - 1)] = 14
    processes: Annotated[int, Range(1, 256)] = 2
    skip_missing: bool = False
    phones_only: bool = False

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What there is after a run."""

    minutes: Mapping[str, float]  # by voice
    left_out: Mapping[str, int]  # prompts by voice whose words do not fit


def make_corpus(out: Path, settings: CorpusSettings) -> Report:
    """Makes what is not there yet of a corpus; returns what it consists of.

    Raises:
        VoiceError: an engine is missing, or failed.
    """
    plans = plan_of(settings)
    for name in ("audio", "clips"):
        (out / name).mkdir(parents=True, exist_ok=True)
    speak_clips(out, plans, settings)
    records = read_records(out, plans)
    if not settings.phones_only:
        label_clips(out, records, settings.seed)
    write_index(out, records, settings)
    return report_of(records)


def plan_of(settings: CorpusSettings) -> list[ClipPlan]:
    """Returns the clips to be made.

    Raises:
        VoiceError: a voice is missing and must not be skipped; a line says for each how to get it.
    """
    plans = draw_plan(settings.minutes, settings.seed)
    # A speaker whose recordings are not installed has no plan.
    lines = missing(sorted({plan.voice for plan in plans if plan.voice} | set(PROMPTS)))
    if lines and not settings.skip_missing:
        raise VoiceError(f"{'; '.join(dict.fromkeys(lines.values()))}; or give --skip-missing")
    return [plan for plan in plans if plan.voice not in lines]


def speak_clips(out: Path, plans: Sequence[ClipPlan], settings: CorpusSettings) -> None:
    """Makes the sound and phones of the clips that are not there."""
    todo = [plan for plan in plans if _read_record(out, plan, settings.seed) is None]
    make = functools.partial(make_clip, out, seed=settings.seed)
    with tqdm(total=len(plans), initial=len(plans) - len(todo), desc="clips", unit="clip") as bar:
        if settings.processes == 1:
            for plan in todo:
                make(plan)
                bar.update()
            return
        # Not forked: a library's threads do not come along.
        context = multiprocessing.get_context("spawn")
        with (
            _stopped_by_sigterm(),
            concurrent.futures.ProcessPoolExecutor(settings.processes, mp_context=context) as pool,
        ):
            try:
                for made in concurrent.futures.as_completed([pool.submit(make, plan) for plan in todo]):
                    made.result()
                    bar.update()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise


@contextlib.contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Lets SIGTERM end the block as Ctrl-C does: clips that have begun are finished first."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(1)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def make_clip(out: Path, plan: ClipPlan, *, seed: int) -> None:
    """Makes one clip: its sound, then its record. A clip none of whose prompts fit has no sound."""
    pcm, phones, spoken, left_out = compose(plan, seed)
    record: dict[str, Any] = {"recipe": RECIPE, "seed": seed, "plan": plan.to_json(), "left_out": left_out}
    if len(pcm):
        sound = out / "audio" / f"{plan.id}.ogg"
        with atomic_write(sound) as path:
            write_opus(path, pcm)
        record |= {
            "frames": len(pcm) // FRAME_SAMPLES,
            "phones": [list(phone) for phone in phones],
            "text": " ".join(spoken),
            "sha256": hashlib.sha256(sound.read_bytes()).hexdigest(),
        }
    with atomic_write(out / "clips" / f"{plan.id}.json") as path:
        path.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")


def compose(plan: ClipPlan, seed: int) -> tuple[I16, tuple[Phone, ...], list[str], list[str]]:
    """Returns a clip's sound, a whole number of frames, its phones, what is said and what does not fit."""
    rng = plan.rng(seed, "compose")
    if plan.kind != SPEECH:
        frames = round(plan.seconds * SAMPLE_RATE_HZ) // FRAME_SAMPLES
        pcm = draw_sound(plan.kind, frames * FRAME_SAMPLES, rng)
        return pcm, ((PAUSE, 0.0, len(pcm) / SAMPLE_RATE_HZ),), [], []
    voice = voice_named(plan.voice)
    spoken, left_out, utterances = [], [], []
    for text in plan.texts:
        try:
            utterances.append(voice.speak(text, plan.params))
            spoken.append(text)
        except AlignmentError:
            left_out.append(text)
    if not utterances:
        return np.zeros(0, np.int16), (), [], left_out
    pieces: list[I16] = []
    phones: list[Phone] = []
    at_s = 0.0
    for number, utterance in enumerate(utterances):
        at_s += _append(
            pieces, np.zeros(round(rng.uniform(0.05, 0.4 if number else 0.5) * SAMPLE_RATE_HZ), np.int16)
        )
        own, times = _trimmed(utterance)
        phones += shifted(times, at_s)
        at_s += _append(pieces, own)
    tail = round(rng.uniform(0.1, 0.5) * SAMPLE_RATE_HZ)
    total = sum(map(len, pieces)) + tail
    _append(pieces, np.zeros(tail + -total % FRAME_SAMPLES, np.int16))
    pcm = _levelled(
        np.concatenate(pieces), _LEVEL_DB[0] + _LEVEL_DB[1] * float(np.clip(rng.standard_normal(), -2, 2))
    )
    return pcm, contiguous(phones, len(pcm) / SAMPLE_RATE_HZ), spoken, left_out


def _append(pieces: list[I16], piece: I16) -> float:
    pieces.append(piece)
    return len(piece) / SAMPLE_RATE_HZ


def _trimmed(utterance: Utterance) -> tuple[I16, tuple[Phone, ...]]:
    """Returns an utterance without its outer silence, pauses where the sound pauses."""
    phones = settle_pauses(utterance.phones, utterance.pcm)
    sounding = [phone for phone in phones if phone[0] != PAUSE]
    first_s = max(0.0, sounding[0][1] - _EDGE_S)
    last_s = min(utterance.duration_s, sounding[-1][2] + _EDGE_S)
    pcm = utterance.pcm[round(first_s * SAMPLE_RATE_HZ) : round(last_s * SAMPLE_RATE_HZ)]
    return pcm, contiguous(shifted(phones, -first_s), len(pcm) / SAMPLE_RATE_HZ)


def _levelled(pcm: I16, level_db: float) -> I16:
    """Returns sound whose speech has a level in dB below full scale, as far as its peaks allow."""
    levels = levels_db(pcm)
    loud = levels[levels > silence_from_db(levels)]
    if not len(loud):
        return pcm
    now_db = 10 * np.log10(np.mean(10 ** (loud / 10))) - 20 * np.log10(32_768)
    sound = pcm.astype(np.float64) * 10 ** ((level_db - now_db) / 20)
    peak = float(np.abs(sound).max())
    levelled: I16 = np.rint(sound * min(1.0, 31_000 / peak)).astype(np.int16)
    return levelled


def write_opus(path: Path, pcm: I16) -> None:
    """Writes 16 kHz mono samples (N,) as Ogg Opus, which decodes to as many at the same times."""
    # Bit-exact: the stream's number is not drawn, so the same sound gives the same bytes.
    with av.open(str(path), "w", format="ogg", options={"fflags": "bitexact"}) as file:
        stream = file.add_stream("libopus", rate=SAMPLE_RATE_HZ, layout="mono")
        stream.bit_rate = _BIT_RATE
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        frame.pts = 0
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def _read_record(out: Path, plan: ClipPlan, seed: int) -> dict[str, Any] | None:
    """Returns what is known of a clip that was made after the same plan; None where it must be made."""
    try:
        record = json.loads((out / "clips" / f"{plan.id}.json").read_text(encoding="utf-8"))
        same = (record["recipe"], record["seed"], record["plan"]) == (RECIPE, seed, plan.to_json())
        whole = "frames" not in record or (out / "audio" / f"{plan.id}.ogg").is_file()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if same and whole else None


def read_records(out: Path, plans: Sequence[ClipPlan]) -> list[dict[str, Any]]:
    """Returns what the clips' records say, in the order of the plan.

    Raises:
        CorpusFolderError: one is absent or broken.
    """
    records = []
    for plan in plans:
        path = out / "clips" / f"{plan.id}.json"
        try:
            records.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            got = f"none that can be read ({error})"
            raise CorpusFolderError(path, "", "a clip's record", got, "run the command again") from None
    return records


def label_clips(out: Path, records: Sequence[Mapping[str, Any]], seed: int) -> None:
    """Writes the landmarks of all clips that have a sound."""
    clips = [
        (ClipPlan.from_json(record["plan"]), functools.partial(read_utterance, out, record))
        for record in records
        if "frames" in record
    ]
    write_landmarks(out, clips, seed)


def write_index(out: Path, records: Sequence[Mapping[str, Any]], settings: CorpusSettings) -> None:
    """Writes `index.jsonl` and, after it, the manifest with all hashes."""
    lines, row = [], 0
    hashes = {}
    for record in records:
        if "frames" not in record:
            continue
        plan, frames = record["plan"], record["frames"]
        file = f"audio/{plan['id']}.ogg"
        voice = plan["voice"]
        line = {
            "id": plan["id"],
            "file": file,
            "start": 0,
            "samples": frames * FRAME_SAMPLES,
            "frames": frames,
            "row0": row,
            "row1": row + frames,
            "split": plan["split"],
            "kind": plan["kind"],
            "voice": voice or plan["kind"],
            "language": voice_named(voice).language if voice else "",
            "text": record["text"],
            "params": plan["params"],
            "identity": plan["identity"],
            "phones": record["phones"],
        }
        hashes[file] = record["sha256"]
        row += frames
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    text = "".join(lines)
    with atomic_write(out / INDEX_FILE) as path:
        path.write_text(text, encoding="utf-8")
    manifest = {
        "recipe": RECIPE,
        "settings": dataclasses.asdict(settings),
        "minutes": report_of(records).minutes,
        "left_out": report_of(records).left_out,
        "licences": {
            name: voice_named(name).licence for name in sorted({r["plan"]["voice"] for r in records} - {""})
        },
        "sha256": {INDEX_FILE: hashlib.sha256(text.encode()).hexdigest(), **hashes},
    }
    with atomic_write(out / MANIFEST_FILE) as path:
        path.write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")


def report_of(records: Sequence[Mapping[str, Any]]) -> Report:
    """Returns minutes and what was left out, by voice."""
    frames: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for record in records:
        plan = record["plan"]
        name = f"{plan['split']} {plan['voice'].partition('+')[0] or plan['kind']}"
        frames[name] += record.get("frames", 0)
        if record["left_out"]:
            left_out[plan["voice"]] += len(record["left_out"])
    minutes = {name: round(count / 1500, 2) for name, count in sorted(frames.items())}
    return Report(minutes=minutes, left_out=dict(sorted(left_out.items())))


def read_utterance(out: Path, record: Mapping[str, Any]) -> Utterance:
    """Returns a clip, its sound as the corpus holds it.

    Raises:
        CorpusFolderError: its sound is absent, undecodable or too short.
    """
    path = out / "audio" / f"{record['plan']['id']}.ogg"
    samples = record["frames"] * FRAME_SAMPLES
    try:
        pcm = read_pcm(path)
    except MediaError as error:
        raise CorpusFolderError(
            path, error.field, error.expected, error.got, "run the command again"
        ) from None
    if len(pcm) < samples:
        raise CorpusFolderError(path, "sound", f"{samples} samples", len(pcm), "run the command again")
    voice = record["plan"]["voice"]
    return Utterance(
        pcm=pcm[:samples],
        phones=tuple((str(label), float(start), float(end)) for label, start, end in record["phones"]),
        voice=voice,
        language=voice_named(voice).language if voice else "",
        text=record["text"],
    )
