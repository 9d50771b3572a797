"""What a request gets instead of an answer when a quota denies it."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from otel_metering.clock import Clock, SystemClock
from otel_metering.errors import QuotaExceededError

STATUS: Final = 429
_SECOND: Final = timedelta(seconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """An answer of status 429: problem details of RFC 9457.

    Attributes:
        headers: In lower case.
        body: JSON.
    """

    headers: tuple[tuple[str, str], ...]
    body: bytes


def denial_of(error: QuotaExceededError, meter: str, clock: Clock | None = None) -> Denial:
    """The answer to a request that `error` denies."""
    document: dict[str, object] = {
        "type": "urn:otel-metering:problem:quota-exceeded",
        "title": "A quota is used up",
        "status": STATUS,
        "detail": str(error),
        "meter": meter,
        "reason": error.reason,
    }
    if error.remaining is not None:
        document["remaining"] = f"{error.remaining:f}"
    headers = [("content-type", "application/problem+json")]
    if error.resets_at is not None:
        document["resets_at"] = error.resets_at.isoformat()
        now = datetime.fromtimestamp((clock or SystemClock()).now_ns() / 1e9, UTC)
        # Whole seconds (RFC 9110, 10.2.3), never too few.
        headers.append(("retry-after", str(max(1, -((now - error.resets_at) // _SECOND)))))
    body = json.dumps(document).encode()
    return Denial(headers=(*headers, ("content-length", str(len(body)))), body=body)
