"""Put the guards on httpx's classes, and take them off again."""

import contextlib
import functools
import inspect
import os
import re
import sys
import time
import warnings
from typing import Any, Iterator, List, NamedTuple, Optional, Tuple

import wrapt

from . import _stats
from ._calls import Settings, check_close_timeout
from ._stats import Stats, lock, logger, stats

SUPPORTED_FROM = (0, 15)  # The first with the transports that we know.
FIXED_FROM = (0, 23)  # https://github.com/encode/httpx/pull/2156
SWITCH = "HTTPX_CANCEL_SAFE"

_settings = Settings(5.0, active=False)  # Shared by all guards, as other tools may bring old ones back.
_since: Optional[float] = None
auto_is_cancelled = False  # By an unpatch() before httpx was imported.


class UnsupportedHTTPXError(RuntimeError):
    """The installed httpx is older than 0.15.0. The message names its version and those supported."""


def is_affected(version: str) -> bool:
    """Return True if this version of httpx lacks the fix.

    Raises UnsupportedHTTPXError below 0.15.0, and for what is not a version. A pre-release counts as the release that
    it leads to: httpx published none of 0.23.0.
    """
    match = re.match(r"v?(\d+)\.(\d+)", version)
    release = tuple(int(number) for number in match.groups()) if match else ()
    if release < SUPPORTED_FROM:
        raise UnsupportedHTTPXError(
            f"httpx {version!r} is not supported: httpx-cancel-safe supports httpx 0.15.0 to 0.22.0, and has nothing "
            "to do from 0.23.0 on"
        )
    return release < FIXED_FROM


def read_switch() -> Optional[bool]:
    """Return False if HTTPX_CANCEL_SAFE switches the patch off, True if not, None if its value is unknown."""
    value = os.environ.get(SWITCH, "").strip().lower()
    if value in ("0", "false", "no", "off"):
        return False
    return True if value in ("", "1", "true", "yes", "on") else None


def import_httpx() -> Any:
    """Return httpx. If the module `cgi` is missing, the error says what to install."""
    try:
        import httpx
    except ImportError as exc:
        if exc.name == "cgi":  # Gone from Python 3.13.
            exc.msg += ", which httpx before 0.24 needs: pip install legacy-cgi"
        raise
    return httpx


def is_needed() -> bool:
    """Return whether clients need guards here: this httpx lacks the fix, and nobody has switched the guards off."""
    switch = read_switch()
    if switch is None:
        # Not logged, as it must be seen even where logging is not configured.
        text = f"{SWITCH}={os.environ[SWITCH]!r} is neither on nor off, so the patch is on: 0 switches it off"
        warnings.warn(text, RuntimeWarning, stacklevel=3)
    if switch is False:
        logger.info("switched off by %s", SWITCH)
        return False
    version = import_httpx().__version__
    if not is_affected(version):
        logger.info("does nothing on httpx %s, which has the fix", version)
        return False
    return True


class _Guard(wrapt.FunctionWrapper):  # type: ignore[type-arg]
    """A guard that `patch()` puts on a class of httpx."""

    def __call__(self, client: Any, *args: Any, **kwargs: Any) -> Any:
        # By a tool that took it from the `__dict__` of the class, where a function would be.
        return self.__get__(client, type(client))(*args, **kwargs)


def _seams() -> List[Tuple[Any, str, Any]]:
    """Return each class of httpx, the method to guard, and its wrapper."""
    from . import _send

    client = sys.modules["httpx._client"]  # Tools replace the names in httpx.
    return [
        (client.AsyncClient, "send", functools.partial(_send.send_async, _settings)),
        (client.AsyncClient, "_transport_for_url", _send.transport_for),
        (client.AsyncClient, "stream", _send.stream),
        (client.Client, "send", functools.partial(_send.send_sync, _settings)),
        (client.Client, "_transport_for_url", _send.transport_for),
        (client.Client, "stream", _send.stream),
    ]


def patch(*, close_timeout: float = 5.0) -> bool:
    """Guard every client of this process, including those made before.

    Args:
        close_timeout: the limit of a clean-up in seconds, above 0. It has no effect on sync clients, as nothing can
            limit a close that blocks.

    Returns:
        True if the guards are in place; False if this httpx has the fix and needs none, or if the environment says
        HTTPX_CANCEL_SAFE=0.

    Raises:
        TypeError, ValueError: `close_timeout` is not such a number.
        UnsupportedHTTPXError: httpx is older than 0.15.0.
        ImportError: httpx cannot be imported.

    Safe from any thread and at any time. Requests that are under way are not covered. A second call changes the limit,
    and puts back guards that were taken off. On httpx 0.15 to 0.20, a pool in which requests wait at that time is
    guarded once none waits.
    Backports https://github.com/encode/httpx/pull/2156, and goes beyond it.
    """
    global _since
    seconds = check_close_timeout(close_timeout)
    if not is_needed():
        return False
    seams = _seams()
    put_on = []
    with lock:
        was_active = _settings.active
        _settings.close_timeout = seconds
        for owner, name, wrapper in seams:
            current: Any = inspect.getattr_static(owner, name)
            if not _is_guarded(current) and hasattr(current, "__get__"):  # A mock has no __get__.
                setattr(owner, name, _Guard(current, wrapper, enabled=is_wanted))
                put_on.append(f"{owner.__name__}.{name}")
        _settings.active = True
        if put_on or not was_active:
            _since = time.time()
    if put_on and was_active:
        logger.warning("put back what another tool had taken off: %s", ", ".join(put_on))
    if put_on or not was_active:
        logger.info("in place for httpx %s", sys.modules["httpx"].__version__)
    return True


