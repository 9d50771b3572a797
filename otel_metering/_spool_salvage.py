"""A damaged spool -> a new one with everything in it that is whole."""

import fcntl
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from otel_metering._spool_integrity import Mark, checksum_of, read_mark, write_mark
from otel_metering.errors import ConfigurationError
from otel_metering.spool import open_spool

_KEPT_SUFFIX = ".damaged"


@dataclass(slots=True, kw_only=True)
class Salvaged:
    """What became of a damaged spool.

    Attributes:
        entries: (key, payload) that are whole, oldest first.
        lost: Numbers of entries that are not, or are missing.
        states: (key, value) that are whole. None if no entry waits: the events of the database then know
            all that was counted, while a file that lost its end does not.
        lost_states: How many are not.
        sealed: Token of the sealed batch, and how many of `entries` are in it; None: there is none.
        kept: Where the damaged file is now.
    """

    entries: list[tuple[str, bytes]] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    states: list[tuple[bytes, bytes]] = field(default_factory=list)
    lost_states: int = 0
    sealed: tuple[str, int] | None = None
    kept: Path = Path()


def salvage(path: Path) -> Salvaged:
    """Put a new spool in the place of the damaged one at `path`; the damaged file is kept beside it.

    Raises:
        ConfigurationError: A process has it, it is not there, or an earlier salvage is in the way.
        OSError: The disk refused; both files are there.
    """
    kept, fresh = Path(f"{path}{_KEPT_SUFFIX}"), Path(f"{path}.new")
    if not path.exists():
        raise ConfigurationError(f"there is no spool {path}")
    if kept.exists():
        raise ConfigurationError(f"{kept} is from an earlier salvage; move it away first")
    with _locked(path) as lock_fd:
        found = _read(path, read_mark(lock_fd))
        found.kept = kept
        if not found.entries:
            found.states, found.lost_states = [], 0
        _remove(fresh)
        mark = _write(fresh, found)
        for suffix in ("-wal", "-shm", ""):
            with suppress(FileNotFoundError):
                Path(f"{path}{suffix}").rename(f"{kept}{suffix}")
        fresh.rename(path)
        write_mark(lock_fd, mark)
        _remove(fresh)
    return found


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    lock_fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield lock_fd
    except BlockingIOError as error:
        raise ConfigurationError(
            f"the spool {path} belongs to a running process; stop it first"
        ) from error
    finally:
        os.close(lock_fd)


def _read(path: Path, mark: Mark | None) -> Salvaged:
    found = Salvaged()
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
        sealed_id, token = 0, ""
        with suppress(sqlite3.Error, TypeError):
            token, sealed_id = db.execute("SELECT token, last_id FROM sealed").fetchone()
        first = max(_number(db, "SELECT min(id) FROM entries"), 1)
        last = _number(db, "SELECT max(seq) FROM sqlite_sequence")
        if mark is not None and mark.spool_id == _text(db, "SELECT spool_id FROM identity"):
            first, last = max(first, mark.dropped + 1), max(last, mark.appended)
        in_sealed = 0
        for number in range(first, last + 1):
            entry = _entry(db, number)
            if entry is None:
                found.lost.append(number)
                continue
            found.entries.append(entry)
            in_sealed += number <= sealed_id
        if in_sealed:
            found.sealed = (token, in_sealed)
        _read_states(db, found)
    return found


def _entry(db: sqlite3.Connection, number: int) -> tuple[str, bytes] | None:
    with suppress(sqlite3.Error, TypeError, AttributeError):
        sql = "SELECT key, payload, checksum FROM entries WHERE id = ?"
        key, payload, checksum = db.execute(sql, (number,)).fetchone()
        if checksum == checksum_of(key.encode(), payload):
            return key, payload
    return None


def _read_states(db: sqlite3.Connection, found: Salvaged) -> None:
    for slot in range(1, _number(db, "SELECT max(slot) FROM states") + 1):
        with suppress(sqlite3.Error, TypeError):
            sql = "SELECT key, value, checksum FROM states WHERE slot = ?"
            key, value, checksum = db.execute(sql, (slot,)).fetchone()
            if checksum == checksum_of(key, value):
                found.states.append((key, value))
                continue
        found.lost_states += 1


def _number(db: sqlite3.Connection, sql: str) -> int:
    with suppress(sqlite3.Error):
        return int(db.execute(sql).fetchone()[0] or 0)
    return 0


def _text(db: sqlite3.Connection, sql: str) -> str:
    with suppress(sqlite3.Error, TypeError):
        return str(db.execute(sql).fetchone()[0])
    return ""


def _write(fresh: Path, found: Salvaged) -> Mark:
    """A new spool with what was found; returns its mark."""
    spool = open_spool(fresh, max_bytes=sys.maxsize)
    try:
        spool.append(found.entries, found.states)
        if found.sealed is not None:
            spool.restore_sealed(*found.sealed)
        return spool.mark
    finally:
        spool.close()


def _remove(fresh: Path) -> None:
    for suffix in ("", "-wal", "-shm", ".lock"):
        Path(f"{fresh}{suffix}").unlink(missing_ok=True)
