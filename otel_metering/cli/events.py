"""`otel-metering events`: list, follow, show, void, correct and export single events."""

import itertools
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text

from otel_metering.cli.api import ApiKey, ApiUrl, connect
from otel_metering.cli.export import ExportFormat, export
from otel_metering.cli.filters import FilterOption, parse_filters, parse_pairs
from otel_metering.cli.numbers import parse_decimal
from otel_metering.cli.output import (
    Format,
    fields,
    number,
    pairs,
    print_csv,
    print_json,
    print_json_line,
    print_table,
    shown_or,
)
from otel_metering.cli.tail import Tail
from otel_metering.cli.times import parse_duration, parse_range
from otel_metering.client import Correction, Event, MeteringClient
from otel_metering.clock import SystemClock
from otel_metering.errors import NoAnswerError

EXIT_INTERRUPTED: Final = 130
"""What a shell makes of SIGINT: 128 + 2."""

_NS: Final = 1_000_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_COLUMNS: Final = ("timestamp", "tenant", "meter", "quantity", "attributes", "status", "id")

EventId = Annotated[str, typer.Argument(help="The sender's id, or the stored UUID.")]
Tenant = Annotated[str, typer.Option(help="Only of this tenant.")]
Meter = Annotated[str, typer.Option(help="Only of this meter.")]
OfTenant = Annotated[str, typer.Option("--tenant", help="Needed if several tenants use the id.")]
OfMeter = Annotated[str, typer.Option("--meter", help="Needed if several meters use the id.")]
From = Annotated[str, typer.Option("--from", help="Start: RFC 3339 or a date. [30 days]")]
To = Annotated[str, typer.Option(help="End, exclusive. Default: now.")]
Last = Annotated[str, typer.Option(help="Until now: 90m, 24h, 30d.")]
Reason = Annotated[str, typer.Option(help="For people; kept with the correction.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    group = typer.Typer(
        help="Single events: list, tail, get, void, correct, export.", no_args_is_help=True
    )
    group.command(name="list")(_list)
    group.command(name="tail")(_tail)
    group.command(name="get")(_get)
    group.command(name="void")(_void)
    group.command(name="correct")(_correct)
    group.command(name="export")(_export)
    app.add_typer(group, name="events")


def _list(
    *,
    tenant: Tenant = "",
    meter: Meter = "",
    from_: From = "",
    to: To = "",
    last: Last = "",
    filters: FilterOption = None,
    limit: Annotated[int, typer.Option(help="How many.", min=1)] = 50,
    output: Annotated[Format, typer.Option("--format", help="How it is printed.")] = Format.TABLE,
    api_url: ApiUrl = "",
    api_key: ApiKey = "",
) -> None:
    """List events, newest first."""
    start, end = parse_range(from_, to, last, SystemClock(), ends_now=False)
    with connect(api_url, api_key) as client:
        every = client.iter_events(
            tenant_id=tenant or None,
            meter=meter or None,
            from_=start,
            to=end,
            filters=parse_filters(filters),
            page_size=min(limit + 1, 1000),
        )
        found = list(itertools.islice(every, limit + 1))
    events = found[:limit]
    if output is Format.JSON:
        print_json([_document(event) for event in events])
    elif output is Format.CSV:
        print_csv(_COLUMNS, [_row(event) for event in events])
    elif not events:
        print("no events in this range")
    else:
        table = Table()
        for name in _COLUMNS:
            table.add_column(
                name, justify="right" if name == "quantity" else "left", overflow="fold"
            )
        for event in events:
            table.add_row(*(Text(cell) for cell in _row(event)))
        print_table(table)
    if len(found) > limit:
        typer.echo("there are more; narrow it down, or raise --limit", err=True)


def _tail(
    *,
    tenant: Tenant = "",
    meter: Meter = "",
    filters: FilterOption = None,
    since: Annotated[str, typer.Option(help="Begin so long ago: 10m, 2h. Default: now.")] = "",
    lateness: Annotated[
        str, typer.Option(help="How late usage may arrive and still be shown.")
    ] = "5m",
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.1)] = 1.0,
    output: Annotated[
        Format, typer.Option("--format", help="table: a line each; json: JSON lines.")
    ] = Format.TABLE,
    api_url: ApiUrl = "",
    api_key: ApiKey = "",
) -> None:
    """Show events as they arrive, until Ctrl-C."""
    began_ns = SystemClock().now_ns()
    lateness_ns = _duration_ns(lateness)
    tail = Tail(
        since_ns=began_ns - (_duration_ns(since) if since else lateness_ns),
        lateness_ns=lateness_ns,
    )
    selection = {
        "tenant_id": tenant or None,
        "meter": meter or None,
        "filters": parse_filters(filters),
    }
    with connect(api_url, api_key) as client:
        try:
            # What is there already is not news; unless it was asked for.
            _print_events(_look(client, tail, selection) if since else [], output)
            if not since:
                _look(client, tail, selection)
            _follow(client, tail, selection, every, output)
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None


