"""`@meter` and `meter.measure`: what is counted, when, how much, and for whom."""

import asyncio
import functools
import gc
import inspect
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager, nullcontext
from contextvars import copy_context
from decimal import Decimal
from typing import NoReturn

import pytest

import otel_metering
from otel_metering import current_tenant, meter, record, set_tenant, tenant
from otel_metering._call import Outcome
from otel_metering._context import Holder, current
from otel_metering._guard import absorb, problems
from otel_metering.errors import ConfigurationError, InvalidUsageError
from otel_metering.testing import CapturedUsage, capture, freeze


@pytest.fixture
def usage() -> Iterator[CapturedUsage]:
    with capture() as usage, tenant("tenant_a"):
        yield usage


@contextmanager
def claimed(slug: str) -> Iterator[None]:
    """As inside of a middleware that counts `slug` for the whole request."""
    holder = Holder("tenant_a", previous=current.get())
    holder.claimed = frozenset({slug})
    token = current.set(holder)
    yield
    current.reset(token)


# Functions and methods


class Shop:
    @meter("api.calls")
    def method(self, items: int) -> int:
        return items

    @classmethod
    @meter("api.calls")
    def inner_class_method(cls) -> str:
        return cls.__name__

    @meter("api.calls")
    @classmethod
    def outer_class_method(cls) -> str:
        return cls.__name__

    @staticmethod
    @meter("api.calls")
    def inner_static_method(items: int) -> int:
        return items

    @meter("api.calls")
    @staticmethod
    def outer_static_method(items: int) -> int:
        return items

    @property
    @meter("api.calls")
    def prop(self) -> int:
        return 7

    @meter("api.calls")
    async def coroutine(self) -> int:
        return 8

    @meter("api.calls")
    @classmethod
    async def class_coroutine(cls) -> str:
        return cls.__name__

    @meter("api.calls")
    def __call__(self) -> int:
        return 9


def test_each_kind_of_method_is_counted(usage: CapturedUsage) -> None:
    class Branch(Shop):
        pass

    shop = Branch()
    assert shop.method(1) == 1
    assert (shop.inner_class_method(), Branch.inner_class_method()) == ("Branch", "Branch")
    assert (shop.outer_class_method(), Branch.outer_class_method()) == ("Branch", "Branch")
    assert (shop.inner_static_method(2), Branch.inner_static_method(3)) == (2, 3)
    assert (shop.outer_static_method(4), Branch.outer_static_method(5)) == (4, 5)
    assert shop.prop == 7
    assert asyncio.run(shop.coroutine()) == 8
    assert asyncio.run(Branch.class_coroutine()) == "Branch"
    assert shop() == 9

    usage.assert_total("api.calls", 13)


def test_partial_functions_and_callable_objects_are_counted(usage: CapturedUsage) -> None:
    class Job:
        async def __call__(self, items: int) -> int:
            return items

    async def run(items: int) -> int:
        return items

    coroutine = meter("jobs")(Job())(2)
    usage.assert_none()
    assert asyncio.run(coroutine) == 2
    assert asyncio.run(meter("jobs")(functools.partial(run, 3))()) == 3
    assert meter("jobs")(functools.partial(max, 4))(1) == 4

    usage.assert_total("jobs", 3)


def test_a_decorated_function_still_is_what_it_was() -> None:
    @meter("api.calls")
    def call(items: int, *, region: str = "eu") -> int:
        """Call."""
        return items

    @meter("api.calls", count_on="both")
    async def run() -> None: ...

    class Base(ABC):
        @meter("api.calls")
        @classmethod
        @abstractmethod
        def make(cls) -> None: ...

    assert (call.__name__, call.__doc__) == ("call", "Call.")
    assert str(inspect.signature(call)) == "(items: int, *, region: str = 'eu') -> int"
    assert inspect.iscoroutinefunction(run)
    assert inspect.isabstract(Base)


