"""The cancel sweep against servers that others wrote: hypercorn, and proxy.py before it."""

import importlib.util

import httpx
import pytest

import httpx_cancel_safe

from .support import compat
from .support.scenarios import SCENARIOS
from .support.sweep import mode_problem, sweep, target

WAYS = {
    "http1": {},
    "http2": {"http2": True},
    "forward": {"proxy": "forward"},
    "connect": {"proxy": "connect"},
}

pytestmark = pytest.mark.skipif(
    compat.FIXED, reason="httpx %s needs no net: what it leaks is its own" % httpx.__version__
)


@pytest.fixture(scope="module")
def servers():
    for package in ("hypercorn", "proxy"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(package + " is not installed: hypercorn has no version that fits every cell")
    from .support import real_servers

    with real_servers.serve() as running:
        yield running


def check(servers, name, mode, closed_within=2.0, **way):
    if mode_problem(mode):
        pytest.skip(mode_problem(mode))
    url, watched, factory = target(servers, httpx.AsyncClient, **way)
    return sweep(SCENARIOS[name], mode, url, watched, factory, closed_within)


def check_with_net(*arguments, **way):
    with httpx_cancel_safe.patched():
        result = check(*arguments, **way)
    assert result.points > 2
    assert not result.faults, repr(result)


every_mode = pytest.mark.parametrize("mode", ["once", "twice-2", "scope", "trio"])
every_way = pytest.mark.parametrize("way", sorted(WAYS))


@every_mode
@every_way
def test_redirect(servers, way, mode):
    check_with_net(servers, "redirect", mode, **WAYS[way])


@every_mode
@pytest.mark.parametrize("name", ["get", "post", "stream-left"])
@every_way
def test_others(servers, way, name, mode):
    check_with_net(servers, name, mode, **WAYS[way])


@pytest.mark.skipif(compat.HTTPX < (0, 22), reason="the others leak too seldom to count on it")
@every_way
def test_without_the_net_it_leaks(servers, way):
    result = check(servers, "get", "scope", 0.1, pool_timeout=0.1, **WAYS[way])
    assert result.faulty_points * 10 >= result.points, repr(result)
