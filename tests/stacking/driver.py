"""Go through sequences of steps, each in a process of its own, and print what is so at the end of each.

    python -m tests.stacking.driver sentry "ours theirs" "theirs ours -ours"
"""

import asyncio
import contextlib
import json
import multiprocessing
import sys

import httpx

import httpx_cancel_safe
from httpx_cancel_safe.report.checks import describe_process
from tests.stacking.tools import TOOLS
from tests.support.servers import raw_server

AsyncClient = httpx.AsyncClient  # As code has it that took it early.
# There is no TLS, so load no certificates.
OPTIONS = {"trust_env": False, "verify": False}
OPTIONS.update(limits=httpx.Limits(max_connections=1), timeout=httpx.Timeout(20, pool=0.1))


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
    found["report"] = json.loads(describe_process())
    url = server.url.replace("127.0.0.1", "localhost") + "/get"  # What mocks answer for.
    if began:
        tool.seen.clear()
        with tool.watch():
            async with tool.client(**OPTIONS) as client:
                response = await client.get(url)
        found["effects"] = tool.count(response)
        tool.seen.clear()
        with tool.watch(), httpx.Client(**OPTIONS) as client:
            response = client.get(url)
        found["sync effects"] = tool.count(response)
    released = httpx_cancel_safe.stats().released
    with tool.watch() if began else contextlib.ExitStack():
        clients = [tool.client(**OPTIONS), AsyncClient(**OPTIONS)]
        found["survives"] = [await survives(client, server) for client in clients]
    found["released"] = httpx_cancel_safe.stats().released - released
    return found


def run(tool, sequence):
    ours = {"ours": httpx_cancel_safe.patch, "-ours": httpx_cancel_safe.unpatch}
    theirs = {"import": "load", "theirs": "put_on", "-theirs": "take_off"}
    steps = sequence.split()
    for step in steps:
        act = ours.get(step) or getattr(tool, theirs[step])
        act()
    asyncio.set_event_loop(asyncio.new_event_loop())
    with raw_server() as server:
        found = asyncio.get_event_loop().run_until_complete(facts(tool, "theirs" in steps, server))
    print(json.dumps([sequence, found]), flush=True)


def main(name, *sequences):
    tool = TOOLS[name]()
    tool.prepare()
    for sequence in sequences:
        process = multiprocessing.get_context("fork").Process(target=run, args=(tool, sequence))
        process.start()
        process.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
