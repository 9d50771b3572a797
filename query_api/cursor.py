"""Where a page of events ended, as the opaque text that the next request brings back.

It is a position in the order of events, not an offset: events that arrive in between move nothing.
The range is part of it, so that a default end of "now" does not move between pages.
"""

import base64
import json
from dataclasses import dataclass
from uuid import UUID

from otel_metering.errors import InvalidUsageError
from query_api.periods import Range


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """The last event of a page, and the range that the pages cover."""

    range: Range
    timestamp_ns: int
    event_id: str

    def encode(self) -> str:
        """The text of it: safe in a URL."""
        fields = [self.range.start_ns, self.range.end_ns, self.timestamp_ns, self.event_id]
        return base64.urlsafe_b64encode(json.dumps(fields).encode()).decode().rstrip("=")


def decode(text: str) -> Cursor:
    """Read a cursor that `encode` wrote.

    Raises:
        InvalidUsageError: It is none.
    """
    try:
        padded = text + "=" * (-len(text) % 4)
        start_ns, end_ns, timestamp_ns, event_id = json.loads(base64.urlsafe_b64decode(padded))
        within = Range(int(start_ns), int(end_ns))
        return Cursor(range=within, timestamp_ns=int(timestamp_ns), event_id=str(UUID(event_id)))
    except (ValueError, TypeError, AttributeError):
        raise InvalidUsageError(
            "the cursor is not one of ours; send next_cursor as it was, or start without a cursor"
        ) from None
