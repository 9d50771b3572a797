"""The client and its commands against `otel-metering up`."""

import json
import os
import queue
import signal
import subprocess
import threading
from collections import deque
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from otel_metering.client import MeteringClient, NewEvent
from otel_metering.errors import ApiError, QuotaExceededError
from tests.e2e.up import COMMAND, KEY, REPOSITORY, Up
from tests.waiting import eventually

NOON = datetime(2026, 9, 1, 12, tzinfo=UTC)


def client_of(up: Up) -> MeteringClient:
    return MeteringClient(f"http://{up.api}", KEY, max_retries=2)


def send(client: MeteringClient, tenant: str, quantities: list[str], **more: Any) -> None:
    events = [
        NewEvent(
            meter="api.calls",
            tenant_id=tenant,
            quantity=Decimal(quantity),
            event_id=f"{tenant}-{i}",
            timestamp=NOON + timedelta(minutes=i),
            **more,
        )
        for i, quantity in enumerate(quantities)
    ]
    done = client.send_events(events)
    assert done.accepted == len(quantities), done


def stored(client: MeteringClient, tenant: str) -> list[str]:
    events = client.iter_events(
        tenant_id=tenant, from_=NOON, to=NOON + timedelta(days=1), page_size=2
    )
    return [event.event_id for event in events]


def total(client: MeteringClient, tenant: str) -> Decimal | None:
    rows = client.usage(
        "api.calls", tenant_id=tenant, from_=NOON, to=NOON + timedelta(days=1), window="total"
    ).rows
    return rows[0].value if rows else None


def test_usage_that_is_sent_is_listed_and_counted_exactly(up: Up) -> None:
    with client_of(up) as client:
        send(client, "c_sent", ["0.1", "0.2", "98765432.000000001"], attributes={"region": "eu"})
        again = client.send_events(
            [NewEvent(meter="api.calls", tenant_id="c_sent", event_id="c_sent-0")]
        )

        ids = eventually(lambda: stored(client, "c_sent"), lambda found: len(found) == 3)
        counted = eventually(lambda: total(client, "c_sent"), lambda found: found is not None)
        hours = client.usage("api.calls", tenant_id="c_sent", from_=NOON, window="hour").rows
        (event,) = client.iter_events(tenant_id="c_sent", event_id="c_sent-1", from_=NOON)
        used = [meter for meter in client.meters(tenant_id="c_sent", from_=NOON) if meter.events]

    assert again.duplicates == 1
    assert ids == ["c_sent-2", "c_sent-1", "c_sent-0"]
    assert counted == Decimal("98765432.300000001")
    assert [(row.window_start, row.window_end) for row in hours] == [
        (NOON, NOON + timedelta(hours=1))
    ]
    assert (event.quantity, event.timestamp) == (Decimal("0.2"), NOON + timedelta(minutes=1))
    assert event.attributes["region"] == "eu"
    assert [(meter.slug, meter.events) for meter in used] == [("api.calls", 3)]


def test_what_follows_shows_each_event_once_and_ends_with_ctrl_c(up: Up) -> None:
    arguments = ["events", "tail", "--tenant", "c_tail", "--every", "0.2", "--format", "json"]
    shown: queue.Queue[str] = queue.Queue()
    with client_of(up) as client:
        now = datetime.now(UTC)
        before = NewEvent(meter="api.calls", tenant_id="c_tail", event_id="before", timestamp=now)
        client.send_events([before])
        eventually(
            lambda: list(client.iter_events(tenant_id="c_tail")), lambda found: len(found) == 1
        )
        with subprocess.Popen(
            [str(COMMAND), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, "METERING_API_URL": f"http://{up.api}", "METERING_API_KEY": KEY},
        ) as process:
            assert process.stdout is not None
            lines = process.stdout
            reader = threading.Thread(target=lambda: deque(map(shown.put, lines), maxlen=0))
            reader.start()
            seen: list[str] = []

            def look(number: int) -> list[str]:
                late = now - timedelta(seconds=number)
                client.send_events(
                    [
                        NewEvent(
                            meter="api.calls",
                            tenant_id="c_tail",
                            event_id=f"late-{number}",
                            timestamp=late,
                        )
                    ]
                )
                while not shown.empty():
                    seen.append(json.loads(shown.get())["event_id"])
                return seen

            # Its first look takes what is there for old; so send until it shows one, then a few more.
            numbers = iter(range(1, 250))
            eventually(lambda: look(next(numbers)), lambda found: len(found) > 0, every=0.2)
            sent = [next(numbers) for _ in range(3)]
            for number in sent:
                look(number)
            eventually(
                lambda: look(sent[-1]), lambda found: {f"late-{n}" for n in sent} <= set(found)
            )
            process.send_signal(signal.SIGINT)
            status = process.wait(30)
            reader.join()
            said = process.stderr.read() if process.stderr else ""

    assert status == 130
    assert said == ""
    assert "before" not in seen
    assert len(seen) == len(set(seen))


