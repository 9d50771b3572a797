"""What could not be billed is replayed after meters.yaml was corrected, and then counts exactly once."""

import os
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.up import COMMAND, KEY, Up
from tests.otlp import NOON, Point, metrics_request, post
from tests.waiting import eventually

QUARANTINE = "/v1/meter/quarantine"
MINUTE_NS = 60_000_000_000
WITHOUT = "meters: []\n"
CORRECTED = """
meters:
  - slug: llm.cost
    source: {signal: metric, name: app.llm.cost}
    aggregation: sum
"""


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    meters = tmp_path / "meters.yaml"
    meters.write_text(WITHOUT)
    made = Up(tmp_path / "data", f"--meters={meters}")
    made.start()
    try:
        yield made
    finally:
        if made.is_running:
            made.kill()


def points_of(tenant: str, count: int) -> list[Point]:
    """Usage that only a corrected meters.yaml knows: another scope, and no meter of that name."""
    return [
        Point(tenant, n, at_ns=NOON + n % 3 * MINUTE_NS, meter="app.llm.cost", attributes={"n": n})
        for n in range(1, count + 1)
    ]


def totals_of(*points: Point) -> dict[tuple[str, str, str], Decimal]:
    minutes = ["2026-09-21T14:13:00Z", "2026-09-21T14:14:00Z", "2026-09-21T14:15:00Z"]
    expected: dict[tuple[str, str, str], Decimal] = defaultdict(Decimal)
    for point in points:
        minute = minutes[(point.at_ns - NOON) // MINUTE_NS]
        expected[point.tenant, "llm.cost", minute] += Decimal(point.value)
    return dict(expected)


def send(up: Up, points: list[Point], key: str = KEY) -> None:
    body = metrics_request(points, scope="app").SerializeToString()
    assert post(up.http, "/v1/metrics", body, key)[0] == 200


def listed(up: Up, **parameters: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = up.get(QUARANTINE, limit=7, **parameters, **cursor)
        found += page["data"]
        if page["next_cursor"] is None:
            return found
        cursor = {"cursor": page["next_cursor"]}


def resolve(up: Up, what: str, **selection: Any) -> dict[str, Any]:
    status, answer = up.post(f"{QUARANTINE}/{what}", selection)
    assert status == 200, answer
    assert isinstance(answer, dict)
    return answer


def run(up: Up, *arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    environment = {
        **os.environ,
        "METERING_API_URL": f"http://{up.api}",
        "METERING_API_KEY": KEY,
        "COLUMNS": "200",
    }
    return subprocess.run(
        [COMMAND, "quarantine", *arguments],
        env=environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def correct_the_meters(up: Up) -> None:
    assert up.stop() == 0
    (up.data_dir.parent / "meters.yaml").write_text(CORRECTED)
    up.start()


def test_a_replay_counts_what_the_corrected_meters_know_exactly_once(up: Up) -> None:
    points = points_of("tenant_a", 20)
    send(up, points)
    send(up, points)  # an item that is sent again is in quarantine once
    items = eventually(lambda: listed(up), lambda found: len(found) == 20)
    assert {(one["reason"], one["name"], one["tenant_id"]) for one in items} == {
        ("no_meter", "app.llm.cost", "tenant_a")
    }
    assert sorted(one["attributes"]["n"] for one in items) == sorted(str(n) for n in range(1, 21))
    assert [one["ingested_at"] for one in items] == sorted(
        (one["ingested_at"] for one in items), reverse=True
    )

    early = resolve(up, "replay", reason="no_meter")
    assert (early["matched"], early["replayed"], early["still_quarantined"]) == (20, 0, 20)
    assert "no_meter" in early["refusals"][0]["detail"]
    assert len(listed(up)) == 20, "a replay that is refused again makes no second item"

    correct_the_meters(up)
    rehearsed = resolve(up, "replay", dry_run=True)
    assert (rehearsed["matched"], rehearsed["replayed"]) == (20, 20)
    assert len(listed(up)) == 20
    assert up.totals(["llm.cost"], "minute") == {}

    send(up, points[:5])  # a sender that sent again, before the replay
    first = resolve(up, "replay", name="app.llm.cost", limit=12)
    second = resolve(up, "replay", name="app.llm.cost", limit=12, cursor=first["next_cursor"])
    assert second["next_cursor"] is None
    assert first["matched"] + second["matched"] == 20
    assert first["duplicates"] + second["duplicates"] == 5
    assert first["replayed"] + second["replayed"] == 15
    assert listed(up) == []
    assert resolve(up, "replay")["matched"] == 0
    send(up, points)
    up.eventually_totals(totals_of(*points), "minute")

    kept = listed(up, include_resolved="true")
    assert len(kept) == 20
    assert {one["resolution"]["resolution"] for one in kept} == {"replayed"}
    assert {one["resolution"]["key_id"] for one in kept} == {"root"}


def test_a_crash_between_the_usage_and_the_mark_counts_nothing_twice(up: Up) -> None:
    points = points_of("tenant_a", 10)
    send(up, points)
    eventually(lambda: listed(up), lambda found: len(found) == 10)
    correct_the_meters(up)
    resolve(up, "replay")
    up.eventually_totals(totals_of(*points), "minute")

    # As after a crash: the usage is there, the marks are not.
    assert up.stop() == 0
    forget_the_marks(up.data_dir)
    up.start()
    assert len(listed(up)) == 10

    again = resolve(up, "replay")

    assert (again["replayed"], again["duplicates"]) == (0, 10)
    assert listed(up) == []
    up.eventually_totals(totals_of(*points), "minute")


def forget_the_marks(data_dir: Path) -> None:
    program = (
        "import sys; from receiver.store.client import Store; store = Store(sys.argv[1]); "
        "store.execute('TRUNCATE TABLE metering.quarantine_resolved'); store.close()"
    )
    url = f"chdb://{(data_dir / 'clickhouse').resolve()}"
    subprocess.run([COMMAND.with_name("python"), "-c", program, url], check=True, timeout=60)


def test_a_bound_key_writes_no_other_tenant_by_replay(up: Up) -> None:
    correct_the_meters(up)
    _, made = up.post(
        "/v1/meter/keys", {"name": "b", "scopes": ["ingest"], "tenant_id": "tenant_b"}
    )
    mine, others = points_of("tenant_b", 3), points_of("tenant_a", 3)
    send(up, [*mine, *others], made["key"])
    items = eventually(lambda: listed(up), lambda found: len(found) == 3)
    assert {(one["reason"], one["tenant_id"], one["key_id"]) for one in items} == {
        ("tenant_not_allowed", "tenant_a", made["key_id"])
    }

    answer = resolve(up, "replay", event_ids=[one["event_id"] for one in items])

    assert (answer["matched"], answer["still_quarantined"]) == (3, 3)
    assert len(listed(up)) == 3
    up.eventually_totals(totals_of(*mine), "minute")


def test_the_commands_show_replay_and_discard(up: Up) -> None:
    points = [*points_of("tenant_a", 4), *points_of("tenant_b", 2)]
    send(up, points)
    eventually(lambda: listed(up), lambda found: len(found) == 6)

    summary, shown = run(up, "summary"), run(up, "list", "--tenant", "tenant_b")
    assert summary.returncode == shown.returncode == 0, summary.stderr + shown.stderr
    assert all(text in summary.stdout for text in ("no_meter", "app.llm.cost", "6"))
    assert shown.stdout.count("tenant_b") == 2
    assert "tenant_a" not in shown.stdout

    declined = run(up, "discard", "--tenant", "tenant_b", stdin="n\n")
    assert declined.returncode != 0
    assert "2 items" in declined.stdout
    assert len(listed(up)) == 6
    discarded = run(up, "discard", "--tenant", "tenant_b", "--yes", "--note", "a test tenant")
    assert discarded.returncode == 0, discarded.stderr
    assert len(listed(up)) == 4
    aside = listed(up, include_resolved="true", tenant_id="tenant_b")
    assert {(one["resolution"]["resolution"], one["resolution"]["note"]) for one in aside} == {
        ("discarded", "a test tenant")
    }
    everything = run(up, "discard", "--yes")
    assert everything.returncode == 1
    assert "say which items" in everything.stderr

    correct_the_meters(up)
    replayed = run(up, "replay")
    assert replayed.returncode == 0, replayed.stderr
    assert "replayed" in replayed.stdout
    assert listed(up) == []
    up.eventually_totals(totals_of(*points_of("tenant_a", 4)), "minute")
