"""API keys: made, listed, rotated, revoked, and checked on every request.

A key reads `otm_<key id>_<secret>`; 256 bits of the secret are random, so one SHA-256 is a safe hash,
and only that is stored. Checking a key touches memory only: a thread looks at the table once a second, so
that a key made or revoked elsewhere is known here within two. If the table cannot be read for
`MAX_STALE_SECONDS`, no key is known to be bad any more, and checking says "not now" instead of "no":
a sender drops its data on "no" (OTLP specification, "Failures"). So whatever hangs, a key that was revoked
anywhere is taken nowhere after that time.

A rotation is one row, that of the new key, which says when the old one ends; so it cannot be half done. The one
change that a row ever sees is revocation, so no other change can undo that.
"""

import hmac
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from otel_metering.clock import Clock
from otel_metering.contract.event import check_name
from otel_metering.errors import InvalidUsageError, MeteringError, UnavailableError
from receiver.store.api_key import ApiKey, Principal, Scope, hash_key, key_id_of, new_key
from receiver.store.client import Store
from receiver.store.key_counts import KeyCounts, Refusal, Refused
from receiver.store.key_table import KeyTable, StoredKey
from receiver.store.key_use import KeyUse

__all__ = [
    "ApiKey",
    "ApiKeys",
    "KeyExistsError",
    "KeyStateError",
    "Principal",
    "Refusal",
    "Refused",
    "Scope",
    "refusal_of",
]

REFRESH_SECONDS: Final = 1.0
MAX_STALE_SECONDS: Final = 5.0

_NO_HASH: Final = hash_key("")

_log = logging.getLogger(__name__)

BeforeSave = Callable[[ApiKey], None]
"""Told of a change before it is made; raises to prevent it."""


class KeyExistsError(MeteringError):
    """There is a key of this id already."""


class KeyStateError(MeteringError):
    """The key is revoked, expired or rotated already."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A key in force, and what is asked of it at each request.

    Attributes:
        key: As it is shown.
        principal: Who presents it.
        ends_ns: When it stops, or a moment long past; None: never.
    """

    key: ApiKey
    principal: Principal
    ends_ns: int | None


