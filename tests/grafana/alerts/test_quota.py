"""Rules about quotas, as their file has them."""

from grafana.emulator.alert_source import Source
from grafana.emulator.alerts import Simulation
from receiver.store import tables
from receiver.store.client import Store
from tests.grafana.alerts.engine import DAY, MINUTE, NOW, fires, moment, silent
from tests.grafana.alerts.files import RULES


def quota(store: Store, used: float, **changes: str) -> None:
    """A quota of 100, of the thirty days around NOW."""
    values = {
        "tenant_id": "'acme'", "meter": "'api.calls'", "quota_id": "'q1'", "period": "'month'",
        "period_start": f"toDateTime64('{NOW - 15 * DAY:%F %T}', 3, 'UTC')",
        "period_end": f"toDateTime64('{NOW + 15 * DAY:%F %T}', 3, 'UTC')",
        "enforcement": "'hard'", "quantity_limit": "100", "quantity_used": str(used),
        "updated_at": f"toDateTime64('{NOW:%F %T}', 3, 'UTC')", "is_deleted": "false", **changes,
    }  # fmt: skip
    store.execute(
        f"INSERT INTO {tables.QUOTA_USAGE} ({', '.join(values)}) SELECT {', '.join(values.values())}"
    )


Q1 = {
    "tenant_id": "acme",
    "meter": "api.calls",
    "quota_id": "q1",
    "period": "month",
    "enforcement": "hard",
}
PROJECTED = {name: value for name, value in Q1.items() if name != "enforcement"}


def test_a_quota_is_told_at_80_percent(store: Store) -> None:
    quota(store, 79.9)
    quota(store, 80, quota_id="'q2'", tenant_id="'globex'")

    fires(store, "metering-quota-80", {**Q1, "quota_id": "q2", "tenant_id": "globex"})
    silent(store, "metering-quota-100")


def test_a_quota_is_told_when_it_is_used_up(store: Store) -> None:
    quota(store, 99.9, quota_id="'q2'")
    quota(store, 100)

    fires(store, "metering-quota-100", Q1)


def test_quotas_of_other_times_and_deleted_ones_do_not_count(store: Store) -> None:
    ended = f"toDateTime64('{NOW - DAY:%F %T}', 3, 'UTC')"
    coming = f"toDateTime64('{NOW + DAY:%F %T}', 3, 'UTC')"
    quota(store, 200, period_end=ended)
    quota(store, 200, period_start=coming)
    quota(store, 200, quota_id="'q2'", is_deleted="true")
    quota(store, 200, quota_id="'q3'", quantity_limit="0")

    for uid in ("metering-quota-80", "metering-quota-100", "metering-quota-overrun"):
        silent(store, uid)


def test_a_quota_without_end_counts(store: Store) -> None:
    quota(store, 120, period="'lifetime'", period_end="NULL")

    fires(store, "metering-quota-100", {**Q1, "period": "lifetime"})
    silent(store, "metering-quota-overrun")


def test_of_two_periods_of_a_quota_the_later_one_counts(store: Store) -> None:
    """Its anchor was changed: both are now."""
    quota(store, 120)
    quota(store, 10, period_start=f"toDateTime64('{NOW - DAY:%F %T}', 3, 'UTC')")

    silent(store, "metering-quota-100")


def test_a_quota_recovers_below_75_percent_and_does_not_flap(store: Store) -> None:
    simulation = Simulation(RULES["metering-quota-80"], MINUTE, Source(store))
    found = []
    shares = [81, 81, 81, 79, 81, 79, 76, 79, 81, 74, 74, 74, 74, 74, 74, 74]
    for minute, used in enumerate(shares):
        at = NOW + minute * MINUTE
        quota(store, used, updated_at=f"toDateTime64('{at:%F %T}', 3, 'UTC')")
        found.append(bool(simulation.evaluate(at)))

    # Three to wait, and five more minutes of the good value.
    assert found == [False, False, *[True] * 12, False, False]


def test_a_quota_that_goes_on_like_this_will_not_last(store: Store) -> None:
    # Half of the period is over.
    quota(store, 49, quota_id="'q2'")
    quota(store, 51)

    fires(store, "metering-quota-overrun", PROJECTED)


def test_a_projection_needs_a_fifth_of_the_period(store: Store) -> None:
    quota(store, 30, period_start=f"toDateTime64('{NOW - 3 * DAY:%F %T}', 3, 'UTC')")

    silent(store, "metering-quota-overrun")


def test_a_projection_is_of_days_weeks_and_months_that_are_now(store: Store) -> None:
    quota(store, 60, quota_id="'gone'", is_deleted="true")
    quota(
        store,
        60,
        quota_id="'hourly'",
        period="'hour'",
        period_start=moment(NOW - 30 * MINUTE),
        period_end=moment(NOW + 30 * MINUTE),
    )
    quota(
        store,
        60,
        quota_id="'before'",
        period_start=moment(NOW - 40 * DAY),
        period_end=moment(NOW - 10 * DAY),
        updated_at=moment(NOW - 30 * DAY),
    )
    quota(store, 60, quota_id="'week'", period="'week'")

    fires(store, "metering-quota-overrun", {**PROJECTED, "quota_id": "week", "period": "week"})


def test_a_quota_that_is_used_up_is_not_projected(store: Store) -> None:
    quota(store, 100)

    silent(store, "metering-quota-overrun")
