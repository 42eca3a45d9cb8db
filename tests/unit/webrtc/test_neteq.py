import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packet_patterns import TICK_S, drifting, packets, play, tone_payloads

from streaming.webrtc.jitter_buffer import BOUND_S
from streaming.webrtc.neteq import MicrophoneStream
from streaming.webrtc.opus import OpusDecoder, OpusError

START_S = 10.0  # packet i arrives at START_S + i * TICK_S


def moved(sent, by_s, *, clock_goes_on=True, restart=False):
    """Returns the packets sent later, as after a pause."""
    jump = 1_234_567_890 if restart else round(by_s * 48_000) if clock_goes_on else 0
    return tuple(
        replace(
            p,
            arrives_s=p.arrives_s + by_s,
            timestamp=(p.timestamp + jump) % 2**32,
            sequence=(p.sequence + (20_000 if restart else 0)) % 2**16,
        )
        for p in sent
    )


def test_before_the_first_packet_there_is_silence():
    stream = MicrophoneStream()
    for i in range(5):
        block = stream.read(i * TICK_S)
        assert block.samples.shape == (960,)
        assert block.samples.dtype == np.float32
        assert not block.samples.any()
        assert (block.timestamp, block.arrived_s, block.concealed) == (None, None, True)
    assert stream.concealed_ms == 0


def test_a_clean_stream_is_what_the_decoder_says():
    stream, decoder = MicrophoneStream(), OpusDecoder()
    sent = packets(4.0)
    played = play(sent, stream=stream)
    expected = np.stack([decoder.decode(packet.payload) for packet in sent])
    steady = [i for i, block in enumerate(played.blocks) if played.now_s[i] > START_S + 2]
    for i in steady:
        block = played.blocks[i]
        number = (block.timestamp - sent[0].timestamp) // 960
        np.testing.assert_array_equal(block.samples, expected[number])
        assert block.arrived_s == sent[number].arrives_s
        assert not block.concealed
    assert len(steady) > 90
    assert (stream.packets_lost, stream.packets_late, stream.fec_packets) == (0, 0, 0)
    assert stream.concealed_ms == 0


@pytest.mark.parametrize("phase_s", [0.0, 0.004, 0.010, 0.0199])
def test_the_delay_settles_within_a_tick_of_the_target(phase_s):
    stream = MicrophoneStream()
    played = play(packets(4.0), stream=stream, phase_s=phase_s)
    assert stream.target_ms == 10
    assert 10 <= stream.depth_ms <= 10 + 20 + 5
    # A cut costs no sound: what comes out is the stream, shorter by what was left out.
    delays_s = played.between(START_S + 1, np.inf) - START_S
    assert np.ptp(delays_s) <= 0.02 + 1e-6
    assert stream.shortened_ms <= 40
    assert stream.lengthened_ms == 0


def test_numbers_wrap_unheard():
    sent = packets(4.0, sequence=65_450, timestamp=2**32 - 2 * 48_000)
    played, plain = play(sent), play(packets(4.0))
    np.testing.assert_array_equal(played.sound, plain.sound)
    stamps = [block.timestamp for block in played.blocks if block.timestamp is not None]
    assert (np.diff(stamps) > 0).all()
    assert stamps[-1] > 2**32


def test_reordered_packets_are_waited_for_once_they_are_usual():
    stream = MicrophoneStream()
    sent = [
        replace(p, arrives_s=p.arrives_s + (0.021 if i % 8 == 0 else 0)) for i, p in enumerate(packets(6.0))
    ]
    played = play(sent, stream=stream)
    assert 20 < stream.target_ms < 30
    assert stream.packets_lost == 0
    assert not played.concealed[played.now_s > START_S + 3].any()


def test_duplicates_are_not_heard():
    sent = packets(3.0)
    again = [replace(p, arrives_s=p.arrives_s + d) for d in (0.0, 0.015, 0.2) for p in sent[::3]]
    stream = MicrophoneStream()
    end_s = sent[-1].arrives_s
    played = play([*sent, *again], stream=stream, until_s=end_s)
    np.testing.assert_array_equal(played.sound, play(sent, until_s=end_s).sound)
    assert (stream.packets_lost, stream.packets_late) == (0, 0)


