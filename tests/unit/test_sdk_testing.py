"""`otel_metering.testing`: what users' own tests rely on."""

import os
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal, localcontext
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import otel_metering
from otel_metering import meter, record, tenant
from otel_metering._cells import CellBook, Event, series_of
from otel_metering._record import sink
from otel_metering.errors import ConfigurationError
from otel_metering.testing import Usage, capture, freeze

MOMENT = datetime(2026, 3, 1, 12, 30, 0, 250_000, tzinfo=UTC)


def test_usage_is_captured_without_any_configuration() -> None:
    before = threading.active_count()
    with capture() as usage:
        record("api.calls", 2, tenant="acme", attributes={"region": "eu", "code": 200})
        record("api.calls", Decimal("0.5"), tenant="acme", attributes={"region": "us"})
        record("api.calls", 4, tenant="other")
        record("api.calls", 8)
        assert threading.active_count() == before

    assert usage.total("api.calls") == Decimal("14.5")
    assert usage.total("api.calls", tenant="acme") == Decimal("2.5")
    assert usage.total("api.calls", tenant=None) == 8
    assert usage.total("api.calls", attributes={"region": "eu"}) == 2
    assert usage.total("api.calls", attributes={"code": True}) == 0
    assert usage.total("api.call") == 0
    assert usage.records() == [
        Usage(meter="api.calls", tenant=None, quantity=Decimal(8), attributes={}),
        Usage(
            meter="api.calls",
            tenant="acme",
            quantity=Decimal(2),
            attributes={"code": 200, "region": "eu"},
        ),
        Usage(
            meter="api.calls", tenant="acme", quantity=Decimal("0.5"), attributes={"region": "us"}
        ),
        Usage(meter="api.calls", tenant="other", quantity=Decimal(4), attributes={}),
    ]


