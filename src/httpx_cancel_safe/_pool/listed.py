"""httpcore 0.14 (httpx 0.21 and 0.22): the pool lists its requests and its connections.

`pool._requests` holds a status for each request, with its connection once it has one;
`pool._pool` holds the connections. A connection that is neither idle nor closed, and
that no status refers to, is an orphan.
"""

import asyncio
import sys
import threading
import time
import weakref
from typing import Any, Callable, List, Optional

from .. import _closing
from .._stats import warn_of
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
from .steady import SteadyMixin

STREAM = "ConnectionPoolByteStream"  # What the pool hands out.


class Vacant:
    """Stands in for a connection that is gone, until the pool's own housekeeping comes.

    A task that waits while it holds the pool's lock remembers places in `pool._pool` by
    number, so nothing may move there.
    """

    def can_handle_request(self, origin: Any) -> bool:
        return False

    is_available = lambda self: False  # noqa: E731
    is_idle = has_expired = is_closed = lambda self: True

    async def aclose(self) -> None:
        pass


class Settled:
    """Stands in for the pool of a response whose exchange is settled already.

    The pool's own `response_closed()` would look for it in the books, and before 0.14.6
    raise when it is not there (https://github.com/encode/httpcore/issues/491).
    """

    async def response_closed(self, status: Any) -> None:
        pass


class SettledSync:
    def response_closed(self, status: Any) -> None:
        pass


class Exchange:
    """One request of one pool, as far as its frames show what it had reached."""

    def __init__(self, pool: Any, status: Any) -> None:
        self.pool = pool
        self.status = status
        self.request: Any = getattr(status, "request", None)
        self.phase = "waiting"
        self.owns = False  # It had taken its HTTP/1.1 connection into use.
        self.closing = False  # httpcore was closing its connection, and may have been cut short.
        self.stream_id: Optional[int] = None
        self.is_out_of_step = False  # Its HTTP/2 connection, by a write cut short.
        self.sockets: List[Any] = []
        self.met: List[Any] = []  # Connections it was closing for the pool.
        self.stream: Any = None  # The pool's response stream, once there is one,
        self.body: Any = None  # and the connection's, inside it.
        self.gave_back = False  # Another request may have the connection by now,
        self.keeps = False  # unless giving it back was cut short.

    def settle(self, closers: List[Callable[[], Any]]) -> None:
        if isinstance(getattr(self.pool._pool_lock, "_lock", None), type(threading.Lock())):
            with self.pool._pool_lock:
                self._settle(closers)
        else:
            self._settle(closers)

    def _settle(self, closers: List[Callable[[], Any]]) -> None:
        pool, status = self.pool, self._find_status()
        connection = None if status is None else status.connection
        if self.stream is not None:
            self.stream._pool = Settled() if hasattr(pool, "aclose") else SettledSync()
        if not _take_out(pool, status):
            self.gave_back = self.stream is not None  # Before a response nothing is given back.
        closers += [close_method(socket) for socket in self.sockets]
        if connection is not None:
            self._settle_connection(connection, closers)
        for other in self.met:
            if other is not connection and other.is_closed() and not _in_use(pool, other):
                _vacate(pool, other)
                closers.append(close_method(other))
        _serve_soon(pool, closers)

    def _find_status(self) -> Any:
        if self.status is None:
            for status in self.pool._requests:
                if status.request is self.request:
                    return status
        return self.status

    def _settle_connection(self, connection: Any, closers: List[Callable[[], Any]]) -> None:
        inner = _established(connection)
        is_h2 = hasattr(inner, "_h2_state")
        was_closed = inner is not None and inner.is_closed() and not self.closing
        if is_h2:
            self._end_stream(inner, closers)
            in_use = _in_use(self.pool, connection)
            broken = getattr(inner, "_connection_error", False) or inner._events
            gone = inner.is_closed() or self.is_out_of_step or (not in_use and broken)
            if not gone and not in_use:
                _make_idle(inner)
        elif inner is None:
            gone = not _in_use(self.pool, connection)
            if not gone:
                _await_others(self.pool, connection)
        elif inner.is_closed():
            gone = True
        elif inner.is_idle():
            gone = False
        else:
            is_ours = self.owns and (self.keeps or not self.gave_back)
            gone = is_ours or not _in_use(self.pool, connection)
            if not gone and inner._state.name == "NEW":
                # Unused, but only its maker could have begun: httpcore #1093, second shape.
                _make_idle(inner)
        if gone:
            _vacate(self.pool, connection)
            if inner is not None and not was_closed:
                inner._state = type(inner._state).CLOSED
                closers.append(close_method(inner))

    def _end_stream(self, inner: Any, closers: List[Callable[[], Any]]) -> None:
        if not inner._sent_connection_init and is_begun(inner._h2_state, inner._init_lock):
            names = vars(sys.modules["httpcore._synchronization"])
            is_async = hasattr(inner, "aclose")
            semaphore = names["AsyncSemaphore" if is_async else "Semaphore"]
            streams = inner._h2_state.local_settings.max_concurrent_streams
            inner._max_streams_semaphore = semaphore(streams)
            inner._sent_connection_init = True
        if self.stream_id in inner._events and not inner.is_closed():
            events = inner._events.pop(self.stream_id)
            run_now(inner._max_streams_semaphore.release())
            reset_stream(inner._h2_state, self.stream_id, events)
            if self.stream is not None:
                self.stream._stream = None  # Its close would end the same once more,
                self.body._closed = True  # and so would its generator, left half-way.
            request = self.request
            if not self.is_out_of_step:  # Else it would wait for what was cut short.
                closers.append(lambda: inner._write_outgoing_data(request))


