"""`python -m httpx_cancel_safe`: what it says, and the status with which it ends."""

import json
import os
import re
import subprocess
import sys
import time
from unittest import mock

import httpx
import pytest

import httpx_cancel_safe
from httpx_cancel_safe import __main__, _doctor, _pool
from tests.support import programs
from tests.support.programs import with_start_up

RELEASE = tuple(int(part) for part in httpx.__version__.split(".")[:2])
SERVED = (0, 15) <= RELEASE < (0, 23)
FIXED = RELEASE >= (0, 23)
TRIALS = ["connecting", "reading", "streaming", "redirect", "cancelled twice", "anyio scope", "trio"]

served = pytest.mark.skipif(not SERVED, reason="this httpx is not served")
fixed = pytest.mark.skipif(not FIXED, reason="this httpx is not fixed")
too_old = pytest.mark.skipif(RELEASE >= (0, 15), reason="this httpx is not too old")

# The httpx2 cell gives the fork the name httpx; so must the processes that the tests start.
ALIAS = "import httpx2; httpx2.alias_httpx()\n" if httpx.__name__ == "httpx2" else ""

# A tool that wraps send before us, and takes off whatever is on top when it goes.
TOOL = """
    import wrapt

    def count(wrapped, instance, args, kwargs):
        return wrapped(*args, **kwargs)

    def install(cls):
        cls.send = wrapt.FunctionWrapper(cls.__dict__["send"], count)

    def uninstall(cls):
        cls.send = cls.__dict__["send"].__wrapped__
"""


def report(*arguments, **options):
    return programs.run("-m", "httpx_cancel_safe", *arguments, **options)


def trio_problem():
    from tests.support import compat  # Not for an httpx without clients.

    return compat.trio_problem()


def checks_of(done):
    """The checks of a JSON report, by name; checks the form of all."""
    found = json.loads(done.stdout)
    assert sorted(found) == ["checks", "ok", "schema_version"]
    assert found["schema_version"] == 1
    for check in found["checks"]:
        assert sorted(check) == ["detail", "hint", "name", "status"]
        assert all(isinstance(value, str) for value in check.values())
        assert check["status"] in ("pass", "warn", "fail", "skip")
        assert check["name"] and check["detail"]
    failed = any(check["status"] == "fail" for check in found["checks"])
    assert found["ok"] is not failed
    names = [check["name"] for check in found["checks"]]
    assert len(set(names)) == len(names)
    return {check["name"]: check for check in found["checks"]}


def before_the_trial():
    """What this process finds out before it cancels anything, by name."""
    with mock.patch.object(_doctor, "_trial", lambda *arguments: iter(())):
        return {check.name: check for check in _doctor.examine(lambda what: None)}


@pytest.fixture
def start_up(tmp_path, monkeypatch):
    """Make every new process run some code first, as sitecustomize does."""
    for name in ("HTTPX_CANCEL_SAFE", "AUTOWRAPT_BOOTSTRAP"):
        monkeypatch.delenv(name, raising=False)

    def set_up(code, **modules):
        monkeypatch.setenv("PYTHONPATH", with_start_up(tmp_path, code, **modules))

    return set_up


# -- The whole of it ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The JSON report of this environment, and how long it took."""
    path = with_start_up(tmp_path_factory.mktemp("start"), ALIAS)
    began = time.monotonic()
    done = report("--json", PYTHONPATH=path)
    return done, time.monotonic() - began


@served
def test_where_the_net_holds_the_report_ends_with_0(whole):
    done, took = whole
    assert (done.returncode, done.stderr) == (0, "")
    found = checks_of(done)
    # The names are part of what programs read.
    first = ["httpx-cancel-safe", "python", "httpx", "httpcore", "anyio", "trio", "h11", "wrapt"]
    first += ["HTTPX_CANCEL_SAFE", "new process", "others around send"]
    assert list(found) == first + ["trial: " + phase for phase in TRIALS]
    assert "affected" in found["httpx"]["detail"]
    assert found["new process"]["status"] == "warn"
    lost_without = 0
    for phase in TRIALS:
        check = found["trial: " + phase]
        if check["status"] == "skip":
            assert phase == "trio" and trio_problem()
            continue
        without, tried, with_net = re.match(
            r"(\d+) of (\d+) connections lost; with the net (\d+)$", check["detail"]
        ).groups()
        assert int(tried) >= 3
        assert (check["status"], int(with_net)) == ("pass", 0), check
        lost_without += int(without)
    assert lost_without > 0
    assert took < 30  # Under ten seconds, on a machine that does nothing else.


