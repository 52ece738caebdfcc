"""What a request costs when nothing goes wrong, in instructions.

    PYTHONPATH=src:. python -m tests.benchmarks.cost            # the table; minutes
    PYTHONPATH=src:. python -m tests.benchmarks.cost --import   # what the import adds

needs valgrind, on x86-64. The instructions of two run lengths are counted, and their difference is
divided by the difference of the lengths: what start-up and warm-up cost falls out. The clock stands
still meanwhile, the garbage collector is off, and nothing suspends: transports answer at once, and
pools talk to a peer in memory. The figures are the same each time. Where objects happen to lie on the
heap changes a request by a thousand instructions or two, so all variants of a case take turns in one
process, each several times with a new client, and the medians count; "spread" is how far the figures
of httpx as it is lie apart.

Compared are: httpx as it is, a bare `wrapt` wrapper around `send` that only awaits, `patch()`, and
`SafeAsyncClient` (`SafeClient` in the sync half). On a fixed httpx the last two must cost nothing.
"""

import argparse
import asyncio
import collections
import concurrent.futures
import contextlib
import ctypes
import gc
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time

MODULE = "tests.benchmarks.cost"
VARIANTS = ["plain", "wrapper", "patch", "safe"]
ROUNDS = 5
WARM_UP = 1100  # From 1024 calls on Python 3.8 to 3.10 cache lookups.
LENGTHS = (20, 60)
HOST = "https://stub.test"

Case = collections.namedtuple("Case", "name kind path stream is_async")
CASES = [
    Case("plain", "stub", "/", False, True),
    Case("streamed", "stub", "/", True, True),
    Case("redirected", "stub", "/redirect", False, True),
    Case("own aclose()", "closing", "/", False, True),
    Case("pool, HTTP/1.1", "http1", "/", False, True),
    Case("pool, HTTP/2", "http2", "/", False, True),
    Case("sync plain", "stub", "/", False, False),
    Case("sync streamed", "stub", "/", True, False),
    Case("sync redirected", "stub", "/redirect", False, False),
    Case("sync pool, HTTP/1.1", "http1", "/", False, False),
    Case("sync pool, HTTP/2", "http2", "/", False, False),
]


# -- In the process that is measured -----------------------------------------------------------


class Valgrind:
    """Asks the valgrind that this process runs in to count, as callgrind.h does."""

    DUMP, START = 0x43540000, 0x43540004
    # mov rax, rdi; xor edx, edx; rol rdi, 3; rol rdi, 13; rol rdi, 61; rol rdi, 51;
    # xchg rbx, rbx; mov rax, rdx; ret
    CODE = bytes.fromhex("4889f831d248c1c70348c1c70d48c1c73d48c1c7334887db4889d0c3")

    def __init__(self):
        access = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        self._memory = mmap.mmap(-1, mmap.PAGESIZE, prot=access)
        self._memory.write(self.CODE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._call = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(address)
        self._dump = (ctypes.c_uint64 * 6)(self.DUMP)

    def start(self):
        self._call((ctypes.c_uint64 * 6)(self.START))

    def stop(self):
        self._call((ctypes.c_uint64 * 6)(self.START + 1))

    def dump(self):
        """Write down what was counted since the last time."""
        self._call(self._dump)


@contextlib.contextmanager
def client_classes(variant):
    import httpx

    client = httpx._client
    classes = httpx.AsyncClient, httpx.Client
    before = client.AsyncClient.send, client.Client.send
    if variant == "wrapper":
        import wrapt

        async def awaiting(wrapped, instance, args, kwargs):
            return await wrapped(*args, **kwargs)

        def calling(wrapped, instance, args, kwargs):
            return wrapped(*args, **kwargs)

        wrapt.wrap_function_wrapper(client, "AsyncClient.send", awaiting)
        wrapt.wrap_function_wrapper(client, "Client.send", calling)
        yield classes
        client.AsyncClient.send, client.Client.send = before
    elif variant == "patch":
        import httpx_cancel_safe

        with httpx_cancel_safe.patched():
            yield classes
    elif variant == "safe":
        import httpx_cancel_safe

        yield httpx_cancel_safe.SafeAsyncClient, httpx_cancel_safe.SafeClient
    else:
        yield classes
    assert (client.AsyncClient.send, client.Client.send) == before


def make_client(client_class, case):
    from . import fakes

    options = {"follow_redirects": True} if fakes.HTTPX >= (0, 20) else {}
    transport = fakes.transport(case.kind, case.is_async)
    return client_class(transport=transport, trust_env=False, **options)


async def requests_async(client, case, number):
    for _ in range(number):
        if case.stream:
            async with client.stream("GET", HOST + case.path) as response:
                async for _ in response.aiter_bytes():
                    pass
        else:
            response = await client.get(HOST + case.path)
        assert response.status_code == 200


def requests_sync(client, case, number):
    for _ in range(number):
        if case.stream:
            with client.stream("GET", HOST + case.path) as response:
                for _ in response.iter_bytes():
                    pass
        else:
            response = client.get(HOST + case.path)
        assert response.status_code == 200


def measure(name):
    """One case, all variants; `count_case` knows what the dumps are."""
    (case,) = [case for case in CASES if case.name == name]
    valgrind = Valgrind()
    gc.disable()
    for place, variant in enumerate(VARIANTS * ROUNDS):
        warm_up = WARM_UP if place < len(VARIANTS) else WARM_UP // 10
        with client_classes(variant) as classes:
            client = make_client(classes[0 if case.is_async else 1], case)
            loop = asyncio.new_event_loop()
            loop.run_until_complete(in_one_step(client, case, valgrind, warm_up))
            loop.run_until_complete(client.aclose()) if case.is_async else client.close()
            loop.close()


async def in_one_step(client, case, valgrind, warm_up):
    async def requests(number):
        if case.is_async:
            await requests_async(client, case, number)
        else:
            requests_sync(client, case, number)

    clocks = time.monotonic, time.perf_counter, time.time
    # The difference of two times would have more or fewer digits each time.
    time.monotonic = time.perf_counter = time.time = float
    await requests(warm_up)
    gc.collect()
    valgrind.start()
    for length in (1,) + LENGTHS:
        valgrind.dump()
        await requests(length)
    valgrind.dump()
    valgrind.stop()
    time.monotonic, time.perf_counter, time.time = clocks


# -- In the process that measures --------------------------------------------------------------


def environment():
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in os.environ}
    return dict(kept, PYTHONHASHSEED="0", PYTHONDONTWRITEBYTECODE="1", LC_ALL="C.UTF-8")