class ApiKeys:
    """Every API key of one database. Any thread may call any method.

    Attributes:
        use: When each was last used.
        counts: What became of requests that showed one.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self.use = KeyUse(store)
        self.counts = KeyCounts()
        self._table = KeyTable(store)
        self._clock = clock
        self._stored: dict[str, StoredKey] = {}
        self._successors: dict[str, ApiKey] = {}
        self._known: dict[str, _Known] = {}
        self._read_at = -MAX_STALE_SECONDS
        self._lock = threading.Lock()
        self._rotating = threading.Lock()
        self._stopping = threading.Event()
        self._refresher: threading.Thread | None = None

    def start(self) -> None:
        """Read the table, and go on looking at it once a second.

        Raises:
            MeteringError: The first read failed.
        """
        self.refresh()
        self._refresher = threading.Thread(target=self._refresh_often, name="api-keys", daemon=True)
        self._refresher.start()
        self.use.start()

    def stop(self) -> None:
        """End the reading, and write when keys were last used."""
        self._stopping.set()
        if self._refresher is not None:
            self._refresher.join()
        self.use.stop()

    def authenticate(self, key: str) -> Principal | None:
        """Who presents `key`; None: nobody, and that is certain.

        Raises:
            UnavailableError: The keys could not be read for some seconds, so nothing is certain.
        """
        found = self._match(key)
        self._check_fresh()
        now_ns = self._clock.now_ns()
        if found is None or not _is_active(found, now_ns):
            return None
        self.use.note(found.key.key_id, now_ns)
        return found.principal

    def enter(self, key: str, scope: Scope, transport: str) -> Principal | Refusal:
        """Who presents `key`, which must have `scope`, or why it is not let through; counted as `transport`.

        Raises:
            UnavailableError: As `authenticate`; it is not counted.
        """
        principal = self.authenticate(key)
        if principal is None:
            refusal = self.refusal(key)
        elif not principal.may(scope):
            refusal = Refusal(Refused.SCOPE, principal.key_id)
        else:
            self.counts.passed(transport, principal.key_id)
            return principal
        self.counts.refused(transport, refusal)
        return refusal

    def refusal(self, key: str) -> Refusal:
        """Why `authenticate` knows nobody by this text: the id of a key is named only to who has the key."""
        found = self._match(key)
        return Refusal(Refused.UNKNOWN) if found is None else refusal_of(found.key)

    def active(self, key_id: str) -> ApiKey | None:
        """The key of this id, if it works now: for what is signed in its name.

        Raises:
            UnavailableError: As `authenticate`.
        """
        found = self._known.get(key_id)
        self._check_fresh()
        return found.key if found and _is_active(found, self._clock.now_ns()) else None

    def shown(self, key_id: str) -> ApiKey | None:
        """The key of this id as it is known here, also if it does not work any more."""
        found = self._known.get(key_id)
        return found.key if found else None

    def find(self, key: str) -> ApiKey | None:
        """The key of this text, also if it does not work any more; None: nobody has it."""
        found = self._match(key)
        return found.key if found else None

    def create(
        self,
        *,
        name: str,
        scopes: Iterable[Scope],
        tenant_id: str | None = None,
        expires_at: datetime | None = None,
        rate_limit_per_second: int | None = None,
        key: str | None = None,
        before_save: BeforeSave | None = None,
    ) -> tuple[ApiKey, str]:
        """Make a key; it works at once. Returns it and its text, which is not kept anywhere.

        Args:
            name: For people.
            scopes: What it may do; at least one.
            tenant_id: Bind it to this tenant; None: any tenant.
            expires_at: First moment at which it no longer works; None: never.
            rate_limit_per_second: Requests that it may send to the query API; None: any number.
            key: Take this text instead of a new one (`METERING_ADMIN_KEY`).
            before_save: Told of the key before it is stored.

        Raises:
            InvalidUsageError: An argument is wrong.
            KeyExistsError: There is, or was, a key of the id of `key`.
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
            rate_limit_per_second=rate_limit_per_second,
        )
        return self._add(api_key, before_save), text

    def rotate(
        self,
        key_id: str,
        *,
        overlap: timedelta,
        before_save: BeforeSave | None = None,
    ) -> tuple[ApiKey, str] | None:
        """Make a key in place of another, which works on for `overlap`; None: there is no such key.

        The new one has its name, scopes, tenant, rate limit, and the end that it had.

        Raises:
            KeyStateError: The key is revoked, expired or rotated already.
            UnavailableError: The database did not answer; nothing has changed.
        """
        with self._rotating:
            return self._rotate(key_id, overlap, before_save)

    def revoke(self, key_id: str, *, before_save: BeforeSave | None = None) -> ApiKey | None:
        """Stop a key, at once and for ever; None: there is no such key. Idempotent.

        Raises:
            UnavailableError: The database did not answer; the key still works.
        """
        shown = self.get(key_id)
        if shown is None or shown.revoked_at is not None:
            return shown
        found = self._stored[key_id]
        revoked = replace(found.key, revoked_at=self._now())
        if before_save is not None:
            before_save(revoked)
        # Later than what it replaces, also if that was written by a clock that is ahead.
        self._save(StoredKey(revoked, max(self._micros(), found.version + 1)))
        return self.get(key_id)

    def get(self, key_id: str) -> ApiKey | None:
        """The key of this id, also if it does not work any more.

        Raises:
            UnavailableError: It is unknown here, and the database, asked once more, did not answer.
        """
        if key_id not in self._known:
            self.refresh()
        found = self._known.get(key_id)
        return found.key if found else None

    def list(self) -> list[ApiKey]:
        """Every key, oldest first, revoked ones included."""
        keys = [known.key for known in self._known.values()]
        return sorted(keys, key=lambda key: (key.created_at, key.key_id))

    def refresh(self) -> None:
        """Read now what has changed.

        Raises:
            MeteringError: It could not be read; the keys known so far stay.
        """
        with self._lock:
            # Before the read: what is known afterwards is at least as new as that.
            began = self._clock.monotonic()
            changes = self._table.changes()
            self._take(changes.keys, changes.gone)
            self._read_at = began

    def _rotate(
        self, key_id: str, overlap: timedelta, before_save: BeforeSave | None
    ) -> tuple[ApiKey, str] | None:
        self.refresh()
        found = self._known.get(key_id)
        if found is None:
            return None
        old, now = found.key, self._now()
        if old.rotated_to is not None:
            raise KeyStateError(f"key {key_id} was rotated to {old.rotated_to}; rotate that one")
        if not old.is_active(now):
            raise KeyStateError(f"key {key_id} is revoked or expired; make a new one")
        text = new_key()
        successor = replace(
            old,
            key_id=key_id_of(text),
            created_at=now,
            key_hash=hash_key(text),
            replaces=key_id,
            replaced_ends_at=now + overlap,
        )
        return self._add(successor, before_save), text

    def _add(self, key: ApiKey, before_save: BeforeSave | None) -> ApiKey:
        if self._table.find(key.key_id) is not None:
            raise KeyExistsError(
                f"there is a key {key.key_id} already, perhaps a revoked one; choose another id"
            )
        if before_save is not None:
            before_save(key)
        self._save(StoredKey(key, self._micros()))
        return key

    def _save(self, stored: StoredKey) -> None:
        with self._lock:
            self._table.insert(stored)
            self._take({stored.key.key_id: stored}, frozenset())

    def _take(self, changed: Mapping[str, StoredKey], gone: frozenset[str]) -> None:
        """Let what has changed be known; dictionaries are replaced, so that others may read meanwhile."""
        if not changed and not gone:
            return
        stored = {**self._stored, **changed}
        successors = dict(self._successors)
        touched = set(changed)
        for one in changed.values():
            old = one.key.replaces
            if old is not None:
                successors[old] = _first(one.key, successors.get(old))
                touched.add(old)
        known = dict(self._known)
        for key_id in touched & stored.keys():
            known[key_id] = _known(stored[key_id].key, successors.get(key_id))
        for key_id in gone:
            stored.pop(key_id, None)
            known.pop(key_id, None)
        self._stored, self._successors, self._known = stored, successors, known

    def _match(self, key: str) -> _Known | None:
        """Whose text this is; as long for an id that nobody has as for a wrong secret."""
        parts = key.split("_", 3)
        found = self._known.get(parts[1]) if len(parts) == 3 else None
        matches = hmac.compare_digest(hash_key(key), found.key.key_hash if found else _NO_HASH)
        return found if matches else None

    def _check_fresh(self) -> None:
        if self._clock.monotonic() - self._read_at > MAX_STALE_SECONDS:
            raise UnavailableError("the API keys cannot be read at the moment; send again")

    def _refresh_often(self) -> None:
        while not self._stopping.wait(REFRESH_SECONDS):
            try:
                self.refresh()
            except MeteringError:
                _log.warning("API keys cannot be read", extra={"event": "keys_refresh_failed"})

    def _micros(self) -> int:
        return self._clock.now_ns() // 1_000

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.now_ns() / 1e9, UTC)


def refusal_of(key: ApiKey) -> Refusal:
    """Why a key that exists does not work any more."""
    return Refusal(Refused.EXPIRED if key.revoked_at is None else Refused.REVOKED, key.key_id)


def _is_active(known: _Known, now_ns: int) -> bool:
    return known.ends_ns is None or now_ns < known.ends_ns


def _first(key: ApiKey, other: ApiKey | None) -> ApiKey:
    """Of two keys that replace the same one, which two processes may make at once: always the same."""
    if other is None:
        return key
    return min(key, other, key=lambda one: (one.created_at, one.key_id))


def _known(key: ApiKey, successor: ApiKey | None) -> _Known:
    if successor is not None:
        ends = [end for end in (key.expires_at, successor.replaced_ends_at) if end is not None]
        key = replace(key, rotated_to=successor.key_id, expires_at=min(ends, default=None))
    if key.revoked_at is not None:
        return _Known(key, key.principal(), 0)
    ends_ns = None if key.expires_at is None else round(key.expires_at.timestamp() * 1e6) * 1_000
    return _Known(key, key.principal(), ends_ns)
