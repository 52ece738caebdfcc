"""Whatever ends a request, its responses are closed to the end, and that very thing comes out.

See tests/support/custom.py for the engine. A failing test prints one line a point; the table as
a whole is printed by `python -m tests.support.custom`.
"""

import asyncio
import contextlib
import http.cookiejar
import logging
import sys

import anyio
import pytest

from tests.support import custom
from tests.support.compat import scope_problem, trio_problem

if custom.FIXED:
    pytest.skip(
        "httpx %s has PR #2156: nothing is patched here" % custom.httpx.__version__,
        allow_module_level=True,
    )

import httpx

import httpx_cancel_safe
from httpx_cancel_safe import _send

NETS = ["patch", "class"]

NO_TRIO = trio_problem() if custom.trio else "trio cannot be imported"

needs_scopes = pytest.mark.skipif(bool(scope_problem()), reason=str(scope_problem()))
needs_trio = pytest.mark.skipif(bool(NO_TRIO), reason=str(NO_TRIO))

LIBRARIES = ["asyncio", pytest.param("trio", marks=needs_trio)]


def _cells():
    for library in LIBRARIES:
        name = getattr(library, "values", [library])[0]
        marks = getattr(library, "marks", ())
        for mode in custom.MODES[name]:
            more = [needs_scopes] if mode == "scope" else []
            yield pytest.param(name, mode, marks=list(marks) + more)


CELLS = list(_cells())


def some_cells(*wanted):
    return [cell for cell in CELLS if cell.values[1] in wanted]


def check(count, lost=(), at_least=1):
    assert count.points >= at_least
    faults = count.lines + list(lost)
    assert not faults, "%s\n%s" % (count, "\n".join(faults))


@pytest.fixture(params=NETS)
def client_class(request):
    with custom.net(request.param) as (async_client, _):
        yield async_client


@pytest.fixture(params=NETS)
def sync_client_class(request):
    with custom.net(request.param) as (_, sync_client):
        yield sync_client


@pytest.fixture
def patched_client():
    with httpx_cancel_safe.patched():
        yield httpx.AsyncClient


# -- The table ---------------------------------------------------------------------------------


@pytest.mark.parametrize("library, mode", CELLS)
def test_every_point_is_clean(client_class, library, mode):
    count = custom.Tally()
    with custom.quietly() as lost:
        for name, scenario in custom.SCENARIOS.items():
            results = custom.sweep(library, scenario, mode, client_class)
            count.add("%s, %s, %s" % (library, name, mode), results)
    check(count, lost, at_least=150)


def test_without_the_net_the_same_table_is_full_of_faults():
    """A part of it is enough: on asyncio alone about 550, and 430 before httpx 0.18."""
    modes = {"asyncio": ["once", "twice+1", "Abort", "drop"], "trio": ["scope", "Abort"]}
    if not scope_problem():
        modes["asyncio"].append("scope")
    if NO_TRIO:
        del modes["trio"]
    count = custom.Tally()
    with custom.quietly():
        for library, its_modes in modes.items():
            for mode in its_modes:
                for scenario in custom.SCENARIOS.values():
                    count.add("", custom.sweep(library, scenario, mode, httpx.AsyncClient))
    assert count.faulty > 300, str(count)


# -- When nothing goes wrong -------------------------------------------------------------------


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("scenario", sorted(custom.SCENARIOS))
@pytest.mark.parametrize("net", NETS)
def test_nothing_is_added_to_a_request_that_goes_well(library, scenario, net):
    """No suspension, no task, and no frame of ours between the reader and the stream."""
    tasks, ours = set(), []

    def look_around():
        if library == "asyncio":
            tasks.update(custom.all_tasks())
        frame = sys._getframe()
        while frame is not None:
            if frame.f_globals.get("__name__", "").startswith("httpx_cancel_safe"):
                ours.append(frame.f_code.co_name)
            if frame.f_code.co_name == "aiter_raw" and scenario != "stream":
                return  # What follows is `send`, which is guarded.
            frame = frame.f_back

    def run(client_class):
        tasks.clear()
        case = custom.Case(library, on_chunk=look_around)
        run = custom.RUNS[library](custom.SCENARIOS[scenario], "", 0, client_class, case)
        result = run()
        assert result.faults == [] and result.records == []
        return result.suspensions, len(tasks)

    without = run(httpx.AsyncClient)
    with custom.net(net) as (client_class, _):
        assert run(client_class) == without
    assert ours == []


