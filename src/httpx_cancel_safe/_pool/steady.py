"""Writes on HTTP/2 connections that are done as a whole, and reads that lose nothing.

What one request writes may carry frames of others, and its headers have changed the
state of the compression that all share. A write cut short leaves the connection out of
step with its peer, and takes the neighbours down. So a cancel waits until it is done.

This must be there beforehand: pools with HTTP/2 get it when a guarded client first uses them.
"""

import asyncio
import math
import sys
from typing import Any, Dict

from .. import _closing
from ._common import result_of

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113, section 3.4.
_classes: Dict[type, type] = {}


class SteadyMixin:
    """A network stream of httpcore's whose writes are not interrupted."""

    close_timeout = 5.0
    is_out_of_step = False
    has_written = False

    def write(self, data: bytes, *args: Any, **kwargs: Any) -> Any:
        if not self.has_written:
            # The request that prepared it may have been cancelled before it could write:
            # then the next one has prepared it again, and both wait in the buffer.
            data = data[: len(PREFACE)] + data[len(PREFACE) :].replace(PREFACE, b"")
        work = super().write(data, *args, **kwargs)  # type: ignore[misc]
        return self._write_steadily(work) if data else work

    async def _write_steadily(self, work: Any) -> None:
        seconds = self.close_timeout
        if "trio" in sys.modules and _closing.library() == "trio":
            seconds = math.inf  # It cannot tell a cancel from none; httpx has a limit.
        effort = await _closing.uninterrupted(work, seconds)
        is_preface, self.has_written = not self.has_written, True
        if effort is not None:
            self.is_out_of_step = self.is_out_of_step or effort.timed_out
            if is_preface:
                effort.redeliver(None)  # Once httpcore has noted that it need not come again.
            else:
                await effort.let_cancel()

    async def aclose(self) -> None:
        try:
            await super().aclose()  # type: ignore[misc]
        except Exception as exc:
            # What is left of a cancelled stream may still arrive. From 0.13 on httpcore minds it no more.
            if type(exc).__name__ != "CloseError":
                raise


class OldPythonMixin(SteadyMixin):
    """One on which a cancel does what it does on later Pythons.

    `asyncio.wait_for()` dropped what it had read when it was cancelled
    (https://github.com/python/cpython/issues/81839): frames of neighbours, and the place where
    the next one begins. And before Python 3.8 a cancel is an Exception: httpcore 0.14 takes it
    for the end of the connection, and raises it in the neighbours' tasks.
    """

    unread = b""

    def read(self, *args: Any, **kwargs: Any) -> Any:
        if self.unread:
            return self._take_unread()
        return self._run(super().read(*args, **kwargs), sys._getframe(1))  # type: ignore[misc]

    def write(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(super().write(*args, **kwargs), sys._getframe(1))

    async def _take_unread(self) -> bytes:
        data, self.unread = self.unread, b""
        return data

    async def _run(self, work: Any, caller: Any) -> Any:
        try:
            return await work
        except asyncio.CancelledError as exc:
            traceback = exc.__traceback__
            while traceback is not None:
                data = result_of(traceback.tb_frame.f_locals.get("fut"))
                if isinstance(data, bytes):  # And not what an Event says that was waited for.
                    self.unread = data or self.unread
                traceback = traceback.tb_next
            if isinstance(exc, Exception):
                # Once httpcore has taken note of it, and before any neighbour has its turn.
                connection = caller.f_locals.get("self")
                asyncio.get_event_loop().call_soon(_forget, connection, exc)
            raise


def _forget(connection: Any, exc: BaseException) -> None:
    for name in ("_read_exception", "_write_exception"):
        if getattr(connection, name, None) is exc:
            setattr(connection, name, None)
            connection._connection_error = False


def make_steady(stream: Any, close_timeout: float) -> Any:
    """Make the writes of `stream` steady, in place, and return it."""
    kind = type(stream)
    if not issubclass(kind, SteadyMixin):
        if kind not in _classes:
            mixin = SteadyMixin
            if sys.version_info < (3, 10 if hasattr(stream, "stream_reader") else 8):
                mixin = OldPythonMixin
            _classes[kind] = type("Steady" + kind.__name__, (mixin, kind), {})
        try:
            stream.__class__ = _classes[kind]
            stream.close_timeout = close_timeout
        except (AttributeError, TypeError):
            pass  # A stream with slots of its own: it is only closed when out of step.
    return stream


class Backend:
    """A network backend of httpcore's whose HTTP/2 streams write steadily."""

    def __init__(self, backend: Any, http1: bool, close_timeout: float) -> None:
        self._backend = backend
        self._http1 = http1
        self._close_timeout = close_timeout

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    async def connect_tcp(self, *args: Any, **kwargs: Any) -> Any:
        return self._listed(await self._backend.connect_tcp(*args, **kwargs))

    async def connect_unix_socket(self, *args: Any, **kwargs: Any) -> Any:
        return self._listed(await self._backend.connect_unix_socket(*args, **kwargs))

    def _listed(self, stream: Any) -> Any:
        """Httpcore 0.14 asks the stream for TLS, and gets another one."""
        start_tls, http1, close_timeout = stream.start_tls, self._http1, self._close_timeout

        async def start_tls_steadily(*args: Any, **kwargs: Any) -> Any:
            secure = await start_tls(*args, **kwargs)
            ssl_object = secure.get_extra_info("ssl_object")
            chosen = None if ssl_object is None else ssl_object.selected_alpn_protocol()
            if chosen == "h2" or not http1:
                make_steady(secure, close_timeout)
            return secure

        stream.start_tls = start_tls_steadily
        return stream if http1 else make_steady(stream, close_timeout)

    async def open_tcp_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._counted(await self._backend.open_tcp_stream(*args, **kwargs))

    async def open_uds_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._counted(await self._backend.open_uds_stream(*args, **kwargs))

    def _counted(self, stream: Any) -> Any:
        if stream.get_http_version() == "HTTP/2" or not self._http1:
            make_steady(stream, self._close_timeout)
        return stream


def make_writes_steady(pool: Any, close_timeout: float) -> None:
    """Have a pool that speaks HTTP/2 write steadily on its connections to come."""
    if not getattr(pool, "_http2", False) or not hasattr(pool, "aclose"):
        return
    http1 = getattr(pool, "_http1", True)
    if hasattr(pool, "_network_backend"):
        if not isinstance(pool._network_backend, Backend):
            pool._network_backend = Backend(pool._network_backend, http1, close_timeout)
        return
    if "_add_to_pool" in pool.__dict__:
        return
    add_to_pool = type(pool)._add_to_pool

    async def add_to_pool_steadily(connection: Any, timeout: Any) -> None:
        # The backend of the connection, not of the pool: proxies do not pass theirs on.
        name = "_backend" if hasattr(connection, "_backend") else "backend"
        backend = Backend(getattr(connection, name), http1, close_timeout)
        setattr(connection, name, backend)
        if connection.socket is not None:  # A tunnel's.
            backend._counted(connection.socket)
        await add_to_pool(pool, connection, timeout)

    pool._add_to_pool = add_to_pool_steadily