def read(frames: List[Any]) -> List[Exchange]:
    """Return the exchanges in `frames`, which run from the caller to what was called."""
    found: List[Exchange] = []
    current: Any = None
    for where, function, frame, _ in frames:
        if where == "default":
            local = frame.f_locals
            if "req" in local:
                current = Exchange(local["self"]._pool, None)
                current.request = local["req"]
                found.append(current)
        elif where == "connection_pool":
            local = frame.f_locals
            me = local.get("self")
            if function in HANDLE:
                if current is None or current.pool is not me:
                    current = Exchange(me, None)
                    found.append(current)
                current.status = local.get("status")
                current.request = local.get("request")
            elif hasattr(me, "_status"):
                known = [exchange for exchange in found if exchange.stream is me]
                current = known[0] if known else open_exchange(me)
                found += [] if known or current is None else [current]
            elif current is not None and "connection" in local:
                current.met.append(local["connection"])
                if function == "response_closed":
                    current.phase = "closing"
        elif current is None:
            continue
        elif where == "connection" and function == "_connect":
            current.phase = "connecting"
        elif where == "http_proxy" and function in HANDLE and "target" in frame.f_locals:
            _note_tunnel(current, frame.f_locals, "_connected")
        elif where == "socks_proxy" and function in HANDLE and "kwargs" in frame.f_locals:
            _note_tunnel(current, frame.f_locals, "_connection")
        elif where == "http11" and function in HANDLE:
            # As of here only this request can give it back; on Python 3.9 a second cancel in
            # its `except` hides the frame that shows that it was doing so.
            current.owns = current.keeps = "kwargs" in frame.f_locals
        elif where == "http2" and function in HANDLE:
            current.stream_id = frame.f_locals.get("stream_id")
        elif where == "http2" and function == "_write_outgoing_data":
            local = frame.f_locals
            stream = local["self"]._network_stream
            unsteady = local.get("data_to_send") and not isinstance(stream, SteadyMixin)
            current.is_out_of_step = unsteady or getattr(stream, "is_out_of_step", False)
        if function == "aclose" and current is not None:
            current.closing = True
            current.gave_back = current.gave_back or where == "connection_pool"
        if where == "http11" and function in ("_response_closed", "aclose"):
            current.keeps = True
        if function in HALF_OPEN:
            _note(current, half_open(function, frame))
        if where in ("http11", "http2") and current.phase != "connecting":
            if function.startswith("_send"):
                current.phase = "sending"
            elif function.startswith("_receive"):
                current.phase = "reading"
    return found


def _note_tunnel(exchange: Any, local: Any, established: str) -> None:
    """Note a connection through a proxy that is not established yet."""
    if not getattr(local["self"], established):
        exchange.phase = "connecting"
        _note(exchange, local.get("stream"))


def give_back_at_once(pool: Any) -> None:
    """Have a pool take back from a failed request without waiting, and serve others once for all.

    Else a thousand requests that are cancelled at once make it a million looks, and a second
    cancel finds more places to strike. What goes well is left to the pool.
    """
    if "response_closed" in vars(pool):
        return
    me: Any = weakref.ref(pool)

    def response_closed(status: Any) -> Any:
        pool, error = me(), sys.exc_info()[1]
        # One that was dropped is found by what the pool lists: see `exchanges_of()`.
        is_failed = error is not None and not isinstance(error, GeneratorExit)
        if not is_failed or _closing.library() != "asyncio":
            return type(pool).response_closed(pool, status)
        _take_out(pool, status)
        connection = status.connection
        if connection.is_closed() and not (
            _established(connection) is None and _in_use(pool, connection)
        ):
            _vacate(pool, connection)
        _serve_soon(pool, [])
        return _closing.nothing()

    pool.response_closed = response_closed


def _take_out(pool: Any, status: Any) -> bool:
    """Take a request out of the books, and tell whether it was there; to look for it takes long."""
    if status is None or getattr(status, "_cancel_safe_is_out", False):
        return False
    status._cancel_safe_is_out = True
    try:
        pool._requests.remove(status)
    except ValueError:
        return False
    return True


def exchanges_of(pool: Any, request: Any) -> List[Exchange]:
    """Return the listed exchanges of a request of httpx; its redirects share extensions."""
    found = []
    for status in pool._requests:
        if status.request.extensions is request.extensions:
            exchange = Exchange(pool, status)
            exchange.owns = True
            exchange.phase = "reading" if status.connection else "waiting"
            found.append(exchange)
    return found


