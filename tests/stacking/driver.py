"""Run sequences of steps, each in a process of its own, and print what was so after each step.

    python -m tests.stacking.driver sentry "ours theirs" "theirs ours -ours"
"""

import asyncio
import http.server
import json
import os
import sys
import threading
import traceback
import types

import httpx

import httpx_cancel_safe
from httpx_cancel_safe import _patch, _send
from tests.stacking.tools import TOOLS

AsyncClient = httpx.AsyncClient  # As code has it that took it early.

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"


class Server:
    """In the loop of the client, so that there is no thread that a fork would leave behind."""

    def __init__(self, tool):
        self._tool = tool

    async def __aenter__(self):
        self.reached = asyncio.Event()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info):
        self._server.close()

    async def _serve(self, reader, writer):
        try:
            while True:
                lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                self._tool.asked = lines[1:]
                if lines[0].startswith("GET /get "):
                    writer.write(HEAD + b"hello")
                    continue
                writer.write(HEAD + b"he")  # And no more.
                self.reached.set()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


def options():
    return {
        "limits": httpx.Limits(max_connections=1),
        "timeout": httpx.Timeout(20, pool=0.1),
        "trust_env": False,
        "verify": False,  # There is no TLS, so load no certificates.
    }


async def survives(client, server):
    """Whether a request that is cancelled while it reads leaves its connection to the next one."""
    server.reached.clear()
    base = "http://127.0.0.1:%d" % server.port
    task = asyncio.ensure_future(client.get(base + "/hang"))
    await server.reached.wait()
    await asyncio.sleep(0.005)  # What the server sent is there: a few rounds of the loop are enough.
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled(), task
    try:
        assert (await client.get(base + "/get")).content == b"hello"
        return True
    except httpx.PoolTimeout:
        return False
    finally:
        try:
            await client.aclose()
        except RuntimeError:
            pass  # "The connection pool was closed while ..."


async def effects(tool, server):
    """How often theirs acted on one request."""
    # They are told to answer for localhost, and to let 127.0.0.1 pass.
    host = "localhost" if tool.mocks else "127.0.0.1"
    tool.begin()
    async with tool.client(**options()) as client:
        response = await client.get("http://%s:%d/get" % (host, server.port))
    seen = tool.end()
    return int(response.content == b"mocked") if tool.mocks else seen


def sync_effects(tool, began):
    """The same for the sync client; the server is in a thread, and gone before the next fork."""
    if not began or not tool.wraps_sync:
        return 0
    with http.server.HTTPServer(("127.0.0.1", 0), SyncHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            host = "localhost" if tool.mocks else "127.0.0.1"
            tool.begin()
            with httpx.Client(**options()) as client:
                response = client.get("http://%s:%d/get" % (host, server.server_port))
            seen = tool.end()
        finally:
            server.shutdown()
            thread.join()
    return int(response.content == b"mocked") if tool.mocks else seen


class SyncHandler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.wfile.write(HEAD + b"hello")

    def log_message(self, *args):
        pass


def guards():
    """How many of our guards are on `send`, of the async and of the sync client."""
    return [
        # By type(), as a wrapper of wrapt's looks in every other way like what it wraps.
        sum(
            type(layer) is types.FunctionType and id(layer.__code__) in _send._GUARDS
            for layer in _patch.layers(vars(client)["send"])
        )
        for client in (httpx._client.AsyncClient, httpx._client.Client)
    ]


async def facts(tool, began):
    async with Server(tool) as server:
        found = {
            "is_patched": httpx_cancel_safe.is_patched(),
            "guards": guards(),
            "effects": await effects(tool, server) if began else 0,
        }
        released = httpx_cancel_safe.stats().released
        if began:
            tool.begin()
        clients = [tool.client(**options()), AsyncClient(**options())]
        found["survives"] = [await survives(client, server) for client in clients]
        if began:
            tool.end()
        found["released"] = httpx_cancel_safe.stats().released - released
    return found


def run(tool, steps, known):
    """Print what is so after each of the steps, but for the beginnings that are `known`."""
    act = {
        "ours": httpx_cancel_safe.patch,
        "-ours": httpx_cancel_safe.unpatch,
        "import": getattr(tool, "load", None),
        "theirs": tool.put_on,
        "-theirs": tool.take_off,
    }
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    began = False
    for end, step in enumerate(steps, 1):
        act[step]()
        began = began or step == "theirs"
        if steps[:end] not in known:
            result = loop.run_until_complete(facts(tool, began))
            result["sync effects"] = sync_effects(tool, began)
            print(json.dumps([" ".join(steps[:end]), result]), flush=True)


def main(name, *sequences):
    tool = TOOLS[name]()
    tool.prepare()
    known = []
    for sequence in sequences:
        steps = sequence.split()
        sys.stdout.flush()
        child = os.fork()
        if not child:
            try:
                run(tool, steps, known)
            except BaseException:
                print(json.dumps([sequence, traceback.format_exc()]), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        known += [steps[:end] for end in range(1, len(steps) + 1)]


if __name__ == "__main__":
    main(*sys.argv[1:])
