"""One meter in detail: rows as a table, CSV or JSON, or a chart."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, tzinfo
from decimal import Decimal, localcontext
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from rich.console import Console
from rich.table import Table
from rich.text import Text

from otel_metering.cli.chart import Style, bars, columns, merged, scale_of
from otel_metering.cli.output import (
    Format,
    fields,
    number,
    print_csv,
    print_json,
    print_table,
    shown,
)
from otel_metering.client import Usage, UsageRow

MAX_PANELS: Final = 8
"""Charts below each other; more are not compared, but scrolled."""

_LABELS: Final[Mapping[str, str]] = {
    "day": "%Y-%m-%d",
    "week": "%Y-%m-%d",
    "month": "%Y-%m",
}
_FINER_LABEL: Final = "%Y-%m-%d %H:%M"


def print_rows(usage: Usage, output: Format, *, has_previous: bool) -> None:
    """Print every row."""
    if output is Format.JSON:
        print_json(fields(usage))
        return
    dimensions = sorted({name for row in usage for name in row.dimensions})
    has_tenant = any(row.tenant_id is not None for row in usage)
    if output is Format.CSV:
        _print_csv(usage, dimensions, has_tenant=has_tenant, has_previous=has_previous)
    elif not usage.rows:
        print("no usage in this range")
    else:
        print_table(_table(usage, dimensions, has_tenant=has_tenant, has_previous=has_previous))


def print_plot(usage: Usage) -> None:
    """Draw it, as wide as the terminal."""
    if not usage.rows:
        print("no usage in this range")
        return
    encoding = sys.stdout.encoding or "ascii"
    style = Style(width=shutil.get_terminal_size().columns, is_ascii=not _can_draw(encoding))
    console = Console(soft_wrap=True, highlight=False)
    console.print(Text(_title(usage), style="bold"))
    groups = _groups(usage.rows)
    if all(len(rows) == 1 for rows in groups.values()):
        lines = bars([(name or usage.meter, rows[0].value) for name, rows in groups.items()], style)
        for line in lines:
            console.print(Text(line))
        return
    _print_panels(console, usage, groups, style)


def _print_panels(
    console: Console, usage: Usage, groups: Mapping[str, Sequence[UsageRow]], style: Style
) -> None:
    zone = _zone(usage.timezone)
    shown_groups = list(groups.items())[:MAX_PANELS]
    scale = scale_of([row.value for _, rows in shown_groups for row in rows])
    for name, found in shown_groups:
        rows = sorted(found, key=lambda row: row.window_start)
        if name:
            console.print(Text(style.cut(name, style.width), style="cyan"))
        ends = tuple(_label(row.window_start, usage.window, zone) for row in (rows[0], rows[-1]))
        chart = columns(
            [row.value for row in rows],
            (ends[0], ends[1]),
            scale,
            style,
            height=8 if len(groups) == 1 else 4,
        )
        for line in chart:
            console.print(Text(line))
        peak = max(rows, key=lambda row: abs(row.value) if row.value.is_finite() else Decimal(-1))
        note = f"peak {number(peak.value)} at {_label(peak.window_start, usage.window, zone)}"
        size = merged(len(rows), scale, style)
        if size > 1:
            note += f"; each column is the largest of {size} windows"
        console.print(Text(note, style="dim"))
    if len(groups) > MAX_PANELS:
        left = len(groups) - MAX_PANELS
        print(f"{left} more groups are not drawn; --top {MAX_PANELS} picks the largest")


def _title(usage: Usage) -> str:
    kind = " ".join(filter(None, [usage.aggregation, usage.unit]))
    zone = "" if usage.timezone == "UTC" else f" ({usage.timezone})"
    start = min(row.window_start for row in usage)
    end = max(row.window_end for row in usage)
    return f"{usage.meter}, {kind}, by {usage.window}{zone}, {shown(start)} to {shown(end)}"


def _table(
    usage: Usage, dimensions: Sequence[str], *, has_tenant: bool, has_previous: bool
) -> Table:
    has_windows = usage.window != "total"
    table = Table(title=_title(usage))
    names = [*(["window"] if has_windows else []), *(["tenant"] if has_tenant else [])]
    for name in [*names, *dimensions]:
        table.add_column(name, overflow="fold")
    for name in ["value", *(["before", "change"] if has_previous else [])]:
        table.add_column(name, justify="right", overflow="fold")
    zone = _zone(usage.timezone)
    for row in usage:
        cells = [_label(row.window_start, usage.window, zone)] if has_windows else []
        cells += [row.tenant_id or ""] if has_tenant else []
        cells += [row.dimensions.get(name, "") for name in dimensions]
        cells.append(number(row.value))
        if has_previous:
            cells += [number(row.previous_value), _change(row)]
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _print_csv(
    usage: Usage, dimensions: Sequence[str], *, has_tenant: bool, has_previous: bool
) -> None:
    """The columns of the API's CSV."""
    header = ["window_start", "window_end", *(["tenant_id"] if has_tenant else [])]
    header += [f"dimensions.{name}" for name in dimensions]
    header += ["value", *(["previous_value"] if has_previous else [])]
    rows = []
    for row in usage:
        cells = [shown(row.window_start), shown(row.window_end)]
        cells += [row.tenant_id or ""] if has_tenant else []
        cells += [row.dimensions.get(name, "") for name in dimensions]
        cells += [number(row.value), *([number(row.previous_value)] if has_previous else [])]
        rows.append(cells)
    print_csv(header, rows)


def _groups(rows: Sequence[UsageRow]) -> Mapping[str, list[UsageRow]]:
    """The rows of each group, by the group's label, in the order of the answer."""
    found: dict[str, list[UsageRow]] = {}
    for row in rows:
        parts = [] if row.tenant_id is None else [row.tenant_id]
        parts += [f"{name}={text}" for name, text in sorted(row.dimensions.items())]
        found.setdefault(" ".join(parts), []).append(row)
    return found


def _change(row: UsageRow) -> str:
    if row.previous_value is None or row.previous_value == 0:
        return ""
    with localcontext() as context:
        context.prec = 60
        percent = (row.value - row.previous_value) / abs(row.previous_value) * 100
        return f"{percent:+.1f}%"


def _label(moment: datetime, window: str, zone: tzinfo | None) -> str:
    local = moment if zone is None else moment.astimezone(zone)
    return local.strftime(_LABELS.get(window, _FINER_LABEL))


def _zone(name: str) -> tzinfo | None:
    """The zone; None: this machine does not know it, and times stay as they were sent."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        return None


def _can_draw(encoding: str) -> bool:
    try:
        "█▁─…".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
