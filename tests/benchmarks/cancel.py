"""What a cancel costs, and whether that grows with the number of requests in flight.

    python -m tests.benchmarks cancel [--backend trio] --httpx2 PYTHON

N requests are in flight on one client, to a server that never answers, and all of them are cancelled at once. The
figure is the CPU time from there until all have ended and their sockets are closed, a request: the median of several
processes, which take turns. Two shapes: "all", a pool without a limit, so that each request has a connection; "queue",
a pool of 100, which is httpx's default, so that the others wait for one.
"""

import asyncio
import gc
import statistics
import time

import anyio

from . import common

SIZES = [50, 200, 800, 3200]


async def answer(reader, writer):
    while await reader.read(65536):
        pass


async def in_flight():
    """Wait until this process has nothing to do: then all requests are on the wire, or in the queue."""
    idle = 0
    while idle < 3:
        before = time.process_time()
        await anyio.sleep(0.05)
        idle = idle + 1 if time.process_time() - before < 0.002 else 0
    gc.collect()
    return time.process_time()


async def cancel_tasks(client, url, number):
    """Return the CPU time when the cancels begin."""
    tasks = [asyncio.ensure_future(client.get(url)) for _ in range(number)]
    began = await in_flight()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    return began


async def cancel_scope(client, url, number):
    async with anyio.create_task_group() as group:
        for _ in range(number):
            group.start_soon(client.get, url)
        began = await in_flight()
        group.cancel_scope.cancel()
    return began


def child(variant, backend, url, size, shape):
    common.raise_file_limit()
    httpx = common.library(variant)
    limit = None if shape == "all" else 100
    limits = httpx.Limits(max_connections=limit, max_keepalive_connections=limit)

    async def main():
        for number in (20, size):  # All sizes have run the same code before.
            client = httpx.AsyncClient(limits=limits, timeout=None, trust_env=False)
            began = await (cancel_scope if backend == "trio" else cancel_tasks)(client, url, number)
            for _ in range(5):
                await anyio.sleep(0)  # What is closing.
            seconds = time.process_time() - began
        return seconds / size

    return anyio.run(main, backend=backend)


def main():
    parser = common.parser(__doc__, rounds=5, compares=True)
    parser.add_argument("--backend", default="asyncio", choices=["asyncio", "trio"])
    options = parser.parse_args()
    with common.server("cancel") as (url,):
        for shape in ("all", "queue"):
            common.head("%s, %s: us a cancel" % (shape, options.backend), *SIZES)
            arguments = [[options.backend, url, size, shape] for size in SIZES]
            sizes = [common.compare(options, "cancel", *one, variants=["now"]) for one in arguments]
            for variant in sizes[0]:
                common.row(variant, *["%.0f" % (statistics.median(found[variant]) * 1e6) for found in sizes])
