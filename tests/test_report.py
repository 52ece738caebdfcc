"""`python -m httpx_cancel_safe`: what it says, and the status with which it ends."""

import functools
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from unittest import mock

import httpx
import pytest

import httpx_cancel_safe
from httpx_cancel_safe.report import checks

from .conftest import AFFECTED, ALIAS, RELEASE, affected, fixed, too_old
from .support import compat, programs

# Programs read these names: the same ones on every httpx.
PHASES = ["connecting", "reading", "streaming", "redirect", "cancelled twice", "anyio scope", "wait_for, close", "trio"]
TRIALS = ["trial: " + phase for phase in PHASES]
NAMES = ["httpx-cancel-safe", "python", "httpx", "httpcore", "anyio", "trio", "h11", "wrapt"]
NAMES += ["HTTPX_CANCEL_SAFE", "new process", "others around send", "loopback"] + TRIALS

WITHOUT_TRIALS = "import httpx_cancel_safe.report.checks as checks\nchecks._trials = lambda *a: iter(())\n"


def report(*arguments, **options):
    return programs.run("-m", "httpx_cancel_safe", *arguments, **options)


def checks_of(done, status=0):
    """The checks of a JSON report that ended with this status, by name; checks the form of all."""
    assert (done.returncode, done.stderr) == (status, "")
    found = json.loads(done.stdout)
    assert sorted(found) == ["checks", "ok", "schema_version"]
    assert found["schema_version"] == 1
    assert [check["name"] for check in found["checks"]] == NAMES
    for check in found["checks"]:
        assert sorted(check) == ["detail", "hint", "name", "status"]
        assert all(isinstance(value, str) for value in check.values())
        assert check["status"] in ("pass", "warn", "fail", "skip") and check["detail"]
    assert found["ok"] is all(check["status"] != "fail" for check in found["checks"])
    return {check["name"]: check for check in found["checks"]}


def before_the_trials():
    """What this process finds out before it cancels anything, by name."""
    with mock.patch.object(checks, "_trials", lambda *arguments: iter(())):
        return {check.name: check for check in checks.examine()}


