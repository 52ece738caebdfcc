"""A connection of a guarded pool, the same for httpcore 0.11 to 0.14.

Connections are nested, as in 0.14: a pool's connection holds the one that speaks HTTP/1.1 or HTTP/2, once it is
established. One through a proxy holds the connection to the proxy before that. Older connections get the names of 0.14
from `httpcore011`.
"""

import threading
from typing import Any, List

import h11  # type: ignore[import-untyped]

from .aio import Turns
from .books import Exchange, guarded_kind, is_struck
from .sockets import AsyncOpening, SyncOpening, abort, is_cut_off

_LOCKS = ("_request_lock", "_connect_lock", "_state_lock", "_init_lock", "_read_lock", "_write_lock")


def nested(connection: Any) -> List[Any]:
    """Return a connection and what is nested in it, up to the one that is established, or to None."""
    found = [connection]
    while hasattr(found[-1], "_connection"):
        found.append(found[-1]._connection)
    return found


class Connection:
    """A connection of a guarded pool, or one nested in it."""

    attribute = "_connection"  # Where httpcore has what is nested.
    opening: Any = SyncOpening
    lock: Any = staticmethod(threading.RLock)
    inner_kind: Any = object
    _network_backend: Any = None

    def _set_connection(self: Any, inner: Any) -> None:
        if inner is not None and not hasattr(inner, "_connection"):
            self.guard_inner(inner)
        self.__dict__[self.attribute] = inner

    # Guarded from the start: a signal handler may raise at any line.
    _connection = property(lambda self: self.__dict__[self.attribute], _set_connection)

    def take_over(self: Any, attempts: Any, is_in_use: bool = False) -> None:
        """Guard this connection, whose class has just become this one. What a plain request uses stays as it is."""
        if self._network_backend is not None and not hasattr(self._network_backend, "cut"):
            self._network_backend = self.opening(self._network_backend, attempts)
        if not is_in_use:
            self.replace_locks(self)
            self._connection = self._connection

    def guard_inner(self, inner: Any) -> None:
        inner.__class__ = guarded_kind(type(inner), self.inner_kind)
        self.replace_locks(inner)

    def replace_locks(self, owner: Any) -> None:
        """Give it locks that no exception can leave locked: httpcore's are Python code around a lock."""
        for name in _LOCKS:
            if hasattr(owner, name):
                setattr(owner, name, self.lock())

    def _is_broken(self) -> bool:
        """Return whether HTTP/2 must not have another request: after GOAWAY, or without its socket."""
        inner = nested(self)[-1]
        return hasattr(inner, "_h2_state") and (
            getattr(inner._network_stream, "has_failed", False)
            or inner._h2_state.state_machine.state.name == "CLOSED"
            or is_cut_off(inner._network_stream)
        )

    def is_available(self: Any) -> bool:
        return super().is_available() and not self._is_broken()  # type: ignore[misc]

    def is_idle(self: Any) -> bool:
        inner = nested(self)[-1]
        if inner is None or inner._state.name != "IDLE" or self._is_broken():
            return False
        h11_state = getattr(inner, "_h11_state", None)
        # In threads, an exception may have struck on the way back to idle.
        return h11_state is None or bool(h11_state.our_state is h11_state.their_state is h11.IDLE)

    def has_expired(self: Any) -> bool:
        # trio cannot ask a closed socket whether it is readable.
        inner = nested(self)[-1]
        return (inner is not None and is_cut_off(inner._network_stream)) or super().has_expired()  # type: ignore[misc]

    def can_share(self) -> bool:
        return not hasattr(nested(self)[-1], "_h11_state")

    def phase(self) -> str:
        inner = nested(self)[-1]
        if inner is None or not getattr(self, "_connected", True):
            return "connecting"
        h11_state = getattr(inner, "_h11_state", None)
        return "sending" if h11_state and h11_state.our_state in (h11.IDLE, h11.SEND_BODY) else "reading"

    def leave(self, exchange: Exchange, exc: Any) -> None:
        inner = nested(self)[-1]
        if hasattr(inner, "end_stream_of"):
            inner.end_stream_of(exchange)
        elif inner is not None and is_struck(exchange, exc):
            if hasattr(inner, "_h2_state"):
                inner._network_stream.has_failed = True  # Requests that are on it already may go on.
            else:
                self.cut()

    def cut(self) -> None:
        inner = nested(self)[-1]
        if inner is not None:
            inner._state = type(inner._state).CLOSED
            abort(inner._network_stream)
            return
        for one in nested(self)[:-1]:
            one._connect_failed = True
            if one._network_backend is not None:
                one._network_backend.cut()


class AsyncInner:
    """What speaks HTTP on an async connection. It closes without a wait, so nothing interrupts the end of a request."""

    async def aclose(self: Any) -> None:
        self._state = type(self._state).CLOSED
        abort(self._network_stream)


class AsyncConnection(Connection):
    """A connection of an async pool."""

    opening, lock = AsyncOpening, Turns
    inner_kind = AsyncInner

    def guard_inner(self, inner: Any) -> None:
        super().guard_inner(inner)
        if hasattr(inner, "_h2_state"):
            from . import http2  # Now, as h2 may not be installed.

            kind = http2.AsyncHTTP2 if hasattr(inner, "_send_request_headers") else http2.LegacyAsyncHTTP2
            inner.__class__ = guarded_kind(type(inner), kind)
            inner.begin()
