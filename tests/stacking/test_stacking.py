"""Our net and somebody else's hooks, put on and taken off in every order.

Only the tools that are installed are tried; `tox run-parallel -f stack` has them all.
"""

import importlib.util
import json
import subprocess
import sys

import pytest

from tests.stacking.model import Model, sequences
from tests.stacking.tools import TOOLS
from tests.support.programs import environment


def is_installed(package):
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # The package that it would be in is missing.
        return False


CASES = [
    pytest.param(name, sequence, id=name + "-" + sequence.replace(" ", ","))
    for name, tool in TOOLS.items()
    if is_installed(tool.package)
    for sequence in sequences(tool)
]

if not CASES:
    pytest.skip("no tool to stack on is installed", allow_module_level=True)


@pytest.fixture(scope="module")
def facts():
    """What the driver found, by tool; all sequences of a tool are run at once."""
    found = {}

    def of(name):
        if name not in found:
            command = [sys.executable, "-m", "tests.stacking.driver", name]
            done = subprocess.run(
                command + sequences(TOOLS[name]),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                universal_newlines=True,
                timeout=150,
                env=environment(),
            )
            assert done.returncode == 0, done.stderr
            found[name] = dict(json.loads(line) for line in done.stdout.splitlines())
        return found[name]

    return of


@pytest.mark.parametrize("name, sequence", CASES)
def test_net_and_tool_both_work_after_every_step(facts, name, sequence):
    tool, steps = TOOLS[name], sequence.split()
    model = Model(tool)
    for end, step in enumerate(steps, 1):
        model.take(step)
        done = " ".join(steps[:end])
        now = facts(name).get(done, "ended early: " + str(facts(name).get(sequence)))
        assert isinstance(now, dict), now  # Else it is a traceback.
        # A request that is cancelled while it reads ends in `send` itself.
        survives = model.active and model.guards > 0
        expected = {
            "is_patched": model.is_patched,
            "guards": [model.guards, model.guards],
            "effects": model.effects,
            "sync effects": model.effects if tool.wraps_sync else 0,
            "survives": [survives, survives],
            # Each rescue counts once. Where the net is not whole, what it sees is no matter.
            "released": now["released"] if model.active and not model.is_patched else 2 * survives,
        }
        assert now == expected, "after " + done
