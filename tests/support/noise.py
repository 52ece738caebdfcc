"""What Python, the loops and the guard complain about on the side, while requests run."""

import asyncio
import contextlib
import gc
import logging
import os
import re
import sys
import traceback
import warnings

# httpx's own generators where a body is left half read, cancelled or not; request bodies, which httpcore never closes.
OF_OTHERS = ("Async generator 'http", "Async generator 'tests.")
# Names that httpx, anyio 3 and trio should not use any more, and trio before 0.22 beside exceptiongroup.
OF_OTHERS += ("deprecated", "custom sys.excepthook")


def in_words(exc):
    """An exception with what it carries: type, message, notes, cause and context."""
    if exc is None:
        return None
    words = [type(exc).__module__, type(exc).__name__, scrub(str(exc)), getattr(exc, "__notes__", None)]
    words += [in_words(exc.__cause__), in_words(exc.__context__), exc.__suppress_context__]
    return words + [in_words(one) for one in getattr(exc, "exceptions", ())]


def scrub(text):
    """Take out what differs between two runs: addresses, ports of ours, and the name of the class."""
    text = re.sub(r"0x[0-9a-f]+|fd=\d+|[lr]addr=\([^)]*\)|Task-\d+|127\.0\.0\.1(:|', )\d+", "?", text)
    return text.replace("httpx_cancel_safe._clients.Safe", "httpx.").replace("Safe", "")


class Noise(logging.Handler):
    """Warnings, log records (not our own at DEBUG and INFO), and what a loop or a destructor complains of."""

    def __init__(self, logger="httpx_cancel_safe", level=logging.WARNING):
        super().__init__(level)
        self.logger = logging.getLogger(logger)
        self.seen = []
        self._catcher = warnings.catch_warnings(record=True)

    def __enter__(self):
        self._warned = self._catcher.__enter__()
        warnings.simplefilter("always")
        self._hook, sys.unraisablehook = getattr(sys, "unraisablehook", None), self._unraisable
        self._level = self.logger.level
        self.logger.setLevel(self.level)
        self.logger.addHandler(self)
        return self

    def __exit__(self, *exc_info):
        self.logger.removeHandler(self)
        self.logger.setLevel(self._level)
        sys.unraisablehook = self._hook
        self._catcher.__exit__(*exc_info)

    def emit(self, record):
        if record.levelno > logging.INFO or not record.name.startswith("httpx_cancel_safe"):
            exc = record.exc_info and record.exc_info[1]
            said = (record.name, record.levelname, scrub(record.getMessage()), say(exc) if exc else "")
            self.seen.append("logged: %s %s %s %s" % said)

    def loop_complains(self, loop, context):
        # A unix socket of anyio 3 may set the result of a cancelled wait, patched or not: it does no harm.
        exc, message = context.get("exception"), str(context.get("message"))
        if not isinstance(exc, asyncio.InvalidStateError) or "Future.set_result(" not in message:
            self.seen.append("loop: %s %s" % (scrub(message), in_words(exc)))

    def _unraisable(self, found):
        self.seen.append("unraisable: %s" % in_words(found.exc_value))

    def take(self):
        """What was heard since the last call."""
        warned = ["warning: %s: %s" % (one.category.__name__, scrub(str(one.message))[:300]) for one in self._warned]
        heard = [one for one in self.seen + warned if not any(words in one for words in OF_OTHERS)]
        self.seen = []
        del self._warned[:]
        return heard


def say(exc):
    """An exception in one line, with the line it came from."""
    frames = traceback.extract_tb(exc.__traceback__)
    where = " at %s:%d" % (os.path.basename(frames[-1][0]), frames[-1][1]) if frames else ""
    return "%s(%s)%s" % (type(exc).__name__, str(exc)[:120], where)


def strip(exc):
    """Drop the tracebacks of an exception: their frames would keep its connections alive."""
    seen = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        traceback.clear_frames(exc.__traceback__)
        exc.__traceback__ = None
        exc = exc.__cause__ or exc.__context__


@contextlib.contextmanager
def no_gc():
    """Collect nothing by chance: what only the collector would close is open to see."""
    gc.collect()
    gc.disable()
    if hasattr(gc, "freeze"):  # What is there already need not be looked at again and again.
        gc.freeze()
    try:
        yield
    finally:
        if hasattr(gc, "unfreeze"):
            gc.unfreeze()
        gc.enable()
