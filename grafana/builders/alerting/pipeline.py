"""The receiver: whether usage arrives, is taken, and is stored in time.

A rule about a gauge looks back for less time than it waits before it fires: or one bad moment would stay in its
window until it does.
"""

from typing import Final

from grafana.builders.alerting.rule import (
    HOURS,
    MINUTES,
    Compare,
    Group,
    NoData,
    OnError,
    Panel,
    Rule,
    Severity,
)

MEBIBYTE: Final = 1 << 20

# Without a row the last one was in 1970.
_NOTHING: Final = """
SELECT toFloat64(dateDiff('second', max(s.at), $__toTime)) AS value
FROM metering.pipeline_stats AS s
WHERE s.stage = 'ingest' AND s.name = 'out' AND s.stat = 'delta' AND $__timeFilter(s.at)
"""

# Every table that a rule reads: those keep their state when their query fails, so that this one alone says so.
_DATASOURCE: Final = """
SELECT toFloat64(0 * count()) AS value
FROM (
    SELECT toString(stage) AS one FROM metering.pipeline_stats WHERE $__timeFilter(at) LIMIT 1
    UNION ALL SELECT toString(meter) FROM metering.events WHERE $__timeFilter(timestamp) LIMIT 1
    UNION ALL SELECT toString(meter) FROM metering.event_corrections WHERE $__timeFilter(timestamp) LIMIT 1
    UNION ALL SELECT toString(meter) FROM metering.usage_hour WHERE $__timeFilter(window_start) LIMIT 1
    UNION ALL SELECT toString(meter) FROM metering.usage_day WHERE $__timeFilter(window_start) LIMIT 1
    UNION ALL SELECT toString(meter) FROM metering.quota_usage WHERE $__timeFilter(updated_at) LIMIT 1
    UNION ALL SELECT toString(meter) FROM metering.meter_definitions WHERE $__timeFilter(updated_at) LIMIT 1
    UNION ALL SELECT key_id FROM metering.api_keys WHERE $__timeFilter(updated_at) LIMIT 1
    UNION ALL SELECT toString(reason) FROM metering.quarantine WHERE $__timeFilter(ingested_at) LIMIT 1
    UNION ALL SELECT toString(key_id) FROM metering.quarantine_resolved WHERE $__timeFilter(ingested_at) LIMIT 1
)
"""

_REFUSALS: Final = """
SELECT refused.reason AS reason, refused.requests / received.requests AS value
FROM (
    SELECT toString(s.reason) AS reason, sum(s.value) AS requests
    FROM metering.pipeline_stats AS s
    WHERE s.stage = 'edge' AND s.name = 'refused' AND s.stat = 'delta' AND s.reason != 'cancelled' AND $__timeFilter(s.at)
    GROUP BY s.reason
) AS refused
CROSS JOIN (
    SELECT sum(s.value) AS requests
    FROM metering.pipeline_stats AS s
    WHERE s.stage = 'edge' AND s.name = 'in' AND s.stat = 'delta' AND $__timeFilter(s.at)
) AS received
WHERE received.requests >= 20
ORDER BY value DESC, reason
LIMIT 100
"""


def _gauge(stage: str, name: str) -> str:
    """The last value of each receiver."""
    return f"""
SELECT toString(s.instance) AS instance, argMax(s.value, s.at) AS value
FROM metering.pipeline_stats AS s
WHERE s.stage = '{stage}' AND s.name = '{name}' AND s.stat = 'value' AND $__timeFilter(s.at)
GROUP BY s.instance
ORDER BY value DESC, instance
LIMIT 100
"""


_GROWTH: Final = """
SELECT toString(s.instance) AS instance, argMax(s.value, s.at) - argMin(s.value, s.at) AS value
FROM metering.pipeline_stats AS s
WHERE s.stage = 'spool' AND s.name = 'size' AND s.stat = 'value' AND $__timeFilter(s.at)
GROUP BY s.instance
ORDER BY value DESC, instance
LIMIT 100
"""

_LAG: Final = """
SELECT toString(s.instance) AS instance, max(s.value) AS value
FROM metering.pipeline_stats AS s
WHERE s.stage = 'writer' AND s.name = 'lag' AND s.stat = 'p99' AND $__timeFilter(s.at)
GROUP BY s.instance
ORDER BY value DESC, instance
LIMIT 100
"""


def group() -> Group:
    """The rules about the receiver."""
    return Group(
        name="metering-pipeline",
        interval_seconds=MINUTES,
        rules=(_datasource(), _nothing(), _refusals(), _spool(), _growth(), _lag(), _meters()),
    )


