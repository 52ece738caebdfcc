"""Small programs for asyncio and trio, by kind. Nobody cancels them from outside."""

import asyncio
import contextlib
import copy
import gc
import pickle
import socket
import sys

import anyio
import httpx

from ..support.compat import HTTPX
from ..support.noise import scrub
from ..support.stepping import passes
from ..support.transports import AsyncAdapter, AsyncBody
from . import program

LONG = "/chunks?n=50&each=2"

# -- Plain requests, and what fails ------------------------------------------------------------


@program
async def get(w):
    response = await w.client().get(w.url + "/ok")
    w.notes.append((response.text, sorted(response.headers.items()), response.elapsed.total_seconds() > 0))
    await w.client(verify=w.server.trusted(), timeout=None).get(w.server.tls.url + "/get")
    (await w.client(limit=None).get(w.url + "/status?code=503")).raise_for_status()


@program
async def one_after_another(w):
    client = w.client(limit=2)
    w.notes += [(await client.get(url + "/cookie")).text for url in (w.url, w.other, w.url, w.other)]
    return [(await client.post(w.url + "/ok", content=b"x" * size)).text for size in (0, 10, 300000)]


@program
async def many_at_once(w):
    client = w.client(limit=3, pool_timeout=1)
    async with anyio.create_task_group() as group:
        for _ in range(9):
            group.start_soon(client.get, w.url + "/ok?ms=5")


@program
async def more_idle_than_may_be(w):
    client = w.client(limit=4, keepalive=2)
    requests = [client.build_request("GET", w.url + "/ok?n=%d" % n) for n in range(4)]
    responses = [await client.send(request, stream=True) for request in requests]
    return [await response.aread() for response in responses]


@program(since=(0, 17))
async def keepalive_expires(w):
    client = w.client(expiry=0.01)
    await client.get(w.url + "/ok")
    await anyio.sleep(0.05)
    await client.get(w.url + "/ok")


@program
async def least_recently_used_goes(w):
    client = w.client(limit=2, pool_timeout=0.05)
    for url in (w.url, w.other, w.url, w.third, w.url):
        await client.get(url + "/ok")


@program
async def two_origins_in_a_pool_of_one(w):
    client = w.client(limit=1, pool_timeout=0.05)
    await client.get(w.url + "/ok")
    return (await client.get(w.other + "/ok")).text


@program
async def used_after_the_server_and_the_client_closed(w):
    async with w.client(limit=1) as client:
        await client.get(w.url + "/ok")
        w.server.hang_up()
        await anyio.sleep(0.01)
        w.notes.append((await client.get(w.url + "/ok")).text)
    await client.get(w.url + "/ok")


async def then_another(w, path, method="GET", client=None, **options):
    """Send a request that may fail, and another one in its place."""
    client = client or w.client(limit=1)
    try:
        w.notes.append((await client.request(method, w.url + path, **options)).text)
    finally:
        w.notes.append((await client.get(w.url + "/ok")).text)


def through_a_proxy(w, **options):
    """Clients for a proxy, each with a URL to get: by CONNECT, forwarded, refused, without an answer."""
    client = w.client(proxy=w.server.proxy.url, verify=w.server.trusted(), **options)
    tunnelled = w.server.tls.url + "/get"
    for url in (tunnelled, w.url + "/ok", tunnelled, "https://refused/", "https://127.0.0.1:1/"):
        yield client, url
    for mode in ("FORWARD_ONLY", "TUNNEL_ONLY") if HTTPX < (0, 18) else ():
        yield w.client(proxy=httpx.Proxy(w.server.proxy.url, mode=mode), **options), w.url + "/ok"


@program
async def proxied(w):
    for number, (client, url) in enumerate(through_a_proxy(w)):
        await noted(w, number, client.get(url))


FAILING = {
    "read_timeout": "/hang",
    "read_timeout_in_body": "/chunks?each=2000",
    "server_closes_at_once": "/drop",
    "server_closes_early": "/early",
    "server_closes_politely": "/close",
    "server_answers_garbage": "/garbage",
    "body_does_not_decode": "/gzip",
    "too_many_redirects": "/loop",
    "redirect_to_nowhere": "/redirect?to=ftp://nowhere/",
}


def limits_for(path):
    """Wait only briefly for what never comes."""
    return httpx.Timeout(5, read={"/hang": 0.05, "/chunks?each=2000": 0.3}.get(path, 5))


def failing(path):
    async def run(w):
        await then_another(w, path, timeout=limits_for(path))

    return run


for name, path in FAILING.items():
    program(failing(path), name)


