"""Exports: lines from the API to a file that is there when it is whole, with a bar on the terminal."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, Final, Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from otel_metering.client import Filters, MeteringClient
from otel_metering.errors import ConfigurationError

UPDATE_EVERY: Final = 1_000
"""Lines between two looks at the bar: it must cost nothing beside the lines."""


class ExportFormat(StrEnum):
    """What an export is written as."""

    CSV = "csv"
    NDJSON = "ndjson"


def export(
    client: MeteringClient,
    path: Path | None,
    output: ExportFormat,
    *,
    filters: Filters,
    tenant_id: str | None,
    meter: str | None,
    from_: str | None,
    to: str | None,
) -> None:
    """Write all events of a range to a file, or to standard output.

    Raises:
        ConfigurationError: The file cannot be written; what was there before is untouched.
    """
    form: Literal["csv", "ndjson"] = "csv" if output is ExportFormat.CSV else "ndjson"
    lines = client.export_events(
        format=form, tenant_id=tenant_id, meter=meter, from_=from_, to=to, filters=filters
    )
    has_header = output is ExportFormat.CSV
    total = None
    if sys.stderr.isatty() and not filters:
        known = client.meters(tenant_id=tenant_id, from_=from_, to=to)
        total = sum(one.events for one in known if meter in {None, one.slug})
    if path is None:
        count, size = _copy(lines, sys.stdout.buffer, total, has_header=has_header)
        sys.stdout.buffer.flush()
        return
    try:
        with _replaced(path) as file:
            count, size = _copy(lines, file, total, has_header=has_header)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error}; choose another") from error
    print(f"{count:,} events, {size:,} bytes in {path}", file=sys.stderr)


def _copy(
    lines: Iterator[bytes], file: BinaryIO, total: int | None, *, has_header: bool
) -> tuple[int, int]:
    """Write all lines; returns how many, without a header, and how many bytes."""
    count, size = -1 if has_header else 0, 0
    with _progress() as progress:
        task = progress.add_task("events", total=total)
        for line in lines:
            file.write(line)
            count += 1
            size += len(line)
            if count % UPDATE_EVERY == 0:
                _show(progress, task, count, size)
        _show(progress, task, count, size)
    return max(count, 0), size


def _show(progress: Progress, task: TaskID, count: int, size: int) -> None:
    progress.update(task, completed=count, description=f"{count:,} events, {size / 1e6:,.1f} MB")


def _progress() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )


@contextmanager
def _replaced(path: Path) -> Iterator[BinaryIO]:
    """A new file beside `path`, which takes its place at the end, or is gone if there is an error."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
