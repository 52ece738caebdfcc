"""What a request that was dropped, or a close that went wrong, leaves in a pool: nothing."""

import asyncio
import gc
import socket
import threading

import anyio
import httpcore
import httpx
import pytest

import httpx_cancel_safe
from httpx_cancel_safe import _send
from httpx_cancel_safe._pool._common import is_begun, reset_stream

from .support import compat
from .support.cancelling import cancel, passes, start
from .support.custom import Abort, Adapter, AsyncAdapter, AsyncStreamBase, Dropped, StreamBase, current_task
from .support.scenarios import SCENARIOS, content, expect
from .support.sweep import drive

pytestmark = pytest.mark.skipif(compat.FIXED, reason="this httpx needs no net")


def run(function, *args):
    with httpx_cancel_safe.patched(close_timeout=0.1):
        return anyio.run(function, *args)


@pytest.mark.skipif(
    httpcore.__version__.startswith(("0.11.", "0.12.", "0.13.0", "0.13.1", "0.13.2", "0.13.3")),
    reason="its wait_for() goes on in a task of its own, and takes the place later",
)
def test_a_request_that_is_dropped_before_it_is_answered(servers):
    async def main(k):
        def drop(count):
            if count == k:
                raise Dropped

        client = compat.make_client(httpx.AsyncClient, False, pool_timeout=0.5)
        with pytest.raises(Dropped):
            await drive(SCENARIOS["slow-headers"](client, servers.plain.url), drop)
        expect(await client.get(servers.plain.url + "/get"))
        await client.aclose()

    for k in range(1, 4):  # While it waits, or begins to connect.
        run(main, k)
    assert servers.plain.wait_closed_to(0, 2)


def test_a_request_that_is_cancelled_just_when_it_is_connected(servers, monkeypatch, recwarn):
    """What `asyncio.wait_for()` has in hand then is dropped by it, on old Pythons."""
    original = asyncio.open_connection

    async def main():
        async def connect(*args, **kwargs):
            result = await original(*args, **kwargs)
            task.cancel()
            return result

        client = compat.make_client(httpx.AsyncClient, False, pool_timeout=0.5)
        monkeypatch.setattr(asyncio, "open_connection", connect)
        task = asyncio.get_event_loop().create_task(client.get(servers.plain.url + "/get"))
        await asyncio.wait([task])
        monkeypatch.undo()
        expect(await client.get(servers.plain.url + "/get"))
        await client.aclose()

    run(main)
    assert servers.plain.wait_closed_to(0, 2)
    gc.collect()
    assert [one for one in recwarn if "unclosed transport" in str(one.message)] == []


@pytest.mark.filterwarnings("ignore")  # Generators and scopes of anyio that nobody can finish any more.
def test_a_request_that_is_dropped_while_its_body_is_read(servers):
    async def main():
        client = compat.make_client(httpx.AsyncClient, False, pool_timeout=0.5)
        seen = []
        client.cookies.extract_cookies = seen.append  # Called when the head is there.

        def drop(count):
            if seen:
                raise Dropped

        with pytest.raises(Dropped):
            await drive(client.get(servers.plain.url + "/hang-body"), drop)
        expect(await client.get(servers.plain.url + "/get"))
        await client.aclose()

    run(main)
    assert servers.plain.wait_closed_to(0, 2)
    gc.collect()


def network_streams(client):
    """The sockets of a client, as its httpcore wraps them."""
    pool = compat.pool_of(client)
    if compat.HTTPX >= (0, 21):
        return [connection._connection._network_stream for connection in pool._pool]
    return [one.socket for connections in pool._connections.values() for one in connections]


def requests_in_books(client):
    pool = compat.pool_of(client)
    if compat.HTTPX >= (0, 21):
        return len(pool._requests)
    return sum(len(connections) for connections in pool._connections.values())


