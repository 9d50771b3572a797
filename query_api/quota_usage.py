"""Usage of tenants that have quotas: of admitted events, of what waits in the spool, of the database."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from otel_metering.contract import attributes as names
from otel_metering.contract.meter import Aggregation, MeterDefinition
from query_api.aggregates import finish, usage
from query_api.counters import Pairs, Settlement
from query_api.filters import any_of
from query_api.periods import MAX_NS, Range
from query_api.queries import AggregateRequest
from query_api.quotas import NANO, Book, Counter, Tag, to_nano
from receiver.store import tables
from receiver.store.client import ReadLimits, Store

COMMIT_PREFIX: Final = "reservation/"
"""What the event id of a commit begins with; the id of the reservation follows."""

_SAFE: Final = 2**62
"""Below it the sum of a column of integers is far from their end."""

Ints = NDArray[np.int64]


class Series(Protocol):
    """What events share."""

    @property
    def tenant_id(self) -> str:
        """Who pays."""
        ...

    @property
    def meter(self) -> str:
        """Slug."""
        ...

    @property
    def dimensions(self) -> Pairs:
        """What the meter groups by."""
        ...

    @property
    def attributes(self) -> Pairs:
        """All that its events share."""
        ...


class Events(Protocol):
    """Admitted events as columns; see `receiver.rows.EventColumns`."""

    @property
    def series(self) -> Sequence[Series]:
        """What each is an event of, by number."""
        ...

    @property
    def numbers(self) -> Ints:
        """Each event's index into `series`."""
        ...

    @property
    def whole(self) -> Ints:
        """Quantity."""
        ...

    @property
    def nano(self) -> Ints:
        """Billionths of it."""
        ...

    @property
    def observations(self) -> Ints:
        """Measurements that each stands for."""
        ...

    @property
    def time_ns(self) -> Ints:
        """When."""
        ...

    @property
    def attributes(self) -> Sequence[Pairs] | None:
        """Of each; None: those of its series."""
        ...


@dataclass(slots=True)
class TagUsage:
    """What a micro-batch brings to one tag.

    Attributes:
        amounts: What it adds to each counter, by name; counters that nobody loaded included.
        settlements: The reservations that it settles, in order.
    """

    amounts: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    settlements: list[Settlement] = field(default_factory=list)


def usage_of(parts: Sequence[Events], book: Book) -> dict[Tag, TagUsage]:
    """What the quotas of `book` have to count of admitted events."""
    found: dict[Tag, TagUsage] = {}
    for part in parts:
        _add_part(part, book, found)
    return found


def _add_part(part: Events, book: Book, found: dict[Tag, TagUsage]) -> None:
    groups: dict[tuple[Tag, Pairs], int] = {}
    places = np.full(len(part.series), -1, np.int64)
    for number, series in enumerate(part.series):
        tag = series.tenant_id, series.meter
        if book.of(tag):
            places[number] = groups.setdefault((tag, series.dimensions), len(groups))
    if not groups:
        return
    group_of = places[part.numbers]
    chosen = np.flatnonzero(group_of >= 0)
    # Events of a group side by side, in their order.
    order = chosen[np.argsort(group_of[chosen], kind="stable")]
    edges = np.flatnonzero(np.diff(group_of[order], prepend=-1))
    keys = list(groups)
    for of_group in np.split(order, edges[1:]):
        if len(of_group):
            tag, dimensions = keys[int(group_of[of_group[0]])]
            usage = found.setdefault(tag, TagUsage())
            _add_group(part, of_group, book, tag, dict(dimensions), usage)
            _add_settlements(part, of_group, usage)


def _add_group(
    part: Events, at: Ints, book: Book, tag: Tag, dimensions: Mapping[str, str], usage: TagUsage
) -> None:
    times = part.time_ns[at]
    first, last = int(times.min()), int(times.max())
    for applied in book.of(tag):
        rule = applied.rule
        if rule.aggregation is None or not rule.admits(dimensions):
            continue
        counter = rule.counter(last)
        if counter.span.has(first):
            usage.amounts[counter.key] += _total(part, at, rule.aggregation)
            continue
        for i, ns in zip(at.tolist(), times.tolist(), strict=True):
            usage.amounts[rule.counter(ns).key] += _amount(part, i, rule.aggregation)


def _total(part: Events, at: Ints, aggregation: Aggregation) -> int:
    if aggregation is Aggregation.COUNT:
        return _sum(part.observations[at]) * NANO
    return _sum(part.whole[at]) * NANO + _sum(part.nano[at])


def _sum(values: Ints) -> int:
    if int(np.abs(values).max()) < _SAFE // len(values) and int(values.min()) > -_SAFE:
        return int(values.sum())
    return sum(values.tolist())


def _amount(part: Events, i: int, aggregation: Aggregation) -> int:
    if aggregation is Aggregation.COUNT:
        return int(part.observations[i]) * NANO
    return int(part.whole[i]) * NANO + int(part.nano[i])


