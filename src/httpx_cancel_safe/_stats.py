"""Counts of what was cleaned up, and the logger."""

import logging
import os
import sys
import threading
import time
import traceback
from typing import Any, Dict, NamedTuple

logger = logging.getLogger("httpx_cancel_safe")
logger.addHandler(logging.NullHandler())

PHASES = ("waiting", "connecting", "sending", "reading", "closing")


class Stats(NamedTuple):
    """How many requests were cleaned up after, and how; `stats()` says what each counts."""

    released: int
    failed: int
    timed_out: int
    by_phase: Dict[str, int]


# Also of `patch()`. A finalizer or a signal handler may take it again in the thread that holds it.
lock = threading.RLock()
if hasattr(os, "register_at_fork"):  # From Python 3.7 on. A child would wait forever for a lock of another thread.
    os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)

counts: Dict[str, int] = dict.fromkeys(("failed", "timed_out", "safe_clients", *PHASES), 0)
_has_fallen_back = False


def let_go(lock: Any) -> None:
    """Release an RLock that an exception of a signal handler has left locked in this thread."""
    while lock._is_owned():
        lock.release()


def count(name: str) -> None:
    """Add one to `name` in `counts`."""
    try:
        with lock:
            counts[name] += 1
    except BaseException:
        let_go(lock)
        raise


def stats() -> Stats:
    """Return what was cleaned up in this process so far. Safe from any thread and task.

    `released` counts the requests that an exception ended and that were cleaned up after; `failed` the closes that
    raised; `timed_out` those given up after `close_timeout`. `by_phase` splits `released` by what the request was
    doing when it ended: waiting for a connection, connecting, sending, reading or closing.
    """
    with lock:
        by_phase = {phase: counts[phase] for phase in PHASES}
        return Stats(sum(by_phase.values()), counts["failed"], counts["timed_out"], by_phase)


def released(request: Any, phase: str, exc: BaseException, began: float) -> None:
    """Count and log that `exc` has ended a request, and that what it held was released, from `began` until now."""
    count(phase)
    if logger.isEnabledFor(logging.DEBUG):
        milliseconds = (time.perf_counter() - began) * 1000
        text = "released %s, ended while %s by %s, in %.1f ms"
        logger.debug(text, _describe(request), phase, type(exc).__name__, milliseconds)


def _describe(request: Any) -> str:
    """Return method, host and port of a request of httpx or httpcore; the rest may be secret."""
    if isinstance(request, tuple):  # httpcore 0.11 to 0.13
        method, (_, host, port) = request[0], request[1][:3]
    else:
        url = getattr(request, "url", None)
        method, host, port = getattr(request, "method", "?"), getattr(url, "host", "?"), getattr(url, "port", None)
    words = [one.decode("ascii", "replace") if isinstance(one, bytes) else str(one) for one in (method, host)]
    return " ".join(words) + ("" if port is None else f":{port}")


def give_up(seconds: float) -> None:
    """Count and log a clean-up that was given up after `seconds`."""
    count("timed_out")
    logger.warning("a clean-up was given up after %s seconds", seconds)


def close_failed(exc: BaseException) -> None:
    """Count and log a close that raised, and where. The message of `exc` may quote a URL, so it is not logged."""
    count("failed")
    logger.warning("a clean-up failed: %s\n%s", type(exc).__name__, _where(exc))


def fall_back(failure: Exception) -> None:
    """Warn, once, that a guard cannot work with what is installed here. Requests go on with what else guards them."""
    global _has_fallen_back
    if not _has_fallen_back:
        _has_fallen_back = True
        version = getattr(sys.modules.get("httpcore"), "__version__", "(unknown)")
        text = "a guard cannot work here, with httpcore %s, so cancelled requests may lose connections: %s: %s\n%s"
        logger.warning(text, version, type(failure).__name__, failure, _where(failure))


def _where(exc: BaseException) -> str:
    return "".join(traceback.format_tb(exc.__traceback__)).rstrip()
