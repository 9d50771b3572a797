"""The query API, as leases need it: may we use so much, hold it longer, hold it no more."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from decimal import Context, Decimal
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, Final
from urllib.parse import urlsplit

from otel_metering._config import Settings
from otel_metering._lease_book import Ask, Told
from otel_metering._quantity import to_text
from otel_metering._tls_files import client_context
from otel_metering.clock import Clock
from otel_metering.contract.event import QUANTITY_DECIMALS
from otel_metering.errors import InvalidUsageError, UnavailableError

MAX_TOGETHER: Final = 1_000
"""Questions of one request; the service takes no more."""

MAX_SECONDS: Final = 5.0
"""For connecting, and for each read: a call waits for it."""

_MAX_ANSWER_BYTES: Final = 4 * 2**20
_MAX_KEPT: Final = 8
"""Connections that are kept open."""

_NOT_OURS: Final = frozenset({400, 409, 413, 422})
"""What is wrong is the question. All other statuses say nothing about it."""

_GONE: Final = frozenset({404, 409})

_EXACT: Final = Context(prec=60)
"""Whatever precision the application set for itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked for whom.

    Attributes:
        lease_id: The name of what is to be held.
    """

    meter: str
    tenant: str
    ask: Ask
    lease_id: str
    ttl_seconds: int


class QuotaApi:
    """Its connections, kept open. Any thread."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        """Prepare, without connecting.

        Raises:
            ConfigurationError: A certificate or key cannot be used.
        """
        self._settings = settings
        self._clock = clock
        self._url = urlsplit(settings.api_url)
        self._timeout = min(settings.timeout_seconds, MAX_SECONDS)
        self._headers = {
            **settings.headers,
            "content-type": "application/json",
            "user-agent": "otel-metering",
        }
        self._tls = client_context(settings) if self._url.scheme == "https" else None
        self._idle: list[HTTPConnection] = []
        self._is_closed = False

    def ask(self, questions: Sequence[Question]) -> list[Told]:
        """The answers, in their order.

        Raises:
            UnavailableError: There is none, and whether anything is held is not known.
            InvalidUsageError: The service will never answer such a question.
        """
        checks = [_check(one) for one in questions]
        status, content = self._post("validate", checks if len(checks) > 1 else checks[0])
        self._refuse(status, content)
        try:
            found = json.loads(content)
            answers = found["data"] if len(checks) > 1 else [found]
            return [self._told(one) for one, _ in zip(answers, checks, strict=True)]
        except (ValueError, KeyError, TypeError, ArithmeticError) as error:
            raise UnavailableError(self._not_it(content)) from error

    def extend(self, lease_id: str, ttl_seconds: int) -> bool:
        """Hold it for so long from now on; False: it is not held any more.

        Raises:
            UnavailableError: There is no answer.
        """
        status, content = self._post(
            f"reservations/{lease_id}/extend", {"ttl_seconds": ttl_seconds}
        )
        if status in _GONE:
            return False
        self._refuse(status, content)
        return True

    def release(self, lease_id: str) -> None:
        """Hold it no longer; what is not held any more stays so.

        Raises:
            UnavailableError: There is no answer.
        """
        status, content = self._post(f"reservations/{lease_id}/release", {})
        if status not in _GONE:
            self._refuse(status, content)

    def close(self) -> None:
        """Keep no connection open from now on."""
        self._is_closed = True
        self.disconnect()

    def hurry(self, timeout_seconds: float) -> None:
        """Wait no longer than that from now on."""
        self._timeout = min(self._timeout, timeout_seconds)
        self.disconnect()

    def disconnect(self) -> None:
        """Close the connections that lie idle; in a forked child they are the parent's too."""
        idle, self._idle = self._idle, []
        for one in idle:
            one.close()

    def _refuse(self, status: int, content: bytes) -> None:
        if status // 100 == 2:
            return
        reason = f"{self._settings.api_url} answers HTTP {status}: {_detail(content)}"
        if status in _NOT_OURS:
            raise InvalidUsageError(reason)
        raise UnavailableError(reason)

    def _not_it(self, content: bytes) -> str:
        return f"{self._settings.api_url} is not the query API: {_detail(content)}; set METERING_API_URL"

    def _told(self, found: dict[str, Any]) -> Told:
        text, remaining = found["resets_at"], found["remaining"]
        resets_at = None if text is None else datetime.fromisoformat(text)
        now = self._clock.now_ns() / 1e9
        return Told(
            is_allowed=found["allowed"] is True,
            reason=str(found["reason"]),
            is_unlimited=found["allowed"] is True and found["reason"] == "no_quota",
            is_soft=found["enforcement"] == "soft",
            remaining=None
            if remaining is None
            else int(Decimal(remaining).scaleb(QUANTITY_DECIMALS, _EXACT)),
            resets_at=resets_at,
            resets_seconds=None if resets_at is None else resets_at.timestamp() - now,
        )

    def _post(self, path: str, body: object) -> tuple[int, bytes]:
        content = json.dumps(body).encode()
        while True:
            try:
                connection, is_fresh = self._idle.pop(), False
            except IndexError:
                connection, is_fresh = self._connect(), True
            try:
                return self._exchange(connection, path, content)
            except (OSError, HTTPException) as error:
                connection.close()
                # One that lay idle may have been closed by the service, which says nothing about a new
                # one. All that is asked can be asked twice. One that timed out does not get better.
                if is_fresh or isinstance(error, TimeoutError):
                    raise UnavailableError(
                        f"{self._settings.api_url} does not answer: {error!r}"
                    ) from error

    def _exchange(self, connection: HTTPConnection, path: str, body: bytes) -> tuple[int, bytes]:
        connection.request("POST", f"{self._url.path}/v1/meter/{path}", body, self._headers)
        response = connection.getresponse()
        content = response.read(_MAX_ANSWER_BYTES)
        is_usable = response.isclosed() and not response.will_close
        if is_usable and len(self._idle) < _MAX_KEPT and not self._is_closed:
            self._idle.append(connection)
        else:
            connection.close()
        return response.status, content

    def _connect(self) -> HTTPConnection:
        host, port = self._url.hostname or "", self._url.port
        if self._tls is not None:
            return HTTPSConnection(host, port, timeout=self._timeout, context=self._tls)
        return HTTPConnection(host, port, timeout=self._timeout)


def _check(one: Question) -> dict[str, object]:
    check: dict[str, object] = {
        "tenant_id": one.tenant,
        "meter": one.meter,
        "quantity": to_text(one.ask.nanos),
    }
    if one.ask.is_look:
        return check
    return check | {
        "reserve": True,
        "lease": True,
        "reservation_id": one.lease_id,
        "ttl_seconds": one.ttl_seconds,
    }


def _detail(content: bytes) -> str:
    """What people can read of an answer."""
    with suppress(ValueError):
        found = json.loads(content)
        if isinstance(found, dict) and "detail" in found:
            return str(found["detail"])
    return "".join(char for char in content[:200].decode("utf-8", "replace") if char.isprintable())
