"""What a bad network does to the sound and, above all, to its delay."""

import numpy as np
import pytest
from aiortc.jitterbuffer import JitterBuffer as AiortcJitterBuffer
from aiortc.rtp import RtpPacket
from packet_patterns import TICK_S, jittered, lossy, packets, play, stalled, without

from streaming.webrtc.neteq import MicrophoneStream

SECONDS = 8.0
START_S = 10.0
AT = 160  # the packet that something happens to, in mid word
AT_S = START_S + AT * TICK_S
PATTERNS = {
    "one packet lost": lambda sent: without(sent, AT),
    "three packets lost": lambda sent: without(sent, AT, AT + 1, AT + 2),
    "500 ms lost": lambda sent: without(sent, *range(AT, AT + 25)),
    "500 ms held up": lambda sent: stalled(sent, AT, 0.5),
    "500 ms held up, then twice as fast": lambda sent: stalled(sent, AT, 0.5, spacing_s=0.01),
}


def baseline_s(played):
    delays_s = played.between(AT_S - 1, AT_S - 0.1)
    assert np.ptp(delays_s) < 0.001
    return float(delays_s.mean())


def rough(sound):
    """Returns the largest third difference: a step of 0.02 between samples makes 0.06."""
    return np.abs(np.diff(sound, n=3)).max()


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("phase_s", [0.0, 0.004, 0.013])
def test_the_delay_is_back_within_20_ms_inside_one_second(pattern, phase_s):
    sent = packets(SECONDS)
    hurt = pattern(sent)
    over_s = max(
        [AT_S, *(h.arrives_s for h in hurt if h.arrives_s > TICK_S + sent[h.sequence - 100].arrives_s)]
    )
    played = play(hurt, phase_s=phase_s)
    after_s = played.between(over_s + 1, np.inf)
    assert len(after_s) > 50
    assert np.abs(after_s - baseline_s(played)).max() <= 0.020


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_sound_after_a_loss_is_the_sound_without_loss(pattern):
    """The timestamps do not lie: the sound itself is where it would have been."""
    sent = packets(SECONDS)
    clean, hurt = play(sent), play(pattern(sent))
    last = slice(-2 * 48_000, None)
    assert len(clean.sound) == len(hurt.sound)
    assert np.corrcoef(clean.sound[last], hurt.sound[last])[0, 1] > 0.999


def aiortc_delays(sent):
    """Returns how many seconds of media wait when aiortc's own buffer gives each frame out."""
    buffer = AiortcJitterBuffer(capacity=16, prefetch=4)  # as its receiver makes it for sound
    found = []
    for packet in sent:
        rtp = RtpPacket(sequence_number=packet.sequence, timestamp=packet.timestamp, payload=packet.payload)
        rtp._data = packet.payload
        _, frame = buffer.add(rtp)
        if frame is not None:
            found.append((packet.arrives_s, (packet.timestamp - frame.timestamp) / 48_000))
    return found


def test_one_lost_packet_costs_aiortc_280_ms_for_good_and_us_nothing():
    sent = without(packets(SECONDS), AT)
    theirs = aiortc_delays(sent)
    before_s = {delay_s for at_s, delay_s in theirs if at_s < AT_S}
    after_s = [delay_s for at_s, delay_s in theirs if at_s > AT_S + 1]
    assert before_s == {0.08}
    assert min(after_s) >= 0.28
    assert theirs[-1][1] >= 0.28  # until the end
    played = play(sent)
    ours_s = played.between(AT_S + 1, np.inf) - START_S
    assert ours_s.max() <= 0.04
    assert ours_s.max() - (baseline_s(played) - START_S) <= 0.001


@pytest.mark.parametrize(("share", "most_hidden"), [(0.01, 0.02), (0.05, 0.07), (0.10, 0.13)])
@pytest.mark.parametrize("jitter_s", [0.0, 0.03])
def test_loss_and_jitter_are_survived(share, most_hidden, jitter_s):
    sent = packets(SECONDS)
    stream = MicrophoneStream()
    played = play(lossy(jittered(sent, jitter_s), share), stream=stream)
    clean = play(sent)
    assert np.isfinite(played.sound).all()
    assert rough(played.sound) <= 1.1 * rough(clean.sound)
    assert stream.depth_ms <= 35 + 1000 * jitter_s
    assert stream.packets_lost == pytest.approx(share * len(sent), rel=0.4)
    hidden = played.concealed[played.now_s > START_S + 1].mean()
    assert hidden <= most_hidden
    loudness = np.std(played.samples[-300:]) / np.std(clean.samples[-300:])
    assert 0.85 < loudness < 1.1


def test_jitter_alone_costs_no_sound():
    stream = MicrophoneStream()
    played = play(jittered(packets(SECONDS), 0.03), stream=stream)
    assert stream.packets_lost == 0
    assert played.concealed[played.now_s > START_S + 1].sum() <= 2
    assert np.ptp(played.between(START_S + 2, np.inf)) <= 0.02


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_concealed_losses_make_no_clicks(pattern):
    sent = packets(SECONDS)
    assert rough(play(pattern(sent)).sound) <= 1.1 * rough(play(sent).sound)


def test_a_long_gap_is_filled_for_100_ms_and_silent_after_200():
    played = play(PATTERNS["500 ms lost"](packets(SECONDS)))
    gone_s = AT_S + baseline_s(played) - START_S  # when the first lost packet should be heard
    loud = [
        np.abs(played.samples[(played.now_s >= gone_s + a) & (played.now_s < gone_s + b)]).max()
        for a, b in ((-0.1, 0.0), (0.0, 0.02), (0.2, 0.46))
    ]
    assert loud[1] > 0.2 * loud[0]
    assert loud[2] == 0


def test_a_repaired_packet_is_nearly_the_lost_one():
    sent = packets(SECONDS)
    stream = MicrophoneStream()
    clean, hurt = play(sent), play(without(sent, AT), stream=stream)
    assert (stream.packets_lost, stream.fec_packets, stream.concealed_ms) == (1, 1, 0)
    where = next(i for i, b in enumerate(clean.blocks) if b.arrived_s == sent[AT].arrives_s)
    assert np.corrcoef(clean.samples[where], hurt.samples[where])[0, 1] > 0.9
    assert hurt.blocks[where].arrived_s == sent[AT + 1].arrives_s
    assert not hurt.concealed[where]


@pytest.mark.parametrize("step_s", [0.1, 0.3])
def test_a_route_that_becomes_longer_and_shorter_again_is_followed(step_s):
    sent = packets(14.0)
    moved = [
        p if not 170 <= i < 400 else type(p)(p.sequence, p.timestamp, p.payload, p.arrives_s + step_s)
        for i, p in enumerate(sent)
    ]
    stream = MicrophoneStream()
    played = play(moved, stream=stream)
    on_it = played.between(START_S + 170 * TICK_S + step_s + 0.5, START_S + 400 * TICK_S)
    assert on_it.min() >= START_S + step_s
    assert on_it.max() <= START_S + step_s + 0.1
    back = played.between(START_S + 400 * TICK_S + step_s + 3, np.inf)
    assert np.abs(back - baseline_s(played)).max() <= 0.020
    assert rough(played.sound) <= 1.1 * rough(play(sent).sound)
