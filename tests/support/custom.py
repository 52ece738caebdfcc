"""Requests through custom transports, interrupted at every point where they suspend.

The transports here answer from memory, through streams that need several awaits to close. As
httpcore's streams do, they mark themselves `closing` first, so that a close that was interrupted
cannot be tried again. The engine drives one request by hand, one suspension at a time, interrupts
it at the point it was told, and says what is wrong afterwards. Nothing depends on the clock.

    PYTHONPATH=src:. python -m tests.support.custom --net patch

prints the table, from the repository's root; `--net none` that of httpx alone, and `-v` one line
a fault.
"""

import argparse
import asyncio
import contextlib
import gc
import logging
import sys
import time
import traceback
import types
import warnings

import anyio

try:
    import httpx
except ImportError:  # The live fork, where it is installed alone.
    import httpx2 as httpx

try:
    import trio
except Exception:  # Not installed, or too old for this Python.
    trio = None

try:
    import contextvars
except ImportError:
    contextvars = None

HTTPX = tuple(int(part) for part in httpx.__version__.split(".")[:2])

FIXED = HTTPX >= (0, 23)

URL = "http://custom.test"
BODY = [b"one ", b"two ", b"three"]

logger = logging.getLogger("httpx_cancel_safe")

ANYIO_4 = not hasattr(anyio, "open_cancel_scope")

PY37 = sys.version_info >= (3, 7)  # From here on context variables follow tasks.
PY39 = sys.version_info >= (3, 9)  # What is thrown into a coroutine gets a context.
PY311 = sys.version_info >= (3, 11)
PY313 = sys.version_info >= (3, 13)  # Async generators are told that they are dropped.

if PY37:
    caller = contextvars.ContextVar("caller")


class Abort(BaseException):
    """What gevent, a debugger or a worker's shutdown may throw: no Exception, nobody's own."""


class Refused(Exception):
    """An ordinary failure of a stream, a hook or a cookie jar."""


# -- One transport for three transport APIs ----------------------------------------------------

if HTTPX >= (0, 18):
    AsyncTransportBase = httpx.AsyncBaseTransport
    TransportBase = httpx.BaseTransport
    AsyncStreamBase = httpx.AsyncByteStream
    StreamBase = httpx.SyncByteStream
else:
    import httpcore

    AsyncTransportBase = httpcore.AsyncHTTPTransport
    TransportBase = httpcore.SyncHTTPTransport
    AsyncStreamBase = httpcore.AsyncByteStream
    StreamBase = httpcore.SyncByteStream

FOLLOW = {"follow_redirects": True} if HTTPX >= (0, 20) else {}


class Asked:
    """A request, in whichever form this httpx hands it to a transport."""

    def __init__(self, path, headers):
        self.path = path
        self.headers = headers

    @classmethod
    def from_parts(cls, url, headers):
        names = {name.lower(): value for name, value in headers}
        return cls(url[3].decode(), names)

    @classmethod
    def from_request(cls, request):
        names = {name.lower(): value for name, value in request.headers.raw}
        return cls(request.url.path, names)


class AsyncAdapter(AsyncTransportBase):
    """Subclasses write `exchange(asked) -> (status, headers, stream)` for every httpx."""

    async def exchange(self, asked):
        raise NotImplementedError

    if HTTPX >= (0, 20):

        async def handle_async_request(self, request):
            status, headers, stream = await self.exchange(Asked.from_request(request))
            return httpx.Response(status, headers=headers, stream=stream)

    elif HTTPX >= (0, 18):

        async def handle_async_request(self, method, url, headers, stream, extensions):
            status, headers, stream = await self.exchange(Asked.from_parts(url, headers))
            return status, headers, stream, {}

    else:

        async def arequest(self, method, url, headers=None, stream=None, ext=None):
            status, headers, stream = await self.exchange(Asked.from_parts(url, headers))
            return status, headers, stream, {}


class Adapter(TransportBase):
    """The same for the sync client."""

    def exchange(self, asked):
        raise NotImplementedError

    if HTTPX >= (0, 20):

        def handle_request(self, request):
            status, headers, stream = self.exchange(Asked.from_request(request))
            return httpx.Response(status, headers=headers, stream=stream)

    elif HTTPX >= (0, 18):

        def handle_request(self, method, url, headers, stream, extensions):
            status, headers, stream = self.exchange(Asked.from_parts(url, headers))
            return status, headers, stream, {}

    else:

        def request(self, method, url, headers=None, stream=None, ext=None):
            status, headers, stream = self.exchange(Asked.from_parts(url, headers))
            return status, headers, stream, {}


def route(asked):
    """The server: status and headers of its answer to one request."""
    if asked.path == "/redirect":
        return 302, [(b"location", b"/body")]
    if asked.path == "/digest" and b"authorization" not in asked.headers:
        challenge = b'Digest realm="r", nonce="n", qop="auth", algorithm=MD5'
        return 401, [(b"www-authenticate", challenge)]
    return 200, [(b"content-type", b"text/plain")]


# -- One run -----------------------------------------------------------------------------------


