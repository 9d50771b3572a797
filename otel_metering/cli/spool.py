"""`otel-metering spool`: the files in which usage waits; look at them, empty them, repair them."""

import random
import uuid
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Final

import typer
from google.protobuf.json_format import MessageToJson
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from rich.table import Table

from otel_metering._config import Settings, read_settings
from otel_metering._drain import drain
from otel_metering._encode import LOGS
from otel_metering._spool_files import (
    SpoolFile,
    delete,
    look,
    refused_files,
    refused_requests,
    send_again,
    service_folders,
)
from otel_metering._spool_salvage import salvage
from otel_metering.cli.output import Format, print_json, print_table
from otel_metering.clock import SystemClock
from otel_metering.errors import InvalidUsageError, SpoolInUseError, UnavailableError

SpoolDir = Annotated[
    str, typer.Option(help="The folder of all spools [METERING_SPOOL_DIR, or the SDK's default].")
]
Service = Annotated[str, typer.Option(help="Only of this service [all].")]

_WORDS: Final = {True: "running", False: "ended"}


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    group = typer.Typer(
        help="The files in which usage waits: status, drain, dead-letters, salvage.",
        no_args_is_help=True,
    )
    group.command(name="status")(_status)
    group.command(name="drain")(_drain)
    group.command(name="dead-letters")(_dead_letters)
    group.command(name="salvage")(_salvage)
    app.add_typer(group, name="spool")


def _status(
    *,
    spool_dir: SpoolDir = "",
    service: Service = "",
    format_: Annotated[Format, typer.Option("--format", help="table or json.")] = Format.TABLE,
) -> None:
    """Show what waits on this machine to be sent, and for how long."""
    files = look(_settings(spool_dir).spool_dir, service or None)
    if format_ is Format.JSON:
        print_json([{**asdict(file), "path": str(file.path)} for file in files])
        return
    if not files:
        typer.echo("nothing waits")
        return
    now_ns = SystemClock().now_ns()
    table = Table("service", "file", "kind", "owner", "requests", "bytes", "oldest")
    for file in files:
        owner = _WORDS[file.is_owned]
        age = "" if file.oldest_ns is None else _age(now_ns - file.oldest_ns)
        kind = "damaged" if file.damage else file.kind
        numbers = (str(file.requests), str(file.bytes))
        table.add_row(file.service, file.path.name, kind, owner, *numbers, age)
    print_table(table)
    for file in files:
        if file.damage:
            typer.echo(f"{file.path}: {file.damage}")


def _drain(
    *,
    spool_dir: SpoolDir = "",
    service: Service = "",
    endpoint: Annotated[
        str, typer.Option(help="OTLP base URL [METERING_ENDPOINT, OTEL_EXPORTER_OTLP_ENDPOINT].")
    ] = "",
    timeout: Annotated[float, typer.Option(help="Seconds for each service.", min=1)] = 60.0,
) -> None:
    """Send what ended processes left, with the settings of the SDK (key, TLS, protocol: METERING_*)."""
    settings = _settings(spool_dir, endpoint)
    left = 0
    for name, folder in service_folders(settings.spool_dir, service or None):
        done = drain(
            replace(settings, service_name=name),
            timeout_seconds=timeout,
            clock=SystemClock(),
            jitter=random.random,
            new_id=_new_id,
        )
        typer.echo(f"{name}: {done.sent} sent, {done.refused} refused, {done.left} left")
        left += done.left + sum(bool(file.damage) for file in look(folder.parent, name))
    if left:
        raise UnavailableError("some usage could not be sent: otel-metering spool status")


def _dead_letters(
    *,
    spool_dir: SpoolDir = "",
    service: Service = "",
    show: Annotated[
        int | None, typer.Option(help="Print the request with this number.", min=1)
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Let all of them be sent again.")] = False,
    delete_: Annotated[bool, typer.Option("--delete", help="Delete all of them.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before deleting.")] = False,
) -> None:
    """List requests that the receiver refused for good, and why; send them again, or delete them."""
    files = refused_files(_settings(spool_dir).spool_dir, service or None)
    if retry:
        _print_done(
            "wait again; a running process of the service, or a drain, sends them",
            *_each(files, lambda file: send_again(file, _new_id)),
        )
    elif delete_:
        total = sum(file.requests for file in files)
        if not yes and total:
            typer.confirm(f"Delete the usage in {total} requests for good?", abort=True)
        _print_done("are deleted", *_each(files, delete))
    elif show is not None:
        typer.echo(_shown_request(files, show))
    else:
        _list(files)


def _each(
    files: list[SpoolFile], move: Callable[[SpoolFile], int]
) -> tuple[int, list[SpoolInUseError]]:
    """Do it to every file that no running process has; how many requests, and those files."""
    moved, in_use = 0, []
    for file in files:
        try:
            moved += move(file)
        except SpoolInUseError as error:
            in_use.append(error)
    return moved, in_use


def _print_done(what: str, moved: int, in_use: list[SpoolInUseError]) -> None:
    typer.echo(f"{moved} requests {what}")
    if in_use:
        raise SpoolInUseError("; ".join(map(str, in_use)))


def _list(files: list[SpoolFile]) -> None:
    table = Table("number", "service", "signal", "bytes", "why", "file")
    number = 0
    for file in files:
        for _, signal, reason, payload in refused_requests(file):
            number += 1
            size = str(len(payload))
            table.add_row(str(number), file.service, signal, size, reason, file.path.name)
    if number == 0:
        typer.echo("nothing was refused")
        return
    print_table(table)


def _shown_request(files: list[SpoolFile], number: int) -> str:
    requests = [request for file in files for request in refused_requests(file)]
    if number > len(requests):
        raise InvalidUsageError(f"--show is {number}; there are {len(requests)} requests")
    _, signal, reason, payload = requests[number - 1]
    kind = ExportLogsServiceRequest if signal == LOGS else ExportMetricsServiceRequest
    return f"{reason}\n{MessageToJson(kind.FromString(payload))}"


def _salvage(
    path: Annotated[Path, typer.Argument(help="The file, for example receiver.db.")],
) -> None:
    """Replace a damaged spool by one that has all of it that is whole; the damaged file is kept."""
    found = salvage(path)
    typer.echo(f"{path}: {len(found.entries)} entries are whole and wait to be delivered")
    numbers = ", ".join(map(str, found.lost)) or "none"
    typer.echo(f"lost entries: {numbers}")
    if found.lost_states:
        typer.echo(
            f"lost states of cumulative streams: {found.lost_states}; "
            "what these streams had counted is counted again with their next point"
        )
    typer.echo(f"the damaged file is {found.kept}")


def _settings(spool_dir: str, endpoint: str = "") -> Settings:
    # What is on disk is looked at, whatever mode this shell's environment asks for.
    return read_settings(
        spool_dir=spool_dir or None, endpoint=endpoint or None, transport_mode="durable"
    )


def _new_id() -> str:
    return str(uuid.uuid4())  # noqa: TID251 -- where the command's ids come from


def _age(nanoseconds: int) -> str:
    seconds = max(nanoseconds // 10**9, 0)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
