"""What the net tells of itself: counts by phase, and a log that gives nothing away."""

import asyncio
import contextlib
import logging
import re
import sys
import threading

import httpx
import pytest

import httpx_cancel_safe
from httpx_cancel_safe import _pool, _stats
from httpx_cancel_safe._pool import _common
from tests.support import compat, programs
from tests.support.custom import Adapter, AsyncAdapter, AsyncStreamBase, StreamBase
from tests.support.servers import serve

pytestmark = pytest.mark.skipif(compat.FIXED, reason="this httpx needs no net")

CONTENT = "content" if compat.HTTPX >= (0, 18) else "data"
# Each planted in another place of a request or its response.
SECRETS = ["planted-user", "planted-password", "planted-query", "planted-header", "planted-body"]
SECRETS += ["planted-response-header", "planted-response-body"]
URL = "http://planted-user:planted-password@custom.test/path?token=planted-query"


class Changed:
    """How the counts changed since."""

    def __init__(self):
        self._before = httpx_cancel_safe.stats()

    def __call__(self):
        before, now = self._before, httpx_cancel_safe.stats()
        phases = {phase: now.by_phase[phase] - count for phase, count in before.by_phase.items()}
        return (
            {phase: count for phase, count in phases.items() if count},
            now.failed - before.failed,
            now.timed_out - before.timed_out,
        )


@pytest.fixture
def log():
    """What a log file of this program would hold, at the lowest level."""
    lines = []

    class Keep(logging.Handler):
        def emit(self, record):
            lines.append(self.format(record))

    keep, logger = Keep(), logging.getLogger("httpx_cancel_safe")
    keep.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger.addHandler(keep)
    logger.setLevel(logging.DEBUG)
    yield lines
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(keep)


class Abort(BaseException):
    """Not an Exception: httpx from 0.18 on does not close the response for it."""


def run(coroutine):
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(asyncio.wait_for(coroutine, 30))
    finally:
        asyncio.set_event_loop(None)
        loop.close()


async def cancel(request, is_there):
    """Cancel a request as soon as it `is_there`."""
    task = asyncio.ensure_future(request)
    while not is_there():
        assert not task.done(), task
        await asyncio.sleep(0)
    while not task.done():
        task.cancel()
        # Before Python 3.12 wait_for() swallows one that comes together with what it waits for.
        await asyncio.wait([task], timeout=0.5)
    assert task.cancelled(), task


# -- Phases ------------------------------------------------------------------------------------


class Stuck:
    """A body of which the rest never comes."""

    parts = 0

    def __aiter__(self):
        return self

    async def __anext__(self):
        self.parts += 1
        if self.parts > 1:
            await asyncio.Event().wait()
        return b"x" * 1000


class SlowToClose(AsyncStreamBase):
    asked = False

    async def __aiter__(self):
        yield b""

    async def aclose(self):
        self.asked = True
        for _ in range(5):
            await asyncio.sleep(0)


async def end_waiting(servers, client):
    holder = client.build_request("GET", servers.plain.url + "/hang-body")
    response = await client.send(holder, stream=True)
    rounds = iter(range(10))  # It begins in the first one.
    await cancel(client.get(servers.plain.url + "/get"), lambda: next(rounds) > 5)
    await response.aclose()


async def end_connecting(servers, client):
    url = servers.plain.url.replace("http:", "https:")  # It waits for the end of our TLS handshake.
    await cancel(client.get(url), lambda: servers.plain.accepted)


async def end_sending(servers, client):
    body = Stuck()
    request = client.post(servers.plain.url + "/post", **{CONTENT: body})
    await cancel(request, lambda: body.parts > 1 and servers.plain.accepted)


async def end_reading(servers, client):
    seen = []
    client.cookies.extract_cookies = seen.append  # Called when the head is there.
    await cancel(client.get(servers.plain.url + "/hang-body"), lambda: seen)


async def end_closing(servers, client):
    stream = SlowToClose()

    class Transport(AsyncAdapter):
        async def exchange(self, asked):
            return 200, [], stream

    async with httpx.AsyncClient(transport=Transport()) as other:
        await cancel(other.get("http://127.0.0.1"), lambda: stream.asked)


@pytest.mark.parametrize("end", [end_waiting, end_connecting, end_sending, end_reading, end_closing])
def test_a_rescue_is_counted_and_logged_with_its_phase(end, log):
    phase = end.__name__[len("end_") :]

    async def main():
        client = compat.make_client(httpx.AsyncClient, False)
        await end(servers, client)
        await client.aclose()

    with serve() as servers, httpx_cancel_safe.patched():
        changed = Changed()
        del log[:]  # That it is in place.
        run(main())
    assert changed() == ({phase: 1}, 0, 0)
    method = "POST" if phase == "sending" else "GET"
    line = r"DEBUG released %s 127\.0\.0\.1, ended while %s by CancelledError, in [\d.]+ ms" % (method, phase)
    assert len(log) == 1 and re.match(line + "$", log[0]), log


