"""Commands of the receiver: `otel-metering migrate`, `otel-metering grants`, `otel-metering meters check`."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from otel_metering.clock import SystemClock
from otel_metering.errors import InvalidUsageError, MeteringError
from receiver.config import Settings
from receiver.meters_file import DEFAULT, count_of, read_meters
from receiver.store.client import Store
from receiver.store.migrate import migrate, pending, shipped
from receiver.store.readers import prepare_readers, reader_sql, tenant_reader_sql


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command(name="migrate")(_migrate)
    app.command(name="grants")(_grants)
    meters = typer.Typer(help="Meter definitions.", no_args_is_help=True)
    meters.command(name="check")(_check_meters)
    app.add_typer(meters, name="meters")


def _migrate(
    *, dry_run: Annotated[bool, typer.Option(help="Print the SQL, change nothing.")] = False
) -> None:
    """Bring the database of METERING_CLICKHOUSE_URL (or METERING_DATA_DIR) to this release."""
    settings = _settings()
    logging.basicConfig(level=settings.log_level)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    store = Store(settings.store_url)
    try:
        todo = pending(store, shipped()) if dry_run else migrate(store, SystemClock())
        if not dry_run:
            prepare_readers(store)
    except MeteringError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    finally:
        store.close()
    for migration in todo:
        typer.echo(f"-- {migration.version:04d}_{migration.name}.sql")
        if dry_run:
            typer.echo(migration.sql)
    if not todo:
        typer.echo("The database is up to date.")


def _grants(
    *,
    tenant: Annotated[str | None, typer.Option(help="For a user who reads this tenant.")] = None,
    user: Annotated[str | None, typer.Option(help="Name of that user.")] = None,
) -> None:
    """Print the SQL that lets dashboards, or a customer's tools, read the tables of a ClickHouse server.

    An administrator of the server runs it; it may be run again. Then give the user a password and hosts:
    ALTER USER … IDENTIFIED WITH sha256_password BY '…' HOST ANY
    """
    try:
        if (tenant is None) != (user is None):
            raise InvalidUsageError("--tenant and --user belong together; give both, or none")
        typer.echo(reader_sql() if tenant is None else tenant_reader_sql(tenant, user or ""))
    except MeteringError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def _check_meters(
    file: Annotated[
        Path | None, typer.Argument(help="[METERING_METERS_FILE, else ./meters.yaml]")
    ] = None,
) -> None:
    """Say whether a meters.yaml is right, and if not, in which line and why."""
    path = file or _settings().meters_file or DEFAULT
    try:
        typer.echo(count_of(read_meters(path)))
    except MeteringError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def _settings() -> Settings:
    try:
        return Settings()
    except MeteringError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
