"""What the benchmarks share: a server and measured clients, each in a process of its own, and tables.

A client is of one of these variants: "plain" httpx; httpx with the patch as it is "now"; or "httpx2", in another
environment.
"""

import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import resource
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
BODY = b"x" * 2048
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY


def raise_file_limit():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def serve(answer, ports):
    """Let answer(reader, writer) talk to each client until stdin ends; print the ports first."""

    async def talk(reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await answer(reader, writer)
        writer.close()

    async def main():
        loop.set_exception_handler(lambda loop, context: None)  # Clients go away all the time.
        servers = [await asyncio.start_server(talk, "127.0.0.1", 0, backlog=4096) for _ in range(ports)]
        print(json.dumps([one.sockets[0].getsockname()[1] for one in servers]), flush=True)
        await loop.run_in_executor(None, sys.stdin.read)
        os._exit(0)

    raise_file_limit()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())


@contextlib.contextmanager
def server(name, ports=1):
    """Run `answer()` of a benchmark in a process of its own; yield its URLs."""
    command = [sys.executable, "-m", "tests.benchmarks", name, "--answer", str(ports)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=str(ROOT)) as process:
        yield ["http://127.0.0.1:%d/" % port for port in json.loads(process.stdout.readline().decode())]
        process.stdin.close()


def run_child(name, *arguments, python=sys.executable, before=()):
    """Return what `child(*arguments)` of a benchmark returns in a new process."""
    environment = dict(os.environ, PYTHONHASHSEED="0")
    command = [*before, python, "-W", "ignore", "-m", "tests.benchmarks", name, "--child", json.dumps(arguments)]
    return json.loads(subprocess.check_output(command, cwd=str(ROOT), env=environment).decode())


@contextlib.contextmanager
def service(command, **environment):
    """Run a command that serves on a listening socket, whose number replaces FD in it; yield its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        descriptor = listener.fileno()
        command = [part.replace("FD", str(descriptor)) for part in command]
        # asyncio complains there of each socket that its peer has left.
        options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "pass_fds": [descriptor]}
        with subprocess.Popen(command, cwd=str(ROOT), env=dict(os.environ, **environment), **options) as process:
            try:
                yield listener.getsockname()
            finally:
                process.terminate()
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:  # hypercorn 0.17 can spin for ever after a broken handshake.
                    process.kill()


def parser(description, rounds=None, compares=False):
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    if rounds:
        made.add_argument("--rounds", type=int, default=rounds)
    if compares:
        made.add_argument("--httpx2", metavar="PYTHON", help="one with httpx2, to compare with")
    return made


def compare(options, name, *arguments, variants=("plain", "now")):
    """Return for each variant what `child(variant, *arguments)` returned, once a round; they take turns."""
    pythons = dict.fromkeys(variants, sys.executable)
    if options.httpx2:
        pythons["httpx2"] = options.httpx2
    found = {variant: [] for variant in pythons}
    for _ in range(options.rounds):
        for variant, python in pythons.items():
            found[variant].append(run_child(name, variant, *arguments, python=python))
    return found


def library(variant):
    """Return httpx of this variant."""
    if variant == "httpx2":
        return __import__("httpx2")
    if variant == "now":
        __import__("httpx_cancel_safe").patch()
    return __import__("httpx")


def head(*cells):
    print("\nhttpx %s, Python %d.%d" % (__import__("httpx").__version__, *sys.version_info[:2]))
    row(*cells)
    row(*["---"] * len(cells))


def row(*cells):
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)
