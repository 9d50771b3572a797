"""Applies the numbered SQL files of `migrations/`, each once, in order, forward only.

A file is recorded with its checksum when all its statements ran. Statements are idempotent
(`IF NOT EXISTS`), so a crash between statement and record is healed by running the file again. A file
that changed after it was applied stops the start: what the database has is then not what the file says.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from otel_metering.clock import Clock
from otel_metering.errors import ConfigurationError
from receiver.store import tables
from receiver.store.client import Store

_FILE = re.compile(r"(\d{4})_(\w+)\.sql")


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One file: `NNNN_name.sql`."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the file, hexadecimal."""
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def statements(self) -> list[str]:
        """Its statements, in order; each ends its line with a semicolon."""
        return split(self.sql)


def split(sql: str) -> list[str]:
    """The statements of a file, in order; each ends its line with a semicolon.

    A comment may have one at the end of a line, too: what has no statement is left out, because a server
    refuses it.
    """
    parts = (part.strip() for part in re.split(r";\s*$", sql, flags=re.M))
    return [part for part in parts if re.search(r"^(?!--).", part, flags=re.M)]


def shipped() -> list[Migration]:
    """Every migration of this release, in order."""
    found = []
    for file in files("receiver.store").joinpath("migrations").iterdir():
        match = _FILE.fullmatch(file.name)
        if match:
            found.append(
                Migration(
                    version=int(match[1]), name=match[2], sql=file.read_text(encoding="utf-8")
                )
            )
    return sorted(found, key=lambda migration: migration.version)


def pending(store: Store, migrations: Sequence[Migration]) -> list[Migration]:
    """Those of `migrations` that the database does not have yet, in order.

    Raises:
        ConfigurationError: An applied file has changed, or the database is newer than this release.
    """
    applied = _applied(store)
    for migration in migrations:
        if applied.get(migration.version, migration.checksum) != migration.checksum:
            raise ConfigurationError(
                f"migration {migration.version:04d}_{migration.name}.sql changed after it was applied; "
                "restore the released file, and put the change into a new one"
            )
    unknown = applied.keys() - {migration.version for migration in migrations}
    if unknown:
        raise ConfigurationError(
            f"the database has migration {max(unknown):04d}, which this release does not know; "
            "run the release that made it, or a newer one"
        )
    return [migration for migration in migrations if migration.version not in applied]


def migrate(store: Store, clock: Clock) -> list[Migration]:
    """Bring the database to this release; returns what was applied, in order. Idempotent.

    Raises:
        ConfigurationError: See `pending`.
        UnavailableError: The database did not answer; run it again.
    """
    todo = pending(store, shipped())
    for migration in todo:
        for statement in migration.statements:
            store.execute(statement)
        store.execute(
            "INSERT INTO metering.migrations (version, name, checksum, applied_at) SELECT "
            "{version:UInt32}, {name:String}, {checksum:String}, fromUnixTimestamp64Milli({at:Int64})",
            {
                "version": migration.version,
                "name": migration.name,
                "checksum": migration.checksum,
                "at": clock.now_ns() // 1_000_000,
            },
        )
    return todo


def _applied(store: Store) -> dict[int, str]:
    database, table = tables.MIGRATIONS.split(".")
    exists = store.query(
        "SELECT count() FROM system.tables WHERE database = {database:String} AND name = {table:String}",
        {"database": database, "table": table},
    )
    if not exists[0][0]:
        return {}
    rows = store.query("SELECT version, checksum FROM metering.migrations FINAL ORDER BY version")
    return {int(version): str(checksum) for version, checksum in rows}
