"""The tools, each reduced to what the tests do with it.

`put_on()` and `take_off()` are what the tool offers itself. `watch()` encloses requests; `count()` tells what the tool
has made of them: spans that it has `seen`, answers from a mock.
"""

import contextlib
import importlib
import os
import pathlib
from unittest import mock

import httpx


class Tool:
    package = ""  # The module that tells whether the tool is installed.
    wraps_send = True
    wraps_inside = False  # It wraps a method that `send` calls.
    removes = None  # How it takes itself off: see after() in test_stacking.py. None if it cannot.
    keeps_from_import = False  # What it wraps is `send` as it was when the tool was imported.
    mocks = False  # Whether it answers in place of the server.
    wraps_sync = True
    extra = ()  # Sequences to try besides all the short ones.

    def __init__(self):
        self.seen = []

    def prepare(self):
        """Import what may be imported before any sequence begins."""
        importlib.import_module(self.package)

    def watch(self):
        return contextlib.ExitStack()

    def count(self, response):
        return int(response.content == b"mocked") if self.mocks else len(self.seen)

    def client(self, **options):
        """A client as an application makes it now."""
        return httpx.AsyncClient(**options)


class Sentry(Tool):
    package = "sentry_sdk"

    def put_on(self):
        import sentry_sdk
        from sentry_sdk.integrations.httpx import HttpxIntegration
        from sentry_sdk.scope import add_global_event_processor

        options = {"default_integrations": False, "integrations": [HttpxIntegration()]}
        sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", traces_sample_rate=1.0, **options)
        add_global_event_processor(self._keep)

    def _keep(self, event, hint):
        self.seen += [span for span in event.get("spans", []) if span["op"].startswith("http")]  # And nothing is sent.

    def watch(self):
        import sentry_sdk

        return sentry_sdk.start_transaction(name="test", op="test")


class DDTrace(Tool):
    package = "ddtrace"
    removes = "top"

    def prepare(self):
        os.environ.update(DD_INSTRUMENTATION_TELEMETRY_ENABLED="false", DD_REMOTE_CONFIGURATION_ENABLED="false")
        from ddtrace import tracer
        from ddtrace.contrib.httpx import patch, unpatch
        from ddtrace.filters import TraceFilter

        self.put_on, self.take_off, self._tracer, seen = patch, unpatch, tracer, self.seen

        class Keep(TraceFilter):
            def process_trace(self, trace):
                seen.extend(span for span in trace if span.get_tag("component") == "httpx")  # And nothing is sent.

        tracer.configure(settings={"FILTERS": [Keep()]})

    def watch(self):
        return self._tracer.trace("test")


class Elastic(Tool):
    package = "elasticapm"
    removes = "to saved"

    def prepare(self):
        import elasticapm

        seen = self.seen

        class Client(elasticapm.Client):
            def start_threads(self):
                """Send nothing."""

            def queue(self, event_type, data, flush=False):
                if event_type == "span" and data["subtype"] == "http":
                    seen.append(data)

        off = dict.fromkeys(("central_config", "cloud_provider", "span_compression_enabled"), False)
        self._client = Client(dict(off, service_name="test"))
        self.put_on, self.take_off = elasticapm.instrument, elasticapm.uninstrument

    @contextlib.contextmanager
    def watch(self):
        self._client.begin_transaction("test")
        yield
        self._client.end_transaction("test", "ok")


class NewRelic(Tool):
    package = "newrelic"

    def prepare(self):
        # No file of configuration, no collector.
        os.environ.update(NEW_RELIC_LICENSE_KEY="0" * 40, NEW_RELIC_APP_NAME="test")
        os.environ.update(NEW_RELIC_DEVELOPER_MODE="true", NEW_RELIC_LOG_LEVEL="critical")
        import newrelic.agent

        self._agent = newrelic.agent

    def put_on(self):
        self._agent.initialize()
        self._application = self._agent.register_application(timeout=10)

    @contextlib.contextmanager
    def watch(self):
        with self._agent.BackgroundTask(self._application, "test") as transaction:
            yield
            nodes = transaction.root_span.children
            self.seen = [node for node in nodes if type(node).__name__ == "ExternalNode"]


