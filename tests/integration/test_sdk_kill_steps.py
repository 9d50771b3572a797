"""durability="mmap": a kill at any step whatever leaves exactly what was recorded, and so does the next one."""

import gc
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_metering._guard import Problem, problems
from otel_metering._record import record, sink
from tests.integration.killing import (
    Process,
    drained,
    images,
    killed_at_each_step,
    new_outbox,
    put_images,
    recovered,
)
from tests.integration.sdk_backend import Backend

HUGE = 2**63 - 1
"""The largest quantity of one call: ten of them are more than 64 bits of 10**-9 units can hold."""


@pytest.fixture(autouse=True)
def not_configured_afterwards() -> Iterator[None]:
    yield
    sink.close()


class Oracle:
    """What was recorded, and what is being recorded."""

    def __init__(self, process: Process, tmp_path: Path) -> None:
        self.process = process
        self.counted: Counter[tuple[str, object]] = Counter()
        self.in_flight: Counter[tuple[str, object]] = Counter()
        self._tmp_path = tmp_path
        self._copies = count()

    def record(self, meter: str, quantity: int, tenant: str = "a", **options: str) -> None:
        usage: Counter[tuple[str, object]] = Counter({(meter, tenant): quantity})
        self.in_flight = usage
        record(meter, quantity, tenant=tenant, **options)  # type: ignore[arg-type] # event_id
        self.in_flight = Counter()
        self.counted += usage

    def check(self, where: str = "") -> None:
        found = recovered(self.process.folder, self._tmp_path / f"copy_{next(self._copies)}")
        with_it = self.counted + self.in_flight
        assert found == self.counted or found == with_it, where


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path / "spool")
    yield process
    process.flush()
    drained(process.outbox, Backend(""))
    process.end()
    assert list(tmp_path.glob("spool/shop/*")) == []


@pytest.fixture
def oracle(process: Process, tmp_path: Path) -> Oracle:
    return Oracle(process, tmp_path)


def in_thread(function: object, *arguments: object) -> None:
    thread = threading.Thread(target=function, args=arguments)  # type: ignore[arg-type] # a function
    thread.start()
    thread.join()
    gc.collect()


def test_a_kill_at_any_step_of_recording_and_flushing_loses_and_doubles_nothing(
    process: Process, oracle: Oracle
) -> None:
    with killed_at_each_step(process.folder, oracle.check) as places:
        for i in range(2):
            oracle.record("api.calls", 1 + i)
            oracle.record("orders", HUGE)
            oracle.record("orders", HUGE, tenant="b")
            process.flush()
            oracle.record("api.calls", 100)
            process.fail_to_flush()
            oracle.record("api.calls", 1000)
            process.fail_to_flush()
        oracle.record("jobs", 5, event_id="e1")
        process.flush()
        process.flush()

    functions = {place.split(":")[1] for place in places}
    assert {"record", "add", "_carry", "mark", "tick", "_take", "_put_checked"} <= functions
    oracle.check()


def test_a_kill_at_any_step_of_giving_blocks_to_other_series_loses_and_doubles_nothing(
    process: Process, oracle: Oracle
) -> None:
    in_thread(oracle.record, "api.calls", HUGE)
    in_thread(oracle.record, "api.other", 3)
    process.flush()
    size = {name: len(image) for name, image in images(process.folder).items()}
    free = process.pipeline._cells
    assert free is not None
    assert sum(map(len, free._free.values())) == 2

    with killed_at_each_step(process.folder, oracle.check):
        for i in range(4):
            oracle.record("api.jobs_", 10 + i, tenant=f"t{i}")
            process.flush()
            oracle.record("api.jobs_", HUGE, tenant=f"t{i}")
        process.flush()

    assert sum(map(len, free._free.values())) == 0
    cells = next(name for name in size if name.endswith(".cells"))
    assert len(images(process.folder)[cells]) == size[cells]
    oracle.check()


def test_a_kill_at_any_step_of_an_adoption_loses_and_doubles_nothing(
    process: Process, oracle: Oracle, tmp_path: Path
) -> None:
    oracle.record("api.calls", 5)
    process.flush()
    oracle.record("api.calls", 6)
    oracle.record("orders", HUGE)
    copy = tmp_path / "adopted"
    put_images(images(process.folder), copy)
    outbox = new_outbox(copy)
    numbers = count()

    def check(where: str) -> None:
        found = recovered(copy, tmp_path / f"second_copy_{next(numbers)}")
        assert found == oracle.counted, where

    with killed_at_each_step(copy, check) as places:
        outbox.adopt_orphans()
    outbox.close()

    assert {"_write", "_remove"} <= {place.split(":")[1] for place in places}
    check("at the end")
    assert list(copy.glob("shop/*.cells")) == []


def test_a_second_pipeline_takes_over_without_a_moment_in_which_usage_has_no_file(
    process: Process, oracle: Oracle, tmp_path: Path
) -> None:
    oracle.record("api.calls", 5)
    process.flush()
    oracle.record("api.calls", 6)
    first, first_outbox = process.pipeline, process.outbox
    with killed_at_each_step(process.folder, oracle.check):
        second = Process.__new__(Process)
        second.folder, second.clock, second.book = process.folder, process.clock, process.book
        second.outbox = new_outbox(process.folder, process.clock)
        second.pipeline = type(first)(first.settings, process.book, second.outbox, process.edges)
        second.outbox.open()
        second.pipeline.take_cells()
        oracle.record("api.calls", 7)
        first.stop(0)
        oracle.record("api.calls", 8)
        second.outbox.inherit(first_outbox)
        second.flush()
    oracle.check()
    process.outbox, process.pipeline = second.outbox, second.pipeline


