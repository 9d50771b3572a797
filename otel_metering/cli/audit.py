"""`otel-metering audit`: who changed what."""

import itertools
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from otel_metering.cli.api import ApiKey, ApiUrl, connect
from otel_metering.cli.output import (
    Format,
    fields,
    pairs,
    print_csv,
    print_json,
    print_table,
    shown,
)
from otel_metering.cli.times import parse_range
from otel_metering.client import AuditEntry
from otel_metering.clock import SystemClock

_COLUMNS = ("at", "key", "action", "target", "tenant", "request", "details")


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="audit")(_audit)


def _audit(
    *,
    from_: Annotated[str, typer.Option("--from", help="Start: RFC 3339 or a date.")] = "",
    to: Annotated[str, typer.Option(help="End, exclusive. Default: now.")] = "",
    last: Annotated[str, typer.Option(help="Until now: 90m, 24h, 30d.")] = "",
    actor: Annotated[str, typer.Option(help="Only by this key id.")] = "",
    action: Annotated[str, typer.Option(help="Only this, like key.create.")] = "",
    target: Annotated[str, typer.Option(help="Only of this.")] = "",
    tenant: Annotated[str, typer.Option(help="Only of this tenant.")] = "",
    limit: Annotated[int, typer.Option(help="How many.", min=1)] = 50,
    output: Annotated[Format, typer.Option("--format", help="How it is printed.")] = Format.TABLE,
    api_url: ApiUrl = "",
    api_key: ApiKey = "",
) -> None:
    """List administrative changes."""
    start, end = parse_range(from_, to, last, SystemClock(), ends_now=False)
    with connect(api_url, api_key) as client:
        every = client.iter_audit(
            from_=start,
            to=end,
            actor=actor or None,
            action=action or None,
            target=target or None,
            tenant_id=tenant or None,
        )
        found = list(itertools.islice(every, limit + 1))
    entries = found[:limit]
    if output is Format.JSON:
        print_json([fields(entry) for entry in entries])
    elif output is Format.CSV:
        print_csv(_COLUMNS, [_row(entry) for entry in entries])
    elif not entries:
        print("no changes in this range")
    else:
        table = Table(*_COLUMNS)
        for entry in entries:
            table.add_row(*(Text(cell) for cell in _row(entry)))
        print_table(table)
    if len(found) > limit:
        typer.echo("there are more; narrow it down, or raise --limit", err=True)


def _row(entry: AuditEntry) -> tuple[str, ...]:
    return (
        shown(entry.at),
        entry.key_id,
        entry.action,
        entry.target,
        entry.tenant_id or "",
        entry.request_id,
        pairs(entry.details),
    )
