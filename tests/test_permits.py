"""What httpcore 0.11 to 0.13 counts: who waits gets a connection, and each permit is out once."""

import asyncio
import random

import anyio
import httpcore
import httpx
import pytest

import httpx_cancel_safe

from .support import compat
from .support.cancelling import cancel, cancelled_at, passes, start
from .support.compat import pool_of
from .support.scenarios import expect
from .test_left_behind import http2_of

pytestmark = pytest.mark.skipif(compat.HTTPX >= (0, 21), reason="httpcore 0.14 counts no permits")

# From here on no request gets a connection that is still connecting.
SHARES = not httpcore.__version__.startswith(("0.13.4", "0.13.5", "0.13.6", "0.13.7"))


def run(function, *args):
    async def main():
        with anyio.fail_after(30):
            return await function(*args)

    with httpx_cancel_safe.patched():
        return anyio.run(main)


async def close(client, server):
    """Close a client; the loop, which keeps what is open, still runs when the server has to know."""
    await client.aclose()
    await passes()  # Streams of asyncio's close a little later.
    assert server.wait_closed_to(0, 2)


async def the_other_goes_on(client, server, other):
    """Expect answers for a newcomer, for the `other`, and for the next one after it."""
    expect(await client.get(server.url + "/get"))
    assert (await other).content.count(b"chunk") == 4
    expect(await client.get(server.url + "/get"))
    await close(client, server)


def permits(semaphore):
    inner = semaphore.semaphore
    return getattr(inner, "value", getattr(inner, "_value", None))


@pytest.mark.parametrize("number", [1, 2])
def test_a_place_that_comes_together_with_a_cancel_goes_on_to_the_next(servers, number):
    """The first of those who wait is cancelled just before the place is free, or some passes after."""

    async def main(k):
        client = compat.make_client(httpx.AsyncClient, False, keepalive=0)
        semaphore = pool_of(client)._connection_semaphore
        original = semaphore.release

        async def release():
            semaphore.release = original
            if k == 0:
                tasks[0].cancel()
            await original()

        async with client.stream("GET", servers.plain.url + "/hang-body"):
            tasks = [start(client.get(servers.plain.url + "/get")) for _ in range(number)]
            await passes()
            semaphore.release = release
        await passes(k)
        await cancel(tasks[0])
        for task in tasks[1:]:
            expect(await task)
        expect(await client.get(servers.plain.url + "/get"))
        await close(client, servers.plain)
        assert permits(semaphore) == 1

    for k in range(8):
        run(main, k)


needs_sharing = pytest.mark.skipif(not SHARES, reason="no request waits for what another opens")


@needs_sharing
@pytest.mark.parametrize("cancelled", [0, 1])
def test_of_two_who_share_a_connection_still_connecting_the_other_goes_on(servers, cancelled):
    """They do where it may come to speak HTTP/2; this one does not."""

    async def main(k):
        client = compat.make_client(httpx.AsyncClient, False, limit=2, http2=True)
        works = [client.get(servers.plain.url + "/get") for _ in range(2)]
        works[cancelled] = cancelled_at(k, works[cancelled], "once")
        tasks = [start(works[0])]
        await passes(1)  # So it is this one that connects.
        tasks.append(start(works[1]))
        await asyncio.wait(tasks)
        expect(tasks[1 - cancelled].result())
        expect(await client.get(servers.plain.url + "/get"))
        await close(client, servers.plain)
        assert permits(pool_of(client)._connection_semaphore) == 2
        return tasks[cancelled].result()

    k = 1
    while run(main, k):
        k += 1
    assert k > 2


@needs_sharing
def test_who_connected_goes_on_when_the_other_is_cancelled_some_passes_later(servers, monkeypatch):
    original = asyncio.open_connection

    async def main(k):
        async def connect(*args, **kwargs):
            monkeypatch.undo()
            result = await original(*args, **kwargs)
            tasks.append(start(cancel_later()))
            return result

        async def cancel_later():
            await passes(k)
            tasks[1].cancel()

        client = compat.make_client(httpx.AsyncClient, False, limit=2, http2=True)
        monkeypatch.setattr(asyncio, "open_connection", connect)
        tasks = [start(client.get(servers.plain.url + "/" + name)) for name in ("chunked", "get")]
        await asyncio.wait(tasks[1:])
        await the_other_goes_on(client, servers.plain, tasks[0])

    for k in range(8):
        run(main, k)


