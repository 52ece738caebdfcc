"""What the library tells of itself: counts by phase, and a log that gives nothing away."""

import asyncio
import logging
import re

import anyio
import httpx
import pytest

import httpx_cancel_safe

from .support import compat, programs
from .support.custom import Abort
from .support.network import Network
from .support.stepping import cancel, passes, start
from .support.transports import Answers, AsyncAdapter, AsyncBody

pytestmark = [
    pytest.mark.skipif(compat.FIXED, reason="nothing is patched on httpx %s" % httpx.__version__),
    pytest.mark.anyio,
]


@pytest.fixture
def anyio_backend():
    return "asyncio"


# Each planted in another place of a request or its response.
SECRETS = ["planted-user", "planted-password", "planted-query", "planted-header", "planted-body"]
SECRETS += ["planted-response-header", "planted-response-body"]
URL = "http://planted-user:planted-password@custom.test/path?token=planted-query"
SERVICE = "http://service.test/"
# What hangs in the network when a request is in this phase.
HANGS = {"connecting": "connect", "sending": "write", "reading": "body"}


@pytest.fixture
def changed():
    """How the counts changed since the test began: those by phase, `failed` and `timed_out`."""
    before = httpx_cancel_safe.stats()

    def changed():
        now = httpx_cancel_safe.stats()
        phases = {phase: now.by_phase[phase] - count for phase, count in before.by_phase.items()}
        by_phase = {phase: count for phase, count in phases.items() if count}
        return by_phase, now.failed - before.failed, now.timed_out - before.timed_out

    return changed


@pytest.fixture
def log(caplog):
    """What a log file of this program would hold, at the lowest level."""
    caplog.set_level(logging.DEBUG, "httpx_cancel_safe")
    return caplog


@pytest.fixture
async def client():
    with httpx_cancel_safe.patched():
        async with compat.make_client(httpx.AsyncClient, False) as client:
            client.network = Network()
            yield client.network.under(client)


async def started(client, hangs, sender=None):
    """A request that hangs in the network."""
    client.network.hangs = hangs
    task = start((sender or client).get(SERVICE))
    while not client.network.reached:
        await asyncio.sleep(0)
    return task


async def cancel_in(phase, client):
    if phase == "waiting":
        holder = await client.send(client.build_request("GET", SERVICE), stream=True)
        task = start(client.get(SERVICE))
        await passes()
        await cancel(task)
        await holder.aread()
    elif phase == "closing":
        body = AsyncBody(close=lambda: passes(5))
        async with httpx.AsyncClient(transport=Answers(body)) as other:
            task = start(other.get(SERVICE))
            while not body.began:
                await asyncio.sleep(0)
            await cancel(task)
    else:
        task = await started(client, HANGS[phase])
        task.cancel()
        await asyncio.sleep(0)
        await cancel(task)  # Once more.


@pytest.mark.parametrize("phase", ["waiting", "closing", *HANGS])
async def test_a_cancelled_request_is_counted_once_and_logged_with_its_phase(client, phase, changed, log):
    log.clear()  # That it is in place.
    await cancel_in(phase, client)
    assert changed() == ({phase: 1}, 0, 0)
    (record,) = log.records
    assert record.levelname == "DEBUG"
    assert re.match(r".*GET service\.test.* while %s by CancelledError" % phase, record.getMessage())


@pytest.mark.parametrize("proxy", ["proxy", "socks"])
async def test_a_request_that_makes_a_tunnel_is_connecting(servers, proxy, changed):
    if proxy == "socks" and compat.socks_problem():
        pytest.skip(compat.socks_problem())
    client = compat.make_client(httpx.AsyncClient, False, proxy=getattr(servers, proxy).url)
    url = servers.plain.url.replace("http:", "https:")  # It waits for the end of our TLS handshake.
    before = servers.plain.opened
    with httpx_cancel_safe.patched():
        task = start(client.get(url))
        while servers.plain.opened == before:
            await asyncio.sleep(0.001)
        await cancel(task)
        await client.aclose()
    assert changed() == ({"connecting": 1}, 0, 0)