@fixed
def test_where_httpx_is_fixed_the_report_ends_with_0_and_speaks_of_no_net(whole):
    done, _ = whole
    assert (done.returncode, done.stderr) == (0, "")
    found = checks_of(done)
    assert "fixed" in found["httpx"]["detail"]
    assert not {"HTTPX_CANCEL_SAFE", "new process", "others around send"} & set(found)
    trials = [check for name, check in found.items() if name.startswith("trial")]
    assert len(trials) == (len(TRIALS) if hasattr(httpx, "AsyncClient") else 0)
    for check in trials:
        assert check["status"] in ("pass", "warn", "skip")
        assert "net" not in check["detail"]
        assert ("has not fixed that yet" in check["hint"]) is (check["status"] == "warn")


@too_old
def test_where_httpx_is_too_old_the_report_ends_with_1(whole):
    done, _ = whole
    assert done.returncode == 1
    check = checks_of(done)["httpx"]
    assert check["status"] == "fail"
    assert httpx.__version__ in check["detail"] and "0.15.0 to 0.22.0" in check["detail"]


@served
def test_switched_off_the_report_shows_what_that_loses_and_ends_with_1():
    done = report(HTTPX_CANCEL_SAFE="0")
    assert done.returncode == 1
    assert "'0' switches the net off" in done.stdout
    assert re.search(r"fail +trial: [a-z ]+ +[1-9] of \d connections lost\n", done.stdout)
    assert done.stdout.endswith("\n\nNot safe: see what is marked fail.\n")


@served
def test_a_net_that_does_not_hold_ends_with_1(start_up):
    start_up(
        """
        import contextlib
        from httpx_cancel_safe import _patch
        _patch.patched = lambda: contextlib.ExitStack()
        """
    )
    done = report("--json", PYTHONPATH=os.environ["PYTHONPATH"])
    assert done.returncode == 1
    failed = [name for name, check in checks_of(done).items() if check["status"] == "fail"]
    assert failed and all(name.startswith("trial: ") for name in failed)


def test_what_goes_wrong_in_the_report_itself_ends_with_2(start_up):
    start_up(
        """
        import httpx_cancel_safe._patch as patch
        patch.read_switch = lambda: 1 / 0
        """
        if RELEASE >= (0, 15)
        else """
        import httpx_cancel_safe._patch as patch
        patch.import_httpx = lambda: 1 / 0
        """
    )
    done = report("--json", PYTHONPATH=os.environ["PYTHONPATH"])
    assert done.returncode == 2
    assert "ZeroDivisionError" in checks_of(done)["internal error"]["detail"]
    assert "Traceback" in done.stderr


def test_wrong_use_ends_with_2():
    done = report("--jason")
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: python -m httpx_cancel_safe" in done.stderr


def test_help_and_version():
    assert "Exit status" in report("--help").stdout
    assert report("--version").stdout.strip() == httpx_cancel_safe.__version__


def test_the_report_can_be_asked_for_within_a_program(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["--version"])
    assert capsys.readouterr().out.strip() == httpx_cancel_safe.__version__


# -- Versions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("missing, hint", [("httpx", "pip install httpx"), ("cgi", "pip install legacy-cgi")])
def test_an_httpx_that_cannot_be_imported_ends_with_1(missing, hint, start_up):
    if missing == "cgi" and RELEASE >= (0, 23):
        pytest.skip("this httpx does not need cgi, or not for long")
    start_up(
        """
        import sys

        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name == %r:
                    raise ModuleNotFoundError("No module named " + name, name=name)

        sys.meta_path.insert(0, Missing())
        """
        % missing
    )
    done = report("--json", PYTHONPATH=os.environ["PYTHONPATH"])
    assert done.returncode == 1, done.stderr
    check = checks_of(done)["httpx"]
    assert (check["status"], check["hint"]) == ("fail", hint)