class Case:
    """One run: the streams that were opened, and what is to go wrong."""

    def __init__(self, library="asyncio", stream_class=None, transport_class=None, **options):
        self.library = library
        self.stream_class = stream_class or Stream
        self.transport_class = transport_class or Transport
        self.streams = []
        self.problems = []
        # Set by the engine.
        self.bare = False
        self.raise_at = 0
        self.raises = None
        self.pauses = 0
        self.interrupted = False
        self.in_block = False  # The user's code has a response in hand, and will close it.
        self.replacements = []  # What the clean-up of an auth flow raised of its own.
        self.task = None
        self.event_passes = 1  # After so many passes of the loop an event comes.
        self.limit_fires = None  # Tells whether a limit within a close has just run out.
        # What a test may ask for.
        self.close_error = options.pop("close_error", None)  # Raised once it was interrupted.
        self.close_failed = False
        self.close_hangs = options.pop("close_hangs", 0)  # How many cancels it takes to end it.
        self.on_chunk = options.pop("on_chunk", None)
        self.client_options = options

    async def pause(self, on_event=False):
        """Suspend once: by a bare yield, or by waiting for something that is about to happen."""
        self.count()
        if self.library != "asyncio":
            await self._pause_on_trio(on_event)
        elif on_event:
            loop = asyncio.get_event_loop()
            future = loop.create_future()
            after_passes(loop, self.event_passes, lambda: _resolve(future))
            await future
        else:
            await asyncio.sleep(0)

    async def _pause_on_trio(self, on_event):
        # A task that leaves a parking lot without being woken or cancelled breaks trio.
        if on_event and not self.bare:
            event = trio.Event()
            trio.lowlevel.current_trio_token().run_sync_soon(event.set)
            await event.wait()
        else:
            await trio.sleep(0)

    def count(self):
        """Raise what the run is to raise, when it has come to its point."""
        self.pauses += 1
        if self.pauses == self.raise_at:
            self.interrupted = True
            raise self.raises

    async def forever(self):
        if self.library == "asyncio":
            await asyncio.get_event_loop().create_future()
        else:
            await trio.sleep_forever()

    @property
    def closing_now(self):
        return any(stream.closing and not stream.closed_to_end for stream in self.streams)

    async def leave_what_failed(self):
        """Leave what is held open by streams whose close raised before it came to that.

        That close is not tried again, so that nobody else would; and trio breaks down over it.
        """
        for stream in self.streams:
            if stream.failed:
                await stream.leave()

    def open_streams(self):
        """What is wrong with the streams that the client was given."""
        faults = []
        for number, stream in enumerate(self.streams):
            if not stream.handed_out or stream.failed or stream.closed_to_end == 1:
                continue
            state = "never closed"
            if stream.closed_to_end:
                state = "closed %d times" % stream.closed_to_end
            elif stream.closing:
                state = "close cut short"
            faults.append("stream %d of %d %s" % (number + 1, len(self.streams), state))
        return faults


def _resolve(future):
    if not future.done():
        future.set_result(None)


class Stream(AsyncStreamBase):
    """A response body that suspends before each chunk and several times while it closes."""

    def __init__(self, case):
        self.case = case
        self.handed_out = False
        self.closing = False
        self.closed_to_end = 0
        self.failed = False
        case.streams.append(self)

    def opened(self):
        """Called by the transport, in the task of the request."""

    async def __aiter__(self):
        for chunk in BODY:
            await self.case.pause()
            if self.case.on_chunk is not None:
                self.case.on_chunk()
            yield chunk

    async def aclose(self):
        if self.closing:
            return
        self.closing = True
        try:
            await self.release()
        except (Refused, Abort, KeyboardInterrupt, SystemExit):
            self.failed = True
            raise
        self.closed_to_end += 1

    async def release(self):
        case = self.case
        await case.pause()
        await case.pause(on_event=True)
        await self.need()
        await case.pause()
        if case.interrupted and case.close_hangs:
            for _ in range(case.close_hangs - 1):
                with contextlib.suppress(asyncio.CancelledError):
                    await case.forever()
            await case.forever()
        if case.interrupted and case.close_error is not None:
            case.close_failed = True
            raise case.close_error

    async def need(self):
        """What a stream of a special kind does while it closes."""

    async def leave(self):
        """Leave what it still holds open."""


class Transport(AsyncAdapter):
    def __init__(self, case):
        self.case = case

    async def exchange(self, asked):
        await self.case.pause(on_event=True)
        await self.case.pause()
        status, headers = route(asked)
        stream = self.case.stream_class(self.case)
        stream.opened()
        stream.handed_out = True
        return status, headers, stream


# -- Streams with needs of their own -----------------------------------------------------------


class ScopeStream(Stream):
    """Holds a cancel scope open, from the request until it is closed."""

    def opened(self):
        self.scope = anyio.CancelScope()
        self.scope.__enter__()

    async def need(self):
        await self.leave()

    async def leave(self):
        scope, self.scope = self.scope, None
        if scope is not None:
            scope.__exit__(None, None, None)


class GroupStream(Stream):
    """Holds a task group open, with a child that reads ahead until the stream is closed."""

    def opened(self):
        self.group = anyio.create_task_group()
        entering = self.group.__aenter__()
        try:
            entering.send(None)
        except StopIteration:
            pass
        else:
            raise AssertionError("entering a task group suspends")
        start = getattr(self.group, "start_soon", None) or self.group.spawn
        start(self.case.forever)

    async def aclose(self):
        # A scope around the request cancels the child as well, and a group of trio's or anyio 4's with a
        # child that was cancelled is cancelled itself: what is cut short then is so by the stream's own.
        try:
            await Stream.aclose(self)
        except BaseException:
            cancels = self.case.library == "trio" or ANYIO_4
            if cancels and self.group is not None:
                self.failed = self.failed or self.group.cancel_scope.cancel_called
            raise

    async def need(self):
        await self.leave()

    async def leave(self):
        group, self.group = self.group, None
        if group is not None:
            group.cancel_scope.cancel()
            await group.__aexit__(None, None, None)


class OwnTaskStream(Stream):
    """Must be closed by the task that opened it, in its context."""

    def opened(self):
        self.task = self.whoami()

    def whoami(self):
        return current_task() if self.case.library == "asyncio" else trio.lowlevel.current_task()

    async def need(self):
        if self.whoami() is not self.task:
            self.case.problems.append("closed by another task")
        if PY37 and caller.get(None) is not self.case:
            self.case.problems.append("closed in another context")


