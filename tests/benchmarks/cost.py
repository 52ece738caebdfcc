"""What a request costs when nothing goes wrong, in instructions.

    PYTHONPATH=src:. python -m tests.benchmarks.cost            # the table; minutes
    PYTHONPATH=src:. python -m tests.benchmarks.cost --import   # what the import adds

needs valgrind. The instructions of two run lengths are counted in one process, and their difference
is divided by the difference of the lengths: what start-up and warm-up cost falls out, and the figures
are the same each time. The clock stands still meanwhile, the garbage collector is off, and nothing
suspends: transports answer at once, and pools talk to a peer in memory.

Compared are: httpx as it is, a bare `wrapt` wrapper around `send` that only awaits, `patch()`, and
`SafeAsyncClient` (`SafeClient` in the sync half). On a fixed httpx the last two must cost nothing.
"""

import argparse
import asyncio
import ctypes
import mmap
import collections
import concurrent.futures
import gc
import glob
import os
import subprocess
import sys
import tempfile
import time

MODULE = "tests.benchmarks.cost"
VARIANTS = ["plain", "wrapper", "patch", "safe"]
WARM_UP = 1100  # Above 1024 calls Python 3.8 to 3.10 begin to cache lookups.
LENGTHS = (20, 60)
HOST = "https://stub.test"

Case = collections.namedtuple("Case", "name kind path stream is_async")
CASES = [
    Case("plain", "stub", "/", False, True),
    Case("streamed", "stub", "/", True, True),
    Case("redirected", "stub", "/redirect", False, True),
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
    """Speaks to the valgrind that this process runs in (callgrind.h), on x86-64."""

    ZERO, START, STOP = 0x43540001, 0x43540004, 0x43540005
    DUMP = 0x43540000
    # mov rax, rdi; xor edx, edx; rol rdi, 3; rol rdi, 13; rol rdi, 61; rol rdi, 51;
    # xchg rbx, rbx; mov rax, rdx; ret
    CODE = bytes.fromhex("4889f831d248c1c70348c1c70d48c1c73d48c1c7334887db4889d0c3")

    def __init__(self):
        self._memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._memory.write(self.CODE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        function = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(address)
        self._requests = {
            request: (ctypes.c_uint64 * 6)(request) for request in (self.ZERO, self.START, self.STOP, self.DUMP)
        }
        self._ask = function

    def ask(self, request):
        self._ask(self._requests[request])


def client_classes(variant):
    import httpx

    classes = httpx.AsyncClient, httpx.Client
    if variant == "wrapper":
        import wrapt

        async def awaiting(wrapped, instance, args, kwargs):
            return await wrapped(*args, **kwargs)

        def calling(wrapped, instance, args, kwargs):
            return wrapped(*args, **kwargs)

        wrapt.wrap_function_wrapper(httpx._client, "AsyncClient.send", awaiting)
        wrapt.wrap_function_wrapper(httpx._client, "Client.send", calling)
    elif variant == "patch":
        import httpx_cancel_safe

        httpx_cancel_safe.patch()
    elif variant == "safe":
        import httpx_cancel_safe

        classes = httpx_cancel_safe.SafeAsyncClient, httpx_cancel_safe.SafeClient
    return classes


def make_client(variant, case):
    from . import fakes

    client_class = client_classes(variant)[0 if case.is_async else 1]
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


def measure(variant, name):
    (case,) = [case for case in CASES if case.name == name]
    valgrind = Valgrind()
    client = make_client(variant, case)
    loop = asyncio.new_event_loop()

    def requests(number):
        if case.is_async:
            return requests_async(client, case, number)
        requests_sync(client, case, number)

    async def in_one_step():
        clocks = time.monotonic, time.perf_counter, time.time
        # The difference of two times would have more or fewer digits each time.
        time.monotonic = time.perf_counter = time.time = float
        work = requests(WARM_UP)
        if work is not None:
            await work
        gc.collect()
        valgrind.ask(valgrind.START)
        for length in (1,) + LENGTHS:
            valgrind.ask(valgrind.DUMP)
            work = requests(length)
            if work is not None:
                await work
        valgrind.ask(valgrind.DUMP)
        valgrind.ask(valgrind.STOP)
        time.monotonic, time.perf_counter, time.time = clocks

    gc.disable()
    loop.run_until_complete(in_one_step())
    loop.run_until_complete(client.aclose()) if case.is_async else client.close()
    loop.close()


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


def count_case(variant, case, shift=0):
    """Instructions a request, in a process of its own."""
    with tempfile.TemporaryDirectory() as directory:
        out = os.path.join(directory, "out")
        subprocess.check_output(
            ["setarch", "-R", "valgrind", "--tool=callgrind", "--instr-atstart=no"]
            + ["--callgrind-out-file=" + out, sys.executable, "-c"]
            + [
                "junk = [bytes(8 * (i % 60)) for i in range({})]; import {} as cost; "
                "cost.measure({!r}, {!r})".format(shift, MODULE, variant, case.name)
            ],
            env=environment(),
            stderr=subprocess.STDOUT,
        )
        # .1 is what came before the first mark, .2 a first request, then one a run length.
        shorter, longer = (total("%s.%d" % (out, part)) for part in (3, 4))
    return (longer - shorter) / (LENGTHS[1] - LENGTHS[0])


def table(cases, jobs):
    with concurrent.futures.ThreadPoolExecutor(jobs) as executor:
        futures = {
            (case, variant): executor.submit(count_case, variant, case)
            for case in cases
            for variant in VARIANTS
        }
        print("| instructions a request | httpx | bare wrapper | patch() | Safe client |", end="")
        print(" patch() / wrapper | Safe / wrapper |")
        print("| --- |" + " --- |" * 6, flush=True)
        for case in cases:
            plain, wrapper, patch, safe = (futures[case, name].result() for name in VARIANTS)
            wrapper, patch, safe = wrapper - plain, patch - plain, safe - plain
            cells = ["{:,.0f}".format(plain)]
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
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("cases", nargs="*", help="all, or some of: " + ", ".join(c.name for c in CASES))
    options = parser.parse_args()
    if options.measure:
        variant, name = options.measure
        (case,) = [case for case in CASES if case.name == name]
        measure(variant, case, lambda: print("ready", flush=True), sys.stdin.readline)
    elif options.imports:
        import_table(options.jobs)
    else:
        table([case for case in CASES if not options.cases or case.name in options.cases], options.jobs)


if __name__ == "__main__":
    main()
