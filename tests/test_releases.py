"""Which httpx gets what: the net, nothing at all, or a clear refusal."""

import asyncio
import inspect
import os
import subprocess
import sys
import textwrap

import httpx
import pytest
from packaging.version import Version

import httpx_cancel_safe
from httpx_cancel_safe import _releases

try:
    from importlib import metadata
except ImportError:  # Python 3.6 and 3.7; pytest brings the backport.
    import importlib_metadata as metadata

VERSION = Version(httpx.__version__)
TOO_OLD = VERSION < Version("0.15.0")
# Development releases of 0.23.0, were there any, would be for the library to judge.
FIXED = VERSION >= Version("0.23.0")
CLIENTS = [name for name in ("AsyncClient", "Client") if hasattr(httpx, name)]

too_old = pytest.mark.skipif(not TOO_OLD, reason="this httpx is not too old")
fixed = pytest.mark.skipif(not FIXED, reason="this httpx is not fixed")
served = pytest.mark.skipif(TOO_OLD or FIXED, reason="this httpx is not served")


class Abort(BaseException):
    """Not an Exception, so httpx itself does not close the response."""


def contents():
    """What every class and module of httpx and httpcore holds at this moment."""
    found = {}
    for module_name, module in list(sys.modules.items()):
        if module_name.split(".")[0] not in ("httpx", "httpcore", "httpx2", "httpcore2"):
            continue
        for name, value in list(vars(module).items()):
            found[module_name, name] = value
            if isinstance(value, type) and value.__module__.startswith("http"):
                for attribute, content in list(vars(value).items()):
                    found[module_name, name, attribute] = content
    return found


def differences(before, after):
    return sorted(
        key
        for key in set(before) | set(after)
        if key not in before or key not in after or before[key] is not after[key]
    )


def owner_of(module_name, name, *attribute):
    """The class that an attribute belongs to, under the name that it was given where it is defined."""
    return vars(sys.modules[module_name])[name].__name__ if attribute else name


def run(coroutine):
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()


def test_the_cell_runs_the_httpx_it_is_named_after():
    cell = os.environ.get("TOX_ENV_NAME", "")
    generations = {"httpx1dev": "1.0.dev", "httpx2": "2."}
    named = [factor for factor in cell.split("-") if factor.startswith("httpx")]
    if not named:
        pytest.skip("not run in a cell of the matrix")
    expected = generations.get(named[0], "0.%s." % named[0][len("httpx0") :])
    assert httpx.__version__.startswith(expected)


def test_an_httpx_without_a_version_is_not_supported():
    with pytest.raises(httpx_cancel_safe.UnsupportedHTTPXError, match="'main'"):
        _releases.is_affected("main")


def test_names_are_all_there():
    names = ["patch", "unpatch", "is_patched", "patched", "stats", "SafeClient", "UnsupportedHTTPXError"]
    assert [name for name in names if not hasattr(httpx_cancel_safe, name)] == []
    assert Version(httpx_cancel_safe.__version__)


def test_the_entry_point_that_autowrapt_looks_for_can_be_loaded():
    try:
        distribution = metadata.distribution("httpx-cancel-safe")
    except metadata.PackageNotFoundError:
        pytest.skip("the package is not installed")
    entry_points = [entry for entry in distribution.entry_points if entry.group == "httpx_cancel_safe"]
    assert [entry.name for entry in entry_points] == ["httpx"]  # the module whose import calls the hook
    assert callable(entry_points[0].load())


# -- Fixed: nothing is touched -----------------------------------------------------------------


@fixed
def test_patch_of_a_fixed_httpx_says_so_and_touches_nothing():
    before = contents()
    assert httpx_cancel_safe.patch() is False
    assert differences(before, contents()) == []
    assert httpx_cancel_safe.is_patched() is False
    httpx_cancel_safe.unpatch()
    assert differences(before, contents()) == []


@fixed
@pytest.mark.parametrize("name", CLIENTS)
def test_send_of_a_fixed_httpx_stays_the_same_object(name):
    client_class = getattr(httpx._client, name)
    attribute = "send" if "send" in vars(client_class) else "request"
    before = vars(client_class)[attribute]
    httpx_cancel_safe.patch()
    assert vars(client_class)[attribute] is before


@fixed
def test_patched_on_a_fixed_httpx_touches_nothing():
    before = contents()
    with httpx_cancel_safe.patched():
        assert differences(before, contents()) == []
    assert differences(before, contents()) == []


@fixed
def test_safe_classes_of_a_fixed_httpx_are_its_own():
    assert httpx_cancel_safe.SafeClient is httpx.Client
    # httpx 1.0 has no AsyncClient, so far.
    own = getattr(httpx, "AsyncClient", None)
    assert getattr(httpx_cancel_safe, "SafeAsyncClient", None) is own


