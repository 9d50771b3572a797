"""Shapes of requests and answers, and how values look in JSON.

These classes are the OpenAPI document; long answers are written without them, and tests compare.
"""

from decimal import Decimal
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from otel_metering.contract.meter import Aggregation

_EVENT: Final[dict[str, Any]] = {
    "event_id": "order-1042-line-3",
    "tenant_id": "tenant_a",
    "meter": "api.calls",
    "quantity": "1",
    "timestamp": "2026-03-01T12:00:00.25Z",
    "attributes": {"region": "eu", "plan": "pro"},
}

FROM_DOC: Final = "Start, inclusive: RFC 3339 or a date. Default: 30 days before the end."
TO_DOC: Final = "End, exclusive: RFC 3339 or a date. Default: now."
TENANT_DOC: Final = "Only this tenant. A key bound to a tenant sees that one anyway."


def decimal_text(value: Decimal | int) -> str:
    """Exact decimals without an exponent or trailing zeros: "3.5", "12", "0"."""
    text = format(value, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


class Closed(BaseModel):
    """A body: a misspelt field is an error, not a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Event(Closed):
    """One piece of usage."""

    model_config = ConfigDict(json_schema_extra={"example": _EVENT})

    event_id: str | None = Field(
        None,
        max_length=256,
        description="Idempotency key: one (tenant, meter, event_id) counts once, for ever.",
    )
    tenant_id: str | None = Field(
        None, description="Who used it. May be left out if the key is bound to a tenant."
    )
    meter: str = Field(description="What was used: 1 to 128 characters of `A-Za-z0-9_.:@/-`.")
    quantity: Annotated[str, Field(description="At most nine decimal places.")] | float = Field(
        "1", description="A string, or a JSON number, which is read exactly as it is written."
    )
    timestamp: str | None = Field(
        None, description="RFC 3339, up to nanoseconds. Default: on arrival."
    )
    attributes: dict[str, str | float | bool | None] = Field(
        default_factory=dict, description="A meter's `group_by` picks its dimensions from here."
    )


class Rejection(BaseModel):
    """An event that can never be counted as it is."""

    index: int = Field(description="Its place in the list.")
    reason: str


class AdmissionAnswer(BaseModel):
    """What became of the events; all that was accepted is durable."""

    accepted: int = Field(description="Stored, for the first time.")
    duplicates: int = Field(description="Stored before; they count no second time.")
    rejected: list[Rejection]


class MetersParameters(BaseModel):
    """Which usage."""

    tenant_id: str | None = Field(None, description=TENANT_DOC)
    from_: str | None = Field(None, alias="from", description=FROM_DOC)
    to: str | None = Field(None, description=TO_DOC)


class Meter(BaseModel):
    """A meter that is defined, or has usage in the range."""

    slug: str
    aggregation: Aggregation
    unit: str
    dimensions: list[str] | None = Field(description="null: every attribute is a dimension.")
    is_defined: bool = Field(
        description="Whether meters.yaml has it, or it was made by API; if not, defaults apply."
    )
    events: int = Field(description="Events in the range.")


class MetersAnswer(BaseModel):
    """Sorted by slug."""

    data: list[Meter]


class Check(BaseModel):
    """One check that was run."""

    status: Literal["ok", "failed"]
    detail: str


class HealthAnswer(BaseModel):
    """`ok` if every check is."""

    status: Literal["ok", "failed"]
    checks: dict[str, Check]


class Problem(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str = Field(description="The fact, the limit, and the remedy.")
    request_id: str = Field(description="As in the header X-Request-Id, and in the log.")
