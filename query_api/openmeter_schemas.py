"""Shapes of the surface that is compatible with OpenMeter, and of CloudEvents.

Names are those of its API; what it calls a subject is a tenant here.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from query_api.schemas import Closed

_PATH: Final = "JSONPath in `data`: `$.tokens`, `$.a.b`, `$['x.y']`, `$.list[0]`."

MAX_SUBJECTS: Final = 100
"""Subjects that one query may name."""

MAX_PAGE: Final = 1_000


class CloudEvent(BaseModel):
    """CloudEvents 1.0, JSON format."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "specversion": "1.0",
                "id": "5c10fade-1c9e-4d6c-8275-c52c36731d3c",
                "source": "billing-service",
                "type": "api.calls",
                "subject": "tenant_a",
                "time": "2026-03-01T12:00:00Z",
                "data": {"quantity": 3, "region": "eu"},
            }
        }
    )

    id: str = Field(description="With `source`: what counts once.")
    source: str
    specversion: Literal["1.0"]
    type: str = Field(description="Feeds the meters of this event type.")
    subject: str | None = Field(
        None, description="The tenant; a key bound to one may leave it out."
    )
    time: str | None = Field(None, description="RFC 3339. Default: on arrival.")
    datacontenttype: str | None = Field(None, description="application/json.")
    dataschema: str | None = None
    data: dict[str, Any] | None = None


def _content(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"schema": dict(schema)}


_ONE: Final = CloudEvent.model_json_schema()
_MANY: Final = {
    "type": "array",
    "maxItems": 10_000,
    "items": _ONE,
    "example": [_ONE["example"]],
}

CLOUDEVENTS_CONTENT: Final[dict[str, Any]] = {
    "application/cloudevents+json": _content(_ONE),
    "application/cloudevents-batch+json": _content(_MANY),
}
"""OpenAPI: request bodies of CloudEvents."""

EITHER_CONTENT: Final[dict[str, Any]] = {
    **CLOUDEVENTS_CONTENT,
    "application/json": _content({"oneOf": [_ONE, _MANY], "example": _ONE["example"]}),
}


class MeterAggregation(StrEnum):
    """How a meter that is made here may be aggregated."""

    SUM = "SUM"
    COUNT = "COUNT"
    UNIQUE_COUNT = "UNIQUE_COUNT"
    AVG = "AVG"
    MIN = "MIN"
    MAX = "MAX"
    LATEST = "LATEST"


class WindowSize(StrEnum):
    """How a range is cut up."""

    MINUTE = "MINUTE"
    HOUR = "HOUR"
    DAY = "DAY"
    MONTH = "MONTH"


Texts = Annotated[dict[str, str], Field(max_length=64)]


class MeterUpdate(Closed):
    """What of a meter may be changed; a field that is left out stays."""

    model_config = ConfigDict(
        populate_by_name=True,
        json_schema_extra={"example": {"name": "Tokens", "groupBy": {"model": "$.model"}}},
    )

    name: str | None = Field(None, max_length=256, description="For people.")
    description: str | None = Field(None, max_length=1_024, description="For people.")
    metadata: Texts | None = Field(None, description="Kept as it is.")
    group_by: Texts | None = Field(
        None, alias="groupBy", description=f"Dimension to {_PATH} Events from now on have it."
    )


