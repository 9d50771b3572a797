"""Rows of an answer -> the data frame that a panel gets: tables as they are, time series made wide.

Rules: the plugin's converters (which type becomes what), and LongToWide of Grafana's plugin SDK.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Final, Literal
from uuid import UUID

FieldType = Literal["time", "number", "string", "boolean", "other"]

_WRAPPERS: Final = re.compile(r"^(?:Nullable|LowCardinality)\((.*)\)$")
_SIMPLE: Final = re.compile(r"^SimpleAggregateFunction\(\w+, (.*)\)$")


class FrameError(ValueError):
    """Grafana would show an error."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of an answer: its name and ClickHouse's type."""

    name: str
    type: str

    @property
    def field_type(self) -> FieldType:
        """What it becomes in a frame.

        Raises:
            FrameError: The plugin has no converter for it.
        """
        inner = self.type
        while match := _WRAPPERS.match(inner) or _SIMPLE.match(inner):
            inner = match[1]
        if re.match(r"^(U?Int\d+|Float\d+|Decimal.*|BFloat16)$", inner):
            return "number"
        if re.match(r"^(String|FixedString.*|Enum.*)$", inner):
            return "string"
        if re.match(r"^Date", inner):
            return "time"
        if re.match(r"^(Map|Array|Tuple|JSON|Variant|Dynamic|Nested)", inner):
            return "other"
        if inner == "Bool":
            return "boolean"
        raise FrameError(f"the plugin has no converter for {self.name} {self.type}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A column of a frame.

    Attributes:
        name: Of the column it is from.
        type: What its values are.
        labels: Which series it is.
        values: One for each row; None where there is none. Times are milliseconds since the epoch.
    """

    name: str
    type: FieldType
    labels: Mapping[str, str] = field(default_factory=dict)
    values: list[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What a panel gets from one query."""

    ref_id: str
    fields: Sequence[Field]

    def to_json(self) -> dict[str, Any]:
        """As Grafana's API answers it."""
        return {
            "schema": {
                "refId": self.ref_id,
                "fields": [
                    {
                        "name": one.name,
                        "type": one.type,
                        **({"labels": dict(one.labels)} if one.labels else {}),
                    }
                    for one in self.fields
                ],
            },
            "data": {"values": [one.values for one in self.fields]},
        }

    def rows(self) -> list[dict[str, Any]]:
        """A dictionary for each row; of a table, whose fields have no labels."""
        names = [one.name for one in self.fields]
        columns = [one.values for one in self.fields]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def table(columns: Sequence[Column], rows: Sequence[Sequence[Any]], ref_id: str = "A") -> Frame:
    """Rows as they are: format 1. Raises FrameError for a type without a converter."""
    return Frame(
        ref_id=ref_id,
        fields=[
            Field(
                name=column.name,
                type=column.field_type,
                values=[_value(row[index]) for row in rows],
            )
            for index, column in enumerate(columns)
        ],
    )


def series(
    columns: Sequence[Column], rows: Sequence[Sequence[Any]], ref_id: str = "A"
) -> Frame | None:
    """Rows as time series: format 0. No rows: no frame.

    Text and boolean columns are labels; each set of labels becomes a field for each number.

    Raises:
        FrameError: There is no time, or no number, or the times do not ascend.
    """
    if not rows:
        return None
    long = table(columns, rows, ref_id).fields
    times = [one for one in long if one.type == "time"]
    numbers = [one for one in long if one.type == "number"]
    labels = [one for one in long if one.type in ("string", "boolean")]
    if not times or not numbers:
        raise FrameError("a time series needs a time and a number")
    moments = times[0].values
    if any(one is None for one in moments):
        raise FrameError("a time is NULL")
    if any(after < before for before, after in itertools.pairwise(moments)):
        raise FrameError("times do not ascend: ORDER BY the time first")
    axis = sorted(set(moments))
    places = {moment: place for place, moment in enumerate(axis)}
    wide: dict[tuple[str, tuple[tuple[str, str], ...]], Field] = {}
    for row, moment in enumerate(moments):
        pairs = tuple((one.name, _text(one.values[row])) for one in labels)
        for number in numbers:
            if (key := (number.name, pairs)) not in wide:
                values: list[Any] = [None] * len(axis)
                wide[key] = Field(
                    name=number.name, type="number", labels=dict(pairs), values=values
                )
            wide[key].values[places[moment]] = number.values[row]
    time = Field(name=times[0].name, type="time", values=axis)
    return Frame(ref_id=ref_id, fields=[time, *wide.values()])


def duplicates(columns: Sequence[Column], rows: Sequence[Sequence[Any]]) -> int:
    """How many rows have time and labels of an earlier one: only the last of them would be shown."""
    keyed = [
        index
        for index, one in enumerate(columns)
        if one.field_type in ("time", "string", "boolean")
    ]
    return len(rows) - len({tuple(str(row[index]) for index in keyed) for row in rows})


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def _value(value: object) -> object:
    match value:
        case Decimal():
            return float(value)
        case datetime():
            moment = value if value.tzinfo else value.replace(tzinfo=UTC)
            return round(moment.timestamp() * 1000)
        case date():
            return round(
                datetime(value.year, value.month, value.day, tzinfo=UTC).timestamp() * 1000
            )
        case UUID():
            return str(value)
        case float() if value != value or value in (float("inf"), float("-inf")):  # NaN
            return None
        case _:
            return value
