"""saltern: a local storage engine for the KV caches of LLM serving.

One raw file per object, named by its key, moved with io_uring and O_DIRECT between NVMe and memory. This module is the engine
for Python; ``saltern.lmcache`` holds the classes that mount it under the LMCache daemon.

    >>> import saltern, tempfile
    >>> directory = tempfile.TemporaryDirectory(dir=".")
    >>> with saltern.Engine(directory.name, max_capacity_gb=1) as engine:
    ...     key = saltern.Key("meta-llama/Llama-3.1-8B", b"\\x07" * 32, cache_salt="tenant-1")
    ...     stored = engine.store(key, b"bytes of one chunk")
    ...     found = engine.lookup([key])
    ...     loaded = bytes(engine.load(key))
    >>> stored, found, loaded
    (18, [18], b'bytes of one chunk')
    >>> directory.cleanup()
"""

from ._engine import Engine, Usage
from ._saltern import (
    Closed,
    ConfigError,
    Full,
    InvalidKey,
    IoError,
    Key,
    NotAdmitted,
    NotFound,
    OverQuota,
    Pages,
    Pinned,
    Registered,
    SalternError,
    TimedOut,
    TooLarge,
    VolumeOwned,
    WrongSize,
    __version__,
)

__all__ = [
    "Closed",
    "ConfigError",
    "Engine",
    "Full",
    "InvalidKey",
    "IoError",
    "Key",
    "NotAdmitted",
    "NotFound",
    "OverQuota",
    "Pages",
    "Pinned",
    "Registered",
    "SalternError",
    "TimedOut",
    "TooLarge",
    "Usage",
    "VolumeOwned",
    "WrongSize",
    "__version__",
]
