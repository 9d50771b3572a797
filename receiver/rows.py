"""Admitted events <-> bytes of a spool entry -> rows of the database, as Arrow.

An entry holds each series once and each event with a number into them, so that it is small to write and
fsync; `to_events` spreads them out into the columns of `metering.events`. The same entries give the same
rows, in the same order, on every attempt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from receiver.identity import ID_BYTES, Words, to_words
from receiver.metering import Pairs, Series
from receiver.quantity import Ints

EVENTS_KEY: Final = "events"
QUARANTINE_KEY: Final = "quarantine"

_UUID = pa.binary(ID_BYTES)
_MAP = pa.map_(pa.string(), pa.string())
_TIME = pa.timestamp("ns", "UTC")
_INGESTED_AT: Final = b"ingested_at_ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class EventColumns:
    """Events, one element each.

    Attributes:
        series: What each is an event of, by number.
        numbers: Each event's index into `series`.
        ids: Identities, one after another.
        quantity: decimal128(38, 9).
        timestamp_ns: When.
        start_ns: Begin of the time it covers.
        traces: (trace id, span id), hexadecimal, of those that have one, by index.
    """

    series: Sequence[Series]
    numbers: Ints
    ids: bytes
    quantity: pa.Array
    timestamp_ns: Ints
    start_ns: Ints
    traces: dict[int, tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineRow:
    """One row of `metering.quarantine`; the columns of the table."""

    event_id: bytes
    reason: str
    detail: str
    signal: str
    name: str
    tenant_id: str
    timestamp_ns: int
    attributes: Pairs
    service_name: str
    payload: bytes
    key_id: str


def encode_events(columns: EventColumns, ingested_at_ms: int) -> bytes:
    """Events -> payload of a spool entry of key `EVENTS_KEY`."""
    series = pa.record_batch(
        {
            "tenant_id": pa.array([item.tenant_id for item in columns.series], pa.string()),
            "meter": pa.array([item.meter for item in columns.series], pa.string()),
            "dimensions": pa.array([item.dimensions for item in columns.series], _MAP),
            "attributes": pa.array([item.attributes for item in columns.series], _MAP),
            "service_name": pa.array([item.service_name for item in columns.series], pa.string()),
            "signal": pa.array([str(item.signal) for item in columns.series], pa.string()),
            "stream_id": pa.array([item.stream_id for item in columns.series], _UUID),
            "unique_key": pa.array([item.unique_key for item in columns.series], pa.string()),
        }
    )
    count = len(columns.numbers)
    events = {
        "series": pa.array(columns.numbers, pa.int32()),
        "event_id": pa.Array.from_buffers(_UUID, count, [None, pa.py_buffer(columns.ids)]),
        "quantity": columns.quantity,
        "timestamp": pa.array(columns.timestamp_ns).cast(_TIME),
        "start_time": pa.array(columns.start_ns).cast(_TIME),
    }
    if columns.traces:
        absent = ("", "")
        pairs = [columns.traces.get(i, absent) for i in range(count)]
        events["trace_id"] = pa.array([trace for trace, _ in pairs], pa.string())
        events["span_id"] = pa.array([span for _, span in pairs], pa.string())
    batch = pa.record_batch(events).replace_schema_metadata({_INGESTED_AT: str(ingested_at_ms)})
    return _write(series, batch)


def encode_quarantine(rows: Sequence[QuarantineRow], ingested_at_ms: int) -> bytes:
    """Rows -> payload of a spool entry of key `QUARANTINE_KEY`."""
    batch = pa.record_batch(
        {
            "event_id": pa.array([row.event_id for row in rows], _UUID),
            "reason": pa.array([row.reason for row in rows], pa.string()),
            "detail": pa.array([row.detail for row in rows], pa.string()),
            "signal": pa.array([row.signal for row in rows], pa.string()),
            "name": pa.array([row.name for row in rows], pa.string()),
            "tenant_id": pa.array([row.tenant_id for row in rows], pa.string()),
            "timestamp": pa.array([row.timestamp_ns for row in rows], pa.int64()).cast(_TIME),
            "attributes": pa.array([row.attributes for row in rows], _MAP),
            "service_name": pa.array([row.service_name for row in rows], pa.string()),
            "payload": pa.array([row.payload for row in rows], pa.binary()),
            "key_id": pa.array([row.key_id for row in rows], pa.string()),
        }
    )
    return _write(batch.replace_schema_metadata({_INGESTED_AT: str(ingested_at_ms)}))


def ids_of(payload: bytes) -> tuple[Words, Words]:
    """The identities in a spool entry, in either kind of payload."""
    column = _read(payload)[-1]["event_id"]
    start = column.offset * ID_BYTES
    return to_words(column.buffers()[1].to_pybytes()[start : start + len(column) * ID_BYTES])


def to_events(payloads: Sequence[bytes], batch_id: bytes) -> pa.Table:
    """Spool entries -> rows of `metering.events`, in their order, as one chunk."""
    return _one_chunk([_spread(payload) for payload in payloads], batch_id)


def to_quarantine(payloads: Sequence[bytes], batch_id: bytes) -> pa.Table:
    """Spool entries -> rows of `metering.quarantine`, in their order, as one chunk."""
    tables = []
    for payload in payloads:
        (batch,) = _read(payload)
        tables.append(_stamp(pa.Table.from_batches([batch])))
    return _one_chunk(tables, batch_id)


def _spread(payload: bytes) -> pa.Table:
    series, events = _read(payload)
    numbers = events["series"]
    columns = {name: events[name] for name in ("event_id", "quantity", "timestamp", "start_time")}
    for name in ("tenant_id", "meter", "service_name"):
        columns[name] = series[name].dictionary_encode().take(numbers)
    for name in ("dimensions", "attributes", "signal", "stream_id", "unique_key"):
        columns[name] = series[name].take(numbers)
    for name in ("trace_id", "span_id"):
        has_traces = name in events.schema.names
        columns[name] = events[name] if has_traces else pa.repeat("", len(numbers))
    return _stamp(
        pa.table(columns).replace_schema_metadata(events.schema.metadata),
    )


def _stamp(table: pa.Table) -> pa.Table:
    moment = pa.scalar(int(table.schema.metadata[_INGESTED_AT]), pa.int64())
    ingested_at = pa.repeat(moment, table.num_rows).cast(pa.timestamp("ms", "UTC"))
    return table.append_column("ingested_at", ingested_at).replace_schema_metadata(None)


def _one_chunk(tables: Sequence[pa.Table], batch_id: bytes) -> pa.Table:
    table = pa.concat_tables(tables)
    batch = pa.repeat(pa.scalar(batch_id, _UUID), table.num_rows)
    return table.append_column("batch_id", batch).combine_chunks()


def _write(*batches: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    for batch in batches:
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
    return bytes(sink.getvalue())


def _read(payload: bytes) -> list[pa.RecordBatch]:
    source = pa.BufferReader(payload)
    batches = []
    while source.tell() < source.size():
        with pa.ipc.open_stream(source) as reader:
            batches.append(reader.read_next_batch())
            # To the end of this stream: the next one begins there.
            for _ in reader:
                pass
    return batches
