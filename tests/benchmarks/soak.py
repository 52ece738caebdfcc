"""A hundred thousand cancelled requests in one process: does anything grow?

    python -m tests.benchmarks soak [--requests N] [--plain]

Twenty requests at a time go to three origins over a pool of 8 that keeps at most 3 idle connections, so that many are
evicted, and are cancelled at random: once, often, by time-outs, scopes, failing groups, closed async generators and
dropped coroutines, on asyncio and on trio. When all twenty have ended, the pool must list no request, and no connection
that is not idle. After each tenth an ordinary request must succeed, and the tasks, open files, memory and objects are
counted: after the first tenth they must stay as they are.
"""

import asyncio
import collections
import contextlib
import functools
import gc
import os
import random

import anyio

from .. import random_programs
from ..random_programs import Boom, OnAsyncio, Step, cut_short, on_trio
from ..support import compat, stepping
from ..support.compat import httpx
from . import common

AT_ONCE = 20
PATHS = ["", "post", "hang", "hang/body", "hang/redirect"]
WAYS = {
    "asyncio": ["cancel", "thrice", "scope", "wait_for", "group", "generator", "close"],
    "trio": ["scope", "group", "generator"],
}


async def answer(reader, writer):
    while True:
        path = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1]
        if path == b"/hang/redirect":
            writer.write(b"HTTP/1.1 302 Found\r\nLocation: /hang/body\r\nContent-Length: 0\r\n\r\n")
        elif path in (b"/hang", b"/hang/body"):
            writer.write(b"" if path == b"/hang" else b"HTTP/1.1 200 OK\r\nContent-Length: 4096\r\n\r\nhalf of it")
            await reader.read()
            return
        else:
            await reader.readexactly(15 if path == b"/post" else 0)
            writer.write(common.ANSWER)


def server():
    return common.server("soak", ports=3)


class Tenth:
    """What happened in a tenth, and what there is after it.

    "lost" are the cancels of tasks that `asyncio.wait_for()` swallowed, up to Python 3.11 (cpython #86296).
    """

    def __init__(self):
        self.cancelled = self.finished = self.lost = self.orphans = 0
        self.failures = collections.Counter()
        self.answered = True

    def take_stock(self, loop):
        with open("/proc/self/statm") as file:
            self.memory = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        self.tasks, self.files = len(compat.all_tasks(loop)), len(os.listdir("/proc/self/fd"))
        while gc.collect():  # What a finalizer lets go is garbage in the next pass.
            pass
        kinds = map(type, gc.get_objects())
        self.objects = collections.Counter("%s.%s" % (kind.__module__, kind.__qualname__) for kind in kinds)


async def cancel_one(client, urls, way, dice, counts, tasks, cancel):
    path = dice.choice(PATHS)
    kind = "post" if path == "post" else dice.choice(["get", "stream"])
    if way == "close":  # Not while a body is read: another task closes httpx's own generators then.
        path, kind = "hang", "get"
    elif way == "generator":
        path, kind, way = "hang/body", "generator_closed", "none"
    step, url, struck = Step(0, "0", kind, 0, path, way, dice.randint(1, 10), 2), dice.choice(urls) + path, []

    async def request():
        counts.cancelled += 1
        try:
            await random_programs.request(client, kind, url)
        except httpx.HTTPError as exc:
            if not ("hang" in path and isinstance(exc, httpx.ReadTimeout)):
                counts.failures[repr(exc)] += 1
        if kind != "generator_closed":
            counts.cancelled -= 1
            counts.finished += 1
            counts.lost += len(struck)

    with contextlib.suppress(Boom, asyncio.TimeoutError):
        await cut_short(request, step, lambda: struck.append(cancel()), tasks)


async def cancel_many(make_tasks, client, urls, ways, number, dice, counts):
    """Cancel so many requests, but do not try for ever; look for orphans in between."""
    target = counts.cancelled + number
    for _ in range(int(4 * number / AT_ONCE)):
        tasks = make_tasks()
        for _ in range(AT_ONCE):
            tasks.start(functools.partial(cancel_one, client, urls, dice.choice(ways), dice, counts, tasks))
        await tasks.wait(0.05)
        tasks.cancel_all()
        await tasks.wait(60)
        await stepping.passes()
        states = compat.connections_of(client)
        counts.orphans += compat.requests_of(client) + len(states) - states.count("idle")
        if counts.cancelled >= target:
            break
    try:
        for url in urls:
            counts.answered &= (await client.get(url)).status_code == 200
    except httpx.HTTPError:
        counts.answered = False


def make_client():
    # One idle connection for each origin: whenever they are counted, there are as many.
    return compat.make_client(httpx.AsyncClient, False, limit=8, keepalive=3, timeout=5.0)


async def cancel_many_on_trio(*arguments):
    client = make_client()
    await on_trio(cancel_many, client, *arguments)
    with contextlib.suppress(RuntimeError):
        await client.aclose()


def soak(urls, requests, tenths=10, backends=("asyncio", "trio"), seed=0):
    """Yield a `Tenth` for each tenth of the `requests`; one client for all of asyncio."""
    dice = random.Random(seed)
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)
    asyncio.set_event_loop(loop)
    client = make_client()
    try:
        for _ in range(tenths):
            found = Tenth()
            for backend in backends:
                arguments = urls, WAYS[backend], requests / tenths / len(backends), dice, found
                if backend == "trio":
                    anyio.run(cancel_many_on_trio, *arguments, backend="trio")
                else:
                    loop.run_until_complete(cancel_many(OnAsyncio, client, *arguments))
                    gc.collect()  # Generators of httpx that were left half-way: the loop closes them.
                    loop.run_until_complete(asyncio.sleep(0.05))  # What is closing.
            found.take_stock(loop)
            yield found
    finally:
        with contextlib.suppress(RuntimeError):
            loop.run_until_complete(client.aclose())
        loop.run_until_complete(loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        loop.close()


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--requests", type=int, default=100000)
    parser.add_argument("--plain", action="store_true", help="without the patch")
    options = parser.parse_args()
    if not options.plain:
        __import__("httpx_cancel_safe").patch()
    backends = ["asyncio"] if compat.trio_problem() else ["asyncio", "trio"]
    common.head("cancelled", "finished", "failed", "lost", "orphans", "answered", "tasks", "files", "MB", "objects")
    tenths = []
    with server() as urls:
        for one in soak(urls, options.requests, backends=backends):
            tenths.append(one)
            cells = [one.cancelled, one.finished, sum(one.failures.values()), one.lost, one.orphans, one.answered]
            common.row(*cells, one.tasks, one.files, "%.1f" % (one.memory / 1e6), sum(one.objects.values()))
    print("on", " and ".join(backends))
    print("grown since the first tenth:", dict((tenths[-1].objects - tenths[0].objects).most_common(8)) or "nothing")
    print("failures:", dict(sum((one.failures for one in tenths), collections.Counter())) or "none")
