"""Proof that the tests bite: takes one clause of the net away at a time, and sees a test fail.

    python -m tests.mutants            all that mean something on the Python and httpx that run it
    python -m tests.mutants permit     those with that in their description

A clause that is guarded by no test ends it with status 1, and so does text that is not found
exactly once in the source: this list is to stay in step with it.
"""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple

import anyio
import httpcore
import httpx

ROOT = pathlib.Path(__file__).resolve().parent.parent
HTTPX = tuple(int(part) for part in httpx.__version__.split(".")[:2])
PYTHON = sys.version_info[:2]

LISTED = HTTPX >= (0, 21)  # httpcore 0.14, or before.
COUNTED = not LISTED
AS_HTTPCORE = "httpcore does as much in a finally, where nothing fails"
FROM_18 = HTTPX >= (0, 18)  # Before, httpcore takes a connection with data to read for a dead one.
ANYIO_3 = hasattr(anyio, "ExceptionGroup")
STREAMS = httpcore.__version__.startswith(("0.11.", "0.12.", "0.13.0", "0.13.1", "0.13.2", "0.13.3"))  # Asyncio's.

# Tests that are quick, for what they see. The rest of the line is for -k.
TABLE = "test_custom_transports.py every_point and patch and "
NEEDS = "test_custom_transports.py needs_of_its_own and "
CLOSE = "test_custom_transports.py close_that and "
COOKIES = "test_custom_transports.py failing_cookie_jar"
LIMITS = "test_custom_transports.py that_ran_out or that_was_cancelled"
SYNC = "test_sync_sweep.py nothing_is_lost"
SWEEP = "test_cancel_sweep.py (test_http1 and not tls) and "
HTTP2 = "test_cancel_sweep.py test_http2 and not proxy and "
WAYS = "test_cancel_sweep.py "
NEIGHBOURS = "test_bystanders.py goes_on and "
LEFT = "test_left_behind.py "
GIVING = "test_giving_back.py "
PERMITS = "test_permits.py "
STATS = "test_stats.py "
PATCH = "test_patching.py "
AUTO = "test_auto.py "
RELEASES = "test_releases.py "


class Mutant(NamedTuple):
    """A clause: what it is for, where it stands, what takes its place, and the test that minds."""

    what: str
    file: str
    old: str
    new: str
    tests: str
    here: bool = True  # Whether it means something on this Python and httpx.
    survives: str = ""  # Why no test can mind.


SEND, CLOSING, PATCHING = "_send.py", "_closing.py", "_patch.py"
POOL, COMMON, STEADY = "_pool/__init__.py", "_pool/_common.py", "_pool/steady.py"
LIST, COUNT = "_pool/listed.py", "_pool/counted.py"