def test_versions_are_those_installed():
    found = before_the_trial()
    assert found["httpx-cancel-safe"].detail == httpx_cancel_safe.__version__
    assert found["python"].detail == sys.version.split()[0]
    assert httpx.__version__ in found["httpx"].detail
    if RELEASE >= (0, 15):
        import wrapt

        assert found["wrapt"].detail == wrapt.__version__
        assert found["anyio"].detail[0] in "34"


@served
def test_the_asyncio_backend_of_httpcore_is_named():
    import httpcore

    detail = before_the_trial()["httpcore"].detail
    version = tuple(int(number) for number in httpcore.__version__.split("."))
    assert detail.startswith(httpcore.__version__)
    assert ("through anyio" if version >= (0, 13, 4) else "natively") in detail


@served
def test_an_httpcore_that_the_net_does_not_know_is_worth_a_warning(monkeypatch):
    import httpcore

    # A process looks at it once.
    monkeypatch.setattr(_pool, "generation", _pool.generation.__wrapped__)
    monkeypatch.setattr(httpcore, "__version__", "0.99.0")
    check = before_the_trial()["httpcore"]
    assert check.status == "warn" and "cannot repair" in check.detail


@served
def test_a_trio_too_new_for_anyio_3_is_worth_a_warning(monkeypatch):
    import anyio

    if not hasattr(anyio, "ExceptionGroup") or trio_problem():
        pytest.skip("needs anyio 3 and a trio")
    import trio

    assert before_the_trial()["trio"].status == "pass"
    monkeypatch.setattr(trio, "__version__", "0.24.0")
    check = before_the_trial()["trio"]
    assert check.status == "warn" and "trio<0.24" in check.hint


@pytest.mark.skipif(httpx.__name__ != "httpx2", reason="not the cell with httpx2 under the name httpx")
def test_httpx2_under_the_name_httpx_is_told():
    assert "really httpx2" in before_the_trial()["httpx"].detail


# -- A new process -----------------------------------------------------------------------------


@served
@pytest.mark.parametrize(
    "code, route",
    [
        ("import httpx_cancel_safe.auto", "import httpx_cancel_safe.auto at start-up"),
        ("import httpx_cancel_safe; httpx_cancel_safe.patch()", "patch() at start-up"),
    ],
)
def test_a_net_that_is_on_from_the_start_is_told_with_its_route(code, route, start_up):
    start_up(code)
    check = before_the_trial()["new process"]
    assert (check.status, check.detail) == ("pass", "has the net from the start, by " + route)


@served
def test_a_net_by_autowrapt_is_told(start_up, monkeypatch):
    pytest.importorskip("autowrapt")
    start_up("")
    monkeypatch.setenv("AUTOWRAPT_BOOTSTRAP", "httpx_cancel_safe")
    check = before_the_trial()["new process"]
    assert (check.status, check.detail) == ("pass", "has the net from the start, by AUTOWRAPT_BOOTSTRAP")


@served
def test_autowrapt_that_is_asked_for_and_not_installed_is_told(start_up, monkeypatch):
    if "autowrapt" in sys.modules:
        pytest.skip("autowrapt is installed")
    start_up("")
    monkeypatch.setenv("AUTOWRAPT_BOOTSTRAP", "httpx_cancel_safe")
    check = before_the_trial()["new process"]
    assert check.status == "warn" and "pip install autowrapt" in check.hint


