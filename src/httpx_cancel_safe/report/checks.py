"""The checks of the report. Nothing here imports httpx before `examine()` knows what it would import."""

import contextlib
import importlib
import importlib.machinery
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
from typing import Any, Iterator, List, NamedTuple

from .. import __version__, _patch, _pool

GROUP = "httpx_cancel_safe"
PACKAGES = ["httpcore", "anyio", "trio", "h11", "wrapt"]

# On Python 3.6 and 3.7 a cancel is an Exception: one is not enough to lose a connection in these phases.
_WAY = "once" if sys.version_info >= (3, 8) else "scope"
# What a request is doing when it is cancelled: its path, the async library, and the way to cancel it.
PHASES = {
    "connecting": ("/", "asyncio", "early"),
    "reading": ("/slow", "asyncio", _WAY),
    "streaming": ("/slow", "asyncio", "scope"),
    "redirect": ("/redirect", "asyncio", _WAY),
    "cancelled twice": ("/slow", "asyncio", "twice"),
    "anyio scope": ("/slow", "asyncio", "scope"),
    "wait_for, close": ("/slow", "asyncio", "wait_for"),
    "trio": ("/slow", "trio", "scope"),
}
NAMES = ["httpx-cancel-safe", "python", "httpx", *PACKAGES, _patch.SWITCH, "new process"]
NAMES += ["others around send", "loopback", *("trial: " + phase for phase in PHASES)]

# Run in a new process, to see what the environment alone does.
_NEW_PROCESS = """
import httpx
from httpx_cancel_safe.report.checks import describe_process
print("\\n" + describe_process())
"""


class Check(NamedTuple):
    """A line of the report."""

    name: str
    status: str  # pass, warn, fail or skip
    detail: str
    hint: str = ""  # What to do.


def examine() -> Iterator[Check]:
    """Yield a check for each of NAMES, in this order, or fewer where there is no httpx to look at."""
    yield Check("httpx-cancel-safe", "pass", __version__)
    yield Check("python", "pass", platform.python_version())
    spec = importlib.machinery.PathFinder.find_spec("httpx")
    if spec is not None and spec.submodule_search_locations is None:
        path = os.curdir + os.sep + os.path.relpath(str(spec.origin))
        yield Check("httpx", "fail", path + " is imported in place of httpx", "rename it or go elsewhere")
        return
    try:
        httpx = _patch.import_httpx()
        affected = _patch.is_affected(getattr(httpx, "__version__", "?"))
    except _patch.UnsupportedHTTPXError as exc:
        yield Check("httpx", "fail", str(exc), "pip install 'httpx>=0.15'")
        return
    except ImportError as exc:
        yield Check("httpx", "fail", str(exc), "pip install " + ("legacy-cgi" if exc.name == "cgi" else "httpx"))
        return
    detail = httpx.__version__ + ("" if httpx.__name__ == "httpx" else ", which is " + httpx.__name__)
    fate = "affected by encode/httpx#2139" if affected else "has the fix: nothing is patched"
    yield Check("httpx", "pass", detail + ", " + fate)
    for name in PACKAGES:
        yield _package(name, affected)
    if affected:
        yield _switch()
        yield from _new_process()
    else:
        for name in (_patch.SWITCH, "new process", "others around send"):
            yield Check(name, "skip", "does not matter where httpx has the fix")
    yield from _trials(affected)


def _package(name: str, affected: bool) -> Check:
    try:
        module = importlib.import_module(name)
    except Exception as exc:  # An old trio on a new Python raises TypeError, for example.
        return Check(name, "skip", "not installed" if isinstance(exc, ImportError) else "does not work here")
    detail = _version_of(module)
    numbers = tuple(int(number) for number in re.findall(r"\d+", detail)[:3])
    if name == "httpcore":
        detail += ", asyncio " + ("through anyio" if numbers >= (0, 13, 4) else "natively")
        if affected and _pool.generation() is None:
            return Check(name, "warn", detail + "; unknown: its pools are left alone", "please report it")
    elif name == "trio" and numbers >= (0, 24) and _version_of(importlib.import_module("anyio")) < "4":
        return Check(name, "warn", detail + " does not work with anyio 3", "pip install 'trio<0.24'")
    return Check(name, "pass", detail)


def _version_of(module: Any) -> str:
    """Return the version of a package; only anyio does not know its own."""
    if hasattr(module, "__version__"):
        return str(module.__version__)
    try:
        from importlib.metadata import version
    except ImportError:
        return "3.x"  # Python 3.6 and 3.7 cannot ask, but have no other anyio.
    return version(module.__name__)


def _switch() -> Check:
    name, switch, value = _patch.SWITCH, _patch.read_switch(), os.environ.get(_patch.SWITCH)
    if switch is False:
        return Check(name, "fail", f"{value!a} switches the patch off", "unset " + name)
    if switch is None:
        return Check(name, "warn", f"{value!a} means neither on nor off: it stays on", "set it to 0 or 1")
    return Check(name, "pass", "not set" if value is None else f"{value!a} leaves the patch on")


