"""Processes that are killed, over a receiver that fails in every way: totals are exact all the same.

The stock exporter counts 8 % twice under these faults. Each process says on a pipe what it has begun to count
and what it has flushed; whatever is delivered for it lies between the two.
"""

import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.integration.sdk_backend import Act, Backend, running_backend
from tests.integration.sdk_process import DURABILITIES, KILL_PROOF, deliver_rest, start
from tests.waiting import eventually

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
"""


def faults(seed: int) -> Iterator[Act | int]:
    """30 % 503, 10 % time-outs, 15 % answers lost after the commit."""
    chance = random.Random(seed)
    acts: list[Act | int] = [503, Act.HANG_UNREAD, Act.LOSE_ANSWER, 200]
    while True:
        yield chance.choices(acts, weights=[30, 10, 15, 45])[0]


class Worker:
    """One process, under a name that is the tenant of all it counts."""

    def __init__(self, name: str, backend: Backend, spool_dir: Path, durability: str, ticks: int):
        self.name = name
        self.said = {"began": 0, "counted": 0, "flushed": 0}
        self.process = start(
            WORKER,
            backend.endpoint,
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


@pytest.fixture
def backend() -> Iterator[Backend]:
    with running_backend() as backend:
        yield backend


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize(
    ("seed", "ticks"),
    [(1, 16), *(pytest.param(seed, 300, marks=pytest.mark.long) for seed in range(2, 12))],
)
def test_killed_processes_and_a_flaky_receiver_cost_at_most_one_flush_interval(
    seed: int, ticks: int, durability: str, backend: Backend, tmp_path: Path
) -> None:
    chance = random.Random(seed)
    backend.chance = faults(seed)

    def begin(name: str) -> Worker:
        return Worker(name, backend, tmp_path, durability, ticks)

    alive = [begin(f"process_{i}") for i in range(PROCESSES)]
    killed: list[Worker] = []
    for i in range(KILLS):
        victim = alive.pop(chance.randrange(len(alive)))
        victim.kill_once_it_flushed(chance.randrange(1, ticks // 2) * PER_TICK)
        killed.append(victim)
        alive.append(begin(f"successor_{i}"))
    for worker in alive:
        worker.end()
    deliver_rest(backend, tmp_path)

    for worker in [*killed, *alive]:
        of_calls, of_tokens = (
            int(backend.total(meter, worker.name)) for meter in ("api.calls", "tokens")
        )
        safe = worker.said["counted" if durability in KILL_PROOF else "flushed"]
        for delivered in (of_calls, of_tokens):
            assert safe <= delivered <= worker.said["began"], (worker.name, worker.said)
    assert {worker.said["flushed"] for worker in alive} == {ticks * PER_TICK}
    assert len(backend.points) > len(set(backend.points)), "nothing came twice: too few faults"
