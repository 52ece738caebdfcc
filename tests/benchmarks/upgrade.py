"""A service that cancels requests, on one httpx after another: what comes back on upgrade day.

    python -m tests.benchmarks upgrade [--way WAY] [--kind KIND] [--rounds N] PYTHON ...

Each PYTHON needs httpx, wrapt, anyio and hypercorn. FastAPI makes the service where it is installed. Requests are
cancelled by clients that hang up (an anyio scope, as in Starlette), or by the service's own time-out
(`asyncio.wait_for`, which cancels a task).
"""

import asyncio
import collections
import contextlib
import functools
import http.client
import importlib
import json
import random
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from ..support.asgi_app import lifespan
from . import common

LIMIT = 20
CANCELLED = 3000
AT_ONCE = 10
KINDS = ("hang-up", "wait_for")
SERVERS = {"hypercorn": [], "gunicorn": ["--worker-class", "uvicorn.workers.UvicornWorker"]}  # And their options.


def make_app(upstream, way):
    """An ASGI application that passes on what `upstream` answers, as FastAPI does it or by itself."""
    with contextlib.suppress(ImportError):
        import httpx2

        httpx2.alias_httpx()
    if way in ("patch", "class", "auto"):
        ours = importlib.import_module("httpx_cancel_safe" + (".auto" if way == "auto" else ""))
    if way == "patch":
        ours.patch()
    import httpx

    client_class = ours.SafeAsyncClient if way == "class" else httpx.AsyncClient
    limits = httpx.Limits(max_connections=LIMIT, max_keepalive_connections=LIMIT)
    client = client_class(trust_env=False, limits=limits, timeout=httpx.Timeout(20, pool=0.5))
    under_way = []

    @contextlib.contextmanager
    def listed():
        under_way.append(None)
        try:
            yield
        finally:
            under_way.pop()

    async def relay():
        with listed():
            async with client.stream("GET", upstream + "drip") as response:
                async for part in response.aiter_raw():
                    yield part

    async def limited(after):
        with listed():
            try:
                return (await asyncio.wait_for(client.get(upstream + "drip"), float(after))).text
            except (asyncio.TimeoutError, httpx.HTTPError) as exc:
                return type(exc).__name__

    async def look():
        """How it stands: requests under way, the pool's connections, and what a new request gets."""
        found = {"under way": len(under_way), "httpx": httpx.__version__}
        if not under_way:
            # httpx before 0.21 prints no states.
            connections = getattr(getattr(client._transport, "_pool", None), "connections", [])
            states = [re.search(r"ACTIVE|IDLE|CONNECTING|CLOSED|NEW", repr(one)) for one in connections]
            found["states"] = collections.Counter(state.group() for state in states if state)
            try:
                found["next"] = (await client.get(upstream)).text
            except httpx.HTTPError as exc:
                found["next"] = type(exc).__name__
        return found

    try:
        from fastapi import FastAPI
        from fastapi.responses import StreamingResponse
    except ImportError:
        app = bare_app(relay, limited, look)
        # The last hypercorn for Python 3.6 speaks ASGI 2.
        return app if sys.version_info >= (3, 7) else lambda scope: functools.partial(app, scope)

    app = FastAPI()

    @app.get("/relay")
    async def passed_on():
        return StreamingResponse(relay())

    app.get("/look")(look)
    app.get("/limited/{after}")(limited)
    return app


def bare_app(relay, limited, look):
    """The same without FastAPI. A response whose client hangs up is cancelled as Starlette does it."""
    import anyio

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        await receive()  # The request, which has no body.
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
        _, name, *rest = scope["path"].split("/")
        if name != "relay":
            found = await (look() if name == "look" else limited(*rest))
            await send({"type": "http.response.body", "body": json.dumps(found).encode()})
            return
        async with anyio.create_task_group() as group:

            async def hear_hang_up():
                await receive()
                group.cancel_scope.cancel()

            group.start_soon(hear_hang_up)
            async for part in relay():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            group.cancel_scope.cancel()

    return app


async def answer(reader, writer):
    while True:
        path = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1]
        if path == b"/":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")
            continue
        await asyncio.sleep(0.005)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(200):
            writer.write(b"4\r\ndrip\r\n")
            await writer.drain()
            await asyncio.sleep(0.005)
        writer.write(b"0\r\n\r\n")


def ask(address, path, hang_up_after=None):
    """Return what the service answers, or hang up after this many seconds."""
    with contextlib.closing(http.client.HTTPConnection(*address, timeout=30)) as connection:
        connection.request("GET", path)
        if hang_up_after is None:
            return connection.getresponse().read().decode()
        time.sleep(hang_up_after)


def look(address):
    """What the service says of itself once it has dealt with all who hung up."""
    for _ in range(1200):
        found = json.loads(ask(address, "/look"))
        if not found["under way"]:
            break
        time.sleep(0.05)
    return found


def measure(python, way, kind="hang-up", seed=2139, cancelled=CANCELLED, server="hypercorn", **environment):
    """Have the service cancel requests; returns what it says of itself then."""
    moments = random.Random(seed)
    if way == "autowrapt":
        environment["AUTOWRAPT_BOOTSTRAP"] = "httpx_cancel_safe"
    with common.server("upgrade") as (upstream,):
        command = [python, "-W", "ignore", "-m", server, "--bind", "fd://FD", *SERVERS[server]]
        command.append("tests.benchmarks.upgrade:make_app(%r, %r)" % (upstream, way))
        with common.service(command, **environment) as address:
            before = look(address)
            assert before["next"] == "hello", before
            with ThreadPoolExecutor(AT_ONCE) as clients:
                for _ in range(cancelled):
                    moment = moments.uniform(0, 0.02)
                    what = ("/relay", moment) if kind == "hang-up" else ("/limited/%f" % moment,)
                    clients.submit(ask, address, *what)
            return look(address)


def main():
    parser = common.parser(__doc__, rounds=3)
    parser.add_argument("--way", choices=["plain", "patch", "class", "auto", "autowrapt"], default="patch")
    parser.add_argument("--kind", choices=KINDS, default="hang-up")
    parser.add_argument("pythons", nargs="*", metavar="PYTHON", default=[sys.executable])
    options = parser.parse_args()
    print("A pool of %d after %d cancels by %s; %s" % (LIMIT, CANCELLED, options.kind, options.way))
    for python in options.pythons:
        for seed in range(options.rounds):
            found = measure(python, options.way, options.kind, seed)
            states = ", ".join("%d %s" % (count, state) for state, count in sorted(found["states"].items()))
            print("httpx %-8s next request: %-12s %s" % (found["httpx"], found["next"], states), flush=True)
