"""What the stages of the receiver hand on to each other about usage: values, without rules."""

import json
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from otel_metering.contract.meter import Signal


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """Whose request it is: the API key, and the tenant it is bound to, if any."""

    key_id: str
    bound_tenant: str | None


Pairs = tuple[tuple[str, str], ...]
"""Names and texts, sorted by name."""


class Reason(StrEnum):
    """Why an item is in quarantine."""

    NO_TENANT = "no_tenant"
    INVALID_TENANT = "invalid_tenant"
    TENANT_NOT_ALLOWED = "tenant_not_allowed"
    NO_METER = "no_meter"
    INVALID_METER = "invalid_meter"
    UNKNOWN_TEMPORALITY = "unknown_temporality"
    UNSUPPORTED = "unsupported"
    NO_TIMESTAMP = "no_timestamp"
    TIMESTAMP_OUT_OF_RANGE = "timestamp_out_of_range"
    NO_VALUE = "no_value"
    INVALID_QUANTITY = "invalid_quantity"
    INVALID_EVENT_ID = "invalid_event_id"
    CONFLICT = "conflict"
    """It contradicts what was counted: another event under a used id, a counter that falls."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Everything that all events of one stream share as usage of one meter.

    Attributes:
        key: Tenant, meter and stream in 16 bytes: the key of its points' identities.
        tenant_id: Who pays.
        meter: Slug.
        dimensions: What the meter groups by.
        attributes: All that its events share; those of items that come one by one are their own.
        service_name: From the resource.
        signal: Where it came from.
        stream_id: 16 bytes.
        scale: Decimal places of integer values.
        unique_key: What a unique count counts; empty: nothing.
        is_monotonic: Whether a negative value is an error.
        is_cumulative: Whether a value is a total so far, of which the increase counts.
        counts_measurements: Whether the quantity is the number of measurements of a point.
        counts_units: Whether a point of n units stands for n events that were counted.
    """

    key: bytes
    tenant_id: str
    meter: str
    dimensions: Pairs
    attributes: Pairs
    service_name: str
    signal: Signal
    stream_id: bytes
    scale: int = 0
    unique_key: str = ""
    is_monotonic: bool = False
    is_cumulative: bool = False
    counts_measurements: bool = False
    counts_units: bool = False

    @cached_property
    def encoded(self) -> bytes:
        """What rows say of it, as JSON: made once for each stream, and read in the writer once."""
        columns = (
            self.tenant_id,
            self.meter,
            self.dimensions,
            self.attributes,
            self.service_name,
            self.signal,
            self.stream_id.hex(),
            self.unique_key,
        )
        return json.dumps(columns).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why the items of a stream cannot be billed, and what is known of them."""

    reason: Reason
    detail: str
    tenant_id: str
    attributes: Pairs
    service_name: str


@dataclass(frozen=True, slots=True)
class Use:
    """One item as usage of one meter.

    Attributes:
        series: What it shares with others.
        quantity: (whole, nano), see `receiver.quantity`; None: the length of the span in seconds.
        event_id: The sender's idempotency key.
    """

    series: Series
    quantity: tuple[int, int] | None
    event_id: str | None


class Verdict(StrEnum):
    """What a point is when it is not usage of exactly one meter."""

    IGNORED = "ignored"
    STALE = "stale"
    IRREGULAR = "irregular"
    """The tail of the point has numbers in it: its metric must be parsed again (`metrics.reparse`)."""


Decision = Series | Refusal
"""What a point is to one meter."""

PointResolution = Verdict | tuple[Decision, ...]
ItemResolution = Verdict | tuple[Use | Refusal, ...]
"""Of each meter that is fed, in the order of `meters.yaml`; never empty."""


class Streams:
    """What the numbers in `MetricStreams.numbers` stand for."""

    def __init__(self) -> None:
        self.series: list[Series] = []
        self.others: list[Verdict | tuple[int | Refusal, ...]] = []

    def number(self, resolution: PointResolution) -> int:
        """A number for it: n >= 0 is `series[n]`, and n < 0 is `others[~n]` (its ints: of n >= 0)."""
        if isinstance(resolution, Verdict):
            self.others.append(resolution)
        else:
            parts = tuple(self._part(decision) for decision in resolution)
            if len(parts) == 1 and isinstance(parts[0], int):
                return parts[0]
            self.others.append(parts)
        return ~(len(self.others) - 1)

    def __len__(self) -> int:
        return len(self.series) + len(self.others)

    def clear(self) -> None:
        """Forget everything; numbers given out before mean nothing any more."""
        self.series.clear()
        self.others.clear()

    def _part(self, decision: Decision) -> int | Refusal:
        if isinstance(decision, Refusal):
            return decision
        self.series.append(decision)
        return len(self.series) - 1
