"""Random programs on one client, each made from a seed: what runs, on which server, and how it is cancelled.

    python -m tests.random_programs --rounds 500 --seed 0 --guard patch --backend asyncio
    python -m tests.random_programs --replay 17 --keep 2,5 --guard patch --backend asyncio

A program starts its steps one after another and lets them run side by side. When all have ended, it looks at
the pool and the server: the books are right, as many requests as the pool has connections succeed at once, no
task is left, `aclose()` leaves no socket, and nothing was warned about or logged. A program that fails loses
steps for as long as it goes on to fail, and is shown with the command that runs it again.
"""

import argparse
import asyncio
import collections
import contextlib
import faulthandler
import functools
import gc
import random
import sys
import time
import traceback

import anyio
import httpx

import httpx_cancel_safe

from .support import compat, stepping
from .support.compat import HTTPX
from .support.noise import Noise
from .support.scenarios import AwaitingAuth, hook_that_cleans_up
from .support.servers import FAULTS, raw_server
from .support.stepping import Dropped, drive, passes

ORIGINS = 3
SECONDS = 10  # For one program; the slowest needs a twentieth of it.
POOL_TIMEOUT = 8  # Nobody waits that long for a connection, unless one was lost.

# What Python, anyio and trio say of async generators that are dropped, with and without us.
OF_OTHERS = ("generator is already running", "exit cancel scope in a different task", "Async generator")
# anyio, in a coroutine that is dropped after its loop; asyncio, of what wait_for() goes on with; httpx 0.15 to 0.17.
OF_OTHERS += ("unknown async library", "no running event loop", "already awaited coroutine", "Unclosed <httpx.")

Config = collections.namedtuple("Config", "connections keepalive expiry end")
Step = collections.namedtuple("Step", "number pause kind origin path cut at gap")

PATHS = ["/ok"] * 5 + ["/ok?ms=3", "/chunks?n=3", "/chunks?n=60&each=2", "/close", "/redirect"] + list(FAULTS)
KINDS = ["get"] * 4 + ["post", "post_slowly", "auth", "stream", "stream_part", "stream_unread"]
KINDS += ["stream_raises", "send", "generator", "generator_closed", "generator_dropped", "hook_waits"]
KINDS += ["hook_raises", "pair", "again"]
CUTS = ["none"] * 6 + ["cancel", "cancel_now", "twice", "thrice", "wait_for", "deadline", "scope"]
CUTS += ["nested", "shielded", "group", "close", "drop"]
ENDS = ["quiet"] * 6 + ["cancelled_then_closed", "closed_then_cancelled"]
SEVERAL = ("auth", "again", "pair")  # More than one request.
WAITING = ("auth", "hook_waits", "pair", "post_slowly")  # These wait as they end, which a dropped coroutine cannot.


def make(seed):
    """Make the program that belongs to a seed."""
    draw = random.Random(seed)
    connections = draw.randint(1, 8)
    keepalive = draw.choice([0, connections, connections, draw.randint(0, connections)])
    config = Config(connections, keepalive, draw.choice([None, None, 5, 0.003]), draw.choice(ENDS))
    steps = []
    for number in range(draw.randint(3, 24)):
        pause = draw.choice(["0", "0", "1", "2", "5", "2ms", "5ms", "all"] if number else ["0"])
        cut, kind = draw.choice(CUTS), draw.choice(KINDS)
        if cut in ("close", "drop") and kind in WAITING:
            kind = "get"
        at = draw.choice([1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30])
        origin, path = draw.randrange(ORIGINS), draw.choice(PATHS)
        steps.append(Step(number, pause, kind, origin, path, cut, at, draw.randint(1, 5)))
    return config, steps


class Boom(Exception):
    """What hooks, blocks and neighbours raise."""


async def hook(message):
    if "hook=waits" in str(message.url):
        await hook_that_cleans_up(message)
    elif "hook=raises" in str(message.url):
        raise Boom


async def slow_body():
    try:
        for _ in range(3):
            yield b"hello"
            await anyio.sleep(0.001)
    finally:
        await anyio.sleep(0)


async def pieces(client, url, limits):
    async with client.stream("GET", url, **limits) as response:
        async for piece in response.aiter_bytes():
            yield piece


