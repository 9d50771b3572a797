"""`python -m bench.sdk`: what metering adds to a call, beside what others add; and what 10,000 series cost.

Calls: all of them in each round, in another order each time, so that a slow minute of the machine is in every
figure; CPU time of the calling thread, without the loop or the bare call around it. Factors are made within a
round. Series: two processes of their own, one that counts allocations and one that does not, both with a real
spool and a receiver that takes everything.
"""

import argparse
import cProfile
import gc
import json
import os
import pstats
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
import tracemalloc
from collections.abc import Callable, Coroutine, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import otel_metering
from otel_metering import _leases, meter, record
from otel_metering.middleware.asgi import MeteringMiddleware

SERIES = 10_000
COUNTER = "Counter.add, 3 attributes"
DIMENSIONS = '{"region": "eu", "tier": "pro"}'
NOT_BUILT = "not built"


@dataclass(frozen=True)
class Case:
    """A statement, and the one whose time is not its own."""

    statement: str
    without: str = "empty loop"
    aim_ns: float | None = None
    aim_factor: float | None = None


CASES = {
    "empty loop": Case("pass", ""),
    "plain call": Case("plain(7)"),
    "bare wrapper": Case("wrapped(7)", "plain call"),
    "@meter": Case("metered(7)", "plain call", 500, 15),
    "@meter, 2 attributes": Case("with_attributes(7)", "plain call", 500, 15),
    "@meter, quantity of the result": Case("with_quantity(7)", "plain call"),
    "plain coroutine": Case("drive(plain_coroutine(7))"),
    "@meter of a coroutine": Case("drive(metered_coroutine(7))", "plain coroutine"),
    "with meter.measure(...)": Case("with measure('api.calls'): pass"),
    "record": Case("record('api.calls')"),
    "record, tenant, 2 attributes": Case(
        f"record('api.calls', tenant='acme', attributes={DIMENSIONS})"
    ),
    "record, a Decimal": Case("record('api.calls', quantity)"),
    "with tenant(...)": Case("with tenant('acme'): pass"),
    "lease: take and settle": Case("settle(take('api.calls', 'acme', 1000), 1000)", aim_ns=2_000),
    "@meter, quota enforced": Case("enforced(7)", "plain call"),
    "bare ASGI call": Case("drive(app(dict(scope), receive, send))"),
    "ASGI: tenant": Case("drive(middleware(dict(scope), receive, send))", "bare ASGI call", 12_000),
    "ASGI: tenant, request, bytes": Case(
        "drive(counting(dict(scope), receive, send))", "bare ASGI call", 12_000
    ),
    COUNTER: Case(f"counter.add(1, {DIMENSIONS[:-1]}, 'tenant.id': 'acme'}})"),
    "Counter.add, 4 attributes": Case(
        f"counter.add(1, {DIMENSIONS[:-1]}, 'tenant.id': 'acme', 'route': '/a'}})"
    ),
    "prometheus_client, 3 labels": Case("prometheus.labels('acme', 'eu', 'pro').inc()"),
    "prometheus_client, labels kept": Case("child.inc()"),
    "limits, in memory: hit": Case("limiter.hit(limit, 'acme')"),
}

