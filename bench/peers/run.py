"""One run of one system: as fast as it takes, or at a fixed rate; and its memory over minutes."""

import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

from bench import pipeline
from bench.peers.systems import Running, System, rss_bytes, started

POLL_SECONDS = 0.1
STALLED_SECONDS = 45.0
"""A rival that acknowledges from memory may lose items. This long without a new row is the end: more than
the timeout (5 s) and the longest pause (30 s) of rotel's exporter, whose pauses are the longest of all."""
FULL_CPU = 0.9


class RunError(Exception):
    """A run that says nothing: a system refused what it was sent, or ended."""


@dataclass(frozen=True)
class Load:
    """What is sent."""

    signal: str
    size: int
    points: int
    transport: str
    rate: float | None = None


@dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
        taken: Items acknowledged a second.
        visible: Items a second until all could be read; None: the system keeps none.
        missing: Acknowledged, but never to be read.
        cpu: Part -> CPU seconds per million items.
        generator: Share of one core that the generator used; near 1 it is the limit.
        p50: Median seconds from when a request was due to its acknowledgement.
        p99: The 99th percentile of the same.
    """

    taken: float
    visible: float | None
    missing: int
    cpu: dict[str, float]
    generator: float
    retries: int
    p50: float | None
    p99: float | None


def generator(running: Running, load: Load, *more: str) -> "subprocess.Popen[str]":
    """The load generator, ready to send."""
    address = running.grpc if load.transport == "grpc" else running.http
    options = [
        f"--transport={load.transport}",
        f"--signal={load.signal}",
        f"--size={load.size}",
        f"--points={load.points}",
        *([f"--rate={load.rate}"] if load.rate is not None else []),
        *more,
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.peers.load", address, running.key, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert pipeline.line_of(process).strip() == "prepared"
    return process


def measure(system: System, load: Load) -> Measured:
    """Send it to a fresh instance of `system`."""
    with started(system) as running:
        sending = generator(running, load)
        before = running.cpu_seconds()
        began = time.perf_counter()
        pipeline.tell(sending)
        printed = pipeline.line_of(sending)
        if sending.wait() != 0:
            raise RunError(f"the generator ended with {sending.returncode}; see above")
        result: dict[str, Any] = json.loads(printed)
        seconds, missing = _until_visible(running, load, began)
        after = running.cpu_seconds()
        sent = result["requests"] * load.size
        return Measured(
            taken=sent / result["seconds"],
            visible=None if seconds is None else (sent - missing) / seconds,
            missing=missing,
            cpu={part: (after[part] - before.get(part, 0)) / sent * 1e6 for part in after},
            generator=result["cpu_seconds"] / result["seconds"],
            retries=result["retries"],
            p50=result["p50"],
            p99=result["p99"],
        )


def _until_visible(running: Running, load: Load, began: float) -> tuple[float | None, int]:
    """Seconds from `began` to the last new row, and how many never came."""
    if running.count is None:
        return None, 0
    seen, at = -1, time.perf_counter()
    while seen < load.points and time.perf_counter() - at < STALLED_SECONDS:
        count = running.count(load.signal)
        if count > seen:
            seen, at = count, time.perf_counter()
        time.sleep(POLL_SECONDS)
    return at - began, load.points - seen


def memory(
    system: System, load: Load, minutes: float, every: float
) -> tuple[list[tuple[float, int]], int]:
    """(seconds, resident bytes of the receiver) under steady load; and the items to be read at the end."""
    with started(system) as running:
        pid = running.processes["receiver"]
        samples = [(0.0, rss_bytes(pid))]
        sending = generator(running, load, "--lazy")
        ended = threading.Event()
        watching = threading.Thread(target=lambda: (sending.wait(), ended.set()), daemon=True)
        began = time.perf_counter()
        pipeline.tell(sending)
        watching.start()
        while not ended.wait(every) and time.perf_counter() - began < 60 * minutes:
            samples.append((time.perf_counter() - began, rss_bytes(pid)))
        samples.append((time.perf_counter() - began, rss_bytes(pid)))
        sending.kill()
        sending.wait()
        return samples, running.count(load.signal) if running.count is not None else 0