@pytest.mark.parametrize("kind", ["muted", "its clock stopped", "begun anew"])
def test_a_pause_of_seconds_ends_in_the_delay_it_began_with(kind):
    sent = packets(6.0)
    after = moved(sent[150:], 5.0, clock_goes_on=kind == "muted", restart=kind == "begun anew")
    stream = MicrophoneStream()
    before_ms = 0.0
    for part in (sent[:150], after):
        played = play(part, stream=stream, first_timestamp=part[0].timestamp)
        if part is not after:
            before_ms = stream.depth_ms
            play_silence(stream, played.now_s[-1] + TICK_S, after[0].arrives_s - 0.2)
    assert stream.depth_ms == pytest.approx(before_ms, abs=1)
    assert stream.packets_lost == stream.packets_late == 0
    here = played.now_s > after[0].arrives_s + 0.1
    assert not played.concealed[here].any()
    assert np.abs(played.samples[here]).max() > 0.1


def play_silence(stream, begin_s, end_s):
    for now_s in np.arange(begin_s, end_s, TICK_S):
        block = stream.read(float(now_s))
        if now_s > begin_s + 0.3:
            assert not block.samples.any()
        if now_s > begin_s + 1.2:
            assert block.timestamp is None


def test_a_sender_that_begins_anew_in_mid_word_is_played_on():
    sent = packets(4.0)
    stream = MicrophoneStream()
    played = play([*sent[:100], *moved(sent[100:], 0.0, restart=True)], stream=stream)
    assert stream.packets_lost == 0
    assert stream.concealed_ms < 40
    assert rough(played.sound) <= 1.1 * rough(play(sent).sound)


def test_discontinuous_transmission_is_no_loss():
    """Of a pause only every twentieth packet is sent; sequence numbers have no gap, timestamps have."""
    kept = [p for i, p in enumerate(packets(8.0)) if not (100 <= i < 300 and i % 20)]
    sent = [replace(p, sequence=(100 + i) % 2**16) for i, p in enumerate(kept)]
    stream = MicrophoneStream()
    played = play(sent, stream=stream)
    assert (stream.packets_lost, stream.packets_late, stream.concealed_ms) == (0, 0, 0)
    assert np.ptp(played.between(START_S + 1, np.inf)) < 1e-6
    assert not played.concealed[played.now_s > START_S + 6.1].any()


@pytest.mark.parametrize("parts_per_million", [200, -200, 3000, -3000])
def test_clocks_that_drift_do_not_make_the_delay_grow(parts_per_million):
    """200 ppm are what two machines differ by at most; 3000 show ten minutes of it in forty seconds."""
    stream = MicrophoneStream()
    played = play(drifting(packets(40.0), parts_per_million), stream=stream)
    settled_ms = played.depth_ms[played.now_s > START_S + 1]
    assert 5 <= settled_ms.min() <= settled_ms.max() <= 10 + 20 + 5 + 7
    assert stream.packets_late <= 3
    assert stream.concealed_ms <= 100


def test_a_busy_machine_reads_in_bunches():
    """The ticks are read five at a time, each by the time that it was due."""
    stream = MicrophoneStream()
    sent = packets(3.0)
    at, blocks = 0, []
    for tick in range(150):
        if tick % 5 == 4:
            real_s = START_S + tick * TICK_S + 0.004
            while at < len(sent) and sent[at].arrives_s <= real_s:
                p = sent[at]
                stream.put(
                    sequence=p.sequence, timestamp=p.timestamp, payload=p.payload, arrived_s=p.arrives_s
                )
                at += 1
            blocks += [stream.read(real_s - late * TICK_S) for late in (4, 3, 2, 1, 0)]
    assert stream.depth_ms < 45
    assert stream.packets_late == 0
    assert not any(block.concealed for block in blocks[10:])


@pytest.mark.parametrize("samples", [480, 1920])
def test_packets_of_another_length_are_played_without_holes(samples):
    stream = MicrophoneStream()
    played = play(packets_of(samples), stream=stream)
    steady = (played.now_s > START_S + 1) & (played.now_s < START_S + 3.8)
    assert not played.concealed[steady].any()
    assert stream.packets_late == 0
    assert stream.depth_ms < 10 + 20 + 5 + 20  # a long packet's beginning has waited for its end already


