"""A hundred thousand cancelled requests in one process: does anything grow?

    PYTHONPATH=src:. python -m tests.benchmarks.soak [--requests N] [--no-net]

Requests to a loopback server are cancelled in every phase, once, twice, by time-outs and by scopes,
twenty at a time on a pool of ten, on asyncio and on trio where it works. After each tenth the tasks,
the open files, the memory and the objects of each type are counted. After the first tenth they must
stay as they are. At the end of each tenth an ordinary request must get an answer.
"""

import argparse
import asyncio
import collections
import contextlib
import gc
import os
import random
import subprocess
import sys
import time

import anyio

from ..support import compat
from ..support.compat import httpx
from .serving import serve

WORKERS = 20
POOL = 10
PATHS = ["/", "/hang", "/body", "/redirect", "/post"]
LOST = 0.5  # Seconds after which a cancel has been swallowed, and is sent again.
WAYS = ["once", "twice", "timeout", "scope"]

Tenth = collections.namedtuple(
    "Tenth", "cancelled finished failed lost answered tasks files memory objects failures seconds"
)


# -- The server --------------------------------------------------------------------------------


async def answer(reader, writer):
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split(b" ", 2)[1]
        if path == b"/hang":
            await reader.read()
            return
        if path == b"/redirect":
            writer.write(b"HTTP/1.1 302 Found\r\nLocation: /body\r\nContent-Length: 0\r\n\r\n")
        elif path == b"/body":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4096\r\n\r\nhalf of it")
            await reader.read()
            return
        else:
            if path == b"/post":
                await reader.readexactly(4096)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        await writer.drain()


@contextlib.contextmanager
def server():
    """A server in a process of its own, so that its sockets are not counted; its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__ if __name__ != "__main__" else __spec__.name, "--serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield "http://127.0.0.1:%d" % int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


# -- The requests ------------------------------------------------------------------------------


class Counts:
    def __init__(self, to_cancel):
        self.to_cancel = to_cancel
        self.tries = self.cancelled = self.finished = self.failed = self.lost = 0
        self.failures = collections.Counter()


async def request(client, url, path, stream, counts):
    done = False
    try:
        if path == "/post":
            content = {"content": b"x" * 4096} if compat.HTTPX >= (0, 18) else {"data": b"x" * 4096}
            await client.post(url + path, **content)
        elif stream:
            async with client.stream("GET", url + path) as response:
                body = response.aiter_bytes()
                try:
                    async for _ in body:
                        pass
                finally:
                    await body.aclose()
        else:
            await client.get(url + path)
        done = True
        counts.finished += 1
    except (anyio.get_cancelled_exc_class(), asyncio.CancelledError):
        raise  # An Exception on Python 3.6 and 3.7.
    except Exception as exc:
        done = True
        counts.failed += 1
        counts.failures[repr(exc)] += 1
    finally:
        if not done:
            counts.cancelled += 1


async def moment(dice):
    """Some passes of the loop, or some milliseconds."""
    if dice.random() < 0.9:
        for _ in range(dice.randint(0, 25)):
            await anyio.sleep(0)
    else:
        await anyio.sleep(dice.uniform(0, 0.01))


async def cancel_one(client, url, dice, counts, ways):
    way = dice.choice(ways)
    work = request(client, url, dice.choice(PATHS), dice.random() < 0.5, counts)
    if way == "scope":

        async def run():
            await work

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await moment(dice)
            group.cancel_scope.cancel()
        return
    loop = asyncio.get_event_loop()
    task = loop.create_task(work)
    if way == "timeout":
        try:
            await asyncio.wait_for(asyncio.shield(task), dice.uniform(0.0005, 0.01))
        except asyncio.TimeoutError:
            pass
    else:
        await moment(dice)
    task.cancel()
    if way == "twice":
        for _ in range(dice.randint(1, 4)):
            await asyncio.sleep(0)
        task.cancel()
    done, _ = await asyncio.wait([task], timeout=LOST)
    while not done:
        counts.lost += 1  # anyio 3 takes a cancel that arrives as it connects for its own.
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=LOST)
    if not task.cancelled():
        task.result()


async def cancel_many(client, url, dice, counts, ways):
    async def worker():
        while counts.cancelled < counts.to_cancel and counts.tries < 3 * counts.to_cancel:
            counts.tries += 1
            await cancel_one(client, url, dice, counts, ways)

    async with anyio.create_task_group() as group:
        for _ in range(WORKERS):
            group.start_soon(worker)


async def is_answered(client, url):
    try:
        return (await client.get(url + "/")).status_code == 200
    except Exception:
        return False


def make_client():
    return compat.make_client(httpx.AsyncClient, True, limit=POOL, pool_timeout=0.5)


def open_files():
    for directory in ("/proc/self/fd", "/dev/fd"):
        if os.path.isdir(directory):
            return len(os.listdir(directory))
    return 0


def memory():
    """Resident bytes; 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def objects():
    gc.collect()
    gc.collect()
    kinds = collections.Counter(type(one) for one in gc.get_objects())
    named = collections.Counter()
    for kind, number in kinds.items():
        named["{}.{}".format(kind.__module__, kind.__qualname__)] += number
    return named


