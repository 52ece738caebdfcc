"""The same with and without: programs that nobody cancels end as they do with httpx alone.

Each program in `same` is run with plain httpx, with `patch()`, with the Safe classes, and after `unpatch()`.
The same must come of it: result or exception with all that it carries, connections that stay idle,
connections that the server has seen, warnings and log records. A difference that is meant has its reason.
"""

import sys

import pytest

from .same import PROGRAMS, account_of, programs, sync_programs  # noqa: F401
from .support.compat import HTTPX
from .support.servers import raw_server

BESIDE_IDLE = "requests no longer wait beside idle connections"
pytestmark = pytest.mark.skipif(HTTPX >= (0, 23), reason="the classes are those of httpx: see test_releases")

CLOSED_EARLY = ((0, 21) <= HTTPX < (0, 22), "a response closed after its client no longer raises ValueError")

# For each program: on which releases, what differs, and why it is meant to.
MEANT = {
    "many_at_once": (HTTPX < (0, 21), BESIDE_IDLE),
    "two_origins_in_a_pool_of_one": (HTTPX < (0, 21), BESIDE_IDLE),
    "least_recently_used_goes": (HTTPX < (0, 21), BESIDE_IDLE),
    "client_closed_while_requests_wait": (HTTPX >= (0, 21), "who waits gets PoolTimeout, and no ValueError"),
    "stream_fails_to_close_after_a_failure": (HTTPX >= (0, 19), "the exception that ended the request comes out"),
    "pool_timeout": (True, "no TimeoutError comes before the PoolTimeout"),
    "client_closed_before_stream": CLOSED_EARLY,
    "generator_left_to_the_loop": CLOSED_EARLY,
    "sync_full_pool": (HTTPX < (0, 22), BESIDE_IDLE + ", and who got PoolTimeout leaves the queue"),
}


def cells():
    for name, program in sorted(PROGRAMS.items()):
        for backend in program.on:
            reason = None
            if HTTPX < getattr(program, "since", (0, 15)):
                reason = "since httpx " + ".".join(map(str, program.since))
            elif sys.version_info < getattr(program, "python", (3, 6)):
                reason = "since Python %d.%d" % program.python
            marks = [pytest.mark.skip(reason=reason)] if reason else []
            yield pytest.param(name, backend, marks=marks, id="%s-%s" % (name, backend))


@pytest.fixture(scope="module")
def server(servers):
    with raw_server(3) as running:
        running.proxy, running.tls, running.trusted = servers.proxy, servers.tls, servers.client_context
        yield running


@pytest.fixture(scope="module")
def plain():
    """The accounts of plain httpx, each made once."""
    return {}


def differences(one, two, mode):
    """Under which headings two accounts differ, and how."""
    found = {heading: (one[heading], two[heading]) for heading in one if one[heading] != two[heading]}
    for heading in ("sockets left", "connections kept"):  # Plain httpx leaves some to the garbage collector by chance.
        if two[heading] <= one[heading] or (mode == "unpatched" and one[heading]):
            found.pop(heading, None)
    return found


@pytest.mark.parametrize("mode", ["patch", "class", "unpatched"])
@pytest.mark.parametrize("name, backend", list(cells()))
def test_the_same(name, backend, mode, server, plain):
    if (name, backend) not in plain:
        plain[name, backend] = account_of(name, "plain", backend, server)
    found = differences(plain[name, backend], account_of(name, mode, backend, server), mode)
    applies, reason = MEANT.get(name, (False, ""))
    if applies and mode != "unpatched":
        # Up to 0.20, trio's pools raise a PoolTimeout with nothing before it, too.
        assert found or name == "pool_timeout", "no longer differs, which was meant: " + reason
    else:
        assert not found