def test_the_books_are_right_before_anything_waits(servers):
    async def main():
        client = compat.make_client(httpx.AsyncClient, False)
        booked = []

        def extract_cookies(response):
            (stream,) = network_streams(client)
            original = stream.aclose

            async def aclose():
                booked.append(requests_in_books(client))
                await original()

            stream.aclose = aclose
            raise Abort

        client.cookies.extract_cookies = extract_cookies
        with pytest.raises(Abort):
            await client.get(servers.plain.url + "/hang-body")
        assert set(booked) <= {0}
        await client.aclose()

    run(main)


async def refuse():
    raise PermissionError


def refuse_sync():
    raise PermissionError


@pytest.mark.parametrize("close", [refuse, anyio.sleep_forever])
def test_a_response_whose_socket_cannot_be_closed(servers, close):
    async def main():
        client = compat.make_client(httpx.AsyncClient, False, pool_timeout=0.5)
        with pytest.raises(PermissionError if close is refuse else asyncio.CancelledError):
            async with client.stream("GET", servers.plain.url + "/hang-body"):
                (stream,) = network_streams(client)
                original, stream.aclose = stream.aclose, close
                if close is not refuse:
                    task = current_task()
                    asyncio.get_event_loop().call_soon(lambda: task.cancel())
        assert requests_in_books(client) == 0
        if close is not refuse and hasattr(task, "uncancel"):
            task.uncancel()  # As who catches a cancel has to.
        await original()
        expect(await client.get(servers.plain.url + "/get"))
        await client.aclose()

    before = httpx_cancel_safe.stats().timed_out
    run(main)
    assert (httpx_cancel_safe.stats().timed_out > before) == (close is not refuse)
    assert servers.plain.wait_closed_to(0, 2)


def test_a_peer_that_does_not_read_holds_nothing_up():
    """What waits in buffers of Python's is dropped: else the socket stays until the peer has read it all."""
    body = b"x" * 2**25  # More than the system's buffers hold.

    async def main(listener):
        def take_all():
            peer, size = listener.accept()[0], 0
            with peer:
                peer.settimeout(5)
                begun.append(peer)
                may_read.wait()
                for data in iter(lambda: peer.recv(2**20), b""):
                    size += len(data)
            return size

        loop = asyncio.get_event_loop()
        begun, may_read = [], threading.Event()
        size = loop.run_in_executor(None, take_all)
        client = compat.make_client(httpx.AsyncClient, False)
        task = start(client.post("http://127.0.0.1:%d" % listener.getsockname()[1], **content(body)))
        while not begun:
            await asyncio.sleep(0)
        await passes(30)
        await cancel(task)
        may_read.set()
        assert await size < len(body)
        await client.aclose()

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        run(main, listener)


def test_a_peer_that_sends_on_over_tls_holds_nothing_up(servers):
    """Asyncio's TLS waits for the peer's last word, and reads no more before that."""

    async def main():
        async def request():
            async with client.stream("GET", servers.tls.url + "/large"):
                (stream,) = network_streams(client)
                reader = getattr(stream, "stream_reader", None)
                while reader is not None and not reader._paused:
                    await asyncio.sleep(0)
                is_full.set()
                await asyncio.Event().wait()

        client = compat.make_client(httpx.AsyncClient, servers.client_context(), pool_timeout=0.5)
        task = start(request())
        is_full = asyncio.Event()
        await is_full.wait()
        await cancel(task)
        assert servers.tls.wait_closed_to(0, 2)
        await client.aclose()

    before = httpx_cancel_safe.stats().timed_out
    run(main)
    assert httpx_cancel_safe.stats().timed_out == before


@pytest.mark.skipif(compat.HTTPX >= (0, 20), reason="transports make their responses themselves")
def test_an_answer_that_makes_no_response_is_closed():
    closed = []

    class Stream(AsyncStreamBase):
        async def __aiter__(self):
            yield b""

        async def aclose(self):
            await passes()
            closed.append(self)

    class Transport(AsyncAdapter):
        async def exchange(self, asked):
            return 200, [(b"no value",)], Stream()

    async def main():
        client = httpx.AsyncClient(transport=Transport())
        with pytest.raises(ValueError, match="not enough values"):
            await client.get("http://custom.test")
        await client.aclose()

    run(main)
    assert len(closed) == 1


