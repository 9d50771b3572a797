"""What was captured, and what a test may ask of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import EllipsisType
from typing import Final

from otel_metering._cells import CellBook, Event, Series
from otel_metering._dimensions import dimensions_of
from otel_metering._quantity import Quantity, to_decimal, to_text

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What was used of one meter, by one tenant, with the same attributes.

    Attributes:
        meter: The slug.
        tenant: Who used it; None: nobody said.
        quantity: How much, in units.
        attributes: Its dimensions, as they would be sent.
    """

    meter: str
    tenant: str | None
    quantity: Decimal
    attributes: Mapping[str, str | bool | int | float]

    def __str__(self) -> str:
        shown = [f"tenant={self.tenant!r}", *(f"{k}={v!r}" for k, v in self.attributes.items())]
        return f"{self.meter} {self.quantity:f} {' '.join(shown)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedEvent(Usage):
    """Usage with an id of its own.

    Attributes:
        event_id: Counts once within tenant and meter.
        time_ns: When it was recorded, in nanoseconds since the Unix epoch.
    """

    event_id: str
    time_ns: int

    @property
    def time(self) -> datetime:
        """When it was recorded, UTC, to the microsecond."""
        return _EPOCH + timedelta(microseconds=self.time_ns // 1000)


class CapturedUsage:
    """All usage of a `capture` block, of all threads; still there when the block is over.

    Args:
        book: What the block counts in.
    """

    def __init__(self, book: CellBook) -> None:
        self._book = book

    def __repr__(self) -> str:
        return f"<CapturedUsage: {self._shown()}>"

    @property
    def events(self) -> list[CapturedEvent]:
        """Usage that was recorded with an id or as durable, oldest first, repeated ones too."""
        return [_captured_event(event) for event in self._book.read().events]

    def records(self) -> list[Usage]:
        """Everything that counts, added up, as the receiver would: an event once, however often it came.

        Sorted by meter, tenant and attributes. What adds up to 0 is left out.
        """
        return [_usage(series, nanos) for series, nanos in sorted(self._totals(), key=_order)]

    def total(
        self,
        meter: str,
        *,
        tenant: str | EllipsisType | None = ...,
        attributes: Mapping[str, object] | None = None,
    ) -> Decimal:
        """How much was used of `meter`, in units.

        Args:
            meter: The slug.
            tenant: By whom; None: by nobody; ...: by anyone.
            attributes: Only usage that has these, whatever else it has.
        """
        wanted = set(dimensions_of(attributes))
        nanos = sum(
            nanos
            for series, nanos in self._totals()
            if series.meter == meter
            and tenant in (..., series.tenant)
            and wanted.issubset(series.dimensions)
        )
        return _units(nanos)

    def assert_total(
        self,
        meter: str,
        quantity: Quantity,
        *,
        tenant: str | EllipsisType | None = ...,
        attributes: Mapping[str, object] | None = None,
    ) -> None:
        """Fail unless `total` is exactly `quantity`; the message shows all that was recorded.

        Args:
            meter: As for `total`.
            quantity: What there should be.
            tenant: As for `total`.
            attributes: As for `total`.

        Raises:
            AssertionError: It is something else.
            InvalidUsageError: `quantity` is no number.
        """
        __tracebackhide__ = True
        expected = to_decimal(quantity)
        found = self.total(meter, tenant=tenant, attributes=attributes)
        if found != expected:
            whose = "" if tenant is ... else f" of tenant {tenant!r}"
            which = f" with {dict(attributes)}" if attributes else ""
            raise AssertionError(
                f"{meter}{whose}{which} is {found:f}, not {expected:f}; recorded: {self._shown()}"
            )

    def assert_none(self, meter: str | None = None) -> None:
        """Fail if there is any usage, of `meter` if it is given. 0 units are none.

        Raises:
            AssertionError: There is; the message shows it.
        """
        __tracebackhide__ = True
        found = [usage for usage in self.records() if meter in (None, usage.meter)]
        if found:
            raise AssertionError(f"there should be no usage; recorded: {_lines(found)}")

    def clear(self) -> None:
        """Forget what was recorded so far."""
        self._book.confirm(self._book.read())

    def _totals(self) -> Iterator[tuple[Series, int]]:
        reading = self._book.read()
        totals = dict(reading.deltas)
        seen = set()
        for event in reading.events:
            identity = event.series.tenant, event.series.meter, event.event_id
            if identity not in seen:
                seen.add(identity)
                totals[event.series] = totals.get(event.series, 0) + event.nanos
        return ((series, nanos) for series, nanos in totals.items() if nanos)

    def _shown(self) -> str:
        return _lines(self.records())


def _lines(usages: list[Usage]) -> str:
    return "".join(f"\n    {usage}" for usage in usages) or "nothing"


def _order(item: tuple[Series, int]) -> tuple[object, ...]:
    series, _ = item
    # Values of different types have no order of their own.
    named = [(name, kind, str(value)) for name, kind, value in series.dimensions]
    return series.meter, series.tenant or "", named


def _usage(series: Series, nanos: int) -> Usage:
    return Usage(
        meter=series.meter,
        tenant=series.tenant,
        quantity=_units(nanos),
        attributes={name: value for name, _, value in series.dimensions},
    )


def _captured_event(event: Event) -> CapturedEvent:
    series = event.series
    return CapturedEvent(
        meter=series.meter,
        tenant=series.tenant,
        quantity=_units(event.nanos),
        attributes={name: value for name, _, value in series.dimensions},
        event_id=event.event_id,
        time_ns=event.time_ns,
    )


def _units(nanos: int) -> Decimal:
    # Through text: exact whatever precision the test has set, and without zeros at the end.
    return Decimal(to_text(nanos))