async def at_a_socket(w, backlog, connected=0, method="GET", **options):
    """Send to a socket that nobody accepts from, and then to the server."""
    client = w.client(limit=1)
    with contextlib.ExitStack() as stack:
        deaf = stack.enter_context(socket.socket())
        deaf.bind(("127.0.0.1", 0))
        if backlog is not None:
            deaf.listen(backlog)
        for _ in range(connected):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(deaf.getsockname())
        try:
            await client.request(method, "http://127.0.0.1:%d/" % deaf.getsockname()[1], **options)
        except httpx.HTTPError as exc:
            w.notes.append((type(exc).__name__, scrub(str(exc))))
    w.notes.append((await client.get(w.url + "/ok")).text)


@program
async def connect_and_write_errors(w):
    await at_a_socket(w, None)
    await at_a_socket(w, 0, 2, timeout=httpx.Timeout(5, connect=0.1))
    await at_a_socket(w, 5, method="POST", content=b"x" * 20000000, timeout=httpx.Timeout(5, write=0.05))


@program
async def pool_timeout(w):
    client = w.client(limit=1, pool_timeout=0.03)
    async with client.stream("GET", w.url + "/ok") as response:
        try:
            await client.get(w.url + "/ok")
        finally:
            await response.aread()
            w.notes.append((await client.get(w.url + "/ok")).text)


# -- Streamed responses, and generators around them --------------------------------------------


@program
async def stream_left_early(w):
    client = w.client(limit=1)
    for path in ("/chunks", LONG, "/ok"):
        async with client.stream("GET", w.url + path) as response:
            if path == "/chunks":
                w.notes.append([piece async for piece in response.aiter_bytes()])
        w.notes.append((response.is_closed, response.is_stream_consumed))
    async with client.stream("GET", w.url + LONG) as response:
        async for piece in response.aiter_bytes():
            return piece


@program
async def stream_raises(w):
    client = w.client(limit=1)
    with contextlib.suppress(KeyError):
        async with client.stream("GET", w.url + LONG):
            raise KeyError("first")
    async with client.stream("GET", w.url + "/ok"):
        try:
            raise KeyError("second")
        except KeyError as exc:
            raise ValueError("third") from exc


async def streamed(w, client):
    return await client.send(client.build_request("GET", w.url + LONG), stream=True)


async def noted(w, what, coroutine):
    try:
        w.notes.append((what, repr(await coroutine)))
    except Exception as exc:
        w.notes.append((what, type(exc).__name__))


@program
async def client_closed_while_requests_wait(w):
    client = w.client(limit=1, pool_timeout=0.2)
    async with anyio.create_task_group() as group:
        group.start_soon(noted, w, "first", client.get(w.url + "/hang"))
        await anyio.sleep(0.05)
        group.start_soon(noted, w, "second", client.get(w.url + "/ok"))
        await passes(5)
        with contextlib.suppress(RuntimeError):
            await client.aclose()
    w.notes.sort()


@program
async def stream_closed_under_its_reader(w):
    client = w.client()
    response = await client.send(client.build_request("GET", w.url + "/hang-body"), stream=True)
    async with anyio.create_task_group() as group:
        group.start_soon(noted, w, "read", response.aread())
        await passes(10)
        await response.aclose()


@program
async def stream_closed_by_another_task(w):
    client = w.client()
    response = await streamed(w, client)
    async with anyio.create_task_group() as group:
        group.start_soon(response.aclose)
    await response.aclose()
    return response.is_closed, (await client.get(w.url + "/ok")).text


@program
async def client_closed_before_stream(w):
    client = w.client()
    response = await streamed(w, client)
    try:
        await client.aclose()
    finally:
        w.notes.append(response.is_closed)
        await response.aclose()


async def pieces(w, client, path=LONG):
    try:
        async with client.stream("GET", w.url + path) as response:
            async for piece in response.aiter_bytes():
                yield piece
    finally:
        w.notes.append((await client.get(w.url + "/ok")).text)
        async with client.stream("POST", w.url + "/ok", content=b"bye") as response:
            w.notes.append(await response.aread())


@program
async def generator_closed(w):
    client = w.client(limit=1)
    w.notes.append([piece async for piece in pieces(w, client, "/chunks")])
    for _ in range(3):
        generator = pieces(w, client)
        await generator.__anext__()
        await generator.aclose()


@program(on=("asyncio",))  # trio warns of each, in any order.
async def generator_dropped(w):
    client = w.client(limit=1)
    generator = pieces(w, client)
    await generator.__anext__()
    del generator
    gc.collect()
    with anyio.move_on_after(2):
        while len(w.notes) < 2:  # Of its clean-up.
            await anyio.sleep(0.001)
    return (await client.get(w.url + "/ok")).text


