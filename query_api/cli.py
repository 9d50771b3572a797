"""Commands of the server side: `otel-metering up`, `receiver`, `api`, `clickhouse` and `demo`."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from pydantic import ValidationError

from otel_metering.clock import SystemClock
from otel_metering.errors import MeteringError
from query_api import config, demo
from query_api.embedded import Addresses, serve
from query_api.engine_process import serve_engine
from query_api.separate import serve_api
from receiver.config import Settings

_DataDir = Annotated[Path | None, typer.Option(help="Folder for all data.")]
_Host = Annotated[str | None, typer.Option(help="Address to listen on.")]
_Grpc = Annotated[int | None, typer.Option(help="OTLP/gRPC [4317].")]
_Http = Annotated[int | None, typer.Option(help="OTLP/HTTP [4318].")]
_ClickHouse = Annotated[
    int | None, typer.Option(help="ClickHouse endpoint of the embedded engine [8123]; -1: none.")
]
_Meters = Annotated[Path | None, typer.Option(help="meters.yaml.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command(name="up")(_up)
    app.command(name="receiver")(_receiver)
    app.command(name="api")(_api)
    app.command(name="clickhouse")(_clickhouse)
    app.command(name="demo")(demo.run)


def _up(
    *,
    data_dir: _DataDir = None,
    host: _Host = None,
    otlp_grpc_port: _Grpc = None,
    otlp_http_port: _Http = None,
    api_port: Annotated[int | None, typer.Option(help="Query API [8080].")] = None,
    clickhouse_port: _ClickHouse = None,
    meters: _Meters = None,
) -> None:
    """Run receiver and query API in one process, on the embedded engine.

    Each option is also a setting, METERING_DATA_DIR and so on; a port of 0 is any free one.
    """
    given = {
        "data_dir": data_dir,
        "otlp_host": host,
        "otlp_grpc_port": otlp_grpc_port,
        "otlp_http_port": otlp_http_port,
        "meters_file": meters,
    }
    given_api = {
        "api_host": host,
        "api_port": api_port,
        "clickhouse_host": host,
        "clickhouse_port": clickhouse_port,
    }
    _run_receiver(given, given_api, config.Settings)


def _receiver(
    *,
    data_dir: Annotated[Path | None, typer.Option(help="Folder for the spool.")] = None,
    host: _Host = None,
    otlp_grpc_port: _Grpc = None,
    otlp_http_port: _Http = None,
    api_port: Annotated[
        int | None, typer.Option(help="Where processes of `api` ask it [8081].")
    ] = None,
    meters: _Meters = None,
) -> None:
    """Run the receiver, on the ClickHouse server of METERING_CLICKHOUSE_URL; `api` answers reads beside it.

    There is one for a database. Each option is also a setting, METERING_DATA_DIR and so on; a port of 0 is any
    free one.
    """
    given = {
        "data_dir": data_dir,
        "otlp_host": host,
        "otlp_grpc_port": otlp_grpc_port,
        "otlp_http_port": otlp_http_port,
        "meters_file": meters,
    }
    _run_receiver(given, {"api_host": host, "api_port": api_port}, config.ReceiverSettings)


def _api(
    *,
    host: _Host = None,
    api_port: Annotated[int | None, typer.Option(help="Query API [8080].")] = None,
    receiver_url: Annotated[
        str | None, typer.Option(help="Query API of the receiver [http://127.0.0.1:8081].")
    ] = None,
    meters: _Meters = None,
) -> None:
    """Run the query API beside a receiver, on the ClickHouse server of METERING_CLICKHOUSE_URL.

    Any number may run. Each option is also a setting, METERING_RECEIVER_URL and so on; a port of 0 is any free one.
    """
    with _plain_errors():
        settings = Settings(**_given({"meters_file": meters}))
        api_settings = config.Settings(
            **_given({"api_host": host, "api_port": api_port, "receiver_url": receiver_url})
        )
        _log_to(settings)
        uvloop.run(serve_api(settings, api_settings, SystemClock(), _announce_api))
    typer.echo("stopped")


def _clickhouse(
    *,
    data_dir: _DataDir = None,
    host: _Host = None,
    port: Annotated[int | None, typer.Option(help="ClickHouse endpoint [8123].")] = None,
) -> None:
    """Run the embedded engine and its ClickHouse endpoint alone, for `receiver` and `api`.

    They find it by METERING_CLICKHOUSE_URL=clickhouse://admin:password@host:8123/metering, with the password of
    METERING_CLICKHOUSE_ADMIN_PASSWORD here. Each option is also a setting; a port of 0 is any free one.
    """
    with _plain_errors():
        settings = Settings(**_given({"data_dir": data_dir}))
        api_settings = config.Settings(**_given({"clickhouse_host": host, "clickhouse_port": port}))
        _log_to(settings)
        uvloop.run(serve_engine(settings, api_settings, SystemClock(), _announce_engine))
    typer.echo("stopped")


def _run_receiver(
    given: dict[str, Any], given_api: dict[str, Any], api_class: type[config.Settings]
) -> None:
    with _plain_errors():
        settings = Settings(**_given(given))
        api_settings = api_class(**_given(given_api))
        _log_to(settings)
        is_drained = uvloop.run(serve(settings, api_settings, SystemClock(), _announce))
    typer.echo(
        "stopped; everything acknowledged is in the database"
        if is_drained
        else "stopped; some acknowledged usage waits in the spool for the next start"
    )


@contextmanager
def _plain_errors() -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        for problem in error.errors():
            name = "METERING_" + "_".join(str(part) for part in problem["loc"]).upper()
            typer.echo(f"error: {name} is {problem['input']!r}: {problem['msg']}", err=True)
        raise typer.Exit(1) from error
    except MeteringError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _log_to(settings: Settings) -> None:
    logging.basicConfig(
        level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )


def _announce_api(address: str) -> None:
    typer.echo(f"query API   {address}   (documentation: {address}/docs)")
    typer.echo("ready")


def _announce_engine(address: str) -> None:
    typer.echo(f"ClickHouse  {address}")
    typer.echo("ready")


def _announce(addresses: Addresses) -> None:
    typer.echo(f"OTLP/gRPC   {addresses.otlp_grpc}")
    typer.echo(f"OTLP/HTTP   {addresses.otlp_http}")
    typer.echo(f"query API   {addresses.api}   (documentation: {addresses.api}/docs)")
    if addresses.clickhouse is not None:
        typer.echo(
            f"ClickHouse  {addresses.clickhouse}   (user grafana_reader, password: an API key)"
        )
    if addresses.admin_key is not None:
        typer.echo(f"admin key   {addresses.admin_key}   (shown this once; keep it)")
    typer.echo("ready")
