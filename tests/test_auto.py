"""Switched on without `patch()`, and switched off whichever way it was switched on."""

import multiprocessing

import pytest

import httpx_cancel_safe

from .conftest import AFFECTED, affected
from .support.programs import WITHOUT, as_installed, changed, contents, run, run_code, with_start_up

SAY = "\nprint(httpx_cancel_safe.is_patched())"


def test_auto_imports_no_httpx_and_is_silent_where_there_is_nothing_to_do():
    code = "import sys, httpx_cancel_safe.auto; print('httpx' in sys.modules); import httpx"
    assert run_code(code + SAY, "-W", "error:::httpx_cancel_safe") == ["False", str(AFFECTED)]


@affected
@pytest.mark.parametrize(
    "code, expected",
    [
        ("import httpx, httpx_cancel_safe.auto", True),
        ("import httpx_cancel_safe.auto; ours.unpatch(); import httpx", False),
        ("ours.unpatch(); import httpx_cancel_safe.auto, httpx", True),
        ("import httpx; ours.patch(); ours.unpatch(); import httpx_cancel_safe.auto", True),
        ("import httpx_cancel_safe.auto; ours.unpatch(); ours.patch()", True),
    ],
)
def test_auto_patches_unless_unpatch_took_it_back_before_httpx_was_imported(code, expected):
    code = "import httpx_cancel_safe as ours; " + code
    assert run_code(code + "; print(ours.is_patched())") == [str(expected)]


def test_auto_is_silent_where_httpx_is_absent():
    code = WITHOUT % "httpx" + "import contextlib, httpx_cancel_safe.auto\n"
    code += "with contextlib.suppress(ModuleNotFoundError):\n    import httpx"
    assert run_code(code + SAY) == ["False"]


def test_auto_lets_httpx_be_imported_whatever_goes_wrong(tmp_path):
    """Here it is a module of that name that is no httpx."""
    path = with_start_up(tmp_path, "", httpx="__version__ = 14")
    code = "import logging; logging.basicConfig(); import httpx_cancel_safe.auto, httpx; print(httpx.__version__)"
    done = run("-c", code, PYTHONPATH=path)
    assert done.stdout == "14\n" and done.stderr.startswith("WARNING:httpx_cancel_safe:not in place")


# How gunicorn, celery and multiprocessing make their workers.
PROGRAM = """
import multiprocessing, sys

def child():
    before = "httpx" in sys.modules
    import httpx
    print(before, sys.modules["httpx_cancel_safe"].is_patched(), flush=True)

if __name__ == "__main__":
    if sys.argv[1] == "none":
        child()
    else:
        process = multiprocessing.get_context(sys.argv[1]).Process(target=child)
        process.start()
        process.join()
"""


@affected
@pytest.mark.parametrize("how", ["none"] + multiprocessing.get_all_start_methods())
def test_an_environment_variable_is_enough_also_for_child_processes(how, tmp_path):
    pytest.importorskip("autowrapt")
    (tmp_path / "program.py").write_text(PROGRAM)
    path = as_installed(tmp_path)
    for switch, expected in (("", "True"), ("0", "False")):
        environment = {"AUTOWRAPT_BOOTSTRAP": "httpx_cancel_safe", "HTTPX_CANCEL_SAFE": switch}
        done = run(str(tmp_path / "program.py"), how, PYTHONPATH=path, **environment)
        assert done.stdout.split() == ["False", expected], done.stderr


ROUTES = [
    "import httpx, httpx_cancel_safe; print(httpx_cancel_safe.patch())" + SAY,
    "import httpx_cancel_safe.auto, httpx" + SAY + SAY,
    """
        import httpx, httpx_cancel_safe as ours
        print(ours.SafeAsyncClient is not httpx.AsyncClient, ours.SafeClient is not httpx.Client)
    """,
]


@affected
@pytest.mark.parametrize("route", ROUTES, ids=["patch", "auto", "classes"])
def test_the_off_switch_wins_over_every_route(route):
    assert run_code(route) == ["True", "True"]
    assert run_code(route, HTTPX_CANCEL_SAFE="0") == ["False", "False"]


@affected
@pytest.mark.parametrize("is_on, values", [(False, "0|false|No|OFF| 0 "), (True, "|1|true|YES|on")])
def test_the_switch_understands_what_people_write(is_on, values, monkeypatch):
    before = contents()
    for value in values.split("|"):
        monkeypatch.setenv("HTTPX_CANCEL_SAFE", value)
        with httpx_cancel_safe.patched() as result:
            assert result is is_on and httpx_cancel_safe.is_patched() is is_on
            assert bool(changed(before)) is is_on
        with pytest.raises(TypeError):  # Switched off, too.
            httpx_cancel_safe.patch(close_timeout="x")


@affected
def test_a_switch_that_means_neither_warns_and_leaves_the_patch_on(monkeypatch):
    monkeypatch.setenv("HTTPX_CANCEL_SAFE", "disable")
    with pytest.warns(RuntimeWarning, match="'disable' is neither on nor off"):
        assert httpx_cancel_safe.patch() is True
