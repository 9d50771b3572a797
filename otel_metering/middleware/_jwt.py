"""Tokens are verified by PyJWT; here it learns the keys."""

import threading
from collections.abc import Callable, Sequence
from http.client import HTTPException
from typing import Any, Final

import jwt

from otel_metering.clock import Clock, SystemClock

_KEYS_LAST_SECONDS: Final = 300.0
"""Before they are read again, so that a key that was withdrawn is known to be."""

_PAUSE_SECONDS: Final = 10.0
"""Between two readings, however many tokens name a key that is not there."""

_TIMEOUT_SECONDS: Final = 5.0


def verifier(
    key: str | bytes | None,
    jwks_url: str | None,
    *,
    algorithms: Sequence[str],
    audience: str | Sequence[str] | None,
    issuer: str | Sequence[str] | None,
) -> Callable[[str], dict[str, Any]]:
    """A function that returns the claims of a valid token, and raises ValueError for any other.

    Its message names the fault and nothing of the token.
    """
    keys = None if jwks_url is None else KeySet(jwks_url, SystemClock())

    def claims_of(token: str) -> dict[str, Any]:
        try:
            return jwt.decode(
                token,
                keys.key_of(token) if keys is not None else (key or b""),
                algorithms=list(algorithms),
                audience=audience,
                issuer=issuer,
            )
        except jwt.PyJWTError as error:
            raise ValueError(type(error).__name__) from error

    return claims_of


class KeySet:
    """The keys at a URL. Any thread."""

    def __init__(self, url: str, clock: Clock) -> None:
        self._client = jwt.PyJWKClient(url, cache_jwk_set=False, timeout=_TIMEOUT_SECONDS)
        self._clock = clock
        self._lock = threading.Lock()
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._read_at = float("-inf")
        self._tried_at = float("-inf")

    def key_of(self, token: str) -> jwt.PyJWK:
        """The key that `token` says it was signed with; may wait for the network.

        Raises:
            PyJWTError: There is none.
        """
        key_id = jwt.get_unverified_header(token).get("kid")
        now = self._clock.monotonic()
        if key_id not in self._keys or now - self._read_at > _KEYS_LAST_SECONDS:
            # One reads, the others wait for what it finds.
            with self._lock:
                self._read(key_id)
        if key_id in self._keys:
            return self._keys[key_id]
        raise jwt.InvalidKeyError("no such key")

    def _read(self, key_id: str | None) -> None:
        now = self._clock.monotonic()
        is_old = now - self._read_at > _KEYS_LAST_SECONDS
        if (key_id in self._keys and not is_old) or now - self._tried_at < _PAUSE_SECONDS:
            return
        self._tried_at = now
        try:
            found = self._client.get_signing_keys()
        except (jwt.PyJWTError, ValueError, OSError, HTTPException):
            return  # what was known stays good: an issuer's outage is no reason to lose tenants
        self._keys = {key.key_id: key for key in found}
        self._read_at = now