def _datasource() -> Rule:
    return Rule(
        uid="metering-datasource-failing",
        title="The metering database does not answer Grafana",
        sql=_DATASOURCE,
        last_seconds=HOURS,
        fires=Compare("gt", 0),
        recovers=None,
        for_seconds=2 * MINUTES,
        keep_seconds=2 * MINUTES,
        severity=Severity.CRITICAL,
        panel=Panel("metering-pipeline", "Last report"),
        summary="Grafana cannot read the metering database",
        description="While it cannot, the other alert rules stay as they are: nothing new is noticed. The error is in the annotation Error.",
        no_data=NoData.ALERTING,
        on_error=OnError.ALERTING,
    )


def _nothing() -> Rule:
    return Rule(
        uid="metering-nothing-ingested",
        title="No usage arrives",
        sql=_NOTHING,
        last_seconds=6 * HOURS,
        fires=Compare("gt", 600),
        recovers=Compare("lt", 300),
        for_seconds=2 * MINUTES,
        keep_seconds=2 * MINUTES,
        severity=Severity.CRITICAL,
        panel=Panel("metering-pipeline", "Uses in, out and refused"),
        summary="No usage was stored for more than ten minutes",
        description="Either nobody sends, or nothing gets through. What is not counted cannot be billed.",
        no_data=NoData.ALERTING,
    )


def _refusals() -> Rule:
    return Rule(
        uid="metering-refusals",
        title="Requests are refused",
        sql=_REFUSALS,
        last_seconds=10 * MINUTES,
        fires=Compare("gt", 0.01),
        recovers=Compare("lt", 0.005),
        for_seconds=5 * MINUTES,
        keep_seconds=10 * MINUTES,
        severity=Severity.WARNING,
        panel=Panel("metering-pipeline", "Refused requests by reason"),
        summary="{{ humanizePercentage .Values.B.Value }} of all requests are refused: {{ .Labels.reason }}",
        description="Senders try again if the reason is ours (unavailable, spool_full), and give up if it is theirs (malformed_payload, unauthenticated): that usage is lost unless they keep it.",
    )


def _spool() -> Rule:
    return Rule(
        uid="metering-spool-waiting",
        title="Acknowledged usage is not stored",
        sql=_gauge("spool", "oldest_age"),
        last_seconds=3 * MINUTES,
        fires=Compare("gt", 60),
        recovers=Compare("lt", 10),
        for_seconds=5 * MINUTES,
        keep_seconds=5 * MINUTES,
        severity=Severity.CRITICAL,
        panel=Panel("metering-pipeline", "Age of the oldest entry"),
        summary="{{ .Labels.instance }}: usage waits for the database for {{ humanizeDuration .Values.B.Value }}",
        description="It is safe on the receiver's disk, and in no total yet. When the spool is full, requests are refused.",
    )


def _growth() -> Rule:
    return Rule(
        uid="metering-spool-growing",
        title="The spool grows",
        sql=_GROWTH,
        last_seconds=15 * MINUTES,
        fires=Compare("gt", 64 * MEBIBYTE),
        recovers=Compare("lt", 8 * MEBIBYTE),
        for_seconds=5 * MINUTES,
        keep_seconds=5 * MINUTES,
        severity=Severity.WARNING,
        panel=Panel("metering-pipeline", "Bytes that wait"),
        summary="{{ .Labels.instance }}: the spool has grown by {{ humanize1024 .Values.B.Value }}B in 15 minutes",
        description="More arrives than the database takes. At METERING_MAX_SPOOL_BYTES requests are refused.",
    )


def _lag() -> Rule:
    return Rule(
        uid="metering-ingest-lag",
        title="Usage is stored late",
        sql=_LAG,
        last_seconds=2 * MINUTES,
        fires=Compare("gt", 10),
        recovers=Compare("lt", 5),
        for_seconds=5 * MINUTES,
        keep_seconds=5 * MINUTES,
        severity=Severity.WARNING,
        panel=Panel("metering-pipeline", "From admitted to stored"),
        summary="{{ .Labels.instance }}: one row in a hundred takes more than {{ humanizeDuration .Values.B.Value }} to be stored",
        description="From admitted to stored; usually that is less than two seconds. Totals and quotas in dashboards are behind by as much.",
    )


def _meters() -> Rule:
    return Rule(
        uid="metering-meters-stale",
        title="The definitions of meters are wrong",
        sql=_gauge("ingest", "meters_stale"),
        last_seconds=3 * MINUTES,
        fires=Compare("gt", 0),
        recovers=None,
        for_seconds=5 * MINUTES,
        keep_seconds=2 * MINUTES,
        severity=Severity.WARNING,
        panel=Panel("metering-pipeline", "meters.yaml"),
        summary="{{ .Labels.instance }}: meters.yaml has an error, and was not loaded",
        description="The definitions before are in force until it is corrected, or the receiver is started again: then it will not start.",
    )