class MeterCreate(MeterUpdate):
    """A meter to make."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "slug": "tokens_total",
                "eventType": "prompt",
                "aggregation": "SUM",
                "valueProperty": "$.tokens",
                "groupBy": {"model": "$.model"},
            }
        }
    )

    slug: str = Field(description="1 to 128 characters of `A-Za-z0-9_.:@/-`.")
    aggregation: MeterAggregation
    event_type: str = Field(
        alias="eventType", min_length=1, max_length=256, description="`type` of its CloudEvents."
    )
    event_from: AwareDatetime | None = Field(
        None, alias="eventFrom", description="Events before this do not count."
    )
    value_property: str | None = Field(
        None, alias="valueProperty", description=f"{_PATH} For all aggregations but COUNT."
    )


class OpenMeterMeter(BaseModel):
    """A meter: made here, or defined in meters.yaml."""

    model_config = ConfigDict(populate_by_name=True)

    id: str = Field(description="Made from the slug.")
    slug: str
    name: str | None
    description: str | None
    aggregation: str = Field(description="One of the above; P50, P90, P95 or P99 in meters.yaml.")
    event_type: str = Field(alias="eventType")
    event_from: str | None = Field(alias="eventFrom")
    value_property: str | None = Field(alias="valueProperty")
    group_by: dict[str, str] = Field(alias="groupBy")
    metadata: dict[str, str]
    created_at: str = Field(
        alias="createdAt", description="1970-01-01T00:00:00Z for those of meters.yaml."
    )
    updated_at: str = Field(alias="updatedAt")
    deleted_at: str | None = Field(alias="deletedAt")


class MetersParameters(BaseModel):
    """Which page."""

    model_config = ConfigDict(populate_by_name=True)

    page: int = Field(1, ge=1, le=1_000_000)
    page_size: int = Field(100, ge=1, le=MAX_PAGE, alias="pageSize")
    order: Literal["ASC", "DESC"] = "ASC"
    order_by: Literal["key", "name", "aggregation", "createdAt", "updatedAt"] = Field(
        "createdAt", alias="orderBy"
    )
    include_deleted: bool = Field(default=False, alias="includeDeleted")


class RangeParameters(BaseModel):
    """Which range."""

    from_: str | None = Field(
        None, alias="from", description="Inclusive. Default: the first month with usage."
    )
    to: str | None = Field(None, description="Exclusive. Default: the end of this minute.")


class QueryParameters(RangeParameters):
    """Which usage, beside `filterGroupBy`."""

    model_config = ConfigDict(populate_by_name=True)

    client_id: str | None = Field(None, alias="clientId", description="Taken, and not used.")
    window_size: WindowSize | None = Field(
        None, alias="windowSize", description="Default: one window, the range."
    )
    window_time_zone: str = Field(
        "UTC", alias="windowTimeZone", max_length=64, description="IANA time zone."
    )
    subject: list[str] = Field(
        default_factory=list,
        max_length=MAX_SUBJECTS,
        description="Only these subjects (tenants); each is a group then.",
    )
    group_by: list[str] = Field(
        default_factory=list,
        alias="groupBy",
        max_length=16,
        description="`subject`, or a dimension of the meter.",
    )
    filter_customer_id: list[str] = Field(
        default_factory=list, alias="filterCustomerId", description="There are none; use subject."
    )
    advanced_filters: str | None = Field(
        None,
        alias="advancedMeterGroupByFilters",
        max_length=8_192,
        description='JSON: `{"dimension": {"$eq": "value"}}` or `{"$in": [...]}`.',
    )


class AdvancedFilter(Closed):
    """A condition on a dimension: one of them."""

    eq: str | None = Field(None, alias="$eq")
    in_: list[str] | None = Field(None, alias="$in", max_length=1_000)


class QueryRequest(Closed):
    """Which usage, as a body."""

    model_config = ConfigDict(
        populate_by_name=True,
        json_schema_extra={
            "example": {
                "from": "2026-03-01T00:00:00Z",
                "to": "2026-04-01T00:00:00Z",
                "windowSize": "DAY",
                "subject": ["tenant_a"],
                "filterGroupBy": {"model": ["m1", "m2"]},
                "groupBy": ["model"],
            }
        },
    )

    client_id: str | None = Field(None, alias="clientId")
    from_: str | None = Field(None, alias="from")
    to: str | None = None
    window_size: WindowSize | None = Field(None, alias="windowSize")
    window_time_zone: str | None = Field(None, alias="windowTimeZone", max_length=64)
    subject: list[str] | None = Field(None, max_length=MAX_SUBJECTS)
    filter_customer_id: list[str] | None = Field(None, alias="filterCustomerId")
    filter_group_by: Annotated[dict[str, list[str]], Field(max_length=16)] | None = Field(
        None, alias="filterGroupBy"
    )
    advanced_filters: Annotated[dict[str, AdvancedFilter], Field(max_length=16)] | None = Field(
        None, alias="advancedMeterGroupByFilters"
    )
    group_by: list[str] | None = Field(None, alias="groupBy", max_length=16)


class QueryRow(BaseModel):
    """One window of one group."""

    model_config = ConfigDict(populate_by_name=True)

    value: float
    window_start: str = Field(alias="windowStart", description="Never before `from`.")
    window_end: str = Field(alias="windowEnd", description="Never after `to`.")
    subject: str | None = Field(description="If grouped by, or named.")
    group_by: dict[str, str] = Field(alias="groupBy")


class QueryAnswer(BaseModel):
    """Sorted by window, then by groups. A window without events is absent."""

    model_config = ConfigDict(populate_by_name=True)

    from_: str | None = Field(alias="from", description="As it was given.")
    to: str | None
    window_size: WindowSize | None = Field(alias="windowSize")
    data: list[QueryRow]


class EventsParameters(BaseModel):
    """Which events."""

    model_config = ConfigDict(populate_by_name=True)

    client_id: str | None = Field(None, alias="clientId", description="Taken, and not used.")
    ingested_at_from: str | None = Field(None, alias="ingestedAtFrom", description="Inclusive.")
    ingested_at_to: str | None = Field(None, alias="ingestedAtTo", description="Inclusive.")
    id: str | None = Field(None, max_length=256, description="A part of the id is enough.")
    subject: str | None = Field(
        None, max_length=128, description="A part of the subject (tenant) is enough."
    )
    customer_id: list[str] = Field(
        default_factory=list, alias="customerId", description="There are none; use subject."
    )
    from_: str | None = Field(None, alias="from", description="Inclusive. Default: 72 hours ago.")
    to: str | None = Field(None, description="Inclusive. Default: the end.")
    limit: int = Field(100, ge=1, le=100)


class ListedEvent(BaseModel):
    """An event; `data` has what meters took of it."""

    id: str
    source: str
    specversion: Literal["1.0"]
    type: str
    subject: str
    time: str
    data: dict[str, Any]


class IngestedEvent(BaseModel):
    """An event that was stored."""

    model_config = ConfigDict(populate_by_name=True)

    event: ListedEvent
    ingested_at: str = Field(alias="ingestedAt")
    stored_at: str = Field(alias="storedAt")


class Subject(BaseModel):
    """A tenant that has usage."""

    model_config = ConfigDict(populate_by_name=True)

    id: str
    key: str
    created_at: str = Field(alias="createdAt", description="Start of the first month with usage.")
    updated_at: str = Field(alias="updatedAt", description="Start of the last month with usage.")


class EntitlementValue(BaseModel):
    """Where a subject stands in its quota of a meter."""

    model_config = ConfigDict(populate_by_name=True)

    has_access: bool = Field(alias="hasAccess")
    balance: float = Field(description="What is left; never negative.")
    usage: float
    overage: float = Field(description="Usage beyond the limit.")
    total_available_grant_amount: float = Field(
        alias="totalAvailableGrantAmount", description="The limit."
    )
