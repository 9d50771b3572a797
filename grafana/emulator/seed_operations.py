"""Deterministic data of an installation at work: what dashboards and alert rules are tried on."""

from collections.abc import Collection
from datetime import datetime
from enum import StrEnum

from receiver.store.client import Store


class Sickness(StrEnum):
    """One thing that is wrong; each is made to be seen by one alert rule, or by one panel."""

    QUOTA_85 = "quota_85"
    """A tenant has used 85 % of a quota whose period is nearly over, so it will not pass the limit."""
    QUOTA_120 = "quota_120"
    """A tenant has used 120 % of a soft quota."""
    PROJECTED_OVERRUN = "projected_overrun"
    """A tenant has used 60 % of a quota in the first third of its period, and goes on so."""
    USAGE_SPIKE = "usage_spike"
    """A tenant uses ten times as much in the last hour as in an hour of the week before."""
    USAGE_STOPPED = "usage_stopped"
    """A tenant that used something in every hour of the week before uses nothing for three hours."""
    NOTHING_INGESTED = "nothing_ingested"
    """The receiver runs, and nobody has sent anything for twenty minutes."""
    STATS_SILENT = "stats_silent"
    """The receiver itself has not said anything for twenty minutes: no row in pipeline_stats."""
    REFUSALS = "refusals"
    """A tenth of the requests of the last twenty minutes is refused, by malformed_payload and spool_full."""
    SPOOL_FILLING = "spool_filling"
    """The spool has grown for twenty minutes, to 15 of its 16 GiB; its oldest entry waits as long."""
    WRITER_LAG = "writer_lag"
    """Rows of the last twenty minutes are stored a minute after they were admitted."""
    WRITER_FAILING = "writer_failing"
    """Every other attempt of the last twenty minutes to store a batch fails."""
    ROLLUP_DRIFT = "rollup_drift"
    """usage_hour has 7 units more in a closed hour of today than the events of that hour."""
    DUPLICATES = "duplicates"
    """Half of the uses of the last twenty minutes was sent before."""
    QUARANTINE_GROWING = "quarantine_growing"
    """Forty items went into quarantine in the last twenty minutes, and nobody resolved them."""
    CONFLICTS = "conflicts"
    """Five events came under ids that other events had, in the last twenty minutes."""
    METERS_STALE = "meters_stale"
    """meters.yaml is wrong; the meters before are in force."""
    KEY_EXPIRING = "key_expiring"
    """A key that is in use ends in two days."""
    REVOKED_KEY_USED = "revoked_key_used"
    """A key that was revoked days ago still sends, and is refused."""
    UNKNOWN_KEYS = "unknown_keys"
    """Somebody tries keys that nobody has."""
    TENANT_REFUSED = "tenant_refused"
    """A key that is bound to one tenant sends usage of another."""
    UNDEFINED_METER = "undefined_meter"
    """There is usage of a meter that nobody defined."""
    FUTURE_EVENTS = "future_events"
    """A sender's clock is two hours ahead."""
    LATE_EVENTS = "late_events"
    """Usage of yesterday arrives now."""


def seed_operations(store: Store, now: datetime, *, sick: Collection[Sickness] = ()) -> None:
    """Write a day of an installation's life, and five weeks of its tenants' use of language models.

    Args:
        store: Migrated.
        now: The moment that everything leads up to; with a time zone.
        sick: What is wrong; nothing: no alert rule has anything to say.
    """
