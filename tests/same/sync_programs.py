"""The same without a loop, or with loops of their own."""

import asyncio
import concurrent.futures
import contextlib
import gc

import httpx

from ..support.stepping import run
from ..support.transports import Body, SyncAnswers
from . import program
from .programs import FAILING, LONG, limits_for, through_a_proxy


@program
def sync_get(w):
    class Client(w.Client):
        def send(self, request, **options):
            w.notes.append("send")
            return super().send(request, **options)

    client = w.client(Client, sync=True, limit=1)
    return [client.get(w.url + path).text for path in ("/ok", "/chunks", "/close", "/redirect?to=/ok")]


@program
def sync_threads(w):
    client = w.client(sync=True, limit=3)
    with client, concurrent.futures.ThreadPoolExecutor(3) as executor:
        texts = [response.text for response in executor.map(client.get, [w.url + "/ok?ms=2"] * 12)]
    w.server.opened = 0  # How many connections it took is chance.
    return texts


@program
def sync_streams(w):
    def pieces():
        with client.stream("GET", w.url + LONG) as response:
            yield from response.iter_bytes()

    client = w.client(sync=True, limit=1)
    generator = pieces()
    next(generator)
    generator.close()
    generator = pieces()
    next(generator)
    del generator
    gc.collect()
    try:
        with client.stream("GET", w.url + LONG):
            raise KeyError("first")
    except KeyError as exc:
        w.notes.append(client.get(w.url + "/ok").text)
        raise ValueError("second") from exc


@program
def sync_proxied(w):
    for client, url in through_a_proxy(w, sync=True):
        try:
            w.notes.append(client.get(url).text)
        except httpx.HTTPError as exc:
            w.notes.append((type(exc), str(exc)))


class Flow(httpx.Auth):
    def auth_flow(self, request):
        response = yield request
        raise LookupError(response.status_code)


def hook(response):
    if response.url.path == "/chunks":
        raise LookupError("hook") from KeyError("cause")


def failing(path, **options):
    def run(w):
        client = w.client(sync=True, limit=1, event_hooks={"request": [], "response": [hook]})
        try:
            w.notes.append(client.get(w.url + path, timeout=limits_for(path), **options).text)
        finally:
            w.notes.append(client.get(w.url + "/ok").text)

    return run


for name, path in FAILING.items():
    program(failing(path), "sync_" + name)
program(failing("/ok", auth=Flow()), "sync_auth_flow_raises")
program(failing("/chunks"), "sync_response_hook_raises")


@program
def sync_full_pool(w):
    client = w.client(sync=True, limit=1, pool_timeout=0.03)
    with client.stream("GET", w.url + "/ok"), contextlib.suppress(httpx.PoolTimeout):
        w.notes.append(client.get(w.url + "/ok").text)
    w.notes.append(client.get(w.url + "/ok").text)
    return client.get(w.other + "/ok").text


@program
def sync_wsgi(w):
    def app(environ, start_response):
        if environ["PATH_INFO"] == "/bad":
            raise LookupError("app")
        start_response("200 OK", [])
        return [b"from the app"]

    client = w.client(sync=True, transport=httpx.WSGITransport(app=app))
    w.notes.append(client.get("http://app.test/").text)
    client.get("http://app.test/bad")


@program(since=(0, 18))
def sync_close_fails(w):
    def close():
        raise LookupError("close")

    w.client(sync=True, transport=SyncAnswers(Body(close=close))).get("http://x.test/")


@program(python=(3, 7))
def asyncio_run(w):
    async def pieces(client):
        async with client.stream("GET", w.url + LONG) as response:
            async for piece in response.aiter_bytes():
                yield piece

    async def main():
        async with w.AsyncClient(trust_env=False) as client:
            generator = pieces(client)
            w.notes.append(await generator.__anext__())
            w.notes.append((await client.get(w.url + "/ok")).text)
            await generator.aclose()

    for _ in range(2):
        asyncio.run(main())


@program
def a_client_for_two_loops(w):
    client = w.AsyncClient(trust_env=False)

    async def get():
        w.notes.append((await client.get(w.url + "/close")).text)

    run(None, "asyncio", get)
    run(None, "asyncio", get)
    run(None, "asyncio", client.aclose)
