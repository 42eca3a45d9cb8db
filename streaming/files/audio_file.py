"""Streaming decoder of any sound that ffmpeg reads: constant memory for any duration."""

from __future__ import annotations

import functools
import logging
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import av.audio
import av.container
import av.error
import numpy as np

from cuda_kernels.arrays import F32
from models.recording import open_recording
from models.time_base import SAMPLE_RATE_HZ

from ..errors import InputError
from ..pipeline.downmix import Downmix

log = logging.getLogger(__name__)

AAC_RATES_HZ = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
MIN_RATE_HZ = 1_000  # a lower one is a damaged header, and would make days of a second
MAX_RATE_HZ = 1_000_000  # the resampler's filters grow with it
MAX_CHANNELS = 64  # of FFmpeg's resampler
MAX_AMPLITUDE = 16.0  # of a sample before it is mixed and resampled: no sum leaves float32's range
MAX_TRACKS = 32  # that are tried until one decodes
MAX_DURATION_S = 1e7  # what a header states beyond it is damage
_DECODE_ERRORS = (av.error.FFmpegError, ValueError, OSError, OverflowError)  # all that PyAV raises for a file
_PADDING_S = 0.3  # the most that an encoder adds at the ends and a decoder takes away
_RAW_FORMATS = frozenset({"aac", "ac3", "dts", "eac3", "loas", "mp3"})  # FFmpeg's names of their demuxers
_FLOAT_FORMATS = frozenset({"flt", "fltp", "dbl", "dblp"})


@dataclass(frozen=True, kw_only=True)
class SoundFormat:
    """Sample rate and channel layout of the video's sound."""

    rate_hz: int
    layout: str  # "mono" or "stereo"

    @property
    def channels(self) -> int:
        """Number of channels."""
        return 2 if self.layout == "stereo" else 1


