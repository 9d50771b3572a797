"""A process that could be killed anywhere: what is on disk at each bytecode, and what a successor makes of it."""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

from otel_metering._cells import CellBook
from otel_metering._config import Settings, read_settings
from otel_metering._outbox import Outbox
from otel_metering._pipeline import Edges, Pipeline
from otel_metering._record import sink
from otel_metering.clock import ManualClock
from tests.integration.sdk_backend import Backend

_numbers = count()

_TRACED = ("_cells", "_cell_file", "_outbox", "_pipeline", "_record", "_recovery", "spool")

Totals = dict[tuple[str, object], Decimal]


def settings_in(folder: Path, durability: str = "mmap") -> Settings:
    return read_settings(service_name="shop", spool_dir=folder, durability=durability)


def new_outbox(folder: Path, clock: ManualClock | None = None, *, name: str = "") -> Outbox:
    return Outbox(
        settings_in(folder),
        instance_id=name or f"process_{next(_numbers)}",
        clock=clock or ManualClock(),
    )


class Process:
    """The SDK as it is in one process, without its threads: `flush` when told."""

    def __init__(self, folder: Path, *, max_series: int = 1000) -> None:
        self.folder = folder
        self.clock = ManualClock()
        self.book = CellBook(max_series_per_meter=max_series, on_new_thread=lambda: None)
        self.outbox = new_outbox(folder, self.clock)
        self.edges = edges = Edges(
            clock=self.clock,
            new_id=lambda: f"instance_{next(_numbers)}",
            jitter=lambda: 0.0,
        )
        self.pipeline = Pipeline(settings_in(folder), self.book, self.outbox, edges)
        self.pipeline.take_cells()
        sink.open(self.book, write_event_now=self.pipeline.write_event, writes_events_now=True)

    def flush(self) -> bool:
        self.clock.advance(1)
        return self.pipeline.flush()

    def fail_to_flush(self) -> None:
        """Flush while the spool has no room: marks are written, and nothing is put."""
        (own,) = [spool for spool in (self.outbox._own,) if spool is not None]
        room, own.max_bytes = own.max_bytes, 0
        self.clock.advance(1)
        self.pipeline.flush()
        own.max_bytes = room

    def end(self) -> None:
        sink.close()
        self.pipeline.stop(0)
        self.outbox.close()


def images(folder: Path) -> dict[str, bytes]:
    """What a kill leaves of each file."""
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.glob("shop/*"))
        if not path.name.endswith(("-shm", ".lock"))
    }


def drained(outbox: Outbox, backend: Backend) -> None:
    """Deliver all that `outbox` has."""
    while (parcel := outbox.take()) is not None:
        backend.take(f"/v1/{parcel.key}", parcel.payload)
        outbox.settle(parcel)


def recovered(folder: Path, copy: Path) -> Totals:
    """What a successor delivers, if everybody is killed now; `copy` is a folder for it."""
    backend = Backend("")
    put_images(images(folder), copy)
    outbox = new_outbox(copy)
    outbox.adopt_orphans()
    drained(outbox, backend)
    outbox.close()
    assert list(copy.glob("shop/*")) == []
    shutil.rmtree(copy)
    totals = backend.totals()
    for name, quantity, attributes in backend.events:
        key = (name, attributes["tenant.id"])
        totals[key] = totals.get(key, Decimal(0)) + quantity
    return totals


def put_images(files: dict[str, bytes], folder: Path) -> None:
    (folder / "shop").mkdir(parents=True)
    for name, content in files.items():
        (folder / "shop" / name).write_bytes(content)


@contextmanager
def killed_at_each_step(folder: Path, check: Callable[[str], None]) -> Iterator[list[str]]:
    """Call `check` whenever a bytecode of the SDK changed a file in `folder`; gives where that was."""
    seen: dict[str, bytes] = {}
    places: list[str] = []

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        name = frame.f_globals.get("__name__", "")
        if event == "call" and not (
            name.startswith("otel_metering.") and name.rpartition(".")[2] in _TRACED
        ):
            return None
        frame.f_trace_opcodes = True
        found = images(folder)
        if found != seen:
            seen.clear()
            seen.update(found)
            places.append(f"{name}:{frame.f_code.co_name}:{frame.f_lineno}")
            check(places[-1])
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield places
    finally:
        sys.settrace(before)
