"""What is asked about usage, and how its answer is put together from what statements return.

Nothing here reads: a question is a `Work`, which yields statements, is sent their rows, and returns its
answer. `finish` does one against a store; a route does one with limits, and no longer than its client waits.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_EVEN, Context, Decimal
from enum import StrEnum
from typing import Any, Final, TypeVar

import numpy as np

from otel_metering.contract.meter import Aggregation
from otel_metering.errors import InvalidUsageError
from query_api.periods import Grain, Range
from query_api.plan import Cells, Read, plan
from query_api.problems import TooLargeError
from query_api.queries import (
    MAX_ROWS,
    AggregateRequest,
    Part,
    Statement,
    aggregate,
    corrected,
    table_of,
)
from query_api.windows import Window, Windows, cut

_T = TypeVar("_T")

Rows = Sequence[Sequence[Any]]
Work = Generator[Statement, Rows, _T]

MAX_DIRTY: Final = 2_000
"""Times with corrections that are told apart: were there more, coarser ones are."""

_ADDITIVE: Final = frozenset({Aggregation.SUM, Aggregation.COUNT, Aggregation.UNIQUE_COUNT})
"""Of nothing, these are 0; there is no minimum of nothing."""

_NANO: Final = Decimal("1e-9")


class Order(StrEnum):
    """How an answer is sorted; what is equal then, by window and groups."""

    WINDOW_START = "window_start"
    VALUE = "value"
    LARGEST = "-value"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One window of one group.

    Attributes:
        window: Index of it.
        groups: In the order of `group_by`.
        value: None: there is none, which only a filled window, or an average of nothing, can have.
        previous: The same of the previous range; None: there is none.
    """

    window: int
    groups: tuple[str, ...]
    value: Decimal | None
    previous: Decimal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request, and what is made of its rows.

    Attributes:
        request: What is aggregated.
        previous: A range to compare with; None: nothing.
        order: How rows are sorted.
        top: Only so many groups, those with the largest value over the range; None: all.
        is_filled: Whether each group that occurs has each window. Without groups there is always one.
    """

    request: AggregateRequest
    previous: Range | None = None
    order: Order = Order.WINDOW_START
    top: int | None = None
    is_filled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A part of an answer.

    Attributes:
        windows: All of the range.
        table: The coarsest table that was read.
        rows: In the order that was asked for.
        has_more: Whether rows follow.
    """

    windows: Windows
    table: str
    rows: Sequence[Row]
    has_more: bool


def finish(work: Work[_T], query: Callable[[Statement], Rows]) -> _T:
    """Do a work, and return its answer."""
    try:
        statement = next(work)
        while True:
            statement = work.send(query(statement))
    except StopIteration as stop:
        answer: _T = stop.value
        return answer


def usage(request: AggregateRequest) -> Work[Page]:
    """Every row of a request, by window and groups; a window without events has none.

    Raises:
        TooLargeError: There are more than `MAX_ROWS`.
    """
    found = yield from page(Question(request=request), limit=MAX_ROWS)
    if found.has_more:
        raise _too_many()
    return found


def page(question: Question, *, limit: int, after: Row | None = None) -> Work[Page]:
    """Rows of an answer.

    Args:
        question: What is asked.
        limit: How many rows.
        after: The row before the first; its `previous` does not matter. None: from the beginning.

    Raises:
        TooLargeError: More than `MAX_ROWS` would have to be sorted, filled, or compared with.
        InvalidUsageError: The range has too many windows.
    """
    request = question.request
    windows = cut(request.range, request.window, request.zone)
    if after is not None and after.window >= len(windows):
        raise InvalidUsageError("the cursor is behind the end of the range; start without a cursor")
    # Of one window, the groups with the largest values are the answer already.
    is_ranked = question.top is not None and request.window is Window.TOTAL
    is_paged = question.order is Order.WINDOW_START and not question.is_filled and not is_ranked
    table, groups = "", None
    rows: list[Row] = []
    if question.top is not None:
        table, rows = yield from _top(question, question.top)
        groups = [row.groups for row in rows]
    if not is_ranked:
        first = after.window if is_paged and after else 0
        part = Part(
            limit=limit + 1 if is_paged else MAX_ROWS + 1,
            after=(int(windows.starts[first]), after.groups) if is_paged and after else None,
            groups=groups,
        )
        within = windows.span(first, len(windows))
        table, rows = yield from _read(request, windows, within, part)
    if not is_paged:
        rows = _arranged(question, rows, len(windows), after)
    shown = rows[:limit]
    if question.previous and shown:
        shown = yield from _compared(question, question.previous, groups, shown)
    return Page(windows=windows, table=table, rows=shown, has_more=len(rows) > len(shown))


def mean(total: Decimal, count: int) -> Decimal:
    """`total / count`, rounded half to even at nine decimal places."""
    # Twice as many digits as a sum may have: the second rounding then cannot change the result.
    context = Context(prec=80, rounding=ROUND_HALF_EVEN)
    return context.divide(total, Decimal(count)).quantize(_NANO, context=context)


