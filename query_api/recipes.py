"""How each aggregation is computed: partial states of rows, merged at the end.

Columns are written `source.x` and `parts.x`: a bare name in ClickHouse may mean an alias of the same SELECT
instead of the column.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from otel_metering.contract.meter import Aggregation


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one aggregation is computed.

    Attributes:
        rollup: Partial states of a rollup's rows, in the order of `states`.
        raw: The same states of events.
        final: What the states of all tables become; they are named `parts.state0`, `parts.state1`.
        rank: What `final` is sorted by, as a number; None: not in the database.
    """

    rollup: tuple[str, ...]
    raw: tuple[str, ...]
    final: tuple[str, ...]
    rank: str | None


def _simple(rollup: str, raw: str, final: str) -> Recipe:
    return Recipe((rollup,), (raw,), (final,), final)


def _percentile(level: str) -> Recipe:
    estimate = f"quantileTDigestMerge({level})(parts.state0)"
    return Recipe(
        ("quantileTDigestMergeState(source.quantity_percentiles)",),
        ("quantileTDigestState(toFloat64(source.quantity))",),
        # A digest holds 32-bit floats; as text, 0.1 is "0.1" and not 0.10000000149011612.
        (f"toString({estimate})",),
        estimate,
    )


_SUM: Final = _simple("sum(source.quantity_sum)", "sum(source.quantity)", "sum(parts.state0)")
COUNT: Final = _simple(
    "sum(source.quantity_count)",
    "toUInt64(sum(source.observations))",
    # States wrap below zero, where observations were taken back; as signed they are what they are.
    "toInt64(sum(parts.state0))",
)

RECIPES: Final[Mapping[Aggregation, Recipe]] = {
    Aggregation.SUM: _SUM,
    Aggregation.COUNT: COUNT,
    Aggregation.MIN: _simple(
        "min(source.quantity_min)", "min(source.quantity)", "min(parts.state0)"
    ),
    Aggregation.MAX: _simple(
        "max(source.quantity_max)", "max(source.quantity)", "max(parts.state0)"
    ),
    # Divided outside of the database, where the quotient can be rounded exactly.
    Aggregation.AVG: Recipe(
        _SUM.rollup + COUNT.rollup,
        _SUM.raw + COUNT.raw,
        ("sum(parts.state0)", "toInt64(sum(parts.state1))"),
        None,
    ),
    Aggregation.LATEST: _simple(
        "argMaxMergeState(source.quantity_latest)",
        "argMaxState(source.quantity, (source.timestamp, source.event_id))",
        "argMaxMerge(parts.state0)",
    ),
    Aggregation.UNIQUE_COUNT: _simple(
        "uniqExactMergeState(source.unique_keys)",
        "uniqExactStateIf(source.unique_key, source.unique_key != '')",
        "uniqExactMerge(parts.state0)",
    ),
    Aggregation.P50: _percentile("0.5"),
    Aggregation.P90: _percentile("0.9"),
    Aggregation.P95: _percentile("0.95"),
    Aggregation.P99: _percentile("0.99"),
}
