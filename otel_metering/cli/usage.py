"""`otel-metering usage`: tenants in rows and meters in columns, or one meter in detail."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Final, Literal, cast

import typer
from rich.table import Table

from otel_metering.cli.api import ApiKey, ApiUrl, connect
from otel_metering.cli.filters import FilterOption, parse_filters
from otel_metering.cli.output import Format, number, print_csv, print_json, print_table, shown
from otel_metering.cli.times import parse_range
from otel_metering.cli.usage_detail import print_plot, print_rows
from otel_metering.client import Meter, MeteringClient, Usage, UsageRow
from otel_metering.clock import SystemClock
from otel_metering.errors import InvalidUsageError

ORDERS: Final = ("window_start", "value", "-value")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """What is asked beside the range."""

    tenant: str
    meter: str
    from_: str | None
    to: str | None
    timezone: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Detail:
    """What is asked of one meter."""

    window: str
    group_by: Sequence[str]
    filters: Sequence[str]
    top: int
    order: str
    compare: bool
    plot: bool = field(default=False)

    @property
    def is_asked(self) -> bool:
        """Whether it is anything but the default."""
        return bool(
            self.window
            or self.group_by
            or self.filters
            or self.top
            or self.order
            or self.compare
            or self.plot
        )


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="usage")(_usage)


def _usage(
    *,
    from_: Annotated[str, typer.Option("--from", help="Start: RFC 3339 or a date.")] = "",
    to: Annotated[str, typer.Option(help="End, exclusive. Default: now.")] = "",
    last: Annotated[str, typer.Option(help="Until now: 90m, 24h, 30d. Default: 30d.")] = "",
    tenant: Annotated[str, typer.Option(help="Only this tenant.")] = "",
    meter: Annotated[str, typer.Option(help="Only this meter.")] = "",
    timezone: Annotated[str, typer.Option(help="Of dates and windows, like Europe/Berlin.")] = "",
    window: Annotated[
        str, typer.Option(help="minute, 15m, hour, day, week, month, total, last_30_days.")
    ] = "",
    group_by: Annotated[
        list[str] | None, typer.Option(help="tenant_id or a dimension; may be repeated.")
    ] = None,
    filters: FilterOption = None,
    top: Annotated[int, typer.Option(help="Only so many groups, the largest.", min=0)] = 0,
    order: Annotated[str, typer.Option(help="window_start, value or -value.")] = "",
    compare: Annotated[bool, typer.Option("--compare", help="With the period before.")] = False,
    plot: Annotated[bool, typer.Option("--plot", help="Draw it.")] = False,
    output: Annotated[Format, typer.Option("--format", help="How it is printed.")] = Format.TABLE,
    api_url: ApiUrl = "",
    api_key: ApiKey = "",
) -> None:
    """Show the usage of every tenant, one column per meter; or one meter, as --window and others ask."""
    start, end = parse_range(from_, to, last, SystemClock())
    question = _Question(tenant=tenant, meter=meter, from_=start, to=end, timezone=timezone or None)
    detail = _Detail(
        window=window,
        group_by=group_by or (),
        filters=filters or (),
        top=top,
        order=order,
        compare=compare,
        plot=plot,
    )
    with connect(api_url, api_key) as client:
        if detail.is_asked:
            _print_detail(client, question, detail, output)
        else:
            _print_all(client, question, output)


def _print_detail(
    client: MeteringClient, question: _Question, detail: _Detail, output: Format
) -> None:
    if not question.meter:
        raise InvalidUsageError(
            "--window, --group-by, --filter, --top, --order, --compare and --plot are about one meter; "
            "give --meter"
        )
    if detail.order not in {"", *ORDERS}:
        raise InvalidUsageError(
            f"--order is {detail.order!r}; it must be one of {', '.join(ORDERS)}"
        )
    if detail.plot and output is not Format.TABLE:
        raise InvalidUsageError("--plot draws; leave out --format")
    window = detail.window or ("day" if detail.plot and not detail.group_by else "total")
    found = client.usage(
        question.meter,
        tenant_id=question.tenant or None,
        from_=question.from_,
        to=question.to,
        timezone=question.timezone,
        window=window,
        group_by=detail.group_by,
        filters=parse_filters(detail.filters),
        top=detail.top or None,
        order=cast("Literal['window_start', 'value', '-value'] | None", detail.order or None),
        compare_previous=detail.compare,
        # A gap has its width on the axis of time, too.
        fill_zero=detail.plot and window != "total" and not window.startswith("last_"),
    )
    if detail.plot:
        print_plot(found)
    else:
        print_rows(found, output, has_previous=detail.compare)


def _print_all(client: MeteringClient, question: _Question, output: Format) -> None:
    meters = [
        found
        for found in client.meters(
            tenant_id=question.tenant or None, from_=question.from_, to=question.to
        )
        if found.events and question.meter in {"", found.slug}
    ]
    per_meter = {found.slug: _per_tenant(client, found.slug, question) for found in meters}
    rows = {slug: {row.tenant_id or "": row for row in found} for slug, found in per_meter.items()}
    if output is not Format.TABLE:
        _print_flat(meters, rows, output)
    elif not any(rows.values()):
        print("no usage in this range")
    else:
        print_table(_table(meters, rows))


def _per_tenant(client: MeteringClient, meter: str, question: _Question) -> Usage:
    return client.usage(
        meter,
        window="total",
        group_by=["tenant_id"],
        tenant_id=question.tenant or None,
        from_=question.from_,
        to=question.to,
        timezone=question.timezone,
    )


def _print_flat(
    meters: Sequence[Meter], rows: Mapping[str, Mapping[str, UsageRow]], output: Format
) -> None:
    """One row for each tenant and meter that has usage."""
    flat: list[dict[str, str | Decimal]] = [
        {
            "tenant_id": tenant,
            "meter": meter.slug,
            "aggregation": meter.aggregation,
            "unit": meter.unit,
            "window_start": shown(row.window_start),
            "window_end": shown(row.window_end),
            "value": number(row.value),
        }
        for meter in meters
        for tenant, row in sorted(rows[meter.slug].items())
    ]
    if output is Format.JSON:
        print_json(flat)
        return
    names = ["tenant_id", "meter", "aggregation", "unit", "window_start", "window_end", "value"]
    print_csv(names, [[str(one[name]) for name in names] for one in flat])


def _table(meters: Sequence[Meter], rows: Mapping[str, Mapping[str, UsageRow]]) -> Table:
    some = next(row for per_tenant in rows.values() for row in per_tenant.values())
    table = Table(title=f"usage from {shown(some.window_start)} to {shown(some.window_end)}")
    table.add_column("tenant", overflow="fold")
    for meter in meters:
        kind = " ".join(filter(None, [meter.aggregation, meter.unit]))
        table.add_column(f"{meter.slug}\n{kind}", justify="right", overflow="fold")
    for tenant in sorted({tenant for per_tenant in rows.values() for tenant in per_tenant}):
        found = [rows[meter.slug].get(tenant) for meter in meters]
        table.add_row(tenant, *(number(row.value) if row else "" for row in found))
    return table
