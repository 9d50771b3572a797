"""Commands of the receiver: `otel-metering migrate`, `otel-metering meters check`."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from otel_metering.clock import SystemClock
from otel_metering.errors import MeteringError
from receiver.config import Settings
from receiver.meters_file import DEFAULT, count_of, read_meters
from receiver.store.client import Store
from receiver.store.migrate import migrate, pending, shipped


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command(name="migrate")(_migrate)
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
