"""Queries for usage that more than one dashboard asks."""

from typing import Final, Literal

from grafana.builders import sql

_MONTH_BEGIN: Final = "toDateTime(toStartOfMonth($__toTime, 'UTC'), 'UTC')"
_MONTH_END: Final = "toDateTime(addMonths(toStartOfMonth($__toTime, 'UTC'), 1), 'UTC')"
_LAST_MONTH: Final = "toDateTime(addMonths(toStartOfMonth($__toTime, 'UTC'), -1), 'UTC')"
_TODAY: Final = "toStartOfDay($__toTime, 'UTC')"

ONE_METER: Final = sql.is_one_of("meter", "meter")
"""The meter of a repeated row. `$__conditionalAll` would look at the choice at the top, which may be All."""


def by_meter(where: str = sql.SCOPE, *, count_tenants: bool = True) -> str:
    """A row for each meter: usage, that of the period before, and how many tenants had any."""
    tenants = ", uniqExactIf(tenant_id, current) AS tenants" if count_tenants else ""
    rows = sql.usage_rows(
        f"window_start, tenant_id, meter, {sql.STATES}", where, start=sql.PREVIOUS_FROM
    )
    return (
        f"WITH {sql.AGGREGATIONS}, {sql.UNITS} "
        "SELECT toString(meter) AS meter, units[meter] AS unit, "
        f"if({sql.AGGREGATION} = '', 'sum, no definition', {sql.AGGREGATION}) AS aggregation, "
        f"{sql.usage_value(sql.AGGREGATION, 'current')} AS usage, "
        f"{sql.usage_value(sql.AGGREGATION, 'NOT current')} AS previous, "
        f"if(previous > 0, usage / previous - 1, NULL) AS change{tenants} "
        f"FROM (SELECT {sql.IS_CURRENT} AS current, meter, tenant_id, {sql.STATES} "
        f"FROM {rows}) GROUP BY meter ORDER BY meter LIMIT 1000"
    )


def by_month_end(where: str = sql.SCOPE) -> str:
    """A row for each meter that adds up: this month until now, at its end if it goes on so, and the last month."""
    elapsed = f"(toUnixTimestamp($__toTime) - toUnixTimestamp({_MONTH_BEGIN}))"
    length = f"(toUnixTimestamp({_MONTH_END}) - toUnixTimestamp({_MONTH_BEGIN}))"
    columns = "meter, quantity_sum, quantity_count"
    parts = (
        f"SELECT 0 AS is_last, {columns} FROM {sql.DAY} WHERE window_start >= {_MONTH_BEGIN} "
        f"AND window_start < {_TODAY} AND {where}",
        f"SELECT 0 AS is_last, {columns} FROM {sql.HOUR} WHERE window_start >= {_TODAY} "
        f"AND window_start <= $__toTime AND {where}",
        f"SELECT 1 AS is_last, {columns} FROM {sql.MONTH} WHERE window_start = {_LAST_MONTH} AND {where}",
    )
    value = (
        "if({aggregation} = 'count', toFloat64(toInt64(sumIf(quantity_count, {which}))), "
        "toFloat64(sumIf(quantity_sum, {which})))"
    )
    this = value.format(aggregation=sql.AGGREGATION, which="is_last = 0")
    last = value.format(aggregation=sql.AGGREGATION, which="is_last = 1")
    return (
        f"WITH {sql.AGGREGATIONS}, {sql.UNITS} "
        f"SELECT toString(meter) AS meter, units[meter] AS unit, {this} AS month_to_date, "
        f"if({elapsed} < 86400, NULL, month_to_date / {elapsed} * {length}) AS projected, "
        f"{last} AS last_month, if(last_month > 0, projected / last_month - 1, NULL) AS change "
        f"FROM ({' UNION ALL '.join(parts)}) WHERE {sql.AGGREGATION} IN {sql.ADDITIVE} "
        "GROUP BY meter ORDER BY meter LIMIT 1000"
    )


def top_tenants(where: str = sql.SCOPE, count: int = 5) -> str:
    """The tenants that used most of each meter, and which part of it; no part of what does not add up."""
    rows = sql.usage_rows(f"toString(tenant_id) AS tenant, meter, {sql.STATES}", where)
    return (
        f"WITH {sql.AGGREGATIONS}, {sql.UNITS} "
        "SELECT meter, tenant, usage, unit, if(is_additive, usage / nullIf(total, 0), NULL) AS share "
        "FROM (SELECT toString(meter) AS meter, tenant, units[meter] AS unit, "
        f"{sql.AGGREGATION} IN {sql.ADDITIVE} AS is_additive, "
        f"{sql.usage_value(sql.AGGREGATION)} AS usage, sum(usage) OVER (PARTITION BY meter) AS total "
        f"FROM {rows} GROUP BY meter, tenant) "
        f"ORDER BY meter, usage DESC, tenant LIMIT {count} BY meter LIMIT 500"
    )


