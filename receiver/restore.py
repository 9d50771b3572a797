"""States of cumulative series from the events, when the spool that held them is gone.

A spool that was lost or moved away would else make every counter that still runs count a second time from
its start. What cannot be had back: the measurements before an unknown start (`count` and `avg` of such a
histogram may then be too high once; its quantity is right).
"""

import logging
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from otel_metering.spool import Spool
from receiver.cumulative import encode_state, state_key
from receiver.identity import digest
from receiver.quantity import from_decimal
from receiver.store.client import Store

_COUNTED: Final = """
SELECT
    tenant_id,
    meter,
    stream_id,
    toUnixTimestamp64Nano(start_time) AS start_ns,
    toString(max(cumulative_value)) AS top,
    toString(argMax(cumulative_value, timestamp)) AS last,
    sum(observations) AS counts,
    min(toUnixTimestamp64Nano(timestamp)) AS counted_ns,
    max(toUnixTimestamp64Nano(timestamp)) AS latest_ns,
    min(quantity) < 0 AS was_taken_back
FROM metering.events
WHERE cumulative_value IS NOT NULL
GROUP BY tenant_id, meter, stream_id, start_time
"""

_log = logging.getLogger(__name__)


def restore_states(store: Store, spool: Spool) -> int:
    """Give a spool without states those that the events tell; returns how many.

    Raises:
        UnavailableError: Database or disk refused; nothing was changed.
    """
    if spool.has_states():
        return 0
    states = [_state(row) for row in store.query(_COUNTED)]
    if states:
        spool.append([], states)
        _log.warning(
            "States of cumulative series were restored from the events",
            extra={"event": "states_restored", "states": len(states)},
        )
    return len(states)


def _state(row: Sequence[Any]) -> tuple[bytes, bytes]:
    tenant, meter, stream_id, start_ns, top, last, counts, counted_ns, latest_ns, back = row
    stream = UUID(str(stream_id)).bytes
    key = digest(b"series", str(tenant).encode(), str(meter).encode(), stream)
    value = Decimal(last if start_ns == 0 else top)
    return state_key(key, start_ns), encode_state(
        from_decimal(value),
        counts=max(counts, 0),
        counted_ns=counted_ns,
        latest_ns=latest_ns,
        is_based=bool(back) or start_ns in (0, counted_ns),
    )