MMAP = ("@meter", "@meter, 2 attributes", "record", "record, tenant, 2 attributes")
"""Measured once more with durability="mmap"."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--calls", type=int, default=5_000, help="of each case in a round")
    parser.add_argument("--profile", action="store_true", help="say where the time of a flush goes")
    parser.add_argument("--part", choices=["calls", "allocated", "timed", "receiver"])
    arguments = parser.parse_args()
    if arguments.part == "receiver":
        receive()
    elif arguments.part:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(PARTS[arguments.part](arguments, folder)))
    else:
        report(arguments)


def report(arguments: argparse.Namespace) -> None:
    with receiver() as url:
        calls = part("calls", url, arguments)
        allocated, timed = part("allocated", url, arguments), part("timed", url, arguments)
    table = Table(
        title=f"added to a call: {arguments.rounds} rounds of {arguments.calls:,} calls, "
        f"{os.cpu_count()} cores, Python {sys.version.split()[0]}"
    )
    for column in ("", "median ns", "min ns", "cheaper than Counter.add", "aim"):
        table.add_column(column, justify="left" if not column else "right")
    for name, figure in calls.items():
        case = CASES[name.removesuffix(" (mmap)")]
        if figure is None:
            table.add_row(name, NOT_BUILT, "", "", aim_text(case))
            continue
        is_metering = case.without and name not in {one.without for one in CASES.values()}
        factor = f"{figure['factor']:.1f} x" if is_metering else ""
        table.add_row(
            name, f"{figure['median']:,.0f}", f"{figure['min']:,.0f}", factor, aim_text(case)
        )
    console = Console(width=110)
    console.print(table)
    table = Table(title=f"{SERIES:,} active series, real spool, a receiver that takes all")
    for column in ("", "figure", "aim"):
        table.add_column(column, justify="left" if not column else "right")
    for label, figure, aim in (
        ("their cells, allocated", f"{allocated['cells']:.1f} MB", ""),
        ("and all else after flushes, allocated", f"{allocated['settled']:.1f} MB", "< 5 MB"),
        ("at most during a flush, allocated", f"{allocated['peak']:.1f} MB", ""),
        ("resident, after flushes", f"{timed['resident']:.1f} MB", "< 5 MB"),
        ("a flush of all, CPU: median", f"{timed['cpu']:.1f} ms", "< 15 ms"),
        ("a flush of all, CPU: best", f"{timed['cpu_min']:.1f} ms", ""),
        ("a flush of all, by the clock: median", f"{timed['wall']:.1f} ms", ""),
        ("a flush of all, and its delivery, CPU: median", f"{timed['delivered']:.1f} ms", ""),
        ("a flush with nothing new, CPU: median", f"{timed['idle']:.2f} ms", ""),
    ):
        table.add_row(label, figure, aim)
    console.print(table)


def aim_text(case: Case) -> str:
    aims = [] if case.aim_ns is None else [f"<= {case.aim_ns:,.0f} ns"]
    return ", ".join(aims + ([] if case.aim_factor is None else [f">= {case.aim_factor:.0f} x"]))


def part(name: str, url: str, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.sdk", "--part", name]
    command += ["--rounds", str(arguments.rounds), "--calls", str(arguments.calls)]
    command += ["--profile"] if arguments.profile else []
    environment = {**os.environ, "METERING_ENDPOINT": url, "METERING_API_URL": url}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# Calls


def calls(arguments: argparse.Namespace, folder: str) -> dict[str, Any]:
    names = globals_of_cases()
    timers: dict[str, timeit.Timer] = {}
    otel_metering.configure(service_name="bench", spool_dir=folder, api_key="x")
    otel_metering.set_tenant("acme")
    for name, case in CASES.items():
        timer = timeit.Timer(case.statement, globals=names, timer=time.thread_time)
        if is_built(name, names, timer, arguments.calls):
            timers[name] = timer
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    mapped = MMAP if has_mmap(f"{folder}/mmap") else ()
    seconds |= {f"{name} (mmap)": [] for name in mapped}
    for _ in range(arguments.rounds):
        otel_metering.configure(service_name="bench", spool_dir=folder, api_key="x")
        measure(timers, seconds, tuple(timers), arguments.calls)
        if mapped:
            configure_mmap(f"{folder}/mmap")
            measure(timers, seconds, mapped, arguments.calls, " (mmap)")
    otel_metering.shutdown()
    return {
        **{name: figures(name, seconds, arguments.calls) for name in CASES},
        **{f"{name} (mmap)": figures(f"{name} (mmap)", seconds, arguments.calls) for name in MMAP},
    }


def measure(
    timers: Mapping[str, timeit.Timer],
    seconds: dict[str, list[float]],
    names: tuple[str, ...],
    count: int,
    suffix: str = "",
) -> None:
    for name in random.sample(names, len(names)):
        timers[name].timeit(200)  # new cells after a new configuration
        seconds[name + suffix].append(timers[name].timeit(count))


def figures(name: str, seconds: dict[str, list[float]], count: int) -> dict[str, float] | None:
    if name not in seconds:
        return None
    without = CASES[name.removesuffix(" (mmap)")].without
    added = [
        (own - other) / count * 1e9
        for own, other in zip(
            seconds[name], seconds.get(without) or [0.0] * len(seconds[name]), strict=True
        )
    ]
    counter = [
        (own - other) / count * 1e9
        for own, other in zip(seconds[COUNTER], seconds["empty loop"], strict=True)
    ]
    factors = [other / max(own, 1.0) for own, other in zip(added, counter, strict=True)]
    return {
        "median": statistics.median(added),
        "min": min(added),
        "factor": statistics.median(factors),
    }


def is_built(name: str, names: dict[str, Any], timer: timeit.Timer, count: int) -> bool:
    """Whether the code has what the case is about, and does it; it is warm then."""
    needed = {
        "lease: take and settle": "take",
        "@meter, quota enforced": "enforced",
        "with meter.measure(...)": "measure",
        "ASGI: tenant, request, bytes": "counting",
    }.get(name)
    if needed is not None and names.get(needed) is None:
        return False
    timer.timeit(count)
    if name.startswith("lease"):
        # The one that asks nobody names no reservation.
        grant = names["take"]("api.calls", "acme", 1000)
        return getattr(grant, "reservation_id", None) is not None
    return True


def has_mmap(folder: str) -> bool:
    configure_mmap(folder)
    record("api.calls")
    otel_metering.flush()
    return any(Path(folder).rglob("*.cells"))


def configure_mmap(folder: str) -> None:
    otel_metering.configure(service_name="bench", spool_dir=folder, api_key="x", durability="mmap")


def globals_of_cases() -> dict[str, Any]:
    from decimal import Decimal

    import limits
    import prometheus_client

    def plain(number: int) -> int:
        return number

    async def plain_coroutine(number: int) -> int:
        return number

    @wraps(plain)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, **kwargs)

    counter = prometheus_client.Counter("calls", "calls", ["tenant", "region", "tier"])
    return {
        "plain": plain,
        "wrapped": wrapped,
        "metered": meter("api.calls")(plain),
        "with_attributes": meter("api.calls", attributes=json.loads(DIMENSIONS))(plain),
        "with_quantity": meter("api.calls", quantity=lambda result, _number: result)(plain),
        "enforced": made(lambda: meter("api.calls", quota="enforce")(plain)),  # type: ignore[call-arg]
        "measure": getattr(meter, "measure", None),
        "plain_coroutine": plain_coroutine,
        "metered_coroutine": meter("api.calls")(plain_coroutine),
        "drive": drive,
        "record": record,
        "quantity": Decimal("0.125"),
        "tenant": otel_metering.tenant,
        "take": _leases.leases.take,
        "settle": _leases.leases.settle,
        "scope": SCOPE,
        "receive": receive_nothing,
        "send": send_nowhere,
        "app": application,
        "middleware": MeteringMiddleware(application),
        "counting": made(
            lambda: MeteringMiddleware(
                application,
                requests="http.requests",  # type: ignore[call-arg]
                request_bytes="http.request.bytes",
                response_bytes="http.response.bytes",
            )
        ),
        "counter": otel_counter(),
        "prometheus": counter,
        "child": counter.labels("acme", "eu", "pro"),
        "limiter": limits.strategies.FixedWindowRateLimiter(limits.storage.MemoryStorage()),
        "limit": limits.parse("1000000000/hour"),
    }


def made(make: Callable[[], Any]) -> Any:
    """None: this version of the code does not know an argument."""
    try:
        return make()
    except TypeError:
        return None


def otel_counter() -> Any:
    """As an application has it: read each second, differences, an exporter that costs nothing."""
    from opentelemetry.sdk.metrics import Counter, MeterProvider
    from opentelemetry.sdk.metrics.export import (
        AggregationTemporality,
        MetricExporter,
        MetricExportResult,
        PeriodicExportingMetricReader,
    )

    class Nowhere(MetricExporter):
        def export(self, *args: Any, **kwargs: Any) -> MetricExportResult:
            return MetricExportResult.SUCCESS

        def shutdown(self, *args: Any, **kwargs: Any) -> None: ...

        def force_flush(self, *args: Any, **kwargs: Any) -> bool:
            return True

    exporter = Nowhere(preferred_temporality={Counter: AggregationTemporality.DELTA})
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=1_000)
    return MeterProvider([reader]).get_meter("bench").create_counter("api.calls")


SCOPE: dict[str, Any] = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "method": "POST",
    "scheme": "http",
    "path": "/orders/7",
    "raw_path": b"/orders/7",
    "query_string": b"",
    "root_path": "",
    "client": ("127.0.0.1", 4711),
    "server": ("127.0.0.1", 80),
    "headers": [
        (b"host", b"shop.example.com"),
        (b"user-agent", b"bench"),
        (b"accept", b"*/*"),
        (b"accept-encoding", b"gzip"),
        (b"content-type", b"application/json"),
        (b"content-length", b"2"),
        (b"authorization", b"Bearer x"),
        (b"x-tenant-id", b"acme"),
    ],
}


async def receive_nothing() -> dict[str, Any]:
    return {"type": "http.request", "body": b"{}", "more_body": False}


async def send_nowhere(message: Any) -> None: ...


async def application(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


def drive(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Run what never waits, without a loop."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits")


# Series


def use_all(rounds: int = 1) -> None:
    for _ in range(rounds):
        for number in range(SERIES):
            record(
                "api.calls",
                tenant=f"tenant_{number % 100}",
                attributes={"route": f"/route/{number // 100}", "status": "2xx"},
            )


def configure_series(folder: str) -> None:
    otel_metering.configure(
        service_name="bench", spool_dir=folder, api_key="x", flush_interval_seconds=3_600
    )
    # Everything that is made once is made before anything is measured.
    record("warm", tenant="acme", attributes={"route": "/"})
    assert otel_metering.flush(send=True)


def allocated(arguments: argparse.Namespace, folder: str) -> dict[str, float]:
    tracemalloc.start()
    configure_series(folder)
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    use_all()
    gc.collect()
    cells = tracemalloc.get_traced_memory()[0] - before
    peaks = []
    for _ in range(5):
        use_all()
        tracemalloc.reset_peak()
        assert otel_metering.flush()
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
        assert otel_metering.flush(send=True)
    gc.collect()
    settled = tracemalloc.get_traced_memory()[0] - before
    return {"cells": cells / 1e6, "settled": settled / 1e6, "peak": max(peaks) / 1e6}


def timed(arguments: argparse.Namespace, folder: str) -> dict[str, float]:
    configure_series(folder)
    gc.collect()
    before = resident()
    cpu, wall, idle, delivered = [], [], [], []
    for _ in range(max(arguments.rounds, 3)):
        use_all()
        process, thread, clock = time.process_time(), time.thread_time(), time.perf_counter()
        assert otel_metering.flush()
        cpu.append(time.thread_time() - thread)
        wall.append(time.perf_counter() - clock)
        assert otel_metering.flush(send=True)
        delivered.append(time.process_time() - process)
        thread = time.thread_time()
        assert otel_metering.flush()
        idle.append(time.thread_time() - thread)
    gc.collect()
    if arguments.profile:
        profile()
    return {
        "resident": (resident() - before) / 1e6,
        "cpu": statistics.median(cpu) * 1e3,
        "cpu_min": min(cpu) * 1e3,
        "wall": statistics.median(wall) * 1e3,
        "delivered": statistics.median(delivered) * 1e3,
        "idle": statistics.median(idle) * 1e3,
    }


def profile() -> None:
    """To standard error; the profiler makes calls of small functions look dearer than they are."""
    profiler = cProfile.Profile(time.thread_time)
    for _ in range(10):
        use_all()
        profiler.enable()
        otel_metering.flush()
        profiler.disable()
        otel_metering.flush(send=True)
    pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(25)


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


PARTS: Mapping[str, Callable[[argparse.Namespace, str], dict[str, Any]]] = {
    "calls": calls,
    "allocated": allocated,
    "timed": timed,
}


# A receiver and a query API that agree to everything


class _Yes(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        content = b""
        if self.path.startswith("/v1/meter/"):
            asked = json.loads(body)
            content = json.dumps(
                {"data": [yes(one) for one in asked]} if isinstance(asked, list) else yes(asked)
            ).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None: ...


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A part that ends hangs up."""


def yes(asked: dict[str, Any]) -> dict[str, Any]:
    """As docs/quotas.md says."""
    return {
        "allowed": True,
        "limit": "1000000000000",
        "used": "0",
        "reserved": asked.get("quantity", "0"),
        "remaining": "999999999999",
        "resets_at": None,
        "reason": "ok",
        "enforcement": "hard",
        "quota_id": "quota_1",
        "reservation_id": asked.get("reservation_id"),
        "expires_at": None,
    }


def receive() -> None:
    with _Server(("127.0.0.1", 0), _Yes) as server:
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()


@contextmanager
def receiver() -> Any:
    command = [sys.executable, "-m", "bench.sdk", "--part", "receiver"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
