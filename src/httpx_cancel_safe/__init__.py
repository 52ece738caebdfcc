"""Cancelled httpx requests give their connections back, on httpx 0.15.0 to 0.22.0."""

__version__ = "1.0.0"

import sys
import types
from typing import TYPE_CHECKING, Any

from ._patch import client_class, is_patched, patch, patched, unpatch
from ._releases import UnsupportedHTTPXError
from ._stats import Stats, stats

__all__ = [
    "SafeAsyncClient",
    "SafeClient",
    "Stats",
    "UnsupportedHTTPXError",
    "is_patched",
    "patch",
    "patched",
    "stats",
    "unpatch",
]


if TYPE_CHECKING:
    from ._clients import SafeAsyncClient as SafeAsyncClient
    from ._clients import SafeClient as SafeClient


class _Module(types.ModuleType):
    """Makes the client classes when they are asked for: that is what needs httpx."""

    def __getattr__(self, name: str) -> Any:
        if name not in ("SafeAsyncClient", "SafeClient"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        client = client_class(name)
        setattr(self, name, client)
        return client


sys.modules[__name__].__class__ = _Module