def test_classes_and_what_cannot_be_called_are_refused() -> None:
    class Shop: ...

    with pytest.raises(ConfigurationError, match="decorate a function"):
        meter("api.calls")(Shop)
    with pytest.raises(ConfigurationError, match="decorate a function"):
        meter("api.calls")(property(lambda self: self))  # type: ignore[call-overload] # what is tested


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slug": "api calls"}, "api calls"),
        ({"slug": None}, "give text"),
        ({"quantity": -1}, "negative"),
        ({"quantity": "much"}, "type str"),
        ({"tenant": "a b"}, "a b"),
        ({"count_on": "failure"}, "success or error or both"),
        ({"quota": "ask"}, "enforce"),
        ({"reserve": 3}, "reserve needs"),
        ({"quota": "enforce", "quantity": "duration"}, "give reserve"),
        ({"quota": "enforce", "quantity": lambda result: result}, "give reserve"),
        ({"quota": "enforce", "reserve": -1}, "negative"),
    ],
)
def test_what_can_never_work_is_refused_when_it_is_decorated(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        meter(**{"slug": "api.calls", **options})  # type: ignore[arg-type] # what is tested


# Quantity, attributes, tenant


def test_quantity_attributes_and_tenant_may_depend_on_the_call(usage: CapturedUsage) -> None:
    @meter(
        "orders.items",
        quantity=lambda result, *_args, **_kwargs: result,
        attributes=lambda result, *_args, region: {"region": region, "large": result > 2},
        tenant=lambda customer, *_args, **_kwargs: customer,
    )
    def order(customer: str | None, items: int, *, region: str) -> int:
        return items

    order("tenant_b", 2, region="eu")
    order("tenant_b", 3, region="eu")
    order("tenant_b", 3, region="eu")
    order(None, 4, region="eu")  # nobody of its own: who is current

    usage.assert_total("orders.items", 2, tenant="tenant_b", attributes={"large": False})
    usage.assert_total("orders.items", 6, tenant="tenant_b", attributes={"large": True})
    usage.assert_total("orders.items", 4, tenant="tenant_a", attributes={"region": "eu"})


def test_values_that_python_holds_equal_are_kept_apart(usage: CapturedUsage) -> None:
    @meter("api.calls", attributes=lambda result, _value: {"plan": result})
    def call(value: object) -> object:
        return value

    for value in (1, True, 1.0, "1", 1, True, 1.0, "1"):
        call(value)
        meter("other.calls", attributes={"plan": value})(lambda: None)()

    for slug in ("api.calls", "other.calls"):
        found = {type(u.attributes["plan"]): u.quantity for u in usage.records() if u.meter == slug}
        assert found == {int: 2, bool: 2, float: 2, str: 2}


def test_attributes_are_those_of_the_decoration_and_not_of_later(usage: CapturedUsage) -> None:
    attributes = {"region": "eu"}

    @meter("api.calls", attributes=attributes)
    def call() -> None: ...

    attributes["region"] = "us"
    call()

    usage.assert_total("api.calls", 1, attributes={"region": "eu"})


def test_decorations_that_agree_share_their_cells(usage: CapturedUsage) -> None:
    from otel_metering._record import sink

    for _ in range(100):
        meter("api.calls", attributes={"region": "eu", "n": 1})(lambda: None)()

    usage.assert_total("api.calls", 100)
    assert sink.local is not None
    assert len(sink.local.shard.cells) == 1


def test_the_tenant_of_a_function_is_the_one_at_its_end(usage: CapturedUsage) -> None:
    @meter("api.calls")
    def log_in() -> None:
        set_tenant("tenant_b")

    with tenant("unknown"):
        log_in()

    usage.assert_total("api.calls", 1, tenant="tenant_b")


def test_a_fixed_tenant_beats_the_current_one(usage: CapturedUsage) -> None:
    meter("api.calls", tenant="tenant_b")(lambda: None)()
    with meter.measure("api.calls", tenant="tenant_b"):
        pass

    usage.assert_total("api.calls", 2, tenant="tenant_b")


def test_durations_are_exact_seconds(usage: CapturedUsage) -> None:
    with freeze(0) as time:

        @meter("cpu.seconds", quantity="duration")
        def work(seconds: float) -> None:
            time.advance(seconds)

        @meter("cpu.seconds", quantity="duration", count_on="both")
        async def work_async(seconds: float) -> None:
            time.advance(seconds)
            raise KeyError

        work(1.5)
        work(0.000000001)
        with pytest.raises(KeyError):
            asyncio.run(work_async(10))
        with meter.measure("cpu.seconds", quantity="duration") as block:
            time.advance(100)

    assert block.quantity == 100
    usage.assert_total("cpu.seconds", Decimal("111.500000001"))


def test_the_duration_of_a_generator_is_that_of_its_body(usage: CapturedUsage) -> None:
    with freeze(0) as time:

        @meter("cpu.seconds", quantity="duration")
        def rows() -> Iterator[int]:
            time.advance(1)
            yield 1
            time.advance(2)
            yield 2
            time.advance(4)

        @meter("cpu.seconds", quantity="duration")
        async def async_rows() -> AsyncIterator[int]:
            for row in rows():
                yield row

        async def consume() -> None:
            async for _ in async_rows():
                time.advance(100)

        for _ in rows():
            time.advance(100)
        asyncio.run(consume())

    usage.assert_total("cpu.seconds", 21)


def test_time_runs_without_being_frozen(usage: CapturedUsage) -> None:
    @meter("cpu.seconds", quantity="duration")
    def wait() -> None:
        threading.Event().wait(0.002)

    wait()

    assert Decimal("0.002") <= usage.total("cpu.seconds") < 60


# Success and error


def outcome(result: object, *_: object) -> dict[str, object]:
    return {"outcome": type(result).__name__}


def each_function_once(count_on: Outcome, divisor: int) -> None:
    """Meters "f", "c", "g" and "a"; each divides by `divisor`."""

    @meter("f", count_on=count_on, attributes=outcome)
    def function() -> int:
        return 6 // divisor

    @meter("c", count_on=count_on, attributes=outcome)
    async def coroutine() -> int:
        return 6 // divisor

    @meter("g", count_on=count_on, attributes=outcome)
    def generator() -> Generator[int, None, int]:
        yield 1
        return 6 // divisor

    @meter("a", count_on=count_on)
    async def async_generator() -> AsyncIterator[int]:
        yield 6 // divisor

    async def consume() -> None:
        async for _ in async_generator():
            pass

    expect_error(function, divisor == 0)
    expect_error(lambda: list(generator()), divisor == 0)
    expect_error(lambda: asyncio.run(coroutine()), divisor == 0)
    expect_error(lambda: asyncio.run(consume()), divisor == 0)


def each_block_once(count_on: Outcome, divisor: int) -> None:
    """Meters "plain" and "async"; each divides by `divisor`."""

    def block() -> None:
        with meter.measure("plain", count_on=count_on):
            6 // divisor

    async def async_block() -> None:
        async with meter.measure("async", count_on=count_on):
            6 // divisor

    expect_error(block, divisor == 0)
    expect_error(lambda: asyncio.run(async_block()), divisor == 0)


def expect_error(call: Callable[[], object], is_error: bool) -> None:
    with pytest.raises(ZeroDivisionError) if is_error else nullcontext():
        call()


@pytest.mark.parametrize(
    ("count_on", "outcomes"),
    [
        ("success", {"int": 1}),
        ("error", {"ZeroDivisionError": 2}),
        ("both", {"int": 1, "ZeroDivisionError": 2}),
    ],
)
def test_success_and_error_are_told_apart(
    usage: CapturedUsage, count_on: Outcome, outcomes: dict[str, int]
) -> None:
    for divisor in (1, 0, 0):
        each_function_once(count_on, divisor)
        each_block_once(count_on, divisor)

    for slug in ("f", "c", "g", "a", "plain", "async"):
        usage.assert_total(slug, sum(outcomes.values()))
    for slug in ("f", "c", "g"):
        found = {u.attributes["outcome"]: u.quantity for u in usage.records() if u.meter == slug}
        assert found == outcomes


def test_a_cancelled_task_is_an_error(usage: CapturedUsage) -> None:
    @meter("done")
    @meter("failed", count_on="error")
    async def run(started: asyncio.Event) -> None:
        started.set()
        await asyncio.Event().wait()

    async def cancel() -> None:
        started = asyncio.Event()
        task = asyncio.create_task(run(started))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())

    usage.assert_total("done", 0)
    usage.assert_total("failed", 1)


