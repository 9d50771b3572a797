"""Shapes of requests and answers about quarantine."""

from typing import Any, Final, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from query_api.schemas import FROM_DOC, TO_DOC, Closed

MAX_ITEMS: Final = 10_000
"""Items of one replay or discard."""

MAX_REFUSALS: Final = 100
"""Refusals that an answer lists."""

Signal = Literal["metric", "span", "log", "event"]

_ARRIVED: Final = "By the time of arrival. "
_EXAMPLE: Final[dict[str, Any]] = {"reason": "no_meter", "name": "llm.cost", "limit": 1000}


class QuarantineFilter(BaseModel):
    """Which items."""

    reason: str | None = Field(None, description="Only of this reason, such as `no_meter`.")
    tenant_id: str | None = Field(None, description="Only items that name this tenant.")
    signal: Signal | None = Field(None, description="Only of this signal.")
    name: str | None = Field(None, description="Only of this metric, span or log event.")
    from_: str | None = Field(None, alias="from", description=_ARRIVED + FROM_DOC)
    to: str | None = Field(None, description=_ARRIVED + TO_DOC)


class QuarantineParameters(QuarantineFilter):
    """Which items, and how many."""

    include_resolved: bool = Field(
        default=False, description="Also what was replayed or discarded."
    )
    limit: int = Field(100, ge=1, le=1000, description="Items on one page.")
    cursor: str | None = Field(None, description="`next_cursor` of the page before.")


class Resolution(BaseModel):
    """What became of an item."""

    resolution: Literal["replayed", "discarded"]
    resolved_at: str
    key_id: str = Field(description="Whose decision it was.")
    note: str


class QuarantinedItem(BaseModel):
    """Telemetry that was valid, and could not be billed."""

    event_id: str
    reason: str
    detail: str
    signal: Signal
    name: str = Field(description="Of the metric, span or log event.")
    tenant_id: str = Field(description="Whom it names; empty: nobody.")
    timestamp: str
    attributes: dict[str, str]
    service_name: str
    key_id: str = Field(description="The key it was sent with.")
    ingested_at: str
    resolution: Resolution | None = Field(description="null: it is open.")


class QuarantineAnswer(BaseModel):
    """A page of items, the latest arrival first."""

    data: list[QuarantinedItem]
    next_cursor: str | None = Field(
        description="Continues behind this page; null: it was the last."
    )


class QuarantineGroup(BaseModel):
    """Open items of one reason, signal and name."""

    reason: str
    signal: Signal
    name: str
    items: int
    first_at: str = Field(description="When the first arrived.")
    last_at: str = Field(description="When the last arrived.")


class QuarantineSummary(BaseModel):
    """The 1,000 largest groups, largest first."""

    data: list[QuarantineGroup]


class QuarantineSelection(QuarantineFilter, Closed):
    """Open items; several conditions: all of them."""

    model_config = ConfigDict(json_schema_extra={"example": _EXAMPLE})

    event_ids: list[UUID] = Field(
        default_factory=list,
        max_length=MAX_ITEMS,
        description="Only these. Without `from`, whenever they arrived.",
    )
    limit: int = Field(1000, ge=1, le=MAX_ITEMS, description="How many at most.")
    cursor: str | None = Field(None, description="`next_cursor` of the answer before.")
    dry_run: bool = Field(default=False, description="Say what would happen, and change nothing.")
    note: str = Field("", max_length=1000, description="For people; kept with the resolution.")


class ItemRefusal(BaseModel):
    """Why an item is still in quarantine."""

    event_id: str
    detail: str


class ReplayAnswer(BaseModel):
    """What became of the items; what counts now is durable. matched is the sum of the other numbers."""

    dry_run: bool = Field(description="Nothing has changed; what would be a duplicate is unknown.")
    matched: int
    replayed: int = Field(description="They count now.")
    duplicates: int = Field(description="They counted before; they are resolved, too.")
    still_quarantined: int = Field(description="Refused again.")
    ignored: int = Field(description="No meter asks for them any more; they stay.")
    unknown_key: int = Field(description="Whose tenants their key may write is unknown; they stay.")
    refusals: list[ItemRefusal] = Field(description=f"The first {MAX_REFUSALS} that stay, and why.")
    next_cursor: str | None = Field(description="There may be more items behind these.")


class DiscardAnswer(BaseModel):
    """What was set aside for good; it stays in the table of quarantine."""

    dry_run: bool
    discarded: int
    next_cursor: str | None = Field(description="There may be more items behind these.")
