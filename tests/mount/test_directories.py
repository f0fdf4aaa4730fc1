"""Directories pass between LMCache's adapters and ours, both ways, salted and not."""

from __future__ import annotations

from pathlib import Path

import pytest
from daemon import Arena, Driver
from lmcache.v1.distributed.l2_adapters import create_l2_adapter
from lmcache.v1.distributed.l2_adapters.config import get_l2_adapter_config_class

#: LMCache's adapters, and our options for their directories. With O_DIRECT they want whole slots.
PEERS = {
    "fs": ({"type": "fs"}, {}),
    "fs-direct": ({"type": "fs", "use_odirect": True}, {}),
    "fs_native": ({"type": "fs_native"}, {}),
    "fs_native-direct": ({"type": "fs_native", "use_odirect": True}, {"store_padded": True}),
    "nixl_store_dynamic": (
        {"type": "nixl_store_dynamic", "backend": "POSIX", "backend_params": {"use_direct_io": "true", "max_capacity_gb": "1"}},
        {"layout": "nixl", "store_padded": True, "max_capacity_gb": 1},
    ),
}

SALTS = ["", "tenant-1"]


def open_peer(name: str, path: Path, arena: Arena) -> Driver:
    spec = dict(PEERS[name][0])
    kind = spec.pop("type")
    if kind == "nixl_store_dynamic":
        spec["backend_params"] = {**spec["backend_params"], "file_path": str(path)}
    else:
        spec["base_path"] = str(path)
    path.mkdir(exist_ok=True)
    config = get_l2_adapter_config_class(kind).from_dict(spec)
    return Driver(create_l2_adapter(config, arena.description(True)), arena)


@pytest.mark.parametrize("size", [65536, 100_000])
@pytest.mark.parametrize("name", PEERS)
def test_theirs_is_read_by_ours(open_adapter, arena, directory, name: str, size: int) -> None:
    path = directory / "shared"
    peer = open_peer(name, path, arena)
    try:
        for number, salt in enumerate(SALTS):
            peer.store_numbers([number, number + 10], size, salt=salt)
    finally:
        peer.adapter.close()
    ours = open_adapter(path=path, **PEERS[name][1])
    listed = ours.adapter.list_l2_keys().entries
    assert len(listed) == 4 and sum(entry.size_bytes for entry in listed) == ours.adapter.get_usage().total_bytes_used
    for number, salt in enumerate(SALTS):
        ours.check_numbers([number, number + 10], size, salt=salt)
        ours.adapter.delete(ours.store_numbers([number], size, salt=salt))
    assert len(list(path.glob("*.data")) + list(path.glob("*.bin"))) == 2


@pytest.mark.parametrize("size", [65536, 100_000])
@pytest.mark.parametrize("name", PEERS)
def test_ours_is_read_by_theirs(open_adapter, arena, directory, name: str, size: int) -> None:
    path = directory / "shared"
    ours = open_adapter(path=path, **PEERS[name][1])
    for number, salt in enumerate(SALTS):
        ours.store_numbers([number, number + 10], size, salt=salt)
    ours.adapter.close()
    peer = open_peer(name, path, arena)
    try:
        for number, salt in enumerate(SALTS):
            peer.check_numbers([number, number + 10], size, salt=salt)
    finally:
        peer.adapter.close()


def test_what_a_peer_stores_meanwhile_is_found(open_adapter, arena, directory) -> None:
    """NIXL's directories are shared among processes: who misses a key asks the disk."""
    path = directory / "shared"
    ours = open_adapter(path=path, **PEERS["nixl_store_dynamic"][1])
    peer = open_peer("nixl_store_dynamic", path, arena)
    try:
        peer.store_numbers([1], 65536)
        ours.check_numbers([1], 65536)
        assert ours.adapter.get_usage().total_bytes_used == 65536
        ours.store_numbers([2], 65536)
        peer.check_numbers([2], 65536)
    finally:
        peer.adapter.close()