# Blocks


def test_a_block_may_say_how_much_and_of_what(usage: CapturedUsage) -> None:
    with meter.measure("llm.tokens", attributes={"model": "a"}) as block:
        block.quantity = 3120
        block.attributes["kind"] = "input"
    with meter.measure("llm.tokens", quantity=5) as block:
        block.quantity += 2

    usage.assert_total("llm.tokens", 3120, attributes={"model": "a", "kind": "input"})
    usage.assert_total("llm.tokens", 3127)


def test_a_block_counts_once_and_wrong_usage_of_it_costs_nothing_else(usage: CapturedUsage) -> None:
    problems.reset()

    with pytest.raises(InvalidUsageError), meter.measure("llm.tokens") as block:
        block.quantity = -1
    with pytest.raises(InvalidUsageError), meter.measure("llm tokens"):
        pass

    usage.assert_none()
    assert problems.counts()["rejected_usage"] == 2


def test_blocks_say_what_they_cannot_do() -> None:
    with pytest.raises(ConfigurationError, match="give reserve"):
        meter.measure("cpu.seconds", quantity="duration", quota="enforce")
    with pytest.raises(ConfigurationError, match="success or error or both"):
        meter.measure("cpu.seconds", count_on="never")  # type: ignore[arg-type] # what is tested


