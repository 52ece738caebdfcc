"""The server of a benchmark, in a process of its own, so that only the client is measured."""

import asyncio
import os
import sys


def serve(answer, quiet=False):
    """Let answer(reader, writer) talk to each client until stdin ends; prints the port first.

    `quiet`: nothing is said of clients that are gone while they are written to.
    """

    async def talk(reader, writer):
        try:
            await answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    if quiet:
        loop.set_exception_handler(lambda loop, context: None)
    server = loop.run_until_complete(asyncio.start_server(talk, "127.0.0.1", 0, backlog=4096))
    print(server.sockets[0].getsockname()[1], flush=True)
    loop.run_until_complete(loop.run_in_executor(None, sys.stdin.read))
    os._exit(0)