def measurements() -> str:
    """How many measurements each meter counted over time: the one number that may be added up over meters."""
    return (
        f"SELECT {sql.time_bucket()} AS time, toString(meter) AS meter, "
        "toInt64(sum(quantity_count)) AS measurements "
        f"FROM {sql.usage_rows('window_start, meter, quantity_count')} "
        "GROUP BY time, meter ORDER BY time, meter LIMIT 20000"
    )


def over_time(label: str, name: str, *, kind: Literal["additive", "level"], where: str) -> str:
    """Usage of one meter over time, a series for each of the eight largest values of `label`.

    Args:
        label: Expression over a rollup row.
        name: Of the label.
        kind: "additive": answers only if the meter's windows add up, and with a ninth series for what
            is not among the largest; "level": answers only if they do not.
        where: Which tenants, and which meter.
    """
    rows = sql.usage_rows(f"window_start, meter, {label} AS label, {sql.STATES}", where)
    ranks = sql.usage_rows(f"{label} AS label, quantity_sum, quantity_count", where)
    weight = "sum(quantity_sum)" if kind == "additive" else "toInt64(sum(quantity_count))"
    top = f"(SELECT label FROM {ranks} GROUP BY label ORDER BY {weight} DESC, label LIMIT 8)"
    fits = f"{sql.AGGREGATION} {'IN' if kind == 'additive' else 'NOT IN'} {sql.ADDITIVE}"
    if kind == "additive":
        series, condition = f"if(label IN {top}, label, 'others')", fits
    else:
        series, condition = "label", f"{fits} AND label IN {top}"
    return (
        f"WITH {sql.AGGREGATIONS} "
        f"SELECT {sql.time_bucket()} AS time, {series} AS {name}, "
        f"{sql.usage_value(sql.AGGREGATION)} AS usage "
        f"FROM {rows} WHERE {condition} GROUP BY time, {name}, meter ORDER BY time, {name} LIMIT 20000"
    )


def largest(label: str, name: str, where: str, count: int = 10) -> str:
    """Usage of one meter by the largest values of `label`. Arguments are those of `over_time`."""
    rows = sql.usage_rows(f"meter, {label} AS label, {sql.STATES}", where)
    return (
        f"WITH {sql.AGGREGATIONS} "
        f"SELECT label AS {name}, {sql.usage_value(sql.AGGREGATION)} AS usage "
        f"FROM {rows} GROUP BY label, meter ORDER BY usage DESC, {name} LIMIT {count}"
    )


def months(where: str, count: int = 12) -> str:
    """Usage of one meter in each of the last months, the one that is shown included."""
    return (
        f"WITH {sql.AGGREGATIONS} "
        "SELECT formatDateTime(window_start, '%Y-%m', 'UTC') AS month, "
        f"{sql.usage_value(sql.AGGREGATION)} AS usage FROM {sql.MONTH} "
        f"WHERE window_start >= toDateTime(addMonths(toStartOfMonth($__toTime, 'UTC'), {1 - count}), 'UTC') "
        f"AND window_start <= $__toTime AND {where} GROUP BY month, meter ORDER BY month LIMIT {count}"
    )


def two_periods(expression: str, name: str, columns: str, where: str = sql.SCOPE) -> str:
    """Two rows: the period before (NULL if it had nothing), and the one that is shown.

    Args:
        expression: Aggregate with `{period}` where its condition stands.
        name: Of the column.
        columns: Of the rollup that it reads.
        where: Which tenants and meters.
    """
    now, before = expression.format(period="current"), expression.format(period="NOT current")
    rows = sql.usage_rows(f"window_start, {columns}", where, start=sql.PREVIOUS_FROM)
    return (
        f"SELECT arrayJoin([nullIf(toFloat64({before}), 0), toFloat64({now})]) AS {name} "
        f"FROM (SELECT {sql.IS_CURRENT} AS current, {columns} FROM {rows})"
    )


def newest_age(where: str = sql.SCOPE) -> str:
    """Seconds from the newest minute with usage, of the last day, to the end of what is shown."""
    return (
        "SELECT if(count() = 0, NULL, dateDiff('second', max(window_start), $__toTime)) AS age "
        f"FROM {sql.MINUTE} WHERE window_start >= $__toTime - INTERVAL 1 DAY "
        f"AND window_start <= $__toTime AND {where}"
    )
