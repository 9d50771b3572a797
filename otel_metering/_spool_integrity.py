"""Is a spool's file what was written? Each entry, and the end of it.

SQLite ends its log (the `-wal` file) at the first frame that is damaged, and goes on without a word: what
was committed behind it is gone, and what was deleted behind it is back. So the number of the last entry
that was appended, and of the last that was dropped, are also written into the lock file, *after* each
commit: never more than what is on disk, also when the power fails and the mark is some seconds old.
"""

import os
import sqlite3
import zlib
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from otel_metering.errors import ConfigurationError

NOT_AS_WRITTEN: Final = "the bytes are not those that were written"

_BYTES: Final = 128


class Mark(NamedTuple):
    """What is known of a spool without its database.

    Attributes:
        spool_id: Of the database it is about; a new database has another.
        appended: Number of the last entry that is on disk; 0: none ever was.
        dropped: Number of the last entry that was delivered and forgotten.
    """

    spool_id: str
    appended: int
    dropped: int


def read_mark(fd: int) -> Mark | None:
    """The mark in the lock file; None: there is none, or it is not readable."""
    with suppress(OSError, ValueError, UnicodeDecodeError):
        spool_id, appended, dropped = os.pread(fd, _BYTES, 0).decode("ascii").split()
        return Mark(spool_id, int(appended), int(dropped))
    return None


def write_mark(fd: int, mark: Mark) -> None:
    """Replace the mark, without waiting for the disk. A mark that is too old only notices less."""
    with suppress(OSError):
        text = f"{mark.spool_id} {mark.appended:020} {mark.dropped:020}\n"
        os.pwrite(fd, text.encode("ascii"), 0)


@dataclass(slots=True, kw_only=True)
class Found:
    """What is in a file.

    Attributes:
        spool_id: Of the database; empty: it is new.
        last_id: Number of the last entry that was ever appended.
        dropped_id: Entries up to this one were delivered, also those that are in the file again because
            the end of its log was lost.
        entry_count: Entries behind it that are whole.
        byte_count: Bytes of their payloads.
        problems: What is not as it should be; empty: nothing.
    """

    spool_id: str = ""
    last_id: int = 0
    dropped_id: int = 0
    entry_count: int = 0
    byte_count: int = 0
    problems: list[str] = field(default_factory=list)


def checksum_of(key: bytes, value: bytes) -> int:
    """CRC-32: a gigabyte a second, and it notices what a disk does to bytes."""
    return zlib.crc32(value, zlib.crc32(key))


def check(path: Path, mark: Mark | None) -> Found:
    """Look at everything in a spool's file, without changing it: a damaged log must stay as it is.

    Args:
        path: The file, which may be missing.
        mark: What is known of it from outside.

    Raises:
        ConfigurationError: It is damaged; the message says what is lost at most, and what to do.
        sqlite3.Error: It cannot be read.
    """
    found = Found()
    if path.exists():
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            _inspect(db, mark, found)
    if found.problems:
        raise ConfigurationError(
            f"the spool {path} is damaged: {'; '.join(found.problems)}. What is named here was "
            f"acknowledged, and is lost at most; {found.entry_count} entries wait and are whole. Restore "
            "the file and its -wal as they were, or go on without what is lost: "
            f"otel-metering spool salvage {path}"
        )
    if not found.spool_id and mark is not None and mark.appended > mark.dropped:
        raise ConfigurationError(
            f"the spool {path} is gone, and {mark.appended - mark.dropped} acknowledged entries waited "
            f"in it; put it and its -wal back, or remove {path}.lock to go on without them"
        )
    return found


def _inspect(db: sqlite3.Connection, mark: Mark | None, found: Found) -> None:
    structure = str(_value(db, "PRAGMA quick_check(1)"))
    if structure != "ok":
        found.problems.append(f"its structure is broken ({structure.splitlines()[-1]})")
        return
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_schema")}
    if "entries" not in tables:
        return
    found.last_id = _value(db, "SELECT coalesce(max(seq), 0) FROM sqlite_sequence")
    if "identity" in tables:
        found.spool_id = _value(db, "SELECT coalesce(max(spool_id), '') FROM identity")
    if mark is not None and mark.spool_id == found.spool_id:
        found.dropped_id = mark.dropped
        if found.last_id < mark.appended:
            found.problems.append(
                f"its end is lost, with the entries {found.last_id + 1} to {mark.appended}"
            )
    _look_at_entries(db, found)
    if "states" in tables:
        _look_at_states(db, found)


def _look_at_entries(db: sqlite3.Connection, found: Found) -> None:
    has_checksums = any(row[1] == "checksum" for row in db.execute("PRAGMA table_info(entries)"))
    checksum_column = "checksum" if has_checksums else "NULL"
    altered: list[str] = []
    missing: list[str] = []
    expected: int | None = None
    sql = f"SELECT id, key, payload, {checksum_column} FROM entries WHERE id > ? ORDER BY id"  # noqa: S608 - from above
    for row_id, key, payload, checksum in db.execute(sql, (found.dropped_id,)):
        if expected is not None and row_id != expected:
            missing.append(f"{expected} to {row_id - 1}")
        expected = row_id + 1
        if checksum not in (None, checksum_of(key.encode(), payload)):
            altered.append(str(row_id))
        else:
            found.entry_count += 1
            found.byte_count += len(payload)
    if expected is not None and expected <= found.last_id:
        missing.append(f"{expected} to {found.last_id}")
    if altered:
        found.problems.append(f"entries {', '.join(altered)}: {NOT_AS_WRITTEN}")
    if missing:
        found.problems.append(f"entries {', '.join(missing)} are missing")


def _look_at_states(db: sqlite3.Connection, found: Found) -> None:
    states = db.execute("SELECT key, value, checksum FROM states")
    broken = sum(checksum != checksum_of(key, value) for key, value, checksum in states)
    if broken:
        found.problems.append(f"{broken} states: {NOT_AS_WRITTEN}")


def _value(db: sqlite3.Connection, sql: str) -> Any:  # noqa: ANN401 - whatever the column is
    return db.execute(sql).fetchone()[0]
