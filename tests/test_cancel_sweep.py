"""Cancel a request at every point where it suspends: nothing may be left behind. See support/sweep.py."""

import asyncio
import collections
import functools
import importlib.util
import sys

import anyio
import httpx
import pytest

import httpx_cancel_safe

from .support import compat, scenarios
from .support.scenarios import SCENARIOS, digest, get, large, post, redirect, stream_left, two_requests
from .support.stepping import passes
from .support.sweep import MODES, STRIDE, sweep, target

pytestmark = pytest.mark.skipif(compat.FIXED, reason="nothing is patched on httpx %s" % httpx.__version__)

TABLE = {mode: collections.Counter() for mode in MODES}  # conftest.py prints it.
every_mode = pytest.mark.parametrize("mode", MODES)
by_name = functools.partial(pytest.mark.parametrize, ids=lambda value: getattr(value, "__name__", None))

# The ways to a server, which differ below the request.
WAYS = {
    "tls": {"tls": True},
    "http2": {"http2": True},
    "socket": {"uds": True},
    "forward": {"proxy": "forward"},
    "connect": {"proxy": "connect"},
    "http2_connect": {"proxy": "connect", "http2": True},
    "socks": {"proxy": "socks"},
}
# The scenarios that differ there.
SHORT = [get, post, redirect, stream_left, two_requests]
BY_WAY = [("tls", one) for one in SHORT] + [("http2", one) for one in SHORT + [digest, large]]
BY_WAY += [(way, one) for way in ("socket", "connect", "socks") for one in (get, stream_left)]
BY_WAY += [("forward", get), ("forward", redirect), ("http2_connect", get)]


def sweep_by(servers, scenario, mode, way=None, stride=STRIDE, closed_within=2.0, **options):
    if way == "socks" and compat.socks_problem():
        pytest.skip(compat.socks_problem())
    if way == "http2_connect" and compat.HTTPX[:2] == (0, 21):
        pytest.skip("httpcore speaks no HTTP/2 through tunnels from 0.14.0 to 0.14.3")
    where = target(servers, httpx.AsyncClient, **dict(WAYS.get(way, {}), **options))
    return sweep(scenario, mode, *where, closed_within=closed_within, stride=stride)


def sweep_without_the_patch(*arguments):
    """It finds what it looks for: at least a tenth of the points leak in every release."""
    # A leak costs the whole wait for a connection, so do not wait long.
    result = sweep_by(*arguments, pool_timeout=0.1, closed_within=0.1, stride=2)
    assert result.faulty_points * 10 >= result.points > 0, repr(result)


def check(*arguments, **options):
    with httpx_cancel_safe.patched():
        result = sweep_by(*arguments, **options)
    TABLE[result.mode].update(points=result.points, faulty=result.faulty_points)
    assert result.points > 0 or STRIDE > 1
    assert not result.faults, repr(result)
    return result


@every_mode
@by_name("scenario", SCENARIOS)
def test_http1(servers, scenario, mode):
    check(servers, scenario, mode)


@every_mode
@by_name("way, scenario", BY_WAY)
def test_another_way(servers, way, scenario, mode):
    check(servers, scenario, mode, way)


@every_mode
@pytest.mark.parametrize("options", [{"expiry": 0}, {"keepalive": 0}], ids=str)
def test_idle_connections_that_the_pool_closes(servers, options, mode):
    """What is idle in the pool is too old for the next request, or one too many."""
    if "expiry" in options and compat.HTTPX < (0, 17):
        pytest.skip("httpx lets one choose it from 0.17 on")
    check(servers, two_requests, mode, **options)


@every_mode
def test_idle_connections_that_the_server_has_closed(servers, mode):
    async def dropped(client, url):
        await get(client, url)
        servers.plain.hang_up()
        with anyio.CancelScope(shield=True):  # httpcore 0.11 looks at what the loop has read.
            await passes(2)
        await get(client, url)

    check(servers, dropped, mode)


@every_mode
@pytest.mark.parametrize("first, way", [("tls", None), ("plain", "tls")])
def test_idle_connections_that_make_room_for_another_origin(servers, first, way, mode):
    """The pool has room for one: what is idle is closed before the request to the other origin connects."""
    other = getattr(servers, first).url

    async def evicted(client, url):
        for origin in (other, url, other):
            await get(client, origin)

    check(servers, evicted, mode, way)


@by_name("scenario", [get, post])
def test_http2_loses_no_cancel(servers, scenario):
    if compat.HTTPX < (0, 21) and (3, 8) <= sys.version_info < (3, 12):
        pytest.skip("asyncio's wait_for() loses what comes with an answer: cpython #86296")
    # While it connects anyio may lose one, and asyncio's wait_for() one that comes with the answer.
    assert check(servers, scenario, "once", "http2").swallowed <= 1


@pytest.mark.parametrize("mode", MODES[:-1])  # Not on trio.
@by_name("way, scenario", [(None, one) for one in SHORT + [scenarios.hooks]] + BY_WAY[: len(SHORT) * 2])
def test_uvloop(servers, monkeypatch, way, scenario, mode):
    getattr(servers, way or "plain")  # It is started, with a loop of asyncio's.
    monkeypatch.setattr(asyncio, "new_event_loop", pytest.importorskip("uvloop").new_event_loop)
    check(servers, scenario, mode, way)


@pytest.mark.parametrize("mode", ["twice", "scope", "trio"])
def test_without_the_patch_it_leaks(servers, mode):
    if mode == "twice" and compat.HTTPX < (0, 17) and sys.version_info < (3, 8):
        pytest.skip("a cancel is an Exception there, on which httpx closes the response")
    sweep_without_the_patch(servers, redirect, mode)

of_others = pytest.mark.parametrize("way", [None, "http2", "forward", "connect"])


@pytest.fixture(scope="module")
def servers_of_others():
    for package in ("hypercorn", "proxy", "trustme"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(package + " is not installed: it has no version that fits every cell")
    from .support import real_servers

    with real_servers.serve() as running:
        yield running


@every_mode
@of_others
def test_servers_of_others(servers_of_others, way, mode):
    check(servers_of_others, redirect, mode, way)


@pytest.mark.skipif(compat.HTTPX < (0, 22), reason="the others leak too seldom to count on it")
def test_without_the_patch_it_leaks_at_servers_of_others(servers_of_others):
    sweep_without_the_patch(servers_of_others, get, "scope")