@fixed
def test_importing_touches_no_fixed_httpx():
    done = run_python(
        """
        try:
            import httpx2
            httpx2.alias_httpx()
        except ImportError:
            pass
        import httpx

        def contents():
            classes = [value for value in vars(httpx._client).values() if isinstance(value, type)]
            return [vars(holder).copy() for holder in [httpx, httpx._client] + classes]

        before = contents()
        import httpx_cancel_safe
        assert contents() == before
        print(httpx_cancel_safe.patch(), httpx_cancel_safe.is_patched())
        """
    )
    assert (done.stdout.split(), done.stderr) == (["False", "False"], "")


# -- Served: only patch() has a global effect --------------------------------------------------


@served
def test_patch_of_a_served_httpx_says_so_and_touches_its_clients_alone():
    before = contents()
    assert httpx_cancel_safe.patch() is True
    assert httpx_cancel_safe.is_patched() is True
    assert {owner_of(*key) for key in differences(before, contents())} == {"AsyncClient", "Client"}
    httpx_cancel_safe.unpatch()
    assert differences(before, contents()) == []


@served
def test_safe_async_client_in_use_changes_nothing_global():
    from tests.support.custom import AsyncAdapter, AsyncStreamBase

    class Stream(AsyncStreamBase):
        async def __aiter__(self):
            yield b"one"
            if fail:
                raise Abort

        async def aclose(self):
            closed.append(self)

    class Transport(AsyncAdapter):
        async def exchange(self, asked):
            return 200, [], Stream()

    async def use():
        async with httpx_cancel_safe.SafeAsyncClient(transport=Transport()) as client:
            await client.get("http://custom.test")

    closed = []
    before = contents()
    fail = False
    run(use())
    fail = True
    with pytest.raises(Abort):
        run(use())
    assert differences(before, contents()) == []
    assert len(closed) == 2
    assert httpx_cancel_safe.is_patched() is False


@served
def test_safe_client_in_use_changes_nothing_global():
    from tests.support.custom import Adapter, StreamBase

    class Stream(StreamBase):
        def __iter__(self):
            yield b"one"
            if fail:
                raise Abort

        def close(self):
            closed.append(self)

    class Transport(Adapter):
        def exchange(self, asked):
            return 200, [], Stream()

    closed = []
    before = contents()
    with httpx_cancel_safe.SafeClient(transport=Transport()) as client:
        fail = False
        client.get("http://custom.test")
        fail = True
        with pytest.raises(Abort):
            client.get("http://custom.test")
    assert differences(before, contents()) == []
    assert len(closed) == 2


@served
@pytest.mark.parametrize("name", CLIENTS)
def test_safe_classes_are_drop_in_subclasses(name):
    own, safe = getattr(httpx, name), getattr(httpx_cancel_safe, "Safe" + name)
    assert issubclass(safe, own) and safe is not own
    assert inspect.signature(safe) == inspect.signature(own)
    assert inspect.signature(safe.send) == inspect.signature(own.send)


# -- Refused -----------------------------------------------------------------------------------


@too_old
@pytest.mark.parametrize(
    "use",
    [
        lambda: httpx_cancel_safe.patch(),
        lambda: httpx_cancel_safe.patched().__enter__(),
        lambda: httpx_cancel_safe.SafeAsyncClient(),
        lambda: httpx_cancel_safe.SafeClient(),
    ],
    ids=["patch", "patched", "SafeAsyncClient", "SafeClient"],
)
def test_too_old_an_httpx_is_refused_by_name(use):
    before = contents()
    with pytest.raises(httpx_cancel_safe.UnsupportedHTTPXError) as caught:
        use()
    message = str(caught.value)
    assert httpx.__version__ in message  # what was found
    assert "0.15" in message and "0.22" in message  # what is served
    assert differences(before, contents()) == []
    assert httpx_cancel_safe.is_patched() is False


@served
@pytest.mark.skipif(sys.version_info < (3, 13), reason="this Python has a cgi module")
@pytest.mark.parametrize("use", ["patch()", "SafeAsyncClient()", "SafeClient()"])
def test_without_cgi_the_error_says_what_to_install(use):
    done = run_python(
        """
        import sys

        class NoCgi:
            def find_spec(self, name, path=None, target=None):
                if name == "cgi":
                    raise ModuleNotFoundError("No module named 'cgi'", name="cgi")

        sys.meta_path.insert(0, NoCgi())
        try:
            import httpx_cancel_safe
            httpx_cancel_safe.%s
        except ImportError as error:
            print("ImportError:", error)
        """
        % use
    )
    assert done.stdout.startswith("ImportError:") and "legacy-cgi" in done.stdout, done.stderr


@pytest.mark.skipif(FIXED, reason="this httpx needs no cgi")
def test_a_missing_httpx_is_an_import_error_without_a_word_about_cgi():
    done = run_python(
        """
        import sys
        sys.modules["httpx"] = None
        try:
            import httpx_cancel_safe
            httpx_cancel_safe.patch()
        except ImportError as error:
            print("ImportError", error)
        """
    )
    assert done.stdout.startswith("ImportError"), done.stderr
    assert "legacy-cgi" not in done.stdout


def run_python(code):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
        timeout=60,
    )
