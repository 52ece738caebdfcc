"""Guard the connection pools of httpcore that a client uses.

To guard a pool is to replace its class by a subclass of it. Its attributes stay as they were, for tools that look at
them. There is one module for each generation of httpcore, which says how the books of `books` are kept there.
"""

import functools
import sys
import threading
from typing import Any, Iterator, List

from .. import _stats
from .books import guarded_kind, subclass


@functools.lru_cache(maxsize=None)
def generation() -> Any:
    """Return the module for the httpcore that is installed, or None for an unknown one."""
    version = getattr(sys.modules.get("httpcore"), "__version__", "")
    if version.startswith("0.14."):
        from . import httpcore014 as module
    elif version.startswith(("0.11.", "0.12.", "0.13.")):
        from . import httpcore011 as module  # type: ignore[no-redef]
    else:
        _stats.fall_back(LookupError("httpcore " + version))
        return None
    return module


def guard_pools(client: Any, settings: Any) -> None:
    """Guard each pool that `client` may use, for the guards that obey `settings`. Raises nothing."""
    try:
        module = generation()
        for pool in () if module is None else _pools_of(client, tuple(module.POOLS)):
            if "_settings" not in vars(pool):
                _guard(pool, settings, module)
    except Exception as failure:
        _stats.fall_back(failure)
    except BaseException:
        _stats.let_go(_stats.lock)
        raise


def _guard(pool: Any, settings: Any, module: Any) -> None:
    kind: Any = type(pool)
    plain = next(one for one in module.POOLS if issubclass(kind, one))
    mixin = module.POOLS[plain]
    missing = [name for name in module.POOL_NEEDS if not hasattr(pool, name)]
    if missing:
        raise AttributeError(f"{kind.__name__} has no attribute {missing[0]!r}")
    with _stats.lock:
        if "_settings" in vars(pool) or not mixin.is_quiet(pool):
            return  # Another thread has guarded it, or it is busy and the next request will.
        pool._steps, pool._plain_kind, pool.plain, pool._attempts = threading.RLock(), kind, plain, {}
        try:
            with pool._steps:
                guarded = guarded_kind(plain, mixin)
                # A subclass of httpcore's keeps the methods that it overrides.
                pool.__class__ = guarded if kind is plain else subclass(kind, kind, guarded)
                pool.open_books()
                pool._settings = settings
        except BaseException:
            if "_settings" not in vars(pool):
                pool.__class__ = kind
            _stats.let_go(pool._steps)
            raise


def _pools_of(client: Any, kinds: Any) -> Iterator[Any]:
    """Yield the pools in a client's transports, also in those that wrap others."""
    mounts = getattr(client, "_mounts", None) or getattr(client, "_proxies", {})
    pending = [one for one in (client._transport, *mounts.values()) if one is not None]
    at_most = len(pending) + 50
    for one in pending:
        if isinstance(one, kinds):
            yield one
        elif len(pending) < at_most:
            pending += _transports_in(one, kinds)


def _transports_in(transport: Any, kinds: Any) -> List[Any]:
    """Return the pools and the transports that the attributes of a transport hold."""
    values: List[Any] = []
    for value in getattr(transport, "__dict__", {}).values():
        if not isinstance(value, (list, tuple, dict)):
            values.append(value)
        elif len(value) < 50:  # Longer ones are a cache, or a log.
            values += value.values() if isinstance(value, dict) else value
    return [value for value in values if isinstance(value, kinds) or _is_transport(type(value))]


def _is_transport(kind: Any) -> bool:
    return hasattr(kind, "handle_async_request") or hasattr(kind, "handle_request") or hasattr(kind, "arequest")
