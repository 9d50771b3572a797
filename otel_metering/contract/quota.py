"""Quota definitions: how much of a meter a tenant may use in a period, checked, as values."""

import json
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from hashlib import blake2b
from typing import Final

from otel_metering.contract.event import check_name, check_quantity
from otel_metering.contract.meter import Aggregation, MeterDefinition
from otel_metering.errors import InvalidUsageError

MAX_FILTER_NAMES: Final = 16
MAX_FILTER_VALUES: Final = 100
MAX_FILTER_LENGTH: Final = 256
MAX_THRESHOLDS: Final = 16
MAX_THRESHOLD: Final = 1_000
MAX_DAY: Final = 31

COUNTABLE: Final = (Aggregation.SUM, Aggregation.COUNT)
"""What can be counted up as usage arrives, and taken back."""

Filter = tuple[tuple[str, tuple[str, ...]], ...]
"""(dimension, the values it may have), sorted by name; each value once, sorted. Empty: any usage."""


class Period(StrEnum):
    """After which time a quota begins again."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    """From Monday on."""
    MONTH = "month"
    LIFETIME = "lifetime"
    """Never."""


class Enforcement(StrEnum):
    """What happens beyond the limit."""

    HARD = "hard"
    """It is denied."""
    SOFT = "soft"
    """It is allowed, and said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaDefinition:
    """One quota.

    Attributes:
        meter: Slug of a meter that sums or counts.
        limit: Units of one period.
        period: When it begins again.
        tenant_id: Whose; None: of every tenant that has none of its own in its place.
        filter: Which usage; what it says of a dimension an event must have.
        grace: Units beyond the limit that a hard quota still allows.
        anchor_day: Day of the month that a month begins on, in a shorter month its last; None: the first.
        timezone: IANA name; days, weeks and months are those of this zone.
        enforcement: What happens beyond the limit.
        thresholds: Percent of the limit that are of interest, ascending.
    """

    meter: str
    limit: Decimal
    period: Period
    tenant_id: str | None = None
    filter: Filter = ()
    grace: Decimal = Decimal(0)
    anchor_day: int | None = None
    timezone: str = "UTC"
    enforcement: Enforcement = Enforcement.HARD
    thresholds: tuple[int, ...] = ()

    @property
    def place(self) -> tuple[str, Filter, Period]:
        """What a tenant has one quota of: its own, or else the default."""
        return self.meter, self.filter, self.period

    @property
    def quota_id(self) -> str:
        """Its name: one for each tenant (or the default) and place, so that a put replaces."""
        text = json.dumps([self.tenant_id, *self.place])
        return f"quota_{blake2b(text.encode(), digest_size=10).hexdigest()}"


def as_filter(values: dict[str, list[str]]) -> Filter:
    """The filter of these dimensions, in its one order."""
    return tuple((name, tuple(sorted(set(values[name])))) for name in sorted(values))


def check_quota(quota: QuotaDefinition, meter: MeterDefinition) -> QuotaDefinition:
    """Return `quota` if it can be kept, for the meter that it names.

    Raises:
        InvalidUsageError: Names the field, its value, the limit and the remedy.
    """
    check_name("meter", quota.meter)
    if quota.tenant_id is not None:
        check_name("tenant_id", quota.tenant_id)
    if meter.aggregation not in COUNTABLE:
        raise InvalidUsageError(
            f"meter {quota.meter!r} has aggregation {meter.aggregation}, and a quota needs one that adds up: "
            f"{' or '.join(COUNTABLE)}; put the quota on another meter, or define one in meters.yaml"
        )
    for name, value in (("limit", quota.limit), ("grace", quota.grace)):
        if check_quantity(value) < 0:
            raise InvalidUsageError(f"{name} is {value}; it may not be below 0")
    _check_anchor(quota)
    _check_filter(quota.filter, meter)
    _check_thresholds(quota.thresholds)
    return quota


def _check_anchor(quota: QuotaDefinition) -> None:
    day = quota.anchor_day
    if day is None:
        return
    if quota.period is not Period.MONTH:
        raise InvalidUsageError(
            f"anchor_day is {day}, but the period is {quota.period}; only a month has one: leave it out"
        )
    if not 1 <= day <= MAX_DAY:
        raise InvalidUsageError(
            f"anchor_day is {day}; it must be a day of the month, 1 to {MAX_DAY}"
        )


def _check_filter(wanted: Filter, meter: MeterDefinition) -> None:
    if len(wanted) > MAX_FILTER_NAMES:
        raise InvalidUsageError(
            f"filter has {len(wanted)} dimensions; at most {MAX_FILTER_NAMES} are possible"
        )
    for name, values in wanted:
        if meter.group_by is not None and name not in meter.group_by:
            known = ", ".join(meter.group_by) or "none"
            raise InvalidUsageError(
                f"filter names {name[:128]!r}, which is no dimension of meter {meter.slug!r}; its dimensions: "
                f"{known}; add it to the meter's group_by in meters.yaml"
            )
        if not 0 < len(values) <= MAX_FILTER_VALUES:
            raise InvalidUsageError(
                f"filter has {len(values)} values of {name[:128]!r}; 1 to {MAX_FILTER_VALUES} are possible"
            )
        if max(map(len, (name, *values))) > MAX_FILTER_LENGTH or not name:
            raise InvalidUsageError(
                f"filter has a name or value of {name[:64]!r} that is empty or over {MAX_FILTER_LENGTH} "
                "characters; shorten it"
            )


def _check_thresholds(thresholds: tuple[int, ...]) -> None:
    if len(thresholds) > MAX_THRESHOLDS:
        raise InvalidUsageError(
            f"thresholds has {len(thresholds)}; at most {MAX_THRESHOLDS} are possible"
        )
    for percent in thresholds:
        if not 1 <= percent <= MAX_THRESHOLD:
            raise InvalidUsageError(
                f"thresholds has {percent}; each is percent of the limit, 1 to {MAX_THRESHOLD}"
            )
