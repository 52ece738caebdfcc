"""Run a clean-up to its end, whatever arrives meanwhile, within a time limit.

It runs in the task of its request, one wait at a time, each behind a future of our own:
what is closed may hold a task group or a cancel scope open, and those can only be left
by the task that entered them. (`asyncio.shield` would need a second task.)
"""

import asyncio
import gc
import sys
import types
from typing import Any, Coroutine, Generator, List, Optional, Set

from ._stats import give_up, warn_of

_current_task: Any = getattr(asyncio, "current_task", None) or getattr(
    asyncio.Task, "current_task", None
)
_background: Set[Any] = set()


def library() -> str:
    """Return which async library runs this code: "asyncio", "trio", or "" for none."""
    running = asyncio._get_running_loop() is not None
    if "trio" not in sys.modules:
        return "asyncio" if running else ""
    if running and _current_task() is not None:
        return "asyncio"  # And not trio as the loop's guest.
    import sniffio

    try:
        return sniffio.current_async_library()
    except sniffio.AsyncLibraryNotFoundError:
        return ""


def is_cancel(exc: Optional[BaseException]) -> bool:
    """Tell whether `exc` is how this async library cancels."""
    if library() == "trio":
        return isinstance(exc, sys.modules["trio"].Cancelled)
    return isinstance(exc, asyncio.CancelledError)


class Effort:
    """What happened during a clean-up: the cancels `held` back, and if it `timed_out`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.held: List[BaseException] = []
        self.timed_out = False
        self.hidden = 0
        self.waiter: Optional[asyncio.Future[None]] = None
        self.timer: Optional[asyncio.TimerHandle] = None
        self.outside: Any = None
        self.own: Any = None
        self.was_shielded = False  # That `own`, by itself.
        self.shield: Any = None

    def start_timer(self) -> None:
        if self.timer is None:
            loop = asyncio.get_event_loop()
            self.timer = loop.call_later(self.seconds, self._expire)

    def _expire(self) -> None:
        self.timer = None
        if self.shield and not self.held and not _any_cancelled(self.outside, None):
            self.start_timer()  # Nobody wants it to end.
            return
        self.timed_out = True
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def enter_shield(self, outside: Any, own: Any) -> None:
        """Hold back anyio's scopes: they cancel again on every pass of the loop.

        A scope that the response holds open, `own`, has to be left by the close, which
        cannot do so within another one: then the shield goes around `own` instead.
        """
        import anyio

        self.outside, self.own = outside, own
        if own is None:
            self.shield = anyio.CancelScope(shield=True).__enter__()
        elif hasattr(own, "_child_scopes"):  # anyio 4 keeps more than the parent.
            self.outside = own._parent_scope
            self.was_shielded, own.shield = own.shield, True
        else:
            self.outside = own._parent_scope
            self.shield = anyio.CancelScope(shield=True).__enter__()
            self.shield._parent_scope, own._parent_scope = self.outside, self.shield
            _task_state().cancel_scope = outside

    def hold(self, exc: BaseException, own: int = 0) -> None:
        self.held.append(exc)
        self.start_timer()
        self.hide_counts(own)

    def hide_counts(self, own: int = 0) -> None:
        """Take back what `task.cancelling()` counts: timeouts in the close look at it.

        Those of its `own` they will take back themselves.
        """
        for _ in range(_counted(self) - own):
            _current_task().uncancel()
            self.hidden += 1

    def end(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        if self.shield is None:
            if self.own is not None and self.own._active:
                self.own.shield = self.was_shielded
        elif self.shield is innermost_scope():
            self.shield.__exit__(None, None, None)
        else:  # The close failed to leave its own.
            self.own._parent_scope = self.outside

    def show_counts(self) -> Generator[Any, Any, None]:
        """Count again what was hidden. The cancel that this asks for ends here."""
        if self.hidden:
            for _ in range(self.hidden):
                _current_task().cancel()
            try:
                yield
            except asyncio.CancelledError:
                pass

    async def let_cancel(self, handled: Optional[BaseException] = None) -> None:
        """Let the cancels that were held back go on, now that all is closed.

        If an exception is on its way already, it goes first.
        """
        if handled is not None:
            self.redeliver(handled)
        elif self.held:
            raise self.held.pop(0)  # Taken out: its traceback holds this frame.
        elif library() == "trio":
            await sys.modules["trio"].lowlevel.checkpoint_if_cancelled()
        elif _any_cancelled(self.outside, None):
            import anyio.lowlevel

            await anyio.lowlevel.checkpoint_if_cancelled()

    def redeliver(self, exc: Optional[BaseException]) -> None:
        """Let the task's next wait see a cancel that was held back, while `exc` goes on its way.

        If that is a cancel, it will do for both, unless a scope takes it for its own alone.
        """
        if self.held and not (is_cancel(exc) and not _will_swallow(innermost_scope(), exc)):
            task = _current_task()
            task.cancel()
            if hasattr(task, "uncancel"):
                task.uncancel()  # It was counted when it came.


class Progress:
    """How far a `coroutine` has come, for another task to end it if its own is dropped."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.coroutine = coroutine
        self.waiting: Any = None
        self.has_begun = False
        self.is_over = False

    def take_over(self, seconds: float) -> Coroutine[Any, Any, Any]:
        """Return what ends it. The first one to ask gets it."""
        mine, self.is_over = not self.is_over, True
        return _take_over(self, seconds) if mine else nothing()


