"""A service that knows nothing of the library: an ASGI application that asks an upstream with httpx.

`/fetch/...` passes the path on to the upstream, and cancels that when its own client hangs up.
`/pool` tells what is going on: requests under way, and places taken in httpx's pool.
"""

import json
import os

import anyio
import httpx

LIMIT = 10

client = httpx.AsyncClient(
    trust_env=False,
    limits=httpx.Limits(max_connections=LIMIT, max_keepalive_connections=LIMIT),
    timeout=httpx.Timeout(20, pool=0.5),
)
under_way = 0


async def app(scope, receive, send):
    global under_way
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await client.aclose()
        await send({"type": "lifespan.shutdown.complete"})
    elif scope["path"] == "/pool":
        pool = client._transport._pool
        taken = sum(not connection.is_idle() for connection in pool.connections)
        state = {"under way": under_way, "taken": taken, "requests": len(pool._requests)}
        await answer(send, 200, json.dumps(state))
    else:
        under_way += 1
        try:
            await fetch(scope["path"][len("/fetch") :], receive, send)
        finally:
            under_way -= 1


async def fetch(path, receive, send):
    await receive()  # The request, which has no body.
    async with anyio.create_task_group() as group:  # As Starlette has it.

        async def hear_hang_up():
            await receive()
            group.cancel_scope.cancel()

        group.start_soon(hear_hang_up)
        try:
            response = await client.get(os.environ["UPSTREAM"] + path)
        except httpx.HTTPError as exc:
            await answer(send, 503, type(exc).__name__)
        else:
            await answer(send, 200, response.text)
        group.cancel_scope.cancel()


async def answer(send, status, text):
    body = text.encode()
    headers = [(b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
