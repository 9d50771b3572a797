"""The pipeline under a clock and a disk that misbehave."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from otel_metering._cells import CellBook
from otel_metering._config import read_settings
from otel_metering._outbox import Outbox
from otel_metering._pipeline import Edges, Pipeline
from otel_metering._record import record, sink
from otel_metering.clock import ManualClock


@pytest.fixture
def book() -> Iterator[CellBook]:
    book = CellBook(max_series_per_meter=100, on_new_thread=lambda: None)
    sink.open(book)
    yield book
    sink.close()


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    outbox = Outbox(
        read_settings(service_name="shop", spool_dir=tmp_path),
        instance_id="instance_1",
    )
    yield outbox
    outbox.close()


def new_pipeline(book: CellBook, outbox: Outbox, clock: ManualClock) -> Pipeline:
    edges = Edges(clock=clock, new_id=lambda: "instance_1", jitter=lambda: 0.0)
    return Pipeline(read_settings(service_name="shop"), book, outbox, edges)


def intervals(outbox: Outbox) -> list[tuple[int, int]]:
    """(start, end) of each request, oldest first; takes them out."""
    found = []
    while (parcel := outbox.take()) is not None:
        request = ExportMetricsServiceRequest.FromString(parcel.payload)
        (point,) = request.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points
        found.append((point.start_time_unix_nano, point.time_unix_nano))
        outbox.settle(parcel)
    return found


def test_intervals_never_overlap_when_the_clock_is_set_back(book: CellBook, outbox: Outbox) -> None:
    clock = ManualClock(1_000)
    pipeline = new_pipeline(book, outbox, clock)

    for now in (2_000, 500, 500, 3_000):
        clock.ns = now
        record("api.calls", tenant="tenant_a")
        assert pipeline.flush()

    assert intervals(outbox) == [(1_000, 2_000), (2_000, 2_001), (2_001, 2_002), (2_002, 3_000)]


def test_the_interval_of_a_flush_that_failed_is_part_of_the_next(
    book: CellBook, outbox: Outbox, tmp_path: Path
) -> None:
    clock = ManualClock(1_000)
    pipeline = new_pipeline(book, outbox, clock)
    (tmp_path / "shop").touch()  # where the folder should be

    record("api.calls", tenant="tenant_a")
    clock.ns = 2_000
    assert not pipeline.flush()
    (tmp_path / "shop").unlink()
    clock.ns = 3_000
    assert pipeline.flush()

    assert intervals(outbox) == [(1_000, 3_000)]


def test_a_flush_inside_of_a_flush_reads_nothing_twice(book: CellBook, outbox: Outbox) -> None:
    class InterruptedClock(ManualClock):
        """Flushes when asked for the time, as a signal handler might."""

        inner: bool | None = None

        def now_ns(self) -> int:
            if pipelines and self.inner is None:
                self.inner = pipelines[0].flush()
            return super().now_ns()

    pipelines: list[Pipeline] = []
    clock = InterruptedClock(1_000)
    pipelines.append(new_pipeline(book, outbox, clock))
    record("api.calls", tenant="tenant_a")

    assert pipelines[0].flush()

    assert clock.inner is False
    assert len(intervals(outbox)) == 1
