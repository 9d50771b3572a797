"""Queries of pipeline_stats: counters, gauges and distributions, in the order of the table's key."""

from collections.abc import Sequence
from typing import Final

from grafana.builders import sql
from grafana.builders.bars import on_grid

STATS: Final = "metering.pipeline_stats"


def counted(stage: str, names: Sequence[str] | str, kind: str = "delta") -> str:
    """Condition: these numbers of the chosen time and instances, in the order of the table's key."""
    listed = (names,) if isinstance(names, str) else tuple(names)
    of = f"name = '{listed[0]}'" if len(listed) == 1 else f"name IN {listed}"
    return (
        f"stage = '{stage}' AND {of} AND stat = '{kind}' AND $__timeFilter(at) "
        f"AND {sql.chosen('instance', 'instance')}"
    )


def total(stage: str, name: str, kind: str = "delta") -> str:
    """Scalar: the sum of a counter."""
    return f"(SELECT sum(value) FROM {STATS} WHERE {counted(stage, name, kind)})"


def latest(stage: str, name: str) -> str:
    """The last value of a gauge, of all instances that reported in the last five minutes together."""
    return (
        f"SELECT sum(latest) AS value FROM (SELECT argMax(value, at) AS latest FROM {STATS} "
        f"WHERE {counted(stage, name, 'value')} AND at > $__toTime - INTERVAL 5 MINUTE "
        "GROUP BY instance) HAVING count() > 0"
    )


def highest_latest(stage: str, name: str) -> str:
    """The same, of the instance that has most."""
    return latest(stage, name).replace("sum(latest)", "max(latest)")


def rates(stage: str, names: Sequence[tuple[str, str]]) -> str:
    """Numbers of a stage, a second: zero where nothing was counted, a gap where nobody reported.

    A counter that stood still has no row, but the spool's size always has one.
    """
    columns = ", ".join(
        f"sumIf(value, stat = 'delta' AND name = '{name}') / $__interval_s AS {title}"
        for name, title in names
    )
    return (
        f"SELECT $__timeInterval(at) AS time, {columns} FROM {STATS} "
        f"WHERE ({counted(stage, [name for name, _ in names])}) OR ({counted('spool', 'size', 'value')}) "
        "GROUP BY time ORDER BY time LIMIT 20000"
    )


def counts(stage: str, names: Sequence[str] | str, label: str, where: str = "1") -> str:
    """Counts by time and `label`."""
    rows = (
        f"SELECT $__timeInterval(at) AS time, {label} AS label, sum(value) AS count FROM {STATS} "
        f"WHERE {counted(stage, names)} AND {where} GROUP BY time, label"
    )
    return on_grid(rows, "label", "count")


def levels(stage: str, name: str, label: str = "instance") -> str:
    """Highest value of a gauge by time; of each instance, or by another label, added up over instances."""
    return (
        "SELECT time, label, sum(highest) AS value FROM ("
        f"SELECT $__timeInterval(at) AS time, toString({label}) AS label, instance, max(value) AS highest FROM {STATS} "
        f"WHERE {counted(stage, name, 'value')} GROUP BY time, label, instance) "
        "GROUP BY time, label ORDER BY time, label LIMIT 20000"
    )


def percentiles(
    stage: str, name: str, label: str = "''", kinds: Sequence[str] = ("p50", "p95", "p99")
) -> str:
    """Percentiles by time, and by a label; `kinds`: which, two at least."""
    text = f"concat(toString(stat), if({label} = '', '', concat(' ', {label})))"
    return (
        f"SELECT $__timeInterval(at) AS time, {text} AS label, max(value) AS seconds FROM {STATS} "
        f"WHERE stage = '{stage}' AND name = '{name}' AND stat IN {tuple(kinds)} AND $__timeFilter(at) "
        f"AND {sql.chosen('instance', 'instance')} GROUP BY time, label ORDER BY time, label LIMIT 20000"
    )
