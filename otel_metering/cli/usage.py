"""`otel-metering usage`: tenants in rows, meters in columns."""

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from otel_metering.cli.api import DEFAULT_URL, Api, ApiKey, ApiUrl
from otel_metering.cli.times import now, parse_duration, shown
from otel_metering.clock import SystemClock
from otel_metering.errors import InvalidUsageError

PIPE_WIDTH: Final = 100_000
"""Columns of an output that is no terminal: a number must not be broken over lines."""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="usage")(_usage)


def print_table(table: Table) -> None:
    """Print to standard output; a pipe gets each row on one line."""
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)


def _usage(
    *,
    from_: Annotated[str, typer.Option("--from", help="Start: RFC 3339 or a date.")] = "",
    to: Annotated[str, typer.Option(help="End, exclusive. Default: now.")] = "",
    last: Annotated[str, typer.Option(help="Until the end: 90m, 24h, 30d. Default: 30d.")] = "",
    tenant: Annotated[str, typer.Option(help="Only this tenant.")] = "",
    meter: Annotated[str, typer.Option(help="Only this meter.")] = "",
    api_url: ApiUrl = DEFAULT_URL,
    api_key: ApiKey = "",
) -> None:
    """Show the usage of every tenant, one column per meter."""
    api = Api(api_url, api_key)
    within = _range(from_, to, last)
    scope = [*within, *([("tenant_id", tenant)] if tenant else [])]
    meters = [
        found
        for found in api.get("/v1/meter/meters", scope)["data"]
        if found["events"] and meter in {"", found["slug"]}
    ]
    rows = {found["slug"]: _per_tenant(api, found["slug"], scope) for found in meters}
    if not any(rows.values()):
        typer.echo("no usage in this range")
        return
    print_table(_table(meters, rows))


def _range(from_: str, to: str, last: str) -> list[tuple[str, str]]:
    """The bounds that all requests share, so that every column covers the same time."""
    present = now(SystemClock())
    if last and (from_ or to):
        raise InvalidUsageError("--last ends now; give either --last, or --from and --to")
    try:
        start = shown(present - parse_duration(last)) if last else from_
    except OverflowError:
        raise InvalidUsageError(f"--last {last} begins before the year 1; give less") from None
    return [*([("from", start)] if start else []), ("to", to or shown(present))]


def _per_tenant(
    api: Api, meter: str, scope: Sequence[tuple[str, str]]
) -> dict[str, Mapping[str, Any]]:
    query = [
        ("meter", meter),
        ("window", "total"),
        ("group_by", "tenant_id"),
        ("limit", "100000"),
        *scope,
    ]
    return {row["tenant_id"]: row for row in api.get("/v1/meter/aggregates", query)["data"]}


def _table(
    meters: Sequence[Mapping[str, Any]], rows: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> Table:
    some = next(row for per_tenant in rows.values() for row in per_tenant.values())
    table = Table(title=f"usage from {some['window_start']} to {some['window_end']}")
    table.add_column("tenant", overflow="fold")
    for meter in meters:
        kind = " ".join(filter(None, [meter["aggregation"], meter["unit"]]))
        table.add_column(f"{meter['slug']}\n{kind}", justify="right", overflow="fold")
    for tenant in sorted({tenant for per_tenant in rows.values() for tenant in per_tenant}):
        values = [rows[meter["slug"]].get(tenant, {}).get("value", "") for meter in meters]
        table.add_row(tenant, *values)
    return table
