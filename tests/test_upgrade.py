"""A service that cancels requests: on an affected httpx, in each way of switching on; and on upgrade day.

FastAPI makes the service where it is installed; hypercorn runs it: see benchmarks/upgrade.py.
"""

import importlib
import sys

import pytest

from .benchmarks.upgrade import KINDS, LIMIT, measure
from .conftest import affected, fixed
from .support import programs
from .support.compat import HTTPX


def measured(way, *arguments, **options):
    """What the service says of itself when nothing is under way, and how many connections are not idle then."""
    found = measure(sys.executable, way, *arguments, **options)
    assert found["under way"] == 0
    return found, sum(count for state, count in found["states"].items() if state != "IDLE")


@pytest.fixture
def python_path(tmp_path):
    return programs.as_installed(tmp_path)


@affected
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["patch", "class", "auto", "autowrapt", "gunicorn"])
def test_no_connection_is_lost_whichever_way_it_is_switched_on(way, kind, python_path):
    """No connection is left but idle ones, and the next request is answered."""
    needed = {"autowrapt": ["hypercorn.asyncio", "autowrapt"], "gunicorn": ["autowrapt", "gunicorn", "uvicorn"]}
    for package in needed.get(way, ["hypercorn.asyncio"]):
        try:
            importlib.import_module(package)
        except ImportError as exc:
            pytest.skip("%s does not work here: %s" % (package, exc))
    # A worker of gunicorn's gets nothing but the environment.
    way, server = ("autowrapt", "gunicorn") if way == "gunicorn" else (way, "hypercorn")
    found, lost = measured(way, kind, cancelled=200, server=server, PYTHONPATH=python_path)
    assert (lost, found["next"]) == (0, "hello"), found


@pytest.mark.skipif(not (0, 21) <= HTTPX < (0, 23), reason="httpx 0.21 and 0.22 lose them all")
@pytest.mark.parametrize("way, switch", [("plain", ""), ("patch", "0")])
def test_without_it_the_service_loses_its_connections(way, switch, python_path):
    """Connections that nobody uses take up the pool, mostly all of it: then the next request gets none."""
    found, lost = measured(way, PYTHONPATH=python_path, HTTPX_CANCEL_SAFE=switch)
    # Before Python 3.8 a cancel is an Exception, for which httpx closes most.
    assert lost > (LIMIT // 4 if sys.version_info >= (3, 8) else 0), found


@fixed
def test_on_upgrade_day_patch_leaves_httpx_to_itself(python_path):
    """What the README says of this release: much is lost on 0.23, and nothing on httpx2."""
    found, lost = measured("patch", PYTHONPATH=python_path)
    if HTTPX < (0, 24):
        assert lost > LIMIT // 4, found
    elif HTTPX >= (2,):
        assert (lost, found["next"]) == (0, "hello"), found
    # Between those it depends on the moments.
