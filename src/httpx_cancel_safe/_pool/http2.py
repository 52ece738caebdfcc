"""HTTP/2 on httpcore 0.11 to 0.14: a request that ends takes its stream with it, and nothing else."""

# mypy: ignore-errors

import asyncio
import contextlib
import sys
import time
from typing import Any, Dict

import h2.errors
import h2.exceptions
from httpcore import RemoteProtocolError

from .._closing import in_background, run_whole
from .._scopes import library
from .aio import Turns
from .sockets import abort


class Slots(Turns):
    """Limits the streams open at once. `release()` does nothing, as the end of a stream gives back each place."""

    async def release(self) -> None:
        pass


class AsyncHTTP2:
    """One step ends a stream: its events, its place, its flow control, and the peer's work on it."""

    _numbers: Dict[Any, int]  # The stream of each request.

    # httpcore 0.14 sets one of its own.
    _max_streams_semaphore = property(lambda self: self._slots, lambda self, value: None)

    def begin(self: Any) -> None:
        """Take over a connection that no request uses, and whose class has just become this one."""
        self._numbers = {}
        self._slots = Slots(100)  # As in httpcore.
        self._network_stream = WholeWrites(self._network_stream)

    def end_stream_of(self: Any, exchange: Any) -> None:
        """End what an exchange has on this connection, if anything is left. Never waits."""
        self._end_stream(self._numbers.pop(exchange.key, None))

    def _end_stream(self: Any, number: Any) -> None:
        events = self._events.pop(number, None)
        if events is None:
            return
        getattr(self, "_streams", {}).pop(number, None)
        self._slots.give_back()
        stream = self._h2_state.streams.get(number)
        try:
            for event in events:
                if getattr(event, "flow_controlled_length", 0):
                    self._h2_state.acknowledge_received_data(event.flow_controlled_length, number)
            if stream is not None and not stream.closed:
                self._h2_state.reset_stream(number, h2.errors.ErrorCodes.CANCEL)
        except h2.exceptions.ProtocolError:
            self._network_stream.has_failed = True
        if self._h2_state._data_to_send and not self._network_stream.has_failed and library():
            in_background(self._flush())
        if not self._events and self._state.name != "CLOSED":
            self._state = type(self._state).IDLE
            if getattr(self, "_keepalive_expiry", None) is not None:
                self._expire_at = self._should_expire_at = time.monotonic() + self._keepalive_expiry

    async def _flush(self: Any) -> None:
        """Write what is to be sent. Raises nothing: whoever uses the connection next will see it."""
        with contextlib.suppress(Exception):
            await self._network_stream.write(self._h2_state.data_to_send(), self._network_stream.timeout)

    # What httpcore 0.14 calls.

    async def _send_connection_init(self: Any, request: Any) -> None:
        self._sent_connection_init = True  # Now, as the write is whole even if this request is cancelled.
        await super()._send_connection_init(request)

    async def _send_request_headers(self: Any, request: Any, stream_id: int) -> None:
        self._numbers[request] = stream_id
        await super()._send_request_headers(request=request, stream_id=stream_id)

    async def _read_incoming_data(self: Any, request: Any) -> Any:
        try:
            return await super()._read_incoming_data(request)
        except asyncio.CancelledError:
            self._forget_cancel()
            raise
        except Exception:
            self._network_stream.has_failed = True
            raise

    async def _write_outgoing_data(self: Any, request: Any) -> None:
        try:
            await super()._write_outgoing_data(request)
        except asyncio.CancelledError:
            self._forget_cancel()
            raise

    def _forget_cancel(self: Any) -> None:
        """Before Python 3.8 it is an Exception, which httpcore would raise for each stream."""
        if sys.version_info < (3, 8):
            self._read_exception = self._write_exception = None
            self._connection_error = False

    async def _response_closed(self: Any, stream_id: int) -> None:
        self._end_stream(stream_id)


class LegacyAsyncHTTP2(AsyncHTTP2):
    """For httpcore 0.11 to 0.13."""

    def begin(self: Any) -> None:
        super().begin()
        self._initialization_lock, self._read_lock = Turns(), Turns()

    async def send_connection_init(self: Any, timeout: Any) -> None:
        self._sent_connection_init = True  # Now, as the write is whole even if this request is cancelled.
        await super().send_connection_init(timeout)

    async def send_headers(self: Any, stream_id: int, headers: Any, end_stream: bool, timeout: Any) -> None:
        self._numbers[timeout.get("key")] = stream_id
        await super().send_headers(stream_id, headers, end_stream, timeout)

    async def receive_events(self: Any, timeout: Any) -> None:
        try:
            data = await self.socket.read(self.READ_NUM_BYTES, timeout)
            if data == b"":
                raise RemoteProtocolError("Server disconnected")
            events = self._h2_state.receive_data(data)
        except Exception as exc:
            self._network_stream.has_failed = True
            if isinstance(exc, asyncio.CancelledError):
                # Before Python 3.8. wait_for() goes on reading in a task of its own, and what that reads is lost.
                abort(self.socket)
            raise
        for event in events:
            number = getattr(event, "stream_id", 0)
            if hasattr(event, "error_code") and not number:
                raise RemoteProtocolError(event)
            if number in self._events:
                self._events[number].append(event)
        await self.socket.write(self._h2_state.data_to_send(), timeout)

    async def wait_for_event(self: Any, stream_id: int, timeout: Any) -> Any:
        events = self._events[stream_id]
        while not events:
            async with self.read_lock:
                if not events:
                    await self.receive_events(timeout)
        event = events.pop(0)
        if hasattr(event, "error_code"):  # A stream that is reset fails alone.
            raise RemoteProtocolError(event)
        return event

    async def close_stream(self: Any, stream_id: int) -> None:
        self._end_stream(stream_id)


class WholeWrites:
    """A network stream whose writes run to their end, even if the task that waits for one is cancelled."""

    timeout: Any = None  # That of the last write: a number, and before httpcore 0.14 a dict.
    has_failed = False  # Once it could not be read or written, or is out of step.

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self._unsent = b""
        self._turns = Turns()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    async def write(self, data: bytes, timeout: Any = None) -> None:
        if data:
            self._unsent += data
            self.timeout = timeout
            await run_whole(self._write_unsent())

    async def _write_unsent(self) -> None:
        # trio starts tasks in any order: the one that runs first writes it all.
        async with self._turns:
            data, self._unsent = self._unsent, b""
            try:
                if data:
                    await self.stream.write(data, self.timeout)
            except Exception:
                self.has_failed = True
                raise
