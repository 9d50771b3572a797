"""A hard limit under 64 concurrent workers: never exceeded, and never stuck below it, whatever is killed.

Each worker is a process; what it was granted is written to a ledger, on disk, before and after. The judge knows
nothing of the product: it adds up what was granted, and from when to when each grant was valid.
"""

import json
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.up import KEY, Up
from tests.redis_server import redis_server
from tests.waiting import eventually

LIMIT = 100
WORKERS = 64
TTL_SECONDS = 12
"""Longer than a restart, or a recovery: what was held before is held behind it."""

QUOTA = {"tenant_id": "tenant_a", "meter": "seats", "limit": str(LIMIT), "period": "lifetime"}


class Grant(NamedTuple):
    """Units that somebody may believe to have, from a moment to another at the latest."""

    since: float
    until: float
    units: int


WORKER = '''
import http.client, json, os, random, sys, time
address, key, ledger, seed, until, ttl = sys.argv[1:]
chosen, ledger, pause = random.Random(int(seed)), open(ledger, "a", buffering=1), 0
host, port = address.split(":")

def post(path, body):
    """Status and answer; None: nobody knows whether it was done."""
    try:
        connection = http.client.HTTPConnection(host, int(port), timeout=20)
        connection.request("POST", path, json.dumps(body), {"x-api-key": key})
        with connection.getresponse() as response:
            return response.status, json.load(response)
    except (OSError, ValueError, http.client.HTTPException):
        return None

def say(**what):
    ledger.write(json.dumps(what) + "\\n")

number = 0
while time.time() < float(until):
    number += 1
    name, units = f"w{seed}.{number}", chosen.randrange(1, 6)
    answer = post("/v1/meter/validate", {"tenant_id": "tenant_a", "meter": "seats", "quantity": str(units),
        "reserve": True, "reservation_id": name, "ttl_seconds": int(ttl)})
    if not answer or answer[0] != 200 or not answer[1]["allowed"]:
        time.sleep(0.1 + chosen.random() * 0.4)
        continue
    # From when it was granted, at the latest now; its end as the service said it.
    say(what="granted", name=name, units=units, at=time.time(), until=answer[1]["expires_at"])
    # Some are held while what knows of them is killed.
    time.sleep(chosen.random() * (0.2 if chosen.random() < 0.7 else 9))
    fate = chosen.random()
    if fate < 0.94:
        say(what="ending", name=name, at=time.time())
        post(f"/v1/meter/reservations/{name}/release", {})
    elif fate < 0.96:
        say(what="committing", name=name, at=time.time())
        while not (done := post(f"/v1/meter/reservations/{name}/commit", {"quantity": "1"})) or done[0] == 503:
            time.sleep(0.05)
        say(what="committed", name=name, at=time.time(), status=done[0])
    # Else it is forgotten, as by a worker that was killed.
'''


def start_workers(
    up: Up, folder: Path, seconds: float, count: int
) -> "list[subprocess.Popen[bytes]]":
    until = time.time() + seconds
    return [
        subprocess.Popen(
            [
                *(
                    sys.executable,
                    "-S",
                    "-c",
                    WORKER,
                    up.api,
                    KEY,
                    str(folder / f"ledger.{number}"),
                ),
                *(str(number), str(until), str(TTL_SECONDS)),
            ]
        )
        for number in range(count)
    ]


def instant(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def judge(folder: Path) -> tuple[int, int, tuple[int, int]]:
    """(largest sum of valid grants and of usage at any moment, grants, least and most units of usage)."""
    grants: dict[str, Grant] = {}
    tried = 0
    used: list[tuple[float, int]] = []
    for path in folder.glob("ledger.*"):
        for line in path.read_text().splitlines():
            try:
                one = json.loads(line)
            except ValueError:
                continue  # its writer was killed
            name = one["name"]
            if one["what"] == "granted":
                grants[name] = Grant(one["at"], instant(one["until"]), one["units"])
            elif one["what"] in ("ending", "committing"):
                # From here on it may be over.
                tried += one["what"] == "committing"
                grants[name] = grants[name]._replace(until=min(grants[name].until, one["at"]))
            elif one["what"] == "committed" and one["status"] == 200:
                used.append((one["at"], 1))
    changes = [(one.since, one.units) for one in grants.values() if one.until > one.since]
    changes += [(one.until, -one.units) for one in grants.values() if one.until > one.since]
    changes += used
    total = peak = 0
    for _, change in sorted(changes):
        total += change
        peak = max(peak, total)
    return peak, len(grants), (len(used), tried)


@pytest.fixture(params=["memory", "redis"])
def redis_url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    if request.param == "memory":
        yield None
        return
    with redis_server() as server:
        monkeypatch.setenv("METERING_REDIS_URL", server.url)
        yield server


def put_quota(up: Up) -> None:
    request = urllib.request.Request(
        f"http://{up.api}/v1/meter/quotas",
        data=json.dumps(QUOTA).encode(),
        headers={"x-api-key": KEY, "content-type": "application/json"},
        method="PUT",
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        assert response.status == 200


def recorded(up: Up) -> int:
    """Units of usage, from the tables."""
    answer = up.get("/v1/meter/aggregates", meter="seats")
    return sum(int(row["value"]) for row in answer["data"])


def check(up: Up, quantity: int, **more: object) -> dict[str, object]:
    body = {"tenant_id": "tenant_a", "meter": "seats", "quantity": str(quantity), **more}
    status, answer = up.post("/v1/meter/validate", body)
    assert status == 200, answer
    found: dict[str, object] = answer
    return found


def break_things(
    up: Up, server: object, workers: "list[subprocess.Popen[bytes]]", chosen: random.Random
) -> None:
    """Kill some workers, and what holds the reservations, while the others go on."""
    for _ in range(3):
        next_at = time.monotonic() + 6
        eventually(time.monotonic, lambda now, at=next_at: now > at)  # type: ignore[misc]  # bound now
        for one in chosen.sample(workers, 6):
            one.kill()
        if server is None:
            up.kill()
            up.start()
        else:
            server.kill()  # type: ignore[attr-defined]
            server.start()  # type: ignore[attr-defined]  # empty


def test_a_hard_limit_is_neither_exceeded_nor_lost_whatever_is_killed(
    tmp_path: Path, redis_url: object
) -> None:
    up = Up(tmp_path / "data")
    up.start()
    workers: list[subprocess.Popen[bytes]] = []
    try:
        put_quota(up)
        eventually(lambda: check(up, 1), lambda answer: answer["reason"] == "ok")
        chosen = random.Random(11)
        workers = start_workers(up, tmp_path, 30, WORKERS)
        break_things(up, redis_url, workers, chosen)
        for one in workers:
            one.wait(60)

        peak, grants, (least, most) = judge(tmp_path)
        assert peak <= LIMIT
        assert grants > 50, "the limit was hardly tried"

        # Never stuck: when every time to live is over, the whole rest can be had, and not one unit more.
        used = eventually(lambda: recorded(up), lambda found: found >= least)
        assert used <= most  # of a worker that was killed in the middle of it, nobody knows
        rest = LIMIT - used
        eventually(
            lambda: check(up, rest, reserve=True, reservation_id="all", ttl_seconds=600),
            lambda answer: bool(answer["allowed"]),
            seconds=30,
        )
        assert not check(up, 1)["allowed"]
    finally:
        for one in workers:
            if one.poll() is None:
                one.kill()
            one.wait()
        if up.is_running:
            up.stop()
