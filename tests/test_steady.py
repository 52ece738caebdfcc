"""Which connections write steadily: those that speak HTTP/2, by whatever way they came."""

import asyncio
import inspect
import sys
import types

import anyio
import httpcore
import httpx
import pytest

import httpx_cancel_safe
from httpx_cancel_safe._pool.steady import (
    PREFACE,
    Backend,
    OldPythonMixin,
    SteadyMixin,
    make_steady,
    make_writes_steady,
)

from .support import compat
from .support.scenarios import expect
from .test_left_behind import network_streams

pytestmark = pytest.mark.skipif(
    not (0, 18) <= compat.HTTPX < (0, 23), reason="needs the transports of httpx 0.18 to 0.22"
)


def steady(url, **options):
    """Whether the connections of two clients that share one transport write steadily."""

    async def main():
        transport = httpx.AsyncHTTPTransport(**options)
        one, other = (httpx.AsyncClient(transport=transport) for _ in range(2))
        expect(await one.get(url + "/get"))
        expect(await other.get(url + "/get"))
        found = [isinstance(stream, SteadyMixin) for stream in network_streams(one)]
        await one.aclose()
        await other.aclose()
        return found

    with httpx_cancel_safe.patched():
        return anyio.run(main)


def test_http2_writes_steadily(servers):
    assert steady(servers.http2.url, verify=servers.client_context(), http2=True) == [True]


def test_http2_alone_writes_steadily(servers):
    if "http1" not in inspect.signature(httpx.AsyncHTTPTransport.__init__).parameters:
        pytest.skip("this httpx always speaks HTTP/1.1, too")
    assert steady(servers.http2.url, verify=servers.client_context(), http1=False, http2=True) == [True]


@pytest.mark.parametrize("http1", [False, True])
def test_http2_alone_without_tls_writes_steadily(http1):
    class Network:
        async def connect_tcp(self):
            stream = Plain()
            stream.start_tls = None
            return stream

    stream = anyio.run(Backend(Network(), http1, 5.0).connect_tcp)
    assert isinstance(stream, SteadyMixin) != http1


def test_what_turns_out_to_be_http1_is_left_alone(servers):
    assert steady(servers.tls.url, verify=servers.client_context(), http2=True) == [False]
    assert steady(servers.uds.url, uds=servers.uds.uds, http2=True) == [False]


def test_a_pool_that_clients_share_is_prepared_once(servers):
    pool = httpcore.AsyncConnectionPool(ssl_context=servers.client_context(), http2=True)
    make_writes_steady(pool, 5.0)
    prepared = dict(vars(pool))
    make_writes_steady(pool, 5.0)
    assert vars(pool) == prepared


def test_a_stream_that_cannot_be_changed_is_left_alone():
    class Fixed:
        __slots__ = ()

    stream = Fixed()
    assert make_steady(stream, 5.0) is stream
    assert type(stream) is Fixed


def test_a_stream_is_made_steady_once():
    stream = make_steady(Plain(), 5.0)
    kind = type(stream)
    assert type(make_steady(stream, 5.0)) is kind


class Plain:
    """A network stream that keeps what is written, and reads as `wait_for()` of old Pythons does."""

    def __init__(self):
        self.written = []

    async def write(self, data):
        self.written.append(data)

    async def read(self, fut, error=None):
        if error is not None:
            raise error
        return fut.result()


class Reader(Plain):
    stream_reader = None  # One of asyncio's.


def test_the_preface_is_written_once():
    """The request that prepared it first may have been cancelled before it wrote."""

    async def main():
        stream = make_steady(Plain(), 5.0)
        await stream.write(PREFACE + b"one " + PREFACE + b"two")
        await stream.write(b"three " + PREFACE)
        return stream.written

    assert anyio.run(main) == [PREFACE + b"one two", b"three " + PREFACE]


def test_what_was_read_when_a_read_is_cancelled_stays_unread():
    class OldReader(OldPythonMixin, Reader):
        pass

    async def main():
        stream, loop = OldReader(), asyncio.get_event_loop()
        first, second, broken, cancelled, event = (loop.create_future() for _ in range(5))
        first.set_result(b"first")
        second.set_result(b"second")
        broken.set_exception(ConnectionError())
        cancelled.cancel()
        event.set_result(True)
        with pytest.raises(asyncio.CancelledError):
            await stream.read(first, asyncio.CancelledError())
        assert await stream.read(second) == b"first"
        assert await stream.read(second) == b"second"
        for fut in (broken, cancelled, event, loop.create_future()):
            cancel = asyncio.CancelledError()
            with pytest.raises(asyncio.CancelledError) as raised:
                await stream.read(fut, cancel)
            assert raised.value is cancel  # And not what the future says.
            assert await stream.read(second) == b"second"

    anyio.run(main)


def test_what_was_read_stays_unread_where_python_drops_it():
    assert isinstance(make_steady(Reader(), 5.0), OldPythonMixin) == (sys.version_info < (3, 10))
    assert isinstance(make_steady(Plain(), 5.0), OldPythonMixin) == (sys.version_info < (3, 8))


def test_what_is_left_to_read_does_not_make_a_close_fail():
    """Httpcore before 0.13 raises it in the request that needs another connection then."""

    class CloseError(Exception):
        pass

    class Closing(Plain):
        failure = CloseError()

        async def aclose(self):
            raise self.failure

    async def main():
        stream = make_steady(Closing(), 5.0)
        await stream.aclose()
        stream.failure = PermissionError()
        with pytest.raises(PermissionError):
            await stream.aclose()

    anyio.run(main)


@pytest.mark.skipif(
    compat.HTTPX[:2] == (0, 21), reason="httpcore speaks no HTTP/2 through tunnels from 0.14.0 to 0.14.3"
)
def test_http2_through_a_tunnel_writes_steadily(servers):
    async def main():
        client = compat.make_client(
            httpx.AsyncClient, servers.client_context(), http2=True, proxy=servers.proxy.url
        )
        expect(await client.get(servers.http2.url + "/get"))
        (transport,) = client._mounts.values()
        found = network_streams(types.SimpleNamespace(_transport=transport))
        await client.aclose()
        return [isinstance(stream, SteadyMixin) for stream in found]

    with httpx_cancel_safe.patched():
        assert anyio.run(main) == [True]
