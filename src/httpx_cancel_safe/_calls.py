"""Which `send` the running code is part of, and what that call has under way."""

import threading
import types
from typing import Any, Generator, List, Optional


def check_close_timeout(value: Any) -> float:
    """Return `value` as a float. Raises TypeError or ValueError unless it is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"close_timeout must be a number of seconds, not {value!r}")
    if not 0 < value < float("inf"):
        raise ValueError(f"close_timeout must be finite and above 0 seconds, not {value!r}")
    return float(value)


class Settings:
    """The settings of a guard. The guards of `patch()` share one; a Safe client makes one for each `send`."""

    def __init__(self, close_timeout: float, active: bool = True) -> None:
        self.close_timeout = close_timeout
        self.active = active


class Driver:
    """Runs a coroutine, and enters itself for each step of it, whoever drives it."""

    is_struck = False  # Whether an exception was thrown into the coroutine while it waited.

    @types.coroutine
    def drive(self: Any, coroutine: Any) -> Generator[Any, Any, Any]:
        """Run `coroutine`, and return what it returns."""
        value = error = None
        while True:
            try:
                with self:
                    waiting = coroutine.send(value) if error is None else coroutine.throw(error)
            except StopIteration as stop:
                return stop.value
            finally:
                error = None  # Breaks a reference cycle with this frame.
            try:
                value = yield waiting
            except GeneratorExit:
                with self:
                    _close(coroutine)
                raise
            except BaseException as exc:
                error = exc
                self.is_struck = True


class Call(Driver):
    """One `send`: its exchanges in pools, and the guards of its other responses.

    `now.call` is the call that the running code is part of. A context variable would not do: on Python 3.6 asyncio
    tasks have no contexts.
    """

    _before: Optional["Call"] = None

    def __init__(self, settings: Settings, args: Any, kwargs: Any) -> None:
        self.settings = settings
        self.request = args[0] if args else kwargs.get("request")
        self.exchanges: List[Any] = []
        self.guards: List[Any] = []

    def __enter__(self) -> None:
        self._before, now.call = now.call, self

    def __exit__(self, *exc_info: object) -> None:
        now.call, self._before = self._before, None

    def abandon(self, exc: BaseException) -> None:
        """End the exchanges in pools, as `exc` has ended this `send`, and let the guards know of it."""
        for one in [*self.exchanges, *self.guards]:
            one.abandon(exc)


class _Now(threading.local):
    call: Optional[Call] = None


now = _Now()


def _close(coroutine: Any) -> None:
    """Close a coroutine that was dropped, even if its clean-up waits: up to a hundred waits are closed as well.

    Scopes and locks of anyio belong to the task that dropped it, and cannot be left here.
    """
    left = 100
    while left:
        try:
            coroutine.close()
            left = 0
        except RuntimeError:  # That it ignored GeneratorExit, by waiting; or one of its own.
            left -= 1
            if coroutine.cr_frame is None or not left:
                raise