# Generators: pitfall 24


def numbered(slug: str = "rows") -> Generator[int, str, int]:
    """Yields who is current, in effect, and returns how much was sent."""

    @meter(slug, quantity=lambda result: result or 0)
    def rows() -> Generator[int, str, int]:
        sent = yield 1
        sent += yield 2
        return len(sent)

    return rows()


def test_a_generator_counts_once_when_it_is_exhausted(usage: CapturedUsage) -> None:
    rows = numbered()
    assert next(rows) == 1
    assert rows.send("ab") == 2
    usage.assert_none()
    with pytest.raises(StopIteration) as stop:
        rows.send("c")
    assert stop.value.value == 3
    rows.close()

    usage.assert_total("rows", 3)


def test_what_is_thrown_into_a_generator_reaches_its_body(usage: CapturedUsage) -> None:
    @meter("rows", count_on="both")
    def rows() -> Iterator[str]:
        try:
            yield "a"
        except KeyError as error:
            yield repr(error)
        yield "z"

    opened = rows()
    assert isinstance(opened, Generator)
    assert next(opened) == "a"
    assert opened.throw(KeyError("k")) == "KeyError('k')"
    with pytest.raises(ValueError, match="v"):
        opened.throw(ValueError("v"))

    usage.assert_total("rows", 1)


@pytest.mark.parametrize("how", ["close", "collect"])
def test_a_generator_that_is_closed_early_is_a_success(usage: CapturedUsage, how: str) -> None:
    cleaned = []

    @meter("rows", attributes=lambda result: {"result": str(result)})
    def rows() -> Generator[int, None, str]:
        try:
            yield 1
        finally:
            cleaned.append(current_tenant())
        return "end"

    opened = rows()
    next(opened)
    with tenant("tenant_b"):
        if how == "close":
            opened.close()
            opened.close()
        del opened
        gc.collect()

    assert cleaned == ["tenant_a"]
    usage.assert_total("rows", 1, tenant="tenant_a", attributes={"result": "None"})


