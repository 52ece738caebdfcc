"""httpcore 0.11 to 0.13, where a pool lists connections by origin, counts permits, and does not list its requests.

From 0.13.4 on (`_KNOWS_STATE`) a connection knows its state and its expiry. Before, its pool keeps track of them. Up to
0.13.4 (`_IS_BARE`) attributes have no underscore in front. What is guarded there has both names.
"""

# mypy: ignore-errors

import contextlib
import operator
import sys
import time
from typing import Any

import httpcore
from httpcore._async import base as async_base
from httpcore._async.connection import AsyncHTTPConnection
from httpcore._async.http_proxy import get_reason_phrase, merge_headers
from httpcore._sync import base as sync_base
from httpcore._utils import url_to_origin

from .._scopes import is_cancel, library
from .aio import AsyncPool, Turns
from .books import Books, Exchange, guarded_kind
from .connections import AsyncConnection, AsyncInner, Connection
from .sockets import is_cut_off
from .threads import SyncPool

_KNOWS_STATE = hasattr(AsyncHTTPConnection, "is_idle")
_IS_BARE = "backend" in AsyncHTTPConnection.__init__.__code__.co_names
_IS_013 = hasattr(AsyncHTTPConnection, "handle_async_request")
_EMPTY = (getattr(httpcore, "ByteStream", None) or httpcore.PlainByteStream)(b"")

POOL_NEEDS = ("_connections", "_max_connections", "_max_keepalive_connections", "_keepalive_expiry", "_backend")
POOL_NEEDS += ("_create_connection",)  # Which 0.11.0 lacks.


def _alias(name: str) -> Any:
    return property(operator.attrgetter(name), lambda self, value: setattr(self, name, value))


class Named:
    """It has the attributes of 0.14."""

    _network_stream = _alias("socket")
    _network_backend = _alias("backend" if _IS_BARE else "_backend")
    if _IS_BARE:
        _connect_failed, _ssl_context = _alias("connect_failed"), _alias("ssl_context")
        _h2_state, _events, _streams = _alias("h2_state"), _alias("events"), _alias("streams")
        _sent_connection_init = _alias("sent_connection_init")
    if not _KNOWS_STATE:
        _state, _h11_state = _alias("state"), _alias("h11_state")


class AsyncLegacyInner(AsyncInner, Named):
    """What speaks HTTP on an async connection."""


def _now() -> float:
    return float(sys.modules["trio"].current_time()) if library() == "trio" else time.monotonic()


class LegacyConnection(Named, Connection):
    """A connection of a guarded pool. It has the methods of 0.14, too."""

    attribute = "connection"
    connection = Connection._connection
    _request_lock: Any = None
    inner_kind = Named

    def can_handle_request(self: Any, origin: Any) -> bool:
        return bool(self.origin == origin)

    def is_available(self: Any) -> bool:
        if _KNOWS_STATE:
            return super().is_available()
        if self.connection is None:
            if not self.http2 or self.connect_failed:
                return False
            return not any(one.is_http11 for one in self.pool.listed if one.origin == self.origin)
        return self.is_idle() or (self.is_http2 and self.connection.state.name == "ACTIVE" and not self._is_broken())

    def has_expired(self: Any) -> bool:
        is_cut = is_cut_off(self.connection.socket)
        if _KNOWS_STATE:
            return is_cut or bool(self.should_close())
        is_readable = getattr(self, "is_socket_readable", None) or self.is_connection_dropped
        return is_cut or is_readable() or (self.expires_at is not None and _now() >= self.expires_at)

    def close(self: Any) -> None:
        # A plain request that ends in another thread closes its connection, which may have another request by now.
        with self.pool._steps:
            if not getattr(self.pool, "_users", {}).get(self):
                super().close()

    def leave(self: Any, exchange: Exchange, exc: Any) -> None:
        super().leave(exchange, exc)
        expiry = exchange.pool._keepalive_expiry
        if not _KNOWS_STATE and expiry is not None and self.is_idle():
            self.expires_at = _now() + expiry