async def _take_over(progress: Progress, seconds: float) -> Any:
    try:
        return await uninterrupted(progress.coroutine, seconds, True, progress)
    except BaseException as failure:
        progress.coroutine.close()
        warn_of("a clean-up failed", failure)


async def nothing() -> None:
    """Do nothing, where something is awaited."""


async def _end(work: Coroutine[Any, Any, Any], seconds: float) -> None:
    effort = await work
    if effort is not None and effort.timed_out:
        give_up(seconds)


@types.coroutine
def uninterrupted(
    coroutine: Coroutine[Any, Any, Any],
    seconds: float,
    at_once: bool = False,
    progress: Optional[Progress] = None,
    own: Any = None,
    owner: Any = None,
) -> Generator[Any, Any, Optional[Effort]]:
    """Run `coroutine` to its end in this task, and keep every cancel from it.

    The limit of `seconds` starts with the first cancel, or now with `at_once`. Returns
    None if nothing can have happened. Raises what `coroutine` raises. `progress` tells
    where to go on, and keeps how far it has come; `owner` gets one if it has to wait.
    `own` is the outermost scope that what is closed holds open.
    """
    at_once = at_once and bool(library())  # Without a loop there is no timer.
    outside = innermost_scope()
    first: Any = None
    if outside is None and not at_once and progress is None:
        # No scope to hold back: until it waits nothing can interrupt it.
        try:
            first = coroutine.send(None)
        except StopIteration:
            return None
    if progress is None:
        progress = Progress(coroutine)
        progress.waiting, progress.has_begun = first, outside is None and not at_once
    if owner is not None:
        owner.progress = progress
    if "trio" in sys.modules and library() == "trio":
        return (yield from _on_trio(progress, seconds, own))
    effort: Optional[Effort] = None
    if at_once or outside is not None:
        effort = Effort(seconds)
        effort.start_timer()
        if at_once:
            effort.hide_counts()
        if outside is not None:
            effort.enter_shield(outside, own)
    before = _counted(effort)
    value: Any = None
    error: Optional[BaseException] = None
    failure: Optional[BaseException] = None
    patience = 100
    waiting = progress.waiting
    try:
        while True:
            if waiting is None and not progress.has_begun:
                if error is None:
                    waiting = coroutine.send(value)
                else:
                    waiting = coroutine.throw(error)
            value = error = None
            progress.waiting, progress.has_begun = waiting, False
            is_future = hasattr(waiting, "_asyncio_future_blocking")
            try:
                if effort is not None and effort.timed_out:
                    # From here on every wait is cancelled, as in a cancelled scope.
                    patience -= 1
                    if not patience:
                        coroutine.close()
                        break
                    if is_future:
                        waiting._asyncio_future_blocking = False
                        waiting.cancel()
                    error = asyncio.CancelledError()
                elif is_future:
                    yield from _wait(waiting, effort)
                    if not waiting.done():
                        continue  # Time is up.
                else:
                    value = yield waiting
            except asyncio.CancelledError as exc:
                by_scope = _any_cancelled(innermost_scope(), _edge(effort), exc)
                own_count = _own_cancels(coroutine)
                if by_scope or own_count:  # The close cancels itself.
                    if _is_two(by_scope, effort, before + own_count):
                        effort, before = effort or Effort(seconds), 0
                        effort.hold(exc, own_count)
                    if is_future and waiting.cancel(*exc.args):
                        continue
                    error = exc
                else:
                    effort = effort or Effort(seconds)
                    effort.hold(exc)
                    if is_future and not waiting.done():
                        continue
            waiting = None
    except StopIteration:
        pass
    except GeneratorExit:
        # This task is dropped. Another one has to end what was begun.
        in_background(_end(progress.take_over(seconds), seconds))
        raise
    except BaseException as exc:
        if effort is None or not effort.timed_out or not is_cancel(exc):
            failure = exc
    progress.is_over = True
    if effort is not None:
        effort.end()
        yield from effort.show_counts()
    try:
        if failure is not None:
            if effort is not None:
                effort.redeliver(None)
            raise failure
    finally:
        failure = None  # It holds this frame.
    return effort


