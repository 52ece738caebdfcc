"""Loopback servers that know exactly how many connections they hold.

One background thread runs one asyncio loop; every server lives in it. A connection counts from the
moment the socket is accepted until the socket is gone. TLS is done by hand on top of the plain
socket, so that a client which leaves in the middle of a handshake is counted too.
"""

import asyncio
import contextlib
import importlib.util
import os
import shutil
import socket
import ssl
import tempfile
import threading
import warnings

# Long enough for the client to come round to its next read, short enough not to cost anything.
# Nothing depends on it: where two writes arrive as one, a request just has fewer suspensions.
PACE = 0.001
# Larger than what fits in the buffers on the way (see SNDBUF), so the server waits for the client.
LARGE = b"x" * (512 * 1024)
SNDBUF = 16 * 1024
HELLO = b"hello"


def tls_problem():
    """Why there are no certificates here; None where there are."""
    if importlib.util.find_spec("trustme") is None:
        return "trustme is not installed: cffi does not run on free-threaded Python 3.13"
    return None


class LoopThread:
    """A background thread with an asyncio loop of its own."""

    def __enter__(self):
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="loopback-servers", daemon=True)
        self._thread.start()
        return self

    def _run(self):
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        self.loop.close()

    def call(self, coro):
        """Run a coroutine in the thread and return its result."""
        return asyncio.run_coroutine_threadsafe(coro, self.loop).result(30)

    def __exit__(self, *exc_info):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(30)
        assert not self._thread.is_alive()


class Connection(asyncio.Protocol):
    """One accepted socket, with TLS or without, and the task that serves it."""

    def __init__(self, server):
        self.server = server
        self.loop = server.loop
        self.lost = False
        self.task = None  # Started when there is something to talk to: with TLS, after the handshake.
        self._writable = None
        self._tls = None

    def connection_made(self, transport):
        self.transport = transport
        sock = transport.get_extra_info("socket")
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SNDBUF)
        self.server._opened(self)
        # The reader never pauses the transport, so the end of a connection is always noticed.
        self.reader = asyncio.StreamReader(loop=self.loop)
        if self.server.tls is not None:
            self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._tls = self.server.tls.wrap_bio(
                self._incoming, self._outgoing, server_side=True
            )
            self._shaken = False
        else:
            self.task = self.loop.create_task(self._serve())

    async def _serve(self):
        try:
            await self.server.serve(self)
        except (asyncio.CancelledError, asyncio.IncompleteReadError, OSError):
            pass
        except Exception as exc:
            self.server.errors.append(exc)
        finally:
            self.transport.close()

    def data_received(self, data):
        if self._tls is None:
            self.reader.feed_data(data)
            return
        self._incoming.write(data)
        try:
            if not self._shaken:
                self._tls.do_handshake()
                self._shaken = True
                self.task = self.loop.create_task(self._serve())
            while True:
                plain = self._tls.read(65536)
                if not plain:  # The peer said goodbye (close_notify): so do we.
                    self.transport.close()
                    break
                self.reader.feed_data(plain)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self.transport.close()
        self._flush()

    def _flush(self):
        data = self._outgoing.read()
        if data and not self.transport.is_closing():
            self.transport.write(data)

    def write(self, data):
        if self.lost or self.transport.is_closing():
            raise ConnectionResetError("the client is gone")
        if self._tls is None:
            self.transport.write(data)
        else:
            self._tls.write(data)
            self._flush()

    async def drain(self):
        while self._writable is not None:
            await asyncio.shield(self._writable)

    def pause_writing(self):
        self._writable = self.loop.create_future()

    def resume_writing(self):
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    def connection_lost(self, exc):
        self.lost = True
        self.resume_writing()
        self.reader.feed_eof()
        if self.task is not None:
            self.task.cancel()
        self.server._closed(self)


