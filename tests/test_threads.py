"""Several threads, event loops and processes: none of them loses anything, or waits, for another."""

import ast
import asyncio
import collections
import contextlib
import logging
import multiprocessing
import os
import pathlib
import socket
import sys
import sysconfig
import threading
import time
import types
import warnings
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

import httpx_cancel_safe
from httpx_cancel_safe import _patch, _stats

from .support import compat
from .support.cancelling import cancelled_at, run, ways_on
from .support.custom import AsyncAdapter
from .support.scenarios import SCENARIOS, expect
from .support.sweep import Noise, no_gc, target

pytestmark = pytest.mark.skipif(compat.FIXED, reason="httpx %s needs no net" % httpx.__version__)

CLASSES = (httpx._client.AsyncClient, httpx._client.Client)
MOST_POINTS = 200


@pytest.fixture
def noise():
    """What Python, the loops and the net complain about: nothing."""
    with Noise() as heard, no_gc():
        yield heard
    assert heard.take() == []


@contextlib.contextmanager
def all_counted(caplog):
    """Each rescue is logged where it is counted: what the log has more was lost."""
    before = httpx_cancel_safe.stats()
    with caplog.at_level(logging.DEBUG, "httpx_cancel_safe"):
        yield
    after = httpx_cancel_safe.stats()
    debug = [record for record in caplog.records if record.levelno == logging.DEBUG]
    phases = collections.Counter(record.args[2] for record in debug)
    counted = {phase: count - before.by_phase[phase] for phase, count in after.by_phase.items()}
    assert counted == {phase: phases[phase] for phase in counted}
    assert after.released - before.released == len(debug) > 0
    assert (after.failed, after.timed_out) == (before.failed, before.timed_out)


