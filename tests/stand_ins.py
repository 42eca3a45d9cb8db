"""What stands in for slow or absent parts of the live path in tests: `import stand_ins`."""

from __future__ import annotations

import struct
import sys
import threading
from pathlib import Path

import numpy as np


class StandInRaymarcher:
    """Draws a picture that depends on pose, condition and place alone, at next to no cost."""

    def __init__(self, *, fail_at: int | None = None) -> None:
        self.drawn = 0
        self.sizes: list[int] = []
        self.masks: list[object] = []
        self.threads_seen: set[str] = set()
        self._fail_at = fail_at

    def render(self, *, c2w, condition, size_px, region_px=None, mask=None, out=None):
        if self._fail_at is not None and self.drawn >= self._fail_at:
            raise RuntimeError("the stand-in was told to fail")
        self.drawn += 1
        self.sizes.append(size_px)
        self.masks.append(mask)
        self.threads_seen.add(threading.current_thread().name)
        x0, y0, x1, y1 = region_px or (0, 0, size_px, size_px)
        x = (np.arange(x0, x1) + 0.5) / size_px
        y = (np.arange(y0, y1) + 0.5) / size_px
        wave = np.float32(condition).sum() + c2w[0, 2] * 3
        field = np.sin(6 * x[None, :] + wave) * np.cos(5 * y[:, None] - wave)
        channels = [127 + 100 * field, 127 + 100 * field * field, 127 - 90 * field]
        picture = np.stack(channels, -1).astype(np.uint8)
        if mask is not None:
            assert mask.size_px == size_px
            drawn = np.kron(mask.covered, np.ones((4, 4), bool))[:size_px, :size_px]
            picture[~drawn] = 0
        return picture

    def warm_up(self) -> float:
        return 0.0

    def close(self) -> None:
        self.closed = True


def write_mute_video(path: Path) -> Path:
    """Writes a video of one black picture, without sound."""
    import av  # the programs that load this module need no PyAV of it

    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        container.mux(
            video.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24"))
        )
        container.mux(video.encode(None))
    return path


def write_wav(path: Path, samples: np.ndarray, rate_hz: int = 16000) -> Path:
    """Writes samples (n,) or (n, channels): float32 as IEEE float, anything else as 16-bit PCM."""
    samples = samples[:, None] if samples.ndim == 1 else samples
    channels = samples.shape[1]
    floating = samples.dtype == np.float32
    data = samples.tobytes() if floating else samples.astype("<i2").tobytes()
    bits = 32 if floating else 16
    frame = channels * bits // 8
    form = struct.pack("<HHIIHH", 3 if floating else 1, channels, rate_hz, rate_hz * frame, frame, bits)
    head = b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + struct.pack("<I", 16) + form
    path.write_bytes(head + b"data" + struct.pack("<I", len(data)) + data)
    return path


def speech_like(seconds: float, rate_hz: int = 16000, *, seed: int = 0) -> np.ndarray:
    """Returns (n,) int16: tones in syllable-long bursts with pauses."""
    random = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate_hz)) / rate_hz
    loudness = np.clip(np.sin(2 * np.pi * 3.1 * time) + 0.3, 0, 1) * (np.sin(0.9 * time) > -0.5)
    tone = np.sin(2 * np.pi * 180 * time) + 0.4 * np.sin(2 * np.pi * 730 * time)
    sound = 0.2 * loudness * tone + 0.003 * random.standard_normal(len(time))
    return np.round(sound * 32767).astype(np.int16)


def open_raymarcher(speaker, *, threads):
    """Opens the stand-in for whoever is to be drawn."""
    return StandInRaymarcher()


PROGRAM = """
import sys
sys.path[:0] = {path!r}
import stand_ins
from streaming import cli
from streaming.pipeline import gpu_renderer
gpu_renderer.find_cuda_device = lambda: None
open_raymarcher = None
{prepare}
sys.exit(cli.main(sys.argv[1:], open_raymarcher=open_raymarcher))
"""


def program(prepare: str) -> list[str]:
    """Returns the start of a command line: the program in a process of its own, after `prepare` ran."""
    tests = Path(__file__).resolve().parent
    return [sys.executable, "-c", PROGRAM.format(path=[str(tests), str(tests.parent)], prepare=prepare)]


QUICK = "open_raymarcher = stand_ins.open_raymarcher"
