"""A durable queue in one SQLite file: first in, first out, exactly as it was put.

Used by the SDK (OTLP requests on their way out) and by the receiver (rows on their way into the
database). Rules that live only here:

- `append` returns after the transaction is on disk. With `durability="full"` (fsync at each
  commit) that includes a power failure; with `"normal"` it is any end of the process.
- `states` are small values by key (how far a cumulative stream was counted) that change in the same
  transaction as entries are put: after a crash both are there, or neither.
- A batch is *sealed* before it is sent: which entries it has, and its token, are in the file, so
  that a crash leads to the same batch with the same token, and the destination can tell.
- One process owns a file at a time. `open_spool` locks it and says so.
- What is read is what was written: each entry and state has a checksum, entries are numbered without
  gaps, and the number of the last one is also kept outside (`_spool_integrity`). A damaged file is not opened.

Any thread may call any method; calls are serialized.
"""

import contextlib
import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from otel_metering import _spool_integrity as integrity
from otel_metering._spool_integrity import NOT_AS_WRITTEN, Mark, checksum_of, write_mark
from otel_metering._spool_schema import prepare
from otel_metering.errors import (
    ConfigurationError,
    SpoolFullError,
    SpoolInUseError,
    UnavailableError,
)

_KEYS_PER_QUERY = 500
"""Values bound to one statement: below SQLite's limit in every build."""

