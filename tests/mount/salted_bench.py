"""``lmcache bench server`` for one tenant: the first argument is the salt, which the command itself has no option for."""

import sys

from lmcache.cli.main import main
from lmcache.v1.multiprocess.custom_types import IPCCacheServerKey

salt = sys.argv.pop(1)
plain = IPCCacheServerKey.__init__


def salted(self, *args, **kwargs):
    kwargs.setdefault("cache_salt", salt)
    plain(self, *args, **kwargs)


IPCCacheServerKey.__init__ = salted
sys.argv[0] = "lmcache"
sys.exit(main())
