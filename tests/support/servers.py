"""Loopback servers that do what a path tells them to, for clients on any loop, or on none.

Each has a thread and a loop of its own. A connection counts from the moment the socket is accepted until it is
gone. TLS is done by hand on top of it, so that a client which leaves in the middle of a handshake is counted too.
"""

import asyncio
import collections
import contextlib
import functools
import os
import socket
import ssl
import tempfile
import threading
import time
import warnings
from urllib.parse import parse_qsl, urlsplit

with contextlib.suppress(ImportError):  # Only HTTP/2 needs it.
    import h2.config
    import h2.connection
    import h2.events
    import h2.exceptions

from .compat import all_tasks, current_task

HELLO = b"hello"
# More than fits in the buffers on the way.
LARGE = b"x" * (128 * 1024)
FAULTS = ("/drop", "/early", "/garbage", "/hang")  # Whatever is sent there fails.

CHALLENGE = ("www-authenticate", 'Digest realm="r", nonce="n", qop="auth", algorithm=MD5')
# By path: body, status and headers. A body in parts comes slowly.
REPLIES = {
    "/get": (HELLO, 200, []),
    "/digest": (HELLO, 200, []),
    "/large": (LARGE, 200, []),
    "/chunked": ([b"chunk %d\n" % number for number in range(4)], 200, []),
    "/redirect": ([b"mov", b"ed on"], 302, [("location", "/get")]),
    "/loop": (b"", 302, [("location", "/loop")]),
    "/challenge": ([b"go ", b"off"], 401, [CHALLENGE]),
}


class Exchange:
    """A request, and how its answer travels: here over HTTP/1.1."""

    length = 0  # Of the request's body.

    def __init__(self, connection, method, target, headers):
        self.connection = connection
        self.method = method
        self.target = target
        self.path = urlsplit(target).path
        self.asked = dict(parse_qsl(urlsplit(target).query))
        self.headers = headers
        self.close = headers.get("connection", "").lower() == "close"

    def start(self, status=200, headers=(), length=None):
        """Send the headers; without a length the body goes in chunks."""
        self.chunked = length is None
        last = ("transfer-encoding", "chunked") if self.chunked else ("content-length", length)
        lines = ["%s: %s\r\n" % header for header in list(headers) + [last]]
        self.connection.write(("HTTP/1.1 %d X\r\n%s\r\n" % (status, "".join(lines))).encode())

    def data(self, data):
        self.connection.write(b"%x\r\n%s\r\n" % (len(data), data) if self.chunked else data)

    def end(self):
        if self.chunked:
            self.connection.write(b"0\r\n\r\n")

    async def reply(self, body, status=200, headers=()):
        parts = body if isinstance(body, list) else [body]
        self.start(status, headers, None if body is parts and status == 200 else len(b"".join(parts)))
        for part in parts + [b""]:
            if body is parts:  # The client comes round to its next read. Nothing depends on it.
                await asyncio.sleep(0.001)
            if part:
                self.data(part)
        self.end()


async def answer(exchange):
    path, asked = exchange.path, exchange.asked
    await asyncio.sleep(float(asked.get("ms", 0)) / 1000)
    text = ("%s %s %d" % (exchange.method, exchange.target, exchange.length)).encode()
    if path == "/digest" and "authorization" not in exchange.headers:
        path = "/challenge"
    if "to" in asked:
        await exchange.reply(b"", 302, [("location", asked["to"])])
    elif path in REPLIES:
        await exchange.reply(*REPLIES[path])
    elif path == "/chunks":  # n pieces with a pause between them; the first may be the last for long.
        exchange.start()
        for _ in range(int(asked.get("n", 3))):
            exchange.data(HELLO)
            await asyncio.sleep(float(asked.get("each", 1)) / 1000)
        exchange.end()
    elif path.startswith("/gate/"):
        exchange.start()
        exchange.data(b"before ")
        await exchange.connection.server.gates[path[len("/gate/") :]].wait()
        exchange.data(b"after")
        exchange.end()
    elif path == "/cookie":
        await exchange.reply(exchange.headers.get("cookie", "none").encode(), 200, [("set-cookie", "crumb=1; Path=/")])
    elif path == "/gzip":
        await exchange.reply(text, 200, [("content-encoding", "gzip")])
    elif path == "/status":
        await exchange.reply(text, int(asked["code"]))
    elif path in ("/hang", "/hang-headers", "/hang-body"):
        if path == "/hang-body":
            exchange.start(length=100)
            exchange.data(HELLO)
        await asyncio.sleep(3600)
    elif path in ("/drop", "/early", "/garbage", "/close"):
        exchange.close = True
        if path == "/early":
            exchange.start(length=100)
            exchange.data(text[:10])
        elif path == "/garbage":
            exchange.connection.write(b"what is this?\r\n\r\n")
        elif path == "/close":
            await exchange.reply(text, 200, [("connection", "close")])
    else:
        await exchange.reply(text)


