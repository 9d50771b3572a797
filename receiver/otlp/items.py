"""ExportTraceServiceRequest and ExportLogsServiceRequest -> columns of items, a group for each scope.

An item is a span or a log record.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

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
    """What the items of one scope of a request have in common."""

    signal: Signal
    resource: bytes
    scope: bytes


class ItemName(NamedTuple):
    """What decides, with a header, which meters an item may feed.

    Attributes:
        name: Span name or event name, encoded.
        kind: OTLP's SpanKind; 0 for log records.
    """

    name: bytes
    kind: int

    @property
    def span_kind(self) -> SpanKind | None:
        """The kind; None: none of those that are defined."""
        return _KINDS.get(self.kind)


@dataclass(slots=True)
class ItemGroup:
    """The spans or log records of one scope of one request, as columns of one length.

    Attributes:
        header: What they share.
        encoded: Each item, all of it.
        names: Name and kind.
        attributes: Encoded KeyValues of each.
        trace_ids: 16 bytes; empty: none.
        span_ids: 8 bytes; empty: none.
        bodies: Encoded AnyValue of a log record.
        start_ns: Begin of a span; time of a log record.
        time_ns: End of a span; time of a log record, else its observed time; 0: missing.
    """

    header: ItemHeader
    encoded: list[bytes]
    names: list[ItemName]
    attributes: list[tuple[bytes, ...]]
    trace_ids: list[bytes]
    span_ids: list[bytes]
    bodies: list[bytes]
    start_ns: NDArray[np.uint64]
    time_ns: NDArray[np.uint64]


def decode_spans(body: bytes) -> list[ItemGroup]:
    """One group for each scope that has spans, in the order of the request.

    Raises:
        MalformedPayloadError: `body` is not an ExportTraceServiceRequest.
    """
    try:
        return [
            _spans(ItemHeader(Signal.SPAN, resource_spans.resource, one.scope), list(one.spans))
            for resource_spans in lazy.TraceRequest.FromString(body).resource_spans
            for one in resource_spans.scope_spans
            if one.spans
        ]
    except DecodeError as error:
        raise MalformedPayloadError("the body is not an ExportTraceServiceRequest") from error


def decode_logs(body: bytes) -> list[ItemGroup]:
    """One group for each scope that has log records, in the order of the request.

    Raises:
        MalformedPayloadError: `body` is not an ExportLogsServiceRequest.
    """
    try:
        return [
            _logs(ItemHeader(Signal.LOG, resource_logs.resource, one.scope), list(one.log_records))
            for resource_logs in lazy.LogsRequest.FromString(body).resource_logs
            for one in resource_logs.scope_logs
            if one.log_records
        ]
    except DecodeError as error:
        raise MalformedPayloadError("the body is not an ExportLogsServiceRequest") from error


def encode_single(header: ItemHeader, encoded: bytes) -> bytes:
    """An export request of the item's signal with this one item, so that it can be sent again."""
    if header.signal is Signal.SPAN:
        scope_spans = lazy.ScopeSpans(scope=header.scope, spans=[encoded])
        resource_spans = lazy.ResourceSpans(resource=header.resource, scope_spans=[scope_spans])
        return lazy.TraceRequest(resource_spans=[resource_spans]).SerializeToString()
    scope_logs = lazy.ScopeLogs(scope=header.scope, log_records=[encoded])
    resource_logs = lazy.ResourceLogs(resource=header.resource, scope_logs=[scope_logs])
    return lazy.LogsRequest(resource_logs=[resource_logs]).SerializeToString()


def _spans(header: ItemHeader, encoded: list[bytes]) -> ItemGroup:
    spans = [lazy.Span.FromString(one) for one in encoded]
    return ItemGroup(
        header,
        encoded,
        [ItemName(span.name, span.kind) for span in spans],
        [tuple(span.attributes) for span in spans],
        [span.trace_id for span in spans],
        [span.span_id for span in spans],
        [b""] * len(spans),
        np.array([span.start_time_unix_nano for span in spans], np.uint64),
        np.array([span.end_time_unix_nano for span in spans], np.uint64),
    )


def _logs(header: ItemHeader, encoded: list[bytes]) -> ItemGroup:
    records = [lazy.LogRecord.FromString(one) for one in encoded]
    times = np.array(
        [one.time_unix_nano or one.observed_time_unix_nano for one in records], np.uint64
    )
    return ItemGroup(
        header,
        encoded,
        [ItemName(one.event_name, 0) for one in records],
        [tuple(one.attributes) for one in records],
        [one.trace_id for one in records],
        [one.span_id for one in records],
        [one.body for one in records],
        times,
        times,
    )
