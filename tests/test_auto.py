"""Switched on without `patch()`, and switched off whichever way it was switched on."""

import importlib.util
import os

import httpx
import pytest

import httpx_cancel_safe
from tests.support.programs import run, run_code, with_start_up

try:
    from importlib import metadata
except ImportError:  # Python 3.6 and 3.7; pytest brings the backport.
    import importlib_metadata as metadata

RELEASE = tuple(int(part) for part in httpx.__version__.split(".")[:2])
SERVED = (0, 15) <= RELEASE < (0, 23)

served = pytest.mark.skipif(not SERVED, reason="this httpx is not served")
not_served = pytest.mark.skipif(SERVED, reason="this httpx is served")


def is_installed(package):
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return False
    return True


with_autowrapt = pytest.mark.skipif(
    importlib.util.find_spec("autowrapt") is None or not is_installed("httpx-cancel-safe"),
    reason="autowrapt, or this package, is not installed",
)

SAY = "print(httpx_cancel_safe.is_patched())"


# -- import httpx_cancel_safe.auto -------------------------------------------------------------


def test_auto_does_not_import_httpx():
    code = "import sys, httpx_cancel_safe.auto; print('httpx' in sys.modules)"
    assert run_code(code) == ["False"]


@served
@pytest.mark.parametrize("first", ["httpx", "httpx_cancel_safe.auto"])
def test_auto_patches_whether_httpx_comes_earlier_or_later(first):
    second = "httpx" if first != "httpx" else "httpx_cancel_safe.auto"
    assert run_code("import %s; import %s; import httpx_cancel_safe; %s" % (first, second, SAY)) == ["True"]


@not_served
def test_auto_is_silent_where_there_is_nothing_to_do():
    code = "import httpx_cancel_safe.auto, httpx; %s" % SAY
    assert run_code(code, "-W", "error:::httpx_cancel_safe") == ["False"]


def test_auto_is_silent_where_httpx_is_absent():
    code = """
        import sys
        import httpx_cancel_safe.auto

        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name == "httpx":
                    raise ModuleNotFoundError("No module named 'httpx'", name="httpx")

        sys.meta_path.insert(0, Absent())
        try:
            import httpx
        except ImportError as exc:
            print(type(exc).__name__)
        print(httpx_cancel_safe.is_patched())
    """
    assert run_code(code) == ["ModuleNotFoundError", "False"]


@served
def test_auto_lets_httpx_be_imported_whatever_goes_wrong():
    code = """
        import logging, sys
        import httpx_cancel_safe.auto as auto
        logging.basicConfig(stream=sys.stdout, format="%(levelname)s")
        logging.lastResort = None

        def patch():
            raise RuntimeError

        auto.patch = patch
        import httpx
        print(httpx.__name__)
    """
    found = run_code(code)
    assert found[0] == "WARNING" and found[-1] == "httpx"


@served
def test_several_ways_at_once_make_one_net_and_one_line_in_the_log():
    code = """
        import logging, sys
        logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(name)s:%(levelname)s")
        import httpx_cancel_safe.auto, httpx
        before = httpx._client.AsyncClient.__dict__["send"]
        httpx_cancel_safe.patch()
        httpx_cancel_safe.auto.patch_on_import(httpx)
        print(httpx._client.AsyncClient.__dict__["send"] is before)
    """
    assert run_code(code) == ["httpx_cancel_safe:INFO", "True"]


# -- autowrapt ---------------------------------------------------------------------------------


@served
@with_autowrapt
def test_an_environment_variable_is_enough():
    code = "import sys, httpx; print(sys.modules['httpx_cancel_safe'].is_patched())"
    assert run_code(code, AUTOWRAPT_BOOTSTRAP="httpx_cancel_safe") == ["True"]


# How gunicorn, celery and multiprocessing make their workers, and what else a program may start.
PROGRAM = """
import multiprocessing, subprocess, sys

def child():
    import httpx, httpx_cancel_safe
    print(httpx_cancel_safe.is_patched(), flush=True)

if __name__ == "__main__":
    if sys.argv[1] == "subprocess":
        subprocess.run([sys.executable, "-c", "import program; program.child()"], check=True)
    else:
        process = multiprocessing.get_context(sys.argv[1]).Process(target=child)
        process.start()
        process.join()
"""


