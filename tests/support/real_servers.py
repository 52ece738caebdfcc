"""Servers that others wrote, each in a process of its own: hypercorn, and proxy.py before it."""

import contextlib
import os
import socket
import stat
import subprocess
import sys
import tempfile
from types import SimpleNamespace

from ..benchmarks.common import service
from .asgi_app import __name__ as app
from .servers import authority, client_context

PROXY = """
import proxy, sys

options = "--hostname=127.0.0.1 --port=0 --num-workers=1 --num-acceptors=1 --threaded --log-level=CRITICAL"
with proxy.Proxy(options.split()) as running:
    print(running.flags.port, flush=True)
    sys.stdin.read()
"""


def _peer_port(fd):
    with contextlib.suppress(OSError, IndexError):  # Closed meanwhile, not connected, or of another family.
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            with socket.fromfd(fd, socket.AF_INET, socket.SOCK_STREAM) as sock:
                return sock.getpeername()[1]
    return None


class Watched:
    """A server elsewhere: its URL, and how many connections to it this process has open."""

    def __init__(self, scheme, port):
        self.port = port
        self.url = "%s://127.0.0.1:%d" % (scheme, port)

    @property
    def open_connections(self):
        return sum(_peer_port(int(fd)) == self.port for fd in os.listdir("/dev/fd"))

    def reset(self):
        """Nothing: they are this process's own, and go with the garbage of the run."""


@contextlib.contextmanager
def serve():
    """What sweep.target() needs: `plain`, `tls`, `http2` and `proxy`."""
    trusted, python = authority(), [sys.executable, "-W", "ignore"]
    with contextlib.ExitStack() as stack:

        def hypercorn(scheme, *options):
            # It would wait for clients that have left.
            command = python + ["-m", "hypercorn", "--bind", "fd://FD", "--workers", "0", "--graceful-timeout", "0"]
            return Watched(scheme, stack.enter_context(service(command + list(options) + [app + ":app"]))[1])

        certificate = os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), "certificate.pem")
        issued = trusted.issue_cert("127.0.0.1", "localhost")
        issued.private_key_and_cert_chain_pem.write_to_path(certificate)
        tls = hypercorn("https", "--certfile", certificate, "--keyfile", certificate)
        process = subprocess.Popen(python + ["-c", PROXY], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        proxy = Watched("http", int(stack.enter_context(process).stdout.readline()))
        running = {"plain": hypercorn("http"), "tls": tls, "http2": tls, "proxy": proxy}
        yield SimpleNamespace(client_context=lambda: client_context(trusted), **running)
