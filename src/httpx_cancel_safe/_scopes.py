"""The async library, and the cancel scope, that the running code is in.

Neither anyio nor trio has a public way to ask for the innermost scope. Where their private attributes are missing,
`_stats.fall_back()` warns once, and responses of other transports are closed without a shield.
"""

import asyncio
import contextlib
import sys
from typing import Any

from . import _stats

# Python 3.6 has it on the class.
current_task: Any = getattr(asyncio, "current_task", None) or getattr(asyncio.Task, "current_task", None)


def library() -> str:
    """Return which async library runs this code: "asyncio", "trio", or "" for none."""
    trio = sys.modules.get("trio")
    is_running = asyncio._get_running_loop() is not None
    if trio is not None and not (is_running and current_task() is not None):
        # In guest mode trio runs on asyncio's loop. While another thread imports trio, it has no attributes.
        with contextlib.suppress(RuntimeError, AttributeError):
            trio.lowlevel.current_task()
            return "trio"
    return "asyncio" if is_running else ""


def trio_or_anyio() -> Any:
    """Return the module that has the scopes of this async library. On trio, anyio may not work: see its releases."""
    if library() == "trio":
        return sys.modules["trio"]
    import anyio.lowlevel

    return anyio


def is_cancel(exc: BaseException) -> bool:
    """Return whether `exc` is how this async library cancels."""
    return isinstance(exc, sys.modules["trio"].Cancelled if library() == "trio" else asyncio.CancelledError)


def shield(seconds: float = float("inf")) -> Any:
    """Return a scope, not yet entered, that holds back all scopes around it, for `seconds`."""
    module = trio_or_anyio()
    return module.CancelScope(shield=True, deadline=module.current_time() + seconds)


def innermost_scope() -> Any:
    """Return the innermost cancel scope that this task is in, trio's or anyio's, or None."""
    try:
        if library() == "trio":
            return sys.modules["trio"].lowlevel.current_task()._cancel_status._scope
        backend: Any = sys.modules.get("anyio._backends._asyncio")
        task = current_task() if backend is not None and library() else None
        state = None if task is None else backend._task_states.get(task)
        return None if state is None else state.cancel_scope
    except AttributeError as failure:
        _stats.fall_back(failure)
        return None


def parent_of(scope: Any) -> Any:
    """Return the scope around `scope`, or None."""
    if hasattr(scope, "_parent_scope"):
        return scope._parent_scope
    parent = getattr(getattr(scope, "_cancel_status", None), "_parent", None)
    return getattr(parent, "_scope", None)


def outermost_within(outside: Any) -> Any:
    """Return the outermost scope that this task has entered since `outside` was its innermost one, or None."""
    found, scope = None, innermost_scope()
    while scope is not None and scope is not outside:
        found, scope = scope, parent_of(scope)
    return found


def is_cancelled(scope: Any) -> bool:
    """Return whether `scope` is cancelled, by itself or by one around it."""
    while scope is not None and not scope.cancel_called and not scope.shield:
        scope = parent_of(scope)
    return scope is not None and bool(scope.cancel_called)
