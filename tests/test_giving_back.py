"""What httpcore 0.14 takes back from failed requests, and who gets it: without waiting, once for all."""

import asyncio

import anyio
import httpcore
import httpx
import pytest

import httpx_cancel_safe

from .support import compat
from .support.cancelling import cancel, cancelled_at, passes, start
from .support.compat import pool_of
from .support.scenarios import expect
from .test_left_behind import network_streams

pytestmark = [
    pytest.mark.skipif(
        not (0, 21) <= compat.HTTPX < (0, 23), reason="httpcore 0.14 alone lists its requests"
    ),
    pytest.mark.filterwarnings("ignore:trio.MultiError"),
]

if (0, 21) <= compat.HTTPX < (0, 23):
    from httpcore._async.connection_pool import RequestStatus

    from httpx_cancel_safe._pool import listed

needs_trio = pytest.mark.skipif(bool(compat.trio_problem()), reason="no trio")
every_library = pytest.mark.parametrize(
    "library", ["asyncio", pytest.param("trio", marks=needs_trio)]
)


@pytest.fixture(autouse=True)
def patched():
    with httpx_cancel_safe.patched():
        yield


@pytest.fixture
def own(monkeypatch):
    """The calls of the pools' own `response_closed()`."""
    calls = []
    for kind in (httpcore.AsyncConnectionPool, httpcore.ConnectionPool):

        def response_closed(self, status, original=kind.response_closed):
            calls.append(status)
            return original(self, status)

        monkeypatch.setattr(kind, "response_closed", response_closed)
    return calls


async def fail(client, url):
    """A request that fails in the hands of its caller, who holds the response."""
    with pytest.raises(LookupError):
        async with client.stream("GET", url + "/hang-body"):
            raise LookupError


@every_library
def test_only_what_failed_is_taken_back_at_once(servers, own, library):
    async def main():
        client = compat.make_client(httpx.AsyncClient, False)
        expect(await client.get(servers.plain.url + "/get"))
        assert len(own) == 1
        await fail(client, servers.plain.url)
        assert len(own) == (1 if library == "asyncio" else 2)
        pool = pool_of(client)
        assert (pool._requests, pool._pool) == ([], [])
        await client.aclose()

    anyio.run(main, backend=library)


def test_sync_pools_take_back_by_themselves_also_under_a_loop(servers, own):
    async def main():
        client = httpx.Client(trust_env=False)  # In a task of asyncio's, on purpose.
        with pytest.raises(LookupError), client.stream("GET", servers.plain.url + "/hang-body"):  # noqa: ASYNC212
            raise LookupError
        assert len(own) == 1
        client.close()  # noqa: ASYNC212

    anyio.run(main)


def test_who_waits_for_a_failed_request_is_served_at_once_each_time(servers):
    async def main():
        client = compat.make_client(httpx.AsyncClient, False, pool_timeout=1)
        for _ in range(2):
            with pytest.raises(LookupError):
                async with client.stream("GET", servers.plain.url + "/hang-body"):
                    waiting = start(client.get(servers.plain.url + "/get"))
                    await passes()
                    raise LookupError
            expect(await waiting)
        await client.aclose()

    anyio.run(main)


def test_those_who_wait_are_served_once_a_pass(servers, monkeypatch):
    served = []
    original = listed._serve
    monkeypatch.setattr(listed, "_serve", lambda *args: [served.append(1), original(*args)])

    async def main():
        client = compat.make_client(httpx.AsyncClient, False)
        async with client.stream("GET", servers.plain.url + "/chunked") as response:
            tasks = [start(client.get(servers.plain.url + "/get")) for _ in range(10)]
            await passes()
            await cancel(*tasks)
            await passes()
            assert len(served) == 1
            await response.aread()
        await client.aclose()

    anyio.run(main)


def test_who_holds_the_lock_goes_before_those_who_wait(servers):
    compat.trio_problem()  # With trio imported, the net has to ask which library runs a callback.

    async def main():
        client = compat.make_client(httpx.AsyncClient, False, pool_timeout=1)
        pool = pool_of(client)
        for _ in range(2):
            holder = start(client.get(servers.plain.url + "/hang-body"))
            await passes(2)
            waiting = start(client.get(servers.plain.url + "/get"))
            await passes()
            assert [status.connection is None for status in pool._requests] == [False, True]
            async with pool._pool_lock:
                await cancel(holder)
                await passes()
                assert [status.connection for status in pool._requests] == [None]
            expect(await waiting)
        await client.aclose()

    loop = asyncio.new_event_loop()  # Not by anyio, which would tell.
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


