"""Sends what ended processes left, without recording anything."""

from collections.abc import Callable
from dataclasses import dataclass

from otel_metering._config import Settings
from otel_metering._export import Sender
from otel_metering._outbox import Outbox
from otel_metering.clock import Clock

_STOP_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """What became of the requests.

    Attributes:
        sent: Acknowledged.
        refused: Set aside, because the receiver will never take them.
        left: Still waiting.
    """

    sent: int
    refused: int
    left: int


def drain(
    settings: Settings,
    *,
    timeout_seconds: float,
    clock: Clock,
    jitter: Callable[[], float],
    new_id: Callable[[], str],
) -> Drained:
    """Send everything of a service that belongs to no running process, or as much as can be in time.

    Raises:
        ConfigurationError: The receiver cannot be reached as `settings` say.
    """
    outbox = Outbox(settings, instance_id=new_id())
    sender = Sender(settings, outbox, clock=clock, jitter=jitter)
    sender.start()
    try:
        sender.wait_until_sent(timeout_seconds, even_if_failing=True)
    finally:
        sender.stop(_STOP_SECONDS)
        left = outbox.pending_requests
        outbox.close()
    return Drained(sent=sender.sent_count, refused=sender.refused_count, left=left)