def test_usage_of_all_threads_is_captured_and_only_in_the_block() -> None:
    record("api.calls", tenant="acme")
    with capture() as usage:
        threads = [
            threading.Thread(target=record, args=("api.calls",), kwargs={"tenant": "acme"})
            for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    record("api.calls", tenant="acme")

    usage.assert_total("api.calls", 5, tenant="acme")


def test_the_innermost_block_captures() -> None:
    with capture() as outer:
        record("api.calls", 1)
        with suppress(KeyError), capture() as inner:
            record("api.calls", 2)
            raise KeyError
        record("api.calls", 4)

    outer.assert_total("api.calls", 5)
    inner.assert_total("api.calls", 2)


def test_the_pipeline_gets_nothing_of_the_block_and_everything_after_it() -> None:
    book = CellBook(max_series_per_meter=10, on_new_thread=lambda: None)
    written: list[Event] = []
    sink.open(book, lambda event: bool(written.append(event)))  # type: ignore[func-returns-value] # None: not on disk

    record("api.calls", 1)
    with capture():
        record("api.calls", 2)
        record("orders", event_id="order_1", durable=True)
    record("api.calls", 4)
    sink.close()

    reading = book.read()
    assert reading.deltas == {series_of("api.calls", None, None): 5 * 10**9}
    assert reading.events == written == []


def test_the_code_under_test_may_configure_and_shut_down(tmp_path: Path) -> None:
    before = threading.active_count()
    with capture() as usage:
        otel_metering.configure(service_name="shop", spool_dir=tmp_path / "spool")
        record("api.calls")
        assert otel_metering.flush(send=True)
        assert otel_metering.shutdown()
        record("api.calls")
        with pytest.raises(ConfigurationError, match="batch_size"):
            otel_metering.configure(batch_size=0)
        assert threading.active_count() == before
        assert otel_metering.stats().pending_requests == 0

    assert not (tmp_path / "spool").exists()
    usage.assert_total("api.calls", 2)
    record("api.calls")
    usage.assert_total("api.calls", 2)


def test_a_pipeline_that_comes_or_goes_during_the_block_is_there_or_not_after_it() -> None:
    book = CellBook(max_series_per_meter=10, on_new_thread=lambda: None)
    with capture() as usage:
        sink.open(book)  # as a forked child does
        record("api.calls", 1)
    record("api.calls", 2)
    with capture():
        sink.close()  # as the end of the process does
    record("api.calls", 4)

    usage.assert_total("api.calls", 1)
    assert list(book.read().deltas.values()) == [2 * 10**9]


def test_events_are_kept_as_they_were_recorded_and_count_once() -> None:
    with capture() as usage, freeze(MOMENT), tenant("acme"):
        record("orders", 3, event_id="order_1", attributes={"region": "eu"})
        record("orders", 3, event_id="order_1", attributes={"region": "eu"})
        record("orders", 3, event_id="order_1", tenant="other")
        record("orders", 4, event_id="order_2", durable=True)
        record("orders", 5)

    usage.assert_total("orders", 12, tenant="acme")
    usage.assert_total("orders", 3, tenant="other")
    assert [event.event_id for event in usage.events] == ["order_1"] * 3 + ["order_2"]
    first = usage.events[0]
    assert (first.meter, first.tenant, first.quantity) == ("orders", "acme", Decimal(3))
    assert first.attributes == {"region": "eu"}
    assert first.time == MOMENT


def test_time_stands_still_and_is_moved_by_hand() -> None:
    east = timezone(timedelta(hours=3))
    with capture() as usage:
        with freeze(MOMENT.astimezone(east)) as time:
            record("orders", event_id="a")
            time.advance(1.5)
            record("orders", event_id="b")
            with freeze(7):
                record("orders", event_id="c")
            record("orders", event_id="d")
        before = datetime.now(UTC)
        record("orders", event_id="e")

    later = MOMENT + timedelta(seconds=1.5)
    assert [event.time for event in usage.events[:2]] == [MOMENT, later]
    assert usage.events[2].time_ns == 7
    assert usage.events[3].time == later
    assert abs(usage.events[4].time - before) < timedelta(minutes=1)
    with pytest.raises(ValueError, match="no zone"), freeze(datetime(2026, 3, 1)):  # noqa: DTZ001 -- what is tested
        pass


def test_what_is_not_as_expected_is_shown() -> None:
    with capture() as usage:
        record("api.calls", 2, tenant="acme", attributes={"region": "eu"})
        record("orders", Decimal("1E+2"), tenant="other")

    with pytest.raises(AssertionError) as failure:
        usage.assert_total("api.calls", 3, tenant="acme", attributes={"region": "eu"})
    assert str(failure.value) == (
        "api.calls of tenant 'acme' with {'region': 'eu'} is 2, not 3; recorded: "
        "\n    api.calls 2 tenant='acme' region='eu'"
        "\n    orders 100 tenant='other'"
    )
    with pytest.raises(AssertionError, match="orders 100"):
        usage.assert_none()
    with pytest.raises(AssertionError, match=r"api\.calls 2"):
        usage.assert_none("api.calls")
    usage.assert_none("other")
    usage.clear()
    with pytest.raises(AssertionError, match=r"api\.calls is 0, not 0\.1; recorded: nothing"):
        usage.assert_total("api.calls", 0.1)


def test_what_was_cleared_is_forgotten_and_what_comes_is_not() -> None:
    with capture() as usage:
        record("api.calls", 2)
        record("orders", event_id="order_1")
        usage.clear()
        usage.assert_none()
        assert usage.events == []
        record("api.calls", 3)
        record("orders", event_id="order_1")

    usage.assert_total("api.calls", 3)
    usage.assert_total("orders", 1)


def test_totals_are_exact_whatever_precision_the_test_works_with() -> None:
    with capture() as usage, localcontext(prec=3):
        record("api.calls", 2**63 - 1)
        record("api.calls", 2**63 - 1)
        record("api.calls", Decimal("0.000000001"))

        usage.assert_total("api.calls", Decimal("18446744073709551614.000000001"))


quantities = st.one_of(
    st.integers(0, 2**63 - 1),
    st.decimals(min_value=0, max_value=10**9, places=9, allow_nan=False),
    st.floats(0, 1000, allow_nan=False).map(lambda number: round(number, 6)),
)
usages = st.tuples(
    st.sampled_from(["api.calls", "orders"]),
    quantities,
    st.sampled_from(["acme", "other", None]),
    st.dictionaries(st.sampled_from("ab"), st.sampled_from(["x", "1", 1, True]), max_size=2),
    st.sampled_from([None, None, "id_1", "id_2"]),
    st.sampled_from(["record", "meter", "measure"]),
)


def use(usage: tuple[str, int, str | None, Mapping[str, object], str | None, str]) -> None:
    slug, quantity, who, attributes, event_id, form = usage
    if event_id is not None or form == "record":
        record(slug, quantity, tenant=who, attributes=attributes, event_id=event_id)
    elif form == "meter":
        meter(slug, quantity=quantity, tenant=who, attributes=attributes)(lambda: None)()
    else:
        with meter.measure(slug, tenant=who, attributes=attributes) as block:
            block.quantity = quantity


@given(st.lists(usages, max_size=20))
def test_what_is_captured_is_what_was_recorded(
    steps: list[tuple[str, int, str | None, Mapping[str, object], str | None, str]],
) -> None:
    expected: dict[tuple[object, ...], Decimal] = defaultdict(Decimal)
    ids = set()
    with localcontext(prec=60):
        for slug, quantity, who, attributes, event_id, _ in steps:
            if event_id is None or (slug, who, event_id) not in ids:
                ids.add((slug, who, event_id))
                key = frozenset((name, type(v), v) for name, v in attributes.items())
                expected[slug, who, key] += Decimal(str(quantity))

        with capture() as usage:
            for step in steps:
                use(step)

        found = {
            (u.meter, u.tenant, frozenset((n, type(v), v) for n, v in u.attributes.items())): u
            for u in usage.records()
        }
        assert {key: u.quantity for key, u in found.items()} == {
            k: q for k, q in expected.items() if q
        }
        for slug in ("api.calls", "orders"):
            usage.assert_total(
                slug, sum((q for k, q in expected.items() if k[0] == slug), Decimal(0))
            )


def test_pytest_finds_the_fixture_by_itself(tmp_path: Path) -> None:
    (tmp_path / "test_shop.py").write_text(
        "import otel_metering\n"
        "def test_counts(metering_usage):\n"
        "    otel_metering.configure(spool_dir='/proc/nowhere')\n"
        "    otel_metering.record('orders', 3, tenant='acme')\n"
        "    metering_usage.assert_total('orders', 3, tenant='acme')\n"
        "def test_begins_with_nothing(metering_usage):\n"
        "    metering_usage.assert_none()\n"
        "def test_fails(metering_usage):\n"
        "    otel_metering.record('orders', 3, tenant='acme')\n"
        "    metering_usage.assert_total('orders', 4, tenant='acme')\n"
    )
    # Which take longer to import than all the rest.
    others = [f"-pno:{name}" for name in ("schemathesis", "hypothesispytest", "xdist", "anyio")]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "pytest", "-p", "no:cacheprovider", *others],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(otel_metering.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "2 passed" in done.stdout, done.stdout + done.stderr
    assert "1 failed" in done.stdout
    assert "orders of tenant 'acme' is 3, not 4" in done.stdout


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert sink.local is None
    assert not sink.is_captured
