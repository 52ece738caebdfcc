"""Our patch and somebody else's hooks, put on and taken off in every order.

Only the tools that are installed are tried; `tox run-parallel -f stack` has them all.
"""

import importlib.util
import json
import os
import pathlib

import pytest

from tests.conftest import AFFECTED
from tests.stacking.tools import TOOLS
from tests.support import programs

ROOT = pathlib.Path(__file__).parents[2]


def is_installed(package):
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # The package that it would be in is missing.
        return False


def sequences(tool, steps=()):
    """All sequences of four steps that make sense."""
    if len(steps) == 4:
        return [" ".join(steps)]
    last = {step.lstrip("-"): step for step in steps}
    possible = ["ours"] if steps[-1:] != ("ours",) else []
    if last.get("ours") == "ours":
        possible.append("-ours")
    if last.get("theirs") != "theirs":
        possible.append("theirs")
    elif tool.removes:
        possible.append("-theirs")
    return [found for step in possible for found in sequences(tool, (*steps, step))]


INSTALLED = {name: tool for name, tool in TOOLS.items() if AFFECTED and is_installed(tool.package)}
CASES = [(name, sequence) for name, tool in INSTALLED.items() for sequence in [*sequences(tool), *tool.extra]]
REPORTS = [
    (name, sequence)
    for name, tool in INSTALLED.items()
    for sequence in ("ours theirs", "theirs ours", "theirs ours -theirs")
    if tool.removes or "-theirs" not in sequence
]

if not CASES:
    pytest.skip("no tool to stack on is installed", allow_module_level=True)


@pytest.fixture(scope="module")
def facts():
    """What the driver found, by tool; all sequences of a tool are run at once."""
    found = {}

    def of(name):
        if name not in found:
            wanted = [sequence for tool, sequence in CASES if tool == name]
            done = programs.run("-m", "tests.stacking.driver", name, *wanted)
            assert done.returncode == 0, done.stderr
            found[name] = dict(json.loads(line) for line in done.stdout.splitlines())
        return found[name]

    return of


def after(tool, steps):
    """What has to be on `send` then, as a list of layers, the innermost first; whether ours is active, and theirs on.

    How tools take themselves off: "top" takes off what is on top, be it theirs or not; "to saved" puts back what was
    there when they were put on; with "own", what they change is not what we change.
    """
    layers, saved, imported, is_active, is_on = [], [], None, False, False
    for step in steps:
        if step in ("import", "theirs") and tool.keeps_from_import and imported is None:
            imported = list(layers)
        if step == "ours":
            is_active = True
            if "ours" not in layers:
                layers.append("ours")
        elif step == "-ours":
            is_active = False
            if layers[-1:] == ["ours"]:
                layers.pop()
        elif step == "theirs":
            is_on, saved = True, list(layers)
            if tool.wraps_send:
                layers = [*(layers if imported is None else imported), "theirs"]
        elif step == "-theirs":
            is_on = False
            if tool.removes == "top":
                layers.pop()
            elif tool.removes == "to saved":
                layers = saved
    return layers, is_active, is_on


@pytest.mark.parametrize("name, sequence", CASES)
def test_patch_and_tool_both_work_after_every_step(facts, name, sequence):
    tool, steps = TOOLS[name], sequence.split()
    for end in range(1, len(steps) + 1):
        layers, is_active, is_on = after(tool, steps[:end])
        done = " ".join(steps[:end])
        now = facts(name).get(done, "ended early: " + str(facts(name).get(sequence)))
        assert isinstance(now, dict), now  # Else it is a traceback.
        # A request that is cancelled while it reads ends in `send` itself.
        survives = is_active and "ours" in layers
        effects = layers.count("theirs") if tool.wraps_send and tool.removes else int(is_on)
        expected = {
            "is_patched": survives,
            "effects": effects,
            "sync effects": effects if tool.wraps_sync else 0,
            "survives": [survives, survives],
            # Each rescue counts once. Where the patch is not whole, what it sees is no matter.
            "released": now["released"] if is_active and not survives else 2 * survives,
        }
        assert now == expected, "after " + done


# In each process that starts, the tool is put on; what the report would try there is left out.
START_UP = """
    import httpx_cancel_safe, httpx_cancel_safe.report.checks as checks
    from tests.stacking.tools import TOOLS

    checks._trials = lambda *arguments: iter(())
    tool = TOOLS[{!r}]()
    tool.prepare()
    act = tool.steps(httpx_cancel_safe)
    for step in {!r}.split():
        act[step]()
"""


@pytest.mark.parametrize("name, sequence", REPORTS)
def test_the_report_tells_who_is_there_and_whether_the_patch_is(name, sequence, tmp_path):
    tool = TOOLS[name]
    layers, is_active, is_on = after(tool, sequence.split())
    is_patched = is_active and "ours" in layers
    path = os.pathsep.join([programs.with_start_up(tmp_path, START_UP.format(name, sequence)), str(ROOT)])
    done = programs.run("-m", "httpx_cancel_safe", "--json", PYTHONPATH=path)
    assert done.returncode == int(not is_patched), done.stderr
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert found["new process"]["status"] == ("pass" if is_patched else "fail")
    is_seen = (tool.wraps_inside and is_on) or "theirs" in layers
    assert found["others around send"]["detail"].startswith(tool.package + "." if is_seen else "none")
