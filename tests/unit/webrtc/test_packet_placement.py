"""Senders whose timestamps do not count samples, beside those that pause."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from packet_patterns import TICK_S, jittered, lossy, packets, play, stalled, without

from streaming.webrtc.neteq import MicrophoneStream

START_S = 10.0
LOGGER = "streaming.webrtc.packet_placement"


def restamped(sent, step, *, first=48_000):
    """Returns the packets with timestamps `step(i)` apart."""
    stamps = first + np.concatenate([[0], np.cumsum([step(i) for i in range(len(sent) - 1)])])
    return tuple(replace(p, timestamp=int(t) % 2**32) for p, t in zip(sent, stamps, strict=True))


def random_step(i):
    return int(np.random.default_rng(i).integers(-(2**31), 2**31))


def pausing(sent, *, ticks_per_packet=960):
    """Returns the packets of 2 to 6 s less those that a pause of speech leaves out, numbered anew."""
    stamped = restamped(sent, lambda i: ticks_per_packet)
    kept = [p for i, p in enumerate(stamped) if not (100 <= i < 300 and i % 20)]
    return tuple(replace(p, sequence=(100 + i) % 2**16) for i, p in enumerate(kept))


WRONG_STEPS = {
    "16 kHz": lambda i: 320,
    "8 kHz": lambda i: 160,
    "24 kHz": lambda i: 480,
    "44.1 kHz": lambda i: 882,
    "96 kHz": lambda i: 1920,
    "milliseconds": lambda i: 20,
    "microseconds": lambda i: 20_000,
    "packets": lambda i: 1,
    "constant": lambda i: 0,
    "backwards": lambda i: -960,
    "random": random_step,
}


@pytest.mark.parametrize("step", WRONG_STEPS.values(), ids=WRONG_STEPS)
def test_every_packet_is_heard_in_its_place_and_the_log_says_it_once(step, caplog):
    sent = packets(6.0)
    stream = MicrophoneStream()
    with caplog.at_level(logging.WARNING, LOGGER):
        heard = play(restamped(sent, step), stream=stream)
    plain = play(sent)
    late = slice(-3 * 48_000, None)
    assert np.corrcoef(heard.sound[late], plain.sound[late])[0, 1] > 0.999
    assert stream.packets_lost == 0
    assert stream.packets_late <= 6  # until it is learnt, a step may look like a pause
    assert stream.concealed_ms <= 100
    assert stream.depth_ms <= 35
    assert len([r for r in caplog.records if r.name == LOGGER]) == 1


@pytest.mark.parametrize("name", ["16 kHz", "96 kHz", "constant", "random"])
@pytest.mark.parametrize("network", ["lost", "jitter", "reordered", "held up", "wrapped"])
def test_packets_of_any_length_bear_what_a_network_does_to_packets_of_20_ms(name, network):
    sent = packets(8.0)
    if network == "wrapped":
        sent = tuple(replace(p, sequence=(p.sequence + 65_300) % 2**16) for p in sent)

    def through(packets_sent):
        if network == "lost":
            return lossy(packets_sent, 0.05)
        if network == "jitter":
            return jittered(packets_sent, 0.03)
        if network == "held up":
            return stalled(packets_sent, 160, 0.5)
        if network == "reordered":
            return [
                replace(p, arrives_s=p.arrives_s + (0.021 if i % 8 == 0 else 0))
                for i, p in enumerate(packets_sent)
            ]
        return packets_sent

    first = 2**32 - 9_000 if network == "wrapped" else 48_000
    streams = MicrophoneStream(), MicrophoneStream()
    heard = play(through(restamped(sent, WRONG_STEPS[name], first=first)), stream=streams[0])
    plain = play(through(sent), stream=streams[1])
    late = slice(-2 * 48_000, None)
    assert np.corrcoef(heard.sound[late], plain.sound[late])[0, 1] > 0.99
    assert streams[0].packets_lost == streams[1].packets_lost
    assert streams[0].packets_late <= streams[1].packets_late + 2
    assert streams[0].concealed_ms <= streams[1].concealed_ms + 60


@pytest.mark.parametrize("steps", [(960, 320), (320, 960), (320, 1920), (1920, 160)])
def test_a_sender_may_change_its_clock_on_the_way(steps):
    sent = packets(8.0)
    stream = MicrophoneStream()
    heard = play(restamped(sent, lambda i: steps[i >= 150]), stream=stream)
    plain = play(sent)
    late = slice(-2 * 48_000, None)
    assert np.corrcoef(heard.sound[late], plain.sound[late])[0, 1] > 0.999
    assert stream.packets_lost == 0
    assert stream.depth_ms <= 35


@pytest.mark.parametrize("ticks", [960, 320, 1920])
def test_pauses_are_where_they_were_at_every_clock(ticks):
    sent = packets(8.0)
    stream = MicrophoneStream()
    heard = play(pausing(sent, ticks_per_packet=ticks), stream=stream)
    plain = play(pausing(sent))
    late = slice(-48_000, None)
    assert np.corrcoef(heard.sound[late], plain.sound[late])[0, 1] > 0.999
    assert (stream.packets_lost, stream.packets_late, stream.concealed_ms) == (0, 0, 0)


def test_pauses_say_nothing_in_the_log(caplog):
    with caplog.at_level(logging.WARNING, LOGGER):
        play(pausing(packets(8.0)))
        play(stalled(pausing(packets(8.0)), 103, 0.5))
    assert not [r for r in caplog.records if r.name == LOGGER]


def test_a_packet_lost_after_a_pause_is_concealed_and_the_pause_is_not():
    sent = pausing(packets(8.0))
    resumed = next(i for i, p in enumerate(sent) if p.timestamp >= 48_000 + 300 * 960)
    stream = MicrophoneStream()
    play(without(sent, resumed + 20), stream=stream)
    assert stream.packets_lost == 1
    assert stream.concealed_ms + 20 * stream.fec_packets == 20


@pytest.mark.parametrize("off", [1, 3, -3, 40, -40])
def test_a_few_samples_more_or_less_are_joined(off, caplog):
    sent = packets(6.0)
    stream = MicrophoneStream()
    with caplog.at_level(logging.WARNING, LOGGER):
        heard = play(restamped(sent, lambda i: 960 + (off if i % 5 == 0 else 0)), stream=stream)
    np.testing.assert_array_equal(heard.sound, play(sent).sound)
    assert (stream.packets_lost, stream.packets_late, stream.concealed_ms) == (0, 0, 0)
    assert not [r for r in caplog.records if r.name == LOGGER]


def test_a_few_samples_beside_a_lost_packet_do_not_hinder_its_repair():
    sent = restamped(packets(6.0), lambda i: 963)
    stream = MicrophoneStream()
    play(without(sent, 160), stream=stream)
    assert (stream.packets_lost, stream.fec_packets, stream.concealed_ms) == (1, 1, 0)


def test_timestamps_that_tremble_by_milliseconds_are_joined():
    sent = packets(6.0)
    tremble = np.random.default_rng(0).integers(-400, 400, len(sent))
    shaken = tuple(replace(p, timestamp=p.timestamp + int(t)) for p, t in zip(sent, tremble, strict=True))
    stream = MicrophoneStream()
    heard = play(shaken, stream=stream)
    steady = slice(-3 * 48_000, None)
    assert np.corrcoef(heard.sound[steady], play(sent).sound[steady])[0, 1] > 0.999
    assert stream.concealed_ms == 0


def test_a_clock_that_jumps_once_is_no_pause():
    sent = packets(6.0)
    stream = MicrophoneStream()
    heard = play(restamped(sent, lambda i: 1_234_567 if i == 150 else 960), stream=stream)
    np.testing.assert_array_equal(heard.sound, play(sent).sound)
    assert stream.concealed_ms == 0


def test_a_sender_that_begins_anew_is_learnt_anew():
    first, second = packets(4.0), packets(4.0)
    again = [
        replace(p, sequence=p.sequence + 30_000, arrives_s=p.arrives_s + 4.0)
        for p in restamped(second, lambda i: 320, first=2**31)
    ]
    stream = MicrophoneStream()
    heard = play([*restamped(first, lambda i: 480), *again], stream=stream)
    assert stream.packets_lost == stream.packets_late == 0
    assert stream.concealed_ms < 40
    assert np.abs(heard.samples[heard.now_s > START_S + 4 + 5 * TICK_S]).max() > 0.1
