"""Sound from any file ffmpeg decodes, streamed: an hour takes no more memory than a second."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import av.audio
import av.error
import numpy as np
import numpy.typing as npt

from .clock import SAMPLE_RATE_HZ
from .errors import InputError

F32 = npt.NDArray[np.float32]

log = logging.getLogger(__name__)

AAC_RATES_HZ = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
_FLOAT_FORMATS = frozenset({"flt", "fltp", "dbl", "dblp"})


@dataclass(frozen=True, kw_only=True)
class SoundFormat:
    """Rate and layout of the sound that goes into the video."""

    rate_hz: int
    layout: str  # "mono" or "stereo"

    @property
    def channels(self) -> int:
        """Number of channels."""
        return 2 if self.layout == "stereo" else 1


def _ffmpeg_name(path: Path) -> str:
    # Without it a colon in a file's name would be read as the end of a protocol's name.
    return f"file:{path}"


class AudioFile:
    """A recording on disk; every iteration decodes it anew, in small blocks."""

    def __init__(self, path: Path) -> None:
        """Looks at the file's header.

        Raises:
            InputError: no file, an empty one, nothing ffmpeg knows, or no sound in it.
        """
        self.path = path
        if not path.exists():
            raise InputError(f"{path}: no such file; expected a recording, give its path with --input")
        if not path.is_file():
            raise InputError(f"{path}: expected a file with a recording, got a folder or a device")
        try:
            size_bytes = path.stat().st_size
            if size_bytes == 0:
                raise InputError(f"{path}: the file is empty; expected a recording, record it again")
            with av.open(_ffmpeg_name(path)) as container:
                stream = _best_sound(container, path)
                self.source_rate_hz = stream.rate
                self.source_channels = stream.channels
                self.duration_s = _duration_s(container, stream)
        except av.error.PermissionError:
            raise InputError(f"{path}: may not be read; change its permissions") from None
        except av.error.FFmpegError as error:
            raise InputError(
                f"{path}: expected sound that ffmpeg decodes, got {(error.strerror or 'an error').lower()}; "
                "convert it to WAV or FLAC"
            ) from None
        if self.source_rate_hz <= 0 or self.source_channels <= 0:
            raise InputError(
                f"{path}: expected a sample rate and channels, got {self.source_rate_hz} Hz, "
                f"{self.source_channels} channels; the file is damaged, convert it to WAV"
            )

    @property
    def sound_format(self) -> SoundFormat:
        """What the video's sound keeps of the source: its rate up to 48 kHz, mono or stereo."""
        rate_hz = next((r for r in AAC_RATES_HZ if r >= self.source_rate_hz), AAC_RATES_HZ[-1])
        return SoundFormat(rate_hz=rate_hz, layout="mono" if self.source_channels == 1 else "stereo")

    def speech(self) -> Iterator[F32]:
        """Yields blocks (n,) float32 in [-1, 1], 16 kHz mono: what moves the face.

        Raises:
            InputError: a sample that is no number, or no samples at all.
        """
        for block in self._blocks(SoundFormat(rate_hz=SAMPLE_RATE_HZ, layout="mono")):
            yield block[0]

    def sound(self) -> Iterator[F32]:
        """Yields blocks (channels, n) float32 in [-1, 1] of `sound_format`: what is heard."""
        yield from self._blocks(self.sound_format)

    def _blocks(self, wanted: SoundFormat) -> Iterator[F32]:
        resampler: av.AudioResampler | None = None
        setup: tuple[str, str, int] | None = None
        samples_in = 0
        for frame in self._frames():
            if frame.format.name in _FLOAT_FORMATS:
                self._refuse_non_numbers(frame, samples_in)
            now = (frame.format.name, frame.layout.name, frame.sample_rate)
            if resampler is None or now != setup:  # some streams change their format on the way
                if resampler is not None:
                    yield from _resampled(resampler, None)
                resampler = av.AudioResampler("fltp", wanted.layout, wanted.rate_hz)
                setup = now
            frame.pts = None  # gaps and jumps of a container's time do not move the sound
            samples_in += frame.samples
            yield from _resampled(resampler, frame)
        if resampler is None or samples_in == 0:
            raise InputError(
                f"{self.path}: expected sound, got a sound track without samples; record it again"
            )
        yield from _resampled(resampler, None)

    def _frames(self) -> Iterator[av.AudioFrame]:
        damaged = 0
        with av.open(_ffmpeg_name(self.path)) as container:
            stream = _best_sound(container, self.path)
            packets = container.demux(stream)
            while True:
                try:
                    packet = next(packets)
                except (StopIteration, av.error.EOFError):
                    break
                except (av.error.InvalidDataError, av.error.OSError):
                    damaged += 1  # cut off in the middle of a packet: what came before is used
                    break
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    damaged += 1
                    continue
                for frame in frames:
                    assert isinstance(frame, av.AudioFrame)
                    if frame.samples:
                        yield frame
        if damaged:
            log.warning("%s: %d damaged packets were left out", self.path, damaged)

    def _refuse_non_numbers(self, frame: av.AudioFrame, samples_before: int) -> None:
        values = frame.to_ndarray()
        finite = np.isfinite(values)
        if finite.all():
            return
        if values.shape[0] == 1 and frame.layout.nb_channels > 1:  # interleaved
            finite = finite.reshape(-1, frame.layout.nb_channels).T
            values = values.reshape(-1, frame.layout.nb_channels).T
        where = int(np.argmin(finite.all(axis=0)))
        bad = values[~finite[:, where], where][0]
        at_s = (samples_before + where) / frame.sample_rate
        raise InputError(
            f"{self.path}: sample {samples_before + where} ({at_s:.3f} s): expected a number, got {bad}; "
            "export the recording again, as 16-bit WAV for example"
        )


def _best_sound(container: av.container.InputContainer, path: Path) -> av.AudioStream:
    if not container.streams.audio:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise InputError(f"{path}: expected a sound track, got {kinds} only; give a recording with sound")
    return container.streams.audio[0]


def _duration_s(container: av.container.InputContainer, stream: av.AudioStream) -> float | None:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


def _resampled(resampler: av.AudioResampler, frame: av.AudioFrame | None) -> Iterator[F32]:
    for out in resampler.resample(frame):
        if out.samples:
            yield np.clip(out.to_ndarray(), -1.0, 1.0).astype(np.float32, copy=False)
