"""API keys: made, listed, revoked, and checked on every request.

A key reads `otm_<key id>_<secret>`; 256 bits of the secret are random, so one SHA-256 is a safe hash,
and only that is stored. Checking a key touches memory only: a thread reads the table once a second, so
that a key made or revoked elsewhere is known here within two. If the table cannot be read for
`MAX_STALE_SECONDS`, no key is known to be bad any more, and checking says "not now" instead of "no":
a sender drops its data on "no" (OTLP specification, "Failures").
"""

import hashlib
import hmac
import logging
import secrets
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from otel_metering.clock import Clock
from otel_metering.contract.event import check_name
from otel_metering.errors import InvalidUsageError, MeteringError, UnavailableError
from receiver.store.client import Store

REFRESH_SECONDS: Final = 1.0
MAX_STALE_SECONDS: Final = 5.0

_log = logging.getLogger(__name__)


class Scope(StrEnum):
    """What a key may do."""

    INGEST = "ingest"
    QUERY = "query"
    VALIDATE = "validate"
    ADMIN = "admin"
    """Everything, keys included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who is asking.

    Attributes:
        key_id: Which key; safe to log and to show.
        scopes: What it may do.
        tenant_id: The only tenant it may write or read; None: any.
    """

    key_id: str
    scopes: frozenset[Scope]
    tenant_id: str | None

    def may(self, scope: Scope) -> bool:
        """Whether `scope`, or everything, was granted."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as it may be shown: without its secret."""

    key_id: str
    name: str
    scopes: tuple[Scope, ...]
    tenant_id: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    key_hash: str

    def is_active(self, now: datetime) -> bool:
        """Neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class ApiKeys:
    """Every API key of one database. Any thread may call any method."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._keys: dict[str, ApiKey] = {}
        self._read_at = -MAX_STALE_SECONDS
        self._write_lock = threading.Lock()
        self._stopping = threading.Event()
        self._refresher: threading.Thread | None = None

    def start(self) -> None:
        """Read the table, and go on doing so once a second.

        Raises:
            MeteringError: The first read failed.
        """
        self.refresh()
        self._refresher = threading.Thread(target=self._refresh_often, name="api-keys", daemon=True)
        self._refresher.start()

    def stop(self) -> None:
        """End the reading."""
        self._stopping.set()
        if self._refresher is not None:
            self._refresher.join()

    def authenticate(self, key: str) -> Principal | None:
        """Who presents `key`; None: nobody, and that is certain.

        Raises:
            UnavailableError: The keys could not be read for some seconds, so nothing is certain.
        """
        parts = key.split("_")
        found = self._keys.get(parts[1]) if len(parts) == 3 else None
        expected = found.key_hash if found else hash_key("")
        matches = hmac.compare_digest(hash_key(key), expected)
        if self._clock.monotonic() - self._read_at > MAX_STALE_SECONDS:
            raise UnavailableError("the API keys cannot be read at the moment; send again")
        if not found or not matches or not found.is_active(self._now()):
            return None
        return Principal(
            key_id=found.key_id, scopes=frozenset(found.scopes), tenant_id=found.tenant_id
        )

    def create(
        self,
        *,
        name: str,
        scopes: Iterable[Scope],
        tenant_id: str | None = None,
        expires_at: datetime | None = None,
        key: str | None = None,
    ) -> tuple[ApiKey, str]:
        """Make a key; it works at once. Returns it and its text, which is not kept anywhere.

        Args:
            name: For people.
            scopes: What it may do; at least one.
            tenant_id: Bind it to this tenant; None: any tenant.
            expires_at: First moment at which it no longer works; None: never.
            key: Take this text instead of a new one (`METERING_ADMIN_KEY`).

        Raises:
            InvalidUsageError: An argument is wrong.
            UnavailableError: The database did not answer; nothing was made.
        """
        granted = tuple(sorted(set(scopes)))
        if not granted:
            raise InvalidUsageError(f"a key needs a scope: {', '.join(Scope)}")
        if tenant_id is not None:
            check_name("tenant_id", tenant_id)
        text = key or new_key()
        api_key = ApiKey(
            key_id=key_id_of(text),
            name=name,
            scopes=granted,
            tenant_id=tenant_id,
            created_at=self._now(),
            expires_at=expires_at,
            revoked_at=None,
            key_hash=hash_key(text),
        )
        self._save(api_key)
        return api_key, text

    def revoke(self, key_id: str) -> ApiKey | None:
        """Stop a key, at once and for ever; None: there is no such key. Idempotent.

        Raises:
            UnavailableError: The database did not answer; the key still works.
        """
        found = self._keys.get(key_id)
        if found is None or found.revoked_at is not None:
            return found
        revoked = replace(found, revoked_at=self._now())
        self._save(revoked)
        return revoked

    def list(self) -> list[ApiKey]:
        """Every key, oldest first, revoked ones included."""
        return sorted(self._keys.values(), key=lambda key: (key.created_at, key.key_id))

    def refresh(self) -> None:
        """Read the table now.

        Raises:
            MeteringError: It could not be read; the keys known so far stay.
        """
        with self._write_lock:
            rows = self._store.query(
                "SELECT key_id, name, scopes, tenant_id, toUnixTimestamp64Micro(created_at), "
                "toUnixTimestamp64Micro(expires_at), toUnixTimestamp64Micro(revoked_at), key_hash "
                "FROM metering.api_keys FINAL"
            )
            self._keys = {str(row[0]): _from_row(row) for row in rows}
            self._read_at = self._clock.monotonic()

    def _save(self, key: ApiKey) -> None:
        with self._write_lock:
            self._store.execute(
                "INSERT INTO metering.api_keys (key_id, name, key_hash, scopes, tenant_id, created_at, "
                "expires_at, revoked_at, updated_at) SELECT {key_id:String}, {name:String}, "
                "{key_hash:String}, {scopes:Array(String)}, {tenant_id:String}, "
                "fromUnixTimestamp64Micro({created_at:Int64}), "
                "fromUnixTimestamp64Micro({expires_at:Nullable(Int64)}), "
                "fromUnixTimestamp64Micro({revoked_at:Nullable(Int64)}), "
                "fromUnixTimestamp64Micro({updated_at:Int64})",
                {
                    "key_id": key.key_id,
                    "name": key.name,
                    "key_hash": key.key_hash,
                    "scopes": [str(scope) for scope in key.scopes],
                    "tenant_id": key.tenant_id or "",
                    "created_at": _micros(key.created_at),
                    "expires_at": _micros(key.expires_at),
                    "revoked_at": _micros(key.revoked_at),
                    "updated_at": self._clock.now_ns() // 1_000,
                },
            )
            self._keys = {**self._keys, key.key_id: key}

    def _refresh_often(self) -> None:
        while not self._stopping.wait(REFRESH_SECONDS):
            try:
                self.refresh()
            except MeteringError:
                _log.warning("API keys cannot be read", extra={"event": "keys_refresh_failed"})

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.now_ns() / 1e9, UTC)


