"""The daemon's own controllers over our adapter: store, prefetch and eviction do their work."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Callable

import pytest
import torch
from daemon import ALIGN, key, payload
from lmcache.v1.distributed.api import (
    FULL_ATTENTION_WINDOW_CHUNKS,
    GroupedObjectKeys,
    MemoryLayoutDesc,
    ObjectKey,
    PrefetchTaskSpec,
)
from lmcache.v1.distributed.config import EvictionConfig, L1ManagerConfig, L1MemoryManagerConfig, StorageManagerConfig
from lmcache.v1.distributed.l2_adapters.config import parse_args_to_l2_adapters_config
from lmcache.v1.distributed.storage_manager import StorageManager

SIZE = 64 << 10
LAYOUT = MemoryLayoutDesc([torch.Size([SIZE])], [torch.uint8])


class Manager:
    """A storage manager with our plugin as its only L2 adapter."""

    def __init__(self, path: Path, *, capacity_objects: int, eviction: dict[str, object]) -> None:
        spec = {
            "type": "plugin",
            "module_path": "saltern.lmcache",
            "class_name": "SalternL2Adapter",
            "adapter_params": {"base_path": str(path), "max_capacity_gb": capacity_objects * SIZE / 1024**3},
            "eviction": eviction,
        }

        class Arguments:
            l2_adapter = [json.dumps(spec)]

        memory = L1MemoryManagerConfig(size_in_bytes=32 << 20, use_lazy=False, align_bytes=ALIGN, shm_name="")
        config = StorageManagerConfig(
            l1_manager_config=L1ManagerConfig(memory),
            eviction_config=EvictionConfig("LRU"),
            l2_adapter_config=parse_args_to_l2_adapters_config(Arguments()),
        )
        self.manager = StorageManager(config)
        [(_, self.adapter)] = self.manager.l2_adapters()

    def close(self) -> None:
        if self.manager is not None:
            self.manager.close()
            self.manager = None

    def write(self, keys: list[ObjectKey], numbers: list[int]) -> None:
        slots = self.manager.reserve_write(keys, LAYOUT)
        assert len(slots) == len(keys)
        for one, number in zip(keys, numbers):
            slots[one].tensor.copy_(payload(number, SIZE))
        self.manager.finish_write(keys)

    def forget_l1(self) -> None:
        self.manager.clear(force=True)

    def prefetch(self, keys: list[ObjectKey]):
        row = GroupedObjectKeys(keys, 0, LAYOUT, FULL_ATTENTION_WINDOW_CHUNKS)
        handle = self.manager.submit_prefetch_task(PrefetchTaskSpec([row]))
        return eventually(lambda: self.manager.query_prefetch_status(handle))

    def check(self, keys: list[ObjectKey], numbers: list[int]) -> None:
        with self.manager.read_prefetched_results(keys) as objects:
            assert objects is not None
            for number, one in zip(numbers, objects):
                assert torch.equal(one.tensor.view(torch.uint8).flatten(), payload(number, SIZE))
        self.manager.finish_read_prefetched(keys)

    def used(self) -> int:
        return self.adapter.get_usage().total_bytes_used


def eventually(ask: Callable[[], object]) -> object:
    end = time.monotonic() + 30
    while not (answer := ask()):
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.02)
    return answer


@pytest.fixture
def open_manager(directory):
    opened = []

    def opener(**options) -> Manager:
        manager = Manager(directory / "objects", **options)
        opened.append(manager)
        return manager

    yield opener
    for manager in opened:
        manager.close()


LRU = {"eviction_policy": "LRU", "trigger_watermark": 0.8, "eviction_ratio": 0.5}


def test_stored_forgotten_and_prefetched_back(open_manager) -> None:
    manager = open_manager(capacity_objects=1000, eviction=LRU)
    numbers = list(range(32))
    keys = [key(number, salt="tenant") for number in numbers]
    manager.write(keys, numbers)
    eventually(lambda: manager.used() == 32 * SIZE)
    manager.forget_l1()
    result = manager.prefetch([*keys, key(99)])
    assert [bitmap.popcount() for bitmap in result.l2_hit_cells] == [32]
    assert [bitmap.popcount() for bitmap in result.l1_hit_cells] == [0]
    manager.check(keys, numbers)
    assert manager.adapter.report_status()["shards"][0]["fixed_buffers"] in ("cloned", "own")
    assert manager.adapter.report_status()["counters"]["bounced_bytes"] == 0
    assert manager.manager.report_status()["is_healthy"] is True


def test_evicted_at_the_watermark_oldest_first_and_pinned_kept(open_manager) -> None:
    manager = open_manager(capacity_objects=20, eviction=LRU)
    first = list(range(8))
    pinned = [key(0), key(1)]
    manager.write([key(number) for number in first], first)
    eventually(lambda: manager.used() == 8 * SIZE)
    task = manager.adapter.submit_lookup_and_lock_task(pinned, {})
    assert eventually(lambda: manager.adapter.query_lookup_and_lock_result(task)).popcount() == 2
    more = list(range(8, 17))
    manager.write([key(number) for number in more], more)
    eventually(lambda: manager.adapter.report_status()["counters"]["deletes"] > 0)
    eventually(lambda: manager.used() < 0.8 * 20 * SIZE)
    present = {entry.key.to_object_key() for entry in manager.adapter.list_l2_keys(page_size=100).entries}
    assert set(pinned) <= present, "what is pinned stays"
    assert key(2) not in present and key(16) in present, "the oldest go first"
    assert manager.adapter.report_status()["counters"]["deletes_refused"] > 0
    # The eviction thread lives on, and can have what is not pinned any more.
    manager.adapter.submit_unlock(pinned)
    rest = list(range(30, 42))
    manager.write([key(number) for number in rest], rest)
    eventually(
        lambda: not set(pinned)
        & {entry.key.to_object_key() for entry in manager.adapter.list_l2_keys(page_size=100).entries}
    )
    assert manager.manager.report_status()["is_healthy"] is True


def test_recovered_objects_are_evicted_after_a_restart(open_manager) -> None:
    manager = open_manager(capacity_objects=1000, eviction=LRU)
    numbers = list(range(20))
    manager.write([key(number) for number in numbers], numbers)
    eventually(lambda: manager.used() == 20 * SIZE)
    manager.close()
    again = open_manager(capacity_objects=22, eviction=LRU)
    assert again.used() == 20 * SIZE
    eventually(lambda: again.used() < 0.8 * 22 * SIZE)
    assert again.used() > 0


def test_a_salt_without_quota_goes_and_one_with_quota_stays(open_manager) -> None:
    isolated = {"eviction_policy": "IsolatedLRU", "trigger_watermark": 0.8, "eviction_ratio": 0.5}
    manager = open_manager(capacity_objects=1000, eviction=isolated)
    manager.manager.quota_manager.set_quota("paid", 100 * SIZE)
    numbers = list(range(8))
    manager.write([key(number, salt="paid") for number in numbers], numbers)
    manager.write([key(number, salt="free") for number in numbers], numbers)
    eventually(lambda: dict(manager.adapter.get_usage().bytes_by_cache_salt) == {"paid": 8 * SIZE})


def test_an_adapter_comes_and_goes_at_runtime(open_manager, directory) -> None:
    manager = open_manager(capacity_objects=100, eviction=LRU)
    numbers = list(range(4))
    manager.write([key(number) for number in numbers], numbers)
    eventually(lambda: manager.used() == 4 * SIZE)
    [(descriptor, adapter)] = manager.manager.l2_adapters()
    manager.manager.delete_l2_adapter(descriptor.index)
    assert manager.manager.l2_adapters() == []
    assert adapter.report_status()["is_healthy"] is False
    manager.manager.add_l2_adapter(descriptor.config)
    [(_, manager.adapter)] = manager.manager.l2_adapters()
    assert manager.used() == 4 * SIZE
    manager.forget_l1()
    keys = [key(number) for number in numbers]
    assert manager.prefetch(keys).l2_hit_cells[0].popcount() == 4
    manager.check(keys, numbers)
