"""Cancel one request among others: the pieces that the bystander tests are made of."""

import asyncio

import anyio
import sniffio

from .sweep import Trigger, drive

WAYS = ["once", "twice-1", "twice-3", "scope"]


def start(coroutine):
    return asyncio.get_event_loop().create_task(coroutine)


async def passes(number=20):
    for _ in range(number):
        await anyio.sleep(0)


async def cancel(*tasks):
    """Cancel tasks; again where `wait_for()` has lost it, before Python 3.12 (cpython #86296)."""
    pending = tasks
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=2)


def ways_on(backend):
    return WAYS if backend == "asyncio" else ["scope"]


async def cancelled_at(k, coro, way):
    """Run a coroutine and cancel it at its k-th suspension; False when it ended before that."""
    if way == "scope":
        with anyio.CancelScope() as scope:
            trigger = Trigger(scope.cancel, k)
            await drive(coro, trigger)
        return trigger.calls > 0
    loop = asyncio.get_event_loop()
    again = [int(way[6:])] if way.startswith("twice-") else []
    trigger = Trigger(lambda: loop.call_soon(lambda: task.cancel()), k, again)

    async def run():
        await drive(coro, trigger)

    task = loop.create_task(run())
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
    return trigger.calls > 0


async def cut_short(seconds, coro):
    """Run a coroutine for a time that is certainly too short, or nearly so."""
    if sniffio.current_async_library() == "asyncio":
        try:
            await asyncio.wait_for(coro, seconds)
        except asyncio.TimeoutError:
            pass
    else:
        with anyio.move_on_after(seconds):
            await coro


def run(noise, backend, function):
    """Run an async function on a backend; a hang fails the test instead of stopping it."""

    async def main():
        with anyio.fail_after(60):
            return await function()

    if backend == "trio":
        return anyio.run(main, backend="trio")
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(noise.loop_complains)
    asyncio.set_event_loop(loop)
    try:
        result = loop.run_until_complete(main())
        loop.run_until_complete(loop.shutdown_asyncgens())
        return result
    finally:
        asyncio.set_event_loop(None)
        loop.close()