@every_library
def test_a_close_that_is_given_up_gives_back_all_the_same(servers, library):
    """It waits for the pool's lock, which somebody keeps for longer than it may take."""

    async def main():
        client = compat.make_client(httpx.AsyncClient, False)
        pool, closed, is_held, is_over = pool_of(client), [], anyio.Event(), anyio.Event()

        async def hold():
            async with pool._pool_lock:
                is_held.set()
                await is_over.wait()

        async def request(group):
            with anyio.CancelScope() as scope:
                async with client.stream("GET", servers.plain.url + "/hang-body"):
                    group.start_soon(hold)
                    await is_held.wait()
                    if library == "asyncio":
                        asyncio.get_event_loop().call_soon(scope.cancel)
            closed.append(list(pool._requests))
            is_over.set()

        async with anyio.create_task_group() as group:
            await request(group)
        assert closed == [[]]
        await client.aclose()

    with httpx_cancel_safe.patched(close_timeout=0.05):
        anyio.run(main, backend=library)


def test_who_waits_is_served_when_one_that_was_just_served_is_cancelled(servers):
    async def main():
        client = compat.make_client(httpx.AsyncClient, False, pool_timeout=1)
        async with client.stream("GET", servers.plain.url + "/hang-body"):
            first, second = [start(client.get(servers.plain.url + "/get")) for _ in range(2)]
            await passes()
        assert [status.connection is None for status in pool_of(client)._requests] == [False, True]
        await cancel(first)
        assert first.cancelled()
        expect(await second)
        await client.aclose()

    anyio.run(main)


def test_a_connection_that_was_being_closed_for_its_place_leaves_it(servers):
    async def main():
        client = compat.make_client(httpx.AsyncClient, servers.client_context(), pool_timeout=1)
        expect(await client.get(servers.plain.url + "/get"))
        (stream,) = network_streams(client)
        original, is_closing = stream.aclose, asyncio.Event()

        async def aclose():
            stream.aclose = original
            is_closing.set()
            await asyncio.Event().wait()

        stream.aclose = aclose
        task = start(client.get(servers.tls.url + "/get"))
        await is_closing.wait()
        await cancel(task)
        expect(await client.get(servers.tls.url + "/get"))
        await client.aclose()

    anyio.run(main)


@pytest.mark.parametrize("origin, proxied", [("tls", False), ("tls", True), ("http2", True)])
def test_who_waits_for_a_connection_gets_it_when_who_connects_is_cancelled(servers, origin, proxied):
    """Two requests share it until it is known whether it speaks HTTP/2."""
    if origin == "http2" and compat.HTTPX[:2] == (0, 21):
        pytest.skip("httpcore speaks no HTTP/2 through tunnels from 0.14.0 to 0.14.3")

    async def main(k):
        options = {"proxy": servers.proxy.url} if proxied else {}
        client = compat.make_client(httpx.AsyncClient, servers.client_context(), http2=True, **options)
        url = getattr(servers, origin).url + "/get"
        first = start(cancelled_at(k, client.get(url), "once"))
        expect(await client.get(url))
        was_cancelled = await first
        await client.aclose()
        return was_cancelled

    k = 1
    while anyio.run(main, k):
        k += 1
    assert k > 5


@pytest.mark.parametrize("state", ["NEW", "ACTIVE"])
def test_a_connection_that_another_has_chosen_too(servers, state):
    """Who connected it ends before it is used: it is idle then. Or ends while it is used: it is gone."""

    async def main():
        client = compat.make_client(httpx.AsyncClient, False)
        expect(await client.get(servers.plain.url + "/get"))
        pool = pool_of(client)
        (connection,) = pool._pool
        inner = connection._connection
        inner._state = type(inner._state)[state]
        ended, waiting = status_for(servers.plain.url), status_for(servers.plain.url)
        for status in (ended, waiting):
            status.set_connection(connection)
            pool._requests.append(status)
        exchange, closers = listed.Exchange(pool, ended), []
        exchange.owns = state == "ACTIVE"
        exchange.settle(closers)
        assert pool._requests == [waiting]
        assert pool._pool == ([connection] if state == "NEW" else [])
        assert connection.is_idle() == (state == "NEW")
        assert connection.is_closed() == (state == "ACTIVE")
        for close in closers:
            await close()
        pool._requests.remove(waiting)
        await client.aclose()

    anyio.run(main)
    assert servers.plain.wait_closed_to(0, 2)


