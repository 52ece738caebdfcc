"""Nobody else is touched: the requests next to a cancelled one go on undisturbed."""

import functools
import gc
import itertools
import random
import sys

import anyio
import httpx
import pytest
from h2.connection import H2Connection

import httpx_cancel_safe
from httpx_cancel_safe._pool.aio import Turns

from .support import compat
from .support.noise import Noise, no_gc, say
from .support.scenarios import digest, get, post, redirect, stream_left, stream_unread
from .support.stepping import WAYS, cancelled_at, cut_short, passes, run, ways_on
from .support.sweep import STRIDE, target

WORKERS = 12
REQUESTS = 6  # Each worker makes so many, however long it takes.

pytestmark = pytest.mark.skipif(compat.FIXED, reason="nothing is patched on httpx %s" % httpx.__version__)
every_version = pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])

gates = ("gate-%d" % number for number in itertools.count())


def skip_http2(backend):
    """Skip where httpcore itself cannot do it, patched or not, cancelled or not."""
    if sys.version_info < (3, 8) and compat.HTTPX < (0, 21):
        pytest.skip("a CancelledError is an Exception here: httpcore raises it on all streams")
    if backend == "asyncio" and compat.HTTPX < (0, 16):
        pytest.skip("httpcore 0.11 leaves TLS transports to the garbage collector")


def run_and_check(servers, backend, http2, limit, body):
    """Run body(client, url, server) with a client of its own, and return what it returns; nothing is left of it."""
    if backend == "trio" and compat.trio_problem():
        pytest.skip(compat.trio_problem())
    url, (server,), factory = target(servers, httpx.AsyncClient, http2=http2, limit=limit, pool_timeout=10.0)
    faults = []

    async def main():
        client = factory()
        try:
            result, found = await body(client, url, server)
            faults.extend(found + compat.wrong_books(client))
            await get(client, url)
            return result
        finally:
            try:
                await client.aclose()
            except RuntimeError as exc:
                faults.append("closing the client: " + say(exc))

    gc.collect(1)  # The rest is frozen: see no_gc().
    with Noise() as noise:
        try:
            result = run(noise, backend, main)
        except httpx.PoolTimeout as exc:
            faults.append("afterwards: " + say(exc))
        if not server.gone():
            faults.append("the server still holds a connection")
            server.reset()
        gc.collect(1)
        faults.extend(noise.take())
    faults.extend("server: %r" % exc for exc in server.protocol_errors)
    del server.protocol_errors[:]
    assert not faults, "\n".join(faults)
    return result


def cancel_at_each_point(servers, backend, http2, limit, cancel_at):
    """Run cancel_at(k, client, url, server) for each k, until no request is cancelled any more."""
    with httpx_cancel_safe.patched(), no_gc():
        k = 1
        while run_and_check(servers, backend, http2, limit, functools.partial(cancel_at, k)):
            k += STRIDE
    assert k > 1


def every_way(test):
    """On each backend that can cancel so, over HTTP/1.1 and HTTP/2."""
    ways = [("asyncio", way) for way in WAYS] + [("trio", "scope")]
    return every_version(pytest.mark.parametrize("backend, way", ways)(test))


@every_way
@pytest.mark.parametrize("scenario", [redirect, stream_left])
def test_a_neighbour_goes_on(servers, scenario, way, http2, backend):
    """One request is held open; the other is cancelled at each of its suspension points."""
    if http2 and compat.HTTPX < (0, 22):
        pytest.skip("httpcore before 0.14.4 lets one stream that waits keep the others from reading")

    async def cancel_at(k, client, url, server):
        gate, started, parts = next(gates), anyio.Event(), []

        async def neighbour():
            try:
                async with client.stream("GET", url + "/gate/" + gate) as response:
                    async for part in response.aiter_bytes():
                        parts.append(part)
                        started.set()
            finally:
                started.set()

        async with anyio.create_task_group() as group:
            group.start_soon(neighbour)
            await started.wait()
            cancelled = await cancelled_at(k, scenario(client, url), way)
            server.open_gate(gate)
        return cancelled, [] if b"".join(parts) == b"before after" else ["neighbour: %r" % parts]

    cancel_at_each_point(servers, backend, http2, 1 if http2 else 2, cancel_at)


