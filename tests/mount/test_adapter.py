"""The plugin mount, task by task, as the daemon's controllers use it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from daemon import Driver, Recorder, key, payload
from saltern import ConfigError, VolumeOwned
from saltern.lmcache import SalternL2Adapter, SalternL2AdapterConfig


def indices(bitmap) -> list[int]:
    return bitmap.get_indices_list()


def test_the_three_descriptors_are_distinct(open_adapter) -> None:
    adapter = open_adapter().adapter
    fds = {adapter.get_store_event_fd(), adapter.get_lookup_and_lock_event_fd(), adapter.get_load_event_fd()}
    assert len(fds) == 3


@pytest.mark.parametrize("registered", [True, False])
@pytest.mark.parametrize("size", [1, 511, 4096, 65536, 102401, 3 << 20])
@pytest.mark.parametrize("shift", [0, 1, 512])
def test_bytes_come_back_at_any_size_and_address(open_adapter, registered: bool, size: int, shift: int) -> None:
    driver = open_adapter(registered=registered)
    numbers = range(3)
    keys = [key(number) for number in numbers]
    result = driver.store(keys, [driver.arena.filled(number, size, shift=shift) for number in numbers])
    assert (result.is_successful(), result.bytes_transferred()) == (True, 3 * size)
    assert indices(driver.lookup(keys)) == [0, 1, 2]
    slots = [driver.arena.slot(size, shift=shift) for _ in numbers]
    assert indices(driver.load(keys, slots)) == [0, 1, 2]
    for number, slot in zip(numbers, slots):
        assert torch.equal(slot.raw_data, payload(number, size))
    # What is aligned, all but an odd tail, moves without a copy.
    if shift == 0 and size % 4096 == 0:
        assert driver.adapter.report_status()["counters"]["bounced_bytes"] == 0
        assert driver.adapter.report_status()["shards"][0]["fixed_buffers"] in ("cloned", "own")


def test_a_load_writes_nothing_beyond_its_object(open_adapter) -> None:
    driver = open_adapter()
    size = 5000
    keys = driver.store_numbers([1], size)
    driver.arena.memory.fill_(0xA5)
    driver.arena.reset()
    driver.arena.slot(4096)
    slot = driver.arena.slot(size)
    assert driver.load(keys, [slot]).popcount() == 1
    start = slot.meta.address
    assert torch.equal(slot.raw_data, payload(1, size))
    assert bool((driver.arena.memory[:start] == 0xA5).all())
    assert bool((driver.arena.memory[start + size :] == 0xA5).all())


def test_misses_are_bits_that_are_not_set(open_adapter) -> None:
    driver = open_adapter()
    driver.store_numbers([0, 2], 4096)
    keys = [key(number) for number in range(4)]
    assert indices(driver.lookup(keys)) == [0, 2]
    slots = [driver.arena.slot(4096) for _ in keys]
    assert indices(driver.load(keys, slots)) == [0, 2]
    # A buffer of another size is a miss too.
    assert indices(driver.load(keys[:1], [driver.arena.slot(8192)])) == []
    assert driver.lookup([]).size() == 0


def test_results_are_given_once(open_adapter) -> None:
    driver = open_adapter()
    keys = driver.store_numbers([0], 4096)
    adapter = driver.adapter
    task = adapter.submit_lookup_and_lock_task(keys, {})
    assert adapter.query_lookup_and_lock_result(task).popcount() == 1
    assert adapter.query_lookup_and_lock_result(task) is None
    assert adapter.query_load_result(4711) is None
    assert adapter.pop_completed_store_tasks() == {}


def test_a_key_that_is_no_key_harms_only_itself(open_adapter) -> None:
    driver = open_adapter()
    # LMCache allows a rank of more than 32 bits, which has no file name; and two models that would share one.
    good, bad, twin = key(1), key(2, rank=1 << 40), key(3, model="a-SEP-b")
    keys = [bad, good, twin]
    result = driver.store(keys, [driver.arena.filled(number, 4096) for number in range(3)])
    assert not result.is_successful()
    assert indices(driver.lookup(keys)) == [1]
    driver.adapter.submit_unlock(keys)
    assert indices(driver.load(keys, [driver.arena.slot(4096) for _ in keys])) == [1]
    driver.adapter.delete(keys)
    assert indices(driver.lookup(keys)) == []
    assert driver.adapter.report_status()["refused_keys"] > 0


def test_an_object_without_memory_harms_only_itself(open_adapter, monkeypatch) -> None:
    """The thread of the daemon that submits ends for good when a submit raises."""
    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: told.append(unraisable.exc_value))
    driver = open_adapter()
    keys = [key(number) for number in range(3)]
    good = [driver.arena.filled(number, 4096) for number in range(3)]
    assert not driver.store(keys, [good[0], None, good[2]]).is_successful()
    assert indices(driver.lookup(keys)) == [0, 2]
    assert indices(driver.load(keys, [object(), good[1], good[2]])) == [2]
    # Fewer objects than keys.
    assert indices(driver.load(keys, good[:1])) == [0]
    assert len(told) == 4 and driver.adapter.report_status()["refused_keys"] == 4


def test_a_store_of_what_is_there_adds_nothing(open_adapter) -> None:
    driver = open_adapter()
    keys = driver.store_numbers([0, 1], 4096)
    again = driver.store(keys + [key(2)], [driver.arena.slot(4096) for _ in range(3)])
    assert (again.is_successful(), again.bytes_transferred()) == (True, 4096)
    # Twice in one batch is once.
    twice = driver.store([key(3), key(3)], [driver.arena.slot(4096) for _ in range(2)])
    assert (twice.is_successful(), twice.bytes_transferred()) == (True, 4096)
    assert driver.adapter.get_usage().total_bytes_used == 4 * 4096


def test_the_capacity_is_never_passed(open_adapter) -> None:
    driver = open_adapter(max_capacity_gb=40960 / 1024**3)
    assert driver.adapter.supports_global_eviction
    keys = [key(number) for number in range(12)]
    assert not driver.store(keys, [driver.arena.filled(number, 4096) for number in range(12)]).is_successful()
    usage = driver.adapter.get_usage()
    assert (usage.total_bytes_used, usage.total_capacity_bytes, usage.usage_fraction) == (40960, 40960, 1.0)
    assert driver.lookup(keys).popcount() == 10


def test_without_a_capacity_there_is_no_eviction_signal(open_adapter) -> None:
    driver = open_adapter()
    assert not driver.adapter.supports_global_eviction
    assert driver.adapter.get_usage().usage_fraction == -1.0


def test_delete_leaves_what_is_pinned(open_adapter) -> None:
    driver = open_adapter()
    keys = driver.store_numbers(range(3), 4096)
    assert driver.lookup(keys[:1]).popcount() == 1
    driver.adapter.delete(keys)
    assert driver.adapter.get_usage().total_bytes_used == 4096
    assert indices(driver.lookup(keys)) == [0]
    # Pinned twice, so it takes two.
    driver.adapter.submit_unlock(keys[:1])
    driver.adapter.delete(keys)
    assert driver.adapter.get_usage().total_bytes_used == 4096
    driver.adapter.submit_unlock(keys[:1])
    driver.adapter.delete(keys)
    assert driver.adapter.get_usage().total_bytes_used == 0


def test_usage_by_salt_adds_up(open_adapter) -> None:
    driver = open_adapter(max_capacity_gb=1)
    driver.store_numbers(range(3), 4096, salt="a")
    driver.store_numbers(range(2), 1000, salt="b")
    driver.store_numbers(range(1), 10)
    usage = driver.adapter.get_usage()
    assert dict(usage.bytes_by_cache_salt) == {"a": 12288, "b": 2000, "": 10}
    assert usage.total_bytes_used == 14298
    with pytest.raises(TypeError):
        usage.bytes_by_cache_salt["a"] = 0
    driver.adapter.delete([key(number, salt="b") for number in range(2)])
    assert usage.total_bytes_used == 14298, "a snapshot does not change"
    assert dict(driver.adapter.get_usage().bytes_by_cache_salt) == {"a": 12288, "": 10}


def test_listeners_hear_everything_in_order(open_adapter) -> None:
    driver = open_adapter()
    recorder = Recorder()
    driver.adapter.register_listener(recorder)
    [one] = driver.store_numbers([1], 4096)
    driver.load([one], [driver.arena.slot(4096)])
    driver.store([one], [driver.arena.slot(4096)])
    driver.adapter.delete([one])
    # Deleted when the call returns, and a key that is not there is news to whoever still holds it.
    assert [kind for kind, _ in recorder.heard] == ["stored", "accessed", "accessed", "deleted"]
    driver.adapter.delete([one])
    assert [kind for kind, _ in recorder.heard][4:] == ["deleted"]
    assert all(heard == one and type(heard) is type(one) for _, heard in recorder.heard)
    assert recorder.present == {}


def test_recovered_objects_reach_usage_at_once_and_late_listeners(open_adapter, directory) -> None:
    driver = open_adapter(max_capacity_gb=1)
    for number in range(5):
        driver.store_numbers([number], 4096, salt="t" if number % 2 else "")
    driver.adapter.close()
    # Stored within one tick of the file system's clock: told apart as if by days.
    for path in directory.glob("objects/*.data"):
        [number] = [number for number in range(5) if key(number).chunk_hash.hex() in path.name]
        os.utime(path, (number * 86400, number * 86400))
    again = open_adapter(max_capacity_gb=1)
    usage = again.adapter.get_usage()
    assert (usage.total_bytes_used, dict(usage.bytes_by_cache_salt)) == (5 * 4096, {"t": 2 * 4096, "": 3 * 4096})
    early = Recorder()
    again.adapter.register_listener(early)
    expected = [key(number, salt="t" if number % 2 else "") for number in range(5)]
    assert [heard for _, heard in early.heard] == expected, "oldest first"
    again.store_numbers([9], 4096)
    late = Recorder()
    again.adapter.register_listener(late)
    assert list(late.present) == [*expected, key(9)]
    again.adapter.delete(expected[:2])
    assert early.present == late.present == {heard: 4096 for heard in [*expected[2:], key(9)]}
    for number in (2, 3, 4):
        again.check_numbers([number], 4096, salt="t" if number % 2 else "")


def test_a_listener_that_fails_harms_nobody(open_adapter) -> None:
    driver = open_adapter()

    class Broken(Recorder):
        def on_l2_keys_stored(self, keys, sizes) -> None:
            raise RuntimeError("a defect of somebody else")

        on_l2_keys_deleted = on_l2_keys_accessed = on_l2_keys_stored

    recorder = Recorder()
    driver.adapter.register_listener(Broken())
    driver.adapter.register_listener(recorder)
    keys = driver.store_numbers(range(2), 4096)
    driver.adapter.delete(keys)
    assert [kind for kind, _ in recorder.heard] == ["stored"] * 2 + ["deleted"] * 2


def test_a_listener_may_call_the_adapter(open_adapter) -> None:
    driver = open_adapter()
    adapter = driver.adapter

    class Evicting(Recorder):
        def on_l2_keys_stored(self, keys, sizes) -> None:
            super().on_l2_keys_stored(keys, sizes)
            adapter.get_usage()
            adapter.delete([stored for stored in keys if stored == key(0)])

    recorder = Evicting()
    adapter.register_listener(recorder)
    driver.store_numbers(range(2), 4096)
    # The first returns when the listener has stored and deleted, the second when it has heard of its own delete.
    adapter.delete([key(7)])
    adapter.delete([key(7)])
    assert ("deleted", key(0)) in recorder.heard
    assert adapter.get_usage().total_bytes_used == 4096


def test_listing_gives_every_key_once_page_by_page(open_adapter) -> None:
    driver = open_adapter()
    numbers = range(250)
    driver.store_numbers(numbers, 100, model="one/model")
    driver.store_numbers(range(30), 50, model="other", salt="s", group=3)
    adapter = driver.adapter
    seen, cursor, pages = [], None, 0
    while True:
        page = adapter.list_l2_keys(model_name="one/model", page_size=40, cursor=cursor)
        assert len(page.entries) <= 40
        seen += [(entry.key.to_object_key(), entry.size_bytes) for entry in page.entries]
        pages, cursor = pages + 1, page.next_page_token
        if cursor is None:
            break
    assert pages == 7 and len(seen) == 250
    assert dict(seen) == {key(number, model="one/model"): 100 for number in numbers}
    everything = adapter.list_l2_keys(page_size=1000)
    assert everything.next_page_token is None and len(everything.entries) == 280
    assert adapter.list_l2_keys(model_name="none").entries == ()
    for bad in ({"page_size": 0}, {"page_size": -1}, {"cursor": "x"}, {"cursor": "-1"}, {"cursor": "9" * 30}):
        with pytest.raises(ValueError):
            adapter.list_l2_keys(**bad)


def test_padded_slots_are_stored_where_asked(open_adapter, directory) -> None:
    driver = open_adapter(store_padded=True)
    driver.store_numbers([1], 5000)
    [path] = directory.glob("objects/*.data")
    assert path.stat().st_size == 8192
    driver.check_numbers([1], 5000)


def test_the_status_is_json_and_says_what_is_wrong(open_adapter) -> None:
    driver = open_adapter()
    driver.store_numbers([1], 4096)
    status = driver.adapter.report_status()
    assert status["is_healthy"] is True and status["type"] == "saltern" and status["objects"] == 1
    json.dumps(status)
    driver.adapter.close()
    status = driver.adapter.report_status()
    assert status["is_healthy"] is False and status["problems"]


def test_after_close_everything_is_answered_and_nothing_raises(open_adapter) -> None:
    driver = open_adapter(max_capacity_gb=1)
    keys = driver.store_numbers(range(2), 4096)
    driver.adapter.close()
    driver.adapter.close()
    assert driver.adapter.get_usage().total_bytes_used == 8192
    slots = [driver.arena.slot(4096) for _ in keys]
    assert not driver.store(keys, slots).is_successful()
    assert indices(driver.lookup(keys)) == []
    assert indices(driver.load(keys, slots)) == []
    driver.adapter.submit_unlock(keys)
    driver.adapter.delete(keys)


def test_a_directory_has_one_owner(open_adapter, directory) -> None:
    open_adapter()
    with pytest.raises(VolumeOwned):
        SalternL2Adapter({"base_path": str(directory / "objects"), "lock_wait_s": 0.1})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "base_path"),
        ({"base_path": ""}, "base_path"),
        ({"base_paths": []}, "base_paths"),
        ({"base_paths": ["a", "a"]}, "a"),
        ({"base_paths": ["a", ""]}, "base_path"),
        ({"base_path": "a", "base_paths": ["b"]}, "base_paths"),
        ({"base_path": "a", "use_odirect": True}, "use_odirect"),
        ({"base_path": "a", "layout": "zip"}, "layout"),
        ({"base_path": "a", "discovery": "ask"}, "discovery"),
        ({"base_path": "a", "eviction_mode": "engin"}, "engin"),
        ({"base_path": "a", "eviction_mode": "engine"}, "capacity"),
        ({"base_path": "a", "eviction_policy": "lru"}, "eviction_policy"),
        ({"base_path": "a", "max_capacity_gb": 1, "eviction_mode": "engine", "eviction_policy": "random"}, "eviction_policy"),
        ({"base_path": "a", "max_capacity_gb": 1, "eviction_mode": "engine", "eviction_watermark": 2}, "watermark"),
        ({"base_path": "a", "max_capacity_gb": 1, "eviction_mode": "engine", "eviction_ratio": -1}, "ratio"),
        ({"base_path": "a", "admission": "some"}, "admission"),
        ({"base_path": "a", "admission_uses": 3}, "admission_uses"),
        ({"base_path": "a", "admission": "frequent", "admission_uses": 1}, "admission"),
        ({"base_path": "a", "quotas_gb": {"t": -1}}, "quotas_gb"),
        ({"base_path": "a", "quotas_gb": 3}, "quotas_gb"),
        ({"base_path": "a", "default_quota_gb": "x"}, "default_quota_gb"),
        ({"base_path": "a", "max_capacity_gb": -1}, "max_capacity_gb"),
        ({"base_path": "a", "store_deadline_s": -1}, "store_deadline_s"),
        ({"base_path": "a", "shards": 0}, "shards"),
        ({"base_path": "a", "durability": "total"}, "durability"),
        ({"base_path": "a", "integrity": 5}, "string or map|integrity"),
        ({"base_path": "a", "gpu_route": "pipeline"}, "gpu_route: only saltern.Engine"),
        ({"base_path": object()}, "JSON"),
    ],
)
def test_an_option_that_is_not_usable_is_named(options, named) -> None:
    with pytest.raises(ValueError, match=named):
        SalternL2AdapterConfig.from_dict(options)


def test_a_nixl_directory_needs_a_capacity(directory) -> None:
    with pytest.raises(ConfigError, match="capacity"):
        SalternL2Adapter({"base_path": str(directory), "layout": "nixl"})


def test_options_are_described() -> None:
    text = SalternL2AdapterConfig.help()
    for option in ("base_path", "layout", "max_capacity_gb", "durability", "integrity", "shards", "spare_gb"):
        assert option in text


def test_every_option_is_described_and_taken(directory) -> None:
    options = {
        "require_volumes": False,
        "volume_capacity_gb": 1,
        "layout": "fs3",
        "max_capacity_gb": 1,
        "eviction_mode": "engine",
        "eviction_policy": "arc",
        "eviction_watermark": 0.7,
        "eviction_ratio": 0.2,
        "quotas_gb": {"t": 0.5},
        "default_quota_gb": 0.25,
        "admission": "frequent",
        "admission_uses": 3,
        "admission_window": 4096,
        "durability": "data",
        "integrity": "verify",
        "direct_io": "off",
        "store_padded": True,
        "shards": 2,
        "pin_shards": False,
        "depth": 32,
        "segment_kb": 512,
        "pool_mb": 32,
        "spare_gb": 0.5,
        "min_free_gb": 0.1,
        "max_object_mb": 32,
        "max_queued_objects": 1000,
        "open_files": 100,
        "store_deadline_s": 20,
        "load_deadline_s": 5,
        "lookup_deadline_s": 1,
        "pin_lease_s": 30,
        "lock_wait_s": 1,
        "discovery": "scan",
        "absent_ttl_s": 0.5,
        "persist_enabled": False,
        "io_priority": "off",
        "write_zeroes": True,
        "scan_threads": 1,
        "snapshot_interval_s": 60,
        "status_socket": False,
    }
    readme = (Path(__file__).parents[2] / "tools" / "lmcache" / "README.md").read_text()
    for option in options:
        assert f"`{option}`" in readme, option
    adapter = SalternL2Adapter({"base_path": str(directory), **options})
    status = adapter.report_status()
    adapter.close()
    assert (status["durability"], status["integrity"], len(status["shards"])) == ("data", "verify", 2)
    assert status["volumes"][0]["direct_io"] is False


def test_the_engine_evicts_where_it_is_asked_to(open_adapter) -> None:
    """Stores go on past the capacity, listeners and usage follow, and the daemon is told to leave eviction alone."""
    size = 65536
    driver = open_adapter(
        max_capacity_gb=20 * size / 1024**3,
        eviction_mode="engine",
        eviction_policy="lru",
        eviction_watermark=1.0,
        eviction_ratio=0.1,
    )
    assert not driver.adapter.supports_global_eviction
    recorder = Recorder()
    driver.adapter.register_listener(recorder)
    pinned = driver.store_numbers([0], size)
    assert driver.lookup(pinned).popcount() == 1
    for number in range(1, 60):
        driver.store_numbers([number], size)
    # Returns when listeners have heard everything that was before it.
    driver.adapter.delete([key(1000)])
    usage = driver.adapter.get_usage()
    assert usage.total_bytes_used == sum(recorder.present.values()) <= usage.total_capacity_bytes == 20 * size
    assert key(59) in recorder.present and key(1) not in recorder.present
    assert pinned[0] in recorder.present, "what is pinned stays"
    assert driver.adapter.report_status()["counters"]["evictions"] >= 39


def test_quotas_of_the_engine_outlive_it(open_adapter) -> None:
    size = 65536
    options = {"max_capacity_gb": 1, "quotas_gb": {"small": 4 * size / 1024**3}, "default_quota_gb": 8 * size / 1024**3}
    driver = open_adapter(**options)
    keys = [key(number, salt="small") for number in range(6)]
    assert not driver.store(keys, [driver.arena.filled(number, size) for number in range(6)]).is_successful()
    driver.store_numbers(range(6), size, salt="other")
    assert dict(driver.adapter.get_usage().bytes_by_cache_salt) == {"small": 4 * size, "other": 6 * size}
    driver.adapter.close()
    again = open_adapter(max_capacity_gb=1)
    assert not again.store([key(9, salt="small")], [again.arena.filled(9, size)]).is_successful()
    again.store_numbers(range(6, 12), size, salt="other")


def test_what_is_offered_once_is_not_written_where_that_is_asked_for(open_adapter) -> None:
    driver = open_adapter(admission="frequent", admission_uses=2)
    one, slot = key(1), driver.arena.filled(1, 65536)
    assert not driver.store([one], [slot]).is_successful()
    assert driver.adapter.get_usage().total_bytes_used == 0
    assert driver.store([one], [slot]).is_successful()
    driver.check_numbers([1], 65536)


def test_several_directories_are_one_store(directory, arena) -> None:
    paths = [directory / name for name in ("one", "two", "three")]

    def opened(order: list[int]) -> Driver:
        params = {"base_paths": [str(paths[at]) for at in order], "max_capacity_gb": 1}
        return Driver(SalternL2Adapter(params, l1_memory_desc=arena.description(True)), arena)

    driver = opened([0, 1, 2])
    driver.store_numbers(range(60), 65536)
    driver.check_numbers(range(60), 65536)
    driver.adapter.close()
    counts = [len(list(path.glob("*.data"))) for path in paths]
    assert sum(counts) == 60 and min(counts) > 0
    # In whatever order they are named.
    again = opened([2, 0, 1])
    try:
        assert again.adapter.get_usage().total_bytes_used == 60 * 65536
        again.check_numbers(range(60), 65536)
        again.adapter.delete([key(number) for number in range(30)])
        assert len(again.adapter.list_l2_keys().entries) == 30
    finally:
        again.adapter.close()