@served
@with_autowrapt
@pytest.mark.parametrize("how", ["spawn", "fork", "forkserver", "subprocess"])
def test_the_environment_variable_reaches_child_processes(how, tmp_path):
    if how.startswith("fork") and not hasattr(os, "fork"):
        pytest.skip("this system does not fork")
    path = with_start_up(tmp_path, "", program=PROGRAM)
    environment = {"AUTOWRAPT_BOOTSTRAP": "httpx_cancel_safe", "PYTHONPATH": path}
    for off, expected in ((False, ["True"]), (True, ["False"])):
        if off:
            environment["HTTPX_CANCEL_SAFE"] = "0"
        done = run(str(tmp_path / "program.py"), how, **environment)
        assert done.stdout.split() == expected, done.stderr


@with_autowrapt
def test_the_environment_variable_alone_imports_no_httpx():
    code = "import sys; print('httpx' in sys.modules)"
    assert run_code(code, AUTOWRAPT_BOOTSTRAP="httpx_cancel_safe") == ["False"]


# -- The off switch ----------------------------------------------------------------------------

OFF = ["0", "false", "No", "OFF", " 0 "]
ON = ["", "1", "true", "YES", "on"]

ROUTES = {
    "patch": "import httpx, httpx_cancel_safe; print(httpx_cancel_safe.patch()); %s" % SAY,
    "patched": """
        import httpx, httpx_cancel_safe
        with httpx_cancel_safe.patched() as on:
            print(on)
            %s
    """
    % SAY,
    "auto": "import httpx_cancel_safe.auto, httpx; %s; %s" % (SAY, SAY),
    "hook": """
        import httpx, httpx_cancel_safe, httpx_cancel_safe.auto
        httpx_cancel_safe.auto.patch_on_import(httpx)
        %s; %s
    """
    % (SAY, SAY),
    "classes": """
        import httpx, httpx_cancel_safe
        print(httpx_cancel_safe.SafeAsyncClient is not httpx.AsyncClient)
        print(httpx_cancel_safe.SafeClient is not httpx.Client)
    """,
}


@served
@pytest.mark.parametrize("route", sorted(ROUTES))
def test_the_off_switch_wins_over_every_route(route):
    assert run_code(ROUTES[route]) == ["True", "True"]
    assert run_code(ROUTES[route], HTTPX_CANCEL_SAFE="0") == ["False", "False"]


@served
@pytest.mark.parametrize("value, on", [(value, False) for value in OFF] + [(value, True) for value in ON])
def test_the_switch_understands_what_people_write(value, on, monkeypatch):
    monkeypatch.setenv("HTTPX_CANCEL_SAFE", value)
    with httpx_cancel_safe.patched() as result:
        assert result is on and httpx_cancel_safe.is_patched() is on


@served
@with_autowrapt
def test_the_off_switch_wins_over_autowrapt():
    code = "import httpx, httpx_cancel_safe; %s" % SAY
    found = run_code(code, AUTOWRAPT_BOOTSTRAP="httpx_cancel_safe", HTTPX_CANCEL_SAFE="0")
    assert found == ["False"]


@served
def test_the_off_switch_leaves_a_client_as_httpx_made_it(monkeypatch):
    before = {cls: dict(vars(cls)) for cls in (httpx._client.AsyncClient, httpx._client.Client)}
    monkeypatch.setenv("HTTPX_CANCEL_SAFE", "0")
    with httpx_cancel_safe.patched():
        assert {cls: dict(vars(cls)) for cls in before} == before


@served
def test_a_switch_that_means_neither_warns_and_leaves_the_net_on(monkeypatch):
    monkeypatch.setenv("HTTPX_CANCEL_SAFE", "disable")
    with pytest.warns(RuntimeWarning, match="'disable' is neither on nor off"):
        assert httpx_cancel_safe.patch() is True


@served
def test_a_bad_close_timeout_is_refused_also_while_switched_off(monkeypatch):
    monkeypatch.setenv("HTTPX_CANCEL_SAFE", "0")
    with pytest.raises(TypeError):
        httpx_cancel_safe.patch(close_timeout="x")


# -- Taken off by somebody else ----------------------------------------------------------------


@served
def test_putting_back_a_net_that_somebody_took_off_is_worth_a_warning(caplog):
    original = vars(httpx._client.AsyncClient)["send"]
    httpx_cancel_safe.patch()
    httpx._client.AsyncClient.send = original
    assert not httpx_cancel_safe.is_patched()
    assert [record.levelname for record in caplog.records if "lost" in record.message] == []
    assert httpx_cancel_safe.patch() is True
    lost = [record for record in caplog.records if "lost the net" in record.getMessage()]
    assert [record.levelname for record in lost] == ["WARNING"]
    assert httpx_cancel_safe.is_patched()
