"""`record` and `@meter`: the way in. Nothing here waits, locks, or raises into the application."""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar, cast

from otel_metering._cells import CellBook, Event, Local, add, check_event_id, series_of
from otel_metering._context import current
from otel_metering._guard import guarded
from otel_metering._quantity import NANOS_PER_UNIT, Quantity, to_nanos
from otel_metering.clock import Clock, SystemClock
from otel_metering.contract.event import MAX_QUANTITY
from otel_metering.errors import ConfigurationError

P = ParamSpec("P")
R = TypeVar("R")

_current_holder = current.get
_MAX_QUANTITY: Final = MAX_QUANTITY
_NANOS_PER_UNIT: Final = NANOS_PER_UNIT


class _Sink:
    """Where usage goes.

    Attributes:
        local: The shards of `book`; None: not configured, usage is not counted.
        book: What is not in the spool yet.
        clock: Gives events their time.
        write_event_now: Puts an event on disk before it returns (with durability "full": fsynced), and
            says whether it could; if not, the event waits in memory for the next flush.
        writes_events_now: Whether each event is to be on disk before `record` returns.
    """

    __slots__ = ("book", "clock", "local", "write_event_now", "writes_events_now")

    def __init__(self) -> None:
        self.local: Local | None = None
        self.book: CellBook | None = None
        self.clock: Clock = SystemClock()
        self.write_event_now: Callable[[Event], bool] = self._keep_event
        self.writes_events_now = False

    def open(
        self,
        book: CellBook,
        *,
        write_event_now: Callable[[Event], bool] | None = None,
        writes_events_now: bool = False,
    ) -> None:
        self.book = book
        self.write_event_now = write_event_now or self._keep_event
        self.writes_events_now = writes_events_now
        self.local = book.local

    def close(self) -> None:
        self.local = None

    def _keep_event(self, event: Event) -> bool:
        if self.book is not None:
            self.book.add_event(event)
        return False


sink = _Sink()


def record(
    meter: str,
    quantity: Quantity = 1,
    *,
    tenant: str | None = None,
    attributes: Mapping[str, object] | None = None,
    event_id: str | None = None,
) -> None:
    """Count usage.

    Never raises (under pytest it does) and never waits. Usage that cannot be counted, e.g. a negative
    quantity, is counted in `stats().rejected_usage`. Before `configure` and after `shutdown` nothing is
    counted.

    Args:
        meter: The meter's slug, e.g. "api.calls".
        quantity: How much, at least 0, at most nine decimal places. Decimals are exact; a float is
            the number it prints as.
        tenant: Who used it; None: the tenant of the current block or request. If there is none, the
            receiver decides by the API key, or puts the usage into quarantine.
        attributes: Dimensions. str, bool, int and float keep their type, other values become text.
        event_id: Makes this an event of its own that counts once, however often it is recorded or
            sent; unique within tenant and meter. Without it usage is added up in the process.
    """
    local = sink.local
    if local is None:
        return
    try:
        if tenant is None:
            tenant = _current_holder().tenant
        if event_id is None:
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
                add(cell, nanos)
            return
    except Exception:  # noqa: BLE001, S110 -- a new cell, or something odd: the way below says which
        pass
    with guarded:
        _record_slowly(meter, quantity, tenant, attributes, event_id)


def _record_slowly(
    meter: str,
    quantity: Quantity,
    tenant: str | None,
    attributes: Mapping[str, object] | None,
    event_id: str | None,
) -> None:
    book = sink.book
    if book is None:
        return
    nanos = to_nanos(quantity)
    if event_id is None:
        cell = book.cell(meter, tenant, attributes)
        add(cell, nanos)
        return
    series = series_of(meter, tenant, attributes)
    event = Event(sink.clock.now_ns(), series, nanos, check_event_id(event_id))
    if sink.writes_events_now:
        sink.write_event_now(event)
    else:
        book.add_event(event)


def meter(
    slug: str,
    *,
    quantity: Quantity | Callable[..., Quantity] = 1,
    attributes: Mapping[str, object] | Callable[..., Mapping[str, object]] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Count each call that returns; one that raises is not counted.

    For plain functions, coroutine functions (counted when they are done) and generator functions
    (counted when they are exhausted). The tenant is the one that is current when the call is counted.

    Args:
        slug: The meter.
        quantity: How much each call counts, or a function of (result, *args, **kwargs) that says it.
            A generator function's result is what it returns.
        attributes: Dimensions, or a function of (result, *args, **kwargs) that says them.

    Raises:
        ConfigurationError: The decorated function is an async generator, whose end cannot be seen from
            outside; call `record` at its end instead.
    """
    fixed = dict(attributes) if isinstance(attributes, Mapping) else attributes

    def count(result: object, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if sink.local is None:
            return
        with guarded:
            record(
                slug,
                quantity(result, *args, **kwargs) if callable(quantity) else quantity,
                attributes=fixed(result, *args, **kwargs) if callable(fixed) else fixed,
            )

    if callable(quantity) or callable(fixed):
        return lambda function: _metered(function, count)

    def count_the_same(
        _result: object, _args: tuple[object, ...], _kwargs: dict[str, object]
    ) -> None:
        record(slug, quantity, attributes=fixed)

    return lambda function: _metered(function, count_the_same)


_Count = Callable[[object, tuple[object, ...], dict[str, object]], None]


def _metered(function: Callable[P, R], count: _Count) -> Callable[P, R]:
    if inspect.isasyncgenfunction(function):
        raise ConfigurationError(
            f"{function.__qualname__} is an async generator; call record() where it is done instead"
        )
    # The casts: each wrapper has the signature of what it wraps, which the checker cannot see.
    if inspect.iscoroutinefunction(function):
        return cast(Callable[P, R], _metered_coroutine(function, count))
    if inspect.isgeneratorfunction(function):
        return cast(Callable[P, R], _metered_generator(function, count))

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        result = function(*args, **kwargs)
        count(result, args, kwargs)
        return result

    return call


def _metered_coroutine(function: Callable[..., Any], count: _Count) -> Callable[..., Any]:
    @wraps(function)
    async def call(*args: object, **kwargs: object) -> object:
        result = await function(*args, **kwargs)
        count(result, args, kwargs)
        return result

    return call


def _metered_generator(function: Callable[..., Any], count: _Count) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: object, **kwargs: object) -> Any:  # noqa: ANN401 -- what it yields and returns
        result = yield from function(*args, **kwargs)
        count(result, args, kwargs)
        return result

    return call
