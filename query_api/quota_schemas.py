"""Shapes of quotas, checks and reservations, and how they look in JSON."""

from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from otel_metering.contract.event import MAX_ID_LENGTH
from otel_metering.contract.quota import Enforcement, Period, QuotaDefinition, as_filter
from otel_metering.errors import InvalidUsageError
from query_api.checks import MAX_TTL_SECONDS
from query_api.counters import Reservation, State
from query_api.periods import format_instant
from query_api.quotas import NANO, Reason, nano_text
from query_api.schemas import TENANT_DOC, Closed, decimal_text
from query_api.verdicts import Verdict
from receiver.store.quotas import StoredQuota

_MS_NS: Final = 1_000_000
_QUOTA: Final[dict[str, Any]] = {
    "tenant_id": "tenant_a",
    "meter": "api.calls",
    "limit": "10000",
    "period": "month",
    "enforcement": "hard",
    "thresholds": [80, 100],
}
_CHECK: Final[dict[str, Any]] = {
    "tenant_id": "tenant_a",
    "meter": "api.calls",
    "quantity": "1",
    "reserve": True,
    "ttl_seconds": 60,
}

Quantity = Annotated[str, Field(max_length=64)]


class NewQuota(Closed):
    """A quota to put in its place."""

    model_config = ConfigDict(json_schema_extra={"example": _QUOTA})

    tenant_id: str | None = Field(
        None, description="Whose; null: of every tenant that has none of its own in its place."
    )
    meter: str = Field(description="A meter whose aggregation is sum or count.")
    filter: dict[str, list[str]] = Field(
        default_factory=dict, description="Dimension → the values it may have; {}: any usage."
    )
    limit: Quantity = Field(description="Units of one period: a decimal, at least 0.")
    grace: Quantity = Field("0", description="Units beyond it that a hard quota still allows.")
    period: Period
    anchor_day: int | None = Field(
        None, description="Day of the month that a month begins on, in a shorter month its last."
    )
    timezone: str = Field("UTC", max_length=64, description="IANA name; periods are of this zone.")
    enforcement: Enforcement = Field(Enforcement.HARD, description="hard denies, soft only says.")
    thresholds: list[int] = Field(
        default_factory=list, description="Percent of the limit that are of interest."
    )

    def definition(self, tenant_id: str | None) -> QuotaDefinition:
        """As a value.

        Raises:
            InvalidUsageError: A number is none.
        """
        return QuotaDefinition(
            tenant_id=tenant_id,
            meter=self.meter,
            filter=as_filter(self.filter),
            limit=_decimal("limit", self.limit),
            grace=_decimal("grace", self.grace),
            period=self.period,
            anchor_day=self.anchor_day,
            timezone=self.timezone,
            enforcement=self.enforcement,
            thresholds=tuple(sorted(set(self.thresholds))),
        )


class Quota(BaseModel):
    """A quota."""

    quota_id: str = Field(description="The same for the same tenant, meter, filter and period.")
    tenant_id: str | None
    meter: str
    filter: dict[str, list[str]]
    limit: str
    grace: str
    period: Period
    anchor_day: int | None
    timezone: str
    enforcement: Enforcement
    thresholds: list[int]
    created_at: str
    updated_at: str


class QuotasParameters(BaseModel):
    """Which quotas."""

    tenant_id: str | None = Field(None, description=TENANT_DOC)
    meter: str | None = Field(None, description="Only of this meter.")
    limit: int = Field(100, ge=1, le=1_000, description="Quotas on one page.")
    cursor: str | None = Field(
        None, pattern="^quota_[0-9a-f]{20}$", description="`next_cursor` of the page before."
    )


class QuotasAnswer(BaseModel):
    """A page of quotas, by id."""

    data: list[Quota]
    next_cursor: str | None


class StatusParameters(BaseModel):
    """Whose quotas."""

    tenant_id: str | None = Field(
        None, description="With it also the defaults that apply to this tenant."
    )
    meter: str | None = Field(None, description="Only of this meter.")


class QuotaStatus(BaseModel):
    """A quota, and how much of it is used in the current period."""

    quota: Quota
    tenant_id: str
    period_start: str
    resets_at: str | None = Field(description="null: never.")
    used: str
    reserved: str
    remaining: str = Field(description="Of the limit; 0 if it is exceeded.")
    percent: str = Field(description="Used, in percent of the limit, rounded down to two places.")
    crossed: list[int] = Field(description="The thresholds that are reached.")


class StatusAnswer(BaseModel):
    """At most 1,000."""

    data: list[QuotaStatus]


class QuotaCheck(Closed):
    """May a tenant use so much more?"""

    model_config = ConfigDict(json_schema_extra={"example": _CHECK})

    tenant_id: str | None = Field(
        None, description="May be left out if the key is bound to a tenant."
    )
    meter: str
    quantity: Quantity | float = Field("1", description="At least 0, at most nine decimals.")
    dimensions: dict[str, str] | None = Field(
        None, description="Of the usage, for quotas that have a filter."
    )
    reserve: bool | None = Field(None, description="Hold the units, if they are allowed.")
    lease: bool | None = Field(
        None, description="Usage takes its quantity from the reservation, instead of ending it."
    )
    ttl_seconds: int = Field(60, ge=1, le=MAX_TTL_SECONDS, description="How long they are held.")
    reservation_id: str | None = Field(
        None,
        max_length=MAX_ID_LENGTH,
        pattern="^[A-Za-z0-9_.:@-]+$",
        description="Chosen by you: the same request again holds nothing twice.",
    )


