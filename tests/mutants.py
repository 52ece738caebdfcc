"""Proof that the tests bite: changes one clause of the library at a time, and sees a test fail.

    python -m tests.mutants            all that mean something on the Python and httpx that run it
    python -m tests.mutants evict      those with that in their description or place

A mutant that no test notices ends it with status 1. So does one whose place is gone: it is named by module
and qualified name, and changes a few characters there, or makes the whole function return at once.
"""

import ast
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple

from .support.compat import HTTPX

ROOT = pathlib.Path(__file__).resolve().parent.parent

LISTED = HTTPX >= (0, 21)  # httpcore 0.14.
NEW = sys.version_info >= (3, 11)  # Before, no line comes between a lock and its `with` block.


class Mutant(NamedTuple):
    """A clause: what it is for, where it stands, what changes, and the tests that mind (arguments of pytest)."""

    what: str
    where: str  # module:qualified.name
    old: str  # Some characters that stand once in that function; "" for a return at its beginning.
    new: str
    tests: str
    here: bool = True


PROMISES, FAULTS, CUSTOM, SWEEP = "test_promises.py", "test_faults.py", "test_custom_transports.py", "test_cancel_sweep.py"
PATCHING, STATS, SAME, STRUCK = "test_patching.py", "test_stats.py", "test_same.py", "test_sync_sweep.py"

MUTANTS = [
    # send, and each exchange
    Mutant("exchanges are settled when send raises", "_send:send_async", "call.abandon(exc)", "pass", SWEEP + " hooks"),
    Mutant("other responses are closed when send raises", "_send:send_async", "await guard.aclose()", "pass", CUSTOM + " end"),
    Mutant("a dropped request closes in the background", "_send:send_async", "if not guard.is_over:", "if False:", CUSTOM + " dropped"),
    Mutant("a mock of send is left alone", "_send:send_async", 'if not hasattr(coroutine, "throw"):', "if False:", FAULTS + " mocked"),
    Mutant("sync: other responses are closed", "_send:send_sync", "guard.close()", "pass", CUSTOM + " sync"),
    Mutant("transports note their responses", "_send:transport_for", "", "return wrapped(*args, **kwargs)", CUSTOM + " end"),
    Mutant("a block tells what has ended it", "_send:Block.__aexit__", "abandon(self._self_response, exc)", "pass", PROMISES),
    Mutant("the running call is known at each step", "_calls:Call.__enter__", "now.call, self", "now.call, None", CUSTOM),
    Mutant("guards learn of the failure", "_calls:Call.abandon", "*self.guards", "", PROMISES),
    # closing responses of other transports
    Mutant("a close is shielded", "_closing:to_end", "if outside is None and not is_failing:", "if True:", CUSTOM),
    Mutant("it is repeated after a native cancel", "_closing:to_end", "await _again(close, seconds)", "pass", CUSTOM),
    Mutant("a close is bounded", "_closing:_Shielded.__init__", "seconds if is_failing else float", "float", PROMISES),
    Mutant("one with nobody failing, too", "_closing:_Shielded._watch", "while not _scopes.is_cancelled(self._outside):", "while True:", CUSTOM),
    Mutant("scopes of the response stay in order", "_streams:GuardingTransport._self_run_async", "_scopes.outermost_within(scope)", "None", CUSTOM),
    Mutant("an error of the close is hidden", "_streams:_Guard._gives_way", "if self._is_failing and", "if False and", PROMISES),
    Mutant("a cancel that struck it counts", "_streams:_Guard._gives_way", "if is_cancel(exc) or", "if", STATS + " counted_once"),
    Mutant("a response is closed once", "_streams:AsyncGuard.aclose", "if not self.is_over:", "if True:", STATS + " fails_is_warned"),
    # the pool
    Mutant("who fails is settled", "_pool.aio:AsyncPool.run_exchange", "self.settle(exchange, exc)", "pass", FAULTS + " retries"),
    Mutant("who waits is served", "_pool.books:Books.settle", "self.serve_soon()", "pass", PROMISES),
    Mutant("what is not idle goes", "_pool.books:Books.settle", "if not is_used and not connection.is_idle():", "if False:", PROMISES),
    Mutant("the entry goes", "_pool.books:Books.settle", "self.exchanges.remove(exchange)", "pass", PROMISES),
    Mutant("a connection is reserved", "_pool.books:Books._is_free", "not self._users[connection] and ", "", SAME + " many_at_once"),
    Mutant("an idle one is evicted for room", "_pool.books:Books._find", "self._drop(evicted)", "return None", SAME + " origins"),
    Mutant("the limit holds", "_pool.books:Books._find", "if evicted is None:", "if False:", SAME),
    Mutant("expired connections go", "_pool.books:Books._drop_unusable", " or connection.has_expired()", "", SWEEP + " idle"),
    Mutant("too many idle ones go", "_pool.books:Books._trim", "self._drop(connection)", "pass", SAME + " more_idle"),
    Mutant("mocked pools step aside", "_pool.books:Books.enter", "if self.is_replaced():", "if False:", FAULTS + " wrapped"),
    Mutant("a pool becomes plain", "_pool.books:Books.enter", "self.become_plain()", "pass", "test_threads.py open_when"),
    Mutant("an unknown httpcore is left alone", "_pool.__init__:_guard", "if missing:", "if False:", FAULTS + " understood", not LISTED),
    Mutant("a body that fails ends", "_pool.aio:AsyncBody._next", "self.abandon(exc)", "pass", FAULTS + " retries"),
    Mutant("a body that is closed ends", "_pool.aio:AsyncBody.aclose", "self.exchange.end()", "pass", PROMISES),
    Mutant("a connection that has gone is forgotten", "_pool.books:Books.settle", "del self._users[connection]", "pass", SAME + " server_closes"),
    Mutant("a plain request wakes", "_pool.httpcore014:Sync014._attempt_to_acquire_connection", "if connection is not None:", "if False:", "test_threads.py plain_request_wakes", LISTED),
    Mutant("only steps change the books", "_pool.httpcore014:Sync014._close_expired_connections", "", "return super()._close_expired_connections()", "test_threads.py share", LISTED),
    Mutant("a turn is given back", "_pool.aio:Turns.acquire", "self.give_back()", "pass", "test_bystanders.py turn"),
    # connections
    Mutant("a socket is closed", "_pool.sockets:abort", "", "return", PROMISES),
    Mutant("one that opens too late, too", "_pool.sockets:AsyncOpening._give_up", "abort(attempt.result())", "pass", SWEEP),
    Mutant("a cut connection is closed", "_pool.connections:Connection.cut", "abort(inner._network_stream)", "pass", SAME + " more_idle", LISTED),
    Mutant("a stream is reset", "_pool.http2:AsyncHTTP2._end_stream", "self._h2_state.reset_stream(number, h2.errors.ErrorCodes.CANCEL)", "pass", "test_bystanders.py any_number"),
    Mutant("its place is given back", "_pool.http2:AsyncHTTP2._end_stream", "self._slots.give_back()", "pass", "test_bystanders.py any_number"),
    Mutant("its credit is given back", "_pool.http2:AsyncHTTP2._end_stream", "if getattr(event", "if False and getattr(event", "test_bystanders.py any_number"),
    Mutant("each write is whole", "_pool.http2:WholeWrites.write", "await run_whole(self._write_unsent())", "await self._write_unsent()", "test_bystanders.py", LISTED),
    # sync
    Mutant("no lock stays locked", "_pool.threads:SyncPool.settle", "let_go(self._steps)", "pass", STRUCK + " two_lines", NEW),
    Mutant("a struck connection goes", "_pool.books:is_struck", "", "return False", STRUCK, NEW),
    Mutant("a lock of ours is let go", "_stats:let_go", "", "return", STRUCK + " two_lines", NEW),
    # patching and counting
    Mutant("patch() is said to be in place", "_patch:is_patched", "", "return True", PATCHING),
    Mutant("one guard", "_patch:patch", "if not _is_guarded(current) and", "if", PATCHING),
    Mutant("a mock stays", "_patch:patch", ' and hasattr(current, "__get__")', "", FAULTS + " mocked"),
    Mutant("unpatch() ends it", "_patch:unpatch", "_settings.active = False", "pass", PATCHING),
    Mutant("the switch switches off", "_patch:is_needed", "if switch is False:", "if False:", "test_auto.py"),
    Mutant("other tools are looked through", "_patch:layers", "pending.append(cell.cell_contents)", "pass", PATCHING),
    Mutant("a request counts", "_pool.books:Books.settle", "_stats.released(exchange.request, phase, exc, began)", "pass", STATS),
    Mutant("a failed close counts", "_stats:close_failed", 'count("failed")', "pass", STATS),
    Mutant("its message is not logged", "_stats:close_failed", "type(exc).__name__", "exc", STATS),
    Mutant("it warns once", "_stats:fall_back", "_has_fallen_back = True", "pass", FAULTS + " understood"),
]


