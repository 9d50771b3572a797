"""Requests become SQL: which rows of which tables answer exactly, and how their states merge.

Every statement names its columns, has a bound on time and a LIMIT. Values are bound, dimension names
included; the text of a statement is put together from the constants of this module and `tables.py`
alone. Columns are written `source.x` and `parts.x`: a bare name in ClickHouse may mean an alias of the
same SELECT instead of the column.

Rollup rows may not be merged yet, and a range may be answered by several tables, so each piece yields
partial states, and the statement merges the states of all pieces.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Final

import numpy as np

from otel_metering.contract.meter import Aggregation, MeterDefinition
from otel_metering.errors import InvalidUsageError
from query_api.filters import Filter, condition
from query_api.periods import SECOND_NS, Grain, Range
from query_api.plan import Cells, Read, plan
from query_api.recipes import COUNT, RECIPES
from query_api.windows import Window, Windows
from query_api.zones import DAY_S, UTC_ZONE, Zone
from receiver.store import tables

_EPOCH_DAY: Final = date(1970, 1, 1).toordinal()

MAX_ROWS: Final = 100_000
"""Rows of one answer: about 20 MB of JSON."""

TENANT: Final = "tenant_id"
"""`group_by=tenant_id`; every other group is a dimension of the meter."""

_TABLES: Final = {
    Grain.EVENT: tables.EVENTS,
    Grain.MINUTE: tables.USAGE_MINUTE,
    Grain.HOUR: tables.USAGE_HOUR,
    Grain.DAY: tables.USAGE_DAY,
    Grain.MONTH: tables.USAGE_MONTH,
}

_CELLS: Final = {
    Grain.MINUTE: "toStartOfMinute",
    Grain.HOUR: "toStartOfHour",
    Grain.DAY: "toStartOfDay",
    Grain.MONTH: "toStartOfMonth",
}
"""The cell of a time, in UTC as the columns are; all ascend with the time, so keys can be searched by them."""


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL with `{name:Type}` placeholders, and their values."""

    sql: str
    parameters: Mapping[str, object]


class ReadFrom(StrEnum):
    """What an answer may be read from."""

    AUTO = "auto"
    """The coarsest tables that answer exactly."""
    EVENTS = "events"
    """The events alone: the same answer, slower."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregateRequest:
    """One aggregation of one meter.

    Attributes:
        meter: What is aggregated.
        aggregation: How.
        range: What is covered.
        window: How the range is cut up.
        zone: Whose clock and calendar windows go by.
        tenant_id: Only this tenant; None: all.
        group_by: `tenant_id`, dimensions, or both; no name twice.
        filters: Only this usage. One by an attribute makes events the source.
        source: What may be read.
    """

    meter: MeterDefinition
    aggregation: Aggregation
    range: Range
    window: Window = Window.TOTAL
    zone: Zone = UTC_ZONE
    tenant_id: str | None = None
    group_by: tuple[str, ...] = ()
    filters: tuple[Filter, ...] = ()
    source: ReadFrom = ReadFrom.AUTO

    @property
    def reads_events_only(self) -> bool:
        """Whether rollups cannot answer, or may not."""
        return self.source is ReadFrom.EVENTS or any(i.is_attribute for i in self.filters)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Which rows of an answer a statement is to return.

    Attributes:
        limit: How many at most.
        after: Window start in s, then groups, of the row before the first; None: from the beginning.
        groups: Only these groups; None: all.
        is_ranked: Those with the largest value first, instead of by window; ties by window and groups.
    """

    limit: int
    after: tuple[int, tuple[str, ...]] | None = None
    groups: Sequence[tuple[str, ...]] | None = None
    is_ranked: bool = False


def check_dimensions(meter: MeterDefinition, names: Sequence[str]) -> None:
    """Refuse names that are no dimension of the meter: the rollups do not have them.

    Raises:
        InvalidUsageError: Names the dimension, those of the meter, and the remedy.
    """
    if meter.group_by is None:
        return
    for name in names:
        if name not in meter.group_by:
            known = ", ".join(meter.group_by) or "none"
            raise InvalidUsageError(
                f"meter {meter.slug!r} has no dimension {name[:128]!r}; its dimensions: {known}; "
                "add it to the meter's group_by in meters.yaml, from then on it is kept"
            )


def table_of(reads: Sequence[Read]) -> str:
    """The coarsest table that is read."""
    return _TABLES[max(read.grain for read in reads)]


