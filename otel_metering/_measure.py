"""`with meter.measure(...)`: usage of a block, whose quantity may become known inside."""

from collections.abc import Mapping
from decimal import Decimal
from types import TracebackType
from typing import Literal

from otel_metering._call import Metered, Outcome, cannot_foresee, check_choices
from otel_metering._context import current
from otel_metering._guard import guarded
from otel_metering._quantity import Quantity, to_nanos
from otel_metering._record import sink
from otel_metering.contract.event import QUANTITY_DECIMALS


class Measurement(Metered):
    """The block of `with meter.measure(...) as usage`, or `async with`; for one use.

    Attributes:
        quantity: How much is counted at the end; set it in the block. Where seconds are counted it is 0
            until the end, and then says how many they were.
        attributes: Dimensions; change them in the block.
    """

    __slots__ = (
        "_counts_error",
        "_counts_success",
        "_is_enforced",
        "_is_timed",
        "_reserve",
        "_started_ns",
        "attributes",
        "quantity",
    )

    def __init__(
        self,
        slug: str,
        *,
        quantity: Quantity | Literal["duration"],
        attributes: Mapping[str, object] | None,
        tenant: str | None,
        count_on: Outcome,
        quota: Literal["enforce"] | None,
        reserve: Quantity | None,
    ) -> None:
        """Check what can be said before the block.

        Raises:
            ConfigurationError: `count_on` or `quota` is none there is, or a quota cannot be told how much
                the block will use.
        """
        super().__init__(slug, tenant)
        check_choices(slug, count_on, quota, has_reserve=reserve is not None)
        self._is_timed = quantity == "duration"
        self.quantity: Quantity = 0 if quantity == "duration" else quantity
        self.attributes: dict[str, object] = dict(attributes or {})
        self._counts_success = count_on != "error"
        self._counts_error = count_on != "success"
        self._is_enforced = quota is not None
        if self._is_enforced and self._is_timed and reserve is None:
            raise cannot_foresee(slug)
        self._reserve = self.quantity if reserve is None else reserve
        self._started_ns = 0

    def asked_nanos(self) -> int:
        """What the quota is asked for, in 10**-9 units."""
        return to_nanos(self._reserve)

    def __enter__(self) -> "Measurement":
        """Ask the quota, if it is to be asked.

        Raises:
            QuotaExceededError: It denies the block.
        """
        if self._is_enforced and self._is_ours():
            self.reserve()
        self._started_ns = sink.stopwatch_ns()
        return self

    async def __aenter__(self) -> "Measurement":
        """As `__enter__`, without holding up the event loop."""
        if self._is_enforced and self._is_ours():
            await self.reserve_async()
        self._started_ns = sink.stopwatch_ns()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        nanos = sink.stopwatch_ns() - self._started_ns
        if self._is_timed:
            self.quantity = Decimal(nanos).scaleb(-QUANTITY_DECIMALS)
        used = 0
        try:
            if self._is_ours() and (self._counts_success if exc is None else self._counts_error):
                with guarded:
                    nanos = nanos if self._is_timed else to_nanos(self.quantity)
                    self.count(nanos, self.attributes, None)
                    used = nanos
        finally:
            self.release(used)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(exc_type, exc, traceback)

    def _is_ours(self) -> bool:
        """Whether it is counted here, and not by an instrument of the whole request."""
        return sink.local is not None and self.meter not in current.get().claimed
