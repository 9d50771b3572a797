"""`metering.api_keys`: reads what has changed since it was read last, exactly and at little cost.

A key is inserted when it is made, and once more when it is revoked. What the table holds has a fingerprint,
a count and a sum of hashes of its rows, which the engine finds from two columns. If it is as before, nothing
has changed. If that of the rows up to a base is as before, only the few rows behind the base are read. Else (a
merge has dropped a row, or a process whose clock is late has written one) the versions of all keys are compared,
and the base is new. So nothing depends on the clocks of other processes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import pyarrow as pa

from receiver.store.api_key import ApiKey, Scope
from receiver.store.client import Store

MAX_RECENT_ROWS: Final = 1_000
"""Beyond it the base moves, so that the rows behind it are few again."""

_MAX_NAMED: Final = 1_000
"""Beyond it all rows are read, and not those of these keys."""

_FINGERPRINT: Final = (
    "SELECT count(), sum(cityHash64(key_id, updated_at)), toUnixTimestamp64Micro(max(updated_at)), "
    "countIf(updated_at <= fromUnixTimestamp64Micro({base:Int64})), "
    "sumIf(cityHash64(key_id, updated_at), updated_at <= fromUnixTimestamp64Micro({base:Int64})) "
    "FROM metering.api_keys"
)
_COLUMNS: Final = (
    "SELECT key_id, name, scopes, tenant_id, toUnixTimestamp64Micro(created_at), "
    "toUnixTimestamp64Micro(expires_at), toUnixTimestamp64Micro(revoked_at), key_hash, "
    "rate_limit_per_second, replaces, toUnixTimestamp64Micro(replaced_ends_at), "
    "toUnixTimestamp64Micro(updated_at) FROM metering.api_keys "
)
_ALL: Final = _COLUMNS + "FINAL"
_NAMED: Final = _COLUMNS + "FINAL WHERE key_id IN (SELECT arrayJoin({key_ids:Array(String)}))"
_VERSIONS: Final = (
    "SELECT key_id, toUnixTimestamp64Micro(max(updated_at)) AS version "
    "FROM metering.api_keys GROUP BY key_id"
)
_RECENT: Final = (
    _COLUMNS + "WHERE updated_at > fromUnixTimestamp64Micro({base:Int64}) ORDER BY updated_at"
)
"""Without FINAL, which would read the whole table; of two rows of a key the later one is the last."""

_INSERT: Final = (
    "INSERT INTO metering.api_keys (key_id, name, key_hash, scopes, tenant_id, created_at, "
    "expires_at, revoked_at, rate_limit_per_second, replaces, replaced_ends_at, updated_at) "
    "SELECT {key_id:String}, {name:String}, {key_hash:String}, {scopes:Array(String)}, "
    "{tenant_id:String}, fromUnixTimestamp64Micro({created_at:Int64}), "
    "fromUnixTimestamp64Micro({expires_at:Nullable(Int64)}), "
    "fromUnixTimestamp64Micro({revoked_at:Nullable(Int64)}), {rate_limit_per_second:UInt32}, "
    "{replaces:String}, fromUnixTimestamp64Micro({replaced_ends_at:Nullable(Int64)}), "
    "fromUnixTimestamp64Micro({updated_at:Int64})"
)

_Print = tuple[int, int]


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key, and the version of its row, which the next one must exceed."""

    key: ApiKey
    version: int


@dataclass(frozen=True, slots=True)
class Changes:
    """What a read has found: at least the keys that have changed, and the ids of those that are gone."""

    keys: Mapping[str, StoredKey]
    gone: frozenset[str] = frozenset()


class KeyTable:
    """The table. `changes` and `insert` belong to one thread at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: _Print | None = None
        self._base = -1
        self._base_print: _Print = (0, 0)
        self._versions: dict[str, int] = {}

    def changes(self) -> Changes:
        """What has changed since the last call; at first everything.

        Raises:
            MeteringError: It could not be read; the next call finds the same changes.
        """
        # The fingerprint first: what is inserted after it is found now, and once more by the next call.
        count, total, newest, base_count, base_total = self._store.query(
            _FINGERPRINT, {"base": self._base}
        )[0]
        if (count, total) == self._seen:
            return Changes({})
        if self._seen is not None and (base_count, base_total) == self._base_print:
            recent = self._read(_RECENT, {"base": self._base})
            if len(recent) <= MAX_RECENT_ROWS:
                self._versions |= {key_id: one.version for key_id, one in recent.items()}
                self._seen = count, total
                return Changes(recent)
        changes = self._compare()
        self._seen = self._base_print = count, total
        self._base = newest
        return changes

    def find(self, key_id: str) -> StoredKey | None:
        """The key of this id as the database has it now. Raises as `Store.query`."""
        return self._read(_NAMED, {"key_ids": [key_id]}).get(key_id)

    def insert(self, stored: StoredKey) -> None:
        """Write a row; it is durable when this returns. Raises as `Store.execute`."""
        key = stored.key
        self._store.execute(
            _INSERT,
            {
                "key_id": key.key_id,
                "name": key.name,
                "key_hash": key.key_hash,
                "scopes": [str(scope) for scope in key.scopes],
                "tenant_id": key.tenant_id or "",
                "created_at": to_micros(key.created_at),
                "expires_at": to_micros(key.expires_at),
                "revoked_at": to_micros(key.revoked_at),
                "rate_limit_per_second": key.rate_limit_per_second or 0,
                "replaces": key.replaces or "",
                "replaced_ends_at": to_micros(key.replaced_ends_at),
                "updated_at": stored.version,
            },
        )
        self._versions[key.key_id] = stored.version

    def _compare(self) -> Changes:
        table = self._store.query_table(_VERSIONS)
        ids = table.column("key_id").cast(pa.string()).to_pylist()
        versions = dict(zip(ids, table.column("version").to_pylist(), strict=True))
        changed = [one for one, version in versions.items() if self._versions.get(one) != version]
        gone = frozenset(self._versions.keys() - versions.keys())
        if len(changed) > _MAX_NAMED:
            keys = self._read(_ALL, {})
        else:
            keys = self._read(_NAMED, {"key_ids": changed}) if changed else {}
        self._versions = versions
        return Changes(keys, gone)

    def _read(self, sql: str, parameters: Mapping[str, object]) -> dict[str, StoredKey]:
        return {str(row[0]): _from_row(row) for row in self._store.query(sql, parameters)}


def to_micros(moment: datetime | None) -> int | None:
    """Microseconds since the Unix epoch."""
    return None if moment is None else round(moment.timestamp() * 1_000_000)


def from_micros(micros: int) -> datetime:
    """The moment, UTC."""
    return datetime.fromtimestamp(micros / 1_000_000, UTC)


def _from_row(row: Sequence[Any]) -> StoredKey:
    key_id, name, scopes, tenant_id, created, expires, revoked, key_hash = row[:8]
    rate_limit, replaces, replaced_ends, version = row[8:]
    key = ApiKey(
        key_id=str(key_id),
        name=str(name),
        scopes=tuple(Scope(scope) for scope in scopes),
        tenant_id=str(tenant_id) or None,
        created_at=from_micros(created),
        expires_at=None if expires is None else from_micros(expires),
        revoked_at=None if revoked is None else from_micros(revoked),
        key_hash=str(key_hash),
        rate_limit_per_second=int(rate_limit) or None,
        replaces=str(replaces) or None,
        replaced_ends_at=None if replaced_ends is None else from_micros(replaced_ends),
    )
    return StoredKey(key, int(version))