# -- Closes that go wrong ----------------------------------------------------------------------


@pytest.mark.parametrize("error", [custom.Refused, custom.Abort])
@pytest.mark.parametrize(
    "library, mode", some_cells("once", "twice+1", "scope", "Abort", "late+2", "drop")
)
def test_a_close_that_raises_is_logged_and_not_raised(client_class, library, mode, error):
    count = custom.Tally()
    with custom.quietly() as lost:
        for name in ("body", "redirect", "hooks", "stream"):
            results = custom.sweep(
                library, custom.SCENARIOS[name], mode, client_class, close_error=error("closing")
            )
            count.add("%s, %s, %s" % (library, name, mode), results)
    check(count, lost, at_least=50)


@pytest.mark.parametrize("library, mode", some_cells("once", "twice+1", "scope", "Abort", "drop"))
@pytest.mark.parametrize("stubborn", [1, 3])
def test_a_close_that_hangs_is_given_up(library, mode, stubborn):
    """`stubborn`: it swallows the cancel that ends it, and waits on."""
    if stubborn > 1 and library == "trio":
        pytest.skip("trio cancels a wait again and again: no stream can be stubborn there")
    count = custom.Tally()
    with custom.quietly() as lost, httpx_cancel_safe.patched(close_timeout=0.05):
        for at in (4, 6):  # While the body is read, and while the stream is closed.
            if (library, mode, at) == ("trio", "drop", 6):
                continue  # Nobody is left to wait: see Run.is_judged_when_dropped().
            before = httpx_cancel_safe.stats().timed_out
            case = custom.Case(library, close_hangs=stubborn)
            result = custom.RUNS[library](custom.body, mode, at, httpx.AsyncClient, case)()
            given_up = httpx_cancel_safe.stats().timed_out - before
            if mode == "Abort" and at == 6:
                # The close itself raised: nothing is left that could hang.
                count.add(mode, [(at, result)])
                continue
            result.faults = [text for text in result.faults if "close cut short" not in text]
            if given_up != 1:
                result.fault("stats() counts %d given up" % given_up)
            if not any(record.levelno == logging.WARNING for record in result.records):
                result.fault("no warning: %r" % result.records)
            if not (0.03 if mode != "drop" else 0) <= result.seconds < 2:
                result.fault("the caller was kept for %.2f s" % result.seconds)
            count.add("%s, %s" % (library, mode), [(at, result)])
    check(count, lost)


class Slow(custom.AsyncStreamBase):
    """A stream that takes `seconds` to close."""

    closed = False

    def __init__(self, seconds):
        self.seconds = seconds

    async def __aiter__(self):
        yield b""

    async def aclose(self):
        await anyio.sleep(self.seconds)
        self.closed = True


class SlowTransport(custom.AsyncAdapter):
    def __init__(self, stream):
        self.stream = stream

    async def exchange(self, asked):
        return 200, [], self.stream


@needs_scopes
def test_a_close_that_nobody_cancels_takes_its_time():
    """Not on trio, which does not tell a close that is cancelled from one that is not."""
    stream = Slow(0.05)

    async def main():
        with anyio.CancelScope():
            async with httpx.AsyncClient(transport=SlowTransport(stream)) as client:
                await client.get(custom.URL)

    before = httpx_cancel_safe.stats().timed_out
    with httpx_cancel_safe.patched(close_timeout=0.01):
        anyio.run(main)
    assert stream.closed
    assert httpx_cancel_safe.stats().timed_out == before


class Spinning(Slow):
    """A stream whose close never ends, and never waits for anything that could be cancelled."""

    async def aclose(self):
        while True:
            await asyncio.sleep(0)


async def aborted_request(stream):
    async with httpx.AsyncClient(transport=SlowTransport(stream)) as client:
        client.cookies.extract_cookies = abort
        with pytest.raises(custom.Abort):
            await client.get(custom.URL)


def abort(response):
    raise custom.Abort


class Unstoppable(Slow):
    """A stream whose close does not mind being cancelled, however often."""

    async def aclose(self):
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)


@pytest.mark.parametrize("kind", [Spinning, Unstoppable])
def test_a_close_that_spins_is_given_up(kind):
    before = httpx_cancel_safe.stats().timed_out
    with httpx_cancel_safe.patched(close_timeout=0.01):
        anyio.run(aborted_request, kind(0))
    assert httpx_cancel_safe.stats().timed_out == before + 1