def test_a_generator_that_is_never_started_does_not_count(usage: CapturedUsage) -> None:
    @meter("rows", count_on="both")
    async def async_rows() -> AsyncIterator[int]:
        yield 1

    opened = numbered()
    opened.close()
    numbered()
    async_rows()
    gc.collect()

    usage.assert_none()


def test_a_generator_belongs_to_the_tenant_of_its_call(usage: CapturedUsage) -> None:
    @meter("rows")
    def rows() -> Iterator[str | None]:
        record("inner")
        yield current_tenant()
        with tenant("tenant_c"):
            yield current_tenant()
            record("nested")
        yield current_tenant()

    with tenant("tenant_b"):
        opened = rows()
    seen = []
    for who in opened:
        seen.append(who)
        assert current_tenant() == "tenant_a"  # the consumer's stays its own

    assert seen == ["tenant_b", "tenant_c", "tenant_b"]
    usage.assert_total("rows", 1, tenant="tenant_b")
    usage.assert_total("inner", 1, tenant="tenant_b")
    usage.assert_total("nested", 1, tenant="tenant_c")
    assert len(usage.records()) == 3


def test_the_tenant_of_a_call_stays_when_the_request_names_another(usage: CapturedUsage) -> None:
    @meter("rows")
    def rows() -> Iterator[int]:
        yield 1

    with tenant("tenant_b"):
        opened = rows()
        set_tenant("tenant_c")
        list(opened)

    usage.assert_total("rows", 1, tenant="tenant_b")


def test_a_tenant_that_only_the_body_finds_out_pays(usage: CapturedUsage) -> None:
    @meter("rows")
    def rows() -> Iterator[int]:
        set_tenant("tenant_b")
        yield 1

    token = current.set(Holder(None))
    list(rows())
    current.reset(token)

    usage.assert_total("rows", 1, tenant="tenant_b")


def test_generators_of_two_tenants_side_by_side_do_not_mix(usage: CapturedUsage) -> None:
    @meter("rows")
    def rows() -> Iterator[str | None]:
        for _ in range(3):
            record("steps")
            yield current_tenant()

    with tenant("tenant_b"):
        b = rows()
    with tenant("tenant_c"):
        c = rows()

    assert list(zip(b, c, strict=True)) == [("tenant_b", "tenant_c")] * 3
    for name in ("tenant_b", "tenant_c"):
        usage.assert_total("steps", 3, tenant=name)
        usage.assert_total("rows", 1, tenant=name)


def test_an_asynchronous_generator_belongs_to_the_tenant_of_its_call(usage: CapturedUsage) -> None:
    @meter("rows")
    async def rows() -> AsyncIterator[str | None]:
        for _ in range(2):
            await asyncio.sleep(0)
            record("steps")
            yield current_tenant()

    async def consume(opened: AsyncIterator[str | None]) -> list[str | None]:
        seen = []
        async for who in opened:
            assert current_tenant() == "tenant_a"
            seen.append(who)
        return seen

    async def both() -> list[list[str | None]]:
        with tenant("tenant_b"):
            b = rows()
        with tenant("tenant_c"):
            c = rows()
        return list(await asyncio.gather(consume(b), consume(c)))

    assert asyncio.run(both()) == [["tenant_b"] * 2, ["tenant_c"] * 2]
    for name in ("tenant_b", "tenant_c"):
        usage.assert_total("steps", 2, tenant=name)
        usage.assert_total("rows", 1, tenant=name)


def test_an_asynchronous_generator_gets_what_is_sent_and_thrown(usage: CapturedUsage) -> None:
    @meter("rows", count_on="both")
    async def rows() -> AsyncGenerator[str, str]:
        sent = yield "a"
        try:
            yield sent
        except KeyError:
            yield "caught"

    async def use() -> None:
        opened = rows()
        assert await anext(opened) == "a"
        assert await opened.asend("b") == "b"
        assert await opened.athrow(KeyError) == "caught"
        usage.assert_none()
        with pytest.raises(StopAsyncIteration):
            await anext(opened)

    asyncio.run(use())

    usage.assert_total("rows", 1)


