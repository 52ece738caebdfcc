"""What a request costs that ends well, in instructions.

    python -m tests.benchmarks cost [CASE ...]

Needs valgrind, on x86-64. Two lengths of a run are counted, and the difference divided: what start-up and warm-up cost
falls out. Compared are httpx as it is; a bare `wrapt` wrapper around `send` that only awaits; `patch()`; and the Safe
classes. Where objects happen to lie on the heap changes a request by a thousand instructions or two, so they take
turns in one process, each several times with a new client, and the medians count. "spread" is how far the figures of
plain httpx lie apart. A stub is a transport that answers at once; a pool talks to a server on loopback.
"""

import asyncio
import contextlib
import ctypes
import gc
import mmap
import pathlib
import re
import statistics
import sys
import tempfile

import wrapt

import httpx_cancel_safe

from ..support.compat import HTTPX, httpx
from ..support.transports import Answers, AsyncBody, Body, SyncAnswers
from . import common

VARIANTS = ["plain", "wrapper", "patch", "safe"]
ROUNDS = 3
WARM_UP = 1100 if sys.version_info < (3, 11) else 200  # From 1024 calls on, Python 3.8 to 3.10 cache lookups.
LENGTHS = (10, 40)
CASES = {  # transport, whether the response is streamed, whether the client is async
    "stub": ("stub", False, True),
    "stub, streamed": ("stub", True, True),
    "pool, HTTP/1.1": ("http1", False, True),
    "pool, HTTP/2": ("http2", False, True),
    "sync stub": ("stub", False, False),
    "sync pool, HTTP/1.1": ("http1", False, False),
    "sync pool, HTTP/2": ("http2", False, False),
}


async def answer(reader, writer):
    """Speak HTTP/1.1, or HTTP/2 with a client that knows that it may."""
    data = await reader.readuntil(b"\r\n\r\n")
    while not data.startswith(b"PRI "):
        writer.write(common.ANSWER)
        data = await reader.readuntil(b"\r\n\r\n")
    from h2 import config, connection, events

    h2 = connection.H2Connection(config.H2Configuration(client_side=False, header_encoding=None))
    h2.initiate_connection()
    while data:
        for event in h2.receive_data(data):
            if isinstance(event, events.StreamEnded):
                h2.send_headers(event.stream_id, [(b":status", b"200")])
                h2.send_data(event.stream_id, common.BODY, end_stream=True)
        writer.write(h2.data_to_send())
        data = await reader.read(65536)


class Valgrind:
    """Asks the valgrind that this process runs in to count, as callgrind.h does."""

    # mov rax, rdi; xor edx, edx; rol rdi, 3; rol rdi, 13; rol rdi, 61; rol rdi, 51; xchg rbx, rbx; mov rax, rdx; ret
    CODE = bytes.fromhex("4889f831d248c1c70348c1c70d48c1c73d48c1c7334887db4889d0c3")

    def __init__(self):
        self._memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._memory.write(self.CODE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        call = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(address)
        blocks = [(ctypes.c_uint64 * 6)(0x43540000 + request) for request in (0, 4, 5)]
        self.dump, self.start, self.stop = [lambda block=block: call(block) for block in blocks]


def client_classes():
    """Return for each variant the class of async clients and of sync ones."""

    async def awaiting(wrapped, instance, args, kwargs):
        return await wrapped(*args, **kwargs)

    def calling(wrapped, instance, args, kwargs):
        return wrapped(*args, **kwargs)

    class Awaiting(httpx.AsyncClient):
        send = wrapt.FunctionWrapper(httpx.AsyncClient.send, awaiting)

    class Calling(httpx.Client):
        send = wrapt.FunctionWrapper(httpx.Client.send, calling)

    plain = httpx.AsyncClient, httpx.Client
    safe = httpx_cancel_safe.SafeAsyncClient, httpx_cancel_safe.SafeClient
    return {"plain": plain, "wrapper": (Awaiting, Calling), "patch": plain, "safe": safe}


def make_transport(name, is_async):
    if name == "stub":
        return Answers(AsyncBody()) if is_async else SyncAnswers(Body())
    if name == "http2":
        return (httpx.AsyncHTTPTransport if is_async else httpx.HTTPTransport)(http1=False, http2=True)
    return None


async def send(client, url, is_streamed, is_async, number):
    for _ in range(number):
        if is_streamed:
            async with client.stream("GET", url) as response:
                async for _ in response.aiter_bytes():
                    pass
        else:
            response = (await client.get(url)) if is_async else client.get(url)
        assert response.status_code == 200


def child(case, url):
    """Run one case with all variants; `count` knows what the dumps are."""
    transport, is_streamed, is_async = CASES[case]
    valgrind = Valgrind()
    gc.disable()

    async def main(kinds, warm_up):
        client = kinds[0 if is_async else 1](trust_env=False, transport=make_transport(transport, is_async))
        await send(client, url, is_streamed, is_async, warm_up)
        gc.collect()
        valgrind.start()
        for length in (1, *LENGTHS):
            valgrind.dump()
            await send(client, url, is_streamed, is_async, length)
        valgrind.dump()
        valgrind.stop()
        (await client.aclose()) if is_async else client.close()

    classes = client_classes()
    for place, variant in enumerate(VARIANTS * ROUNDS):
        with httpx_cancel_safe.patched() if variant == "patch" else contextlib.ExitStack():
            warm_up = WARM_UP if place < len(VARIANTS) else WARM_UP // 10
            # Not by anyio.run(), whose tasks are scopes.
            asyncio.new_event_loop().run_until_complete(main(classes[variant], warm_up))


def count(case, url):
    """Return for each variant the instructions of a request, several times."""
    totals = {}
    with tempfile.TemporaryDirectory() as directory:
        valgrind = ["valgrind", "--quiet", "--tool=callgrind", "--instr-atstart=no"]
        valgrind.append("--callgrind-out-file=%s/out" % directory)
        common.run_child("cost", case, url, before=valgrind)
        for path in pathlib.Path(directory).glob("out.*"):
            line = re.search("^(totals|summary): ([0-9]+)", path.read_text(), re.MULTILINE)
            totals[int(path.suffix[1:])] = int(line.group(2))
    found = {variant: [] for variant in VARIANTS}
    for place, variant in enumerate(VARIANTS * ROUNDS):
        # Four dumps each: what came before, a first request, then one a length.
        shorter, longer = totals[4 * place + 3], totals[4 * place + 4]
        found[variant].append((longer - shorter) / (LENGTHS[1] - LENGTHS[0]))
    return found


def main():
    parser = common.parser(__doc__)
    parser.add_argument("cases", nargs="*", help="all, or some of: " + "; ".join(CASES))
    options = parser.parse_args()
    with common.server("cost") as (url,):
        common.head("instructions a request", "plain", "spread", "bare wrapper", "patch()", "Safe class")
        for case in options.cases or CASES:
            if CASES[case][0] == "http2" and HTTPX < (0, 20):
                continue  # Without TLS, its pools cannot be told that the server speaks HTTP/2.
            counts = count(case, url)
            plain = statistics.median(counts["plain"])
            extras = [statistics.median(counts[variant]) - plain for variant in VARIANTS[1:]]
            figures = [plain, max(counts["plain"]) - min(counts["plain"])]
            cells = ["{:+,.0f} ({:+.1%})".format(extra, extra / plain) for extra in extras]
            common.row(case, *["{:,.0f}".format(figure) for figure in figures], *cells)
