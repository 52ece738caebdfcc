"""httpcore 0.11 to 0.13 (httpx 0.15 to 0.20): connections by origin, and a semaphore.

`pool._connections` holds the connections of each origin, and a permit of the semaphore
is out for each of them. Requests are not listed. So a connection may be taken from the
books only if this exchange had it to itself: one that it merely got hold of, or gave
back already, may serve another request by now.
"""

import sys
import time
from typing import Any, Callable, List, Optional

from ._common import (
    HALF_OPEN,
    HANDLE,
    close_method,
    half_open,
    is_begun,
    is_locked,
    is_unfinished,
    reset_stream,
    run_now,
)

STREAM = "ResponseByteStream"  # What the pool hands out.


class Exchange:
    """One request of one pool, as far as its frames show what it had reached."""

    def __init__(self, pool: Any, connection: Any = None) -> None:
        self.pool = pool
        self.connection = connection
        self.phase = "waiting"
        self.enters = False  # It was entering a new connection in the books.
        self.opens = False  # It was the one that opened the socket.
        self.owns = False  # It had taken its HTTP/1.1 connection into use.
        self.stream_id: Optional[int] = None
        self.has_permit = True  # For its HTTP/2 stream.
        self.is_out_of_step = False  # Its HTTP/2 connection, by a write cut short.
        self.sockets: List[Any] = []
        self.dropped: List[Any] = []  # Idle connections it was taking out for the pool.
        self.body: Any = None  # httpcore's response stream, once there is one.
        self.gave_back = False  # Another request may have the connection by now.

    def settle(self, closers: List[Callable[[], Any]]) -> None:
        # Those dropped say that they are closed as soon as that begins.
        sockets = self.sockets + [one.socket for one in self.dropped if one.socket is not None]
        closers += [close_method(socket) for socket in sockets]
        if self.connection is not None:
            self._settle_connection(self.connection, closers)
        if self.enters:
            _return_lost_permits(self.pool)
            _wake_next(self.pool)

    def _settle_connection(self, connection: Any, closers: List[Callable[[], Any]]) -> None:
        pool = self.pool
        inner = connection.connection
        if inner is None:
            if self.opens or not is_locked(getattr(connection, "_request_lock", None)):
                # Whoever waits for it is sent for a new one.
                setattr(connection, _name(connection, "connect_failed"), True)
                _drop(pool, connection)
                if connection.socket is not None:
                    closers.append(close_method(connection.socket))
            elif not getattr(connection, _name(connection, "connect_failed")):
                _restore(pool, connection)
            return
        state_name = _name(inner, "state")
        state = getattr(inner, state_name)
        idle, closed = type(state).IDLE, type(state).CLOSED
        is_h2 = hasattr(inner, _name(inner, "h2_state"))
        if self.gave_back and not is_h2 and state is not closed:
            return
        if is_h2:
            self._end_stream(inner, closers)
            if self.is_out_of_step:
                state = closed
            busy = getattr(inner, _name(inner, "streams")) or is_locked(
                getattr(inner, "_initialization_lock", None)
            )
        elif self.owns:
            state, busy = (state if state is idle else closed), False
        else:
            busy = state.name == "ACTIVE"  # With another request.
        if state is not closed and busy:
            _restore(pool, connection)
        elif state is not closed and _in_books(pool, connection):
            setattr(inner, state_name, idle)  # It may have been reserved, and is unused.
            _expire_later(pool, connection, inner)
        else:
            setattr(inner, state_name, closed)
            _drop(pool, connection)
            closers.append(close_method(inner.socket))

    def _end_stream(self, inner: Any, closers: List[Callable[[], Any]]) -> None:
        state = getattr(inner, _name(inner, "h2_state"))
        if is_begun(state, getattr(inner, "_initialization_lock", None)):
            setattr(inner, _name(inner, "sent_connection_init"), True)
        streams = getattr(inner, _name(inner, "streams"))
        if self.stream_id in streams:
            del streams[self.stream_id]
            events = getattr(inner, _name(inner, "events")).pop(self.stream_id, [])
            if self.has_permit:
                run_now(inner.max_streams_semaphore.release())
            if self.body is not None:
                self.body._aclose_func = None
            reset_stream(state, self.stream_id, events)
            if not self.is_out_of_step:  # Else it would wait for what was cut short.
                closers.append(lambda: inner.socket.write(state.data_to_send(), {}))


