"""The books of a guarded pool, the same for httpcore 0.11 to 0.14, async and sync.

Each step changes the books at once and never waits, so nobody can be cancelled half-way through one. It restores one
rule: a pool lists only connections that are idle or that a listed exchange uses.

The books are two lists, which httpcore 0.14 has itself (as `_pool` and `_requests`) and older guarded pools get:
`listed`, the connections, most recently used first, and `exchanges`, in order. Connections have the interface of 0.14,
and these methods of ours:

    can_share()             whether several requests may have the connection at once (HTTP/2, or not known yet)
    cut()                   mark it closed and close its socket, without a wait
    leave(exchange, exc)    end what `exchange` has on it; others may go on
    phase()                 what a request on it is doing
"""

import collections
import contextlib
import functools
import time
import types
from typing import Any, Callable, Optional

from .. import _stats
from .._calls import now


class Exchange:
    """A request in the books: it waits for a connection, or it has one. httpcore 0.14 has a RequestStatus here."""

    wake: Optional[Callable[[], Any]] = None
    task: Any = None  # On asyncio.
    latch: Any = None  # In threads.

    def __init__(
        self, pool: Any = None, request: Any = None, origin: Any = None, timeout: Any = None, send: Any = None
    ) -> None:
        self.pool = pool
        self.request = self.key = request  # HTTP/2 knows it by `key`.
        self.origin = origin
        self.timeout = timeout  # For a connection.
        self.send = send  # Sends the request on a connection.
        self.connection: Any = None

    def set_connection(self, connection: Any) -> None:
        self.connection = connection
        if self.wake is not None:
            try:
                self.wake()
            except RuntimeError:
                pass  # It is awake already, or its event loop is closed and nobody waits there any more.

    def abandon(self, exc: Optional[BaseException] = None) -> None:
        """End this exchange, well or with `exc`, unless it has ended."""
        if hasattr(self.pool, "settle"):  # Else it has become a plain pool again.
            self.pool.settle(self, exc)

    end = abandon


class PoolBody:
    """The body of a response from a guarded pool. Its close, or an error that comes out of it, ends the exchange."""

    def __init__(self, stream: Any, exchange: Exchange) -> None:
        self._stream = stream  # httpcore's.
        self.exchange = exchange
        self.abandon = exchange.abandon


def is_struck(exchange: Any, exc: Optional[BaseException]) -> bool:
    """Return whether `exc` may have struck between any two lines, and so left a lock locked."""
    in_thread = getattr(exchange, "latch", None) is not None  # httpcore's own have none.
    return in_thread and exc is not None and not isinstance(exc, Exception)


@functools.lru_cache(maxsize=None)
def subclass(kind: Any, *bases: Any) -> Any:
    """Return a class of `bases`, among which is the httpcore class `kind`. It keeps that one's name."""
    return type(kind.__name__, bases, {"__module__": kind.__module__})


def guarded_kind(kind: Any, mixin: Any) -> Any:
    """Return the httpcore class `kind` with `mixin` in front."""
    return kind if issubclass(kind, mixin) else subclass(kind, mixin, kind)


def _safely(step: Any) -> Any:
    """Make a step that fails on an unknown httpcore warn. It must not hide what ended a request."""

    @functools.wraps(step)
    def guarded(self: Any, *args: Any) -> None:
        try:
            step(self, *args)
        except Exception as failure:
            _stats.fall_back(failure)

    return guarded


