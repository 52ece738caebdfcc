"""The life of a request that ends badly: the guards around httpx, and the rescue.

1. `send` raises, or a single exchange within it does.
2. `_Rescue` reads from the frames of the exception what the exchange held, and puts the
   pool's books right before anything waits (`_pool`).
3. Then it closes what is open, responses and sockets, and nothing interrupts that
   (`_closing`).
4. The very same exception goes on to the caller.

A response that is handed out keeps the same care in its own `aclose()`.
See https://github.com/encode/httpx/pull/2156.
"""

import functools
import logging
import sys
import time
import types
import weakref
from typing import Any, Callable, Dict, List, Optional, Tuple

import httpx

from . import _closing, _pool
from ._stats import count, give_up, logger, warn_of

# Response streams are checked to be of these from httpx 0.18 on.
_AsyncByteStream: Any = getattr(httpx._client, "AsyncByteStream", object)
_SyncByteStream: Any = getattr(httpx._client, "SyncByteStream", object)
_IS_OLD = _AsyncByteStream is object  # A response closes by a callback.

# Where httpx asks httpcore; up to 0.17 that is httpcore's own.
_TRANSPORTS = ("default", "connection_pool", "http_proxy")

# What watched clients have open, by the frame of the guard around their `send`.
_opened: Dict[int, List[Any]] = {}


class Settings:
    """The limit of a clean-up, in seconds, and whether the guards that have it act."""

    def __init__(self, close_timeout: float) -> None:
        self.close_timeout = close_timeout
        self.active = True


def _as_function(wrapped: Callable[..., Any]) -> Callable[..., Any]:
    """Return what calls `wrapped` as a method; wrapt's wrappers have to be bound first."""
    if type(wrapped) is types.FunctionType:
        return wrapped
    return lambda self, *args, **kwargs: wrapped.__get__(self, type(self))(*args, **kwargs)


def guard_async(wrapped: Callable[..., Any], settings: Settings, owner: Any = None) -> Any:
    """Return a guard around the `send` of async clients; `owner`'s calls that of `super()`."""
    call = _as_function(wrapped)
    inherited = AsyncGuardedStream.inherited

    @functools.wraps(wrapped)
    async def guard(self: Any, request: Any, **kwargs: Any) -> Any:
        acts = settings.active
        if not acts:
            return await call(self, request, **kwargs)
        try:
            is_prepared = self._cancel_safe_prepared is self._transport
        except AttributeError:
            is_prepared = False
        if not is_prepared:
            _prepare(self, settings, _watch)
        try:
            if owner is None:
                response = await call(self, request, **kwargs)
            else:
                response = await super(owner, self).send(request, **kwargs)
        except BaseException as exc:
            # No local name for the rescue: it would hold the frame that holds it.
            if not _is_dropped(exc):
                await _Rescue(exc, settings, self, request).run()
                cancel = _swallowed_cancel(exc)
                if cancel is not None:
                    raise cancel from None
                raise
            _closing.in_background(_Rescue(exc, settings, self, request).run())
            if isinstance(exc, RuntimeError):
                raise GeneratorExit from None
            raise
        finally:
            if _opened:
                _opened.pop(id(sys._getframe()), None)
        if response.is_closed:
            return response
        try:  # Without a call, as most go this way.
            if type(response.stream._stream).aclose is inherited:
                return response
        except AttributeError:
            pass  # Streams of another make.
        _guard_response(response, AsyncGuardedStream, settings)
        return response

    return guard


def guard_sync(wrapped: Callable[..., Any], settings: Settings, owner: Any = None) -> Any:
    """Return the same for sync clients, where nothing but an exception can interrupt."""
    call = _as_function(wrapped)
    inherited = SyncGuardedStream.inherited

    @functools.wraps(wrapped)
    def guard(self: Any, request: Any, **kwargs: Any) -> Any:
        acts = settings.active
        if not acts:
            return call(self, request, **kwargs)
        try:
            is_prepared = self._cancel_safe_prepared is self._transport
        except AttributeError:
            is_prepared = False
        if not is_prepared:
            _prepare(self, settings, _watch_sync)
        try:
            if owner is None:
                response = call(self, request, **kwargs)
            else:
                response = super(owner, self).send(request, **kwargs)
        except BaseException as exc:
            _Rescue(exc, settings, self, request, False).run_sync()
            raise
        if response.is_closed:
            return response
        try:
            if type(response.stream._stream).close is inherited:
                return response
        except AttributeError:
            pass
        _guard_response(response, SyncGuardedStream, settings)
        return response

    return guard