@pytest.mark.skipif(compat.HTTPX < (0, 20), reason="httpx reads a response before its hooks run, or has none")
def test_a_response_whose_hook_asks_with_a_client_without_the_net(servers):
    """What ends the request of the hook has no answer yet, but the one around it has."""

    async def main():
        async def fail(*args, **kwargs):
            raise Abort

        async def hook(response):
            await plain.get(servers.plain.url + "/get")

        plain = compat.make_client(httpx.AsyncClient, False)
        compat.pool_of(plain).handle_async_request = fail
        client = compat.make_client(httpx_cancel_safe.SafeAsyncClient, False, pool_timeout=0.5)
        client.event_hooks = {"response": [hook]}
        with pytest.raises(Abort):
            await client.get(servers.plain.url + "/hang-body")
        client.event_hooks = {}
        expect(await client.get(servers.plain.url + "/get"))
        await client.aclose()
        await plain.aclose()

    anyio.run(main)
    assert servers.plain.wait_closed_to(0, 2)


def test_a_connection_that_was_given_back_is_others_although_the_close_failed(servers, monkeypatch):
    async def main():
        client = compat.make_client(httpx.AsyncClient, False)
        pool = compat.pool_of(client)
        name = "response_closed" if hasattr(pool, "response_closed") else "_response_closed"
        original = getattr(type(pool), name)
        other = []

        async def response_closed(*args):
            await original(*args)
            monkeypatch.undo()
            request = client.build_request("GET", servers.plain.url + "/chunked")
            other.append(await client.send(request, stream=True))
            raise PermissionError

        monkeypatch.setattr(type(pool), name, response_closed)
        with pytest.raises(PermissionError):
            await client.get(servers.plain.url + "/get")
        assert (await other[0].aread()).count(b"chunk") == 4
        expect(await client.get(servers.plain.url + "/get"))
        await client.aclose()

    accepted = servers.plain.accepted
    run(main)
    assert servers.plain.accepted == accepted + 1


def test_a_sync_request_that_found_no_place_takes_none(servers):
    with httpx_cancel_safe.patched():
        client = compat.make_client(httpx.Client, False, pool_timeout=0.01)
        with client.stream("GET", servers.plain.url + "/hang-body"), pytest.raises(httpx.PoolTimeout):
            client.get(servers.plain.url + "/get")
        expect(client.get(servers.plain.url + "/get"))
        client.close()


def test_a_close_that_the_caller_asks_for_by_an_error_raises_what_it_raises_without_the_net(servers):
    async def main():
        client = compat.make_client(httpx.AsyncClient, False)
        request = client.build_request("GET", servers.plain.url + "/hang-body")
        response = await client.send(request, stream=True)
        (stream,) = network_streams(client)
        original, stream.aclose = stream.aclose, refuse
        with pytest.raises(PermissionError) as raised:
            try:
                raise LookupError
            finally:
                await response.aclose()
        assert isinstance(raised.value.__context__, LookupError)
        await original()
        await client.aclose()

    run(main)


@pytest.mark.parametrize("error", [None, LookupError])
def test_a_response_whose_socket_cannot_be_closed_sync(servers, error):
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
    with httpx_cancel_safe.patched():
        client = httpx.Client(limits=limits, timeout=httpx.Timeout(5, pool=0.5), trust_env=False)
        # Up to httpx 0.17 it is the caller's block that closes, not httpx.
        comes_out = error if error and compat.HTTPX >= (0, 18) else PermissionError
        with pytest.raises(comes_out), client.stream("GET", servers.plain.url + "/hang-body"):
            (stream,) = network_streams(client)
            original, stream.close = stream.close, refuse_sync
            if error is not None:
                raise error
        assert requests_in_books(client) == 0
        original()
        client.get(servers.plain.url + "/get")
        client.close()
    assert servers.plain.wait_closed_to(0, 2)


