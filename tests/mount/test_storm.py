"""Many threads at once: nothing hangs, and nothing writes into memory that the host has back."""

from __future__ import annotations

import random
import threading
import time

import pytest
import torch
from daemon import Arena, Driver, key, payload, wait_for
from saltern.lmcache import SalternL2Adapter

THREADS = 20
SIZE = 256 << 10
SLOTS = 4


def open_on(directory, arena: Arena) -> SalternL2Adapter:
    params = {"base_path": str(directory / "objects"), "max_capacity_gb": 1}
    return SalternL2Adapter(params, l1_memory_desc=arena.description(True))


def submit_until_closed(adapter, arena: Arena, seed: int, is_closed: threading.Event, submitted: list[int]) -> None:
    chance = random.Random(seed)
    arena.reset()
    slots = [arena.slot(SIZE) for _ in range(SLOTS)]
    while not is_closed.is_set():
        keys = [key(chance.randrange(40)) for _ in range(SLOTS)]
        match chance.randrange(5):
            case 0:
                adapter.submit_store_task(keys, slots)
            case 1:
                adapter.submit_lookup_and_lock_task(keys, {})
                adapter.submit_unlock(keys[:2])
            case 2:
                adapter.submit_load_task(keys, slots)
                # Given up: the daemon unlocks, and takes the memory back.
                adapter.submit_unlock(keys)
            case 3:
                adapter.submit_load_task(keys, slots)
                adapter.pop_completed_store_tasks()
            case 4:
                adapter.delete(keys[:1])
                adapter.get_usage()
        submitted[0] += 1


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_close_in_the_middle_of_a_storm(directory, seed: int) -> None:
    whole = Arena(THREADS * SLOTS * SIZE)
    part = whole.memory.numel() // THREADS
    arenas = []
    for number in range(THREADS):
        arena = Arena(4096)
        arena.memory = whole.memory[number * part : (number + 1) * part]
        arenas.append(arena)
    adapter = open_on(directory, whole)
    driver = Driver(adapter, arenas[0])
    for first in range(0, 40, SLOTS):
        driver.store_numbers(range(first, first + SLOTS), SIZE)
    is_closed = threading.Event()
    counts = [[0] for _ in range(THREADS)]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            submit_until_closed(adapter, arenas[number], seed * 1000 + number, is_closed, counts[number])
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    while sum(count[0] for count in counts) < 400 and not failures:
        time.sleep(0.01)
    adapter.close()
    # The host may free its memory now: whatever changes in it from here on is a write after close.
    is_closed.set()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads), f"a thread hangs, seed {seed}"
    assert not failures, f"seed {seed}: {failures}"
    whole.memory.fill_(0x5A)
    time.sleep(0.3)
    assert bool((whole.memory == 0x5A).all()), f"memory was written after close, seed {seed}"
    # Whatever is on disk is whole.
    again = open_on(directory, whole)
    try:
        listed = again.list_l2_keys(page_size=1000).entries
        assert sum(entry.size_bytes for entry in listed) == again.get_usage().total_bytes_used
        assert all(entry.size_bytes == SIZE for entry in listed)
    finally:
        again.close()


def test_the_memory_of_an_abandoned_load_is_free_when_unlock_returns(open_adapter) -> None:
    """The daemon frees the staging memory of an aborted request right after it has unlocked the request's keys."""
    driver = open_adapter()
    numbers = range(32)
    size = 1 << 20
    driver.store_numbers(numbers, size)
    keys = [key(number) for number in numbers]
    for _ in range(5):
        driver.arena.reset()
        slots = [driver.arena.slot(size) for _ in numbers]
        assert driver.lookup(keys).popcount() == len(keys)
        task = driver.adapter.submit_load_task(keys, slots)
        driver.adapter.submit_unlock(keys)
        driver.arena.memory.fill_(0x77)
        time.sleep(0.05)
        assert bool((driver.arena.memory == 0x77).all()), "the load wrote into memory that was given back"
        # Its result is still there for whoever asks.
        fd = driver.adapter.get_load_event_fd()
        assert wait_for(fd, lambda: driver.adapter.query_load_result(task)).popcount() == len(keys)


def test_parallel_requests_get_the_right_bytes(directory) -> None:
    threads, rounds, each = 8, 20, 4
    whole = Arena(threads * each * SIZE)
    adapter = open_on(directory, whole)
    failures: list[str] = []
    results: dict[int, object] = {}
    lock = threading.Lock()

    def stored(task: int):
        # Who pops gets the results of others too.
        with lock:
            results.update(adapter.pop_completed_store_tasks())
            return results.pop(task, None)

    def until(take):
        end = time.monotonic() + 60
        while (found := take()) is None:
            if time.monotonic() > end:
                raise TimeoutError("a task hangs")
            time.sleep(0.0005)
        return found

    def work(number: int) -> None:
        try:
            arena = Arena(4096)
            arena.memory = whole.memory[number * each * SIZE : (number + 1) * each * SIZE]
            for turn in range(rounds):
                mine = [1000 * number + 10 * turn + at for at in range(each)]
                keys = [key(one, salt=f"t{number}") for one in mine]
                arena.reset()
                task = adapter.submit_store_task(keys, [arena.filled(one, SIZE) for one in mine])
                assert until(lambda: stored(task)).is_successful()
                arena.memory.zero_()
                arena.reset()
                task = adapter.submit_lookup_and_lock_task(keys, {})
                assert until(lambda: adapter.query_lookup_and_lock_result(task)).popcount() == each
                slots = [arena.slot(SIZE) for _ in mine]
                task = adapter.submit_load_task(keys, slots)
                assert until(lambda: adapter.query_load_result(task)).popcount() == each
                adapter.submit_unlock(keys)
                for one, slot in zip(mine, slots):
                    assert torch.equal(slot.raw_data, payload(one, SIZE)), one
                adapter.delete(keys)
        except BaseException as failure:
            failures.append(repr(failure))

    workers = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert not any(worker.is_alive() for worker in workers), "a thread hangs"
    assert not failures, failures
    assert adapter.get_usage().total_bytes_used == 0
    adapter.close()
