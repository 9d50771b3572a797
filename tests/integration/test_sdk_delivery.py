import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import otel_metering
from otel_metering import meter, record, tenant
from otel_metering._guard import Problem, problems
from otel_metering._lifecycle import _process
from otel_metering._parcel import gate
from otel_metering.errors import ConfigurationError, InvalidUsageError
from otel_metering.spool import open_spool
from tests.integration.sdk_backend import (
    Act,
    Backend,
    Configure,
    configured,
    deliver,
    running_backend,
)
from tests.waiting import eventually


@pytest.fixture
def backend() -> Iterator[Backend]:
    with running_backend() as backend:
        yield backend


@pytest.fixture
def configure(backend: Backend, tmp_path: Path) -> Iterator[Configure]:
    with configured(backend, tmp_path) as configure:
        yield configure


def leave_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on errors are absorbed, as in production."""
    monkeypatch.delenv("PYTEST_CURRENT_TEST")


def test_shut_down_nothing_happens(backend: Backend) -> None:
    otel_metering.shutdown()

    @meter("api.calls")
    def call() -> int:
        return 13

    record("api.calls", -1, tenant="not valid")

    assert call() == 13
    assert otel_metering.flush(send=True)
    assert otel_metering.shutdown()
    assert otel_metering.stats().pending_requests == 0
    assert backend.headers == []


def test_threads_deliver_their_exact_sum(configure: Configure, backend: Backend) -> None:
    configure(flush_interval_seconds=0.01)

    def work() -> None:
        with tenant("tenant_a"):
            for i in range(5_000):
                record("api.calls", i % 5)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    deliver()

    assert backend.total("api.calls") == 4 * 10_000


def test_equal_usage_of_two_threads_is_one_point(configure: Configure, backend: Backend) -> None:
    configure()

    for attributes in ({"a": "1", "b": "2"}, {"b": "2", "a": "1"}):
        thread = threading.Thread(
            target=record,
            args=("api.calls", 3),
            kwargs={"tenant": "tenant_a", "attributes": attributes},
        )
        thread.start()
        thread.join()
    deliver()

    assert [point.quantity for point in backend.points] == [6]


def test_decimals_and_floats_are_exact(configure: Configure, backend: Backend) -> None:
    configure()

    for _ in range(10):
        record("orders.revenue", 0.1, tenant="tenant_a")
        record("orders.revenue", Decimal("12.34"), tenant="tenant_a")
    record("orders.revenue", 2**63 - 1, tenant="tenant_a")
    record("orders.revenue", 2**63 - 1, tenant="tenant_a")
    deliver()

    assert backend.total("orders.revenue") == Decimal("124.4") + 2 * (2**63 - 1)


quantities = st.decimals(min_value=0, max_value=10**6, places=9)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.one_of(quantities, st.just("flush"), st.sampled_from(list(Act)[:2]))))
def test_any_sequence_of_usage_flushes_and_faults_arrives_exactly(
    configure: Configure, backend: Backend, steps: list[object]
) -> None:
    configure()
    before = backend.total("api.calls")
    expected = Decimal(0)

    for step in steps:
        if isinstance(step, Decimal):
            record("api.calls", step, tenant="tenant_a")
            expected += step
        elif isinstance(step, Act):
            backend.script.append(step)
        else:
            otel_metering.flush()
    deliver()

    assert backend.total("api.calls") - before == expected


def test_intervals_of_a_stream_follow_each_other(configure: Configure, backend: Backend) -> None:
    configure()

    for _ in range(3):
        record("api.calls", tenant="tenant_a")
        otel_metering.flush()
    deliver()

    first, second, third = sorted(backend.points, key=lambda point: point.start_ns)
    assert first.start_ns < first.end_ns == second.start_ns < second.end_ns == third.start_ns


@pytest.mark.parametrize("act", [503, 500, 429, 302, 401, 404, *Act])
def test_every_fault_is_retried_until_the_total_is_exact(
    configure: Configure, backend: Backend, act: Act | int
) -> None:
    configure(timeout_seconds=0.3)
    backend.script = [act, act, 200, act]

    for _ in range(3):
        record("api.calls", 5, tenant="tenant_a")
        otel_metering.flush()
    deliver()

    assert backend.total("api.calls") == 15


def test_a_lost_answer_brings_the_same_points_again(configure: Configure, backend: Backend) -> None:
    configure()
    backend.script = [Act.LOSE_ANSWER]

    record("api.calls", 5, tenant="tenant_a")
    deliver()

    assert len(backend.points) == 2
    assert len(set(backend.points)) == 1


def test_rejected_points_are_counted(configure: Configure, backend: Backend) -> None:
    configure()
    backend.script = [Act.REJECT_ONE]
    before = otel_metering.stats().rejected_points

    record("api.calls", tenant="tenant_a")
    deliver()

    assert otel_metering.stats().rejected_points == before + 1


def test_a_warning_of_the_receiver_is_counted_and_logged(
    configure: Configure, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    configure()
    backend.script = [Act.WARN]
    problems.settle(Problem.WARNED_REQUESTS)  # another test may have been warned
    before = otel_metering.stats().warned_requests

    record("api.calls")
    deliver()

    assert otel_metering.stats().warned_requests == before + 1
    assert "1 in quarantine: no_tenant" in caplog.text


def test_refused_requests_are_kept_aside(
    configure: Configure, backend: Backend, tmp_path: Path
) -> None:
    configure()
    backend.script = [400]
    before = otel_metering.stats().refused_requests

    record("api.calls", 5, tenant="tenant_a")
    assert not otel_metering.flush(send=True, timeout_seconds=10)
    record("api.calls", 7, tenant="tenant_a")
    deliver()
    otel_metering.shutdown()

    assert backend.total("api.calls") == 7
    assert otel_metering.stats().refused_requests == before + 1
    (refused,) = tmp_path.glob("shop/*.refused.db")
    spool = open_spool(refused)
    (entry,) = spool.entries()
    spool.close()
    assert entry.key == "metrics HTTP 400"


def test_attempts_can_be_bounded(configure: Configure, backend: Backend, tmp_path: Path) -> None:
    configure(retry_max_attempts=2)
    backend.script = [503, 503]

    record("api.calls", 5, tenant="tenant_a")

    assert not otel_metering.flush(send=True, timeout_seconds=10)
    assert otel_metering.stats().pending_requests == 0
    assert len(list(tmp_path.glob("shop/*.refused.db"))) == 1


def test_a_request_that_the_receiver_stumbles_over_lets_the_others_pass(
    configure: Configure, backend: Backend
) -> None:
    configure()
    backend.poison = b"poison"
    record("api.calls", 1, tenant="poison")
    otel_metering.flush()
    for _ in range(3):
        record("api.calls", 5, tenant="tenant_a")
        otel_metering.flush()

    eventually(lambda: backend.total("api.calls"), lambda total: total == 15)
    eventually(lambda: otel_metering.stats().pending_requests, lambda count: count == 1)
    backend.poison = None
    deliver()

    assert backend.totals() == {("api.calls", "tenant_a"): 15, ("api.calls", "poison"): 1}


def test_attempts_are_bounded_by_request_though_others_pass_in_between(
    configure: Configure, backend: Backend, tmp_path: Path
) -> None:
    configure(retry_max_attempts=7)
    backend.poison = b"poison"
    record("api.calls", 1, tenant="poison")
    otel_metering.flush()
    for _ in range(9):
        record("api.calls", 5, tenant="tenant_a")
        otel_metering.flush()

    eventually(lambda: otel_metering.stats().pending_requests, lambda count: count == 0)

    assert backend.totals() == {("api.calls", "tenant_a"): 45}
    assert len(list(tmp_path.glob("shop/*.refused.db"))) == 1


def test_usage_that_piles_up_is_said_once_until_it_has_drained(
    configure: Configure, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    configure(spool_max_bytes=1_000, retry_initial_seconds=0.001, retry_max_seconds=0.002)
    expected = otel_metering.stats().piled_up
    for _ in range(2):
        expected += 1
        backend.poison = b"tenant_a"
        for _ in range(3):
            record("api.calls", tenant="tenant_a")
            otel_metering.flush()
        eventually(lambda: otel_metering.stats().piled_up, expected.__eq__)
        more = otel_metering.stats().failed_sends + 5
        eventually(lambda: otel_metering.stats().failed_sends, more.__le__)
        assert otel_metering.stats().piled_up == expected
        backend.poison = None
        deliver()

    assert caplog.text.count("usage piles up: ") == 2
    assert "of at most 1000 bytes wait" in caplog.text


def test_what_was_refused_is_put_down_so_that_a_command_can_take_it(
    configure: Configure, backend: Backend, tmp_path: Path
) -> None:
    configure()
    backend.script = [400]
    record("api.calls", 5, tenant="tenant_a")
    assert not otel_metering.flush(send=True, timeout_seconds=10)
    pipeline = _process.pipeline
    assert pipeline is not None

    pipeline.outbox.adopt_orphans()

    (refused,) = tmp_path.glob("shop/*.refused.db")
    open_spool(refused).close()


def test_requests_carry_key_and_compression(configure: Configure, backend: Backend) -> None:
    configure(api_key="key_1", headers={"X-Zone": "z"})
    record("api.calls", tenant="tenant_a")
    deliver()

    configure(compression="none")
    record("api.calls", tenant="tenant_a")
    deliver()

    first, second = backend.headers
    assert first["authorization"] == "Bearer key_1"
    assert first["x-zone"] == "z"
    assert first["content-encoding"] == "gzip"
    assert "content-encoding" not in second
    assert backend.total("api.calls") == 2


def test_requests_hold_at_most_batch_size_points(configure: Configure, backend: Backend) -> None:
    configure(batch_size=4)

    for i in range(10):
        record("api.calls", tenant=f"tenant_{i}")
    deliver()

    assert backend.request_sizes == [4, 4, 2]


def test_an_event_with_an_id_is_a_record_of_its_own(configure: Configure, backend: Backend) -> None:
    configure()

    with tenant("tenant_a"):
        record("jobs", 2, event_id="e1", attributes={"region": "eu"})
        record("jobs", Decimal("0.5"), event_id="e2")
    deliver()

    assert backend.events == [
        ("jobs", 2, {"tenant.id": "tenant_a", "region": "eu", "metering.event.id": "e1"}),
        ("jobs", Decimal("0.5"), {"tenant.id": "tenant_a", "metering.event.id": "e2"}),
    ]


def test_a_full_spool_keeps_usage_in_memory_until_there_is_room(
    configure: Configure, backend: Backend
) -> None:
    configure(spool_max_bytes=1)

    record("api.calls", 5, tenant="tenant_a")
    record("jobs", 1, tenant="tenant_a", event_id="e1")
    assert not otel_metering.flush()
    record("api.calls", 6, tenant="tenant_a")
    assert not otel_metering.flush()
    configure()
    deliver()

    assert backend.total("api.calls") == 11
    assert len(backend.events) == 1


def test_a_spool_of_an_ended_process_is_adopted(
    configure: Configure, backend: Backend, tmp_path: Path
) -> None:
    backend.script = [503] * 9
    configure(retry_initial_seconds=60.0, retry_max_seconds=60.0)
    record("api.calls", 5, tenant="tenant_a")
    assert not otel_metering.flush(send=True, timeout_seconds=0.2)
    otel_metering.shutdown()
    assert len(list(tmp_path.glob("shop/*.db"))) == 1
    backend.script = []

    configure()

    eventually(lambda: backend.total("api.calls"), lambda total: total == 5)
    eventually(lambda: len(list(tmp_path.glob("shop/*.db"))), lambda count: count == 1)


def test_a_second_configuration_takes_over_everything(
    configure: Configure, backend: Backend, tmp_path: Path
) -> None:
    configure(endpoint="http://127.0.0.1:9", spool_dir=tmp_path / "first")
    record("api.calls", 5, tenant="tenant_a")
    otel_metering.flush()
    record("api.calls", 6, tenant="tenant_a")

    configure(spool_dir=tmp_path / "second")
    record("api.calls", 7, tenant="tenant_a")
    deliver()

    assert backend.total("api.calls") == 18
    assert list(tmp_path.glob("first/shop/*")) == []


def test_each_configuration_ends_the_threads_of_the_one_before(configure: Configure) -> None:
    def names() -> list[str]:
        running = [thread.name for thread in threading.enumerate()]
        return sorted(name for name in running if name.startswith("otel-metering"))

    configure()
    configure()
    assert names() == ["otel-metering-flush", "otel-metering-send"]

    otel_metering.shutdown()
    assert names() == []


def test_a_broken_orphan_holds_nothing_up_stays_and_is_counted(
    configure: Configure, backend: Backend, tmp_path: Path
) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "text.db").write_text("not a database" * 100)
    spool = open_spool(tmp_path / "shop" / "torn.db")
    spool.append([("metrics", b"")] * 9)
    spool.close()
    with closing(sqlite3.connect(tmp_path / "shop" / "torn.db")) as db, db:
        db.execute("UPDATE entries SET payload = x'ff' WHERE id = 3")
    before = otel_metering.stats().damaged_spools

    configure()
    record("api.calls", 5, tenant="tenant_a")
    deliver()

    assert backend.total("api.calls") == 5
    assert otel_metering.stats().damaged_spools == before + 2
    assert (tmp_path / "shop" / "text.db").exists()
    assert (tmp_path / "shop" / "torn.db").exists()


def test_a_bad_second_configuration_changes_nothing(
    configure: Configure, backend: Backend, tmp_path: Path
) -> None:
    configure()
    (tmp_path / "file").touch()

    with pytest.raises(ConfigurationError, match="batch_size"):
        configure(batch_size=0)
    with pytest.raises(ConfigurationError, match="file"):
        configure(spool_dir=tmp_path / "file")
    record("api.calls", 5, tenant="tenant_a")
    deliver()

    assert backend.total("api.calls") == 5


def test_a_configuration_at_any_moment_loses_nothing(
    configure: Configure, backend: Backend
) -> None:
    configure(flush_interval_seconds=0.005)
    done = threading.Event()
    counted = 0

    def work() -> None:
        nonlocal counted
        while not done.is_set():
            record("api.calls", tenant="tenant_a")
            counted += 1

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(10):
        configure(flush_interval_seconds=0.005)
    done.set()
    thread.join()
    deliver()

    assert backend.total("api.calls") == counted


def test_shutdown_in_a_signal_handler_that_interrupts_a_use_of_the_spool_leaves_it_to_the_end(
    configure: Configure, backend: Backend
) -> None:
    configure()
    record("api.calls", 13, tenant="tenant_a")

    def append_and_get_a_signal(*_: object) -> None:
        assert not otel_metering.shutdown()

    before = signal.signal(signal.SIGUSR1, append_and_get_a_signal)
    try:
        with gate.lock:
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert otel_metering.shutdown()
    assert backend.total("api.calls") == 13


def test_shutdown_delivers_and_leaves_no_file(
    configure: Configure, backend: Backend, tmp_path: Path
) -> None:
    configure()
    record("api.calls", 5, tenant="tenant_a")

    assert otel_metering.shutdown()

    assert backend.total("api.calls") == 5
    assert list(tmp_path.glob("shop/*")) == []


def test_shutdown_does_not_wait_for_a_dead_receiver(configure: Configure, tmp_path: Path) -> None:
    configure(endpoint="http://127.0.0.1:9", retry_initial_seconds=30.0, retry_max_seconds=30.0)
    record("api.calls", 5, tenant="tenant_a")
    otel_metering.flush()
    eventually(lambda: otel_metering.stats().failed_sends, bool)

    thread = threading.Thread(target=otel_metering.shutdown, args=(30.0,))
    thread.start()
    thread.join(5.0)

    assert not thread.is_alive()
    (path,) = tmp_path.glob("shop/*.db")
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT count(*) FROM entries").fetchone() == (1,)


def test_bad_values_are_counted_and_never_raised(
    configure: Configure, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure()
    leave_pytest(monkeypatch)
    before = otel_metering.stats().rejected_usage

    bad: list[dict[str, object]] = [
        {"quantity": -1},
        {"quantity": float("nan")},
        {"quantity": "3"},
        {"tenant": "not valid"},
        {"tenant": 13},
        {"tenant": []},
        {"meter": ""},
        {"meter": None},
        {"event_id": ""},
        {"event_id": "x" * 257},
        {"event_id": "\ud800"},
        {"event_id": 13},
    ]
    for arguments in bad:
        record(**{"meter": "api.calls", "tenant": "tenant_a", **arguments})  # type: ignore[arg-type] # what is tested
    record("api.calls", 5, tenant="tenant_a")
    deliver()

    assert otel_metering.stats().rejected_usage == before + len(bad)
    assert backend.totals() == {("api.calls", "tenant_a"): 5}


def test_a_failing_callable_costs_its_usage_and_nothing_else(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure()
    leave_pytest(monkeypatch)
    before = otel_metering.stats().internal_errors

    @meter("api.calls", quantity=lambda result, *_args: 1 // result)
    def call(result: int) -> int:
        return result

    assert call(0) == 0
    record("api.calls", attributes=3)  # type: ignore[arg-type] # what is tested

    assert otel_metering.stats().internal_errors == before + 2


def test_under_pytest_bad_values_are_raised(configure: Configure) -> None:
    configure()

    with pytest.raises(InvalidUsageError, match="negative"):
        record("api.calls", -1)