@pytest.mark.filterwarnings("ignore:trio.MultiError")
@pytest.mark.skipif(bool(compat.trio_problem()), reason="no trio")
@pytest.mark.skipif(compat.HTTPX < (0, 18), reason="made for how httpcore 0.13 opens a connection on trio")
@needs_sharing
@pytest.mark.parametrize("seed", range(4))
def test_a_connection_that_has_failed_is_not_put_back(servers, monkeypatch, seed):
    """The first fails to open it when the third is cancelled; the second has not run yet, or has."""
    import trio

    monkeypatch.setattr(trio._core._run, "_r", random.Random(seed))  # Who of the two is first.

    async def main():
        client = compat.make_client(httpx.AsyncClient, False, http2=True)
        url, scope, failed = servers.plain.url + "/get", anyio.CancelScope(), []

        async def fail(*args, **kwargs):
            monkeypatch.setattr(trio, "open_tcp_stream", original)
            await passes()
            scope.cancel()
            raise OSError

        async def first():
            try:
                await client.get(url)
            except httpx.ConnectError:
                failed.append(True)

        async def third():
            with scope:
                await client.get(url)

        original = trio.open_tcp_stream
        monkeypatch.setattr(trio, "open_tcp_stream", fail)
        async with anyio.create_task_group() as group:
            group.start_soon(first)
            await anyio.sleep(0)
            group.start_soon(second_of, client, url)
            await anyio.sleep(0)
            group.start_soon(third)
        assert failed == [True]
        expect(await client.get(url))
        await client.aclose()

    with httpx_cancel_safe.patched():
        anyio.run(main, backend="trio")
    assert servers.plain.wait_closed_to(0, 2)


async def second_of(client, url):
    expect(await client.get(url))


def test_of_two_who_chose_an_idle_connection_the_other_goes_on(servers):
    async def main(k):
        client = compat.make_client(httpx.AsyncClient, False, limit=2)
        expect(await client.get(servers.plain.url + "/get"))
        ((connection,),) = pool_of(client)._connections.values()
        async with connection.request_lock:  # So both choose before one begins, as they may on trio.
            tasks = [start(client.get(servers.plain.url + "/" + name)) for name in ("chunked", "get")]
            await passes()
        await passes(k)
        await cancel(tasks[1])
        await the_other_goes_on(client, servers.plain, tasks[0])

    for k in range(8):
        run(main, k)


@pytest.mark.skipif(
    compat.HTTPX < (0, 18), reason="httpcore before 0.13 takes a connection with data to read for a dead one"
)
@pytest.mark.parametrize("by", ["cancel", "time-out"])
def test_permits_of_an_http2_connection_that_others_use(servers, by):
    """Httpcore takes it out of its books when a request fails, and then counts one too many."""

    async def main():
        client = compat.make_client(httpx.AsyncClient, servers.client_context(), http2=True)
        async with client.stream("GET", servers.http2.url + "/hang-body"):
            inner = http2_of(client)[1]
            before = permits(inner.max_streams_semaphore)
            if by == "cancel":
                task = start(client.get(servers.http2.url + "/hang-headers"))
                await passes(30)
                await cancel(task)
            else:
                timeout = httpx.Timeout(20, read=0.01)
                with pytest.raises(httpx.ReadTimeout):
                    await client.get(servers.http2.url + "/hang-headers", timeout=timeout)
            assert http2_of(client)[1] is inner
            assert permits(inner.max_streams_semaphore) == before
        assert permits(inner.max_streams_semaphore) == before + 1
        await close(client, servers.http2)
        assert permits(pool_of(client)._connection_semaphore) == 1

    run(main)
