import gc
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_metering._cells import CellBook, Series, series_of
from otel_metering._guard import problems
from otel_metering._record import record, sink
from otel_metering._shared import MAX_SHARED, forget_unused, shared
from otel_metering.errors import InvalidUsageError


def new_book(max_series: int = 1000) -> CellBook:
    return CellBook(max_series_per_meter=max_series, on_new_thread=lambda: None)


def take(book: CellBook) -> dict[Series, int]:
    """Read and confirm, in units."""
    reading = book.read()
    book.confirm(reading)
    book.tidy()
    return {series: nanos // 10**9 for series, nanos in reading.deltas.items()}


@pytest.fixture(autouse=True)
def not_configured_afterwards() -> Iterator[None]:
    yield
    sink.close()


@pytest.fixture
def book() -> CellBook:
    book = new_book()
    sink.open(book)
    return book


class Region(StrEnum):
    EU = "eu"


def test_a_reading_that_is_not_confirmed_is_read_again(book: CellBook) -> None:
    record("api.calls", 3, tenant="tenant_a")

    book.read()

    assert take(book) == {Series("api.calls", "tenant_a", ()): 3}
    assert take(book) == {}


def test_the_order_of_attributes_does_not_matter(book: CellBook) -> None:
    record("api.calls", 3, attributes={"region": "eu", "code": 200})
    record("api.calls", 4, attributes={"code": 200, "region": "eu"})

    assert list(take(book).values()) == [7]


def test_values_that_python_holds_equal_are_kept_apart(book: CellBook) -> None:
    for value in (1, True, 1.0, "1", 1, True, 1.0, "1"):
        record("api.calls", 2, attributes={"plan": value})
    reading = take(book)

    for name in (1, True, "1", 1, True, "1"):
        record("api.calls", 2, attributes={name: "free"})  # type: ignore[dict-item] # what is tested

    assert sorted((s.dimensions[0][0], n) for s, n in take(book).items()) == [("1", 8), ("True", 4)]
    assert sorted((s.dimensions[0][1], n) for s, n in reading.items()) == [
        ("bool", 4),
        ("float", 4),
        ("int", 4),
        ("str", 4),
    ]


def test_odd_attribute_values_become_text_and_cost_no_usage(book: CellBook) -> None:
    odd: list[Mapping[str, object]] = [
        {"region": Region.EU},
        {"region": ["eu", "us"]},
        {"region": "\ud800"},
        {"region": 2**63},
        {"region": float("nan")},
        {"region": None},
    ]

    for attributes in odd:
        record("api.calls", attributes=attributes)

    found = {s.dimensions[0][1:] if s.dimensions else () for s in take(book)}
    assert found == {
        ("str", "eu"),
        ("str", "['eu', 'us']"),
        ("str", "?"),
        ("str", "9223372036854775808"),
        ("str", "nan"),
        (),
    }


def test_reserved_attributes_are_left_out_and_counted(book: CellBook) -> None:
    problems.reset()

    record("api.calls", attributes={"metering.quantity.scale": 3, "region": "eu"})

    assert list(take(book)) == [Series("api.calls", None, (("region", "str", "eu"),))]
    assert problems.counts()["ignored_attributes"] == 1


def test_usage_of_many_threads_is_exact_while_it_is_read(book: CellBook) -> None:
    total: dict[Series, int] = defaultdict(int)
    done = threading.Event()

    def work(index: int) -> None:
        for i in range(20_000):
            record("api.calls", i % 7, tenant=f"tenant_{index % 2}", attributes={"n": str(i % 3)})

    def read() -> None:
        while not done.is_set():
            for series, units in take(book).items():
                total[series] += units

    reader = threading.Thread(target=read)
    workers = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in (reader, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    done.set()
    reader.join()
    for series, units in take(book).items():
        total[series] += units

    assert sum(total.values()) == 4 * sum(i % 7 for i in range(20_000))
    assert len(total) == 6


def test_the_cells_of_an_ended_thread_are_read_and_then_freed(book: CellBook) -> None:
    thread = threading.Thread(target=record, args=("api.calls", 5), kwargs={"tenant": "tenant_a"})
    thread.start()
    thread.join()
    gc.collect()

    assert take(book) == {Series("api.calls", "tenant_a", ()): 5}
    assert take(book) == {}
    assert book._ledgers == []


def test_idle_cells_are_evicted_and_nothing_that_holds_one_is_lost(book: CellBook) -> None:
    record("api.calls", 1, tenant="tenant_a")
    held = book.cell("api.calls", "tenant_a", None)
    for _ in range(200):
        take(book)
    assert book.local.shard.cells == {}

    held.nanos += 2 * 10**9  # a thread that was about to add when its cell was evicted
    record("api.calls", 4, tenant="tenant_a")

    assert take(book) == {Series("api.calls", "tenant_a", ()): 6}
    del held
    take(book)
    assert all(ledger.evicted == [] for ledger in book._ledgers)


def test_cells_in_use_are_not_evicted(book: CellBook) -> None:
    for _ in range(200):
        record("api.calls", tenant="tenant_a")
        take(book)

    assert len(book.local.shard.cells) == 1


def test_series_of_all_threads_are_one_object_made_of_one_copy_of_each_text(book: CellBook) -> None:
    def use() -> None:
        for meter in ("api.calls", "jobs"):
            route = "".join(["/route/", "one"])  # another object each time
            record(meter, tenant="".join(["tenant_", "one"]), attributes={"route": route})

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    found = [cell.series for cell in book.read().cells]
    assert len(found) == 4
    assert len({id(series) for series in found}) == 2
    assert len({id(series.tenant) for series in found}) == 1
    assert len({id(series.dimensions) for series in found}) == 1


def test_the_text_of_evicted_series_is_not_kept(book: CellBook) -> None:
    value = "".join(["value_", "gone"])
    before = sys.getrefcount(value)
    record("api.calls", tenant="".join(["tenant_", "gone"]), attributes={"route": value})
    record("api.calls", attributes={"route": value, "code": 200})

    for _ in range(60 * 5):
        take(book)

    assert sys.getrefcount(value) == before
    again = "".join(["tenant_", "gone"])
    assert shared(again) is again


def test_what_is_shared_is_bounded_and_stays_shared_while_it_is_in_use() -> None:
    kept = shared(("kept", 0))
    forget_unused()
    assert shared(("kept", int("0"))) is kept
    first = ("value", -1)
    before = sys.getrefcount(first)

    shared(first)
    for number in range(MAX_SHARED):
        shared(("value", number))

    assert sys.getrefcount(first) == before  # let go of, like all others, when there were too many


def test_equal_values_of_other_types_are_not_shared(book: CellBook) -> None:
    for value in (True, 1, "1", True, 1, "1"):
        record("api.calls", tenant="tenant_a", attributes={"n": value})

    assert {
        type(series.dimensions[0][2]): (series.dimensions[0][1], quantity)
        for series, quantity in take(book).items()
    } == {bool: ("bool", 2), int: ("int", 2), str: ("str", 2)}


def test_too_many_series_keep_the_tenant_and_lose_dimensions() -> None:
    book = new_book(max_series=2)
    sink.open(book)
    problems.reset()

    for i in range(5):
        record("api.calls", 2, tenant="tenant_a", attributes={"n": str(i)})
    record("api.calls", 2, tenant="tenant_b", attributes={"n": "0"})

    assert take(book) == {
        Series("api.calls", "tenant_a", (("n", "str", "0"),)): 2,
        Series("api.calls", "tenant_a", (("n", "str", "1"),)): 2,
        Series("api.calls", "tenant_a", ()): 6,
        Series("api.calls", "tenant_b", ()): 2,
    }
    assert problems.counts()["folded_usage"] == 4


@pytest.mark.parametrize(("meter", "tenant"), [("", "a"), ("a b", "a"), ("m", "t\n"), ("m", 3)])
def test_names_are_checked(meter: str, tenant: str) -> None:
    with pytest.raises(InvalidUsageError):
        series_of(meter, tenant, None)


usages = st.tuples(
    st.sampled_from(["tenant_a", "tenant_b", None]),
    st.dictionaries(st.sampled_from("abc"), st.sampled_from([1, True, "x", 0.5, None]), max_size=2),
    st.integers(0, 2**63 - 1),
)


@given(st.lists(st.one_of(usages, st.just("read"), st.just("fail"))))
def test_any_sequence_of_records_and_readings_adds_up(steps: list[object]) -> None:
    book = new_book()
    sink.open(book)
    expected: dict[Series, int] = defaultdict(int)
    total: dict[Series, int] = defaultdict(int)

    def read() -> None:
        for series, units in take(book).items():
            total[series] += units

    for step in steps:
        if step == "read":
            read()
        elif step == "fail":
            book.read()  # the disk refused: not confirmed
        elif isinstance(step, tuple):
            tenant, attributes, quantity = step
            record("api.calls", quantity, tenant=tenant, attributes=attributes)
            if quantity:
                expected[series_of("api.calls", tenant, attributes)] += quantity
    read()

    assert total == expected