def _add_settlements(part: Events, at: Ints, usage: TagUsage) -> None:
    for i in at.tolist():
        of_series = part.attributes is None
        pairs = part.series[int(part.numbers[i])].attributes if of_series else part.attributes[i]  # type: ignore[index]  # it is not None then
        reservation_id = text_of(pairs, names.RESERVATION_ID)
        if reservation_id is not None:
            amount = int(part.whole[i]) * NANO + int(part.nano[i])
            is_commit = text_of(pairs, names.EVENT_ID) == COMMIT_PREFIX + reservation_id
            usage.settlements.append(Settlement(reservation_id, amount, is_commit))


def text_of(pairs: Iterable[tuple[str, str]], wanted: str) -> str | None:
    """The text of this name; None: there is none."""
    for name, text in pairs:
        if name == wanted:
            return text
    return None


def stored_total(store: Store, limits: ReadLimits, meter: MeterDefinition, counter: Counter) -> int:
    """What the database has of a counter.

    Raises:
        MeteringError: It did not answer in time.
    """
    rule = counter.rule
    assert rule.aggregation is not None  # noqa: S101 - others have no counter
    request = AggregateRequest(
        meter=meter,
        aggregation=rule.aggregation,
        range=Range(counter.span.start_ns, counter.span.end_ns or MAX_NS),
        tenant_id=rule.tag[0],
        filters=any_of(dict(rule.filter)),
    )
    found = finish(usage(request), lambda one: store.query(one.sql, one.parameters, limits))
    value = found.rows[0].value if found.rows else None
    return 0 if value is None else to_nano(value)


def pending_total(events: pa.Table | None, counter: Counter) -> int:
    """What rows of `metering.events` that are not stored yet add to a counter."""
    rule = counter.rule
    total = 0
    for row in _rows_of(events, rule.tag, ["quantity", "observations", "timestamp", "dimensions"]):
        if counter.span.has(row["timestamp"]) and rule.admits(dict(row["dimensions"])):
            is_count = rule.aggregation is Aggregation.COUNT
            total += row["observations"] * NANO if is_count else to_nano(row["quantity"])
    return total


def oldest_pending(events: pa.Table | None) -> int:
    """No row of `metering.events` that is not stored yet is of before this instant, in ns."""
    if events is None or not events.num_rows:
        return MAX_NS
    return int(pc.min(events["timestamp"].cast(pa.int64())).as_py())


def pending_settlements(events: pa.Table | None, tag: Tag) -> list[Settlement]:
    """The settlements in rows that are not stored yet."""
    found = []
    for row in _rows_of(events, tag, ["quantity", "attributes"]):
        reservation_id = text_of(row["attributes"], names.RESERVATION_ID)
        if reservation_id is not None:
            event_id = text_of(row["attributes"], names.EVENT_ID)
            is_commit = event_id == COMMIT_PREFIX + reservation_id
            found.append(Settlement(reservation_id, to_nano(row["quantity"]), is_commit))
    return found


def stored_settlements(
    store: Store, limits: ReadLimits, tag: Tag, ids: Sequence[str], since_ns: int
) -> list[Settlement]:
    """The settlements of these reservations in the database, of usage since `since_ns`.

    Raises:
        MeteringError: It did not answer in time.
    """
    rows = store.query(
        "SELECT source.attributes[{id_name:String}] AS reservation, source.quantity, "  # noqa: S608 - from tables.py
        f"source.attributes[{{event_name:String}}] FROM {tables.EVENTS} AS source "
        "WHERE source.tenant_id = {tenant_id:String} AND source.meter = {meter:String} "
        "AND source.timestamp >= fromUnixTimestamp64Nano({since_ns:Int64}, 'UTC') "
        "AND has({ids:Array(String)}, source.attributes[{id_name:String}]) "
        "ORDER BY source.timestamp LIMIT 1000000",
        {
            "id_name": names.RESERVATION_ID,
            "event_name": names.EVENT_ID,
            "tenant_id": tag[0],
            "meter": tag[1],
            "since_ns": max(since_ns, 0),
            "ids": list(ids),
        },
        limits,
    )
    return [
        Settlement(str(id_), to_nano(Decimal(quantity)), event_id == COMMIT_PREFIX + id_)
        for id_, quantity, event_id in rows
    ]


def _rows_of(events: pa.Table | None, tag: Tag, columns: list[str]) -> list[dict[str, Any]]:
    if events is None:
        return []
    is_his = pc.equal(events["tenant_id"].cast(pa.string()), tag[0])
    is_his = pc.and_(is_his, pc.equal(events["meter"].cast(pa.string()), tag[1]))
    his = events.select(columns).filter(is_his)
    if "timestamp" in columns:
        # As nanoseconds: no time of Python holds them.
        at = columns.index("timestamp")
        his = his.set_column(at, "timestamp", his["timestamp"].cast(pa.int64()))
    rows: list[dict[str, Any]] = his.to_pylist()
    return rows
