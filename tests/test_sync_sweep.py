"""The sync client: an exception at each blocking call, between any two lines, and from a signal handler."""

import contextlib
import gc
import itertools
import signal
import sys
import threading

import httpx
import pytest

from .support import compat
from .support.noise import no_gc
from .support.stepping import Abort as Strike
from .support.sweep import STRIDE

pytestmark = pytest.mark.skipif(compat.FIXED, reason="nothing is patched on httpx %s" % httpx.__version__)


def get(client, url):
    assert client.get(url + "/get").content == b"hello"


def redirect(client, url):
    client.get(url + "/redirect")


def post_and_digest(client, url):
    client.post(url + "/post", **compat.content(b"x" * 1000))
    client.get(url + "/digest", auth=httpx.DigestAuth("user", "password"))


def stream(client, url):
    with client.stream("GET", url + "/chunked") as response:
        for _ in response.iter_bytes():
            pass
    with client.stream("GET", url + "/chunked"):
        pass
    get(client, url)


def afterwards(client, server, seconds=2, limit=1):
    """What is wrong with a client one of whose requests was interrupted."""
    faults = []

    def go_on():
        try:
            with contextlib.ExitStack() as stack:
                for _ in range(limit):
                    stack.enter_context(client.stream("GET", server.url + "/get"))
        except httpx.HTTPError as exc:
            faults.append("the next request: %r" % exc)

    # In another thread, which a lock that was left locked would hold up.
    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    thread.join(20)
    if thread.is_alive():
        return ["the next request hangs"]
    try:
        client.close()
    except RuntimeError as exc:
        faults.append("closing the client: %r" % exc)
    if not server.gone(seconds=seconds):
        faults.append("a socket is open")
        server.reset()
    return faults


class AtCalls:
    """Raises before the k-th blocking call of this thread's sockets."""

    calls = ("connect", "send", "sendall", "recv", "do_handshake", "read", "write")
    before = sys.gettrace()  # That of coverage, if any.

    def arm(self, k, error):
        self.left, self.error = k, error
        sys.setprofile(self.profile)

    def profile(self, frame, event, argument):
        if event == "c_call" and argument.__name__ in self.calls and "ocket" in type(argument.__self__).__name__:
            self.count()

    def count(self):
        self.left -= 1
        if not self.left:
            self.disarm()
            raise self.error

    def disarm(self):
        sys.setprofile(None)
        sys.settrace(self.before)


class AtLines(AtCalls):
    """Raises before the k-th line that runs in httpcore, httpx or the library.

    Not in a destructor, where Python prints it, nor in httpx's `send()` itself: between what it calls
    and its own `try` nobody can be told.
    """

    where = ("httpcore", "httpx_cancel_safe", "httpx/_transports")

    def arm(self, k, error):
        self.left, self.error = k, error
        sys.settrace(self.trace)

    def trace(self, frame, event, argument):
        name = frame.f_code.co_filename
        is_here = frame.f_code.co_name != "__del__" and any(part in name for part in self.where)
        return self.lines if is_here else None

    def lines(self, frame, event, argument):
        # Before the `try` of `__exit__()`, as before the call of it, nobody can be told.
        is_before = frame.f_code.co_name == "__exit__" and frame.f_lineno == frame.f_code.co_firstlineno + 1
        if event == "line" and not is_before:
            self.count()
        return self.lines


def sweep(scenarios, base, error, server, striker, stride=1, seconds=2, verify=False, **options):
    """Interrupt each scenario at its k-th point; (what was wrong, number of points)."""
    faults, points = [], 0
    with no_gc():
        for scenario in scenarios:
            for k in itertools.count(1, stride):
                client = compat.make_client(base, verify, pool_timeout=0.1, timeout=5.0, **options)
                striker.arm(k, error)
                try:
                    scenario(client, server.url)
                except (Exception, type(error)) as exc:
                    if exc is not error:
                        faults.append("%s %d: %r came out" % (scenario.__name__, k, exc))
                finally:
                    striker.disarm()
                error.__traceback__ = error.__context__ = None
                faults += ["%s %d: %s" % (scenario.__name__, k, what) for what in afterwards(client, server, seconds)]
                if striker.left > 0:
                    break
                points += 1
    return faults, points


# socket.create_connection() and a TLS handshake leave their socket to the garbage collector, unless an OSError ends it.
@pytest.mark.filterwarnings(r"ignore:unclosed .*(ssl|laddr=\('0.0.0.0', 0\)):ResourceWarning")
@pytest.mark.parametrize("error, kind", [(KeyboardInterrupt(), "plain"), (Strike(), "http2")], ids=repr)
def test_nothing_is_lost_at_any_blocking_call(servers, guarded, error, kind):
    options = {"verify": servers.client_context(), "http2": True} if kind == "http2" else {}
    scenarios, server = [get, redirect, post_and_digest, stream], getattr(servers, kind)
    faults, points = sweep(scenarios, guarded.Client, error, server, AtCalls(), **options)
    assert points >= 20
    assert not faults, "\n".join(faults)


@pytest.mark.filterwarnings("ignore")
def test_without_the_patch_connections_are_lost(servers):
    faults, _ = sweep([redirect, stream], httpx.Client, KeyboardInterrupt(), servers.plain, AtCalls(), 2, 0.1)
    gc.collect()
    assert len(faults) >= 2, faults


# A socket that is struck within its making is closed by Python, which says so.
@pytest.mark.filterwarnings("ignore:.*<socket.socket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("scenario", [redirect, stream])
def test_nothing_is_lost_between_any_two_lines(servers, guarded, scenario):
    stride = 5 if STRIDE == 1 else 37
    faults, points = sweep([scenario], guarded.Client, Strike(), servers.plain, AtLines(), stride)
    assert points >= 5
    assert not faults, "\n".join(faults)


# A callback of a weak reference that is struck says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # A socket that is struck within its making.
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timers")
@pytest.mark.timeout(90, method="thread")  # The other method needs the same timer.
def test_signals_that_strike_while_other_threads_use_the_client(servers, guarded):
    """The main thread is struck again and again; the others' requests all succeed, and nothing hangs."""
    client = compat.make_client(guarded.Client, False, limit=3)
    url, over, answered = servers.plain.url, threading.Event(), []

    def bystander():
        while not over.is_set():
            get(client, url)
            answered.append(1)

    def strike(number, frame):
        # http.cookiejar and coverage are Python code around a lock, too.
        name = frame.f_code.co_filename
        if frame.f_code.co_name in ("__del__", "send") or "cookiejar" in name or "coverage" in name:
            signal.setitimer(signal.ITIMER_REAL, 0.0002)
        else:
            raise Strike

    threads = [threading.Thread(target=bystander, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    handler = signal.signal(signal.SIGALRM, strike)
    try:
        for k in range(100):
            with contextlib.suppress(Strike):
                signal.setitimer(signal.ITIMER_REAL, 0.0002 + 0.0001 * (k % 30))
                for _ in range(50):  # It strikes in one of these. A destructor may swallow it.
                    get(client, url)
    finally:
        signal.signal(signal.SIGALRM, handler)
        over.set()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    gc.collect()
    assert len(answered) > 10
    # Every place in the pool can be had.
    assert not afterwards(client, servers.plain, limit=3)
