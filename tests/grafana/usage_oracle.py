"""What usage is by a meter's aggregation, and which time a panel counts, from the list of events alone."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from grafana.emulator.seed_usage import SeedUsage
from tests.grafana.conftest import NOW, USAGE_METERS

AGGREGATION = {meter.slug: meter.aggregation for meter in USAGE_METERS}
UNIT = {meter.slug: meter.unit.strip("{}") for meter in USAGE_METERS if meter.aggregation}
ADDITIVE = {
    slug for slug, aggregation in AGGREGATION.items() if aggregation in ("", "sum", "count")
}

Usages = list[SeedUsage]


class Percentile:
    """Equal to each number that is one as well as an estimate can be: about so many are below it."""

    def __init__(self, quantities: Iterable[Decimal], level: float) -> None:
        self._sorted = sorted(float(one) for one in quantities)
        self._level = level

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, float):
            return NotImplemented
        count, slack = len(self._sorted), 1e-6 * abs(other)
        below = sum(one < other - slack for one in self._sorted)
        up_to = sum(one <= other + slack for one in self._sorted)
        tolerance = 1 + 0.03 * count
        return below - tolerance <= self._level * count <= up_to + tolerance

    def __hash__(self) -> int:
        return hash((self._level, len(self._sorted)))

    def __repr__(self) -> str:
        middle = self._sorted[round(self._level * (len(self._sorted) - 1))]
        return (
            f"about {middle}, of {len(self._sorted)} from {self._sorted[0]} to {self._sorted[-1]}"
        )


def usage(of: Usages, meter: str) -> Any:
    """Usage of these events of a meter: a float, None where there was none, or a `Percentile`."""
    quantities = [one.quantity for one in of]
    aggregation = AGGREGATION[meter]
    if aggregation in ("", "sum"):
        return float(sum(quantities))
    if aggregation == "count":
        return float(sum(one.observations for one in of))
    if aggregation == "unique_count":
        return float(len({one.unique_key for one in of}))
    if not of:
        return None
    if aggregation == "latest":
        return float(max(of, key=lambda one: (one.at, one.number)).quantity)
    if aggregation == "avg":
        return float(sum(quantities)) / sum(one.observations for one in of)
    if aggregation in ("min", "max"):
        return float({"min": min, "max": max}[aggregation](quantities))
    return Percentile(quantities, int(aggregation[1:]) / 100)


def groups(of: Iterable[SeedUsage], key: Callable[[SeedUsage], Any]) -> dict[Any, Usages]:
    """Key -> its events."""
    found: dict[Any, Usages] = defaultdict(list)
    for one in of:
        found[key(one)].append(one)
    return dict(found)


def begin_of(length: timedelta, moment: datetime) -> datetime:
    """Where the minute, hour or day that is counted as a whole begins."""
    minute = moment.replace(second=0, microsecond=0)
    if length <= timedelta(hours=12):
        return minute
    hour = minute.replace(minute=0)
    return hour if length <= timedelta(days=8) else hour.replace(hour=0)


def shown(of: Usages, length: timedelta, end: datetime = NOW) -> Usages:
    """The events of the chosen time; the minute, hour or day that holds its end counts as a whole."""
    begin = begin_of(length, end - length)
    return [one for one in of if begin <= one.at and begin_of(length, one.at) <= end]


def before(of: Usages, length: timedelta, end: datetime = NOW) -> Usages:
    """The events of the period before."""
    begin, there = begin_of(length, end - 2 * length), begin_of(length, end - length)
    return [one for one in of if begin <= one.at < there]


def bar_of(length: timedelta, moment: datetime) -> datetime:
    """Begin of the bar."""
    seconds = (
        60
        if length <= timedelta(hours=2)
        else 600
        if length <= timedelta(hours=12)
        else 3600
        if length <= timedelta(days=8)
        else 86400
    )
    return datetime.fromtimestamp(moment.timestamp() // seconds * seconds, UTC)


def month_of(moment: datetime) -> str:
    return f"{moment:%Y-%m}"
