"""Programs that meter, each in a process of its own, and the successor that delivers what they left."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import otel_metering

KILL_PROOF: Final = ("mmap", "full")
"""The values of `durability` under which a killed process loses nothing."""

DURABILITIES: Final = ("normal", *KILL_PROOF)
"""The values of `durability` that the tables of exits are run with."""

_PRELUDE: Final = """
import atexit, os, signal, sys, threading
# As of a program that is started by hand: what runs in the background may inherit that it is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
import otel_metering
from otel_metering import record
otel_metering.configure(service_name="shop", retry_initial_seconds=0.05, retry_max_seconds=0.2)
"""


def environment(endpoint: str, spool_dir: Path, **more: str) -> Mapping[str, str]:
    """Of a program that flushes when it says so, and when it ends; no sooner."""
    return {
        **{name: value for name, value in os.environ.items() if "PYTEST" not in name},
        "METERING_ENDPOINT": endpoint,
        "METERING_SPOOL_DIR": str(spool_dir),
        "METERING_BATCH_INTERVAL_SECONDS": "3600",
        **more,
    }


def start(
    program: str, endpoint: str, spool_dir: Path, *, before: str = "", **more: str
) -> "subprocess.Popen[str]":
    """Run `before`, configure, run `program`. It ends when its standard input does, if it waits for that."""
    source = f"{textwrap.dedent(before)}{_PRELUDE}{textwrap.dedent(program)}"
    return subprocess.Popen(
        [sys.executable, "-c", source],
        env=environment(endpoint, spool_dir, **more),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def deliver_rest(endpoint: str, spool_dir: Path, *, api_key: str | None = None) -> None:
    """What the next process of the service does: deliver what is left, and leave nothing."""
    otel_metering.configure(
        service_name="shop",
        endpoint=endpoint,
        api_key=api_key,
        spool_dir=spool_dir,
        flush_interval_seconds=3600.0,
        retry_initial_seconds=0.01,
        retry_max_seconds=0.05,
        timeout_seconds=0.2,
    )
    is_delivered = otel_metering.flush(60.0, send=True)
    stats = otel_metering.stats()
    otel_metering.shutdown()
    assert is_delivered, stats
    left = sorted(path.name for path in spool_dir.glob("shop/*"))
    assert left == [], left
