"""What a correction says: which event does not count any more, why, and what counts instead. Values only."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from uuid import UUID

MAX_REASON_LENGTH = 500
"""Characters of the reason for a correction."""


class Action(StrEnum):
    """What became of an event; the text of `action` in `metering.event_corrections`."""

    VOID = "void"
    CORRECT = "correct"


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """An event, as its row in `metering.events` has it."""

    event_id: UUID
    tenant_id: str
    meter: str
    quantity: Decimal
    observations: int
    unique_key: str
    timestamp_ns: int
    start_ns: int
    dimensions: Mapping[str, str]
    attributes: Mapping[str, str]
    service_name: str
    signal: str
    trace_id: str
    span_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Replacement:
    """What counts instead; everything else is as it was.

    Attributes:
        quantity: How much.
        timestamp_ns: When; the begin of the time that the event covers moves with it.
        attributes: All of them. If they are others, the meter picks its dimensions from them.
    """

    quantity: Decimal
    timestamp_ns: int
    attributes: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """A decision about an event.

    Attributes:
        event: The event; it is in the database.
        reason: Why, for people.
        replacement: What counts instead; None: nothing, the event is void.
        key_id: Whose decision it is.
        corrected_at_ms: When, in milliseconds since the epoch.
    """

    event: EventRow
    reason: str
    replacement: Replacement | None
    key_id: str
    corrected_at_ms: int

    @property
    def action(self) -> Action:
        """What becomes of the event."""
        return Action.VOID if self.replacement is None else Action.CORRECT
