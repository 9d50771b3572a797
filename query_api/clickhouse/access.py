"""Who is asking: `grafana_reader` with an API key for a password, or the administrator."""

import base64
import binascii
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from otel_metering.clock import Clock
from otel_metering.errors import UnavailableError
from query_api.clickhouse.errors import (
    ACCESS_DENIED,
    AUTHENTICATION_FAILED,
    NETWORK_ERROR,
    QUOTA_EXCEEDED,
    REQUIRED_PASSWORD,
    ClickHouseError,
)
from query_api.problems import RateLimitedError
from query_api.rate_limits import RateLimits
from query_api.tokens import authenticate, refusal
from receiver.store.keys import ApiKeys, Principal, Refusal, Refused, Scope

READER: Final = "grafana_reader"
ADMINISTRATOR: Final = "admin"
TRANSPORT: Final = "clickhouse"
"""As keys are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Who is asking.

    Attributes:
        tenant: The only tenant whose rows there are; None: of every tenant.
        is_administrator: Whether anything goes.
    """

    tenant: str | None
    is_administrator: bool


class Access:
    """Knows users by what a request shows. It belongs to the event loop."""

    def __init__(self, keys: ApiKeys, clock: Clock, *, administrator_password: str | None) -> None:
        """Needs keys that are read.

        Args:
            keys: The API keys.
            clock: The time.
            administrator_password: Of the administrator; None or empty: there is none.
        """
        self._keys = keys
        self._clock = clock
        self._password = administrator_password
        self._limits = RateLimits(clock)

    def user(self, headers: Mapping[str, str], parameters: Mapping[str, str]) -> User:
        """Who is asking.

        Args:
            headers: Of the request, names in lower case.
            parameters: Of its URL.

        Raises:
            ClickHouseError: Nobody that is known, or somebody who may not, or not now.
        """
        name, password = _credentials(headers, parameters)
        if name == ADMINISTRATOR:
            return self._administrator(password)
        if name != READER:
            raise _failed(name)
        principal = self._reader(password)
        try:
            self._limits.check(principal)
        except RateLimitedError as error:
            raise ClickHouseError(
                QUOTA_EXCEEDED, str(error), retry_after_seconds=error.retry_after_seconds
            ) from error
        return User(tenant=principal.tenant_id, is_administrator=False)

    def _reader(self, password: str) -> Principal:
        """Whose key it is; what becomes of it is counted."""
        counts = self._keys.counts
        principal = self._principal(password)
        if principal is None:
            if password:
                counts.refused(TRANSPORT, refusal(password, self._keys))
            raise _failed(READER)
        reason = ""
        if not principal.may(Scope.QUERY):
            reason = f"key {principal.key_id} has no scope query; use a key that has it"
        elif principal.meters is not None:
            reason = "the token is for some meters only; use one that is not, or a key"
        if reason:
            counts.refused(TRANSPORT, Refusal(Refused.SCOPE, principal.key_id))
            raise ClickHouseError(ACCESS_DENIED, reason)
        counts.passed(TRANSPORT, principal.key_id)
        return principal

    def _administrator(self, password: str) -> User:
        # An empty one is what a variable without a value leaves: it opens nothing.
        if not self._password or not hmac.compare_digest(
            password.encode(), self._password.encode()
        ):
            raise _failed(ADMINISTRATOR)
        return User(tenant=None, is_administrator=True)

    def _principal(self, password: str) -> Principal | None:
        try:
            return authenticate(password, self._keys, self._clock)
        except UnavailableError as error:
            raise ClickHouseError(NETWORK_ERROR, str(error)) from error


def _failed(name: str) -> ClickHouseError:
    return ClickHouseError(
        AUTHENTICATION_FAILED,
        f"{name}: Authentication failed: password is incorrect, or there is no user with such name. "
        f"The user is {READER}, and its password any API key with scope query",
    )


def _credentials(headers: Mapping[str, str], parameters: Mapping[str, str]) -> tuple[str, str]:
    """Name and password: of the X-ClickHouse headers, of Authorization, or of the URL."""
    if "x-clickhouse-user" in headers or "x-clickhouse-key" in headers:
        return headers.get("x-clickhouse-user", READER), headers.get("x-clickhouse-key", "")
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return READER, value.strip()
    if kind.lower() == "basic":
        return _basic(value)
    if "user" in parameters or "password" in parameters:
        return parameters.get("user", READER), parameters.get("password", "")
    raise ClickHouseError(
        REQUIRED_PASSWORD, f"Password required: user {READER} with an API key of scope query"
    )


def _basic(value: str) -> tuple[str, str]:
    try:
        name, _, password = base64.b64decode(value.strip(), validate=True).decode().partition(":")
    except (binascii.Error, ValueError) as error:
        raise ClickHouseError(AUTHENTICATION_FAILED, "Authorization is no valid Basic") from error
    return name, password
