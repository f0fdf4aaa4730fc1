"""Who takes part, and how each is mounted on a directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

GIB = 1024**3


def _plugin(path: Path, capacity: int, options: dict[str, Any]) -> dict[str, Any]:
    params = {"base_path": str(path), "max_capacity_gb": capacity / GIB, **options}
    mount = {"type": "plugin", "module_path": "saltern.lmcache", "class_name": "SalternL2Adapter"}
    return {**mount, "adapter_params": params}


def _native_plugin(path: Path, capacity: int, options: dict[str, Any]) -> dict[str, Any]:
    params = {"base_path": str(path), "max_capacity_gb": capacity / GIB, **options}
    return {
        "type": "native_plugin",
        "module_path": "saltern.lmcache",
        "class_name": "SalternConnector",
        "adapter_params": params,
        "max_capacity_gb": capacity / GIB,
    }


def _fs(path: Path, capacity: int, options: dict[str, Any]) -> dict[str, Any]:
    return {"type": "fs", "base_path": str(path), "use_odirect": True}


def _fs_native(path: Path, capacity: int, options: dict[str, Any]) -> dict[str, Any]:
    return {"type": "fs_native", "base_path": str(path), "use_odirect": True, "max_capacity_gb": capacity / GIB}


def _nixl(path: Path, capacity: int, options: dict[str, Any]) -> dict[str, Any]:
    backend = {"file_path": str(path), "use_direct_io": "true", "max_capacity_gb": str(capacity / GIB)}
    return {"type": "nixl_store_dynamic", "backend": "POSIX", "backend_params": backend}


#: By the name that the report has for each; LMCache's own with O_DIRECT, and their defaults else.
ALL: dict[str, Callable[[Path, int, dict[str, Any]], dict[str, Any]]] = {
    "saltern": _plugin,
    "saltern-native": _native_plugin,
    "lmcache-fs": _fs,
    "lmcache-fs-native": _fs_native,
    "lmcache-nixl-dynamic": _nixl,
}

PEERS = tuple(name for name in ALL if name.startswith("lmcache"))


def spec(name: str, path: Path, capacity: int, options: dict[str, Any]) -> str:
    return json.dumps(ALL[name](path, capacity, options))