def is_wanted() -> bool:
    """Return whether `patch()` was called and not undone by `unpatch()`, whatever other tools have done since."""
    return bool(_settings.active)


def unpatch() -> None:
    """Take the guards off again, and nothing else. Safe from any thread; a second call does nothing.

    Where another tool has wrapped a guard, its wrapper stays, and the guard passes every call through. A guarded pool
    becomes a plain one with its next request, once no earlier one is under way. Before httpx is imported, this cancels
    `httpx_cancel_safe.auto`.
    """
    global auto_is_cancelled
    with lock:
        _settings.active = False
        auto_is_cancelled = "httpx._client" not in sys.modules
        if auto_is_cancelled or _since is None:
            return
        for owner, name, _ in _seams():
            top = vars(owner).get(name)
            if type(top) is wrapt.BoundFunctionWrapper:  # ddtrace's unpatch() leaves a guard in this form.
                top = top._self_parent
            if type(top) is _Guard:
                below = top.__wrapped__
                setattr(owner, name, below)
                if any(vars(base).get(name) is below for base in owner.__mro__[1:]):
                    delattr(owner, name)  # It was inherited.


def is_patched() -> bool:
    """Return whether every request goes through the guards, as the classes are now."""
    with lock:
        client = sys.modules.get("httpx._client")
        if not _settings.active or client is None:
            return False
        # The other guards are only for responses of other transports.
        return all(_is_guarded(vars(owner).get("send")) for owner in (client.AsyncClient, client.Client))


@contextlib.contextmanager
def patched(*, close_timeout: float = 5.0) -> Iterator[bool]:
    """Patch within a `with` block, and restore what was before. For tests.

    Takes, yields and raises what `patch()` takes, returns and raises.
    """
    before = _settings.close_timeout if is_patched() else None
    result = patch(close_timeout=close_timeout)
    try:
        yield result
    finally:
        if before is None:
            unpatch()
        else:
            patch(close_timeout=before)


def layers(function: Any) -> List[Any]:
    """Return `function` and what it wraps, from the outside in, whoever wrapped it.

    Tools keep what they wrap in `__wrapped__`, in wrapt's `_self_parent`, or in the cells of a closure.
    """
    found: List[Any] = []
    pending = [function]
    while pending and len(found) < 100:
        one = pending.pop(0)
        if not callable(one) or isinstance(one, type) or any(one is other for other in found):
            continue
        found.append(one)
        pending += [getattr(one, name, None) for name in ("_self_parent", "__wrapped__")]
        for cell in getattr(one, "__closure__", None) or ():
            with contextlib.suppress(ValueError):  # The cell is empty.
                pending.append(cell.cell_contents)
    return found


def _is_guarded(function: Any) -> bool:
    # type(), as isinstance() sees what a wrapt proxy wraps.
    return any(type(layer) is _Guard for layer in layers(function))


class Status(NamedTuple):
    """What is on in this process, as `status()` found it."""

    httpx: Optional[str]  # The version, None before it is imported.
    httpcore: Optional[str]
    affected: Optional[bool]  # Whether this httpx needs the patch; None before it is imported, or if it is too old.
    patched: bool  # What `is_patched()` says.
    since: Optional[float]  # When `patch()` put the guards in place, in seconds since the epoch.
    switched_off: bool  # Whether HTTPX_CANCEL_SAFE=0.
    safe_clients: int  # How many clients of the Safe classes were made.
    stats: Stats


def status() -> Status:
    """Return what is on in this process, however it was switched on. Imports nothing. Safe from any thread."""
    httpx, httpcore = (getattr(sys.modules.get(name), "__version__", None) for name in ("httpx", "httpcore"))
    affected = None
    if httpx is not None:
        with contextlib.suppress(UnsupportedHTTPXError):
            affected = is_affected(httpx)
    is_on = is_patched()
    return Status(
        httpx=httpx,
        httpcore=httpcore,
        affected=affected,
        patched=is_on,
        since=_since if is_on else None,
        switched_off=read_switch() is False,
        safe_clients=_stats.counts["safe_clients"],
        stats=stats(),
    )
