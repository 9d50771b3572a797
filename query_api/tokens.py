"""Read tokens: a signed, short right to read one tenant's usage, for a page that its customers see.

A token reads `ott_<payload>.<signature>`, both base64url. The payload has a line each for the version, the key
that made it, its end in Unix seconds, the tenant, and the meters, if not all. It is signed (HMAC-SHA256) with a
key derived from the hash of the API key: no further secret is kept, and a token dies with the key that made it.

Nothing of a payload is believed before its signature was compared, except which key to compare with.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable
from typing import Final

from otel_metering.clock import Clock
from receiver.store.keys import (
    ApiKey,
    ApiKeys,
    Principal,
    Refusal,
    Refused,
    Scope,
    refusal_of,
)

PREFIX: Final = "ott_"
MAX_TTL_SECONDS: Final = 86_400
MAX_METERS: Final = 20
"""Meters that a token may name: it is sent with each request, and headers are short."""

_VERSION: Final = "1"
_MAX_LENGTH: Final = 8_192
_PURPOSE: Final = b"otel-metering read token 1"
_SECOND_NS: Final = 1_000_000_000


def make_token(
    key: ApiKey, *, tenant_id: str, meters: Iterable[str] | None, expires_at_seconds: int
) -> str:
    """The text of a token; it is kept nowhere.

    Args:
        key: In whose name.
        tenant_id: Whose usage it may read; a valid name.
        meters: Which meters, valid names; None: all.
        expires_at_seconds: First moment at which it no longer works, in seconds since the Unix epoch.
    """
    lines = [_VERSION, key.key_id, str(expires_at_seconds), tenant_id, *(meters or ())]
    signed = PREFIX + _encode("\n".join(lines).encode())
    return f"{signed}.{_signature(key, signed)}"


def authenticate(text: str, keys: ApiKeys, clock: Clock) -> Principal | None:
    """Who presents the text of a key or token; None: nobody is known by it, or not any more.

    Raises:
        UnavailableError: As `ApiKeys.authenticate`.
    """
    if text.startswith(PREFIX):
        return authenticate_token(text, keys, now_ns=clock.now_ns())
    return keys.authenticate(text)


def authenticate_token(token: str, keys: ApiKeys, *, now_ns: int) -> Principal | None:
    """Who presents `token`; None: it is none, or not any more.

    Raises:
        UnavailableError: As `ApiKeys.authenticate`.
    """
    signed, _, signature = token.partition(".")
    lines = _lines(signed) if len(token) <= _MAX_LENGTH else []
    key = keys.active(lines[1] if len(lines) > 1 else "")
    # The whole text is compared, so that there is one text for a token, and no other is taken.
    expected = _signature(key, signed).encode() if key else b""
    if key is None or not hmac.compare_digest(expected, signature.encode()):
        return None
    if lines[0] != _VERSION:
        return None
    _, _, expires_at, tenant_id, *meters = lines
    if now_ns >= int(expires_at) * _SECOND_NS or not _may_sign(key, tenant_id):
        return None
    return Principal(
        key_id=key.key_id,
        scopes=frozenset({Scope.QUERY}),
        tenant_id=tenant_id,
        meters=frozenset(meters) or None,
        is_token=True,
        rate_limit_per_second=key.rate_limit_per_second,
    )


def refusal(text: str, keys: ApiKeys) -> Refusal:
    """Why nobody is known by the text of a key or token: a key is named only by itself, or what it has signed."""
    if not text.startswith(PREFIX):
        return keys.refusal(text)
    signed, _, signature = text.partition(".")
    lines = _lines(signed) if len(text) <= _MAX_LENGTH else []
    key = keys.shown(lines[1]) if len(lines) > 1 else None
    if key is None or not hmac.compare_digest(_signature(key, signed).encode(), signature.encode()):
        return Refusal(Refused.UNKNOWN)
    # The token is over, or its key is.
    return refusal_of(key)


def _may_sign(key: ApiKey, tenant_id: str) -> bool:
    return key.principal().may(Scope.QUERY) and key.tenant_id in (None, tenant_id)


def _lines(signed: str) -> list[str]:
    payload = signed.removeprefix(PREFIX)
    try:
        padded = payload + "=" * (-len(payload) % 4)
        return base64.b64decode(padded, altchars=b"-_", validate=True).decode().split("\n")
    except (binascii.Error, ValueError):
        return []


def _signature(key: ApiKey, signed: str) -> str:
    derived = hmac.digest(key.key_hash.encode(), _PURPOSE, hashlib.sha256)
    return _encode(hmac.digest(derived, signed.encode(), hashlib.sha256))


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
