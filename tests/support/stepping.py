"""Step a coroutine by hand: count its suspensions, and cancel it at one of them."""

import asyncio
import contextlib
import importlib
import itertools
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import anyio
import sniffio

from .compat import current_task
from .noise import strip

# Ways to cancel one request: once, once more some suspensions later, or by the scope around it.
WAYS = ["once", "twice", "scope"]


class Abort(BaseException):
    """What gevent, a debugger or a worker's shutdown may raise: no Exception, and nobody's own."""


class Dropped(Exception):
    """The coroutine was closed, as happens to one that nobody awaits any more."""


@types.coroutine
def drive(coro, on_suspend, close=True):
    """Run a coroutine as it is, and say before each suspension which one it is (from 1 on).

    An exception that `on_suspend` returns is raised in it when it goes on. With what `on_suspend` raises it ends:
    it is closed, or without `close` left to the garbage collector.
    """
    iterator = coro.__await__()
    value = error = None
    try:
        for count in itertools.count(1):
            try:
                waits_for = iterator.send(value) if error is None else iterator.throw(error)
            except StopIteration as stop:
                return stop.value
            struck = on_suspend(count)
            value, error = None, struck if isinstance(struck, BaseException) else None
            try:
                value = yield waits_for
            except GeneratorExit:
                raise
            except BaseException as exc:
                error = exc
    finally:
        if close:
            iterator.close()
        # Leave no cycle behind: from Python 3.11 on a traceback may hold the frames of callers.
        coro = iterator = error = struck = None


async def dropped_at(k, coro):
    """Run a coroutine and drop it at its k-th suspension; False when it ended before that."""

    def drop(count):
        if count == k:
            raise Dropped

    try:
        await drive(coro, drop)
    except Dropped:
        return True
    return False


async def cancelled_at(k, coro, way):
    """Run a coroutine and cancel it at its k-th suspension; with "twice" again up to four later.

    Return "" when it ended before that, or else "cancelled", or "swallowed" when it went on to its end all the same.
    With "raise" an Abort is raised there, as if what it waited for had raised it.
    """
    if way == "scope":
        return await _cancelled_by_scope(k, coro)
    if way == "raise":
        return await _raised_at(k, coro)
    loop = asyncio.get_event_loop()
    at = [k, k + 1 + k % 4] if way == "twice" and k else [k]
    calls, asked = [], []

    def cancel_at(count):
        if count in at:
            calls.append(count)
            loop.call_soon(lambda: task.cancel())  # So that the task is suspended when the cancel comes.

    async def run():
        try:
            await drive(coro, cancel_at)
        finally:
            asked.append(getattr(current_task(), "cancelling", lambda: len(calls))())

    task = loop.create_task(run())
    try:
        await asyncio.wait([task])
    finally:
        task.cancel()
    if not task.cancelled():
        task.result()
        return "swallowed" if calls else ""
    assert calls, "CancelledError came out, and nobody cancelled"
    assert asked == [len(calls)], "cancelling() is %d after %d" % (asked[0], len(calls))
    return "cancelled"


async def _cancelled_by_scope(k, coro):
    with anyio.CancelScope() as scope:
        await drive(coro, lambda count: scope.cancel() if count == k else None)
        return "swallowed" if scope.cancel_called else ""
    assert scope.cancel_called, "a cancellation came out, and nobody cancelled"
    return "cancelled"


async def _raised_at(k, coro):
    struck = []

    def strike(count):
        if count == k:
            struck.append(Abort())
            return struck[0]
        return None

    try:
        await drive(coro, strike)
    except Abort as exc:
        assert struck == [exc]  # noqa: PT017
        strip(exc)
        return "raised"
    return "swallowed" if struck else ""


def start(coroutine):
    return asyncio.get_event_loop().create_task(coroutine)


async def passes(number=20):
    for _ in range(number):
        await anyio.sleep(0)


async def cancel(*tasks):
    """Cancel tasks; again where `wait_for()` has lost it, before Python 3.12 (cpython #86296)."""
    while tasks:
        for task in tasks:
            task.cancel()
        _, tasks = await asyncio.wait(tasks, timeout=2)


def ways_on(backend):
    return WAYS if backend == "asyncio" else ["scope"]


async def cut_short(seconds, coro):
    """Run a coroutine for a time that is certainly too short, or nearly so."""
    if sniffio.current_async_library() == "asyncio":
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(coro, seconds)
    else:
        with anyio.move_on_after(seconds):
            await coro


def run(noise, backend, function, seconds=60):
    """Run an async function on a backend; a hang fails the test, unless `seconds` is None."""

    async def limited():
        with anyio.fail_after(seconds):
            return await function()

    main = function if seconds is None else limited
    if backend == "trio":
        return anyio.run(main, backend="trio")
    loop = importlib.import_module(backend).new_event_loop()
    if noise is not None:
        loop.set_exception_handler(noise.loop_complains)
    asyncio.set_event_loop(loop)
    try:
        result = loop.run_until_complete(main())
        loop.run_until_complete(loop.shutdown_asyncgens())
        return result
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def at_once(*functions):
    """Run functions in threads of their own that start together; return what they returned."""
    barrier = threading.Barrier(len(functions))

    def begin(function):
        barrier.wait()
        return function()

    with ThreadPoolExecutor(len(functions)) as threads:
        return list(threads.map(begin, functions))
