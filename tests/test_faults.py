"""Situations in which a release of this library was wrong, each with its variants.

Pools are of httpcore's own; what stands below them is a server on loopback, or a network that hangs.
"""

import asyncio
import contextlib
import gc
import sys
import textwrap
import time
from unittest import mock

import anyio
import httpx
import pytest

import httpx_cancel_safe

from .support import compat, programs
from .support.network import Network
from .support.stepping import Dropped, cancel, drive, passes, start
from .support.transports import Answers, AsyncAdapter, AsyncBody

pytestmark = [
    pytest.mark.skipif(compat.FIXED, reason="nothing is patched on httpx %s" % httpx.__version__),
    pytest.mark.anyio,
]

URL = "http://service.test/"
asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)


def make(base, limit=1, **options):
    return compat.make_client(base, False, limit=limit, **dict({"pool_timeout": 0.5}, **options))


async def is_whole(client, url):
    """Expect the next request to succeed, and the client to close without an error."""
    assert (await client.get(url)).content == b"hello"
    await client.aclose()


async def all_closed(server):
    for _ in range(1000):  # The loop has to go on for sockets to close.
        if not server.open_connections:
            return True
        await anyio.sleep(0.002)
    return False


# An async generator around a response is closed by its consumer. With a pool: see generator_closed in same/programs.py.
@asyncio_only
async def test_a_custom_response_in_a_generator_that_is_closed_is_closed_by_the_same_task(guarded):
    tasks = []

    async def close():
        await passes(3)
        tasks.append(compat.current_task())

    async def lines():
        async with client.stream("GET", URL) as response:
            async for chunk in response.aiter_bytes():
                yield chunk

    async with guarded.AsyncClient(transport=Answers(AsyncBody(close=close))) as client:
        chunks = lines()
        await chunks.__anext__()
        await chunks.aclose()
        assert tasks == [compat.current_task()]


# httpx #2139.
@asyncio_only
@pytest.mark.parametrize("path", ["/hang-headers", "/hang-body"])
@pytest.mark.parametrize("how", ["cancel", "wait_for"])
async def test_a_client_closed_right_after_a_cancel_closes_quietly(servers, guarded, path, how):
    """On Python 3.6 wait_for() raises before the task that it cancelled has run."""
    client = make(guarded.AsyncClient)
    task = start(client.get(servers.plain.url + path))
    while not servers.plain.open_connections:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)  # Before Python 3.12 wait_for() loses a cancel that comes with a connection.
    if how == "cancel":
        task.cancel()
    else:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(task, 0.001)
    await client.aclose()
    await asyncio.wait([task])
    assert task.cancelled()
    assert await all_closed(servers.plain)


# HTTP/2: a timeout of one request on a shared connection.
@pytest.mark.skipif(compat.HTTPX < (0, 18) or sys.version_info < (3, 8), reason="streams share exceptions there")
@pytest.mark.parametrize("path", ["/hang-headers", "/hang-body"])
@pytest.mark.parametrize("neighbour", [False, True])
async def test_no_request_gets_an_http2_connection_whose_socket_is_closed(servers, guarded, path, neighbour):
    if neighbour and (0, 14) <= compat.HTTPCORE < (0, 14, 4):
        pytest.skip("an answer may wait until the next one arrives: httpcore #439")
    url = servers.http2.url
    client = compat.make_client(guarded.AsyncClient, servers.client_context(), http2=True)
    await client.get(url + "/get")

    async def next_to_it():
        with contextlib.suppress(httpx.TransportError):  # httpcore before 0.14 closes the socket under it.
            await client.get(url + "/gate/next-to-it")

    async with anyio.create_task_group() as group:
        if neighbour:
            group.start_soon(next_to_it)
            await passes(5)
        with pytest.raises(httpx.ReadTimeout):
            await client.get(url + path, timeout=httpx.Timeout(5, read=0.1))
        servers.http2.open_gate("next-to-it")
    await is_whole(client, url + "/get")


@pytest.mark.skipif(not (0, 12) < compat.HTTPCORE < (0, 13, 4), reason="httpcore itself does not look")
async def test_no_request_gets_an_http2_connection_that_its_server_has_closed(servers, guarded):
    url = servers.http2.url + "/get"
    client = compat.make_client(guarded.AsyncClient, servers.client_context(), http2=True)
    await client.get(url)
    servers.http2.hang_up()
    await passes()
    await is_whole(client, url)


@pytest.mark.parametrize("path", ["/reset", "/goaway", "/drop"])
async def test_a_request_whose_http2_stream_or_connection_its_server_ends_fails_alone(servers, guarded, path):
    client = compat.make_client(guarded.AsyncClient, servers.client_context(), http2=True)
    await client.get(servers.http2.url + "/get")
    with pytest.raises((httpx.TransportError, OSError)):  # On Python 3.6 an SSLError.
        await client.get(servers.http2.url + path)
    await is_whole(client, servers.http2.url + "/get")


