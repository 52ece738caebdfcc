"""Whatever ends a request, responses of other transports are closed to the end, where they are.

See support/custom.py for the streams and how they are interrupted.
"""

import asyncio
import sys

import anyio
import httpx
import pytest

import httpx_cancel_safe

from .support import compat, custom
from .support.network import Network
from .support.stepping import passes, start
from .support.transports import Answers, AsyncBody

pytestmark = pytest.mark.skipif(compat.FIXED, reason="nothing is patched on httpx %s" % httpx.__version__)

CELLS = [("asyncio", mode) for mode in ("once", "twice", "scope", "raise")] + [("trio", "trio"), ("trio", "trio_raise")]
every_cell = pytest.mark.parametrize("library, mode", CELLS)
quiet = pytest.mark.skipif((3, 8) <= sys.version_info < (3, 13), reason="asyncio complains of httpx's own generators")
asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)


def check(mode, kind, base):
    results = [custom.sweep_streams(mode, scenario, kind, base) for scenario in custom.SCENARIOS]
    assert sum(result.points for result in results) >= 50
    assert not any(result.faults or result.swallowed for result in results), "\n".join(map(repr, results))


@every_cell
@pytest.mark.parametrize("kind", custom.KINDS, ids=lambda kind: kind.__name__)
def test_every_response_is_closed_to_the_end(guarded, kind, library, mode):
    check(mode, kind, guarded.AsyncClient)


@every_cell
def test_without_the_patch_most_are_left_open(library, mode):
    with pytest.raises(AssertionError, match=r"never closed|closed half"):
        check(mode, custom.Again, httpx.AsyncClient)


@pytest.mark.parametrize("error", [KeyboardInterrupt, custom.Abort, LookupError])
@pytest.mark.parametrize("close_error", [None, LookupError("closing")])
def test_every_sync_response_is_closed_to_the_end(guarded, error, close_error):
    points, faults = custom.sync_sweep(error, guarded.Client, close_error)
    assert points >= (1 if close_error else 20)
    assert not faults, "\n".join(faults)


@pytest.mark.anyio
@asyncio_only
@pytest.mark.parametrize("dropped_in", ["hook", "close", pytest.param("read", marks=quiet)])
async def test_the_response_of_a_dropped_request_is_closed_in_the_background(guarded, dropped_in, caplog):
    waiting = []

    async def hook(response):
        waiting.append(client._transport_for_url(response.url).exchange)  # A transport's other methods stay in reach.
        await asyncio.sleep(999)

    async def fail():
        raise custom.Abort

    async def read():
        waiting.append(None)
        await asyncio.sleep(999)

    body = AsyncBody({"close": fail, "read": read}.get(dropped_in), lambda: passes(3))
    hooks = {"response": [hook] if dropped_in == "hook" else []}
    client = guarded.AsyncClient(transport=Answers(body), event_hooks=hooks)
    request = client.get(custom.URL)
    while not (body.began if dropped_in == "close" else waiting):
        request.send(None)
    request.close()
    await passes()
    assert body.closed == 1
    assert [one.getMessage() for one in caplog.records if one.levelname == "WARNING"] == []
    await client.aclose()
    parts = httpx_cancel_safe._streams.AsyncGuard(body, None).__aiter__()
    assert parts.__aiter__() is parts  # It is an iterator.


@pytest.mark.anyio
@asyncio_only
@pytest.mark.parametrize("error", [LookupError, custom.Abort])
async def test_an_error_comes_out_before_a_cancel_that_came_during_the_close(guarded, error, caplog):
    """The request failed; the cancel struck the clean-up: the error now, the cancel at the next wait."""

    async def fail():
        raise error

    async def close():
        closes.append(len(closes))
        if closes[-1]:  # As this is done again.
            raise OSError
        asyncio.get_event_loop().call_soon(task.cancel)
        await passes(3)

    struck, closes = [], []

    async def work():
        body = AsyncBody(fail, close)
        async with guarded.AsyncClient(transport=Answers(body)) as client:
            try:
                await client.get(custom.URL)
            except asyncio.CancelledError:
                struck.append("the request")
                raise
            except error:
                struck.append("the next wait")
                await asyncio.sleep(1)

    task = start(work())
    await asyncio.wait([task])
    assert task.cancelled() and len(struck) == 1 and "a clean-up failed: OSError" in caplog.text
    # For an Exception, and up to 0.17 for any, httpx closes the response itself.
    assert error is LookupError or compat.HTTPX < (0, 18) or struck == ["the next wait"]


@pytest.mark.anyio
async def test_a_close_that_hangs_is_given_up_after_a_cancel_of_a_scope_around_it(anyio_backend):
    """Nothing had gone wrong, so there was no limit; the scope ends as it does without the patch."""
    with httpx_cancel_safe.patched(close_timeout=0.02):
        async with httpx.AsyncClient(transport=Answers(AsyncBody(close=lambda: anyio.sleep(999)))) as client:
            with anyio.fail_after(20), anyio.move_on_after(0.01) as scope:
                await client.get(custom.URL)
    assert scope.cancel_called
    if sys.version_info >= (3, 11) and anyio_backend == "asyncio":
        assert compat.current_task().cancelling() == 0


async def wait_for_in_wait_for(request, inner, outer):
    async def within():
        try:
            await asyncio.wait_for(request, inner)
        except asyncio.TimeoutError:
            return "inner"

    try:
        return await asyncio.wait_for(within(), outer)
    except asyncio.TimeoutError:
        return "outer"


async def scope_in_scope(request, inner, outer):
    with anyio.move_on_after(outer):
        with anyio.move_on_after(inner):
            await request
        await anyio.sleep(0)
        return "inner"
    return "outer"


async def timeout_in_scope(request, inner, outer):
    with anyio.move_on_after(outer):
        try:
            async with asyncio.timeout(inner):
                await request
        except TimeoutError:
            await anyio.sleep(0)
            return "inner"
    return "outer"


@pytest.mark.anyio
@pytest.mark.parametrize("limits", [wait_for_in_wait_for, scope_in_scope, timeout_in_scope])
@pytest.mark.parametrize("runs_out", ["inner", "outer"])
@pytest.mark.parametrize("below", ["pool", "transport"])
async def test_the_limit_that_ran_out_is_the_one_that_ends(guarded, below, runs_out, limits, anyio_backend):
    if anyio_backend == "trio" and limits is not scope_in_scope:
        pytest.skip("asyncio's limits")
    if limits is timeout_in_scope and sys.version_info < (3, 11):
        pytest.skip("asyncio.timeout() came with Python 3.11")
    seconds = {"inner": (0.01, 999), "outer": (999, 0.01)}[runs_out]
    if below == "pool":
        client = Network("body").under(compat.make_client(guarded.AsyncClient, False))
    else:
        body = AsyncBody(lambda: anyio.sleep(999), lambda: passes(5))
        client = guarded.AsyncClient(transport=Answers(body))
    assert await limits(client.get(custom.URL), *seconds) == runs_out
    if sys.version_info >= (3, 11) and anyio_backend == "asyncio":
        assert compat.current_task().cancelling() == 0
    await client.aclose()
