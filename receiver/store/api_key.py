"""What an API key is, and who presents one."""

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from otel_metering.errors import InvalidUsageError

MIN_SECRET_LENGTH: Final = 32

_ID: Final = re.compile(r"[A-Za-z0-9.-]{1,64}")


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
        key_id: Which key; safe to log and to show. Of a token: the key that made it.
        scopes: What it may do.
        tenant_id: The only tenant it may write or read; None: any.
        meters: The only meters it may read; None: any.
        is_token: Whether it came with a read token, and not with the key itself.
        rate_limit_per_second: Requests that it may send to the query API; None: any number.
    """

    key_id: str
    scopes: frozenset[Scope]
    tenant_id: str | None
    meters: frozenset[str] | None = None
    is_token: bool = False
    rate_limit_per_second: int | None = None

    def may(self, scope: Scope) -> bool:
        """Whether `scope`, or everything, was granted."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as it may be shown: without its secret.

    Attributes:
        key_id: Its public part.
        name: For people.
        scopes: What it may do.
        tenant_id: The only tenant it may write or read; None: any.
        created_at: When it was made.
        expires_at: First moment at which it no longer works; None: never.
        revoked_at: When it was stopped; None: it was not.
        key_hash: SHA-256 of its text, hexadecimal.
        rate_limit_per_second: Requests that it may send to the query API; None: any number.
        replaces: The key in whose place it was made.
        replaced_ends_at: When that one stops.
        rotated_to: The key that takes its place.
    """

    key_id: str
    name: str
    scopes: tuple[Scope, ...]
    tenant_id: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    key_hash: str
    rate_limit_per_second: int | None = None
    replaces: str | None = None
    replaced_ends_at: datetime | None = None
    rotated_to: str | None = None

    def is_active(self, now: datetime) -> bool:
        """Neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def principal(self) -> Principal:
        """Who presents it."""
        return Principal(
            key_id=self.key_id,
            scopes=frozenset(self.scopes),
            tenant_id=self.tenant_id,
            rate_limit_per_second=self.rate_limit_per_second,
        )


def new_key() -> str:
    """A new random key."""
    return f"otm_{secrets.token_hex(6)}_{secrets.token_hex(32)}"


def key_id_of(key: str) -> str:
    """The public part of `otm_<key id>_<secret>`.

    Raises:
        InvalidUsageError: It does not look like that.
    """
    parts = key.split("_")
    if len(parts) != 3 or parts[0] != "otm" or len(parts[2]) < MIN_SECRET_LENGTH:
        raise InvalidUsageError(
            f"an API key reads otm_<id>_<secret>, with a secret of at least {MIN_SECRET_LENGTH} "
            "characters and no further underscore; make one with: otel-metering keys create"
        )
    # It is written to logs, and into tokens, as it is.
    if not _ID.fullmatch(parts[1]):
        raise InvalidUsageError(
            "the id of an API key, between its underscores, has 1 to 64 characters of A-Za-z0-9.-; "
            "choose another"
        )
    return parts[1]


def hash_key(key: str) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()
