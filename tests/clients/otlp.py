"""Decodes OTLP messages with OpenTelemetry's own Python classes, one hexadecimal line each on standard input, and prints
what each holds as a line of JSON. Not here: where the messages come from."""

import json
import sys

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


def traces(message):
    request = ExportTraceServiceRequest.FromString(message)
    scopes = [scope for resource in request.resource_spans for scope in resource.scope_spans]
    return [span.attributes for scope in scopes for span in scope.spans]


def logs(message):
    request = ExportLogsServiceRequest.FromString(message)
    scopes = [scope for resource in request.resource_logs for scope in resource.scope_logs]
    return [record.attributes for scope in scopes for record in scope.log_records]


def metrics(message):
    request = ExportMetricsServiceRequest.FromString(message)
    scopes = [scope for resource in request.resource_metrics for scope in resource.scope_metrics]
    metrics = [metric for scope in scopes for metric in scope.metrics]
    return [point.attributes for metric in metrics for point in [*metric.gauge.data_points, *metric.sum.data_points]]


DECODE = {"traces": traces, "logs": logs, "metrics": metrics}

for line in sys.stdin:
    signal, message = line.split()
    for attributes in DECODE[signal](bytes.fromhex(message)):
        found = {each.key: each.value.int_value for each in attributes if each.value.HasField("int_value")}
        print(json.dumps([signal, found["load.batch"], found["load.row"]]))