def total(path):
    with open(path) as file:
        for line in file:
            if line.startswith(("totals:", "summary:")):
                return int(line.split()[1])
    raise ValueError("no total in " + path)


def count_case(case):
    """Instructions a request for each variant, in a process of its own."""
    with tempfile.TemporaryDirectory() as directory:
        out = os.path.join(directory, "out")
        subprocess.check_output(
            ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--callgrind-out-file=" + out]
            + [sys.executable, "-c", "import {0}; {0}.measure({1!r})".format(MODULE, case.name)],
            env=environment(),
            stderr=subprocess.STDOUT,
        )
        counts = {variant: [] for variant in VARIANTS}
        for place, variant in enumerate(VARIANTS * ROUNDS):
            # Four dumps each: what came before, a first request, then one a run length.
            parts = ["%s.%d" % (out, 4 * place + part) for part in (3, 4)]
            shorter, longer = map(total, parts)
            counts[variant].append((longer - shorter) / (LENGTHS[1] - LENGTHS[0]))
        return counts


def table(cases, jobs):
    print("| instructions a request | httpx | spread | bare wrapper | patch() | Safe client |", end="")
    print(" patch() / wrapper | Safe / wrapper |")
    print("| --- |" + " --- |" * 7, flush=True)
    with concurrent.futures.ThreadPoolExecutor(jobs) as executor:
        for case, counts in zip(cases, executor.map(count_case, cases)):
            medians = (statistics.median(counts[name]) for name in VARIANTS)
            plain, wrapper, patch, safe = medians
            spread = max(counts["plain"]) - min(counts["plain"])
            wrapper, patch, safe = wrapper - plain, patch - plain, safe - plain
            cells = ["{:,.0f}".format(plain), "{:,.0f}".format(spread)]
            cells += ["{:+,.0f}".format(extra) for extra in (wrapper, patch, safe)]
            cells += ["{:.2f}".format(extra / wrapper) for extra in (patch, safe)]
            print("| " + " | ".join([case.name] + cells) + " |", flush=True)


def count_import(statement):
    with tempfile.TemporaryDirectory() as directory:
        out = os.path.join(directory, "out")
        subprocess.check_call(
            ["valgrind", "--tool=callgrind", "--callgrind-out-file=" + out]
            + [sys.executable, "-c", statement],
            env=environment(),
            stderr=subprocess.DEVNULL,
        )
        return total(out)


def import_table(jobs):
    statements = ["pass", "import httpx", "import httpx, httpx_cancel_safe"]
    statements.append(statements[-1] + "; httpx_cancel_safe.patch()")
    subprocess.check_call([sys.executable, "-c", statements[-1]])  # Compiles what is not.
    with concurrent.futures.ThreadPoolExecutor(jobs) as executor:
        nothing, httpx, both, patched = executor.map(count_import, statements)
    print("import httpx: {:,}".format(httpx - nothing))
    for name, value in (("import httpx_cancel_safe", both), ("and patch()", patched)):
        share = (value - httpx) / (httpx - nothing)
        print("{}: {:+,} ({:+.2%})".format(name, value - httpx, share))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--import", action="store_true", dest="imports")
    parser.add_argument("--jobs", type=int, default=2, metavar="N")
    parser.add_argument("cases", nargs="*", help="all, or some of: " + "; ".join(c.name for c in CASES))
    options = parser.parse_args()
    if options.imports:
        import_table(options.jobs)
    else:
        chosen = [case for case in CASES if not options.cases or case.name in options.cases]
        table(chosen, options.jobs)


if __name__ == "__main__":
    main()