class OpenTelemetry(Tool):
    """The old design replaces the classes in httpx by subclasses, the new one wraps transports."""

    package = "opentelemetry.instrumentation.httpx"
    wraps_send = False
    removes = "own"

    def prepare(self):
        from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
        from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

        seen, provider = self.seen, TracerProvider(shutdown_on_exit=False)

        class Keep(SpanProcessor):
            def on_end(self, span):
                seen.append(span)

        provider.add_span_processor(Keep())
        self.put_on = lambda: HTTPXClientInstrumentor().instrument(tracer_provider=provider)
        self.take_off = HTTPXClientInstrumentor().uninstrument


class XRay(Tool):
    package = "aws_xray_sdk"
    wraps_send = False

    def prepare(self):
        from aws_xray_sdk.core import patch, xray_recorder

        xray_recorder.configure(sampling=False, emitter=mock.Mock(), service="test")
        self.put_on, self._recorder = lambda: patch(["httpx"]), xray_recorder

    @contextlib.contextmanager
    def watch(self):
        with self._recorder.in_segment("test") as segment:
            yield
        self.seen = segment.subsegments


class VCR(Tool):
    """Takes the original when it is imported, and puts back what it met when a cassette began."""

    package = "vcr"
    removes = "to saved"
    keeps_from_import = True
    mocks = True
    extra = (
        # What is imported early goes around a patch that comes later, inside cassettes.
        "import ours theirs -theirs",
        "import ours theirs ours -theirs -ours",
        "import theirs ours -theirs ours",
        # What is imported late keeps our guard for good.
        "ours import -ours theirs -theirs",
        "ours import -ours ours theirs -theirs",
        "ours import -ours ours theirs ours -theirs ours",
        "ours import -ours theirs ours -theirs ours",
        "ours theirs -theirs -ours ours theirs -theirs -ours",
    )

    def prepare(self):
        """Nothing: its import is a step of its own."""

    def load(self):
        import vcr.patch  # noqa: F401

    def put_on(self):
        import vcr

        recorder = vcr.VCR(record_mode="none", match_on=["method", "host", "path"], ignore_hosts=["127.0.0.1"])
        path = pathlib.Path(__file__).with_name("cassette.yaml")
        self._cassette = recorder.use_cassette(str(path), allow_playback_repeats=True)
        self._cassette.__enter__()

    def take_off(self):
        self._cassette.__exit__(None, None, None)


class VCR6(VCR):
    """Replaces `_send_single_request`, which nobody else does."""

    wraps_send = False
    wraps_inside = True
    removes = "own"
    keeps_from_import = False
    extra = ()


class Mock(Tool):
    wraps_send = False
    removes = "own"
    mocks = True


class RESPX(Mock):
    package = "respx"

    def put_on(self):
        import respx

        self._router = respx.mock(assert_all_called=False)
        self._router.route(host="127.0.0.1").pass_through()
        self._router.get(host="localhost").respond(200, content=b"mocked")
        self._router.start()

    def take_off(self):
        self._router.stop()


class PytestHTTPX(Mock):
    package = "pytest_httpx"

    def put_on(self):
        import pytest
        import pytest_httpx

        self._changes = pytest.MonkeyPatch()
        fixture = pytest_httpx.httpx_mock.__pytest_wrapped__.obj
        self._fixture = fixture(self._changes, False, ["127.0.0.1"])
        mock = next(self._fixture)
        mock.add_callback(lambda *args: httpx.Response(200, content=b"mocked"))

    def take_off(self):
        next(self._fixture, None)
        self._changes.undo()


class Authlib(Tool):
    """A subclass that overrides `request`; here to put on is to import it."""

    package = "authlib"
    wraps_send = False
    wraps_sync = False
    is_on = False

    def put_on(self):
        self.is_on = True

    def client(self, **options):
        if not self.is_on:
            return super().client(**options)
        from authlib.integrations.httpx_client import AsyncOAuth2Client

        options.pop("trust_env")  # It takes what httpx had when it was written.
        return AsyncOAuth2Client("id", token={"access_token": "token", "token_type": "bearer"}, **options)

    def count(self, response):
        return response.request.headers.get_list("authorization").count("Bearer token")


def vcr_by_version():
    with contextlib.suppress(ImportError):  # Also where vcrpy is not installed.
        from importlib.metadata import version

        if int(version("vcrpy").split(".")[0]) >= 6:
            return VCR6
    return VCR


KINDS = [Sentry, DDTrace, Elastic, NewRelic, OpenTelemetry, XRay, vcr_by_version()]
KINDS += [RESPX, PytestHTTPX, Authlib]
TOOLS = {kind.__name__.lower(): kind for kind in KINDS}
