"""What differs between the releases of Python, httpx, anyio and trio, in one place."""

import asyncio
import inspect
import sys

try:
    import httpx
except ImportError:  # The live fork, where it is installed alone.
    import httpx2 as httpx

HTTPX = tuple(int(part) for part in httpx.__version__.split(".")[:3])

# PR #2156: from here on the library has nothing to do.
FIXED = HTTPX >= (0, 23)


def trio_problem():
    """Why trio cannot be used here; None where it can."""
    try:
        import trio
    except ImportError:
        return "trio is not installed"
    except TypeError as exc:  # trio before 0.26 cannot be imported on Python 3.13.
        return "this trio is too old for this Python: %s" % exc
    try:
        import anyio
    except ImportError:
        return None
    if hasattr(anyio, "ExceptionGroup"):  # anyio 3, which had one of its own.
        if tuple(int(part) for part in trio.__version__.split(".")[:2]) >= (0, 24):
            return "anyio 3 does not work with trio 0.24 and later"
    return None


def scope_problem():
    """Why anyio scopes cannot be used here; None where they can."""
    try:
        import anyio  # noqa: F401
    except ImportError:
        return "anyio is not installed"
    return None


def socks_problem():
    if HTTPX < (0, 22):
        return "httpx has SOCKS from 0.22 on"
    try:
        import socksio  # noqa: F401
    except ImportError:
        return "socksio is not installed"
    return None


def all_tasks(loop):
    if sys.version_info >= (3, 7):
        return asyncio.all_tasks(loop)
    return {task for task in asyncio.Task.all_tasks(loop) if not task.done()}


def pool_of(client):
    """The pool of httpcore behind a client, which httpx before 0.18 has for a transport."""
    return getattr(client._transport, "_pool", client._transport)


def make_client(
    base,
    verify,
    limit=1,
    keepalive=None,
    http2=False,
    proxy=None,
    uds=None,
    pool_timeout=2.0,
    timeout=20.0,
    **options
):
    """An AsyncClient of class `base` that follows redirects and ignores the environment."""
    keepalive = limit if keepalive is None else keepalive
    limits = httpx.Limits(max_connections=limit, max_keepalive_connections=keepalive)
    options.update(
        verify=verify,
        http2=http2,
        trust_env=False,
        limits=limits,
        timeout=httpx.Timeout(timeout, pool=pool_timeout),
    )
    if HTTPX >= (0, 20):
        options["follow_redirects"] = True
    if uds is not None:
        options["transport"] = _uds_transport(uds, limits, verify)
    if proxy is not None:
        if "proxy" in inspect.signature(httpx.AsyncClient.__init__).parameters:
            options["proxy"] = proxy
        else:
            options["proxies"] = proxy
    return base(**options)


def _uds_transport(uds, limits, verify):
    if HTTPX >= (0, 17):
        return httpx.AsyncHTTPTransport(uds=uds, limits=limits, verify=verify, trust_env=False)
    import httpcore

    # Before httpx 0.17 a pool is a transport.
    return httpcore.AsyncConnectionPool(
        uds=uds,
        ssl_context=verify,
        max_connections=limits.max_connections,
        max_keepalive_connections=limits.max_keepalive_connections,
    )
