"""A real service, switched on by an environment variable alone, whose client hangs up 200 times."""

import contextlib
import importlib.util
import json
import random
import socket
import subprocess
import sys
import time

import httpx
import pytest

from tests.support import programs
from tests.support.servers import serve

try:
    from importlib import metadata
except ImportError:  # Python 3.6 and 3.7; pytest brings the backport.
    import importlib_metadata as metadata

HANG_UPS = 200
SERVERS = {
    "uvicorn": ["-m", "uvicorn", "--log-level", "warning", "--fd", "{fd}"],
    "gunicorn": [
        "-m", "gunicorn", "--log-level", "warning", "--bind", "fd://{fd}", "--workers", "1",
        "--worker-class", "uvicorn.workers.UvicornWorker",
    ],
}  # fmt: skip


def problem():
    """Why the service cannot be tried here; None where it can."""
    if not httpx.__version__.startswith("0.22."):
        return "the service is for httpx 0.22"
    for package in ("autowrapt", "gunicorn", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            return package + " is not installed"
    try:
        metadata.distribution("httpx-cancel-safe")
    except metadata.PackageNotFoundError:
        return "this package is not installed, so autowrapt cannot find it"
    return None


pytestmark = pytest.mark.skipif(problem() is not None, reason=str(problem()))


@pytest.fixture(params=sorted(SERVERS))
def start(request):
    """Start the service with this environment; yields what makes a request to it."""

    @contextlib.contextmanager
    def started(**changes):
        with serve() as upstream, socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(100)
            listener.set_inheritable(True)
            command = [part.format(fd=listener.fileno()) for part in SERVERS[request.param]]
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore"] + command + ["tests.support.service:app"],
                env=programs.environment(UPSTREAM=upstream.plain.url, **changes),
                pass_fds=[listener.fileno()],
            )
            try:
                yield Client(listener.getsockname())
            finally:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    return started


class Client:
    """Somebody who uses the service, over plain sockets."""

    def __init__(self, address):
        self.address = address
        self._moments = random.Random(2139)

    def ask(self, path):
        """Send a request; returns the socket."""
        connection = socket.create_connection(self.address, timeout=30)
        connection.sendall("GET {} HTTP/1.1\r\nhost: service\r\n\r\n".format(path).encode())
        return connection

    def get(self, path):
        with self.ask(path) as connection, connection.makefile("rb") as reader:
            head, _, body = reader.read().partition(b"\r\n\r\n")
        return int(head.split()[1]), body.decode()

    def hang_up(self, path, after):
        with self.ask(path):
            time.sleep(after)

    def pool(self):
        """What the service has under way, once all those who hung up are dealt with."""
        for _ in range(200):
            state = json.loads(self.get("/pool")[1])
            if not state["under way"]:
                break
            time.sleep(0.05)
        return state

    def hang_up_many_times(self):
        assert self.get("/fetch/get") == (200, "hello")
        for _ in range(HANG_UPS):
            self.hang_up("/fetch/hang-body", self._moments.uniform(0, 0.02))
        return self.pool()

    def exhaust(self):
        """Hang up until no place is left; on Python 3.6 not every moment costs one."""
        for _ in range(20):
            if self.get("/fetch/get") == (503, "PoolTimeout"):
                return True
            self.hang_up_many_times()
        return False


def test_with_the_environment_variable_alone_no_connection_is_lost(start):
    with start(AUTOWRAPT_BOOTSTRAP="httpx_cancel_safe") as client:
        assert client.hang_up_many_times() == {"under way": 0, "taken": 0, "requests": 0}
        assert client.get("/fetch/get") == (200, "hello")


def test_without_it_the_service_runs_out_of_connections(start):
    with start() as client:
        assert client.exhaust()
        assert client.get("/fetch/get") == (503, "PoolTimeout")


def test_the_off_switch_wins_in_the_service_too(start):
    with start(AUTOWRAPT_BOOTSTRAP="httpx_cancel_safe", HTTPX_CANCEL_SAFE="0") as client:
        assert client.exhaust()
        assert client.get("/fetch/get") == (503, "PoolTimeout")