async def request(client, kind, url):
    """Do what a step does; return what came back, or None where nothing is compared."""
    limits = {"timeout": httpx.Timeout(SECONDS, read=0.15, pool=POOL_TIMEOUT)} if "/hang" in url else {}
    if kind in ("get", "hook_waits", "hook_raises", "auth"):
        return (await client.get(url, auth=AwaitingAuth() if kind == "auth" else None, **limits)).text
    if kind in ("post", "post_slowly"):
        body = slow_body() if kind == "post_slowly" else b"hello" * 3
        return (await client.post(url, content=body, **limits)).text
    if kind == "send" and not limits:
        response = await client.send(client.build_request("GET", url), stream=True)
        try:
            return (await response.aread()).decode()
        finally:
            await response.aclose()
    if kind.startswith(("stream", "send")):
        async with client.stream("GET", url, **limits) as response:
            if kind == "stream_raises":
                raise Boom
            if kind != "stream_unread":
                async for _ in response.aiter_bytes():
                    if kind == "stream_part":
                        break
    elif kind.startswith("generator"):
        generator = pieces(client, url, limits)
        async for _ in generator:
            if kind != "generator":
                break
        if kind == "generator_closed":
            await generator.aclose()
    elif kind == "pair":
        try:
            async with anyio.create_task_group() as group:
                for _ in range(2):
                    group.start_soon(functools.partial(client.get, url, **limits))
        except BaseException as exc:
            if type(exc).__name__ != "ExceptionGroup":
                raise
            raise exc.exceptions[0] from None  # anyio 3's is no Exception: on Python 3.6 it would end the loop.
    elif kind == "again":
        try:
            await client.get(url + "&hook=raises", **limits)
        except Boom:
            return (await client.get(url, **limits)).text


async def cut_short(call, step, cancel, on):
    """Run `call()` as its step says; `cancel` ends its task."""
    cut, at, seconds = step.cut, step.at, step.at / 1000
    if on.is_trio and cut in ("close", "drop"):
        cut = "scope"  # trio forbids to drop what has a scope or a nursery open.

    def later(function, passes=0):
        on.soon((lambda: later(function, passes - 1)) if passes else function)

    def cancel_later():
        for after in (0, step.gap, step.gap + 2)[: {"cancel": 1, "twice": 2, "thrice": 3}[cut]]:
            later(cancel, after)

    def drop():
        raise Dropped

    async def struck_by(strike):
        """Run `call()`, and strike when it is suspended for the `at`-th time."""
        return await drive(call(), lambda count: strike() if count == at else None, close=cut != "drop")

    if cut == "none":
        return await call()
    strikes = {"cancel": cancel_later, "twice": cancel_later, "thrice": cancel_later, "cancel_now": cancel}
    strikes.update(close=drop, drop=drop)
    if cut in strikes:
        with contextlib.suppress(Dropped):
            return await struck_by(strikes[cut])
    elif cut == "wait_for" and not on.is_trio:
        task = asyncio.ensure_future(call())
        # Up to Python 3.8 nobody asks for its exception when it is cancelled from outside.
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.wait_for(task, seconds)
    elif cut in ("deadline", "wait_for"):
        with anyio.move_on_after(seconds):
            return await call()
    elif cut == "scope":
        with anyio.CancelScope() as scope:
            return await struck_by(lambda: later(scope.cancel))
    elif cut in ("nested", "shielded"):
        with anyio.move_on_after(seconds):
            with anyio.CancelScope(deadline=anyio.current_time() + step.gap / 500, shield=cut == "shielded"):
                return await call()
    elif cut == "group":
        struck = anyio.Event()

        async def neighbour():
            await struck.wait()
            raise Boom

        async def run():
            await struck_by(struck.set)
            struck.set()

        async with anyio.create_task_group() as group:
            group.start_soon(neighbour)
            group.start_soon(run)
    return None


class OnAsyncio:
    """The tasks of a program on asyncio."""

    Cancelled = asyncio.CancelledError
    is_trio = False

    def __init__(self):
        self.loop = asyncio.get_event_loop()
        self.soon = self.loop.call_soon
        self.tasks = []
        self.before = compat.all_tasks(self.loop)

    def start(self, function):
        async def run():
            await function(task.cancel)

        task = self.loop.create_task(run())  # Whose cancel() `function` gets.
        self.tasks.append(task)

    def cancel_all(self):
        for task in self.tasks:
            task.cancel()

    async def wait(self, seconds):
        return not (self.tasks and (await asyncio.wait(self.tasks, timeout=seconds))[1])

    def left(self):
        return ["left: %r" % task for task in compat.all_tasks(self.loop) - self.before]


class OnTrio:
    """The same on trio."""

    is_trio = True

    def __init__(self, nursery):
        import trio

        self.Cancelled = trio.Cancelled
        self.trio, self.nursery, self.scopes = trio, nursery, []
        self.soon = trio.lowlevel.current_trio_token().run_sync_soon
        self.before = trio.lowlevel.current_statistics().tasks_living

    def start(self, function):
        scope = self.trio.CancelScope()
        self.scopes.append(scope)

        async def run():
            with contextlib.suppress(BaseException), scope:  # What it raises is noted already.
                await function(scope.cancel)
            self.scopes.remove(scope)

        self.nursery.start_soon(run)

    def cancel_all(self):
        for scope in self.scopes:
            scope.cancel()

    async def wait(self, seconds):
        with self.trio.move_on_after(seconds):
            while self.scopes:
                await self.trio.sleep(0.001)
        return not self.scopes

    def left(self):
        living = self.trio.lowlevel.current_statistics().tasks_living
        return ["tasks: %d" % (living - self.before)] if living > self.before else []


