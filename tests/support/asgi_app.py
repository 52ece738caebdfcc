"""The routes of a sweep as an ASGI application, on hypercorn: asgi_app.py SOCKET [CERTIFICATE].

It ends when its standard input does.
"""

import asyncio
import functools
import os
import sys
import threading

HEADERS = {"/redirect": [(b"location", b"/get")]}
BODIES = {
    "/get": [b"hello"],
    "/chunked": [b"chunk %d\n" % number for number in range(4)],
    "/redirect": [b"mov", b"ed on"],
}


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": "lifespan.%s.complete" % step})
        return
    length, more = 0, True
    while more:
        message = await receive()
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
    path = scope["path"]
    status = 302 if path in HEADERS else 200
    headers = HEADERS.get(path, [])
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for part in BODIES.get(path, [b"%d" % length]):
        # The client comes round to its next read, as with the servers of this package.
        await asyncio.sleep(0.001)
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def main(sock, certificate=None):
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    config = Config()
    config.bind = ["fd://" + sock]
    config.certfile = config.keyfile = certificate
    config.errorlog = None  # Clients that go away are what this is for.
    threading.Thread(target=lambda: sys.stdin.read() or os._exit(0), daemon=True).start()
    # The last hypercorn for Python 3.6 speaks ASGI 2.
    served = app if sys.version_info >= (3, 7) else lambda scope: functools.partial(app, scope)
    asyncio.new_event_loop().run_until_complete(serve(served, config))


if __name__ == "__main__":
    main(*sys.argv[1:])