class AsyncLegacyConnection(AsyncConnection, LegacyConnection):
    """The same in an async pool."""

    inner_kind = AsyncLegacyInner

    def guard_inner(self, inner: Any) -> None:
        # Before 3.5, a cancel can leave those of anyio locked.
        inner.socket.read_lock, inner.socket.write_lock = Turns(), Turns()
        super().guard_inner(inner)


class Tunnel(LegacyConnection):
    """A connection through an HTTP proxy. To open its socket means CONNECT and then TLS."""

    via: Any  # The connection to the proxy.

    def cut(self: Any) -> None:
        super().cut()
        self.via.cut()

    def send_connect(self: Any, timeout: Any) -> Any:
        pool, target = self.pool, b"%b:%d" % self.origin[1:]
        headers = merge_headers([(b"Host", target), (b"Accept", b"*/*")], pool.proxy_headers)
        send = getattr(self.via, pool.request_method)
        return send(b"CONNECT", (*pool.proxy_origin, target), headers, _EMPTY, {"timeout": timeout})

    def start_tls(self: Any, timeout: Any) -> Any:
        return self.via.start_tls(self.origin[1], *([self._ssl_context] if _KNOWS_STATE else []), timeout)

    @contextlib.contextmanager
    def connecting(self: Any) -> Any:
        """Close what was opened if this fails, and raise what httpcore raises. 0.11 does not wrap it."""
        try:
            yield
        except BaseException as exc:
            self.cut()
            is_wrapped = _KNOWS_STATE or hasattr(AsyncHTTPConnection, "is_socket_readable")
            if not (is_wrapped and isinstance(exc, Exception)) or is_cancel(exc):
                raise
            raise httpcore.ProxyError(exc)  # noqa: B904 (as httpcore does)

    @staticmethod
    def check(status: int) -> None:
        if status < 200 or status > 299:
            raise httpcore.ProxyError(f"{status} {get_reason_phrase(status)}")


class AsyncTunnel(AsyncLegacyConnection, Tunnel):
    """The same for async connections."""

    async def _open_socket(self: Any, timeout: Any = None) -> Any:
        with self.connecting():
            status, _, parts, _ = await self.send_connect(timeout)
            async for _part in parts:
                pass
            self.check(status)
            if self.origin[0] == b"https":
                await self.start_tls(timeout)
        return self.via.socket


class SyncTunnel(Tunnel):
    """The same for sync connections."""

    def _open_socket(self: Any, timeout: Any = None) -> Any:
        with self.connecting():
            status, _, parts, _ = self.send_connect(timeout)
            for _part in parts:
                pass
            self.check(status)
            if self.origin[0] == b"https":
                self.start_tls(timeout)
        return self.via.socket


