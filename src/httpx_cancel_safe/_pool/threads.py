"""What sync pools of all generations do in the same way.

A signal handler may raise between any two lines. So each step can be repeated, the next step completes one that was cut
short, and no lock stays taken.
"""

import threading
from typing import Any, Iterator, Optional

from .._stats import let_go
from .books import Books, Exchange, PoolBody


class SyncPool(Books):
    """The way of an exchange through a pool. Every step is taken under one lock, which is never held over I/O."""

    request_method = "handle_request"
    _steps: Any  # An RLock: a finalizer or a signal handler may take it again in the thread that holds it.

    def enter(self: Any, exchange: Exchange) -> bool:
        # A request waits on a bare lock. An Event is Python code around one, which an exception can leave locked.
        exchange.latch = threading.Lock()
        exchange.latch.acquire()
        exchange.wake = exchange.latch.release
        with self._steps:
            # While this thread waited for the lock, another one may have made this a plain pool again.
            return isinstance(self, SyncPool) and super().enter(exchange)

    def handle_request(self: Any, *args: Any, **kwargs: Any) -> Any:
        plain = getattr(self.plain, self.request_method)
        exchange = self.prepare(*args, **kwargs)
        if exchange is None or not self.enter(exchange):  # None: httpcore will refuse the request.
            return plain(self, *args, **kwargs)
        return self.respond(self.run_exchange(exchange), SyncBody, exchange)

    def run_exchange(self: Any, exchange: Any) -> Any:
        """Send an exchange once it has a connection, and return the answer."""
        latch = exchange.latch
        try:
            while True:
                seconds = 0 if exchange.connection is not None else exchange.timeout
                latch.acquire(timeout=-1 if seconds is None else seconds)
                if exchange.connection is None:
                    raise self.PoolTimeout
                try:
                    return exchange.send(exchange.connection)
                except self.NotAvailable:  # After all. It waits again, in its old place.
                    with self._steps:
                        latch.acquire(timeout=0)  # Another thread may open it as long as the connection is set.
                        exchange.connection = None
                        self.serve()
        except BaseException as exc:
            self.settle(exchange, exc)
            raise

    def serve(self: Any) -> None:
        for exchange in self.exchanges:
            if exchange.connection is not None and isinstance(exchange, Exchange):
                exchange.set_connection(exchange.connection)  # It may have been given it without being woken.
        super().serve()

    serve_soon = serve

    def settle(self: Any, exchange: Any, exc: Optional[BaseException] = None) -> None:
        try:
            with self._steps:
                super().settle(exchange, exc)
                if exc is not None:
                    self.serve()  # Completes what it has cut short.
        finally:
            # The exception may have come as this thread took the lock, or was about to give it back.
            if exc is not None:
                let_go(self._steps)

    def close(self: Any) -> None:
        with self._steps:
            self.cut_all()
        self.plain.close(self)
        with self._steps:
            self.serve()  # Requests that wait go on, where httpcore has not refused to close.


class SyncBody(PoolBody):
    """The body of a sync response."""

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._stream
        except GeneratorExit:
            raise  # A caller that stops here closes the response next.
        except BaseException as exc:
            self.abandon(exc)
            raise

    def close(self) -> None:
        try:
            if hasattr(self._stream, "close"):
                self._stream.close()
            self.exchange.end()
        except BaseException as exc:
            self.abandon(exc)
            raise
