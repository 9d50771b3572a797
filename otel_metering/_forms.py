"""`meter`: a decorator for whatever can be called, and the `with` block beside it.

What is counted when: a function when it returns, a coroutine function when it is done, a generator
function, and an asynchronous one, when it is exhausted or closed.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Literal, NoReturn, Protocol, TypeVar, cast, overload

from otel_metering._call import Outcome, Plan, begin, new_plan
from otel_metering._cells import add as add_to
from otel_metering._context import current
from otel_metering._generators import metered_async_generator, metered_generator
from otel_metering._guard import absorb, guarded
from otel_metering._measure import Measurement
from otel_metering._quantity import Quantity
from otel_metering._record import add_fixed, add_varying, fixed, sink
from otel_metering.errors import ConfigurationError

F = TypeVar("F", bound="Callable[..., Any] | classmethod[Any, ..., Any] | staticmethod[..., Any]")

_Function = Callable[..., Any]
_Count = Callable[[object, tuple[object, ...], dict[str, object]], None]

_current_holder = current.get


class Decorator(Protocol):
    """Returns a function of the same signature."""

    @overload
    def __call__(self, function: type[Any], /) -> NoReturn: ...
    @overload
    def __call__(self, function: F, /) -> F: ...


class Meter:
    """Counts calls, as a decorator: `@meter("api.calls")`; or blocks: `with meter.measure("api.calls")`."""

    __slots__ = ()

    def __call__(
        self,
        slug: str,
        *,
        quantity: Quantity | Callable[..., Quantity] | Literal["duration"] = 1,
        attributes: Mapping[str, object] | Callable[..., Mapping[str, object]] | None = None,
        tenant: str | Callable[..., str | None] | None = None,
        count_on: Outcome = "success",
        quota: Literal["enforce"] | None = None,
        reserve: Quantity | Callable[..., Quantity] | None = None,
    ) -> Decorator:
        """Count each call of a function.

        For functions, coroutine functions, generator functions and asynchronous ones, methods, and what
        `classmethod` and `staticmethod` made. A generator counts once, when it is exhausted or closed; one
        that is never started does not count. Its body runs with the tenant that was current at the call.
        Nothing that goes wrong here reaches the application, except for a quota that denies.

        Args:
            slug: The meter.
            quantity: How much each call counts; or a function of (result, *args, **kwargs) that says it;
                or "duration": the seconds it took, of a generator those its body took.
            attributes: Dimensions, or a function of (result, *args, **kwargs) that says them.
            tenant: Who used it, or a function of (*args, **kwargs) that says it before the call. None: the
                tenant that is current at the end of the call, of a generator the one at the call.
            count_on: Whether calls count that return ("success"), that raise ("error"), or "both". For one
                that raises, `result` is the exception; for a generator that was closed early, None.
            quota: "enforce": ask the tenant's quota before the call.
            reserve: What the quota is asked for, or a function of (*args, **kwargs) that says it. None:
                `quantity`, which has to be a number then. What was not used is given back.

        Returns:
            The decorator. With `quota`, what it decorates raises `QuotaExceededError` when it is denied:
            an asynchronous generator at its first step, all others at the call.

        Raises:
            ConfigurationError: Something of this can never work, or, when it decorates, it is a class.
        """
        plan = new_plan(
            slug,
            quantity=quantity,
            attributes=attributes,
            tenant=tenant,
            count_on=count_on,
            quota=quota,
            reserve=reserve,
        )

        def decorate(function: Any) -> Any:  # noqa: ANN401 -- `Decorator` says what
            return _decorated(function, plan)

        return cast(Decorator, decorate)

    def measure(
        self,
        slug: str,
        *,
        quantity: Quantity | Literal["duration"] = 1,
        attributes: Mapping[str, object] | None = None,
        tenant: str | None = None,
        count_on: Outcome = "success",
        quota: Literal["enforce"] | None = None,
        reserve: Quantity | None = None,
    ) -> Measurement:
        """Count a `with` or `async with` block, at its end.

        `with meter.measure("llm.tokens") as usage: usage.quantity = 3120`

        Args:
            slug: The meter.
            quantity: How much it counts, unless the block says otherwise; "duration": the seconds it took.
            attributes: Dimensions, to which the block may add.
            tenant: Who used it; None: the tenant that is current at the end.
            count_on: Whether a block counts that ends ("success"), that raises ("error"), or "both".
            quota: "enforce": ask the tenant's quota first.
            reserve: What it is asked for; None: `quantity`. What was not used is given back.

        Returns:
            The block. With `quota`, entering it raises `QuotaExceededError` when it is denied.

        Raises:
            ConfigurationError: `count_on` or `quota` is none there is, or a quota cannot be told how much
                the block will use.
        """
        return Measurement(
            slug,
            quantity=quantity,
            attributes=attributes,
            tenant=tenant,
            count_on=count_on,
            quota=quota,
            reserve=reserve,
        )


meter: Meter = Meter()


def _decorated(function: Any, plan: Plan) -> Any:  # noqa: ANN401 -- of the type that it is given
    if isinstance(function, classmethod):
        return classmethod(_decorated(function.__func__, plan))
    if isinstance(function, staticmethod):
        return staticmethod(_decorated(function.__func__, plan))
    if isinstance(function, type) or not callable(function):
        raise ConfigurationError(
            f"meter {plan.meter!r} cannot count {function!r}: decorate a function, or its __init__"
        )
    if _is(function, inspect.isasyncgenfunction):
        return metered_async_generator(function, plan)
    if _is(function, inspect.isgeneratorfunction):
        return metered_generator(function, plan)
    if _is(function, inspect.iscoroutinefunction):
        return _simple_coroutine(function, plan) if plan.is_simple else _coroutine(function, plan)
    return _simple_function(function, plan) if plan.is_simple else _function(function, plan)


def _is(function: _Function, kind: Callable[[object], bool]) -> bool:
    # The second: an object whose __call__ is such a function.
    return kind(function) or kind(getattr(function, "__call__", None))  # noqa: B004 -- wanted itself


def _simple_function(function: _Function, plan: Plan) -> _Function:
    count = _fixed_counter(plan) if plan.is_fixed else _counter(plan)

    @wraps(function)
    def call(*args: object, **kwargs: object) -> object:
        result = function(*args, **kwargs)
        count(result, args, kwargs)
        return result

    return call


def _simple_coroutine(function: _Function, plan: Plan) -> _Function:
    count = _fixed_counter(plan) if plan.is_fixed else _counter(plan)

    @wraps(function)
    async def call(*args: object, **kwargs: object) -> object:
        result = await function(*args, **kwargs)
        count(result, args, kwargs)
        return result

    return call


def _fixed_counter(plan: Plan) -> _Count:
    """What a simple call of fixed usage does at its end, in as few steps as there can be."""
    meter, nanos = plan.meter, plan.nanos or 0
    key = fixed(meter, plan.attributes)

    def count(_result: object, _args: tuple[object, ...], _kwargs: dict[str, object]) -> None:
        local = sink.local
        if local is None:
            return
        try:
            holder = _current_holder()
            if meter not in holder.claimed:
                cell = local.shard.cells[(key, holder.tenant)]
                if cell.slot is None:
                    cell.nanos += nanos
                else:
                    add_to(cell, nanos)
            return
        except Exception:  # noqa: BLE001, S110 -- as in `record`
            pass
        with guarded:
            add_fixed(key, nanos, _current_holder().tenant)

    return count


def _counter(plan: Plan) -> _Count:
    """What a simple call does at its end, if usage depends on it."""

    def count(result: object, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if sink.local is None:
            return
        try:
            holder = _current_holder()
            if plan.meter not in holder.claimed:
                nanos, attributes = plan.usage_of(result, args, kwargs)
                if plan.key is not None:
                    add_fixed(plan.key, nanos, holder.tenant)
                else:
                    add_varying(plan.meter, nanos, holder.tenant, attributes)
        except Exception as error:  # noqa: BLE001 -- what `guarded` does, in less time
            absorb(error)

    return count


def _function(function: _Function, plan: Plan) -> _Function:
    @wraps(function)
    def call(*args: object, **kwargs: object) -> object:
        metered = begin(plan, args, kwargs)
        if metered is None:
            return function(*args, **kwargs)
        if plan.is_enforced:
            metered.reserve()
        started_ns = sink.stopwatch_ns()
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            metered.end(error, sink.stopwatch_ns() - started_ns, is_error=True)
            raise
        metered.end(result, sink.stopwatch_ns() - started_ns)
        return result

    return call


def _coroutine(function: _Function, plan: Plan) -> _Function:
    @wraps(function)
    async def call(*args: object, **kwargs: object) -> object:
        metered = begin(plan, args, kwargs)
        if metered is None:
            return await function(*args, **kwargs)
        if plan.is_enforced:
            await metered.reserve_async()
        started_ns = sink.stopwatch_ns()
        try:
            result = await function(*args, **kwargs)
        except BaseException as error:
            metered.end(error, sink.stopwatch_ns() - started_ns, is_error=True)
            raise
        metered.end(result, sink.stopwatch_ns() - started_ns)
        return result

    return call
