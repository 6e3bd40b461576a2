"""OpenTelemetry's Python SDK as a client: every shape of telemetry it can export, with fixed ids and values.

    sdk.py --endpoint HOST:PORT --protocol grpc|http --compression none|gzip --service NAME --run N

Everything a test asks for afterwards follows from --run and from START_NS; only the times of metric points
are the SDK's own. It exits with 1 when the SDK logs a warning, because exporters report a lost batch in no
other way. Not here: what the server should have stored; that is in clients.rs.
"""

import argparse
import logging
import sys

from opentelemetry import trace
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

START_NS = 1_795_255_170_000_000_000
MS = 1_000_000
# Longer than any run, so that only the shutdown exports metrics, and once.
EXPORT_INTERVAL_MS = 600_000
SCHEMA = "https://opentelemetry.io/schemas/1.37.0"

# One value of every kind that OTLP has.
EVERY_KIND = {
    "text": "caffè ☕ \U0001f600 \"quoted\" \\ \n",
    "text.empty": "",
    "int": 42,
    "int.min": -(2**63),
    "int.max": 2**63 - 1,
    "double": 0.1,
    "double.whole": 3.0,
    "double.tiny": 5e-324,
    "bool.true": True,
    "bool.false": False,
    "bytes": b"\x00\x01\xfe\xff",
    "array.text": ["a", "", "ü"],
    "array.int": [1, -2, 3],
    "array.double": [0.5, 1.0],
    "array.bool": [True, False],
    "array.empty": [],
    "map": {"inner": {"deep": [1, "two", {"three": 3.5}]}, "none": None},
    "none": None,
}


class Ids(IdGenerator):
    """The n-th trace id of run r is 0af76519...rrrrrrrrnnnnnnnn, the n-th span id is b7ad rrrr nnnnnnnn."""

    def __init__(self, run):
        self.run, self.traces, self.spans = run, 0, 0

    def generate_trace_id(self):
        self.traces += 1
        return 0x0AF7651916CD43DD << 64 | self.run << 32 | self.traces

    def generate_span_id(self):
        self.spans += 1
        return 0xB7AD << 48 | self.run << 32 | self.spans


class Complaints(logging.Handler):
    """Keeps what the SDK warns about."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(f"{record.name}: {record.getMessage()}")


def exporters(endpoint, protocol, compression):
    """The exporters of traces, logs and metrics. Histograms are delta, so that both temporalities travel."""
    temporality = {Histogram: AggregationTemporality.DELTA}
    if protocol == "grpc":
        from grpc import Compression
        from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        how = {"insecure": True, "compression": Compression.Gzip if compression == "gzip" else Compression.NoCompression}
        urls = [f"http://{endpoint}"] * 3
    else:
        from opentelemetry.exporter.otlp.proto.http import Compression
        from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        how = {"compression": Compression.Gzip if compression == "gzip" else Compression.NoCompression}
        urls = [f"http://{endpoint}/v1/{signal}" for signal in ("traces", "logs", "metrics")]
    return (
        OTLPSpanExporter(endpoint=urls[0], timeout=20, **how),
        OTLPLogExporter(endpoint=urls[1], timeout=20, **how),
        OTLPMetricExporter(endpoint=urls[2], timeout=20, preferred_temporality=temporality, **how),
    )


def send_traces(exporter, resource, run):
    """Trace 1: a request with a database call, a failure and a message. Trace 2: the message's consumer, linked."""
    ids = Ids(run)
    provider = TracerProvider(resource=resource, id_generator=ids)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("shop.checkout", "2.1.0", SCHEMA, {"scope.team": "payments"})
    at = lambda ms: START_NS + ms * MS

    remote = SpanContext(ids.generate_trace_id(), 0xCAFE, True, TraceFlags(1), TraceState([("vendor", "abc"), ("b", "2")]))
    caller = trace.set_span_in_context(NonRecordingSpan(remote))
    root = tracer.start_span("POST /cart/{id}", caller, SpanKind.SERVER, EVERY_KIND, start_time=at(0))
    root.set_status(Status(StatusCode.OK))
    inside = trace.set_span_in_context(root)

    query = tracer.start_span("SELECT cart", inside, SpanKind.CLIENT, {"db.system.name": "postgresql"}, start_time=at(10))
    query.add_event("rows", {"count": 3, "cached": False}, timestamp=at(11))
    query.add_event("done", timestamp=at(12))
    query.end(at(15))

    charge = tracer.start_span("charge", inside, SpanKind.INTERNAL, start_time=at(20))
    try:
        raise ValueError("card declined: 4000-0002")
    except ValueError as error:
        charge.record_exception(error, {"attempt": 2}, timestamp=at(21))
        charge.set_status(Status(StatusCode.ERROR, "card declined"))
    charge.end(at(25))

    publish = tracer.start_span("publish orders", inside, SpanKind.PRODUCER, start_time=at(30))
    publish.end(at(31) + 7)
    root.end(at(50))

    other = SpanContext(0x99 << 64 | 0x1, 0x2, False, TraceFlags(0))
    links = [Link(publish.get_span_context(), {"messaging.offset": 17}), Link(other)]
    consume = tracer.start_span("process orders", trace.set_span_in_context(trace.INVALID_SPAN), SpanKind.CONSUMER, links=links, start_time=at(40))
    consume.end(at(45))
    provider.shutdown()
    return remote, root.get_span_context()


