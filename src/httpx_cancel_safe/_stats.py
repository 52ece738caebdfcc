"""What the net has caught so far, and the one logger it speaks through."""

import logging
import os
import threading
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


def lock_across_forks() -> Any:
    """Return a lock that nobody else holds when this process forks.

    A finalizer or a signal handler may come back to it in the thread that holds it.
    """
    lock = threading.RLock()
    if hasattr(os, "register_at_fork"):  # Python 3.6 tells nobody.
        os.register_at_fork(
            before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
        )
    return lock


_lock = lock_across_forks()
_counts: Dict[str, int] = dict.fromkeys(("released", "failed", "timed_out", *PHASES), 0)


def count(*names: str) -> None:
    """Add one to each of `names`: outcomes or phases."""
    with _lock:
        for name in names:
            _counts[name] += 1


def stats() -> Stats:
    """Return what the net has caught in this process so far; safe from any thread.

    `released` counts the requests that ended badly and were cleaned up after; `failed`
    the closes that raised; `timed_out` those given up after `close_timeout`.
    `by_phase` splits `released` by what the request was doing when it ended: waiting
    for a connection, connecting, sending, reading or closing.
    """
    with _lock:
        counts = dict(_counts)
    return Stats(
        counts["released"],
        counts["failed"],
        counts["timed_out"],
        {phase: counts[phase] for phase in PHASES},
    )


def give_up(seconds: float) -> None:
    """Count and log a clean-up that was not over after `seconds`."""
    count("timed_out")
    logger.warning("a clean-up was given up after %s seconds", seconds)


def warn_of(what: str, exc: BaseException) -> None:
    """Log that `what` went wrong, and where; not what `exc` says: it may quote a URL."""
    where = "".join(traceback.format_tb(exc.__traceback__)).rstrip()
    logger.warning("%s: %s\n%s", what, type(exc).__name__, where)