def _prepare(client: Any, settings: Settings, watch: Callable[..., Any]) -> None:
    """Do what must be done before the first request of `client` through its transports."""
    try:
        client._cancel_safe_prepared = client._transport
        _pool.prepare(client, settings.close_timeout)
        watched = "_send_single_request" in vars(client)
        if not watched and not _pool.is_repairable(client):
            client._send_single_request = watch(weakref.ref(client), settings)
    except Exception as failure:
        _pool.fall_back(failure)


def _watch(client: Any, settings: Settings) -> Any:
    """Return a `_send_single_request` that guards each response of `client` at once.

    A close of a custom stream that was interrupted cannot be made up for afterwards, and
    a coroutine that was dropped does not tell what it had open.
    """
    inherited, modules = AsyncGuardedStream.inherited, sys.modules

    async def guard(request: Any, *args: Any, **kwargs: Any) -> Any:
        scope = None
        if "trio" in modules or "anyio._backends._asyncio" in modules:  # Else there are none.
            scope = _closing.innermost_scope()
        me = client()
        if args or kwargs:  # A timeout, up to httpx 0.19.
            response = await type(me)._send_single_request(me, request, *args, **kwargs)
        else:
            response = await type(me)._send_single_request(me, request)
        try:
            if type(response.stream._stream).aclose is inherited:
                return response
        except AttributeError:
            pass
        if settings.active and _guard_response(response, AsyncGuardedStream, settings):
            _note_opened(response)
            now = _closing.innermost_scope()
            if now is not scope:
                _guard_of(response).own_scope = _closing.outermost_within(now, scope)
        return response

    return guard


def _watch_sync(client: Any, settings: Settings) -> Any:
    """Return the same for a sync client, whose closes may raise in place of what went wrong."""
    inherited = SyncGuardedStream.inherited

    def guard(request: Any, *args: Any, **kwargs: Any) -> Any:
        me = client()
        if args or kwargs:
            response = type(me)._send_single_request(me, request, *args, **kwargs)
        else:
            response = type(me)._send_single_request(me, request)
        try:
            if type(response.stream._stream).close is inherited:
                return response
        except AttributeError:
            pass
        if settings.active:
            _guard_response(response, SyncGuardedStream, settings)
        return response

    return guard


def _note_opened(response: Any) -> None:
    """Note an open response for the `send` that it is part of, should that be dropped.

    Its guard is further up the stack, except when an exception was thrown in and caught.
    (Context variables do not follow tasks on Python 3.6.)
    """
    frame: Any = sys._getframe(2)
    while frame is not None:
        if id(frame.f_code) == _ASYNC_GUARD and frame.f_locals["acts"]:
            _opened.setdefault(id(frame), []).append(response)
            return
        frame = frame.f_back


def _is_dropped(exc: BaseException) -> bool:
    """Tell whether `exc` means that the coroutine was closed, so that it must not wait.

    Handlers of httpx and httpcore wait all the same, and Python answers RuntimeError.
    """
    if isinstance(exc, RuntimeError):
        return str(exc).endswith(" ignored GeneratorExit") or isinstance(
            exc.__context__, GeneratorExit
        )
    return isinstance(exc, GeneratorExit)


def _swallowed_cancel(exc: BaseException) -> Optional[BaseException]:
    """Return the cancel that httpcore's proxies made a ProxyError of, on Python before 3.8."""
    error: Any = getattr(exc.__cause__, "args", None)
    if type(exc).__name__ == "ProxyError" and error and _closing.is_cancel(error[0]):
        return error[0]  # type: ignore[no-any-return]
    return None


def _guard_response(response: Any, kind: Any, settings: Settings) -> bool:
    """Guard the close of `response`, unless that is done; tell if it is guarded."""
    try:
        stream = response.stream
        if response.is_closed:
            return False
        if _guard_of(response) is not None:
            return True
        if _IS_OLD and response._on_close is not None:
            close: Callable[[], Any] = functools.partial(response._on_close, response)
            guarded = kind(stream, close, settings)
            response._on_close = guarded.on_close
        else:
            close = _pool.close_method(stream, kind.is_async)
            guarded = response.stream = kind(stream, close, settings)
    except Exception as failure:
        _pool.fall_back(failure)
        return False
    return True


def _guard_of(response: Any) -> Any:
    if _IS_OLD:
        guarded = getattr(getattr(response, "_on_close", None), "__self__", None)
    else:
        guarded = getattr(response, "stream", None)
    return guarded if isinstance(guarded, _GuardedStream) else None


class _GuardedStream:
    """A response stream that closes to its end. Reading it is as before."""

    progress: Optional[_closing.Progress] = None
    own_scope: Any = None  # The outermost one that the response holds open.

    def __init__(self, stream: Any, close: Callable[[], Any], settings: Settings) -> None:
        self._stream = stream
        self.close_plainly = close
        self._settings = settings


