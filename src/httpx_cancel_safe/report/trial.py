"""Cancel requests to a server on loopback, and count the connections that are lost."""

import asyncio
import contextlib
import gc
import http.server
import io
import socketserver
import threading
import time
from typing import Any, Iterator, List, Optional, Tuple

import anyio
import httpx

from .checks import PHASES

ATTEMPTS = 6
HANG = 2.0


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # Clients that go away are what this is for.
            super().handle()

    def do_GET(self) -> None:
        if self.path != "/":
            time.sleep(0.012)  # Some requests are cancelled before the answer begins, some while it lasts.
        self.send_response_only(302 if self.path == "/redirect" else 200)
        self.send_header("location", "/")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for _ in range(0 if self.path == "/" else 500):
            time.sleep(0.002)  # So that the client has to wait for each.
            self.wfile.write(b"2\r\nok\r\n")
        self.wfile.write(b"0\r\n\r\n")


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Run a server on loopback that answers `/` at once, and `/slow` and `/redirect` slowly; yield its URL."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}"
            httpx.get(url, trust_env=False)
            yield url
        finally:
            server.shutdown()


def run(phase: str, url: str) -> Tuple[int, int]:
    """Cancel requests in this phase, each a little later; return how many connections were lost, of how many."""
    _, backend, _ = PHASES[phase]
    outcomes: List[Optional[bool]] = []
    # What was lost complains on stderr when it is destroyed.
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(Exception):  # No such back end.
        for attempt in range(1, ATTEMPTS + 1):
            outcomes.append(anyio.run(_is_lost, phase, url, attempt, backend=backend))
        gc.collect()
    return outcomes.count(True), len(outcomes) - outcomes.count(None)


async def _is_lost(phase: str, url: str, attempt: int) -> Optional[bool]:
    """Return whether a client with one connection has none for its next request, or cannot be closed.

    None if the request was over before it could be cancelled, or this back end does not work.
    """
    path, _, way = PHASES[phase]
    lost, was_cancelled = True, False
    with contextlib.suppress(Exception, asyncio.CancelledError), anyio.move_on_after(HANG):
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
        timeout = httpx.Timeout(HANG, pool=0.05)  # A free connection is there at once.
        client: Any = httpx.AsyncClient(verify=False, trust_env=False, limits=limits, timeout=timeout)  # noqa: S501
        client.follow_redirects = True  # httpx up to 0.19 follows them anyway.
        if way == "wait_for":
            await client.get(url)  # So that the next request does not spend its time on connecting.
        request = _stream(client, url + path) if phase == "streaming" else client.get(url + path)
        was_cancelled = await _cancel(request, way, attempt)
        if way != "wait_for":
            await client.get(url)
        await client.aclose()
        lost = False
    return lost if was_cancelled else None


async def _stream(client: Any, url: str) -> None:
    async with client.stream("GET", url) as response:
        await response.aread()


async def _cancel(request: Any, way: str, attempt: int) -> bool:
    """Start `request` and cancel it in this way, later with each `attempt`. Return False if it was over by then."""
    if way == "scope":
        with anyio.move_on_after(0.005 * attempt) as scope, contextlib.suppress(Exception):
            await request
        return bool(scope.cancel_called)
    if way == "wait_for":
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(request, 0.005 * attempt)
            return False
        return True
    task = asyncio.ensure_future(request)
    for _ in range(2 * attempt):  # A request connects within about twelve passes of the loop.
        await asyncio.sleep(0 if way == "early" else 0.0025)
    was_cancelled = bool(task.cancel())
    if way == "twice":
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return was_cancelled
