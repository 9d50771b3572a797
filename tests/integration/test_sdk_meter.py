import asyncio
from collections.abc import Generator, Iterator
from decimal import Decimal
from pathlib import Path
from typing import assert_type

import pytest

import otel_metering
from otel_metering import meter, tenant
from tests.integration.sdk_backend import Backend, running_backend


@meter("before.configure")
def call_defined_before_configure(text: str, *, times: int = 1) -> str:
    return text * times


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Backend]:
    with running_backend() as backend:
        otel_metering.configure(service_name="shop", endpoint=backend.endpoint, spool_dir=tmp_path)
        with tenant("tenant_a"):
            yield backend
        otel_metering.shutdown()


def delivered(backend: Backend) -> dict[str, Decimal]:
    assert otel_metering.flush(send=True)
    return {meter: total for (meter, _), total in backend.totals().items()}


def test_calls_are_counted(backend: Backend) -> None:
    assert_type(call_defined_before_configure("a", times=2), str)

    assert call_defined_before_configure("a", times=2) == "aa"

    assert delivered(backend) == {"before.configure": 2}


def test_a_call_that_raises_is_not_counted(backend: Backend) -> None:
    @meter("api.calls")
    def call(divisor: int) -> int:
        return 6 // divisor

    call(2)
    with pytest.raises(ZeroDivisionError):
        call(0)

    assert delivered(backend) == {"api.calls": 1}


def test_quantity_and_attributes_may_depend_on_the_call(backend: Backend) -> None:
    @meter(
        "orders.items",
        quantity=lambda result, *_args, **_kwargs: result,
        attributes=lambda _result, *_args, region: {"region": region},
    )
    def order(items: int, *, region: str) -> int:
        return items

    order(2, region="eu")
    order(3, region="us")
    order(4, region="eu")
    assert otel_metering.flush(send=True)

    found = {dict(point.attributes)["region"]: point.quantity for point in backend.points}
    assert found == {"eu": 6, "us": 3}


def test_coroutines_are_counted_when_they_are_done(backend: Backend) -> None:
    @meter("jobs", quantity=Decimal("0.25"))
    async def run(text: str) -> str:
        return text

    async def use() -> str:
        coroutine = run("a")
        assert delivered(backend) == {}
        return await coroutine

    assert asyncio.run(use()) == "a"
    assert delivered(backend) == {"jobs": Decimal("0.25")}


def test_generators_are_counted_when_they_are_exhausted(backend: Backend) -> None:
    @meter("rows", quantity=lambda result: result)
    def rows() -> Generator[int, str, int]:
        sent = yield 1
        assert sent == "x"
        yield 2
        return 5

    opened = rows()
    assert next(opened) == 1
    assert opened.send("x") == 2
    assert delivered(backend) == {}
    assert list(opened) == []

    assert delivered(backend) == {"rows": 5}


def test_methods_are_counted(backend: Backend) -> None:
    class Shop:
        @meter("api.calls")
        def call(self) -> str:
            return "called"

        @classmethod
        @meter("api.calls")
        def call_class(cls) -> str:
            return cls.__name__

    assert Shop().call() == "called"
    assert Shop.call_class() == "Shop"
    assert delivered(backend) == {"api.calls": 2}


def test_durable_usage_is_on_disk_when_record_returns(backend: Backend, tmp_path: Path) -> None:
    backend.script = [503] * 1000  # so that it stays there

    otel_metering.record("orders", 3, durable=True)

    found = b"".join(path.read_bytes() for path in (tmp_path / "shop").iterdir())
    assert b"tenant_a" in found
    backend.script.clear()
    assert otel_metering.flush(send=True)
    ((meter, quantity, attributes),) = backend.events
    assert (meter, quantity) == ("orders", Decimal(3))
    assert attributes["metering.event.id"]


def test_durable_usage_with_an_id_keeps_it(backend: Backend) -> None:
    otel_metering.record("orders", 3, event_id="order_1", durable=True)

    assert otel_metering.flush(send=True)
    ((_, _, attributes),) = backend.events
    assert attributes["metering.event.id"] == "order_1"
