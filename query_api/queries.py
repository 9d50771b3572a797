"""Requests become SQL: which rows of which tables answer exactly, and how their states merge.

Every statement names its columns, has a bound on time and a LIMIT. Values are bound, dimension names
included; the text of a statement is put together from the constants of this module and `tables.py`
alone. Columns are written `source.x` and `parts.x`: a bare name in ClickHouse may mean an alias of the
same SELECT instead of the column.

Rollup rows may not be merged yet, and a range may be answered by several tables, so each piece yields
partial states, and the statement merges the states of all pieces.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from otel_metering.contract.meter import Aggregation, MeterDefinition
from otel_metering.errors import InvalidUsageError
from query_api.periods import SECOND_NS, Grain, Piece, Range, Window, pieces_for
from receiver.store import tables

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

_START_FUNCTIONS: Final = {
    Window.MINUTE: "toStartOfMinute",
    Window.HOUR: "toStartOfHour",
    Window.DAY: "toStartOfDay",
    Window.MONTH: "toStartOfMonth",
}


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL with `{name:Type}` placeholders, and their values."""

    sql: str
    parameters: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregateRequest:
    """One aggregation of one meter.

    Attributes:
        meter: What is aggregated.
        aggregation: How.
        window: How the range is cut up.
        range: What is covered.
        tenant_id: Only this tenant; None: all.
        group_by: `tenant_id`, dimensions, or both; no name twice.
        filters: Dimension → the values it may have.
    """

    meter: MeterDefinition
    aggregation: Aggregation
    window: Window
    range: Range
    tenant_id: str | None = None
    group_by: tuple[str, ...] = ()
    filters: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The range, cut into what each table answers."""
        return pieces_for(self.range, self.window)

    @property
    def table(self) -> str:
        """The coarsest table that the answer is read from."""
        return _TABLES[max(piece.grain for piece in self.pieces)]


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How one aggregation is computed.

    Attributes:
        rollup: Partial states of a rollup's rows, in the order of `states`.
        raw: The same states of events.
        final: What the states of all pieces become; they are named `parts.state0`, `parts.state1`.
    """

    rollup: tuple[str, ...]
    raw: tuple[str, ...]
    final: tuple[str, ...]


def _percentile(level: str) -> _Recipe:
    # A digest holds 32-bit floats; as text, 0.1 is "0.1" and not 0.10000000149011612.
    return _Recipe(
        ("quantileTDigestMergeState(source.quantity_percentiles)",),
        ("quantileTDigestState(toFloat64(source.quantity))",),
        (f"toString(quantileTDigestMerge({level})(parts.state0))",),
    )


_SUM: Final = _Recipe(
    ("sum(source.quantity_sum)",), ("sum(source.quantity)",), ("sum(parts.state0)",)
)
_COUNT: Final = _Recipe(
    ("sum(source.quantity_count)",), ("toUInt64(sum(source.observations))",), ("sum(parts.state0)",)
)

_RECIPES: Final[Mapping[Aggregation, _Recipe]] = {
    Aggregation.SUM: _SUM,
    Aggregation.COUNT: _COUNT,
    Aggregation.MIN: _Recipe(
        ("min(source.quantity_min)",), ("min(source.quantity)",), ("min(parts.state0)",)
    ),
    Aggregation.MAX: _Recipe(
        ("max(source.quantity_max)",), ("max(source.quantity)",), ("max(parts.state0)",)
    ),
    # Divided outside of the database, where the quotient can be rounded exactly.
    Aggregation.AVG: _Recipe(
        _SUM.rollup + _COUNT.rollup,
        _SUM.raw + _COUNT.raw,
        ("sum(parts.state0)", "sum(parts.state1)"),
    ),
    Aggregation.LATEST: _Recipe(
        ("argMaxMergeState(source.quantity_latest)",),
        ("argMaxState(source.quantity, (source.timestamp, source.event_id))",),
        ("argMaxMerge(parts.state0)",),
    ),
    Aggregation.UNIQUE_COUNT: _Recipe(
        ("uniqExactMergeState(source.unique_keys)",),
        ("uniqExactStateIf(source.unique_key, source.unique_key != '')",),
        ("uniqExactMerge(parts.state0)",),
    ),
    Aggregation.P50: _percentile("0.5"),
    Aggregation.P90: _percentile("0.9"),
    Aggregation.P95: _percentile("0.95"),
    Aggregation.P99: _percentile("0.99"),
}


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


def aggregate(request: AggregateRequest) -> Statement:
    """The statement of an aggregation.

    Returns:
        Rows are (window start in seconds, one column per group, one or two of the value), sorted by
        window and groups; at most `MAX_ROWS + 1`, of which one too many says that there are more.
        A window without events has no row.
    """
    recipe = _RECIPES[request.aggregation]
    groups = [f"group{i}" for i in range(len(request.group_by))]
    keys = ", ".join(["bucket", *groups])
    parts = " UNION ALL ".join(
        _aggregate_part(request, recipe, grain, times)
        for grain, times in _times(request.pieces).items()
    )
    selected = ", ".join(
        [
            "parts.bucket AS bucket",
            *(f"parts.{group} AS {group}" for group in groups),
            *recipe.final,
        ]
    )
    return Statement(
        f"SELECT {selected} FROM ({parts}) AS parts "  # noqa: S608 - constants; values are bound
        f"GROUP BY {keys} ORDER BY {keys} LIMIT {MAX_ROWS + 1}",
        _aggregate_parameters(request),
    )


