"""A hundred thousand cancelled requests in one process: does anything grow?

    python -m tests.benchmarks soak [--requests N] [--plain]

Twenty workers send requests to three origins over a pool of 8 that keeps at most 5 idle connections, so that many are
evicted, and cancel them after a random number of suspensions: once, often, by time-outs, scopes, failing groups, closed
async generators and dropped coroutines, on asyncio and on trio. Twenty times in each tenth, when nothing is under way,
the pool must list no request, and no connection that is not idle. After each tenth an ordinary request must succeed,
and the tasks, open files, memory and objects are counted: after the first tenth they must stay as they are.
"""

import asyncio
import collections
import contextlib
import gc
import os
import random

import anyio

from ..support import compat, stepping
from ..support.compat import httpx
from . import common

WORKERS = 20
CHECKS = 20  # In a tenth.
PATHS = ["", "hang", "body", "redirect", "post"]
WAYS = {
    "asyncio": ["once", "often", "scope", "timeout", "group", "generator", "dropped"],
    "trio": ["scope", "group", "generator"],
}


async def answer(reader, writer):
    while True:
        path = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1]
        if path == b"/redirect":
            writer.write(b"HTTP/1.1 302 Found\r\nLocation: /body\r\nContent-Length: 0\r\n\r\n")
        elif path in (b"/hang", b"/body"):
            writer.write(b"" if path == b"/hang" else b"HTTP/1.1 200 OK\r\nContent-Length: 4096\r\n\r\nhalf of it")
            await reader.read()
            return
        else:
            await reader.readexactly(4096 if path == b"/post" else 0)
            writer.write(common.ANSWER)


def server():
    return common.server("soak", ports=3)


class Tenth:
    """What happened in a tenth, and what there is after it.

    "lost" are cancels that `asyncio.wait_for()` swallowed, up to Python 3.11 (cpython #86296), and that were sent
    again. Where that happens to a scope's or a time-out's, the request fails later, with ReadTimeout.
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


@contextlib.contextmanager
def counted(counts):
    counts.cancelled += 1
    try:
        yield
    except httpx.HTTPError as exc:
        counts.failures[repr(exc)] += 1
    counts.cancelled -= 1
    counts.finished += 1


def what(url):
    if url.endswith("post"):
        return dict(compat.content(b"x" * 4096), method="POST", url=url)
    return {"method": "GET", "url": url}


async def request(client, url, counts):
    with counted(counts):
        await client.request(**what(url))


async def read(client, url, counts):
    with counted(counts):
        async with client.stream(**what(url)) as response:
            async for part in response.aiter_bytes():
                yield part


async def streamed(client, url, counts):
    async for _ in read(client, url, counts):
        pass


async def cancel_one(client, urls, way, dice, counts):
    # Dropped not while a body is read: another task closes httpx's own generators then.
    path = {"dropped": "hang", "generator": "body"}.get(way) or dice.choice(PATHS)
    arguments, at = (client, dice.choice(urls) + path, counts), dice.randint(1, 30)
    send = dice.choice([request, streamed])
    if way == "timeout":
        await stepping.cut_short(at / 3000, send(*arguments))
    elif way == "scope":
        with anyio.move_on_after(0.05) as scope:  # Some hang before they have been suspended so often.
            await stepping.drive(send(*arguments), lambda count: count == at and scope.cancel())
    elif way == "group":
        with contextlib.suppress(ZeroDivisionError):
            async with anyio.create_task_group() as group:
                group.start_soon(send, *arguments)
                await stepping.passes(at)
                raise ZeroDivisionError
    elif way == "generator":
        parts = read(*arguments)
        async for _ in parts:
            await parts.aclose()
    else:
        work = stepping.dropped_at(at, request(*arguments)) if way == "dropped" else send(*arguments)
        task = stepping.start(work)
        for passes in (2 * at, 1, 2, 4) if way == "often" else (2 * at,):
            await stepping.passes(passes)
            task.cancel()
        while not (await asyncio.wait([task], timeout=0.5))[0]:
            counts.lost += 1
            task.cancel()


async def cancel_many(client, urls, ways, number, dice, counts):
    """Have workers cancel so many requests; look for orphans after each part."""
    before, tries = counts.cancelled, 0

    async def worker(target):
        nonlocal tries
        while counts.cancelled < target and tries < 4 * number:
            tries += 1
            await cancel_one(client, urls, dice.choice(ways), dice, counts)

    for part in range(CHECKS):
        async with anyio.create_task_group() as group:
            for _ in range(WORKERS):
                group.start_soon(worker, before + (part + 1) * number / CHECKS)
        await stepping.passes()
        states = compat.connections_of(client)
        counts.orphans += compat.requests_of(client) + len(states) - states.count("idle")
    try:
        for url in urls:
            counts.answered &= (await client.get(url)).status_code == 200
    except httpx.HTTPError:
        counts.answered = False


def make_client():
    return compat.make_client(httpx.AsyncClient, False, limit=8, keepalive=5, timeout=5.0)


async def on_trio(*arguments):
    client = make_client()
    await cancel_many(client, *arguments)
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
                    anyio.run(on_trio, *arguments, backend="trio")
                else:
                    loop.run_until_complete(cancel_many(client, *arguments))
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


def growth(first, last):
    """How many objects of each type there are more in `last`, those that grew."""
    return last.objects - first.objects


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
    print("grown since the first tenth:", dict(growth(tenths[0], tenths[-1]).most_common(8)) or "nothing")
    print("failures:", dict(sum((one.failures for one in tenths), collections.Counter())) or "none")