async def on_trio(function, *arguments):
    """Run a function that gets a class like `OnAsyncio`."""
    import trio

    async with trio.open_nursery() as nursery:
        await function(functools.partial(OnTrio, nursery), *arguments)
        nursery.cancel_scope.cancel()


def verdict(step, outcome, expected, Cancelled):
    """Say what is wrong with how a step ended; None where nothing is."""
    if not isinstance(outcome, type):
        is_right = None in (outcome, expected) or outcome == expected
        return None if is_right else "got %r instead of %r" % (outcome, expected)
    is_alone = step.cut == "none"
    if outcome.__name__.endswith(("ExceptionGroup", "MultiError")):  # Of a pair, or of two addresses.
        outcome = httpx.ReadTimeout
    if issubclass(outcome, Boom):
        is_right = step.kind in ("hook_raises", "stream_raises") or step.cut == "group"
    elif issubclass(outcome, httpx.TransportError) and outcome is not httpx.PoolTimeout:
        is_right = step.path in FAULTS or step.path.startswith("/chunks?n=60") or not is_alone
    else:
        is_right = issubclass(outcome, (Cancelled, asyncio.TimeoutError)) and not is_alone
    return None if is_right else "ended with %s" % outcome.__name__


async def play(config, steps, server, base, tasks, running_on):
    """Run a program; return the faults that it found.

    `running_on` gets a number for each request that went on after the pool was closed under it, as with plain httpx.
    """
    on = tasks()
    expiry = config.expiry if HTTPX >= (0, 17) else None
    limits = {"limit": config.connections, "keepalive": config.keepalive, "expiry": expiry}
    client = compat.make_client(base, False, timeout=SECONDS, pool_timeout=POOL_TIMEOUT, **limits)
    client.event_hooks = {"request": [hook]}
    outcomes, closing = {}, False

    def start(step):
        path = step.path + ("&" if "?" in step.path else "?") + "step=%d" % step.number
        if step.kind.startswith("hook"):
            path += "&hook=" + step.kind[5:]
        url = server.urls[step.origin] + path
        expected = None  # It is compared where it can be told.
        if step.path == "/redirect":
            url += "&to=%s/ok" % server.urls[(step.origin + 1) % ORIGINS]
        elif step.path in ("/ok", "/ok?ms=3", "/close"):
            expected = ("POST %s 15" if step.kind.startswith("post") else "GET %s 0") % path

        async def run(cancel):
            outcomes[step] = "still runs"
            try:
                outcome = await cut_short(lambda: request(client, step.kind, url), step, cancel, on)
                outcomes[step] = verdict(step, outcome, expected, on.Cancelled)
                running_on.append(2 * closing)  # A redirect leaves two.
            except BaseException as exc:
                outcomes[step] = verdict(step, type(exc), expected, on.Cancelled)
                # Part of it may have succeeded before.
                several = step.path == "/redirect" or step.kind in SEVERAL or step.cut == "group"
                running_on.append(2 * closing * several)
                where = "%s:%d" % traceback.extract_tb(exc.__traceback__)[-1][:2]
                if "_multierror" in where:
                    outcomes[step] = None  # trio 0.23 cannot always put two exceptions together.
                elif outcomes[step]:
                    outcomes[step] += " at " + where
                if on.is_trio and not isinstance(exc, Exception):
                    raise

        on.start(run)

    for step in steps:
        if step.pause == "all":
            await on.wait(SECONDS)
        elif step.pause.endswith("ms"):
            await anyio.sleep(int(step.pause[:-2]) / 1000)
        else:
            await passes(int(step.pause))
        start(step)
    faults = []
    if config.end == "cancelled_then_closed":
        closing = compat.WAIT_FOR_SWALLOWS and not on.is_trio  # Then a request can go on though it was cancelled.
        on.cancel_all()
        if on.is_trio or any(step.kind == "pair" or step.cut == "group" for step in steps):
            await on.wait(SECONDS - 1)  # The parts of a group, and trio's tasks, take some passes.
        await client.aclose()
    elif config.end == "closed_then_cancelled":
        closing = True
        with contextlib.suppress(RuntimeError):  # Plain httpx says that requests are in flight.
            await client.aclose()
        await passes(3)
        on.cancel_all()
    if not await on.wait(SECONDS - 1):
        faults += ["step %d still runs" % step.number for step in steps if outcomes.get(step) == "still runs"]
        on.cancel_all()
        await on.wait(1)
        return faults
    await passes(30)
    until = time.monotonic() + 1
    while on.left() and time.monotonic() < until:  # wait_for() leaves a task behind that has swallowed its cancel.
        await anyio.sleep(0.002)
    faults += compat.wrong_books(client) + on.left()
    if config.end == "quiet":
        faults += ["step %d %s" % (step.number, said) for step, said in sorted(outcomes.items()) if said]
        faults += await as_many_as_it_may(client, server, config.connections) + compat.wrong_books(client)
        await client.aclose()
    until = time.monotonic() + 1
    while server.open_connections > sum(running_on) and time.monotonic() < until:
        await anyio.sleep(0.001)
    if server.open_connections > sum(running_on):
        faults.append("sockets left: %d" % server.open_connections)
    return faults


