"""Response streams with needs of their own, interrupted at every point where their request suspends.

The transport here answers from memory. Each stream takes several awaits to close, and says what became
of it. Nothing depends on the clock.
"""

import itertools

import anyio

from . import compat, scenarios
from .compat import httpx
from .noise import say, strip
from .stepping import Abort
from .sweep import sweep
from .transports import Adapter, AsyncAdapter, AsyncStreamBase, Body

try:
    import contextvars

    caller = contextvars.ContextVar("caller")
except ImportError:  # Python 3.6.
    caller = None

URL = "http://custom.test"
NEXT = 1e-9  # In the next pass. This waits for something that comes from the loop, not by a bare yield.
SCENARIOS = [scenarios.redirect, scenarios.hooks, scenarios.auth]
SCENARIOS += [scenarios.stream, scenarios.stream_unread, scenarios.send_and_close]
# What they ask for: status, headers and body.
ANSWERS = {
    "/get": (200, [], [b"hel", b"lo"]),
    "/chunked": (200, [], [b"chunk"] * 4),
    "/redirect": (302, [(b"location", b"/get")], [b"moved"]),
}


class Stream(AsyncStreamBase):
    """Marks itself closed first, as httpcore's streams do: a second close does nothing."""

    again = False  # Whether a close that was interrupted can be done again.

    def __init__(self, case, chunks):
        self.case = case
        self.chunks = chunks
        self.began = self.ended = 0
        self.raised = False

    async def opened(self):
        """Called by the transport, in the task of the request."""
        self.task = anyio.get_current_task().id

    async def __aiter__(self):
        for chunk in self.chunks:
            await anyio.sleep(0)
            yield chunk

    async def aclose(self):
        if self.began and not self.again:
            return
        self.began += 1
        try:
            await anyio.sleep(0)
            await anyio.sleep(NEXT)
            await self.need()
            await anyio.sleep(0)
        except Abort:
            self.raised = True
            raise
        self.ended += 1

    async def need(self):
        """Expect to be closed by the task that opened this, in its context."""
        if anyio.get_current_task().id != self.task:
            self.case.problems.append("closed by another task")
        if caller is not None and caller.get(None) is not self.case:
            self.case.problems.append("closed in another context")


class Again(Stream):
    """Can be closed again, to the end, by any task."""

    again = True

    async def need(self):
        pass


class HoldsScope(Stream):
    """Holds a cancel scope open from the request on until it is closed."""

    async def opened(self):
        self.scope = anyio.CancelScope()
        self.scope.__enter__()

    async def need(self):
        scope, self.scope = self.scope, None
        if scope is not None:
            scope.__exit__(None, None, None)

    async def aclose(self):
        try:
            await super().aclose()
        except Abort:
            await self.need()
            raise


KINDS = [Stream, Again, HoldsScope]


class Case(AsyncAdapter):
    """A transport that knows the streams that it has opened; a sweep watches it as it does a server."""

    def __init__(self, kind, may_be_struck):
        self.kind = kind
        self.may_be_struck = may_be_struck
        self.reset()

    def reset(self):
        self.streams = []
        self.problems = []

    async def exchange(self, asked):
        await anyio.sleep(NEXT)
        await anyio.sleep(0)
        status, headers, chunks = ANSWERS[asked.path]
        stream = self.kind(self, chunks)
        await stream.opened()
        self.streams.append(stream)
        return status, headers, stream

    def __repr__(self):
        """What is wrong with the streams; a close that was struck is left out where that is allowed."""
        found = list(self.problems)
        for stream in self.streams:
            if stream.ended or (stream.began and (stream.raised or self.may_be_struck)):
                if stream.ended > 1 and not stream.again:
                    found.append("closed %d times" % stream.ended)
            else:
                found.append("closed half" if stream.began else "never closed")
        return ", ".join(found)

    @property
    def open_connections(self):
        return len(repr(self))


def sweep_streams(mode, scenario, kind, client_class):
    """Interrupt a request at each of its suspensions."""
    # What a native cancel strikes within a close that cannot be done again is left as httpx leaves it.
    case = Case(kind, mode in ("once", "twice") and not kind.again)

    def client():
        case.reset()
        if caller is not None:
            caller.set(case)
        return client_class(transport=case, trust_env=False, **compat.FOLLOW)

    return sweep(scenario, mode, URL, [case], client, closed_within=0, stride=1)


class SyncCase(Adapter, httpx.Auth):
    """The same for the sync client: raises at its k-th point. `close_error` is what closes raise, or None."""

    def __init__(self, k, error, close_error):
        self.raises, self.close_error = error, close_error
        self.left = k
        self.bodies = []

    def point(self, message=None):
        self.left -= 1
        if not self.left:
            raise self.raises

    def close_body(self):
        self.point()
        if self.close_error is not None:
            raise self.close_error

    def exchange(self, asked):
        self.point()
        self.bodies.append(Body(self.point, self.close_body))
        return ANSWERS[asked.path][:2] + (self.bodies[-1],)

    def sync_auth_flow(self, request):
        try:
            yield request
            self.point()
            yield request
        finally:
            self.point()

    def run(self, client):
        client.event_hooks = {"response": [self.point]}
        client.get(URL + "/redirect")
        client.get(URL + "/get", auth=self)
        with client.stream("GET", URL + "/get") as response:
            self.point()
            for _ in response.iter_raw():
                pass
            self.point()


def sync_sweep(error, client_class, close_error):
    faults = []
    for k in itertools.count(1):
        case = SyncCase(k, error("sync"), close_error)
        with client_class(transport=case, trust_env=False, **compat.FOLLOW) as client:
            try:
                case.run(client)
            except BaseException as exc:
                if exc is not case.raises and exc is not close_error:
                    faults.append("k=%d: another exception came out: %s" % (k, say(exc)))
                strip(exc)
        faults += ["k=%d: closed %d times" % (k, body.began) for body in case.bodies if body.began != 1]
        if case.left > 0:
            return k - 1, faults
