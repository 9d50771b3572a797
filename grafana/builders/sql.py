"""Fragments of SQL that several panels share.

Grafana's macros and variables stand in the text as they are; the plugin, or the page, expands them. A variable
is a text that anybody may put into an URL, and Grafana's formats for SQL escape no backslash, so that it could end
the literal that it is in. So each is percent-encoded, which leaves no quote and no backslash, and decoded by the
engine, once, before it reads: the sort key is used as with a literal.
"""

from typing import Final

EVENTS: Final = "metering.events"
MINUTE: Final = "metering.usage_minute"
HOUR: Final = "metering.usage_hour"
DAY: Final = "metering.usage_day"
MONTH: Final = "metering.usage_month"

ADDITIVE: Final = "('', 'sum', 'count')"
"""Aggregations whose windows add up: of these alone is there a projection. '': a meter without definition."""

IN_FORCE: Final = "metering.meter_definitions FINAL WHERE NOT is_deleted"
"""For FROM: the meters' definitions."""

DEFINITIONS: Final = f"(SELECT meter, aggregation, unit FROM {IN_FORCE})"
"""To be joined by meter: LEFT ANY JOIN; a meter without definition then has '' and is summed."""

AGGREGATIONS: Final = (
    "(SELECT mapFromArrays(groupArray(meter), groupArray(toString(aggregation))) "
    f"FROM {IN_FORCE}) AS aggregations"
)
"""For WITH: a map, meter -> aggregation. A meter without definition has '' and is summed."""

UNIT: Final = "replaceRegexpAll(unit, '[{}]', '')"
"""Of a definition, for people: token for {token}."""

UNITS: Final = (
    f"(SELECT mapFromArrays(groupArray(meter), groupArray({UNIT})) FROM {IN_FORCE}) AS units"
)
"""For WITH: a map, meter -> unit."""

AGGREGATION: Final = "aggregations[toString(meter)]"
"""With `AGGREGATIONS`: that of a row's meter."""

ROLLUP_NOTE: Final = (
    "Minimum, maximum, latest, unique and percentiles still contain events that were corrected; "
    "the query API leaves them out."
)
"""What rollups cannot take back, for descriptions."""


def text(variable: str) -> str:
    """The one text of a variable, as a string. Percent-encoded it holds no quote and no backslash."""
    return f"decodeURLComponent('${{{variable}:percentencode}}')"


def texts(variable: str) -> str:
    """What is chosen in a variable, as an array. Of several Grafana encodes `{one,other}`; ids have no such signs."""
    return f"extractAll({text(variable)}, '[^{{}},]+')"


def equals(column: str, variable: str) -> str:
    """Condition: `column` is the one value of `variable`."""
    return f"{column} = {text(variable)}"


def is_one_of(column: str, variable: str) -> str:
    """Condition: `column` is one of the values that are chosen, each of them by name."""
    return f"{column} IN ({texts(variable)})"


def chosen(column: str, variable: str) -> str:
    """Condition: `column` is one of the values that are chosen in `variable`, which may be All."""
    return f"$__conditionalAll({is_one_of(column, variable)}, ${variable})"


TENANT: Final = chosen("tenant_id", "tenant")
METER: Final = chosen("meter", "meter")
SCOPE: Final = f"{TENANT} AND {METER}"
"""The tenants and meters that are chosen."""

RANGE_SECONDS: Final = "(toUnixTimestamp($__toTime) - toUnixTimestamp($__fromTime))"

_BY_MINUTE: Final = f"{RANGE_SECONDS} <= 43200"
_BY_HOUR: Final = f"{RANGE_SECONDS} > 43200 AND {RANGE_SECONDS} <= 691200"
_BY_DAY: Final = f"{RANGE_SECONDS} > 691200"

BUCKET_NOTE: Final = "A bar is a minute while up to 2 hours are shown, ten minutes up to 12 hours, an hour up to 8 days, else a day (UTC)."
"""How `time_bucket` reads, for descriptions."""

