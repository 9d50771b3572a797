"""`otel-metering quarantine`: what could not be billed; send it through again, or set it aside."""

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from otel_metering.cli.api import ApiKey, ApiUrl, connect
from otel_metering.cli.output import print_table
from otel_metering.client import MeteringClient

PATH: Final = "/quarantine"
MAX_SHOWN_REFUSALS: Final = 10

_NUMBERS: Final = {
    "replayed": "count now",
    "duplicates": "counted before",
    "still_quarantined": "were refused again",
    "ignored": "are usage of no meter",
    "unknown_key": "came by a key that nobody has",
}

Reason = Annotated[str, typer.Option(help="Only of this reason.")]
Tenant = Annotated[str, typer.Option(help="Only items that name this tenant.")]
SignalName = Annotated[str, typer.Option(help="metric, span or log.")]
Name = Annotated[str, typer.Option(help="Only of this metric, span or log event.")]
From = Annotated[str, typer.Option("--from", help="Arrived since: RFC 3339 or a date [30 days].")]
To = Annotated[str, typer.Option(help="Arrived before.")]
EventIds = Annotated[list[str] | None, typer.Option("--id", help="This item; may be repeated.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would happen.")]
Note = Annotated[str, typer.Option(help="For people; kept with the resolution.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    group = typer.Typer(
        help="What could not be billed: list, summary, replay, discard.", no_args_is_help=True
    )
    group.command(name="list")(_list)
    group.command(name="summary")(_summary)
    group.command(name="replay")(_replay)
    group.command(name="discard")(_discard)
    app.add_typer(group, name="quarantine")


def _list(
    *,
    reason: Reason = "",
    tenant: Tenant = "",
    signal: SignalName = "",
    name: Name = "",
    from_: From = "",
    to: To = "",
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Also what was replayed or discarded.")
    ] = False,
    limit: Annotated[int, typer.Option(help="How many.", min=1, max=1000)] = 50,
    api_url: ApiUrl = "",
    api_key: ApiKey = "",
) -> None:
    """List items, the latest arrival first."""
    asked = _selection(reason, tenant, signal, name, from_, to)
    parameters = [*asked.items(), ("limit", str(limit))]
    if resolved:
        parameters.append(("include_resolved", "true"))
    with connect(api_url, api_key) as client:
        answer = client.request("GET", PATH, parameters=parameters)
    table = Table("arrived", "reason", "signal", "name", "tenant", "key", "detail", "id")
    for item in answer["data"]:
        table.add_row(*_row(item))
    print_table(table)
    if answer["next_cursor"]:
        typer.echo("there are more; narrow it down, or raise --limit")


def _summary(
    *,
    reason: Reason = "",
    tenant: Tenant = "",
    signal: SignalName = "",
    name: Name = "",
    from_: From = "",
    to: To = "",
    api_url: ApiUrl = "",
    api_key: ApiKey = "",
) -> None:
    """Count open items by reason, signal and name."""
    asked = _selection(reason, tenant, signal, name, from_, to)
    table = Table("items", "reason", "signal", "name", "first", "last")
    with connect(api_url, api_key) as client:
        answer = client.request("GET", f"{PATH}/summary", parameters=tuple(asked.items()))
    for group in answer["data"]:
        keys = ("items", "reason", "signal", "name", "first_at", "last_at")
        table.add_row(*(str(group[key]) for key in keys))
    print_table(table)


def _replay(
    *,
    ids: EventIds = None,
    reason: Reason = "",
    tenant: Tenant = "",
    signal: SignalName = "",
    name: Name = "",
    from_: From = "",
    to: To = "",
    note: Note = "",
    dry_run: DryRun = False,
    api_url: ApiUrl = "",
    api_key: ApiKey = "",
) -> None:
    """Send items through again, for instance after meters.yaml was corrected."""
    asked = _selection(reason, tenant, signal, name, from_, to)
    body = {**asked, "event_ids": ids or [], "note": note, "dry_run": dry_run}
    with connect(api_url, api_key) as client:
        done = _every_page(client, "replay", body)
    typer.echo(f"{done.numbers['matched']} items{' (a dry run)' if dry_run else ''}")
    for key, meaning in _NUMBERS.items():
        if done.numbers[key]:
            typer.echo(f"{done.numbers[key]:>9} {meaning} ({key})")
    for refusal in done.refusals[:MAX_SHOWN_REFUSALS]:
        typer.echo(f"          {refusal['event_id']}  {refusal['detail']}")


def _discard(
    *,
    ids: EventIds = None,
    reason: Reason = "",
    tenant: Tenant = "",
    signal: SignalName = "",
    name: Name = "",
    from_: From = "",
    to: To = "",
    note: Note = "",
    dry_run: DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    api_url: ApiUrl = "",
    api_key: ApiKey = "",
) -> None:
    """Set items aside for good. They stay in the table, and are listed no more."""
    asked = _selection(reason, tenant, signal, name, from_, to)
    body = {**asked, "event_ids": ids or [], "note": note}
    with connect(api_url, api_key) as client:
        found = _every_page(client, "discard", {**body, "dry_run": True}).numbers["discarded"]
        if dry_run or not found:
            typer.echo(f"{found} items would be discarded")
            return
        if not yes:
            typer.confirm(f"{found} items will be discarded: never billed. Do it?", abort=True)
        done = _every_page(client, "discard", {**body, "dry_run": False})
    typer.echo(f"{done.numbers['discarded']} items are discarded")


class _Done:
    """What the pages of an answer say together."""

    def __init__(self) -> None:
        self.numbers: Counter[str] = Counter()
        self.refusals: list[Mapping[str, str]] = []

    def add(self, answer: Mapping[str, Any]) -> None:
        for key in ("matched", "discarded", *_NUMBERS):
            self.numbers[key] += answer.get(key, 0)
        self.refusals += answer.get("refusals", [])


def _every_page(client: MeteringClient, what: str, body: Mapping[str, Any]) -> _Done:
    done, cursor = _Done(), None
    while True:
        answer = client.request("POST", f"{PATH}/{what}", body={**body, "cursor": cursor})
        done.add(answer)
        cursor = answer["next_cursor"]
        if cursor is None:
            return done


def _selection(
    reason: str, tenant: str, signal: str, name: str, from_: str, to: str
) -> dict[str, str]:
    asked = {
        "reason": reason,
        "tenant_id": tenant,
        "signal": signal,
        "name": name,
        "from": from_,
        "to": to,
    }
    return {key: value for key, value in asked.items() if value}


def _row(item: Mapping[str, Any]) -> tuple[str, ...]:
    resolution = item["resolution"]
    reason = item["reason"]
    if resolution:
        reason += f" ({resolution['resolution']} {resolution['resolved_at']})"
    return (
        item["ingested_at"],
        reason,
        item["signal"],
        item["name"],
        item["tenant_id"] or "none",
        item["key_id"],
        item["detail"],
        item["event_id"],
    )
