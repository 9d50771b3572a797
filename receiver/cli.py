"""Commands of the receiver: `otel-metering migrate`."""

import logging
from typing import Annotated

import typer

from otel_metering.clock import SystemClock
from otel_metering.errors import MeteringError
from receiver.config import Settings
from receiver.store.client import Store
from receiver.store.migrate import migrate, pending, shipped


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command(name="migrate")(_migrate)


def _migrate(
    *, dry_run: Annotated[bool, typer.Option(help="Print the SQL, change nothing.")] = False
) -> None:
    """Bring the database of METERING_CLICKHOUSE_URL (or METERING_DATA_DIR) to this release."""
    settings = Settings()
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
