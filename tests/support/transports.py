"""Transports and response streams of one's own, written once for the three transport interfaces of httpx."""

from .compat import HTTPX, httpx

if HTTPX >= (0, 18):
    AsyncTransportBase, TransportBase = httpx.AsyncBaseTransport, httpx.BaseTransport
    AsyncStreamBase, StreamBase = httpx.AsyncByteStream, httpx.SyncByteStream
else:
    from httpcore import AsyncByteStream as AsyncStreamBase
    from httpcore import AsyncHTTPTransport as AsyncTransportBase
    from httpcore import SyncByteStream as StreamBase
    from httpcore import SyncHTTPTransport as TransportBase


class Asked:
    """A request, in whichever form this httpx hands it to a transport."""

    def __init__(self, *args, headers=(), **options):
        if HTTPX >= (0, 20):
            self.path, headers = args[0].url.path, args[0].headers.raw
        else:
            self.path = args[1][3].decode()
        self.headers = {name.lower(): value for name, value in headers}


def answer(status, headers, stream):
    """A response, in the form that this httpx takes from a transport."""
    return httpx.Response(status, headers=headers, stream=stream) if HTTPX >= (0, 20) else (status, headers, stream, {})


class AsyncAdapter(AsyncTransportBase):
    """Subclasses write `exchange(asked) -> (status, headers, stream)` for every httpx."""

    async def exchange(self, asked):
        raise NotImplementedError

    async def handle_async_request(self, *args, **options):
        return answer(*await self.exchange(Asked(*args, **options)))

    arequest = handle_async_request  # Before httpx 0.18.


class Adapter(TransportBase):
    """The same for the sync client."""

    def exchange(self, asked):
        raise NotImplementedError

    def handle_request(self, *args, **options):
        return answer(*self.exchange(Asked(*args, **options)))

    request = handle_request


class _Counted:
    """A response body of one chunk; it counts how often its close began and ended."""

    def __init__(self, read=None, close=None):
        self._read = read
        self._close = close
        self.began = self.closed = 0


class AsyncBody(_Counted, AsyncStreamBase):
    async def __aiter__(self):
        yield b"x"
        if self._read is not None:
            await self._read()

    async def aclose(self):
        self.began += 1
        if self._close is not None:
            await self._close()
        self.closed += 1


class Body(_Counted, StreamBase):
    def __iter__(self):
        yield b"x"
        if self._read is not None:
            self._read()

    def close(self):
        self.began += 1
        if self._close is not None:
            self._close()
        self.closed += 1


class Answers(AsyncAdapter):
    """Answers every request with this body."""

    def __init__(self, body):
        self.body = body

    async def exchange(self, asked):
        return 200, [], self.body


class SyncAnswers(Adapter):
    def __init__(self, body):
        self.body = body

    def exchange(self, asked):
        return 200, [], self.body