def change(source, name, old, new):
    """Return `source` with a function changed: `new` for `old`, or before all of its body."""
    node = ast.parse(source)
    for part in name.split("."):
        node = next(one for one in ast.walk(node) if getattr(one, "name", None) == part)
    lines, first = source.splitlines(True), node.body[0]
    if not old:
        lines.insert(first.lineno - 1, " " * first.col_offset + new + "\n")
        return "".join(lines)
    place = slice(node.lineno - 1, node.end_lineno)
    text = "".join(lines[place])
    if text.count(old) != 1:
        sys.exit("%s: %d times, not once: %s" % (name, text.count(old), old))
    lines[place] = [text.replace(old, new)]
    return "".join(lines)


def passes(tests, source):
    """Whether these tests pass with this source; a hang is no pass."""
    file, _, words = tests.partition(" ")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/" + file, "-k", words]
    environment = dict(os.environ, PYTHONPATH=str(source), PYTEST_TIMEOUT="60", SWEEP="full")
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, timeout=300)
    except subprocess.TimeoutExpired:
        return False
    if done.returncode not in (0, 1):
        sys.exit("%s did not run:\n%s" % (" ".join(command), done.stdout.decode()))
    return done.returncode == 0


def survives(mutant):
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "src"
        shutil.copytree(ROOT / "src", source)
        module, _, name = mutant.where.partition(":")
        path = source / "httpx_cancel_safe" / (module.replace(".", "/") + ".py")
        path.write_text(change(path.read_text(), name, mutant.old, mutant.new))
        return passes(mutant.tests, source)


def main(words):
    wanted = [one for one in MUTANTS if one.here and " ".join(words) in one.what + " " + one.where]
    for tests in sorted({one.tests for one in wanted}):
        if not passes(tests, ROOT / "src"):
            sys.exit("fails without any mutant: " + tests)
    survivors = 0
    for mutant in wanted:
        alive = survives(mutant)
        survivors += alive
        print("%s  %s: %s" % ("SURVIVED" if alive else "killed  ", mutant.where, mutant.what), flush=True)
    print("%d mutants, %d survived" % (len(wanted), survivors))
    return survivors > 0 or not wanted


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
