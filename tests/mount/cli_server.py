"""LMCache's command line for the suite: LMCache is imported once, and each command runs in a fork.

Reads JSON lines (``argv``, ``salt``, ``output``) and answers with the exit code. ``salt`` is for ``lmcache bench server``, which has no
option for it: its client asks for one tenant.
"""

from __future__ import annotations

import json
import os
import sys
import traceback

import lmcache.cli.commands.bench.l2_adapter_bench.runner  # noqa: F401
import lmcache.cli.commands.bench.server_bench.client  # noqa: F401
from lmcache.cli.main import main
from lmcache.v1.distributed.l2_adapters.factory import load_all_adapters
from lmcache.v1.multiprocess.custom_types import IPCCacheServerKey


def use_salt(salt: str) -> None:
    plain = IPCCacheServerKey.__init__

    def salted(self, *args, **kwargs):
        kwargs.setdefault("cache_salt", salt)
        plain(self, *args, **kwargs)

    IPCCacheServerKey.__init__ = salted


def child(argv: list[str], salt: str | None, output: str) -> None:
    """Never returns."""
    code = 1
    try:
        fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        if salt is not None:
            use_salt(salt)
        sys.argv = ["lmcache", *argv]
        result = main()
        code = result if isinstance(result, int) else 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# What a command would import at its first use.
load_all_adapters()
# Imports print now and then: only exit codes may reach whoever asks.
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)
for line in sys.stdin:
    command = json.loads(line)
    pid = os.fork()
    if pid == 0:
        child(**command)
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), file=answers)