class MoveOnStream(Stream):
    """Gives its peer a moment to say goodbye, with anyio's means."""

    async def need(self):
        with anyio.move_on_after(0.002) as scope:
            self.case.limit_fires = lambda: scope.cancel_called
            await self.case.forever()
        self.case.limit_fires = None
        if not scope.cancel_called:
            self.case.problems.append("move_on_after() did not fire")


class WaitForStream(Stream):
    """The same with asyncio's."""

    async def need(self):
        try:
            await asyncio.wait_for(self.wait(), 0.002)
        except asyncio.TimeoutError:
            self.case.limit_fires = None
            return
        self.case.problems.append("wait_for() did not fire")

    async def wait(self):
        future = asyncio.get_event_loop().create_future()
        if current_task() is self.case.task:  # From Python 3.12 on.
            self.case.limit_fires = future.cancelled
        await future


class TimeoutStream(Stream):
    """The same with those of Python 3.11."""

    async def need(self):
        try:
            async with asyncio.timeout(0.002) as limit:
                self.case.limit_fires = limit.expired
                await self.case.forever()
        except TimeoutError:
            self.case.limit_fires = None
            return
        self.case.problems.append("timeout() did not fire")


class FailingTaskGroupStream(Stream):
    """Waits in a task group for a child that fails, and takes that as the goodbye."""

    def group(self):
        return asyncio.TaskGroup()

    def is_ending(self, group):
        return group._aborting

    async def fail(self):
        if self.case.library == "asyncio":
            await asyncio.sleep(0)
        else:
            await trio.sleep(0)
        raise Refused("the child")

    async def need(self):
        try:
            async with self.group() as group:
                self.case.limit_fires = lambda: self.is_ending(group)
                start = getattr(group, "create_task", None)
                if start is not None:
                    start(self.fail())
                else:
                    group.start_soon(self.fail)
                await self.case.forever()
        except BaseException as exc:
            children = getattr(exc, "exceptions", [exc])
            if not any(isinstance(child, Refused) for child in children):
                raise
        else:
            self.case.problems.append("the group did not fail")
        self.case.limit_fires = None


class FailingAnyioGroupStream(FailingTaskGroupStream):
    def group(self):
        return anyio.create_task_group()

    def is_ending(self, group):
        return group.cancel_scope.cancel_called


NEEDS_ANYWHERE = [ScopeStream, GroupStream, OwnTaskStream, MoveOnStream, FailingAnyioGroupStream]
NEEDS_ASYNCIO = [WaitForStream] + ([TimeoutStream, FailingTaskGroupStream] if PY311 else [])


# -- Transports that wrap others ---------------------------------------------------------------


class RetryTransport(Transport):
    """Gives up a first answer, and hands out the second."""

    async def exchange(self, asked):
        refused = self.case.stream_class(self.case)
        await self.case.pause()
        await refused.aclose()  # Not the net's business: the client has not seen this one.
        return await Transport.exchange(self, asked)


class CachingStream(Stream):
    """Reads another stream, keeps what it read, and stores it when it is closed."""

    def opened(self):
        self.inner = Stream(self.case)
        self.inner.handed_out = True
        self.read = []

    async def __aiter__(self):
        async for chunk in self.inner:
            self.read.append(chunk)
            await self.case.pause()
            yield chunk

    async def need(self):
        await self.case.pause(on_event=True)
        await self.inner.aclose()

    async def release(self):
        try:
            await Stream.release(self)
        except (Refused, Abort):
            # It does not close the other one when it fails: its own doing.
            self.inner.failed = self.inner.failed or not self.inner.closing
            raise


async def _application(scope, receive, send):
    """An ASGI application."""
    case = scope["app_case"]
    await case.pause()
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for chunk in BODY:
        await case.pause(on_event=True)
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def asgi_transport(case):
    async def application(scope, receive, send):
        await _application(dict(scope, app_case=case), receive, send)

    return httpx.ASGITransport(app=application)


# -- Scenarios ---------------------------------------------------------------------------------


class SlowAuth(httpx.Auth):
    """Awaits before, between and after its requests, and while it is cleaned up."""

    def __init__(self, case):
        self.case = case

    async def async_auth_flow(self, request):
        await self.case.pause()
        for _ in range(2):
            try:
                yield request
            finally:
                try:
                    await self.case.pause()
                    await self.case.pause()
                except BaseException as exc:
                    self.case.replacements.append(exc)
                    raise
            await self.case.pause(on_event=True)

    def sync_auth_flow(self, request):
        self.case.count()
        for _ in range(2):
            try:
                yield request
            finally:
                self.case.count()
            self.case.count()


async def body(case, client):
    response = await client.get(URL + "/body")
    assert response.content == b"".join(BODY)


async def redirect(case, client):
    response = await client.get(URL + "/redirect")
    assert response.status_code == 200 and len(response.history) == 1


async def digest(case, client):
    response = await client.get(URL + "/digest", auth=httpx.DigestAuth("user", "password"))
    assert response.status_code == 200


async def auth_flow(case, client):
    await client.get(URL + "/body", auth=SlowAuth(case))


async def auth_redirect(case, client):
    await client.get(URL + "/redirect", auth=SlowAuth(case))


async def hooks(case, client):
    async def on_request(request):
        await case.pause()

    async def on_response(response):
        await case.pause()
        await case.pause(on_event=True)

    client.event_hooks = {"request": [on_request], "response": [on_response]}
    await client.get(URL + "/redirect")


async def stream(case, client):
    async with client.stream("GET", URL + "/body") as response:
        case.in_block = True
        await case.pause()
        async for _ in response.aiter_raw():
            pass
        await case.pause()


