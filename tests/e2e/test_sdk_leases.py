"""One hard quota, enforced by the SDK in many processes: used up to the last unit, and never beyond it.

Some are killed in the middle of it, and so is the service. Units of those that were killed come back when their
leases end, and what they left on disk is sent by their successors: so in the end exactly the limit was used.
"""

import json
import os
import subprocess
import sys
import urllib.request
from decimal import Decimal
from pathlib import Path

from tests.e2e.up import KEY, Up
from tests.waiting import eventually

LIMIT = 20_000
LEASE_SECONDS = 15
"""Longer than a restart of the service, and than until a successor sends what was left on disk."""

WORKER = """
import contextlib, random, sys, threading
import otel_metering
from otel_metering._leases import leases
from otel_metering.contract.attributes import RESERVATION_ID
from otel_metering.errors import QuotaExceededError

otel_metering.configure(service_name="shop", quota_fail_mode="closed", flush_interval_seconds=0.2)
UNIT = 10**9
with contextlib.suppress(QuotaExceededError):  # the service may be away
    leases.settle(leases.take("seats", "holder", 10 * UNIT), 0)  # nothing is used of it
is_over = threading.Event()

def work(seed):
    chosen = random.Random(seed)
    while not is_over.is_set():
        wanted = chosen.randrange(1, 4)
        try:
            grant = leases.take("seats", "tenant_a", wanted * UNIT)
        except QuotaExceededError:
            is_over.wait(0.1)
            continue
        used = chosen.randrange(0, wanted + 1)
        if used:
            named = {RESERVATION_ID: grant.reservation_id}
            otel_metering.record("seats", used, tenant="tenant_a", attributes=named)
        leases.settle(grant, used * UNIT)
        is_over.wait(0.005)

threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
for one in threads:
    one.start()
sys.stdin.read()
is_over.set()
for one in threads:
    one.join()
sys.exit(0 if otel_metering.shutdown(20) else 1)
"""


def start_worker(up: Up, folder: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", WORKER],
        stdin=subprocess.PIPE,
        env={
            **{name: value for name, value in os.environ.items() if "PYTEST" not in name},
            "METERING_ENDPOINT": f"http://{up.http}",
            "METERING_API_URL": f"http://{up.api}",
            "METERING_API_KEY": KEY,
            "METERING_SPOOL_DIR": str(folder / "spool"),
            "METERING_LEASE_SECONDS": str(LEASE_SECONDS),
        },
    )


def kill(worker: "subprocess.Popen[bytes]") -> None:
    worker.kill()
    worker.communicate()


def put_quota(up: Up, tenant: str, limit: int) -> None:
    body = {"tenant_id": tenant, "meter": "seats", "limit": str(limit), "period": "lifetime"}
    request = urllib.request.Request(
        f"http://{up.api}/v1/meter/quotas",
        data=json.dumps(body).encode(),
        headers={"x-api-key": KEY, "content-type": "application/json"},
        method="PUT",
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        assert response.status == 200


def standing(up: Up, tenant: str) -> tuple[int, int]:
    """(used, reserved), as a check says it."""
    status, answer = up.post(
        "/v1/meter/validate", {"tenant_id": tenant, "meter": "seats", "quantity": "0"}
    )
    assert status == 200, answer
    return (
        (-1, -1)
        if answer["used"] is None
        else (int(Decimal(answer["used"])), int(Decimal(answer["reserved"])))
    )


def recorded(up: Up) -> int:
    """Units of usage, from the tables."""
    answer = up.get("/v1/meter/aggregates", meter="seats")
    return sum(int(row["value"]) for row in answer["data"])


def test_a_hard_quota_is_used_up_exactly_whatever_is_killed(tmp_path: Path) -> None:
    up = Up(tmp_path / "data")
    up.start()
    workers: list[subprocess.Popen[bytes]] = []
    try:
        put_quota(up, "tenant_a", LIMIT)
        put_quota(up, "holder", 1_000)
        workers = [start_worker(up, tmp_path) for _ in range(4)]
        for number in range(2):
            enough = (number + 1) * LIMIT // 10
            eventually(lambda: standing(up, "tenant_a")[0], lambda used, at=enough: used > at)  # type: ignore[misc] # bound now
            kill(workers[number])
            workers[number] = start_worker(up, tmp_path)
        up.kill()
        up.start()

        def used_and_held() -> tuple[int, int]:
            used, held = standing(up, "tenant_a")
            assert used <= LIMIT
            return used, held

        # All of it, and at last nothing is held any more.
        eventually(used_and_held, lambda found: found == (LIMIT, 0), seconds=90)
        eventually(lambda: standing(up, "holder"), lambda found: found == (0, 0), seconds=30)
        for one in workers:
            one.communicate(timeout=60)
        assert [one.returncode for one in workers] == [0] * len(workers)
        eventually(lambda: recorded(up), lambda found: found == LIMIT)
    finally:
        for one in workers:
            kill(one)
        if up.is_running:
            up.stop()
