"""How rows of aggregates are written: JSON, CSV, lines of JSON, Arrow."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any, Final

import pyarrow as pa

from otel_metering.contract.meter import Aggregation
from query_api.aggregates import Page, Row
from query_api.aggregates_schemas import Format
from query_api.periods import format_instant
from query_api.queries import TENANT, AggregateRequest
from query_api.schemas import decimal_text

MEDIA_TYPES: Final = {
    Format.JSON: "application/json",
    Format.CSV: "text/csv",
    Format.NDJSON: "application/x-ndjson",
    Format.ARROW: "application/vnd.apache.arrow.stream",
}

_ESTIMATES: Final = frozenset({Aggregation.P50, Aggregation.P90, Aggregation.P95, Aggregation.P99})
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")
"""OWASP, "CSV Injection": a spreadsheet takes a cell that begins so for a formula."""


def negotiated(asked: Format | None, accept: str) -> Format:
    """The format that was asked for, else the one that the header Accept likes best, else JSON."""
    if asked is not None:
        return asked
    by_type = {media_type: name for name, media_type in MEDIA_TYPES.items()}
    likes = []
    for i, item in enumerate(accept.split(",")):
        media_type, *parameters = (part.strip().lower() for part in item.split(";"))
        if media_type in by_type:
            likes.append((-_quality(parameters), i, by_type[media_type]))
    best = min(likes, default=(0.0, 0, Format.JSON))
    return best[2] if best[0] < 0 else Format.JSON


@dataclass(frozen=True, kw_only=True)
class Table:
    """A page, and what its columns are.

    Attributes:
        request: What was asked.
        page: The rows.
        is_compared: Whether rows have a previous value.
    """

    request: AggregateRequest
    page: Page
    is_compared: bool

    @cached_property
    def _windows(self) -> dict[int, tuple[str, str]]:
        spans = {i: self.page.windows.at(i) for i in {row.window for row in self.page.rows}}
        return {
            i: (format_instant(span.start_ns), format_instant(span.end_ns))
            for i, span in spans.items()
        }

    def objects(self) -> Iterable[dict[str, object]]:
        """Each row as JSON has it."""
        for row in self.page.rows:
            groups = dict(zip(self.request.group_by, row.groups, strict=True))
            tenant_id = groups.pop(TENANT, self.request.tenant_id)
            start, end = self._windows[row.window]
            found: dict[str, object] = {"window_start": start, "window_end": end}
            if tenant_id is not None:
                found["tenant_id"] = tenant_id
            found |= {"dimensions": groups, "value": _text(row.value)}
            if self.is_compared:
                found["previous_value"] = _text(row.previous)
            yield found

    def lines(self) -> bytes:
        """Each row as a line of JSON."""
        return b"".join(_json(item) + b"\n" for item in self.objects())

    def csv(self) -> bytes:
        """A header, and each row; text that a spreadsheet takes for a formula has an apostrophe before it."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\r\n")
        writer.writerow([_cell(name) for name in self._columns])
        for row in self.page.rows:
            numbers = [row.value, row.previous] if self.is_compared else [row.value]
            writer.writerow(
                [
                    *self._windows[row.window],
                    *(_cell(text) for text in self._texts(row)),
                    *(_text(number) for number in numbers),
                ]
            )
        return out.getvalue().encode()

    def arrow(self) -> bytes:
        """An IPC stream; values are decimals, those of percentiles text."""
        spans = [self.page.windows.at(row.window) for row in self.page.rows]
        texts = [self._texts(row) for row in self.page.rows]
        instants = pa.timestamp("ns", "UTC")
        columns = [
            pa.array([span.start_ns for span in spans], instants),
            pa.array([span.end_ns for span in spans], instants),
            *(
                pa.array([text[i] for text in texts], pa.string())
                for i in range(len(self._text_columns))
            ),
            self._numbers([row.value for row in self.page.rows]),
        ]
        if self.is_compared:
            columns.append(self._numbers([row.previous for row in self.page.rows]))
        table = pa.table(columns, names=list(self._columns))
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return sink.getvalue()

    @cached_property
    def _text_columns(self) -> Sequence[tuple[str, int | None]]:
        """Names, and which group each is; None: the tenant that was asked for."""
        places = {name: i for i, name in enumerate(self.request.group_by)}
        found: list[tuple[str, int | None]] = []
        if TENANT in places or self.request.tenant_id is not None:
            found.append((TENANT, places.pop(TENANT, None)))
        return [*found, *((f"dimensions.{name}", i) for name, i in places.items())]

    @cached_property
    def _columns(self) -> Sequence[str]:
        names = ["window_start", "window_end", *(name for name, _ in self._text_columns), "value"]
        return [*names, "previous_value"] if self.is_compared else names

    def _texts(self, row: Row) -> list[str]:
        return [
            (self.request.tenant_id or "") if i is None else row.groups[i]
            for _, i in self._text_columns
        ]

    def _numbers(self, values: Sequence[Decimal | None]) -> pa.Array:
        if self.request.aggregation in _ESTIMATES:
            return pa.array([_text(value) for value in values], pa.string())
        return pa.array(values, pa.decimal128(38, 9))


def json_body(document: object) -> bytes:
    """A whole answer in JSON."""
    return _json(document)


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _text(value: Decimal | None) -> str | None:
    return None if value is None else decimal_text(value)


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def _quality(parameters: Sequence[Any]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter[2:])
            except ValueError:
                return 0.0
    return 1.0