class AsyncGuardedStream(_GuardedStream, _AsyncByteStream):  # type: ignore[misc]
    is_async = True
    inherited = getattr(_AsyncByteStream, "aclose", None)  # By streams that have no close.

    def __aiter__(self) -> Any:
        return self._stream.__aiter__()

    async def aclose(self) -> None:
        closers = [self.close_plainly]
        unsettled = _pool.unsettled_exchange(self._stream)
        if unsettled is not None:
            closers += _pool.settle([unsettled])
        handled = _handled() if sys.exc_info()[1] is not None else None
        if isinstance(handled, GeneratorExit):
            _closing.in_background(_clean_up(closers, self._settings))
            return
        work = self.close_plainly() if unsettled is None else _close_all(closers)
        limit = self._settings.close_timeout
        try:
            effort = await _closing.uninterrupted(
                work, limit, handled is not None, own=self.own_scope, owner=self
            )
        except GeneratorExit:
            raise
        except BaseException as exc:
            await self._settle_after(exc)
            if handled is None:
                raise
            _report_failure(exc)
        else:
            if effort is not None:
                if effort.timed_out:
                    give_up(self._settings.close_timeout)
                    await self._settle_after()
                await effort.let_cancel(handled)

    async def on_close(self, response: Any) -> None:
        await self.aclose()

    async def _settle_after(self, exc: Optional[BaseException] = None) -> None:
        closers = _pool.settle(_exchanges_of(self._stream, exc))
        if closers:  # Else a cancel that is to come next would end in here.
            await _clean_up(closers, self._settings)


class SyncGuardedStream(_GuardedStream, _SyncByteStream):  # type: ignore[misc]
    is_async = False
    inherited = getattr(_SyncByteStream, "close", None)

    def __iter__(self) -> Any:
        return iter(self._stream)

    def close(self) -> None:
        handled = _handled()
        unsettled = _pool.unsettled_exchange(self._stream)
        closers = [] if unsettled is None else _pool.settle([unsettled])
        try:
            self.close_plainly()
        except BaseException as exc:
            closers += _pool.settle(_exchanges_of(self._stream, exc))
            if handled is None:
                raise
            _report_failure(exc)
        finally:
            _close_all_sync(closers)

    def on_close(self, response: Any) -> None:
        self.close()


def _exchanges_of(stream: Any, exc: Optional[BaseException]) -> List[Any]:
    """Return the exchange that the close of `stream` left behind when it ended with `exc`."""
    found: List[Any] = []
    try:
        if exc is not None:
            found = _pool.exchanges_in(_pool.frames_of(exc, _GUARDS), [])
    except Exception as failure:
        _pool.fall_back(failure)
    exchange = None if found else _pool.open_exchange(stream)
    if exchange is not None:
        exchange.gave_back = True
        found.append(exchange)
    return found


# Where the frames of an exchange end, seen from outside: all guards share these. (By
# their ids, as code objects compare slowly.)
_ASYNC_GUARD, _SYNC_GUARD = (
    id(make(lambda: None, Settings(0)).__code__) for make in (guard_async, guard_sync)
)
_GUARDS = frozenset((_ASYNC_GUARD, _SYNC_GUARD))


class _Rescue:
    """What is left of a request that ended with `exc`. The books are right at once."""

    def __init__(
        self,
        exc: BaseException,
        settings: Settings,
        client: Any,
        request: Any,
        is_async: bool = True,
    ) -> None:
        self.began = time.perf_counter()
        self.exc = exc
        self.settings = settings
        self.client = client
        self.request = request
        self.closers: List[Callable[[], Any]] = []
        self.scoped: List[Tuple[Callable[[], Any], Any]] = []
        self.phase = ""
        try:
            self._examine(_opened.get(id(sys._getframe(1)), []), is_async)
        except Exception as failure:
            _pool.fall_back(failure)

    def _examine(self, opened: List[Any], is_async: bool) -> None:
        exc, settings = self.exc, self.settings
        frames = _pool.frames_of(exc, _GUARDS)
        responses = _open_responses(opened, frames)
        streams = [getattr(response, "stream", response) for response in responses]
        exchanges = _pool.exchanges_in(frames, streams)
        if not exchanges and _is_dropped(exc):
            exchanges = _pool.exchanges_of(self.client, self.request)
        for response in responses:
            closer = _closer_of(response, is_async, settings.close_timeout)
            scope = getattr(_guard_of(response), "own_scope", None)
            if scope is None:
                self.closers.append(closer)
            else:
                self.scoped.append((closer, scope))
        self.closers += _pool.settle(exchanges)
        if exchanges:
            self.phase = exchanges[-1].phase
        elif responses:
            self.phase = "reading"
        else:
            self.phase = _phase_of_close(frames)

    async def run(self) -> None:
        """Close what is open. Raises nothing."""
        for closer, scope in self.scoped:
            await _clean_up([closer], self.settings, self.exc, scope)
        if self.closers:
            await _clean_up(self.closers, self.settings, self.exc)
        self._report()

    def run_sync(self) -> None:
        _close_all_sync(self.closers)
        self._report()

    def _report(self) -> None:
        if self.phase:
            count("released", self.phase)
            if logger.isEnabledFor(logging.DEBUG):  # httpx parses a URL anew for its host.
                logger.debug(
                    "released %s %s, ended while %s by %s, in %.1f ms",
                    getattr(self.request, "method", "?"),
                    getattr(getattr(self.request, "url", None), "host", "?"),
                    self.phase,
                    type(self.exc).__name__,
                    (time.perf_counter() - self.began) * 1000,
                )