def new_key() -> str:
    """A new random key."""
    return f"otm_{secrets.token_hex(6)}_{secrets.token_hex(32)}"


def key_id_of(key: str) -> str:
    """The public part of `otm_<key id>_<secret>`.

    Raises:
        InvalidUsageError: It does not look like that.
    """
    parts = key.split("_")
    if len(parts) != 3 or parts[0] != "otm" or not parts[1] or len(parts[2]) < 32:
        raise InvalidUsageError(
            "an API key reads otm_<id>_<secret>, with a secret of at least 32 characters and no "
            "further underscore; make one with: otel-metering keys create"
        )
    return parts[1]


def hash_key(key: str) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


def _micros(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp() * 1_000_000)


def _moment(micros: int | None) -> datetime | None:
    return None if micros is None else datetime.fromtimestamp(micros / 1_000_000, UTC)


def _from_row(row: Sequence[Any]) -> ApiKey:
    key_id, name, scopes, tenant_id, created, expires, revoked, key_hash = row
    created_at = _moment(created)
    assert created_at is not None  # noqa: S101 - the column is not Nullable
    return ApiKey(
        key_id=str(key_id),
        name=str(name),
        scopes=tuple(Scope(scope) for scope in scopes),
        tenant_id=str(tenant_id) or None,
        created_at=created_at,
        expires_at=_moment(expires),
        revoked_at=_moment(revoked),
        key_hash=str(key_hash),
    )
