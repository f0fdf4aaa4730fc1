"""saltern as L2 backend of the LMCache daemon (0.5.6).

``plugin`` mount, which does all that saltern can::

    {"type": "plugin", "module_path": "saltern.lmcache", "class_name": "SalternL2Adapter",
     "adapter_params": {"base_path": "/mnt/nvme/kv", "max_capacity_gb": 500},
     "eviction": {"eviction_policy": "LRU"}}

``native_plugin`` mount, through LMCache's bridge for native connectors::

    {"type": "native_plugin", "module_path": "saltern.lmcache", "class_name": "SalternConnector",
     "adapter_params": {"base_path": "/mnt/nvme/kv"}, "max_capacity_gb": 500, "eviction": {"eviction_policy": "LRU"}}
"""

from .adapter import SalternL2Adapter
from .config import SalternL2AdapterConfig
from .connector import SalternConnector

__all__ = ["SalternConnector", "SalternL2Adapter", "SalternL2AdapterConfig"]
