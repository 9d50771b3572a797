"""Finalizers and callbacks of the garbage collector run in the middle of anything, also of a flush."""

import gc
import itertools
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import otel_metering
from otel_metering import meter, record
from otel_metering._cells import _HURRY_EVENTS, CellBook
from otel_metering._record import sink
from otel_metering._wakeup import Wakeup
from tests.integration.sdk_backend import Backend, running_backend


@pytest.fixture
def backend() -> Iterator[Backend]:
    with running_backend() as backend:
        yield backend


def ends(work: Callable[[], None], seconds: float = 20.0) -> bool:
    """Whether `work` ends in a thread of its own; a deadlock does not."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


class Garbage:
    """A cycle, so that the collector finds it, whenever that is."""

    counted = 0
    ids = itertools.count()

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        Garbage.counted += 1
        record("finalized", tenant="tenant_a")
        record("finalized.events", tenant="tenant_a", event_id=f"event_{next(self.ids)}")
        if Garbage.counted % 50 == 0:
            record("finalized.durable", tenant="tenant_a", durable=True)
        if Garbage.counted % 70 == 0:
            otel_metering.flush()


def test_finalizers_that_record_during_flushes_lose_nothing_and_never_hang(
    backend: Backend, tmp_path: Path
) -> None:
    otel_metering.configure(
        service_name="shop",
        endpoint=backend.endpoint,
        spool_dir=tmp_path,
        flush_interval_seconds=0.005,
    )
    collected = 0

    def count(phase: str, _info: dict[str, int]) -> None:
        nonlocal collected
        if phase == "start":
            collected += 1
            record("collected", tenant="tenant_a")

    @meter("calls", tenant="tenant_a")
    def work() -> None:
        for _ in range(40):
            for _ in range(25):
                Garbage()
            otel_metering.flush()

    before = gc.get_threshold()
    gc.callbacks.append(count)
    gc.set_threshold(3)  # in nearly every line
    try:
        assert ends(work)
        gc.collect()
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(count)

    assert otel_metering.flush(send=True)
    otel_metering.shutdown()
    assert Garbage.counted == 1000
    assert backend.total("finalized") == 1000
    assert backend.total("collected") == collected
    assert backend.total("calls") == 1
    events = [(name, attributes["metering.event.id"]) for name, _, attributes in backend.events]
    assert len({id for name, id in events if name == "finalized.events"}) == 1000
    assert len({id for name, id in events if name == "finalized.durable"}) == 20


def interrupted_at_each_line(work: Callable[[], None], interrupt: Callable[[], None]) -> None:
    """Do `work`, and `interrupt` before each line of Python of it, as a finalizer may."""

    def trace(_frame: FrameType, _event: str, _argument: object) -> Any:
        interrupt()
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)


def test_many_events_that_are_recorded_while_the_flusher_looks_for_them_do_not_hang() -> None:
    book = CellBook(max_series_per_meter=10, on_new_thread=lambda: None)
    sink.open(book)
    ids = itertools.count()
    for _ in range(_HURRY_EVENTS):
        record("orders", event_id=str(next(ids)))

    def look() -> None:
        for _ in range(3):
            book.pressure.wait(0.001)
            book.pressure.set()

    def work() -> None:
        interrupted_at_each_line(look, lambda: record("orders", event_id=str(next(ids))))

    assert ends(work)
    assert len(book.read().events) == next(ids)
    sink.close()


def test_what_is_set_before_and_while_a_thread_waits_wakes_it() -> None:
    wakeup = Wakeup()
    wakeup.set()
    wakeup.set()
    assert ends(lambda: wakeup.wait(1000))
    assert not wakeup.is_set()

    waiting = threading.Thread(target=wakeup.wait, args=(1000,), daemon=True)
    waiting.start()
    wakeup.set()
    waiting.join(20)
    assert not waiting.is_alive()


def test_usage_that_is_recorded_at_exit_is_counted_however_late(
    backend: Backend, tmp_path: Path
) -> None:
    program = """
        import atexit, threading, otel_metering
        from otel_metering import record
        atexit.register(record, "first.handler", tenant="tenant_a")  # called last
        otel_metering.configure(service_name="shop")
        atexit.register(record, "last.handler", tenant="tenant_a")
        threading.Thread(
            target=lambda: (threading.main_thread().join(), record("late.thread", tenant="tenant_a"))
        ).start()
        record("program", tenant="tenant_a")
    """
    environment = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    environment |= {"METERING_ENDPOINT": backend.endpoint, "METERING_SPOOL_DIR": str(tmp_path)}

    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment, check=True, timeout=60
    )

    assert backend.totals() == {
        (name, "tenant_a"): 1
        for name in ("first.handler", "last.handler", "late.thread", "program")
    }