@pytest.fixture
def start_up(tmp_path, monkeypatch):
    """Make every new process run some code first, as sitecustomize does."""

    def set_up(code, **modules):
        monkeypatch.setenv("PYTHONPATH", programs.with_start_up(tmp_path, ALIAS + textwrap.dedent(code), **modules))

    return set_up


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The JSON report of this environment."""
    return report("--json", PYTHONPATH=programs.with_start_up(tmp_path_factory.mktemp("start"), ALIAS))


@affected
def test_where_the_patch_works_the_report_ends_with_0(whole):
    import httpcore

    found = checks_of(whole)
    assert found["httpx"]["detail"] == httpx.__version__ + ", affected by encode/httpx#2139"
    is_native = httpcore.__version__.startswith(("0.11.", "0.12.", "0.13.3"))
    assert ("natively" if is_native else "through anyio") in found["httpcore"]["detail"]
    assert found["new process"]["status"] == "warn"
    assert "a process that only imports httpx" in found["others around send"]["detail"]
    trials = {name: found[name] for name in TRIALS}
    for name in [name for name in trials if trials[name]["status"] == "skip"]:
        assert trials.pop(name)["detail"].endswith(("proves nothing", "does not work here"))
    for check in trials.values():
        assert check["status"] == "pass"
        assert re.match(r"0 of \d connections lost \([1-6] of \d unpatched\)$", check["detail"]), check
    # httpcore before 0.14.4 does not complain when it is closed.
    assert "trial: wait_for, close" in trials if RELEASE >= (0, 22) else trials


@fixed
def test_where_httpx_is_fixed_the_report_ends_with_0_and_speaks_of_no_patch(whole):
    found = checks_of(whole)
    named = httpx.__version__ + (", which is httpx2" if ALIAS else "")
    assert found["httpx"]["detail"] == named + ", has the fix: nothing is patched"
    for name in ("HTTPX_CANCEL_SAFE", "new process", "others around send"):
        assert found[name]["status"] == "skip"
    for name in TRIALS:
        check = found[name]
        assert check["status"] in ("pass", "warn", "skip") and "patch" not in check["detail"]
        assert ("has not fixed that yet" in check["hint"]) is (check["status"] == "warn")


@too_old
def test_where_httpx_is_too_old_the_report_ends_with_1(whole):
    check = checks_of(whole, 1)["httpx"]
    assert check["status"] == "fail"
    assert httpx.__version__ in check["detail"] and "0.15.0 to 0.22.0" in check["detail"]


@affected
def test_switched_off_the_report_shows_what_that_loses_and_ends_with_1():
    done = report(HTTPX_CANCEL_SAFE="0")
    assert done.returncode == 1
    assert "'0' switches the patch off" in done.stdout
    assert re.search(r"fail +trial: [a-z ]+ +[1-9] of \d connections lost\n", done.stdout)
    assert done.stdout.endswith("\n\nNot safe: see what is marked fail.\n")


@affected
def test_a_patch_that_does_not_work_ends_with_1(start_up):
    start_up("import contextlib, httpx_cancel_safe._patch as patch\npatch.patched = contextlib.ExitStack")
    found = checks_of(report("--json"), 1)
    failed = {name for name, check in found.items() if check["status"] == "fail"}
    assert failed and failed <= set(TRIALS)


@pytest.mark.skipif(RELEASE < (0, 15), reason="this httpx is too old")
@pytest.mark.parametrize("what", ["bind", "connect"])
def test_without_loopback_it_says_that_nothing_could_be_tried(what, monkeypatch):
    monkeypatch.setattr("socket.socket." + what, mock.Mock(side_effect=PermissionError(1, "no")))
    found = {check.name: check for check in checks.examine()}
    assert found["loopback"].status == "warn" and "nothing could be tried" in found["loopback"].detail
    assert {found[name].status for name in TRIALS} == {"skip"}


def test_an_error_in_the_report_itself_ends_with_2(start_up):
    name = "read_switch" if AFFECTED else "import_httpx"
    start_up("import httpx_cancel_safe._patch as patch\npatch.%s = lambda: 1 / 0" % name)
    done = report("--json")
    assert done.returncode == 2
    found = json.loads(done.stdout)
    assert "ZeroDivisionError" in found["checks"][-1]["detail"] and found["ok"] is False
    assert "Traceback" in done.stderr


def test_what_is_asked_for():
    assert "Exit status" in report("--help").stdout
    assert report("--version").stdout.strip() == httpx_cancel_safe.__version__
    done = report("--jason")
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: python -m httpx_cancel_safe" in done.stderr


@pytest.mark.parametrize("missing, hint", [("httpx", "pip install httpx"), ("cgi", "pip install legacy-cgi")])
def test_an_httpx_that_cannot_be_imported_ends_with_1(missing, hint, tmp_path):
    if missing == "cgi" and RELEASE >= (0, 23):
        pytest.skip("this httpx does not need cgi, or not for long")
    path = programs.with_start_up(tmp_path, programs.WITHOUT % missing)
    check = checks_of(report("--json", PYTHONPATH=path), 1)["httpx"]
    assert (check["status"], check["hint"]) == ("fail", hint)


@pytest.mark.skipif(bool(ALIAS), reason="httpx2 has taken the name before")
def test_a_file_httpx_py_in_the_current_folder_is_named_and_not_run(tmp_path, monkeypatch):
    (tmp_path / "httpx.py").write_text("raise SystemExit('run')")
    monkeypatch.chdir(str(tmp_path))
    check = checks_of(report("--json"), 1)["httpx"]
    assert check["detail"] == os.path.join(".", "httpx.py") + " is imported in place of httpx"


@affected
def test_an_httpcore_that_the_patch_does_not_know_is_worth_a_warning(start_up):
    start_up("import httpcore\nhttpcore.__version__ = '0.99.0'\n" + WITHOUT_TRIALS)
    assert re.search(r"warn +httpcore +0.99.0, .*unknown", re.sub(r"\s+", " ", report().stdout))


@affected
def test_a_trio_too_new_for_anyio_3_is_worth_a_warning(monkeypatch):
    anyio = pytest.importorskip("anyio")
    if not hasattr(anyio, "ExceptionGroup") or compat.trio_problem():
        pytest.skip("needs anyio 3 and a trio")
    import trio

    assert before_the_trials()["trio"].status == "pass"
    monkeypatch.setattr(trio, "__version__", "0.24.0")
    check = before_the_trials()["trio"]
    assert check.status == "warn" and "trio<0.24" in check.hint


# A tool that wraps send, and takes off whatever is on top when it goes.
TOOL = """
    import httpx, wrapt

    def count(wrapped, instance, args, kwargs):
        return wrapped(*args, **kwargs)

    def install():
        httpx.AsyncClient.send = wrapt.FunctionWrapper(vars(httpx.AsyncClient)["send"], count)

    def uninstall():
        httpx.AsyncClient.send = vars(httpx.AsyncClient)["send"].__wrapped__
