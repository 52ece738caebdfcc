"""`SafeAsyncClient` and `SafeClient`: the net for those who do not want a patch."""

import functools
from typing import Any

import httpx

from ._patch import METHODS
from ._send import Settings, guard_async, guard_sync


class SafeAsyncClient(httpx.AsyncClient):
    """An `httpx.AsyncClient` that loses no connection when a request ends badly.

    Takes, does and raises the same. A clean-up may take 5 seconds. Changes nothing
    outside its own instances. See https://github.com/encode/httpx/pull/2156.
    """


class SafeClient(httpx.Client):
    """An `httpx.Client` that loses no connection when a request ends badly.

    Takes, does and raises the same. Changes nothing outside its own instances.
    """


def _inherited(owner: type, name: str) -> Any:
    """Return a function that calls the method as `super()` finds it, patched or not."""

    @functools.wraps(getattr(owner, name))
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(super(owner, self), name)(*args, **kwargs)

    return call


_settings = Settings(5.0)
for _owner, _guard in ((SafeAsyncClient, guard_async), (SafeClient, guard_sync)):
    for _name in METHODS:
        _method = _guard(_inherited(_owner, _name), _settings, _name != "send")
        setattr(_owner, _name, _method)