@pytest.mark.parametrize("proxy", ["proxy", "socks"])
def test_a_request_that_makes_a_tunnel_is_connecting(proxy):
    if proxy == "socks" and compat.socks_problem():
        pytest.skip(compat.socks_problem())

    async def main():
        relay = getattr(servers, proxy)
        client = compat.make_client(httpx.AsyncClient, False, proxy=relay.url)
        await end_connecting(servers, client)
        await client.aclose()

    with serve() as servers, httpx_cancel_safe.patched():
        changed = Changed()
        run(main())
    assert changed()[0] == {"connecting": 1}


def test_a_request_counts_once_however_often_it_goes_wrong():
    async def main():
        client = compat.make_client(httpx.AsyncClient, False, pool_timeout=0.01)
        holder = client.build_request("GET", servers.plain.url + "/hang-body")
        response = await client.send(holder, stream=True)
        with pytest.raises(httpx.PoolTimeout):  # Is raised for one of httpcore's.
            await client.get(servers.plain.url + "/get")
        await response.aclose()
        url = servers.plain.url.replace("http:", "https:")
        task = asyncio.ensure_future(client.get(url))
        while servers.plain.accepted < 2:
            await asyncio.sleep(0)
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0)
        await asyncio.wait([task])
        await client.aclose()

    with serve() as servers, httpx_cancel_safe.patched():
        before = httpx_cancel_safe.stats().released
        run(main())
        assert httpx_cancel_safe.stats().released - before == 2


def test_a_request_inside_another_counts_once():
    async def main():
        inner = compat.make_client(httpx.AsyncClient, False, pool_timeout=0.01)

        class Transport(AsyncAdapter):
            async def exchange(self, asked):
                await inner.get(servers.plain.url + "/hang-headers")

        async with httpx.AsyncClient(transport=Transport()) as outer:
            await cancel(outer.get("http://custom.test"), lambda: servers.plain.accepted)
            request = inner.build_request("GET", servers.plain.url + "/hang-body")
            holder = await inner.send(request, stream=True)
            with pytest.raises(httpx.PoolTimeout):
                await outer.get("http://custom.test")
            await holder.aclose()
        await inner.aclose()

    with serve() as servers, httpx_cancel_safe.patched():
        before = httpx_cancel_safe.stats().released
        run(main())
        assert httpx_cancel_safe.stats().released - before == 2


def test_a_time_out_is_counted_with_its_phase():
    """Though what httpx raises was made of httpcore's, a good deal further up."""

    async def main():
        client = compat.make_client(httpx.AsyncClient, False, timeout=0.05)
        with pytest.raises(httpx.ReadTimeout):
            await client.get(servers.plain.url + "/hang-headers")
        await client.aclose()

    with serve() as servers, httpx_cancel_safe.patched():
        changed = Changed()
        run(main())
    assert changed() == ({"reading": 1}, 0, 0)


def test_the_counts_belong_together_whichever_thread_asks():
    class Stream(StreamBase):
        def __iter__(self):
            yield b""

        def close(self):
            pass

    class Transport(Adapter):
        def exchange(self, asked):
            return 200, [], Stream()

    def abort(response):
        raise Abort

    def work():
        with httpx.Client(transport=Transport()) as client:
            client.cookies.extract_cookies = abort
            for _ in range(100):
                with pytest.raises(Abort):
                    client.get("http://custom.test")

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with httpx_cancel_safe.patched():
            changed = Changed()
            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                now = httpx_cancel_safe.stats()
                assert now.released == sum(now.by_phase.values())
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert changed() == ({"reading": 400}, 0, 0)


def test_a_request_that_held_nothing_counts_for_nothing():
    class Transport(AsyncAdapter):
        async def exchange(self, asked):
            raise Abort

    async def main():
        async with httpx.AsyncClient(transport=Transport()) as client:
            with pytest.raises(Abort):
                await client.get("http://custom.test")

    with httpx_cancel_safe.patched():
        changed = Changed()
        run(main())
    assert changed() == ({}, 0, 0)