async def stream_unread(case, client):
    async with client.stream("GET", URL + "/redirect"):
        case.in_block = True
        await case.pause(on_event=True)


async def send_stream(case, client):
    request = client.build_request("GET", URL + "/body")
    response = await client.send(request, stream=True)
    case.in_block = True
    try:
        await response.aread()
        await case.pause()
    finally:
        await response.aclose()


def _by_name(*functions):
    return {function.__name__.replace("sync_", ""): function for function in functions}


SCENARIOS = _by_name(
    body,
    redirect,
    digest,
    auth_flow,
    auth_redirect,
    hooks,
    stream,
    stream_unread,
    send_stream,
)


def open_client(case, client_class):
    options = dict(FOLLOW, trust_env=False, **case.client_options)
    return client_class(transport=case.transport_class(case), **options)


# -- Modes of interruption ---------------------------------------------------------------------

TWICE = {"twice+1": 1, "twice+2": 2, "twice+3": 3}  # A second cancel so many passes later.
RAISED = {"KeyboardInterrupt": KeyboardInterrupt, "SystemExit": SystemExit, "Abort": Abort}
LATE = {"late+1": 1, "late+2": 2, "late+4": 4}  # Abort, and a cancel so many passes later.

ASYNCIO_MODES = ["once"] + list(TWICE) + ["storm", "scope"] + list(RAISED) + list(LATE) + ["drop"]
TRIO_MODES = ["scope"] + list(RAISED) + list(LATE) + ["drop"]
MODES = {"asyncio": ASYNCIO_MODES, "trio": TRIO_MODES}


class Dropped(Exception):
    """The coroutine was closed, as happens to one that nobody awaits any more."""


class Driver:
    """Runs a coroutine by hand and calls `on_suspension(number)` whenever it suspends.

    What arrives from outside, a cancellation, is kept in `received`. A `hold` of some passes makes
    the suspension longer.
    """

    def __init__(self, coroutine, on_suspension, on_cancel=lambda: None):
        self.coroutine = coroutine
        self.on_suspension = on_suspension
        self.on_cancel = on_cancel
        self.suspensions = 0
        self.received = []
        self.hold = 0

    @types.coroutine
    def run(self):
        value = error = None
        while True:
            try:
                if error is None:
                    waiting_for = self.coroutine.send(value)
                else:
                    waiting_for = self._throw(error)
            except StopIteration as stop:
                return stop.value
            error = None
            self.suspensions += 1
            try:
                self.on_suspension(self.suspensions)
            except Dropped:
                self.coroutine.close()
                raise
            try:
                while self.hold:
                    self.hold -= 1
                    yield
                value = yield waiting_for
            except GeneratorExit:
                self.coroutine.close()
                raise
            except BaseException as exc:
                self.hold = 0
                self.on_cancel()
                self.received.append(exc)
                error = exc
            else:
                if hasattr(value, "error"):  # Trio sends outcomes.
                    self.received.append(value.error)

    def _throw(self, error):
        try:
            return self.coroutine.throw(error)
        finally:
            del error


class Result:
    """What came of one run."""

    def __init__(self):
        self.faults = []
        self.error = None
        self.suspensions = 0
        self.interrupted = False
        self.left_out = False  # The point is not judged.
        self.records = []
        self.seconds = 0.0

    def fault(self, text):
        self.faults.append(text)

    def __repr__(self):
        return "<Result %r %r>" % (self.faults, self.error)