@pytest.mark.parametrize("how", ["aclosing", "break", "end of the loop"])
def test_an_asynchronous_generator_that_is_closed_early_is_a_success(
    usage: CapturedUsage, how: str
) -> None:
    cleaned = []

    @meter("rows", attributes=lambda result: {"result": str(result)})
    async def rows() -> AsyncGenerator[int, None]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            cleaned.append(current_tenant())
            closed.set()

    closed = asyncio.Event()
    kept = []

    async def use() -> None:
        if how == "aclosing":
            async with aclosing(rows()) as opened:
                assert await anext(opened) == 1
        elif how == "break":
            async for _ in rows():
                break
            gc.collect()
            await closed.wait()  # by the loop, when it comes to that
        else:
            kept.append(rows())
            assert await anext(kept[0]) == 1

    asyncio.run(use())

    assert cleaned == ["tenant_a"]
    usage.assert_total("rows", 1, tenant="tenant_a", attributes={"result": "None"})


def test_a_loop_may_close_body_and_generator_side_by_side(usage: CapturedUsage) -> None:
    @meter("rows")
    async def rows() -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)

    async def use() -> list[object]:
        opened = rows()
        await anext(opened)
        body = opened.ag_frame.f_locals["body"]  # type: ignore[attr-defined] # as the loop knows it
        # As loop.shutdown_asyncgens does, in this order or the other.
        closing = asyncio.gather(body.aclose(), opened.aclose(), return_exceptions=True)
        return list(await closing)

    assert asyncio.run(use()) == [None, None]
    usage.assert_total("rows", 1)


def test_an_asynchronous_generator_may_be_finalized_elsewhere_while_it_waits(
    usage: CapturedUsage,
) -> None:
    @meter("rows")
    async def rows() -> AsyncIterator[int]:
        await asyncio.sleep(0)
        yield 1

    async def consume() -> None:
        async for _ in rows():
            pass

    coroutine = consume()
    copy_context().run(coroutine.send, None)
    coroutine.close()  # as by the collector: in a context that is not its own

    assert current_tenant() == "tenant_a"
    usage.assert_total("rows", 1)


def test_fastapi_still_knows_a_dependency_with_yield(usage: CapturedUsage) -> None:
    pytest.importorskip("fastapi", reason="the SDK alone is installed")
    from fastapi import Depends, FastAPI
    from fastapi.testclient import TestClient

    app = FastAPI()

    @meter("sessions")
    def session() -> Iterator[str]:
        yield "session"

    @meter("async.sessions")
    async def async_session() -> AsyncIterator[str]:
        yield "async"

    @app.get("/")
    @meter("api.calls")
    def index(a: str = Depends(session), b: str = Depends(async_session)) -> list[str]:
        return [a, b]

    with TestClient(app) as client:
        assert client.get("/").json() == ["session", "async"]

    for slug in ("sessions", "async.sessions", "api.calls"):
        usage.assert_total(slug, 1)


# One owner per meter: pitfall 16


def test_a_meter_that_the_request_counts_is_left_to_it(usage: CapturedUsage) -> None:
    @meter("http.requests", count_on="both")
    def rows() -> Iterator[int]:
        yield 1

    with claimed("http.requests"):
        meter("http.requests")(lambda: None)()
        meter("http.requests", quantity=lambda _result: 2)(lambda: None)()
        meter("http.requests", quantity="duration")(lambda: None)()
        list(rows())
        with meter.measure("http.requests"):
            pass
        with tenant("tenant_b"):  # a block inside of the request
            meter("http.requests")(lambda: None)()
        usage.assert_none()
        meter("other")(lambda: None)()
        record("http.requests")

    meter("http.requests")(lambda: None)()
    usage.assert_total("http.requests", 2)
    usage.assert_total("other", 1)


