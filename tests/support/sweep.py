"""The cancel sweep: cancel a request at every point where it suspends, and look what is left.

A run makes a client with room for one connection, starts a scenario and cancels it at its k-th
suspension. Afterwards it asks: does the next request get a connection, does the client close
quietly, is every connection gone from the server (with the garbage collector off), and was the
cancellation all that came out?
"""

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import sys
import time
import traceback
import types
import warnings
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

from . import compat
from .compat import httpx
from .scenarios import SCENARIOS, expect
from .servers import serve

ASYNCIO_MODES = ["once", "twice-1", "twice-2", "twice-3", "twice-4", "scope"]
MODES = ASYNCIO_MODES + ["trio"]
WATCHDOG = 10.0
CLOSED_WITHIN = 2.0
MOST_POINTS = 1000

Fault = namedtuple("Fault", "scenario mode k what")


class Result:
    def __init__(self, scenario, mode):
        self.scenario = scenario
        self.mode = mode
        self.points = 0  # Runs that were cancelled.
        self.swallowed = []  # The points where the cancel was lost and the request finished.
        self.faults = []

    @property
    def faulty_points(self):
        return len({fault.k for fault in self.faults})

    def __repr__(self):
        lines = ["%s/%s: %d/%d" % (self.scenario, self.mode, self.faulty_points, self.points)]
        lines += ["  k=%d %s" % (fault.k, fault.what) for fault in self.faults]
        return "\n".join(lines)


@types.coroutine
def drive(coro, on_suspend):
    """Run a coroutine as it is, and say before each suspension which one it is (from 1 on)."""
    iterator = coro.__await__()
    count = 0
    value, error = None, None
    try:
        while True:
            try:
                if error is None:
                    waits_for = iterator.send(value)
                else:
                    waits_for = iterator.throw(error)
            except StopIteration as stop:
                return stop.value
            count += 1
            on_suspend(count)
            value, error = None, None
            try:
                value = yield waits_for
            except GeneratorExit:
                raise
            except BaseException as exc:
                error = exc
    finally:
        iterator.close()
        # Leave no cycle behind through the traceback.
        error = None


class Trigger:
    """Calls `cancel` at the k-th suspension, and again at each of the further ones given."""

    def __init__(self, cancel, k, again=()):
        self._cancel = cancel
        self._at = {k} | {k + n for n in again} if k else set()
        self.calls = 0

    def __call__(self, count):
        if count in self._at:
            self.calls += 1
            self._cancel()


class Noise(logging.Handler):
    """What Python, and the net, complain about on the side while a run goes on."""

    def __init__(self):
        # The net warns when a clean-up is given up: that is no way for a run to end.
        super().__init__(logging.WARNING)
        self.seen = []
        self._warnings = warnings.catch_warnings(record=True)

    def __enter__(self):
        self._recorded = self._warnings.__enter__()
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ResourceWarning)
        # A body that is left half read leaves httpx's own generators behind, cancelled or not.
        warnings.filterwarnings("ignore", "Async generator 'http", ResourceWarning)
        warnings.filterwarnings("always", ".*was never awaited", RuntimeWarning)
        if hasattr(sys, "unraisablehook"):
            self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        logging.getLogger("httpx_cancel_safe").addHandler(self)
        return self

    def emit(self, record):
        why = say(record.exc_info[1]) if record.exc_info and record.exc_info[1] else ""
        self.seen.append("logged: %s %s" % (record.getMessage(), why))

    def _unraisable(self, args):
        self.seen.append("unraisable: %r in %r" % (args.exc_value, args.object))

    def loop_complains(self, loop, context):
        if _is_race_of_anyio(context):
            return
        self.seen.append(
            "loop: %s %r" % (context.get("message"), context.get("exception"))
        )

    def __exit__(self, *exc_info):
        logging.getLogger("httpx_cancel_safe").removeHandler(self)
        if hasattr(sys, "unraisablehook"):
            sys.unraisablehook = self._hook
        self._warnings.__exit__(*exc_info)

    def take(self):
        # A request body left half-way is the caller's generator: httpcore never closes it.
        messages = [str(item.message)[:150] for item in self._recorded]
        messages = [text for text in messages if not text.startswith("Async generator 'tests.")]
        seen = self.seen + ["warning: " + text for text in messages]
        self.seen = []
        del self._recorded[:]
        return seen


