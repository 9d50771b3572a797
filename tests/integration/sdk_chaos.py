"""Processes that are killed, over a receiver that fails in every way: totals are exact all the same.

The stock exporter counts 8 % twice under these faults. Each process says on a pipe what it has begun to count
and what it has flushed; whatever is delivered for it lies between the two.
"""

import random
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from tests.integration.sdk_backend import Act
from tests.integration.sdk_process import KILL_PROOF, start
from tests.waiting import eventually

METERS: Final = ("api.calls", "tokens")
PROCESSES: Final = 5
KILLS: Final = 4
PER_TICK: Final = 480
"""Units that each process counts before it flushes again."""

WORKER: Final = """
name, ticks = os.environ["TENANT"], int(os.environ["TICKS"])

def work():
    for units in (1, 2, 3):
        for _ in range(40):
            record("api.calls", units, tenant=name)
            record("tokens", units, tenant=name, attributes={"model": f"m{units}"})

total = 0
for tick in range(ticks):
    print("began", total + 480, flush=True)
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total += 480
    print("counted", total, flush=True)
    threading.Event().wait(0.002)
    assert otel_metering.flush()
    print("flushed", total, flush=True)
sys.stdin.read()
"""


def faults(seed: int) -> Iterator[Act | int]:
    """30 % 503, 10 % time-outs, 15 % answers lost after the commit."""
    chance = random.Random(seed)
    acts: list[Act | int] = [503, Act.HANG_UNREAD, Act.LOSE_ANSWER, 200]
    while True:
        yield chance.choices(acts, weights=[30, 10, 15, 45])[0]


class Worker:
    """One process, under a name that is the tenant of all it counts.

    Attributes:
        said: Units it began to count, has counted, has flushed; of each of its two meters.
    """

    def __init__(self, name: str, endpoint: str, spool_dir: Path, durability: str, ticks: int):
        self.name = name
        self.said = {"began": 0, "counted": 0, "flushed": 0}
        self.process = start(
            WORKER,
            endpoint,
            spool_dir,
            TENANT=name,
            TICKS=str(ticks),
            METERING_DURABILITY=durability,
            METERING_TIMEOUT_SECONDS="0.1",
            METERING_BATCH_INTERVAL_SECONDS="0.02",
        )

        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    def kill_once_it_flushed(self, units: int) -> None:
        eventually(lambda: self.said["flushed"], lambda total: total >= units, every=0.001)
        self.process.send_signal(signal.SIGKILL)
        self._finish(-signal.SIGKILL)

    def end(self) -> None:
        """Let it end, which it does once it has done all its ticks."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self._finish(0)

    def _finish(self, status: int) -> None:
        self._reader.join(60)
        with self.process:
            assert self.process.stderr is not None
            errors = self.process.stderr.read()
        assert self.process.returncode == status, errors

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            what, _, total = line.partition(" ")
            self.said[what] = int(total)


def run_and_kill(
    seed: int, ticks: int, durability: str, endpoint: str, spool_dir: Path
) -> list[Worker]:
    """Five processes, four of them killed and replaced; all have ended."""
    chance = random.Random(seed)

    def begin(name: str) -> Worker:
        return Worker(name, endpoint, spool_dir, durability, ticks)

    alive = [begin(f"process_{i}") for i in range(PROCESSES)]
    killed: list[Worker] = []
    for i in range(KILLS):
        victim = alive.pop(chance.randrange(len(alive)))
        victim.kill_once_it_flushed(chance.randrange(1, ticks // 2) * PER_TICK)
        killed.append(victim)
        alive.append(begin(f"successor_{i}"))
    for worker in alive:
        worker.end()
    assert {worker.said["flushed"] for worker in alive} == {ticks * PER_TICK}
    return [*killed, *alive]


def shortfalls(
    workers: list[Worker], durability: str, totals: Mapping[tuple[str, str], int]
) -> list[str]:
    """Each total of a (meter, tenant) that lacks what was safe, or has what was not used."""
    safe = "counted" if durability in KILL_PROOF else "flushed"
    return [
        f"{worker.name}: {meter} {totals[meter, worker.name]}, {worker.said}"
        for worker in workers
        for meter in METERS
        if not worker.said[safe] <= totals[meter, worker.name] <= worker.said["began"]
    ]