def _open_responses(opened: List[Any], frames: List[Any]) -> List[Any]:
    """Return the responses that were in hand: those `opened`, and those in `frames`.

    One that httpx opened but failed to hand on (bad cookies, say) is only in a frame. A
    dropped coroutine has no frames left.
    """
    answered: List[Tuple[str, Any]] = []
    begins, last = 0, None
    for layer, function, frame, error in frames:
        if error is not last or (layer, function) == ("_client", "send"):
            begins, last = len(answered), error
        if layer == "_client" and "send" in function:
            answered.append((function, frame))
        elif function in _pool.HANDLE and layer in _TRANSPORTS:
            del answered[begins:]  # Not answered yet; httpx has closed earlier ones by then.
    found = {id(response): response for response in opened}
    for function, frame in answered:
        response = frame.f_locals.get("response")
        if response is None and function == "_send_single_request":
            response = frame.f_locals.get("stream")  # Up to httpx 0.20.
        if response is not None:
            found[id(response)] = response
    return [response for response in found.values() if _is_open(response)]


def _phase_of_close(frames: List[Any]) -> str:
    """Return what the request was doing whose response is closed again, by httpx or a guard."""
    functions = {function for layer, function, _, _ in frames if layer == "_models"}
    if functions & {"aclose", "close"}:
        return "closing"
    return "reading" if functions & {"aiter_raw", "iter_raw"} else ""


def _handled() -> Optional[BaseException]:
    """Return the exception for which httpx closes a response, if it does for one.

    One that httpx does not handle itself is the business of our caller.
    """
    exc = sys.exc_info()[1]
    if exc is None or isinstance(exc, GeneratorExit):
        return exc
    traceback = exc.__traceback__
    inside = traceback and traceback.tb_frame.f_globals.get("__name__") == "httpx._client"
    return exc if inside else None


def _is_open(response: Any) -> bool:
    """Tell whether `response` is open, or was dropped while it was being closed."""
    progress = getattr(_guard_of(response), "progress", None)
    if progress is not None:
        return not progress.is_over
    return not getattr(response, "is_closed", False)


def _closer_of(response: Any, is_async: bool, limit: float) -> Callable[[], Any]:
    """Return what closes `response` and can be run uninterrupted as a whole."""
    guarded = _guard_of(response)
    if guarded is not None and guarded.progress is not None:
        return functools.partial(guarded.progress.take_over, limit)
    if guarded is not None:
        response.is_closed = True
        return guarded.close_plainly  # type: ignore[no-any-return]
    return _pool.close_method(response, is_async)


async def _clean_up(
    closers: List[Callable[[], Any]],
    settings: Settings,
    exc: Optional[BaseException] = None,
    own: Any = None,
) -> None:
    """Run `closers` whatever arrives meanwhile. Raises nothing but GeneratorExit.

    A cancel that was held back is let go on, unless `exc` already is one.
    """
    work = _close_all(closers)
    try:
        effort = await _closing.uninterrupted(
            work, settings.close_timeout, True, None, own
        )
    except GeneratorExit:
        raise
    except BaseException as failure:
        work.close()
        _report_failure(failure)
        return
    if effort is not None:
        if effort.timed_out:
            give_up(settings.close_timeout)
        effort.redeliver(exc)


async def _close_all(closers: List[Callable[[], Any]]) -> None:
    """Run every closer, also after one that fails."""
    cancel = None
    for close in closers:
        try:
            result = close()
            if hasattr(result, "__await__"):
                await result
        except GeneratorExit:
            raise
        except BaseException as exc:
            if _closing.is_cancel(exc):
                cancel = exc  # Time is up; trio wants to see it in the end.
            else:
                _report_failure(exc)
    if cancel is not None:
        raise cancel


def _close_all_sync(closers: List[Callable[[], Any]]) -> None:
    for close in closers:
        try:
            close()
        except BaseException as exc:
            _report_failure(exc)


def _report_failure(exc: BaseException) -> None:
    count("failed")
    warn_of("a clean-up failed", exc)