# What worked goes on working: mocks.
FAKE = object()


async def returns_fake(*args, **kwargs):
    await anyio.sleep(0)
    return FAKE


class Callable:
    """No function, and bound to nothing, as mock.AsyncMock is."""

    def __call__(self, *args, **kwargs):
        return self

    def __await__(self):  # An awaitable that is no coroutine.
        return returns_fake().__await__()


FAKES = [("AsyncClient", fake) for fake in (returns_fake, Callable(), lambda *args, **kwargs: Callable())]
FAKES.append(("Client", mock.Mock(return_value=FAKE)))


@pytest.mark.parametrize("order", ["patched first", "mocked first", "class"])
@pytest.mark.parametrize("name, fake", FAKES, ids=lambda value: type(value).__name__)
async def test_a_mocked_send_works_in_every_order(name, fake, order):
    client = getattr(httpx_cancel_safe, "Safe" + name) if order == "class" else getattr(httpx, name)
    mocked = getattr(httpx._client, name)
    with contextlib.ExitStack() as stack:
        if order == "patched first":
            stack.enter_context(httpx_cancel_safe.patched())
        stack.enter_context(mock.patch.object(mocked, "send", fake))
        if order == "mocked first":
            stack.enter_context(httpx_cancel_safe.patched())
        if not hasattr(fake, "__get__"):  # A guard on a function is meant.
            assert vars(mocked)["send"] is fake
        response = client(trust_env=False).get(URL)
        assert (response if name == "Client" else await response) is FAKE


async def three_at_once(server, client, gate, then):
    """Begin a request, do `then`, and begin two that wait for its connection; return the statuses of all."""
    statuses = []

    async def get(path):
        statuses.append((await client.get(server.url + path)).status_code)

    before = server.opened
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(get, "/gate/" + gate)
            while server.opened == before:
                await anyio.sleep(0.001)
            await anyio.sleep(0.02)
            then()
            group.start_soon(get, "/get")
            group.start_soon(get, "/get")
            await passes(5)
            server.open_gate(gate)
    return statuses


async def test_requests_that_wait_for_one_begun_before_patch_are_served(servers, anyio_backend):
    client = make(httpx.AsyncClient, pool_timeout=5)
    statuses = await three_at_once(servers.plain, client, "before-" + anyio_backend, httpx_cancel_safe.patch)
    assert statuses == [200] * 3
    await is_whole(client, servers.plain.url + "/get")


@pytest.mark.skipif(compat.HTTPX < (0, 21), reason="httpx itself lets requests wait beside idle connections")
async def test_requests_are_served_where_a_tool_has_wrapped_the_pool(servers, guarded, anyio_backend, monkeypatch):
    client = make(guarded.AsyncClient, pool_timeout=5)
    pool = type(compat.pool_of(client))
    plain, calls = pool.handle_async_request, []

    async def traced(self, request):
        calls.append(request)
        return await plain(self, request)

    monkeypatch.setattr(pool, "handle_async_request", traced)
    gate = "traced-%s-%s" % (anyio_backend, guarded.AsyncClient.__name__)
    assert await three_at_once(servers.plain, client, gate, lambda: None) == [200] * 3
    assert len(calls) == 3
    await is_whole(client, servers.plain.url + "/get")


class Cache(dict):
    def values(self):
        raise AssertionError("looked for transports among cached answers")


async def test_a_pool_is_found_beside_many_mounts_and_a_large_cache(guarded):
    network = Network("read")
    client = network.under(make(guarded.AsyncClient))
    mounts = client._mounts if hasattr(client, "_mounts") else client._proxies
    # As NO_PROXY makes them.
    mounts.update((httpx._utils.URLPattern("http://host-%d.test" % number), None) for number in range(100))
    client._transport.cache = Cache.fromkeys(range(1000))
    client._transport.itself = client._transport  # It is not looked through for ever.
    with anyio.move_on_after(0.02):
        await client.get(URL)
    network.hangs = None
    assert (compat.connections_of(client), compat.requests_of(client)) == ([], 0)
    await is_whole(client, URL)


@asyncio_only
async def test_attempts_to_connect_that_nobody_waits_for_are_few_and_end_with_the_client(guarded):
    loop = asyncio.get_event_loop()
    before = compat.all_tasks(loop)
    client = Network("connect").under(make(guarded.AsyncClient))
    for _ in range(20):
        task = start(client.get(URL))
        await passes(5)
        await cancel(task)
    await passes(25)
    assert len(compat.all_tasks(loop) - before) <= 11
    await client.aclose()
    assert compat.all_tasks(loop) == before