def soak(url, requests, tenths=10, backends=("asyncio", "trio"), seed=0):
    """Yield a `Tenth` for each tenth of the `requests`; one client for all of asyncio."""
    dice = random.Random(seed)
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)
    asyncio.set_event_loop(loop)
    client = make_client()
    try:
        for _ in range(tenths):
            began = time.perf_counter()
            all_counts, answered = [], True
            for backend in backends:
                counts = Counts(requests / tenths / len(backends))
                all_counts.append(counts)
                if backend == "trio":
                    answered &= anyio.run(_on_trio, url, dice, counts, backend="trio")
                else:
                    ways = WAYS if compat.scope_problem() is None else WAYS[:3]
                    loop.run_until_complete(cancel_many(client, url, dice, counts, ways))
                    answered &= loop.run_until_complete(is_answered(client, url))
                    loop.run_until_complete(asyncio.sleep(0.05))  # What is closing.
            found = objects()
            total = lambda name: sum(getattr(one, name) for one in all_counts)  # noqa: E731
            yield Tenth(
                *(total(name) for name in ("cancelled", "finished", "failed", "lost")),
                answered,
                len(compat.all_tasks(loop)),
                open_files(),
                memory(),
                found,
                sum((one.failures for one in all_counts), collections.Counter()),
                time.perf_counter() - began
            )
    finally:
        with contextlib.suppress(RuntimeError):
            loop.run_until_complete(client.aclose())
        loop.run_until_complete(loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        loop.close()


async def _on_trio(url, dice, counts):
    client = make_client()
    await cancel_many(client, url, dice, counts, ["scope"])
    answered = await is_answered(client, url)
    with contextlib.suppress(RuntimeError):
        await client.aclose()
    return answered


def growth(first, last):
    """How many objects of each type there are more in `last`, those that grew."""
    more = last.objects - first.objects
    return collections.Counter({kind: n for kind, n in more.items() if n > 0})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=100000)
    parser.add_argument("--no-net", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(answer, quiet=True)
    if not options.no_net:
        import httpx_cancel_safe

        httpx_cancel_safe.patch()
    backends = ["asyncio"] if compat.trio_problem() else ["asyncio", "trio"]
    print("httpx", httpx.__version__, "with", "no net" if options.no_net else "the net", end=", ")
    print("on", " and ".join(backends))
    print("| cancelled | finished | failed | swallowed | next request | tasks | files | MB | objects | s |")
    print("| --- |" + " --- |" * 9)
    with server() as url:
        first, cancelled, failures = None, 0, collections.Counter()
        for tenth in soak(url, options.requests, backends=backends):
            first = first or tenth
            failures += tenth.failures
            cancelled += tenth.cancelled
            cells = ["{:,}".format(n) for n in (cancelled,) + tenth[1:4]]
            cells += ["answered" if tenth.answered else "PoolTimeout"]
            cells += ["%d" % tenth.tasks, "%d" % tenth.files, "%.1f" % (tenth.memory / 1e6)]
            cells += ["{:,}".format(sum(tenth.objects.values())), "%.0f" % tenth.seconds]
            print("| " + " | ".join(cells) + " |", flush=True)
    print("grown since the first tenth:", dict(growth(first, tenth).most_common(8)) or "nothing")
    print("failures:", dict(failures) or "none")
    if not options.no_net:
        print(httpx_cancel_safe.stats())


if __name__ == "__main__":
    main()