def _read(
    request: AggregateRequest, windows: Windows, within: Range, part: Part
) -> Work[tuple[str, list[Row]]]:
    """Rows of the windows that `within` has, and the coarsest table they were read from."""
    request = replace(request, range=within)
    reads, has_corrections = yield from _planned(request, windows)
    found = yield aggregate(request, windows, reads, part, has_corrections=has_corrections)
    starts = np.array([row[0] for row in found], dtype=np.int64)
    indexes = np.searchsorted(windows.starts, starts).tolist()
    width = len(request.group_by)
    rows = [
        Row(
            window=index,
            groups=tuple(row[1 : 1 + width]),
            value=_value(request.aggregation, row[1 + width :]),
        )
        for index, row in zip(indexes, found, strict=True)
    ]
    return table_of(reads), rows


def _planned(request: AggregateRequest, windows: Windows) -> Work[tuple[Sequence[Read], bool]]:
    dirty = None
    for grain in (Grain.MINUTE, Grain.HOUR, Grain.DAY, Grain.MONTH):
        rows = yield corrected(request, grain, limit=MAX_DIRTY + 1)
        dirty = Cells(grain, np.array([row[0] for row in rows], dtype=np.int64))
        # Whoever reads events alone need not know when.
        if len(rows) <= MAX_DIRTY or request.reads_events_only:
            break
    has_corrections = dirty is not None and len(dirty.starts) > 0
    coarsest = Grain.EVENT if request.reads_events_only else Grain.MONTH
    reads = plan(
        request.range,
        windows.starts[1:],
        dirty if has_corrections else None,
        coarsest=coarsest,
    )
    return reads, has_corrections


def _top(question: Question, top: int) -> Work[tuple[str, list[Row]]]:
    """The totals of the groups that have the largest, and the coarsest table they were read from."""
    request = replace(question.request, window=Window.TOTAL)
    windows = cut(request.range, request.window, request.zone)
    # The quotient of an average is rounded here, and only then compared.
    limit = MAX_ROWS + 1 if request.aggregation is Aggregation.AVG else top
    table, rows = yield from _read(
        request, windows, windows.range, Part(limit=limit, is_ranked=True)
    )
    if len(rows) > MAX_ROWS:
        raise _too_many()
    return table, _sorted(rows, Order.LARGEST)[:top]


def _compared(
    question: Question,
    previous: Range,
    groups: Sequence[tuple[str, ...]] | None,
    rows: Sequence[Row],
) -> Work[list[Row]]:
    """Rows with the values of the windows that have their place in the previous range."""
    request = replace(question.request, range=previous)
    windows = cut(previous, request.window, request.zone)
    indexes = [row.window for row in rows]
    first, end = min(indexes), min(max(indexes) + 1, len(windows))
    before: Mapping[tuple[int, tuple[str, ...]], Decimal | None] = {}
    if first < end:
        part = Part(limit=MAX_ROWS + 1, groups=groups)
        _, found = yield from _read(request, windows, windows.span(first, end), part)
        if len(found) > MAX_ROWS:
            raise _too_many()
        before = {(row.window, row.groups): row.value for row in found}
    nothing = _nothing(question) if question.is_filled else None
    return [
        replace(
            row,
            previous=before.get(
                (row.window, row.groups), nothing if row.window < len(windows) else None
            ),
        )
        for row in rows
    ]


def _arranged(question: Question, rows: list[Row], windows: int, after: Row | None) -> list[Row]:
    """All rows of an answer, filled and sorted, from behind `after` on."""
    if len(rows) > MAX_ROWS:
        raise _too_many()
    return _behind(_sorted(_filled(question, rows, windows), question.order), question.order, after)


def _filled(question: Question, rows: list[Row], windows: int) -> list[Row]:
    if not question.is_filled:
        return rows
    groups = dict.fromkeys(row.groups for row in rows) if question.request.group_by else {(): None}
    if len(groups) * windows > MAX_ROWS:
        raise _too_many()
    found = {(row.window, row.groups): row for row in rows}
    nothing = _nothing(question)
    return [
        found.get((i, names)) or Row(window=i, groups=names, value=nothing)
        for i in range(windows)
        for names in groups
    ]


def _nothing(question: Question) -> Decimal | None:
    return Decimal(0) if question.request.aggregation in _ADDITIVE else None


def _sorted(rows: Iterable[Row], order: Order) -> list[Row]:
    """Exactly, by all digits; what has no value is last."""
    return sorted(rows, key=lambda row: _place(row, order))


def _place(row: Row, order: Order) -> tuple[Any, ...]:
    by_window = (row.window, row.groups)
    if order is Order.WINDOW_START:
        return by_window
    value = row.value or Decimal(0)
    # `copy_negate`: a unary minus would round to the 28 digits of the default context.
    ranked = value if order is Order.VALUE else value.copy_negate()
    return (row.value is None, ranked, *by_window)


def _behind(rows: Sequence[Row], order: Order, after: Row | None) -> list[Row]:
    if after is None:
        return list(rows)
    place = _place(after, order)
    return [row for row in rows if _place(row, order) > place]


def _value(aggregation: Aggregation, values: Sequence[Any]) -> Decimal | None:
    if aggregation is Aggregation.AVG:
        return mean(Decimal(values[0]), int(values[1])) if int(values[1]) else None
    value = Decimal(values[0])
    return value if value.is_finite() else None


def _too_many() -> TooLargeError:
    return TooLargeError(
        f"the answer has over {MAX_ROWS} rows, which is the limit of what is sorted, filled or sent at "
        "once; shorten the range, widen the window, group by less, or filter"
    )
