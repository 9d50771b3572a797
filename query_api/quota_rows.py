"""What `metering.quota_usage` has to say: which reads answer for all tenants at once, and the rows they make.

Quotas that count the same usage (meter, filter, period, first day, zone) are a **group**: one read of it, by
tenant, answers for every tenant. A default applies to tenants that have none of their own in its place, as in
`quotas.Book`.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from otel_metering.contract.meter import Aggregation, MeterDefinition, Meters
from otel_metering.contract.quota import COUNTABLE, Filter, Period, QuotaDefinition
from query_api.filters import any_of
from query_api.periods import MAX_NS, Range
from query_api.queries import TENANT, AggregateRequest
from query_api.quota_periods import Span, span_of
from query_api.zones import is_known, load

_MS_NS: Final = 1_000_000
_NOTHING: Final = Decimal(0)

Place = tuple[str, Filter, Period]
"""What a tenant has one quota of: its own, or else the default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a quota says, as the table has it; shared by its rows.

    Attributes:
        quota_id: Of the quota.
        meter: Slug.
        is_default: Whether it is that of tenants without one of their own.
        filter: JSON.
        period: When it begins again.
        enforcement: What happens beyond the limit.
        limit: Units of a period.
        grace: Units beyond it.
    """

    quota_id: str
    meter: str
    is_default: bool
    filter: str
    period: str
    enforcement: str
    limit: Decimal
    grace: Decimal

    @classmethod
    def of(cls, quota: QuotaDefinition) -> "Terms":
        """Of a definition."""
        return cls(
            quota_id=quota.quota_id,
            meter=quota.meter,
            is_default=quota.tenant_id is None,
            filter=json.dumps(dict(quota.filter)),
            period=str(quota.period),
            enforcement=str(quota.enforcement),
            limit=quota.limit,
            grace=quota.grace,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRow:
    """How much of a quota a tenant used in a period.

    Attributes:
        tenant_id: Who.
        terms: Of which quota.
        start_ms: First moment of the period, since the epoch.
        end_ms: First moment after it; None: it never ends.
        used: Units.
    """

    tenant_id: str
    terms: Terms
    start_ms: int
    end_ms: int | None
    used: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Quotas that count the same usage.

    Attributes:
        meter: What is counted.
        aggregation: How: quantities, or observations.
        filter: Which usage.
        period: When it begins again.
        anchor_day: Day that a month begins on.
        timezone: Of its days.
        own: Tenant -> its quota.
        defaults: Those of tenants that have none in their place.
    """

    meter: MeterDefinition
    aggregation: Aggregation
    filter: Filter
    period: Period
    anchor_day: int | None
    timezone: str
    own: dict[str, Terms] = field(default_factory=dict)
    defaults: list[Terms] = field(default_factory=list)

    @property
    def name(self) -> tuple[object, ...]:
        """What tells it from other groups, also later."""
        return self.meter.slug, self.filter, self.period, self.anchor_day, self.timezone

    @property
    def terms(self) -> list[Terms]:
        """Of each quota."""
        return [*self.own.values(), *self.defaults]

    def span(self, ns: int) -> Span:
        """The period that `ns` lies in."""
        return span_of(self.period, self.anchor_day, load(self.timezone), ns)

    def request(self, span: Span) -> AggregateRequest:
        """What is read: the usage of every tenant, or of the only one that matters."""
        only = next(iter(self.own)) if len(self.own) == 1 and not self.defaults else None
        return AggregateRequest(
            meter=self.meter,
            aggregation=self.aggregation,
            range=Range(span.start_ns, span.end_ns or MAX_NS),
            tenant_id=only,
            group_by=(TENANT,),
            filters=any_of(dict(self.filter)),
        )


