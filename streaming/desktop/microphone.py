"""This machine's own microphone, through PortAudio; `sounddevice` is imported only when one is asked for."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

import av
import numpy as np

from cuda_kernels.arrays import F32
from models.settings import escaped
from models.time_base import SAMPLE_RATE_HZ

from ..errors import InputError, Stopped
from ..pipeline.clock import MonotonicClock, SystemClock
from ..pipeline.downmix import Downmix
from ..pipeline.queues import Aborted, BoundedQueue, Ended, Overflow
from ..settings import DEFAULT_MICROPHONE

BLOCK_MS = 20
BOUND_MS = 400.0  # of the queue to the reader; the oldest is dropped
FIRST_SOUND_S = 6.0  # a Bluetooth headset takes its time
LOST_AFTER_S = 2.0  # some systems do not report that a device was unplugged: its callback just stops
_POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class InputDevice:
    """A device that sound can be recorded from."""

    index: int
    name: str
    host_api: str
    channels: int
    rate_hz: int  # its default
    is_default: bool

    def __str__(self) -> str:
        """Returns number, name and interface, as a user would name it."""
        return f"{self.index}: {self.name}, {self.host_api}"


class _Status(Protocol):
    """PortAudio's flags of a block."""

    input_overflow: bool


def open_portaudio() -> ModuleType:
    """Returns the module `sounddevice`.

    Raises:
        InputError: it or PortAudio is not installed.
    """
    try:
        return importlib.import_module("sounddevice")
    except ImportError:
        raise InputError("--mic: the package sounddevice is not installed; pip install sounddevice") from None
    except OSError:
        raise InputError(
            "--mic: PortAudio is not installed; on Debian: apt-get install libportaudio2, on Fedora: dnf "
            "install portaudio, on macOS and Windows: pip install --force-reinstall sounddevice"
        ) from None


def input_devices() -> list[InputDevice]:
    """Returns every device with an input.

    Raises:
        InputError: PortAudio is not installed.
    """
    portaudio = open_portaudio()
    apis = portaudio.query_hostapis()
    default = int(portaudio.default.device[0])
    if default < 0 and apis:
        default = next((api["default_input_device"] for api in apis if api["default_input_device"] >= 0), -1)
    return [
        InputDevice(
            index=index,
            name=" ".join(str(device["name"]).split()),
            host_api=str(apis[device["hostapi"]]["name"]),
            channels=int(device["max_input_channels"]),
            rate_hz=round(device["default_samplerate"]),
            is_default=index == default,
        )
        for index, device in enumerate(portaudio.query_devices())
        if device["max_input_channels"] > 0
    ]