class CheckAnswer(BaseModel):
    """The decision, and the quota that it is about: the first that denies, else the one with least left."""

    allowed: bool
    limit: str | None = Field(description="null: there is no quota.")
    used: str | None = Field(description="null: there is no quota, or it cannot be told now.")
    reserved: str | None
    remaining: str | None = Field(description="Of the limit, behind what was just reserved.")
    resets_at: str | None
    reason: Reason
    enforcement: Enforcement | None
    quota_id: str | None
    reservation_id: str | None = Field(None, description="If units are held.")
    expires_at: str | None = None


class ChecksAnswer(BaseModel):
    """In the order of the checks."""

    data: list[CheckAnswer]


class ReservationParameters(BaseModel):
    """Which reservation, if several tenants or meters have one of this id."""

    tenant_id: str | None = Field(None, description=TENANT_DOC)
    meter: str | None = Field(None, description="Only of this meter.")


class Commit(Closed):
    """The usage that was reserved for, as it came to be."""

    model_config = ConfigDict(json_schema_extra={"example": {"quantity": "37.5"}})

    quantity: Quantity | float = Field(description="At least 0; may differ from what was held.")
    timestamp: str | None = Field(None, description="RFC 3339. Default: on arrival.")
    attributes: dict[str, str] = Field(
        default_factory=dict, description="Of the event, beside the dimensions of the reservation."
    )


class Extension(Closed):
    """A new end."""

    model_config = ConfigDict(json_schema_extra={"example": {"ttl_seconds": 60}})

    ttl_seconds: int = Field(ge=1, le=MAX_TTL_SECONDS, description="From now on.")


class ReservationAnswer(BaseModel):
    """Units that are held, or were."""

    reservation_id: str
    tenant_id: str
    meter: str
    quantity: str = Field(description="What was asked for.")
    remaining: str = Field(description="What is held of it now.")
    dimensions: dict[str, str]
    lease: bool
    state: State
    expires_at: str


def quota_json(stored: StoredQuota) -> dict[str, object]:
    """A quota."""
    one = stored.definition
    return {
        "quota_id": one.quota_id,
        "tenant_id": one.tenant_id,
        "meter": one.meter,
        "filter": {name: list(values) for name, values in one.filter},
        "limit": decimal_text(one.limit),
        "grace": decimal_text(one.grace),
        "period": one.period,
        "anchor_day": one.anchor_day,
        "timezone": one.timezone,
        "enforcement": one.enforcement,
        "thresholds": list(one.thresholds),
        "created_at": _moment(stored.created_us),
        "updated_at": _moment(stored.updated_us),
    }


def check_json(verdict: Verdict) -> dict[str, object]:
    """A `CheckAnswer`."""
    decision, held = verdict.decision, verdict.reservation
    binding = decision.binding
    if binding is None:
        found: dict[str, object] = dict.fromkeys(CheckAnswer.model_fields)
        found |= {"allowed": decision.is_allowed, "reason": decision.reason}
        del found["reservation_id"], found["expires_at"]
    else:
        quota = binding.applied.quota
        is_known = decision.reason not in _UNKNOWN
        found = {
            "allowed": decision.is_allowed,
            "limit": nano_text(binding.applied.limit),
            "used": nano_text(binding.used) if is_known else None,
            "reserved": nano_text(binding.reserved) if is_known else None,
            "remaining": nano_text(max(binding.remaining, 0)) if is_known else None,
            "resets_at": None if verdict.ends_ns is None else _end(verdict.ends_ns),
            "reason": decision.reason,
            "enforcement": quota.enforcement,
            "quota_id": binding.applied.quota_id,
        }
    if held is not None:
        found["reservation_id"] = held.reservation_id
        found["expires_at"] = format_instant(held.expires_ms * _MS_NS)
    return found


@lru_cache(maxsize=1_000)
def _end(ns: int) -> str:
    return format_instant(ns)


_UNKNOWN: Final = frozenset({Reason.STATE_UNAVAILABLE, Reason.RECOVERING})


def reservation_json(one: Reservation) -> dict[str, object]:
    """A `ReservationAnswer`."""
    return {
        "reservation_id": one.reservation_id,
        "tenant_id": one.tag[0],
        "meter": one.tag[1],
        "quantity": nano_text(one.quantity),
        "remaining": nano_text(one.left),
        "dimensions": dict(one.dimensions),
        "lease": one.is_lease,
        "state": one.state,
        "expires_at": format_instant(one.expires_ms * _MS_NS),
    }


def percent_text(used: int, limit: int) -> str:
    """`used` in percent of `limit`, rounded down to two places; of nothing, 100."""
    return nano_text(used * 10_000 // limit * (NANO // 100)) if limit else "100"


def _moment(micros: int) -> str:
    moment = datetime.fromtimestamp(micros // 1_000_000, UTC).replace(microsecond=micros % 10**6)
    return moment.isoformat().replace("+00:00", "Z")


def _decimal(field: str, text: str) -> Decimal:
    try:
        return Decimal(text)
    except ArithmeticError:
        raise InvalidUsageError(
            f"{field} is {text!r}, which is no decimal number; write it like 12.5"
        ) from None