class Groups:
    """All quotas in force, in groups.

    Attributes:
        all: The groups.
    """

    def __init__(self, quotas: Iterable[QuotaDefinition], meters: Meters) -> None:
        """Put quotas together. Those that the gate cannot count (the meter does not add up) are left out."""
        self._own_of: defaultdict[Place, set[str]] = defaultdict(set)
        self._group_of: dict[str, Group] = {}
        found: dict[tuple[object, ...], Group] = {}
        for quota in quotas:
            if quota.tenant_id is not None:
                self._own_of[quota.place].add(quota.tenant_id)
            meter = meters.find(quota.meter)
            if meter.aggregation not in COUNTABLE or not is_known(quota.timezone):
                continue
            made = Group(
                meter=meter,
                aggregation=meter.aggregation,
                filter=quota.filter,
                period=quota.period,
                anchor_day=quota.anchor_day,
                timezone=quota.timezone,
            )
            group, terms = found.setdefault(made.name, made), Terms.of(quota)
            self._group_of[terms.quota_id] = group
            if quota.tenant_id is None:
                group.defaults.append(terms)
            else:
                group.own[quota.tenant_id] = terms
        self.all = list(found.values())

    def of(self, quota_id: str) -> Group | None:
        """The group of a quota; None: it is no more, or counts nothing."""
        return self._group_of.get(quota_id)

    def rows(self, group: Group, span: Span, used: Mapping[str, Decimal]) -> Iterator[UsageRow]:
        """A row for each tenant with a quota of its own, and for each that used any of a default.

        Args:
            group: Which quotas.
            span: Which period.
            used: Tenant -> units, of every tenant with usage.
        """
        for tenant_id, terms in group.own.items():
            yield _row(tenant_id, terms, span, used.get(tenant_id, _NOTHING))
        for terms in group.defaults:
            for tenant_id, amount in used.items():
                if self.is_subject(group, terms, tenant_id):
                    yield _row(tenant_id, terms, span, amount)

    def is_subject(self, group: Group, terms: Terms, tenant_id: str) -> bool:
        """Whether this quota of a group is one that the tenant has."""
        if terms.is_default:
            return tenant_id not in self._own_of[group.meter.slug, group.filter, group.period]
        return group.own.get(tenant_id) == terms


def _row(tenant_id: str, terms: Terms, span: Span, used: Decimal) -> UsageRow:
    return UsageRow(
        tenant_id=tenant_id,
        terms=terms,
        start_ms=span.start_ns // _MS_NS,
        end_ms=None if span.end_ns is None else span.end_ns // _MS_NS,
        used=used,
    )


@dataclass(slots=True)
class _Known:
    """A row of the table, and when it was written (ms; 0: by somebody else)."""

    row: UsageRow
    written_ms: int


@dataclass(slots=True)
class Changes:
    """Rows to be written.

    Attributes:
        rows: As they are now.
        gone: Rows of the table that are no more: the quota was deleted, or does not apply.
    """

    rows: list[UsageRow] = field(default_factory=list)
    gone: list[UsageRow] = field(default_factory=list)


class Known:
    """Rows of periods that are not over, as the table has them: what need not be written again."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[tuple[str, int], _Known]] = {}

    def put(self, rows: Iterable[UsageRow], written_ms: int) -> None:
        """The table has these rows."""
        for row in rows:
            of_quota = self._rows.setdefault(row.terms.quota_id, {})
            of_quota[row.tenant_id, row.start_ms] = _Known(row, written_ms)

    def drop(self, rows: Iterable[UsageRow]) -> None:
        """The table does not have these rows any more, or their period is over."""
        for row in rows:
            of_quota = self._rows.get(row.terms.quota_id, {})
            of_quota.pop((row.tenant_id, row.start_ms), None)
            if not of_quota:
                self._rows.pop(row.terms.quota_id, None)

    def forget_ended(self, now_ms: int) -> None:
        """Forget rows whose period is over: they stay as they are."""
        ended = [
            one.row
            for of_quota in self._rows.values()
            for one in of_quota.values()
            if one.row.end_ms is not None and one.row.end_ms <= now_ms
        ]
        self.drop(ended)

    def orphans(self, groups: Groups) -> list[UsageRow]:
        """Rows of quotas that are no more."""
        return [
            one.row
            for quota_id, of_quota in self._rows.items()
            if groups.of(quota_id) is None
            for one in of_quota.values()
        ]

    def compare(
        self,
        groups: Groups,
        group: Group,
        span: Span,
        used: Mapping[str, Decimal],
        older_than_ms: int,
    ) -> Changes:
        """What is to be written of a group.

        Args:
            groups: All quotas.
            group: Which.
            span: Its present period.
            used: As for `Groups.rows`.
            older_than_ms: What was written then or before is written again, whatever it says.
        """
        rows = {
            (row.terms.quota_id, row.tenant_id, row.start_ms): row
            for row in groups.rows(group, span, used)
        }
        found = Changes()
        for terms in group.terms:
            for (tenant_id, start_ms), known in self._rows.get(terms.quota_id, {}).items():
                key = terms.quota_id, tenant_id, start_ms
                if key in rows:
                    continue
                # Its usage may have been taken back, and then is none.
                none = _row(tenant_id, terms, span, _NOTHING)
                is_his = groups.is_subject(group, terms, tenant_id)
                if is_his and (none.start_ms, none.end_ms) == (start_ms, known.row.end_ms):
                    rows[key] = none
                else:
                    found.gone.append(known.row)
        for (quota_id, tenant_id, start_ms), row in rows.items():
            before = self._rows.get(quota_id, {}).get((tenant_id, start_ms))
            if before is None or before.row != row or before.written_ms <= older_than_ms:
                found.rows.append(row)
        return found
