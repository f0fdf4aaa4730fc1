"""LMCache's own nixl_store_dynamic adapter, at work in a directory: `store` or `load` the objects of a list.

Usage: nixl_dynamic.py store|load DIR flat|sharded LIST
LIST is JSON: [{"model", "rank", "group", "hash", "salt", "bytes", "seed"}, ...]; sizes are multiples of 4096.
`load` exits with 1 when an object is not found, or has other bytes than its seed gives.
"""

import json
import mmap
import select
import sys
import time
from types import SimpleNamespace

import ctypes
from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.distributed.internal_api import L1MemoryDesc
from lmcache.v1.distributed.l2_adapters.nixl_store_dynamic_l2_adapter import (
    DynamicNixlStoreL2Adapter,
    DynamicNixlStoreL2AdapterConfig,
)

PAGE = 4096
MASK = (1 << 64) - 1


def mix(x):
    """SplitMix64's finaliser, as the Rust side's payloads use it."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def payload(seed, length):
    state, out = mix(seed), bytearray()
    while len(out) < length:
        state = (state + 0x9E3779B97F4A7C15) & MASK
        out += mix(state).to_bytes(8, "little")
    return bytes(out[:length])


def wait(fd, take):
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    deadline = time.monotonic() + 60
    while (result := take()) in (None, {}):
        if time.monotonic() > deadline:
            sys.exit("no answer within 60 s")
        poll.poll(100)
    return result


def main():
    mode, directory, names, listing = sys.argv[1:5]
    with open(listing) as file:
        rows = json.load(file)
    arena = mmap.mmap(-1, sum(row["bytes"] for row in rows))
    base = ctypes.addressof(ctypes.c_char.from_buffer(arena))
    config = DynamicNixlStoreL2AdapterConfig(
        "POSIX",
        {
            "file_path": directory,
            "use_direct_io": "true",
            "max_capacity_gb": "1",
            "shard_dirs": "true" if names == "sharded" else "false",
        },
    )
    adapter = DynamicNixlStoreL2Adapter(config, L1MemoryDesc(ptr=base, size=len(arena), align_bytes=PAGE))
    keys, objects, at = [], [], 0
    for row in rows:
        keys.append(
            ObjectKey(
                model_name=row["model"],
                kv_rank=row["rank"],
                object_group_id=row["group"],
                chunk_hash=bytes.fromhex(row["hash"]),
                cache_salt=row["salt"],
            )
        )
        meta = SimpleNamespace(address=at, phy_size=row["bytes"], shape=None, dtype=None)
        objects.append(SimpleNamespace(meta=meta))
        if mode == "store":
            arena[at : at + row["bytes"]] = payload(row["seed"], row["bytes"])
        at += row["bytes"]
    failed = False
    if mode == "store":
        task = adapter.submit_store_task(keys, objects)
        result = wait(adapter.get_store_event_fd(), adapter.pop_completed_store_tasks)[task]
        failed = not result.is_successful()
    else:
        task = adapter.submit_lookup_and_lock_task(keys, {})
        found = wait(adapter.get_lookup_and_lock_event_fd(), lambda: adapter.query_lookup_and_lock_result(task))
        task = adapter.submit_load_task(keys, objects)
        loaded = wait(adapter.get_load_event_fd(), lambda: adapter.query_load_result(task))
        at = 0
        for n, row in enumerate(rows):
            same = arena[at : at + row["bytes"]] == payload(row["seed"], row["bytes"])
            if not (found.test(n) and loaded.test(n) and same):
                print(f"{row}: found {found.test(n)}, loaded {loaded.test(n)}, bytes {same}")
                failed = True
            at += row["bytes"]
        adapter.submit_unlock(keys)
    adapter.close()
    sys.exit(1 if failed else 0)


main()