WHOLE_NOTE: Final = "Whole minutes are counted while up to 12 hours are shown, whole hours up to 8 days, else whole days (UTC)."
"""How `usage_rows` reads, for descriptions."""

FROM_DAY: Final = "window_start >= toStartOfDay($__fromTime, 'UTC') AND window_start <= $__toTime"
"""Condition for rows of usage_day: the days that the chosen time touches."""

PREVIOUS_FROM: Final = "($__fromTime - ($__toTime - $__fromTime))"
"""When the period of the same length that ends where this one begins, begins."""


def usage_rows(columns: str, where: str = SCOPE, *, start: str = "$__fromTime") -> str:
    """Subquery: rollup rows of the chosen range, from the coarsest table that fits its length.

    Of the three parts the engine reads one: the conditions of the others are constants.

    Args:
        columns: Which columns.
        where: Which tenants and meters.
        start: Begin of the range, a DateTime; `PREVIOUS_FROM` for two periods.
    """
    parts = (
        (MINUTE, "toStartOfMinute", _BY_MINUTE),
        (HOUR, "toStartOfHour", _BY_HOUR),
        (DAY, "toStartOfDay", _BY_DAY),
    )
    selects = (
        f"SELECT {columns} FROM {table} WHERE {condition} "
        f"AND window_start >= {function}({start}, 'UTC') AND window_start <= $__toTime AND {where}"
        for table, function, condition in parts
    )
    return "(" + " UNION ALL ".join(selects) + ")"


IS_CURRENT: Final = (
    f"window_start >= multiIf({_BY_MINUTE}, toStartOfMinute($__fromTime, 'UTC'), "
    f"{_BY_DAY}, toStartOfDay($__fromTime, 'UTC'), toStartOfHour($__fromTime, 'UTC'))"
)
"""Of two periods of `usage_rows`: the row is of the later one."""


def time_bucket(column: str = "window_start") -> str:
    """Begin of the bar that a row of `usage_rows` is in."""
    seconds = f"multiIf({RANGE_SECONDS} <= 7200, 60, {_BY_MINUTE}, 600, {_BY_DAY}, 86400, 3600)"
    return f"toDateTime(intDiv(toUnixTimestamp({column}), {seconds}) * {seconds}, 'UTC')"


def usage_value(aggregation: str, condition: str = "1") -> str:
    """Usage as Float64, by the meter's own aggregation; NULL: there was none of what does not add up.

    Args:
        aggregation: Expression of it; it has to be one of the groups. '' is summed.
        condition: Which rows of the group.
    """
    percentiles = "".join(
        f"{aggregation} = 'p{level}', toFloat64(quantileTDigestMergeIf(0.{level})(quantity_percentiles, "
        f"{aggregation} = 'p{level}' AND {condition})), "
        for level in (50, 90, 95, 99)
    )
    count = f"toInt64(sumIf(quantity_count, {condition}))"
    return (
        "multiIf("
        f"{aggregation} IN ('', 'sum'), toFloat64(sumIf(quantity_sum, {condition})), "
        f"{aggregation} = 'count', toFloat64({count}), "
        f"{aggregation} = 'unique_count', "
        f"toFloat64(uniqExactMergeIf(unique_keys, {aggregation} = 'unique_count' AND {condition})), "
        f"{count} = 0, NULL, "
        f"{aggregation} = 'min', toFloat64(minIf(quantity_min, {condition})), "
        f"{aggregation} = 'max', toFloat64(maxIf(quantity_max, {condition})), "
        f"{aggregation} = 'avg', toFloat64(sumIf(quantity_sum, {condition})) / {count}, "
        f"{aggregation} = 'latest', "
        f"toFloat64(argMaxMergeIf(quantity_latest, {aggregation} = 'latest' AND {condition})), "
        f"{percentiles}"
        f"toFloat64(sumIf(quantity_sum, {condition})))"
    )


STATES: Final = "quantity_sum, quantity_count, quantity_min, quantity_max, quantity_latest, unique_keys, quantity_percentiles"
"""The columns that `usage_value` reads."""
