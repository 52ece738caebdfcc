"""Stand-ins for the network that answer at once, so that only the client's own work counts."""

import h2.config
import h2.connection
import h2.events
import httpx

try:
    from httpcore.backends import base as network
except ImportError:  # Before httpcore 0.14 pools have other backends.
    network = None

HTTPX = tuple(int(part) for part in httpx.__version__.split(".")[:2])

CHUNKS = [b"x" * 512] * 4
HEADERS = [(b"content-type", b"text/plain"), (b"content-length", b"2048")]


def answer(url):
    """What the stub transports answer: (status, headers, chunks)."""
    path = url.raw_path if hasattr(url, "raw_path") else url[3]
    if path == b"/redirect":
        return 302, [(b"location", b"/"), (b"content-length", b"0")], []
    return 200, HEADERS, CHUNKS


class AsyncBody(getattr(httpx, "AsyncByteStream", object)):
    def __init__(self, chunks):
        self._chunks = chunks

    async def __aiter__(self):
        for chunk in self._chunks:
            yield chunk

    if not hasattr(httpx, "AsyncByteStream"):

        async def aclose(self):
            pass


class AsyncClosingBody(AsyncBody):
    """Nobody can see from outside whether its close could be interrupted."""

    async def aclose(self):
        pass


class Body(getattr(httpx, "SyncByteStream", object)):
    def __init__(self, chunks):
        self._chunks = chunks

    def __iter__(self):
        yield from self._chunks

    if not hasattr(httpx, "SyncByteStream"):

        def close(self):
            pass


if HTTPX >= (0, 20):

    class AsyncStub(httpx.AsyncBaseTransport):
        body = AsyncBody

        async def handle_async_request(self, request):
            status, headers, chunks = answer(request.url)
            return httpx.Response(status, headers=headers, stream=self.body(chunks))

    class Stub(httpx.BaseTransport):
        def handle_request(self, request):
            status, headers, chunks = answer(request.url)
            return httpx.Response(status, headers=headers, stream=Body(chunks))

elif HTTPX >= (0, 18):

    class AsyncStub(httpx.AsyncBaseTransport):
        body = AsyncBody

        async def handle_async_request(self, method, url, headers, stream, extensions):
            status, headers, chunks = answer(url)
            return status, headers, self.body(chunks), {}

    class Stub(httpx.BaseTransport):
        def handle_request(self, method, url, headers, stream, extensions):
            status, headers, chunks = answer(url)
            return status, headers, Body(chunks), {}


class Peer:
    """The other end of one connection, in memory: what is written, and what is to be read."""

    def __init__(self, http2):
        self.http2 = http2
        self._out = []
        if http2:
            config = h2.config.H2Configuration(client_side=False, header_encoding=None)
            self._h2 = h2.connection.H2Connection(config)
            self._h2.initiate_connection()

    def received(self, data):
        if self.http2:
            for event in self._h2.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    headers = [(b":status", b"200")] + HEADERS
                    self._h2.send_headers(event.stream_id, headers)
                    for chunk in CHUNKS:
                        self._h2.send_data(event.stream_id, chunk)
                    self._h2.end_stream(event.stream_id)
            self._out.append(self._h2.data_to_send())
        elif data.endswith(b"\r\n\r\n"):
            self._out.append(b"HTTP/1.1 200 OK\r\n")
            self._out += [name + b": " + value + b"\r\n" for name, value in HEADERS]
            self._out += [b"\r\n"] + CHUNKS

    def to_read(self):
        data, self._out = b"".join(self._out), []
        assert data, "nothing to read: a real connection would wait here"
        return data


class Tls:
    def __init__(self, http2):
        self._http2 = http2

    def selected_alpn_protocol(self):
        return "h2" if self._http2 else "http/1.1"


if network is not None:

    class AsyncStream(network.AsyncNetworkStream):
        def __init__(self, http2):
            self.http2 = http2
            self._peer = Peer(http2)

        async def read(self, max_bytes, timeout=None):
            return self._peer.to_read()

        async def write(self, buffer, timeout=None):
            self._peer.received(buffer)

        async def aclose(self):
            pass

        async def start_tls(self, ssl_context, server_hostname=None, timeout=None):
            return AsyncStream(self.http2)

        def get_extra_info(self, info):
            return Tls(self.http2) if info == "ssl_object" else None

    class AsyncBackend(network.AsyncNetworkBackend):
        def __init__(self, http2):
            self._http2 = http2

        async def connect_tcp(self, *args, **kwargs):
            return AsyncStream(self._http2)

    class Stream(network.NetworkStream):
        def __init__(self, http2):
            self.http2 = http2
            self._peer = Peer(http2)

        def read(self, max_bytes, timeout=None):
            return self._peer.to_read()

        def write(self, buffer, timeout=None):
            self._peer.received(buffer)

        def close(self):
            pass

        def start_tls(self, ssl_context, server_hostname=None, timeout=None):
            return Stream(self.http2)

        def get_extra_info(self, info):
            return Tls(self.http2) if info == "ssl_object" else None

    class Backend(network.NetworkBackend):
        def __init__(self, http2):
            self._http2 = http2

        def connect_tcp(self, *args, **kwargs):
            return Stream(self._http2)


def transport(kind, is_async):
    """A transport that needs no network: "stub" or "closing", or a pool of httpcore's, "http1" or "http2"."""
    if kind in ("stub", "closing"):
        made = AsyncStub() if is_async else Stub()
        if kind == "closing":
            made.body = AsyncClosingBody
        return made
    http2 = kind == "http2"
    made = (httpx.AsyncHTTPTransport if is_async else httpx.HTTPTransport)(http2=http2)
    made._pool._network_backend = (AsyncBackend if is_async else Backend)(http2)
    return made