class CancelledMeanwhile(Slow):
    async def __aiter__(self):
        yield b""
        raise custom.Refused

    async def aclose(self):
        asyncio.get_event_loop().call_soon(custom.current_task().cancel)
        for _ in range(3):
            await asyncio.sleep(0)
        self.closed = True


def test_an_error_for_which_httpx_closes_comes_out_before_a_cancel_that_came_meanwhile():
    stream = CancelledMeanwhile(0)

    async def main():
        client = httpx.AsyncClient(transport=SlowTransport(stream))
        with pytest.raises(custom.Refused):
            await client.get(custom.URL)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(0)
        if hasattr(asyncio.Task, "uncancel"):
            custom.current_task().uncancel()
        await client.aclose()

    with httpx_cancel_safe.patched():
        anyio.run(main)
    assert stream.closed


@needs_scopes
def test_a_scope_that_is_cancelled_beside_an_error_ends_with_the_block():
    """What was held back for it must not come out of it once more."""
    closed = []

    class Cancelled(CancelledMeanwhile):
        async def aclose(self):
            asyncio.get_event_loop().call_soon(scope.cancel)
            for _ in range(3):
                await asyncio.sleep(0)
            closed.append(True)

    async def main():
        nonlocal scope
        client = httpx.AsyncClient(transport=SlowTransport(Cancelled(0)))
        scope = anyio.CancelScope()
        with contextlib.suppress(custom.Refused), scope:
            await client.get(custom.URL)
        await asyncio.sleep(0)
        await client.aclose()

    scope = None
    with httpx_cancel_safe.patched():
        anyio.run(main)
    assert closed == [True]


class CancelledBySteps(Slow):
    """Its scope or its task is cancelled, or it raises, while it is read; its task while it closes."""

    scope = None

    def __init__(self, first):
        self.first = first

    async def __aiter__(self):
        yield b""
        if self.first == "error":
            raise custom.Refused
        (custom.current_task() if self.first == "task" else self.scope).cancel()
        await anyio.sleep_forever()

    async def aclose(self):
        if self.first != "task":
            asyncio.get_event_loop().call_soon(self.scope.cancel)
        asyncio.get_event_loop().call_soon(custom.current_task().cancel)
        for _ in range(3):
            await asyncio.sleep(0)
        self.closed = True


@needs_scopes
@pytest.mark.parametrize("first", ["error", "scope", "task"])
def test_a_task_that_is_cancelled_while_it_closes_is_told_once(first):
    """Whatever goes on its way first: a scope takes its own cancel, and not the task's."""
    stream = CancelledBySteps(first)
    told = []

    async def main():
        client = httpx.AsyncClient(transport=SlowTransport(stream))
        try:
            with contextlib.suppress(custom.Refused), anyio.CancelScope() as stream.scope:
                await client.get(custom.URL)
        except asyncio.CancelledError:
            told.append("by the request")
        try:
            for _ in range(3):
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            told.append("by the next wait")
        task = custom.current_task()
        while getattr(task, "cancelling", bool)():
            task.uncancel()
        await client.aclose()

    with httpx_cancel_safe.patched():
        anyio.run(main)
    assert stream.closed
    assert len(told) == 1, told


@needs_scopes
def test_a_close_that_fails_to_leave_its_scope_hides_no_cancel_from_it():
    class Entered(Slow):
        scope = None

        async def aclose(self):
            raise custom.Refused

    stream = Entered(0)

    class Transport(SlowTransport):
        async def exchange(self, asked):
            stream.scope = anyio.CancelScope().__enter__()
            return 200, [], stream

    async def main():
        client = httpx.AsyncClient(transport=Transport(stream))
        reached = []
        with anyio.CancelScope() as outer:
            with pytest.raises(custom.Refused):
                await client.get(custom.URL)
            outer.cancel()
            try:
                await anyio.sleep(1)
            except asyncio.CancelledError:
                reached.append(True)
            stream.scope.__exit__(None, None, None)
        await client.aclose()
        assert reached == [True]

    with httpx_cancel_safe.patched():
        anyio.run(main)


@needs_trio
@pytest.mark.filterwarnings("ignore:Exception ignored in. <async_generator object Auth")  # httpx up to 0.17
def test_a_close_that_waits_as_trio_does_not_fails_and_no_more():
    before = httpx_cancel_safe.stats().failed
    with httpx_cancel_safe.patched():
        custom.trio.run(aborted_request, Spinning(0))
    assert httpx_cancel_safe.stats().failed == before + 1


