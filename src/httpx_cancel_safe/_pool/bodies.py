"""The body of a response from a guarded pool. Its close, or an error that comes out of it, ends the exchange."""

from typing import Any, AsyncIterator, Iterator

from .books import Exchange
from .sockets import let_close


class PoolBody:
    """What both kinds have: `stream` is httpcore's."""

    def __init__(self, stream: Any, exchange: Exchange) -> None:
        self._stream = stream
        self.exchange = exchange
        self.abandon = exchange.abandon


class AsyncBody(PoolBody):
    """The body of an async response."""

    _is_at_end = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        parts = self._stream.__aiter__()
        while True:
            try:
                part = await self._next(parts)
            except StopAsyncIteration:
                self._is_at_end = True
                return
            yield part  # A caller that stops here closes the response next.

    async def _next(self, parts: Any) -> Any:
        # Before 3.13, Python does not tell an async generator that it was dropped while it waits, but a coroutine.
        try:
            return await parts.__anext__()
        except StopAsyncIteration:
            raise
        except BaseException as exc:
            self.exchange.abandon(exc)
            raise

    async def aclose(self) -> None:
        try:
            if hasattr(self._stream, "aclose"):
                await self._stream.aclose()
        finally:
            self.exchange.end()
        if self._is_at_end and not self.exchange.connection.is_idle():
            await let_close()


class SyncBody(PoolBody):
    """The body of a sync response."""

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._stream
        except GeneratorExit:
            raise  # A caller that stops here closes the response next.
        except BaseException as exc:
            self.exchange.abandon(exc)
            raise

    def close(self) -> None:
        try:
            if hasattr(self._stream, "close"):
                self._stream.close()
            self.exchange.end()
        except BaseException as exc:
            self.exchange.abandon(exc)
            raise