def corrected(request: AggregateRequest, grain: Grain, *, limit: int) -> Statement:
    """The statement that says which times of the range have corrected events.

    Returns:
        Rows are (start of the cell of `grain` in s), ascending, each once, at most `limit`.
    """
    bound = _Bound()
    conditions = [
        f"source.meter = {bound('String', request.meter.slug)}",
        *_tenant(request.tenant_id, bound),
        *_between(request.range, Grain.EVENT, bound),
    ]
    return Statement(
        f"SELECT toUnixTimestamp(toDateTime({_CELLS[grain]}(source.timestamp), 'UTC')) AS cell "  # noqa: S608 - constants; values are bound
        f"FROM {tables.EVENT_CORRECTIONS} AS source WHERE {' AND '.join(conditions)} "
        f"GROUP BY cell ORDER BY cell LIMIT {bound('UInt32', limit)}",
        bound.values,
    )


def aggregate(
    request: AggregateRequest,
    windows: Windows,
    reads: Sequence[Read],
    part: Part,
    *,
    has_corrections: bool,
) -> Statement:
    """The statement of an aggregation.

    Args:
        request: What is asked.
        windows: Its windows.
        reads: What is read for it.
        part: Which rows are wanted.
        has_corrections: Whether events in the range were corrected: they do not count.

    Returns:
        Rows are (window start in s, one column per group, one or two of the value), sorted by window and
        groups unless they are ranked. A window without events has no row.
    """
    recipe = RECIPES[request.aggregation]
    bound = _Bound()
    groups = [f"group{i}" for i in range(len(request.group_by))]
    keys = ", ".join(["bucket", *groups])
    selected = ", ".join(
        ["parts.bucket AS bucket", *(f"parts.{name} AS {name}" for name in groups), *recipe.final]
    )
    parts = " UNION ALL ".join(
        _aggregate_part(request, windows, read, bound, has_corrections=has_corrections)
        for read in reads
    )
    wanted = " AND ".join(_wanted(part, groups, bound)) or "1"
    order = f"{recipe.rank} DESC, {keys}" if part.is_ranked and recipe.rank else keys
    return Statement(
        f"SELECT {selected} FROM ({parts}) AS parts WHERE {wanted} "  # noqa: S608 - constants; values are bound
        f"GROUP BY {keys} ORDER BY {order} LIMIT {bound('UInt32', part.limit)}",
        bound.values,
    )


def meters(within: Range, tenant_id: str | None) -> Statement:
    """The statement that lists which meters have usage.

    Returns:
        Rows are (slug, number of events), sorted by slug, at most `MAX_ROWS + 1`.
    """
    bound = _Bound()
    parts = " UNION ALL ".join(
        " ".join(
            [
                "SELECT source.meter AS meter,",
                (COUNT.raw if read.grain is Grain.EVENT else COUNT.rollup)[0],
                f"AS state0 FROM {_TABLES[read.grain]} AS source WHERE",
                " AND ".join(
                    [
                        *_tenant(tenant_id, bound),
                        *_rows(read, bound),
                        *(_uncorrected(read.range, (), bound) if read.grain is Grain.EVENT else ()),
                    ]
                ),
                "GROUP BY source.meter",
            ]
        )
        for read in plan(within, np.array([], dtype=np.int64))
    )
    return Statement(
        f"SELECT parts.meter AS meter, {COUNT.final[0]} FROM ({parts}) AS parts "  # noqa: S608 - constants
        f"GROUP BY meter ORDER BY meter LIMIT {MAX_ROWS + 1}",
        bound.values,
    )


class _Bound:
    """Values of placeholders: a call returns the placeholder."""

    def __init__(self) -> None:
        self.values: dict[str, object] = {}

    def __call__(self, kind: str, value: object) -> str:
        name = f"p{len(self.values)}"
        self.values[name] = value
        return f"{{{name}:{kind}}}"


def _aggregate_part(
    request: AggregateRequest, windows: Windows, read: Read, bound: _Bound, *, has_corrections: bool
) -> str:
    recipe = RECIPES[request.aggregation]
    is_raw = read.grain is Grain.EVENT
    names = ", ".join(["bucket", *(f"group{i}" for i in range(len(request.group_by)))])
    columns = [
        f"{_bucket(windows, read.grain, bound)} AS bucket",
        *(f"{_group(name, bound)} AS group{i}" for i, name in enumerate(request.group_by)),
        *(f"{x} AS state{i}" for i, x in enumerate(recipe.raw if is_raw else recipe.rollup)),
    ]
    meter = f"source.meter = {bound('String', request.meter.slug)}"
    mine = [*_tenant(request.tenant_id, bound), meter]
    conditions = [*mine, *_rows(read, bound), *(_matches(i, bound) for i in request.filters)]
    if is_raw and has_corrections:
        conditions += _uncorrected(read.range, mine, bound)
    return (
        f"SELECT {', '.join(columns)} FROM {_TABLES[read.grain]} AS source "  # noqa: S608 - constants; values are bound
        f"WHERE {' AND '.join(conditions)} GROUP BY {names}"
    )


