"""What `python -m httpx_cancel_safe` finds out: versions, a new process, and a trial.

Nothing here imports httpx before `examine()` has seen whether it can be imported.
"""

import importlib
import json
import os
import platform
import re
import subprocess
import sys
from typing import Any, Callable, Iterator, List, NamedTuple, Optional

from . import __version__, _patch
from ._releases import UnsupportedHTTPXError, is_affected

GROUP = "httpx_cancel_safe"

# Run in a new process, so that it tells what the environment alone brings about.
_NEW_PROCESS = """
import sys
before = list(sys.modules)
import httpx
ours = sys.modules.get("httpx_cancel_safe")
on = ours is not None and ours.is_patched()
from httpx_cancel_safe._doctor import describe_process
print("\\n" + describe_process(before, on))
"""


class Check(NamedTuple):
    """A line of the report."""

    name: str
    status: str  # pass, warn, fail or skip
    detail: str
    hint: str  # What to do, or empty.


def examine(progress: Callable[[str], None]) -> Iterator[Check]:
    """Yield what there is to say about this environment.

    `progress` is called with the name of each thing that takes a while, before it begins.
    """
    yield Check("httpx-cancel-safe", "pass", __version__, "")
    yield Check("python", "pass", platform.python_version(), "")
    try:
        httpx = _patch.import_httpx()
        affected = is_affected(httpx.__version__)
    except UnsupportedHTTPXError as exc:
        yield Check("httpx", "fail", str(exc), "pip install 'httpx>=0.15'")
        return
    except ImportError as exc:
        hint = "pip install " + ("legacy-cgi" if exc.name == "cgi" else "httpx")
        yield Check("httpx", "fail", f"cannot be imported: {exc}", hint)
        return
    detail = httpx.__version__
    if httpx.__name__ != "httpx":
        detail += ", really " + httpx.__name__
    fate = "affected by encode/httpx#2139" if affected else "fixed: left alone"
    yield Check("httpx", "pass", detail + ", " + fate, "")
    yield from _packages(affected)
    switch = _patch.read_switch()
    if affected:
        yield _switch(switch)
        progress("a new process")
        yield from _new_process(switch is False)
    if hasattr(httpx, "AsyncClient"):
        yield from _trial(affected, affected and switch is not False, progress)


def _packages(affected: bool) -> Iterator[Check]:
    from . import _pool

    anyio_3 = False
    for name in ("httpcore", "anyio", "trio", "h11", "wrapt"):
        try:
            module = importlib.import_module(name)
        except Exception as exc:  # An old trio on a new Python raises TypeError, say.
            missing = isinstance(exc, ImportError)
            detail = "not installed" if missing else "does not work on this Python"
            yield Check(name, "skip", detail, "")
            continue
        detail = _version_of(module)
        numbers = tuple(int(number) for number in re.findall(r"\d+", detail)[:3])
        status, hint = "pass", ""
        if name == "anyio":
            anyio_3 = hasattr(module, "ExceptionGroup")
        elif name == "httpcore":
            how = "through anyio" if numbers >= (0, 13, 4) else "natively"
            detail += ", asyncio " + how
            if affected and _pool.generation() is None:
                status, detail = "warn", detail + "; the net cannot repair its pools"
        elif name == "trio" and anyio_3 and numbers >= (0, 24):
            status, detail = "warn", detail + " does not work with anyio 3"
            hint = "pip install 'trio<0.24'"
        yield Check(name, status, detail, hint)


def _version_of(module: Any) -> str:
    """Return the version of a package; only anyio cannot tell it itself."""
    try:
        return str(module.__version__)
    except AttributeError:
        pass
    try:
        from importlib.metadata import version
    except ImportError:
        return "3.x"  # Python 3.6 and 3.7 cannot tell, but have no other anyio.
    return version(module.__name__)


