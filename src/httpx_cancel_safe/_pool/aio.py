"""What async pools of all generations do in the same way."""

import asyncio
import sys
from collections import deque
from typing import Any, AsyncIterator, Deque, Dict, List

from .._scopes import current_task, library
from .books import Books, Exchange, PoolBody
from .sockets import cancel_late, let_close

# For how many passes of the loop the close of a pool waits for requests that are being cancelled.
_PASSES = 100
# For how many seconds it waits for attempts to connect that no request waits for any more.
_PATIENCE = 0.05


class AsyncPool(Books):
    """The way of an exchange through a pool: it waits, it is sent, and it is settled if that fails."""

    request_method = "handle_async_request"
    _due: Any = None  # The loop that will serve the waiting exchanges, in its next pass.
    _attempts: Dict[Any, Any]  # Attempts to connect that nobody waits for any more, and their loops.

    def enter(self: Any, exchange: Exchange) -> bool:
        kind = library()
        if kind == "asyncio":
            exchange.task = current_task()
        return bool(kind) and super().enter(exchange)

    async def handle_async_request(self: Any, *args: Any, **kwargs: Any) -> Any:
        plain = getattr(self.plain, self.request_method)
        exchange = self.prepare(*args, **kwargs)
        if exchange is None or not self.enter(exchange):  # None: httpcore will refuse the request.
            return await plain(self, *args, **kwargs)
        return self.respond(await self.run_exchange(exchange), AsyncBody, exchange)

    async def run_exchange(self: Any, exchange: Any) -> Any:
        """Send an exchange once it has a connection, and return the answer."""
        try:
            while True:
                if exchange.connection is None:
                    await _wait(exchange, exchange.timeout)
                if exchange.connection is None:
                    raise self.PoolTimeout
                try:
                    return await exchange.send(exchange.connection)
                except self.NotAvailable:  # After all. It waits again, in its old place.
                    exchange.connection = None
                    self.serve()
        except BaseException as exc:
            self.settle(exchange, exc)
            raise

    def serve_soon(self: Any) -> None:
        """Serve the waiting exchanges, once for all those that end in this pass of the loop."""
        kind = library()
        if not kind:
            self.serve()
            return
        loop: Any = sys.modules["trio"].lowlevel.current_trio_token() if kind == "trio" else asyncio.get_event_loop()
        if self._due is not loop:
            self._due = loop
            (loop.run_sync_soon if kind == "trio" else loop.call_soon)(self._serve_now)

    def _serve_now(self: Any) -> None:
        self._due = None
        if hasattr(self, "serve"):  # Else it has become a plain pool.
            self.serve()

    async def aclose(self: Any) -> None:
        await self.let_end()
        self.cut_all()
        await self.plain.aclose(self)
        self.serve()  # Requests that wait go on, where httpcore has not refused to close.
        await let_close()

    async def let_end(self: Any) -> None:
        """Wait for what is about to end, before this pool is closed.

        Requests that are being cancelled get their turn first: on Python 3.6, `wait_for()` raises before the task that
        it has cancelled could run. So do attempts to connect: one that is cancelled may lose its socket.
        """
        if library() != "asyncio":
            return
        cancelled: List[Exchange] = []
        for number in range(_PASSES):
            cancelled = [one for one in self.exchanges if one in cancelled or _is_being_cancelled(one)]
            # A cancel takes a pass for each task that waits for another one.
            if not cancelled and (number > 4 or not self.exchanges):
                break
            await asyncio.sleep(0)
        for exchange in cancelled:
            self.settle(exchange, asyncio.CancelledError())
        here = asyncio.get_event_loop()
        for _ in range(2):
            attempts = [one for one, loop in self._attempts.items() if loop is here]
            if attempts:
                await asyncio.wait(attempts, timeout=_PATIENCE)
            for attempt in attempts:
                cancel_late(attempt)


class AsyncBody(PoolBody):
    """The body of an async response."""

    _is_at_end = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        parts = self._stream.__aiter__()
        while True:
            part = await self._next(parts)
            if self._is_at_end:
                return
            yield part  # A caller that stops here closes the response next.

    async def _next(self, parts: Any) -> Any:
        # Before 3.13, Python does not tell an async generator that it was dropped while it waits, but a coroutine.
        try:
            return await parts.__anext__()
        except StopAsyncIteration:
            self._is_at_end = True
        except BaseException as exc:
            self.abandon(exc)
            raise

    async def aclose(self) -> None:
        try:
            if hasattr(self._stream, "aclose"):
                await self._stream.aclose()
        finally:
            self.exchange.end()
        if self._is_at_end and not self.exchange.connection.is_idle():
            await let_close()


def _is_being_cancelled(exchange: Any) -> bool:
    task = getattr(exchange, "task", None)
    while task is not None:
        waiter = getattr(task, "_fut_waiter", None)
        if getattr(task, "_must_cancel", False) or (waiter is not None and waiter.cancelled()):
            return True
        task = waiter
    return False


async def _wait(exchange: Exchange, timeout: Any) -> None:
    """Wait until `exchange` has a connection, or for `timeout` seconds."""
    module = sys.modules[library()]
    event = module.Event()
    exchange.wake = event.set
    if library() == "trio":
        with module.move_on_after(float("inf") if timeout is None else timeout):
            await event.wait()
        return
    # No wait_for(): up to Python 3.11 it can swallow a cancel.
    timer = None if timeout is None else asyncio.get_event_loop().call_later(timeout, event.set)
    try:
        await event.wait()
    finally:
        if timer is not None:
            timer.cancel()


class Turns:
    """A lock, or a semaphore, that any task may give back: another task may close a dropped coroutine."""

    def __init__(self, free: int = 1) -> None:
        self._free = free
        self._waiting: Deque[Exchange] = deque()

    async def acquire(self) -> None:
        if self._free:
            self._free -= 1
            return
        turn = Exchange()
        self._waiting.append(turn)
        try:
            await _wait(turn, None)
        except BaseException:
            if turn in self._waiting:
                self._waiting.remove(turn)
            else:
                self.give_back()
            raise

    def give_back(self) -> None:
        if self._waiting:
            self._waiting.popleft().set_connection(self)
        else:
            self._free += 1

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *exc_info: object) -> None:
        self.give_back()