def test_a_connection_that_was_given_back_is_others_already(servers):
    """Who gave it back still waits to tell the pool so when it is cancelled."""

    async def main():
        client = compat.make_client(httpx.AsyncClient, False)
        pool, is_over = pool_of(client), asyncio.Event()

        async def hold():
            async with pool._pool_lock:
                await is_over.wait()

        first = start(client.get(servers.plain.url + "/slow-headers"))
        while not pool._pool or pool._pool[0].is_idle():
            await asyncio.sleep(0)
        (connection,) = pool._pool
        async with pool._pool_lock:
            second = start(client.get(servers.plain.url + "/chunked"))
            await passes()
            holder = start(hold())
            while not connection.is_idle():
                await asyncio.sleep(0)
            await passes()
        while connection.is_idle():
            await asyncio.sleep(0)
        assert not first.done()
        await cancel(first)
        assert first.cancelled()
        is_over.set()
        await holder
        assert (await second).content.count(b"chunk") == 4
        await client.aclose()

    accepted = servers.plain.accepted
    anyio.run(main)
    assert servers.plain.accepted == accepted + 1


def test_places_do_not_move_while_somebody_holds_the_lock(servers):
    async def main():
        client = compat.make_client(httpx.AsyncClient, False, limit=2)
        pool = pool_of(client)
        task = start(client.get(servers.plain.url + "/hang-headers"))
        await passes(2)
        request = client.build_request("GET", servers.plain.url + "/chunked")
        response = await client.send(request, stream=True)
        going, staying = [status.connection for status in pool._requests]
        pool._pool[:] = [going, staying]
        async with pool._pool_lock:
            await cancel(task)
            assert (len(pool._pool), pool._pool[1]) == (2, staying)
            assert pool._pool[0] is not going
        assert (await response.aread()).count(b"chunk") == 4
        for _ in range(2):
            expect(await client.get(servers.plain.url + "/get"))
        assert pool._pool == [staying]
        await client.aclose()

    anyio.run(main)


def test_what_httpcore_was_closing_when_it_was_cancelled_again_is_closed(servers):
    async def main():
        client = compat.make_client(httpx.AsyncClient, False)
        task = start(client.get(servers.plain.url + "/hang-headers"))
        while not servers.plain.open_connections:
            await asyncio.sleep(0)
        await passes()
        (stream,) = network_streams(client)
        original = stream.aclose

        async def aclose():
            stream.aclose = original
            asyncio.get_event_loop().call_soon(task.cancel)
            await asyncio.Event().wait()

        stream.aclose = aclose
        await cancel(task)
        assert stream.aclose == original
        expect(await client.get(servers.plain.url + "/get"))
        await client.aclose()
        await asyncio.sleep(0)
        return stream

    stream = anyio.run(main)
    assert servers.plain.wait_closed_to(0, 2), stream


def status_for(url):
    return RequestStatus(httpcore.Request("GET", url))


def test_who_waits_gets_what_is_idle_and_fits(servers):
    async def main():
        client = compat.make_client(httpx.AsyncClient, False)
        expect(await client.get(servers.plain.url + "/get"))
        pool, closers = pool_of(client), []
        (idle,) = pool._pool
        status = status_for(servers.plain.url)
        pool._requests.append(status)
        listed._serve(pool, closers)
        assert (status.connection, pool._pool, closers) == (idle, [idle], [])
        pool._requests.remove(status)
        await client.aclose()

    anyio.run(main)


