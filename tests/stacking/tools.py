"""The tools, each reduced to what the tests do with it.

`put_on()` and `take_off()` are what the tool offers itself. `begin()` and `end()` enclose requests;
`end()` returns what the tool made of them: spans, answers from a mock.
"""

import os
import shutil
import tempfile

import httpx


class Tool:
    package = ""  # The module that tells whether the tool is installed.
    touches = "send"  # The method of AsyncClient that it wraps; None if it stays away from them.
    touches_inside = False  # It wraps one that `send` calls.
    removes = None  # How it takes itself off: see model.py. None if it cannot.
    mocks = False  # Whether it answers in place of the server.
    wraps_sync = True  # Whether we try it with the sync client too.
    extra = ()  # Sequences to try besides all the short ones.

    def prepare(self):
        """Import what may be imported before any sequence begins."""

    def put_on(self):
        pass

    def take_off(self):
        pass

    def begin(self):
        pass

    def end(self):
        return 0

    def client(self, **options):
        """A client as an application makes it now."""
        return httpx.AsyncClient(**options)


class Sentry(Tool):
    package = "sentry_sdk"

    def prepare(self):
        from sentry_sdk.integrations import httpx  # noqa: F401

    def put_on(self):
        import sentry_sdk
        from sentry_sdk.integrations.httpx import HttpxIntegration
        from sentry_sdk.scope import add_global_event_processor

        sentry_sdk.init(
            dsn="http://key@127.0.0.1:9/1",
            traces_sample_rate=1.0,
            default_integrations=False,
            integrations=[HttpxIntegration()],
        )
        add_global_event_processor(self._keep)
        self._spans = []

    def _keep(self, event, hint):
        self._spans += event.get("spans", [])  # And nothing is sent.

    def begin(self):
        import sentry_sdk

        self._spans = []
        self._transaction = sentry_sdk.start_transaction(name="test", op="test")
        self._transaction.__enter__()

    def end(self):
        self._transaction.__exit__(None, None, None)
        return len([span for span in self._spans if span["op"].startswith("http")])


class DDTrace(Tool):
    package = "ddtrace"
    removes = "top"

    def prepare(self):
        os.environ["DD_INSTRUMENTATION_TELEMETRY_ENABLED"] = "false"
        os.environ["DD_REMOTE_CONFIGURATION_ENABLED"] = "false"
        from ddtrace import tracer
        from ddtrace.filters import TraceFilter

        spans = self._spans = []

        class Keep(TraceFilter):
            def process_trace(self, trace):
                spans.extend(trace)  # And nothing is sent.

        tracer.configure(settings={"FILTERS": [Keep()]})

    def put_on(self):
        from ddtrace.contrib.httpx import patch

        patch()

    def take_off(self):
        from ddtrace.contrib.httpx import unpatch

        unpatch()

    def begin(self):
        from ddtrace import tracer

        del self._spans[:]
        self._root = tracer.trace("test")

    def end(self):
        self._root.finish()
        return len([span for span in self._spans if span.get_tag("component") == "httpx"])


class Elastic(Tool):
    package = "elasticapm"
    removes = "to saved"

    def prepare(self):
        import elasticapm
        from elasticapm.transport.base import Transport

        spans = self._spans = []

        class Keep(Transport):
            def queue(self, event_type, data, flush=False):
                if event_type == "span":
                    spans.append(data)

            def start_thread(self, pid=None):
                pass

        global ElasticTransport
        ElasticTransport = Keep
        self._client = elasticapm.Client(
            service_name="test",
            transport_class=__name__ + ".ElasticTransport",
            metrics_interval="0ms",
            central_config=False,
            cloud_provider=False,
            span_compression_enabled=False,
        )

    def put_on(self):
        import elasticapm

        elasticapm.instrument()

    def take_off(self):
        import elasticapm

        elasticapm.uninstrument()

    def begin(self):
        del self._spans[:]
        self._client.begin_transaction("test")

    def end(self):
        self._client.end_transaction("test", "ok")
        return len([span for span in self._spans if span["subtype"] == "http"])


class NewRelic(Tool):
    package = "newrelic"

    def prepare(self):
        # No file of configuration, no collector.
        os.environ.update(NEW_RELIC_LICENSE_KEY="0" * 40, NEW_RELIC_APP_NAME="test")
        os.environ.update(NEW_RELIC_DEVELOPER_MODE="true", NEW_RELIC_LOG_LEVEL="critical")
        import newrelic.agent  # noqa: F401

    def put_on(self):
        import newrelic.agent

        newrelic.agent.initialize()
        self._application = newrelic.agent.register_application(timeout=10)

    def begin(self):
        import newrelic.agent

        self._transaction = newrelic.agent.BackgroundTask(
            getattr(self, "_application", None) or newrelic.agent.application(), "test"
        )
        self._transaction.__enter__()

    def end(self):
        root = getattr(self._transaction, "root_span", None)
        children = list(root.children) if root is not None else []
        self._transaction.__exit__(None, None, None)
        return len([node for node in children if type(node).__name__ == "ExternalNode"])


