"""Rules about keys and data, as their files have them."""

from datetime import datetime

from receiver.store import tables
from receiver.store.client import Store
from tests.grafana.alerts.engine import DAY, HOUR, MINUTE, NOW, Stats, fires, hours, moment, silent


def key(store: Store, key_id: str, **changes: str) -> None:
    values = {
        "key_id": f"'{key_id}'", "name": f"'Name of {key_id}'",
        "created_at": f"toDateTime64('{NOW - 90 * DAY:%F %T}', 6, 'UTC')",
        "updated_at": f"toDateTime64('{NOW - 90 * DAY:%F %T}', 6, 'UTC')",
        **changes,
    }  # fmt: skip
    store.execute(
        f"INSERT INTO {tables.API_KEYS} ({', '.join(values)}) SELECT {', '.join(values.values())}"
    )


def test_a_key_is_told_three_days_before_it_ends(store: Store) -> None:
    key(store, "soon", expires_at=moment(NOW + 72 * HOUR - MINUTE), tenant_id="'acme'")
    key(store, "later", expires_at=moment(NOW + 73 * HOUR))
    key(store, "never")
    key(store, "past", expires_at=moment(NOW - HOUR))
    key(store, "revoked", expires_at=moment(NOW + HOUR), revoked_at=moment(NOW - HOUR))
    key(store, "replaced", expires_at=moment(NOW + HOUR))
    key(store, "successor", replaces="'replaced'")
    key(store, "again", expires_at=moment(NOW + HOUR))
    key(store, "gone", replaces="'again'", revoked_at=moment(NOW - HOUR))

    fires(
        store,
        "metering-key-expiring",
        {"key_id": "soon", "name": "Name of soon", "tenant_id": "acme"},
        {"key_id": "again", "name": "Name of again", "tenant_id": "(any)"},
    )


def test_a_key_that_is_used_after_its_end_is_told(store: Store, stats: Stats) -> None:
    key(store, "old", revoked_at=moment(NOW - DAY))
    for reason in ("revoked", "expired", "scope", "tenant"):
        stats.add("keys", "refused", 1, reason=reason, labels={"key_id": "old" if reason == "revoked" else "gone", "transport": "grpc"})  # fmt: skip
    stats.add("keys", "refused", 1, reason="unknown", labels={"key_id": "", "transport": "http"})

    fires(
        store,
        "metering-ended-key-used",
        {"key_id": "old", "name": "Name of old", "reason": "revoked"},
        {"key_id": "gone", "name": "", "reason": "expired"},
    )


def event(store: Store, at: datetime, quantity: str = "1.000000001", number: int = 1) -> None:
    store.execute(
        f"INSERT INTO {tables.EVENTS} (event_id, tenant_id, meter, quantity, timestamp, start_time, signal) "
        f"SELECT generateUUIDv4({number}), 'acme', 'api.calls', toDecimal128('{quantity}', 9), "
        f"toDateTime64('{at:%F %T}', 9, 'UTC') AS time, time, 'event'"
    )


def test_a_rollup_that_differs_by_the_smallest_unit_has_drifted(store: Store) -> None:
    event(store, NOW - 2 * HOUR)
    silent(store, "metering-rollup-drift")

    hours(store, 0.000000001, count=0, start=2, end=2)

    fires(store, "metering-rollup-drift", {"meter": "api.calls", "rollup_table": "usage_hour"})


def test_a_rollup_that_has_another_count_has_drifted(store: Store) -> None:
    hours(store, 0, count=1, start=2, end=2)

    fires(store, "metering-rollup-drift", {"meter": "api.calls", "rollup_table": "usage_hour"})


def test_a_day_that_differs_from_its_hours_has_drifted(store: Store) -> None:
    store.execute(
        f"INSERT INTO {tables.USAGE_DAY} (tenant_id, meter, window_start, quantity_sum, quantity_count) "
        f"SELECT 'acme', 'api.calls', toDateTime('{NOW - DAY:%F} 00:00:00', 'UTC'), 1, 0"
    )

    fires(store, "metering-rollup-drift", {"meter": "api.calls", "rollup_table": "usage_day"})


def test_corrections_are_no_drift(store: Store) -> None:
    for number in range(5):
        event(store, NOW - 2 * HOUR, number=number)
    store.execute(
        f"INSERT INTO {tables.EVENT_CORRECTIONS} (event_id, tenant_id, meter, timestamp, quantity, observations, action) "
        f"SELECT event_id, tenant_id, meter, timestamp, quantity, observations, 'void' FROM {tables.EVENTS} LIMIT 2"
    )

    silent(store, "metering-rollup-drift")


def test_what_is_right_at_other_times_is_no_drift(store: Store) -> None:
    """Each part of the question is about the same time."""
    for at in (NOW, NOW - 10 * HOUR, NOW - DAY, NOW - 4 * DAY):
        for number in range(2):
            event(store, at, number=number)
    store.execute(
        f"INSERT INTO {tables.EVENT_CORRECTIONS} (event_id, tenant_id, meter, timestamp, quantity, observations, action) "
        f"SELECT event_id, tenant_id, meter, timestamp, quantity, observations, 'void' FROM {tables.EVENTS} "
        "ORDER BY timestamp LIMIT 1 BY timestamp"
    )

    silent(store, "metering-rollup-drift", length=20 * MINUTE)


def test_hours_before_the_last_six_are_not_looked_at(store: Store) -> None:
    hours(store, 1, start=60, end=50)
    hours(store, 1, start=9, end=8)

    silent(store, "metering-rollup-drift", start=NOW + DAY, length=20 * MINUTE)


def test_the_hour_that_has_begun_may_differ(store: Store) -> None:
    hours(store, 1, start=0, end=0)

    silent(store, "metering-rollup-drift", length=20 * MINUTE)


def test_more_than_a_fifth_of_the_usage_was_sent_before(store: Store, stats: Stats) -> None:
    stats.add("ingest", "in", 100)
    stats.add("ingest", "refused", 50, reason="unchanged")
    stats.add("ingest", "refused", 20, reason="duplicate")
    silent(store, "metering-duplicates")

    stats.add("ingest", "refused", 1, reason="duplicate")

    fires(store, "metering-duplicates", {})


def test_of_few_uses_all_may_have_been_sent_before(store: Store, stats: Stats) -> None:
    stats.add("ingest", "in", 1)
    stats.add("ingest", "refused", 1, reason="duplicate")

    silent(store, "metering-duplicates")


def test_what_went_into_quarantine_is_told_until_it_is_resolved(store: Store) -> None:
    store.execute(
        f"INSERT INTO {tables.QUARANTINE} (event_id, reason, signal, ingested_at) "
        f"SELECT generateUUIDv4(number), if(number < 2, 'no_tenant', 'no_meter'), 'metric', "
        f"toDateTime64('{NOW - MINUTE:%F %T}', 3, 'UTC') FROM numbers(4)"
    )
    store.execute(
        f"INSERT INTO {tables.QUARANTINE_RESOLVED} (event_id, resolution, ingested_at) "
        f"SELECT event_id, 'replayed', ingested_at FROM {tables.QUARANTINE} WHERE reason = 'no_meter'"
    )

    fires(store, "metering-quarantine-growing", {"reason": "no_tenant"})
    silent(store, "metering-quarantine-growing", start=NOW + HOUR)
