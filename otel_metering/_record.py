"""`record`: the way in. Nothing here waits, locks, or raises into the application."""

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final
from weakref import WeakValueDictionary

from otel_metering._cells import CellBook, Event, Local, check_event_id, series_of
from otel_metering._cells import add as add_to
from otel_metering._context import current
from otel_metering._dimensions import Dimensions, dimensions_of
from otel_metering._guard import guarded
from otel_metering._quantity import NANOS_PER_UNIT, Quantity, to_nanos
from otel_metering.clock import Clock, SystemClock, stopwatch_ns
from otel_metering.contract.event import MAX_QUANTITY, check_name

_current_holder = current.get
_MAX_QUANTITY: Final = MAX_QUANTITY
_NANOS_PER_UNIT: Final = NANOS_PER_UNIT


class _Sink:
    """Where usage goes.

    Attributes:
        local: The shards of `book`; None: shut down, usage is not counted.
        book: What is not in the spool yet.
        is_captured: Whether a test has the usage, and no pipeline.
        writes_events_now: Whether each event is to be on disk before `record` returns.
        clock: Gives events their time.
        stopwatch_ns: Measures durations.
    """

    __slots__ = (
        "_pipelines",
        "_write",
        "book",
        "clock",
        "is_captured",
        "local",
        "stopwatch_ns",
        "writes_events_now",
    )

    def __init__(self) -> None:
        self.local: Local | None = None
        self.book: CellBook | None = None
        self.is_captured = False
        self.clock: Clock = SystemClock()
        self.stopwatch_ns: Callable[[], int] = stopwatch_ns
        self.writes_events_now = False
        self._write: Callable[[Event], bool] | None = None
        # What `open` and `close` said last; differs from the above inside of `capture` only.
        self._pipelines: tuple[CellBook | None, Local | None] = (None, None)

    def open(
        self,
        book: CellBook,
        write_event_now: Callable[[Event], bool] | None = None,
        *,
        writes_events_now: bool = False,
    ) -> None:
        """Count in `book`; `write_event_now` takes an event to disk, or keeps it and says False."""
        self._write = write_event_now
        self.writes_events_now = writes_events_now
        self._put((book, book.local))

    def close(self) -> None:
        """Count nothing any more; the book is still read by its pipeline."""
        self._put((self._pipelines[0], None))

    @property
    def is_closed(self) -> bool:
        """Whether nothing is counted any more."""
        return self._pipelines[1] is None

    @contextmanager
    def capture(self, book: CellBook) -> Iterator[None]:
        """Count in `book`, whatever pipelines come and go meanwhile. Blocks nest."""
        before = self.is_captured, self.book, self.local
        self.is_captured, self.book, self.local = True, book, book.local
        try:
            yield
        finally:
            self.is_captured, self.book, self.local = before
            if not self.is_captured:
                self.book, self.local = self._pipelines

    def write_now(self, book: CellBook, event: Event) -> None:
        """Take `event` to disk before this returns; to `book`, if there is no disk."""
        if self._write is None or self.is_captured:
            book.add_event(event)
        else:
            self._write(event)

    def _put(self, pipelines: tuple[CellBook | None, Local | None]) -> None:
        self._pipelines = pipelines
        if not self.is_captured:
            self.book, self.local = pipelines


sink = _Sink()


class Fixed:
    """Meter and dimensions that are the same in each call; decorations that agree share one.

    Part of the key of a cell, found by identity: nothing of a call has to be hashed or compared.

    Attributes:
        meter: The slug.
        dimensions: Of the series.
    """

    __slots__ = ("__weakref__", "dimensions", "meter")

    def __init__(self, meter: str, dimensions: Dimensions) -> None:
        self.meter: str = meter
        self.dimensions: Dimensions = dimensions


_all_fixed: WeakValueDictionary[tuple[str, Dimensions], Fixed] = WeakValueDictionary()


def fixed(meter: str, attributes: Mapping[str, object] | None) -> Fixed:
    """The key for `meter` with `attributes`.

    Raises:
        InvalidUsageError: `meter` is not a valid name.
    """
    key = check_name("meter", meter), dimensions_of(attributes)
    return _all_fixed.setdefault(key, Fixed(*key))


