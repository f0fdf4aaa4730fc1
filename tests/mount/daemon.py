"""The daemon's side of an L2 adapter: an arena, memory objects in it, and a loop that waits for tasks."""

from __future__ import annotations

import hashlib
import select
from typing import Callable, Iterable, Sequence

import torch
from lmcache.lmcache_native import Bitmap
from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.distributed.internal_api import L1MemoryDesc, L2AdapterListener, L2StoreResult
from lmcache.v1.memory_management import MemoryFormat, MemoryObj, MemoryObjMetadata, TensorMemoryObj
from lmcache.v1.platform import consume_fd

ALIGN = 4096

#: Longer than any deadline that the suite sets: a task that takes so long hangs.
PATIENCE_S = 60.0


def key(number: int, *, salt: str = "", model: str = "org/model", rank: int = 0x01000100, group: int = 0) -> ObjectKey:
    chunk_hash = hashlib.sha256(f"{number}".encode()).digest()
    return ObjectKey(chunk_hash, model, rank, group, salt)


def payload(number: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)


class Arena:
    """Page-aligned memory, cut into slots."""

    def __init__(self, size: int) -> None:
        backing = torch.zeros(size + ALIGN, dtype=torch.uint8)
        offset = -backing.data_ptr() % ALIGN
        self.memory = backing[offset : offset + size]
        self._next = 0

    def description(self, registered: bool) -> L1MemoryDesc:
        size = self.memory.numel()
        return L1MemoryDesc(self.memory.data_ptr(), size, ALIGN, size if registered else None)

    def reset(self) -> None:
        self._next = 0

    def slot(self, size: int, *, shift: int = 0) -> MemoryObj:
        """A memory object of ``size`` bytes, its address ``shift`` past a page; its slot is rounded up as the daemon's are."""
        start = self._next + shift
        slot = -(-size // ALIGN) * ALIGN
        self._next += slot + (ALIGN if shift else 0)
        assert self._next <= self.memory.numel(), "the arena is too small for this test"
        metadata = MemoryObjMetadata(
            shape=torch.Size([size]),
            dtype=torch.uint8,
            address=start,
            phy_size=slot,
            fmt=MemoryFormat.KV_2LTD,
            ref_count=1,
        )
        return TensorMemoryObj(raw_data=self.memory[start : start + size], metadata=metadata, parent_allocator=None)

    def filled(self, number: int, size: int, *, shift: int = 0) -> MemoryObj:
        slot = self.slot(size, shift=shift)
        slot.raw_data.copy_(payload(number, size))
        return slot


class Recorder(L2AdapterListener):
    """What a listener heard, in order, and what is there by that."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, ObjectKey]] = []
        self.present: dict[ObjectKey, int] = {}

    def on_l2_keys_stored(self, keys: list[ObjectKey], sizes: list[int]) -> None:
        for stored, size in zip(keys, sizes, strict=True):
            self.heard.append(("stored", stored))
            self.present[stored] = size

    def on_l2_keys_accessed(self, keys: list[ObjectKey]) -> None:
        self.heard.extend(("accessed", accessed) for accessed in keys)

    def on_l2_keys_deleted(self, keys: list[ObjectKey]) -> None:
        for deleted in keys:
            self.heard.append(("deleted", deleted))
            self.present.pop(deleted, None)


def wait_for(fd: int, ready: Callable[[], object | None]) -> object:
    """What ``ready`` gives, asked each time that the descriptor says so."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    while (found := ready()) is None:
        assert poller.poll(PATIENCE_S * 1000), "a task hangs"
        consume_fd(fd)
    return found


class Driver:
    """Submits tasks to an adapter and waits for them, as the daemon's controllers do."""

    def __init__(self, adapter, arena: Arena) -> None:
        self.adapter = adapter
        self.arena = arena
        self._stored: dict[int, L2StoreResult] = {}

    def store(self, keys: Sequence[ObjectKey], objects: Sequence[MemoryObj]) -> L2StoreResult:
        task = self.adapter.submit_store_task(list(keys), list(objects))

        def popped() -> L2StoreResult | None:
            self._stored.update(self.adapter.pop_completed_store_tasks())
            return self._stored.pop(task, None)

        return wait_for(self.adapter.get_store_event_fd(), popped)

    def lookup(self, keys: Sequence[ObjectKey]) -> Bitmap:
        task = self.adapter.submit_lookup_and_lock_task(list(keys), {})
        fd = self.adapter.get_lookup_and_lock_event_fd()
        return wait_for(fd, lambda: self.adapter.query_lookup_and_lock_result(task))

    def load(self, keys: Sequence[ObjectKey], objects: Sequence[MemoryObj]) -> Bitmap:
        task = self.adapter.submit_load_task(list(keys), list(objects))
        return wait_for(self.adapter.get_load_event_fd(), lambda: self.adapter.query_load_result(task))

    def store_numbers(self, numbers: Iterable[int], size: int, **parts: object) -> list[ObjectKey]:
        """Stores the payloads of these numbers under their keys."""
        numbers = list(numbers)
        self.arena.reset()
        keys = [key(number, **parts) for number in numbers]
        result = self.store(keys, [self.arena.filled(number, size) for number in numbers])
        assert result.is_successful()
        return keys

    def check_numbers(self, numbers: Iterable[int], size: int, **parts: object) -> None:
        """Looks up and loads these numbers, and compares every byte."""
        numbers = list(numbers)
        self.arena.reset()
        keys = [key(number, **parts) for number in numbers]
        assert self.lookup(keys).popcount() == len(keys)
        slots = [self.arena.slot(size) for _ in numbers]
        for slot in slots:
            slot.raw_data.zero_()
        assert self.load(keys, slots).popcount() == len(keys)
        self.adapter.submit_unlock(keys)
        for number, slot in zip(numbers, slots):
            assert torch.equal(slot.raw_data, payload(number, size)), f"the bytes of object {number}"
