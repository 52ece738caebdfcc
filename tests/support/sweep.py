"""The cancel sweep: cancel a request at every point where it suspends, and look what is left.

A run makes a client with room for one connection, starts a scenario and cancels it at its k-th
suspension. Afterwards it asks: does the next request get a connection, does the client close
quietly, is every connection gone from the server (with the garbage collector off), and was the
cancellation all that came out?
"""

import asyncio
import gc
import os
import sys
import zlib

import anyio

from . import compat
from .noise import Noise, no_gc, say, strip
from .scenarios import get
from .stepping import WAYS, cancelled_at, passes, run

MODES = WAYS + ["trio"]
ON_TRIO = {"trio": ("trio", "scope"), "trio_raise": ("trio", "raise")}
WATCHDOG = 10.0
# All points take minutes: they are tried in one cell for each kind of pool, and by hand.
STRIDE = 1 if os.environ.get("SWEEP") == "full" else 4


def points(mode, stride):
    """1, 2, 3 ... and from the 30th on only every third; with a stride a part of them, another one in each cell."""
    k = 1 + zlib.crc32(repr((sys.version, compat.HTTPX, mode)).encode()) % stride
    while k < 1000:
        yield k
        k += stride if k < 30 else 3 * stride


class Sweep:
    """One scenario, and how many of its runs were cancelled, in how many of them that was lost, and the faults."""

    def __init__(self, scenario, mode, url, servers, client_factory, closed_within):
        self.scenario, self.mode, self.url, self.servers = scenario, mode, url, servers
        self.client_factory, self.closed_within = client_factory, closed_within
        self.backend, self.way = ON_TRIO.get(mode, ("asyncio", mode))
        self.points = self.swallowed = 0
        self.faults = []  # (point, what was wrong)

    @property
    def faulty_points(self):
        return len({k for k, _ in self.faults})

    def __repr__(self):
        lines = ["%s/%s: %d/%d" % (self.scenario.__name__, self.mode, self.faulty_points, self.points)]
        return "\n".join(lines + ["  k=%d %s" % fault for fault in self.faults])

    def fault(self, what):
        self.faults.append((self.k, what))

    def at(self, noise, k):
        """Cancel one request; what came of it, see cancelled_at()."""
        self.k, self.outcome = k, "failed"
        run(noise, self.backend, self.main, WATCHDOG * 5)
        # What was dropped is found now, and still belongs to this run. With the collector off
        # everything that the run made is in the youngest generation.
        gc.collect(1)
        for what in noise.take():
            self.fault(what)
        return self.outcome

    async def main(self):
        client = self.client_factory()
        if await self.bounded("the request", self.request(client)):
            client.event_hooks = {}
            await self.bounded("next request", get(client, self.url))
        await self.bounded("closing the client", client.aclose())
        if not await self.all_closed():
            self.fault("still open: %s" % self.servers)
            for server in self.servers:
                server.reset()
        if self.backend != "trio":
            await self.last_words()
            left = compat.all_tasks(asyncio.get_event_loop()) - {compat.current_task()}
            if left:
                self.fault("tasks left behind: %r" % left)
                for task in left:
                    task.cancel()
                await asyncio.wait(left, timeout=1)

    async def bounded(self, what, coro):
        """Await something that must not fail; a hang is a fault and ends the run."""
        with anyio.move_on_after(WATCHDOG) as scope:
            try:
                await coro
            except Exception as exc:
                self.fault("%s: %s" % (what, say(exc)))
                strip(exc)
        if scope.cancel_called:
            self.fault("hang: " + what)
        return not scope.cancel_called

    async def request(self, client):
        self.outcome = await cancelled_at(self.k, self.scenario(client, self.url), self.way)

    async def all_closed(self):
        with anyio.move_on_after(self.closed_within):
            while any(server.open_connections for server in self.servers):
                await anyio.sleep(0.001)
            return True

    async def last_words(self):
        """Let TLS of Python 3.6, which nobody can wait for, hear that the peer is gone as well."""
        await passes(20)  # Of httpx's own generators, which the loop closes.
        loop = asyncio.get_event_loop()
        if sys.version_info < (3, 7) and hasattr(loop, "_selector"):
            with anyio.move_on_after(self.closed_within):
                while len(loop._selector.get_map()) > 1:
                    await asyncio.sleep(0.001)


def sweep(*arguments, closed_within=2.0, stride=STRIDE):
    """Cancel a scenario at each of its suspension points; the servers must be empty afterwards."""
    result = Sweep(*arguments, closed_within=closed_within)
    with Noise() as noise, no_gc():
        # Once without a cancel: what goes wrong now is no leak but a broken test.
        result.at(noise, 0)
        assert not result.faults, result
        for k in points(result.mode, stride):
            outcome = result.at(noise, k)
            if not outcome:
                break
            result.points += 1
            result.swallowed += outcome == "swallowed"
    return result


def target(servers, base, tls=False, http2=False, proxy=None, uds=False, **options):
    """Where the requests go: (url, servers to watch, client factory)."""
    if uds:
        origin = servers.uds
        options["uds"] = origin.uds
    elif http2:
        origin = servers.http2
    else:
        origin = servers.tls if tls or proxy == "connect" else servers.plain
    watched = [origin]
    if proxy is not None:
        relay = servers.socks if proxy == "socks" else servers.proxy
        options["proxy"] = relay.url
        # A tunnel ends here first, and at the origin a little later.
        watched.insert(0, relay)
    context = servers.client_context()
    return origin.url, watched, lambda: compat.make_client(base, context, http2=http2, **options)
