"""The guards around httpx: `send`, each exchange within it, and the block of `stream()`.

1. `send` makes the pools of its client guarded ones (`_pool`), and notes what it has under way (`_calls`).
2. Each exchange of it is noted: a pool does that for its own, a guard inside the response for others (`_streams`).
3. When an exception leaves `send`, the books of the pools are put right at once. Then what is open is closed, and
   nothing interrupts that (`_closing`). The very same exception goes on to the caller.

See https://github.com/encode/httpx/pull/2156. Each function here is a wrapper as wrapt calls it.
"""

import asyncio
from typing import Any

import wrapt

from . import _closing
from ._calls import Call, Settings, now
from ._pool import generation, guard_pools
from ._scopes import current_task
from ._streams import GuardingTransport, abandon


async def send_async(settings: Settings, wrapped: Any, client: Any, args: Any, kwargs: Any) -> Any:
    """Run `AsyncClient.send`."""
    guard_pools(client, settings)
    coroutine = wrapped(*args, **kwargs)
    if not hasattr(coroutine, "throw"):
        return await coroutine  # A mock's.
    call = Call(settings, args, kwargs)
    try:
        return await call.drive(coroutine)
    except BaseException as exc:
        call.abandon(exc)
        if isinstance(exc, GeneratorExit):  # This coroutine was dropped: nobody is there to wait.
            for guard in call.guards:
                if not guard.is_over:
                    _closing.in_background(guard.aclose())
            raise
        cancel = None
        for guard in call.guards:
            try:
                await guard.aclose()
            except asyncio.CancelledError as other:
                cancel = other
        if cancel is not None and not isinstance(exc, asyncio.CancelledError):
            task = current_task()
            task.cancel()  # The next wait raises it.
            if hasattr(task, "uncancel"):
                task.uncancel()  # asyncio counted it when it came.
        raise


def send_sync(settings: Settings, wrapped: Any, client: Any, args: Any, kwargs: Any) -> Any:
    """Run `Client.send`."""
    guard_pools(client, settings)
    call, before = Call(settings, args, kwargs), now.call
    try:
        try:  # Not `with call`, in whose methods a signal handler may raise.
            now.call = call
            return wrapped(*args, **kwargs)
        finally:
            now.call = before
    except BaseException as exc:
        call.abandon(exc)
        for guard in call.guards:
            guard.close()
        raise


def transport_for(wrapped: Any, client: Any, args: Any, kwargs: Any) -> Any:
    """Run `_transport_for_url` of either client. The transport notes its response in the current `send`."""
    transport = wrapped(*args, **kwargs)
    return transport if now.call is None else GuardingTransport(transport, now.call)


def stream(wrapped: Any, client: Any, args: Any, kwargs: Any) -> Any:
    """Run `stream` of either client."""
    block = wrapped(*args, **kwargs)
    is_block = hasattr(type(block), "__aexit__") or hasattr(type(block), "__exit__")
    return Block(block) if is_block else block


class Block(wrapt.ObjectProxy):  # type: ignore[type-arg]
    """What `stream()` of either client returns. What ends the block also ends the exchange of the response."""

    async def __aenter__(self) -> Any:
        self._self_response = await self.__wrapped__.__aenter__()
        return self._self_response

    async def __aexit__(self, kind: Any, exc: Any, traceback: Any) -> Any:  # noqa: PYI036
        abandon(self._self_response, exc)
        return await self.__wrapped__.__aexit__(kind, exc, traceback)

    def __enter__(self) -> Any:
        response = None
        try:
            response = self._self_response = self.__wrapped__.__enter__()
            return response
        except BaseException:
            if response is not None:
                response.close()  # An exception struck on the way out of here.
            raise

    def __exit__(self, kind: Any, exc: Any, traceback: Any) -> Any:  # noqa: PYI036
        try:
            abandon(self._self_response, exc)
            return self.__wrapped__.__exit__(kind, exc, traceback)
        except BaseException as other:
            abandon(self._self_response, other)  # It may have struck when the close was about to begin.
            raise


generation()  # Now: an import that a signal strikes can leave Python's import lock locked.

# Python's warning about a coroutine that nobody awaits gives these names.
send_async.__name__, send_async.__qualname__ = "send", "AsyncClient.send"