@asyncio_only
async def test_a_pool_that_has_become_plain_serves_nobody(guarded):
    client = Network().under(make(guarded.AsyncClient))
    await client.get(URL)
    compat.pool_of(client).serve_soon()
    compat.pool_of(client).become_plain()
    await passes()
    await client.aclose()


@asyncio_only
@pytest.mark.parametrize("number", [1, 30])
async def test_a_loop_that_is_held_up_costs_no_socket(servers, guarded, number, monkeypatch):
    """What connects and what gives up then come in the same pass."""
    monkeypatch.setattr(httpx_cancel_safe._pool.aio, "_PATIENCE", 0)
    for before in range(1, 12):
        client = make(guarded.AsyncClient, limit=number)
        tasks = [start(client.get(servers.plain.url)) for _ in range(number)]
        await passes(before)
        time.sleep(0.01)  # noqa: ASYNC251 - it is what holds the loop up.
        await passes(1)
        await cancel(*tasks)
        await client.aclose()
    gc.collect()
    assert await all_closed(servers.plain)


def test_a_loop_that_was_closed_while_something_connected_costs_no_other_its_close(guarded):
    client = Network("connect").under(make(guarded.AsyncClient))

    async def give_up():
        task = start(client.get(URL))
        await passes(5)
        await cancel(task)

    loop, another = asyncio.new_event_loop(), asyncio.new_event_loop()
    loop.run_until_complete(give_up())
    another.run_until_complete(client.aclose())
    for task in compat.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    another.close()


@pytest.mark.skipif(compat.HTTPX < (0, 17), reason="httpx has no keepalive_expiry before")
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_an_idle_connection_of_a_loop_that_is_closed_is_logged_and_goes(servers, guarded, caplog):
    client = make(guarded.AsyncClient, expiry=0)
    for _ in range(2):
        loop = asyncio.new_event_loop()
        assert loop.run_until_complete(client.get(servers.plain.url)).status_code == 200
        if not caplog.records:  # It is the first.
            loop.close()
    assert caplog.text.count("a clean-up failed: RuntimeError") == 1
    compat.pool_of(client).drop_all()  # As a request does that is dropped here.
    loop.run_until_complete(client.aclose())
    loop.close()
    gc.collect()


def test_a_socket_that_fails_to_close_is_logged(caplog):
    httpx_cancel_safe._pool.sockets.abort(mock.Mock(spec=["close"], close=mock.Mock(side_effect=OSError)))
    assert "a clean-up failed: OSError" in caplog.text
    httpx_cancel_safe._pool.sockets.abort(mock.MagicMock())  # Each of its attributes has all of them: it must end.


@pytest.mark.skipif(compat.HTTPX < (0, 22), reason="bodies of older httpcores have a close")
async def test_a_mocked_connection_may_answer_with_a_body_that_cannot_be_closed(guarded, monkeypatch):
    import httpcore

    def handle(*request):
        return httpcore.Response(200, content=b"hello")

    async def handle_async(*request):
        return handle()

    monkeypatch.setattr("httpcore._sync.connection.HTTPConnection.handle_request", handle)
    monkeypatch.setattr("httpcore._async.connection.AsyncHTTPConnection.handle_async_request", handle_async)
    await is_whole(make(guarded.AsyncClient), URL)
    with compat.make_client(guarded.Client, False) as client:
        assert client.get(URL).content == b"hello"


@pytest.mark.skipif(compat.HTTPX < (0, 18), reason="httpx itself asks for the loop there")
@pytest.mark.parametrize("phase", ["connect", "body"])
def test_requests_that_are_dropped_after_their_loop_has_ended_are_settled(guarded, phase, caplog):
    """Nobody can wait for anything any more."""
    network, body = Network(phase), AsyncBody(passes, passes)
    pooled, other = network.under(make(guarded.AsyncClient)), guarded.AsyncClient(transport=Answers(body))
    requests = [pooled.get(URL), pooled.get(URL), other.get(URL)]

    def stop(count):
        if network.reached or phase == "connect":
            raise Dropped

    async def begin():
        for request in requests:
            with contextlib.suppress(Dropped):
                await drive(request, stop, close=False)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    for request in requests:
        request.close()
    assert (compat.connections_of(pooled), compat.requests_of(pooled)) == ([], 0)
    assert [one.getMessage() for one in caplog.records if one.levelname == "WARNING"] == []
    for task in compat.all_tasks(loop):  # What still connects.
        task.cancel()
    for client in (pooled, other):
        loop.run_until_complete(client.aclose())
    loop.close()


