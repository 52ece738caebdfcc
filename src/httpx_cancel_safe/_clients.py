"""`SafeAsyncClient` and `SafeClient`, for libraries, and for applications that prefer not to patch httpx."""

import functools
from typing import TYPE_CHECKING, Any

import httpx

from . import _send, _stats
from ._calls import Settings, check_close_timeout


class SafeAsyncClient(httpx.AsyncClient):
    """An `httpx.AsyncClient` that loses no connection when a request ends badly.

    It takes, returns and raises what `httpx.AsyncClient` does, and changes nothing but its own instances and their
    pools. `close_timeout` is the limit of a clean-up in seconds; a subclass may set it. See
    https://github.com/encode/httpx/pull/2156.
    """

    close_timeout: float = 5.0

    if not TYPE_CHECKING:  # Type checkers see httpx's signatures.

        @functools.wraps(httpx.AsyncClient.__init__)
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            check_close_timeout(self.close_timeout)
            super().__init__(*args, **kwargs)
            _stats.count("safe_clients")

        @functools.wraps(httpx.AsyncClient.send)
        async def send(self, *args: Any, **kwargs: Any) -> Any:
            return await _send.send_async(Settings(self.close_timeout), super().send, self, args, kwargs)

        def _transport_for_url(self, *args: Any, **kwargs: Any) -> Any:
            return _send.transport_for(super()._transport_for_url, self, args, kwargs)

        @functools.wraps(httpx.AsyncClient.stream)
        def stream(self, *args: Any, **kwargs: Any) -> Any:
            return _send.stream(super().stream, self, args, kwargs)


class SafeClient(httpx.Client):
    """An `httpx.Client` that loses no connection when a request ends badly.

    It takes, returns and raises what `httpx.Client` does, and changes nothing but its own instances and their pools.
    `close_timeout` has no effect, as nothing can limit a close that blocks; it is there for symmetry.
    """

    close_timeout: float = 5.0

    if not TYPE_CHECKING:

        @functools.wraps(httpx.Client.__init__)
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            check_close_timeout(self.close_timeout)
            super().__init__(*args, **kwargs)
            _stats.count("safe_clients")

        @functools.wraps(httpx.Client.send)
        def send(self, *args: Any, **kwargs: Any) -> Any:
            return _send.send_sync(Settings(self.close_timeout), super().send, self, args, kwargs)

        def _transport_for_url(self, *args: Any, **kwargs: Any) -> Any:
            return _send.transport_for(super()._transport_for_url, self, args, kwargs)

        @functools.wraps(httpx.Client.stream)
        def stream(self, *args: Any, **kwargs: Any) -> Any:
            return _send.stream(super().stream, self, args, kwargs)
