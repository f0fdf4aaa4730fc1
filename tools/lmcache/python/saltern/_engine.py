"""The plain Python API."""

from __future__ import annotations

import atexit
import builtins
import json
import os
import weakref
from dataclasses import dataclass
from typing import Any, Iterator, Mapping, Sequence, TypeVar, Union

from . import _saltern
from ._saltern import Key, Registered, SalternError

#: An object with the buffer protocol that is one block of memory (bytes, bytearray, memoryview, numpy array), or a contiguous
#: torch tensor on the CPU or on a GPU, or an object with ``__cuda_array_interface__`` or DLPack in a GPU's memory, or ``Pages``.
BytesLike = Any

_Into = TypeVar("_Into")

# Closed before the interpreter goes away: until then threads of the engine may need it.
_open_engines: "weakref.WeakSet[Engine]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for engine in list(_open_engines):
        engine.close()


@dataclass(frozen=True)
class Usage:
    """Bytes in use at one moment. Never changes after it was taken."""

    total_bytes_used: int
    """Bytes of all objects."""

    total_capacity_bytes: int
    """The capacity; 0 when there is none."""

    bytes_by_cache_salt: Mapping[str, int]
    """Bytes by salt; adds up to the total."""

    @property
    def usage_fraction(self) -> float:
        """Used by capacity; -1 when there is no capacity."""
        if self.total_capacity_bytes == 0:
            return -1.0
        return self.total_bytes_used / self.total_capacity_bytes