class Server:
    """A listening socket. What its connections speak is up to the subclass."""

    scheme = "http"

    def __init__(self, thread, tls=None, uds=None):
        self.loop = thread.loop
        self.tls = tls
        self.uds = uds
        self.errors = []
        self.resets = 0  # HTTP/2: streams that the client reset.
        self.accepted = 0
        self._thread = thread
        self._connections = set()
        self._changed = threading.Condition()
        self._gates = {}

    def start(self):
        self._thread.call(self._start())
        return self

    async def _start(self):
        if self.uds is not None:
            self._listener = await self.loop.create_unix_server(
                lambda: Connection(self), self.uds
            )
            self.url = "http://127.0.0.1"
            return
        self._listener = await self.loop.create_server(lambda: Connection(self), "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        scheme = "https" if self.tls is not None else self.scheme
        self.url = "%s://127.0.0.1:%d" % (scheme, self.port)

    def stop(self):
        self._thread.call(self._stop())
        assert not self.errors, self.errors

    async def _stop(self):
        self._listener.close()
        tasks = []
        for connection in list(self._connections):
            connection.transport.abort()
            if connection.task is not None:
                tasks.append(connection.task)
        if tasks:
            await asyncio.wait(tasks)
        while self._connections:
            await asyncio.sleep(0)

    def _opened(self, connection):
        with self._changed:
            self.accepted += 1
            self._connections.add(connection)
            self._changed.notify_all()

    def _closed(self, connection):
        with self._changed:
            self._connections.discard(connection)
            self._changed.notify_all()

    @property
    def open_connections(self):
        with self._changed:
            return len(self._connections)

    def wait_closed_to(self, n, timeout):
        """Wait until at most n connections are open; False when the time is up first."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._connections) <= n, timeout)

    def drop_connections(self):
        """Cut every connection, so that one failed check does not spoil the next."""

        async def drop():
            for connection in list(self._connections):
                connection.transport.abort()

        self._thread.call(drop())
        self.wait_closed_to(0, 5)

    def open_gate(self, name):
        """Let the requests for /gate/<name> go on to their end."""
        self.loop.call_soon_threadsafe(lambda: self.gate(name).set())

    def gate(self, name):
        if name not in self._gates:
            self._gates[name] = asyncio.Event()
        return self._gates[name]

    async def serve(self, connection):
        raise NotImplementedError


class Exchange:
    """A request as the routes see it; the subclasses say how the answer travels."""

    def __init__(self, server, method, path, headers):
        self.server = server
        self.method = method
        self.path = path
        self.headers = headers
        self.body_length = 0
        self.close = False

    async def reply(self, status, body, headers=()):
        await self.start(status, list(headers), len(body))
        await self.data(body)
        await self.end()

    async def pause(self):
        await asyncio.sleep(PACE)


async def _get(exchange):
    await exchange.reply(200, HELLO)


async def _chunked(exchange):
    await exchange.start(200, [])
    for number in range(4):
        await exchange.pause()
        await exchange.data(b"chunk %d\n" % number)
    await exchange.pause()
    await exchange.end()


async def _slow_headers(exchange):
    await exchange.start(200, [("x-slow", "1"), ("x-slower", "2")], len(HELLO), slowly=True)
    await exchange.pause()
    await exchange.data(HELLO)
    await exchange.end()


async def _post(exchange):
    await exchange.reply(200, b"%d" % exchange.body_length)


async def _redirect(exchange):
    await exchange.start(302, [("location", "/get")], 8)
    await exchange.pause()
    await exchange.data(b"mov")
    await exchange.pause()
    await exchange.data(b"ed on")
    await exchange.end()


async def _redirect_chunked(exchange):
    await exchange.start(302, [("location", "/redirect")])
    for part in (b"moved", b" ", b"on"):
        await exchange.pause()
        await exchange.data(part)
    await exchange.end()


async def _digest(exchange):
    if exchange.headers.get("authorization", "").startswith("Digest "):
        await exchange.reply(200, HELLO)
        return
    challenge = 'Digest realm="test", nonce="abcdef", qop="auth", algorithm=MD5'
    await exchange.start(401, [("www-authenticate", challenge)], 6)
    await exchange.pause()
    await exchange.data(b"go ")
    await exchange.pause()
    await exchange.data(b"off")
    await exchange.end()


async def _hang_headers(exchange):
    await asyncio.Event().wait()


async def _hang_body(exchange):
    await exchange.start(200, [], 100)
    await exchange.data(HELLO)
    await asyncio.Event().wait()


async def _hang_close(exchange):
    # The body ends only when the server closes, and the server waits for the client.
    exchange.close = True
    await exchange.start(200, [("connection", "close")], until_close=True)
    await exchange.data(HELLO)
    await asyncio.Event().wait()


async def _large(exchange):
    await exchange.reply(200, LARGE)


async def _gate(exchange):
    await exchange.start(200, [])
    await exchange.data(b"before ")
    await exchange.server.gate(exchange.path.rsplit("/", 1)[1]).wait()
    await exchange.data(b"after")
    await exchange.end()


ROUTES = {
    "/get": _get,
    "/chunked": _chunked,
    "/slow-headers": _slow_headers,
    "/post": _post,
    "/redirect": _redirect,
    "/redirect-chunked": _redirect_chunked,
    "/digest": _digest,
    "/hang-headers": _hang_headers,
    "/hang-body": _hang_body,
    "/hang-close": _hang_close,
    "/large": _large,
}


async def answer(exchange):
    if exchange.path.startswith("/gate/"):
        await _gate(exchange)
    elif exchange.path in ROUTES:
        await ROUTES[exchange.path](exchange)
    else:
        await exchange.reply(404, b"not here")


async def read_head(reader):
    """The request line and the header lines, as text."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return first, headers


async def read_body(reader, headers):
    """The body as it came over the wire, part by part: (raw bytes, number of payload bytes)."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while True:
            line = await reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            yield line + await reader.readexactly(size + 2), size
            if size == 0:
                return
    left = int(headers.get("content-length", 0))
    while left:
        data = await reader.read(min(left, 65536))
        if not data:
            raise asyncio.IncompleteReadError(b"", left)
        left -= len(data)
        yield data, len(data)


class HTTP1Exchange(Exchange):
    connection = None

    async def start(self, status, headers, length=None, slowly=False, until_close=False):
        lines = ["HTTP/1.1 %d %s" % (status, "OK" if status == 200 else "Other")]
        lines += ["%s: %s" % header for header in headers]
        self._chunked = length is None and not until_close
        if length is not None:
            lines.append("content-length: %d" % length)
        elif self._chunked:
            lines.append("transfer-encoding: chunked")
        head = [(line + "\r\n").encode("latin-1") for line in lines] + [b"\r\n"]
        for part in head if slowly else [b"".join(head)]:
            if slowly:
                await self.pause()
            self.connection.write(part)
        await self.connection.drain()

    async def data(self, data):
        if self._chunked:
            data = b"%x\r\n%s\r\n" % (len(data), data)
        for start in range(0, len(data), 65536):
            self.connection.write(data[start : start + 65536])
            await self.connection.drain()

    async def end(self):
        if self._chunked:
            self.connection.write(b"0\r\n\r\n")
        await self.connection.drain()


class HTTP1Server(Server):
    async def serve(self, connection):
        while True:
            first, headers = await read_head(connection.reader)
            method, path, _ = first.split(" ")
            exchange = HTTP1Exchange(self, method, path, headers)
            exchange.connection = connection
            exchange.close = headers.get("connection", "").lower() == "close"
            async for _, size in read_body(connection.reader, headers):
                exchange.body_length += size
            await answer(exchange)
            if exchange.close:
                return


class HTTP2Exchange(Exchange):
    stream_id = 0
    speaker = None

    async def start(self, status, headers, length=None, slowly=False, until_close=False):
        headers = [(":status", str(status))] + [h for h in headers if h[0] != "connection"]
        if length is not None:
            headers.append(("content-length", str(length)))
        if slowly:
            await self.pause()
        self.speaker.h2.send_headers(self.stream_id, headers)
        await self.speaker.send()

    async def data(self, data):
        h2 = self.speaker.h2
        while data:
            room = min(
                h2.local_flow_control_window(self.stream_id), h2.max_outbound_frame_size
            )
            if room <= 0:
                await self.speaker.more_room()
                continue
            h2.send_data(self.stream_id, data[:room])
            data = data[room:]
            await self.speaker.send()

    async def end(self):
        self.speaker.h2.end_stream(self.stream_id)
        await self.speaker.send()


class HTTP2Speaker:
    """One HTTP/2 connection: a task that reads, and a task for each stream that answers."""

    def __init__(self, server, connection):
        import h2.config
        import h2.connection

        self.server = server
        self.connection = connection
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        )
        self._streams = {}
        self._tasks = {}
        self._room = asyncio.Event()

    async def send(self):
        data = self.h2.data_to_send()
        if data:
            self.connection.write(data)
        await self.connection.drain()

    async def more_room(self):
        self._room.clear()
        await self._room.wait()

    async def run(self):
        import h2.exceptions

        try:
            self.h2.initiate_connection()
            await self.send()
            while True:
                data = await self.connection.reader.read(65536)
                if not data:
                    return
                try:
                    events = self.h2.receive_data(data)
                except h2.exceptions.ProtocolError as exc:
                    # What the client sent is nonsense: that is a finding, so keep it.
                    self.server.protocol_errors.append(exc)
                    self.connection.write(self.h2.data_to_send())
                    return
                for event in events:
                    self._handle(event)
                await self.send()
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    def _handle(self, event):
        import h2.events

        if isinstance(event, h2.events.RequestReceived):
            headers = dict(event.headers)
            exchange = HTTP2Exchange(
                self.server, headers[":method"], headers[":path"], headers
            )
            exchange.stream_id = event.stream_id
            exchange.speaker = self
            self._streams[event.stream_id] = exchange
        elif isinstance(event, h2.events.DataReceived):
            exchange = self._streams.get(event.stream_id)
            if exchange is not None:
                exchange.body_length += len(event.data)
            if exchange is None or exchange.path != "/stall":
                self.h2.acknowledge_received_data(
                    event.flow_controlled_length, event.stream_id
                )
            else:  # An upload that gets no further than the window: only the connection goes on.
                self.h2.increment_flow_control_window(event.flow_controlled_length)
        elif isinstance(event, h2.events.StreamEnded):
            exchange = self._streams.pop(event.stream_id, None)
            if exchange is not None:
                self._tasks[event.stream_id] = self.server.loop.create_task(
                    self._answer(exchange)
                )
        elif isinstance(event, h2.events.StreamReset):
            self.server.resets += 1
            self._streams.pop(event.stream_id, None)
            task = self._tasks.get(event.stream_id)
            if task is not None:
                task.cancel()
        elif isinstance(
            event, (h2.events.WindowUpdated, h2.events.RemoteSettingsChanged)
        ):
            self._room.set()

    async def _answer(self, exchange):
        import h2.exceptions

        try:
            await answer(exchange)
        except (asyncio.CancelledError, OSError, h2.exceptions.StreamClosedError):
            pass
        except h2.exceptions.ProtocolError:
            if not self.connection.lost:
                raise
        finally:
            self._tasks.pop(exchange.stream_id, None)


class HTTP2Server(Server):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.protocol_errors = []

    async def serve(self, connection):
        await HTTP2Speaker(self, connection).run()


class _Upstream(asyncio.Protocol):
    """The far side of a proxied connection: what it says goes to the client as it is."""

    def __init__(self, client):
        self._client = client

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        if not self._client.transport.is_closing():
            self._client.write(data)

    def connection_lost(self, exc):
        self._client.transport.close()


class _Relay(Server):
    async def serve(self, connection):
        upstreams = []

        async def connect(host, port):
            transport, _ = await self.loop.create_connection(
                lambda: _Upstream(connection), host, port
            )
            upstreams.append(transport)
            return transport

        try:
            await self.relay(connection, connect)
        finally:
            for transport in upstreams:
                transport.close()

    async def relay(self, connection, connect):
        raise NotImplementedError

    async def copy(self, connection, upstream):
        while True:
            data = await connection.reader.read(65536)
            if not data:
                return
            upstream.write(data)


class ProxyServer(_Relay):
    """Forwards http:// requests, and tunnels what comes by CONNECT."""

    async def relay(self, connection, connect):
        upstream = None
        while True:
            first, headers = await read_head(connection.reader)
            method, target, version = first.split(" ")
            if method == "CONNECT":
                host, _, port = target.rpartition(":")
                upstream = await connect(host, int(port))
                connection.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await self.copy(connection, upstream)
                return
            _, _, rest = target.partition("://")
            authority, _, path = rest.partition("/")
            if upstream is None:
                host, _, port = authority.rpartition(":")
                upstream = await connect(host, int(port))
            lines = ["%s /%s %s" % (method, path, version)]
            lines += ["%s: %s" % item for item in headers.items()]
            upstream.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
            async for data, _ in read_body(connection.reader, headers):
                upstream.write(data)


class SOCKSServer(_Relay):
    """SOCKS5 without authentication."""

    scheme = "socks5"

    async def relay(self, connection, connect):
        reader = connection.reader
        _, methods = await reader.readexactly(2)
        await reader.readexactly(methods)
        connection.write(b"\x05\x00")
        _, _, _, kind = await reader.readexactly(4)
        if kind == 1:
            host = socket.inet_ntoa(await reader.readexactly(4))
        else:
            (length,) = await reader.readexactly(1)
            host = (await reader.readexactly(length)).decode()
        port = int.from_bytes(await reader.readexactly(2), "big")
        upstream = await connect(host, port)
        connection.write(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
        await self.copy(connection, upstream)


class Servers:
    """All of them, each started when it is first asked for."""

    def __init__(self, thread, directory):
        self._thread = thread
        self._directory = directory
        self._started = {}
        self._authority = None

    def _server(self, name, make):
        if name not in self._started:
            self._started[name] = make().start()
        return self._started[name]

    @property
    def _ca(self):
        if tls_problem():
            import pytest  # The benchmarks do without.

            pytest.skip(tls_problem())
        if self._authority is None:
            with warnings.catch_warnings():
                # On Python 3.6 and 3.7 cryptography says that they are old.
                warnings.simplefilter("ignore")
                import trustme

                self._authority = trustme.CA()
        return self._authority

    def _server_context(self, *protocols):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(list(protocols))
        self._ca.issue_cert("127.0.0.1", "localhost").configure_cert(context)
        return context

    def client_context(self):
        """A context for clients; a new one each time, as httpcore sets its ALPN protocols."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # Without the authorities of this machine.
        if not tls_problem():
            self._ca.configure_trust(context)
        return context

    @property
    def plain(self):
        return self._server("plain", lambda: HTTP1Server(self._thread))

    @property
    def tls(self):
        context = lambda: self._server_context("http/1.1")  # noqa: E731
        return self._server("tls", lambda: HTTP1Server(self._thread, tls=context()))

    @property
    def http2(self):
        context = lambda: self._server_context("h2")  # noqa: E731
        return self._server("http2", lambda: HTTP2Server(self._thread, tls=context()))

    @property
    def uds(self):
        path = os.path.join(self._directory, "socket")
        return self._server("uds", lambda: HTTP1Server(self._thread, uds=path))

    @property
    def proxy(self):
        return self._server("proxy", lambda: ProxyServer(self._thread))

    @property
    def socks(self):
        return self._server("socks", lambda: SOCKSServer(self._thread))

    def stop(self):
        # The proxies go first: they hold connections to the others.
        for name in sorted(self._started, key=lambda name: name not in ("proxy", "socks")):
            self._started[name].stop()


@contextlib.contextmanager
def serve():
    directory = tempfile.mkdtemp()
    try:
        with LoopThread() as thread:
            servers = Servers(thread, directory)
            try:
                yield servers
            finally:
                servers.stop()
    finally:
        shutil.rmtree(directory)
