"""Which tests run where, and a patch that never outlives a test."""

import asyncio
import collections
import contextlib
import gc
import os
import pathlib
import sys

import pytest

with contextlib.suppress(ImportError):
    import httpx2

    # The cell that runs the fork under its old name: before anything imports the other httpx.
    httpx2.alias_httpx()

import httpx

import httpx_cancel_safe

RELEASE = tuple(int(part) for part in httpx.__version__.split(".")[:2])
AFFECTED = (0, 15) <= RELEASE < (0, 23)
# So must the processes do that the tests start.
ALIAS = "import httpx2; httpx2.alias_httpx()\n" if httpx.__name__ == "httpx2" else ""
affected = pytest.mark.skipif(not AFFECTED, reason="this httpx needs no patch, or is too old")
fixed = pytest.mark.skipif(RELEASE < (0, 23), reason="this httpx is not fixed")
too_old = pytest.mark.skipif(RELEASE >= (0, 15), reason="this httpx is not too old")

if RELEASE < (0, 15) or not hasattr(httpx, "AsyncClient"):
    # Too old, or a new design with other names: there is no client that the other tests could use.
    tests = pathlib.Path(__file__).parent.glob("test_*.py")
    without_client = ("test_auto.py", "test_releases.py", "test_report.py")
    collect_ignore = [test.name for test in tests if test.name not in without_client]

# Where a thread has never been told its loop, sniffio on Python 3.6 has one made that nobody closes.
asyncio.set_event_loop(None)

# SWEEP=full, or SLOW=1, tries every point at which a request can be interrupted, the soak, and each test in both
# ways. Without it each cell of the matrix tries another part of the points: see support/sweep.py.
if os.environ.get("SLOW") == "1":
    os.environ["SWEEP"] = "full"
LONG = {
    "test_soak.py": ("test_",),
    "test_bystanders.py": ("test_a_neighbour", "test_chaos"),
    "test_cancel_sweep.py": ("test_uvloop",),
    "test_upgrade.py": ("test_",),
}
if AFFECTED and RELEASE != (0, 22):  # What is the same on each of these.
    LONG.update({"test_report.py": ("test_",), "test_front_door.py": ("test_",), "test_auto.py": ("test_the_switch",)})
SECOND_WAYS = {"class", "unpatched", "uvloop"}


def is_left_out(item):
    parameters = set(item.name.partition("[")[2].rstrip("]").split("-"))
    is_long = item.name.startswith(LONG.get(pathlib.Path(str(item.fspath)).name, "-"))
    return os.environ.get("SWEEP") != "full" and (is_long or SECOND_WAYS & parameters)


def pytest_collection_modifyitems(config, items):
    left_out = [item for item in items if is_left_out(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def servers():
    from .support.servers import Servers  # Not every cell has what that needs.

    with Servers() as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """Leave out of each collection what stays anyway: many tests collect garbage."""
    gc.collect()
    if hasattr(gc, "freeze"):  # From Python 3.7 on.
        gc.freeze()


def pytest_terminal_summary(terminalreporter):
    """Say how many points of the cancel sweep were faulty, for each way to cancel."""
    swept = getattr(sys.modules.get("tests.test_cancel_sweep"), "TABLE", {})
    cells = ["%s %d/%d" % (mode, count["faulty"], count["points"]) for mode, count in swept.items() if count]
    if cells:
        terminalreporter.line("cancel sweep, faulty points of all: " + ", ".join(cells))


def pytest_runtest_setup(item):
    """Skip what asks for trio or uvloop by a parameter, where they cannot be used."""
    callspec = getattr(item, "callspec", None)
    for name in ("trio", "uvloop"):
        if callspec is not None and name in callspec.params.values():
            from .support.compat import problem_with

            if problem_with(name):
                pytest.skip(problem_with(name))


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


Clients = collections.namedtuple("Clients", "AsyncClient Client")


@pytest.fixture(params=["patch", "class"])
def guarded(request):
    """The clients of httpx under patch(), and the Safe classes."""
    if request.param == "class":
        yield Clients(httpx_cancel_safe.SafeAsyncClient, httpx_cancel_safe.SafeClient)
    else:
        with httpx_cancel_safe.patched():
            yield Clients(httpx.AsyncClient, httpx.Client)


@pytest.fixture(autouse=True)
def unpatched():
    """Every test ends without the patch, whatever it did."""
    yield
    if httpx_cancel_safe.is_patched():
        httpx_cancel_safe.unpatch()
