"""The report header, and a net that never outlives a test."""

import asyncio
import os
import pathlib
import platform
import sys

import pytest

try:
    from importlib.metadata import PackageNotFoundError, version
except ImportError:  # Python 3.6 and 3.7; pytest brings the backport.
    from importlib_metadata import PackageNotFoundError, version

try:
    import httpx2

    # The cell that runs the fork under its old name: before anything imports the other httpx.
    httpx2.alias_httpx()
except ImportError:
    pass

import httpx

import httpx_cancel_safe

RELEASE = tuple(int(part) for part in httpx.__version__.split(".")[:2])

if RELEASE < (0, 15) or not hasattr(httpx, "AsyncClient"):
    # Too old, or a new design with other names: there is no client that the other tests could use.
    tests = pathlib.Path(__file__).parent.glob("test_*.py")
    without_client = ("test_auto.py", "test_releases.py", "test_report.py", "test_service.py")
    collect_ignore = [test.name for test in tests if test.name not in without_client]


# Where a thread has never been told its loop, sniffio on Python 3.6 has one made that nobody closes.
asyncio.set_event_loop(None)

# Minutes a cell: the whole sweep, the chaos and the soak run where SLOW=1 asks for them. The soak runs
# on Python 3.9, too: in one cell for each generation of httpcore.
SLOW_FILES = () if sys.version_info[:2] == (3, 9) else ("test_soak.py",)
QUICK = {
    "test_bystanders.py": ("test_neighbour", "test_newcomer"),
    "test_cancel_sweep.py": ("test_http1[", "test_uvloop[", "test_safe_client", "test_without", "test_idle"),
    "test_real_servers.py": ("test_redirect", "test_without"),
}


def pytest_collection_modifyitems(config, items):
    if os.environ.get("SLOW") == "1":
        return
    slow = []
    for item in items:
        file = pathlib.Path(str(item.fspath)).name
        if file in SLOW_FILES:
            slow.append(item)
        elif file in QUICK and not item.name.startswith(QUICK[file]):
            slow.append(item)
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


def pytest_report_header():
    found = ["python " + platform.python_version(), "httpx " + httpx.__version__]
    for package in ("httpcore", "anyio", "trio", "h11", "h2", "wrapt", "uvloop"):
        try:
            found.append(package + " " + version(package))
        except PackageNotFoundError:
            found.append("no " + package)
    return "versions: " + ", ".join(found)


@pytest.fixture(scope="module")
def servers():
    from .support.servers import serve  # Not every cell has what that needs.

    with serve() as running:
        yield running


@pytest.fixture(autouse=True)
def unpatched():
    """Every test ends without the net, whatever it did."""
    yield
    if httpx_cancel_safe.is_patched():
        httpx_cancel_safe.unpatch()
