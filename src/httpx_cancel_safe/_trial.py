"""Try it out: cancel requests to a server on loopback, and count the connections lost."""

import asyncio
import contextlib
import gc
import inspect
import io
import socket
import threading
import types
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import anyio
import httpx

ATTEMPTS = 6  # A request is cancelled at its first suspension, the next at its second ...
POOL_TIMEOUT = 0.05  # A slot that is free is there at once: nothing to wait for.
HANG = 2.0


class Phase(NamedTuple):
    """Where a request is cancelled, and in what way: once, twice or by a scope."""

    name: str
    path: str
    backend: str
    way: str


PHASES = [
    Phase("connecting", "/", "asyncio", "once"),
    Phase("reading", "/slow", "asyncio", "once"),
    Phase("streaming", "/slow", "asyncio", "once"),
    Phase("redirect", "/redirect", "asyncio", "once"),
    Phase("cancelled twice", "/slow", "asyncio", "twice"),
    Phase("anyio scope", "/slow", "asyncio", "scope"),
    Phase("trio", "/slow", "trio", "scope"),
]


class Result(NamedTuple):
    """How many connections a phase lost."""

    lost: int
    tried: int


class Server:
    """Answers `/`, `/slow` and `/redirect` at `url`, within a `with` block."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._socket = socket.socket()
        self._thread = threading.Thread(target=anyio.run, args=(self._serve,), daemon=True)
        self.trigger: Any = None  # To be armed when a body has begun.
        self.url = ""

    def __enter__(self) -> "Server":
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen(100)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._answer, sock=self._socket)
        await asyncio.get_event_loop().run_in_executor(None, self._stop.wait)
        server.close()

    async def _answer(self, reader: Any, writer: Any) -> None:
        """Answer the requests of one connection until its end, or ours."""
        try:
            while True:
                path = (await reader.readuntil(b"\r\n\r\n")).split()[1]
                if path == b"/":
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                    continue
                status = b"302 Found\r\nlocation: /" if path == b"/redirect" else b"200 OK"
                writer.write(
                    b"HTTP/1.1 " + status + b"\r\ntransfer-encoding: chunked\r\n\r\n"
                )
                for _ in range(2 * ATTEMPTS):
                    await asyncio.sleep(0.002)  # So that the client has to wait for each.
                    writer.write(b"2\r\nok\r\n")
                    await writer.drain()
                    self.trigger.arm()
                writer.write(b"0\r\n\r\n")
        except (OSError, EOFError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


def run(phase: Phase, server: Server) -> Result:
    """Cancel requests in this phase; return how many lost their connection.

    Each is cancelled at another point, on a client with room for one connection. That is
    lost if the next request gets none, or if the client cannot be closed in peace.
    """
    outcomes: List[str] = []
    # Programs that lose connections complain on the side.
    with contextlib.redirect_stderr(io.StringIO()):
        for point in range(1, ATTEMPTS + 1):
            trigger = server.trigger = _Trigger(point, 2 if phase.way == "twice" else 1)
            outcome = anyio.run(_attempt, phase, server.url, trigger, backend=phase.backend)
            if not trigger.fired:
                break  # The request has fewer points than that.
            outcomes.append(outcome)
        gc.collect()
    return Result(outcomes.count("lost"), len(outcomes))


async def _attempt(phase: Phase, url: str, trigger: "_Trigger") -> str:
    """Return whether the connection of one cancelled request was "lost" or "kept"."""
    options: Dict[str, Any] = {}
    if "follow_redirects" in inspect.signature(httpx.AsyncClient).parameters:
        options["follow_redirects"] = True  # Up to 0.19 that is what httpx does.
    with contextlib.suppress(Exception, asyncio.CancelledError):
        with anyio.move_on_after(HANG):
            client = httpx.AsyncClient(
                verify=False,
                trust_env=False,
                limits=httpx.Limits(max_connections=1, max_keepalive_connections=1),
                timeout=httpx.Timeout(HANG, pool=POOL_TIMEOUT),
                **options
            )
            if phase.path == "/":
                trigger.arm()
            await _drive(phase, _request(phase, client, url), trigger)
            await client.get(url + "/")
            await client.aclose()
            return "kept"
    return "lost"


async def _request(phase: Phase, client: httpx.AsyncClient, url: str) -> None:
    if phase.name == "streaming":
        async with client.stream("GET", url + phase.path) as response:
            async for _ in response.aiter_raw():
                pass
    else:
        await client.get(url + phase.path)


async def _drive(phase: Phase, request: Any, trigger: "_Trigger") -> None:
    """Run `request` and cancel it when `trigger` says so, in the way of this phase."""
    if phase.way == "scope":
        with anyio.CancelScope() as scope:
            trigger.cancel = scope.cancel
            await _stepwise(request, trigger)
        return
    task = asyncio.ensure_future(_stepwise(request, trigger))
    loop = asyncio.get_event_loop()
    # From a callback, so that the task is suspended when the cancel comes.
    trigger.cancel = lambda: loop.call_soon(task.cancel)
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()


class _Trigger:
    """Calls `cancel` at the given suspension once it is armed, `times` times in a row."""

    def __init__(self, point: int, times: int) -> None:
        self._points = range(point, point + times)
        self._count: Optional[int] = None
        self.cancel: Any = None
        self.fired = False

    def arm(self) -> None:
        if self._count is None:
            self._count = 0

    def __call__(self) -> None:
        if self._count is not None:
            self._count += 1
            if self._count in self._points:
                self.fired = True
                self.cancel()


@types.coroutine
def _stepwise(request: Any, on_suspend: Callable[[], None]) -> Any:
    """Run a coroutine as it is, and call `on_suspend` before each of its suspensions."""
    steps = request.__await__()
    step: Any = steps.send
    value: Any = None
    while True:
        try:
            waits_for = step(value)
        except StopIteration as stop:
            return stop.value
        on_suspend()
        try:
            step, value = steps.send, (yield waits_for)
        except BaseException as exc:
            step, value = steps.throw, exc


def trio_works() -> bool:
    """Tell whether trio is installed, and gets on with this anyio and Python."""
    try:
        anyio.run(_use_task_group, backend="trio")
    except Exception:
        return False
    return True


async def _use_task_group() -> None:
    async with anyio.create_task_group():  # What trio from 0.24 on breaks in anyio 3.
        pass