def _switch(switch: Optional[bool]) -> Check:
    name, value = _patch.SWITCH, os.environ.get(_patch.SWITCH)
    if switch is None:
        detail = f"{value!r} is neither on nor off, so the net stays on"
        return Check(name, "warn", detail, "set it to 0 to switch the net off")
    if switch:
        detail = "not set" if value is None else f"{value!r} leaves the net on"
        return Check(name, "pass", detail, "")
    return Check(name, "fail", f"{value!r} switches the net off", "unset " + name)


def _new_process(off: bool) -> Iterator[Check]:
    """Tell whether the net would be on in a process that only imports httpx."""
    name = "new process"
    try:
        done = subprocess.run(
            [sys.executable, "-c", _NEW_PROCESS],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
            timeout=20,
            check=False,
        )
        found = json.loads(done.stdout.splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        hint = "see what python -c 'import httpx' prints"
        yield Check(name, "warn", "does not get as far as to tell", hint)
        return
    if off:
        yield Check(name, "skip", "has no net, as it is switched off", "")
    elif found["on"]:
        yield Check(name, "pass", "has the net from the start, by " + found["route"], "")
    elif found["lost"]:
        hint = "call httpx_cancel_safe.patch() once more, after that"
        yield Check(name, "fail", "had the net, and then somebody took it off", hint)
    else:
        hint = "call httpx_cancel_safe.patch(), or see the README for other ways"
        if GROUP in os.environ.get("AUTOWRAPT_BOOTSTRAP", ""):
            hint = "AUTOWRAPT_BOOTSTRAP is set, but needs: pip install autowrapt"
        yield Check(name, "warn", "has no net unless the program itself asks for it", hint)
    yield Check("others around send", "pass", ", ".join(found["others"]) or "none", "")


def describe_process(before: List[str], on: bool) -> str:
    """Return as JSON how it stands with the net in this process, which runs httpx.

    `before` are the modules that were there before httpx; `on` is `is_patched()`.
    """
    import httpx

    if GROUP in os.environ.get("AUTOWRAPT_BOOTSTRAP", "") and "autowrapt" in before:
        route = "AUTOWRAPT_BOOTSTRAP"
    elif GROUP + ".auto" in before:
        route = "import httpx_cancel_safe.auto at start-up"
    else:
        route = "patch() at start-up"
    # vcrpy 6 takes the second one.
    methods = [vars(httpx._client.AsyncClient)[name] for name in ("send", "_send_single_request")]
    others: List[str] = []
    for layer in [layer for method in methods for layer in _patch.layers(method)]:
        acts = getattr(layer, "_self_wrapper", layer)
        acts = getattr(acts, "func", acts)  # Of a functools.partial.
        module = getattr(acts, "__globals__", {}).get("__name__", type(acts).__module__)
        ours = module.split(".")[0] in ("httpx", GROUP, "wrapt", "functools", "builtins")
        if not ours and module not in others:
            others.append(module)
    lost = not on and _patch.is_wanted()
    return json.dumps({"on": on, "lost": lost, "route": route, "others": others})


def _trial(affected: bool, net: bool, progress: Callable[[str], None]) -> Iterator[Check]:
    """Cancel requests on loopback: without the net and, if `net`, with it."""
    from . import _trial as trial

    _patch.unpatch()
    with trial.Server() as server:
        for phase in trial.PHASES:
            name = "trial: " + phase.name
            if phase.backend == "trio" and not trial.trio_works():
                yield Check(name, "skip", "no trio that works here", "")
                continue
            progress(name)
            without = trial.run(phase, server)
            detail = "{} of {} connections lost".format(*without)
            lost, hint = without.lost, ""
            if net:
                with _patch.patched():
                    lost = trial.run(phase, server).lost
                detail += f"; with the net {lost}"
            elif lost and not affected:
                hint = "httpx has not fixed that yet: see the README"
            status = ("fail" if affected else "warn") if lost else "pass"
            yield Check(name, status, detail, hint)
