"""Close responses of other transports than httpcore's to the end.

A response is closed in the task of its request: locks, limiters, scopes and context variables belong to it. A
shield holds back the scopes around it. A native cancel passes every shield, so a close that it interrupts is repeated,
in a task of its own. A close that nothing disturbs runs as it does without the guard.
"""

import asyncio
import contextlib
import sys
from typing import Any, Callable, List, Set

from . import _scopes, _stats
from ._calls import Driver
from ._scopes import library

_background: Set[Any] = set()


async def to_end(close: Callable[[], Any], seconds: float, is_failing: bool, own_scope: Any = None) -> None:
    """Await close() and let nothing interrupt it. Raises what it raises.

    If the request `is_failing` already, it may take `seconds` from now on. Otherwise it has at least `seconds` from now
    on, and is given up within that time of a cancel of a scope around it. `own_scope` is the outermost scope that the
    response holds open.
    """
    outside = _scopes.innermost_scope() if own_scope is None else _scopes.parent_of(own_scope)
    shielded: Any = None
    try:
        if outside is None and not is_failing:
            await close()
            return
        shielded = _Shielded(outside, own_scope, seconds, is_failing)
        await shielded.run(close())
    except asyncio.CancelledError as exc:
        if is_failing and not shielded.is_struck:
            _stats.close_failed(exc)  # The close raised it itself.
            return
        # From Python 3.11 on, anyio lets its own cancel through if the task has been cancelled natively before.
        if shielded is None or not shielded.shield.cancel_called:
            await _again(close, seconds)
            raise
    except GeneratorExit:
        in_background(_bounded(close, seconds))
        raise
    if shielded.shield.cancel_called:
        _stats.give_up(seconds)
    if not is_failing:
        await _scopes.trio_or_anyio().lowlevel.checkpoint_if_cancelled()  # Raises what the shield held back.


class _Shielded(Driver):
    """Runs a close inside a shield.

    A scope cannot be left from within one that was entered later. So if the response holds a scope of its own open,
    that scope is shielded first, and the shield is entered once the response has left it.
    """

    def __init__(self, outside: Any, own_scope: Any, seconds: float, is_failing: bool) -> None:
        self.shield = _scopes.shield(seconds if is_failing else float("inf"))
        self._outside, self._own_scope, self._seconds = outside, own_scope, seconds
        self._is_entered = False
        self._is_watched = is_failing  # Or need not be.
        self._stack = contextlib.ExitStack()

    async def run(self, coroutine: Any) -> None:
        with self._stack:
            if self._own_scope is not None:
                self._stack.callback(setattr, self._own_scope, "shield", self._own_scope.shield)
                self._own_scope.shield = True
            await self.drive(coroutine)

    def _try_to_enter(self) -> None:
        if not self._is_entered and _scopes.innermost_scope() is self._outside:
            self._is_entered = True
            self._stack.enter_context(self.shield)

    __enter__ = _try_to_enter

    def __exit__(self, kind: object, *exc_info: object) -> None:
        self._try_to_enter()
        if kind is None and not self._is_watched:
            self._is_watched = True
            self._stack.callback(in_background(self._watch()).cancel)

    async def _watch(self) -> None:
        """Look every so often whether the scope outside is cancelled, and give up once it is."""
        module = _scopes.trio_or_anyio()
        await module.sleep(self._seconds)
        while not _scopes.is_cancelled(self._outside):
            await module.sleep(self._seconds)
        self.shield.deadline = module.current_time()  # After cancel(), anyio 3 would not leave it cleanly.


async def _again(close: Callable[[], Any], seconds: float) -> None:
    """Await close() once more, in a task of its own that no cancel reaches."""
    task = in_background(_bounded(close, seconds))
    with _scopes.shield():
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):  # to_end() raises the one that came first.
                await asyncio.wait([task])


async def _bounded(close: Callable[[], Any], seconds: float) -> None:
    """Await close() for at most `seconds`, and log what it raises."""
    try:
        await to_end(close, seconds, is_failing=True)
    except Exception as exc:
        _stats.close_failed(exc)


def in_background(coroutine: Any) -> Any:
    """Run `coroutine` in a task of its own, without waiting for it. Return what can cancel it.

    It must raise no Exception, which would end trio.
    """
    kind = library()
    if kind == "trio":
        scope = sys.modules["trio"].CancelScope()

        async def run() -> None:
            with scope:
                await coroutine

        sys.modules["trio"].lowlevel.spawn_system_task(run)
        return scope
    if kind == "asyncio":
        task = asyncio.ensure_future(coroutine)
        _background.add(task)
        task.add_done_callback(_background.discard)
        return task
    coroutine.close()  # No event loop is running.
    return None


async def run_whole(coroutine: Any) -> None:
    """Run `coroutine` to its end, even if the task that waits for it here is cancelled."""
    failures: List[Exception] = []
    over = sys.modules[library()].Event()

    async def run() -> None:
        try:
            await coroutine
        except Exception as exc:
            failures.append(exc)
        finally:
            over.set()

    in_background(run())
    await over.wait()
    for failure in failures:
        raise failure