@pytest.mark.parametrize("way", ["plain", "tls", "http2"])
def test_a_connection_whose_response_was_read_is_kept(servers, way):
    if way != "plain" and compat.HTTPX < (0, 16):
        pytest.skip("httpcore 0.11 leaves TLS transports to the garbage collector")

    async def main():
        client = compat.make_client(httpx.AsyncClient, servers.client_context(), http2=way == "http2")
        for _ in range(2):
            async with client.stream("GET", url + "/get") as response:
                await response.aread()
        await client.aclose()

    url, before = getattr(servers, way).url, getattr(servers, way).accepted
    run(main)
    assert getattr(servers, way).accepted == before + 1


@pytest.mark.skipif(
    compat.HTTPX < (0, 18), reason="httpcore before 0.13 takes a connection with data to read for a dead one"
)
def test_http2_streams_that_are_left_unread_end_for_both_sides(servers):
    """More than an HTTP/2 connection can have open at once."""

    async def main():
        context = servers.client_context()
        client = compat.make_client(httpx.AsyncClient, context, http2=True)
        for _ in range(110):
            async with client.stream("GET", servers.http2.url + "/large"):
                pass
        expect(await client.get(servers.http2.url + "/get"))
        await client.aclose()

    run(main)
    assert servers.http2.wait_closed_to(0, 2)


@pytest.mark.skipif(compat.HTTPX < (0, 18), reason="as above")
def test_http2_streams_that_are_given_up_end_for_both_sides(servers):
    """While they wait for an answer, and once that is there; another stream keeps the connection."""

    async def main():
        client = compat.make_client(httpx.AsyncClient, servers.client_context(), http2=True)
        async with client.stream("GET", servers.http2.url + "/hang-body"):
            for _ in range(55):
                client.cookies.extract_cookies = abort
                with pytest.raises(Abort):
                    await client.get(servers.http2.url + "/large")
                del client.cookies.extract_cookies
                task = start(client.get(servers.http2.url + "/hang-headers"))
                await passes(30)  # It is sent, as nothing holds it up.
                await cancel(task)
            expect(await client.get(servers.http2.url + "/get"))
        await client.aclose()

    accepted = servers.http2.accepted
    run(main)
    assert servers.http2.accepted == accepted + 1
    assert servers.http2.wait_closed_to(0, 2)


def test_what_an_http2_stream_that_is_given_up_has_received_counts_as_read():
    """Else the window that all streams share runs dry."""
    import h2.config
    import h2.connection

    mine = h2.connection.H2Connection()
    peer = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    mine.initiate_connection()
    peer.initiate_connection()
    mine.send_headers(1, [(":method", "GET"), (":authority", "a"), (":scheme", "https"), (":path", "/")])
    peer.receive_data(mine.data_to_send())
    peer.send_headers(1, [(":status", "200")])
    for _ in range(3):
        peer.send_data(1, b"x" * 16000)
    events = mine.receive_data(peer.data_to_send())
    reset_stream(mine, 1, events)
    peer.receive_data(mine.data_to_send())
    assert peer.outbound_flow_control_window == 65535


def http2_of(client):
    pool = compat.pool_of(client)
    if compat.HTTPX >= (0, 21):
        return pool._pool[0]._connection, pool._pool[0]._connection
    ((connection,),) = pool._connections.values()
    return connection, connection.connection


@pytest.mark.skipif(compat.HTTPX < (0, 18), reason="as above")
@pytest.mark.parametrize("expiry", [5.0, None])
def test_an_http2_connection_that_idles_after_a_given_up_stream_expires(servers, expiry):
    async def main():
        limits = httpx.Limits(max_connections=1, keepalive_expiry=expiry)
        context = servers.client_context()
        client = httpx.AsyncClient(http2=True, verify=context, limits=limits, trust_env=False)
        names = ("_expire_at", "_should_expire_at", "expires_at")

        def extract_cookies(response):
            for one in http2_of(client):
                for name in names:
                    if hasattr(one, name):
                        setattr(one, name, None)
            raise Abort

        client.cookies.extract_cookies = extract_cookies
        with pytest.raises(Abort):
            await client.get(servers.http2.url + "/hang-body")
        found = [getattr(one, name, None) for one in http2_of(client) for name in names]
        assert any(found) == (expiry is not None), found
        inner = http2_of(client)[1]
        assert getattr(inner, "_state", getattr(inner, "state", None)).name == "IDLE"
        await client.aclose()

    run(main)


