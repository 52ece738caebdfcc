"""`SafeAsyncClient` and `SafeClient`: the net for those who do not want a patch."""

import httpx

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


_settings = Settings(5.0)
SafeAsyncClient.send = guard_async(httpx.AsyncClient.send, _settings, SafeAsyncClient)  # type: ignore[method-assign]
SafeClient.send = guard_sync(httpx.Client.send, _settings, SafeClient)  # type: ignore[method-assign]
