"""Names of the database: part of the contract with users, dashboards and queries."""

from typing import Final

DATABASE: Final = "metering"
EVENTS: Final = "metering.events"
QUARANTINE: Final = "metering.quarantine"
EXPLICIT_IDS: Final = "metering.explicit_ids"
API_KEYS: Final = "metering.api_keys"
API_KEY_USE: Final = "metering.api_key_use"
AUDIT_LOG: Final = "metering.audit_log"
PIPELINE_STATS: Final = "metering.pipeline_stats"
QUARANTINE_RESOLVED: Final = "metering.quarantine_resolved"
EVENT_CORRECTIONS: Final = "metering.event_corrections"
METERS: Final = "metering.meters"
METER_DEFINITIONS: Final = "metering.meter_definitions"
QUOTAS: Final = "metering.quotas"
QUOTA_USAGE: Final = "metering.quota_usage"
MIGRATIONS: Final = "metering.migrations"

USAGE_MINUTE: Final = "metering.usage_minute"
USAGE_HOUR: Final = "metering.usage_hour"
USAGE_DAY: Final = "metering.usage_day"
USAGE_MONTH: Final = "metering.usage_month"

ROLLUPS: Final = (USAGE_MINUTE, USAGE_HOUR, USAGE_DAY, USAGE_MONTH)
"""Finest first; each is fed by the one before, the first by the events."""
