"""All alert rules together, on installations that are empty, healthy, sick and without a database."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import pytest

from grafana.emulator.alert_source import Source
from grafana.emulator.alerts import Simulation, duration
from grafana.emulator.seed_operations import seed_operations
from grafana.emulator.sickness import Sickness
from receiver.store.client import Store
from tests.grafana.alerts.engine import HOUR, MINUTE, NOW, outcome
from tests.grafana.alerts.files import RULES, interval_of


def test_nothing_but_the_heartbeat_fires_on_an_empty_engine(store: Store) -> None:
    fired = {uid for uid in RULES if not outcome(store, uid).is_silent}

    assert fired == {"metering-nothing-ingested"}


# What each sickness of the seed is about: rule -> labels of its instances.
TOKENS = {"tenant_id": "globex", "meter": "gen_ai.tokens"}
GLOBEX = {**TOKENS, "quota_id": "quota_globex", "period": "month", "enforcement": "hard"}
INITECH = {**GLOBEX, "tenant_id": "initech", "quota_id": "quota_initech", "enforcement": "soft"}
HERE = {"instance": "receiver-0"}
TOLD: Mapping[Sickness, Mapping[str, Sequence[Mapping[str, str]]]] = {
    Sickness.QUOTA_85: {"metering-quota-80": [GLOBEX]},
    Sickness.QUOTA_120: {"metering-quota-80": [INITECH], "metering-quota-100": [INITECH]},
    Sickness.PROJECTED_OVERRUN: {
        "metering-quota-overrun": [
            {**TOKENS, "tenant_id": "acme", "quota_id": "quota_acme", "period": "month"}
        ]
    },
    Sickness.USAGE_SPIKE: {"metering-usage-spike": [TOKENS]},
    Sickness.USAGE_STOPPED: {"metering-usage-stopped": [{**TOKENS, "tenant_id": "initech"}]},
    Sickness.NOTHING_INGESTED: {"metering-nothing-ingested": [{}]},
    Sickness.STATS_SILENT: {"metering-nothing-ingested": [{}]},
    Sickness.REFUSALS: {
        "metering-refusals": [{"reason": "malformed_payload"}, {"reason": "spool_full"}]
    },
    Sickness.SPOOL_FILLING: {"metering-spool-waiting": [HERE], "metering-spool-growing": [HERE]},
    Sickness.WRITER_LAG: {"metering-ingest-lag": [HERE]},
    Sickness.ROLLUP_DRIFT: {
        "metering-rollup-drift": [{"meter": "gen_ai.tokens", "rollup_table": "usage_hour"}]
    },
    Sickness.DUPLICATES: {"metering-duplicates": [{}]},
    Sickness.QUARANTINE_GROWING: {"metering-quarantine-growing": [{"reason": "no_tenant"}]},
    Sickness.METERS_STALE: {"metering-meters-stale": [HERE]},
    Sickness.KEY_EXPIRING: {
        "metering-key-expiring": [
            {"key_id": "mobile-gateway", "name": "Mobile gateway", "tenant_id": "(any)"}
        ]
    },
    Sickness.REVOKED_KEY_USED: {
        "metering-ended-key-used": [
            {"key_id": "contractor", "name": "Contractor", "reason": "revoked"}
        ]
    },
}
ALONE = {Sickness.NOTHING_INGESTED, Sickness.STATS_SILENT, Sickness.WRITER_LAG}
"""With these, others cannot be seen: no ratio of nothing; and while the spool fills, no row is stored late."""


def told(
    store: Store, length: timedelta = 20 * MINUTE
) -> dict[str, set[frozenset[tuple[str, str]]]]:
    """Rule -> instances that it fires for at the end of what was seeded."""
    found = {}
    for uid, rule in RULES.items():
        # What is from hours and days is as it is now for a while; the receiver's numbers end here.
        is_of_now = "pipeline_stats" in rule["data"][0]["model"]["rawSql"] or "quarantine" in uid
        start = NOW - length if is_of_now else NOW
        if alerts := outcome(store, uid, start=start, length=length).alerts:
            found[uid] = set(alerts)
    return found


def wanted(*sick: Sickness) -> dict[str, set[frozenset[tuple[str, str]]]]:
    found: dict[str, set[frozenset[tuple[str, str]]]] = {}
    for one in sick:
        for uid, instances in TOLD[one].items():
            found.setdefault(uid, set()).update(frozenset(each.items()) for each in instances)
    return found


def test_in_a_healthy_installation_nothing_fires(store: Store) -> None:
    seed_operations(store, NOW, hours=2)

    assert told(store) == {}


def test_all_that_is_wrong_at_once_is_told_and_nothing_else(store: Store) -> None:
    sick = [one for one in TOLD if one not in ALONE]
    seed_operations(store, NOW, sick=sick, hours=2)

    assert told(store) == wanted(*sick)


@pytest.mark.long
@pytest.mark.parametrize("sick", Sickness)
def test_what_is_wrong_alone_is_told_and_nothing_else(store: Store, sick: Sickness) -> None:
    seed_operations(store, NOW, sick=[sick], hours=2)

    assert told(store) == (wanted(sick) if sick in TOLD else {})


@pytest.mark.long
def test_four_healthy_hours_are_silent(store: Store) -> None:
    seed_operations(store, NOW, hours=12)

    assert told(store, 4 * HOUR) == {}


@pytest.mark.parametrize("uid", RULES)
def test_a_database_that_fails_is_told_once(empty: Store, uid: str) -> None:
    """By the rule about it; those that read much tell it as well."""
    rule = RULES[uid]
    broken = {**rule, "data": [_failing(rule["data"][0]), *rule["data"][1:]]}
    simulation = Simulation(broken, interval_of(uid), Source(empty))
    wait = duration(rule["for"])

    found = simulation.run(NOW, NOW + 2 * wait)

    names = {alert.name for alerts in found for alert in alerts}
    assert simulation.error
    if uid == "metering-datasource-failing":
        assert names == {rule["title"]}
        assert [bool(alerts) for alerts in found[:3]] == [False, False, True]
    elif rule["execErrState"] == "Error":
        assert names == {"DatasourceError"}
    else:
        assert names == set()


def _failing(query: Mapping[str, Any]) -> dict[str, Any]:
    model = {**query["model"], "rawSql": "SELECT toFloat64(throwIf(1)) AS value"}
    return {**query, "model": model}
