"""What the README promises, each promise as one or two tests.

Below httpcore's own pools lies a network that sleeps for 999 seconds in the phase that a test names;
the request is cancelled there. The pool has room for one connection, so a lost one shows at once.
"""

import asyncio
import contextlib
import sys
from unittest import mock

import anyio
import httpx
import pytest

import httpx_cancel_safe

from .support import compat
from .support.network import Network, SyncNetwork
from .support.stepping import cancel, dropped_at, passes, start
from .support.transports import Answers, AsyncBody, Body, SyncAnswers

pytestmark = [
    pytest.mark.skipif(compat.FIXED, reason="nothing is patched on httpx %s" % httpx.__version__),
    pytest.mark.anyio,
]
URL = "http://service.test/"
asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
every_phase = pytest.mark.parametrize("phase", ["connect", "write", "read", "body"])

is_exception = compat.HTTPX < (0, 21) and sys.version_info < (3, 8)
it_loses = pytest.mark.skipif(is_exception, reason="httpx closes on an Exception, as a cancel is there")


def make(base, hangs=None, limit=1, network=Network, **options):
    network = network(hangs, **options)
    return network, network.under(compat.make_client(base, False, limit=limit, pool_timeout=0.5))


def is_empty(client):
    return compat.connections_of(client) == [] and compat.requests_of(client) == 0


async def reach(network):
    while not network.reached:
        await anyio.sleep(0)


async def cancelled_in(network, client, request=None):
    """Cancel a request when the network has begun to sleep, by the scope around it."""
    async with anyio.create_task_group() as group:
        group.start_soon(request or client.get, URL)
        await reach(network)
        group.cancel_scope.cancel()
    network.hangs, network.reached = None, 0


# 1. What a request held is back in its pool, or closed and out of it.
@every_phase
async def test_a_cancelled_request_leaves_no_connection_behind(guarded, phase):
    """The pool is empty, the socket is closed, and the next request gets a connection."""
    network, client = make(guarded.AsyncClient, phase)
    await cancelled_in(network, client)
    assert is_empty(client)
    await passes()
    assert network.open == 0
    assert (await client.get(URL)).content == b"hello" and compat.connections_of(client) == ["idle"]
    await client.aclose()


async def loses_its_connection(network, client):
    """Its place in the pool stays taken, by nobody, and the next request waits in vain."""
    network.hangs = "body" if compat.HTTPX >= (0, 18) else "read"
    await cancelled_in(network, client)
    assert compat.connections_of(client) != ["idle"]
    with pytest.raises(httpx.PoolTimeout):
        await client.get(URL)
    with contextlib.suppress(RuntimeError):  # The connection pool was closed while ...
        await client.aclose()


async def test_a_request_that_waits_for_the_connection_gets_it(guarded):
    """One request is cancelled, the one behind it in the queue succeeds: one idle connection."""
    network, client = make(guarded.AsyncClient, "read")
    answers = []

    async def behind():
        answers.append(await client.get(URL))

    async with anyio.create_task_group() as others:
        async with anyio.create_task_group() as group:
            group.start_soon(client.get, URL)
            await reach(network)
            others.start_soon(behind)
            await passes(5)
            network.hangs = None
            group.cancel_scope.cancel()
    assert answers[0].content == b"hello"
    assert compat.connections_of(client) == ["idle"]
    await client.aclose()


# 2. The caller gets the very exception that ended the request.
@pytest.mark.parametrize("ended", [KeyError("mine"), type("Abort", (BaseException,), {})()])
@pytest.mark.parametrize("where", ["send", "block"])
async def test_what_ended_the_request_comes_out_although_its_close_fails(guarded, caplog, ended, where):
    """The same object; the failure of the close is in the log."""

    async def read():
        raise ended

    async def close():
        await anyio.sleep(0)
        raise OSError("the close failed")

    async with guarded.AsyncClient(transport=Answers(AsyncBody(read, close))) as client:
        with pytest.raises(type(ended)) as caught:
            if where == "send":
                await client.get(URL)
            async with client.stream("GET", URL):
                raise ended
    assert caught.value is ended
    assert "OSError" in caplog.text


@pytest.mark.parametrize("ended", [KeyError("mine"), KeyboardInterrupt()], ids=repr)
def test_what_ended_a_sync_request_comes_out_although_its_close_fails(guarded, caplog, ended):
    """The same for the sync client."""
    read, close = mock.Mock(side_effect=ended), mock.Mock(side_effect=OSError("the close failed"))
    with guarded.Client(transport=SyncAnswers(Body(read, close))) as client, pytest.raises(type(ended)) as caught:
        client.get(URL)
    assert caught.value is ended and "OSError" in caplog.text


# 3. Nothing interrupts the clean-up; the books first, the network second.
@asyncio_only
@every_phase
@pytest.mark.parametrize("times", [1, 2])
async def test_a_second_cancel_changes_nothing(guarded, phase, times):
    """Cancelled once, or twice in two passes of the loop: the task ends cancelled, the pool is empty."""
    network, client = make(guarded.AsyncClient, phase)
    task = start(client.get(URL))
    await reach(network)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    await asyncio.wait([task])
    assert task.cancelled()
    assert is_empty(client)
    await client.aclose()


@pytest.mark.parametrize("how", ["scope", "task"])
async def test_a_close_is_not_interrupted_but_bounded(how, anyio_backend):
    """A response of another transport: its close goes on although its request is cancelled, up to `close_timeout`."""
    if how == "task" and anyio_backend == "trio":
        pytest.skip("trio has scopes only")
    slow = AsyncBody(close=lambda: passes(10))
    stuck = AsyncBody(close=lambda: anyio.sleep(999))

    async def block(body, cancel):
        async with httpx.AsyncClient(transport=Answers(body)) as client:
            async with client.stream("GET", URL):
                cancel()
                await anyio.sleep(999)

    for body in (slow, stuck):
        with httpx_cancel_safe.patched(close_timeout=0.05), anyio.fail_after(20):
            if how == "scope":
                with anyio.CancelScope() as scope:
                    await block(body, scope.cancel)
            else:
                task = start(block(body, lambda: task.cancel()))
                await asyncio.wait([task])
    assert (slow.closed, stuck.began, stuck.closed) == (1, 1, 0)


