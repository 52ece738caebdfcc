"""The sync client: a KeyboardInterrupt at each call that can block, and what it leaves."""

import functools
import gc
import socket
import threading

import httpx
import pytest

import httpx_cancel_safe
from tests.support import compat

pytestmark = pytest.mark.skipif(
    compat.FIXED, reason="httpx %s needs no net: what it leaks is its own" % httpx.__version__
)

FOLLOW = {"follow_redirects": True} if compat.HTTPX >= (0, 20) else {}


class GeventTimeout(BaseException):
    """What gevent raises is no Exception either."""


class Interrupter:
    """Raises at the k-th blocking call of this thread's sockets."""

    def __init__(self, error, monkeypatch):
        self.error = error
        self.left = None
        self.thread = threading.get_ident()
        for name in ("connect", "send", "sendall", "recv"):
            original = getattr(socket.socket, name)
            monkeypatch.setattr(socket.socket, name, self.interrupting(original))

    def interrupting(self, original):
        @functools.wraps(original)
        def call(sock, *args):
            if self.left is not None and threading.get_ident() == self.thread:
                self.left -= 1
                if self.left == 0:
                    raise self.error
            return original(sock, *args)

        return call


def get(client, url):
    client.get(url + "/get").read()


def chunked(client, url):
    client.get(url + "/chunked").read()


def post(client, url):
    client.post(url + "/post", content=b"x" * 1000)


def redirect(client, url):
    client.get(url + "/redirect")


def digest(client, url):
    client.get(url + "/digest", auth=httpx.DigestAuth("user", "password"))


def stream(client, url):
    with client.stream("GET", url + "/chunked") as response:
        for _ in response.iter_bytes():
            pass


def stream_left(client, url):
    with client.stream("GET", url + "/chunked"):
        pass
    client.get(url + "/get")


SCENARIOS = (get, chunked, post, redirect, digest, stream, stream_left)


def faults_of(scenario, make, error, url, server, interrupter):
    """Interrupt `scenario` at each point; return what was wrong, and how many points."""
    faults = []
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
    timeout = httpx.Timeout(5.0, pool=0.1)
    for point in range(1, 100):
        client = make(limits=limits, timeout=timeout, trust_env=False, verify=False, **FOLLOW)
        interrupter.left = point
        try:
            scenario(client, url)
        except BaseException as exc:
            if exc is not error:
                faults.append("%s %d: %r came out" % (scenario.__name__, point, exc))
        interrupted, interrupter.left = interrupter.left <= 0, None
        error.__traceback__ = error.__context__ = None
        try:
            get(client, url)
        except httpx.PoolTimeout:
            faults.append("%s %d: the connection is lost" % (scenario.__name__, point))
        try:
            client.close()
        except RuntimeError as exc:
            faults.append("%s %d: %r" % (scenario.__name__, point, exc))
        if not server.wait_closed_to(0, 2):
            faults.append("%s %d: the socket is open" % (scenario.__name__, point))
            server.drop_connections()
        if not interrupted:
            return faults, point - 1
    raise AssertionError("the scenario has no end")


@pytest.mark.parametrize(
    "way, error",
    [
        ("patch", KeyboardInterrupt()),
        ("patch", GeventTimeout()),
        ("class", SystemExit()),
    ],
)
def test_nothing_is_lost(servers, monkeypatch, error, way):
    interrupter = Interrupter(error, monkeypatch)
    gc.disable()
    try:
        for scenario in SCENARIOS:
            if way == "patch":
                with httpx_cancel_safe.patched():
                    faults, points = faults_of(
                        scenario, httpx.Client, error, servers.plain.url, servers.plain, interrupter
                    )
            else:
                safe = httpx_cancel_safe.SafeClient
                faults, points = faults_of(
                    scenario, safe, error, servers.plain.url, servers.plain, interrupter
                )
            assert points >= 3
            assert not faults, "\n".join(faults)
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore")
def test_without_the_net_connections_are_lost(servers, monkeypatch):
    error = KeyboardInterrupt()
    interrupter = Interrupter(error, monkeypatch)
    faults, points = [], 0
    for scenario in (redirect, stream, stream_left):
        found, number = faults_of(
            scenario, httpx.Client, error, servers.plain.url, servers.plain, interrupter
        )
        faults += found
        points += number
        gc.collect()
    assert len(faults) >= 3, (faults, points)
