"""Rules about usage, as their file has them."""

from receiver.store import tables
from receiver.store.client import Store
from tests.grafana.alerts.engine import DAY, NOW, fires, hours, silent

USER = {"tenant_id": "acme", "meter": "api.calls"}


def test_a_spike_is_more_than_three_times_the_usual(store: Store) -> None:
    hours(store, 100, start=169, end=2)
    hours(store, 299, start=1, end=1)
    hours(store, 100, tenant="globex", start=169, end=2)
    hours(store, 310, tenant="globex", start=1, end=1)

    fires(store, "metering-usage-spike", {**USER, "tenant_id": "globex"})


def test_what_happens_every_day_at_this_hour_is_no_spike(store: Store) -> None:
    hours(store, 10, start=169, end=2)
    hours(store, 1000, start=169, end=25, only="number % 24 = 1")
    hours(store, 1100, start=1, end=1)

    silent(store, "metering-usage-spike")


def test_a_usual_amount_at_a_quiet_hour_is_no_spike(store: Store) -> None:
    hours(store, 100, start=169, end=2, only="number % 24 != 1")
    hours(store, 110, start=1, end=1)

    silent(store, "metering-usage-spike")


def test_a_spike_is_the_largest_hour_of_the_week(store: Store) -> None:
    hours(store, 10, start=169, end=2)
    hours(store, 400, start=50, end=50)
    hours(store, 390, start=1, end=1)

    silent(store, "metering-usage-spike")


def test_usage_of_more_than_a_week_ago_is_not_compared(store: Store) -> None:
    hours(store, 10_000, start=200, end=170)
    hours(store, 100, start=169, end=2)
    hours(store, 310, start=1, end=1)

    fires(store, "metering-usage-spike", USER)


def test_the_definition_of_a_meter_that_is_gone_does_not_count(store: Store) -> None:
    store.execute(
        f"INSERT INTO {tables.METER_DEFINITIONS} (meter, aggregation, is_deleted, updated_at) "
        "SELECT 'api.calls', 'max', true, now64()"
    )
    hours(store, 100, start=169, end=2)
    hours(store, 310, start=1, end=1)

    fires(store, "metering-usage-spike", USER)


def test_few_measurements_and_few_days_are_no_spike(store: Store) -> None:
    hours(store, 1, count=1, start=169, end=2)
    hours(store, 100, count=9, start=1, end=1)
    hours(store, 1, tenant="new", start=40, end=2)
    hours(store, 1000, tenant="new", start=1, end=1)

    silent(store, "metering-usage-spike")


def test_of_a_meter_that_is_no_sum_the_measurements_are_compared(store: Store) -> None:
    store.execute(
        f"INSERT INTO {tables.METER_DEFINITIONS} (meter, aggregation, is_deleted, updated_at) "
        "SELECT 'api.calls', 'max', false, now64()"
    )
    hours(store, 100, start=169, end=2)
    hours(store, 10_000, start=1, end=1)
    hours(store, 1, count=20, tenant="globex", start=169, end=2)
    hours(store, 1, count=200, tenant="globex", start=1, end=1)

    fires(store, "metering-usage-spike", {**USER, "tenant_id": "globex"})


def test_the_hour_that_has_begun_is_no_spike(store: Store) -> None:
    hours(store, 100, start=169, end=1)
    hours(store, 10_000, start=0, end=0)

    silent(store, "metering-usage-spike")


def test_usage_has_stopped_after_two_hours_of_none(store: Store) -> None:
    hours(store, 1, start=170, end=3)
    hours(store, 1, tenant="globex", start=170, end=2)
    hours(store, 1, tenant="initech", start=170, end=0)

    fires(store, "metering-usage-stopped", USER)


def test_usage_that_is_taken_back_is_none(store: Store) -> None:
    hours(store, 1, start=170, end=1)
    hours(store, -1, count=2**64 - 20, start=2, end=1)
    hours(store, 1, tenant="globex", start=170, end=0)

    fires(store, "metering-usage-stopped", USER)


SATURDAY = NOW + DAY


def test_who_does_not_work_on_this_day_has_not_stopped(store: Store) -> None:
    """On all of the last five days, and not a week ago."""
    hours(store, 1, start=170, end=0, only="toDayOfWeek(hour) <= 5", now=SATURDAY)
    hours(store, 1, tenant="globex", start=170, end=0, now=SATURDAY)

    silent(store, "metering-usage-stopped", start=SATURDAY)


def test_who_seldom_works_at_this_hour_has_not_stopped(store: Store) -> None:
    """A week ago, and else at night."""
    hours(store, 1, start=170, end=168)
    hours(store, 1, start=170, end=3, only="toHour(hour) < 9")
    hours(store, 1, tenant="globex", start=170, end=0)

    silent(store, "metering-usage-stopped")


def test_while_nobody_uses_anything_nobody_has_stopped(store: Store) -> None:
    hours(store, 1, start=170, end=3)
    hours(store, 1, tenant="globex", start=170, end=3)

    silent(store, "metering-usage-stopped")
