"""Putting the net in place and taking it off again, alone and among other tools that wrap `send`."""

import asyncio
import inspect
import random
import threading
import time

import httpx
import pytest
import wrapt

import httpx_cancel_safe
from httpx_cancel_safe import _patch, _send
from tests.support.custom import Adapter, AsyncAdapter, AsyncStreamBase, StreamBase

RELEASE = tuple(int(part) for part in httpx.__version__.split(".")[:2])

pytestmark = pytest.mark.skipif(RELEASE >= (0, 23), reason="this httpx needs no net")

# The classes where they are defined: tools replace the names in httpx by subclasses.
AsyncClient = httpx._client.AsyncClient
Client = httpx._client.Client


class Abort(BaseException):
    """Not an Exception, as a cancellation."""


def abort(response):
    raise Abort


class AsyncStream(AsyncStreamBase):
    def __init__(self):
        self.closed = 0

    async def __aiter__(self):
        yield b""

    async def aclose(self):
        self.closed += 1


class Stream(StreamBase):
    def __init__(self):
        self.closed = 0

    def __iter__(self):
        yield b""

    def close(self):
        self.closed += 1


# The requests here end while httpx extracts the cookies: a response is open then, and no httpx that
# is served closes it, on any Python.


def closes(client_class=None):
    """How often the response of a request that is aborted gets closed: 0 without a net, 1 under one."""
    stream = AsyncStream()

    class Transport(AsyncAdapter):
        async def exchange(self, asked):
            return 200, [], stream

    async def request():
        async with (client_class or AsyncClient)(transport=Transport()) as client:
            client.cookies.extract_cookies = abort
            with pytest.raises(Abort):
                await client.get("http://custom.test")

    finish(request())
    return stream.closed


def finish(coroutine):
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()


def sync_closes(client_class=None):
    stream = Stream()

    class Transport(Adapter):
        def exchange(self, asked):
            return 200, [], stream

    with (client_class or Client)(transport=Transport()) as client:
        client.cookies.extract_cookies = abort
        with pytest.raises(Abort):
            client.get("http://custom.test")
    return stream.closed


def test_a_client_that_was_used_under_the_net_goes_on_without_it():
    stream = Stream()

    class Transport(Adapter):
        def exchange(self, asked):
            return 200, [], stream

    with Client(transport=Transport()) as client:
        with httpx_cancel_safe.patched():
            client.get("http://custom.test")
        client.get("http://custom.test")
        before = stream.closed
        client.cookies.extract_cookies = abort
        with pytest.raises(Abort):
            client.get("http://custom.test")
    assert (before, stream.closed) == (2, 2)


def net_holds():
    """Whether both clients are safe; what is_patched() has to say."""
    found = closes(), sync_closes()
    assert found in [(0, 0), (1, 1)]
    return found == (1, 1)


def layers(client_class):
    """How many wrappers lie around the send of httpx."""
    count, function = 0, vars(client_class)["send"]
    while hasattr(function, "__wrapped__"):
        count, function = count + 1, function.__wrapped__
    return count


@pytest.fixture(autouse=True)
def own_send():
    """The send methods of httpx itself; back in their places afterwards."""
    originals = {cls: vars(cls)["send"] for cls in (AsyncClient, Client)}
    yield originals
    httpx_cancel_safe.unpatch()
    for cls, original in originals.items():
        cls.send = original


def is_untouched(own_send):
    return all(vars(cls)["send"] is original for cls, original in own_send.items())


# -- Alone -------------------------------------------------------------------------------------


def test_patch_puts_the_net_in_place_and_unpatch_takes_it_off(own_send):
    assert not httpx_cancel_safe.is_patched() and not net_holds()
    for _ in range(2):
        assert httpx_cancel_safe.patch() is True
        assert httpx_cancel_safe.is_patched() and net_holds()
        httpx_cancel_safe.unpatch()
        assert not httpx_cancel_safe.is_patched() and not net_holds()
        assert is_untouched(own_send)


def test_patching_twice_makes_one_net(own_send):
    httpx_cancel_safe.patch()
    once = {cls: vars(cls)["send"] for cls in own_send}
    assert httpx_cancel_safe.patch() is True
    assert is_untouched(once)
    assert (layers(AsyncClient), layers(Client)) == (1, 1)
    httpx_cancel_safe.unpatch()
    assert is_untouched(own_send)


def test_unpatching_twice_is_the_same_as_once(own_send):
    httpx_cancel_safe.unpatch()
    httpx_cancel_safe.patch()
    httpx_cancel_safe.unpatch()
    httpx_cancel_safe.unpatch()
    assert is_untouched(own_send)