class Connection(asyncio.Protocol):
    """One accepted socket, with TLS or without, and the task that serves it."""

    tls = None

    def __init__(self, server):
        self.server = server

    def connection_made(self, transport):
        self.transport = transport
        # A body that the client does not read stays here, and does not end the answer.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
        self.server.opened += 1
        self.server.connections.add(self)
        if self.server.context is not None:
            self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self.tls = self.server.context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        # The reader never pauses the transport, so the end of a connection is always noticed.
        self.reader = asyncio.StreamReader(loop=self.server.loop)
        self.task = self.server.loop.create_task(self.run())

    def connection_lost(self, exc):
        self.server.connections.discard(self)
        self.reader.feed_eof()
        self.task.cancel()

    async def run(self):
        try:
            await self.serve()
        except (asyncio.CancelledError, asyncio.IncompleteReadError, OSError):
            pass
        except Exception as exc:
            self.server.errors.append(exc)
        finally:
            self.transport.close()

    def data_received(self, data):
        if self.tls is None:
            self.reader.feed_data(data)
            return
        self.incoming.write(data)
        try:
            plain = self.tls.read(65536)
            while plain:
                self.reader.feed_data(plain)
                plain = self.tls.read(65536)
            self.transport.close()  # The peer said goodbye (close_notify): so do we.
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self.transport.close()
        self.flush()

    def flush(self):
        data = self.outgoing.read()
        if data and not self.transport.is_closing():
            self.transport.write(data)

    def write(self, data):
        if self.tls is not None:
            self.tls.write(data)
            self.flush()
        elif not self.transport.is_closing():
            self.transport.write(data)


async def read_head(reader):
    """The request line and the headers, as text."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    pairs = [line.partition(":") for line in lines]
    return first.split(" "), {name.lower(): value.strip() for name, _, value in pairs}


async def read_body(reader, headers):
    """The body as it came over the wire, part by part: (raw bytes, number of payload bytes)."""
    size = None
    if "chunked" in headers.get("transfer-encoding", ""):
        while size != 0:
            line = await reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            yield line + await reader.readexactly(size + 2), size
    else:
        length = int(headers.get("content-length", 0))
        yield await reader.readexactly(length), length


class HTTP1(Connection):
    async def serve(self):
        exchange = None
        while exchange is None or not exchange.close:
            (method, target, _), headers = await read_head(self.reader)
            exchange = Exchange(self, method, target, headers)
            async for _, size in read_body(self.reader, headers):
                exchange.length += size
            await answer(exchange)


class HTTP2Exchange(Exchange):
    """What does not fit into the client's windows waits in `queue`."""

    task = None
    queue = b""
    ended = False

    def start(self, status=200, headers=(), length=None):
        length = [] if length is None else [("content-length", str(length))]
        self.connection.h2.send_headers(self.stream_id, [(":status", str(status))] + list(headers) + length)
        self.connection.send()

    def data(self, data):
        self.queue += data
        self.flush()

    def end(self):
        self.ended = True
        self.flush()

    def flush(self):
        h2 = self.connection.h2
        while self.queue:
            room = min(h2.local_flow_control_window(self.stream_id), h2.max_outbound_frame_size)
            if room <= 0:
                break
            h2.send_data(self.stream_id, self.queue[:room])
            self.queue = self.queue[room:]
        if self.ended and not self.queue:
            h2.end_stream(self.stream_id)
            del self.connection.streams[self.stream_id]
        self.connection.send()

    async def run(self):
        # The client may have left, or closed the stream.
        with contextlib.suppress(asyncio.CancelledError, h2.exceptions.ProtocolError):
            if self.path in ENDS:
                ENDS[self.path](self.connection, self.stream_id)
                self.connection.send()
            else:
                await answer(self)