async def as_many_as_it_may(client, server, number):
    """Hold as many responses at once as the pool has connections."""
    responses, faults = [], []
    client.timeout = httpx.Timeout(SECONDS / 5)
    try:
        for one in range(number):
            probe = client.build_request("GET", server.urls[one % ORIGINS] + "/ok")
            with anyio.fail_after(SECONDS / 5):
                responses.append(await client.send(probe, stream=True))
    except Exception as exc:
        faults.append("request %d of %d afterwards: %r" % (one + 1, number, exc))
    for response in responses:
        await response.aclose()
    return faults


def run(config, steps, server, base, backend):
    """Run a program on a loop of its own; return its faults."""
    server.reset()
    faults, running_on = [], []

    async def play_on(tasks):
        faults.extend(await play(config, steps, server, base, tasks, running_on))

    async def main():
        with anyio.move_on_after(SECONDS) as scope:
            await (on_trio(play_on) if backend == "trio" else play_on(OnAsyncio))
        if scope.cancel_called:
            faults.append("stands still")

    faulthandler.dump_traceback_later(6 * SECONDS, exit=True)
    with Noise(None) as noise:
        try:
            stepping.run(noise, backend, main, seconds=None)
        except Exception as exc:
            faults.append("the program ended with %r" % exc)
        gc.collect()
        heard = noise.take()
    faulthandler.cancel_dump_traceback_later()
    if config.end == "closed_then_cancelled" or sum(running_on):  # The server has counted.
        heard = [one for one in heard if "unclosed" not in one]
    return faults + [one for one in heard if not any(words in one for words in OF_OTHERS)]


def shrink(steps, fails):
    """Leave out each step without which the rest fails as well."""
    for step in list(steps):
        fewer = [one for one in steps if one != step]
        if fewer and fails(fewer):
            steps = fewer
    return steps


def explain(seed, server, base, guard, backend):
    """Return the smallest program found that fails as the one of this seed does, and how to run it again."""
    config, steps = make(seed)
    steps = shrink(steps, lambda fewer: run(config, fewer, server, base, backend))
    keep = ",".join(str(step.number) for step in steps)
    command = "python -m tests.random_programs --replay %d --keep %s --guard %s --backend %s"
    lines = [command % (seed, keep, guard, backend), "  %s" % (config,)]
    return "\n".join(lines + ["  %s" % (step,) for step in steps])


def base_class(guard):
    """The client class for a guard, which is switched on; with `none` plain httpx."""
    if guard == "patch":
        httpx_cancel_safe.patch()
    return httpx_cancel_safe.SafeAsyncClient if guard == "class" else httpx.AsyncClient


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="the first one; each round takes the next")
    parser.add_argument("--guard", choices=["patch", "class", "none"], default="patch")
    parser.add_argument("--backend", choices=["asyncio", "trio", "uvloop"], default="asyncio")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run this one alone")
    parser.add_argument("--keep", help="with --replay: only these steps, as 2,5")
    given = parser.parse_args()
    base = base_class(given.guard)
    failed, requests, cut, began = 0, 0, 0, time.monotonic()
    seeds = range(given.seed, given.seed + given.rounds) if given.replay is None else [given.replay]
    with raw_server(ORIGINS) as server:
        for seed in seeds:
            config, steps = make(seed)
            if given.keep:
                kept = set(map(int, given.keep.split(",")))
                steps = [step for step in steps if step.number in kept]
            requests += len(steps)
            cut += sum(step.cut != "none" for step in steps)
            faults = run(config, steps, server, base, given.backend)
            if faults:
                failed += 1
                print("seed %d: %s" % (seed, "; ".join(faults)[: 300 if given.replay is None else None]), flush=True)
                if failed <= 3 and not given.keep:
                    print(explain(seed, server, base, given.guard, given.backend), flush=True)
    counts = (len(seeds), requests, cut, failed, time.monotonic() - began)
    print("%d programs, %d requests, %d of them cut short, %d failed, %.0f s" % counts)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
