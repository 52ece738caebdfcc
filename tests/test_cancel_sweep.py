"""Cancel a request at every point where it suspends: nothing may be left behind."""

import asyncio
import sys

import anyio
import httpx
import pytest

import httpx_cancel_safe

from .support import compat
from .support.scenarios import SCENARIOS, expect
from .support.sweep import MODES, mode_problem, sweep, target

needs_net = pytest.mark.skipif(
    compat.FIXED, reason="httpx %s needs no net: what it leaks is its own" % httpx.__version__
)

# For the other ways to the server, which differ below the request: the cases that differ there.
SHORT = ["get", "post", "redirect", "stream-left", "two-requests"]


def skip_unless(problem):
    if problem:
        pytest.skip(problem)


def check(servers, scenario, mode, closed_within=2.0, **way):
    """Sweep a scenario, or that of a name, and return the result; skip where the mode does not work here."""
    skip_unless(mode_problem(mode))
    url, watched, factory = target(servers, httpx.AsyncClient, **way)
    return sweep(SCENARIOS.get(scenario, scenario), mode, url, watched, factory, closed_within)


def check_with_net(servers, scenario, mode, **way):
    with httpx_cancel_safe.patched():
        result = check(servers, scenario, mode, **way)
    assert result.points > 0
    assert not result.faults, repr(result)


every_mode = pytest.mark.parametrize("mode", MODES)
# For those other ways: what a second cancel hits a pass earlier or later is the same as above.
main_modes = pytest.mark.parametrize("mode", ["once", "twice-2", "scope", "trio"])


@needs_net
@every_mode
@pytest.mark.parametrize("name", list(SCENARIOS))
def test_http1(servers, name, mode):
    check_with_net(servers, name, mode)


def expire(client):
    """Let what is idle in the pool of `client` be too old for the next request."""
    pool = compat.pool_of(client)
    if compat.HTTPX >= (0, 21):
        pool._pool[0]._connection._expire_at = 0
    else:
        pool._next_keepalive_check = 0
        for connections in pool._connections.values():
            for connection in connections:
                connection.expires_at = 0
                connection.connection._should_expire_at = 0


async def expired(client, url):
    expect(await client.get(url + "/get"))
    expire(client)
    expect(await client.get(url + "/get"))


expired.name, expired.stride = "expired", 1


@needs_net
@main_modes
@pytest.mark.parametrize("scenario, keepalive", [(expired, None), ("two-requests", 0)])
def test_idle_connections_that_the_pool_closes(servers, scenario, keepalive, mode):
    check_with_net(servers, scenario, mode, keepalive=keepalive)


@needs_net
@main_modes
def test_idle_connections_that_the_server_has_closed(servers, mode):
    async def dropped(client, url):
        expect(await client.get(url + "/get"))
        servers.plain.drop_connections()
        for _ in range(2):  # httpcore 0.11 looks at what the loop has read.
            await anyio.sleep(0)
        expect(await client.get(url + "/get"))

    dropped.name, dropped.stride = "dropped", 1
    check_with_net(servers, dropped, mode)


@needs_net
@main_modes
@pytest.mark.parametrize("name", SHORT)
def test_http1_over_tls(servers, name, mode):
    check_with_net(servers, name, mode, tls=True)


@needs_net
@main_modes
@pytest.mark.parametrize("name", SHORT + ["digest", "large"])
def test_http2(servers, name, mode):
    check_with_net(servers, name, mode, http2=True)


@needs_net
@pytest.mark.parametrize("name", ["get", "post"])
def test_http2_loses_no_cancel(servers, name):
    if compat.HTTPX < (0, 21) and (3, 8) <= sys.version_info < (3, 12):
        pytest.skip("asyncio's wait_for() loses what comes with an answer: cpython #86296")
    with httpx_cancel_safe.patched():
        result = check(servers, name, "once", http2=True)
    # While it connects anyio may lose one, and asyncio's wait_for() one that comes with the answer.
    assert len(result.swallowed) <= 1, result.swallowed


@needs_net
@main_modes
@pytest.mark.parametrize("name", ["get", "stream-left"])
def test_unix_socket(servers, name, mode):
    check_with_net(servers, name, mode, uds=True)


@needs_net
@main_modes
@pytest.mark.parametrize("name", ["get", "redirect"])
def test_forward_proxy(servers, name, mode):
    check_with_net(servers, name, mode, proxy="forward")


@needs_net
@main_modes
@pytest.mark.parametrize("name", ["get", "stream-left"])
def test_connect_proxy(servers, name, mode):
    check_with_net(servers, name, mode, proxy="connect")


@needs_net
@main_modes
@pytest.mark.parametrize("name", ["get"])
def test_http2_through_connect_proxy(servers, name, mode):
    if compat.HTTPX[:2] == (0, 21):
        pytest.skip("httpcore speaks no HTTP/2 through tunnels from 0.14.0 to 0.14.3")
    check_with_net(servers, name, mode, proxy="connect", http2=True)


@needs_net
@main_modes
@pytest.mark.parametrize("name", ["get", "stream-left"])
def test_socks_proxy(servers, name, mode):
    skip_unless(compat.socks_problem())
    check_with_net(servers, name, mode, proxy="socks")


@pytest.fixture
def uvloop(servers, monkeypatch):
    """Each run gets a loop of uvloop's; the servers have theirs already."""
    loops = pytest.importorskip("uvloop")
    monkeypatch.setattr(asyncio, "new_event_loop", loops.new_event_loop)


asyncio_modes = pytest.mark.parametrize("mode", ["once", "twice-2", "scope"])


@needs_net
@asyncio_modes
@pytest.mark.parametrize("name", SHORT + ["slow-headers", "digest", "hooks"])
def test_uvloop(uvloop, servers, name, mode):
    check_with_net(servers, name, mode)


@needs_net
@asyncio_modes
@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("way", ["tls", "http2"])
def test_uvloop_over_tls(uvloop, servers, way, name, mode):
    check_with_net(servers, name, mode, **{way: True})


@needs_net
@main_modes
def test_safe_client_needs_no_patch(servers, mode):
    skip_unless(mode_problem(mode))
    url, watched, factory = target(servers, httpx_cancel_safe.SafeAsyncClient)
    result = sweep(SCENARIOS["redirect"], mode, url, watched, factory)
    assert not result.faults, repr(result)
    assert not httpx_cancel_safe.is_patched()


@needs_net
@pytest.mark.parametrize("mode", ["twice-1", "scope", "trio"])
def test_without_the_net_it_leaks(servers, mode):
    """The sweep finds what it looks for: at least a tenth of the points leak in every release."""
    # A leak costs the whole wait for a connection, so do not wait long.
    result = check(servers, "redirect", mode, closed_within=0.1, pool_timeout=0.1)
    assert result.faulty_points * 10 >= result.points, repr(result)
