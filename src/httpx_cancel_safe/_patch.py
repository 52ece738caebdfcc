"""Put the guards on httpx's classes, and take them off again."""

import contextlib
import os
import sys
import types
import warnings
import weakref
from typing import Any, Iterator, List, Optional

from ._releases import UnsupportedHTTPXError, is_affected
from ._stats import lock_across_forks, logger

SWITCH = "HTTPX_CANCEL_SAFE"

_lock = lock_across_forks()
_settings: Any = None  # Of all guards; made once, as some stay in foreign hands.
# The guards that `patch()` made. Some tools bring an older one back: it works as well.
_made: Any = weakref.WeakSet()


def read_switch() -> Optional[bool]:
    """Return False if HTTPX_CANCEL_SAFE switches the net off, None if it means nothing."""
    value = os.environ.get(SWITCH, "").strip().lower()
    if value in ("0", "false", "no", "off"):
        return False
    return True if value in ("", "1", "true", "yes", "on") else None


def switched_off() -> bool:
    """Tell whether the environment wants no net. Warns if it cannot be understood."""
    switch = read_switch()
    if switch is None:
        # Not logged: who reaches for this switch must see it, whatever logging does.
        warnings.warn(
            f"{SWITCH}={os.environ[SWITCH]!r} is neither on nor off, so the net is on: 0 switches it off",
            RuntimeWarning,
            stacklevel=3,
        )
    return switch is False


def import_httpx() -> Any:
    """Return httpx; say what is missing where it cannot be imported."""
    try:
        import httpx
    except ImportError as exc:
        if getattr(exc, "name", None) == "cgi":
            raise ImportError(
                "httpx before 0.24 needs the module 'cgi', which Python 3.13 no longer "
                "has: `pip install legacy-cgi` brings it back",
                name="cgi",
            ) from exc
        raise
    return httpx


def check_close_timeout(value: Any) -> float:
    """Return `value` in seconds. Raises TypeError or ValueError for what is no time."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(
            f"close_timeout must be a number of seconds, not {value!r}"
        )
    if not 0 < value < float("inf"):
        raise ValueError(
            f"close_timeout must be finite and above 0 seconds, not {value!r}"
        )
    return float(value)


def patch(*, close_timeout: float = 5.0) -> bool:
    """Put the net under every client of this process, also those made before.

    Args:
        close_timeout: the limit of a clean-up in seconds, above 0.

    Returns:
        True if the net is in place; False if this httpx has the fix and needs none, or
        if the environment says HTTPX_CANCEL_SAFE=0.

    Raises:
        TypeError, ValueError: `close_timeout` is not such a number.
        UnsupportedHTTPXError: httpx is older than 0.15.0.
        ImportError: httpx cannot be imported; says what would help, if known.

    Safe from any thread and at any time; a second call changes the limit, no more.
    Backports https://github.com/encode/httpx/pull/2156, and goes past it.
    """
    seconds = check_close_timeout(close_timeout)
    if switched_off():
        logger.info("switched off by %s", SWITCH)
        return False
    httpx = import_httpx()
    if not is_affected(httpx.__version__):
        return False
    from . import _send

    global _settings
    with _lock:
        was_active = is_wanted()
        changed = not was_active
        if _settings is None:
            _settings = _send.Settings(seconds)
        _settings.close_timeout = seconds
        _settings.active = True
        for owner, guard in (
            (httpx._client.AsyncClient, _send.guard_async),
            (httpx._client.Client, _send.guard_sync),
        ):
            current = owner.__dict__["send"]
            if _is_guarded(current):
                continue
            if was_active:
                logger.warning("%s had lost the net: somebody took it off", owner.__name__)
            owner.send = guard(current, _settings)
            _made.add(owner.send)
            changed = True
        if changed:
            logger.info("in place for httpx %s", httpx.__version__)
    return True


def unpatch() -> None:
    """Take the net away, and nothing else. Safe from any thread; a second call is none.

    Where somebody has wrapped over ours, theirs stays, and ours lets everything pass.
    """
    with _lock:
        if _settings is None:
            return
        _settings.active = False
        # Kept until the class has forgotten it: Python calls what watches a dying attribute
        # while other threads still find it, and crashes there.
        taken_off = []
        for owner in _classes():
            while _is_ours(owner.__dict__["send"]):
                taken_off.append(owner.__dict__["send"])
                owner.send = taken_off[-1].__wrapped__


def is_patched() -> bool:
    """Tell whether every request goes through the net, by the classes as they are now."""
    with _lock:
        return (
            _settings is not None
            and _settings.active
            and all(_is_guarded(owner.__dict__["send"]) for owner in _classes())
        )


def is_wanted() -> bool:
    """Tell whether the last word was `patch()`, whatever others did since."""
    return _settings is not None and bool(_settings.active)


@contextlib.contextmanager
def patched(*, close_timeout: float = 5.0) -> Iterator[bool]:
    """Have the net within a `with` block, and after it what was before. For tests.

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


def client_class(name: str) -> Any:
    """Return `SafeAsyncClient` or `SafeClient` as it is on this httpx."""
    httpx = import_httpx()
    version = httpx.__version__
    try:
        if switched_off() or not is_affected(version):
            return getattr(httpx, name[len("Safe") :])
    except UnsupportedHTTPXError:

        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            raise UnsupportedHTTPXError(version)

        return type(name, (), {"__init__": __init__})
    from . import _clients

    return getattr(_clients, name)


def layers(function: Any) -> List[Any]:
    """Return `function` and, from the outside in, what it wraps, whoever wrapped it.

    Tools keep what they wrap in `__wrapped__`, in wrapt's `_self_parent` or `__func__`,
    or in the cells of a closure.
    """
    found: List[Any] = []
    pending = [function]
    while pending and len(found) < 100:
        one = pending.pop(0)
        if one is None or not callable(one) or any(one is other for other in found):
            continue
        found.append(one)
        for name in ("_self_parent", "__wrapped__", "__func__"):
            pending.append(getattr(one, name, None))
        for cell in getattr(one, "__closure__", None) or ():
            try:
                content = cell.cell_contents
            except ValueError:
                continue
            if not isinstance(content, type):
                pending.append(content)
    return found


def _classes() -> List[Any]:
    client = sys.modules["httpx._client"]
    return [client.AsyncClient, client.Client]


def _is_ours(function: Any) -> bool:
    # By type(): wrapt's proxies say that they are what they wrap.
    return type(function) is types.FunctionType and function in _made


def _is_guarded(function: Any) -> bool:
    return any(_is_ours(layer) for layer in layers(function))
