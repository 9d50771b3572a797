"""Shapes of requests and answers about stored events: listed, exported, voided, corrected."""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from query_api.event_queries import Shape
from query_api.schemas import FROM_DOC, TENANT_DOC, TO_DOC, Closed
from receiver.store.corrections import MAX_REASON_LENGTH, Action

_MADE: Final = "By when they were made. "
_VOID: Final[dict[str, Any]] = {"reason": "sent by a test", "tenant_id": "tenant_a"}
_CORRECT: Final[dict[str, Any]] = {
    "reason": "metered in MB, not MiB",
    "quantity": "0.953",
    "attributes": {"region": "eu", "plan": None},
}

EventId = Annotated[str, Field(min_length=1, max_length=256)]


class EventSelection(BaseModel):
    """Which events."""

    tenant_id: str | None = Field(None, description=TENANT_DOC)
    meter: str | None = Field(None, description="Only this meter.")
    from_: str | None = Field(None, alias="from", description=FROM_DOC)
    to: str | None = Field(None, description=TO_DOC)
    event_id: str | None = Field(None, description="The sender's event id, or the stored UUID.")


class EventsParameters(EventSelection):
    """Which events, and how they are written."""

    limit: int = Field(100, ge=1, le=1000, description="Events on one page.")
    cursor: str | None = Field(None, description="`next_cursor` of the page before.")
    format: Shape = Field(
        Shape.JSON,
        description="`csv` and `ndjson` have the next cursor in the header `X-Next-Cursor`.",
    )


class ExportParameters(EventSelection):
    """Which events, and how they are written."""

    format: Literal[Shape.CSV, Shape.NDJSON] = Field(Shape.NDJSON, description="One event a line.")


class OneEventParameters(BaseModel):
    """Whose event it is: needed where several have the same id."""

    tenant_id: str | None = Field(None, description=TENANT_DOC)
    meter: str | None = Field(None, description="Its meter.")


class EventCorrection(BaseModel):
    """Why an event does not count any more."""

    action: Action
    reason: str
    corrected_at: str
    key_id: str = Field(description="Whose decision it was.")
    replaced_by: str | None = Field(description="UUID of the event that counts instead.")


class StoredEvent(BaseModel):
    """An event as it was admitted, and what became of it."""

    event_id: str = Field(description="The sender's id if it gave one, else the stored UUID.")
    uuid: str = Field(description="The stored UUID: what counts instead of an event has its own.")
    tenant_id: str
    meter: str
    quantity: str
    timestamp: str
    start_time: str | None = Field(description="Start of the interval that was measured, if any.")
    attributes: dict[str, str]
    dimensions: dict[str, str]
    service_name: str
    signal: str = Field(description="metric, span, log or event.")
    trace_id: str | None
    span_id: str | None
    ingested_at: str
    status: Literal["counted", "voided", "corrected"]
    correction: EventCorrection | None = Field(description="null: it counts.")


class EventsAnswer(BaseModel):
    """A page of events, newest first."""

    data: list[StoredEvent]
    next_cursor: str | None = Field(
        description="Continues behind this page; null: it was the last."
    )


class Void(Closed):
    """An event that shall not count any more."""

    model_config = ConfigDict(json_schema_extra={"example": _VOID})

    reason: str = Field(min_length=1, max_length=MAX_REASON_LENGTH, description="For people.")
    tenant_id: str | None = Field(None, description="Whose event it is, if that is not clear.")
    meter: str | None = Field(None, description="Its meter, if that is not clear.")


class Correct(Void):
    """What shall count instead of an event: at least one of quantity, timestamp and attributes."""

    model_config = ConfigDict(json_schema_extra={"example": _CORRECT})

    quantity: StrictStr | StrictInt | StrictFloat | None = Field(
        None, description="At most nine decimal places; as a string it is exact at any length."
    )
    timestamp: str | None = Field(None, description="RFC 3339, up to nanoseconds.")
    attributes: dict[str, StrictStr | StrictBool | StrictInt | StrictFloat | None] | None = Field(
        None, description="Those that change: null removes one, and those not named stay."
    )


class CorrectionAnswer(BaseModel):
    """A correction; it is durable."""

    event_id: str = Field(description="The sender's id if it gave one, else the stored UUID.")
    uuid: str = Field(description="The stored UUID of the event that does not count any more.")
    action: Action
    reason: str
    corrected_at: str
    key_id: str
    replaced_by: str | None = Field(description="UUID of the event that counts instead.")


class CorrectionsParameters(BaseModel):
    """Which corrections."""

    tenant_id: str | None = Field(None, description=TENANT_DOC)
    meter: str | None = Field(None, description="Only of this meter.")
    from_: str | None = Field(None, alias="from", description=_MADE + FROM_DOC)
    to: str | None = Field(None, description=_MADE + TO_DOC)
    limit: int = Field(100, ge=1, le=1000, description="Corrections on one page.")
    cursor: str | None = Field(None, description="`next_cursor` of the page before.")


class ListedCorrection(BaseModel):
    """A correction that was made."""

    uuid: str = Field(description="The stored UUID of the event that does not count any more.")
    tenant_id: str
    meter: str
    action: Action
    reason: str
    corrected_at: str
    key_id: str
    replaced_by: str | None = Field(description="UUID of the event that counts instead.")


class CorrectionsAnswer(BaseModel):
    """A page of corrections, the latest first."""

    data: list[ListedCorrection]
    next_cursor: str | None = Field(
        description="Continues behind this page; null: it was the last."
    )
