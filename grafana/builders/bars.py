"""Bars over time of what is seldom: as wide as one interval each, however far they stand apart."""


def on_grid(rows: str, label: str, value: str) -> str:
    """Query for a time series of `rows`, with a bar for each interval of the chosen time.

    Grafana draws bars as wide as the two that are closest leave room for: of two in a day each would be hours
    wide. So one label has zeros where nothing was; of the others there is nothing to draw there.

    Args:
        rows: Query with the columns time (by `$__timeInterval`), `label` and `value`.
        label: Name of the text column.
        value: Name of the number column.
    """
    step = "INTERVAL $__interval_s second"
    count = "toUInt64(intDiv(toUnixTimestamp($__toTime) - toUnixTimestamp($__fromTime), $__interval_s)) + 1"
    grid = (
        f"SELECT toStartOfInterval(toDateTime(toUnixTimestamp($__fromTime) + number * $__interval_s, 'UTC'), {step}) AS time "
        f"FROM numbers({count})"
    )
    return (
        f"WITH found AS ({rows}) SELECT time, {label}, sum(part) AS {value} FROM ("
        f"SELECT time, {label}, toFloat64({value}) AS part FROM found "
        f"UNION ALL SELECT grid.time AS time, first.{label} AS {label}, toFloat64(0) AS part "
        f"FROM (SELECT min({label}) AS {label} FROM found HAVING count() > 0) AS first "
        f"CROSS JOIN ({grid}) AS grid) GROUP BY time, {label} ORDER BY time, {label} LIMIT 20000"
    )
