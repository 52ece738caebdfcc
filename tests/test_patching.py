"""patch() and unpatch(), alone and among other tools that wrap `send`."""

import inspect

import httpx
import pytest
import wrapt

import httpx_cancel_safe

from .support import compat
from .support.programs import changed, contents
from .support.stepping import Abort, run
from .support.transports import Answers, AsyncBody, Body, SyncAnswers

pytestmark = pytest.mark.skipif(compat.FIXED, reason="nothing is patched on httpx %s" % httpx.__version__)

# The classes where they are defined: tools replace the names in httpx by subclasses.
AsyncClient = httpx._client.AsyncClient
Client = httpx._client.Client
SENDS = {cls: vars(cls)["send"] for cls in (AsyncClient, Client)}


def abort(response):
    raise Abort


# The requests end while httpx extracts the cookies: a response is open then, which no httpx that is served closes.
def closes(client_class):
    """How often the response of a request that is aborted gets closed: 0 as httpx is, 1 if it is guarded."""
    before = httpx_cancel_safe.stats().released
    if issubclass(client_class, Client):
        body = Body()
        with client_class(transport=SyncAnswers(body)) as client, pytest.raises(Abort):
            client.cookies.extract_cookies = abort
            client.get("http://custom.test")
    else:
        body = AsyncBody()

        async def request():
            async with client_class(transport=Answers(body)) as client:
                client.cookies.extract_cookies = abort
                await client.get("http://custom.test")

        with pytest.raises(Abort):
            run(None, "asyncio", request)
    assert httpx_cancel_safe.stats().released == before + body.closed  # No second guard.
    return body.closed


def is_guarded():
    """Whether both clients are guarded, and is_patched() says so."""
    found = closes(AsyncClient), closes(Client)
    assert found == ((1, 1) if httpx_cancel_safe.is_patched() else (0, 0))
    return found == (1, 1)


def sends():
    return {cls: vars(cls)["send"] for cls in SENDS}


@pytest.fixture(autouse=True)
def own_send():
    """The send methods of httpx itself are back in their places afterwards."""
    yield
    httpx_cancel_safe.unpatch()
    for cls, own in SENDS.items():
        cls.send = own


def test_patch_and_unpatch_as_often_as_one_likes(caplog):
    caplog.set_level("INFO", "httpx_cancel_safe")
    before = contents()
    assert not is_guarded()
    for _ in range(2):
        for _ in range(2):
            assert httpx_cancel_safe.patch() is True
            assert is_guarded()
        assert {name for _, name, *_ in changed(before)} == {"AsyncClient", "Client"}
        for _ in range(2):
            httpx_cancel_safe.unpatch()
            assert not is_guarded() and changed(before) == set()
    assert [record.getMessage() for record in caplog.records] == ["in place for httpx " + httpx.__version__] * 2
    with pytest.raises(TypeError):
        httpx_cancel_safe.patch(5.0)  # By keyword only.


def test_patched_holds_for_the_block_and_nests():
    with pytest.raises(Abort), httpx_cancel_safe.patched():
        with httpx_cancel_safe.patched():
            pass
        assert is_guarded()
        raise Abort
    assert not is_guarded() and sends() == SENDS


def looks_of(cls):
    bound = vars(cls)["send"].__get__(object(), cls)
    are_async = inspect.iscoroutinefunction(cls.send), inspect.iscoroutinefunction(bound)
    return inspect.signature(cls), inspect.signature(cls.send), are_async, cls.send.__name__, cls.send.__doc__


LOOKS = [looks_of(cls) for cls in SENDS]


def test_a_guarded_class_looks_the_same(guarded):
    assert [looks_of(cls) for cls in guarded] == LOOKS
    assert issubclass(guarded.AsyncClient, AsyncClient) and issubclass(guarded.Client, Client)