class Engine(_saltern.Engine):
    """A local store of KV-cache objects in one directory.

    Opening scans the directory: what earlier runs stored is found again. Thread-safe; the GIL is released around every wait,
    and every call returns by its deadline. A directory belongs to one engine at a time.

    Memory of GPUs moves through pinned memory, or directly where cuFile can. Copies wait for what is on the tensor's current
    stream; when a call returns, the bytes are there for every stream. An object may be scattered over pages of a GPU's memory
    (``Pages``), and memory that is used again and again registered once (``register``). ``SALTERN_LIBCUDA`` and
    ``SALTERN_LIBCUFILE`` name libraries that have other names than usual; ``SALTERN_GDS_HELPER`` names the program ``saltern``, in
    which cuFile is tried first, and without which it is not used.

    Memory moves without a copy where its address is a multiple of 4096; anything else works too. Nobody may write into a buffer
    while it is stored, or use it while it is loaded into.

    Args:
        base_path: The directory; created where it does not exist. Several take ``base_paths``, a list, instead.
        **options: As described in ``README.md``: ``layout``, ``max_capacity_gb``, ``durability``, ``integrity``, ``shards``,
            ``spare_gb``, and so on.

    Raises:
        ConfigError: An option is not known or not usable, or the machine gives no io_uring.
        VolumeOwned: Another engine has the directory.
        IoError: The directory cannot be used.

    Examples:
        >>> import tempfile
        >>> directory = tempfile.TemporaryDirectory(dir=".")
        >>> engine = Engine(directory.name)
        >>> keys = [Key("model", bytes([number]) * 32) for number in range(3)]
        >>> engine.store_many(keys, [b"zero", b"one", b"two"])
        [4, 3, 3]
        >>> engine.lookup(keys)
        [4, 3, 3]
        >>> buffer = bytearray(3)
        >>> engine.load(keys[2], into=buffer)
        bytearray(b'two')
        >>> engine.delete(keys[:1])
        [4]
        >>> engine.usage().total_bytes_used
        6
        >>> sorted(size for key, size in engine.list())
        [3, 3]
        >>> engine.close()
        >>> directory.cleanup()
    """

    def __new__(cls, base_path: Union[str, os.PathLike[str], None] = None, **options: Any) -> "Engine":
        if base_path is not None:
            options["base_path"] = os.fspath(base_path)
        engine = super().__new__(cls, json.dumps(options))
        _open_engines.add(engine)
        return engine

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def store(self, key: Key, data: BytesLike) -> int:
        """Stores one object. The first store of a key wins.

        Returns:
            Bytes added: the object's size, or 0 where the key was there already.

        Raises:
            Full: It does not fit beside what is there. Delete something first.
            SalternError: As the kind of error says.
        """
        return super().store(key, data)

    def store_many(self, keys: Sequence[Key], buffers: Sequence[BytesLike]) -> builtins.list[int | SalternError]:
        """Stores objects in parallel.

        Returns:
            For each key the bytes added, or the error, which is returned and not raised.
        """
        return super().store_many(keys, buffers)

    def load(self, key: Key, into: Any = None) -> Any:
        """Loads one object into a buffer of its size, or into a new ``bytearray``.

        Returns:
            ``into``, or the ``bytearray``.

        Raises:
            NotFound: There is no such object.
            WrongSize: The buffer has another size.
        """
        return super().load(key, into)

    def load_many(self, keys: Sequence[Key], buffers: Sequence[BytesLike]) -> builtins.list[int | SalternError]:
        """Loads objects in parallel, each into the buffer in its place.

        Returns:
            For each key the bytes loaded, or the error, which is returned and not raised.
        """
        return super().load_many(keys, buffers)

    def register(self, memory: Any) -> Registered:
        """Makes memory known once, so that transfers in it cost less: a cache's tensors, not each object.

        A GPU's memory is registered with cuFile, until the result is closed or dropped and the last transfer in it has ended. It has
        to be one block. Without cuFile nothing is registered, which is no error: ``why_not`` says so. Memory of the host's is
        registered with io_uring, until the engine is closed.

        Raises:
            ValueError: The memory is not one block.
            SalternError: The GPU cannot be used, and why.
        """
        return super().register(memory)

    def lookup(self, keys: Sequence[Key], *, pin: bool = False) -> builtins.list[int | None]:
        """Looks keys up, in memory.

        Args:
            pin: Keep what is found from deletion, until ``unpin`` or until the lease (``pin_lease_s``) ends.

        Returns:
            For each key the size of its object; ``None`` is a miss.
        """
        return super().lookup(keys, pin=pin)

    def unpin(self, keys: Sequence[Key]) -> int:
        """Releases one pin of each key; returns how many pins were released."""
        return super().unpin(keys)

    def delete(self, keys: Sequence[Key]) -> builtins.list[int | SalternError]:
        """Deletes objects. What is pinned or being loaded stays.

        Returns:
            For each key the bytes freed, or the error (``NotFound``, ``Pinned``), which is returned and not raised.
        """
        return super().delete(keys)

    def usage(self) -> Usage:
        """Bytes in use, in total and by salt."""
        used, capacity, by_salt = super().usage()
        return Usage(used, capacity, by_salt)

    def set_quota(self, cache_salt: str, quota_bytes: int | None) -> int | None:
        """Sets the most bytes that the objects of a salt may have, and keeps it in the directory.

        Args:
            quota_bytes: The quota; ``None`` takes it away, so that ``default_quota_gb`` holds.

        Returns:
            The quota that it had of its own.
        """
        return super().set_quota(cache_salt, quota_bytes)

    def quotas(self) -> dict[str, int]:
        """The quotas that were set, in bytes by salt."""
        return super().quotas()

    def status(self) -> dict[str, Any]:
        """What the engine says of itself: health, volume, shards, counters."""
        return json.loads(self.status_json())

    def list(self, model_name: str | None = None) -> Iterator[tuple[Key, int]]:
        """Keys and sizes of all objects, of one model or of all, in no particular order."""
        cursor: int | None = 0
        while cursor is not None:
            page, cursor = self.list_page(model_name, 1000, cursor)
            yield from page

    def close(self) -> None:
        """Closes the engine: waits for the I/O that has begun. Closing twice is closing once."""
        super().close()
