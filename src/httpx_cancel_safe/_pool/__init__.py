"""Put pools right after an exchange that ended badly.

What a dead exchange held is in the frames that its exception came through: which pool,
which connection, how far it had come, which socket was half open. Reading them costs a
healthy request nothing, and needs no hook inside httpcore.

One module a generation of httpcore knows how its pools keep their books. Each has
`read(frames)`, which finds the exchanges in the frames, `open_exchange(stream)`, which
finds the one behind a response stream, and `settle(exchange)`, which restores the rule:
a pool holds only connections that are idle, closed, or in use by a request that is
still running. `settle` does not wait; it returns what is left to close on the network.
"""

import functools
import sys
import types
from typing import Any, Callable, Iterator, List, Optional, Set, Tuple

from .. import _stats
from . import counted, listed
from ._common import HANDLE as HANDLE
from ._common import close_method as close_method
from .steady import make_writes_steady

# Layer, function, the frame, and what came through it. To look at a frame's variables costs a
# copy that lives as long as the frame: only where they are needed.
Frame = Tuple[str, str, types.FrameType, BaseException]
Closer = Callable[[], Any]

_BELOW = ("socket", "asyncio.tasks")
_warned = False


@functools.lru_cache(maxsize=None)
def generation() -> Any:
    """Return the module for the httpcore that is installed, or None for none we know."""
    version = getattr(sys.modules.get("httpcore"), "__version__", "")
    for prefixes, module in ((("0.11.", "0.12.", "0.13."), counted), (("0.14.",), listed)):
        if version.startswith(prefixes):
            return module
    fall_back(LookupError(version))
    return None


def frames_of(exc: BaseException, guards: Any) -> List[Frame]:
    """Return the frames of httpx, httpcore and below that `exc` came through.

    `guards` are the ids of the code objects of our guards. What lies under another guard has been
    seen to there, if that one acts; an exception from before this exchange has gone through one too.
    """
    found: List[Frame] = []
    pending: List[Any] = [(exc, True)]
    seen: Set[int] = set()
    while pending:
        one, first = pending.pop(0)
        if one is None or id(one) in seen or len(seen) > 20:
            continue
        seen.add(id(one))
        own: List[Frame] = []
        inside = False
        traceback = one.__traceback__
        if first and traceback is not None:
            traceback = traceback.tb_next  # The guard itself.
        while traceback is not None:
            frame = traceback.tb_frame
            if id(frame.f_code) in guards and frame.f_locals["acts"]:
                if not first:
                    own = []
                inside = True
                break
            layer = _layer_of(frame.f_globals.get("__name__", ""))
            if layer:
                own.append((layer, frame.f_code.co_name, frame, one))
            traceback = traceback.tb_next
        found += own
        pending += [(other, False) for other in getattr(one, "exceptions", ())]
        if not inside:  # Else these have been seen there too.
            pending += [(one.__cause__, False), (one.__context__, False)]
    return found


@functools.lru_cache(maxsize=1000)
def _layer_of(module: str) -> str:
    """Return what a module of httpx, httpcore or below is called there, "" for others."""
    ours = module.startswith(("httpx.", "httpcore.", "anyio.")) or module in _BELOW
    return module.rpartition(".")[2] if ours else ""


def settle(exchanges: List[Any]) -> List[Closer]:
    """Settle each exchange; return what is left to close. Never raises."""
    closers: List[Closer] = []
    for exchange in exchanges:
        try:
            exchange.settle(closers)
        except Exception as failure:
            fall_back(failure)
    return closers


def exchanges_in(frames: List[Frame], streams: List[Any]) -> List[Any]:
    """Return the exchanges that the frames show, and those behind the open streams."""
    books = generation()
    if books is None:
        return []
    try:
        found: List[Any] = books.read(frames)
        for stream in streams:
            exchange = open_exchange(stream)
            if exchange is not None:
                found.append(exchange)
        return found
    except Exception as failure:
        fall_back(failure)
        return []


def open_exchange(stream: Any) -> Optional[Any]:
    """Return the exchange behind a response stream of httpx, if a pool serves it."""
    books = generation()
    try:
        while books is not None and stream is not None:
            exchange = books.open_exchange(stream)
            if exchange is not None:
                return exchange
            stream = _inside(stream)
    except Exception as failure:
        fall_back(failure)
    return None


def unsettled_exchange(stream: Any) -> Optional[Any]:
    """Return the exchange behind `stream` if closing it would leave something behind."""
    books = generation()
    try:
        while books is not None and stream is not None:
            if type(stream).__name__ == books.STREAM:
                return books.open_exchange(stream) if books.is_unsettled(stream) else None
            stream = _inside(stream)
    except Exception as failure:
        fall_back(failure)
    return None


def exchanges_of(client: Any, request: Any) -> List[Any]:
    """Return what `request` has under way in the pools of `client`, as their books tell."""
    books = generation()
    if books is not listed:
        return []
    return [
        exchange
        for pool in _pools_in(_transports_of(client))
        for exchange in listed.exchanges_of(pool, request)
    ]


def prepare(client: Any, close_timeout: float) -> None:
    """Do for the pools of `client` what must be done before they are used."""
    for pool in _pools_in(_transports_of(client)):
        make_writes_steady(pool, close_timeout)
        if hasattr(pool, "_requests"):
            listed.give_back_at_once(pool)


def is_repairable(client: Any) -> bool:
    """Tell whether responses of `client` can be seen to when a request has ended.

    That is so for pools that list their requests, as long as nothing is around them.
    """
    httpx = sys.modules["httpx"]
    kinds = [getattr(httpx, name, None) for name in ("AsyncHTTPTransport", "HTTPTransport")]
    return generation() is listed and all(
        one is None or type(one) in kinds for one in _transports_of(client)
    )


def _transports_of(client: Any) -> List[Any]:
    mounts = getattr(client, "_mounts", None) or getattr(client, "_proxies", {})
    return [client._transport, *mounts.values()]


def _pools_in(transports: List[Any]) -> Iterator[Any]:
    """Yield the pools of httpcore in `transports`, also inside those that wrap others."""
    pending = list(transports)
    for one in pending:
        if hasattr(one, "_network_backend") or hasattr(one, "_add_to_pool"):
            yield one
        elif len(pending) < 50:
            for value in getattr(one, "__dict__", {}).values():
                if hasattr(value, "handle_async_request") or hasattr(value, "arequest"):
                    pending.append(value)


def _inside(stream: Any) -> Any:
    inner = getattr(stream, "_stream", None)
    return inner if inner is not None else getattr(stream, "_httpcore_stream", None)


def fall_back(failure: Exception) -> None:
    """Warn, once, that this httpcore keeps its books in a way that we do not know."""
    global _warned
    if not _warned:
        _warned = True
        version = getattr(sys.modules.get("httpcore"), "__version__", "(unknown)")
        what = f"cannot put the pools of httpcore {version} right, only close responses"
        _stats.warn_of(what, failure)
