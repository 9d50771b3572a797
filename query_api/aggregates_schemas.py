"""Shapes of requests about aggregates, and of their answers."""

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, Field

from otel_metering.contract.meter import Aggregation
from query_api.aggregates import Order
from query_api.queries import MAX_ROWS, ReadFrom
from query_api.schemas import FROM_DOC, TENANT_DOC, TO_DOC
from query_api.windows import WINDOW_PATTERN

MAX_TOP = 1_000
"""Groups of `top`."""


class Format(StrEnum):
    """How an answer is written."""

    JSON = "json"
    CSV = "csv"
    NDJSON = "ndjson"
    ARROW = "arrow"


class AggregatesParameters(BaseModel):
    """Which meter, aggregated how."""

    meter: str = Field(description="The meter's slug.")
    tenant_id: str | None = Field(None, description=TENANT_DOC)
    from_: str | None = Field(
        None, alias="from", description=f"{FROM_DOC} A date is midnight in `timezone`."
    )
    to: str | None = Field(None, description=f"{TO_DOC} A date is midnight in `timezone`.")
    window: str = Field(
        "total",
        description="minute, 15m, hour, day, week (from Monday), month, one total of the range, or "
        "last_<n>_<minutes|hours|days|weeks|months>: one total of that time up to `to`, without `from`.",
        json_schema_extra={"pattern": WINDOW_PATTERN},
    )
    timezone: str = Field(
        "UTC",
        description="IANA zone whose clock and calendar windows follow. A day begins when its date is "
        "first shown; the hour that a clock shows twice is two windows.",
    )
    group_by: list[str] = Field(
        default_factory=list,
        max_length=16,
        description="`tenant_id`, or a dimension of the meter; may be repeated.",
    )
    aggregation: Aggregation | None = Field(
        None, description="Default: the aggregation of the meter's definition."
    )
    fill: Literal["zero"] | None = Field(
        None,
        description="Also windows without usage, for each group that occurs: 0 of a sum or count, null of "
        "what nothing has not (min, max, avg, latest, percentiles).",
    )
    order: Order = Field(
        Order.WINDOW_START, description="Ties are sorted by window, then by groups."
    )
    top: int | None = Field(
        None,
        ge=1,
        le=MAX_TOP,
        description="Only the groups with the largest values over the whole range; ties by their names.",
    )
    compare: Literal["previous"] | None = Field(
        None,
        description="Adds `previous_value`: the value of the same group in the window at the same place of "
        "the range of the same length just before (of as many months, or days, if the range is whole ones).",
    )
    source: ReadFrom = Field(
        ReadFrom.AUTO, description="`events`: use no rollup; the same answer, slower."
    )
    format: Format | None = Field(None, description="Default: by the header Accept, else json.")
    limit: int | None = Field(
        None,
        ge=1,
        le=MAX_ROWS,
        description="Rows on one page. Default: 1000 of json; everything of the others, which tell "
        "the next cursor in the header X-Next-Cursor.",
    )
    cursor: str | None = Field(
        None, description="`next_cursor` of the page before, with the same other parameters."
    )


class Aggregate(BaseModel):
    """One window of one group."""

    window_start: str = Field(description="Inclusive; never before `from`.")
    window_end: str = Field(description="Exclusive; never after `to`.")
    tenant_id: str | None = Field(None, description="If grouped by, or asked for.")
    dimensions: dict[str, str] = Field(description="Empty text: the event had no such attribute.")
    value: str | None = Field(
        description="Exact decimals. avg is rounded half to even to nine places; percentiles are "
        "estimates with the precision of a 32-bit float."
    )
    previous_value: str | None = Field(None, description="Only with `compare`.")


class PreviousRange(BaseModel):
    """What was compared with."""

    from_: str = Field(alias="from")
    to: str


class AggregatesAnswer(BaseModel):
    """A window without events is absent, unless it is filled."""

    meter: str
    aggregation: Aggregation
    unit: str
    window: str
    timezone: str
    table: str = Field(
        description="The coarsest table that was read; ragged edges of the range come from finer ones."
    )
    previous: PreviousRange | None = Field(None, description="Only with `compare`.")
    data: list[Aggregate]
    next_cursor: str | None = Field(
        description="Continues behind this page; null: it was the last."
    )
