"""Small stand-ins for what surrounds the parts of a session: senders, an encoder, a speaker, a schedule."""

from __future__ import annotations

import threading
from types import SimpleNamespace

from streaming.pipeline.render_size import pixels_of_a_picture
from streaming.webrtc.media_schedule import MediaSchedule

START_S, START_UNIX_S = 1000.0, 1.7e9
LOOKAHEAD_FRAMES = 4
VIDEO_STEP, SOUND_STEP = 3600, 960  # RTP: 40 ms at 90 kHz, 20 ms at 48 kHz


class StandInSender:
    """Keeps what it is to send."""

    def __init__(self, *, connected=False):
        self.connected = connected
        self.round_trip_s = None
        self.pushed = []

    def push(self, payloads, timestamp, duration_ms, level_db=None):
        self.pushed.append(
            SimpleNamespace(
                payloads=payloads, timestamp=timestamp, duration_ms=duration_ms, level_db=level_db
            )
        )

    def wire_timestamp(self, timestamp):
        return timestamp + 7


class StandInEncoder:
    """Keeps the numbers of what it encoded, and what it was asked for."""

    def __init__(self, **opened):
        self.opened = opened
        self.keyframes = 0
        self.limits = []
        self.payloads = [b"picture"]
        self.numbers = []
        self.thread = threading.current_thread().name

    def encode(self, picture, number):
        self.numbers.append(number)
        return self.payloads

    def want_keyframe(self):
        self.keyframes += 1

    def limit_bitrate(self, bitrate):
        self.limits.append(bitrate)


def make_schedule(playout_delay_ticks=4):
    return MediaSchedule(
        start_s=START_S,
        start_unix_s=START_UNIX_S,
        lookahead_frames=LOOKAHEAD_FRAMES,
        playout_delay_ticks=playout_delay_ticks,
    )


def make_loaded_speaker(**changes):
    """Returns what the parts of a session ask of a `LoadedSpeaker`."""
    speaker = SimpleNamespace(image_size_px=128, lookahead_frames=LOOKAHEAD_FRAMES)
    made = {
        "name": "Tiny",
        "speaker": speaker,
        "sizes_px": (128, 96),
        "start_px": 128,
        "on_gpu": False,
        "frame_latency_ms": 10.0,
        "pixels": pixels_of_a_picture,
        "renderers": lambda: lambda size_px: SimpleNamespace(render_px=size_px),
    }
    return SimpleNamespace(**{**made, **changes})