def test_no_count_is_lost_between_threads(monkeypatch):
    class Meeting(dict):
        """Has each who looks wait for another one, as long as that could come."""

        barrier = threading.Barrier(2)

        def __getitem__(self, name):
            found = dict.__getitem__(self, name)
            with contextlib.suppress(threading.BrokenBarrierError):
                self.barrier.wait(0.1)
            return found

    counts = Meeting(released=0)
    monkeypatch.setattr(_stats, "_counts", counts)
    threads = [threading.Thread(target=_stats.count, args=("released",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dict(counts) == {"released": 2}


def test_the_counts_are_the_callers_own():
    httpx_cancel_safe.stats().by_phase["reading"] += 1
    now = httpx_cancel_safe.stats()
    assert now.released == sum(now.by_phase.values())


# -- What the log gives away -------------------------------------------------------------------


class Telling(AsyncStreamBase):
    """A response that breaks off, and that cannot be closed, or `hangs` then."""

    def __init__(self, breaks_off_by=Abort, hangs=False):
        self._exception = breaks_off_by
        self._hangs = hangs

    async def __aiter__(self):
        yield b"planted-response-body"
        try:
            raise OSError(" ".join([URL] + SECRETS))
        except OSError as exc:
            raise self._exception(str(exc)) from exc

    async def aclose(self):
        if self._hangs:
            await asyncio.Event().wait()
        raise OSError(" ".join([URL] + SECRETS))


async def telling_request(stream):
    class Transport(AsyncAdapter):
        async def exchange(self, asked):
            return 200, [(b"x-reply", b"planted-response-header")], stream

    async with httpx.AsyncClient(transport=Transport()) as client:
        headers = {"x-secret": "planted-header"}
        with pytest.raises((Abort, LookupError), match="token=planted-query"):
            await client.post(URL, headers=headers, **{CONTENT: b"planted-body"})


def no_secret_in(log):
    return [line for line in log for secret in SECRETS if secret in line] == []


@pytest.mark.parametrize("breaks_off_by", [Abort, LookupError])
def test_a_close_that_fails_is_warned_of_without_what_it_says(breaks_off_by, log):
    with httpx_cancel_safe.patched():
        changed = Changed()
        run(telling_request(Telling(breaks_off_by)))
    assert changed() == ({"reading": 1}, 1, 0)
    assert [line.split()[0] for line in log] == ["INFO", "WARNING", "DEBUG"]
    assert "OSError" in log[1] and "test_stats.py" in log[1]  # What it was and where, to go on from.
    told = "DEBUG released POST custom.test, ended while reading by %s, in " % breaks_off_by.__name__
    assert log[2].startswith(told)
    assert no_secret_in(log), log


class CancelsItself(Telling):
    async def aclose(self):
        raise asyncio.CancelledError


def test_a_close_that_cancels_itself_is_one_that_fails():
    with httpx_cancel_safe.patched():
        changed = Changed()
        run(telling_request(CancelsItself()))
    assert changed() == ({"reading": 1}, 1, 0)


def test_a_close_that_is_given_up_is_warned_of(log):
    with httpx_cancel_safe.patched(close_timeout=0.01):
        changed = Changed()
        run(telling_request(Telling(hangs=True)))
    assert changed() == ({"reading": 1}, 0, 1)
    assert log[1] == "WARNING a clean-up was given up after 0.01 seconds"
    assert no_secret_in(log), log


def test_an_httpcore_that_is_not_understood_is_warned_of_once(log, monkeypatch):
    def read(exc, guards):
        raise KeyError(SECRETS[3])

    monkeypatch.setattr(_pool, "frames_of", read)
    monkeypatch.setattr(_pool, "_warned", False)
    with httpx_cancel_safe.patched():
        for _ in range(2):
            run(telling_request(Telling()))
    warned = [line for line in log if "cannot put the pools" in line]
    assert len(warned) == 1 and "KeyError" in warned[0]
    assert no_secret_in(log), log


def test_an_httpcore_that_is_not_known_is_warned_of(log, monkeypatch):
    monkeypatch.setattr(sys.modules["httpcore"], "__version__", "0.14-by-a-vendor")
    monkeypatch.setattr(_pool, "_warned", False)
    assert _pool.generation.__wrapped__() is None
    (line,) = log
    assert "cannot put the pools of httpcore 0.14-by-a-vendor right" in line and "LookupError" in line


def test_on_an_httpcore_that_is_not_known_responses_are_closed(monkeypatch):
    monkeypatch.setattr(_pool, "generation", lambda: None)
    with httpx_cancel_safe.patched():
        changed = Changed()
        run(telling_request(Telling()))
    assert changed() == ({"reading": 1}, 1, 0)  # It raised.


BOOKS = _pool.generation()


@pytest.mark.skipif(
    sys.version_info < (3, 8) or compat.HTTPX < (0, 18), reason="httpx closes the response itself"
)
@pytest.mark.parametrize(
    "owner, name",
    [
        (_pool, "frames_of"),
        (_pool, "_pools_in"),
        (_pool, "close_method"),
        (BOOKS, "read"),
        (BOOKS, "open_exchange"),
        (BOOKS, "is_unsettled"),
        (getattr(BOOKS, "Exchange", None), "settle"),
    ],
)
def test_books_that_are_not_understood_cost_a_warning_and_no_more(log, monkeypatch, owner, name):
    def fail(*args):
        raise KeyError

    async def main():
        client = compat.make_client(httpx.AsyncClient, False, limit=10)
        for _ in range(2):
            await end_reading(servers, client)
            async with client.stream("GET", servers.plain.url + "/get") as response:
                await response.aread()
        try:
            await client.aclose()
        except RuntimeError:
            pass  # The requests that were cancelled are in flight for ever.

    monkeypatch.setattr(owner, name, fail)
    monkeypatch.setattr(_pool, "_warned", False)
    with serve() as servers, httpx_cancel_safe.patched():
        run(main())
    assert ["KeyError" in line for line in log if "cannot put the pools" in line] == [True], log


def test_an_httpcore_call_that_waits_is_not_waited_for():
    with pytest.raises(RuntimeError):
        _common.run_now(asyncio.sleep(0))


def test_a_program_that_has_no_logging_sees_nothing():
    """Python shows warnings of loggers without a handler on its own; pytest has some."""
    done = programs.run("-c", "from httpx_cancel_safe import _stats; _stats.logger.warning('seen')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