def send_cut_spans(exporter, resource, run):
    """Trace 100: a span that lost attributes, events and links to the SDK's own limits."""
    ids = Ids(run)
    ids.traces = ids.spans = 99
    limits = SpanLimits(max_span_attributes=2, max_events=1, max_links=1, max_event_attributes=1)
    provider = TracerProvider(resource=resource, id_generator=ids, span_limits=limits)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("shop.limits")
    links = [Link(SpanContext(1 << 64, n, False), {}) for n in (1, 2, 3)]
    span = tracer.start_span("cut", links=links, attributes={"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}, start_time=START_NS)
    for n in range(5):
        span.add_event(f"event {n}", {"x": 1, "y": 2}, timestamp=START_NS + n)
    span.end(START_NS + MS)
    provider.shutdown()


def send_logs(exporter, resource, span_context):
    """Bodies of every kind and one record of each severity; the first belongs to the root span."""
    provider = LoggerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_log_record_processor(BatchLogRecordProcessor(exporter))
    logger = provider.get_logger("shop.log", "0.9", SCHEMA, {"scope.kind": "audit"})
    within = trace.set_span_in_context(NonRecordingSpan(span_context))
    outside = trace.set_span_in_context(trace.INVALID_SPAN)
    at = lambda n: {"timestamp": START_NS + n * MS, "observed_timestamp": START_NS + n * MS + 250}

    number = SeverityNumber
    records = [
        LogRecord(**at(0), context=within, severity_number=number.INFO, severity_text="INFO", body="cart opened", attributes=EVERY_KIND),
        LogRecord(**at(1), context=outside, severity_number=number.TRACE, severity_text="TRACE", body="trace line"),
        LogRecord(**at(2), context=outside, severity_number=number.DEBUG2, severity_text="DEBUG", body=EVERY_KIND["text"]),
        LogRecord(**at(3), context=outside, severity_number=number.WARN, severity_text="warning", body={"order": 7, "items": ["tea", "cup"]}),
        LogRecord(**at(4), context=outside, severity_number=number.ERROR, severity_text="ERROR", body=["a", 1, True]),
        LogRecord(**at(5), context=outside, severity_number=number.FATAL4, severity_text="FATAL", body=b"\x00\xff"),
        LogRecord(**at(6), context=outside, severity_number=number.INFO, body=12.5, event_name="shop.order.placed"),
        LogRecord(observed_timestamp=START_NS + 7 * MS, context=outside, body="no time of its own"),
        LogRecord(**at(8), context=within, severity_number=number.ERROR, body="failed", exception=ValueError("card declined")),
    ]
    for record in records:
        logger.emit(record)
    provider.shutdown()


def send_metrics(exporter, resource, span_context):
    """Every instrument, recorded inside the root span so that exemplars carry its ids."""
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=EXPORT_INTERVAL_MS)
    views = [View(instrument_name="shop.wait", aggregation=ExponentialBucketHistogramAggregation(max_scale=3))]
    provider = MeterProvider([reader], resource, shutdown_on_exit=False, views=views)
    meter = provider.get_meter("shop.meter", "3.0", SCHEMA, {"scope.unit": "eu"})
    within = trace.set_span_in_context(NonRecordingSpan(span_context))

    orders = meter.create_counter("shop.orders", "{order}", "orders placed")
    orders.add(5, {"pay": "card", "vip": True}, context=within)
    orders.add(7, {"pay": "card", "vip": True}, context=within)
    orders.add(2, {"pay": "cash", "vip": False}, context=within)
    meter.create_counter("shop.revenue", "EUR").add(19.99)
    meter.create_up_down_counter("shop.queue", "{message}").add(-3, {"topic": "orders"})
    meter.create_gauge("shop.temperature", "Cel").set(-0.5, {"room": "server"})
    from opentelemetry.metrics import Observation

    meter.create_observable_gauge("shop.pool", [lambda _: [Observation(8, {"state": "idle"}), Observation(2, {"state": "used"})]])
    meter.create_observable_counter("shop.cpu", [lambda _: [Observation(1.5)]], "s")
    meter.create_observable_up_down_counter("shop.heap", [lambda _: [Observation(-4096)]], "By")
    latency = meter.create_histogram("shop.latency", "ms", "time to answer", explicit_bucket_boundaries_advisory=[10, 100])
    for value in (5, 50, 60, 500.5):
        latency.record(value, {"route": "/cart"}, within)
    wait = meter.create_histogram("shop.wait", "s")
    for value in (0, 1.0, 2.0, 4.0):
        wait.record(value, {"route": "/pay"}, within)
    provider.shutdown()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--protocol", choices=["grpc", "http"], required=True)
    parser.add_argument("--compression", choices=["none", "gzip"], required=True)
    parser.add_argument("--service", required=True)
    parser.add_argument("--run", type=int, required=True)
    args = parser.parse_args()

    complaints = Complaints()
    logging.getLogger("opentelemetry").addHandler(complaints)
    attributes = {"service.name": args.service, "service.instance.id": f"{args.service}-{args.run}", "service.version": "1.2.3", "host.cpus": 8, "host.load": 0.5, "host.spot": True, "host.zones": ["a", "b"]}
    resource = Resource.create(attributes, SCHEMA)

    make = lambda: exporters(args.endpoint, args.protocol, args.compression)
    spans, logs, metrics = make()
    _, root = send_traces(spans, resource, args.run)
    send_cut_spans(make()[0], resource, args.run)
    send_logs(logs, resource, root)
    send_metrics(metrics, resource, root)
    for line in complaints.lines:
        # The span limits drop attributes on purpose, and say so.
        if not line.startswith("opentelemetry.attributes: Attributes dict is full"):
            print(line, file=sys.stderr)
            complaints.failed = True
    return 1 if getattr(complaints, "failed", False) else 0


if __name__ == "__main__":
    sys.exit(main())
