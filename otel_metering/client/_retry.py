"""What becomes of one call after each attempt: done, again after a pause, or given up.

Again, whatever was asked for: nothing was sent, or the service says that it did nothing (429, 503).
Again, if sending it twice does what sending it once does: the connection broke, the time was up, or
something in between gave up (502, 504).
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

from otel_metering._config import ClientSettings
from otel_metering.client._answers import Answer, error_of
from otel_metering.client._request import Request
from otel_metering.clock import Clock
from otel_metering.errors import NoAnswerError

FIRST_PAUSE_SECONDS: Final = 0.2
"""Longest pause before the second attempt; doubles with each attempt."""

MAX_PAUSE_SECONDS: Final = 10.0
"""Longest pause, unless the service asks for a longer one."""

_REFUSED: Final = frozenset({429, 503})
_LOST: Final = frozenset({502, 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An attempt without an answer.

    Attributes:
        was_sent: Whether the service may have got the request.
        text: What went wrong.
    """

    was_sent: bool
    text: str


class Attempts:
    """The attempts of one call."""

    def __init__(
        self,
        settings: ClientSettings,
        request: Request,
        *,
        clock: Clock,
        jitter: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._request = request
        self._clock = clock
        self._jitter = jitter
        self._made = 0
        self._ends_at = clock.monotonic() + settings.total_timeout

    def seconds(self) -> float:
        """How long the next attempt may take."""
        return max(min(self._settings.timeout, self._ends_at - self._clock.monotonic()), 0.001)

    def pause(self, outcome: Answer | Failure) -> float | None:
        """Return seconds until the next attempt; None: `outcome` is the answer, good or bad.

        Raises:
            NoAnswerError: This was the last attempt.
        """
        self._made += 1
        if not self._is_transient(outcome):
            if isinstance(outcome, Answer):
                return None
            raise self._given_up(
                outcome, "; whether it was done is not known: look before you send it again"
            )
        if self._made > self._settings.max_retries:
            raise self._given_up(outcome, "")
        # Full jitter: clients that failed together do not return together.
        longest = min(FIRST_PAUSE_SECONDS * 2.0 ** (self._made - 1), MAX_PAUSE_SECONDS)
        asked = self._asked_pause(outcome)
        pause = asked + self._jitter() * longest
        if self._clock.monotonic() + pause >= self._ends_at:
            wait = f"; it asks to wait {asked:g} s" if asked else ""
            raise self._given_up(
                outcome, f"{wait}; total_timeout is {self._settings.total_timeout:g} s"
            )
        return pause

    def _is_transient(self, outcome: Answer | Failure) -> bool:
        if isinstance(outcome, Failure):
            return self._request.is_repeatable or not outcome.was_sent
        return outcome.status in _REFUSED or (
            self._request.is_repeatable and outcome.status in _LOST
        )

    def _asked_pause(self, outcome: Answer | Failure) -> float:
        if isinstance(outcome, Failure):
            return 0.0
        return _retry_after(outcome.headers.get("retry-after", ""), self._clock)

    def _given_up(self, outcome: Answer | Failure, more: str) -> NoAnswerError:
        url = self._settings.url
        times = f" ({self._made} attempts)" if self._made > 1 else ""
        if isinstance(outcome, Answer):
            said = error_of(outcome)
            return NoAnswerError(
                f"{url} says not now{times}: {said}{more}",
                attempts=self._made,
                status=outcome.status,
                request_id=outcome.request_id,
            )
        remedy = (
            ""
            if outcome.was_sent
            else ("; start the service with: otel-metering up, or give its URL (METERING_API_URL)")
        )
        return NoAnswerError(
            f"{url} does not answer{times}: {outcome.text}{more}{remedy}", attempts=self._made
        )


def _retry_after(text: str, clock: Clock) -> float:
    """Seconds that a `Retry-After` asks for (RFC 9110, section 10.2.3); 0: none, or nonsense."""
    text = text.strip()
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(moment.timestamp() - clock.now_ns() / 1e9, 0.0)
