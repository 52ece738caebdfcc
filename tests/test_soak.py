"""Thousands of cancelled requests in one process leave nothing behind.

`python -m tests.benchmarks soak` does the same with a hundred thousand, and prints figures.
"""

import gc

import httpx
import pytest

import httpx_cancel_safe

from .benchmarks.soak import growth, server, soak
from .support import compat

REQUESTS = 1500  # On each backend.
PARTS = 5


@pytest.fixture(scope="module")
def url():
    with server() as running:
        yield running


@pytest.mark.skipif(compat.FIXED, reason="httpx %s is not patched" % httpx.__version__)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
# httpx's own generators stay behind where a body is left half read, cancelled or not.
@pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning")
@pytest.mark.filterwarnings("ignore:trio.MultiError is deprecated")
def test_nothing_grows(url, backend):
    with httpx_cancel_safe.patched():
        parts = list(soak(url, REQUESTS, PARTS, [backend]))
    first, last = parts[1], parts[-1]  # Caches of isinstance fill up in the first part.
    assert sum(part.cancelled for part in parts) >= REQUESTS * 0.9
    assert all(part.answered for part in parts), "an ordinary request got no connection"
    failures = [failure for part in parts for failure in part.failures]
    if compat.WAIT_FOR_SWALLOWS:
        failures = [failure for failure in failures if not failure.startswith("ReadTimeout")]
    assert failures == []
    assert all(part.tasks == 0 for part in parts)
    # A pool of ten may be more or less full, each time.
    assert last.files <= first.files + 10
    # What one request in thirty leaves behind would show.
    assert {kind: n for kind, n in growth(first, last).items() if n >= 40} == {}


@pytest.mark.skipif(not (0, 21) <= compat.HTTPX < (0, 23), reason="the others leak too seldom to count on it")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_it_grows_without_the_patch(url):
    parts = list(soak(url, 500, 2, ["asyncio"]))
    gc.collect()  # Sockets that nobody has closed: here, and not in another test.
    assert not parts[-1].answered
    assert growth(*parts)["httpcore._async.connection_pool.RequestStatus"] >= 20