MUTANTS = [
    # -- The guards
    Mutant("the rescue", SEND, "await _Rescue(exc, settings, self, request).run()", "pass", TABLE + "once"),
    Mutant("the rescue, sync", SEND, "_Rescue(exc, settings, self, request, False).run_sync()", "pass", SYNC),
    Mutant("a guard that is off lets all pass", SEND, "if not acts:\n            return await", "if False:\n            return await", PATCH + "tool"),
    Mutant("a guard that is off lets all pass, sync", SEND, "if not acts:\n            return call", "if False:\n            return call", PATCH + "tool"),
    Mutant("what is done before the first request", SEND, "if not is_prepared:\n            _prepare(self, settings, _watch)", "if False:\n            pass", TABLE + "twice"),
    Mutant("what is done before the first request, sync", SEND, "if not is_prepared:\n            _prepare(self, settings, _watch_sync)", "if False:\n            pass", "test_custom_transports.py sync_client_when_the_close_raises"),
    Mutant("a dropped coroutine does not wait", SEND, "if not _is_dropped(exc):", "if True:", TABLE + "drop"),
    Mutant("a dropped coroutine is cleaned up after", SEND, "_closing.in_background(_Rescue(exc, settings, self, request).run())", "pass", TABLE + "drop"),
    Mutant("no RuntimeError for a dropped coroutine", SEND, "if isinstance(exc, RuntimeError):\n                raise", "if False:\n                raise", TABLE + "drop"),
    Mutant("ignored GeneratorExit is one", SEND, 'str(exc).endswith(" ignored GeneratorExit")', "False", TABLE + "drop"),
    Mutant("a cancel that a proxy swallowed", SEND, "cancel = _swallowed_cancel(exc)", "cancel = None", WAYS + "connect_proxy", PYTHON < (3, 8)),
    Mutant("open responses are forgotten in the end", SEND, "_opened.pop(id(sys._getframe()), None)", "pass", LEFT + "remembered"),
    Mutant("a response that is handed out is guarded", SEND, "        _guard_response(response, AsyncGuardedStream, settings)\n        return response\n\n    return guard", "        return response\n\n    return guard", LEFT + "somebody_replaced"),
    Mutant("a response that is handed out is guarded, sync", SEND, "        _guard_response(response, SyncGuardedStream, settings)\n        return response\n\n    return guard\n\n\ndef _prepare", "        return response\n\n    return guard\n\n\ndef _prepare", LEFT + "somebody_replaced", FROM_18),
    Mutant("custom transports are watched", SEND, "client._send_single_request = watch(", "watch(", TABLE + "twice"),
    Mutant("an open response is noted for an async request alone", SEND, "if id(frame.f_code) == _ASYNC_GUARD", "if id(frame.f_code) in _GUARDS", LEFT + "around_it"),
    Mutant("the open responses of a dropped coroutine", SEND, "_note_opened(response)\n", "pass\n", TABLE + "drop"),
    Mutant("a scope that a response holds open", SEND, "if now is not scope:", "if False:", NEEDS + "scope"),
    Mutant("a response has one guard", SEND, "if _guard_of(response) is not None:", "if False:", NEEDS + "stream"),
    Mutant("a streamed response without a close has no guard", SEND, "        try:  # Without a call, as most go this way.\n            if type(response.stream._stream).aclose is inherited:", "        try:\n            if False:", "test_cost.py stream"),
    # -- The close of a response
    Mutant("a close that leaves something behind", SEND, "closers += _pool.settle([unsettled])\n        handled", "pass\n        handled", LEFT + "end_for_both"),
    Mutant("a block that is dropped does not wait", SEND, "if isinstance(handled, GeneratorExit):", "if False:", TABLE + "drop"),
    Mutant("a close that failed is settled", SEND, "await self._settle_after(exc)", "pass", LEFT + "refuse", survives=AS_HTTPCORE),
    Mutant("a close that failed replaces nothing", SEND, "if handled is None:\n                raise\n            _report_failure(exc)\n        else", "if True:\n                raise\n            _report_failure(exc)\n        else", STATS + "close_that_fails"),
    Mutant("a close that failed alone is told", SEND, "if handled is None:\n                raise\n            _report_failure(exc)\n        else", "if False:\n                raise\n            _report_failure(exc)\n        else", LEFT + "refuse"),
    Mutant("a close that failed is settled, sync", SEND, "closers += _pool.settle(_exchanges_of(self._stream, exc))", "pass", LEFT + "sync", survives=AS_HTTPCORE),
    Mutant("a close that was given up is settled", SEND, "await self._settle_after()\n", "pass\n", GIVING + "given_up" if LISTED else LEFT + "sleep_forever", survives="" if LISTED else AS_HTTPCORE),
    Mutant("cancels during a close go on", SEND, "await effort.let_cancel(handled)", "pass", TABLE + "late"),
    Mutant("a scope that is held open, in a close", SEND, "own=self.own_scope", "own=None", NEEDS + "stream"),
    Mutant("a close that is dropped goes on elsewhere", SEND, ", owner=self", "", TABLE + "drop"),
    Mutant("a close that was given up is told", SEND, "give_up(self._settings.close_timeout)", "pass", LEFT + "sleep_forever", LISTED),
    # -- The rescue
    Mutant("pools are put right", SEND, "self.closers += _pool.settle(exchanges)", "pass", SWEEP + "once"),
    Mutant("responses are closed", SEND, "self.closers.append(closer)", "pass", TABLE + "Abort"),
    Mutant("responses with scopes are closed", SEND, "self.scoped.append((closer, scope))", "pass", NEEDS + "Abort"),
    Mutant("nothing interrupts the rescue", SEND, "await _clean_up(self.closers, self.settings, self.exc)", "await _close_all(self.closers)", TABLE + "scope"),
    Mutant("a dropped request is found in the books", SEND, "exchanges = _pool.exchanges_of(self.client, self.request)", "pass", LEFT + "dropped", LISTED),
    Mutant("the phase of an exchange", SEND, "self.phase = exchanges[-1].phase", 'self.phase = "reading"', STATS + "phase"),
    Mutant("the phase of a response", SEND, 'elif responses:\n            self.phase = "reading"', 'elif responses:\n            self.phase = "closing"', STATS + "close_that_fails or belong"),
    Mutant("the phase of a close", SEND, 'return "closing"', 'return ""', STATS + "phase"),
    Mutant("a request that held nothing counts for nothing", SEND, 'if functions & {"aiter_raw", "iter_raw"} else ""', "", STATS + "held_nothing"),
    Mutant("the messages of exceptions are not logged", SEND, "type(self.exc).__name__,", "self.exc,", STATS + "close_that"),
    Mutant("responses that failed before they were handed on", SEND, 'response = frame.f_locals.get("stream")', "pass", LEFT + "makes_no_response", HTTPX < (0, 20)),
    Mutant("what httpx does not handle itself is the caller's", SEND, "return exc if inside else None", "return exc", LEFT + "by_an_error"),
    Mutant("a close that was begun counts as open", SEND, "return not progress.is_over", "return False", TABLE + "drop"),
    Mutant("a close that was begun is ended", SEND, "if guarded is not None and guarded.progress is not None:", "if False:", TABLE + "drop"),
    Mutant("a cancel beside another exception goes on", SEND, "        effort.redeliver(exc)", "        pass", TABLE + "late"),
    Mutant("each closer has its turn", SEND, "                _report_failure(exc)\n    if cancel", "                raise\n    if cancel", LEFT + "each_closer"),
    Mutant("closes that fail are told", SEND, "work.close()\n        _report_failure(failure)", "work.close()", STATS + "cancels_itself"),
    Mutant("closes that are given up are told", SEND, "if effort.timed_out:\n            give_up(settings.close_timeout)\n        effort", "if False:\n            pass\n        effort", STATS + "close_that"),
    Mutant("whatever a close raises, sync", SEND, "close()\n        except BaseException as exc:\n            _report_failure(exc)", "close()\n        except ZeroDivisionError as exc:\n            _report_failure(exc)", "test_custom_transports.py sync_client_when_the_close_raises"),
    # -- Nothing interrupts a clean-up
    Mutant("no cancel reaches what is closed", CLOSING, "yield from waiter", "waiting._asyncio_future_blocking = True; yield waiting", TABLE + "twice"),
    Mutant("a cancel does not end the clean-up", CLOSING, "if is_future and not waiting.done():\n                        continue", "error = exc", TABLE + "twice"),
    Mutant("cancels are held, not lost", CLOSING, "self.held.append(exc)", "pass", TABLE + "late"),
    Mutant("the time limit", CLOSING, "        self.timed_out = True", "        self.timed_out = False", CLOSE + "hangs and once"),
    Mutant("the time limit begins with a cancel", CLOSING, "self.held.append(exc)\n        self.start_timer()", "self.held.append(exc)", CLOSE + "hangs"),
    Mutant("no time limit where nobody cancels", CLOSING, "if self.shield and not self.held and not _any_cancelled(self.outside, None):", "if False:", "test_custom_transports.py takes_its_time"),
    Mutant("a close that swallows its end is left", CLOSING, "patience -= 1", "pass", "test_custom_transports.py spins"),
    Mutant("the shield", CLOSING, "self.shield = anyio.CancelScope(shield=True).__enter__()\n        elif", "self.shield = anyio.CancelScope().__enter__()\n        elif", TABLE + "scope", survives="" if ANYIO_3 else "cancels are held back all the same, but one on each pass of the loop"),
    Mutant("the shield goes around a scope that is held open", CLOSING, "self.shield._parent_scope, own._parent_scope = self.outside, self.shield", "pass", NEEDS + "scope", ANYIO_3),
    Mutant("the timer ends", CLOSING, "self.timer.cancel()", "pass", TABLE + "once", survives="it would run out unheard"),
    Mutant("a scope that was not left gets its parent back", CLOSING, "self.own._parent_scope = self.outside", "pass", "test_custom_transports.py leave_its_scope", ANYIO_3),
    Mutant("counts of cancels are hidden from timeouts", CLOSING, "_current_task().uncancel()\n            self.hidden", "pass\n            self.hidden", NEEDS + "Timeout", PYTHON >= (3, 11)),
    Mutant("counts of cancels are shown again", CLOSING, "_current_task().cancel()\n            try", "pass\n            try", TABLE + "once", PYTHON >= (3, 11)),
    Mutant("counts of cancels are hidden at once", CLOSING, "if at_once:\n            effort.hide_counts()", "if False:\n            effort.hide_counts()", NEEDS + "Timeout", PYTHON >= (3, 11)),
    Mutant("a redelivered cancel counts once", CLOSING, "task.uncancel()  # It", "pass  # It", TABLE + "late", PYTHON >= (3, 11)),
    Mutant("a cancel that was held goes on", CLOSING, "raise self.held.pop(0)", "self.held.pop(0)  #", TABLE + "late"),
    Mutant("a cancelled scope of trio goes on", CLOSING, 'await sys.modules["trio"].lowlevel.checkpoint_if_cancelled()', "pass", TABLE + "trio"),
    Mutant("a cancelled scope of anyio goes on", CLOSING, "await anyio.lowlevel.checkpoint_if_cancelled()", "pass", TABLE + "scope"),
    Mutant("another exception goes first", CLOSING, "if handled is not None:\n            self", "if False:\n            self", "test_custom_transports.py error_for_which"),
    Mutant("a held cancel is redelivered", CLOSING, "task = _current_task()\n            task.cancel()", "task = _current_task()", TABLE + "late"),
    Mutant("a cancel on its way does for one that was held back", CLOSING, "if self.held and not (is_cancel(exc) and not _will_swallow(innermost_scope(), exc)):", "if self.held:", "test_custom_transports.py told_once"),
    Mutant("a scope swallows the task's cancel with its own", CLOSING, "return not (counts and sys.version_info >= (3, 11)) and _any_cancelled(scope, None, exc)", "return False", "test_custom_transports.py told_once", PYTHON < (3, 11)),
    Mutant("a held cancel is redelivered after a close that raised", CLOSING, "effort.redeliver(None)\n            raise failure", "pass\n            raise failure", CLOSE + "raises"),
    Mutant("one task ends a dropped close", CLOSING, "mine, self.is_over = not self.is_over, True", "mine, self.is_over = True, True", TABLE + "drop"),
    Mutant("a dropped clean-up is ended by another task", CLOSING, "in_background(_end(progress.take_over(seconds), seconds))", "pass", "test_custom_transports.py dropped_while"),
    Mutant("a close may cancel itself", CLOSING, "if by_scope or own_count:", "if False:", NEEDS + "asyncio"),
    Mutant("asyncio's timeouts in a close", CLOSING, "found += owner.expired()", "pass", NEEDS + "Timeout", PYTHON >= (3, 11)),
    Mutant("asyncio's groups in a close", CLOSING, 'found += bool(getattr(owner, "_aborting", False))', "pass", NEEDS + "TaskGroup", PYTHON >= (3, 11)),
    Mutant("no time-out comes out", CLOSING, "if effort is None or not effort.timed_out or not is_cancel(exc):", "if True:", CLOSE + "hangs"),
    Mutant("the shield ends", CLOSING, "if effort is not None:\n        effort.end()", "if effort is not None:\n        pass", TABLE + "scope"),
    Mutant("the shield on trio", CLOSING, "trio.CancelScope(shield=True, deadline=deadline)", "trio.CancelScope(deadline=deadline)", TABLE + "trio"),
    Mutant("the time limit on trio", CLOSING, "trio.CancelScope(shield=True, deadline=deadline)", "trio.CancelScope(shield=True)", CLOSE + "hangs and trio"),
    Mutant("a scope that is held open, on trio", CLOSING, "        effort.was_shielded, own.shield = own.shield, True\n    try", "        effort.was_shielded = own.shield\n    try", NEEDS + "trio"),
    Mutant("the time-out of trio is told", CLOSING, "effort.timed_out = shield.cancelled_caught", "pass", CLOSE + "hangs and trio"),
    Mutant("trio cleans up in a system task", CLOSING, "trio.lowlevel.spawn_system_task(lambda: coroutine)", "coroutine.close()", TABLE + "trio and drop"),
    Mutant("a close may cancel itself, and not another", CLOSING, "by_scope = _any_cancelled(innermost_scope(), _edge(effort), exc)", "by_scope = False", NEEDS + "scope"),
    Mutant("a cancel that a scope cannot have raised", CLOSING, "(exc is None or _may_have_raised(scope, exc))", "True", NEEDS + "asyncio", not ANYIO_3 and PYTHON >= (3, 9)),
    Mutant("two cancels that asyncio made one of", CLOSING, "if _is_two(by_scope, effort, before + own_count):", "if False:", NEEDS + "asyncio", not ANYIO_3 and PYTHON >= (3, 11)),
    Mutant("what a scope of the close will take back", CLOSING, 'count -= getattr(scope, "_pending_uncancellations", None) or 0', "pass", NEEDS + "asyncio", not ANYIO_3 and PYTHON >= (3, 11)),
    Mutant("the shield is the scope that is held open", CLOSING, "self.was_shielded, own.shield = own.shield, True\n        else", "self.was_shielded = own.shield\n        else", NEEDS + "scope", not ANYIO_3),
    Mutant("a dropped clean-up that is given up is told", CLOSING, "if effort is not None and effort.timed_out:\n        give_up(seconds)", "pass", "test_custom_transports.py that_hangs_is_given_up_and_told"),
    Mutant("a clean-up where no task runs", CLOSING, "running = running or library()", "running = library()", GIVING + "lock_goes", LISTED),
    # -- What the frames tell
    Mutant("responses from before an exchange are not looked for", SEND, "del answered[begins:]", "pass", SWEEP + "once", survives="only time, see tests/benchmarks/growth.py"),
    Mutant("a response whose hook sends another request", SEND, "begins, last = len(answered), error", "pass", LEFT + "without_the_net", HTTPX >= (0, 20)),
    Mutant("what lies under another guard is left alone", POOL, "if not first:\n                    own = []\n                inside = True", "if False:\n                    own = []\n                inside = False", STATS + "inside_another"),
    Mutant("frames of causes and contexts", POOL, "pending += [(one.__cause__, False), (one.__context__, False)]", "pass", STATS + "time_out"),
    Mutant("exchanges behind open streams", POOL, "exchange = open_exchange(stream)\n            if exchange is not None:\n                found", "exchange = None\n            if exchange is not None:\n                found", LEFT + "books_are_right"),
    Mutant("responses whose pool cannot be put right later", POOL, "return generation() is listed and all(", "return True or all(", TABLE + "twice"),
    Mutant("pools inside other transports", POOL, "pending.append(value)", "pass", "test_steady.py writes_steadily", FROM_18),
    Mutant("one warning of a pool that is not known", POOL, "if not _warned:", "if True:", STATS + "not_understood"),
    Mutant("a warning of an httpcore that is not known", POOL, "fall_back(LookupError(version))", "pass", STATS + "known"),
    Mutant("what a failed request gives back at once", POOL, "listed.give_back_at_once(pool)", "pass", GIVING, LISTED),
    Mutant("what wait_for() had in hand", COMMON, "found = result[1] if isinstance(result, tuple) else None", "found = None", LEFT + "just_when", STREAMS and PYTHON < (3, 8)),
    Mutant("a socket that would wait for its peer", COMMON, "            transport.abort()\n", "", LEFT + "does_not_read", STREAMS),
    Mutant("a transport that is only aborted", COMMON, "            transport.close()  #", "            pass  #", LEFT + "just_when", STREAMS and PYTHON < (3, 7)),
    Mutant("a TLS handshake that was cut short", COMMON, 'getattr(protocol, "_app_transport", None) or writer.transport', "writer.transport", WAYS + "over_tls or connect_proxy", STREAMS and PYTHON < (3, 8)),
    Mutant("the preface comes once", COMMON, "return state.inbound_flow_control_window > 65535 and", "return False and", LEFT + "begun_once"),
    Mutant("what was received of a dead stream counts as read", COMMON, "state.acknowledge_received_data(size, stream_id)", "pass", LEFT + "counts_as_read"),
    Mutant("the peer is told of the end of a stream", COMMON, "state.reset_stream(stream_id, H2_CANCEL)", "pass", LEFT + "end_for_both", FROM_18),
    # -- httpcore 0.14
    Mutant("the dead request leaves the books", LIST, "pool._requests.remove(status)", "pool._requests.index(status)", SWEEP + "once", LISTED),
    Mutant("nobody looks for a request that has left", LIST, 'getattr(status, "_cancel_safe_is_out", False)', "False", SWEEP + "once", LISTED, survives="only time, see tests/benchmarks/growth.py"),
    Mutant("nobody looks for a connection that has left", LIST, 'if getattr(connection, "_cancel_safe_is_out", False):', "if False:", SWEEP + "once", LISTED, survives="only time, see tests/benchmarks/growth.py"),
    Mutant("a connection that was put back is looked for", LIST, "connection._cancel_safe_is_out = False", "pass", NEIGHBOURS + "http2", LISTED, survives="nobody waits for one that we took out, as far as we know"),
    Mutant("half open sockets are closed", LIST, "closers += [close_method(socket) for socket in self.sockets]", "pass", WAYS + "over_tls or connect_proxy", LISTED),
    Mutant("connections that it was closing for the pool", LIST, "_vacate(pool, other)\n                closers", "pass\n                closers", GIVING + "for_its_place", LISTED),
    Mutant("requests that wait are served", LIST, "        _serve_soon(pool, closers)", "        pass", GIVING + "served_when", LISTED),
    Mutant("a response that is settled leaves the pool alone", LIST, "self.stream._pool = Settled() if", "Settled() if", SWEEP + "stream", (0, 21) <= HTTPX < (0, 22)),
    Mutant("a request is found by its status", LIST, "if status.request is self.request:", "if False:", LEFT + "dropped", LISTED),
    Mutant("connections of others are left alone", LIST, "gone = is_ours or not _in_use(self.pool, connection)", "gone = True", "test_bystanders.py chaos and not without", LISTED),
    Mutant("an HTTP/2 stream ends", LIST, "self._end_stream(inner, closers)", "pass", LEFT + "given_up", LISTED),
    Mutant("nothing is written to a connection out of step", LIST, "if not self.is_out_of_step:", "if True:", LEFT + "cut_short", LISTED),
    Mutant("whoever else waits for a connection connects it", LIST, "gone = not _in_use(self.pool, connection)", "gone = True", "test_bystanders.py chaos and not without", LISTED),
    Mutant("a connection in the middle of a response is closed", LIST, "gone = is_ours or not _in_use(self.pool, connection)", "gone = False", SWEEP + "once", LISTED),
    Mutant("also where another has chosen it, too", LIST, "gone = is_ours or not", "gone = not", GIVING + "chosen_too", LISTED),
    Mutant("an unused connection goes to who waits for it", LIST, 'if not gone and inner._state.name == "NEW":', "if False:", GIVING + "chosen_too", LISTED),
    Mutant("a connection that is gone leaves the pool", LIST, "if gone:\n            _vacate(self.pool, connection)", "if gone:\n            pass", SWEEP + "once", LISTED),
    Mutant("a connection that is gone is closed", LIST, "closers.append(close_method(inner))", "pass", SWEEP + "once", LISTED),
    Mutant("nobody looks far for the one that ends first", LIST, "if connections and connections[-1] is connection:", "if False:", SWEEP + "once", LISTED, survives="only time, see tests/benchmarks/growth.py"),
    Mutant("places do not move under who holds the lock", LIST, "connections[place] = Vacant()", "del connections[place]", GIVING + "places", LISTED),
    Mutant("a permit for an HTTP/2 stream goes back", LIST, "run_now(inner._max_streams_semaphore.release())", "pass", LEFT + "end_for_both", LISTED),
    Mutant("its generator does not end a stream again", LIST, "self.body._closed = True  # and", "pass  # and", HTTP2 + "stream", LISTED),
    Mutant("a tunnel half open", LIST, '_note_tunnel(current, frame.f_locals, "_connected")', "pass", STATS + "tunnel", LISTED),
    Mutant("a SOCKS tunnel half open", LIST, '_note_tunnel(current, frame.f_locals, "_connection")', "pass", STATS + "tunnel", HTTPX >= (0, 22)),
    Mutant("a connection that was given back is others'", LIST, 'current.gave_back = current.gave_back or where == "connection_pool"', "pass", GIVING + "others_already", LISTED),
    Mutant("unless giving it back was cut short", LIST, "current.keeps = True", "pass", SWEEP + "once", LISTED, survives="no way is known in which another request refers to the connection by then"),
    Mutant("httpcore was closing the connection", LIST, "current.closing = True", "pass", GIVING + "was_closing", LISTED),
    Mutant("a write cut short", LIST, 'current.is_out_of_step = unsteady or getattr(stream, "is_out_of_step", False)', "pass", LEFT + "cut_short", LISTED),
    Mutant("a stream that says it is closed, and is not", LIST, 'if getattr(body, "_closed", False):\n        return True', "pass", SWEEP + "stream", LISTED),
    Mutant("idle connections expire", LIST, "inner._expire_at = time.monotonic() + inner._keepalive_expiry", "pass", LEFT + "expires", LISTED),
    Mutant("who waits gets an idle connection's place", LIST, "evicted, pool._pool[idle] = pool._pool[idle], pool.create_connection(origin)", "return None", GIVING + "fit", LISTED),
    Mutant("a pool gives back once", LIST, 'if "response_closed" in vars(pool):', "if False:", GIVING, LISTED, survives="what it would put there does the same"),
    Mutant("what goes well is left to the pool", LIST, "is_failed = error is not None and not isinstance(error, GeneratorExit)", "is_failed = True", GIVING, LISTED),
    Mutant("what was dropped is left to the pool", LIST, "is_failed = error is not None and not isinstance(error, GeneratorExit)", "is_failed = error is not None", LEFT + "dropped", LISTED),
    Mutant("trio's pools give back by themselves", LIST, 'if not is_failed or _closing.library() != "asyncio":', "if not is_failed:", GIVING, LISTED),
    Mutant("a failed request leaves the books", LIST, "        _take_out(pool, status)\n        connection", "        connection", GIVING, LISTED),
    Mutant("a failed request's connection leaves the pool", LIST, "            _vacate(pool, connection)\n        _serve", "            pass\n        _serve", GIVING, LISTED),
    Mutant("requests that wait for a failed one are served", LIST, "        _serve_soon(pool, [])", "        pass", GIVING, LISTED),
    Mutant("they are served once a pass of the loop", LIST, 'if getattr(pool, "_cancel_safe_due", None) is not loop:', "if True:", GIVING + "once_a_pass", LISTED),
    Mutant("and again in the next one", LIST, "        return\n    pool._cancel_safe_due = None", "        return\n    pass", GIVING, LISTED),
    Mutant("and again after who held the lock", LIST, "    async with pool._pool_lock:\n        pool._cancel_safe_due = None", "    async with pool._pool_lock:\n        pass", GIVING + "lock_goes", LISTED),
    Mutant("who holds the lock goes first", LIST, "def _serve_due(pool: Any) -> None:\n    if _is_held(pool):", "def _serve_due(pool: Any) -> None:\n    if False:", GIVING + "lock_goes", LISTED),
    Mutant("one that fails to close is told", LIST, 'warn_of("a clean-up failed", failure)', "pass", GIVING + "fit", LISTED),
    Mutant("who waits gets an idle connection that fits", LIST, "if connection.can_handle_request(origin) and connection.is_available():\n            return connection", "pass", GIVING + "fit", LISTED),
    Mutant("an HTTP/2 stream that is not at its end", LIST, "return stream_id is not None and is_unfinished(body._connection._h2_state, stream_id)", "return False", LEFT + "end_for_both", LISTED),
    Mutant("requests of another are not taken for a dropped one", LIST, "if status.request.extensions is request.extensions:", "if True:", GIVING + "dropped", LISTED),
    # -- httpcore 0.11 to 0.13
    Mutant("half open sockets are closed", COUNT, "closers += [close_method(socket) for socket in sockets]", "pass", WAYS + "over_tls or connect_proxy", COUNTED),
    Mutant("a lost permit goes back", COUNT, "_return_lost_permits(self.pool)", "pass", PERMITS + "together", STREAMS and PYTHON < (3, 8)),
    Mutant("a semaphore wakes others again", COUNT, "_wake_next(self.pool)", "pass", PERMITS + "together", STREAMS and (3, 9) <= PYTHON <= (3, 10)),
    Mutant("who waits for a connection is sent for a new one", COUNT, 'setattr(connection, _name(connection, "connect_failed"), True)', "pass", PERMITS + "who_share", STREAMS and PYTHON >= (3, 8)),
    Mutant("a connection half open leaves the books", COUNT, "_drop(pool, connection)\n                if", "pass\n                if", WAYS + "forward_proxy", COUNTED),
    Mutant("a connection half open is closed", COUNT, "closers.append(close_method(connection.socket))", "pass", WAYS + "connect_proxy", COUNTED),
    Mutant("who connects goes on", COUNT, 'if self.opens or not is_locked(getattr(connection, "_request_lock", None)):', "if True:", PERMITS + "who_share", STREAMS),
    Mutant("a connection that has failed is not put back", COUNT, 'elif not getattr(connection, _name(connection, "connect_failed")):', "else:", PERMITS + "has_failed", STREAMS and FROM_18),
    Mutant("a connection that was given back is others'", COUNT, "if self.gave_back and not is_h2 and state is not closed:", "if False:", LEFT + "given_back_is_others", COUNTED),
    Mutant("an HTTP/2 stream ends", COUNT, "self._end_stream(inner, closers)", "pass", LEFT + "end_for_both", COUNTED and FROM_18),
    Mutant("nothing is written to a connection out of step", COUNT, "if not self.is_out_of_step:", "if True:", LEFT + "cut_short", COUNTED and FROM_18),
    Mutant("no new request on an HTTP/2 connection out of step", COUNT, "if self.is_out_of_step:\n                state = closed", "pass", LEFT + "cut_short", COUNTED and FROM_18),
    Mutant("a connection that it had to itself is closed", COUNT, "state, busy = (state if state is idle else closed), False", "busy = False", WAYS + "forward_proxy", COUNTED),
    Mutant("a connection of others is left alone", COUNT, 'busy = state.name == "ACTIVE"  # With', "busy = False  # With", PERMITS + "who_connected or idle_connection", COUNTED),
    Mutant("what httpcore took out is put back", COUNT, "if state is not closed and busy:\n            _restore(pool, connection)", "if state is not closed and busy:\n            pass", PERMITS + "who_share or others_use", COUNTED and FROM_18),
    Mutant("an unused connection is idle", COUNT, "setattr(inner, state_name, idle)", "pass", LEFT + "expires", COUNTED and FROM_18, survives="httpcore does so itself when it closes the response" if STREAMS else ""),
    Mutant("idle connections expire", COUNT, "_expire_later(pool, connection, inner)", "pass", LEFT + "expires", COUNTED and FROM_18, survives="httpcore does so itself when it closes the response" if STREAMS else ""),
    Mutant("a connection that is gone leaves the books", COUNT, "_drop(pool, connection)\n            closers", "pass\n            closers", WAYS + "forward_proxy", COUNTED),
    Mutant("a connection that is gone is closed", COUNT, "closers.append(close_method(inner.socket))", "pass", SWEEP + "once", COUNTED),
    Mutant("a permit for an HTTP/2 stream goes back", COUNT, "if self.has_permit:\n                run_now", "if False:\n                run_now", LEFT + "end_for_both", COUNTED and FROM_18),
    Mutant("unless httpcore gave it back", COUNT, "current.has_permit = not isinstance(error, Exception)", "current.has_permit = True", PERMITS + "others_use", COUNTED and FROM_18),
    Mutant("a tunnel half open", COUNT, 'current.connection = local["proxy_connection"]', "pass", WAYS + "connect_proxy", COUNTED),
    Mutant("idle connections that it was taking out", COUNT, 'current.dropped += local.get("connections_to_close", ())', "pass", WAYS + "idle_connections", COUNTED),
    Mutant("a write cut short", COUNT, 'current.is_out_of_step = getattr(stream, "is_out_of_step", True)', "pass", LEFT + "cut_short", COUNTED and FROM_18),
    Mutant("a permit that is owed", COUNT, '_owe_permit(pool._connection_semaphore, hasattr(pool, "aclose"))', "pass", PERMITS + "who_share or others_use", COUNTED and FROM_18),
    Mutant("an HTTP/2 stream that is not at its end", COUNT, "return is_unfinished(state, _stream_id(stream))", "return False", LEFT + "end_for_both", COUNTED and FROM_18),
    Mutant("TLS that would wait for its peer", COUNT, 'return h11_state.their_state is not sys.modules["h11"].DONE', "return False", LEFT + "sends_on", STREAMS and HTTPX < (0, 16) and PYTHON > (3, 6)),
    Mutant("TLS that is at its end stays", COUNT, 'return h11_state.their_state is not sys.modules["h11"].DONE', "return True", LEFT + "tls", STREAMS),
    # -- Steady writes
    Mutant("steady writes", STEADY, "effort = await _closing.uninterrupted(work, seconds)", "effort = await work", NEIGHBOURS + "http2" if LISTED else HTTP2 + "get"),
    Mutant("a cancel goes on after a write", STEADY, "await effort.let_cancel()", "pass", LEFT + "is_written and headers", FROM_18),
    Mutant("writes have no limit on trio", STEADY, "seconds = math.inf", "seconds = 0", HTTP2 + "trio"),
    Mutant("a write that was given up", STEADY, "self.is_out_of_step = self.is_out_of_step or effort.timed_out", "pass", LEFT + "cut_short", FROM_18),
    Mutant("steady writes on TLS", STEADY, "make_steady(secure, close_timeout)", "pass", NEIGHBOURS + "http2", LISTED),
    Mutant("the preface comes once in a write", STEADY, 'data = data[: len(PREFACE)] + data[len(PREFACE) :].replace(PREFACE, b"")', "pass", "test_steady.py preface", FROM_18),
    Mutant("a cancel while the preface is written goes on later", STEADY, "if is_preface:\n                effort.redeliver(None)", "if False:\n                effort.redeliver(None)", LEFT + "for_the_preface", FROM_18),
    Mutant("what wait_for() had read is kept", STEADY, "self.unread = data or self.unread", "pass", "test_steady.py unread", FROM_18),
    Mutant("what others wait for was not read", STEADY, "if isinstance(data, bytes):", "if True:", "test_steady.py unread", FROM_18),
    Mutant("what is left to read does not make a close fail", STEADY, 'if type(exc).__name__ != "CloseError":', "if True:", "test_steady.py left_to_read", FROM_18),
    Mutant("what else goes wrong in a close is told", STEADY, 'if type(exc).__name__ != "CloseError":', "if False:", "test_steady.py left_to_read", FROM_18),
    Mutant("what wait_for() had read comes first", STEADY, "if self.unread:", "if False:", "test_steady.py unread", FROM_18),
    Mutant("what wait_for() had read comes once", STEADY, 'data, self.unread = self.unread, b""', "data = self.unread", "test_steady.py unread", FROM_18),
    Mutant("a read that failed leaves nothing", COMMON, "future.result() if is_ready and future.exception() is None else None", "future.result() if is_ready else None", "test_steady.py unread", FROM_18),
    Mutant("a read that was cancelled leaves nothing", COMMON, "future.done() and not future.cancelled()", "future.done()", "test_steady.py unread", FROM_18),
    Mutant("what old ones read is kept", STEADY, "mixin = OldPythonMixin", "pass", "test_steady.py unread", FROM_18 and PYTHON < (3, 10)),
    Mutant("HTTP/1.1 is left alone", STEADY, "return stream if http1 else make_steady(stream, close_timeout)", "return make_steady(stream, close_timeout)", "test_steady.py", LISTED),
    Mutant("HTTP/2 alone is steady", STEADY, "return stream if http1 else make_steady(stream, close_timeout)", "return stream", "test_steady.py", LISTED),
    Mutant("TLS without HTTP/2 is left alone", STEADY, 'if chosen == "h2" or not http1:', "if True:", "test_steady.py", LISTED),
    Mutant("HTTP/1.1 is left alone", STEADY, 'if stream.get_http_version() == "HTTP/2" or not self._http1:', "if True:", "test_steady.py", COUNTED and FROM_18),
    Mutant("a tunnel's connection writes steadily", STEADY, "backend._counted(connection.socket)", "pass", "test_steady.py tunnel", COUNTED and FROM_18),
    Mutant("a pool is prepared once", STEADY, "if not isinstance(pool._network_backend, Backend):", "if True:", "test_steady.py", LISTED),
    Mutant("a pool is prepared once", STEADY, 'if "_add_to_pool" in pool.__dict__:\n        return', "pass", "test_steady.py", COUNTED and FROM_18),
    # -- The patch, the switch, and what is told
    Mutant("one net however often it is asked for", PATCHING, "if _is_guarded(current):\n                continue", "pass", PATCH + "one_net"),
    Mutant("a net that is not ours to see", PATCHING, "return any(_is_ours(layer) for layer in layers(function))", "return _is_ours(function)", PATCH + "tool"),
    Mutant("patch() from several threads", PATCHING, "    with _lock:\n        was_active", "    if True:\n        was_active", PATCH + "first_two"),
    Mutant("unpatch() makes a net under others inert", PATCHING, "        _settings.active = False\n", "", PATCH + "tool"),
    Mutant("unpatch() takes ours off", PATCHING, "owner.send = taken_off[-1].__wrapped__", "break", PATCH + "unpatch"),
    Mutant("is_patched() looks at the classes", PATCHING, 'and all(_is_guarded(owner.__dict__["send"]) for owner in _classes())', "", PATCH + "tool"),
    Mutant("a net that was lost is told", PATCHING, "if was_active:\n                logger", "if False:\n                logger", PATCH + "took_off"),
    Mutant("patched() leaves what was before", PATCHING, "if before is None:", "if True:", PATCH + "patched"),
    Mutant("the switch, for patch()", PATCHING, "if switched_off():\n        logger", "if False:\n        logger", AUTO),
    Mutant("the switch, for the classes", PATCHING, "if switched_off() or not", "if not", AUTO),
    Mutant("a switch that means nothing", PATCHING, "if switch is None:", "if False:", AUTO),
    Mutant("a close_timeout that is no number", PATCHING, "if isinstance(value, bool) or not", "if not", PATCH + "close_timeout"),
    Mutant("a close_timeout without end", PATCHING, 'if not 0 < value < float("inf"):', "if not 0 < value:", PATCH + "close_timeout"),
    Mutant("the missing cgi", PATCHING, 'if getattr(exc, "name", None) == "cgi":', "if False:", RELEASES + "cgi", PYTHON >= (3, 13)),
    Mutant("counts belong together", "_stats.py", "        counts = dict(_counts)", "        pass\n    counts = _counts", STATS + "belong"),
    Mutant("counts are not lost between threads", "_stats.py", "    with _lock:\n        for name in names:\n            _counts[name] += 1", "    for name in names:\n        _counts[name] += 1", STATS + "no_count_is_lost"),
    Mutant("warnings do not tell what an exception says", "_stats.py", "type(exc).__name__, where", "exc, where", STATS + "close_that"),
    Mutant("a logger that is silent by itself", "_stats.py", "logger.addHandler(logging.NullHandler())", "", STATS + "no_logging"),
    Mutant("auto never raises", "auto.py", "except Exception:", "except ZeroDivisionError:", AUTO + "whatever"),
]


