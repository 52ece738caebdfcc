"""Sockets under connections of httpcore 0.11 to 0.14: known from the moment they are open, closed without a wait."""

import asyncio
import contextlib
import functools
import sys
import time
from typing import Any, Dict

from .. import _stats
from .._scopes import library

# Seconds for which an attempt to connect may go on when nobody waits for it any more.
_CONNECT_LIMIT = 5.0
# How many such attempts a pool may have. Those beyond are cancelled early.
_MOST_ATTEMPTS = 10
# In how many passes of the loop an attempt ends once its socket is connected. Cancelled in one of them, it may lose it.
_PASSES = 20


def _innermost(stream: Any) -> Any:
    """Return what is under TLS and httpcore's own streams: a stream of anyio or trio, asyncio's writer, or a socket."""
    for _ in range(10):  # Not for ever: a mock has all of these attributes at each level.
        inner = stream
        for name in ("_stream", "stream", "transport_stream", "stream_writer"):
            stream = getattr(inner, name, None) or stream
        if stream is inner:
            break
    return stream


def _raw(stream: Any) -> Any:
    """Return the transport or the socket of an innermost stream."""
    found = [getattr(stream, name, None) for name in ("_transport", "_sock", "sock", "socket")]
    return next((one for one in found if one is not None), stream)


def abort(stream: Any) -> None:
    """Close the socket of a network stream at once. Nothing is flushed; the close tells the peer."""
    owner = _innermost(stream)
    inner = _raw(owner)
    try:
        if hasattr(type(inner), "abort"):
            # TLS of Python 3.6 warns if it is not told, also the one that was about to begin on `inner`.
            tls = (inner, getattr(getattr(inner, "_protocol", None), "_app_transport", None))
            # A reader of anyio's stream must not take this for the end of the body.
            for one in (owner, *(tls if sys.version_info < (3, 7) else ())):
                if hasattr(one, "_closed"):
                    one._closed = True
            if library() == "asyncio":
                # In the next pass: asyncio's wait_for() may have begun a write for a coroutine that was dropped since.
                # It keeps `stream`: asyncio's StreamWriter warns from Python 3.12 on if it goes before it is closed.
                asyncio.get_event_loop().call_soon(_abort, inner, stream)
            else:
                inner.abort()
        elif hasattr(type(inner), "aclose"):  # anyio's UNIX sockets close before they wait.
            with contextlib.closing(inner.aclose()) as closing, contextlib.suppress(StopIteration):
                closing.send(None)
        else:
            inner.close()
    except Exception as exc:
        _stats.close_failed(exc)


def _abort(transport: Any, stream: Any) -> None:
    try:
        transport.abort()
    except Exception as exc:  # It belongs to a loop that is closed.
        _stats.close_failed(exc)


def cancel_late(attempt: Any, passes: int = _PASSES) -> None:
    """Cancel an attempt to connect some passes of the loop later, in which one that has just succeeded ends."""
    if passes:
        asyncio.get_event_loop().call_soon(cancel_late, attempt, passes - 1)
    else:
        attempt.cancel()


async def let_close() -> None:
    """Wait until what was aborted is closed, which takes asyncio two passes."""
    for _ in range(2 if library() == "asyncio" else 0):
        await asyncio.sleep(0)


def is_cut_off(stream: Any) -> bool:
    """Return whether the socket of a network stream is closed or closing on our side."""
    inner = _raw(_innermost(stream))
    if hasattr(inner, "is_closing"):
        return bool(inner.is_closing())
    return hasattr(inner, "fileno") and inner.fileno() == -1


class SyncOpening:
    """A network backend, for one connection, which notes the socket that it opens."""

    def __init__(self, backend: Any, attempts: Dict[Any, Any]) -> None:
        self.plain = backend
        self._attempts = attempts
        self._opened: Any = None

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.__dict__["plain"], name)
        return functools.partial(self._open, method) if name.startswith(("connect_", "open_")) else method

    def _open(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        self.cut()
        self._opened = method(*args, **kwargs)
        return self._opened

    def cut(self) -> None:
        """Close what has been opened, if anything."""
        if self._opened is not None:
            abort(self._opened)
        self._opened = None


class AsyncOpening(SyncOpening):
    """The same for async connections.

    On asyncio, an attempt to connect runs in a task of its own: one that is cancelled just when it succeeds would lose
    its socket. A cancelled request leaves at once, and the socket is closed as soon as it is open.
    """

    async def _open(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        self.cut()  # An attempt of another request, which has given up.
        if library() != "asyncio":
            self._opened = await method(*args, **kwargs)
            return self._opened
        attempt = asyncio.ensure_future(method(*args, **kwargs))
        try:
            self._opened = await asyncio.shield(attempt)
        except BaseException:
            limit = None
            if library():
                loop = self._attempts[attempt] = asyncio.get_event_loop()
                seconds = _CONNECT_LIMIT if len(self._attempts) <= _MOST_ATTEMPTS else 0
                limit = loop.call_later(seconds, cancel_late, attempt)
            attempt.add_done_callback(functools.partial(self._give_up, limit))
            raise
        return self._opened

    def _give_up(self, limit: Any, attempt: Any) -> None:
        self._attempts.pop(attempt, None)
        if limit is not None:
            limit.cancel()
        if not attempt.cancelled() and attempt.exception() is None:
            abort(attempt.result())

    async def open_tcp_stream(self, hostname: bytes, port: int, ssl_context: Any, timeout: Any, **kwargs: Any) -> Any:
        """Open TCP and then TLS, which httpcore 0.11 to 0.13 does in one call, to know the socket in between."""
        method = self.plain.open_tcp_stream
        backend = getattr(self.plain, "backend", self.plain)
        if ssl_context is None or type(backend).__name__ == "AsyncioBackend":  # It does TLS in one call only.
            return await self._open(method, hostname, port, ssl_context, timeout, **kwargs)
        began, left = time.monotonic(), dict(timeout)
        stream = await self._open(method, hostname, port, None, timeout, **kwargs)
        if left.get("connect") is not None:
            left["connect"] = max(0.0, left["connect"] - (time.monotonic() - began))
        exceptions = sys.modules["httpcore._exceptions"]
        with exceptions.map_exceptions({OSError: exceptions.ConnectError} if library() == "asyncio" else {}):
            return await stream.start_tls(hostname, ssl_context, left)
