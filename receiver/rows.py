"""Admitted events <-> bytes of a spool entry -> rows of the database, as Arrow.

An entry holds each series once and each event with a number into them, so that it is small to write and
fsync; `to_events` spreads them out into the columns of `metering.events`. The same entries give the same
rows, in the same order, on every attempt.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from receiver.identity import ID_BYTES, Ids, Kind, Words, kinds_of, to_bytes, to_words
from receiver.quantity import Ints, to_decimal128
from receiver.usage import Pairs, Series

EVENTS_KEY: Final = "events"
QUARANTINE_KEY: Final = "quarantine"
CORRECTIONS_KEY: Final = "corrections"

_UUID = pa.binary(ID_BYTES)
_MAP = pa.map_(pa.string(), pa.string())
_TIME = pa.timestamp("ns", "UTC")
_QUANTITY = pa.decimal128(38, 9)
_NO_TRACE: Final = (b"", b"")
_JOINED: Final = ("first", "second", "whole", "nano", "observations", "start_ns", "time_ns")
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

_STREAM_PLACE: Final = list(_SERIES_COLUMNS).index("stream_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class EventColumns:
    """Events, one element each.

    Attributes:
        series: What each is an event of, by number.
        numbers: Each event's index into `series`.
        first: First half of its identity.
        second: Second half of it.
        whole: Quantity; with `nano`, see `receiver.quantity`.
        nano: Billionths of the quantity.
        observations: Measurements that it stands for.
        start_ns: Begin of the time it covers.
        time_ns: When.
        total: (whole, nano) of the cumulative points that these are increases of; None: they are not.
        attributes: Of each; None: those of its series.
        traces: (trace id, span id) of each; None: there are none.
    """

    series: Sequence[Series]
    numbers: Ints
    first: Words
    second: Words
    whole: Ints
    nano: Ints
    observations: Ints
    start_ns: Ints
    time_ns: Ints
    total: tuple[Ints, Ints] | None = None
    attributes: Sequence[Pairs] | None = None
    traces: Sequence[tuple[bytes, bytes]] | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, mask: NDArray[np.bool_]) -> "EventColumns":
        """The events that are True in `mask`."""
        if mask.all():
            return self
        places = np.flatnonzero(mask).tolist()
        return EventColumns(
            series=self.series,
            numbers=self.numbers[mask],
            first=self.first[mask],
            second=self.second[mask],
            whole=self.whole[mask],
            nano=self.nano[mask],
            observations=self.observations[mask],
            start_ns=self.start_ns[mask],
            time_ns=self.time_ns[mask],
            total=self.total and (self.total[0][mask], self.total[1][mask]),
            attributes=self.attributes and [self.attributes[i] for i in places],
            traces=self.traces and [self.traces[i] for i in places],
        )


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


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectionRow:
    """One row of `metering.event_corrections`; the columns of the table."""

    event_id: bytes
    tenant_id: str
    meter: str
    timestamp_ns: int
    quantity: Decimal
    observations: int
    dimensions: Pairs
    action: str
    reason: str
    replaced_by: bytes
    key_id: str
    corrected_at_ms: int


def begins(start_ns: Ints, time_ns: Ints) -> Ints:
    """Where the time that each event covers begins: its start, if it says one that can be."""
    # Unknown (0), or a clock that stepped back in between: begin = end.
    return np.where((start_ns <= 0) | (start_ns > time_ns), time_ns, start_ns)


def encode_events(parts: Sequence[EventColumns], ingested_at_ms: int) -> bytes:
    """Events -> payload of a spool entry of key `EVENTS_KEY`; all or none have attributes of their own."""
    series = pa.record_batch(
        {"series": pa.array([one.encoded for part in parts for one in part.series], pa.binary())}
    )
    bases = np.cumsum([0, *(len(part.series) for part in parts)])
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _JOINED}
    numbers = np.concatenate(
        [base + part.numbers for base, part in zip(bases, parts, strict=False)]
    )
    ids = to_bytes(joined["first"], joined["second"])
    events = {
        "series": pa.array(numbers, pa.int32()),
        "event_id": pa.Array.from_buffers(_UUID, len(numbers), [None, pa.py_buffer(ids)]),
        "quantity": to_decimal128(joined["whole"], joined["nano"]),
        "timestamp": pa.array(joined["time_ns"]).cast(_TIME),
        "start_time": pa.array(joined["start_ns"]).cast(_TIME),
    }
    # What most events do not have is not written for them.
    if (joined["observations"] != 1).any():
        events["observations"] = pa.array(joined["observations"], pa.int64())
    if any(part.total for part in parts):
        events["cumulative_value"] = pa.concat_arrays([_totals(part) for part in parts])
    if any(part.traces for part in parts):
        pairs = [pair for part in parts for pair in part.traces or [_NO_TRACE] * len(part)]
        events["trace_id"] = pa.array([trace.hex() for trace, _ in pairs], pa.string())
        events["span_id"] = pa.array([span.hex() for _, span in pairs], pa.string())
    if parts[0].attributes is not None:
        events["attributes"] = _maps([own for part in parts for own in part.attributes or ()])
    batch = pa.record_batch(events).replace_schema_metadata({_INGESTED_AT: str(ingested_at_ms)})
    return _write(series, batch)


def _maps(of: Sequence[Pairs]) -> pa.Array:
    """Maps, built from flat columns: much faster than from a tuple for each pair."""
    offsets = np.cumsum([0, *map(len, of)], dtype=np.int32)
    keys = pa.array([name for pairs in of for name, _ in pairs], pa.string())
    texts = pa.array([text for pairs in of for _, text in pairs], pa.string())
    return pa.MapArray.from_arrays(pa.array(offsets), keys, texts)


def _totals(part: EventColumns) -> pa.Array:
    return to_decimal128(*part.total) if part.total else pa.nulls(len(part), _QUANTITY)


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


def encode_corrections(rows: Sequence[CorrectionRow], ingested_at_ms: int) -> bytes:
    """Rows -> payload of a spool entry of key `CORRECTIONS_KEY`."""
    batch = pa.record_batch(
        {
            "event_id": pa.array([row.event_id for row in rows], _UUID),
            "tenant_id": pa.array([row.tenant_id for row in rows], pa.string()),
            "meter": pa.array([row.meter for row in rows], pa.string()),
            "timestamp": pa.array([row.timestamp_ns for row in rows], pa.int64()).cast(_TIME),
            "quantity": pa.array([row.quantity for row in rows], _QUANTITY),
            "observations": pa.array([row.observations for row in rows], pa.int64()),
            "dimensions": pa.array([row.dimensions for row in rows], _MAP),
            "action": pa.array([row.action for row in rows], pa.string()),
            "reason": pa.array([row.reason for row in rows], pa.string()),
            "replaced_by": pa.array([row.replaced_by for row in rows], _UUID),
            "key_id": pa.array([row.key_id for row in rows], pa.string()),
            "corrected_at": pa.array([row.corrected_at_ms for row in rows], pa.int64()).cast(
                pa.timestamp("ms", "UTC")
            ),
        }
    )
    return _write(batch.replace_schema_metadata({_INGESTED_AT: str(ingested_at_ms)}))


def ids_of(payload: bytes) -> Ids:
    """The identities in a spool entry of usage or quarantine."""
    *series, rows = _read(payload)
    first, second = words_of(rows["event_id"])
    content = np.zeros(len(first), np.uint64)
    is_explicit = kinds_of(second) == Kind.EXPLICIT
    if series and is_explicit.any():
        streams = [_parse_series(one)[_STREAM_PLACE] for one in series[0]["series"].to_pylist()]
        stream_first, _ = to_words(b"".join(streams))
        content[is_explicit] = stream_first[rows["series"].to_numpy()[is_explicit]]
    time_ns = rows["timestamp"].cast(pa.int64()).to_numpy()
    return Ids(first=first, second=second, time_ns=time_ns, content=content)


def corrected_ids(payload: bytes) -> list[bytes]:
    """The events that a spool entry of corrections takes back."""
    (batch,) = _read(payload)
    ids: list[bytes] = batch["event_id"].to_pylist()
    return ids


def content_of(stream_id: bytes) -> int:
    """What the row of an EXPLICIT id says, in eight bytes: see `Ids.content`."""
    return int.from_bytes(stream_id[:8], "little")


def admitted_at_ms(payload: bytes) -> int:
    """When a spool entry was admitted, of any kind of payload: milliseconds since the epoch."""
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
        tables.append(_stamp(_complete(pa.Table.from_batches([events]))))
    described = _describe(places)
    own = [table["attributes"] if "attributes" in table.schema.names else None for table in tables]
    attributes = [
        described["attributes"].take(pa.array(at)) if one is None else one.combine_chunks()
        for one, at in zip(own, numbers, strict=True)
    ]
    tables = [
        table if one is None else table.drop_columns("attributes")
        for one, table in zip(own, tables, strict=True)
    ]
    table = _one_chunk(tables, batch_id).drop_columns("series")
    rows_of = pa.array(np.concatenate(numbers))
    for name, column in described.items():
        spread = pa.concat_arrays(attributes) if name == "attributes" else column.take(rows_of)
        table = table.append_column(name, spread)
    return table


def to_quarantine(payloads: Sequence[bytes], batch_id: bytes) -> pa.Table:
    """Spool entries -> rows of `metering.quarantine`, in their order, as one chunk."""
    tables = []
    for payload in payloads:
        (batch,) = _read(payload)
        tables.append(_stamp(pa.Table.from_batches([batch])))
    return _one_chunk(tables, batch_id)


def to_corrections(payloads: Sequence[bytes], batch_id: bytes) -> pa.Table:
    """Spool entries -> rows of `metering.event_corrections`, in their order, as one chunk."""
    tables = [pa.Table.from_batches(_read(one)).replace_schema_metadata(None) for one in payloads]
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
def _parse_series(encoded: bytes) -> tuple[Any, ...]:
    tenant, meter, dimensions, attributes, service, signal, stream, unique_key = json.loads(encoded)
    pairs = [tuple(pair) for pair in dimensions], [tuple(pair) for pair in attributes]
    return tenant, meter, *pairs, service, signal, bytes.fromhex(stream), unique_key


def _complete(events: pa.Table) -> pa.Table:
    """The columns that the entry left out, in the order of the table for every entry."""
    left_out = {
        "observations": pa.scalar(1, pa.int64()),
        "cumulative_value": pa.scalar(None, _QUANTITY),
        "trace_id": pa.scalar(""),
        "span_id": pa.scalar(""),
    }
    for name, value in left_out.items():
        if name in events.schema.names:
            column = events[name]
            events = events.drop_columns(name)
        else:
            column = pa.repeat(value, events.num_rows)
        events = events.append_column(name, column)
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
