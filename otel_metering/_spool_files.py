"""The files in which usage waits, seen from outside of the processes that own them.

Reading changes nothing: a file is opened read-only, and its lock is only tried. What is moved is moved
under the lock, as every owner does.
"""

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)

from otel_metering._cell_file import SUFFIX as CELLS
from otel_metering._encode import LOGS
from otel_metering._outbox import REFUSED
from otel_metering._spool_integrity import check
from otel_metering.errors import ConfigurationError, SpoolInUseError
from otel_metering.spool import Spool, open_spool

_DAMAGED: Final = ".damaged"
"""End of the names of what a salvage keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolFile:
    """One file, at the moment it was looked at.

    Attributes:
        path: Where it is.
        service: Whose.
        kind: "waiting", "refused", "cells" (usage that was not flushed yet) or "kept" (the damaged file
            that a salvage replaced).
        is_owned: Whether a running process has it.
        requests: In it.
        bytes: Of the requests; of cells and kept files, of the file.
        oldest_ns: When the oldest request's usage ended, Unix epoch; None: there is none.
        damage: What is wrong; empty: nothing, or a running process has it and it was not checked.
    """

    path: Path
    service: str
    kind: str
    is_owned: bool
    requests: int = 0
    bytes: int = 0
    oldest_ns: int | None = None
    damage: str = ""


def service_folders(spool_dir: Path, service: str | None) -> list[tuple[str, Path]]:
    """(service, its folder), by name; `service` alone if given."""
    if not spool_dir.is_dir():
        return []
    found = sorted((unquote(path.name), path) for path in spool_dir.iterdir() if path.is_dir())
    return [(name, path) for name, path in found if service in (None, name)]


def look(spool_dir: Path, service: str | None) -> list[SpoolFile]:
    """Every file, by service and name."""
    found = []
    for name, folder in service_folders(spool_dir, service):
        for path in sorted(folder.iterdir()):
            if path.suffix in (".db", CELLS, _DAMAGED):
                with contextlib.suppress(FileNotFoundError):  # its owner just ended in order
                    found.append(_look_at(name, path))
    return found


def refused_files(spool_dir: Path, service: str | None) -> list[SpoolFile]:
    """The files with requests that were refused."""
    return [file for file in look(spool_dir, service) if file.kind == "refused"]


def refused_requests(file: SpoolFile) -> list[tuple[int, str, str, bytes]]:
    """(number, signal, reason, request) of each refused request in a file.

    Raises:
        ConfigurationError: It cannot be read.
    """
    try:
        with contextlib.closing(_open_read_only(file.path)) as db:
            rows = db.execute("SELECT id, key, payload FROM entries ORDER BY id").fetchall()
    except sqlite3.Error as error:
        raise ConfigurationError(f"{file.path} cannot be read: {error}") from error
    return [(number, *_parted(key), payload) for number, key, payload in rows]


def send_again(file: SpoolFile, new_id: Callable[[], str]) -> int:
    """Put the refused requests of a file back among those that wait; returns how many.

    They become a spool of an ended process, which the next process of the service, or a drain, sends. A
    crash half way leaves a request in both: the receiver sees doubles.

    Raises:
        SpoolInUseError: A running process has the file.
    """
    moved = 0
    with _owned(file.path) as refused:
        waiting = open_spool(file.path.with_name(f"{new_id()}.db"))
        try:
            while (entry := refused.first()) is not None:
                signal, _ = _parted(entry.key)
                waiting.append([(signal, entry.payload)])
                refused.forget(entry)
                moved += 1
        finally:
            waiting.close()
    return moved


def delete(file: SpoolFile) -> int:
    """Delete the refused requests of a file, for good; returns how many.

    Raises:
        SpoolInUseError: A running process has the file.
    """
    deleted = 0
    with _owned(file.path) as refused:
        while (entry := refused.first()) is not None:
            refused.forget(entry)
            deleted += 1
    return deleted


@contextlib.contextmanager
def _owned(path: Path) -> Iterator[Spool]:
    """The spool, locked; its files are deleted if it is empty in the end."""
    try:
        spool = open_spool(path)
    except SpoolInUseError as error:
        raise SpoolInUseError(
            f"{path} is in use by a running process; it lets go of it within a minute"
        ) from error
    try:
        yield spool
    finally:
        if spool.entry_count == 0:
            spool.delete()
        else:
            spool.close()


def _look_at(service: str, path: Path) -> SpoolFile:
    if path.suffix != ".db":
        kind = "cells" if path.suffix == CELLS else "kept"
        owner = path.with_suffix(".db")
        return SpoolFile(
            path=path,
            service=service,
            kind=kind,
            is_owned=kind == "cells" and _is_owned(owner),
            bytes=path.stat().st_size,
        )
    kind = "refused" if path.name.endswith(REFUSED) else "waiting"
    is_owned = _is_owned(path)
    damage = ""
    try:
        if not is_owned:
            check(path, None)
        requests, size, oldest = _contents(path)
    except (ConfigurationError, sqlite3.Error) as error:
        requests, size, oldest, damage = 0, path.stat().st_size, None, str(error)
    return SpoolFile(
        path=path,
        service=service,
        kind=kind,
        is_owned=is_owned,
        requests=requests,
        bytes=size,
        oldest_ns=oldest,
        damage=damage,
    )


def _is_owned(path: Path) -> bool:
    try:
        fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _contents(path: Path) -> tuple[int, int, int | None]:
    with contextlib.closing(_open_read_only(path)) as db:
        requests, size = db.execute(
            "SELECT count(*), coalesce(sum(length(payload)), 0) FROM entries"
        ).fetchone()
        first = db.execute("SELECT key, payload FROM entries ORDER BY id LIMIT 1").fetchone()
    return requests, size, _time_of(*first) if first is not None else None


def _open_read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)


def _time_of(key: str, payload: bytes) -> int | None:
    """When the usage of a request ended, by its first point or record."""
    with contextlib.suppress(DecodeError, IndexError):
        if _parted(key)[0] == LOGS:
            logs = ExportLogsServiceRequest.FromString(payload)
            return logs.resource_logs[0].scope_logs[0].log_records[0].time_unix_nano
        metrics = ExportMetricsServiceRequest.FromString(payload)
        scope = metrics.resource_metrics[0].scope_metrics[0]
        return scope.metrics[0].sum.data_points[0].time_unix_nano
    return None


def _parted(key: str) -> tuple[str, str]:
    """A spool's key: the signal, and why it was refused if it was."""
    signal, _, reason = key.partition(" ")
    return signal, reason
