import threading

import pytest

from streaming.pipeline.queues import Aborted, BoundedQueue, Ended, Overflow


def queue_of_ms(bound_ms, overflow=Overflow.BLOCK):
    return BoundedQueue(name="test", bound_ms=bound_ms, overflow=overflow, duration_ms=float)


def test_items_come_out_in_order_and_then_it_ends():
    queue = queue_of_ms(1000)
    for item in (10, 20, 30):
        queue.put(item)
    queue.end()
    assert [queue.get() for _ in range(3)] == [10, 20, 30]
    with pytest.raises(Ended):
        queue.get()


def test_a_live_queue_drops_the_oldest_and_counts_it():
    queue = queue_of_ms(100, Overflow.DROP_OLDEST)
    for item in (40, 41, 42, 43):
        queue.put(item)
    assert queue.dropped == 2
    assert queue.waiting_ms <= 100
    assert [queue.get(), queue.get()] == [42, 43]


def test_a_files_queue_waits_for_room():
    queue = queue_of_ms(100)
    queue.put(60)
    passed = threading.Event()

    def produce():
        queue.put(50)
        passed.set()

    producer = threading.Thread(target=produce)
    producer.start()
    assert not passed.is_set()
    assert queue.waiting_ms == 60
    assert queue.get() == 60
    assert queue.get(timeout_s=5) == 50
    producer.join(5)
    assert passed.is_set()
    assert queue.dropped == 0


def test_an_item_longer_than_the_bound_still_passes():
    queue = queue_of_ms(10)
    queue.put(500)
    assert queue.get() == 500


def test_abort_wakes_who_waits_to_put_and_who_waits_to_get():
    full, empty = queue_of_ms(10), queue_of_ms(10)
    full.put(10)
    woken = []

    def wait_on(call):
        try:
            call()
        except Aborted:
            woken.append(call)

    threads = [threading.Thread(target=wait_on, args=(call,)) for call in (lambda: full.put(10), empty.get)]
    for thread in threads:
        thread.start()
    full.abort()
    empty.abort()
    for thread in threads:
        thread.join(5)
    assert len(woken) == 2
    with pytest.raises(Aborted):
        full.put(1)


def test_get_gives_up_after_its_time():
    with pytest.raises(TimeoutError, match="test"):
        queue_of_ms(10).get(timeout_s=0)


def test_clear_empties_the_queue_and_leaves_it_in_use():
    queue = queue_of_ms(100)
    queue.put(90)
    queue.clear()
    queue.put(80)
    assert queue.waiting_ms == 80
    assert queue.get() == 80


def test_put_after_the_end_is_a_fault():
    queue = queue_of_ms(100)
    queue.end()
    with pytest.raises(RuntimeError, match="after the end"):
        queue.put(1)
