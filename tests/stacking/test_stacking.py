"""Our patch and somebody else's hooks, put on and taken off in every order.

Only the tools that are installed are tried; `tox run-parallel -f stack` has them all.
"""

import functools
import importlib.util
import json

import pytest

from tests.conftest import AFFECTED
from tests.stacking.tools import TOOLS
from tests.support import programs


def is_installed(package):
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # The package that it would be in is missing.
        return False


def sequences(tool, steps=()):
    """All sequences of four steps that make sense."""
    if len(steps) == 4:
        return [steps]
    last = {step.lstrip("-"): step for step in steps}
    possible = ["ours"] if steps[-1:] != ("ours",) else []
    if last.get("ours") == "ours":
        possible.append("-ours")
    if last.get("theirs") != "theirs":
        possible.append("theirs")
    elif tool.removes:
        possible.append("-theirs")
    return [found for step in possible for found in sequences(tool, (*steps, step))]


def with_beginnings(tool):
    whole = sequences(tool) + [sequence.split() for sequence in tool.extra]
    return sorted({" ".join(steps[:end]) for steps in whole for end in range(1, len(steps) + 1)})


INSTALLED = {name: tool for name, tool in TOOLS.items() if AFFECTED and is_installed(tool.package)}
SEQUENCES = {name: with_beginnings(tool) for name, tool in INSTALLED.items()}

if not INSTALLED:
    pytest.skip("no tool to stack on is installed", allow_module_level=True)


@functools.lru_cache(maxsize=None)
def facts(name):
    """What the driver found after each sequence of a tool, and what it said on stderr."""
    done = programs.run("-m", "tests.stacking.driver", name, *SEQUENCES[name])
    return dict(json.loads(line) for line in done.stdout.splitlines()), done.stderr


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


@pytest.mark.parametrize("name, sequence", [(name, sequence) for name in INSTALLED for sequence in SEQUENCES[name]])
def test_patch_and_tool_both_work_and_the_report_tells_of_both(name, sequence):
    tool = TOOLS[name]
    layers, is_active, is_on = after(tool, sequence.split())
    found, errors = facts(name)
    assert sequence in found, errors
    now = found[sequence]
    (_, status, _, _), (_, _, others, _) = now.pop("report")
    # A request that is cancelled while it reads ends in `send` itself.
    survives = is_active and "ours" in layers
    effects = layers.count("theirs") if tool.wraps_send and tool.removes else int(is_on)
    assert now == {
        "is_patched": survives,
        "effects": effects,
        "sync effects": effects if tool.wraps_sync else 0,
        "survives": [survives, survives],
        # Each rescue counts once. Where the patch is not whole, what it sees is no matter.
        "released": now["released"] if is_active and not survives else 2 * survives,
    }
    assert status == ("pass" if survives else "fail" if is_active else "warn")
    is_seen = (tool.wraps_inside and is_on) or "theirs" in layers
    assert others.startswith(tool.package + "." if is_seen else "none")
