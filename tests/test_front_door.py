"""What a newcomer meets: the README's commands and programs, and what `dir()` and `status()` show."""

import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import textwrap

import httpx
import pytest

import httpx_cancel_safe

from .conftest import AFFECTED, RELEASE
from .support import programs, stepping

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
shown = pytest.mark.skipif(RELEASE != (0, 22), reason="what the README shows is httpx 0.22")

PUBLIC = ["SafeAsyncClient", "SafeClient", "Stats", "Status", "UnsupportedHTTPXError", "is_patched", "patch"]
PUBLIC += ["patched", "stats", "status", "unpatch"]


def block(language, part):
    """The README's one block of code in this language with this part."""
    blocks = re.findall(r"^( *)```%s\n(.*?)^ *```$" % language, README, re.MULTILINE | re.DOTALL)
    (found,) = [textwrap.dedent(code) for _, code in blocks if part in code]
    return found


def test_the_readme_is_short_and_names_only_what_is_there():
    assert len(README.splitlines()) <= 150
    assert set(re.findall(r"httpx_cancel_safe\.(\w+)", README)) <= {"auto", *PUBLIC}
    for name in re.findall(r"^python -m (tests[\w.]+)|`python -m (tests[\w.]+)", README, re.MULTILINE):
        assert importlib.util.find_spec("".join(name))
    # Nothing that only works on GitHub: PyPI shows it, too.
    assert re.findall(r"\]\((?!https://|#)", README) == []


@shown
@pytest.mark.parametrize("patched", [False, True])
def test_the_reproduction_fails_without_the_line_and_works_with_it(patched):
    line = block("python", "httpx_cancel_safe.patch()\n") if patched else ""
    done = programs.run("-c", line + block("python", "The rest never comes."))
    if patched:
        assert (done.returncode, done.stdout, done.stderr) == (0, "closed\n", "")
    else:
        assert done.returncode == 1
        promised = re.search(r"RuntimeError: The connection pool .* still in-flight\.", README)
        assert promised.group() in done.stderr


@shown
def test_the_sample_is_what_the_report_prints():
    printed = re.sub(r"\d", "0", programs.run("-m", "httpx_cancel_safe").stdout)
    sample = re.sub(r"\d", "0", block("", "new process"))
    assert [line for line in sample.splitlines() if line not in printed.splitlines()] == []


def test_the_example_for_a_library_works(servers, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    example = {}
    exec(block("python", "async def fetch(url)"), example)  # noqa: S102
    response = stepping.run(None, "asyncio", lambda: example["fetch"](servers.plain.url + "/get"))
    assert response.content == b"hello"


@shown
@pytest.mark.skipif(os.environ.get("SLOW") != "1", reason="takes packages from an index: set SLOW=1")
def test_the_command_for_a_clone_works_on_a_fresh_python(tmp_path):
    """As `python -m venv` makes it: on Python 3.6 with a pip that cannot build this package."""
    for name in ("CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(str(ROOT / name), str(tmp_path))
    shutil.copytree(str(ROOT / "src"), str(tmp_path / "src"))
    line = next(line for line in block("sh", "venv").splitlines() if line.startswith("python3 -m venv "))
    base = os.path.join(sys.base_exec_prefix, "bin", "python%d.%d" % sys.version_info[:2])
    command = ["/bin/sh", "-c", line.replace("python3", base, 1)]
    environment = {name: value for name, value in programs.environment().items() if name != "PYTHONPATH"}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "universal_newlines": True}
    done = subprocess.run(command, cwd=str(tmp_path), env=environment, **output)
    assert done.returncode == 0, done.stdout
    assert "0.22.0, affected" in done.stdout
    assert done.stdout.endswith("Nothing failed, but see what is marked warn.\n")


def test_dir_shows_what_is_public_and_hides_the_rest():
    names = [name for name in dir(httpx_cancel_safe) if not name.startswith("__")]
    assert names == sorted(httpx_cancel_safe.__all__) == sorted(PUBLIC)
    with pytest.raises(AttributeError, match="no attribute 'SafeAsync'"):
        httpx_cancel_safe.SafeAsync  # noqa: B018


def test_status_says_what_is_on(monkeypatch):
    status = httpx_cancel_safe.status()
    fields = "httpx httpcore affected patched since switched_off safe_clients stats"
    assert status._fields == tuple(fields.split())
    assert status.httpx == httpx.__version__ and status.stats == httpx_cancel_safe.stats()
    assert status.affected is AFFECTED
    assert (status.patched, status.since) == (False, None)
    if AFFECTED:
        httpx_cancel_safe.SafeClient().close()
        with httpx_cancel_safe.patched():
            after = httpx_cancel_safe.status()
        assert (after.patched, after.safe_clients) == (True, status.safe_clients + 1) and after.since
    monkeypatch.setenv("HTTPX_CANCEL_SAFE", "0")
    monkeypatch.delitem(sys.modules, "httpx")
    before = httpx_cancel_safe.status()
    assert (before.httpx, before.affected, before.switched_off, status.switched_off) == (None, None, True, False)