class OpenTelemetry(Tool):
    """The old design replaces the classes in httpx by subclasses, the new one wraps transports."""

    package = "opentelemetry.instrumentation.httpx"
    touches = None
    removes = "own"

    def prepare(self):
        from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        self._exporter = InMemorySpanExporter()
        self._provider = TracerProvider(shutdown_on_exit=False)
        self._provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._instrumentor = HTTPXClientInstrumentor()

    def put_on(self):
        self._instrumentor.instrument(tracer_provider=self._provider)

    def take_off(self):
        self._instrumentor.uninstrument()

    def begin(self):
        self._exporter.clear()

    def end(self):
        return len(self._exporter.get_finished_spans())


class XRay(Tool):
    package = "aws_xray_sdk"
    touches = None

    def prepare(self):
        from aws_xray_sdk.core import xray_recorder

        class Nowhere:
            def send_entity(self, entity):
                pass

        xray_recorder.configure(sampling=False, emitter=Nowhere(), service="test")

    def put_on(self):
        from aws_xray_sdk.core import patch

        patch(["httpx"])

    def begin(self):
        from aws_xray_sdk.core import xray_recorder

        self._segment = xray_recorder.begin_segment("test")

    def end(self):
        from aws_xray_sdk.core import xray_recorder

        xray_recorder.end_segment()
        return len(self._segment.subsegments)


CASSETTE = """\
interactions:
- request: {body: '', headers: {}, method: GET, uri: 'http://localhost/get'}
  response: {content: mocked, headers: {}, http_version: HTTP/1.1, status_code: 200}
version: 1
"""


class VCR(Tool):
    """Takes the original when it is imported, and puts back what it met when a cassette began."""

    package = "vcr"
    removes = "to saved"
    keeps_from_import = True
    mocks = True
    extra = (
        # What is imported early goes around a net that comes later, inside cassettes.
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

    def load(self):
        import vcr.patch  # noqa: F401

    def put_on(self):
        self.load()
        import vcr

        self._directory = tempfile.mkdtemp()
        with open(os.path.join(self._directory, "cassette.yaml"), "w") as file:
            file.write(CASSETTE)
        recorder = vcr.VCR(
            cassette_library_dir=self._directory,
            record_mode="none",
            match_on=["method", "host", "path"],
            ignore_hosts=["127.0.0.1"],
        )
        self._cassette = recorder.use_cassette("cassette.yaml", allow_playback_repeats=True)
        self._cassette.__enter__()

    def take_off(self):
        self._cassette.__exit__(None, None, None)
        shutil.rmtree(self._directory)


class VCR6(VCR):
    """Replaces `_send_single_request`, which nobody else does."""

    touches = None
    touches_inside = True
    removes = "own"
    keeps_from_import = False
    extra = ()


class RESPX(Tool):
    package = "respx"
    touches = None
    removes = "own"
    mocks = True

    def prepare(self):
        import respx  # noqa: F401

    def put_on(self):
        import respx

        self._router = respx.mock(assert_all_called=False)
        self._router.route(host="127.0.0.1").pass_through()
        self._router.get(host="localhost").respond(200, content=b"mocked")
        self._router.start()

    def take_off(self):
        self._router.stop()


class PytestHTTPX(Tool):
    package = "pytest_httpx"
    touches = None
    removes = "own"
    mocks = True

    def prepare(self):
        import pytest_httpx  # noqa: F401

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
    touches = None
    wraps_sync = False
    asked = ()  # The header lines of the last request, as the server got them.

    def __init__(self):
        self._class = None

    def put_on(self):
        from authlib.integrations.httpx_client import AsyncOAuth2Client

        self._class = AsyncOAuth2Client

    def client(self, **options):
        if self._class is None:
            return super().client(**options)
        options.pop("trust_env")  # It takes what httpx had when it was written.
        token = {"access_token": "token", "token_type": "bearer"}
        return self._class("id", token=token, **options)

    def begin(self):
        self.asked = ()

    def end(self):
        return sum(line.lower() == "authorization: bearer token" for line in self.asked)


class Subclass(Tool):
    """One that overrides `send`, as Prefect's client does."""

    package = "authlib"  # In its cell.
    touches = None
    wraps_sync = False

    def __init__(self):
        self._class = None
        self._sent = 0

    def put_on(tool):
        class Client(httpx.AsyncClient):
            async def send(self, *args, **kwargs):
                tool._sent += 1
                return await super().send(*args, **kwargs)

        tool._class = Client

    def client(self, **options):
        return (self._class or httpx.AsyncClient)(**options)

    def begin(self):
        self._sent = 0

    def end(self):
        return self._sent


def _vcr():
    try:
        from importlib.metadata import version

        return VCR if int(version("vcrpy").split(".")[0]) < 6 else VCR6
    except ImportError:
        return VCR


TOOLS = {
    "sentry": Sentry,
    "ddtrace": DDTrace,
    "elastic": Elastic,
    "newrelic": NewRelic,
    "opentelemetry": OpenTelemetry,
    "xray": XRay,
    "vcr": _vcr(),
    "respx": RESPX,
    "pytest_httpx": PytestHTTPX,
    "authlib": Authlib,
    "subclass": Subclass,
}