_ABANDONED: list[sqlite3.Connection] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry: `key` says what the payload is, `payload` is the caller's bytes."""

    id: int
    key: str
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Sealed entries, oldest first, and the token they are always sent with."""

    token: str
    entries: tuple[Entry, ...]


class Spool:
    """The queue. Use `open_spool` to make one."""

    def __init__(
        self, path: Path, *, durability: Literal["full", "normal"], max_bytes: int, lock_fd: int
    ) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._lock_fd = lock_fd
        self.max_bytes = max_bytes
        self._is_marked = durability == "full"
        found = integrity.check(path, integrity.read_mark(lock_fd) if self._is_marked else None)
        self._entry_count, self._byte_count = found.entry_count, found.byte_count
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            spool_id = prepare(self._db, durability, found.dropped_id)
        except BaseException:
            self._db.close()
            raise
        self._mark = Mark(spool_id, found.last_id, found.last_id - found.entry_count)
        self._move_mark()

    @property
    def entry_count(self) -> int:
        """Entries not yet dropped, sealed ones included."""
        return self._entry_count

    @property
    def byte_count(self) -> int:
        """Payload bytes not yet dropped, sealed ones included."""
        return self._byte_count

    @property
    def mark(self) -> Mark:
        """How far it came."""
        return self._mark

    def append(
        self,
        entries: Sequence[tuple[str, bytes]],
        states: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        """Put `(key, payload)` entries at the end, all or none; on disk when this returns.

        Args:
            entries: What waits to be sent.
            states: (key, value) that replace the values of these keys, in the same transaction.

        Raises:
            SpoolFullError: They would not fit into `max_bytes`; none was put.
            UnavailableError: The disk refused (full, read-only, failing); none was put.
        """
        size = sum(len(payload) for _, payload in entries)
        with self._lock:
            if self._byte_count + size > self.max_bytes:
                raise SpoolFullError(self._byte_count, self.max_bytes)
            self._write(
                (
                    "INSERT INTO entries (key, payload, checksum) VALUES (?, ?, ?)",
                    [
                        (key, payload, checksum_of(key.encode(), payload))
                        for key, payload in entries
                    ],
                ),
                (
                    "INSERT INTO states (key, value, checksum) VALUES (?, ?, ?) "
                    "ON CONFLICT (key) DO UPDATE SET value = excluded.value, checksum = excluded.checksum",
                    [(key, value, checksum_of(key, value)) for key, value in states],
                ),
            )
            self._entry_count += len(entries)
            self._byte_count += size
            self._move_mark(appended=self._mark.appended + len(entries))

    def states(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The states of those of `keys` that have one.

        Raises:
            UnavailableError: The disk refused.
        """
        found: dict[bytes, bytes] = {}
        with self._lock:
            for first in range(0, len(keys), _KEYS_PER_QUERY):
                some = keys[first : first + _KEYS_PER_QUERY]
                marks = ",".join("?" * len(some))
                # Only question marks are put into the statement.
                sql = f"SELECT key, value, checksum FROM states WHERE key IN ({marks})"  # noqa: S608
                for key, value, checksum in self._read(sql, *some):
                    if checksum != checksum_of(key, value):
                        raise UnavailableError(
                            f"the spool {self.path} is damaged: {NOT_AS_WRITTEN}"
                        )
                    found[key] = value
        return found

    def has_states(self) -> bool:
        """Whether there is any state.

        Raises:
            UnavailableError: The disk refused.
        """
        with self._lock:
            return bool(self._read("SELECT 1 FROM states LIMIT 1"))

    def seal(self, new_token: str, *, max_entries: int, max_bytes: int) -> Batch | None:
        """Return the oldest sealed batch, else seal the oldest entries under `new_token`.

        A batch has at least one entry, and as many more as fit into `max_entries` and `max_bytes`.
        The same batch is returned until it is dropped. None: the spool is empty.

        Raises:
            UnavailableError: The disk refused.
        """
        with self._lock:
            sealed = self._read("SELECT token, last_id FROM sealed")
            if sealed:
                return self._batch(*sealed[0])
            last_id = self._last_id_of_next_batch(max_entries, max_bytes)
            if last_id is None:
                return None
            self._write(("INSERT INTO sealed VALUES (?, ?)", [(new_token, last_id)]))
            return self._batch(new_token, last_id)

    def restore_sealed(self, token: str, count: int) -> None:
        """Seal the first `count` entries under the token they had in a file that was damaged."""
        with self._lock:
            self._write(("INSERT INTO sealed VALUES (?, ?)", [(token, self._mark.dropped + count)]))

    def drop(self, batch: Batch) -> None:
        """Forget a sealed batch: its destination has it. Dropping twice is harmless.

        Raises:
            UnavailableError: The disk refused; the batch is still there.
        """
        with self._lock:
            if not self._read("SELECT token FROM sealed WHERE token = ?", batch.token):
                return
            self._write(
                ("DELETE FROM entries WHERE id <= ?", [(batch.entries[-1].id,)]),
                ("DELETE FROM sealed WHERE token = ?", [(batch.token,)]),
            )
            self._entry_count -= len(batch.entries)
            self._byte_count -= sum(len(entry.payload) for entry in batch.entries)
            self._move_mark(dropped=batch.entries[-1].id)

    def first(self) -> Entry | None:
        """The oldest entry, without sealing it: for a sender to whom the entry itself is its token.

        It writes nothing, so that a full disk can be drained. None: the spool is empty.

        Raises:
            UnavailableError: The disk refused.
        """
        with self._lock:
            return next(iter(self._oldest(1)), None)

    def first_together(self, key: str, *, max_entries: int, max_bytes: int) -> tuple[Entry, ...]:
        """The oldest entry and, if `key` is its own, those of that key that follow it, within the bounds.

        Raises:
            UnavailableError: The disk refused.
        """
        found: list[Entry] = []
        total = 0
        with self._lock:
            for entry in self._oldest(max_entries):
                total += len(entry.payload)
                if found and (entry.key != key or total > max_bytes):
                    break
                found.append(entry)
                if entry.key != key:
                    break
        return tuple(found)

    def forget(self, *entries: Entry) -> bool:
        """`entries`, the oldest, are at their destination. Forgetting twice is harmless.

        Returns:
            Whether the file forgot it too. If the disk refused, it will with a later one.
        """
        with self._lock:
            for entry in entries:
                if entry.id > self._mark.dropped:
                    self._entry_count -= 1
                    self._byte_count -= len(entry.payload)
                    self._move_mark(dropped=entry.id)
            try:
                self._write(*_deletion(entries[-1].id))
            except UnavailableError:
                return False
            return True

    def postpone(self, entry: Entry) -> None:
        """Move `entry`, the oldest, behind all others.

        Raises:
            UnavailableError: The disk refused; it is where it was.
        """
        with self._lock:
            self._write(
                (
                    "INSERT INTO entries (key, payload, checksum) "
                    "SELECT key, payload, checksum FROM entries WHERE id = ?",
                    [(entry.id,)],
                ),
                *_deletion(entry.id),
            )
            self._move_mark(appended=self._mark.appended + 1, dropped=entry.id)

    def entries(self) -> Iterator[Entry]:
        """Every entry, oldest first, sealed ones included: for rebuilding state at start."""
        last_id = self._mark.dropped
        while True:
            with self._lock:
                rows = self._read(
                    "SELECT id, key, payload, checksum FROM entries WHERE id > ? ORDER BY id LIMIT 64",
                    last_id,
                )
            if not rows:
                return
            for row in rows:
                yield self._entry(*row)
            last_id = rows[-1][0]

    def close(self) -> None:
        """Close the file and release its lock; what is in it stays. Closing twice is harmless."""
        with self._lock:
            self._db.close()
            if self._lock_fd >= 0:
                os.close(self._lock_fd)
                self._lock_fd = -1

    def delete(self) -> None:
        """Close the file and delete it, with all that belongs to it; only an empty one may go.

        What cannot be deleted stays, as an empty spool.
        """
        self.close()
        # The file itself last: as long as it is there, whoever looks for orphans finds it and goes on.
        for suffix in ("-wal", "-shm", ".lock", ""):
            with contextlib.suppress(OSError):
                Path(f"{self.path}{suffix}").unlink()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's file without touching it.

        SQLite forbids using, and even closing, a connection that was opened before the fork; so it
        is kept, unused, until the process ends. Only the child's hold on the lock is given up.
        """
        _ABANDONED.append(self._db)
        self._db = sqlite3.connect(":memory:")
        self._db.close()  # so that whatever still has this spool cannot use it
        os.close(self._lock_fd)
        self._lock_fd = -1

    def _move_mark(self, *, appended: int | None = None, dropped: int | None = None) -> None:
        self._mark = Mark(
            self._mark.spool_id,
            self._mark.appended if appended is None else appended,
            self._mark.dropped if dropped is None else dropped,
        )
        if self._is_marked:
            write_mark(self._lock_fd, self._mark)

    def _oldest(self, count: int) -> Iterator[Entry]:
        # A cursor: what is not asked for is not read.
        try:
            for row in self._db.execute(
                "SELECT id, key, payload, checksum FROM entries WHERE id > ? ORDER BY id LIMIT ?",
                (self._mark.dropped, count),
            ):
                yield self._entry(*row)
        except sqlite3.Error as error:
            raise UnavailableError(f"the spool {self.path} cannot be read: {error}") from error

    def _last_id_of_next_batch(self, max_entries: int, max_bytes: int) -> int | None:
        last_id: int | None = None
        total = 0
        for row_id, size in self._read(
            "SELECT id, length(payload) FROM entries ORDER BY id LIMIT ?", max_entries
        ):
            total += size
            if last_id is not None and total > max_bytes:
                break
            last_id = row_id
        return last_id

    def _batch(self, token: str, last_id: int) -> Batch:
        rows = self._read(
            "SELECT id, key, payload, checksum FROM entries WHERE id <= ? ORDER BY id", last_id
        )
        return Batch(token=token, entries=tuple(self._entry(*row) for row in rows))

    def _entry(self, row_id: int, key: str, payload: bytes, checksum: int | None) -> Entry:
        if checksum not in (None, checksum_of(key.encode(), payload)):
            raise UnavailableError(
                f"the spool {self.path} is damaged: entry {row_id}: {NOT_AS_WRITTEN}"
            )
        return Entry(id=row_id, key=key, payload=payload)

    def _read(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise UnavailableError(f"the spool {self.path} cannot be read: {error}") from error

    def _write(self, *statements: tuple[str, Iterable[tuple[object, ...]]]) -> None:
        """Run `statements` in one transaction; it is on disk when this returns."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for sql, rows in statements:
                    self._db.executemany(sql, rows)
                self._db.execute("COMMIT")
            except sqlite3.Error:
                self._roll_back()
                raise
        except sqlite3.Error as error:
            raise UnavailableError(f"the spool {self.path} cannot be written: {error}") from error

    def _roll_back(self) -> None:
        # A full disk may have rolled back already; then there is no transaction to end.
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")


