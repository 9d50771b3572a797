"""`python -m bench`: prints what the parts and the whole reach on this machine, side by side."""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import pipeline, stages
from bench.load import Shape

SHAPES = (Shape(points_per_request=1_000, in_flight=24), Shape(points_per_request=50, in_flight=96))
GROUP = {1_000: 16, 50: 96}
"""Requests in a micro-batch, as they come about under this load."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="runs of each; medians are shown")
    parser.add_argument(
        "--points",
        type=int,
        default=3_000_000,
        help="points of an end-to-end run; a quarter of it in small requests",
    )
    parser.add_argument("--stage", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        name, per_request = arguments.stage
        shape = next(one for one in SHAPES if one.points_per_request == int(per_request))
        print(json.dumps(STAGES[name](shape)))
        return
    _report(arguments.runs, arguments.points)


STAGES: dict[str, Callable[[Shape], Any]] = {
    "decode": lambda shape: stages.decode(shape, 500_000),
    "receive": lambda shape: stages.receive(shape, 500_000, GROUP[shape.points_per_request]),
    "insert": lambda shape: stages.insert(shape, 500_000),
}


def _stage(name: str, shape: Shape) -> Any:
    """Run a stage in a process of its own: the engine allows one data folder for each."""
    command = [sys.executable, "-m", "bench", "--stage", name, str(shape.points_per_request)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def _median(values: list[float]) -> float:
    return statistics.median(values)


def _report(runs: int, points: int) -> None:
    console = Console()
    console.print(f"{os.cpu_count()} cores, {runs} runs of each, medians (minimum to maximum)\n")
    table = Table(title="Points per second")
    table.add_column("measurement")
    for shape in SHAPES:
        table.add_column(f"{shape.points_per_request} points a request", justify="right")
    decoded, inserted, received, ended = [], [], [], []
    for shape in SHAPES:
        # In turn, so that a slow minute of the machine is in every figure.
        d, i, r, e = [], [], [], []
        for number in range(runs):
            console.print(
                f"... {shape.points_per_request} points a request, run {number + 1}", style="dim"
            )
            d.append(_stage("decode", shape))
            i.append(_stage("insert", shape))
            r.append(_stage("receive", shape))
            e.append(
                pipeline.run(shape, points if shape.points_per_request == 1_000 else points // 4)
            )
        decoded.append(d)
        inserted.append(i)
        received.append(r)
        ended.append(e)
    table.add_row("decode alone (bytes to resolved columns)", *(_shown(d) for d in decoded))
    rates = [[one["rows_per_second"] for one in i] for i in inserted]
    table.add_row("direct insert of the same rows", *(_shown(one) for one in rates))
    acknowledged = [[one.points / one.acknowledged_seconds for one in e] for e in ended]
    table.add_row("gRPC to acknowledged (durable)", *(_shown(one) for one in acknowledged))
    visible = [[one.points / one.visible_seconds for one in e] for e in ended]
    table.add_row("gRPC to visible in usage_minute", *(_shown(one) for one in visible))
    shares = [_median(v) / _median(r) for v, r in zip(visible, rates, strict=True)]
    table.add_row("  share of the direct insert", *(f"{share:.0%}" for share in shares))
    console.print(table)
    lags = pipeline.idle_lags(20)
    console.print(
        f"From acknowledged to visible, idle: {_median(lags):.2f} s "
        f"({min(lags):.2f} to {max(lags):.2f}); under full load: "
        f"{_median([one.visible_seconds - one.acknowledged_seconds for one in ended[0]]):.2f} s\n"
    )
    _profile(console, received, ended, inserted)


def _shown(values: list[float]) -> str:
    return f"{_median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def _profile(console: Console, received: Any, ended: Any, inserted: Any) -> None:
    table = Table(title="Where the time goes: microseconds of CPU a point, end to end")
    table.add_column("thread or step")
    for shape in SHAPES:
        table.add_column(f"{shape.points_per_request} points a request", justify="right")
    names = sorted({name for e in ended for one in e for name in one.cpu_seconds})
    for name in names:
        table.add_row(
            name,
            *(
                f"{_median([one.cpu_seconds.get(name, 0.0) / one.points * 1e6 for one in e]):.2f}"
                for e in ended
            ),
        )
    table.add_row(
        "load generator (its own process)",
        *(
            f"{_median([one.generator_cpu_seconds / one.points * 1e6 for one in e]):.2f}"
            for e in ended
        ),
    )
    table.add_section()
    for step in received[0][0]:
        table.add_row(
            f"alone: {step}", *(f"{_median([one[step] for one in r]):.2f}" for r in received)
        )
    for step in ("spread_us_per_row", "cpu_us_per_row"):
        label = {"spread_us_per_row": "spool entry to rows", "cpu_us_per_row": "engine, insert"}[
            step
        ]
        table.add_row(
            f"alone: {label}", *(f"{_median([one[step] for one in i]):.2f}" for i in inserted)
        )
    console.print(table)


if __name__ == "__main__":
    main()
