"""Answers of the query API become results: each is read once, here, and by nothing else."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, TypeVar

from otel_metering.client.results import (
    AuditEntry,
    Correction,
    CreatedKey,
    Decision,
    Event,
    Key,
    Meter,
    Page,
    Quota,
    QuotaStatus,
    Reservation,
    Token,
    Usage,
    UsageRow,
)
from otel_metering.contract.event import Admission
from otel_metering.errors import ApiError

T = TypeVar("T")
Document = Mapping[str, Any]

REQUEST_ID_HEADER: Final = "x-request-id"

_FRACTION: Final = re.compile(
    r"(.*?:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)", re.ASCII | re.IGNORECASE
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back.

    Attributes:
        headers: Names in lower case.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def is_error(self) -> bool:
        """Whether it is not what was asked for; a redirect is not."""
        return self.status // 100 != 2

    @property
    def request_id(self) -> str:
        """What the service calls the request; empty: it does not say."""
        return self.headers.get(REQUEST_ID_HEADER, "")


def read(answer: Answer, parse: Callable[[Any], T]) -> T:
    """Return what `parse` makes of the JSON of an answer.

    Raises:
        ApiError: It is an error, or not what the query API would say.
    """
    if answer.is_error:
        raise error_of(answer)
    try:
        return parse(_loads(answer.content) if answer.content else None)
    # What json, the fields of a document, Decimal and datetime raise.
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise _not_the_api(answer) from error


def error_of(answer: Answer) -> ApiError:
    """What an answer that is an error says."""
    try:
        problem = _loads(answer.content)
    except (ValueError, RecursionError):
        problem = None
    if not isinstance(problem, dict) or not isinstance(problem.get("detail"), str):
        return _not_the_api(answer)
    return ApiError(
        status=answer.status,
        title=str(problem.get("title", "")),
        detail=problem["detail"],
        request_id=answer.request_id,
    )


def _not_the_api(answer: Answer) -> ApiError:
    return ApiError(
        status=answer.status,
        title="Not the query API",
        detail=f"the service answers {answer.status}, and not as the query API does; "
        "check the URL (METERING_API_URL)",
        request_id=answer.request_id,
    )


def _loads(content: bytes) -> object:
    return json.loads(content, parse_float=Decimal)


def document(found: object) -> Document:
    """Any object."""
    if not isinstance(found, dict):
        raise TypeError("not an object")
    return found


def nothing(found: object) -> None:
    """There is nothing to read."""


def page_of(parse: Callable[[Document], T]) -> Callable[[Document], Page[T]]:
    """A list with a cursor; a list without one is one page."""

    def read_page(found: Document) -> Page[T]:
        return Page(
            items=tuple(parse(item) for item in found["data"]),
            next_cursor=found.get("next_cursor"),
        )

    return read_page


def time(text: str) -> datetime:
    """RFC 3339, cut off to whole microseconds.

    Raises:
        ValueError: It is none.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    return moment


def time_ns(text: str) -> int:
    """RFC 3339 in nanoseconds since the epoch.

    Raises:
        ValueError: It is none.
    """
    match = _FRACTION.fullmatch(text)
    if match is None:
        raise ValueError("not RFC 3339")
    since = time(f"{match[1]}{match[3]}") - _EPOCH
    fraction = int((match[2] or "").ljust(9, "0"))
    return (since.days * 86_400 + since.seconds) * 1_000_000_000 + fraction


def usage(found: Document) -> tuple[Usage, str | None]:
    """One page of aggregates, and the cursor of the next."""
    rows = tuple(_usage_row(row) for row in found["data"])
    page = Usage(
        meter=found["meter"],
        aggregation=found["aggregation"],
        unit=found["unit"],
        window=found["window"],
        timezone=found.get("timezone", "UTC"),
        table=found["table"],
        rows=rows,
    )
    return page, found.get("next_cursor")


def _usage_row(row: Document) -> UsageRow:
    return UsageRow(
        window_start=time(row["window_start"]),
        window_end=time(row["window_end"]),
        tenant_id=row.get("tenant_id"),
        dimensions=dict(row["dimensions"]),
        value=_decimal(row["value"]),
        previous_value=_maybe(_decimal, row.get("previous_value")),
    )


def meter(found: Document) -> Meter:
    """One meter."""
    dimensions = found["dimensions"]
    return Meter(
        slug=found["slug"],
        aggregation=found["aggregation"],
        unit=found["unit"],
        dimensions=None if dimensions is None else tuple(dimensions),
        is_defined=bool(found["is_defined"]),
        events=int(found["events"]),
    )


def admission(found: Document) -> Admission:
    """What became of events."""
    return Admission(
        accepted=int(found["accepted"]),
        duplicates=int(found["duplicates"]),
        rejected=tuple((int(one["index"]), str(one["reason"])) for one in found["rejected"]),
    )


