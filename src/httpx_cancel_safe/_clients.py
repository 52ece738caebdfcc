"""`SafeAsyncClient` and `SafeClient`: the net for those who do not want a patch."""

import functools
from typing import Any

import httpx

from ._send import Settings, guard_async, guard_sync

_settings = Settings(5.0)


class SafeAsyncClient(httpx.AsyncClient):
    """An `httpx.AsyncClient` that loses no connection when a request ends badly.

    Takes and does the same. A clean-up may take 5 seconds. Changes nothing outside its
    own instances. See https://github.com/encode/httpx/pull/2156.
    """

    @functools.wraps(httpx.AsyncClient.send)
    def send(self, *args: Any, **kwargs: Any) -> Any:
        return super().send(*args, **kwargs)

    def _send_single_request(self, *args: Any, **kwargs: Any) -> Any:
        return super()._send_single_request(*args, **kwargs)

    send = guard_async(send, _settings, False)
    _send_single_request = guard_async(_send_single_request, _settings, True)


class SafeClient(httpx.Client):
    """An `httpx.Client` that loses no connection when a request ends badly."""

    @functools.wraps(httpx.Client.send)
    def send(self, *args: Any, **kwargs: Any) -> Any:
        return super().send(*args, **kwargs)

    def _send_single_request(self, *args: Any, **kwargs: Any) -> Any:
        return super()._send_single_request(*args, **kwargs)

    send = guard_sync(send, _settings, False)
    _send_single_request = guard_sync(_send_single_request, _settings, True)