def _wait(waiting: Any, effort: Optional[Effort]) -> Generator[Any, Any, None]:
    """Wait for the future `waiting`, but do not let the task have it: it would cancel it."""
    waiting._asyncio_future_blocking = False
    waiter = asyncio.get_event_loop().create_future()

    def wake(_: Any) -> None:
        if not waiter.done():
            waiter.set_result(None)

    waiting.add_done_callback(wake)
    if effort is not None:
        effort.waiter = waiter
    try:
        yield from waiter
    finally:
        waiting.remove_done_callback(wake)


def _on_trio(
    progress: Progress, seconds: float, own: Any
) -> Generator[Any, Any, Effort]:
    """Trio cancels through scopes alone, and again on every wait: a shield does it."""
    import trio

    effort = Effort(seconds)
    outside = None if own is None else _parent_of(own)
    deadline = trio.current_time() + seconds
    shield = trio.CancelScope(shield=True, deadline=deadline)
    value: Any = None
    error: Any = None
    if own is not None:
        effort.was_shielded, own.shield = own.shield, True
    try:
        while True:
            if effort.shield is None and (own is None or innermost_scope() is outside):
                effort.shield = shield.__enter__()
            if error is None:
                waiting = progress.coroutine.send(value)
            else:
                waiting = progress.coroutine.throw(error)
            value = error = None
            try:
                value = yield waiting
            except GeneratorExit:
                progress.coroutine.close()
                raise
            except BaseException as exc:
                error = exc
    except StopIteration:
        pass
    except BaseException as exc:
        leave, effort.shield = effort.shield, None
        if leave is None or not leave.__exit__(type(exc), exc, exc.__traceback__):
            raise
    finally:
        progress.is_over = True
        if effort.shield is not None:
            effort.shield.__exit__(None, None, None)
        if own is not None:
            own.shield = effort.was_shielded
    effort.timed_out = shield.cancelled_caught
    return effort


def innermost_scope() -> Any:
    """Return the innermost scope that this task has open, anyio's or trio's, or None."""
    modules = sys.modules
    if "trio" in modules and library() == "trio":
        status = modules["trio"].lowlevel.current_task()._cancel_status
        return getattr(status, "_scope", None)
    if not hasattr(modules.get("anyio._backends._asyncio"), "_task_states"):
        return None  # Nobody can have entered one, though another thread may be importing it.
    state = _task_state()
    return None if state is None else state.cancel_scope


def _task_state() -> Any:
    try:
        task = _current_task()
    except RuntimeError:
        return None  # No loop runs.
    states = sys.modules["anyio._backends._asyncio"]._task_states
    return None if task is None else states.get(task)


def outermost_within(scope: Any, outside: Any) -> Any:
    """Return the scope just within `outside`, from `scope` outwards; None if it is that."""
    found = None
    while scope is not None and scope is not outside:
        found, scope = scope, _parent_of(scope)
    return found


