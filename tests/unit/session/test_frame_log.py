"""The last ticks and frames, and no more."""

import threading

from streaming.session.frame_log import FrameLog, FrameRecord, TickLog, TickRecord


def tick(number):
    return TickRecord(timestamp=number * 960, arrived_s=number * 0.02, buffered_s=number * 0.02 + 0.04)


def frame(index):
    at_s = index * 0.04
    return FrameRecord(
        index=index,
        rtp=index * 3600,
        sound_timestamp=index * 1920,
        arrived_s=at_s,
        buffered_s=at_s + 0.02,
        windowed_s=at_s + 0.18,
        finished_s=at_s + 0.19,
        encoded_s=at_s + 0.2,
        sent_s=at_s + 0.24,
    )


def test_an_empty_log_knows_nothing():
    assert TickLog().at(0) is None
    assert TickLog().at(-1) is None
    assert FrameLog().after(-1) == []


def test_ticks_are_found_by_their_number():
    log = TickLog()
    for number in range(10):
        log.add(tick(number))
    assert [log.at(number) for number in range(10)] == [tick(number) for number in range(10)]
    assert log.at(10) is None
    assert log.at(-1) is None


def test_old_ticks_are_forgotten_and_the_rest_keeps_its_numbers():
    log = TickLog()
    for number in range(1000):
        log.add(tick(number))
    kept = [number for number in range(1000) if log.at(number) is not None]
    assert kept == list(range(kept[0], 1000))
    assert 100 <= len(kept) < 1000  # of two seconds and more, and bounded
    assert all(log.at(number) == tick(number) for number in kept)
    assert log.at(1000) is None


def test_frames_after_one_are_told_once_and_in_order():
    log = FrameLog()
    for index in (0, 1, 3, 4):  # 2 was left out
        log.add(frame(index))
    assert [record.index for record in log.after(-1)] == [0, 1, 3, 4]
    assert [record.index for record in log.after(1)] == [3, 4]
    assert [record.index for record in log.after(2)] == [3, 4]
    assert log.after(4) == []
    assert log.after(1)[0] == frame(3)


def test_frames_are_kept_for_a_few_tellings_only():
    log = FrameLog()
    for index in range(500):
        log.add(frame(index))
    told = [record.index for record in log.after(-1)]
    assert told == list(range(told[0], 500))
    assert 5 <= len(told) <= 100


def test_one_thread_writes_while_another_reads():
    ticks, frames, wrong = TickLog(), FrameLog(), []
    done = threading.Event()

    def read():
        while not done.is_set():
            told = [record.index for record in frames.after(-1)]
            if told != sorted(told):
                wrong.append(told)
            for number in range(0, 3000, 300):
                found = ticks.at(number)
                if found is not None and found != tick(number):
                    wrong.append(number)

    reader = threading.Thread(target=read, name="reader")
    reader.start()
    for number in range(3000):
        ticks.add(tick(number))
        frames.add(frame(number))
    done.set()
    reader.join(5)
    assert not reader.is_alive()
    assert wrong == []