def meters(within: Range, tenant_id: str | None) -> Statement:
    """The statement that lists which meters have usage.

    Returns:
        Rows are (slug, number of events), sorted by slug, at most `MAX_ROWS + 1`.
    """
    pieces = pieces_for(within, Window.TOTAL)
    parts = " UNION ALL ".join(
        " ".join(
            [
                "SELECT source.meter AS meter,",
                (_COUNT.raw if grain is Grain.EVENT else _COUNT.rollup)[0],
                f"AS state0 FROM {_TABLES[grain]} AS source WHERE",
                " AND ".join([*_tenant_condition(tenant_id), times]),
                "GROUP BY source.meter",
            ]
        )
        for grain, times in _times(pieces).items()
    )
    return Statement(
        f"SELECT parts.meter AS meter, sum(parts.state0) FROM ({parts}) AS parts "  # noqa: S608 - constants
        f"GROUP BY meter ORDER BY meter LIMIT {MAX_ROWS + 1}",
        {**_time_parameters(pieces), **_tenant_parameter(tenant_id)},
    )


def _aggregate_part(request: AggregateRequest, recipe: _Recipe, grain: Grain, times: str) -> str:
    names = ", ".join(["bucket", *(f"group{i}" for i in range(len(request.group_by)))])
    states = recipe.raw if grain is Grain.EVENT else recipe.rollup
    columns = [
        f"{_bucket(request.window, grain)} AS bucket",
        *(f"{_group(name, i)} AS group{i}" for i, name in enumerate(request.group_by)),
        *(f"{state} AS state{i}" for i, state in enumerate(states)),
    ]
    conditions = [
        *_tenant_condition(request.tenant_id),
        "source.meter = {meter:String}",
        times,
        *_filter_conditions("source.dimensions", request.filters),
    ]
    return " ".join(
        [
            f"SELECT {', '.join(columns)}",
            f"FROM {_TABLES[grain]} AS source",
            f"WHERE {' AND '.join(conditions)}",
            f"GROUP BY {names}",
        ]
    )


def _bucket(window: Window, grain: Grain) -> str:
    if window is Window.TOTAL:
        return "toUInt32(0)"
    column = "source.timestamp" if grain is Grain.EVENT else "source.window_start"
    return f"toUnixTimestamp(toDateTime({_START_FUNCTIONS[window]}({column}, 'UTC'), 'UTC'))"


def _group(name: str, index: int) -> str:
    if name == TENANT:
        return "toString(source.tenant_id)"
    return f"source.dimensions[{{group{index}_name:String}}]"


def _times(pieces: Sequence[Piece]) -> dict[Grain, str]:
    """The condition on time of each table: a table is read once, for both edges of a range."""
    found: dict[Grain, list[str]] = {}
    for i, piece in enumerate(pieces):
        found.setdefault(piece.grain, []).append(_time_condition(i, piece.grain))
    return {grain: f"({' OR '.join(conditions)})" for grain, conditions in found.items()}


def _time_condition(index: int, grain: Grain) -> str:
    start, end = f"start{index}", f"end{index}"
    if grain is Grain.EVENT:
        return (
            f"(source.timestamp >= fromUnixTimestamp64Nano({{{start}:Int64}}, 'UTC') "
            f"AND source.timestamp < fromUnixTimestamp64Nano({{{end}:Int64}}, 'UTC'))"
        )
    return (
        f"(source.window_start >= toDateTime({{{start}:UInt32}}, 'UTC') "
        f"AND source.window_start < toDateTime({{{end}:UInt32}}, 'UTC'))"
    )


def _time_parameters(pieces: Sequence[Piece]) -> dict[str, object]:
    parameters: dict[str, object] = {}
    for i, piece in enumerate(pieces):
        unit_ns = 1 if piece.grain is Grain.EVENT else SECOND_NS
        parameters[f"start{i}"] = piece.range.start_ns // unit_ns
        parameters[f"end{i}"] = piece.range.end_ns // unit_ns
    return parameters


def _aggregate_parameters(request: AggregateRequest) -> dict[str, object]:
    return {
        "meter": request.meter.slug,
        **_tenant_parameter(request.tenant_id),
        **_time_parameters(request.pieces),
        **_filter_parameters(request.filters),
        **{f"group{i}_name": name for i, name in enumerate(request.group_by) if name != TENANT},
    }


def _tenant_condition(tenant_id: str | None) -> list[str]:
    return [] if tenant_id is None else ["source.tenant_id = {tenant_id:String}"]


def _tenant_parameter(tenant_id: str | None) -> dict[str, object]:
    return {} if tenant_id is None else {"tenant_id": tenant_id}


def _filter_conditions(column: str, filters: Mapping[str, Sequence[str]]) -> list[str]:
    return [
        f"has({{filter{i}_values:Array(String)}}, {column}[{{filter{i}_name:String}}])"
        for i in range(len(filters))
    ]


def _filter_parameters(filters: Mapping[str, Sequence[str]]) -> dict[str, object]:
    parameters: dict[str, object] = {}
    for i, (name, values) in enumerate(filters.items()):
        parameters |= {f"filter{i}_name": name, f"filter{i}_values": list(values)}
    return parameters
