"""Run sequences of steps, each in a process of its own, and print what was so after each step.

    python -m tests.stacking.driver sentry "ours theirs" "theirs ours -ours"
"""

import asyncio
import contextlib
import json
import os
import sys
import traceback

import httpx

import httpx_cancel_safe
from tests.stacking.tools import TOOLS
from tests.support.servers import raw_server

AsyncClient = httpx.AsyncClient  # As code has it that took it early.


def options():
    """There is no TLS, so load no certificates."""
    limits, timeout = httpx.Limits(max_connections=1), httpx.Timeout(20, pool=0.1)
    return {"limits": limits, "timeout": timeout, "trust_env": False, "verify": False}


def address(tool, server):
    """Mocks are told to answer for localhost, and to let 127.0.0.1 pass."""
    return (server.url.replace("127.0.0.1", "localhost") if tool.mocks else server.url) + "/get"


async def survives(client, server):
    """Whether a request that is cancelled while it reads leaves its connection to the next one."""
    server.gates.clear()
    task = asyncio.ensure_future(client.get(server.url + "/gate/closed"))
    while not server.gates:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.005)  # What the server sent is there: a few passes of the loop are enough.
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled(), task
    try:
        assert (await client.get(server.url + "/get")).content == b"hello"
        return True
    except httpx.PoolTimeout:
        return False
    finally:
        with contextlib.suppress(RuntimeError):  # "The connection pool was closed while ..."
            await client.aclose()


async def facts(tool, began, server):
    found = {"is_patched": httpx_cancel_safe.is_patched(), "effects": 0, "sync effects": 0}
    if began:
        with tool.watch():
            async with tool.client(**options()) as client:
                response = await client.get(address(tool, server))
        found["effects"] = tool.count(response)
    if began and tool.wraps_sync:
        with tool.watch(), httpx.Client(**options()) as client:
            response = client.get(address(tool, server))
        found["sync effects"] = tool.count(response)
    released = httpx_cancel_safe.stats().released
    with tool.watch() if began else contextlib.ExitStack():
        clients = [tool.client(**options()), AsyncClient(**options())]
        found["survives"] = [await survives(client, server) for client in clients]
    found["released"] = httpx_cancel_safe.stats().released - released
    return found


def run(tool, steps, known):
    """Print what is so after each of the steps, but for the beginnings that are `known`."""
    act = tool.steps(httpx_cancel_safe)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    with raw_server() as server:
        for end, step in enumerate(steps, 1):
            act[step]()
            if steps[:end] not in known:
                result = loop.run_until_complete(facts(tool, "theirs" in steps[:end], server))
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
