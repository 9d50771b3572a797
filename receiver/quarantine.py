"""Valid telemetry that cannot be billed: why, and what is kept of it."""

import json
from typing import Final

import numpy as np
from numpy.typing import NDArray

from otel_metering.contract.event import UsageEvent
from otel_metering.contract.meter import Signal
from receiver import identity, rows
from receiver.otlp import items, metrics, values
from receiver.otlp.items import ItemGroup
from receiver.otlp.metrics import PointGroup
from receiver.quantity import Ints
from receiver.usage import Pairs, Reason, Refusal, Sender, Series

EARLIEST_NS: Final = 946_684_800 * 10**9
"""2000-01-01: older timestamps are a sender's clock that was never set."""

MAX_AHEAD_NS: Final = 24 * 3600 * 10**9
"""How far ahead of our clock a timestamp may be: a day covers a wrong time zone, not a wrong year."""


def time_problem(time_ns: int, now_ns: int) -> tuple[Reason, str] | None:
    """Why usage of this time cannot be billed at `now_ns`; None: it can."""
    if EARLIEST_NS <= time_ns <= now_ns + MAX_AHEAD_NS:
        return None
    return (
        Reason.TIMESTAMP_OUT_OF_RANGE,
        f"timestamp {time_ns} ns is before 2000 or more than a day ahead; correct the sender's clock",
    )


def are_out_of_range(time_ns: Ints, now_ns: int) -> NDArray[np.bool_]:
    """For each time whether `time_problem` has something to say; one beyond an int64 is negative here."""
    return (time_ns < EARLIEST_NS) | (time_ns > now_ns + MAX_AHEAD_NS)


def refusal_of(
    series: Series, reason: Reason, detail: str, attributes: Pairs | None = None
) -> Refusal:
    """The refusal of something that would have been usage of `series`.

    Args:
        series: Of what.
        reason: Why not.
        detail: In words, with the remedy.
        attributes: Its own; None: those of its series.
    """
    return Refusal(
        reason=reason,
        detail=detail,
        tenant_id=series.tenant_id,
        attributes=series.attributes if attributes is None else attributes,
        service_name=series.service_name,
    )


def refused_point(
    group: PointGroup, i: int, refusal: Refusal, sender: Sender
) -> rows.QuarantineRow:
    """What is kept of point `i` of a metric."""
    payload = metrics.encode_single(group.header, group.points[i])
    name = values.decode_text(group.header.name)
    return _quarantine(Signal.METRIC, name, int(group.time_ns[i]), payload, refusal, sender)


def refused_item(group: ItemGroup, i: int, refusal: Refusal, sender: Sender) -> rows.QuarantineRow:
    """What is kept of span or log record `i` of a scope."""
    name = values.decode_text(group.names[i].name)
    payload = items.encode_single(group.header, group.encoded[i])
    time_ns = int(group.time_ns[i])
    return _quarantine(group.header.signal, name, time_ns, payload, refusal, sender)


def refused_event(
    event: UsageEvent, time_ns: int, refusal: Refusal, sender: Sender
) -> rows.QuarantineRow:
    """What is kept of an event of the JSON API: the event, as JSON."""
    payload = {
        "event_id": event.event_id,
        "tenant_id": event.tenant_id,
        "meter": event.meter,
        "quantity": str(event.quantity),
        "attributes": dict(event.attributes),
    }
    encoded = json.dumps(payload, sort_keys=True).encode()
    return _quarantine(Signal.EVENT, event.meter, time_ns, encoded, refusal, sender)


def _quarantine(
    signal: Signal, name: str, time_ns: int, payload: bytes, refusal: Refusal, sender: Sender
) -> rows.QuarantineRow:
    bound = (sender.bound_tenant or "").encode()
    return rows.QuarantineRow(
        # The same item, sent again, is in quarantine once.
        event_id=identity.mark(
            identity.digest(b"quarantine", bound, payload), identity.Kind.EXPLICIT
        ),
        reason=refusal.reason,
        detail=refusal.detail,
        signal=signal,
        name=name,
        tenant_id=refusal.tenant_id,
        timestamp_ns=min(time_ns, 2**63 - 1),
        attributes=refusal.attributes,
        service_name=refusal.service_name,
        payload=payload,
        key_id=sender.key_id,
    )
