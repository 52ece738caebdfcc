"""What both generations share: names, HTTP/2 streams, and calls that do not wait."""

import asyncio
from typing import Any, Callable, List

HANDLE = frozenset(
    ("handle_async_request", "handle_request", "arequest", "request")
)
# Where a socket is open already, and nobody else knows of it; and its name there.
HALF_OPEN = {
    "_connect": "stream",
    "open_tcp_stream": "stream",
    "open_uds_stream": "stream",
    "connect_tcp": "connected_stream",  # anyio's.
    "create_connection": "sock",  # The standard library's.
    "wait_for": "fut",  # asyncio's, for what it was to return.
}
H2_CANCEL = 8  # RFC 9113, section 7: the stream is no longer needed.


def run_now(result: Any) -> None:
    """Finish a coroutine of httpcore's that never waits; plain results are done already."""
    if hasattr(result, "send"):
        try:
            result.send(None)
        except StopIteration:
            return
        result.close()
        raise RuntimeError("httpcore waits where it did not")


def half_open(function: str, frame: Any) -> Any:
    """Return the socket that is open in such a frame and known nowhere else, or None."""
    found = frame.f_locals.get(HALF_OPEN[function])
    if function == "wait_for":
        # Before Python 3.8 it drops what was ready when the cancel came: a reader and a writer.
        result = result_of(found)
        found = result[1] if isinstance(result, tuple) else None
    return found


def result_of(future: Any) -> Any:
    """Return what a future has come to; None if nothing yet, if it failed, or if it is none."""
    is_ready = asyncio.isfuture(future) and future.done() and not future.cancelled()
    return future.result() if is_ready and future.exception() is None else None


def close_method(resource: Any, is_async: bool = True) -> Callable[[], Any]:
    """Return what closes `resource`; asyncio's writers have no `aclose()`, and wait to be read."""
    writer = getattr(resource, "stream_writer", None)
    if writer is not None:
        # While a TLS handshake is under way, its protocol has taken the transport over.
        protocol = writer.transport.get_protocol()
        transport = getattr(protocol, "_app_transport", None) or writer.transport

        def abort() -> None:
            transport.abort()
            transport.close()  # On Python 3.6 it complains when it is only aborted.

        return abort
    close = getattr(resource, "aclose", None) if is_async else None
    return close or resource.close  # type: ignore[no-any-return]


def is_begun(state: Any, lock: Any) -> bool:
    """Tell whether the preface is written or on its way; it must not come twice.

    It raises the window of the connection. Who holds `lock` goes on with it.
    """
    return state.inbound_flow_control_window > 65535 and not is_locked(lock)


def is_locked(lock: Any) -> bool:
    """Tell whether somebody holds a lock of httpcore's, which may not have been used yet."""
    inner = getattr(lock, "_lock", None)
    return inner is not None and bool(inner.locked())


def is_unfinished(state: Any, stream_id: Any) -> bool:
    """Tell whether an HTTP/2 stream is still open for its peer, or for us."""
    stream = None if state is None else state.streams.get(stream_id)
    return stream is not None and not stream.closed


def reset_stream(state: Any, stream_id: Any, events: List[Any]) -> None:
    """End one HTTP/2 stream for its peer; what was received counts as read.

    Else the peer goes on sending, and the window that all streams share runs dry
    (https://github.com/encode/httpcore/issues/943).
    """
    if is_unfinished(state, stream_id):
        for event in events:
            size = getattr(event, "flow_controlled_length", 0)
            if size:
                state.acknowledge_received_data(size, stream_id)
        state.reset_stream(stream_id, H2_CANCEL)
