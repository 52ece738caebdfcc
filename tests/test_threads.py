"""Several threads, event loops and processes: none of them loses anything, or waits, for another."""

import logging
import multiprocessing
import os
import random
import socket
import sys
import sysconfig
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

import httpx_cancel_safe

from .support import compat
from .support.custom import Abort
from .support.noise import Noise, no_gc
from .support.scenarios import expect, get, redirect, stream
from .support.stepping import at_once, cancelled_at, passes, run, ways_on
from .support.sweep import target
from .support.transports import Body, SyncAnswers

pytestmark = pytest.mark.skipif(compat.FIXED, reason="nothing is patched on httpx %s" % httpx.__version__)


@pytest.fixture
def noise():
    """What Python, the loops and the library complain about: nothing."""
    with Noise() as heard, no_gc():
        yield heard
    assert heard.take() == []


@pytest.fixture
def hasty():
    """Threads that change places as often as Python lets them."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


async def cancel_everywhere(client, url, way):
    """Cancel a request at each point where it suspends, on one client; how many there were."""
    for k in range(1, 200):
        if not await cancelled_at(k, redirect(client, url), way):
            return k - 1
    raise AssertionError("the scenario has no end")


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has a GIL")
def test_free_threaded_python_stays_so():
    """What is imported could switch the GIL on; then the tests here would show less."""
    assert not sys._is_gil_enabled()


@pytest.mark.parametrize("backends", [["asyncio"] * 4, ["asyncio", "trio"] * 2], ids="-".join)
def test_every_loop_has_its_pool_whole_and_every_request_is_counted(backends, servers, noise, hasty, caplog):
    """Each request that was cleaned up after is logged where it is counted."""
    if "trio" in backends and compat.trio_problem():
        pytest.skip(compat.trio_problem())
    for backend in set(backends):
        run(noise, backend, passes)  # What anyio imports is not up to threads that come first at once.
    url, _, factory = target(servers, httpx.AsyncClient)

    def thread(backend):
        async def main():
            client = factory()
            points = [await cancel_everywhere(client, url, way) for way in ways_on(backend)]
            expect(await client.get(url + "/get"))
            await client.aclose()  # Raises where a request is still in flight.
            return sum(points)

        return lambda: run(noise, backend, main)

    before = httpx_cancel_safe.stats()
    with httpx_cancel_safe.patched(), caplog.at_level(logging.DEBUG, "httpx_cancel_safe"):
        points = at_once(*[thread(backend) for backend in backends])
    assert min(points) > 5
    after = httpx_cancel_safe.stats()
    logged = [record for record in caplog.records if record.levelno == logging.DEBUG]
    assert after.released - before.released == len(logged) > 0
    assert (after.failed, after.timed_out) == (before.failed, before.timed_out)
    assert servers.plain.gone(seconds=5)


def aborted_requests(number):
    def abort(response):
        raise Abort

    with httpx.Client(transport=SyncAnswers(Body())) as client:
        client.cookies.extract_cookies = abort
        for _ in range(number):
            with pytest.raises(Abort):
                client.get("http://custom.test")


def sends():
    return [vars(kind)["send"] for kind in (httpx._client.AsyncClient, httpx._client.Client)]


def test_patching_and_unpatching_harm_no_request(servers, noise, hasty):
    run(noise, "asyncio", passes)  # What anyio imports is not up to threads that come first at once.
    url, _, factory = target(servers, httpx.AsyncClient)
    # What is cancelled needs a guard of its own, or it loses its connection in between.
    safe_factory = target(servers, httpx_cancel_safe.SafeAsyncClient)[2]
    own, over, rounds = sends(), threading.Event(), []

    def toggle():
        while not over.is_set():
            assert httpx_cancel_safe.patch() is True
            assert httpx_cancel_safe.is_patched()
            httpx_cancel_safe.unpatch()
            assert not httpx_cancel_safe.is_patched()
            assert sends() == own
            rounds.append(1)

    async def main():
        client, safe = factory(), safe_factory()
        for way in ways_on("asyncio"):
            await cancel_everywhere(safe, url, way)
            for scenario in (get, redirect, stream):
                await scenario(client, url)
        expect(await safe.get(url + "/get"))
        await safe.aclose()
        await client.aclose()

    def workers():
        try:
            at_once(*[lambda: run(noise, "asyncio", main)] * 3)
        finally:
            over.set()

    at_once(toggle, workers)
    assert len(rounds) > 10
    assert sends() == own
    assert servers.plain.gone(seconds=5)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("threads, limit, path, is_wrapped", [(4, 1, "/", 0), (16, 2, "/close", 0), (8, 8, "/", 1)])
def test_threads_share_a_new_connection_that_cannot_do_http2(servers, monkeypatch, threads, limit, path, is_wrapped):
    """On httpcore before 0.13.4 and from 0.14 on they all wait for it, as it might be HTTP/2."""
    connect = socket.create_connection

    def connect_slowly(*args, **kwargs):
        time.sleep(0.02)
        return connect(*args, **kwargs)

    def work():
        for _ in range(5):
            found.extend(client.get(server.url + one).status_code for one in (path, "/close"))

    def late():
        time.sleep(0.01)
        httpx_cancel_safe.patch()
        work()

    server, found, context = servers.plain if is_wrapped else servers.tls, [], servers.client_context()
    monkeypatch.setattr(socket, "create_connection", connect_slowly)
    if is_wrapped or compat.HTTPX < (0, 21):  # Whose own pools let requests wait beside idle connections.
        httpx_cancel_safe.patch()
    with compat.make_client(httpx.Client, context, limit=limit, keepalive=1, http2=True, pool_timeout=20) as client:
        if is_wrapped and compat.HTTPX >= (0, 21):  # By a tool.
            pool = type(compat.pool_of(client))
            monkeypatch.setattr(pool, "handle_request", lambda *args, own=pool.handle_request: own(*args))
        at_once(late, *[work] * (threads - 1))
    assert found == [200] * 10 * threads
    assert server.gone(seconds=5)


@pytest.mark.skipif(compat.HTTPX < (0, 21), reason="httpcore has no RequestStatus before 0.14")
def test_a_plain_request_wakes_that_was_given_its_connection_too_early(servers):
    from httpcore._sync.connection_pool import Request, RequestStatus

    with httpx_cancel_safe.patched(), compat.make_client(httpx.Client, True) as client:
        client.get(servers.plain.url + "/get")
        pool, status = compat.pool_of(client), RequestStatus(Request("GET", servers.plain.url))
        status.connection = pool.connections[0]  # And its event is not set.
        pool._requests.append(status)
        assert pool._attempt_to_acquire_connection(status) and status.wait_for_connection(timeout=0)
        pool.response_closed(status)


@pytest.mark.parametrize("path", ["/get", "/close"])
def test_a_response_that_is_open_when_the_pool_is_guarded_gives_its_connection_back(servers, path):
    with compat.make_client(httpx.Client, True, limit=2) as client:
        kind = type(compat.pool_of(client))
        with client.stream("GET", servers.plain.url + path) as response:
            with httpx_cancel_safe.patched():
                client.get(servers.plain.url + "/get")
            response.read()
        with httpx_cancel_safe.patched(), client.stream("GET", servers.plain.url + "/chunked") as response:
            if compat.HTTPX < (0, 21):  # A plain request ends on the connection that it had, and closes it.
                compat.pool_of(client)._remove_from_pool(compat.pool_of(client).listed[0])
                compat.pool_of(client).listed[0].close()
            response.read()
        client.get(servers.plain.url + "/get")
        assert type(compat.pool_of(client)) is kind
        httpx_cancel_safe._pool.books.Exchange(compat.pool_of(client)).end()  # Of a response that is closed so late.
    assert servers.plain.gone(seconds=5)


def test_patching_from_eight_threads_at_once_makes_one_guard(monkeypatch):
    """They take turns at every line of the library: they meet wherever they can."""
    dice = random.Random(0)  # Not in step: two may stand at different lines.

    def take_turns(frame, event, argument):
        if frame.f_globals.get("__name__", "").startswith("httpx_cancel_safe"):
            time.sleep(dice.choice([0, 0.0001, 0.0005]))
            return take_turns

    own = sends()
    monkeypatch.setattr(threading, "_trace_hook", take_turns)
    assert at_once(*[httpx_cancel_safe.patch] * 8) == [True] * 8
    once = sends()
    httpx_cancel_safe.patch()
    assert sends() == once
    at_once(*[httpx_cancel_safe.unpatch] * 8)
    assert sends() == own


@pytest.fixture
def in_child(monkeypatch):
    """Run a function in a process that is forked from this one; one that hangs is ended."""
    monkeypatch.setattr(threading, "_trace_hook", None)  # coverage has a lock, which a thread may hold.
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")

    def fork(function):
        child = multiprocessing.get_context("fork").Process(target=function)
        with warnings.catch_warnings():
            # From Python 3.12 on: there are threads. They are what is tested.
            warnings.simplefilter("ignore", DeprecationWarning)
            child.start()
        child.join(20)
        child.terminate()
        child.join()
        assert child.exitcode == 0, "it hung" if child.exitcode < 0 else "it failed"

    return fork


def test_a_child_goes_on_with_clients_of_its_own(servers, noise, in_child):
    url, _, factory = target(servers, httpx.AsyncClient)

    async def use():
        async with factory() as client:
            for way in ways_on("asyncio"):
                assert await cancel_everywhere(client, url, way) > 3

    def child():
        before = httpx_cancel_safe.stats().released
        run(noise, "asyncio", use)
        assert httpx_cancel_safe.stats().released > before
        httpx_cancel_safe.unpatch()
        assert noise.take() == []

    async def parent():
        async with factory() as client:
            await get(client, url)
            in_child(child)
            await cancel_everywhere(client, url, "once")

    with httpx_cancel_safe.patched():
        run(noise, "asyncio", parent)
        assert httpx_cancel_safe.is_patched()
    assert servers.plain.gone(seconds=5)


@pytest.mark.skipif(sys.version_info < (3, 7), reason="Python 3.6 tells nobody of a fork")
@pytest.mark.parametrize("held", ["stats", "patch"])
def test_a_fork_waits_for_who_counts_or_patches(held, in_child, hasty):
    """Else a child finds a lock that nobody in it will release, or one class patched of two."""
    over = threading.Event()

    def busy():
        while not over.is_set():
            httpx_cancel_safe.patch()
            if held == "stats":
                aborted_requests(5)
            else:
                httpx_cancel_safe.unpatch()

    def child():
        httpx_cancel_safe.stats()
        assert len({hasattr(send, "__wrapped__") for send in sends()}) == 1
        httpx_cancel_safe.patch()
        assert httpx_cancel_safe.is_patched()

    with ThreadPoolExecutor(1) as threads:
        thread = threads.submit(busy)
        try:
            for _ in range(10):
                in_child(child)
        finally:
            over.set()
        thread.result()


def test_a_signal_handler_or_a_finalizer_may_ask_at_any_time(in_child):
    def ask(frame, event, argument):
        """What may run between any two lines of a thread."""
        if frame.f_globals.get("__name__", "").startswith("httpx_cancel_safe"):
            sys.settrace(None)
            httpx_cancel_safe.stats()
            httpx_cancel_safe.is_patched()
            sys.settrace(ask)
            return ask

    def child():  # In the same process it would keep the locks if it hung.
        httpx_cancel_safe.patch()
        sys.settrace(ask)
        aborted_requests(2)
        httpx_cancel_safe.stats()
        httpx_cancel_safe.unpatch()
        httpx_cancel_safe.patch()
        sys.settrace(None)

    in_child(child)