def is_unsettled(stream: Any) -> bool:
    """Tell whether closing this stream alone would leave something behind.

    That is one which says that it is closed, but was interrupted meanwhile
    (https://github.com/encode/httpcore/issues/1115), or one of HTTP/2 not at its end.
    """
    body = stream._stream
    if getattr(body, "_closed", False):
        return True
    stream_id = getattr(body, "_stream_id", None)
    return stream_id is not None and is_unfinished(body._connection._h2_state, stream_id)


def open_exchange(stream: Any) -> Optional[Exchange]:
    """Return the exchange that a `ConnectionPoolByteStream` serves; None for others."""
    if not hasattr(stream, "_status") or not hasattr(stream._pool, "_requests"):
        return None
    exchange = Exchange(stream._pool, stream._status)
    exchange.stream = stream
    exchange.owns = True
    exchange.phase = "reading"
    exchange.body = stream._stream
    if hasattr(exchange.body, "_stream_id"):
        exchange.stream_id = exchange.body._stream_id
    return exchange


def _note(exchange: Any, socket: Any) -> None:
    if socket is not None:
        exchange.sockets.append(socket)


def _in_use(pool: Any, connection: Any) -> bool:
    return any(status.connection is connection for status in pool._requests)


def _await_others(pool: Any, connection: Any) -> None:
    """Keep a connection that was not established: who waits for it will do so themselves.

    httpcore takes it for closed when that failed; before Python 3.8 a cancel is a failure, too.
    """
    inner = connection
    while hasattr(inner, "_connection"):
        if getattr(inner, "_connect_failed", False):
            inner._connect_failed = False
        inner = inner._connection
    if connection not in pool._pool:
        connection._cancel_safe_is_out = False
        pool._pool.append(connection)


def _established(connection: Any) -> Any:
    """Return the HTTP/1.1 or HTTP/2 connection inside, through proxies; None if not yet."""
    while hasattr(connection, "_connection"):
        connection = connection._connection
    return connection


def _make_idle(inner: Any) -> None:
    inner._state = type(inner._state).IDLE
    if inner._keepalive_expiry is not None:
        inner._expire_at = time.monotonic() + inner._keepalive_expiry


def _vacate(pool: Any, connection: Any) -> None:
    if getattr(connection, "_cancel_safe_is_out", False):
        return
    connection._cancel_safe_is_out = True
    connections = pool._pool
    # New ones come in front: where many end at once, the first of them is the last.
    if connections and connections[-1] is connection:
        place = len(connections) - 1
    else:
        try:
            place = connections.index(connection)
        except ValueError:
            return
    if _is_held(pool):
        connections[place] = Vacant()
    else:
        del connections[place]


def _is_held(pool: Any) -> bool:
    """Tell whether a task waits while it holds the lock; in threads it is we who hold it."""
    return hasattr(pool, "aclose") and is_locked(pool._pool_lock)


def _serve_soon(pool: Any, closers: List[Callable[[], Any]]) -> None:
    """Give the waiting requests their turn: once for all that end in a pass of the loop."""
    if _closing.library() == "asyncio" and hasattr(pool, "aclose"):
        loop = asyncio.get_event_loop()
        if getattr(pool, "_cancel_safe_due", None) is not loop:
            pool._cancel_safe_due = loop
            loop.call_soon(_serve_due, pool)
    elif _is_held(pool):
        closers.append(lambda: _serve_later(pool))
    else:
        _serve(pool, closers)


def _serve_due(pool: Any) -> None:
    if _is_held(pool):
        # Who holds the lock may be about to get a connection for itself.
        _closing.in_background(_serve_later(pool), "asyncio")
        return
    pool._cancel_safe_due = None
    closers: List[Callable[[], Any]] = []
    _serve(pool, closers)
    if closers:
        _closing.in_background(_close_all(closers), "asyncio")


async def _serve_later(pool: Any) -> None:
    closers: List[Callable[[], Any]] = []
    async with pool._pool_lock:
        pool._cancel_safe_due = None
        _serve(pool, closers)
    await _close_all(closers)


async def _close_all(closers: List[Callable[[], Any]]) -> None:
    for close in closers:
        try:
            await close()
        except Exception as failure:
            warn_of("a clean-up failed", failure)


def _serve(pool: Any, closers: List[Callable[[], Any]]) -> None:
    """Give the waiting requests their turn, in order, as the pool does."""
    for status in pool._requests:
        if status.connection is None:
            connection = _acquire(pool, status.request.url.origin, closers)
            if connection is None:
                return
            status.set_connection(connection)


def _acquire(pool: Any, origin: Any, closers: List[Callable[[], Any]]) -> Any:
    idle = None
    for place, connection in enumerate(pool._pool):
        if connection.can_handle_request(origin) and connection.is_available():
            return connection
        if connection.is_idle():
            idle = place
    if len(pool._pool) < pool._max_connections:
        pool._pool.append(pool.create_connection(origin))
        return pool._pool[-1]
    if idle is None:
        return None
    evicted, pool._pool[idle] = pool._pool[idle], pool.create_connection(origin)
    closers.append(close_method(evicted))
    return pool._pool[idle]