@program(on=("asyncio",))
async def generator_left_to_the_loop(w):
    async def waiting():
        response = await streamed(w, w.client())
        try:
            yield response.status_code
        finally:
            await response.aclose()
            w.notes.append(response.is_closed)

    w.left = waiting()
    return await w.left.__anext__()


@program
async def requests_in_except_and_finally(w):
    client = w.client(limit=5, keepalive=2)

    async def fail_over():
        try:
            raise OSError("the first one is down")
        except OSError:
            w.notes.append((await client.get(w.url + "/ok?ms=5")).text)

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(fail_over)
    try:
        await client.get(w.url + "/drop")
    except httpx.HTTPError:
        await client.get(w.url + "/garbage")
    finally:
        w.notes.append((await w.client(keepalive=0).get(w.url + "/ok")).text)


@program
async def body_from_a_generator(w):
    async def body(raises=False):
        try:
            yield b"hello"
            await anyio.sleep(0)
            if raises:
                raise LookupError("no more") from KeyError("cause")
        finally:
            await anyio.sleep(0)
            w.notes.append("body ended")

    w.notes.append((await w.client().post(w.url + "/ok", content=body())).text)
    await then_another(w, "/ok", "POST", content=body(raises=True))


@program
async def redirects(w):
    client = w.client(limit=2)
    response = await client.get(w.url + "/redirect?to=" + w.other + "/ok")
    w.notes.append((response.text, [one.status_code for one in response.history]))
    async with client.stream("GET", w.url + "/redirect?to=/chunks") as response:
        return await response.aread(), [one.is_closed for one in response.history]


@program
async def hooks_raise(w):
    async def on_request(request):
        if request.url.path == "/bad":
            await anyio.sleep(0)
            raise LookupError("request")

    async def on_response(response):
        w.notes.append(await response.aread() if response.status_code == 302 else response.status_code)
        if response.url.path == "/chunks":
            await anyio.sleep(0)
            raise LookupError("response") from KeyError("cause")

    client = w.client(limit=1, event_hooks={"request": [on_request], "response": [on_response]})
    try:
        await then_another(w, "/bad", client=client)
    except LookupError:
        await then_another(w, "/redirect?to=/chunks", client=client)


class Flow(httpx.Auth):
    """Waits everywhere; `raises` says when it gives up."""

    def __init__(self, w, raises=None, client=None):
        self.w, self.raises, self.client = w, raises, client

    async def async_auth_flow(self, request):
        try:
            await anyio.sleep(0)
            if self.client is not None:
                request.headers["token"] = (await self.client.get(self.w.url + "/ok?token=1")).text
            response = yield request
            if self.raises is not None:
                raise self.raises
            await anyio.sleep(0)
            self.w.notes.append(response.status_code)
            yield request
        finally:
            await anyio.sleep(0)
            self.w.notes.append("flow ended")


@program(since=(0, 18))
async def auth_flows(w):
    client = w.client(limit=1)
    for flow in (Flow(w), Flow(w, client=client), Flow(w, LookupError("denied"))):
        await then_another(w, "/ok", client=client, auth=flow)


@program
async def client_is_copied(w):
    client = w.client(limit=2)
    before = sorted(vars(client))
    await client.get(w.url + "/ok")
    twin = copy.copy(client)
    w.notes.append((await twin.get(w.url + "/ok")).text)
    w.notes.append(before == sorted(vars(client)) == sorted(vars(twin)))
    async with twin.stream("GET", w.url + LONG):
        pass
    response = await client.get(w.url + "/ok")
    if HTTPX >= (0, 18):
        w.notes.append(pickle.loads(pickle.dumps(response)).text)  # noqa: S301 - it is ours.
    pickle.dumps(client)


@program
async def subclasses(w):
    class Client(w.AsyncClient):
        async def request(self, method, url, **options):
            w.notes.append("request")
            return await super().request(method, url, **options)

        async def send(self, request, **options):
            w.notes.append("send")
            return await super().send(request, **options)

        async def _send_single_request(self, request, *args, **options):
            w.notes.append(isinstance(self._transport_for_url(request.url), type(self._transport)))
            return await super()._send_single_request(request, *args, **options)

    return (await w.client(Client).get(w.url + "/redirect?to=/ok")).text


# -- Other transports --------------------------------------------------------------------------


