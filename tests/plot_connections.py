"""Draw connections.svg: connections in use against cancelled requests, from real runs.

    python -m tests.plot_connections PYTHON_WITH_HTTPX_0.22.0 PYTHON_WITH_HTTPX_0.23.0

Each Python needs httpx, wrapt and anyio; this one needs nothing else.
"""

import argparse
import json
import pathlib
import subprocess
import sys

PICTURE = pathlib.Path(__file__).with_name("connections.svg")
REQUESTS = 300
POINTS = 40  # Each request is cancelled at one of its first suspensions, most of them in the body.
COLOURS = ["#c0392b", "#7d6608", "#1a7f4b"]

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 56, 52


def measure(net):
    """Cancel REQUESTS requests on one client; how many connections were in use after each."""
    import asyncio
    import random

    import httpx

    import httpx_cancel_safe
    from tests.support.servers import serve
    from tests.support.sweep import Trigger, drive

    if net:
        httpx_cancel_safe.patch()
    found = []

    async def cancelled_at(point, request):
        loop = asyncio.get_event_loop()
        trigger = Trigger(lambda: loop.call_soon(lambda: task.cancel()), point)
        task = loop.create_task(drive(request, trigger))
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # PoolTimeout, once all connections are lost.

    async def main(url):
        client = httpx.AsyncClient(timeout=httpx.Timeout(5, pool=0.02), trust_env=False)
        pool = client._transport._pool
        points = random.Random(2139)
        for _ in range(REQUESTS):
            await cancelled_at(points.randint(1, POINTS), client.get(url + "/large"))
            # A connection that is closed and still listed takes up its place all the same.
            found.append(sum(not connection.is_idle() for connection in pool.connections))

    with serve() as servers:
        asyncio.new_event_loop().run_until_complete(main(servers.plain.url))
    return {"httpx": httpx.__version__, "net": net, "in_use": found}


def draw(runs):
    """One line a run, named at its end."""
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(number):
        return LEFT + across * number / REQUESTS

    def y(in_use):
        return TOP + down * (1 - in_use / 110)

    def text(left, top, what, colour="#333", anchor="start", size=13):
        form = '<text x="{:.0f}" y="{:.0f}" fill="{}" text-anchor="{}" font-size="{}">{}</text>'
        return form.format(left, top, colour, anchor, size, what)

    def line(points, colour, width):
        form = '<polyline points="{}" fill="none" stroke="{}" stroke-width="{}"/>'
        return form.format(" ".join("{:.1f},{:.1f}".format(*p) for p in points), colour, width)

    title = "Connections in use after cancelled requests, one client, limit 100"
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" role="img"'
        ' font-family="sans-serif"><title>{}</title>'.format(WIDTH, HEIGHT, title),
        '<rect width="100%" height="100%" fill="#fff"/>',
        text(LEFT, 28, title, size=16),
        text(LEFT + across / 2, HEIGHT - 12, "cancelled requests", anchor="middle"),
    ]
    for in_use in range(0, 101, 25):
        parts.append(line([(LEFT, y(in_use)), (WIDTH - RIGHT, y(in_use))], "#ddd", 1))
        parts.append(text(LEFT - 8, y(in_use) + 4, in_use, anchor="end"))
    for number in range(0, REQUESTS + 1, 50):
        parts.append(text(x(number), HEIGHT - BOTTOM + 20, number, anchor="middle"))
    for run, colour in zip(runs, COLOURS):
        counts = [0] + run["in_use"]
        name = "httpx {}{}: {}".format(
            run["httpx"], " with the net" if run["net"] else "", counts[-1]
        )
        parts.append(line([(x(n), y(c)) for n, c in enumerate(counts)], colour, 2.5))
        parts.append(text(WIDTH - RIGHT, y(counts[-1]) - 8, name, colour, "end"))
    return "\n".join(parts + ["</svg>\n"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pythons", nargs="*", help="a Python with httpx 0.22.0, and one with 0.23.0")
    parser.add_argument("--measure", choices=["net", "plain"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure == "net")))
        return
    if len(options.pythons) != 2:
        parser.error("two Pythons are needed")
    affected, fixed = options.pythons
    runs = []
    for python, net in [(affected, "plain"), (fixed, "plain"), (affected, "net")]:
        command = [python, "-W", "ignore", "-m", "tests.plot_connections", "--measure", net]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        runs.append(json.loads(done.stdout.decode().splitlines()[-1]))
        print(runs[-1]["httpx"], net, runs[-1]["in_use"][::20])
    PICTURE.write_text(draw(runs))


if __name__ == "__main__":
    sys.exit(main())
