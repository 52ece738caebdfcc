"""Draw connections.svg: connections in use against cancelled requests, from real runs.

    python -m tests.benchmarks picture PYTHON_WITH_HTTPX_0.22.0 PYTHON_WITH_HTTPX_0.23.0
"""

import contextlib
import random

from . import common

REQUESTS = 300
POINTS = 40  # Each request is cancelled at one of its first suspensions, most of them in the body.
COLOURS = ["#c0392b", "#7d6608", "#1a7f4b"]

LEFT, RIGHT, TOP, BOTTOM = 64, 696, 56, 348  # Of the axes.


def child(suffix):
    """Cancel REQUESTS requests on one client; its name, and how many connections were in use after each."""
    import httpx

    import httpx_cancel_safe

    from ..support import compat, servers, stepping

    if suffix:
        httpx_cancel_safe.patch()
    found = [0]

    async def main():
        client = compat.make_client(httpx.AsyncClient, False, limit=100, timeout=5, pool_timeout=0.02)
        points = random.Random(2139)
        for _ in range(REQUESTS):
            with contextlib.suppress(httpx.PoolTimeout):  # Once all connections are lost.
                request = client.get(running.plain.url + "/large")
                await stepping.cancelled_at(points.randint(1, POINTS), request, "once")
            # A connection that is closed and still listed takes up its place all the same.
            found.append(sum(state != "idle" for state in compat.connections_of(client)))

    with servers.Servers() as running:
        stepping.run(None, "asyncio", main, seconds=300)
    return "httpx " + httpx.__version__ + suffix, found


def place(number, in_use):
    return LEFT + (RIGHT - LEFT) * number / REQUESTS, BOTTOM - (BOTTOM - TOP) * in_use / 110


def text(left, top, what, colour="#333", anchor="start", size=13):
    form = '<text x="{:.0f}" y="{:.0f}" fill="{}" text-anchor="{}" font-size="{}">{}</text>'
    return form.format(left, top, colour, anchor, size, what)


def line(points, colour, width):
    form = '<polyline points="{}" fill="none" stroke="{}" stroke-width="{}"/>'
    return form.format(" ".join("{:.1f},{:.1f}".format(*p) for p in points), colour, width)


def draw(runs):
    """One line a run, named at its end."""
    title = "Connections in use after cancelled requests, one client, limit 100"
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 400" role="img" font-family="sans-serif">'
    parts = [head + "<title>" + title + "</title>", '<rect width="100%" height="100%" fill="#fff"/>']
    parts.append(text(LEFT, 28, title, size=16))
    parts.append(text((LEFT + RIGHT) / 2, 388, "cancelled requests", anchor="middle"))
    for in_use in range(0, 101, 25):
        parts.append(line([place(0, in_use), place(REQUESTS, in_use)], "#ddd", 1))
        parts.append(text(LEFT - 8, place(0, in_use)[1] + 4, in_use, anchor="end"))
    for number in range(0, REQUESTS + 1, 50):
        parts.append(text(place(number, 0)[0], BOTTOM + 20, number, anchor="middle"))
    for (name, counts), colour in zip(runs, COLOURS):
        parts.append(line([place(*point) for point in enumerate(counts)], colour, 2.5))
        parts.append(text(RIGHT, place(0, counts[-1])[1] - 8, "%s: %d" % (name, counts[-1]), colour, "end"))
    return "\n".join(parts + ["</svg>\n"])


def main():
    parser = common.parser(__doc__)
    parser.add_argument("affected", metavar="PYTHON_WITH_HTTPX_0.22.0")
    parser.add_argument("fixed", metavar="PYTHON_WITH_HTTPX_0.23.0")
    options = parser.parse_args()
    runs = []
    for python, suffix in [(options.affected, ""), (options.fixed, ""), (options.affected, " with the patch")]:
        runs.append(common.run_child("picture", suffix, python=python))
        print(runs[-1][0], runs[-1][1][::20])
    (common.ROOT / "tests" / "connections.svg").write_text(draw(runs))
