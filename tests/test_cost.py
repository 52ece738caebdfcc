"""A request that ends well costs next to nothing: no task, no suspension, few calls.

Counted are calls of Python functions, which are the same each time; `tests.benchmarks.cost` counts
instructions. The bounds are there to be lowered, and to catch what nobody meant to add.
"""

import asyncio
import gc
import sys

import httpx
import pytest

import httpx_cancel_safe

from .benchmarks import fakes
from .support import compat
from .support.sweep import drive

URL = "https://stub.test/"
OURS = httpx_cancel_safe.__name__

# Calls of the library's functions for one request, at most: (async, sync). All further calls are
# httpx's own, but for those that ours make of others' functions: at most as many again.
MOST_CALLS = {
    "plain": (5, 2),
    "stream": (5, 2),
    "redirect": (9, 3),
    "http1": (2, 1),
    "http2": (16, 1),
}

needs_net = pytest.mark.skipif(
    compat.FIXED, reason="httpx %s needs no net" % httpx.__version__
)


class Calls:
    """The Python functions that are called: a coroutine counts once, however often it is resumed."""

    def __enter__(self):
        self._frames = {}  # Kept, so that no two have one id.
        gc.disable()  # The collector may call callbacks of others.
        sys.setprofile(self._called)
        return self

    def _called(self, frame, event, arg):
        if event == "call":
            self._frames[id(frame)] = frame

    def __exit__(self, *exc_info):
        sys.setprofile(None)
        gc.enable()
        frames = list(self._frames.values())
        self._frames.clear()
        names = [(f.f_globals.get("__name__", ""), f.f_code.co_name) for f in frames]
        self.ours = [function for module, function in names if module.startswith(OURS)]
        self.others = len(names) - len(self.ours)


def client_of(kind, base, is_async):
    options = {"follow_redirects": True} if compat.HTTPX >= (0, 20) else {}
    kind = kind if kind.startswith("http") else "stub"
    return base(transport=fakes.transport(kind, is_async), trust_env=False, **options)


async def request(client, kind):
    if kind == "stream":
        async with client.stream("GET", URL) as response:
            async for _ in response.aiter_bytes():
                pass
    else:
        response = await client.get(URL + ("redirect" if kind == "redirect" else ""))
    assert response.status_code == 200


def request_sync(client, kind):
    if kind == "stream":
        with client.stream("GET", URL) as response:
            for _ in response.iter_bytes():
                pass
    else:
        response = client.get(URL + ("redirect" if kind == "redirect" else ""))
    assert response.status_code == 200


def cost_async(kind, base):
    """(suspensions, tasks, calls) of one request on a client that has made some before."""
    suspensions, tasks = [], []

    async def main():
        async with client_of(kind, base, True) as client:
            for _ in range(3):
                await request(client, kind)
            loop = asyncio.get_event_loop()
            loop.set_task_factory(lambda loop, coro, **kwargs: tasks.append(coro))
            with Calls() as calls:
                await drive(request(client, kind), suspensions.append)
            loop.set_task_factory(None)
        return calls

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        calls = loop.run_until_complete(main())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    return suspensions, tasks, calls


def cost_sync(kind, base):
    with client_of(kind, base, False) as client:
        for _ in range(3):
            request_sync(client, kind)
        with Calls() as calls:
            request_sync(client, kind)
    return [], [], calls


def kinds():
    yield from ("plain", "redirect", "stream")
    if fakes.network is not None:  # httpcore 0.14 and 0.15: the others have other backends.
        yield from ("http1", "http2")


def bases(net, is_async):
    if net == "patch":
        return httpx.AsyncClient if is_async else httpx.Client
    return httpx_cancel_safe.SafeAsyncClient if is_async else httpx_cancel_safe.SafeClient


@pytest.mark.skipif(compat.HTTPX < (0, 18), reason="stub transports are written for 0.18 and later")
@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
@pytest.mark.parametrize("net", ["patch", "class"])
@pytest.mark.parametrize("kind", list(kinds()))
def test_request_that_ends_well(kind, net, is_async):
    cost = cost_async if is_async else cost_sync
    plain_suspensions, plain_tasks, plain = cost(kind, httpx.AsyncClient if is_async else httpx.Client)
    with httpx_cancel_safe.patched() if net == "patch" else Nothing():
        suspensions, tasks, calls = cost(kind, bases(net, is_async))

    assert plain.ours == []
    assert suspensions == plain_suspensions
    assert tasks == plain_tasks == []
    if compat.FIXED:
        assert (calls.ours, calls.others) == ([], plain.others)
    else:
        most = MOST_CALLS[kind][0 if is_async else 1]
        if kind == "http2" and sys.version_info < (3, 8):
            most *= 2  # There each read is looked after, too.
        assert len(calls.ours) <= most, calls.ours
        # Python 3.6 looks for the current task in Python.
        assert calls.others <= plain.others + (3 if sys.version_info < (3, 7) else 1) * most


class Nothing:
    def __enter__(self):
        pass

    def __exit__(self, *exc_info):
        pass


@needs_net
@pytest.mark.skipif(compat.HTTPX < (0, 18), reason="stub transports are written for 0.18 and later")
def test_nothing_for_each_chunk(monkeypatch):
    """A body of a hundred times as many chunks: not one call more of ours."""
    numbers = []
    for factor in (1, 100):
        chunks = [b"x"] * 2048 if factor == 100 else [b"x" * 2048]
        monkeypatch.setattr(fakes, "CHUNKS", chunks)
        with httpx_cancel_safe.patched():
            numbers.append(len(cost_async("stream", httpx.AsyncClient)[2].ours))
            numbers.append(len(cost_sync("stream", httpx.Client)[2].ours))
    assert numbers[:2] == numbers[2:]
