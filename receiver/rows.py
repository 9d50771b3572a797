"""Admitted events <-> bytes of a spool entry -> rows of the database, as Arrow.

An entry holds each series once and each event with a number into them, so that it is small to write and
fsync; `to_events` spreads them out into the columns of `metering.events`. The same entries give the same
rows, in the same order, on every attempt.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import pyarrow as pa

from receiver.identity import ID_BYTES, Words, to_words
from receiver.quantity import Ints
from receiver.usage import Pairs, Series

EVENTS_KEY: Final = "events"
QUARANTINE_KEY: Final = "quarantine"

_UUID = pa.binary(ID_BYTES)
_MAP = pa.map_(pa.string(), pa.string())
_TIME = pa.timestamp("ns", "UTC")
_INGESTED_AT: Final = b"ingested_at_ms"

_COMPRESSED: Final = pa.ipc.IpcWriteOptions(compression="lz4")
"""What is written is fsynced before the acknowledgement, so it should be little."""

_SERIES_COLUMNS: Final = {
    "tenant_id": pa.string(),
    "meter": pa.string(),
    "dimensions": _MAP,
    "attributes": _MAP,
    "service_name": pa.string(),
    "signal": pa.string(),
    "stream_id": _UUID,
    "unique_key": pa.string(),
}
"""Columns of a row that its series decides, in the order of `Series.encoded`."""


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
        {"series": pa.array([item.encoded for item in columns.series], pa.binary())}
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
    return words_of(_read(payload)[-1]["event_id"])


def admitted_at_ms(payload: bytes) -> int:
    """When a spool entry was admitted, of either kind of payload: milliseconds since the epoch."""
    return int(_read(payload)[-1].schema.metadata[_INGESTED_AT])


def words_of(column: pa.Array) -> tuple[Words, Words]:
    """A column of identities (16 bytes each, none is null) as two columns of words."""
    start = column.offset * ID_BYTES
    return to_words(column.buffers()[1].to_pybytes()[start : start + len(column) * ID_BYTES])


def to_events(payloads: Sequence[bytes], batch_id: bytes) -> pa.Table:
    """Spool entries -> rows of `metering.events`, in their order, as one chunk."""
    places: dict[bytes, int] = {}
    numbers, tables = [], []
    for payload in payloads:
        series, events = _read(payload)
        # The same series is in many entries of a batch: each once in the table that is spread out.
        local = [places.setdefault(one, len(places)) for one in series["series"].to_pylist()]
        numbers.append(np.array(local, np.int32)[events["series"].to_numpy()])
        tables.append(_stamp(_with_traces(pa.Table.from_batches([events]))))
    described = _describe(places)
    table = _one_chunk(tables, batch_id).drop_columns("series")
    rows_of = pa.array(np.concatenate(numbers))
    for name, column in described.items():
        table = table.append_column(name, column.take(rows_of))
    return table


def to_quarantine(payloads: Sequence[bytes], batch_id: bytes) -> pa.Table:
    """Spool entries -> rows of `metering.quarantine`, in their order, as one chunk."""
    tables = []
    for payload in payloads:
        (batch,) = _read(payload)
        tables.append(_stamp(pa.Table.from_batches([batch])))
    return _one_chunk(tables, batch_id)


def _describe(encoded: Iterable[bytes]) -> dict[str, pa.Array]:
    """The columns that each of these series has."""
    parsed = [_parse_series(one) for one in encoded]
    columns = list(zip(*parsed, strict=True))
    arrays = {
        name: pa.array(column, kind)
        for (name, kind), column in zip(_SERIES_COLUMNS.items(), columns, strict=True)
    }
    for name in ("tenant_id", "meter", "service_name"):
        arrays[name] = arrays[name].dictionary_encode()
    return arrays


@lru_cache(maxsize=20_000)
def _parse_series(encoded: bytes) -> tuple[object, ...]:
    tenant, meter, dimensions, attributes, service, signal, stream, unique_key = json.loads(encoded)
    pairs = [tuple(pair) for pair in dimensions], [tuple(pair) for pair in attributes]
    return tenant, meter, *pairs, service, signal, bytes.fromhex(stream), unique_key


def _with_traces(events: pa.Table) -> pa.Table:
    for name in ("trace_id", "span_id"):
        if name not in events.schema.names:
            events = events.append_column(name, pa.repeat("", events.num_rows))
    return events


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
        with pa.ipc.new_stream(sink, batch.schema, options=_COMPRESSED) as writer:
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
