"""The streams of responses that other transports than httpcore's pools have made.

A guard takes the place of such a stream inside its response. Reading goes to the stream; the guard learns from it
whether it was read to its end.
"""

import functools
import time
from typing import Any, Optional

import httpx
import wrapt

from . import _scopes, _stats
from ._calls import Call, now
from ._closing import to_end
from ._pool.books import PoolBody
from ._scopes import is_cancel

if hasattr(httpx, "AsyncByteStream"):  # From httpx 0.18 on, which checks that response streams are of these.
    _library: Any = httpx
else:
    import httpcore as _library
_AsyncByteStream: Any = _library.AsyncByteStream
_SyncByteStream: Any = _library.SyncByteStream

# What streams without a close of their own have.
_INHERITED = (None, getattr(_AsyncByteStream, "aclose", None), getattr(_SyncByteStream, "close", None))


class _Guard:
    """What a guard knows: whether its stream was read to the end, and which exception ended the `send` or the block."""

    is_at_end = False
    is_over = False
    _is_counted = False
    failure: Optional[BaseException] = None

    def __init__(self, stream: Any, call: Call, own_scope: Any = None) -> None:
        self._stream, self._call, self._own_scope = stream, call, own_scope

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__.get("_stream"), name)  # copy() looks names up before it sets any.

    def abandon(self, exc: BaseException) -> None:
        """Note what has ended the `send` or the block that the response is for."""
        self.failure = exc

    @property
    def _is_failing(self) -> bool:
        # Within `send`, httpx closes a response once it is read, or because of an exception.
        return self.failure is not None or (now.call is self._call and not self.is_at_end)

    def _gives_way(self, exc: BaseException, began: float) -> bool:
        """Return whether an error of the close gives way to what went wrong before. A cancel or Ctrl-C does not."""
        if is_cancel(exc) or isinstance(exc, GeneratorExit):
            if self.failure is None:
                self._count("closing", exc, began)
            return False
        if self._is_failing and isinstance(exc, Exception):
            _stats.close_failed(exc)
            return True
        return False

    def _end(self, began: float) -> None:
        self.is_over = True
        if self.failure is not None and not self.is_at_end:
            self._count("reading", self.failure, began)

    def _count(self, phase: str, exc: BaseException, began: float) -> None:
        if not self._is_counted:
            self._is_counted = True
            _stats.released(self._call.request, phase, exc, began)


class AsyncGuard(_Guard, _AsyncByteStream):  # type: ignore[misc]
    """The stream of an async response: its close runs to its end."""

    def __aiter__(self) -> Any:
        return _AsyncParts(self, self._stream.__aiter__())

    async def aclose(self) -> None:
        began = time.perf_counter()
        try:
            if not self.is_over:
                seconds = self._call.settings.close_timeout
                await to_end(self._stream.aclose, seconds, self._is_failing, self._own_scope)
        except BaseException as exc:
            if not self._gives_way(exc, began):
                raise
        finally:
            self._end(began)


class SyncGuard(_Guard, _SyncByteStream):  # type: ignore[misc]
    """The stream of a sync response: an error of its close does not replace what went wrong before."""

    def __iter__(self) -> Any:
        yield from self._stream
        self.is_at_end = True

    def close(self) -> None:
        began = time.perf_counter()
        try:
            if not self.is_over:
                self._stream.close()
        except BaseException as exc:
            if not self._gives_way(exc, began):
                raise
        finally:
            self._end(began)


class _AsyncParts:
    """Iterates over a stream, and notes in its guard when it is at its end."""

    def __init__(self, guard: AsyncGuard, parts: Any) -> None:
        self._guard, self._parts = guard, parts

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self._parts.__anext__()
        except StopAsyncIteration:
            self._guard.is_at_end = True
            raise


class GuardingTransport(wrapt.ObjectProxy):  # type: ignore[type-arg]
    """A transport, for one exchange of a `send`. It puts a guard into the response, unless that is from a pool."""

    def __init__(self, transport: Any, call: Call) -> None:
        super().__init__(transport)
        self._self_call = call

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.__wrapped__, name)
        if name in ("handle_async_request", "arequest"):  # The second is that of httpx up to 0.17.
            return functools.partial(self._self_run_async, found)
        if name in ("handle_request", "request"):
            return functools.partial(self._self_run_sync, found)
        return found

    async def _self_run_async(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        scope = _scopes.innermost_scope()
        answer = await method(*args, **kwargs)
        return self._self_guard(answer, AsyncGuard, "aclose", _scopes.outermost_within(scope))

    def _self_run_sync(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        return self._self_guard(method(*args, **kwargs), SyncGuard, "close")

    def _self_guard(self, answer: Any, kind: Any, close: str, own_scope: Any = None) -> Any:
        is_parts = isinstance(answer, tuple)  # Up to httpx 0.19.
        stream = answer[2] if is_parts else getattr(answer, "stream", None)
        is_pools = isinstance(getattr(stream, "_httpcore_stream", stream), PoolBody)
        if is_pools or isinstance(stream, _Guard) or getattr(type(stream), close, None) in _INHERITED:
            return answer
        guard = kind(stream, self._self_call, own_scope)
        self._self_call.guards.append(guard)
        if is_parts:
            return (*answer[:2], guard, *answer[3:])
        answer.stream = guard
        return answer


def abandon(response: Any, exc: Optional[BaseException]) -> None:
    """Note what has ended the block that a response was for. The exchange of a response from a pool ends at once."""
    stream = getattr(response, "stream", None)
    for _ in range(4):  # Not for ever: a mock has all of these attributes at each level.
        if exc is not None and isinstance(stream, (PoolBody, _Guard)):
            stream.abandon(exc)
        stream = getattr(stream, "_stream", None) or getattr(stream, "_httpcore_stream", None)