ENDS = {  # What ends a stream, or the connection, in place of an answer.
    "/reset": lambda connection, number: connection.h2.reset_stream(number),
    "/goaway": lambda connection, number: connection.h2.close_connection(),
    "/drop": lambda connection, number: connection.transport.close(),
}


class HTTP2(Connection):
    """A task that reads, and a task for each stream that answers."""

    async def serve(self):
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.streams = {}
        try:
            data = await self.reader.read(65536)
            while data:
                for event in self.h2.receive_data(data):
                    self.handle(event)
                self.send()
                data = await self.reader.read(65536)
        except h2.exceptions.ProtocolError as exc:
            # What the client sent is nonsense: that is a finding, so keep it.
            self.server.protocol_errors.append(exc)
            self.send()
        finally:
            for number in list(self.streams):
                self.forget(number)

    def send(self):
        data = self.h2.data_to_send()
        if data:
            self.write(data)

    def forget(self, number):
        exchange = self.streams.pop(number, None)
        if exchange is not None and exchange.task is not None:
            exchange.task.cancel()

    def handle(self, event):
        exchange = self.streams.get(getattr(event, "stream_id", None))
        if isinstance(event, h2.events.RequestReceived):
            headers = dict(event.headers)
            exchange = HTTP2Exchange(self, headers[":method"], headers[":path"], headers)
            exchange.stream_id = event.stream_id
            self.streams[event.stream_id] = exchange
        elif isinstance(event, h2.events.DataReceived):
            if exchange is not None:
                exchange.length += len(event.data)
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded) and exchange is not None:
            exchange.task = self.server.loop.create_task(exchange.run())
        elif isinstance(event, h2.events.StreamReset):
            self.forget(event.stream_id)
        elif isinstance(event, (h2.events.WindowUpdated, h2.events.RemoteSettingsChanged)):
            for waiting in list(self.streams.values()):
                if waiting.queue:
                    with contextlib.suppress(h2.exceptions.StreamClosedError):  # The event comes next.
                        waiting.flush()


class Upstream(asyncio.Protocol):
    """The far side of a proxied connection: what it says goes to the client as it is."""

    def __init__(self, client):
        self.client = client

    def data_received(self, data):
        self.client.write(data)

    def connection_lost(self, exc):
        self.client.transport.close()


class Relay(Connection):
    upstream = None

    def connection_lost(self, exc):
        super().connection_lost(exc)
        if self.upstream is not None:
            self.upstream.close()

    async def connect(self, host, port):
        self.upstream, _ = await self.server.loop.create_connection(lambda: Upstream(self), host, int(port))

    async def copy(self):
        while not self.reader.at_eof():
            self.upstream.write(await self.reader.read(65536))


class Proxy(Relay):
    """Forwards http:// requests, and tunnels what comes by CONNECT."""

    async def serve(self):
        while True:
            (method, target, version), headers = await read_head(self.reader)
            url = urlsplit(target if "://" in target else "//" + target)
            if url.hostname == "refused":
                self.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno")
                return
            if self.upstream is None:
                await self.connect(url.hostname, url.port)
            if method == "CONNECT":
                self.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await self.copy()
                return
            lines = ["%s %s %s" % (method, url.path, version)] + ["%s: %s" % item for item in headers.items()]
            self.upstream.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
            async for data, _ in read_body(self.reader, headers):
                self.upstream.write(data)