def reaches(error, name):
    """Whether the traceback goes down into a function called `name` in this module."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == name and frame.f_code.co_filename == __file__:
            return True
    return False


def chain(error):
    """The exceptions that `error` drags along, by `__context__` and `__cause__`."""
    found, todo = [], [error]
    while todo:
        for other in (todo[0].__context__, todo[0].__cause__):
            if other is not None and all(other is not one for one in found):
                found.append(other)
                todo.append(other)
        del todo[0]
    return found


def judge(error, expected, frame):
    """What is wrong with the exception that came out."""
    if error is None:
        return ["nothing was raised"]
    if error is not expected:
        wanted = type(expected).__name__
        wanted = "another" if type(error) is type(expected) else "not the " + wanted
        return ["wrong exception: %r, %s" % (error, wanted)]
    faults = []
    if chain(error):
        faults.append("context grown: %r" % chain(error))
    if frame and not reaches(error, frame):
        faults.append("the traceback does not reach %s()" % frame)
    return faults


def current_task():
    return asyncio.current_task() if PY37 else asyncio.Task.current_task()


def all_tasks():
    if PY37:
        return asyncio.all_tasks()
    loop = asyncio.get_event_loop()
    return {task for task in asyncio.Task.all_tasks(loop) if not task.done()}


def after_passes(loop, passes, callback):
    """Call back after so many passes of the loop."""
    if passes <= 0:
        callback()
    else:
        loop.call_soon(after_passes, loop, passes - 1, callback)


class _Records(logging.Handler):
    def __init__(self, records):
        logging.Handler.__init__(self)
        self.records = records

    def emit(self, record):
        self.records.append(record)


class Run:
    """One request, interrupted in one mode at one of its points.

    The points of a mode that raises are the awaits of transport, streams, hooks and auth flow;
    of all others, the suspensions of the request.
    """

    def __init__(self, scenario, mode="", at=0, client_class=httpx.AsyncClient, case=None):
        self.case = case or Case(self.library)
        self.scenario = scenario
        self.mode = mode
        self.at = at
        self.client_class = client_class
        self.result = Result()
        self.cancels = 0
        self.frame = "count"
        self.started = 0.0
        self.suspended_already = False
        self.received_before = 0
        self.arrived = False
        self.closing_when_dropped = False
        if mode in RAISED or mode in LATE:
            self.case.raise_at = at
            self.case.raises = RAISED.get(mode, Abort)()
        self.case.bare = mode == "drop"

    def __call__(self):
        case, result = self.case, self.result
        handler = _Records(result.records)
        logger.addHandler(handler)
        try:
            self.execute()
        finally:
            logger.removeHandler(handler)
        result.interrupted = case.interrupted
        if case.close_failed and result.error is not case.close_error:
            if not any(record.levelno >= logging.WARNING for record in result.records):
                result.fault("the failure of the close was not logged")
        result.faults.extend(case.problems)
        return result

    def on_cancel(self):
        """Called when a cancel arrives, just before the net sees it."""

    def broken(self, error):
        if isinstance(error, KeyboardInterrupt) and error is not self.case.raises:
            raise error
        self.result.fault("the run itself broke: %r" % error)

    def on_suspension(self, number):
        if self.mode in LATE:
            self.suspended_late()
        elif number == self.at and self.mode not in RAISED:
            # Later on it is the net that waits, and not the transport.
            self.frame = "" if self.case.closing_now else "pause"
            self.case.interrupted = True
            self.received_before = len(self.driver.received)
            self.started = time.perf_counter()
            if self.mode == "drop":
                self.closing_when_dropped = self.case.closing_now
                raise Dropped
            self.cancel()

    async def judged(self, client, scope):
        """Await the request, and look at once at what came out and what is left open."""
        case, result, escaped = self.case, self.result, None
        self.over = False
        self.started = time.perf_counter()
        coroutine = self.scenario(case, client)
        driver = self.driver = Driver(coroutine, self.on_suspension, self.on_cancel)
        try:
            with scope:
                try:
                    await driver.run()
                except BaseException as exc:
                    result.error = exc
                    raise
                finally:
                    self.over = True
                    result.seconds = time.perf_counter() - self.started
                    if self.mode != "drop":
                        result.faults.extend(case.open_streams())
                        await case.leave_what_failed()
        except BaseException as exc:
            escaped = exc
        result.suspensions = driver.suspensions
        if not case.interrupted:
            if escaped is not None:
                raise escaped
        elif self.mode == "drop":
            if not isinstance(result.error, Dropped):
                result.fault("dropped: %r" % result.error)
        else:
            frame, expected = self.frame, case.raises
            if expected is None:
                expected = self.first_cancel()
            if self.close_was_the_end():
                return
            if not (self.replaced_in_block(expected) or self.replaced_in_auth_flow(expected)):
                result.faults.extend(judge(result.error, expected, frame))
            if self.mode == "scope" and escaped not in (None, case.close_error):
                result.fault("left the scope: %r" % escaped)

    def first_cancel(self):
        """The cancel that ended the request."""
        own_limits = self.case.stream_class is not Stream or self.case.close_hangs
        if self.frame == "" and own_limits:
            # Others may have come before it: those of a limit within the close.
            for one in self.driver.received:
                if one is self.result.error:
                    return one
        since = self.driver.received[self.received_before :]
        return since[0] if since else None

    def close_was_the_end(self):
        """Whether a close that was under way failed: the cancel strikes at the next wait then."""
        error = self.result.error
        return self.frame == "" and error is not None and error is self.case.close_error

    def received(self):
        return self.driver.received

    def replaced_in_block(self, first):
        """Whether something came out of the `aclose()` with which the user's code ended.

        As in any `finally`, it takes the place of what was on its way, and has it as its context.
        """
        own = self.received() + [self.case.close_error]
        return self.case.in_block and self.is_one_of(own, first)

    def replaced_in_auth_flow(self, first):
        """Whether a cancel struck while the auth flow, the user's code, awaited in its `finally`.

        There it takes the place of what was on its way, before httpx, and the net, see any of it.
        """
        cancels = [one for one in self.case.replacements if self.is_cancel(one)]
        if self.library == "trio" and cancels:
            # Trio raises a cancel right where it strikes, and Python gives the GeneratorExit that
            # closes the flow there no context.
            first = next((one for one in chain(cancels[-1]) if isinstance(one, GeneratorExit)), first)
        return self.is_one_of(cancels, first)

    def is_one_of(self, replacements, first):
        error = self.result.error
        if error is None or not any(error is one for one in replacements):
            return False
        return not PY39 or any(first is one for one in chain(error))

    def is_cancel(self, error):
        kind = trio.Cancelled if self.library == "trio" else asyncio.CancelledError
        return isinstance(error, kind)

    def is_judged_when_dropped(self):
        """Whether what a dropped request leaves open is the net's."""
        if self.library == "trio":
            # Trio itself never drops a coroutine, and nobody is left to wait for a close.
            return not self.closing_when_dropped
        # Until Python 3.12, a coroutine that is closed while it awaits an async generator (those of
        # `stream()`, or of reading a body) does not tell it. The `send` in there is never told.
        return PY313 or not (self.case.in_block or self.scenario in (stream, stream_unread))


STUCK = 8.0  # Seconds until a run on asyncio is given up.