"""


@affected
@pytest.mark.parametrize(
    "code, status, detail, others",
    [
        ("import httpx_cancel_safe.auto", "pass", "patched from the start, by import httpx_cancel_safe.auto", "none"),
        ("ours.patch()", "pass", "patched from the start, by patch()", "none"),
        ("ours.patch(); tool.install()", "pass", "patched from the start, by patch()", "tool"),
        ("tool.install(); ours.patch(); tool.uninstall(); tool.install()", "fail", "was patched, and then", "tool"),
        ("print('{}'); import atexit", "warn", "not patched", "none"),
        ("sys.modules['httpx'] = None", "warn", "exited before reporting", "unknown"),
    ],
)
def test_it_says_what_a_new_process_has_from_the_start(code, status, detail, others, start_up):
    start_up("import httpx_cancel_safe as ours, sys, tool; " + code, tool=TOOL)
    found = before_the_trials()
    assert found["new process"].status == status and found["new process"].detail.startswith(detail)
    assert found["others around send"].detail.startswith(others + ", ")


@affected
@pytest.mark.parametrize("value", ["httpx_cancel_safe", "other,httpx_cancel_safe", "httpx-cancel-safe"])
def test_a_bootstrap_patches_a_new_process_or_says_what_it_needs(value, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", programs.as_installed(tmp_path))
    monkeypatch.setenv("AUTOWRAPT_BOOTSTRAP", value)
    check = before_the_trials()["new process"]
    if importlib.util.find_spec("autowrapt") and "_" in value:
        assert (check.status, check.detail) == ("pass", "patched from the start, by AUTOWRAPT_BOOTSTRAP")
    else:
        hint = "is set, but needs: pip install autowrapt" if "_" in value else "it must name httpx_cancel_safe"
        assert check.status == "warn" and hint in check.hint


@affected
def test_a_switch_that_means_neither_is_named(monkeypatch):
    monkeypatch.setenv("HTTPX_CANCEL_SAFE", "disable")
    check = before_the_trials()["HTTPX_CANCEL_SAFE"]
    assert check.status == "warn" and "'disable' means neither on nor off" in check.detail


@pytest.mark.parametrize(
    "code, last", [("", "Nothing failed, but see what is marked warn."), ("import httpx_cancel_safe.auto\n", "Safe.")]
)
def test_piped_it_is_plain_text_for_a_ticket(code, last, start_up):
    start_up(code + WITHOUT_TRIALS)
    done = report()
    assert (done.returncode, done.stderr) == (0 if RELEASE >= (0, 15) else 1, "")
    assert re.match(r"[\n -~]*\Z", done.stdout)  # Plain ASCII, without escape sequences.
    assert os.getcwd() not in done.stdout and os.path.expanduser("~") + os.sep not in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    if AFFECTED:
        assert done.stdout.endswith("\n\n%s\n" % last)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("redirected", [">/dev/full", "--json >/dev/full", ">&-"])
def test_a_standard_output_that_takes_nothing_ends_it_quietly_with_2(redirected, start_up):
    start_up(WITHOUT_TRIALS)
    command = "trap '' INT; exec %s -m httpx_cancel_safe %s" % (sys.executable, redirected)
    done = subprocess.run(["/bin/sh", "-c", command], stderr=subprocess.PIPE, env=programs.environment())
    assert (done.returncode, done.stderr) == (2, b"")


@affected
@pytest.mark.parametrize("line", ["wrapt", "loopback", "trial: reading"])
def test_ctrl_c_ends_it_quietly_with_2(line, start_up):
    # A shell ignores Ctrl-C for what it runs in the background, and so would what that runs.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    start_up("")
    command, env = [sys.executable, "-m", "httpx_cancel_safe"], programs.environment()
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, env=env, preexec_fn=heed, **output)  # noqa: PLW1509
    with process.stdout, process.stderr:
        for printed in process.stdout:
            if line.encode() in printed:
                process.send_signal(signal.SIGINT)
                break
        assert b"Not" not in process.stdout.read()
        assert process.stderr.read() == b""
    assert process.wait() == 2
