"""`otel-metering keys` and `tokens`: make, list, rotate and revoke API keys; make tokens."""

from typing import Annotated

import typer
from rich.table import Table

from otel_metering.cli.api import ApiKey, ApiUrl, connect
from otel_metering.cli.output import print_table, shown, shown_or
from otel_metering.cli.times import parse_duration, parse_future
from otel_metering.client import CreatedKey, Key
from otel_metering.clock import SystemClock

KeyId = Annotated[str, typer.Argument(help="The key's id, see: keys list.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    keys = typer.Typer(help="API keys: create, list, rotate, revoke.", no_args_is_help=True)
    keys.command(name="create")(_create)
    keys.command(name="list")(_list)
    keys.command(name="rotate")(_rotate)
    keys.command(name="revoke")(_revoke)
    app.add_typer(keys, name="keys")
    tokens = typer.Typer(help="Tokens that read the usage of one tenant: create.")
    # With a callback, one command still has a name of its own.
    tokens.callback(no_args_is_help=True)(lambda: None)
    tokens.command(name="create")(_create_token)
    app.add_typer(tokens, name="tokens")


def _create(
    *,
    name: Annotated[str, typer.Option(help="For people.")],
    scope: Annotated[
        list[str], typer.Option(help="ingest, query, validate or admin; may be repeated.")
    ],
    tenant: Annotated[str, typer.Option(help="Bind it to this tenant.")] = "",
    expires: Annotated[str, typer.Option(help="30d, a date, or RFC 3339. Default: never.")] = "",
    rate_limit: Annotated[
        int, typer.Option(help="Requests per second. Default: no limit of its own.", min=0)
    ] = 0,
    api_url: ApiUrl = "",
    api_key: ApiKey = "",
) -> None:
    """Make a key, and print it: this once, it is kept nowhere."""
    with connect(api_url, api_key) as client:
        made = client.create_key(
            name,
            scope,
            tenant_id=tenant or None,
            expires_at=parse_future(expires, SystemClock()) if expires else None,
            rate_limit_per_second=rate_limit or None,
        )
    _print_created(made)


def _list(*, api_url: ApiUrl = "", api_key: ApiKey = "") -> None:
    """List all keys, oldest first, revoked ones included."""
    with connect(api_url, api_key) as client:
        found = client.keys()
    table = Table(
        "key id",
        "name",
        "scopes",
        "tenant",
        "expires",
        "revoked",
        "created",
        "last used",
        "rate limit",
    )
    for key in found:
        table.add_row(*_row(key))
    print_table(table)


def _rotate(
    key_id: KeyId,
    *,
    overlap: Annotated[str, typer.Option(help="How long both keys work: 30m, 24h.")] = "1h",
    api_url: ApiUrl = "",
    api_key: ApiKey = "",
) -> None:
    """Make a key that takes the place of another one, which works on for a while."""
    seconds = int(parse_duration(overlap).total_seconds())
    with connect(api_url, api_key) as client:
        made = client.rotate_key(key_id, overlap_seconds=seconds)
    _print_created(made)
    typer.echo(f"replaces {key_id}, which expires in {overlap}")


def _revoke(key_id: KeyId, *, api_url: ApiUrl = "", api_key: ApiKey = "") -> None:
    """Stop a key, at once and for ever."""
    with connect(api_url, api_key) as client:
        key = client.revoke_key(key_id)
    typer.echo(f"key {key.key_id} ({key.name}) is revoked since {shown_or(key.revoked_at)}")


def _create_token(
    *,
    tenant: Annotated[str, typer.Option(help="Whose usage it reads.")],
    ttl: Annotated[str, typer.Option(help="How long it works: 15m, 24h; a day at most.")] = "1h",
    meter: Annotated[
        list[str] | None, typer.Option(help="It reads this meter alone; may be repeated.")
    ] = None,
    api_url: ApiUrl = "",
    api_key: ApiKey = "",
) -> None:
    """Make a token for a page of that tenant, and print it: this once, it is kept nowhere."""
    seconds = int(parse_duration(ttl).total_seconds())
    with connect(api_url, api_key) as client:
        made = client.create_token(tenant, ttl_seconds=seconds, meters=meter or ())
    typer.echo(f"token    {made.text}   (shown this once)")
    typer.echo(f"tenant   {tenant}")
    typer.echo(f"meters   {', '.join(meter or ()) or 'all'}")
    typer.echo(f"expires  {shown(made.expires_at)}")


def _print_created(made: CreatedKey) -> None:
    typer.echo(f"key      {made.text}   (shown this once; keep it)")
    labels = ("key id", "name", "scopes", "tenant", "expires")
    for label, value in zip(labels, _row(made.key), strict=False):
        typer.echo(f"{label:<8} {value}")
    if made.key.rate_limit_per_second is not None:
        typer.echo(f"rate     {_rate(made.key)}")


def _row(key: Key) -> tuple[str, ...]:
    revoked = shown_or(key.revoked_at)
    if key.rotated_to is not None:
        revoked = f"{revoked} rotated to {key.rotated_to}".strip()
    return (
        key.key_id,
        key.name,
        ", ".join(key.scopes),
        key.tenant_id or "any",
        shown_or(key.expires_at, "never"),
        revoked,
        shown(key.created_at),
        shown_or(key.last_used_at),
        _rate(key),
    )


def _rate(key: Key) -> str:
    return "" if key.rate_limit_per_second is None else f"{key.rate_limit_per_second}/s"