def base_of(stream):
    """The class that writes, below those that make it steady."""
    kinds = type(stream).__mro__
    return next(kind for kind in kinds if "write" in vars(kind) and kind.__module__.startswith("httpcore."))


@pytest.mark.skipif(compat.HTTPX < (0, 18), reason="as above")
@pytest.mark.parametrize("others", [False, True])
def test_an_http2_connection_whose_write_was_cut_short_is_not_used_again(servers, monkeypatch, others):
    async def hang(*args, **kwargs):
        await asyncio.Event().wait()

    async def main():
        client = compat.make_client(httpx.AsyncClient, servers.client_context(), http2=True)
        expect(await client.get(servers.http2.url + "/get"))
        if others:
            request = client.build_request("GET", servers.http2.url + "/hang-body")
            other = await client.send(request, stream=True)
        monkeypatch.setattr(base_of(network_streams(client)[0]), "write", hang)
        task = start(client.get(servers.http2.url + "/get"))
        await passes(30)
        await cancel(task)
        assert task.cancelled()
        monkeypatch.undo()
        expect(await client.get(servers.http2.url + "/get"))
        if others:
            await other.aclose()
        await client.aclose()

    accepted = servers.http2.accepted
    run(main)
    assert servers.http2.accepted == accepted + 2
    assert servers.http2.wait_closed_to(0, 2)


async def kind_that_writes(servers):
    """The class of the streams that HTTP/2 has here, on which the next client's writes can be watched."""
    client = compat.make_client(httpx.AsyncClient, servers.client_context(), http2=True)
    expect(await client.get(servers.http2.url + "/get"))
    kind = base_of(network_streams(client)[0])
    await client.aclose()
    return kind


@pytest.mark.skipif(compat.HTTPX < (0, 18), reason="as above")
@pytest.mark.parametrize("number", [0, 1], ids=["preface", "headers"])
def test_a_cancel_while_something_is_written_is_not_lost(servers, monkeypatch, number):
    async def main():
        kind = await kind_that_writes(servers)
        original, writes = kind.write, []

        async def write(*args, **kwargs):
            if len(writes) == number:
                asyncio.get_event_loop().call_soon(task.cancel)
            writes.append(args)
            for _ in range(3):
                await asyncio.sleep(0)
            await original(*args, **kwargs)

        monkeypatch.setattr(kind, "write", write)
        client = compat.make_client(httpx.AsyncClient, servers.client_context(), http2=True)
        task = start(client.get(servers.http2.url + "/get"))
        await asyncio.wait([task])
        assert task.cancelled()
        monkeypatch.undo()
        expect(await client.get(servers.http2.url + "/get"))
        await client.aclose()

    run(main)
    assert servers.http2.wait_closed_to(0, 2)


@pytest.mark.skipif(compat.HTTPX < (0, 18), reason="as above")
def test_who_waits_for_the_preface_goes_on_when_who_writes_it_is_cancelled(servers, monkeypatch):
    async def main():
        kind = await kind_that_writes(servers)
        original, tasks = kind.write, []

        async def write(*args, **kwargs):
            monkeypatch.undo()
            tasks.append(start(client.get(servers.http2.url + "/get")))
            await passes()  # It waits to use the connection.
            tasks[0].cancel()
            await passes()
            await original(*args, **kwargs)

        monkeypatch.setattr(kind, "write", write)
        client = compat.make_client(httpx.AsyncClient, servers.client_context(), http2=True)
        tasks.append(start(client.get(servers.http2.url + "/get")))
        await asyncio.wait(tasks)
        assert tasks[0].cancelled()
        expect(await tasks[1])
        expect(await client.get(servers.http2.url + "/get"))
        await client.aclose()

    accepted = servers.http2.accepted
    run(main)
    assert servers.http2.accepted == accepted + 2
    assert servers.http2.wait_closed_to(0, 2)