def _is_race_of_anyio(context):
    """Whether it is about a unix socket of anyio 3, which may set the result of a cancelled wait.

    That happens when the cancel comes in the pass in which the socket gets ready, with or without
    the net, and does no harm.
    """
    return "Future.set_result(None)" in str(context.get("message")) and isinstance(
        context.get("exception"), asyncio.InvalidStateError
    )


def say(exc):
    """An exception in one line, with the line it came from."""
    frames = traceback.extract_tb(exc.__traceback__)
    where = " at %s:%d" % (os.path.basename(frames[-1][0]), frames[-1][1]) if frames else ""
    return "%s(%s)%s" % (type(exc).__name__, str(exc)[:120], where)


def _strip(exc):
    """Drop the tracebacks of an exception: their frames would keep its connections alive."""
    seen = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        traceback.clear_frames(exc.__traceback__)
        exc.__traceback__ = None
        exc = exc.__cause__ or exc.__context__


async def _check_next(client, url):
    if getattr(client, "event_hooks", None):
        client.event_hooks = {}
    expect(await client.get(url + "/get"))


_waiters = ThreadPoolExecutor(1)


def _all_closed(servers, timeout):
    deadline = time.monotonic() + timeout
    return all(
        server.wait_closed_to(0, max(0.0, deadline - time.monotonic())) for server in servers
    )


class _Run:
    """One run of one scenario: what is common to asyncio and trio."""

    def __init__(self, sweep, k):
        self.sweep = sweep
        self.k = k
        self.faults = []
        self.cancelled = False
        self.swallowed = False

    def fault(self, what):
        self.faults.append(Fault(self.sweep.scenario.name, self.sweep.mode, self.k, what))

    def came_out(self, exc, right):
        """Judge how the scenario ended; `exc` is None when it ran to its end."""
        if exc is None:
            self.swallowed = self.cancelled
        elif not right:
            self.fault("came out: " + say(exc))


class _AsyncioRun(_Run):
    def go(self, noise):
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(noise.loop_complains)
        try:
            asyncio.set_event_loop(loop)
            loop.run_until_complete(self._main(loop))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            loop.close()

    async def _bounded(self, what, coro, on_error):
        """Await in a task of its own; a hang is a fault and ends the run."""
        task = asyncio.get_event_loop().create_task(coro)
        await asyncio.wait([task], timeout=WATCHDOG)
        if not task.done():
            self.fault("hang: " + what)
            task.cancel()
            await asyncio.wait([task], timeout=1)
            return False
        if task.cancelled():
            on_error(asyncio.CancelledError())
        elif task.exception() is not None:
            on_error(task.exception())
            _strip(task.exception())
        return True

    async def _main(self, loop):
        sweep = self.sweep
        client = sweep.client_factory()
        try:
            if not await self._scenario(loop, client):
                return
            if not await self._bounded(
                "the next request",
                _check_next(client, sweep.url),
                lambda exc: self.fault("next request: " + say(exc)),
            ):
                return
        finally:
            await self._bounded(
                "closing the client",
                client.aclose(),
                lambda exc: self.fault("closing the client: " + say(exc)),
            )
            # In a thread, as the loop has to go on for the sockets to close.
            if not _all_closed(sweep.servers, 0) and not await loop.run_in_executor(
                _waiters, _all_closed, sweep.servers, sweep.closed_within
            ):
                self.fault("the server still holds a connection")
            await self._last_words(loop)
            left = [t for t in compat.all_tasks(loop) if t is not _current_task(loop)]
            if left:
                self.fault("tasks left behind: %r" % left)
                for task in left:
                    task.cancel()
                await asyncio.wait(left, timeout=1)
            for server in sweep.servers:
                if server.open_connections:
                    server.drop_connections()

    async def _last_words(self, loop):
        """Let TLS of Python 3.6, which nobody can wait for, hear that the peer is gone as well."""
        if sys.version_info < (3, 7) and hasattr(loop, "_selector"):
            deadline = loop.time() + self.sweep.closed_within
            while len(loop._selector.get_map()) > 1 and loop.time() < deadline:
                await asyncio.sleep(0.001)

    async def _scenario(self, loop, client):
        sweep = self.sweep
        coro = sweep.scenario(client, sweep.url)
        if sweep.mode == "scope":
            return await self._in_scope(coro)
        # From a callback, so that the task is suspended when the cancel comes.
        again = [int(sweep.mode[6:])] if sweep.mode.startswith("twice-") else []
        trigger = Trigger(lambda: loop.call_soon(cancel), self.k, again)

        def cancel():
            task.cancel()

        asked = []

        async def run():
            try:
                await drive(coro, trigger)
            finally:
                if hasattr(asyncio.Task, "cancelling"):
                    asked.append(asyncio.current_task().cancelling())

        task = loop.create_task(run())
        await asyncio.wait([task], timeout=WATCHDOG)
        self.cancelled = trigger.calls > 0
        if not task.done():
            self.fault("hang: the request")
            task.cancel()
            await asyncio.wait([task], timeout=1)
            return False
        if task.cancelled():
            if not self.cancelled:
                self.fault("came out: CancelledError, and nobody cancelled")
            elif asked and asked[0] != trigger.calls:
                self.fault("cancelling() is %d after %d" % (asked[0], trigger.calls))
        else:
            self.came_out(task.exception(), False)
            if task.exception() is not None:
                _strip(task.exception())
        return True

    async def _in_scope(self, coro):
        import anyio

        ended = []

        async def run():
            with anyio.CancelScope() as scope:
                cancel = scope.cancel
                if asyncio.iscoroutinefunction(cancel):  # anyio 1 and 2
                    raise NotImplementedError("anyio 3 or later is needed")
                trigger = Trigger(cancel, self.k)
                try:
                    await drive(coro, trigger)
                finally:
                    self.cancelled = trigger.calls > 0
                ended.append(True)
            if not ended and not self.cancelled:
                self.fault("came out: a cancellation, and nobody cancelled")
            self.swallowed = bool(ended) and self.cancelled

        return await self._bounded(
            "the request", run(), lambda exc: self.fault("came out: " + say(exc))
        )