class AudioFile:
    """A recording on disk; every iteration decodes it anew, in small blocks.

    Of several sound tracks the first that decodes is taken, those marked as default first.
    """

    def __init__(self, path: Path) -> None:
        """Looks at the file's header and decodes the beginning of its sound.

        Raises:
            InputError: no file, an empty one, nothing ffmpeg knows, or no sound in it.
        """
        self.path = path
        _require_file(path)
        try:
            with open_recording(path) as container:
                tracks = _sound_tracks(container, path)
            problems = []
            for track in tracks[:MAX_TRACKS]:
                with open_recording(path) as container:
                    stream = container.streams[track]
                    frame = next((frame for frame in _decoded(container, stream) if frame is not None), None)
                    problem = "no decoder" if stream.codec_context is None else _unusable(frame)
                    if frame is None or problem:
                        problems.append(problem)
                        continue
                    self._track = track
                    self.source_rate_hz = frame.sample_rate
                    self.source_channels = frame.layout.nb_channels
                    self.duration_s = _duration_s(container, stream)
                    self._stated_s = _stated_s(container, stream)
                    return
        except InputError:
            raise
        except _DECODE_ERRORS as error:
            raise _unreadable(path, error) from None
        if problems == ["no samples"]:
            raise InputError(f"{path}: expected sound, got a sound track without samples; record it again")
        got = " and ".join(dict.fromkeys(problems))
        raise InputError(
            f"{path}: expected a sound track that ffmpeg decodes, got {len(problems)} with {got}; "
            "convert it to WAV or FLAC"
        )

    @property
    def sound_format(self) -> SoundFormat:
        """What the video's sound keeps of the source: its rate up to 48 kHz, mono or stereo."""
        rate_hz = next((r for r in AAC_RATES_HZ if r >= self.source_rate_hz), AAC_RATES_HZ[-1])
        return SoundFormat(rate_hz=rate_hz, layout="mono" if self.source_channels == 1 else "stereo")

    def speech(self) -> Iterator[F32]:
        """Yields blocks (n,) float32 in [-1, 1], 16 kHz mono: what moves the face.

        Damage is left out; a warning at the end says that, or that the file states more sound than it has.
        There is at least one sample.

        Raises:
            InputError: a sample that is no number, or no samples at all.
        """
        for block in self._blocks(SoundFormat(rate_hz=SAMPLE_RATE_HZ, layout="mono"), warn=True):
            yield block[0]

    def sound(self) -> Iterator[F32]:
        """Yields blocks (channels, n) float32 in [-1, 1] of `sound_format`: the video's sound."""
        yield from self._blocks(self.sound_format, warn=False)

    def _blocks(self, wanted: SoundFormat, *, warn: bool) -> Iterator[F32]:
        resampler: av.AudioResampler | None = None
        rate_hz = 0
        samples_out = 0
        for block, block_rate_hz in self._mixed(wanted.channels, warn=warn):
            if resampler is None or block_rate_hz != rate_hz:  # some streams change their rate on the way
                for out in _resampled(resampler, None):
                    samples_out += out.shape[1]
                    yield out
                rate_hz = block_rate_hz
                resampler = av.AudioResampler("fltp", wanted.layout, wanted.rate_hz)
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=wanted.layout)
            frame.sample_rate = (
                rate_hz  # no timestamps: gaps and jumps of a container's do not move the sound
            )
            for out in _resampled(resampler, frame):
                samples_out += out.shape[1]
                yield out
        for out in _resampled(resampler, None):
            samples_out += out.shape[1]
            yield out
        if not samples_out:  # shorter than one sample at the rate that is wanted
            yield np.zeros((wanted.channels, 1), np.float32)

    def _mixed(self, channels: int, *, warn: bool) -> Iterator[tuple[F32, int]]:
        """Yields blocks (channels, n) float32 as they come, each with its rate in Hz."""
        conversion = _FrameConversion()
        downmix, rate_hz = Downmix(self.source_rate_hz), self.source_rate_hz
        samples_in = damaged = 0
        decoded_s = 0.0
        for frame in self._frames():
            try:
                values = None if frame is None or _unusable(frame) else conversion.planar(frame)
            except _DECODE_ERRORS:
                values = None
            if values is None or frame is None:
                damaged += 1
                continue
            if frame.format.name in _FLOAT_FORMATS:
                self._refuse_non_numbers(values, samples_in, frame.sample_rate)
            samples_in += values.shape[1]
            decoded_s += values.shape[1] / frame.sample_rate
            values = np.clip(values, -MAX_AMPLITUDE, MAX_AMPLITUDE)
            if len(values) != channels:
                if frame.sample_rate != rate_hz:
                    downmix, rate_hz = Downmix(frame.sample_rate), frame.sample_rate
                values = np.repeat(downmix.step(values)[None], channels, axis=0)
            yield np.ascontiguousarray(values, np.float32), frame.sample_rate
        if not samples_in:
            raise InputError(
                f"{self.path}: expected sound, got a sound track without samples; record it again"
            )
        if warn:
            self._warn(damaged, decoded_s)

    def _warn(self, damaged: int, decoded_s: float) -> None:
        """Warns in one line of sound that is damaged or missing."""
        lost = ""
        if self._stated_s is not None and self._stated_s - decoded_s > _PADDING_S + 0.02 * self._stated_s:
            lost = f"the file states {self._stated_s:.2f} s of sound, {decoded_s:.2f} s of it could be read"
        if damaged:
            log.warning(
                "%s: the sound is damaged in %d place%s; what lies there was left out%s",
                self.path,
                damaged,
                "s" if damaged > 1 else "",
                lost and f": {lost}",
            )
        elif lost:
            log.warning("%s: %s; it was cut off or damaged, or its header is wrong", self.path, lost)

    def _frames(self) -> Iterator[av.AudioFrame | None]:
        try:
            container = open_recording(self.path)
        except _DECODE_ERRORS as error:
            raise _unreadable(self.path, error) from None
        with container:
            if self._track not in _sound_tracks(container, self.path):
                raise InputError(
                    f"{self.path}: expected one file throughout the run, got another; leave it be"
                )
            yield from _decoded(container, container.streams[self._track])

    def _refuse_non_numbers(self, values: F32, samples_before: int, rate_hz: int) -> None:
        finite = np.isfinite(values)
        if finite.all():
            return
        where = int(np.argmin(finite.all(axis=0)))
        bad = values[~finite[:, where], where][0]
        at_s = (samples_before + where) / rate_hz
        raise InputError(
            f"{self.path}: sample {samples_before + where} ({at_s:.3f} s): expected a number, got {bad}; "
            "export the recording again, as 16-bit WAV for example"
        )


class _FrameConversion:
    """Decoded frames as float32 of their own rate: one or two channels, or as many as cannot be mixed."""

    def __init__(self) -> None:
        self._setup: tuple[str, str, int] | None = None
        self._resamplers: list[tuple[av.AudioResampler, int]] = []

    def planar(self, frame: av.AudioFrame) -> F32:
        """Returns (channels, n) float32; 1.0 is full scale.

        Raises:
            FFmpegError: FFmpeg does not convert such a frame.
        """
        setup = (frame.format.name, frame.layout.name, frame.sample_rate)
        if setup != self._setup:
            self._setup = setup
            self._resamplers = self._ways(frame)
        frame.pts = None
        while True:
            resampler, channels = self._resamplers[0]
            try:
                converted = resampler.resample(frame)
            except av.error.ArgumentError:
                if len(self._resamplers) == 1:
                    raise
                del self._resamplers[0]
                continue
            # Interleaved, since PyAV reads beyond the planes of a frame that has eight.
            blocks = [out.to_ndarray().reshape(-1, channels).T for out in converted if out.samples]
            return np.concatenate(blocks, axis=1) if blocks else np.zeros((channels, 0), np.float32)

    @staticmethod
    def _ways(frame: av.AudioFrame) -> list[tuple[av.AudioResampler, int]]:
        """Returns what may convert such frames, the best first, with how many channels it gives."""
        channels, rate_hz = frame.layout.nb_channels, frame.sample_rate
        if channels == 1:
            return [(av.AudioResampler("flt", "mono", rate_hz), 1)]
        stereo = (av.AudioResampler("flt", "stereo", rate_hz), 2)
        if channels == 2:
            return [stereo]
        # FFmpeg mixes only layouts whose channels have their places.
        return [stereo, (av.AudioResampler("flt", frame.layout.name, rate_hz), channels)]


