"""Where usage waits, by `transport_mode`: on disk, or in memory."""

from pathlib import Path

from otel_metering._config import Settings
from otel_metering._memory_outbox import MemoryOutbox
from otel_metering._outbox import Outbox

AnyOutbox = Outbox | MemoryOutbox


def outbox_of(settings: Settings, *, instance_id: str, inherited: frozenset[Path]) -> AnyOutbox:
    """The queue that the settings ask for; "global" has one for what waited before it alone."""
    if settings.transport_mode in ("memory", "global"):
        return MemoryOutbox(settings)
    return Outbox(settings, instance_id=instance_id, inherited=inherited)


def hand_over(predecessor: AnyOutbox, successor: AnyOutbox) -> None:
    """What waits in a pipeline's queue goes to the next one's; the predecessor is used no more.

    Raises:
        UnavailableError: It waits in memory, and there is no room for it any more.
    """
    if isinstance(successor, MemoryOutbox):
        successor.inherit(predecessor)
    elif isinstance(predecessor, MemoryOutbox):
        if predecessor.before is not None:
            successor.inherit(predecessor.before)
        successor.put(predecessor.give_up())
    else:
        successor.inherit(predecessor)