def list_devices() -> str:
    """Returns a table of the devices that `--mic` takes, or one line that says there are none.

    Raises:
        InputError: PortAudio is not installed.
    """
    devices = input_devices()
    if not devices:
        return f"{_NO_DEVICE}; {_PLUG_IN}"
    rows = [("", "no.", "name", "interface", "channels", "rate")]
    rows += [
        (
            "*" if device.is_default else "",
            str(device.index),
            escaped(device.name),
            escaped(device.host_api),
            str(device.channels),
            f"{device.rate_hz} Hz",
        )
        for device in devices
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


_NO_DEVICE = "no microphone was found on this machine"
_PLUG_IN = "plug one in, and let this user record (on Linux: the group audio, or a running PipeWire)"


def find_device(wanted: str) -> InputDevice:
    """Returns the device of a number, or the one whose name has `wanted` in it.

    Args:
        wanted: as `--mic` takes it: "default", a number, or a part of "name, interface" in any case.

    Raises:
        InputError: there is none, or more than one; lists what there is.
    """
    devices = input_devices()
    if not devices:
        raise InputError(f"--mic: {_NO_DEVICE}; {_PLUG_IN}")
    there_are = "; ".join(str(device) for device in devices)
    if wanted == DEFAULT_MICROPHONE:
        found = [device for device in devices if device.is_default] or devices[:1]
    elif wanted.isdecimal():
        found = [device for device in devices if device.index == int(wanted)]
    else:
        part = wanted.casefold()
        found = [device for device in devices if device.name.casefold() == part]
        if len(found) != 1:
            found = [d for d in devices if part in f"{d.name}, {d.host_api}".casefold()]
    if not found:
        raise InputError(
            f"--mic: expected a number or a part of a name, got {wanted!r}; there are {there_are}"
        )
    if len(found) > 1:
        fitting = "; ".join(str(device) for device in found)
        raise InputError(f"--mic: {wanted!r} fits more than one: {fitting}; give its number")
    return found[0]


class LocalMicrophone:
    """A capture stream, 16 kHz mono; PortAudio's thread puts, one thread reads."""

    def __init__(self, device: InputDevice, *, clock: MonotonicClock | None = None) -> None:
        """Opens nothing yet; `start` does.

        Args:
            device: to record from.
            clock: of the timeout of a silent device.
        """
        self.device = device
        self.rate_hz = 0
        """What the device is opened at; 16000 where it lets us."""
        self.overflows = 0
        """Input overflows: PortAudio lost sound because the callback came late."""
        self._clock = clock or SystemClock()
        self._queue: BoundedQueue[F32] = BoundedQueue(
            name="microphone",
            bound_ms=BOUND_MS,
            overflow=Overflow.DROP_OLDEST,
            duration_ms=lambda block: len(block) * 1000 / self.rate_hz,
        )
        self._stream: contextlib.AbstractContextManager[object] | None = None
        self._downmix = Downmix(SAMPLE_RATE_HZ)
        self._resampler: av.AudioResampler | None = None
        self._deadline_s = 0.0
        self._closed = False

    @property
    def dropped(self) -> int:
        """Blocks dropped because the queue was full."""
        return self._queue.dropped

    def start(self) -> None:
        """Opens the device and starts recording.

        Raises:
            InputError: PortAudio is not installed, or the device cannot be opened in any way.
        """
        if self._stream is not None or self._closed:
            raise RuntimeError("microphone: started twice, or after it was closed")
        portaudio = open_portaudio()
        refused: Exception | None = None
        for rate_hz, channels in self._ways_to_open():
            self.rate_hz = rate_hz
            self._downmix = Downmix(rate_hz)
            try:
                stream = portaudio.InputStream(
                    device=self.device.index,
                    samplerate=rate_hz,
                    channels=channels,
                    blocksize=rate_hz * BLOCK_MS // 1000,
                    dtype="float32",
                    latency="low",
                    callback=self._take,
                    finished_callback=self._queue.end,
                )
                stream.start()
            except (portaudio.PortAudioError, ValueError) as error:
                refused = refused or error
                continue
            self._stream = stream
            break
        else:
            reason = " ".join(str(refused).split())
            raise InputError(
                f"--mic: {self.device} cannot be opened: {reason}; close the program that uses it, let this "
                "one record in the system's settings, or give another (--list-devices)"
            )
        if self.rate_hz != SAMPLE_RATE_HZ:
            self._resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE_HZ)
        self._deadline_s = self._clock.now_s() + FIRST_SOUND_S

    def read(self, timeout_s: float) -> F32:
        """Returns the next samples (n,) float32 in [-1, 1], 16 kHz mono, about 20 ms of them.

        Raises:
            TimeoutError: no sound came within `timeout_s`; it may still come.
            InputError: the device is gone.
            Stopped: the microphone was closed.
        """
        samples = np.zeros(0, np.float32)
        while not len(samples):
            try:
                block = self._queue.get(timeout_s)
            except TimeoutError:
                if self._clock.now_s() >= self._deadline_s:
                    raise self._gone() from None
                raise
            except Ended:
                raise self._gone() from None
            except Aborted:
                raise Stopped("the microphone was closed") from None
            self._deadline_s = self._clock.now_s() + LOST_AFTER_S
            samples = block if self._resampler is None else self._resampled(block)
        return samples

    def blocks(self) -> Iterator[F32]:
        """Yields what `read` returns until the microphone is closed.

        Raises:
            InputError: the device is gone.
        """
        while True:
            try:
                samples = self.read(_POLL_S)
            except TimeoutError:
                continue
            except Stopped:
                return
            yield samples

    def close(self) -> None:
        """Closes the device and wakes the reader; safe twice and unstarted."""
        self._closed = True
        self._queue.abort()
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.__exit__(None, None, None)

    def __enter__(self) -> LocalMicrophone:
        """Starts it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it."""
        self.close()

    def _ways_to_open(self) -> list[tuple[int, int]]:
        """Returns sample rates and channel counts to try; a raw device often offers its own only.

        Two channels come first: asked for one, many systems give the mean, and sides may cancel in it.
        """
        channels = (min(self.device.channels, 2), 1)
        ways = [(rate, count) for rate in (SAMPLE_RATE_HZ, self.device.rate_hz) for count in channels]
        return list(dict.fromkeys(ways))

    def _take(self, block: F32, _frames: int, _time: object, status: _Status) -> None:
        """Takes a block (n, channels) from PortAudio's thread, whose memory it is."""
        if self._closed:
            return
        if status and status.input_overflow:
            self.overflows += 1
        with contextlib.suppress(Aborted):
            self._queue.put(np.array(self._downmix.step(block.T)))

    def _resampled(self, block: F32) -> F32:
        assert self._resampler is not None
        frame = av.AudioFrame.from_ndarray(block[None], format="flt", layout="mono")
        frame.sample_rate = self.rate_hz
        pieces = [piece.to_ndarray()[0] for piece in self._resampler.resample(frame)]
        return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)

    def _gone(self) -> InputError:
        return InputError(
            f"--mic: {self.device} stopped giving sound; plug it in again, or give another (--list-devices)"
        )
