"""The routes of a sweep as an ASGI application, for hypercorn."""

import asyncio


async def lifespan(receive, send):
    for step in ("startup", "shutdown"):
        await receive()
        await send({"type": "lifespan.%s.complete" % step})


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    while (await receive()).get("more_body"):
        pass
    is_moved = scope["path"] == "/redirect"
    headers = [(b"location", b"/get")] if is_moved else []
    await send({"type": "http.response.start", "status": 302 if is_moved else 200, "headers": headers})
    for part in [b"mov", b"ed on"] if is_moved else [b"hello"]:
        # The client comes round to its next read, as with the servers of this package.
        await asyncio.sleep(0.001)
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
