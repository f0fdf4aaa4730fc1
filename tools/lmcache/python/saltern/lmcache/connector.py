"""The ``native_plugin`` mount."""

from __future__ import annotations

import json
from typing import Any

from .. import _saltern


class SalternConnector(_saltern.Connector):
    """saltern behind LMCache's bridge for native connectors.

    The bridge decides more than a connector can: it counts usage from 0 after each restart, and its deletes do not ask for pins. The
    ``plugin`` mount (:class:`SalternL2Adapter`) has neither fault; use this one where only native connectors can be mounted.

    Args:
        **adapter_params: The options of the ``plugin`` mount; ``base_path`` is needed. ``max_capacity_gb`` here is a hard limit of
            the engine, beside the bridge's own setting of that name, which drives its eviction.

    Raises:
        ConfigError: An option is not known or not usable.
        VolumeOwned: Another engine has the directory.
    """

    def __new__(cls, **adapter_params: Any) -> "SalternConnector":
        return super().__new__(cls, json.dumps(adapter_params))
