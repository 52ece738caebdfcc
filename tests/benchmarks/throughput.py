"""How many requests a second get through while others are cancelled all the time.

    PYTHONPATH=src:. python -m tests.benchmarks.throughput

24 workers share a pool of 8. In the run that is compared with, httpx as it is, and nobody is
cancelled. Then half of the workers are cancelled at random, as time-outs and clients that hang up
do, and the other 12 never: with the net, and without it. Counted are the requests that came to
their end (bystanders' and others'), and the bystanders that failed. Each run is a process of its
own, against one server; they take turns, and medians are compared.

A place that a cancelled request had held for a while has done nothing for anybody, so that no pool
can finish as many as where nothing is cancelled. How many it could is told by the row "a pool that
costs nothing": a semaphore, and a wait for as long as the server takes, in place of a request.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time

from .serving import serve

WORKERS = 24
POOL = 8
DELAY = 0.04  # The server's for each answer: the pool is what limits, and not the processor.
# The hasty give up after a random time up to this many times DELAY; calm requests take 3 of them.
PATIENCE = [4, 8]
BODY = b"x" * 2048
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY


async def answer(reader, writer):
    while True:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(DELAY)
        writer.write(ANSWER)
        await writer.drain()


async def chaos(send, failure, seconds, patience):
    """Keep the workers going, and count how their requests end."""
    counts = dict.fromkeys(("steady", "hasty", "cancelled", "failed steady", "failed hasty"), 0)
    end = time.monotonic() + seconds

    async def worker(number):
        hasty = patience and number % 2
        kind = "hasty" if number % 2 else "steady"
        dice = random.Random(number)
        while time.monotonic() < end:
            try:
                if hasty:
                    await asyncio.wait_for(send(), dice.uniform(0, patience * DELAY))
                else:
                    await send()
                counts[kind] += 1
            except asyncio.TimeoutError:
                counts["cancelled"] += 1
            except failure:
                counts["failed " + kind] += 1

    began = time.monotonic()
    await asyncio.gather(*[worker(number) for number in range(WORKERS)])
    counts["seconds"] = time.monotonic() - began
    return counts


async def ideal(seconds, patience):
    """What a pool could do that takes no time for itself."""
    places = asyncio.Semaphore(POOL)

    async def send():
        async with places:
            await asyncio.sleep(DELAY)

    return dict(await chaos(send, (), seconds, patience), left=0)


async def requests(port, seconds, patience):
    try:
        import httpx
    except ImportError:
        import httpx2 as httpx

    limits = httpx.Limits(max_connections=POOL, max_keepalive_connections=POOL)
    timeout = httpx.Timeout(5.0, pool=1.0)
    client = httpx.AsyncClient(limits=limits, timeout=timeout, trust_env=False)
    url = "http://127.0.0.1:%d/" % port

    async def send():
        response = await client.get(url)
        assert response.content == BODY

    counts = await chaos(send, httpx.HTTPError, seconds, patience)
    counts["left"] = sum(
        "IDLE" not in repr(connection) for connection in client._transport._pool.connections
    )
    try:
        await client.aclose()
    except RuntimeError:
        pass  # What is left behind.
    return counts


def run(mode, port, seconds, patience, other):
    command = [other if mode == "other" else sys.executable, "-m", "tests.benchmarks.throughput"]
    command += ["--measure", mode, str(port), str(seconds), str(0 if mode == "calm" else patience)]
    return json.loads(subprocess.check_output(command).decode())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--patience", type=float, nargs="*", default=PATIENCE)
    parser.add_argument("--against", metavar="PYTHON", help="one with httpx2, to compare with")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(answer)
    if options.measure:
        mode, port, seconds, patience = options.measure
        if mode == "net":
            import httpx_cancel_safe

            httpx_cancel_safe.patch()
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        if mode == "ideal":
            work = ideal(float(seconds), float(patience))
        else:
            work = requests(int(port), float(seconds), float(patience))
        return print(json.dumps(loop.run_until_complete(work)))

    server = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.throughput", "--serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    port = int(server.stdout.readline())
    for patience in options.patience:
        compare(port, patience, options)
    server.stdin.close()
    server.wait()


def compare(port, patience, options):
    names = {
        "calm": "httpx, nothing is cancelled",
        "net": "half are cancelled, with the net",
        "none": "half are cancelled, httpx as it is",
        "ideal": "half are cancelled, a pool that costs nothing",
    }
    if options.against:
        names["other"] = "half are cancelled, httpx2"
    runs = {mode: [] for mode in names}
    for _ in range(options.rounds):
        for mode in names:
            runs[mode].append(run(mode, port, options.seconds, patience, options.against))
    rate = {}
    print("| up to %g times the server's delay | finished a second |" % patience, end="")
    print(" of which bystanders' | cancelled a second | failed bystanders | left in the pool |")
    print("| --- |" + " --- |" * 5)
    for mode, name in names.items():
        median = lambda value: statistics.median(value(one) for one in runs[mode])  # noqa: E731
        rate[mode] = median(lambda one: (one["steady"] + one["hasty"]) / one["seconds"])
        cells = ["%.0f" % rate[mode]]
        cells.append("%.0f" % median(lambda one: one["steady"] / one["seconds"]))
        cells.append("%.0f" % median(lambda one: one["cancelled"] / one["seconds"]))
        cells.append("%d" % sum(one["failed steady"] for one in runs[mode]))
        cells.append("%d" % max(one["left"] for one in runs[mode]))
        print("| %s | " % name + " | ".join(cells) + " |")
    print("with the net / nothing cancelled: %.2f; " % (rate["net"] / rate["calm"]), end="")
    print("a pool that costs nothing / its own %d, where nothing is cancelled: " % (POOL / DELAY), end="")
    print("%.2f\n" % (rate["ideal"] * DELAY / POOL), flush=True)


if __name__ == "__main__":
    main()