@program(since=(0, 17))
async def mounts(w):
    client = w.client(mounts={"http://mocked.test": httpx.MockTransport(lambda request: httpx.Response(201))})
    return (await client.get("http://mocked.test/")).status_code, (await client.get(w.url + "/ok")).text


@program
async def asgi(w):
    async def app(scope, receive, send):
        if scope["path"] == "/bad":
            raise LookupError("app")
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"from the app"})

    client = w.client(transport=httpx.ASGITransport(app=app))
    w.notes.append((await client.get("http://app.test/")).text)
    await client.get("http://app.test/bad")


@program(since=(0, 18))
async def clients_share_a_transport(w):
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
    shared = httpx.AsyncHTTPTransport(verify=False, limits=limits)
    one, two = w.client(transport=shared), w.client(transport=shared)
    return [(await client.get(w.url + "/ok")).text for client in (one, two, one)]


class Enters(AsyncAdapter):
    """Does `enter` for each request, and `leave` when its response is closed."""

    def __init__(self, enter, leave):
        self.enter, self.leave = enter, leave

    async def exchange(self, asked):
        if self.enter is not None:
            await self.enter()
        return 200, [], AsyncBody(close=self.leave)


async def with_stream(w, enter=None, leave=None, base=None, **options):
    client = w.client(base, transport=Enters(enter, leave), **options)
    w.notes.append((await client.get("http://x.test/")).text)
    async with client.stream("GET", "http://x.test/"):
        pass


@program(since=(0, 18), python=(3, 7))
async def transport_belongs_to_its_caller(w):
    import contextvars

    variable = contextvars.ContextVar("variable", default="unset")

    async def see(what):
        w.notes.append((anyio.get_current_task().id == mine, variable.get()))
        variable.set(what)

    mine = anyio.get_current_task().id
    variable.set("by the caller")
    await with_stream(w, lambda: see("by the transport"), lambda: see("by close"))
    return variable.get()


@program(since=(0, 18))
async def transport_raises(w):
    async def enter():
        exc = LookupError("transport")
        if hasattr(exc, "add_note"):
            exc.add_note("a note")
        raise exc from KeyError("cause")

    await with_stream(w, enter)


@program(since=(0, 18))
async def stream_holds_what_belongs_to_its_task(w):
    lock, limiter, held = anyio.Lock(), anyio.CapacityLimiter(1), []

    async def enter():
        await lock.acquire()
        await limiter.acquire()
        held.append(anyio.CancelScope(deadline=anyio.current_time() + 5))
        held[-1].__enter__()
        held.append(anyio.create_task_group())
        await held[-1].__aenter__()
        held[-1].start_soon(anyio.sleep, 0.005)

    async def leave():
        await held.pop().__aexit__(None, None, None)
        held.pop().__exit__(None, None, None)
        limiter.release()
        lock.release()

    await with_stream(w, enter, leave)
    return lock.locked(), limiter.borrowed_tokens, len(held)


@program(since=(0, 18))
async def stream_closes_slowly(w):
    """Longer than `close_timeout`, which is for requests that are cancelled."""

    class Client(w.AsyncClient):
        close_timeout = 0.01

    async def leave():
        await anyio.sleep(0.05)
        w.notes.append("closed")

    await with_stream(w, leave=leave, base=Client)


@program(since=(0, 18))
async def stream_fails_to_close_after_a_failure(w):
    async def leave():
        raise LookupError("close")

    async def hook(response):
        raise KeyError("hook")

    await with_stream(w, leave=leave, event_hooks={"request": [], "response": [hook]})


@program
async def limits_that_are_not_reached(w):
    client = w.client(limit=3)
    with anyio.move_on_after(20), anyio.CancelScope(shield=True), anyio.fail_after(10):
        w.notes.append((await client.get(w.url + "/ok")).text)
    if asyncio._get_running_loop() is not None:
        one = asyncio.wait_for(client.get(w.url), 10)
        two = asyncio.ensure_future(client.get(w.url))
        found = await asyncio.gather(one, two, asyncio.shield(client.get(w.url)))
        w.notes.append([response.text for response in found])
        if sys.version_info >= (3, 11):
            async with asyncio.timeout(10):
                await client.get(w.url + "/ok")
            return asyncio.current_task().cancelling()


@program(since=(0, 21))
async def trace(w):
    async def traced(name, info):
        w.notes.append((name, sorted(info)))

    client = w.client(limit=1)
    for path in ("/ok", "/ok", "/drop"):
        request = client.build_request("GET", w.url + path)
        request.extensions["trace"] = traced
        with contextlib.suppress(httpx.TransportError):
            w.notes.append((await client.send(request)).text)