def event(found: Document) -> Event:
    """One stored event."""
    return Event(
        event_id=found["event_id"],
        tenant_id=found["tenant_id"],
        meter=found["meter"],
        quantity=_decimal(found["quantity"]),
        timestamp_ns=time_ns(found["timestamp"]),
        start_time=_maybe(time, found.get("start_time")),
        attributes=dict(found["attributes"]),
        dimensions=dict(found["dimensions"]),
        service_name=found["service_name"],
        signal=found["signal"],
        trace_id=found.get("trace_id"),
        span_id=found.get("span_id"),
        ingested_at=time(found["ingested_at"]),
        status=found.get("status", "counted"),
        correction=_maybe(correction, found.get("correction")),
    )


def correction(found: Document) -> Correction:
    """What was done to an event."""
    return Correction(
        event_id=found.get("event_id", ""),
        action=found["action"],
        reason=found["reason"],
        corrected_at=time(found["corrected_at"]),
        key_id=found.get("key_id", ""),
        replaced_by=found.get("replaced_by"),
        tenant_id=found.get("tenant_id"),
        meter=found.get("meter"),
    )


def decision(found: Document) -> Decision:
    """What the quotas say."""
    return Decision(
        allowed=_flag(found["allowed"]),
        limit=_maybe(_decimal, found["limit"]),
        used=_maybe(_decimal, found["used"]),
        reserved=_maybe(_decimal, found["reserved"]),
        remaining=_maybe(_decimal, found["remaining"]),
        resets_at=_maybe(time, found["resets_at"]),
        reason=found["reason"],
        enforcement=found.get("enforcement"),
        quota_id=found.get("quota_id"),
        reservation_id=found.get("reservation_id"),
        expires_at=_maybe(time, found.get("expires_at")),
    )


def decisions(found: Document) -> tuple[Decision, ...]:
    """What the quotas say to each of many checks."""
    return tuple(decision(one) for one in found["data"])


def reservation(found: Document) -> Reservation:
    """One reservation."""
    return Reservation(
        reservation_id=found["reservation_id"],
        tenant_id=found["tenant_id"],
        meter=found["meter"],
        quantity=_decimal(found["quantity"]),
        state=found["state"],
        expires_at=_maybe(time, found["expires_at"]),
    )


def quota(found: Document) -> Quota:
    """One quota."""
    return Quota(
        quota_id=found["quota_id"],
        tenant_id=found["tenant_id"],
        meter=found["meter"],
        filter={name: tuple(values) for name, values in (found.get("filter") or {}).items()},
        limit=_decimal(found["limit"]),
        grace=_decimal(found.get("grace", "0")),
        period=found["period"],
        anchor_day=found.get("anchor_day"),
        timezone=found.get("timezone", "UTC"),
        enforcement=found["enforcement"],
        thresholds=tuple(int(one) for one in found.get("thresholds", ())),
        created_at=time(found["created_at"]),
        updated_at=time(found["updated_at"]),
    )


def quota_status(found: Document) -> QuotaStatus:
    """How far a quota is used up."""
    return QuotaStatus(
        quota=quota(found["quota"]),
        tenant_id=found["tenant_id"],
        period_start=_maybe(time, found.get("period_start")),
        resets_at=_maybe(time, found["resets_at"]),
        used=_decimal(found["used"]),
        reserved=_decimal(found["reserved"]),
        remaining=_decimal(found["remaining"]),
        percent=_maybe(_decimal, found.get("percent")),
        crossed=tuple(int(one) for one in found["crossed"]),
    )


def key(found: Document) -> Key:
    """One key."""
    return Key(
        key_id=found["key_id"],
        name=found["name"],
        scopes=tuple(found["scopes"]),
        tenant_id=found["tenant_id"],
        created_at=time(found["created_at"]),
        expires_at=_maybe(time, found["expires_at"]),
        revoked_at=_maybe(time, found["revoked_at"]),
        last_used_at=_maybe(time, found.get("last_used_at")),
        rate_limit_per_second=_maybe(int, found.get("rate_limit_per_second")),
        replaces=found.get("replaces"),
        rotated_to=found.get("rotated_to"),
    )


def created_key(found: Document) -> CreatedKey:
    """A key that was just made."""
    return CreatedKey(key=key(found), text=str(found["key"]))


def token(found: Document) -> Token:
    """A token that was just made."""
    return Token(text=str(found["token"]), expires_at=time(found["expires_at"]))


def audit_entry(found: Document) -> AuditEntry:
    """One administrative change."""
    return AuditEntry(
        at=time(found["at"]),
        key_id=found["key_id"],
        action=found["action"],
        target=found["target"],
        tenant_id=found["tenant_id"],
        request_id=found.get("request_id", ""),
        details=dict(found.get("details") or {}),
    )


def _decimal(value: object) -> Decimal:
    return Decimal(str(value))


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError("neither true nor false")
    return value


def _maybe(parse: Callable[[Any], T], value: object) -> T | None:
    return None if value is None else parse(value)