class AsyncioRun(Run):
    library = "asyncio"

    def execute(self):
        loop = asyncio.new_event_loop()
        complaints = []
        # As text: the context would keep what it is about alive.
        loop.set_exception_handler(lambda _, context: complaints.append(repr(context)))
        loop.call_later(STUCK, loop.stop)  # Then the run ends with a RuntimeError.
        try:
            loop.run_until_complete(self.main(loop))
            loop.run_until_complete(loop.shutdown_asyncgens())
        except BaseException as exc:
            self.broken(exc)
        finally:
            loop.close()
        for complaint in complaints:
            # Until Python 3.12, coroutine.close() leaves a generator that it awaited in this state.
            if "asynchronous generator is already running" not in complaint:
                self.result.fault("the loop complains: " + complaint)

    async def main(self, loop):
        self.loop, self.task = loop, current_task()
        self.case.task = self.task
        if self.mode == "scope" and ANYIO_4:
            self.case.event_passes = 2  # What comes in the same pass holds its cancel back.
        if PY37:
            caller.set(self.case)
        self.scope = anyio.CancelScope() if self.mode == "scope" else no_scope()
        client = open_client(self.case, self.client_class)
        await self.judged(client, self.scope)
        await self.afterwards()
        await client.aclose()

    def cancel(self):
        if self.mode == "scope":
            self.loop.call_soon(self.scope.cancel)
            return
        self.loop.call_soon(self.cancel_task)
        if self.mode == "storm":
            for passes in range(1, 12):
                after_passes(self.loop, 1 + passes, self.cancel_task)
        elif self.mode in TWICE:
            after_passes(self.loop, 1 + TWICE[self.mode], self.cancel_task)

    def suspended_late(self):
        if self.case.interrupted and not self.suspended_already:
            self.suspended_already = True
            after_passes(self.loop, LATE[self.mode], self.cancel_task)

    def cancel_task(self):
        if self.mode == "storm" and self.cancels and self.case.limit_fires is not None:
            return  # One would come just when the limit runs out: see on_cancel().
        if not self.over:
            self.cancels += 1
            self.task.cancel()

    def on_cancel(self):
        if self.cancels == 1 and not self.arrived:
            self.arrived = True
            if self.case.limit_fires is not None and self.case.limit_fires():
                # A limit inside the close cancels the task in this very pass. For asyncio the two
                # are one cancel, so that there is nothing to judge.
                self.result.left_out = True

    async def afterwards(self):
        result, task = self.result, self.task
        # With anyio 3, a scope that another exception leaves keeps its cancel counted.
        if PY311 and not (self.mode == "scope" and self.case.close_failed):
            cancels = 0 if self.mode == "scope" else self.cancels
            if task.cancelling() != cancels:
                result.fault("cancelling() is %d, not %d" % (task.cancelling(), cancels))
        struck = False
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            struck = True
        if self.close_was_the_end():
            if self.cancels and not struck:
                result.fault("the cancel during the close was lost")
        elif struck and self.mode not in LATE and self.cancels < 2:
            result.fault("cancelled once more afterwards")
        if self.mode in LATE and result.error is self.case.raises and struck != bool(self.cancels):
            result.fault("the cancel during the clean-up was lost")
        if PY311:
            while task.cancelling():
                task.uncancel()
        await self.settle()
        if self.mode == "drop" and self.is_judged_when_dropped():
            result.faults.extend(self.case.open_streams())

    async def settle(self):
        dropped = self.mode == "drop"
        for number in range(40):
            waits = dropped and (number < 8 or self.case.open_streams())
            if not waits and all_tasks() == {self.task}:
                return
            if number % 10 == 5:
                gc.collect(1)  # What a dropped coroutine leaves behind may be in a cycle.
            await asyncio.sleep(0 if not self.case.close_hangs else 0.01)
        for task in all_tasks() - {self.task}:
            self.result.fault("a task is left: %r" % task)
            task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)


class TrioRun(Run):
    library = "trio"

    def execute(self):
        try:
            trio.run(self.main)
        except BaseException as exc:
            self.broken(exc)

    async def main(self):
        if PY37:
            caller.set(self.case)
        self.scope = trio.CancelScope()
        client = open_client(self.case, self.client_class)
        await self.judged(client, self.scope)
        # Left-over generators take some passes each to be finalized, from the outermost inwards.
        for number in range(30 if self.mode == "drop" else 2):
            if number % 10 == 5 and self.case.open_streams():
                gc.collect(1)
            await trio.sleep(0 if not self.case.close_hangs else 0.01)
        if self.mode == "drop" and self.is_judged_when_dropped():
            self.result.faults.extend(self.case.open_streams())
        await client.aclose()

    def cancel(self):
        self.scope.cancel()

    def suspended_late(self):
        if self.case.interrupted and not self.over:
            self.cancels += 1
            if self.cancels == LATE[self.mode]:
                self.scope.cancel()


class no_scope:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


RUNS = {"asyncio": AsyncioRun, "trio": TrioRun}


def every_point(make_run):
    """Interrupt at every point, one run a point; yields the points and their results."""
    at = 0
    while True:
        at += 1
        result = make_run(at)()
        if result.left_out:
            continue
        if result.interrupted:
            yield at, result
            continue
        if result.faults:
            yield at, result
        return


def sweep(library, scenario, mode, client_class, **case):
    run = RUNS[library]
    return every_point(lambda at: run(scenario, mode, at, client_class, Case(library, **case)))


# -- Timeouts and scopes inside each other -----------------------------------------------------

JUMP = 1.0  # The clock goes forward by so much, which is less than close_timeout.
SOON = 0.6 * JUMP
NEVER = 1000.0


