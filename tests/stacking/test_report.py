"""What `python -m httpx_cancel_safe` says in a process that somebody else's tool is put on in as well."""

import json
import os
import pathlib

import pytest

from tests.stacking.model import Model
from tests.stacking.test_stacking import is_installed
from tests.stacking.tools import TOOLS
from tests.support import programs

ROOT = pathlib.Path(__file__).parents[2]

START_UP = """
    import httpx_cancel_safe, httpx_cancel_safe._doctor as doctor
    from tests.stacking.tools import TOOLS

    doctor._trial = lambda *arguments: iter(())
    tool = TOOLS[{!r}]()
    tool.prepare()
    act = {{"ours": httpx_cancel_safe.patch, "theirs": tool.put_on, "-theirs": tool.take_off}}
    for step in {!r}.split():
        act[step]()
"""

CASES = [
    (name, sequence)
    for name, tool in TOOLS.items()
    if is_installed(tool.package)
    for sequence in ("ours theirs", "theirs ours", "theirs ours -theirs")
    if tool.removes or "-theirs" not in sequence
]


@pytest.mark.parametrize("name, sequence", CASES)
def test_the_report_tells_who_is_there_and_whether_the_net_is(name, sequence, tmp_path):
    tool = TOOLS[name]
    model = Model(tool)
    for step in sequence.split():
        model.take(step)
    path = programs.with_start_up(tmp_path, START_UP.format(name, sequence))
    path = os.pathsep.join([path, str(ROOT)])
    done = programs.run("-m", "httpx_cancel_safe", "--json", PYTHONPATH=path)
    assert done.returncode == int(not model.is_patched), done.stderr
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    if model.is_patched:
        assert found["new process"]["detail"] == "has the net from the start, by patch() at start-up"
    else:
        assert "somebody took it off" in found["new process"]["detail"]
    others = found["others around send"]["detail"]
    if (tool.touches_inside and model.on) or "theirs" in model.layers:
        assert others.startswith(tool.package + ".")
    else:
        assert others == "none"