def packets_of(samples):
    start = packets(4.0)[0]
    return [
        replace(
            start,
            sequence=i,
            timestamp=start.timestamp + i * samples,
            payload=payload,
            arrives_s=START_S + i * samples / 48_000,
        )
        for i, payload in enumerate(tone_payloads(samples, 4 * 48_000 // samples))
    ]


class RefusingDecoder(OpusDecoder):
    def decode(self, payload):
        if payload == b"\x08refused":
            raise OpusError("opus: refused")
        return super().decode(payload)


@pytest.mark.parametrize("payload", [b"", b"\xfb\x00", b"\x08refused"])
def test_a_damaged_packet_counts_as_lost(payload):
    sent = list(packets(3.0))
    sent[75] = replace(sent[75], payload=payload)
    stream = MicrophoneStream(decoder=RefusingDecoder())
    played = play(sent, stream=stream)
    assert stream.packets_lost == 1
    assert stream.concealed_ms + 20 * stream.fec_packets == 20
    assert rough(played.sound) <= 1.1 * rough(play(packets(3.0)).sound)


def rough(sound):
    """Returns the largest third difference: a step of 0.02 between samples makes 0.06."""
    return np.abs(np.diff(sound, n=3)).max()


def test_a_closed_player_is_silent_and_takes_nothing():
    stream = MicrophoneStream()
    play(packets(3.0)[:50], stream=stream)
    stream.close()
    stream.close()
    sent = packets(3.0)[50]
    stream.put(
        sequence=sent.sequence, timestamp=sent.timestamp, payload=sent.payload, arrived_s=sent.arrives_s
    )
    block = stream.read(sent.arrives_s + TICK_S)
    assert (block.samples.any(), block.timestamp, block.concealed) == (False, None, True)


def test_a_player_closes_unused():
    stream = MicrophoneStream()
    stream.close()
    assert not stream.read(0.0).samples.any()


def test_one_thread_puts_while_another_reads():
    stream = MicrophoneStream()
    sent = packets(4.0) * 3

    def put():
        for packet in sent:
            stream.put(
                sequence=packet.sequence,
                timestamp=packet.timestamp,
                payload=packet.payload,
                arrived_s=packet.arrives_s,
            )

    thread = threading.Thread(target=put, name="puts")
    thread.start()
    blocks = [stream.read(START_S + i * TICK_S) for i in range(300)]
    thread.join(10)
    assert not thread.is_alive()
    assert all(block.samples.shape == (960,) and np.isfinite(block.samples).all() for block in blocks)


events = st.one_of(
    st.tuples(
        st.just("put"),
        st.one_of(st.integers(0, 80), st.integers(0, 2**16 - 1)),
        st.one_of(st.integers(0, 80).map(lambda i: 960 * i), st.integers(0, 2**32 - 1)),
        st.one_of(st.binary(max_size=60), st.integers(0, 99)),
    ),
    st.tuples(st.just("read"), st.integers(1, 5), st.floats(-0.1, 0.5), st.none()),
)


@settings(max_examples=60, deadline=None)  # a decoder is made for each
@given(st.lists(events, max_size=80))
def test_whatever_comes_a_block_goes_out(found):
    stream = MicrophoneStream()
    good = packets(2.0)
    now_s = 0.0
    for kind, first, second, payload in found:
        if kind == "put":
            stream.put(
                sequence=first,
                timestamp=second,
                payload=payload if isinstance(payload, bytes) else good[payload].payload,
                arrived_s=now_s,
            )
            continue
        now_s += second
        for _ in range(first):
            block = stream.read(now_s)
            assert block.samples.shape == (960,)
            assert np.isfinite(block.samples).all()
            assert np.abs(block.samples).max() <= 1
            assert (block.arrived_s is not None) or block.concealed
            now_s += TICK_S
    assert sum(p.samples for p in stream._buffer._packets) <= BOUND_S * 48_000
    assert len(stream._waiting) <= 4 * 2880
