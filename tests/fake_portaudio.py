"""Stands in for PortAudio and its Python package: devices, and streams that a test drives."""

from types import SimpleNamespace

import numpy as np

HEADSET = ("Headset:  USB Audio\n(hw:1,0)", 0, 2, 48000)
WEBCAM = ("Webcam", 0, 1, 16000)
SPEAKERS = ("Loudspeakers", 0, 0, 48000)
ALSO_HEADSET = ("Headset", 1, 1, 44100)


class PortAudioError(Exception):
    """As sounddevice has it."""


class FakePortAudio:
    """Stands in for the module `sounddevice`: some devices, and streams that the test drives."""

    PortAudioError = PortAudioError

    def __init__(self, *devices, default=-1, refuses=()):
        self._devices = [
            {
                "name": name,
                "hostapi": api,
                "max_input_channels": channels,
                "default_samplerate": float(rate_hz),
            }
            for name, api, channels, rate_hz in devices
        ]
        self.default = SimpleNamespace(device=[default, -1])
        self.refuses = set(refuses)  # (rate, channels) that cannot be opened
        self.asked = []
        self.stream = None

    def query_devices(self):
        return tuple(self._devices)

    def query_hostapis(self):
        return (
            {"name": "ALSA", "default_input_device": -1},
            {"name": "JACK", "default_input_device": -1},
        )

    def InputStream(self, **given):  # noqa: N802 - sounddevice's name
        self.asked.append((given["samplerate"], given["channels"]))
        if self.asked[-1] in self.refuses:
            raise PortAudioError("Invalid sample rate\n[PaErrorCode -9997]")
        self.stream = FakeStream(given)
        return self.stream


class FakeStream:
    def __init__(self, given):
        self.given = given
        self.running = False

    def start(self):
        self.running = True

    def __exit__(self, *_):
        if self.running:
            self.running = False
            self.given["finished_callback"]()

    def hear(self, samples, *, overflow=False):
        """Hands over samples (n,) or (n, channels) as PortAudio does: blocks, in its own memory."""
        size = self.given["blocksize"]
        columns = samples if samples.ndim == 2 else np.repeat(samples[:, None], self.given["channels"], 1)
        memory = np.zeros((size, self.given["channels"]), np.float32)
        for at in range(0, len(columns) - size + 1, size):
            memory[:] = columns[at : at + size]
            self.given["callback"](memory, size, None, SimpleNamespace(input_overflow=overflow))
            memory[:] = 9.0
