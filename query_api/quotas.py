"""Which quotas apply, which counters they read, and what follows: pure rules.

Amounts are integers of billionths of a unit, as exact as the `Decimal(38, 9)` they come from.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from functools import cached_property
from hashlib import blake2b
from typing import Final

from otel_metering.contract.meter import Aggregation, Meters
from otel_metering.contract.quota import (
    COUNTABLE,
    Enforcement,
    Filter,
    Period,
    QuotaDefinition,
)
from query_api.quota_periods import Span, span_of
from query_api.zones import Zone, load

NANO: Final = 10**9
MAX_CACHED: Final = 100_000
"""Pairs of tenant and meter whose quotas are kept worked out."""

Tag = tuple[str, str]
"""(tenant, meter): what is counted together."""


class Reason(StrEnum):
    """Why a check was answered as it was."""

    OK = "ok"
    NO_QUOTA = "no_quota"
    SOFT_LIMIT_EXCEEDED = "soft_limit_exceeded"
    WITHIN_GRACE = "within_grace"
    LIMIT_EXCEEDED = "limit_exceeded"
    STATE_UNAVAILABLE = "state_unavailable"
    RECOVERING = "recovering"


@dataclass(frozen=True, slots=True, eq=False)
class Counter:
    """What one quota counts in one period; quotas that differ in limits alone share it.

    Attributes:
        key: Its name; the same in every process.
        rule: What it counts.
        span: When.
    """

    key: str
    rule: "Rule"
    span: Span


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a series of counters counts, one for each period.

    Attributes:
        tag: Tenant and meter.
        aggregation: Whether quantities or observations; None: the meter does not add up.
        filter: Which usage.
        period: When it begins again.
        anchor_day: Day that a month begins on.
        timezone: Of its days.
    """

    tag: Tag
    aggregation: Aggregation | None
    filter: Filter
    period: Period
    anchor_day: int | None
    timezone: str
    _current: list[Counter] = field(default_factory=list, compare=False, repr=False)

    @cached_property
    def zone(self) -> Zone:
        """Of its days."""
        return load(self.timezone)

    @cached_property
    def scope(self) -> str:
        """Names the usage: reservations are held for it, whatever the period."""
        return _digest(self.filter)

    @cached_property
    def name(self) -> str:
        """Names the rule."""
        parts = [self.aggregation, self.filter, self.period, self.anchor_day, self.timezone]
        return _digest([*self.tag, *parts])

    def counter(self, ns: int) -> Counter:
        """That of the period that `ns` lies in."""
        for known in self._current:
            if known.span.has(ns):
                return known
        span = span_of(self.period, self.anchor_day, self.zone, ns)
        made = Counter(f"{self.name}:{span.start_ns // NANO}", self, span)
        # The last two: a period and the next one. Replaced, never changed: several threads read it.
        self._current[:] = [made, *self._current[:1]]
        return made

    def admits(self, dimensions: Mapping[str, str]) -> bool:
        """Whether usage with these dimensions is counted; one that is missing is an empty text."""
        return all(dimensions.get(name, "") in values for name, values in self.filter)


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """A quota as it applies to one tenant.

    Attributes:
        quota: The definition.
        quota_id: Its name, which takes a hash to make.
        rule: What it counts.
        limit: In billionths.
        ceiling: The same with grace; None: the quota is soft, so there is none.
    """

    quota: QuotaDefinition
    quota_id: str
    rule: Rule
    limit: int
    ceiling: int | None


