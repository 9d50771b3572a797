"""Single stages without a network, in this process: decode, receive without the engine, direct insert."""

import secrets
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from bench.load import Shape, requests
from otel_metering.clock import SystemClock
from otel_metering.contract.meter import Meters, Signal
from otel_metering.spool import open_spool
from receiver import rows
from receiver.admit import MicroBatch
from receiver.cumulative import Accumulators
from receiver.metering import Metering
from receiver.meters_file import MetersFile
from receiver.otlp.metrics import decode_metrics
from receiver.seen import SeenIds
from receiver.store import tables
from receiver.store.client import Store
from receiver.store.migrate import migrate
from receiver.usage import Sender

SENDER = Sender(key_id="bench", bound_tenant=None)
ROWS_PER_INSERT = 50_000


def decode(shape: Shape, points: int) -> float:
    """Points/s of bytes -> columns, with the stream of each point resolved."""
    bodies = requests(shape, points)
    metering = Metering(Meters())
    batch = micro_batch(metering, SeenIds())
    batch.add_otlp(Signal.METRIC, bodies[0], SENDER)
    began = time.perf_counter()
    for body in bodies:
        for group in decode_metrics(body):
            streams = metering.metric(group.header, None)
            known = streams.numbers
            for tail in group.tails:
                if tail not in known:
                    streams.resolve(tail)
    return points / (time.perf_counter() - began)


def receive(shape: Shape, points: int, group: int) -> dict[str, float]:
    """Microseconds a point of each step from bytes to spool, in micro-batches of `group` requests."""
    bodies = requests(shape, points)
    metering, seen, clock = Metering(Meters()), SeenIds(), SystemClock()
    steps = {"decode + meter": 0.0, "admit + encode": 0.0, "spool (fsync)": 0.0, "remember": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        spool = open_spool(Path(folder) / "spool.db")

        def timed(step: str, work: Callable[[], object]) -> object:
            began = time.perf_counter()
            result = work()
            steps[step] += time.perf_counter() - began
            return result

        for first in range(0, len(bodies), group):
            batch = micro_batch(metering, seen)
            for body in bodies[first : first + group]:
                timed(
                    "decode + meter",
                    lambda body=body, batch=batch: batch.add_otlp(Signal.METRIC, body, SENDER),
                )
            admitted = timed("admit + encode", batch.admit)
            timed("spool (fsync)", lambda admitted=admitted: spool.append(admitted.entries))
            timed("remember", lambda admitted=admitted: seen.add(admitted.ids, 0, clock.now_ns()))
        spool.close()
    return {step: seconds / points * 1e6 for step, seconds in steps.items()}


def insert(shape: Shape, points: int) -> dict[str, float]:
    """Rows/s of the same rows, inserted directly; and with spreading them out of spool entries."""
    return insert_bodies(Signal.METRIC, requests(shape, points), shape.points_per_request)


def insert_bodies(signal: Signal, bodies: list[bytes], points_per_request: int) -> dict[str, float]:
    """The same for requests of any signal."""
    metering, clock = Metering(MetersFile(None, SystemClock()).meters), SystemClock()
    per_entry = max(ROWS_PER_INSERT // points_per_request, 1)
    points = len(bodies) * points_per_request
    payloads = []
    for first in range(0, len(bodies), per_entry):
        batch = micro_batch(metering, SeenIds())
        for body in bodies[first : first + per_entry]:
            batch.add_otlp(signal, body, SENDER)
        payloads.append(batch.admit().entries[0][1])
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"chdb://{folder}")
        migrate(store, clock)
        began = time.perf_counter()
        prepared = [rows.to_events([payload], uuid4().bytes) for payload in payloads]
        spread = time.perf_counter() - began
        cpu = time.process_time()
        began = time.perf_counter()
        for table in prepared:
            store.insert(tables.EVENTS, table, token=uuid4().hex)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        store.close()
    return {
        "rows_per_second": points / seconds,
        "cpu_us_per_row": cpu / points * 1e6,
        "spread_us_per_row": spread / points * 1e6,
    }


def micro_batch(metering: Metering, seen: SeenIds) -> MicroBatch:
    return MicroBatch(
        metering,
        seen,
        Accumulators(lambda keys: {}),
        now_ns=SystemClock().now_ns(),
        new_id=new_id,
    )


def new_id() -> bytes:
    return secrets.token_bytes(16)