@asyncio_only
async def test_a_dropped_request_raises_the_error_of_its_own_clean_up(guarded):
    class Fails(AsyncAdapter):
        async def exchange(self, asked):
            try:
                await asyncio.sleep(999)
            finally:
                raise RuntimeError("mine")

    async with guarded.AsyncClient(transport=Fails()) as client:
        request = client.get(URL)
        request.send(None)
        with pytest.raises(RuntimeError, match="mine"):
            request.close()
    await passes()  # httpx up to 0.17 leaves an auth flow behind, for the loop to close.


@pytest.mark.skipif(compat.HTTPX < (0, 21), reason="a pool is a transport before")
async def test_a_pool_within_a_transport_that_retries_is_settled(servers, guarded):
    """It swallows the cancel that ends an attempt, so `send` succeeds: only the pool can see what happened."""

    class Retries(httpx.AsyncHTTPTransport):
        async def handle_async_request(self, request):
            for path in ("/hang-headers", "/hang-body", "/get"):
                request.url = httpx.URL(servers.plain.url + path)
                with anyio.move_on_after(0.05 if "hang" in path else 20):
                    response = await super().handle_async_request(request)
                    await response.aread()
                    return response

    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
    transport = Retries(limits=limits, verify=False)
    async with guarded.AsyncClient(transport=transport, timeout=httpx.Timeout(20, pool=0.5)) as client:
        assert (await client.get(URL)).content == b"hello"
        assert compat.connections_of(client) == ["idle"]


async def test_a_response_from_before_the_guard_closes_quietly(servers, monkeypatch, caplog):
    """It is open when its pool becomes a guarded one. For the sync client, see test_threads.py."""
    monkeypatch.setattr("httpx_cancel_safe._stats._has_fallen_back", False)
    url = servers.plain.url + "/get"
    client = make(httpx.AsyncClient, limit=2)
    async with client.stream("GET", url):
        httpx_cancel_safe.patch()
        await client.get(url)
    await is_whole(client, url)
    assert [one.getMessage() for one in caplog.records if one.levelname == "WARNING"] == []


@pytest.mark.parametrize("name", ["books.Books._find", "books.Books._trim", "connections.Connection.leave"])
async def test_a_step_that_fails_is_warned_of_once_and_fails_no_request(servers, guarded, name, monkeypatch, caplog):
    """As on an httpcore that lacks what the step needs."""
    monkeypatch.setattr("httpx_cancel_safe._stats._has_fallen_back", False)
    client = make(guarded.AsyncClient)
    await client.get(servers.plain.url + "/get")
    monkeypatch.setattr("httpx_cancel_safe._pool." + name, mock.Mock(side_effect=AttributeError("gone")))
    for _ in range(2):
        await client.get(servers.plain.url + "/get")
    await is_whole(client, servers.plain.url + "/get")
    (warning,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert "AttributeError: gone" in warning


@asyncio_only
async def test_an_anyio_that_is_not_understood_costs_no_request(guarded, monkeypatch, caplog):
    """A response of another transport is closed without a shield then."""
    monkeypatch.setattr("httpx_cancel_safe._stats._has_fallen_back", False)
    modules = dict(sys.modules, **{"anyio._backends._asyncio": mock.Mock(spec=[])})
    monkeypatch.setattr("httpx_cancel_safe._scopes.sys", mock.Mock(modules=modules))
    async with guarded.AsyncClient(transport=Answers(AsyncBody(close=passes))) as client:
        assert (await client.get(URL)).status_code == 200
    (warning,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert "_task_states" in warning


VENDOR = """
    import anyio, logging, sys
    import httpcore, httpx, httpx_cancel_safe

    class Hidden:
        '''An attribute that nobody finds but httpcore itself.'''

        def __get__(self, pool, kind):
            if pool is None or not sys._getframe(1).f_globals["__name__"].startswith("httpcore."):
                raise AttributeError("{name}")
            return vars(pool)["{name}"]

        def __set__(self, pool, value):
            vars(pool)["{name}"] = value

    httpcore.AsyncConnectionPool.{name} = Hidden()
    logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
    httpx_cancel_safe.patch()

    async def main():
        async with httpx.AsyncClient(trust_env=False) as client:
            for _ in range(3):
                print((await client.get("{url}/get")).text)

    anyio.run(main)
"""


@pytest.mark.parametrize("name", ["_requests", "_pool"] if compat.HTTPX >= (0, 21) else ["_connections"])
def test_an_httpcore_that_is_not_understood_is_left_alone_with_one_warning(servers, name):
    """It names the attribute that was missing, and no request fails that would have worked."""
    found = programs.run("-c", textwrap.dedent(VENDOR.format(name=name, url=servers.plain.url)))
    lines = found.stdout.splitlines()
    assert lines.count("hello") == 3, found.stderr
    (warning,) = [line for line in lines if line.startswith("WARNING")]
    assert name in warning
