"""The tables of a spool's database."""

import sqlite3
from typing import Final

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS entries (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL,
    payload BLOB NOT NULL,
    checksum INTEGER
) STRICT;
CREATE TABLE IF NOT EXISTS sealed (
    token TEXT NOT NULL PRIMARY KEY,
    last_id INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS states (
    slot INTEGER PRIMARY KEY,
    key BLOB NOT NULL UNIQUE,
    value BLOB NOT NULL,
    checksum INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS identity (
    spool_id TEXT NOT NULL
) STRICT;
"""
# A sealed batch is every entry up to `last_id`; there is one at a time. It has its own table, because
# changing a column of an entry would write its payload again.
# A state keeps its slot when it changes, so streams that report together change the same few pages.
# Entries of a spool that was made before there were checksums have none (NULL).

_CHECKPOINT_PAGES: Final = 4_000
"""WAL pages (4 KiB each) between checkpoints: 16 MiB keeps the file small and the commits short."""


def prepare(db: sqlite3.Connection, durability: str, dropped_id: int) -> str:
    """Make the tables, forget what was delivered; returns the id of this database."""
    db.execute("PRAGMA journal_mode = WAL")
    db.execute(f"PRAGMA synchronous = {durability.upper()}")
    db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    db.execute("PRAGMA secure_delete = OFF")
    db.executescript(_SCHEMA)
    columns = {row[1] for row in db.execute("PRAGMA table_info(entries)")}
    if "checksum" not in columns:
        db.execute("ALTER TABLE entries ADD COLUMN checksum INTEGER")
    db.execute("DELETE FROM entries WHERE id <= ?", (dropped_id,))
    db.execute("DELETE FROM sealed WHERE last_id <= ?", (dropped_id,))
    db.execute(
        "INSERT INTO identity SELECT lower(hex(randomblob(16))) "
        "WHERE NOT EXISTS (SELECT 1 FROM identity)"
    )
    (spool_id,) = db.execute("SELECT spool_id FROM identity").fetchone()
    return str(spool_id)