class NestedRun(AsyncioRun):
    """A request inside two limits, of which one, or one after the other, runs out at a point.

    `ended` says at which levels. The clock of the loop is moved by hand.
    """

    def __init__(self, scenario, limits, level, at, client_class, **case):
        AsyncioRun.__init__(self, scenario, "", at, client_class, Case("asyncio", **case))
        self.limits = limits
        self.level = level
        self.ended = []
        self.moved = 0.0

    async def main(self, loop):
        self.loop, self.task = loop, current_task()
        clock = loop.time
        loop.time = lambda: clock() + self.moved
        client = open_client(self.case, self.client_class)
        self.driver = Driver(self.scenario(self.case, client), self.on_suspension)
        await self.limits(self)
        if PY311 and self.task.cancelling():
            self.result.fault("cancelling() is %d" % self.task.cancelling())
        await self.settle()
        self.result.faults.extend(self.case.open_streams())
        await client.aclose()
        if self.case.interrupted:
            both = self.level == "both"
            wanted = ["inner", "outer"] if both else [self.level]
            if not self.ended or self.ended[0] not in wanted or (self.ended[1:] and not both):
                self.result.fault("%s ran out, but it ended at %r" % (self.level, self.ended))

    def on_suspension(self, number):
        if number != self.at:
            return
        self.case.interrupted = True
        self.driver.hold = 8  # The timer runs out a pass later; each task on the way takes some.
        for passes, level in enumerate(("inner", "outer")):
            if self.level in (level, "both"):
                after_passes(self.loop, 2 * passes, lambda level=level: self.runs_out(level))

    def runs_out(self, level):
        scope = self.scopes.get(level)
        if scope is not None:
            self.loop.call_soon(scope.cancel)
        else:
            self.moved += JUMP

    def seconds(self, level):
        if self.level == "both":
            return SOON if level == "inner" else SOON + JUMP
        return SOON if level == self.level else NEVER

    scopes = {}

    async def request(self):
        await self.driver.run()


async def wait_for_in_wait_for(run):
    async def inner():
        try:
            await asyncio.wait_for(run.request(), run.seconds("inner"))
        except asyncio.TimeoutError:
            run.ended.append("inner")

    try:
        await asyncio.wait_for(inner(), run.seconds("outer"))
    except asyncio.TimeoutError:
        run.ended.append("outer")


async def scope_in_scope(run):
    with anyio.CancelScope() as outer:
        with anyio.CancelScope() as inner:
            run.scopes = {"inner": inner, "outer": outer}
            await run.request()
        if inner.cancel_called and not outer.cancel_called:
            await asyncio.sleep(0)
            run.ended.append("inner")
        else:
            await asyncio.sleep(0)
    if outer.cancel_called:
        run.ended.append("outer")


async def scope_in_timeout(run):
    try:
        async with asyncio.timeout(run.seconds("outer")):
            with anyio.CancelScope() as inner:
                run.scopes = {"inner": inner}
                await run.request()
            if inner.cancel_called:
                run.ended.append("inner")
            await asyncio.sleep(0)
    except TimeoutError:
        run.ended.append("outer")


async def timeout_in_scope(run):
    with anyio.CancelScope() as outer:
        run.scopes = {"outer": outer}
        try:
            async with asyncio.timeout(run.seconds("inner")):
                await run.request()
        except TimeoutError:
            run.ended.append("inner")
        await asyncio.sleep(0)
    if outer.cancel_called:
        run.ended.append("outer")


async def timeout_in_timeout(run):
    try:
        async with asyncio.timeout(run.seconds("outer")):
            try:
                async with asyncio.timeout(run.seconds("inner")):
                    await run.request()
            except TimeoutError:
                run.ended.append("inner")
    except TimeoutError:
        run.ended.append("outer")


# From Python 3.11 on, anyio 3 lets the cancel of two cancelled scopes out of the outer one.
LEAKY_SCOPES = PY311 and not ANYIO_4

LIMITS = [wait_for_in_wait_for, scope_in_scope]
if PY311:
    LIMITS += [scope_in_timeout, timeout_in_scope, timeout_in_timeout]


class NestedTrioRun(TrioRun):
    """A request inside two of trio's scopes, of which one is cancelled at a point."""

    def __init__(self, scenario, level, at, client_class, **case):
        TrioRun.__init__(self, scenario, "", at, client_class, Case("trio", **case))
        self.level = level

    async def main(self):
        client = open_client(self.case, self.client_class)
        self.driver = Driver(self.scenario(self.case, client), self.on_suspension)
        ended = []
        with trio.CancelScope() as outer:
            with trio.CancelScope() as inner:
                self.scopes = {"inner": inner, "outer": outer}
                await self.driver.run()
            await trio.sleep(0)
            if inner.cancel_called:
                ended.append("inner")
        if outer.cancel_called:
            ended.append("outer")
        self.result.faults.extend(self.case.open_streams())
        await client.aclose()
        if self.case.interrupted and ended != [self.level]:
            self.result.fault("%s was cancelled, but it ended at %r" % (self.level, ended))

    def on_suspension(self, number):
        if number == self.at:
            self.case.interrupted = True
            self.scopes[self.level].cancel()


# -- The sync client ---------------------------------------------------------------------------


class SyncStream(StreamBase):
    """The sync counterpart of `Stream`."""

    def __init__(self, case):
        self.case = case
        self.handed_out = True
        self.closing = False
        self.closed_to_end = 0
        self.failed = False
        case.streams.append(self)

    def __iter__(self):
        for chunk in BODY:
            self.case.count()
            yield chunk

    def close(self):
        if self.closing:
            return
        self.closing = True
        try:
            self.case.count()
            if self.case.interrupted and self.case.close_error is not None:
                self.case.close_failed = True
                raise self.case.close_error
        except BaseException:
            self.failed = True
            raise
        self.closed_to_end += 1


class SyncTransport(Adapter):
    def __init__(self, case):
        self.case = case

    def exchange(self, asked):
        self.case.count()
        status, headers = route(asked)
        return status, headers, SyncStream(self.case)


def sync_body(case, client):
    client.get(URL + "/body")


def sync_redirect(case, client):
    client.get(URL + "/redirect")


def sync_digest(case, client):
    client.get(URL + "/digest", auth=httpx.DigestAuth("user", "password"))


def sync_auth_flow(case, client):
    client.get(URL + "/body", auth=SlowAuth(case))


def sync_auth_redirect(case, client):
    client.get(URL + "/redirect", auth=SlowAuth(case))