async def test_a_request_inside_another_counts_once(client, changed):
    """A transport that asks with a client of its own."""

    class Asks(AsyncAdapter):
        async def exchange(self, asked):
            await client.get(SERVICE)

    async with httpx.AsyncClient(transport=Asks()) as outer:
        await cancel(await started(client, "read", outer))
    assert changed() == ({"reading": 1}, 0, 0)


async def test_a_timeout_is_counted_with_its_phase(servers, changed):
    with httpx_cancel_safe.patched():
        async with compat.make_client(httpx.AsyncClient, False) as client:
            with pytest.raises(httpx.ReadTimeout):
                await client.get(servers.plain.url + "/hang-headers", timeout=httpx.Timeout(5, read=0.05))
    assert changed() == ({"reading": 1}, 0, 0)


async def test_a_request_that_held_nothing_counts_for_nothing(changed):
    class Fails(AsyncAdapter):
        async def exchange(self, asked):
            raise Abort

    with httpx_cancel_safe.patched():
        async with httpx.AsyncClient(transport=Fails()) as client:
            with pytest.raises(Abort):
                await client.get("http://custom.test")
        await passes()  # httpx up to 0.17 leaves an auth flow behind, for the loop to close.
    assert changed() == ({}, 0, 0)


async def telling_request(ends_by, close, client_class=httpx.AsyncClient):
    class Telling(AsyncAdapter):
        async def exchange(self, asked):
            body = AsyncBody(read, close)
            return 200, [(b"x-reply", b"planted-response-header")], body

    async def read():
        raise ends_by(" ".join([URL] + SECRETS))

    async with client_class(transport=Telling()) as client:
        headers = {"x-secret": "planted-header"}
        with pytest.raises((Abort, LookupError), match="token=planted-query"):
            await client.post(URL, headers=headers, **compat.content(b"planted-body"))


def warning_of(log):
    """The one warning; nothing in the log gives away what was planted."""
    assert not [secret for secret in SECRETS if secret in log.text], log.text
    (warning,) = [record.getMessage() for record in log.records if record.levelname == "WARNING"]
    return warning


@pytest.mark.parametrize("ends_by, failure", [(Abort, OSError), (KeyError, OSError), (Abort, asyncio.CancelledError)])
async def test_a_close_that_fails_is_warned_of_without_what_it_says(ends_by, failure, changed, log):
    """One that cancels itself fails, too."""

    async def fails():
        raise failure(" ".join([URL] + SECRETS))

    with httpx_cancel_safe.patched():
        await telling_request(ends_by, fails)
    # For an Exception httpx closes the response itself.
    assert changed() in [({"reading": 1}, 1, 0)] + [({}, 1, 0)] * (ends_by is LookupError)
    warning = warning_of(log)
    assert failure.__name__ in warning and "test_stats.py" in warning  # What it was and where, to go on from.


@pytest.mark.parametrize("way", ["patched", "subclass"])
async def test_a_close_that_is_given_up_is_warned_of(way, changed, log):
    if way == "subclass":
        impatient = type("Impatient", (httpx_cancel_safe.SafeAsyncClient,), {"close_timeout": 0.01})
        await telling_request(Abort, lambda: anyio.sleep(999), impatient)
    else:
        with httpx_cancel_safe.patched(close_timeout=0.01):
            await telling_request(Abort, lambda: anyio.sleep(999))
    assert changed() == ({"reading": 1}, 0, 1)
    assert "0.01 seconds" in warning_of(log)


def test_a_program_that_has_no_logging_sees_nothing():
    """Python shows warnings of loggers without a handler on its own; pytest has some."""
    code = "import httpx_cancel_safe, logging; logging.getLogger('httpx_cancel_safe').warning('seen')"
    done = programs.run("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
