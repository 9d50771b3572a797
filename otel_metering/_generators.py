"""Generators: counted once, at their end; their bodies run with the tenant of the call."""

import weakref
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import suppress
from contextvars import Token
from functools import wraps
from typing import Any

from otel_metering._call import Call, Plan, begin
from otel_metering._context import Holder, current
from otel_metering._record import sink

_Function = Callable[..., Any]


def metered_generator(function: _Function, plan: Plan) -> _Function:
    """`function`, whose generators are counted by `plan`."""

    # A function and no generator function: who pays is decided at the call, not at the first step.
    @wraps(function)
    def call(*args: object, **kwargs: object) -> object:
        body = function(*args, **kwargs)
        metered = begin(plan, args, kwargs)
        if metered is None:
            return body
        metered.keep_tenant()
        if not plan.is_enforced:
            return _steps(body, metered, current.get())
        metered.reserve()
        steps = _steps(body, metered, current.get())
        # One that is never started runs none of its code, also not at its end.
        weakref.finalize(steps, metered.release).atexit = False
        return steps

    return call


class _Turns:
    """The body of a generator takes turns with its consumer; each has its own tenant.

    Attributes:
        duration_ns: How long the body's turns took.
    """

    __slots__ = ("_holder", "_started_ns", "_token", "duration_ns")

    def __init__(self, holder: Holder) -> None:
        self._holder = holder
        self._token: Token[Holder] | None = None
        self._started_ns = 0
        self.duration_ns = 0

    def __enter__(self) -> None:
        self._token = current.set(self._holder)
        self._started_ns = sink.stopwatch_ns()

    def __exit__(self, *_: object) -> None:
        self.duration_ns += sink.stopwatch_ns() - self._started_ns
        # The body may have entered a block of its own, and is still in it at its next turn.
        self._holder = current.get()
        token, self._token = self._token, None
        if token is not None:
            # Of another context: an asynchronous body that is finalized while it waits for something.
            with suppress(ValueError):
                current.reset(token)


def _steps(
    body: Generator[Any, Any, Any], metered: Call, holder: Holder
) -> Generator[Any, Any, Any]:
    """What `yield from body` does (PEP 380), in turns."""
    turns = _Turns(holder)
    resume, value = body.send, None
    try:
        while True:
            with turns:
                item = resume(value)
            try:
                value = yield item
                resume = body.send
            except GeneratorExit:
                with turns:
                    body.close()
                raise
            except BaseException as error:  # noqa: BLE001 -- handed to the body
                resume, value = body.throw, error
    except StopIteration as stop:
        with turns:
            metered.end(stop.value, turns.duration_ns)
        return stop.value
    except GeneratorExit:
        with turns:
            metered.end(None, turns.duration_ns)
        raise
    except BaseException as error:
        with turns:
            metered.end(error, turns.duration_ns, is_error=True)
        raise


def metered_async_generator(function: _Function, plan: Plan) -> _Function:
    """`function`, whose asynchronous generators are counted by `plan`."""

    @wraps(function)
    def call(*args: object, **kwargs: object) -> object:
        body = function(*args, **kwargs)
        metered = begin(plan, args, kwargs)
        if metered is None:
            return body
        metered.keep_tenant()
        return _async_steps(body, metered, current.get(), is_enforced=plan.is_enforced)

    return call


async def _async_steps(
    body: AsyncGenerator[Any, Any], metered: Call, holder: Holder, *, is_enforced: bool
) -> AsyncGenerator[Any, Any]:
    """As `_steps`."""
    if is_enforced:
        await metered.reserve_async()
    turns = _Turns(holder)
    resume, value = body.asend, None
    try:
        while True:
            with turns:
                item = await resume(value)
            try:
                value = yield item
                resume = body.asend
            except GeneratorExit:
                with turns:
                    await _close(body)
                raise
            except BaseException as error:  # noqa: BLE001 -- handed to the body
                resume, value = body.athrow, error
    except StopAsyncIteration:
        with turns:
            metered.end(None, turns.duration_ns)
    except GeneratorExit:
        with turns:
            metered.end(None, turns.duration_ns)
        raise
    except BaseException as error:
        with turns:
            metered.end(error, turns.duration_ns, is_error=True)
        raise


async def _close(body: AsyncGenerator[Any, Any]) -> None:
    try:
        await body.aclose()
    except RuntimeError:
        # A loop that ends closes all it knows of side by side, so also the body.
        if not getattr(body, "ag_running", False):
            raise
