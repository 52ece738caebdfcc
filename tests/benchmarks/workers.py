"""How many requests 24 workers send over a pool of 8.

    python -m tests.benchmarks workers --httpx2 PYTHON

Twice: nobody is cancelled; and half of the workers are cancelled at random, as time-outs and clients that hang up do,
the other half never. Counted are the requests that ended well within the time, of all workers and of those that nobody
cancels, and those of the latter that failed. The server takes a while for each answer, so that the pool is the limit
and not the processor: "share" is that of the requests that a pool which costs nothing would have sent. All take turns,
each run in a process of its own; the medians count.
"""

import asyncio
import random
import statistics
import time

import anyio

from . import common

WORKERS = 24
POOL = 8
DELAY = 0.2
PATIENCE = 8 * DELAY  # A hasty worker is cancelled after a random time up to this; a request takes 3 * DELAY.
COUNTS = ["all", "not cancelled", "failed of these", "cancelled"]


async def answer(reader, writer):
    while True:
        await reader.readuntil(b"\r\n\r\n")
        # Not always the same: or all connections become free at one moment, and all next requests queue for the CPU.
        await asyncio.sleep(random.uniform(0.5, 1.5) * DELAY)
        writer.write(common.ANSWER)


def child(*arguments):
    return anyio.run(work, *arguments)


async def work(variant, url, seconds, patience):
    """Keep the workers going, and count how their requests end."""
    httpx = common.library(variant)
    limits = httpx.Limits(max_connections=POOL, max_keepalive_connections=POOL)
    client = httpx.AsyncClient(limits=limits, trust_env=False)
    counts = dict.fromkeys(COUNTS, 0)
    end = time.monotonic() + seconds

    async def worker(number):
        is_hasty = patience > 0 and number % 2 == 1
        dice = random.Random(number)
        while time.monotonic() < end:
            try:
                request = client.get(url)
                await (asyncio.wait_for(request, dice.uniform(0, patience)) if is_hasty else request)
            except asyncio.TimeoutError:
                counts["cancelled"] += 1
            except httpx.HTTPError:
                counts["failed of these"] += not is_hasty
            else:
                is_in_time = time.monotonic() <= end
                counts["all"] += is_in_time
                counts["not cancelled"] += is_in_time and not is_hasty

    await asyncio.gather(*[worker(number) for number in range(WORKERS)])
    return counts


def main():
    parser = common.parser(__doc__, rounds=3, compares=True)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    with common.server("workers") as (url,):
        for patience, who in ((0, "nobody is cancelled"), (PATIENCE, "half are cancelled")):
            found = common.compare(options, "workers", url, options.seconds, patience)
            common.head("requests in %g s, %s" % (options.seconds, who), *COUNTS, "share")
            for variant, runs in found.items():
                values = [statistics.median(counts[name] for counts in runs) for name in COUNTS]
                share = "%.2f" % (values[0] * DELAY / POOL / options.seconds)
                common.row(variant, *["%d" % value for value in values], share)
