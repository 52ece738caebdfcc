"""The report of httpx #2139, with real programs: a client that gives up, and httpbin."""

import importlib.util
import subprocess
import sys
import textwrap

import httpx
import pytest

RELEASE = tuple(int(part) for part in httpx.__version__.split(".")[:2])

SERVER = """
    from httpbin import app
    from waitress.server import create_server

    server = create_server(app, host="127.0.0.1", port=0, threads=8)
    print(server.effective_port, flush=True)
    server.run()
"""

# The body drips for two seconds; the client waits for half a second.
CLIENT = """
    import asyncio, sys
    {first_line}
    import httpx

    async def give_up_on(url):
        async with {client_class}(timeout=10, trust_env=False) as client:
            try:
                print(await asyncio.wait_for(client.get(url), 0.5))
            except Exception as error:
                print(type(error).__name__)
            await asyncio.sleep(0.1)  # Python 3.6's wait_for goes before the task that it cancelled.

    asyncio.new_event_loop().run_until_complete(give_up_on(sys.argv[1]))
"""

PATCHED = {
    "patch": ("import httpx_cancel_safe; httpx_cancel_safe.patch()", "httpx.AsyncClient"),
    "SafeAsyncClient": ("import httpx_cancel_safe", "httpx_cancel_safe.SafeAsyncClient"),
}


@pytest.fixture(scope="module")
def httpbin_url():
    for package in ("httpbin", "waitress"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(package + " is not installed")
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(SERVER)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, universal_newlines=True) as server:
        try:
            yield "http://127.0.0.1:%d" % int(server.stdout.readline())
        finally:
            server.kill()


def give_up(httpbin_url, first_line="", client_class="httpx.AsyncClient"):
    code = textwrap.dedent(CLIENT).format(first_line=first_line, client_class=client_class)
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, httpbin_url + "/drip?delay=0&duration=2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
        timeout=60,
    )


@pytest.mark.skipif(RELEASE != (0, 22), reason="only httpx 0.22 notices that it lost a connection")
@pytest.mark.skipif(
    sys.version_info < (3, 8),
    reason="before Python 3.8 asyncio's CancelledError is an Exception, which httpx handles",
)
def test_without_the_net_a_request_given_up_ends_in_a_runtime_error(httpbin_url):
    done = give_up(httpbin_url)
    assert done.stdout.split() == ["TimeoutError"]
    assert done.returncode == 1
    assert done.stderr.strip().endswith(
        "RuntimeError: The connection pool was closed while"
        " 1 HTTP requests/responses were still in-flight."
    )


@pytest.mark.parametrize("how", sorted(PATCHED))
def test_with_the_net_a_request_given_up_is_a_timeout_and_no_more(httpbin_url, how):
    done = give_up(httpbin_url, *PATCHED[how])
    assert (done.stdout.split(), done.returncode) == (["TimeoutError"], 0), done.stderr