@every_way
def test_a_newcomer_goes_on(servers, way, http2, backend):
    """Two requests share a new pool of one; the first is cancelled at each of its suspension points."""
    if http2:
        skip_http2(backend)

    async def cancel_at(k, client, url, server):
        cancelled = []

        async def first():
            cancelled.append(await cancelled_at(k, get(client, url), way))

        async with anyio.create_task_group() as group:
            group.start_soon(first)
            group.start_soon(get, client, url)
        return cancelled[0], []

    cancel_at_each_point(servers, backend, http2, 1, cancel_at)


CHAOTIC = [get, post, redirect, digest, stream_left, stream_unread]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_chaos_on_http2(servers, backend):
    """Half of the workers are cancelled again and again; nothing fails the others. HTTP/1.1 has its random programs."""
    skip_http2(backend)
    if compat.HTTPX < (0, 18):
        pytest.skip("httpcore before 0.13 closes a connection with data to read under who just chose it")
    if compat.HTTPX[:2] == (0, 21):
        pytest.skip("before httpcore 0.14.4 an answer that has arrived may wait for the next: httpcore #439")
    failed = []

    async def worker(client, url, is_steady, number):
        dice = random.Random("%s %d" % (is_steady, number))
        for _ in range(REQUESTS):
            request = dice.choice(CHAOTIC)(client, url)
            way = dice.choice(ways_on(backend) + ["cut"])
            try:
                if is_steady:
                    await request
                elif way == "cut":
                    await cut_short(dice.choice([0, 0.0005, 0.002]), request)
                else:
                    await cancelled_at(dice.randint(1, 25), request, way)
            except Exception as exc:
                failed.append("%s: %s" % ("steady" if is_steady else way, say(exc)))

    async def body(client, url, server):
        async with anyio.create_task_group() as group:
            for number in range(2 * WORKERS):
                group.start_soon(worker, client, url, number % 2, number)
        return None, failed

    with httpx_cancel_safe.patched(), no_gc():
        run_and_check(servers, backend, True, 1, body)


@pytest.mark.anyio
async def test_one_http2_connection_serves_any_number_of_cancelled_requests(
    servers, guarded, anyio_backend, monkeypatch
):
    """Each gives back its place (one of 100), its part of the window, and what the server does for it."""
    skip_http2(anyio_backend)
    # The window takes what one stream may send unread, 64 kB, and a little more, for two streams to fill it.
    widen = H2Connection.increment_flow_control_window

    def widen_a_little(self, size, stream_id=None):
        if stream_id is None:
            widen(self, 40000)

    monkeypatch.setattr(H2Connection, "increment_flow_control_window", widen_a_little)
    server, gate = servers.http2, next(gates)
    server.reset()
    client = compat.make_client(guarded.AsyncClient, servers.client_context(), http2=True, timeout=5)

    async def until_serving(number):
        with anyio.fail_after(10):
            while sum(len(connection.streams) for connection in server.connections) != number:
                await anyio.sleep(0.001)

    async with client.stream("GET", server.url + "/gate/" + gate) as neighbour:
        for _ in range(3):
            async with anyio.create_task_group() as group:
                for _ in range(50):
                    group.start_soon(client.get, server.url + "/hang-headers")
                await until_serving(51)
                group.cancel_scope.cancel()
            await until_serving(1)
        for _ in range(3):
            async with client.stream("GET", server.url + "/large"):
                await client.get(server.url + "/get")  # It reads what is for the other, too.
        server.open_gate(gate)
        assert await neighbour.aread() == b"before after"
    assert (compat.connections_of(client), server.opened) == (["idle"], 1)
    await client.aclose()


@pytest.mark.anyio
async def test_a_turn_that_comes_with_a_cancel_goes_to_the_next():
    """The locks of a guarded connection: one request is done just as the next is cancelled."""
    turns = Turns()

    async def take():
        async with turns:
            await anyio.sleep(0)

    await turns.acquire()
    async with anyio.create_task_group() as group:
        group.start_soon(take)
        await passes(3)
        turns.give_back()
        group.cancel_scope.cancel()
    with anyio.fail_after(5):
        await take()