# 4. No cancellation is lost on the way.
@asyncio_only
@every_phase
async def test_no_cancellation_is_lost(guarded, phase):
    """`wait_for()`, anyio's scopes and `asyncio.timeout()` time out; the last leaves no cancel uncounted."""
    _, client = make(guarded.AsyncClient, phase)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(client.get(URL), 0.01)
    with anyio.move_on_after(0.01):
        await client.get(URL)
    if sys.version_info >= (3, 11):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await client.get(URL)
        assert compat.current_task().cancelling() == 0
    await client.aclose()


# 5. The same for the close of a response that the caller holds.
async def test_a_response_that_the_caller_holds_gives_its_connection_back(guarded):
    """Cancelled while the caller reads: the pool is empty, the socket is closed."""
    network, client = make(guarded.AsyncClient, "body")

    async def read(url):
        async with client.stream("GET", url) as response:
            await response.aread()

    await cancelled_in(network, client, read)
    assert is_empty(client)
    await client.aclose()
    assert network.open == 0


# 6. Nobody else is touched.
@asyncio_only
async def test_another_request_on_the_same_pool_goes_on(guarded):
    """Two connections: one is dropped, the other answers and is idle."""
    network, client = make(guarded.AsyncClient, "read", limit=2)
    dies = start(client.get(URL))
    await reach(network)
    network.hangs = None
    lives = start(client.get(URL))
    await cancel(dies)
    assert (await lives).content == b"hello"
    assert compat.connections_of(client) == ["idle"]
    await client.aclose()


@pytest.mark.skipif(compat.HTTPX < (0, 22), reason="one stream that waits keeps the others from reading there")
@pytest.mark.skipif(sys.version_info < (3, 8), reason="a cancelled read may end an HTTP/2 connection there")
async def test_another_stream_on_the_same_http2_connection_goes_on(servers, guarded):
    """One connection with two streams: one is reset, the other is answered, the connection is idle."""
    client = compat.make_client(guarded.AsyncClient, servers.client_context(), http2=True)
    url, answers = servers.http2.url, []

    async def neighbour():
        answers.append(await client.get(url + "/gate/promise"))

    async with anyio.create_task_group() as group:
        group.start_soon(neighbour)
        with anyio.move_on_after(0.1):
            await client.get(url + "/hang-headers")
        servers.http2.open_gate("promise")
    assert answers[0].content == b"before after" and compat.connections_of(client) == ["idle"]
    await client.aclose()


@pytest.mark.parametrize("keepalive", [0, 1])
async def test_no_more_connections_stay_idle_than_the_limit_says(servers, guarded, keepalive):
    client = compat.make_client(guarded.AsyncClient, False, limit=5, keepalive=keepalive)
    async with anyio.create_task_group() as group:
        for _ in range(8):  # Three of them wait.
            group.start_soon(client.get, servers.plain.url + "/get")
    assert compat.connections_of(client) == ["idle"] * keepalive
    await client.aclose()


# 7. A dropped coroutine is settled without a wait. A closed async generator may wait: see test_faults.py.
@asyncio_only
@pytest.mark.parametrize("phase", ["connect", "write", "read"])  # Python tells no async generator that it is dropped.
async def test_a_dropped_coroutine_gives_back_what_it_held(guarded, phase):
    """No "coroutine ignored GeneratorExit"; the pool is empty as soon as the coroutine is closed."""
    network, client = make(guarded.AsyncClient, phase)
    k = 0
    while not network.reached:
        k += 1
        assert await dropped_at(k, client.get(URL))
        assert compat.connections_of(client) in ([], ["idle"]) and compat.requests_of(client) == 0
        await asyncio.sleep(0)  # An attempt to connect may be about to begin.
    network.hangs = None
    assert (await client.get(URL)).content == b"hello"
    await client.aclose()


# 8. The sync client.
@every_phase
@pytest.mark.parametrize("raised", [KeyboardInterrupt(), SystemExit(3), type("Gevent", (BaseException,), {})()])
def test_an_interrupted_sync_request_leaves_no_connection_behind(guarded, phase, raised):
    """The very exception comes out; the pool is empty, the socket is closed."""
    network, client = make(guarded.Client, phase, network=SyncNetwork, raises=raised)
    with pytest.raises(type(raised)) as caught:
        client.get(URL)
    assert caught.value is raised
    assert compat.connections_of(client) == [] and network.open == 0
    client.close()


# 9. Safe classes change nothing outside, unpatch() leaves nothing behind.
@it_loses
async def test_after_unpatch_a_client_is_as_httpx_made_it():
    """A client that gave its connection back under the patch loses connections again."""
    network, client = make(httpx.AsyncClient, "read")
    with httpx_cancel_safe.patched():
        await cancelled_in(network, client)
        assert is_empty(client)
    await loses_its_connection(network, client)


@it_loses
async def test_beside_a_safe_client_others_are_as_httpx_made_them():
    """The safe client gives its connection back; httpx's own client loses one."""
    network, client = make(httpx_cancel_safe.SafeAsyncClient, "read")
    await cancelled_in(network, client)
    assert compat.connections_of(client) == []
    await client.aclose()
    await loses_its_connection(*make(httpx.AsyncClient))


# 10. What works without it works with it: see test_same.py.