@pytest.fixture
def interleaved_threads():
    """Threads that start now take turns at every line of the library: they meet wherever they can."""
    dice = random.Random(0)  # Not in step: two may stand at different lines.

    def take_turns(frame, event, argument):
        if frame.f_globals.get("__name__", "").startswith("httpx_cancel_safe"):
            time.sleep(dice.choice([0, 0.0001, 0.0005]))
            return take_turns

    threading.settrace(take_turns)
    yield
    threading.settrace(None)


def test_patching_from_eight_threads_at_once_makes_one_net(own_send, interleaved_threads):
    barrier, results = threading.Barrier(8), []

    def patch():
        barrier.wait()
        results.append(httpx_cancel_safe.patch())

    for _ in range(5):
        threads = [threading.Thread(target=patch) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (layers(AsyncClient), layers(Client)) == (1, 1)
        httpx_cancel_safe.unpatch()
        assert is_untouched(own_send)
    assert results == [True] * 40


def test_the_first_two_threads_to_patch_have_one_switch(own_send, monkeypatch):
    """Else `unpatch()` would turn off one that no guard looks at."""
    settings, others = _send.Settings, []

    def meet(seconds):
        if not others:
            others.append(threading.Thread(target=httpx_cancel_safe.patch))
            others[0].start()
            others[0].join(0.2)  # It has to wait for this thread; without a lock it is done at once.
        return settings(seconds)

    monkeypatch.setattr(_patch, "_settings", None)
    monkeypatch.setattr(_send, "Settings", meet)
    httpx_cancel_safe.patch()
    others[0].join()
    for client_class in (AsyncClient, Client):
        switch = inspect.getclosurevars(client_class.send).nonlocals["settings"]
        assert switch is _patch._settings
    httpx_cancel_safe.unpatch()
    assert is_untouched(own_send)


def test_patched_holds_for_the_block_and_no_longer(own_send):
    with httpx_cancel_safe.patched():
        assert httpx_cancel_safe.is_patched() and net_holds()
    assert not httpx_cancel_safe.is_patched()
    assert is_untouched(own_send)


def test_patched_ends_with_an_exception_too(own_send):
    with pytest.raises(Abort), httpx_cancel_safe.patched():
        raise Abort
    assert is_untouched(own_send)


def test_patched_nests(own_send):
    with httpx_cancel_safe.patched():
        with httpx_cancel_safe.patched():
            assert (layers(AsyncClient), layers(Client)) == (1, 1)
        assert httpx_cancel_safe.is_patched() and net_holds()
    assert is_untouched(own_send)


def test_patched_leaves_a_net_that_was_there_before():
    httpx_cancel_safe.patch()
    with httpx_cancel_safe.patched():
        pass
    assert httpx_cancel_safe.is_patched() and net_holds()


@pytest.mark.parametrize("cls", [AsyncClient, Client])
def test_send_looks_the_same_under_the_net(cls):
    before = inspect.signature(cls.send), inspect.iscoroutinefunction(cls.send)
    name, doc = cls.send.__name__, cls.send.__doc__
    httpx_cancel_safe.patch()
    assert (inspect.signature(cls.send), inspect.iscoroutinefunction(cls.send)) == before
    assert before[1] is (cls is AsyncClient)
    assert (cls.send.__name__, cls.send.__doc__) == (name, doc)
    with_instance = vars(cls)["send"].__get__(object(), cls)
    assert inspect.iscoroutinefunction(with_instance) is before[1]


@pytest.mark.parametrize("value", [-1, -0.5, float("nan"), float("inf"), "x", None, True, [5]], ids=repr)
@pytest.mark.parametrize("entry", ["patch", "patched"])
def test_a_bad_close_timeout_is_refused_with_what_was_found_and_what_is_accepted(entry, value, own_send):
    with pytest.raises((TypeError, ValueError)) as caught:
        result = getattr(httpx_cancel_safe, entry)(close_timeout=value)
        if entry == "patched":
            with result:
                pass
    message = str(caught.value)
    assert "close_timeout" in message and "second" in message and repr(value) in message
    assert is_untouched(own_send)


def test_close_timeout_is_a_keyword_only():
    with pytest.raises(TypeError):
        httpx_cancel_safe.patch(5.0)


def test_a_safe_client_under_patch_is_one_net():
    httpx_cancel_safe.patch()
    before = httpx_cancel_safe.stats().released
    assert closes(httpx_cancel_safe.SafeAsyncClient) == 1
    assert httpx_cancel_safe.stats().released == before + 1
    assert sync_closes(httpx_cancel_safe.SafeClient) == 1
    assert httpx_cancel_safe.stats().released == before + 2


def test_a_safe_client_needs_no_patch():
    assert closes(httpx_cancel_safe.SafeAsyncClient) == 1
    assert sync_closes(httpx_cancel_safe.SafeClient) == 1
    assert not net_holds()


def test_a_subclass_that_overrides_send_is_under_the_net_of_patch():
    class Verbose(AsyncClient):
        async def send(self, *args, **kwargs):
            return await super().send(*args, **kwargs)

    httpx_cancel_safe.patch()
    assert closes(Verbose) == 1


def test_a_safe_subclass_that_is_subclassed_again_stays_safe():
    class Verbose(httpx_cancel_safe.SafeAsyncClient):
        async def send(self, *args, **kwargs):
            return await super().send(*args, **kwargs)

    assert closes(Verbose) == 1


class NoFunction:
    """A stand-in for `send` that is bound to no client, as those of `unittest.mock` are."""

    async def __call__(self, request, **kwargs):
        return httpx.Response(200, request=request)


def test_a_safe_client_calls_a_send_that_is_no_function_as_super_does(monkeypatch):
    monkeypatch.setattr(AsyncClient, "send", NoFunction())

    async def request(client_class):
        async with client_class() as client:
            return (await client.get("http://custom.test")).status_code

    assert finish(request(httpx_cancel_safe.SafeAsyncClient)) == 200


def test_a_safe_client_among_its_siblings_calls_the_next_of_them():
    class Sibling(AsyncClient):
        async def send(self, request, **kwargs):
            return httpx.Response(200, request=request)

    class Both(httpx_cancel_safe.SafeAsyncClient, Sibling):
        pass

    async def request():
        async with Both() as client:
            return (await client.get("http://custom.test")).status_code

    assert finish(request()) == 200


# -- Among other tools -------------------------------------------------------------------------
#
# Each wraps both clients the way it really does, and counts the calls it saw.


class Sentry:
    """A plain closure, set on the class, without a trace of what is under it."""

    def __init__(self):
        self.seen = 0

    def install(self):
        real_async, real_sync = AsyncClient.send, Client.send

        async def async_send(client, request, **kwargs):
            self.seen += 1
            return await real_async(client, request, **kwargs)

        def send(client, request, **kwargs):
            self.seen += 1
            return real_sync(client, request, **kwargs)

        AsyncClient.send, Client.send = async_send, send


class Elastic:
    """A subclass of wrapt's FunctionWrapper; it remembers what it found, and writes that back."""

    class Wrapper(wrapt.FunctionWrapper):
        pass

    def __init__(self):
        self.seen = 0

    def install(self):
        self.saved = {}
        for cls in (AsyncClient, Client):
            _, _, self.saved[cls] = wrapt.resolve_path("httpx._client", cls.__name__ + ".send")
            cls.send = self.Wrapper(self.saved[cls], self.call)

    def call(self, wrapped, instance, args, kwargs):
        self.seen += 1
        return wrapped(*args, **kwargs)

    def uninstall(self):
        for cls, saved in self.saved.items():
            cls.send = saved


class Datadog(Elastic):
    """wrapt's FunctionWrapper; it takes off whatever lies on top."""

    def install(self):
        for cls in (AsyncClient, Client):
            cls.send = self.Wrapper(vars(cls)["send"], self.call)

    def uninstall(self):
        for cls in (AsyncClient, Client):
            cls.send = cls.send.__wrapped__


TOOLS = [Sentry, Elastic, Datadog]


@pytest.fixture(params=TOOLS, ids=lambda tool: tool.__name__)
def tool(request):
    return request.param()


def calls_seen(tool):
    """How often the tool sees one async and one sync request."""
    before = tool.seen
    net_holds()
    return tool.seen - before


def test_a_tool_that_came_later_stays_when_the_net_goes(tool):
    httpx_cancel_safe.patch()
    tool.install()
    theirs = vars(AsyncClient)["send"], vars(Client)["send"]
    assert httpx_cancel_safe.is_patched() and net_holds()
    assert calls_seen(tool) == 2

    httpx_cancel_safe.unpatch()
    assert (vars(AsyncClient)["send"], vars(Client)["send"]) == theirs
    assert not httpx_cancel_safe.is_patched() and not net_holds()
    assert calls_seen(tool) == 2

    for _ in range(2):
        httpx_cancel_safe.patch()
        assert httpx_cancel_safe.is_patched() and net_holds()
        assert calls_seen(tool) == 2

    httpx_cancel_safe.unpatch()
    assert not httpx_cancel_safe.is_patched() and not net_holds()
    assert calls_seen(tool) == 2


def test_a_tool_that_came_first_stays_where_it_was(tool):
    tool.install()
    theirs = {cls: vars(cls)["send"] for cls in (AsyncClient, Client)}
    httpx_cancel_safe.patch()
    assert httpx_cancel_safe.is_patched() and net_holds()
    assert calls_seen(tool) == 2

    httpx_cancel_safe.unpatch()
    assert is_untouched(theirs)
    assert not httpx_cancel_safe.is_patched() and not net_holds()
    assert calls_seen(tool) == 2


def test_patching_again_over_a_tool_makes_no_second_net(tool):
    httpx_cancel_safe.patch()
    tool.install()
    with_tool = vars(AsyncClient)["send"], vars(Client)["send"]
    httpx_cancel_safe.patch()
    assert (vars(AsyncClient)["send"], vars(Client)["send"]) == with_tool
    before = httpx_cancel_safe.stats().released
    assert net_holds()
    assert httpx_cancel_safe.stats().released == before + 2


def test_patched_around_a_tool_leaves_the_tool(tool):
    with httpx_cancel_safe.patched():
        tool.install()
        assert net_holds()
    assert not httpx_cancel_safe.is_patched() and not net_holds()
    assert calls_seen(tool) == 2


def test_a_safe_client_keeps_its_net_over_one_that_lets_everything_pass(tool):
    httpx_cancel_safe.patch()
    tool.install()
    httpx_cancel_safe.unpatch()  # Ours stays under theirs.
    assert closes(httpx_cancel_safe.SafeAsyncClient) == 1
    assert sync_closes(httpx_cancel_safe.SafeClient) == 1


def test_a_tool_that_goes_after_the_net_leaves_the_httpx_of_before():
    tool = Datadog()
    httpx_cancel_safe.patch()
    tool.install()
    httpx_cancel_safe.unpatch()
    tool.uninstall()
    assert not httpx_cancel_safe.is_patched() and not net_holds()
    httpx_cancel_safe.patch()
    assert httpx_cancel_safe.is_patched() and net_holds()
    httpx_cancel_safe.unpatch()
    assert not httpx_cancel_safe.is_patched() and not net_holds()


@pytest.mark.parametrize("tool_class", [Elastic, Datadog])
def test_a_tool_that_came_later_and_goes_leaves_the_net(tool_class):
    tool = tool_class()
    httpx_cancel_safe.patch()
    tool.install()
    tool.uninstall()
    # What they put back may be a bound form of ours: it is the net all the same.
    assert httpx_cancel_safe.is_patched() and net_holds()
    before = httpx_cancel_safe.stats().released
    httpx_cancel_safe.patch()
    assert net_holds()
    assert httpx_cancel_safe.stats().released == before + 2
    httpx_cancel_safe.unpatch()
    assert not httpx_cancel_safe.is_patched() and not net_holds()


@pytest.mark.parametrize("tool_class", [Elastic, Datadog])
def test_a_net_that_a_tool_took_off_is_reported_gone_and_can_be_put_back(tool_class, caplog):
    tool = tool_class()
    tool.install()
    httpx_cancel_safe.patch()
    tool.uninstall()  # Takes ours off send, or writes back what was there before ours.
    assert not httpx_cancel_safe.is_patched()

    assert httpx_cancel_safe.patch() is True
    assert "AsyncClient had lost the net" in caplog.text
    before = httpx_cancel_safe.stats().released
    assert httpx_cancel_safe.is_patched() and net_holds()
    assert httpx_cancel_safe.stats().released == before + 2
    httpx_cancel_safe.unpatch()
    assert not httpx_cancel_safe.is_patched() and not net_holds()


def test_a_tool_is_looked_through_whatever_its_closure_holds(monkeypatch):
    """A class, say, and a name that has no value yet."""
    kind = AsyncClient

    def wrap(real):
        async def send(*args, **kwargs):
            return await real(*args, kind, later, **kwargs)

        assert httpx_cancel_safe.is_patched()
        monkeypatch.setattr(AsyncClient, "send", send)
        assert httpx_cancel_safe.is_patched()
        later = None

    with httpx_cancel_safe.patched():
        wrap(AsyncClient.send)
        monkeypatch.undo()


def test_names_that_a_tool_replaced_do_not_matter(monkeypatch):
    class Instrumented(AsyncClient):
        pass

    monkeypatch.setattr(httpx, "AsyncClient", Instrumented)
    httpx_cancel_safe.patch()
    assert "send" not in vars(Instrumented)
    assert closes(Instrumented) == 1
    assert closes(AsyncClient) == 1
    monkeypatch.undo()
    httpx_cancel_safe.unpatch()
    assert closes() == 0
