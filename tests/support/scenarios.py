"""What a caller may be doing when the cancel arrives: each scenario uses one client, from start to end."""

import anyio

from .compat import content, httpx
from .servers import HELLO, LARGE


def expect(response, body=HELLO):
    assert response.status_code == 200, response
    assert response.content == body, response.content[:100]


async def get(client, url):
    expect(await client.get(url + "/get"))


async def post(client, url):
    expect(await client.post(url + "/post", **content(b"x" * 100)), b"POST /post 100")


async def post_generator(client, url):
    async def body():
        try:
            for _ in range(3):
                await anyio.sleep(0)
                yield b"x" * 10
        finally:
            await anyio.sleep(0)

    sent = body()
    try:
        expect(await client.post(url + "/post", **content(sent)), b"POST /post 30")
    finally:
        await sent.aclose()


async def redirect(client, url):
    expect(await client.get(url + "/redirect"))


async def digest(client, url):
    expect(await client.get(url + "/digest", auth=httpx.DigestAuth("user", "password")))


class AwaitingAuth(httpx.Auth):
    """Suspends between its requests, and in its `finally`: in a cancelled scope that raises anew."""

    requires_response_body = True

    async def async_auth_flow(self, request):
        try:
            await anyio.sleep(0)
            response = yield request
            await response.aread()
            await anyio.sleep(0)
            yield response.request
        finally:
            await anyio.sleep(0)
            await anyio.sleep(0)


async def auth(client, url):
    expect(await client.get(url + "/redirect", auth=AwaitingAuth()))


async def hook_that_cleans_up(message):
    try:
        await anyio.sleep(0)
    finally:
        await anyio.sleep(0)


async def hooks(client, url):
    hook = hook_that_cleans_up
    client.event_hooks = {"request": [hook], "response": [hook, httpx.Response.aread, hook]}
    expect(await client.get(url + "/redirect"))


async def stream(client, url):
    async with client.stream("GET", url + "/chunked") as response:
        assert (await response.aread()).count(b"chunk") == 4


async def stream_unread(client, url):
    async with client.stream("GET", url + "/chunked"):
        await anyio.sleep(0)


async def stream_left(client, url):
    async with client.stream("GET", url + "/chunked") as response:
        chunks = response.aiter_bytes()
        await chunks.__anext__()
        await anyio.sleep(0)
        # Python 3.6 and trio complain about generators that are simply dropped.
        await chunks.aclose()


async def send_and_close(client, url):
    response = await client.send(client.build_request("GET", url + "/chunked"), stream=True)
    try:
        async for _ in response.aiter_raw():
            await anyio.sleep(0)
    finally:
        await response.aclose()


async def large(client, url):
    """More than HTTP/2 lets the server send at once."""
    expect(await client.get(url + "/large"), LARGE)


async def two_requests(client, url):
    """The second one finds an idle connection: no connecting."""
    await get(client, url)
    await get(client, url)


SCENARIOS = [get, post, post_generator, redirect, digest, auth, hooks]
SCENARIOS += [stream, stream_unread, stream_left, send_and_close, large, two_requests]