def _deletion(last_id: int) -> tuple[tuple[str, Iterable[tuple[object, ...]]], ...]:
    """Statements that delete the entries up to `last_id`, and a seal upon them."""
    return (
        ("DELETE FROM entries WHERE id <= ?", [(last_id,)]),
        ("DELETE FROM sealed WHERE last_id <= ?", [(last_id,)]),
    )


def open_spool(
    path: Path, *, durability: Literal["full", "normal"] = "full", max_bytes: int = 4 * 2**30
) -> Spool:
    """Open or make the spool at `path`, and lock it for this process.

    Args:
        path: The SQLite file; its folder is made if missing. The lock is `<path>.lock`.
        durability: "full": a commit survives power loss. "normal": any end of the process.
        max_bytes: Bound on the payload bytes that wait.

    Raises:
        SpoolInUseError: Another process has it.
        ConfigurationError: The folder or file cannot be used, or it is damaged.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock_fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"the spool {path} cannot be made: {error}; choose a folder that can be written"
        ) from error
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return Spool(path, durability=durability, max_bytes=max_bytes, lock_fd=lock_fd)
    except BlockingIOError as error:
        os.close(lock_fd)
        raise SpoolInUseError(
            f"the spool {path} belongs to another running process; stop it or choose another folder"
        ) from error
    except sqlite3.Error as error:
        os.close(lock_fd)
        raise ConfigurationError(
            f"the spool {path} is not usable: {error}; if it is damaged, restore it, or save what is "
            f"whole: otel-metering spool salvage {path}"
        ) from error
    except ConfigurationError:
        os.close(lock_fd)
        raise
