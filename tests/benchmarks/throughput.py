"""Requests a second to a server on loopback: plain httpx and with the patch.

Spells of plain httpx and of httpx with the patch take turns in one process, each with a new client; hypercorn has a
process of its own. Each spell with the patch is compared with the plain one before it: the median of these ratios, and
their quartiles. CPU time is the client's.
"""

import asyncio
import statistics
import sys
import time

import anyio
import httpx

import httpx_cancel_safe

from . import common

AT_ONCE = 10
REQUESTS = 50  # Of each at once, in a spell.


async def app(scope, receive, send):
    if scope["type"] == "http":
        headers = [(b"content-length", b"%d" % len(common.BODY))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": common.BODY})


async def spell(url):
    """Return requests a second, and requests a second of CPU time."""
    limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
    async with httpx.AsyncClient(limits=limits, trust_env=False) as client:

        async def worker(number):
            for _ in range(number):
                assert (await client.get(url)).status_code == 200

        await asyncio.gather(*[worker(1) for _ in range(AT_ONCE)])
        began, began_cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*[worker(REQUESTS) for _ in range(AT_ONCE)])
        total = AT_ONCE * REQUESTS
        return total / (time.perf_counter() - began), total / (time.process_time() - began_cpu)


def main():
    options = common.parser(__doc__, rounds=30).parse_args()
    pairs = []
    command = [sys.executable, "-m", "hypercorn", "--bind", "fd://FD", "--workers", "0"]
    with common.service(command + [app.__module__ + ":app"]) as address:
        url = "http://%s:%d/" % address
        for _ in range(options.rounds + 1):
            plain = anyio.run(spell, url)
            with httpx_cancel_safe.patched():
                pairs.append((plain, anyio.run(spell, url)))
    common.head("%d at once" % AT_ONCE, "plain", "patched", "ratio", "quartiles")
    for place, what in enumerate(("requests a second", "requests a second of CPU time")):
        plain, patched = ([one[place] for one in spells] for spells in zip(*pairs[1:]))  # The first pair warms up.
        ratios = sorted(with_patch / without for without, with_patch in zip(plain, patched))
        quartiles = "%.2f to %.2f" % (ratios[len(ratios) // 4], ratios[-len(ratios) // 4])
        medians = ["%.0f" % statistics.median(values) for values in (plain, patched)]
        common.row(what, *medians, "%.3f" % statistics.median(ratios), quartiles)