def _parent_of(scope: Any) -> Any:
    if hasattr(scope, "_parent_scope"):
        return scope._parent_scope
    parent = getattr(getattr(scope, "_cancel_status", None), "_parent", None)
    return getattr(parent, "_scope", None)  # Trio's.


def _any_cancelled(scope: Any, outside: Any, exc: Optional[BaseException] = None) -> bool:
    """Tell whether a scope from `scope` to `outside` is cancelled, and has raised `exc`."""
    while scope is not None and scope is not outside:
        if scope.cancel_called and (exc is None or _may_have_raised(scope, exc)):
            return True
        scope = _parent_of(scope)
    return False


def _may_have_raised(scope: Any, exc: BaseException) -> bool:
    """Tell whether `exc` may come from `scope`; anyio 4 says so, from Python 3.9 on."""
    says = hasattr(scope, "_child_scopes") and sys.version_info >= (3, 9)
    return not says or f" cancel scope {id(scope):x}" in str(exc)


def _will_swallow(scope: Any, exc: Optional[BaseException]) -> bool:
    """Tell whether `exc` ends at one of the scopes from `scope` outwards, whoever else cancels.

    Those of anyio 3.7, and of 4.16 on, let it go on when the task counts another one.
    """
    counts = hasattr(scope, "_cancelling_at_enter") or (
        hasattr(scope, "_uncancel") and not hasattr(scope, "_cancelling")
    )
    return not (counts and sys.version_info >= (3, 11)) and _any_cancelled(scope, None, exc)


def _edge(effort: Optional[Effort]) -> Any:
    """Return the scope around those that the close itself has open."""
    return effort and (effort.shield or effort.outside)


def _counted(effort: Optional[Effort]) -> int:
    """Return how many cancels this task counts that no scope of the close will take back."""
    task = _current_task()
    count: int = task.cancelling() if hasattr(task, "cancelling") else 0
    scope = innermost_scope() if count else None
    while scope is not None and scope is not _edge(effort):
        count -= getattr(scope, "_pending_uncancellations", None) or 0
        scope = _parent_of(scope)
    return count


def _is_two(by_scope: bool, effort: Optional[Effort], own_count: int) -> bool:
    """Tell whether a cancel that is the close's own is also one from outside.

    asyncio makes one of those that come in the same pass of the loop, but counts them. anyio 3
    does not tell how many of them are its scopes'.
    """
    is_known = not by_scope or hasattr(innermost_scope(), "_pending_uncancellations")
    return is_known and _counted(effort) > own_count


def _own_cancels(coroutine: Any) -> int:
    """Return how many timeouts and groups of asyncio's in `coroutine` have cancelled its task.

    They do not tell whom they cancel; the stack of `coroutine` holds those that it has entered.
    """
    found = 0
    if sys.version_info < (3, 11):
        return found
    stack = [coroutine]
    for item in stack:
        for referent in gc.get_referents(item):
            if type(referent).__name__ in _STACK_TYPES:
                stack.append(referent)
            elif getattr(referent, "__name__", "") == "__aexit__":
                owner = getattr(referent, "__self__", None)
                if isinstance(owner, asyncio.Timeout):
                    found += owner.expired()
                elif isinstance(owner, asyncio.TaskGroup):
                    found += bool(getattr(owner, "_aborting", False))
    return found


_STACK_TYPES = frozenset(
    (
        "coroutine",
        "coroutine_wrapper",
        "generator",
        "async_generator",
        "async_generator_asend",
        "async_generator_athrow",
        "anext_awaitable",
        "frame",
    )
)


def in_background(coroutine: Coroutine[Any, Any, None], running: str = "") -> None:
    """Run `coroutine`, which must not raise, where its own task can no longer wait.

    `running` names the library where no task runs that could tell. Without any it is
    taken as far as it goes without waiting.
    """
    running = running or library()
    if running == "asyncio":
        task = asyncio.get_event_loop().create_task(coroutine)
        _background.add(task)  # The loop itself keeps no strong reference.
        task.add_done_callback(_background.discard)
    elif running == "trio":
        import trio

        trio.lowlevel.spawn_system_task(lambda: coroutine)
    else:
        try:
            coroutine.send(None)
        except StopIteration:
            pass
        else:
            coroutine.close()
