"""What the query API answers, as values: decimals are `Decimal`, times are aware datetimes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """Some of a longer list.

    Attributes:
        items: In the order of the list.
        next_cursor: Leads to the page behind; None: this was the last.
    """

    items: tuple[T, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRow:
    """One window of one group.

    Attributes:
        window_start: Inclusive.
        window_end: Exclusive.
        tenant_id: If grouped by, or asked for; else None.
        dimensions: Those that were grouped by; empty text: the events had no such attribute.
        value: The aggregate.
        previous_value: Of the period before, if it was asked for and there is one.
    """

    window_start: datetime
    window_end: datetime
    tenant_id: str | None
    dimensions: Mapping[str, str]
    value: Decimal
    previous_value: Decimal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """One meter, aggregated; iterates over its rows.

    Attributes:
        aggregation: As `meters.yaml` names it.
        window: As it was asked for.
        timezone: Of the windows: a name of the IANA database.
        table: The coarsest table that was read.
        rows: All of them, in the order that was asked for.
    """

    meter: str
    aggregation: str
    unit: str
    window: str
    timezone: str
    table: str
    rows: tuple[UsageRow, ...]

    def __iter__(self) -> Iterator[UsageRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """A meter that is defined, or has usage.

    Attributes:
        dimensions: None: every attribute is one.
        is_defined: Whether `meters.yaml` has it.
        events: In the range that was asked for.
    """

    slug: str
    aggregation: str
    unit: str
    dimensions: tuple[str, ...] | None
    is_defined: bool
    events: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """What was done to an event after it had been counted.

    Attributes:
        event_id: The event.
        action: `void` or `correct`.
        reason: Of the person who did it.
        key_id: The API key that did it.
        replaced_by: The id of the event that counts in its place; None: nothing does.
        tenant_id: Of the event; None: the answer did not say.
        meter: As `tenant_id`.
    """

    event_id: str
    action: str
    reason: str
    corrected_at: datetime
    key_id: str
    replaced_by: str | None
    tenant_id: str | None
    meter: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event as it was admitted.

    Attributes:
        event_id: The sender's id if it gave one, else the stored UUID.
        timestamp_ns: When it was used: nanoseconds since the epoch, which a datetime cannot hold.
        start_time: Start of the interval that was measured, if any.
        signal: `metric`, `span`, `log` or `event`.
        status: `counted`, `voided` or `corrected`.
        correction: Why it is not counted; None: it is.
    """

    event_id: str
    tenant_id: str
    meter: str
    quantity: Decimal
    timestamp_ns: int
    start_time: datetime | None
    attributes: Mapping[str, str]
    dimensions: Mapping[str, str]
    service_name: str
    signal: str
    trace_id: str | None
    span_id: str | None
    ingested_at: datetime
    status: str
    correction: Correction | None

    @property
    def timestamp(self) -> datetime:
        """When it was used, cut off to whole microseconds."""
        return _EPOCH + timedelta(microseconds=self.timestamp_ns // 1_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether a quota allows a quantity, and how far the quota is used up.

    Attributes:
        limit: None: there is no quota.
        used: Counted in this period; None: not known.
        reserved: Held by reservations.
        remaining: What may still be used; None: without limit.
        resets_at: When the quota begins anew; None: never.
        reason: For example `ok`, `no_quota`, `limit_exceeded`.
        enforcement: `hard` or `soft`; None: there is no quota.
        reservation_id: What was reserved, if that was asked for and allowed.
        expires_at: When that reservation ends by itself.
    """

    allowed: bool
    limit: Decimal | None
    used: Decimal | None
    reserved: Decimal | None
    remaining: Decimal | None
    resets_at: datetime | None
    reason: str
    enforcement: str | None
    quota_id: str | None
    reservation_id: str | None
    expires_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Units of a quota that are held.

    Attributes:
        state: `active`, `settled`, `committed`, `released` or `expired`.
        expires_at: When it ends, or ended, by itself.
    """

    reservation_id: str
    tenant_id: str
    meter: str
    quantity: Decimal
    state: str
    expires_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """How much of a meter a tenant may use.

    Attributes:
        tenant_id: None: every tenant that has none of its own.
        filter: Dimension -> values: only usage with any of these counts.
        limit: In the unit of the meter.
        grace: Units beyond the limit that are still allowed.
        period: `hour`, `day`, `week`, `month` or `lifetime`.
        anchor_day: Day on which months begin; None: the first.
        timezone: Of the period: a name of the IANA database.
        enforcement: `hard`: deny; `soft`: say so, and allow.
        thresholds: Percent of the limit at which the status says that they are crossed.
    """

    quota_id: str
    tenant_id: str | None
    meter: str
    filter: Mapping[str, tuple[str, ...]]
    limit: Decimal
    grace: Decimal
    period: str
    anchor_day: int | None
    timezone: str
    enforcement: str
    thresholds: tuple[int, ...]
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaStatus:
    """How far a quota is used up.

    Attributes:
        tenant_id: Whose usage this is.
        period_start: Begin of the running period; None: it has none (`lifetime`).
        resets_at: Its end; None: it has none.
        percent: Used, of the limit; may be above 100.
        crossed: The thresholds that were reached.
    """

    quota: Quota
    tenant_id: str | None
    period_start: datetime | None
    resets_at: datetime | None
    used: Decimal
    reserved: Decimal
    remaining: Decimal
    percent: Decimal | None
    crossed: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """An API key, without its secret.

    Attributes:
        tenant_id: It reaches this tenant alone; None: any.
        expires_at: None: never.
        revoked_at: None: it is not.
        last_used_at: None: never, or not known.
        rate_limit_per_second: Requests; None: no limit of its own.
        replaces: The id of the key from which it was rotated, if any.
        rotated_to: The id of the key that takes its place, if any.
    """

    key_id: str
    name: str
    scopes: tuple[str, ...]
    tenant_id: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    rate_limit_per_second: int | None
    replaces: str | None
    rotated_to: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedKey:
    """A key, and the text of it, which is shown this once."""

    key: Key
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """Reads the usage of one tenant for a while, for example from a page of that customer."""

    text: str = field(repr=False)
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One administrative change.

    Attributes:
        key_id: The API key that did it.
        action: For example `key.create`.
        target: What was changed.
    """

    at: datetime
    key_id: str
    action: str
    target: str
    tenant_id: str | None
    request_id: str
    details: Mapping[str, str]
