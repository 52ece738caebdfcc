"""A network that hangs, under a real httpcore pool: it stands in for httpcore's network backend."""

import time

import anyio

from .compat import pool_of

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"
FOREVER = 999


class Stream:
    """What the async and the sync stream share, under the names of all generations of httpcore."""

    def __init__(self, network):
        self.network = network
        self.incoming = []
        self.is_open = True
        network.streams.append(self)

    def get_extra_info(self, info):
        return False if info == "is_readable" else None

    def get_http_version(self):
        return "HTTP/1.1"

    def is_readable(self):
        return False

    is_connection_dropped = is_readable

    def take(self, data):
        assert self.is_open
        if data.endswith(b"\r\n\r\n"):
            self.incoming += [HEAD, b"hello"]

    def give(self):
        assert self.is_open
        return self.incoming.pop(0)


class AsyncStream(Stream):
    async def read(self, size, timeout=None):
        await self.network.point("read", self)
        await anyio.sleep(0)
        return self.give()

    async def write(self, data, timeout=None):
        await self.network.point("write")
        await anyio.sleep(0)
        self.take(data)

    async def aclose(self):
        self.is_open = False


class SyncStream(Stream):
    def read(self, size, timeout=None):
        self.network.point("read", self)
        return self.give()

    def write(self, data, timeout=None):
        self.network.point("write")
        self.take(data)

    def close(self):
        self.is_open = False


class SyncNetwork:
    """`hangs` names the phase in which it hangs: connect, write, read (no answer) or body (half an answer)."""

    def __init__(self, hangs=None, raises=None):
        self.hangs = hangs
        self.raises = raises
        self.reached = 0
        self.streams = []

    @property
    def open(self):
        return sum(stream.is_open for stream in self.streams)

    def is_due(self, phase, stream=None):
        if phase == "read" and stream.incoming[:1] != [HEAD]:
            phase = "body"
        self.reached += phase == self.hangs
        return phase == self.hangs

    def point(self, phase, stream=None):
        if self.is_due(phase, stream):
            if self.raises is not None:
                raise self.raises
            time.sleep(FOREVER)

    def connect_tcp(self, *args, **options):
        self.point("connect")
        return SyncStream(self)

    def open_tcp_stream(self, *args, **options):
        return self.connect_tcp()

    def under(self, client):
        """Make this the network of a client, and return the client."""
        pool = pool_of(client)
        name = "_network_backend" if hasattr(pool, "_network_backend") else "_backend"
        self.own = getattr(pool, name)
        setattr(pool, name, self)
        return client

    def __getattr__(self, name):
        if name == "own":
            raise AttributeError(name)
        return getattr(self.own, name)  # Locks, semaphores and the time, before httpcore 0.14.


class Network(SyncNetwork):
    async def point(self, phase, stream=None):
        if self.is_due(phase, stream):
            await anyio.sleep(FOREVER)

    async def connect_tcp(self, *args, **options):
        await self.point("connect")
        return AsyncStream(self)
