"""Which connections write steadily: those that speak HTTP/2, by whatever way they came."""

import inspect

import anyio
import httpx
import pytest

import httpx_cancel_safe
from httpx_cancel_safe._pool.steady import SteadyMixin, make_steady

from .support import compat
from .support.scenarios import expect
from .support.servers import serve
from .test_left_behind import network_streams

pytestmark = pytest.mark.skipif(
    not (0, 18) <= compat.HTTPX < (0, 23), reason="needs the transports of httpx 0.18 to 0.22"
)


@pytest.fixture(scope="module")
def servers():
    with serve() as running:
        yield running


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


def test_what_turns_out_to_be_http1_is_left_alone(servers):
    assert steady(servers.tls.url, verify=servers.client_context(), http2=True) == [False]
    assert steady(servers.uds.url, uds=servers.uds.uds, http2=True) == [False]


def test_a_stream_that_cannot_be_changed_is_left_alone():
    class Fixed:
        __slots__ = ()

    stream = Fixed()
    assert make_steady(stream, 5.0) is stream
    assert type(stream) is Fixed
