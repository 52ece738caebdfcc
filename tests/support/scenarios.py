"""What a caller may be doing when the cancel arrives: each scenario uses one client, from start to end."""

import anyio

from .compat import HTTPX, httpx
from .servers import HELLO, LARGE

SCENARIOS = {}


def scenario(name, stride=1):
    """Enter a scenario; with a stride, later suspension points are tried only in steps of it."""

    def enter(function):
        function.name = name
        function.stride = stride
        SCENARIOS[name] = function
        return function

    return enter


def content(body):
    # httpx knows `content` from 0.18 on; `data` took bytes and iterators before.
    return {"content": body} if HTTPX >= (0, 18) else {"data": body}


def expect(response, body=HELLO):
    assert response.status_code == 200, response
    assert response.content == body, response.content[:100]


@scenario("get")
async def get(client, url):
    expect(await client.get(url + "/get"))


@scenario("chunked")
async def chunked(client, url):
    assert (await client.get(url + "/chunked")).content.count(b"chunk") == 4


@scenario("slow-headers")
async def slow_headers(client, url):
    expect(await client.get(url + "/slow-headers"))


@scenario("post")
async def post(client, url):
    expect(await client.post(url + "/post", **content(b"x" * 100)), b"100")


@scenario("post-generator")
async def post_generator(client, url):
    async def body():
        for _ in range(3):
            await anyio.sleep(0)
            yield b"x" * 10

    expect(await client.post(url + "/post", **content(body())), b"30")


@scenario("redirect")
async def redirect(client, url):
    expect(await client.get(url + "/redirect"))


@scenario("two-redirects")
async def two_redirects(client, url):
    expect(await client.get(url + "/redirect-chunked"))


@scenario("digest")
async def digest(client, url):
    expect(await client.get(url + "/digest", auth=httpx.DigestAuth("user", "password")))


class AwaitingAuth(httpx.Auth):
    """An auth flow that suspends between its requests, and after them."""

    requires_response_body = True

    async def async_auth_flow(self, request):
        await anyio.sleep(0)
        response = yield request
        await response.aread()
        await anyio.sleep(0)
        response = yield request
        await response.aread()
        await anyio.sleep(0)


@scenario("auth-flow")
async def auth_flow(client, url):
    expect(await client.get(url + "/get", auth=AwaitingAuth()))


class ReadingAuth(httpx.Auth):
    """The plain kind of flow: httpx reads each response for it."""

    requires_response_body = True

    def auth_flow(self, request):
        yield request
        yield request


@scenario("auth-body")
async def auth_body(client, url):
    expect(await client.get(url + "/get", auth=ReadingAuth()))


async def _awaiting_hook(message):
    await anyio.sleep(0)
    await anyio.sleep(0)


async def _reading_hook(response):
    await response.aread()
    await anyio.sleep(0)


@scenario("hooks")
async def hooks(client, url):
    client.event_hooks = {"request": [_awaiting_hook], "response": [_awaiting_hook]}
    expect(await client.get(url + "/redirect"))


@scenario("hook-reads")
async def hook_reads(client, url):
    client.event_hooks = {"response": [_reading_hook]}
    expect(await client.get(url + "/redirect"))


@scenario("stream")
async def stream(client, url):
    async with client.stream("GET", url + "/chunked") as response:
        assert (await response.aread()).count(b"chunk") == 4


@scenario("stream-unread")
async def stream_unread(client, url):
    async with client.stream("GET", url + "/chunked"):
        await anyio.sleep(0)


@scenario("stream-left")
async def stream_left(client, url):
    async with client.stream("GET", url + "/chunked") as response:
        chunks = response.aiter_bytes()
        await chunks.__anext__()
        await anyio.sleep(0)
        # Python 3.6 and trio complain about generators that are simply dropped.
        await chunks.aclose()


@scenario("send-aclose")
async def send_aclose(client, url):
    response = await client.send(client.build_request("GET", url + "/chunked"), stream=True)
    try:
        await anyio.sleep(0)
    finally:
        await response.aclose()


@scenario("send-read-aclose")
async def send_read_aclose(client, url):
    response = await client.send(client.build_request("GET", url + "/chunked"), stream=True)
    try:
        async for _ in response.aiter_raw():
            await anyio.sleep(0)
    finally:
        await response.aclose()


@scenario("large", stride=19)
async def large(client, url):
    expect(await client.get(url + "/large"), LARGE)


@scenario("two-requests")
async def two_requests(client, url):
    """The second one finds an idle connection: no connecting."""
    expect(await client.get(url + "/get"))
    expect(await client.get(url + "/get"))