def record(
    meter: str,
    quantity: Quantity = 1,
    *,
    tenant: str | None = None,
    attributes: Mapping[str, object] | None = None,
    event_id: str | None = None,
    durable: bool = False,
) -> None:
    """Count usage.

    Never raises (under pytest it does), and never waits, except for the disk if `durable`. Usage that
    cannot be counted, e.g. a negative quantity, is counted in `stats().rejected_usage`. What is
    recorded before `configure` waits in memory for it; after `shutdown` nothing is counted.

    Args:
        meter: The meter's slug, e.g. "api.calls".
        quantity: How much, at least 0, at most nine decimal places. Decimals are exact; a float is
            the number it prints as.
        tenant: Who used it; None: the tenant of the current block or request. If there is none, the
            receiver decides by the API key, or puts the usage into quarantine.
        attributes: Dimensions. str, bool, int and float keep their type, other values become text.
        event_id: Makes this an event of its own that counts once, however often it is recorded or
            sent; unique within tenant and meter. Without it usage is added up in the process.
        durable: On disk before this returns, with the setting durability="full" also if the power fails.
            Makes this an event of its own, with an id that never was before if none is given. While the
            disk takes none it waits in memory, as other usage does.
    """
    local = sink.local
    if local is None:
        return
    try:
        if tenant is None:
            tenant = _current_holder().tenant
        if event_id is None and not durable:
            if type(quantity) is int and 0 <= quantity <= _MAX_QUANTITY:
                nanos = quantity * _NANOS_PER_UNIT
            else:
                nanos = to_nanos(quantity)
            if not attributes:
                cell = local.shard.cells[(meter, tenant)]
            else:
                cell = local.shard.cells[(meter, tenant, tuple(attributes.items()))]
                if cell.types is not None and cell.types != tuple(map(type, attributes.values())):
                    raise LookupError  # equal to the key of other usage: True, 1
            if cell.slot is None:
                cell.nanos += nanos
            else:
                add_to(cell, nanos)
            return
    except Exception:  # noqa: BLE001, S110 -- a new cell, or something odd: the way below says which
        pass
    with guarded:
        if durable or event_id is not None:
            _record_event(meter, quantity, tenant, attributes, event_id, is_urgent=durable)
        else:
            add(meter, to_nanos(quantity), tenant, attributes)


def add_fixed(key: Fixed, nanos: int, tenant: str | None) -> None:
    """Count `nanos` (10**-9 units) for `tenant`.

    Raises:
        InvalidUsageError: `tenant` is not a valid name.
    """
    local = sink.local
    if local is None:
        return
    try:
        cell = local.shard.cells[(key, tenant)]
    except Exception:  # noqa: BLE001 -- a new cell, or something odd: the way below says which
        book = sink.book
        if book is None:
            return
        cell = book.cell_under((key, tenant), key.meter, tenant, key.dimensions)
    add_to(cell, nanos)


def add_varying(
    meter: str, nanos: int, tenant: str | None, attributes: Mapping[str, object] | None
) -> None:
    """As `add`, for usage that will probably come again.

    Raises:
        InvalidUsageError: `meter` or `tenant` is not a valid name.
    """
    local = sink.local
    if local is None:
        return
    try:
        if not attributes:
            add_to(local.shard.cells[(meter, tenant)], nanos)
            return
        cell = local.shard.cells[(meter, tenant, tuple(attributes.items()))]
        if cell.types is not None and cell.types != tuple(map(type, attributes.values())):
            raise LookupError  # as in `record`
        add_to(cell, nanos)
        return
    except Exception:  # noqa: BLE001, S110 -- as in `record`
        pass
    add(meter, nanos, tenant, attributes)


def add(
    meter: str, nanos: int, tenant: str | None, attributes: Mapping[str, object] | None
) -> None:
    """Count `nanos` (10**-9 units).

    Raises:
        InvalidUsageError: `meter` or `tenant` is not a valid name.
    """
    book = sink.book
    if book is not None and sink.local is not None:
        add_to(book.cell(meter, tenant, attributes), nanos)


def _record_event(
    meter: str,
    quantity: Quantity,
    tenant: str | None,
    attributes: Mapping[str, object] | None,
    event_id: str | None,
    *,
    is_urgent: bool,
) -> None:
    book = sink.book
    if book is None:
        return
    if event_id is None:
        event_id = str(uuid.uuid4())  # noqa: TID251 -- nothing is derived from it, nobody compares it
    series = series_of(meter, tenant, attributes)
    event = Event(sink.clock.now_ns(), series, to_nanos(quantity), check_event_id(event_id))
    if is_urgent or sink.writes_events_now:
        sink.write_now(book, event)
    else:
        book.add_event(event)