@served
def test_a_net_that_a_tool_took_off_is_told_with_the_name_of_the_tool(start_up):
    code = """
        import httpx, httpx_cancel_safe, some_apm
        some_apm.install(httpx.AsyncClient)
        httpx_cancel_safe.patch()
        some_apm.uninstall(httpx.AsyncClient)
        some_apm.install(httpx.AsyncClient)
    """
    start_up(code, some_apm=TOOL)
    found = before_the_trial()
    assert found["new process"].status == "fail"
    assert "took it off" in found["new process"].detail
    assert found["others around send"].detail == "some_apm"


@served
def test_a_tool_on_top_of_the_net_is_named(start_up):
    code = """
        import httpx, httpx_cancel_safe, some_apm
        httpx_cancel_safe.patch()
        some_apm.install(httpx.AsyncClient)
    """
    start_up(code, some_apm=TOOL)
    found = before_the_trial()
    assert found["new process"].status == "pass"
    assert found["others around send"].detail == "some_apm"


@served
def test_a_start_up_that_prints_or_breaks_does_not_disturb(start_up):
    start_up("print('{}')\nimport atexit\n")
    assert before_the_trial()["new process"].status == "warn"
    start_up("import sys\nsys.modules['httpx'] = None")
    check = before_the_trial()["new process"]
    assert (check.status, check.detail) == ("warn", "does not get as far as to tell")


@served
def test_a_switch_that_means_neither_is_told(start_up, monkeypatch):
    start_up("")
    monkeypatch.setenv("HTTPX_CANCEL_SAFE", "disable")
    check = before_the_trial()["HTTPX_CANCEL_SAFE"]
    assert check.status == "warn" and "'disable' is neither on nor off" in check.detail


# -- On a terminal -----------------------------------------------------------------------------


def on_a_terminal(path, **options):
    """What a person would see, with the escape sequences."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "httpx_cancel_safe"]
    env = programs.environment(PYTHONPATH=path, **options)
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux's way to say that nobody holds the other end any more.
            break
        if not part:
            break
        seen += part
    os.close(ours)
    process.wait()
    return seen.decode()


@pytest.fixture
def short(tmp_path):
    """A start-up that leaves the trial out; a PYTHONPATH."""
    code = "import httpx_cancel_safe._doctor as doctor\ndoctor._trial = lambda *a: iter(())"
    return with_start_up(tmp_path, ALIAS + code)


def test_on_a_terminal_there_is_colour_and_progress(short):
    seen = on_a_terminal(short)
    assert "\033[32mpass\033[0m" in seen
    if SERVED:
        assert "\r\033[Ka new process ..." in seen
    # What is left on the screen when all the progress is cleared away.
    assert re.sub(r".*\033\[K|\033\[\d+m", "", seen).startswith("  pass  httpx-cancel-safe")


def test_under_no_color_there_is_none(short):
    assert not re.search(r"\033\[\d+m", on_a_terminal(short, NO_COLOR="1"))


def test_piped_it_is_plain_text_for_a_ticket(short):
    done = report(PYTHONPATH=short)
    assert (done.returncode, done.stderr) == (0 if RELEASE >= (0, 15) else 1, "")
    assert done.stdout.isascii() if hasattr(str, "isascii") else True
    assert "\033" not in done.stdout and "\r" not in done.stdout
    assert os.getcwd() not in done.stdout and os.path.expanduser("~") + os.sep not in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 80


@served
def test_the_last_line_says_what_it_comes_to(short, tmp_path):
    warned = report(PYTHONPATH=short).stdout
    assert warned.endswith("\n\nNothing failed, but see what is marked warn.\n")
    code = "import httpx_cancel_safe.auto, httpx_cancel_safe._doctor as doctor\n"
    code += "doctor._trial = lambda *a: iter(())"
    (tmp_path / "on").mkdir()
    fine = report(PYTHONPATH=with_start_up(tmp_path / "on", code))
    assert (fine.returncode, fine.stdout.splitlines()[-2:]) == (0, ["", "Safe."]), fine.stdout


def test_a_reader_that_has_seen_enough_gets_no_traceback(short):
    command = [sys.executable, "-m", "httpx_cancel_safe"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=programs.environment(PYTHONPATH=short)
    )
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait() == 2