class _TrioRun(_Run):
    def go(self, noise):
        import trio

        trio.run(self._main)

    async def _bounded(self, what, coro):
        import trio

        with trio.move_on_after(WATCHDOG) as scope:
            try:
                await coro
            except Exception as exc:
                self.fault("%s: %s" % (what, say(exc)))
                _strip(exc)
        if scope.cancelled_caught:
            self.fault("hang: " + what)
        return not scope.cancelled_caught

    async def _main(self):
        import trio

        sweep = self.sweep
        client = sweep.client_factory()
        if await self._bounded("came out", self._scenario(client)):
            await self._bounded("next request", _check_next(client, sweep.url))
        await self._bounded("closing the client", client.aclose())
        if not _all_closed(sweep.servers, 0) and not await trio.to_thread.run_sync(
            _all_closed, sweep.servers, sweep.closed_within
        ):
            self.fault("the server still holds a connection")
            for server in sweep.servers:
                server.drop_connections()

    async def _scenario(self, client):
        import trio

        ended = False
        with trio.CancelScope() as scope:
            trigger = Trigger(scope.cancel, self.k)
            try:
                await drive(self.sweep.scenario(client, self.sweep.url), trigger)
            finally:
                self.cancelled = trigger.calls > 0
            ended = True
        self.swallowed = ended and self.cancelled
        if not ended and not (self.cancelled and scope.cancelled_caught):
            self.fault("came out: a cancellation, and nobody cancelled")


def _current_task(loop):
    if sys.version_info >= (3, 7):
        return asyncio.current_task(loop)
    return asyncio.Task.current_task(loop)


@contextlib.contextmanager
def no_gc():
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    if hasattr(gc, "freeze"):  # What is there already need not be looked at again and again.
        gc.freeze()
    try:
        yield
    finally:
        if hasattr(gc, "unfreeze"):
            gc.unfreeze()
        if was_on:
            gc.enable()