def sync_hooks(case, client):
    def hook(_):
        case.count()

    client.event_hooks = {"request": [hook], "response": [hook]}
    client.get(URL + "/redirect")


def sync_stream(case, client):
    with client.stream("GET", URL + "/redirect") as response:
        case.in_block = True
        case.count()
        for _ in response.iter_raw():
            pass
        case.count()


def sync_send_stream(case, client):
    response = client.send(client.build_request("GET", URL + "/body"), stream=True)
    case.in_block = True
    try:
        response.read()
        case.count()
    finally:
        response.close()


SYNC_SCENARIOS = _by_name(
    sync_body,
    sync_redirect,
    sync_digest,
    sync_auth_flow,
    sync_auth_redirect,
    sync_hooks,
    sync_stream,
    sync_send_stream,
)


class SyncRun(Run):
    """One request of the sync client, in which something raises at one point."""

    library = "sync"

    def __init__(self, scenario, error, at, client_class, **options):
        case = Case("sync", transport_class=SyncTransport, **options)
        Run.__init__(self, scenario, "", at, client_class, case)
        case.raise_at, case.raises = at, error

    def execute(self):
        case, result = self.case, self.result
        client = open_client(case, self.client_class)
        try:
            self.scenario(case, client)
        except BaseException as exc:
            if not case.interrupted:
                raise
            result.error = exc
        finally:
            client.close()
        result.faults.extend(case.open_streams())
        if case.interrupted and not self.replaced_in_block(case.raises):
            result.faults.extend(judge(result.error, case.raises, self.frame))

    def received(self):
        return []


# -- The table ---------------------------------------------------------------------------------


@contextlib.contextmanager
def net(name, **options):
    """The client classes to use, with the net (`patch`, `class`) or without it (`none`)."""
    if name == "none":
        yield httpx.AsyncClient, httpx.Client
    elif name == "class":
        import httpx_cancel_safe

        yield httpx_cancel_safe.SafeAsyncClient, httpx_cancel_safe.SafeClient
    else:
        import httpx_cancel_safe

        with httpx_cancel_safe.patched(**options):
            yield httpx.AsyncClient, httpx.Client


# What httpx and Python do by themselves: not the net's, and not to be mended from outside.
HARMLESS = (
    # httpx before 0.18 never closes an auth flow; coroutine.close() leaves generators behind.
    "ResourceWarning: Async generator",
    "RunFinishedError",
    "asynchronous generator is already running",
    # anyio 3 with trio 0.22 and later.
    "trio.MultiError is deprecated",
)


@contextlib.contextmanager
def quietly():
    """Collect what is warned about and what is lost in a destructor."""
    lost = []
    hook = getattr(sys, "unraisablehook", None)
    finalizations = logging.getLogger("trio.async_generator_errors")
    found = []

    def unraisable(one):
        found.append("unraisable: %r in %r" % (one.exc_value, one.object))

    def warned(message, category, *_, **__):
        # As text: a recorded warning would keep the generator alive that it is about.
        found.append("%s: %s" % (category.__name__, message))

    if hook is not None:
        sys.unraisablehook = unraisable
    finalizations.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = warned
            yield lost
            gc.collect()
    finally:
        finalizations.disabled = False
        if hook is not None:
            sys.unraisablehook = hook
    lost.extend(text for text in found if not any(one in text for one in HARMLESS))


class Tally:
    """How many points there were, and what was wrong at which."""

    def __init__(self):
        self.points = 0
        self.faulty = 0
        self.lines = []

    def add(self, place, results):
        for at, result in results:
            self.points += 1
            if result.faults:
                self.faulty += 1
                self.lines.append("%s at %d: %s" % (place, at, "; ".join(result.faults)))

    def __str__(self):
        return "%d/%d" % (self.faulty, self.points)


def tally(library, scenario, mode, client_class, **case):
    """One cell of the table."""
    count = Tally()
    results = sweep(library, SCENARIOS[scenario], mode, client_class, **case)
    count.add("%s, %s, %s" % (library, scenario, mode), results)
    return count


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tests.support.custom")
    parser.add_argument("--net", choices=["patch", "class", "none"], default="patch")
    parser.add_argument("--library", choices=["asyncio", "trio"], action="append")
    parser.add_argument("--scenario", choices=list(SCENARIOS), action="append")
    parser.add_argument("--mode", action="append")
    parser.add_argument("--stream", default="Stream", help="a class of stream, as GroupStream")
    parser.add_argument("-v", "--verbose", action="store_true", help="one line a fault")
    options = parser.parse_args(arguments)
    faulty = points = 0
    libraries = options.library or (["asyncio", "trio"] if trio else ["asyncio"])
    print("net=%s, httpx %s, %s" % (options.net, httpx.__version__, sys.version.split()[0]))
    with net(options.net) as (client_class, _):
        for library in libraries:
            modes = [mode for mode in MODES[library] if mode in (options.mode or MODES[library])]
            print("%-14s" % library + "".join("%8s" % mode[:7] for mode in modes))
            for scenario in options.scenario or list(SCENARIOS):
                with quietly() as lost:
                    stream_class = globals()[options.stream]
                    cells = [
                        tally(library, scenario, mode, client_class, stream_class=stream_class)
                        for mode in modes
                    ]
                print("%-14s" % scenario + "".join("%8s" % cell for cell in cells))
                faulty += sum(cell.faulty for cell in cells) + len(lost)
                points += sum(cell.points for cell in cells)
                if options.verbose:
                    for line in sum([cell.lines for cell in cells], lost):
                        print("   ", line)
                elif lost:
                    print("    and %d warnings or lost exceptions: see -v" % len(lost))
    print("%d faults at %d points" % (faulty, points))
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
