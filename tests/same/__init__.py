"""Run small programs plain, with `patch()`, with the Safe classes and after `unpatch()`.

A program is a function that takes a `World`, which gives it clients, URLs and the classes to derive from.
What it returns or raises is noted, and so is what others can see: connections, warnings, log records.
"""

import functools
import gc
import inspect
import logging
import types

import anyio
import httpx

import httpx_cancel_safe

from ..support.compat import make_client, pool_of, states
from ..support.noise import Noise, in_words
from ..support.stepping import passes, run

PROGRAMS = {}


def program(function=None, name=None, **needs):
    """Add a program; `since` and `python` are the lowest releases that it runs on, `on` its loops."""
    if function is None:
        return lambda function: program(function, name, **needs)
    needs.setdefault("on", ("asyncio", "trio") if inspect.iscoroutinefunction(function) else ("sync",))
    PROGRAMS[name or function.__name__] = types.SimpleNamespace(run=function, **needs)
    return function


class World:
    """What a program has: clients of the kind that it is tried with, and a server."""

    def __init__(self, server, mode):
        self.server = server
        self.url, self.other, self.third = server.urls
        self.AsyncClient = httpx_cancel_safe.SafeAsyncClient if mode == "class" else httpx.AsyncClient
        self.Client = httpx_cancel_safe.SafeClient if mode == "class" else httpx.Client
        self.clients = []
        self.notes = []

    def client(self, base=None, sync=False, verify=False, limit=10, pool_timeout=5, timeout=5, **options):
        """Make a client, and remember it."""
        base = base or (self.Client if sync else self.AsyncClient)
        # To load certificates takes longer than a program.
        self.clients.append(make_client(base, verify, limit, pool_timeout=pool_timeout, timeout=timeout, **options))
        return self.clients[-1]

    def seen(self, outcome):
        """Begin the account of a program that has ended."""
        pools = [states(client) for client in self.clients if hasattr(pool_of(client), "_max_connections")]
        while hasattr(gc, "freeze") and gc.collect():  # What a finalizer lets go is garbage in the next pass.
            pass
        objects = gc.get_objects() if hasattr(gc, "freeze") else []  # Python 3.6 has too many to go through.
        kept = [one for one in objects if "HTTPConnection" in type(one).__name__ and not getattr(one, "via", None)]
        connections = {"connections made": self.server.opened, "connections kept": len(kept)}
        return dict(connections, outcome=outcome, pools=pools, notes=self.notes)


async def _settle():
    await passes(20)
    await anyio.sleep(0.002)


async def _outcome(coroutine):
    try:
        return ("returned", await coroutine)
    except BaseException as exc:
        return ("raised", in_words(exc))


async def _async(function, world):
    outcome = await _outcome(function(world))
    await _settle()
    account = world.seen(outcome)
    account["closing"] = [await _outcome(client.aclose()) for client in world.clients]
    gc.collect()
    await _settle()
    return account


def _sync(function, world):
    try:
        outcome = ("returned", function(world))
    except BaseException as exc:
        outcome = ("raised", in_words(exc))
    account = world.seen(outcome)
    for client in world.clients:
        client.close()
    return account


def account_of(name, mode, backend, server):
    """Run a program; return what it came to, by heading."""
    server.reset()
    function = PROGRAMS[name].run
    with Noise(None, logging.DEBUG) as noise:
        if mode in ("patch", "unpatched"):
            httpx_cancel_safe.patch()
        if mode == "unpatched":
            httpx_cancel_safe.unpatch()
        world = World(server, mode)
        try:
            if backend == "sync":
                account = _sync(function, world)
            else:
                # Without a limit, which would be a scope around the program.
                account = run(noise, backend, functools.partial(_async, function, world), seconds=None)
        finally:
            httpx_cancel_safe.unpatch()
        server.gone(seconds=0.1)
        left = server.open_connections
        world.clients = []
        gc.collect()
        heard = noise.take()
    account["sockets left"] = left + len([one for one in heard if "unclosed" in one])
    # The second is asyncio's, of TLS that is closed politely on httpcore 0.11.
    of_closing = ("warning: ResourceWarning", "logged: asyncio WARNING returning true from eof_received")
    account["heard"] = [one for one in heard if not one.startswith(of_closing)]
    return account
