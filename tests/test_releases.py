"""Which httpx gets what: the patch, nothing at all, or a clear refusal."""

import os
import re
import textwrap

import httpx
import pytest

import httpx_cancel_safe

from .conftest import ALIAS, affected, fixed, too_old
from .support import programs
from .support.programs import changed, contents


def test_the_cell_runs_the_httpx_it_is_named_after():
    named = re.search(r"httpx\d+(dev)?", os.environ.get("TOX_ENV_NAME", ""))
    if not named:
        pytest.skip("not run in a cell of the matrix")
    expected = {"httpx1dev": "1.0.dev", "httpx2": "2."}.get(named.group(), named.group().replace("httpx0", "0.") + ".")
    assert httpx.__version__.startswith(expected)


@pytest.mark.parametrize("version", ["0.14.3", "main"])
def test_an_httpx_that_is_too_old_or_has_no_version_is_not_supported(version, monkeypatch):
    monkeypatch.setattr(httpx, "__version__", version)
    with pytest.raises(httpx_cancel_safe.UnsupportedHTTPXError, match="'%s'.* 0.15.0 to 0.22.0" % version):
        httpx_cancel_safe.patch()


@fixed
def test_a_fixed_httpx_is_left_alone():
    before = contents()
    assert httpx_cancel_safe.patch() is False
    with httpx_cancel_safe.patched() as result:
        assert result is False
        assert changed(before) == set()
    assert httpx_cancel_safe.is_patched() is False
    httpx_cancel_safe.unpatch()
    assert changed(before) == set()
    assert httpx_cancel_safe.SafeClient is httpx.Client
    # httpx 1.0 has no AsyncClient, so far.
    assert getattr(httpx_cancel_safe, "SafeAsyncClient", None) is getattr(httpx, "AsyncClient", None)


def test_importing_the_library_changes_no_httpx():
    code = """
        import httpx
        from tests.support.programs import changed, contents
        before = contents()
        import httpx_cancel_safe
        print(httpx_cancel_safe.is_patched(), changed(before))
    """
    assert programs.run_code(ALIAS + textwrap.dedent(code)) == ["False", "set()"]


@too_old
@pytest.mark.parametrize("name", ["patch", "patched", "SafeAsyncClient", "SafeClient"])
def test_too_old_an_httpx_is_refused_by_name(name):
    before = contents()
    with pytest.raises(httpx_cancel_safe.UnsupportedHTTPXError, match=httpx.__version__ + ".* 0.15.0 to 0.22.0"):
        getattr(httpx_cancel_safe, name)().__enter__()  # Of patched().
    assert changed(before) == set()
    assert httpx_cancel_safe.is_patched() is False


@affected
@pytest.mark.parametrize("use", ["patch", "SafeAsyncClient", "SafeClient"])
@pytest.mark.parametrize("missing", ["cgi", "httpx"])
def test_an_httpx_that_cannot_be_imported_is_an_error_that_says_what_to_install(use, missing):
    code = programs.WITHOUT % missing + "import httpx_cancel_safe; httpx_cancel_safe.%s()" % use
    error = programs.run("-W", "ignore", "-c", code).stderr.splitlines()[-1]
    assert error.startswith(("ImportError: ", "ModuleNotFoundError: "))
    assert ("legacy-cgi" in error) is (missing == "cgi")