class Book:
    """All quotas at one moment, and which of them apply to whom."""

    def __init__(self, quotas: Iterable[QuotaDefinition], meters: Meters) -> None:
        self._meters = meters
        self._own: dict[Tag, list[QuotaDefinition]] = {}
        self._defaults: dict[str, list[QuotaDefinition]] = {}
        for quota in sorted(quotas, key=lambda one: one.quota_id):
            if quota.tenant_id is None:
                self._defaults.setdefault(quota.meter, []).append(quota)
            else:
                self._own.setdefault((quota.tenant_id, quota.meter), []).append(quota)
        self._applied: dict[Tag, tuple[Applied, ...]] = {}

    @property
    def is_empty(self) -> bool:
        """Whether there is no quota at all."""
        return not (self._own or self._defaults)

    @property
    def tags(self) -> list[Tag]:
        """Of the quotas that name a tenant."""
        return list(self._own)

    def of(self, tag: Tag) -> tuple[Applied, ...]:
        """The quotas of a tenant and meter: its own, and the defaults that it has none in place of."""
        found = self._applied.get(tag)
        if found is None:
            own = self._own.get(tag, [])
            places = {quota.place for quota in own}
            defaults = [q for q in self._defaults.get(tag[1], []) if q.place not in places]
            found = tuple(self._apply(quota, tag) for quota in (*own, *defaults))
            if len(self._applied) >= MAX_CACHED:
                self._applied.clear()
            self._applied[tag] = found
        return found

    def _apply(self, quota: QuotaDefinition, tag: Tag) -> Applied:
        aggregation = self._meters.find(quota.meter).aggregation
        limit = to_nano(quota.limit)
        is_hard = quota.enforcement is Enforcement.HARD
        return Applied(
            quota=quota,
            quota_id=quota.quota_id,
            rule=Rule(
                tag=tag,
                aggregation=aggregation if aggregation in COUNTABLE else None,
                filter=quota.filter,
                period=quota.period,
                anchor_day=quota.anchor_day,
                timezone=quota.timezone,
            ),
            limit=limit,
            ceiling=limit + to_nano(quota.grace) if is_hard else None,
        )


@dataclass(frozen=True, slots=True)
class Standing:
    """One quota, and what is counted against it: billionths."""

    applied: Applied
    used: int
    reserved: int

    @property
    def remaining(self) -> int:
        """What is left of the limit; below 0: it is exceeded."""
        return self.applied.limit - self.used - self.reserved

    def allows(self, quantity: int) -> bool:
        """Whether so much more fits."""
        ceiling = self.applied.ceiling
        return ceiling is None or self.used + self.reserved + quantity <= ceiling


@dataclass(frozen=True, slots=True)
class Decision:
    """What is answered, and the quota that decides it; None: there is none."""

    is_allowed: bool
    reason: Reason
    binding: Standing | None


def decide(standings: Sequence[Standing], quantity: int, *, held: int = 0) -> Decision:
    """Whether `quantity` fits into every quota.

    Args:
        standings: Of the quotas that apply.
        quantity: How much is asked for.
        held: How much of it `reserved` contains already, because it was just reserved.

    Returns:
        The first quota that denies it; else the one with the least remaining.
    """
    if not standings:
        return Decision(True, Reason.NO_QUOTA, None)  # noqa: FBT003 - positional, made on each request
    more = quantity - held
    for one in standings:
        if not one.allows(more):
            return Decision(False, Reason.LIMIT_EXCEEDED, one)  # noqa: FBT003 - likewise
    least = min(standings, key=_remaining)
    if least.remaining >= more:
        return Decision(True, Reason.OK, least)  # noqa: FBT003 - likewise
    is_soft = least.applied.ceiling is None
    reason = Reason.SOFT_LIMIT_EXCEEDED if is_soft else Reason.WITHIN_GRACE
    return Decision(True, reason, least)  # noqa: FBT003 - likewise


def _remaining(standing: Standing) -> int:
    return standing.remaining


def crossed(standing: Standing) -> list[int]:
    """The thresholds, in percent of the limit, that the usage has reached."""
    limit = standing.applied.limit
    return [p for p in standing.applied.quota.thresholds if standing.used * 100 >= limit * p]


def to_nano(value: Decimal) -> int:
    """Billionths of a decimal that has at most nine places."""
    sign, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)  # noqa: S101 - it is finite
    number = int("".join(map(str, digits)))
    # No context of decimals is asked: this is exact for any number of digits.
    shift = int(10 ** abs(exponent + 9))
    scaled = number * shift if exponent >= -9 else number // shift
    return -scaled if sign else scaled


def from_nano(amount: int) -> Decimal:
    """The decimal of so many billionths."""
    return Decimal(amount).scaleb(-9)


def nano_text(amount: int) -> str:
    """As a decimal, without trailing zeros: 1_500_000_000 is "1.5"."""
    whole, nano = divmod(abs(amount), NANO)
    sign = "-" if amount < 0 else ""
    return f"{sign}{whole}.{nano:09d}".rstrip("0") if nano else f"{sign}{whole}"


def _digest(value: object) -> str:
    return blake2b(json.dumps(value).encode(), digest_size=8).hexdigest()
