"""`otel-metering up` that breaks by a seed: its database refuses, hangs, forgets to answer, and it dies.

`python -m tests.faults.server DATA_DIR GRPC,HTTP,API SEED`; a SEED that is followed by `calm` never dies.
"""

import itertools
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import uvloop

import otel_metering.spool
import receiver.app
from otel_metering.clock import SystemClock
from otel_metering.errors import UnavailableError
from otel_metering.spool import Batch, Spool
from query_api import config
from query_api.embedded import Addresses, serve
from receiver.config import Settings
from receiver.store import tables
from receiver.store.client import Store

METERS_FILE: Final = Path(__file__).parents[2] / "meters.yaml"

_WEIGHTS: Final = {
    "none": 50,
    "refused": 12,
    "answer lost": 12,
    "slow": 6,
    "hangs": 2,
}
"""What becomes of an INSERT: not begun; stored, but nobody hears of it; stored after a moment; or two."""

_DEATHS: Final = {
    "append": 60,
    "commit": 60,
    "insert": 5,
    "inserting": 5,
    "inserted": 5,
    "dropped": 5,
}
"""Where the process may die, and by which time it is there at the latest."""


class Faults:
    """What goes wrong in the life of one process."""

    def __init__(self, seed: str, *, may_die: bool) -> None:
        self._chance = random.Random(f"server {seed}")
        self._lock = threading.Lock()
        self._death = self._chance.choices(list(_DEATHS), [2, 2, 2, 3, 4, 2])[0] if may_die else ""
        self._left = self._chance.randrange(1, _DEATHS[self._death]) if may_die else 0
        self.is_ready = threading.Event()
        self._never = threading.Event()
        self._spool_turns = itertools.count()

    def reach(self, place: str, seconds: float = 0.0) -> None:
        """Die here, after so many seconds, if it is time to. Not before the server answers."""
        if place != self._death or not self.is_ready.is_set():
            return
        with self._lock:
            self._left -= 1
            if self._left == 0 and seconds:
                threading.Timer(self._chance.uniform(0, seconds), _die).start()
            elif self._left == 0:
                _die()

    def insert(self, store: Callable[[], None]) -> None:
        """Run an INSERT, or not, or say that it failed."""
        fault = self._chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        self.reach("insert")
        if fault == "refused":
            raise UnavailableError("the INSERT was refused")
        self.reach("inserting", 0.03)
        store()
        self.reach("inserted")
        if fault == "slow":
            self._never.wait(self._chance.uniform(0.1, 0.5))
        elif fault == "hangs":
            self._never.wait(2.0)
        if fault in ("answer lost", "hangs"):
            raise UnavailableError("the INSERT was not answered")

    def disk(self) -> None:
        """Refuse a write to the spool, now and then."""
        if self._chance.random() < 0.02:
            raise UnavailableError("the disk refused")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


USAGE = frozenset({tables.EVENTS, tables.QUARANTINE, tables.EVENT_CORRECTIONS})


def break_by(faults: Faults) -> None:
    """From now on, stores and spools that are made here have `faults`."""

    class FaultyStore(Store):
        def insert(self, table: str, rows: pa.Table, *, token: str) -> None:
            def store() -> None:
                super(FaultyStore, self).insert(table, rows, token=token)

            # What is not usage (the audit log, the last use of keys) is written by others, at other times.
            faults.insert(store) if table in USAGE else store()

    class FaultySpool(Spool):
        def append(self, *values: Any, **named: Any) -> None:
            faults.disk()
            faults.reach("append")
            super().append(*values, **named)
            faults.reach("commit")

        def drop(self, batch: Batch) -> None:
            faults.disk()
            super().drop(batch)
            faults.reach("dropped")

    # The one the receiver makes, and the one that `open_spool` makes.
    setattr(receiver.app, "Store", FaultyStore)  # noqa: B010 - its name is not exported
    setattr(otel_metering.spool, "Spool", FaultySpool)  # noqa: B010 - a class, to mypy


def main() -> None:
    data_dir, ports, seed, *calm = sys.argv[1:]
    grpc_port, http_port, api_port = (int(port) for port in ports.split(","))
    faults = Faults(seed, may_die=not calm)
    break_by(faults)
    settings = Settings(
        data_dir=Path(data_dir),
        otlp_grpc_port=grpc_port,
        otlp_http_port=http_port,
        meters_file=METERS_FILE,
    )

    def on_ready(_: Addresses) -> None:
        faults.is_ready.set()
        sys.stdout.write("ready\n")
        sys.stdout.flush()

    # No endpoint: others may have its port, and nobody here asks it.
    api_settings = config.Settings(api_port=api_port, clickhouse_port=-1)
    uvloop.run(serve(settings, api_settings, SystemClock(), on_ready))


if __name__ == "__main__":
    main()