@pytest.fixture
def hasty():
    """Threads that change places as often as Python lets them."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def at_once(*functions):
    """Run functions in threads of their own that start together; return what they returned."""
    barrier = threading.Barrier(len(functions))

    def start(function):
        barrier.wait()
        return function()

    with ThreadPoolExecutor(len(functions)) as threads:
        return list(threads.map(start, functions))


async def cancel_everywhere(client, url, name, way):
    """Cancel a request at each point where it suspends, on one client; how many there were."""
    for k in range(1, MOST_POINTS):
        if not await cancelled_at(k, SCENARIOS[name](client, url), way):
            return k - 1
    raise AssertionError("the scenario has no end")


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has a GIL")
def test_free_threaded_python_stays_so():
    """What is imported could switch the GIL on; then the tests below would show less."""
    assert not sys._is_gil_enabled()


# -- Loops -------------------------------------------------------------------------------------


async def nothing():
    pass


def import_backends(noise, backends):
    """Import what anyio needs for them: it is not up to two threads that come first."""
    for backend in set(backends):
        run(noise, backend, nothing)


@pytest.mark.parametrize("backends", [["asyncio"] * 4, ["asyncio", "trio"] * 2], ids="-".join)
def test_every_loop_has_its_pool_whole_and_every_rescue_is_counted(backends, servers, noise, hasty, caplog):
    if "trio" in backends and compat.trio_problem():
        pytest.skip(compat.trio_problem())
    import_backends(noise, backends)
    url, _, factory = target(servers, httpx.AsyncClient)

    def thread(backend):
        async def main():
            client = factory()
            points = 0
            for name in ("redirect", "stream-left"):
                for way in ways_on(backend):
                    points += await cancel_everywhere(client, url, name, way)
            expect(await client.get(url + "/get"))
            await client.aclose()  # Raises where a request is still in flight.
            return points

        return lambda: run(noise, backend, main)

    with httpx_cancel_safe.patched(), all_counted(caplog):
        points = at_once(*[thread(backend) for backend in backends])
    assert min(points) > 10
    assert servers.plain.wait_closed_to(0, 5)


@pytest.fixture
def step_by_step():
    """Threads that start now take turns at every step of the counting."""

    def take_turns(frame, event, argument):
        if frame.f_globals is vars(_stats):
            frame.f_trace_opcodes = True
            time.sleep(0.0001)
            return take_turns

    threading.settrace(take_turns)
    yield
    threading.settrace(None)


@pytest.mark.skipif(sys.version_info < (3, 7), reason="Python 3.6 traces no single steps")
def test_counting_loses_nothing(step_by_step):
    def count():
        for _ in range(10):
            _stats.count("released", "reading")

    before = httpx_cancel_safe.stats()
    at_once(*[count] * 4)
    after = httpx_cancel_safe.stats()
    assert after.released - before.released == 40
    assert after.by_phase["reading"] - before.by_phase["reading"] == 40


# -- Threads on one sync client ----------------------------------------------------------------


class Abort(BaseException):
    """What a hook or a socket may throw: not an Exception, as KeyboardInterrupt."""


class _Due(threading.local):
    left = 0  # Blocking calls of this thread up to the one that is interrupted.


@pytest.fixture
def due(monkeypatch):
    due = _Due()

    def interrupting(original):
        def call(sock, *args):
            if due.left:
                due.left -= 1
                if not due.left:
                    raise Abort
            return original(sock, *args)

        return call

    for name in ("connect", "send", "sendall", "recv"):
        monkeypatch.setattr(socket.socket, name, interrupting(getattr(socket.socket, name)))
    return due


def abort(response):
    if "x-abort" in response.request.headers:
        raise Abort


def test_threads_share_a_sync_client(servers, noise, hasty, due, caplog):
    """Some requests end in exceptions, the others share the pool with them, and all succeed."""
    url = servers.plain.url
    client = httpx.Client(
        limits=httpx.Limits(max_connections=2, max_keepalive_connections=2),
        timeout=httpx.Timeout(20.0),
        trust_env=False,
        # httpcore's sync pools close an idle connection that another thread has just got.
        headers={"connection": "close"},
        event_hooks={"response": [abort]},
    )
    aborted = []

    def interrupted():
        for k in list(range(1, 8)) * 4:
            due.left = k
            try:
                expect(client.get(url + "/get"))
            except Abort:
                aborted.append(k)
            due.left = 0

    def hooked():
        for path in ["/get", "/chunked"] * 12:
            with pytest.raises(Abort):
                client.get(url + path, headers={"x-abort": "1"})
            aborted.append(path)

    def bystander():
        for _ in range(30):
            expect(client.get(url + "/get"))

    with httpx_cancel_safe.patched(), all_counted(caplog):
        at_once(interrupted, hooked, bystander, interrupted, hooked, bystander)
        # Both places can be had.
        with client.stream("GET", url + "/get"), client.stream("GET", url + "/get"):
            pass
        client.close()
    assert len(aborted) > 60
    assert servers.plain.wait_closed_to(0, 5)


# -- Patching under load -----------------------------------------------------------------------


def sends():
    return [vars(cls)["send"] for cls in CLASSES]


def test_patching_and_unpatching_harm_no_request(servers, noise, hasty):
    import_backends(noise, ["asyncio"])
    url, _, factory = target(servers, httpx.AsyncClient)
    # What is cancelled needs a net of its own, or it loses its connection in between.
    safe_factory = target(servers, httpx_cancel_safe.SafeAsyncClient)[2]
    own = sends()
    over = threading.Event()
    rounds = []

    def toggle():
        while not over.is_set():
            assert httpx_cancel_safe.patch() is True
            assert httpx_cancel_safe.is_patched()
            assert [send.__wrapped__ for send in sends()] == own  # And not wrapped twice.
            httpx_cancel_safe.unpatch()
            assert not httpx_cancel_safe.is_patched()
            assert sends() == own
            rounds.append(1)

    async def main():
        client, safe = factory(), safe_factory()
        for way in ways_on("asyncio"):
            await cancel_everywhere(safe, url, "redirect", way)
            for name in ("get", "redirect", "stream"):
                await SCENARIOS[name](client, url)
        expect(await safe.get(url + "/get"))
        await safe.aclose()
        await client.aclose()

    def worker():
        run(noise, "asyncio", main)

    def workers():
        try:
            at_once(worker, worker, worker)
        finally:
            over.set()

    at_once(toggle, workers)
    assert len(rounds) > 10
    assert sends() == own
    assert servers.plain.wait_closed_to(0, 5)


# -- Forks -------------------------------------------------------------------------------------


@pytest.fixture
def in_child():
    """Run a function in a process that is forked from this one; one that hangs is ended."""
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

    async def use_new_client():
        client = factory()
        for way in ways_on("asyncio"):
            assert await cancel_everywhere(client, url, "redirect", way) > 3
        await client.aclose()

    def child():
        before = httpx_cancel_safe.stats().released
        run(noise, "asyncio", use_new_client)
        assert httpx_cancel_safe.stats().released > before
        assert httpx_cancel_safe.is_patched()
        httpx_cancel_safe.unpatch()
        assert not httpx_cancel_safe.is_patched()
        assert noise.take() == []

    async def parent():
        client = factory()
        await cancel_everywhere(client, url, "redirect", "once")
        before = httpx_cancel_safe.stats()
        in_child(child)
        assert httpx_cancel_safe.stats() == before
        await cancel_everywhere(client, url, "redirect", "once")
        await client.aclose()

    with httpx_cancel_safe.patched():
        run(noise, "asyncio", parent)
        assert httpx_cancel_safe.is_patched()
    assert servers.plain.wait_closed_to(0, 5)


@pytest.mark.skipif(sys.version_info < (3, 7), reason="Python 3.6 tells nobody of a fork")
@pytest.mark.parametrize("held", ["stats", "patch"])
def test_a_fork_waits_for_who_counts_or_patches(held, in_child, hasty):
    """Else a child finds a lock that nobody in it will release, or one class patched of two."""
    over = threading.Event()

    def busy():
        while not over.is_set():
            if held == "stats":
                _stats.count("released", "reading")
            else:
                httpx_cancel_safe.patch()
                httpx_cancel_safe.unpatch()

    def child():
        now = httpx_cancel_safe.stats()
        assert now.released == sum(now.by_phase.values())
        assert len({hasattr(send, "__wrapped__") for send in sends()}) == 1
        httpx_cancel_safe.patch()
        assert httpx_cancel_safe.is_patched()

    with ThreadPoolExecutor(1) as threads:
        thread = threads.submit(busy)
        try:
            for _ in range(20):
                in_child(child)
        finally:
            over.set()
        thread.result()
    httpx_cancel_safe.unpatch()


# -- Locks -------------------------------------------------------------------------------------


def test_a_signal_handler_or_a_finalizer_may_ask_at_any_time(in_child):
    def ask(frame, event, argument):
        """What may run between any two lines of a thread."""
        if frame.f_globals.get("__name__") in (_stats.__name__, _patch.__name__):
            _stats.count("failed")
            httpx_cancel_safe.stats()
            httpx_cancel_safe.is_patched()
            return ask

    def child():  # In the same process it would keep the locks if it hung.
        sys.settrace(ask)
        _stats.count("failed")
        httpx_cancel_safe.stats()
        httpx_cancel_safe.patch()
        httpx_cancel_safe.is_patched()
        httpx_cancel_safe.unpatch()
        sys.settrace(None)

    in_child(child)


def test_no_lock_is_held_over_an_await():
    waits = (ast.Await, ast.Yield, ast.YieldFrom, ast.AsyncFor, ast.AsyncWith)
    held = []
    for file in pathlib.Path(httpx_cancel_safe.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            # Locks are taken by `with` alone.
            assert not (isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "acquire")
            if isinstance(node, (ast.With, ast.AsyncWith)) and any(
                "lock" in ast.dump(item.context_expr) for item in node.items
            ):
                inside = [inner for line in node.body for inner in ast.walk(line)]
                assert not any(isinstance(inner, waits) for inner in inside), (file, node.lineno)
                held.append(node)
    assert len(held) > 4


def test_anyio_may_be_on_its_way_in_another_thread(monkeypatch):
    """Its backend stands among the modules before its names are there."""
    at_hand = types.ModuleType("anyio._backends._asyncio")
    monkeypatch.setitem(sys.modules, at_hand.__name__, at_hand)
    begun = []

    class Transport(AsyncAdapter):
        async def exchange(self, asked):
            begun.append(asked)
            await asyncio.Event().wait()

    async def main():
        async with httpx.AsyncClient(transport=Transport()) as client:
            task = asyncio.ensure_future(client.get("http://custom.test"))
            while not begun and not task.done():
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled(), task.exception()

    loop = asyncio.new_event_loop()
    with httpx_cancel_safe.patched():
        loop.run_until_complete(main())
    loop.close()
