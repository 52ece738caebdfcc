"""What the public names are to a type checker. mypy and pyright read this; nothing runs it.

Each `type: ignore` is a use that must be refused: both checkers report one that is not needed.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from types import ModuleType
from typing import Callable, Dict, ParamSpec, assert_type

import httpx

import httpx_cancel_safe
import httpx_cancel_safe.auto
from httpx_cancel_safe import SafeAsyncClient, SafeClient, Stats, Status, UnsupportedHTTPXError

P = ParamSpec("P")


def takes_the_same(one: Callable[P, object], other: Callable[P, object]) -> None:
    """Refuse two callables unless the second takes what the first takes."""


async def use_async_client(plain: httpx.AsyncClient, safe: SafeAsyncClient) -> None:
    SafeAsyncClient(close_timeout=1)  # type: ignore[call-arg]
    takes_the_same(httpx.AsyncClient, SafeAsyncClient)
    takes_the_same(plain.send, safe.send)
    takes_the_same(plain.stream, safe.stream)

    async with safe as entered:
        assert_type(entered, SafeAsyncClient)
    assert_type(await safe.send(safe.build_request("GET", "/"), stream=True), httpx.Response)
    async with safe.stream("GET", "/") as response:
        assert_type(response, httpx.Response)
    await safe.send("GET")  # type: ignore[arg-type]
    safe = plain  # type: ignore[assignment]
    plain = safe


def use_client(plain: httpx.Client, safe: SafeClient) -> None:
    SafeClient(close_timeout=1)  # type: ignore[call-arg]
    takes_the_same(httpx.Client, SafeClient)
    takes_the_same(plain.send, safe.send)
    takes_the_same(plain.stream, safe.stream)
    with safe as entered:
        assert_type(entered, SafeClient)
    assert_type(safe.send(safe.build_request("GET", "/"), stream=True), httpx.Response)
    plain = safe


@httpx_cancel_safe.patched()
def use_decorator(number: int) -> str:
    return str(number)


def use_the_rest(module: ModuleType, error: UnsupportedHTTPXError) -> RuntimeError:
    assert_type(httpx_cancel_safe.patch(), bool)
    assert_type(httpx_cancel_safe.patch(close_timeout=5), bool)
    httpx_cancel_safe.patch(5.0)  # type: ignore[call-arg]
    httpx_cancel_safe.patch(close_timeout="5")  # type: ignore[arg-type]
    httpx_cancel_safe.patch(close_timeout=None)  # type: ignore[arg-type]
    assert_type(httpx_cancel_safe.is_patched(), bool)
    assert_type(httpx_cancel_safe.unpatch(), None)
    with httpx_cancel_safe.patched(close_timeout=1) as in_place:
        assert_type(in_place, bool)
    httpx_cancel_safe.patched(1.0)  # type: ignore[call-arg]
    assert_type(use_decorator(1), str)

    stats = httpx_cancel_safe.stats()
    assert_type(stats, Stats)
    assert_type((stats.released, stats.failed, stats.timed_out), tuple[int, int, int])
    assert_type(stats.by_phase, Dict[str, int])
    stats.released = 0  # type: ignore[misc]
    stats.lost  # type: ignore[attr-defined]
    assert_type(httpx_cancel_safe.status(), Status)

    assert_type(httpx_cancel_safe.auto.patch_on_import(module), None)
    assert_type(httpx_cancel_safe.__version__, str)
    # The module makes the clients when they are asked for: it must not hide a slip of the pen.
    httpx_cancel_safe.SafeAsynClient  # type: ignore[attr-defined]
    return error