def test_who_waits_gets_the_place_of_what_is_idle_and_does_not_fit(servers, caplog):
    async def main():
        client = compat.make_client(httpx.AsyncClient, False)
        expect(await client.get(servers.plain.url + "/get"))
        pool, closers = pool_of(client), []
        (idle,) = pool._pool
        original, idle.aclose = idle.aclose, refuse
        first, second = status_for("http://other.test"), status_for("http://third.test")
        pool._requests += [first, second]
        listed._serve(pool, closers)
        assert (pool._pool, second.connection) == ([first.connection], None)
        assert first.connection.can_handle_request(httpcore.URL("http://other.test").origin)
        await listed._close_all(closers)
        await original()
        del pool._requests[:]
        await client.aclose()

    anyio.run(main)
    assert ["clean-up failed: PermissionError" in record.getMessage() for record in caplog.records] == [True]


async def refuse():
    raise PermissionError


def test_a_dropped_request_takes_no_other_with_it(servers):
    async def main():
        client = compat.make_client(httpx.AsyncClient, False, limit=1, pool_timeout=1)
        async with client.stream("GET", servers.plain.url + "/chunked") as response:
            waiting = client.get(servers.plain.url + "/get")
            waiting.send(None)  # For the first, a place in the pool.
            waiting.close()
            await passes()
            assert (await response.aread()).count(b"chunk") == 4
        expect(await client.get(servers.plain.url + "/get"))
        await client.aclose()

    anyio.run(main)


def test_who_waits_gets_the_place_of_what_has_become_idle(servers):
    """A connection of HTTP/2 stays when a request on it is cancelled."""

    async def main():
        client = compat.make_client(httpx.AsyncClient, servers.client_context(), http2=True, pool_timeout=1)
        task = start(client.get(servers.http2.url + "/hang-headers"))
        while not network_streams_of(pool_of(client)):
            await asyncio.sleep(0)
        await passes()
        waiting = start(client.get(servers.plain.url + "/get"))
        await passes()
        await cancel(task)
        expect(await waiting)
        assert servers.http2.wait_closed_to(0, 2)
        await client.aclose()

    anyio.run(main)


def network_streams_of(pool):
    return [one for one in pool._pool if getattr(one, "_connection", None) is not None]


@every_library
def test_who_waits_for_a_connection_that_fails_connects_anew(servers, library):
    async def main():
        context = servers.client_context()
        client = compat.make_client(httpx.AsyncClient, context, http2=True, pool_timeout=1)
        pool = pool_of(client)
        expect(await client.get(servers.plain.url + "/get"))  # The network is wrapped by then.
        network = pool._network_backend
        connect, tried = network.connect_tcp, []

        async def connect_tcp(*args, **kwargs):
            tried.append(args)
            await anyio.sleep(0)
            if len(tried) == 1:
                raise httpcore.ConnectError
            return await connect(*args, **kwargs)

        network.connect_tcp = connect_tcp
        ended = []

        async def request():
            try:
                expect(await client.get(servers.http2.url + "/get"))
            except httpx.ConnectError:
                ended.append("failed")
            else:
                ended.append("answered")

        async with anyio.create_task_group() as group:
            group.start_soon(request)
            group.start_soon(request)
        assert sorted(ended) == ["answered", "failed"]
        assert (len(tried), len(pool._pool)) == (2, 1)
        await client.aclose()

    anyio.run(main, backend=library)


class Foreign(httpx.AsyncBaseTransport if compat.HTTPX >= (0, 21) else object):
    """Somebody else's transport, with a pool of httpcore's."""

    def __init__(self):
        self.pool = httpcore.AsyncConnectionPool(max_connections=1)

    async def handle_async_request(self, request):
        asked = httpcore.Request(request.method, str(request.url), headers=request.headers.raw)
        answer = await self.pool.handle_async_request(asked)
        try:
            return httpx.Response(answer.status, content=await answer.aread())
        finally:
            await answer.aclose()

    async def aclose(self):
        await self.pool.aclose()


def test_a_pool_in_a_transport_that_is_not_of_httpx(servers):
    async def main():
        async with httpx.AsyncClient(transport=Foreign()) as client:
            before = servers.plain.accepted
            task = start(client.get(servers.plain.url + "/hang-headers"))
            while servers.plain.accepted == before:
                await asyncio.sleep(0)
            await passes()
            waiting = start(client.get(servers.plain.url + "/get"))
            await passes()
            await cancel(task)
            assert client._transport.pool._requests[0].request.url.target == b"/get"
            assert (await waiting).status_code == 200

    anyio.run(main)
    assert servers.plain.wait_closed_to(0, 2)