class Books011(Books):
    """How a pool of 0.11 to 0.13 is taken over, and its own books are kept in step for whoever looks at them."""

    NotAvailable = (async_base.NewConnectionRequired, sync_base.NewConnectionRequired)
    PoolTimeout = httpcore.PoolTimeout
    trims_last_used = True
    proxy_mode: Any = None  # Pools without a proxy have none.

    def is_quiet(self: Any) -> bool:
        """Return whether no plain request waits in this pool."""
        lock = getattr(self, "_internal_connection_acquiry_lock", None)
        return lock is None or not lock._lock.locked()

    def open_books(self: Any) -> None:
        """Take over a pool. Connections that plain requests use stay plain and unlisted, until they are idle."""
        self.listed, self.exchanges = [], []
        self._count_permits()
        self.count()

    def take_in(self: Any, exchange: Any) -> None:
        if sum(map(len, self._connections.values())) > len(self.listed):
            for connection in self._get_all_connections().difference(self.listed):
                if "IDLE" in connection.info():
                    self.listed.append(self.guard(connection, self.connection_kind))
        super().take_in(exchange)

    def make_connection(self: Any, origin: Any) -> Any:
        connection = self._create_connection(origin)
        if self.proxy_mode == "TUNNEL_ONLY" or (self.proxy_mode and origin != self.proxy_origin):
            connection.via = self.guard(self._create_connection(self.proxy_origin), self.connection_kind)
            return self.guard(connection, self.tunnel)
        return self.guard(connection, self.connection_kind)

    def guard(self: Any, connection: Any, mixin: Any) -> Any:
        connection.__class__ = guarded_kind(type(connection), mixin)
        connection.pool = self
        connection.take_over(self._attempts)
        return connection

    def _add(self: Any, connection: Any) -> None:
        super()._add(connection)
        self._connections.setdefault(connection.origin, set()).add(connection)
        self._count_permits()

    def _remove(self: Any, connection: Any) -> None:
        of_origin = self._connections.get(connection.origin, set())
        of_origin.discard(connection)
        if not of_origin:
            self._connections.pop(connection.origin, None)
        self._count_permits()
        super()._remove(connection)  # Last: after an interruption before, it is dropped again.

    def _count_permits(self: Any) -> None:
        semaphore = self._connection_semaphore
        permits = getattr(semaphore, "semaphore", None) or getattr(semaphore, "_semaphore", None)
        if hasattr(permits, "_value"):
            permits._value = self._max_connections - len(self._get_all_connections())

    def prepare(
        self: Any, method: Any, url: Any, headers: Any = None, stream: Any = None, extensions: Any = None, **more: Any
    ) -> Any:
        if url[0] not in (b"http", b"https") or not url[1]:
            return None
        origin, target, headers = self._route(url, headers)
        extensions = dict(extensions or more.get("ext") or {})
        timeouts = extensions["timeout"] = dict(extensions.get("timeout") or {})
        send = operator.methodcaller(self.request_method, method, target, headers, stream, extensions)
        exchange = Exchange(self, (method, url), origin, timeouts.get("pool"), send)
        # httpcore passes them on, so that HTTP/2 knows which exchange it serves.
        exchange.key = timeouts["key"] = object()
        return exchange

    def respond(self: Any, answer: Any, body: Any, exchange: Exchange) -> Any:
        status, headers, parts, info = answer
        return status, headers, body(parts, exchange), info

    cut_all = Books.drop_all  # What is left in the books then are plain requests.

    def _route(self: Any, url: Any, headers: Any) -> Any:
        """Return the origin of a connection for a request, and the URL and the headers to send on it."""
        scheme, host, port, path = url
        is_forwarded = self.proxy_mode == "FORWARD_ONLY" or (self.proxy_mode == "DEFAULT" and scheme == b"http")
        if not is_forwarded:
            return url_to_origin(url), url, headers
        authority = host if port is None else b"%b:%d" % (host, port)
        target = (*self.proxy_origin, b"%b://%b%b" % (scheme, authority, path))
        return self.proxy_origin, target, merge_headers(self.proxy_headers, headers)


class Async011(AsyncPool, Books011):
    """The names that an async pool has here."""

    connection_kind, tunnel = AsyncLegacyConnection, AsyncTunnel
    if not _IS_013:
        request_method = "arequest"
        arequest = AsyncPool.handle_async_request


class Sync011(SyncPool, Books011):
    """The same for a sync pool."""

    connection_kind, tunnel = LegacyConnection, SyncTunnel
    if not _IS_013:
        request_method = "request"
        request = SyncPool.handle_request

    def _remove_from_pool(self: Any, connection: Any) -> None:
        with self._steps:  # A plain request ends in another thread.
            if connection not in self.listed:
                super()._remove_from_pool(connection)
            elif not self._users[connection]:
                self._drop(connection)


# How to guard each of httpcore's pools, subclasses first.
POOLS = {
    httpcore.AsyncHTTPProxy: Async011,
    httpcore.SyncHTTPProxy: Sync011,
    httpcore.AsyncConnectionPool: Async011,
    httpcore.SyncConnectionPool: Sync011,
}
