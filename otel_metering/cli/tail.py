"""Which events are new since the last look: each that arrives in time is shown once.

The API lists events by the time of the usage, and usage arrives late. So each look goes back some time
behind the one before, and what was seen is known by its identity: (tenant, meter, id).
"""

from collections.abc import Iterable

from otel_metering.client import Event

_Identity = tuple[str, str, str]


class Tail:
    """Follows events.

    Args:
        since_ns: Events of usage before are never shown: nanoseconds since the epoch.
        lateness_ns: An event that arrives later than so long after its usage may be missed.
    """

    def __init__(self, *, since_ns: int, lateness_ns: int) -> None:
        self._lateness_ns = lateness_ns
        self._from_ns = since_ns
        self._seen: dict[_Identity, int] = {}

    @property
    def from_ns(self) -> int:
        """From when on the next look has to list events."""
        return self._from_ns

    def fresh(self, events: Iterable[Event], looked_at_ns: int) -> list[Event]:
        """The events that were not there before, oldest first.

        Args:
            events: All since `from_ns`, in any order.
            looked_at_ns: When the look began. A look that failed is not told, and so leaves no gap.
        """
        found: dict[_Identity, Event] = {}
        for event in events:
            identity = (event.tenant_id, event.meter, event.event_id)
            if identity not in self._seen:
                found[identity] = event
        self._seen.update((identity, event.timestamp_ns) for identity, event in found.items())
        self._from_ns = max(self._from_ns, looked_at_ns - self._lateness_ns)
        # What is not listed again needs not be known.
        self._seen = {
            identity: at_ns for identity, at_ns in self._seen.items() if at_ns >= self._from_ns
        }
        return sorted(found.values(), key=lambda event: (event.timestamp_ns, event.event_id))