def test_what_the_disk_refuses_at_the_end_stays_in_the_file_for_the_next_process(
    process: Process, oracle: Oracle
) -> None:
    oracle.record("api.calls", 5)
    process.flush()
    oracle.record("api.calls", 6)
    own = process.outbox._own
    assert own is not None
    room, own.max_bytes = own.max_bytes, 0

    assert not process.pipeline.stop(0)

    oracle.check()
    assert process.book.read().deltas == {}
    own.max_bytes = room
    process.outbox.close()
    oracle.check()
    outbox = new_outbox(process.folder)
    outbox.adopt_orphans()
    while (parcel := outbox.take()) is not None:
        outbox.settle(parcel)
    outbox.close()


def test_usage_of_a_process_whose_spool_is_full_waits_until_there_is_room(
    process: Process, oracle: Oracle, tmp_path: Path
) -> None:
    oracle.record("api.calls", 5)
    process.flush()
    oracle.record("api.calls", 6)
    copy = tmp_path / "copy"
    put_images(images(process.folder), copy)
    outbox = new_outbox(copy)
    object.__setattr__(outbox._settings, "spool_max_bytes", 1)  # of the adopted spool

    outbox.adopt_orphans()
    assert len(list(copy.glob("shop/*.cells"))) == 1
    (adopted,) = outbox._adopted
    adopted.max_bytes = 2**20
    requests = 0
    while (parcel := outbox.take()) is not None:
        outbox.settle(parcel)
        requests += 1
    outbox.close()

    assert requests == 2
    assert list(copy.glob("shop/*")) == []


steps = st.one_of(
    st.tuples(st.just("record"), st.sampled_from("ab"), st.sampled_from([0, 1, 7, 10**10, HUGE])),
    st.tuples(st.just("thread"), st.sampled_from("cd"), st.sampled_from([1, HUGE])),
    st.tuples(st.just("event"), st.sampled_from("ab"), st.integers(1, 9)),
    st.sampled_from([("flush",), ("fail",), ("evict",), ("kill",), ("kill twice",)]),
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(steps, max_size=25))
def test_any_sequence_of_usage_flushes_faults_and_kills_adds_up(
    tmp_path_factory: pytest.TempPathFactory, sequence: list[tuple[object, ...]]
) -> None:
    folder = tmp_path_factory.mktemp("kill")
    oracle = Oracle(Process(folder / "spool_0"), folder)
    for number, (step, *arguments) in enumerate([*sequence, ("kill",)]):
        match step, arguments:
            case "record", [str(tenant), int(quantity)]:
                oracle.record("api.calls", quantity, tenant=tenant)
            case "thread", [str(tenant), int(quantity)]:
                in_thread(oracle.record, "api.calls", quantity, tenant)
            case "event", [str(tenant), int(quantity)]:
                oracle.record("jobs", quantity, tenant=tenant, event_id=f"e{number}")
            case "flush", []:
                oracle.process.flush()
            case "fail", []:
                oracle.process.fail_to_flush()
            case "evict", []:
                for _ in range(120):
                    oracle.process.flush()
            case _:
                kill(oracle, folder / f"spool_{number + 1}", is_twice=step == "kill twice")
    oracle.process.end()


def kill(oracle: Oracle, folder: Path, *, is_twice: bool) -> None:
    """End the process as a kill does; its successor has adopted what it left, maybe not for the first time."""
    left = images(oracle.process.folder)
    oracle.process.end()
    put_images(left, folder)
    if is_twice:
        adopter = new_outbox(folder)
        adopter.adopt_orphans()
        left = images(folder)
        adopter.close()
        for path in folder.glob("shop/*"):
            path.unlink()
        folder.joinpath("shop").rmdir()
        put_images(left, folder)
    oracle.process = Process(folder)
    oracle.check()
    oracle.process.outbox.adopt_orphans()
    oracle.check()


def test_a_file_of_another_boot_is_not_believed(
    process: Process, oracle: Oracle, tmp_path: Path
) -> None:
    oracle.record("api.calls", 5)
    process.flush()
    (boot,) = (
        line.encode() for line in Path("/proc/sys/kernel/random/boot_id").read_text().split()
    )
    record("api.calls", 6, tenant="a")
    left = images(process.folder)
    other = {
        name: with_payload(image, boot) if name.endswith(".cells") else image
        for name, image in left.items()
    }
    put_images(other, tmp_path / "moved")

    assert recovered(tmp_path / "moved", tmp_path / "copy") == {("api.calls", "a"): Decimal(5)}


def with_payload(image: bytes, boot: bytes) -> bytes:
    """The file as another boot would have written it."""
    length = struct.unpack_from("q", image, 40)[0]
    payload = image[56 : 56 + length].replace(boot, b"0" * 36)
    return image[:48] + struct.pack("q", zlib.crc32(payload)) + payload + image[56 + length :]


def test_a_spool_that_lost_its_end_is_never_counted_twice_and_is_reported(
    process: Process, oracle: Oracle, tmp_path: Path
) -> None:
    problems.reset()
    for _ in range(3):
        oracle.record("api.calls", 5)
        process.flush()
        if not (tmp_path / "old").exists():
            put_images(images(process.folder), tmp_path / "old")
    oracle.record("api.calls", 6)
    left = images(process.folder)
    for name, image in left.items():
        if name.endswith(".cells"):
            (tmp_path / "old" / "shop" / name).write_bytes(image)
    outbox = new_outbox(tmp_path / "old")

    outbox.adopt_orphans()

    assert problems.counts()[Problem.DAMAGED_SPOOLS] == 1
    assert len(list(tmp_path.glob("old/shop/*.cells.damaged"))) == 1
    backend = Backend("")
    drained(outbox, backend)
    outbox.close()
    # The first flush, and what none had read; what the spool lost in between is not made up.
    assert backend.total("api.calls", "a") == 5 + 6
