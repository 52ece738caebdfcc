"""Nobody else is touched: the requests next to a cancelled one go on undisturbed."""

import functools
import gc
import itertools
import os
import random
import sys

import anyio
import httpx
import pytest

import httpx_cancel_safe

from .support import compat
from .support.cancelling import cancelled_at, cut_short, run, ways_on
from .support.scenarios import SCENARIOS
from .support.sweep import Noise, no_gc, say, target

SEEDS = range(int(os.environ.get("CHAOS_SEEDS", "4")))
WORKERS = 12
REQUESTS = 6  # Each worker makes so many, however long it takes.

needs_net = pytest.mark.skipif(
    compat.FIXED, reason="httpx %s needs no net: what it leaks is its own" % httpx.__version__
)
every_backend = pytest.mark.parametrize("backend", ["asyncio", "trio"])
every_version = pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])

gates = ("gate-%d" % number for number in itertools.count())


@pytest.fixture(autouse=True)
def backend_works(request):
    if request.node.callspec.params.get("backend") == "trio" and compat.trio_problem():
        pytest.skip(compat.trio_problem())


class Neighbour:
    """A request that the server holds open until its gate is opened."""

    def __init__(self, client, url, server):
        self.gate = next(gates)
        self.started = anyio.Event()
        self.fault = None
        self._client = client
        self._url = url + "/gate/" + self.gate
        self._server = server

    async def run(self):
        parts = []
        try:
            async with self._client.stream("GET", self._url) as response:
                async for part in response.aiter_bytes():
                    parts.append(part)
                    self.started.set()
            if b"".join(parts) != b"before after":
                self.fault = repr(parts)
        except Exception as exc:
            self.fault = say(exc)
        finally:
            self.started.set()

    def release(self):
        self._server.open_gate(self.gate)


async def check_empty(client, url, server, limit):
    """Every place in the pool can be had: as many requests at once as it has places."""
    neighbours = [Neighbour(client, url, server) for _ in range(limit)]
    async with anyio.create_task_group() as group:
        for neighbour in neighbours:
            group.start_soon(neighbour.run)
        for neighbour in neighbours:
            await neighbour.started.wait()
        for neighbour in neighbours:
            neighbour.release()
    return ["afterwards: " + n.fault for n in neighbours if n.fault]


def run_and_check(servers, backend, http2, limit, body, pool_timeout=10.0, **options):
    """Run body(client, url, server) with a client of its own: (its result, what was wrong)."""
    options.update(http2=http2, limit=limit, pool_timeout=pool_timeout)
    url, (server,), factory = target(servers, httpx.AsyncClient, **options)
    faults = []

    async def main():
        client = factory()
        try:
            result, found = await body(client, url, server)
            faults.extend(found)
            client.event_hooks = {}
            # On HTTP/2 one request is enough; and in httpcore 0.13 one that reads keeps the others
            # from reading what has arrived for them.
            faults.extend(await check_empty(client, url, server, 1 if http2 else limit))
            return result
        finally:
            try:
                await client.aclose()
            except RuntimeError as exc:
                faults.append("closing the client: " + say(exc))

    gc.collect(1)  # The rest is frozen: see no_gc().
    with Noise() as noise:
        result = run(noise, backend, main)
        if not server.wait_closed_to(0, 2):
            faults.append("the server still holds a connection")
            server.drop_connections()
        gc.collect(1)
        faults.extend(noise.take())
    if http2:
        faults.extend("server: %r" % exc for exc in server.protocol_errors)
        del server.protocol_errors[:]
    return result, faults


def cancel_at_each_point(servers, backend, http2, limit, cancel_at):
    """Run cancel_at(k, client, url, server) for each k, until no request is cancelled any more."""
    faults = []
    with httpx_cancel_safe.patched(), no_gc():
        for k in range(1, 500):
            body = functools.partial(cancel_at, k)
            cancelled, found = run_and_check(servers, backend, http2, limit, body, pool_timeout=2.0)
            faults += ["k=%d %s" % (k, fault) for fault in found]
            if not cancelled:
                break
    assert k > 2
    assert not faults, "\n".join(faults)


@needs_net
@every_backend
@every_version
@pytest.mark.parametrize("way", ["once", "twice-3", "scope"])
@pytest.mark.parametrize("name", ["get", "redirect", "stream-left"])
def test_neighbour_goes_on(servers, name, way, http2, backend):
    """One request is held open; the other is cancelled at each of its suspension points."""
    if way not in ways_on(backend):
        pytest.skip("trio has scopes only")
    if http2 and compat.HTTPX < (0, 22):
        pytest.skip("httpcore before 0.14.4 lets one stream that waits keep the others from reading")
    http2_problem(http2, backend)

    async def cancel_at(k, client, url, server):
        neighbour = Neighbour(client, url, server)
        async with anyio.create_task_group() as group:
            group.start_soon(neighbour.run)
            await neighbour.started.wait()
            cancelled = await cancelled_at(k, SCENARIOS[name](client, url), way)
            neighbour.release()
        return cancelled, ["neighbour: " + neighbour.fault] if neighbour.fault else []

    cancel_at_each_point(servers, backend, http2, 1 if http2 else 2, cancel_at)