class Books:
    """The steps. Sync pools take each of them with their lock held."""

    plain: Any  # The class of httpcore that is guarded,
    request_method = ""  # and its method that takes a request.
    trims_last_used = False  # Up to 0.13, only a connection that has become idle may be one too many.
    _users: Any  # How many exchanges have each connection; those that have None wait for one.
    _settings: Any

    def enter(self: Any, exchange: Exchange) -> bool:
        """Enter a request, and return whether it goes by these books.

        It does not where httpcore's method is replaced (by a mock, an instrumentation); on an httpcore that lacks what
        we need; and after `unpatch()`: then the pool becomes a plain one as soon as nothing is under way in it.
        """
        if not self._settings.active and not self.exchanges:
            self.become_plain()
            return False
        if self.is_replaced():
            return False
        if now.call is not None:
            now.call.exchanges.append(exchange)
        try:
            self.take_in(exchange)
        except Exception as failure:
            _stats.fall_back(failure)
            self.exchanges.remove(exchange)
            self.__class__ = self._plain_kind
            return False
        return True

    def is_replaced(self: Any) -> bool:
        """Return whether httpcore's method that takes a request is not its own any more."""
        plain = vars(self.plain)[self.request_method]
        return not (type(plain) is types.FunctionType and plain.__globals__["__name__"].startswith("httpcore."))

    def become_plain(self: Any) -> None:
        """Become a plain pool again. Its connections, which are all idle, are closed, as they are guarded."""
        self.drop_all()
        self.__class__ = self._plain_kind
        for name in ("_settings", "_plain_kind", "plain", "_users", "_attempts", "_due", "listed", "exchanges"):
            self.__dict__.pop(name, None)

    def take_in(self: Any, exchange: Exchange) -> None:
        """Enter a request. It has a connection afterwards, or waits behind the others."""
        is_first = not self._users[None]
        self.exchanges.append(exchange)
        self._users[None] += 1
        self._drop_unusable()
        self._trim()
        if not (is_first and self._assign(exchange)):
            self.serve_soon()

    @_safely
    def settle(self: Any, exchange: Exchange, exc: Optional[BaseException] = None) -> None:
        """End an exchange, well or with `exc`. Nothing more happens if it has ended already."""
        began = time.perf_counter()
        connection = exchange.connection
        try:
            self.exchanges.remove(exchange)
        except ValueError:
            if connection is not None and connection not in self.listed:
                connection.cut()  # The pool was closed meanwhile.
            return
        phase = "waiting" if connection is None else connection.phase()
        self._users[connection] -= 1
        is_used = self._users[connection] > 0
        if not is_used:
            del self._users[connection]  # Else it would stay in memory, with all that an exception of it holds.
        if connection is not None:
            connection.leave(exchange, exc)
            if not is_used and not connection.is_idle():
                self._drop(connection)
        if self.trims_last_used or not self._users[None]:
            self._trim(connection)
        if self._users[None]:
            self.serve_soon()
        if exc is not None:
            _stats.released(exchange.request, phase, exc, began)

    @_safely
    def serve(self: Any) -> None:
        """Restore the rule, whatever went wrong before. Then serve the exchanges that wait, in order."""
        self.count()
        self._drop_unusable()
        for exchange in list(self.exchanges):
            if exchange.connection is None and not self._assign(exchange):
                break
        self._trim()

    def count(self: Any) -> None:
        self._users = collections.Counter(exchange.connection for exchange in self.exchanges)

    def drop_all(self: Any) -> None:
        """Take everything out of the books, and close it. Exchanges that wait go on waiting."""
        self.exchanges[:] = [one for one in self.exchanges if one.connection is None]
        self.count()
        for connection in list(self.listed):
            self._drop(connection)

    def cut_all(self: Any) -> None:
        """Close all connections, for httpcore to take them out of the books, with their requests."""
        for connection in self.listed:
            connection.cut()
        self._users.clear()

    def _assign(self: Any, exchange: Exchange) -> bool:
        """Give a connection to an exchange that waits; return False if there is none."""
        connection = self._find(exchange.origin)
        if connection is None:
            return False
        self._users[None] -= 1
        self._users[connection] += 1
        exchange.set_connection(connection)
        return True

    def _find(self: Any, origin: Any) -> Any:
        for number, connection in enumerate(self.listed):
            is_free = not self._users[connection] or connection.can_share()
            if is_free and connection.can_handle_request(origin) and connection.is_available():
                self.listed[: number + 1] = [connection, *self.listed[:number]]  # At once: a signal may strike.
                return connection
        if self._max_connections is not None and len(self.listed) >= self._max_connections:
            evicted = next((one for one in reversed(self.listed) if self._is_free(one)), None)
            if evicted is None:
                return None
            self._drop(evicted)
        connection = self.make_connection(origin)
        self._add(connection)
        return connection

    def _is_free(self: Any, connection: Any) -> bool:
        # A connection that was given to a request is reserved for it, though it stays idle until the request is sent.
        return not self._users[connection] and connection.is_idle()

    def _drop_unusable(self: Any) -> None:
        for connection in list(self.listed):
            if not self._users[connection] and (not connection.is_idle() or connection.has_expired()):
                self._drop(connection)

    def _trim(self: Any, last_used: Any = None) -> None:
        """Close idle connections beyond `max_keepalive_connections`, the least recently used first."""
        keep = self._max_keepalive_connections
        if keep is None or len(self.listed) <= keep:
            return
        for connection in reversed(list(self.listed)):
            is_candidate = connection is last_used or not self.trims_last_used
            if len(self.listed) > keep and is_candidate and self._is_free(connection):
                self._drop(connection)

    def _drop(self: Any, connection: Any) -> None:
        # Closed first: after an interruption here it is still listed, and is dropped again.
        connection.cut()
        self._remove(connection)

    def _add(self: Any, connection: Any) -> None:
        self.listed.insert(0, connection)

    def _remove(self: Any, connection: Any) -> None:
        with contextlib.suppress(ValueError):
            self.listed.remove(connection)
