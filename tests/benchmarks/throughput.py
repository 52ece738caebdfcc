"""Requests a second to a server on loopback: plain httpx and with the patch.

    python -m tests.benchmarks throughput [--at-once N]

hypercorn runs a small application in a process of its own. Spells of plain httpx and of httpx with the patch take turns
in one process, each with a new client. Each spell with the patch is compared with the plain one before it: the median
of these ratios, and their quartiles. CPU time is the client's.
"""

import asyncio
import statistics
import sys
import time

import anyio

from ..support.asgi_app import lifespan
from . import common

REQUESTS = 50  # Of each at once, in a spell.


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    headers = [(b"content-length", b"%d" % len(common.BODY))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": common.BODY})


def child(descriptor):
    common.run_app(app, descriptor)


async def spell(url, at_once):
    """Return requests a second, and requests a second of CPU time."""
    import httpx

    limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
    async with httpx.AsyncClient(limits=limits, trust_env=False) as client:

        async def worker(number):
            for _ in range(number):
                assert (await client.get(url)).status_code == 200

        await asyncio.gather(*[worker(1) for _ in range(at_once)])
        began, began_cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*[worker(REQUESTS) for _ in range(at_once)])
        total = at_once * REQUESTS
        return total / (time.perf_counter() - began), total / (time.process_time() - began_cpu)


def main():
    import httpx_cancel_safe

    parser = common.parser(__doc__, rounds=30)
    parser.add_argument("--at-once", type=int, default=10)
    options = parser.parse_args()
    pairs = []
    with common.service([sys.executable, "-m", "tests.benchmarks", "throughput", "--child", "[FD]"]) as address:
        arguments = ["http://%s:%d/" % address, options.at_once]
        for _ in range(options.rounds + 1):
            plain = anyio.run(spell, *arguments)
            with httpx_cancel_safe.patched():
                pairs.append((plain, anyio.run(spell, *arguments)))
    common.head("%d at once" % options.at_once, "plain", "patched", "ratio", "quartiles")
    for place, what in enumerate(("requests a second", "requests a second of CPU time")):
        plain, patched = ([one[place] for one in spells] for spells in zip(*pairs[1:]))  # The first pair warms up.
        ratios = sorted(with_patch / without for without, with_patch in zip(plain, patched))
        quartiles = "%.2f to %.2f" % (ratios[len(ratios) // 4], ratios[-len(ratios) // 4])
        medians = ["%.0f" % statistics.median(values) for values in (plain, patched)]
        common.row(what, *medians, "%.3f" % statistics.median(ratios), quartiles)