class Sweep:
    def __init__(self, scenario, mode, url, servers, client_factory, closed_within):
        self.scenario = scenario
        self.mode = mode
        self.url = url
        self.servers = servers
        self.client_factory = client_factory
        self.closed_within = closed_within

    def run_once(self, k, noise):
        run = (_TrioRun if self.mode == "trio" else _AsyncioRun)(self, k)
        run.go(noise)
        # What was dropped is found now, and still belongs to this run. With the collector off
        # everything that the run made is in the youngest generation.
        gc.collect(1)
        for what in noise.take():
            run.fault(what)
        return run

    def points(self):
        """1, 2, 3 ... and from the 30th on only every stride-th."""
        k = 0
        while k < MOST_POINTS:
            k += 1 if k < 30 else self.scenario.stride
            yield k

    def go(self):
        result = Result(self.scenario.name, self.mode)
        with Noise() as noise, no_gc():
            # Once without a cancel: what goes wrong now is no leak but a broken test.
            plain = self.run_once(0, noise)
            assert not plain.faults, plain.faults
            for k in self.points():
                run = self.run_once(k, noise)
                result.faults += run.faults
                if not run.cancelled:
                    break
                result.points += 1
                if run.swallowed:
                    result.swallowed.append(k)
        return result


def sweep(scenario, mode, url, servers, client_factory, closed_within=CLOSED_WITHIN):
    """Cancel `scenario` at each of its suspension points; `servers` must be empty afterwards."""
    return Sweep(scenario, mode, url, servers, client_factory, closed_within).go()


def target(servers, base, tls=False, http2=False, proxy=None, uds=False, **options):
    """Where the requests go: (url, servers to watch, client factory)."""
    if uds:
        origin = servers.uds
        options["uds"] = origin.uds
    elif http2:
        origin = servers.http2
    elif tls or proxy == "connect":
        origin = servers.tls
    else:
        origin = servers.plain
    watched = [origin]
    if proxy is not None:
        relay = servers.socks if proxy == "socks" else servers.proxy
        options["proxy"] = relay.url
        # A tunnel ends here first, and at the origin a little later.
        watched.insert(0, relay)
    context = servers.client_context()

    def factory():
        return compat.make_client(base, context, http2=http2, **options)

    return origin.url, watched, factory


def mode_problem(mode):
    """Why a mode cannot be tried here; None where it can."""
    if mode == "trio":
        return compat.trio_problem()
    if mode == "scope":
        return compat.scope_problem()
    return None


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tests.support.sweep")
    parser.add_argument("--net", choices=["patch", "class", "none"], default="patch")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--http2", action="store_true")
    parser.add_argument("--proxy", choices=["forward", "connect", "socks"])
    parser.add_argument("--uds", action="store_true")
    parser.add_argument("--bound", type=float, default=CLOSED_WITHIN, help="seconds a leak costs")
    parser.add_argument("-v", action="store_true", dest="verbose")
    options = parser.parse_args(arguments)

    base = httpx.AsyncClient
    if options.net == "patch":
        import httpx_cancel_safe

        print("patch():", httpx_cancel_safe.patch())
    elif options.net == "class":
        import httpx_cancel_safe

        base = httpx_cancel_safe.SafeAsyncClient

    modes = options.modes.split(",")
    for mode in list(modes):
        problem = mode_problem(mode)
        if problem:
            print("%s: skipped, %s" % (mode, problem))
            modes.remove(mode)
    results = []
    print("%-18s" % "" + "".join("%12s" % mode for mode in modes))
    with serve() as servers:
        url, watched, factory = target(
            servers,
            base,
            tls=options.tls,
            http2=options.http2,
            proxy=options.proxy,
            uds=options.uds,
            pool_timeout=options.bound,
        )
        for name in options.scenarios.split(","):
            print("%-18s" % name, end="", flush=True)
            for mode in modes:
                result = sweep(SCENARIOS[name], mode, url, watched, factory, options.bound)
                results.append(result)
                swallowed = "+%ds" % len(result.swallowed) if result.swallowed else ""
                cell = "%d/%d%s" % (result.faulty_points, result.points, swallowed)
                print("%12s" % cell, end="", flush=True)
            print()
    print("%-18s" % "all", end="")
    for mode in modes:
        of_mode = [result for result in results if result.mode == mode]
        faulty = sum(result.faulty_points for result in of_mode)
        cell = "%d/%d" % (faulty, sum(result.points for result in of_mode))
        print("%12s" % cell, end="")
    print()
    if options.verbose:
        for result in results:
            if result.faults:
                print(result)
    return 1 if any(result.faults for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
