"""Random programs leave a pool that is right.

Some run each time, more with SLOW=1, any number by the command in `random_programs`.
"""

import os

import pytest

from .random_programs import ORIGINS, Config, Step, base_class, explain, make, run, shrink
from .support.compat import FIXED
from .support.servers import raw_server

pytestmark = pytest.mark.skipif(FIXED, reason="the library leaves httpx 0.23 and later alone")

ROUNDS = 500 if os.environ.get("SLOW") == "1" else 20

# Seeds of programs that failed once.
EXAMPLES = [14, 41, 98, 117, 256, 453, 591, 2008, 2059, 2078, 2136]

BACKENDS = ["asyncio", "trio", "uvloop"]


@pytest.fixture(scope="module")
def server():
    with raw_server(ORIGINS) as running:
        yield running


@pytest.mark.timeout(120 + 2 * ROUNDS)
@pytest.mark.parametrize("guard", ["patch", "class"])
@pytest.mark.parametrize("on", BACKENDS)
def test_programs(on, guard, server):
    base = base_class(guard)
    first = 0 if guard == "patch" else 10000
    for seed in EXAMPLES + list(range(first, first + ROUNDS)):
        config, steps = make(seed)
        faults = run(config, steps, server, base, on)
        if faults:
            pytest.fail("; ".join(faults) + "\n" + explain(seed, server, base, guard, on))


@pytest.mark.parametrize("on", BACKENDS)
def test_plain_httpx_fails(on, server):
    """The checks find a connection that is lost, as plain httpx loses it somewhere on each release."""
    cuts = [(cut, at) for cut in ("scope", "twice", "close") for at in (3, 10)]
    steps = [Step(0, "0", "get", 0, "/chunks?n=60&each=2", cut, at, 1) for cut, at in cuts]
    assert any(run(Config(1, 1, None, "quiet"), [step], server, base_class("none"), on) for step in steps)


def test_shrink():
    assert shrink(list(range(24)), lambda steps: {3, 17} <= set(steps)) == [3, 17]
