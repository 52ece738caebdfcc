"""httpcore 0.14, whose pools list their connections and their requests as `books` does."""

# mypy: ignore-errors

import operator
from typing import Any

import httpcore
from httpcore._exceptions import ConnectionNotAvailable, PoolTimeout
from httpcore._models import Response

from .aio import AsyncPool
from .books import Books, Exchange, guarded_kind
from .connections import AsyncConnection, Connection, nested
from .threads import SyncPool

POOL_NEEDS = ("_pool", "_requests", "_max_connections", "_max_keepalive_connections", "_pool_lock", "create_connection")


class Books014(Books):
    """How a pool of 0.14 is taken over."""

    NotAvailable, PoolTimeout = ConnectionNotAvailable, PoolTimeout
    listed = property(lambda self: self._pool)
    exchanges = property(lambda self: self._requests)

    def is_quiet(self: Any) -> bool:
        """Return whether no plain request is in the middle of changing this pool."""
        return not self._pool_lock._lock.locked()

    def open_books(self: Any) -> None:
        self.count()
        for status in self._requests:
            _complete(status)
        for connection in self._pool:
            self._guard(connection, is_in_use=self._users[connection] > 0)

    def prepare(self: Any, request: Any) -> Any:
        if request.url.scheme not in (b"http", b"https"):
            return None
        timeout = request.extensions.get("timeout", {}).get("pool")
        send = operator.methodcaller(self.request_method, request)
        return Exchange(self, request, request.url.origin, timeout, send)

    def respond(self: Any, answer: Any, body: Any, exchange: Exchange) -> Any:
        content = body(answer.stream, exchange)
        return Response(answer.status, headers=answer.headers, content=content, extensions=answer.extensions)

    def make_connection(self: Any, origin: Any) -> Any:
        return self._guard(self.create_connection(origin))

    def _guard(self: Any, connection: Any, is_in_use: bool = False) -> Any:
        for one in nested(connection):
            if hasattr(one, "_connection"):
                one.__class__ = guarded_kind(type(one), self.connection_kind)
                one.take_over(self._attempts, is_in_use)
        return connection

    def _assign(self: Any, exchange: Any) -> bool:
        if not isinstance(exchange, Exchange):
            _complete(exchange)
        return super()._assign(exchange)


def _complete(status: Any) -> None:
    """Give a plain request, a RequestStatus of httpcore's, what `books` and HTTP/2 look at."""
    status.key, status.origin = status.request, status.request.url.origin


class Async014(AsyncPool, Books014):
    """What an async pool has besides, for requests that began before it was guarded."""

    connection_kind = AsyncConnection

    async def _attempt_to_acquire_connection(self, status: Any) -> bool:
        self.serve()
        return status.connection is not None

    async def _close_expired_connections(self) -> None:
        """Leave it to `serve`: httpcore's would change the books while it waits, outside of a step."""

    async def response_closed(self, status: Any) -> None:
        self.settle(status)


class Sync014(SyncPool, Books014):
    """The same for a sync pool."""

    connection_kind = Connection

    def _attempt_to_acquire_connection(self, status: Any) -> bool:
        with self._steps:
            self.serve()
            connection = status.connection
            if connection is not None:  # From another thread, perhaps, which has set the event that it had before.
                status.connection = None
                status.set_connection(connection)
            return connection is not None

    def _close_expired_connections(self) -> None:
        """Leave it to `serve`: httpcore's would change the books outside of a step."""

    def response_closed(self, status: Any) -> None:
        self.settle(status)


# How to guard each of httpcore's pools.
POOLS = {httpcore.AsyncConnectionPool: Async014, httpcore.ConnectionPool: Sync014}
