"""The native_plugin mount: by itself, and behind LMCache's bridge."""

from __future__ import annotations

import select

import pytest
from daemon import PATIENCE_S, Driver, key, payload
from lmcache.v1.distributed.l2_adapters.native_connector_l2_adapter import (
    NativeConnectorL2Adapter,
    _object_key_to_string,
)
from saltern.lmcache import SalternConnector


@pytest.fixture
def connector(directory):
    connector = SalternConnector(base_path=str(directory / "objects"))
    yield connector
    connector.close()


def drain(connector: SalternConnector, number: int):
    """The completion of one batch; nothing else may be complete."""
    poller = select.poll()
    poller.register(connector.event_fd(), select.POLLIN)
    while True:
        assert poller.poll(PATIENCE_S * 1000), "a batch hangs"
        completions = connector.drain_completions()
        if completions:
            assert [completion[0] for completion in completions] == [number]
            return completions[0][1:]


def names(count: int) -> list[str]:
    return [_object_key_to_string(key(number)) for number in range(count)]


def test_every_method_answers_key_by_key(connector) -> None:
    one, two, three = names(3)
    data = {one: b"1" * 5000, two: b"2" * 4096}
    stored = connector.submit_batch_set(list(data), [memoryview(value) for value in data.values()])
    assert drain(connector, stored) == (True, "", None)
    assert drain(connector, connector.submit_batch_exists([one, three, two])) == (True, "", [True, False, True])
    buffers = [bytearray(5000), bytearray(4096), bytearray(1)]
    ok, error, bools = drain(connector, connector.submit_batch_get([one, two, three], [memoryview(b) for b in buffers]))
    assert (ok, bools) == (False, [True, True, False]) and "no such object" in error
    assert [bytes(buffer) for buffer in buffers] == [data[one], data[two], b"\0"]
    # Nothing that was looked up stays pinned.
    assert drain(connector, connector.submit_batch_delete([one, three])) == (True, "", [True, False])
    assert drain(connector, connector.submit_batch_exists([one, two, three])) == (True, "", [False, True, False])


def test_a_key_twice_in_a_batch_is_safe(connector) -> None:
    one, two = names(2)
    first, second = b"a" * 4096, b"b" * 4096
    stored = connector.submit_batch_set([one, one, two], [memoryview(first), memoryview(second), memoryview(second)])
    assert drain(connector, stored) == (True, "", None)
    buffers = [bytearray(4096) for _ in range(3)]
    loaded = connector.submit_batch_get([one, one, two], [memoryview(buffer) for buffer in buffers])
    assert drain(connector, loaded) == (True, "", [True] * 3)
    assert [bytes(buffer) for buffer in buffers] == [first, first, second]
    ok, _, bools = drain(connector, connector.submit_batch_delete([one, one]))
    assert ok and bools == [True, False]


def test_a_key_that_is_no_key_harms_only_itself(connector) -> None:
    [one] = names(1)
    batch = ["nonsense", one, "a@b"]
    ok, error, bools = drain(connector, connector.submit_batch_set(batch, [memoryview(b"data")] * 3))
    assert not ok and bools is None and "nonsense" in error
    assert drain(connector, connector.submit_batch_exists(batch))[2] == [False, True, False]
    with pytest.raises(ValueError, match="3 keys but 1"):
        connector.submit_batch_get(batch, [memoryview(bytearray(4))])


def test_many_batches_complete_each_once(connector) -> None:
    poller = select.poll()
    poller.register(connector.event_fd(), select.POLLIN)
    data = memoryview(bytes(10_000))
    submitted = {connector.submit_batch_set([name], [data]) for name in names(200)}
    completed: list[int] = []
    while len(completed) < len(submitted):
        assert poller.poll(PATIENCE_S * 1000), "a batch hangs"
        completed += [completion[0] for completion in connector.drain_completions()]
    assert set(completed) == submitted and len(completed) == len(submitted)
    assert connector.drain_completions() == []


def test_after_close_batches_fail(directory) -> None:
    connector = SalternConnector(base_path=str(directory / "objects"))
    [one] = names(1)
    data = [memoryview(bytearray(4))]
    connector.close()
    connector.close()
    ok, error, _ = drain(connector, connector.submit_batch_set([one], data))
    assert not ok and "closed" in error
    assert drain(connector, connector.submit_batch_exists([one]))[2] == [False]


def test_behind_the_bridge(directory, arena) -> None:
    connector = SalternConnector(base_path=str(directory / "objects"))
    adapter = NativeConnectorL2Adapter(connector, max_capacity_gb=1)
    driver = Driver(adapter, arena)
    try:
        keys = driver.store_numbers(range(8), 102_400, salt="s")
        driver.check_numbers(range(8), 102_400, salt="s")
        assert adapter.get_usage().total_bytes_used == 8 * 102_400
        adapter.delete(keys[:4])
        assert driver.lookup(keys).get_indices_list() == [4, 5, 6, 7]
        assert adapter.get_usage().total_bytes_used == 4 * 102_400
        loaded = driver.load([keys[0], keys[5]], [driver.arena.slot(102_400) for _ in range(2)])
        assert loaded.get_indices_list() == [1]
        assert payload(5, 102_400).numel() == 102_400
    finally:
        adapter.close()