def test_an_event_is_voided_and_another_corrected(up: Up) -> None:
    with client_of(up) as client:
        send(client, "c_void", ["1", "10", "100"])
        eventually(lambda: total(client, "c_void"), lambda found: found == 111)

        voided = client.void("c_void-0", reason="typed twice", tenant_id="c_void")
        corrected = client.correct("c_void-1", reason="typo", quantity=20, tenant_id="c_void")

        assert eventually(lambda: total(client, "c_void"), lambda found: found == 120) == 120
        assert (voided.action, voided.replaced_by) == ("void", None)
        assert corrected.replaced_by is not None
        assert client.event("c_void-0", tenant_id="c_void").status == "voided"
        listed = list(client.iter_corrections(tenant_id="c_void"))
        assert {one.action for one in listed} == {"void", "correct"}


@pytest.mark.parametrize("form", ["csv", "ndjson"])
def test_an_export_has_every_event_once_oldest_first(up: Up, form: Any) -> None:
    with client_of(up) as client:
        tenant = f"c_export_{form}"
        send(client, tenant, [str(i) for i in range(1, 300)])
        eventually(lambda: len(stored(client, tenant)), lambda found: found == 299, every=0.5)

        lines = list(client.export_events(format=form, tenant_id=tenant, from_=NOON))

    assert len(lines) == 299 + (form == "csv")
    assert f"{tenant}-298".encode() in lines[-1]


def test_usage_in_another_zone_has_its_days(up: Up) -> None:
    with client_of(up) as client:
        send(client, "c_zone", ["1"])
        eventually(lambda: total(client, "c_zone"), lambda found: found == 1)
        usage = client.usage(
            "api.calls",
            tenant_id="c_zone",
            from_="2026-09-01",
            to="2026-09-03",
            window="day",
            timezone="Asia/Kathmandu",
            fill_zero=True,
        )

    assert usage.timezone == "Asia/Kathmandu"
    assert usage.rows[0].window_start == datetime(2026, 8, 31, 18, 15, tzinfo=UTC)
    assert [row.value for row in usage] == [1, 0]


def test_a_quota_holds_what_is_reserved_and_counts_what_is_committed(up: Up) -> None:
    with client_of(up) as client:
        quota = client.set_quota("api.calls", 10, period="lifetime", tenant_id="c_quota")
        with client.reserve("c_quota", "api.calls", 8) as held:
            with pytest.raises(QuotaExceededError):
                client.reserve("c_quota", "api.calls", 3)
            held.commit(5)

        assert client.validate("c_quota", "api.calls", 5).allowed
        assert not client.validate("c_quota", "api.calls", 6).allowed
        (status,) = client.iter_quota_status(tenant_id="c_quota")
        assert (status.used, status.reserved) == (Decimal(5), Decimal(0))
        with client.reserve("c_quota", "api.calls", 5):
            pass
        assert client.validate("c_quota", "api.calls", 5).allowed
        client.delete_quota(quota.quota_id)
        assert client.validate("c_quota", "api.calls", 50).reason == "no_quota"


def test_a_key_is_rotated_a_token_reads_one_tenant_and_both_are_in_the_audit_log(up: Up) -> None:
    with client_of(up) as client:
        made = client.create_key("n", ["query"], tenant_id="c_key", rate_limit_per_second=100)
        rotated = client.rotate_key(made.key.key_id, overlap_seconds=60)
        token = client.create_token("c_key", ttl_seconds=60)
        with MeteringClient(f"http://{up.api}", token.text, max_retries=0) as page:
            page.usage("api.calls", tenant_id="c_key")
            with pytest.raises(ApiError, match="HTTP 403"):
                page.usage("api.calls", tenant_id="c_sent")
        actions = list(client.iter_audit())

    assert rotated.key.replaces == made.key.key_id
    assert any(made.key.key_id in entry.target for entry in actions)
