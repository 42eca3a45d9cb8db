"""Media clock of a live stream: deadlines of ticks, sound and frames, and the NTP time of sender reports."""

from __future__ import annotations

from dataclasses import dataclass

from models.time_base import FRAME_RATE_HZ, FRAME_SAMPLES, SAMPLE_RATE_HZ

TICK_S = 0.02
TICK_SAMPLES = SAMPLE_RATE_HZ // 50  # 320: what one tick takes from the microphone, at 16 kHz
TICKS_PER_FRAME = FRAME_SAMPLES // TICK_SAMPLES
SOUND_RATE_HZ = 48_000  # RTP clock of Opus, RFC 7587
VIDEO_CLOCK_HZ = 90_000  # RTP clock of video, RFC 3551
NTP_EPOCH_S = 2_208_988_800  # from 1900, where NTP counts from, to 1970
# A receiver's jitter buffer delays sound more than pictures of playout-delay 0 (Chromium, measured on one
# machine: by 24 ms and more). Sound that leaves a little earlier is in sync with its frame.
SOUND_LEAD_TICKS = 2
SPARE_MS = 6.0  # by which packets come before their tick, beyond the target delay
_SLEW_GAIN = 1e-3  # a tick: settles within half a minute
_MAX_SLEW_S = 20e-6  # a tick: 0.1 %, ten times what sound cards are off
MIN_PLAYOUT_DELAY_TICKS, MAX_PLAYOUT_DELAY_TICKS = 2, 8


@dataclass(kw_only=True)
class MediaSchedule:
    """Maps media time to the machine's monotonic clock and to wall time.

    A change of `playout_delay_ticks` moves sound, pictures and reports alike; `slew` moves the ticks as well.

    Tick k takes the samples [320 k, 320 (k + 1)) from the microphone. Frame i can be drawn once its
    look-ahead was taken; it is due `playout_delay_ticks` later, and the sound of its samples at about that
    time.
    """

    start_s: float  # monotonic clock at tick 0
    start_unix_s: float  # wall time at the same moment
    lookahead_frames: int
    playout_delay_ticks: int  # for networks, raymarcher and encoder; one thread may change it

    def slew(self, by_s: float) -> None:
        """Slews all deadlines to come, imperceptibly; the wall time of a moment stays."""
        self.start_s += by_s
        self.start_unix_s += by_s

    @property
    def delay_ticks(self) -> int:
        """Ticks from the one that takes sound to the one at which the frame that begins with it is due."""
        return TICKS_PER_FRAME * (1 + self.lookahead_frames) - 1 + self.playout_delay_ticks

    @property
    def sound_delay_ticks(self) -> int:
        """Ticks from the one that takes sound to the one at which it is sent."""
        return self.delay_ticks - SOUND_LEAD_TICKS

    @property
    def delay_ms(self) -> float:
        """The same from a frame's first sample, which came in up to one tick before it was taken."""
        return self.delay_ticks * TICK_S * 1000

    def tick_s(self, tick: int) -> float:
        """Returns when a tick is due, on the monotonic clock."""
        return self.start_s + tick * TICK_S

    def frame_due_s(self, frame: int) -> float:
        """Returns when a frame is due to leave, on the monotonic clock."""
        return self.tick_s(TICKS_PER_FRAME * frame + self.delay_ticks)

    def unix_s(self, monotonic_s: float) -> float:
        """Returns the wall time of a moment of the monotonic clock."""
        return self.start_unix_s + monotonic_s - self.start_s

    def ntp_at(self, media_s: float) -> int:
        """Returns the 64-bit NTP timestamp of sender reports: when media of this time is due.

        RFC 3550, 6.4.1: the receiver aligns streams by it, so it must be media time, not sending time.
        """
        seconds = self.unix_s(self.tick_s(self.delay_ticks)) + media_s + NTP_EPOCH_S
        whole = int(seconds)
        return (whole << 32) | int((seconds - whole) * (1 << 32))


def slew_towards(spare_ms: float) -> float:
    """Returns the slew in seconds after a tick whose packet came `spare_ms` before the target delay needs it.

    The microphone's clock drifts against this machine's. Without slew the delay of packets would grow or
    shrink until a whole tick has to be removed or added.
    """
    wanted_s = (SPARE_MS - spare_ms) / 1000 * _SLEW_GAIN
    return min(max(wanted_s, -_MAX_SLEW_S), _MAX_SLEW_S)


def video_timestamp(frame: int) -> int:
    """Returns a frame's RTP timestamp before the random offset, unwrapped."""
    return frame * (VIDEO_CLOCK_HZ // FRAME_RATE_HZ)
