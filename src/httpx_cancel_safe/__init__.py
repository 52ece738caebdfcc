"""Cancelled httpx requests give their connections back, on httpx 0.15.0 to 0.22.0."""

__version__ = "1.1.0"

import sys
import types
from typing import TYPE_CHECKING, Any, List

from . import _patch
from ._patch import Status, UnsupportedHTTPXError, is_patched, patch, patched, status, unpatch
from ._stats import Stats, stats

__all__ = [
    "SafeAsyncClient", "SafeClient", "Stats", "Status", "UnsupportedHTTPXError",
    "is_patched", "patch", "patched", "stats", "status", "unpatch",
]

if TYPE_CHECKING:
    from ._clients import SafeAsyncClient as SafeAsyncClient
    from ._clients import SafeClient as SafeClient


class _Module(types.ModuleType):
    """Creates the client classes on first access: only they need httpx."""

    def __getattr__(self, name: str) -> Any:
        if name not in ("SafeAsyncClient", "SafeClient"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if _patch.is_needed():
            from . import _clients

            client = getattr(_clients, name)
        else:
            client = getattr(_patch.import_httpx(), name[len("Safe") :])
        setattr(self, name, client)
        return client

    def __dir__(self) -> List[str]:
        return __all__ + [name for name in vars(self) if name.startswith("__")]


sys.modules[__name__].__class__ = _Module
