"""What differs between the releases of Python, httpx, anyio and trio, in one place."""

import asyncio
import importlib.util
import re
import sys
import warnings

try:
    import httpx
except ImportError:  # The live fork, where it is installed alone.
    import httpx2 as httpx

HTTPX = tuple(int(part) for part in re.findall(r"\d+", httpx.__version__)[:3])

# PR #2156: from here on the library has nothing to do.
FIXED = HTTPX >= (0, 23)

HTTPCORE = (1,)
if not FIXED:
    import httpcore

    HTTPCORE = tuple(map(int, httpcore.__version__.split(".")[:3]))
# Whether httpcore reads and writes in asyncio's wait_for(), which can swallow a cancel (cpython #86296).
WAIT_FOR_SWALLOWS = HTTPCORE < (0, 13, 4) and sys.version_info < (3, 12)


def content(body):
    """How a client is given a request body: as `content` from httpx 0.18 on, as `data` before."""
    return {"content": body} if HTTPX >= (0, 18) else {"data": body}


def trio_problem():
    """Why trio cannot be used here; None where it can."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anyio 3 uses names of trio's that are deprecated.
        try:
            import anyio._backends._trio  # noqa: F401
        except (ImportError, TypeError, AttributeError) as exc:  # None, too old for this Python, too new for anyio 3.
            return "trio does not work here: %r" % exc
    return None


def problem_with(name):
    """Why trio or uvloop cannot be used here; None where it can."""
    if name == "trio":
        return trio_problem()
    return None if importlib.util.find_spec(name) else name + " is not installed"


def socks_problem():
    if HTTPX < (0, 22):
        return "httpx has SOCKS from 0.22 on"
    return problem_with("socksio")


if sys.version_info >= (3, 7):
    all_tasks, current_task = asyncio.all_tasks, asyncio.current_task
else:
    current_task = asyncio.Task.current_task

    def all_tasks(loop):
        return {task for task in asyncio.Task.all_tasks(loop) if not task.done()}


def pool_of(client):
    """The pool of httpcore behind a client, which httpx before 0.17 has for a transport."""
    return getattr(client._transport, "_pool", client._transport)


def _state_of(connection):
    state = getattr(connection, "state", None)  # httpcore 0.11 to 0.13.3.
    if state is not None:
        return {"PENDING": "connecting", "FULL": "active", "READY": "active"}.get(state.name, state.name.lower())
    if connection.is_closed():
        return "closed"
    if connection.is_idle():
        return "idle"
    inner = getattr(connection, "_connection", None) or getattr(connection, "connection", None)
    return "connecting" if inner is None else "active"


def states(client):
    """The connections in a client's pool: (port, state), which is connecting, active, idle or closed."""
    pool = pool_of(client)
    if HTTPX >= (0, 21):
        found = [(getattr(one, "_origin", None), one) for one in pool._pool]
    else:
        found = [(origin, one) for origin, many in pool._connections.items() for one in many]
    ports = [getattr(origin, "port", origin[-1] if isinstance(origin, tuple) else None) for origin, _ in found]
    return sorted((str(port), _state_of(one)) for port, (_, one) in zip(ports, found))


def connections_of(client):
    """The states alone."""
    return sorted(state for _, state in states(client))


def requests_of(client):
    """How many requests a client's pool lists, waiting or not; 0 before httpcore 0.14, which lists none."""
    return len(pool_of(client)._requests) if HTTPX >= (0, 21) else 0


def wrong_books(client):
    """What the books of a client's pool should not say when no request runs."""
    found = states(client)
    wrong = ["a connection to port %s is %s" % one for one in found if one[1] not in ("idle", "closed")]
    if requests_of(client):
        wrong.append("requests listed: %d" % requests_of(client))
    pool = pool_of(client)
    semaphore = getattr(getattr(pool, "_internal_semaphore", None), "semaphore", None)
    if semaphore is not None:
        taken = pool._max_connections - getattr(semaphore, "value", getattr(semaphore, "_value", 0))
        if taken != len(found):
            wrong.append("permits taken: %d, connections: %d" % (taken, len(found)))
    return wrong


# As every httpx did before 0.20.
FOLLOW = {"follow_redirects": True} if HTTPX >= (0, 20) else {}


def make_client(
    base, verify, limit=1, keepalive=None, expiry=None, proxy=None, uds=None, pool_timeout=2.0, timeout=20.0, **options
):
    """A client of class `base` that follows redirects and ignores the environment."""
    limits = {"max_connections": limit, "max_keepalive_connections": limit if keepalive is None else keepalive}
    if expiry is not None:
        limits["keepalive_expiry"] = expiry
    options.update(verify=verify, trust_env=False, limits=httpx.Limits(**limits), **FOLLOW)
    options["timeout"] = timeout if isinstance(timeout, httpx.Timeout) else httpx.Timeout(timeout, pool=pool_timeout)
    if uds is not None and HTTPX >= (0, 17):
        transport = {name: options[name] for name in ("verify", "trust_env", "limits")}
        options["transport"] = httpx.AsyncHTTPTransport(uds=uds, **transport)
    elif uds is not None:  # A pool is a transport.
        options["transport"] = httpcore.AsyncConnectionPool(uds=uds, ssl_context=verify, **limits)
    if proxy is not None:
        options["proxy" if HTTPX >= (0, 26) else "proxies"] = proxy
    return base(**options)
