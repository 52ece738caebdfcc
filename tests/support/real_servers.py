"""Servers that others wrote, each in a process of its own: hypercorn, and proxy.py before it."""

import contextlib
import os
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import time
import warnings

from . import asgi_app

PROXY = """
import proxy, sys

options = "--hostname=127.0.0.1 --port=0 --num-workers=1 --num-acceptors=1 --threaded --log-level=CRITICAL"
with proxy.Proxy(options.split()) as running:
    print(running.flags.port, flush=True)
    sys.stdin.read()
"""


def _peer_port(fd):
    try:
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            with socket.fromfd(fd, socket.AF_INET, socket.SOCK_STREAM) as sock:
                return sock.getpeername()[1]
    except (OSError, IndexError):  # Closed meanwhile, not connected, or of another family.
        pass
    return None


class Watched:
    """A server elsewhere: its URL, and which connections to it this process has open."""

    def __init__(self, scheme, port):
        self.port = port
        self.url = "%s://127.0.0.1:%d" % (scheme, port)

    @property
    def open_connections(self):
        return sum(_peer_port(int(fd)) == self.port for fd in os.listdir("/dev/fd"))

    def wait_closed_to(self, n, timeout):
        deadline = time.monotonic() + timeout
        while self.open_connections > n:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True

    def drop_connections(self):
        """Nothing: they are this process's own, and go with the garbage of the run."""


class RealServers:
    """What sweep.target() needs: `plain`, `tls`, `http2` and `proxy`."""

    def __init__(self, authority, plain, tls, proxy):
        self._authority = authority
        self.plain = plain
        self.tls = self.http2 = tls
        self.proxy = proxy

    def client_context(self):
        context = ssl.create_default_context()
        self._authority.configure_trust(context)
        return context


@contextlib.contextmanager
def _process(*arguments, **options):
    """A server that ends when its standard input does: also when this process is killed."""
    command = [sys.executable, "-W", "ignore"] + list(arguments)
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, universal_newlines=True, **options
    ) as process:
        try:
            yield process
        finally:
            process.stdin.close()
            try:
                process.wait(20)
            finally:
                process.kill()


@contextlib.contextmanager
def _hypercorn(scheme, *arguments):
    # The socket listens from here on: nobody need wait until the server is up.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        fd = listener.fileno()
        with _process(asgi_app.__file__, str(fd), *arguments, pass_fds=[fd]):
            yield Watched(scheme, listener.getsockname()[1])


@contextlib.contextmanager
def _proxy():
    with _process("-c", PROXY) as process:
        yield Watched("http", int(process.stdout.readline()))


@contextlib.contextmanager
def serve():
    with warnings.catch_warnings():
        # On Python 3.6 and 3.7 cryptography says that they are old.
        warnings.simplefilter("ignore")
        import trustme

        authority = trustme.CA()
    with tempfile.TemporaryDirectory() as directory:
        certificate = os.path.join(directory, "certificate.pem")
        issued = authority.issue_cert("127.0.0.1", "localhost")
        issued.private_key_and_cert_chain_pem.write_to_path(certificate)
        with _hypercorn("http") as plain, _hypercorn("https", certificate) as tls, _proxy() as proxy:
            yield RealServers(authority, plain, tls, proxy)
