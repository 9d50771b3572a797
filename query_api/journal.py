"""The reservations that this process admitted, on disk: what it lost, or Redis, is known again from here.

SQLite with `synchronous = NORMAL`: what was written survives any end of the process, not of the machine.
Leases are shorter than a machine takes to start; usage itself is in the spool, which survives that as well.
"""

import json
import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from otel_metering.errors import ConfigurationError, UnavailableError
from query_api.counters import KEPT_MS, Reservation, State

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS reservations (
    tenant_id TEXT NOT NULL,
    meter TEXT NOT NULL,
    reservation_id TEXT NOT NULL,
    quantity TEXT NOT NULL,
    remaining TEXT NOT NULL,
    dimensions TEXT NOT NULL,
    is_lease INTEGER NOT NULL,
    state TEXT NOT NULL,
    expires_ms INTEGER NOT NULL,
    scopes TEXT NOT NULL,
    PRIMARY KEY (tenant_id, meter, reservation_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS expiry ON reservations (expires_ms);
"""


class Journal:
    """One file; any thread may call any method."""

    def __init__(self, path: Path) -> None:
        """Open or make it.

        Raises:
            ConfigurationError: It cannot be used.
        """
        self._lock = threading.Lock()
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise ConfigurationError(
                f"the journal of reservations {path} cannot be used: {error}; if it is damaged, remove it: "
                "reservations that are active now are then forgotten"
            ) from error

    def put(self, reservations: Iterable[Reservation]) -> None:
        """Have these as they are now, all or none; in the file when this returns.

        Raises:
            UnavailableError: The disk refused; none was written.
        """
        rows = [
            (
                *one.tag,
                one.reservation_id,
                str(one.quantity),
                str(one.left),
                json.dumps(one.dimensions),
                int(one.is_lease),
                str(one.state),
                one.expires_ms,
                json.dumps(one.scopes),
            )
            for one in reservations
        ]
        if not rows:
            return
        sql = "INSERT OR REPLACE INTO reservations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.executemany(sql, rows)
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise UnavailableError(
                    f"the journal of reservations {self._path} cannot be written: {error}"
                ) from error

    def all(self, state: State | None = None, *, before_ms: int | None = None) -> list[Reservation]:
        """Every reservation, in this state, that ends before this moment; None: any.

        Raises:
            UnavailableError: The disk refused.
        """
        with self._lock:
            try:
                rows = self._db.execute(
                    "SELECT * FROM reservations WHERE (?1 IS NULL OR state = ?1) "
                    "AND (?2 IS NULL OR expires_ms < ?2) ORDER BY expires_ms",
                    (state, before_ms),
                ).fetchall()
            except sqlite3.Error as error:
                raise UnavailableError(
                    f"the journal of reservations {self._path} cannot be read: {error}"
                ) from error
        return [
            Reservation(
                tag=(tenant_id, meter),
                reservation_id=reservation_id,
                quantity=int(quantity),
                left=int(remaining),
                dimensions=tuple((name, value) for name, value in json.loads(dimensions)),
                is_lease=bool(is_lease),
                state=State(state),
                expires_ms=expires_ms,
                scopes=tuple(json.loads(scopes)),
            )
            for (
                tenant_id,
                meter,
                reservation_id,
                quantity,
                remaining,
                dimensions,
                is_lease,
                state,
                expires_ms,
                scopes,
            ) in rows
        ]

    def forget_old(self, now_ms: int) -> None:
        """Remove what ended so long ago that nobody remembers it.

        Raises:
            UnavailableError: The disk refused.
        """
        with self._lock:
            try:
                self._db.execute(
                    "DELETE FROM reservations WHERE expires_ms < ?", (now_ms - KEPT_MS,)
                )
            except sqlite3.Error as error:
                raise UnavailableError(
                    f"the journal of reservations {self._path} cannot be written: {error}"
                ) from error

    def close(self) -> None:
        """Close the file. Closing twice is harmless."""
        with self._lock:
            self._db.close()
