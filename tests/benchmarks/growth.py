"""What it costs to cancel many requests at once, and whether that grows with their number.

    PYTHONPATH=src:. python -m tests.benchmarks.growth [--against OTHER_PYTHON] [--no-net]

N requests are in flight on one client, against a loopback server that never answers, and all of
them are cancelled at once. The figure is the time from there until all their tasks have ended, a
request. OTHER_PYTHON is the interpreter of an environment with another httpx, such as httpx2: both
run in turns, several times, and the medians are compared.

Two shapes: "all" - a pool without a limit, every request has a connection; "queue" - a pool of 100,
which is httpx's default, and the others wait for a connection. The garbage collector is on, as it is
in a service; --no-gc shows what is left without it.
"""

import argparse
import asyncio
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time

from .serving import serve

SIZES = [50, 200, 800, 3200]
SHAPES = ["all", "queue"]


async def accept(reader, writer):
    """Read, and never answer."""
    while await reader.read(65536):
        pass


def measure(port, size, shape, net):
    """Seconds a request, from the cancel until every task has ended."""
    try:
        import httpx
    except ImportError:
        import httpx2 as httpx
    if net:
        import httpx_cancel_safe

        httpx_cancel_safe.patch()

    async def main():
        limit = None if shape == "all" else 100
        limits = httpx.Limits(max_connections=limit, max_keepalive_connections=limit)
        client = httpx.AsyncClient(limits=limits, timeout=None, trust_env=False)
        loop = asyncio.get_running_loop()
        # Tasks of all sizes have run the same code before.
        await cancelled(client, loop, port, 20)
        client = httpx.AsyncClient(limits=limits, timeout=None, trust_env=False)
        seconds = await cancelled(client, loop, port, size)
        try:
            await client.aclose()
        except RuntimeError:
            if net:
                raise
        return seconds

    return asyncio.run(main())


async def cancelled(client, loop, port, size):
    url = "http://127.0.0.1:%d/" % port
    tasks = [loop.create_task(client.get(url)) for _ in range(size)]
    await settled(client, min(size, client._transport._pool._max_connections))
    gc.collect()
    began = time.perf_counter()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    seconds = time.perf_counter() - began
    assert all(task.cancelled() for task in tasks), "a cancel did not come out"
    return seconds / size


async def settled(client, size):
    """Wait until `size` requests are on the wire."""
    pool = client._transport._pool
    connections = lambda: pool.connections  # noqa: E731
    for _ in range(6000):
        if sum("ACTIVE" in repr(one) for one in connections()) >= size:
            await asyncio.sleep(0.2)  # The last ones are still writing.
            return
        await asyncio.sleep(0.01)
    raise RuntimeError("the requests do not get under way")


def run(python, arguments):
    environment = dict(os.environ, PYTHONHASHSEED="0")
    command = [python, "-m", "tests.benchmarks.growth"] + [str(a) for a in arguments]
    return float(subprocess.check_output(command, env=environment).decode())


def name_of(python):
    code = (
        "import platform\ntry:\n import httpx\nexcept ImportError:\n import httpx2 as httpx\n"
        "print(httpx.__name__, httpx.__version__, 'Python', platform.python_version())"
    )
    return subprocess.check_output([python, "-c", code]).decode().strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", metavar="PYTHON")
    parser.add_argument("--no-net", action="store_true", help="this httpx without the net, too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--shapes", nargs="*", default=SHAPES, choices=SHAPES)
    parser.add_argument("--no-gc", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.serve:
        return serve(accept)
    if options.measure:
        port, size, shape, net = options.measure
        if options.no_gc:
            gc.disable()
        return print(measure(int(port), int(size), shape, net == "net"))

    variants = [(name_of(sys.executable) + " with the net", sys.executable, "net")]
    if options.no_net:
        variants.append((name_of(sys.executable), sys.executable, "none"))
    if options.against:
        variants.append((name_of(options.against), options.against, "none"))
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.growth", "--serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    port = int(server.stdout.readline())
    result = {}
    no_gc = ["--no-gc"] if options.no_gc else []
    for shape in options.shapes:
        samples = {(name, size): [] for name, _, _ in variants for size in options.sizes}
        for _ in range(options.rounds):
            for size in options.sizes:
                for name, python, net in variants:
                    samples[name, size].append(run(python, no_gc + ["--measure", port, size, shape, net]))
        medians = {key: statistics.median(values) * 1e6 for key, values in samples.items()}
        print("| %s, µs a request | " % shape, end="")
        print(" | ".join("%d" % size for size in options.sizes), "| last / first |")
        print("| --- |" + " --- |" * (len(options.sizes) + 1))
        for name, _, _ in variants:
            row = [medians[name, size] for size in options.sizes]
            cells = ["%.0f" % value for value in row] + ["%.2f" % (row[-1] / row[0])]
            print("| %s | " % name + " | ".join(cells), "|")
        if options.against:
            row = [medians[variants[0][0], s] / medians[variants[-1][0], s] for s in options.sizes]
            print("| ratio | " + " | ".join("%.2f" % value for value in row), "| |")
        print(flush=True)
        result[shape] = {"%s, %d" % key: value for key, value in medians.items()}
    if options.json:
        print(json.dumps(result))
    server.stdin.close()
    server.wait()


if __name__ == "__main__":
    main()