# Threads and tasks


def test_calls_of_many_threads_are_exact(usage: CapturedUsage) -> None:
    @meter("api.calls", quantity=lambda _result, n: n)
    def call(n: int) -> None: ...

    def work(index: int) -> None:
        with tenant(f"tenant_{index % 3}"):
            for n in range(500):
                call(n)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(9))) == [None] * 9

    for name in ("tenant_0", "tenant_1", "tenant_2"):
        usage.assert_total("api.calls", 3 * sum(range(500)), tenant=name)


def test_calls_of_many_tasks_are_exact(usage: CapturedUsage) -> None:
    @meter("jobs")
    async def run() -> None:
        await asyncio.sleep(0)

    @meter("rows")
    async def rows() -> AsyncIterator[int]:
        for i in range(3):
            await asyncio.sleep(0)
            yield i

    async def use(name: str) -> None:
        async with tenant(name):
            await run()
            async for _ in rows():
                await asyncio.sleep(0)

    async def all_at_once() -> None:
        await asyncio.gather(*(use(f"tenant_{i % 3}") for i in range(300)))

    asyncio.run(all_at_once())

    for name in ("tenant_0", "tenant_1", "tenant_2"):
        usage.assert_total("jobs", 100, tenant=name)
        usage.assert_total("rows", 100, tenant=name)
    assert len(usage.records()) == 6


# Never into the application


def fail(*_args: object, **_kwargs: object) -> NoReturn:
    raise ArithmeticError("a fault of the callable")


@pytest.mark.parametrize(
    "options",
    [
        {"quantity": fail},
        {"attributes": fail},
        {"tenant": fail},
        {"quantity": lambda *_: -1},
        {"quantity": lambda *_: "much"},
        {"attributes": lambda *_: 3},
        {"tenant": lambda *_: "no tenant"},
        {"tenant": lambda *_: []},
        {"quantity": fail, "count_on": "both"},
        {"quantity": fail, "tenant": "tenant_b"},
    ],
)
def test_a_fault_of_a_callable_costs_its_usage_and_nothing_else(
    usage: CapturedUsage, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otel_metering._guard.is_under_pytest", lambda: False)
    problems.reset()

    @meter("api.calls", **options)  # type: ignore[arg-type] # what is tested
    def call() -> str:
        return "called"

    @meter("api.calls", **options)  # type: ignore[arg-type] # what is tested
    async def run() -> str:
        return "done"

    @meter("api.calls", **options)  # type: ignore[arg-type] # what is tested
    def rows() -> Iterator[int]:
        yield 1

    @meter("api.calls", **options)  # type: ignore[arg-type] # what is tested
    async def async_rows() -> AsyncIterator[int]:
        yield 1

    async def consume() -> list[int]:
        return [row async for row in async_rows()]

    assert call() == "called"
    assert asyncio.run(run()) == "done"
    assert list(rows()) == [1]
    assert asyncio.run(consume()) == [1]

    usage.assert_none()
    counts = problems.counts()
    assert counts["internal_errors"] + counts["rejected_usage"] == 4


def test_the_application_gets_its_own_error_when_counting_fails_too(
    usage: CapturedUsage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otel_metering._guard.is_under_pytest", lambda: False)

    @meter("api.calls", attributes=fail, count_on="both")
    def call() -> None:
        raise KeyError("of the application")

    with pytest.raises(KeyError, match="of the application"):
        call()


def test_nothing_is_counted_or_asked_after_shutdown() -> None:
    otel_metering.shutdown()
    asked = []

    def ask(*_: object) -> int:
        asked.append(1)
        return 1

    @meter("api.calls", quantity=ask, tenant=fail)
    def call() -> str:
        return "called"

    assert call() == "called"
    assert asked == []


def test_what_goes_wrong_is_raised_under_pytest() -> None:
    with pytest.raises(InvalidUsageError):
        absorb(InvalidUsageError("so that tests find it"))