def _bucket(windows: Windows, grain: Grain, bound: _Bound) -> str:
    """When the window of a row begins."""
    if len(windows) == 1:
        return f"toUInt32({bound('UInt32', int(windows.starts[0]))})"
    runs = windows.runs
    column = "source.timestamp" if grain is Grain.EVENT else "source.window_start"
    at = f"toUnixTimestamp({column})"
    if len(runs.starts) == 1:
        start, step = bound("UInt32", runs.starts[0]), bound("UInt32", runs.steps[0])
    else:
        starts = bound("Array(UInt32)", list(runs.starts))
        start = f"roundDown({at}, {starts})"
        step = (
            f"transform({start}, {starts}, {bound('Array(UInt32)', list(runs.steps))}, toUInt32(1))"
        )
    return f"toUInt32({start} + intDiv({at} - {start}, {step}) * {step})"


def _group(name: str, bound: _Bound) -> str:
    if name == TENANT:
        return "toString(source.tenant_id)"
    return f"source.dimensions[{bound('String', name)}]"


def _rows(read: Read, bound: _Bound) -> list[str]:
    """The conditions on time; the first ones are a range of the key."""
    conditions = _between(read.range, read.grain, bound)
    if read.any_of:
        listed = " OR ".join(_in(cells, read.grain, bound) for cells in read.any_of)
        conditions.append(f"({listed})")
    return conditions + [f"NOT {_in(cells, read.grain, bound)}" for cells in read.none_of]


def _between(within: Range, grain: Grain, bound: _Bound) -> list[str]:
    start, end = within.start_ns, within.end_ns
    if grain is Grain.EVENT:
        return [
            f"source.timestamp >= fromUnixTimestamp64Nano({bound('Int64', start)}, 'UTC')",
            f"source.timestamp < fromUnixTimestamp64Nano({bound('Int64', end)}, 'UTC')",
        ]
    return [
        f"source.window_start >= toDateTime({bound('UInt32', start // SECOND_NS)}, 'UTC')",
        f"source.window_start < toDateTime({bound('UInt32', end // SECOND_NS)}, 'UTC')",
    ]


def _in(cells: Cells, grain: Grain, bound: _Bound) -> str:
    column = "source.timestamp" if grain is Grain.EVENT else "source.window_start"
    cell = column if cells.grain is grain else f"{_CELLS[cells.grain]}({column})"
    if cells.grain is Grain.MONTH and grain is not Grain.MONTH:
        months = [date.fromordinal(_EPOCH_DAY + int(i) // DAY_S) for i in cells.starts]
        return f"({cell} IN {bound('Array(Date)', months)})"
    return f"({cell} IN {bound('Array(UInt32)', cells.starts.tolist())})"


def _uncorrected(within: Range, mine: Sequence[str], bound: _Bound) -> list[str]:
    found = " AND ".join([*mine, *_between(within, Grain.EVENT, bound)])
    return [
        f"source.event_id NOT IN (SELECT source.event_id FROM {tables.EVENT_CORRECTIONS} AS source "  # noqa: S608 - constants; values are bound
        f"WHERE {found})"
    ]


def _matches(wanted: Filter, bound: _Bound) -> str:
    column = "source.attributes" if wanted.is_attribute else "source.dimensions"
    value = f"{column}[{bound('String', wanted.name)}]"
    values = bound("Array(String)", list(wanted.values))
    return condition(wanted.operator, value, values)


def _wanted(part: Part, groups: Sequence[str], bound: _Bound) -> list[str]:
    conditions = []
    if part.after is not None:
        start_s, names = part.after
        keys = ", ".join(["parts.bucket", *(f"parts.{name}" for name in groups)])
        values = [bound("UInt32", start_s), *(bound("String", name) for name in names)]
        conditions.append(f"({keys},) > ({', '.join(values)},)")
    if part.groups is not None:
        keys = ", ".join(f"parts.{name}" for name in groups)
        columns = zip(*part.groups, strict=True)
        values = [bound("Array(String)", list(column)) for column in columns]
        conditions.append(
            f"({keys},) IN (SELECT arrayJoin(arrayZip({', '.join(values)})))" if values else "0"
        )
    return conditions


def _tenant(tenant_id: str | None, bound: _Bound) -> list[str]:
    return [] if tenant_id is None else [f"source.tenant_id = {bound('String', tenant_id)}"]
