"""Options of the ``plugin`` mount."""

from __future__ import annotations

import json
from typing import Any

from lmcache.v1.distributed.l2_adapters.config import L2AdapterConfigBase

from .. import _saltern


class SalternL2AdapterConfig(L2AdapterConfigBase):
    """The ``adapter_params`` of the mount, checked.

    Raises:
        ValueError: An option is not known or not usable; the text names it.
    """

    def __init__(self, **options: Any) -> None:
        try:
            self.options_json = json.dumps(options)
            _saltern.check_options(self.options_json)
        except (TypeError, _saltern.ConfigError) as error:
            raise ValueError(f"saltern: {error}") from None
        self.options = options
        self.max_capacity_bytes = round(float(options.get("max_capacity_gb", 0)) * 1024**3)
        self.host_evicts = options.get("eviction_mode", "host") == "host"

    @classmethod
    def from_dict(cls, d: dict) -> "SalternL2AdapterConfig":
        return cls(**d)

    @classmethod
    def help(cls) -> str:
        return (
            "saltern adapter_params (base_path or base_paths is needed; sizes in powers of 1024):\n"
            "- base_path (str): the directory that holds the objects, on ext4 or xfs on local NVMe\n"
            "- base_paths (list): instead, one directory on each of several drives; require_volumes (bool): all have to open\n"
            "  (default true); volume_capacity_gb (float): most bytes on each (default: no limit of its own)\n"
            "- layout (str): fs (default; directories of fs and fs_native), fs3, nixl, nixl3, nixl-sharded\n"
            "- max_capacity_gb (float): most bytes of objects (default 0: no limit, no eviction)\n"
            "- eviction_mode (str): host (default: the daemon evicts), engine (saltern does, by itself)\n"
            "- eviction_policy (str): with engine: s3-fifo (default), lru, arc\n"
            "- eviction_watermark, eviction_ratio (float): with engine: from which share of the capacity it evicts, and how\n"
            "  much of the capacity below that (defaults 0.9, 0.1)\n"
            "- quotas_gb (dict): most bytes by salt, kept in the directory; default_quota_gb (float): of all other salts\n"
            "- admission (str): all (default), frequent: only what was looked up or offered admission_uses (int, 2) times\n"
            "  within admission_window (int, 1048576) keys\n"
            "- durability (str): none (default), data, full\n"
            "- integrity (str): off, store (default), verify\n"
            "- direct_io (str): auto (default), off\n"
            "- store_padded (bool): store whole slots, for peers that read with O_DIRECT (default false)\n"
            "- shards (int): I/O threads (default 1); pin_shards (bool): one CPU each (default true)\n"
            "- depth (int): requests in flight of a shard (default 64); segment_kb (float): of one request (default 1024)\n"
            "- spare_gb (float): deleted files kept to be overwritten (default 1)\n"
            "- min_free_gb (float): what stays free on the file system (default: a hundredth, at most 1)\n"
            "- max_object_mb (float): 64; max_queued_objects (int): 65536; open_files (int): a quarter of the limit, at most 8192\n"
            "- store_deadline_s, load_deadline_s, lookup_deadline_s (float): 30, 10, 2\n"
            "- pin_lease_s (float): how long a lookup holds an object at most (default 60)\n"
            "- lock_wait_s (float): how long to wait for a dead owner's I/O (default 10); scan_threads (int): 2\n"
            "- discovery (str): scan (default of fs, fs3), scan-and-ask (of nixl layouts); absent_ttl_s (float): 1\n"
            "- persist_enabled (bool): objects stay at close (default true)\n"
            "- snapshot_interval_s (float): how often the index is written (default 300; 0: at close alone)\n"
            "- status_socket (bool): `saltern top` can ask (default true)\n"
            "- io_priority (str): auto (default), stores-idle, off; write_zeroes (bool): false\n"
            "README.md of the package says more."
        )
