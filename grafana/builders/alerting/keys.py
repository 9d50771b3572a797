"""API keys: those that end soon, and those that ended and are used all the same."""

from typing import Final

from grafana.builders.alerting.rule import HOURS, MINUTES, Compare, Group, Panel, Rule, Severity

# A key that has a successor is meant to end.
_EXPIRING: Final = """
SELECT k.key_id AS key_id, k.name AS name, if(k.tenant_id = '', '(any)', k.tenant_id) AS tenant_id,
    dateDiff('minute', $__toTime, assumeNotNull(k.expires_at)) / 60 AS value
FROM metering.api_keys AS k FINAL
WHERE k.expires_at > $__toTime AND k.expires_at <= $__toTime + INTERVAL 96 HOUR AND k.revoked_at IS NULL
    AND k.key_id NOT IN (
        SELECT n.replaces FROM metering.api_keys AS n FINAL WHERE n.revoked_at IS NULL
    )
ORDER BY value, key_id
LIMIT 1000
"""

_ENDED: Final = """
SELECT used.key_id AS key_id, k.name AS name, used.reason AS reason, used.requests AS value
FROM (
    SELECT s.labels['key_id'] AS key_id, toString(s.reason) AS reason, sum(s.value) AS requests
    FROM metering.pipeline_stats AS s
    WHERE s.stage = 'keys' AND s.name = 'refused' AND s.stat = 'delta' AND s.reason IN ('revoked', 'expired') AND $__timeFilter(s.at)
    GROUP BY key_id, s.reason
) AS used
LEFT ANY JOIN (SELECT key_id, name FROM metering.api_keys FINAL) AS k ON k.key_id = used.key_id
ORDER BY value DESC, key_id, reason
LIMIT 1000
"""


def group() -> Group:
    """The rules about keys."""
    return Group(
        name="metering-keys",
        interval_seconds=MINUTES,
        rules=(
            Rule(
                uid="metering-key-expiring",
                title="An API key ends soon",
                sql=_EXPIRING,
                last_seconds=HOURS,
                fires=Compare("lt", 72),
                recovers=Compare("gt", 73),
                for_seconds=10 * MINUTES,
                keep_seconds=5 * MINUTES,
                severity=Severity.WARNING,
                panel=Panel("metering-keys", "All keys"),
                summary='Key {{ .Labels.name }} ({{ .Labels.key_id }}, tenant {{ .Labels.tenant_id }}) ends in {{ printf "%.0f" .Values.B.Value }} hours',
                description="Nothing takes its place. Whoever sends with it is refused from then on.",
            ),
            Rule(
                uid="metering-ended-key-used",
                title="A revoked or expired API key is used",
                sql=_ENDED,
                last_seconds=10 * MINUTES,
                fires=Compare("gt", 0),
                recovers=None,
                for_seconds=2 * MINUTES,
                keep_seconds=15 * MINUTES,
                severity=Severity.WARNING,
                panel=Panel("metering-keys", "Who is refused"),
                summary="Key {{ .Labels.name }} ({{ .Labels.key_id }}) is {{ .Labels.reason }}, and was used {{ .Values.B.Value }} times in ten minutes",
                description="A service was forgotten, whose usage is refused; or somebody has a key that they should not have.",
            ),
        ),
    )