@needs_net
@every_backend
@every_version
@pytest.mark.parametrize("way", ["once", "twice-3", "scope"])
def test_newcomer_goes_on(servers, way, http2, backend):
    """Two requests share a new pool; the first is cancelled at each of its suspension points."""
    if way not in ways_on(backend):
        pytest.skip("trio has scopes only")
    if http2 and compat.HTTPX < (0, 21):
        pytest.skip("httpcore before 0.14 does not share a connection that is still connecting")
    http2_problem(http2, backend)

    async def cancel_at(k, client, url, server):
        cancelled, found = [], []

        async def first():
            cancelled.append(await cancelled_at(k, SCENARIOS["get"](client, url), way))

        async def second():
            try:
                await SCENARIOS["get"](client, url)
            except Exception as exc:
                found.append("newcomer: " + say(exc))

        async with anyio.create_task_group() as group:
            group.start_soon(first)
            group.start_soon(second)
        return cancelled[0], found

    # httpcore before 0.14 does not always find the place that an idle connection keeps.
    limit = 1 if compat.HTTPX >= (0, 21) else 2
    cancel_at_each_point(servers, backend, http2, limit, cancel_at)


def http2_problem(http2, backend):
    """Skip where httpcore itself cannot do it, with the net or without, cancelled or not."""
    if http2 and sys.version_info < (3, 8) and compat.HTTPX < (0, 21):
        pytest.skip("a CancelledError is an Exception here: httpcore raises it on all streams")
    if http2 and backend == "asyncio" and compat.HTTPX < (0, 16):
        pytest.skip("httpcore 0.11 leaves TLS transports to the garbage collector")


CHAOTIC = ["get", "chunked", "post", "redirect", "digest", "stream-left"]


async def chaos(backend, url, client, seed, calm=False):
    """Half of the workers are cancelled again and again; the failures of the others are returned.

    In `calm` nobody is cancelled.
    """
    failed = []

    async def cancelled_worker(number):
        dice = random.Random("%d cancelled %d" % (seed, number))
        for _ in range(REQUESTS):
            request = SCENARIOS[dice.choice(CHAOTIC)](client, url)
            way = dice.choice(ways_on(backend) + ["cut"])
            try:
                if calm:
                    await request
                elif way == "cut":
                    await cut_short(dice.choice([0, 0.0005, 0.002]), request)
                else:
                    await cancelled_at(dice.randint(1, 25), request, way)
            except Exception as exc:
                failed.append("cancelled %d: %s" % (number, say(exc)))

    async def steady_worker(number):
        dice = random.Random("%d steady %d" % (seed, number))
        for _ in range(REQUESTS):
            try:
                await SCENARIOS[dice.choice(CHAOTIC)](client, url)
            except Exception as exc:
                failed.append("steady %d: %s" % (number, say(exc)))

    async def keep_talking(workers):
        while workers:
            try:
                await SCENARIOS["get"](client, url)
            except Exception as exc:
                failed.append("talking: " + say(exc))

    async def worker(work, number, workers):
        await work(number)
        workers.remove((work, number))

    works = [cancelled_worker, steady_worker]
    workers = [(work, number) for work in works for number in range(WORKERS)]
    async with anyio.create_task_group() as group:
        for work, number in list(workers):
            group.start_soon(worker, work, number, workers)
        if HALTING:
            group.start_soon(keep_talking, workers)
    return failed


# Before httpcore 0.14.4 an HTTP/2 request may wait although its answer has arrived, until something
# else does on its connection: https://github.com/encode/httpcore/pull/439.
HALTING = compat.HTTPX[:2] == (0, 21)

# Before httpcore 0.14 a request may wait for a place in the pool while idle connections fill it,
# whenever there are more workers than places; nothing need be cancelled for that. So none is kept.
KEEPALIVE = 0 if compat.HTTPX < (0, 21) else None

# In httpcore 0.13 a request does not share an HTTP/2 connection that is still connecting, but waits
# in vain for a place of its own. So there is one for everybody, and a connection to begin with.
WARM = (0, 18) <= compat.HTTPX < (0, 21)
HTTP2_LIMIT = 2 * WORKERS if WARM else 1


def run_chaos(servers, backend, http2, seed, calm=False):
    async def body(client, url, server):
        if http2 and WARM:
            await SCENARIOS["get"](client, url)
        return None, await chaos(backend, url, client, seed, calm)

    limit, options = (HTTP2_LIMIT, {}) if http2 else (8, {"keepalive": KEEPALIVE})
    with no_gc():
        _, faults = run_and_check(servers, backend, http2, limit, body, **options)
    return faults


@needs_net
@every_backend
@every_version
@pytest.mark.parametrize("seed", SEEDS)
def test_chaos(servers, seed, http2, backend):
    http2_problem(http2, backend)
    if http2 and compat.HTTPX < (0, 18):
        pytest.skip("httpcore before 0.13 closes a connection with data to read under who just chose it")
    with httpx_cancel_safe.patched():
        faults = run_chaos(servers, backend, http2, seed)
    assert not faults, "\n".join(faults)


@needs_net
@every_backend
@every_version
def test_calm_without_the_net(servers, http2, backend):
    http2_problem(http2, backend)
    """The same requests, none of them cancelled: what fails in the chaos is due to the cancels."""
    faults = run_chaos(servers, backend, http2, 0, calm=True)
    assert not faults, "\n".join(faults)


@pytest.mark.skipif(
    not (0, 21) <= compat.HTTPX < (0, 23), reason="the others leak too seldom to count on it"
)
@every_backend
def test_chaos_without_the_net(servers, backend):
    async def body(client, url, server):
        return None, await chaos(backend, url, client, 0)

    _, faults = run_and_check(servers, backend, False, 8, body, pool_timeout=0.3)
    assert any("PoolTimeout" in fault for fault in faults), faults