def test_a_preface_is_begun_once():
    import h2.connection

    class Lock:
        def __init__(self, is_locked):
            self._lock = self
            self.locked = lambda: is_locked

    state = h2.connection.H2Connection()
    state.initiate_connection()
    assert not is_begun(state, None)
    state.increment_flow_control_window(2**24)
    assert is_begun(state, None)
    assert is_begun(state, Lock(False))
    assert not is_begun(state, Lock(True))  # Who holds it goes on with it.


def test_each_closer_has_its_turn():
    closed = []

    async def close():
        closed.append(True)

    before = httpx_cancel_safe.stats().failed
    anyio.run(_send._close_all, [refuse, close])
    assert closed == [True]
    assert httpx_cancel_safe.stats().failed == before + 1


class Transport(AsyncAdapter):
    async def exchange(self, asked):
        return 200, [], Stream()


class Stream(AsyncStreamBase):
    async def __aiter__(self):
        yield b""

    async def aclose(self):
        pass


def test_an_exchange_may_be_asked_for_by_keywords():
    """By a subclass, say, that sends in a way of its own."""

    async def main():
        async with httpx.AsyncClient(transport=Transport()) as client:
            await client.get("http://custom.test")
            options = {"timeout": client.timeout} if compat.HTTPX < (0, 20) else {}
            request = client.build_request("GET", "http://custom.test")
            response = await client._send_single_request(request=request, **options)
            await response.aclose()

    run(main)


@pytest.mark.skipif(compat.HTTPX < (0, 20), reason="httpx makes the responses itself")
def test_a_response_that_its_transport_has_read_needs_no_guard():
    class Reading(httpx.AsyncBaseTransport if compat.HTTPX >= (0, 18) else object):
        async def handle_async_request(self, request):
            response = httpx.Response(200, stream=Stream(), request=request)
            await response.aread()
            return response

    async def main():
        async with httpx.AsyncClient(transport=Reading()) as client:
            assert _send._guard_of(await client.get("http://custom.test")) is None

    run(main)


def test_no_response_is_remembered():
    async def main():
        async with httpx.AsyncClient(transport=Transport()) as client:
            await client.get("http://custom.test")
            client.cookies.extract_cookies = abort
            with pytest.raises(Abort):
                await client.get("http://custom.test")
        return dict(_send._opened)

    assert run(main) == {}


def test_a_response_is_not_remembered_for_a_sync_request_around_it():
    class Around(Adapter):
        def exchange(self, asked):
            _send._note_opened(object())
            raise Abort

    with httpx_cancel_safe.patched(), httpx.Client(transport=Around()) as client, pytest.raises(Abort):
        client.get("http://custom.test")
    assert _send._opened == {}


def replace_exchange(client):
    """As who wants to see each exchange may do; the net does not get to see them then."""
    original = client._send_single_request
    client._send_single_request = lambda *args: original(*args)


def test_a_response_of_an_exchange_that_somebody_replaced():
    closed = []

    class Closing(Stream):
        async def aclose(self):
            task.cancel()
            await passes()
            closed.append(self)

    class Answering(AsyncAdapter):
        async def exchange(self, asked):
            return 200, [], Closing()

    async def main():
        nonlocal task
        async with httpx.AsyncClient(transport=Answering()) as client:
            replace_exchange(client)

            async def request():
                async with client.stream("GET", "http://custom.test"):
                    pass

            task = start(request())
            await asyncio.wait([task])
            assert task.cancelled()

    task = None
    run(main)
    assert len(closed) == 1


@pytest.mark.skipif(compat.HTTPX < (0, 18), reason="it is the caller's block that closes, not httpx")
def test_a_response_of_an_exchange_that_somebody_replaced_sync():
    class Refusing(StreamBase):
        def __iter__(self):
            yield b""

        def close(self):
            raise PermissionError

    class Answering(Adapter):
        def exchange(self, asked):
            return 200, [], Refusing()

    with httpx_cancel_safe.patched(), httpx.Client(transport=Answering()) as client:
        replace_exchange(client)
        with pytest.raises(Abort), client.stream("GET", "http://custom.test"):
            raise Abort


def abort(response):
    raise Abort
