"""`python -m bench.peers`: this receiver and others, side by side, with the same bytes on the same machine."""

import argparse
import os
import statistics
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from bench.peers import direct, signals, systems
from bench.peers.run import FULL_CPU, Load, Measured, RunError, measure, memory
from tests.peers.install import UnavailableError

DIRECT = "direct-insert"
"""The engine alone: rows as this receiver makes them, inserted in process."""
SMALL = {10: 10, 100: 4}
"""Of small requests, one in so many of the points is sent: they take longer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    every = [*systems.ALL, DIRECT]
    parser.add_argument("--systems", nargs="+", choices=every, default=every)
    parser.add_argument("--signals", nargs="+", choices=signals.SIGNALS, default=signals.SIGNALS)
    parser.add_argument("--sizes", nargs="+", type=int, default=[10, 100, 1_000, 10_000])
    parser.add_argument("--transport", choices=("grpc", "http"), default="grpc")
    parser.add_argument("--points", type=int, default=1_000_000, help="in large requests")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--latency", action="store_true", help="also at half of the rate that was reached"
    )
    parser.add_argument("--latency-seconds", type=float, default=10.0)
    parser.add_argument("--memory-minutes", type=float, help="only this: memory of otel-metering")
    parser.add_argument("--memory-rate", type=float, default=30_000, help="points per second")
    arguments = parser.parse_args()
    console = Console(width=None if os.isatty(1) else 200)
    if arguments.memory_minutes is not None:
        _memory(console, arguments)
        return
    console.print(
        f"{os.cpu_count()} cores shared by generator, receiver and engine; OTLP/{arguments.transport}; "
        f"{arguments.runs} runs of each in turn, medians (minimum to maximum)\n"
    )
    for signal in arguments.signals:
        for size in arguments.sizes:
            _compare(console, arguments, signal, size)


def _compare(console: Console, arguments: argparse.Namespace, signal: str, size: int) -> None:
    points = max(arguments.points // SMALL.get(size, 1) // size, 1) * size
    load = Load(signal, size, points, arguments.transport)
    fastest = _in_turn(console, arguments, load)
    latencies: dict[str, list[Measured]] = {}
    if arguments.latency:
        latencies = _at_half_load(console, arguments, load, fastest)
    table = Table(title=f"{signal}, {size:,} a request ({points:,} items)")
    for column in (
        "system",
        "acknowledged/s",
        "readable/s",
        "CPU s/million",
        "ack p50, p99 at half load",
        "an acknowledgement means",
    ):
        table.add_column(column, justify="left" if column in ("system",) else "right")
    for name, runs in fastest.items():
        if runs:
            system = systems.ALL[name]
            table.add_row(
                name,
                _rates([one.taken for one in runs]) + _limit(runs),
                _readable(runs),
                _cpu(runs),
                _latency(latencies.get(name, [])),
                system.promise,
            )
    if DIRECT in arguments.systems:
        _direct(table, arguments, load)
    console.print(table)


def _in_turn(
    console: Console, arguments: argparse.Namespace, load: Load
) -> dict[str, list[Measured]]:
    """System -> its runs; one run of each before the next, so that a slow minute is in every figure."""
    found: dict[str, list[Measured]] = {
        name: [] for name in arguments.systems if name in systems.ALL
    }
    for number in range(arguments.runs):
        for name in list(found):
            console.print(f"... {load.signal}, {load.size}, {name}, run {number + 1}", style="dim")
            try:
                found[name].append(measure(systems.ALL[name], load))
            except (UnavailableError, RunError) as error:
                console.print(f"{name} is left out: {error}", style="red")
                del found[name]
    return found


def _at_half_load(
    console: Console,
    arguments: argparse.Namespace,
    load: Load,
    fastest: dict[str, list[Measured]],
) -> dict[str, list[Measured]]:
    found = {}
    for name, runs in fastest.items():
        # What cannot be read in time is no rate that a system can hold.
        rate = 0.5 * statistics.median(
            one.taken if one.visible is None else min(one.taken, one.visible) for one in runs
        )
        requests = max(int(rate * arguments.latency_seconds / load.size), 20)
        half = Load(load.signal, load.size, requests * load.size, load.transport, rate)
        console.print(f"... {load.signal}, {load.size}, {name}, at {rate:,.0f}/s", style="dim")
        found[name] = [measure(systems.ALL[name], half) for _ in range(arguments.runs)]
    return found


def _direct(table: Table, arguments: argparse.Namespace, load: Load) -> None:
    runs = [
        direct.insert(load.signal, load.size, min(load.points, 500_000))
        for _ in range(arguments.runs)
    ]
    cpu = statistics.median(one["cpu_us_per_row"] for one in runs)
    rates = _rates([one["rows_per_second"] for one in runs])
    table.add_row(DIRECT, "", rates, f"{cpu:.1f} engine", "", "the same rows and rollups, no OTLP")


def _rates(values: Sequence[float]) -> str:
    median = f"{statistics.median(values):,.0f}"
    return f"{median} ({min(values):,.0f} to {max(values):,.0f})" if len(values) > 1 else median


def _limit(runs: Iterable[Measured]) -> str:
    is_full = statistics.median(one.generator for one in runs) > FULL_CPU
    return " (generator is the limit)" if is_full else ""


def _readable(runs: Sequence[Measured]) -> str:
    rates = [one.visible for one in runs if one.visible is not None]
    missing = max(one.missing for one in runs)
    return (_rates(rates) if rates else "") + (f"; up to {missing:,} lost" if missing else "")


def _cpu(runs: Sequence[Measured]) -> str:
    parts = {part: statistics.median(one.cpu[part] for one in runs) for part in sorted(runs[0].cpu)}
    total = f"{sum(parts.values()):.1f}"
    if len(parts) == 1:
        return total
    return f"{total} = " + " + ".join(f"{value:.1f} {part}" for part, value in parts.items())


def _latency(runs: Sequence[Measured]) -> str:
    def milliseconds(values: Iterable[float | None]) -> str:
        return f"{statistics.median(value or 0.0 for value in values) * 1e3:.1f} ms"

    if not runs:
        return ""
    shown = f"{milliseconds(one.p50 for one in runs)}, {milliseconds(one.p99 for one in runs)}"
    return shown + _limit(runs)


def _memory(console: Console, arguments: argparse.Namespace) -> None:
    size = arguments.sizes[0] if len(arguments.sizes) == 1 else 1_000
    points = int(arguments.memory_rate * 60 * arguments.memory_minutes / size) * size
    for signal in arguments.signals if len(arguments.signals) == 1 else ["metrics"]:
        load = Load(signal, size, points, arguments.transport, arguments.memory_rate)
        samples, stored = memory(systems.ALL["otel-metering"], load, arguments.memory_minutes, 10.0)
        table = Table(
            title=f"Memory: {signal}, {arguments.memory_rate:,.0f}/s in requests of {size:,}"
        )
        table.add_column("at", justify="right")
        table.add_column("resident", justify="right")
        for seconds, size_bytes in samples:
            table.add_row(f"{seconds:.0f} s", f"{size_bytes / 2**20:,.0f} MiB")
        console.print(table)
        early = min(samples, key=lambda one: abs(one[0] - 120.0))
        shown = [f"{one[1] / 2**20:,.0f} MiB" for one in (samples[0], early, samples[-1])]
        console.print(
            f"start {shown[0]}, after {early[0]:.0f} s {shown[1]}, end {shown[2]}; {stored:,} items were "
            f"stored, whose ids take {stored * 16 / 2**20:,.0f} MiB of it (16 bytes each)"
        )


if __name__ == "__main__":
    main()