def run(tests, source):
    """Return whether the tests pass with this source; what makes no sense is an error."""
    file, _, words = tests.partition(" ")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-o", "timeout_method=thread", "tests/" + file]
    if words.strip():
        command += ["-k", words.strip().rpartition(" and")[0] if words.endswith(" and ") else words]
    environment = dict(os.environ, SLOW="1", CHAOS_SEEDS="2", PYTEST_TIMEOUT="60")
    environment["PYTHONPATH"] = os.pathsep.join([str(source), str(ROOT)])
    try:
        done = subprocess.run(
            command, cwd=str(ROOT), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            universal_newlines=True, timeout=300,
        )
    except subprocess.TimeoutExpired:
        return False
    if done.returncode not in (0, 1):
        sys.exit(f"{shlex.join(command)} did not run:\n{done.stdout}")
    return done.returncode == 0


def judge(mutant, folder):
    """Return "killed" or "survived"."""
    source = folder / "src"
    shutil.copytree(str(ROOT / "src"), str(source))
    try:
        path = source / "httpx_cancel_safe" / mutant.file
        text = path.read_text()
        if text.count(mutant.old) != 1:
            sys.exit(f"{mutant.file}: {text.count(mutant.old)} times, not once:\n{mutant.old}")
        path.write_text(text.replace(mutant.old, mutant.new))
        return "survived" if run(mutant.tests, source) else "killed"
    finally:
        shutil.rmtree(str(source))


def main(words):
    wanted = [one for one in MUTANTS if one.here and " ".join(words) in one.what + " " + one.file]
    for tests in sorted({one.tests for one in wanted}):
        if not run(tests, ROOT / "src"):
            sys.exit(f"fails without any mutant: {tests}")
    unexpected = 0
    for mutant in wanted:
        with tempfile.TemporaryDirectory() as folder:
            outcome = judge(mutant, pathlib.Path(folder))
        expected = "survived" if mutant.survives else "killed"
        unexpected += outcome != expected
        remark = mutant.survives or ("" if outcome == expected else "NOT EXPECTED")
        print(f"{outcome:8}  {mutant.file}: {mutant.what}  {remark}", flush=True)
    print(f"{len(wanted)} mutants, {unexpected} not as expected")
    return unexpected > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