def _require_file(path: Path) -> None:
    """Refuses what is no regular file with something in it; opening a pipe would wait for its writer."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected a recording, give its path with --input") from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path}: expected a file with a recording, got a folder or a device")
    if found.st_size == 0:
        raise InputError(f"{path}: the file is empty; expected a recording, record it again")


def _unreadable(path: Path, error: Exception) -> InputError:
    if isinstance(error, PermissionError):
        return InputError(f"{path}: may not be read; change its permissions")
    if isinstance(error, av.error.ArgumentError):
        return InputError(
            f"{path}: expected one recording, got a playlist, a script or a damaged header; "
            "give the recording itself, as WAV or FLAC for example"
        )
    if isinstance(error, av.error.FFmpegError):
        reason = (error.strerror or "an error").lower()
        return InputError(
            f"{path}: expected sound that ffmpeg decodes, got {reason}; convert it to WAV or FLAC"
        )
    reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return InputError(f"{path}: expected a readable file, got {reason.lower()}; check the path")


def _sound_tracks(container: av.container.InputContainer, path: Path) -> list[int]:
    """Returns the indices of the sound tracks in the order in which they are to be tried."""
    tracks = container.streams.audio
    if not tracks:
        kinds = ", ".join(sorted({stream.type or "unknown" for stream in container.streams})) or "nothing"
        raise InputError(f"{path}: expected a sound track, got {kinds} only; give a recording with sound")
    default = av.stream.Disposition.default
    return [track.index for track in sorted(tracks, key=lambda track: not track.disposition & default)]


def _decoded(
    container: av.container.InputContainer, stream: av.stream.Stream
) -> Iterator[av.AudioFrame | None]:
    """Yields a track's frames in order, and None for each that cannot be decoded."""
    if stream.codec_context is None:
        return
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.error.EOFError):
            return
        except IndexError:  # a packet of a track that begins only here, which PyAV does not know
            packets = container.demux(stream)
            continue
        except _DECODE_ERRORS:
            yield None  # cut off, or damaged so that no end of it is found: what came before is used
            if isinstance(stream, av.AudioStream):
                yield from _frames_of(functools.partial(stream.codec_context.decode, None))
            return
        yield from _frames_of(packet.decode)


def _frames_of(decode: Callable[[], Sequence[object]]) -> Iterator[av.AudioFrame | None]:
    try:
        frames = decode()
    except av.error.EOFError:
        return
    except _DECODE_ERRORS:
        yield None
        return
    for frame in frames:
        if isinstance(frame, av.AudioFrame) and frame.samples:
            yield frame


def _unusable(frame: av.AudioFrame | None) -> str:
    """Returns what is wrong with the form of a decoded frame, nothing if it can be used."""
    if frame is None:
        return "no samples"
    if not MIN_RATE_HZ <= frame.sample_rate <= MAX_RATE_HZ:
        return f"a sample rate of {frame.sample_rate} Hz"
    channels = frame.layout.nb_channels
    return "" if 1 <= channels <= MAX_CHANNELS else f"{channels} channels"


def _duration_s(container: av.container.InputContainer, stream: av.stream.Stream) -> float | None:
    duration_s = 0.0
    if stream.duration and stream.time_base:
        duration_s = float(stream.duration * stream.time_base)
    elif container.duration:
        duration_s = container.duration / av.time_base
    return duration_s if 0 < duration_s <= MAX_DURATION_S else None


def _stated_s(container: av.container.InputContainer, stream: av.stream.Stream) -> float | None:
    """Returns the duration that the file's header states; None without one, or where FFmpeg estimates it."""
    if stream.duration is None:  # what the container states is of its longest track, from zero on
        if len(container.streams) > 1:
            return None
        stated_s = _duration_s(container, stream)
        if stated_s is not None and stream.start_time is not None and stream.time_base:
            stated_s -= float(stream.start_time * stream.time_base)
        return stated_s
    stated_s = _duration_s(container, stream)
    if stated_s is not None and container.format.name in _RAW_FORMATS:
        # Without a header FFmpeg divides the file's size by the rate of its beginning.
        bit_rate = getattr(stream.codec_context, "bit_rate", None) or 0
        if stated_s * bit_rate / 8 <= 1.01 * container.size:
            return None
    return stated_s


def _resampled(resampler: av.AudioResampler | None, frame: av.AudioFrame | None) -> Iterator[F32]:
    if resampler is None:
        return
    for out in resampler.resample(frame):
        if out.samples:
            yield np.clip(out.to_ndarray(), -1.0, 1.0).astype(np.float32, copy=False)
