"""ExportTraceServiceRequest and ExportLogsServiceRequest -> items: one for each span or log record."""

from collections.abc import Iterator
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from otel_metering.contract.meter import Signal, SpanKind
from receiver.errors import MalformedPayloadError
from receiver.otlp import lazy_pb2 as lazy

_KINDS: Final = {
    1: SpanKind.INTERNAL,
    2: SpanKind.SERVER,
    3: SpanKind.CLIENT,
    4: SpanKind.PRODUCER,
    5: SpanKind.CONSUMER,
}
"""OTLP's SpanKind; any other number is a span of no kind."""


class ItemHeader(NamedTuple):
    """What items of one name have in common: the key of the stream cache, above their attributes."""

    signal: Signal
    resource: bytes
    scope: bytes
    name: bytes
    kind: SpanKind | None


class Item(NamedTuple):
    """One span or log record.

    Attributes:
        header: What it shares with others.
        encoded: All of it.
        attributes: Encoded KeyValues.
        trace_id: 16 bytes; empty: none.
        span_id: 8 bytes; empty: none.
        start_ns: Begin of a span; time of a log record.
        time_ns: End of a span; time of a log record, else its observed time; 0: missing.
        body: Encoded AnyValue of a log record.
    """

    header: ItemHeader
    encoded: bytes
    attributes: tuple[bytes, ...]
    trace_id: bytes
    span_id: bytes
    start_ns: int
    time_ns: int
    body: bytes


def decode_spans(body: bytes) -> list[Item]:
    """One item for each span, in the order of the request.

    Raises:
        MalformedPayloadError: `body` is not an ExportTraceServiceRequest.
    """
    try:
        return list(_spans(lazy.TraceRequest.FromString(body)))
    except DecodeError as error:
        raise MalformedPayloadError("the body is not an ExportTraceServiceRequest") from error


def decode_logs(body: bytes) -> list[Item]:
    """One item for each log record, in the order of the request.

    Raises:
        MalformedPayloadError: `body` is not an ExportLogsServiceRequest.
    """
    try:
        return list(_logs(lazy.LogsRequest.FromString(body)))
    except DecodeError as error:
        raise MalformedPayloadError("the body is not an ExportLogsServiceRequest") from error


def encode_single(item: Item) -> bytes:
    """An export request of the item's signal with this one item, so that it can be sent again."""
    header = item.header
    if header.signal is Signal.SPAN:
        scope_spans = lazy.ScopeSpans(scope=header.scope, spans=[item.encoded])
        resource_spans = lazy.ResourceSpans(resource=header.resource, scope_spans=[scope_spans])
        return lazy.TraceRequest(resource_spans=[resource_spans]).SerializeToString()
    scope_logs = lazy.ScopeLogs(scope=header.scope, log_records=[item.encoded])
    resource_logs = lazy.ResourceLogs(resource=header.resource, scope_logs=[scope_logs])
    return lazy.LogsRequest(resource_logs=[resource_logs]).SerializeToString()


def _spans(request: lazy.TraceRequest) -> Iterator[Item]:
    for resource_spans in request.resource_spans:
        for scope_spans in resource_spans.scope_spans:
            for encoded in scope_spans.spans:
                span = lazy.Span.FromString(encoded)
                yield Item(
                    ItemHeader(
                        Signal.SPAN,
                        resource_spans.resource,
                        scope_spans.scope,
                        span.name,
                        _KINDS.get(span.kind),
                    ),
                    encoded,
                    tuple(span.attributes),
                    span.trace_id,
                    span.span_id,
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    b"",
                )


def _logs(request: lazy.LogsRequest) -> Iterator[Item]:
    for resource_logs in request.resource_logs:
        for scope_logs in resource_logs.scope_logs:
            for encoded in scope_logs.log_records:
                record = lazy.LogRecord.FromString(encoded)
                time_ns = record.time_unix_nano or record.observed_time_unix_nano
                yield Item(
                    ItemHeader(
                        Signal.LOG,
                        resource_logs.resource,
                        scope_logs.scope,
                        record.event_name,
                        None,
                    ),
                    encoded,
                    tuple(record.attributes),
                    record.trace_id,
                    record.span_id,
                    time_ns,
                    time_ns,
                    record.body,
                )
