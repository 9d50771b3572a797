"""Processes that are killed, over a receiver that fails in every way: totals are exact all the same.

The stock exporter counts 8 % twice under these faults.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.sdk_backend import Backend, running_backend
from tests.integration.sdk_chaos import METERS, faults, run_and_kill, shortfalls
from tests.integration.sdk_process import DURABILITIES, deliver_rest


@pytest.fixture
def backend() -> Iterator[Backend]:
    with running_backend() as backend:
        yield backend


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize(
    ("seed", "ticks"),
    [(1, 16), *(pytest.param(seed, 200, marks=pytest.mark.long) for seed in range(2, 7))],
)
def test_killed_processes_and_a_flaky_receiver_cost_at_most_one_flush_interval(
    seed: int, ticks: int, durability: str, backend: Backend, tmp_path: Path
) -> None:
    backend.chance = faults(seed)

    workers = run_and_kill(seed, ticks, durability, backend.endpoint, tmp_path)
    deliver_rest(backend.endpoint, tmp_path)

    totals = {
        (meter, worker.name): int(backend.total(meter, worker.name))
        for meter in METERS
        for worker in workers
    }
    assert shortfalls(workers, durability, totals) == []
    assert len(backend.points) > len(set(backend.points)), "nothing came twice: too few faults"
