"""Thousands of cancelled requests leave nothing behind. `python -m tests.benchmarks soak` cancels 100,000."""

import gc

import pytest

import httpx_cancel_safe

from .benchmarks.soak import server, soak
from .support.compat import FIXED, HTTPX


@pytest.mark.skipif(FIXED, reason="the library leaves httpx 0.23 and later alone")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_nothing_grows(backend):
    with server() as urls, httpx_cancel_safe.patched():
        parts = list(soak(urls, 1500, 5, [backend]))
    first, last = parts[1], parts[-1]  # Caches of isinstance fill up in the first part.
    assert sum(part.cancelled for part in parts) >= 1500
    assert all(part.answered for part in parts), "an ordinary request got no connection"
    assert [failure for part in parts for failure in part.failures] == []
    assert sum(part.orphans + part.tasks for part in parts) == 0
    assert last.files <= first.files + 10  # Some sockets may still be closing, each time.
    # What one request in thirty leaves behind would show.
    assert [one for one in (last.objects - first.objects).items() if one[1] >= 40] == []


@pytest.mark.skipif(not (0, 21) <= HTTPX < (0, 23), reason="the others leak too seldom to count on it")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_it_grows_without_the_patch():
    with server() as urls:
        first, last = soak(urls, 300, 2, ["asyncio"])
    gc.collect()  # Sockets that nobody has closed: here, and not in another test.
    assert not last.answered
    assert (last.objects - first.objects)["httpcore._async.connection_pool.RequestStatus"] > 0