class Unfinished(Slow):
    async def __aiter__(self):
        await asyncio.sleep(0)
        yield b""


def test_a_request_that_is_dropped_after_its_loop_is_cleaned_up_as_far_as_httpx_can(caplog):
    """Without a loop that is not far: to close a response it asks for the time first."""
    anyio.run(anyio.sleep, 0)  # From here on there is a backend that is asked for its scopes.
    client = httpx.AsyncClient(transport=SlowTransport(Unfinished(0)))
    request = client.get(custom.URL)

    async def begin():
        request.send(None)

    with httpx_cancel_safe.patched():
        loop = asyncio.new_event_loop()
        loop.run_until_complete(begin())
        loop.close()
        request.close()
    assert "a clean-up failed: AsyncLibraryNotFoundError" in caplog.text
    anyio.run(client.aclose)


def test_a_request_that_is_dropped_while_it_cleans_up_is_cleaned_up_by_another_task():
    stream = Slow(0.01)

    async def main():
        request = aborted_request(stream)
        request.send(None)
        request.close()
        assert not stream.closed
        await asyncio.wait(custom.all_tasks() - {custom.current_task()})
        assert stream.closed

    with httpx_cancel_safe.patched():
        anyio.run(main)


def test_a_clean_up_of_a_dropped_request_that_hangs_is_given_up_and_told():
    async def main():
        request = aborted_request(Spinning(0))
        request.send(None)
        request.close()
        await asyncio.wait(custom.all_tasks() - {custom.current_task()})

    before = httpx_cancel_safe.stats().timed_out
    with httpx_cancel_safe.patched(close_timeout=0.01):
        anyio.run(main)
    assert httpx_cancel_safe.stats().timed_out == before + 1


def test_a_client_that_was_watched_is_left_alone_afterwards():
    async def main():
        async with httpx.AsyncClient(transport=SlowTransport(Slow(0))) as client:
            for on in (True, False):
                if on:
                    httpx_cancel_safe.patch()
                request = client.build_request("GET", custom.URL)
                response = await client.send(request, stream=True)
                assert (_send._guard_of(response) is not None) is on
                await response.aclose()
                httpx_cancel_safe.unpatch()

    anyio.run(main)


def test_transports_that_refer_to_each_other_are_looked_through_once():
    class Transport(SlowTransport):
        pass

    one, other = Transport(Slow(0)), Transport(Slow(0))
    one.other, other.other = other, one

    async def main():
        async with httpx.AsyncClient(transport=one) as client:
            return (await client.get(custom.URL)).content

    with httpx_cancel_safe.patched():
        assert anyio.run(main) == b""


class FailingJar(http.cookiejar.CookieJar):
    """A cookie jar whose file, say, cannot be written."""

    def __init__(self, error):
        http.cookiejar.CookieJar.__init__(self)
        self.error = error

    def extract_cookies(self, response, request):
        raise self.error


@pytest.mark.parametrize("error", [custom.Refused, custom.Abort, KeyboardInterrupt])
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("scenario", ["body", "redirect", "stream", "auth_flow"])
def test_a_failing_cookie_jar(client_class, library, scenario, error):
    raised = error("cookies")
    case = custom.Case(library, cookies=FailingJar(raised))
    run = custom.RUNS[library](custom.SCENARIOS[scenario], "", 0, client_class, case)
    # So that what comes out is looked at.
    case.interrupted, case.raises = True, raised
    run.frame = ""
    result = run()
    assert result.error is raised
    assert result.faults == []
    assert len(case.streams) == 1


# -- Streams and transports with needs of their own --------------------------------------------


def _needs():
    for cell in some_cells("once", "twice+1", "twice+3", "storm", "scope", "Abort"):
        kinds = custom.NEEDS_ANYWHERE
        if cell.values[0] == "asyncio":
            kinds = kinds + custom.NEEDS_ASYNCIO
        for kind in kinds:
            yield pytest.param(
                *(cell.values + (kind,)),
                marks=cell.marks,
                id="-".join(cell.values + (kind.__name__,))
            )