def _follow(
    client: MeteringClient, tail: Tail, selection: Mapping[str, Any], every: float, output: Format
) -> None:
    pause = threading.Event()
    is_warned = False
    while True:
        pause.wait(every)
        try:
            events = _look(client, tail, selection)
        except NoAnswerError as error:
            # The next look begins where this one did: nothing is missed.
            if not is_warned:
                typer.echo(f"warning: {error}; still trying", err=True)
            is_warned = True
        else:
            is_warned = False
            _print_events(events, output)


def _look(client: MeteringClient, tail: Tail, selection: Mapping[str, Any]) -> list[Event]:
    looked_at_ns = SystemClock().now_ns()
    events = client.iter_events(from_=_rfc3339(tail.from_ns), **selection)
    return tail.fresh(events, looked_at_ns)


def _print_events(events: list[Event], output: Format) -> None:
    for event in events:
        if output is Format.JSON:
            print_json_line(_document(event))
        elif output is Format.CSV:
            print_csv(_row(event), [])
        else:
            timestamp, tenant, meter, quantity, attributes, _, event_id = _row(event)
            print(f"{timestamp}  {tenant}  {meter}  {quantity}  {attributes}  [{event_id}]")
    sys.stdout.flush()


def _get(
    event_id: EventId,
    *,
    tenant: OfTenant = "",
    meter: OfMeter = "",
    api_url: ApiUrl = "",
    api_key: ApiKey = "",
) -> None:
    """Show one event, as JSON."""
    with connect(api_url, api_key) as client:
        print_json(_document(client.event(event_id, tenant_id=tenant or None, meter=meter or None)))


def _void(
    event_id: EventId,
    *,
    reason: Reason,
    tenant: OfTenant = "",
    meter: OfMeter = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    api_url: ApiUrl = "",
    api_key: ApiKey = "",
) -> None:
    """Take an event back: it stays in the list, and counts no more."""
    with connect(api_url, api_key) as client:
        if not yes:
            event = client.event(event_id, tenant_id=tenant or None, meter=meter or None)
            typer.echo(
                f"{event.tenant_id} used {number(event.quantity)} of {event.meter} "
                f"at {_rfc3339(event.timestamp_ns)}"
            )
            typer.confirm("It will count no more. Do it?", abort=True)
        done = client.void(event_id, reason=reason, tenant_id=tenant or None, meter=meter or None)
    _print_correction(done)


def _correct(
    event_id: EventId,
    *,
    reason: Reason,
    quantity: Annotated[str, typer.Option(help="The right one.")] = "",
    timestamp: Annotated[str, typer.Option(help="The right one: RFC 3339.")] = "",
    attribute: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE; all of the right ones. May be repeated."),
    ] = None,
    tenant: OfTenant = "",
    meter: OfMeter = "",
    api_url: ApiUrl = "",
    api_key: ApiKey = "",
) -> None:
    """Take an event back, and count another one in its place."""
    with connect(api_url, api_key) as client:
        done = client.correct(
            event_id,
            reason=reason,
            quantity=parse_decimal("--quantity", quantity) if quantity else None,
            timestamp=timestamp or None,
            attributes=parse_pairs(attribute) if attribute else None,
            tenant_id=tenant or None,
            meter=meter or None,
        )
    _print_correction(done)


def _export(
    *,
    path: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file. Default: standard output.")
    ] = None,
    output: Annotated[
        ExportFormat, typer.Option("--format", help="How it is written.")
    ] = ExportFormat.CSV,
    tenant: Tenant = "",
    meter: Meter = "",
    from_: From = "",
    to: To = "",
    last: Last = "",
    filters: FilterOption = None,
    api_url: ApiUrl = "",
    api_key: ApiKey = "",
) -> None:
    """Write all events of a range, oldest first, however many there are."""
    start, end = parse_range(from_, to, last, SystemClock())
    with connect(api_url, api_key) as client:
        export(
            client,
            path,
            output,
            filters=parse_filters(filters),
            tenant_id=tenant or None,
            meter=meter or None,
            from_=start,
            to=end,
        )


def _print_correction(done: Correction) -> None:
    said = "is void" if done.action == "void" else f"is replaced by {done.replaced_by}"
    typer.echo(f"event {done.event_id} {said} since {shown_or(done.corrected_at)}")


def _row(event: Event) -> tuple[str, ...]:
    return (
        _rfc3339(event.timestamp_ns),
        event.tenant_id,
        event.meter,
        number(event.quantity),
        pairs(event.attributes),
        event.status,
        event.event_id,
    )


def _document(event: Event) -> dict[str, Any]:
    """An event as the API shows it."""
    found = dict(fields(event))
    del found["timestamp_ns"]
    return {**found, "timestamp": _rfc3339(event.timestamp_ns)}


def _rfc3339(at_ns: int) -> str:
    """RFC 3339 in UTC, with as many decimals as it needs."""
    seconds, ns = divmod(at_ns, _NS)
    whole = (_EPOCH + timedelta(seconds=seconds)).isoformat().removesuffix("+00:00")
    return f"{whole}.{ns:09}".rstrip("0").rstrip(".") + "Z"


def _duration_ns(text: str) -> int:
    return int(parse_duration(text) / timedelta(microseconds=1)) * 1_000