class SOCKS(Relay):
    """SOCKS5 to IPv4 addresses, without authentication."""

    async def serve(self):
        _, methods = await self.reader.readexactly(2)
        await self.reader.readexactly(methods)
        self.write(b"\x05\x00")
        assert (await self.reader.readexactly(4))[3] == 1  # An IPv4 address.
        host = socket.inet_ntoa(await self.reader.readexactly(4))
        await self.connect(host, int.from_bytes(await self.reader.readexactly(2), "big"))
        self.write(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
        await self.copy()


class Server:
    """Listens on several ports, each an origin of its own (`urls`), or on a UNIX socket."""

    def __init__(self, kind=HTTP1, origins=1, context=None, uds=None):
        self.kind = kind
        self.context = context
        self.uds = uds
        self.opened = 0
        self.connections = set()
        self.errors = []
        self.protocol_errors = []
        self.gates = collections.defaultdict(asyncio.Event)
        self._listeners = []
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.urls = [self._call(self._listen()) for _ in range(origins)]
        self.url = self.urls[0]

    def _run(self):
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    def _call(self, coro):
        """Run a coroutine in the thread and return its result."""
        return asyncio.run_coroutine_threadsafe(coro, self.loop).result(30)

    async def _listen(self):
        make = functools.partial(self.kind, self)
        if self.uds is not None:
            self._listeners.append(await self.loop.create_unix_server(make, self.uds))
            return "http://127.0.0.1"
        listener = await self.loop.create_server(make, "127.0.0.1", 0, backlog=1000)
        self._listeners.append(listener)
        scheme = "https" if self.context else "socks5" if self.kind is SOCKS else "http"
        return "%s://127.0.0.1:%d" % (scheme, listener.sockets[0].getsockname()[1])

    @property
    def open_connections(self):
        """How many connections are open now; `opened` counts all since `reset()`."""
        return len(self.connections)

    def gone(self, seconds=2):
        """Wait until no connection is left; tell whether that came true."""
        end = time.monotonic() + seconds
        while self.connections and time.monotonic() < end:
            time.sleep(0.001)
        return not self.connections

    async def _end(self, how):
        while self.connections:
            for connection in list(self.connections):
                getattr(connection.transport, how)()
            await asyncio.sleep(0.001)

    def hang_up(self):
        """End every connection, as a server does that has been idle for too long."""
        self._call(self._end("close"))

    def reset(self):
        """Cut every connection and count from zero, so that one failed check does not spoil the next."""
        self._call(self._end("abort"))
        self.opened = 0

    def open_gate(self, name):
        """Let the requests for /gate/<name> go on to their end."""
        self.loop.call_soon_threadsafe(lambda: self.gates[name].set())

    async def _stop(self):
        for listener in self._listeners:
            listener.close()
        await self._end("abort")
        tasks = all_tasks(self.loop) - {current_task()}
        if tasks:
            await asyncio.wait(tasks)

    def close(self):
        self._call(self._stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(30)
        assert not self.errors, self.errors


def raw_server(origins=1):
    return contextlib.closing(Server(origins=origins))


def authority():
    """A certificate authority; None where trustme cannot be installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # On Python 3.6 and 3.7 cryptography says that they are old.
        try:
            import trustme
        except ImportError:
            return None
        return trustme.CA()


def client_context(trusted):
    """A context for clients; a new one each time, as httpcore sets its ALPN protocols."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # Without the authorities of this machine.
    if trusted is not None:
        trusted.configure_trust(context)
    return context


class Servers(contextlib.ExitStack):
    """All of them, each started when it is first asked for."""

    def __init__(self):
        super().__init__()
        self._authority = authority()
        directory = self.enter_context(tempfile.TemporaryDirectory())
        self._kinds = {
            "plain": Server,
            "tls": lambda: Server(context=self._context("http/1.1")),
            "http2": lambda: Server(HTTP2, context=self._context("h2")),
            "uds": lambda: Server(uds=os.path.join(directory, "socket")),
            "proxy": lambda: Server(Proxy),
            "socks": lambda: Server(SOCKS),
        }

    def __getattr__(self, name):
        if name not in self._kinds:
            raise AttributeError(name)
        setattr(self, name, self.enter_context(contextlib.closing(self._kinds[name]())))
        return getattr(self, name)

    def _context(self, protocol):
        if self._authority is None:
            import pytest  # The benchmarks do without.

            pytest.skip("trustme is not installed: cffi does not run on free-threaded Python 3.13")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols([protocol])
        self._authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
        return context

    def client_context(self):
        return client_context(self._authority)
