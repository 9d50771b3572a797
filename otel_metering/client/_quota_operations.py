"""What a client can do with quotas and reservations."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from urllib.parse import quote

from otel_metering.client import _answers as answers
from otel_metering.client._operations import Listing, one
from otel_metering.client._request import (
    Number,
    Operation,
    decimal_text,
    get,
    given,
    moment,
    present,
    send,
)
from otel_metering.client.results import Decision, Quota, QuotaStatus, Reservation

Attributes = Mapping[str, str | int | float | bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A question to the quotas: may `tenant_id` use `quantity` of `meter`?

    Attributes:
        dimensions: Of the usage, for quotas that count only some of it.
    """

    tenant_id: str
    meter: str
    quantity: Number = 1
    dimensions: Mapping[str, str] | None = None


def validate(
    tenant_id: str,
    meter: str,
    quantity: Number = 1,
    *,
    dimensions: Mapping[str, str] | None = None,
) -> Operation[Decision]:
    """Ask whether the quotas allow a quantity; takes nothing from them.

    Args:
        tenant_id: Whose quotas.
        meter: Its slug.
        quantity: What would be used.
        dimensions: Of the usage.
    """
    check = Check(tenant_id=tenant_id, meter=meter, quantity=quantity, dimensions=dimensions)
    return one(send("POST", "/validate", _check(check), is_repeatable=True), answers.decision)


def validate_many(checks: Iterable[Check]) -> Operation[tuple[Decision, ...]]:
    """Ask up to 1,000 `checks` at once; the answers are in their order."""
    body = [_check(check) for check in checks]
    return one(send("POST", "/validate", body, is_repeatable=True), answers.decisions)


def reserve(
    reservation_id: str,
    tenant_id: str,
    meter: str,
    quantity: Number,
    *,
    dimensions: Mapping[str, str] | None,
    ttl_seconds: int | None,
    lease: bool,
) -> Operation[Decision]:
    """Take units from the quotas, once for each id."""
    check = Check(tenant_id=tenant_id, meter=meter, quantity=quantity, dimensions=dimensions)
    body = _check(check) | present(
        reserve=True,
        lease=True if lease else None,
        ttl_seconds=ttl_seconds,
        reservation_id=reservation_id,
    )
    # The id makes it so: the service knows a reservation that it has already made.
    return one(send("POST", "/validate", body, is_repeatable=True), answers.decision)


def reservation(reservation_id: str) -> Operation[Reservation]:
    """Return the reservation `reservation_id`."""
    return one(get(_reservation(reservation_id)), answers.reservation)


def commit(
    reservation_id: str,
    quantity: Number,
    *,
    timestamp: datetime | str | None = None,
    attributes: Attributes | None = None,
) -> Operation[Reservation]:
    """Count what was really used, and end the reservation. Repeating it changes nothing.

    Args:
        reservation_id: As `reserve` made it.
        quantity: May be less or more than what was reserved.
        timestamp: Of the usage; None: now.
        attributes: Of the usage.
    """
    body = present(
        quantity=decimal_text(quantity),
        timestamp=moment(timestamp),
        attributes=None if attributes is None else dict(attributes),
    )
    path = _reservation(reservation_id, "/commit")
    return one(send("POST", path, body, is_repeatable=True), answers.reservation)


def extend(reservation_id: str, ttl_seconds: int) -> Operation[Reservation]:
    """Let the reservation `reservation_id` end `ttl_seconds` from now."""
    path = _reservation(reservation_id, "/extend")
    body = {"ttl_seconds": ttl_seconds}
    return one(send("POST", path, body, is_repeatable=True), answers.reservation)


def release(reservation_id: str) -> Operation[Reservation]:
    """Give back what `reservation_id` holds. Repeating it changes nothing."""
    path = _reservation(reservation_id, "/release")
    return one(send("POST", path, is_repeatable=True), answers.reservation)


def set_quota(
    meter: str,
    limit: Number,
    *,
    period: str,
    tenant_id: str | None = None,
    filters: Mapping[str, Sequence[str]] | None = None,
    grace: Number | None = None,
    anchor_day: int | None = None,
    timezone: str | None = None,
    enforcement: Literal["hard", "soft"] | None = None,
    thresholds: Sequence[int] | None = None,
) -> Operation[Quota]:
    """Make a quota, or replace the one of the same tenant, meter, filter and period.

    Args:
        meter: Its slug.
        limit: In the unit of the meter.
        period: `hour`, `day`, `week`, `month` or `lifetime`.
        tenant_id: None: for every tenant that has none of its own.
        filters: Dimension -> values: only usage with any of these counts.
        grace: Units beyond the limit that are still allowed.
        anchor_day: Day on which months begin, 1 to 31.
        timezone: IANA name; of the period.
        enforcement: `hard`: deny; `soft`: say so, and allow.
        thresholds: Percent of the limit at which the status says that they are crossed.
    """
    body = present(
        tenant_id=tenant_id,
        meter=meter,
        filter=None if filters is None else {name: list(some) for name, some in filters.items()},
        limit=decimal_text(limit),
        grace=None if grace is None else decimal_text(grace),
        period=period,
        anchor_day=anchor_day,
        timezone=timezone,
        enforcement=enforcement,
        thresholds=None if thresholds is None else list(thresholds),
    )
    return one(send("PUT", "/quotas", body, is_repeatable=True), answers.quota)


def quota(quota_id: str) -> Operation[Quota]:
    """Return the quota `quota_id`."""
    return one(get(f"/quotas/{quote(quota_id, safe='')}"), answers.quota)


def iter_quotas(*, tenant_id: str | None = None, meter: str | None = None) -> Listing[Quota]:
    """Iterate over quotas, of all or of `tenant_id`, of all or of `meter`."""
    parameters = given(tenant_id=tenant_id, meter=meter)
    return Listing(request=get("/quotas", parameters), parse=answers.quota)


def delete_quota(quota_id: str) -> Operation[None]:
    """Delete the quota `quota_id`, at once."""
    path = f"/quotas/{quote(quota_id, safe='')}"
    return one(send("DELETE", path, is_repeatable=True), answers.nothing)


def iter_quota_status(
    *, tenant_id: str | None = None, meter: str | None = None
) -> Listing[QuotaStatus]:
    """Iterate over how far quotas are used up, of all or of `tenant_id`, of all or of `meter`."""
    parameters = given(tenant_id=tenant_id, meter=meter)
    return Listing(request=get("/quotas/status", parameters), parse=answers.quota_status)


def _check(check: Check) -> dict[str, object]:
    return present(
        tenant_id=check.tenant_id,
        meter=check.meter,
        quantity=decimal_text(check.quantity),
        dimensions=None if check.dimensions is None else dict(check.dimensions),
    )


def _reservation(reservation_id: str, action: str = "") -> str:
    return f"/reservations/{quote(reservation_id, safe='')}{action}"
