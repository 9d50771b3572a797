"""`otel-metering keys`: make, list and revoke API keys."""

from collections.abc import Mapping
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer
from rich.table import Table

from otel_metering.cli.api import DEFAULT_URL, Api, ApiKey, ApiUrl
from otel_metering.cli.times import parse_future
from otel_metering.cli.usage import print_table
from otel_metering.clock import SystemClock

PATH: Final = "/v1/meter/keys"


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    group = typer.Typer(help="API keys: create, list, revoke.", no_args_is_help=True)
    group.command(name="create")(_create)
    group.command(name="list")(_list)
    group.command(name="revoke")(_revoke)
    app.add_typer(group, name="keys")


def _create(
    *,
    name: Annotated[str, typer.Option(help="For people.")],
    scope: Annotated[
        list[str], typer.Option(help="ingest, query, validate or admin; may be repeated.")
    ],
    tenant: Annotated[str, typer.Option(help="Bind it to this tenant.")] = "",
    expires: Annotated[str, typer.Option(help="30d, a date, or RFC 3339. Default: never.")] = "",
    api_url: ApiUrl = DEFAULT_URL,
    api_key: ApiKey = "",
) -> None:
    """Make a key, and print it: this once, it is kept nowhere."""
    body = {
        "name": name,
        "scopes": scope,
        "tenant_id": tenant or None,
        "expires_at": parse_future(expires, SystemClock()) if expires else None,
    }
    made = Api(api_url, api_key).request("POST", PATH, body=body)
    typer.echo(f"key      {made['key']}   (shown this once; keep it)")
    for label, value in zip(
        ("key id", "name", "scopes", "tenant", "expires"), _row(made), strict=False
    ):
        typer.echo(f"{label:<8} {value}")


def _list(*, api_url: ApiUrl = DEFAULT_URL, api_key: ApiKey = "") -> None:
    """List all keys, oldest first, revoked ones included."""
    table = Table("key id", "name", "scopes", "tenant", "expires", "revoked", "created")
    for key in Api(api_url, api_key).get(PATH)["data"]:
        table.add_row(*_row(key))
    print_table(table)


def _revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, see: keys list.")],
    *,
    api_url: ApiUrl = DEFAULT_URL,
    api_key: ApiKey = "",
) -> None:
    """Stop a key, at once and for ever."""
    key = Api(api_url, api_key).request("DELETE", f"{PATH}/{quote(key_id, safe='')}")
    typer.echo(f"key {key['key_id']} ({key['name']}) is revoked since {key['revoked_at']}")


def _row(key: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        key["key_id"],
        key["name"],
        ", ".join(key["scopes"]),
        key["tenant_id"] or "any",
        key["expires_at"] or "never",
        key["revoked_at"] or "",
        key["created_at"],
    )