@pytest.mark.parametrize("value", [-1, -0.5, float("nan"), float("inf"), "x", None, True, [5]], ids=repr)
def test_a_bad_close_timeout_is_refused_with_what_was_found_and_what_is_accepted(value):
    block = httpx_cancel_safe.patched(close_timeout=value)
    ways = [lambda: httpx_cancel_safe.patch(close_timeout=value), block.__enter__]
    safe_classes = [httpx_cancel_safe.SafeAsyncClient, httpx_cancel_safe.SafeClient]
    # httpx before 0.20 reads in __del__() what __init__() has not set.
    changes = {"close_timeout": value, "__del__": lambda client: None}
    for use in ways + [type("Subclass", (cls,), changes) for cls in safe_classes]:
        with pytest.raises((TypeError, ValueError)) as caught:
            use()
        message = str(caught.value)
        assert "close_timeout" in message and "second" in message and repr(value) in message
    assert sends() == SENDS


@pytest.mark.parametrize("is_on", [False, True])
def test_a_safe_client_is_guarded_once_with_the_patch_or_without(is_on):
    if is_on:
        httpx_cancel_safe.patch()
    before = contents()
    assert closes(httpx_cancel_safe.SafeAsyncClient) == closes(httpx_cancel_safe.SafeClient) == 1
    assert is_guarded() is is_on and changed(before) == set()


class Datadog:
    """Another tool: wrapt's FunctionWrapper; it takes off whatever lies on top. tests/stacking has the real ones."""

    seen = 0

    def install(self):
        for cls in SENDS:
            cls.send = wrapt.FunctionWrapper(vars(cls)["send"], self.call)

    def call(self, wrapped, instance, args, kwargs):
        self.seen += 1
        return wrapped(*args, **kwargs)

    def uninstall(self):
        for cls in SENDS:
            cls.send = cls.send.__wrapped__


@pytest.mark.parametrize("comes", ["first", "later"])
def test_a_tool_stays_whether_it_came_before_or_after(comes):
    tool = Datadog()
    if comes == "later":
        httpx_cancel_safe.patch()
    tool.install()
    theirs = sends()
    for _ in range(2):
        for _ in range(2):
            httpx_cancel_safe.patch()
            tool.seen = 0
            assert is_guarded() and tool.seen == 2
        httpx_cancel_safe.unpatch()
        assert sends() == theirs
        tool.seen = 0
        assert not is_guarded() and tool.seen == 2
    assert closes(httpx_cancel_safe.SafeAsyncClient) == closes(httpx_cancel_safe.SafeClient) == 1


@pytest.mark.parametrize("goes", ["before unpatch", "after unpatch"])
def test_a_tool_that_came_later_and_goes_leaves_the_patch_to_be_put_on_and_off(goes):
    tool = Datadog()
    httpx_cancel_safe.patch()
    tool.install()
    if goes == "after unpatch":
        httpx_cancel_safe.unpatch()
    tool.uninstall()
    # What it puts back is a bound form of ours: it is the patch all the same.
    assert is_guarded() is (goes == "before unpatch")
    httpx_cancel_safe.patch()
    assert is_guarded()
    httpx_cancel_safe.unpatch()
    assert not is_guarded()


def test_a_patch_that_a_tool_took_off_is_put_back_with_a_warning(caplog):
    tool = Datadog()
    tool.install()
    httpx_cancel_safe.patch()
    tool.uninstall()  # Takes off ours.
    assert not httpx_cancel_safe.is_patched() and not caplog.records

    assert httpx_cancel_safe.patch() is True
    assert "WARNING" in [record.levelname for record in caplog.records]
    assert is_guarded()
    httpx_cancel_safe.unpatch()
    assert not is_guarded()


@pytest.mark.parametrize("take", [getattr, inspect.getattr_static])
def test_a_tool_is_looked_through_whatever_its_closure_holds(take, monkeypatch):
    """A class, say, and a name that has no value yet."""
    httpx_cancel_safe.patch()
    kind, real = AsyncClient, take(AsyncClient, "send")

    async def send(*args, **kwargs):
        return await real(*args, **kwargs) if kind else later

    monkeypatch.setattr(AsyncClient, "send", send)
    assert httpx_cancel_safe.is_patched() and closes(AsyncClient) == 1
    later = None
