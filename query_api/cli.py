"""Commands of the server side: `otel-metering up` and `otel-metering demo`."""

import logging
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from pydantic import ValidationError

from otel_metering.clock import SystemClock
from otel_metering.errors import MeteringError
from query_api import config, demo
from query_api.embedded import Addresses, serve
from receiver.config import Settings


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command(name="up")(_up)
    app.command(name="demo")(demo.run)


def _up(
    *,
    data_dir: Annotated[Path | None, typer.Option(help="Folder for all data.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    otlp_grpc_port: Annotated[int | None, typer.Option(help="OTLP/gRPC [4317].")] = None,
    otlp_http_port: Annotated[int | None, typer.Option(help="OTLP/HTTP [4318].")] = None,
    api_port: Annotated[int | None, typer.Option(help="Query API [8080].")] = None,
    meters: Annotated[Path | None, typer.Option(help="meters.yaml.")] = None,
) -> None:
    """Run receiver and query API in one process, on the embedded engine.

    Each option is also a setting, METERING_DATA_DIR and so on; a port of 0 is any free one.
    """
    given: dict[str, Any] = {
        "data_dir": data_dir,
        "otlp_host": host,
        "otlp_grpc_port": otlp_grpc_port,
        "otlp_http_port": otlp_http_port,
        "meters_file": meters,
    }
    given_api: dict[str, Any] = {"api_host": host, "api_port": api_port}
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
        api_settings = config.Settings(
            **{name: value for name, value in given_api.items() if value is not None}
        )
        logging.basicConfig(
            level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s"
        )
        is_drained = uvloop.run(serve(settings, api_settings, SystemClock(), _announce))
    except ValidationError as error:
        for problem in error.errors():
            name = "METERING_" + "_".join(str(part) for part in problem["loc"]).upper()
            typer.echo(f"error: {name} is {problem['input']!r}: {problem['msg']}", err=True)
        raise typer.Exit(1) from error
    except MeteringError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(
        "stopped; everything acknowledged is in the database"
        if is_drained
        else "stopped; some acknowledged usage waits in the spool for the next start"
    )


def _announce(addresses: Addresses) -> None:
    typer.echo(f"OTLP/gRPC   {addresses.otlp_grpc}")
    typer.echo(f"OTLP/HTTP   {addresses.otlp_http}")
    typer.echo(f"query API   {addresses.api}   (documentation: {addresses.api}/docs)")
    if addresses.admin_key is not None:
        typer.echo(f"admin key   {addresses.admin_key}   (shown this once; keep it)")
    typer.echo("ready")