def read(frames: List[Any]) -> List[Exchange]:
    """Return the exchanges in `frames`, which run from the caller to what was called."""
    found: List[Exchange] = []
    current: Any = None
    for where, function, frame, error in frames:
        if where in ("connection_pool", "http_proxy"):
            local = frame.f_locals
            if function in HANDLE:
                current = Exchange(local["self"])
                found.append(current)
            if current is None:
                continue
            if function in HANDLE or function in ("_forward_request", "_tunnel_request"):
                current.connection = local.get("connection")
                if current.connection is None and "proxy_connection" in local:
                    current.connection = local["proxy_connection"]
                    current.owns = True
                    current.phase = "connecting"
            elif function == "_add_to_pool":
                current.connection = local["connection"]
                current.enters = True
            elif function == "_get_connection_from_pool":
                current.connection = local.get("reuse_connection")
            current.dropped += local.get("connections_to_close", ())
        elif current is None:
            continue
        elif function == "_open_socket":
            current.opens = True
            current.phase = "connecting"
        elif where == "http11" and function in HANDLE:
            current.owns = True
        elif where == "http2" and function in HANDLE:
            local = frame.f_locals
            current.stream_id = local.get("stream_id", getattr(local["self"], "stream_id", None))
            current.has_permit = not isinstance(error, Exception)  # Else httpcore did it.
        socket = half_open(function, frame) if function in HALF_OPEN else None
        if socket is not None:
            current.sockets.append(socket)
        if where == "http2" and frame.f_locals.get("data_to_send"):
            me = frame.f_locals["self"]
            stream = (me.connection if hasattr(me, "connection") else me).socket
            current.is_out_of_step = getattr(stream, "is_out_of_step", True)
        if where in ("http11", "http2") and current.phase != "connecting":
            if function.lstrip("_").startswith("send"):
                current.phase = "sending"
            elif function.lstrip("_").startswith(("receive", "wait_for_event")):
                current.phase = "reading"
    return found


def is_unsettled(stream: Any) -> bool:
    """Tell whether closing this stream alone would leave something behind.

    HTTP/2's may. TLS of asyncio's would wait for its peer, and stop reading when that sends on.
    """
    inner = stream.connection.connection
    state = getattr(inner, _name(inner, "h2_state"), None)
    if state is not None:
        return is_unfinished(state, _stream_id(stream))
    writer = getattr(inner.socket, "stream_writer", None)
    if writer is None or writer.get_extra_info("sslcontext") is None:
        return False
    h11_state = getattr(inner, _name(inner, "h11_state"))
    return h11_state.their_state is not sys.modules["h11"].DONE


def _stream_id(stream: Any) -> Any:
    close = getattr(stream.stream, "_aclose_func", None)
    if close is None:
        close = getattr(stream.stream, "_close_func", None)
    return getattr(getattr(close, "__self__", None), "stream_id", None)


def open_exchange(stream: Any) -> Optional[Exchange]:
    """Return the exchange that a pool's `ResponseByteStream` serves; None for others."""
    pool = getattr(getattr(stream, "callback", None), "__self__", None)
    if not hasattr(pool, "_connections"):
        return None
    exchange = Exchange(pool, stream.connection)
    exchange.owns = True
    exchange.phase = "reading"
    exchange.body = stream.stream
    exchange.stream_id = _stream_id(stream)
    return exchange


def _name(thing: Any, name: str) -> str:
    """Return the attribute as this release spells it: with an underscore from 0.13.4 on."""
    return "_" + name if hasattr(thing, "_" + name) else name


def _in_books(pool: Any, connection: Any) -> bool:
    return connection in pool._connections.get(connection.origin, ())


def _drop(pool: Any, connection: Any) -> None:
    if _in_books(pool, connection):
        run_now(pool._remove_from_pool(connection))


def _restore(pool: Any, connection: Any) -> None:
    """Put a connection back that httpcore took out although others use it.

    It does so when any request on it fails. Its permit is gone, perhaps to another
    connection: then the next release is left out.
    """
    if not _in_books(pool, connection):
        pool._connections.setdefault(connection.origin, set()).add(connection)
        _owe_permit(pool._connection_semaphore, hasattr(pool, "aclose"))


def _owe_permit(semaphore: Any, is_async: bool) -> None:
    original = semaphore.release

    def release_sync() -> None:
        semaphore.release = original

    async def release() -> None:
        release_sync()

    semaphore.release = release if is_async else release_sync


def _return_lost_permits(pool: Any) -> None:
    """Release what was acquired for a connection that never came into the books."""
    limit = pool._max_connections
    semaphore = getattr(pool._connection_semaphore, "semaphore", None)
    if semaphore is None or not hasattr(pool, "aclose"):
        return
    value = getattr(semaphore, "value", None)
    if value is None:
        value = semaphore._value
    booked = sum(len(connections) for connections in pool._connections.values())
    for _ in range(limit - value - booked):
        run_now(pool._connection_semaphore.release())


def _wake_next(pool: Any) -> None:
    """Let asyncio's semaphore of Python 3.9 and 3.10 wake others again.

    A waiter that is cancelled once it was woken leaves the flag set for ever
    (https://github.com/python/cpython/issues/90155).
    """
    semaphore: Any = getattr(pool._connection_semaphore, "semaphore", None)
    if semaphore is not None and getattr(semaphore, "_wakeup_scheduled", False):
        semaphore._wakeup_scheduled = False
        semaphore._wake_up_next()  # It waits again if there is nothing.


def _expire_later(pool: Any, connection: Any, inner: Any) -> None:
    if pool._keepalive_expiry is not None:
        expire_at = time.monotonic() + pool._keepalive_expiry
        if hasattr(inner, "_should_expire_at"):
            inner._should_expire_at = expire_at
        else:
            connection.expires_at = expire_at