@pytest.mark.parametrize("library, mode, kind", list(_needs()))
def test_a_stream_with_needs_of_its_own(patched_client, library, mode, kind):
    count = custom.Tally()
    with custom.quietly() as lost:
        for name in ("body", "stream"):
            results = custom.sweep(
                library, custom.SCENARIOS[name], mode, patched_client, stream_class=kind
            )
            count.add("%s, %s, %s, %s" % (library, name, mode, kind.__name__), results)
    check(count, lost, at_least=16)


@pytest.mark.parametrize(
    "library, mode", some_cells("once", "twice+1", "storm", "scope", "Abort", "drop")
)
@pytest.mark.parametrize("kind", ["retry", "cache", "asgi"])
def test_transports_that_are_not_a_pool(client_class, library, mode, kind):
    options = {
        "retry": {"transport_class": custom.RetryTransport},
        "cache": {"stream_class": custom.CachingStream},
        "asgi": {"transport_class": custom.asgi_transport},
    }[kind]
    count = custom.Tally()
    with custom.quietly() as lost:
        for name in ("body", "hooks" if kind == "asgi" else "redirect", "stream"):
            results = custom.sweep(
                library, custom.SCENARIOS[name], mode, client_class, **options
            )
            count.add("%s, %s, %s, %s" % (library, name, mode, kind), results)
    check(count, lost, at_least=12)


# -- A limit inside a limit --------------------------------------------------------------------


@needs_scopes
@pytest.mark.parametrize("level", ["inner", "outer", "both"])
@pytest.mark.parametrize("limits", custom.LIMITS)
@pytest.mark.parametrize("scenario", ["redirect", "stream"])
def test_the_limit_that_ran_out_is_the_one_that_ends(patched_client, scenario, limits, level):
    if custom.LEAKY_SCOPES and limits is custom.scope_in_scope and level == "both":
        pytest.skip("anyio 3 lets a cancel out of two cancelled scopes")
    count = custom.Tally()
    with custom.quietly() as lost:
        results = custom.every_point(
            lambda at: custom.NestedRun(
                custom.SCENARIOS[scenario], limits, level, at, patched_client
            )
        )
        count.add("%s, %s, %s" % (scenario, limits.__name__, level), results)
    check(count, lost, at_least=8)


@needs_trio
@pytest.mark.parametrize("level", ["inner", "outer"])
@pytest.mark.parametrize("scenario", ["redirect", "stream"])
def test_the_scope_that_was_cancelled_is_the_one_that_ends(patched_client, scenario, level):
    count = custom.Tally()
    with custom.quietly() as lost:
        results = custom.every_point(
            lambda at: custom.NestedTrioRun(custom.SCENARIOS[scenario], level, at, patched_client)
        )
        count.add("%s, %s" % (scenario, level), results)
    check(count, lost, at_least=8)


# -- The sync client ---------------------------------------------------------------------------

ERRORS = [KeyboardInterrupt, SystemExit, custom.Abort, custom.Refused]


def sync_count(client_class, scenario, error, **options):
    count = custom.Tally()
    with custom.quietly() as lost:
        results = custom.every_point(
            lambda at: custom.SyncRun(
                custom.SYNC_SCENARIOS[scenario], error("sync"), at, client_class, **options
            )
        )
        count.add("%s, %s" % (scenario, error.__name__), results)
    return count, lost


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("scenario", sorted(custom.SYNC_SCENARIOS))
def test_the_sync_client(sync_client_class, scenario, error):
    check(*sync_count(sync_client_class, scenario, error), at_least=4)


@pytest.mark.parametrize("error", [custom.Abort, LookupError])
@pytest.mark.parametrize("scenario", ["body", "redirect", "hooks", "stream"])
def test_the_sync_client_when_the_close_raises_too(sync_client_class, scenario, error):
    check(*sync_count(sync_client_class, scenario, error, close_error=custom.Refused("x")))


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("scenario", ["body", "redirect", "stream"])
def test_the_sync_client_with_a_failing_cookie_jar(sync_client_class, scenario, error):
    raised = error("cookies")
    run = custom.SyncRun(
        custom.SYNC_SCENARIOS[scenario], raised, 0, sync_client_class, cookies=FailingJar(raised)
    )
    run.case.interrupted = True
    result = run()
    assert result.error is raised
    assert [stream.closed_to_end for stream in run.case.streams] == [1]


def test_the_sync_client_without_the_net():
    """The sync table can fail, too."""
    faulty = sum(
        sync_count(httpx.Client, scenario, KeyboardInterrupt)[0].faulty
        for scenario in custom.SYNC_SCENARIOS
    )
    assert faulty >= 10
