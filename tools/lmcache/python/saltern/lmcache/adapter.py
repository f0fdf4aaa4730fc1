"""The ``plugin`` mount."""

from __future__ import annotations

import atexit
import json
import weakref
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lmcache.lmcache_native import Bitmap
from lmcache.logging import init_logger
from lmcache.v1.distributed.api import KeyEntry, KeyListPage, ObjectKey
from lmcache.v1.distributed.internal_api import L2StoreResult
from lmcache.v1.distributed.l2_adapters.base import AdapterUsage, L2AdapterInterface

from .._saltern import Closed, Mount
from .config import SalternL2AdapterConfig

if TYPE_CHECKING:
    from lmcache.v1.distributed.api import MemoryLayoutDesc
    from lmcache.v1.distributed.internal_api import L1MemoryDesc, L2AdapterListener
    from lmcache.v1.memory_management import MemoryObj

logger = init_logger(__name__)

#: Most entries of one page of a listing.
PAGE_SIZE_MAX = 10_000

# Closed before the interpreter goes away: until then the engine's event thread may need it.
_open_adapters: "weakref.WeakSet[SalternL2Adapter]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for adapter in list(_open_adapters):
        adapter.close()


class SalternL2Adapter(L2AdapterInterface):
    """saltern under LMCache's L2 adapter interface.

    The engine's ledger is the only account of bytes: recovered objects are in it when the constructor returns. Each listener hears of
    them when it registers, the least recently used first, and of every change after that, in order for each key, on the engine's
    event thread.

    Every task completes by its deadline, as a miss at the latest. ``delete`` and what calls listeners never raise.
    """

    def __init__(
        self,
        config: SalternL2AdapterConfig | dict[str, Any],
        l1_memory_desc: L1MemoryDesc | None = None,
    ) -> None:
        """Opens the directory and scans it; blocks until its contents are known.

        Args:
            config: The ``adapter_params``, as checked or as given.
            l1_memory_desc: The daemon's arena. Its stable part is registered for I/O.
        """
        if not isinstance(config, SalternL2AdapterConfig):
            config = SalternL2AdapterConfig.from_dict(config)
        super().__init__(max_capacity_bytes=config.max_capacity_bytes)
        self._host_evicts = config.host_evicts
        arena, align_bytes = None, 0
        if l1_memory_desc is not None:
            align_bytes = l1_memory_desc.align_bytes
            if l1_memory_desc.stable_registration_size:
                arena = (l1_memory_desc.ptr, l1_memory_desc.stable_registration_size)
        self._mount = Mount(config.options_json, ObjectKey, arena, align_bytes)
        self._store_fd, self._lookup_fd, self._load_fd = self._mount.event_fds()
        _open_adapters.add(self)
        self._last_usage = self._usage()
        # The daemon's event bus is a listener like others, where there is one: without it nobody pays for its keys.
        if self._event_bus.enabled:
            self._mount.subscribe(self._tell_bus)

    @property
    def supports_global_eviction(self) -> bool:
        """Whether the daemon may evict by this adapter's usage: it has a capacity, and does not evict by itself."""
        return self._max_capacity_bytes > 0 and self._host_evicts

    # Event descriptors

    def get_store_event_fd(self) -> int:
        return self._store_fd

    def get_lookup_and_lock_event_fd(self) -> int:
        return self._lookup_fd

    def get_load_event_fd(self) -> int:
        return self._load_fd

    # Store

    def submit_store_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> int:
        return self._mount.submit_store(keys, objects)

    def pop_completed_store_tasks(self) -> dict[int, L2StoreResult]:
        return {task: L2StoreResult(ok, added) for task, ok, added in self._mount.pop_stores()}

    # Lookup

    def submit_lookup_and_lock_task(
        self,
        keys: list[ObjectKey],
        group_layout_descs: dict[int, MemoryLayoutDesc],
    ) -> int:
        return self._mount.submit_lookup(keys)

    def query_lookup_and_lock_result(self, task_id: int) -> Bitmap | None:
        return _bitmap(self._mount.take_lookup(task_id))

    def submit_unlock(self, keys: list[ObjectKey]) -> None:
        """Releases the pins of a lookup.

        Waits for a load of exactly these keys whose result was not asked for yet: its request was given up, and its memory will be
        used again when this returns.
        """
        self._mount.unpin(keys)

    # Load

    def submit_load_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> int:
        return self._mount.submit_load(keys, objects)

    def query_load_result(self, task_id: int) -> Bitmap | None:
        return _bitmap(self._mount.take_load(task_id))

    # Eviction and accounting

    def delete(self, keys: list[ObjectKey]) -> None:
        """Deletes what is neither pinned nor being loaded; returns when listeners have heard of it. Never raises."""
        try:
            _deleted, _absent, kept = self._mount.delete(keys)
            if kept:
                logger.debug("saltern: %d of %d objects are in use and were not deleted", kept, len(keys))
        except Closed:
            logger.debug("saltern: delete after close")
        except Exception:
            logger.exception("saltern: delete failed")

    def get_usage(self) -> AdapterUsage:
        """Bytes in use by the engine's ledger, not by the base class's counters; after close those at its end."""
        try:
            return self._usage()
        except Closed:
            return self._last_usage

    def _usage(self) -> AdapterUsage:
        used, capacity, by_salt = self._mount.usage()
        return AdapterUsage(used, capacity, MappingProxyType(by_salt))

    def register_listener(self, listener: L2AdapterListener) -> None:
        """Tells a listener of all objects that there are, the least recently used first, and then of every change."""

        def tell(kind: str, keys: list[ObjectKey], sizes: list[int]) -> None:
            try:
                if kind in ("recovered", "stored"):
                    listener.on_l2_keys_stored(keys, sizes)
                elif kind == "accessed":
                    listener.on_l2_keys_accessed(keys)
                else:
                    listener.on_l2_keys_deleted(keys)
            except Exception:
                logger.exception("saltern: a listener failed")

        self._mount.subscribe(tell)

    def _tell_bus(self, kind: str, keys: list[ObjectKey], sizes: list[int]) -> None:
        # The base class's own listeners are none: each follows the engine by itself. What was recovered is no news to the bus.
        try:
            if kind == "stored":
                self._notify_keys_stored(keys, sizes)
            elif kind == "accessed":
                self._notify_keys_accessed(keys)
            elif kind == "deleted":
                self._notify_keys_deleted(keys, sizes)
        except Exception:
            logger.exception("saltern: the event bus failed")

    # Listing and status

    def list_l2_keys(
        self,
        model_name: str | None = None,
        page_size: int = 500,
        cursor: str | None = None,
    ) -> KeyListPage:
        if page_size <= 0:
            raise ValueError(f"page_size must be positive (got {page_size})")
        if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 20):
            raise ValueError(f"malformed cursor {cursor!r}")
        objects, following = self._mount.list_page(model_name, min(page_size, PAGE_SIZE_MAX), int(cursor or 0))
        entries = tuple(KeyEntry(key=key.to_encoded_object_key(), size_bytes=size) for key, size in objects)
        return KeyListPage(entries=entries, next_page_token=None if following is None else str(following))

    def report_status(self) -> dict:
        try:
            status = json.loads(self._mount.status_json())
            return {"type": "saltern", "refused_keys": self._mount.refused(), **status}
        except Closed:
            return {"type": "saltern", "is_healthy": False, "problems": ["the adapter is closed"]}

    def close(self) -> None:
        """Waits for all I/O on the daemon's memory, then closes the engine. Tasks that were under way are complete then."""
        self._last_usage = self.get_usage()
        self._mount.close()


def _bitmap(taken: tuple[int, list[int] | None] | None) -> Bitmap | None:
    if taken is None:
        return None
    count, places = taken
    if places is None:
        return Bitmap(count, count)
    bitmap = Bitmap(count)
    if places:
        bitmap.batched_set(places)
    return bitmap