def _new_process() -> List[Check]:
    """Check whether a process that only imports httpx is patched, and who else wraps `send` there."""
    command, pipe = [sys.executable, "-c", _NEW_PROCESS], subprocess.PIPE
    try:
        done = subprocess.run(command, stdout=pipe, stderr=pipe, timeout=20, check=False)
        # The last line: what runs at start-up may print, too.
        return [Check(*check) for check in json.loads(done.stdout.splitlines()[-1].decode())]
    except (OSError, ValueError, TypeError, IndexError, subprocess.TimeoutExpired):
        hint = "see what python -c 'import httpx' prints"
        return [
            Check("new process", "warn", "exited before reporting", hint),
            Check("others around send", "skip", "unknown, as the new process did not report"),
        ]


def describe_process() -> str:
    """Return as JSON what `_new_process()` returns, for this process."""
    import httpx

    if _patch.read_switch() is False:
        check = Check("new process", "skip", "not patched: switched off")
    elif _patch.is_patched():
        check = Check("new process", "pass", "patched from the start, by " + _route())
    elif _patch.is_wanted():
        hint = "call httpx_cancel_safe.patch() once more, after that"
        check = Check("new process", "fail", "was patched, and then another tool undid it", hint)
    else:
        check = Check("new process", "warn", "not patched unless the program itself does it", _how_to_patch())
    # vcrpy 6 wraps _send_single_request.
    methods = vars(httpx._client.AsyncClient)
    others: List[str] = []
    for layer in _patch.layers(methods["send"]) + _patch.layers(methods["_send_single_request"]):
        acts = getattr(layer, "_self_wrapper", layer)
        acts = getattr(acts, "func", acts)  # Of a functools.partial.
        module = getattr(acts, "__globals__", {}).get("__name__", type(acts).__module__)
        ours = module.split(".")[0] in ("httpx", GROUP, "wrapt", "functools", "builtins")
        if not ours and module not in others:
            others.append(module)
    detail = (", ".join(others) or "none") + ", in a process that only imports httpx"
    return json.dumps([check, Check("others around send", "pass", detail)])


def _route() -> str:
    if "autowrapt" in sys.modules and GROUP in os.environ.get("AUTOWRAPT_BOOTSTRAP", "").split(","):
        return "AUTOWRAPT_BOOTSTRAP"
    return ("import httpx_cancel_safe.auto" if GROUP + ".auto" in sys.modules else "patch()") + " at start-up"


def _how_to_patch() -> str:
    value = os.environ.get("AUTOWRAPT_BOOTSTRAP", "")
    if not value:
        return "call httpx_cancel_safe.patch(), or see 'Switch it on' in the README"
    if GROUP not in value.split(","):
        return f"AUTOWRAPT_BOOTSTRAP is {value!a}: it must name {GROUP}"
    missing = "httpx-cancel-safe" if importlib.util.find_spec("autowrapt") else "autowrapt"
    return f"AUTOWRAPT_BOOTSTRAP is set, but needs: pip install {missing}"


def _trials(affected: bool) -> Iterator[Check]:
    """Cancel requests on loopback, without the patch and, where it is needed and wanted, with it."""
    from . import trial

    _patch.unpatch()
    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(trial.serving())
        except Exception as exc:
            detail = f"no request gets through on 127.0.0.1, so nothing could be tried: {exc!a}"
            yield Check("loopback", "warn", detail, "run this where 127.0.0.1 can be used")
            yield from (Check("trial: " + phase, "skip", "not tried: see loopback") for phase in PHASES)
            return
        yield Check("loopback", "pass", "requests to 127.0.0.1 are answered")
        for phase in PHASES:
            lost, of = trial.run(phase, url)
            patched = None
            if affected and _patch.read_switch() is not False:
                with _patch.patched():
                    patched = trial.run(phase, url)
            yield Check("trial: " + phase, *_judge(affected, lost, of, patched))


def _judge(affected: bool, lost: int, of: int, patched: Any) -> List[str]:
    """Return status, detail and hint for what a trial lost without the patch and with it."""
    detail = f"{lost} of {of} connections lost"
    if not of:
        return ["skip", "not installed, or does not work here"]
    if patched and (patched[0] or lost):
        detail = "{} of {} connections lost ({} of {} unpatched)".format(*patched, lost, of)
        return ["fail" if patched[0] else "pass", detail]
    if affected:
        return ["fail", detail] if lost else ["skip", "nothing lost without the patch: proves nothing"]
    if lost:
        return ["warn", detail, "httpx has not fixed that yet: see 'Upgrade' in the README"]
    return ["pass", detail]
