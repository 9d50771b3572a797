"""API keys: which work, which end soon, what each sends, and who is turned away."""

from grafana.builders.bars import on_grid
from grafana.builders.dashboard import Annotation, Dashboard
from grafana.builders.layout import Row
from grafana.builders.panel import (
    ANY_IS_BAD,
    ANY_IS_WARNING,
    BAD,
    GOOD,
    MUTED,
    NEUTRAL,
    PLAIN,
    WARNING,
    Column,
    Panel,
    Steps,
    dashboard_link,
)
from grafana.builders.panels import stat, table, timeseries

SOON_DAYS = 30
IDLE_DAYS = 30

_ENDS = "coalesce(least(expires_at, replaced_ends_at), expires_at, replaced_ends_at)"
_LAST = "nullIf(last_used, toDateTime64(0, 6, 'UTC'))"

KEYS = (
    "(SELECT key_id, name, scopes_text, tenant_id, created_at, revoked_at, rotated_to, "
    f"{_ENDS} AS ends_at, {_LAST} AS used_at, "
    "multiIf(revoked_at <= $__toTime, 'revoked', ends_at <= $__toTime, 'expired', "
    f"ends_at <= $__toTime + INTERVAL {SOON_DAYS} DAY, 'expiring', 'active') AS state, "
    "state IN ('active', 'expiring') AS works, "
    f"works AND coalesce(used_at, created_at) < $__toTime - INTERVAL {IDLE_DAYS} DAY AS is_idle "
    "FROM (SELECT key_id, name, arrayStringConcat(scopes, ', ') AS scopes_text, tenant_id, created_at, expires_at, "
    "revoked_at FROM metering.api_keys FINAL WHERE created_at <= $__toTime) AS keys "
    "LEFT ANY JOIN (SELECT replaces, argMin(key_id, (created_at, key_id)) AS rotated_to, "
    "argMin(replaced_ends_at, (created_at, key_id)) AS replaced_ends_at FROM metering.api_keys FINAL "
    "WHERE replaces != '' AND created_at <= $__toTime GROUP BY replaces) AS successors "
    "ON keys.key_id = successors.replaces "
    "LEFT ANY JOIN (SELECT key_id, max(last_used_at) AS last_used FROM metering.api_key_use GROUP BY key_id) AS uses "
    "USING (key_id))"
)
"""Every key that was made before the end of the chosen time, and its state then."""

_STATE_NOTE = "As of the end of the chosen time."
NO_KEYS = "No keys"

_NAMES = "(SELECT key_id, name FROM metering.api_keys FINAL)"

_STATES = {
    "active": ("active", GOOD),
    "expiring": ("ends soon", WARNING),
    "expired": ("expired", MUTED),
    "revoked": ("revoked", BAD),
}

_TO_TENANT = dashboard_link(
    "All usage of this tenant", "metering-tenant", values={"tenant": "${__data.fields.tenant}"}
)


def build() -> Dashboard:
    """The dashboard."""
    return Dashboard(
        uid="metering-keys",
        title="Metering / API keys",
        description="Keys of senders and readers: which work, which end soon, what each sends, who is turned away.",
        variables=(),
        annotations=(_changes(),),
        rows=(
            Row(panels=_figures()),
            Row(title="Keys", panels=(_all(),)),
            Row(title="Traffic", panels=_traffic()),
            Row(title="Turned away", panels=_refused()),
            Row(title="Changes", panels=(_audit(),)),
        ),
    )


def counted(name: str) -> str:
    """Condition: what the stage `keys` counted as `name` in the chosen time."""
    return f"stage = 'keys' AND name = '{name}' AND stat = 'delta' AND $__timeFilter(at)"


def _changes() -> Annotation:
    return Annotation(
        name="Changes of keys",
        sql=(
            "SELECT at AS time, concat(action, ' ', target, ' by ', key_id) AS text, action AS tags "
            "FROM metering.audit_log WHERE $__timeFilter(at) AND startsWith(action, 'key.') "
            "ORDER BY time LIMIT 200"
        ),
        color=NEUTRAL,
    )


def _figures() -> tuple[Panel, ...]:
    of_keys: tuple[tuple[str, str, str, Steps], ...] = (
        ("Active", "Keys that work, those that end soon included.", "works", PLAIN),
        (
            "Ending soon",
            f"Keys that work, and end within {SOON_DAYS} days: they expire, or were rotated.",
            "state = 'expiring'",
            ANY_IS_WARNING,
        ),
        (
            "Idle",
            f"Keys that work, and that nobody has used for {IDLE_DAYS} days.",
            "is_idle",
            ANY_IS_WARNING,
        ),
        ("Expired", "Keys whose time is over, rotated ones included.", "state = 'expired'", PLAIN),
        ("Revoked", "Keys that were stopped.", "state = 'revoked'", PLAIN),
    )
    states = tuple(
        stat(
            title=title,
            description=f"{text} {_STATE_NOTE}",
            sql=f"SELECT toFloat64(countIf({condition})) AS value FROM {KEYS} HAVING count() > 0",
            unit="short",
            decimals=0,
            steps=steps,
            no_value=NO_KEYS,
            width=3,
        )
        for title, text, condition, steps in of_keys
    )
    attempts: tuple[tuple[str, str, str, Steps], ...] = (
        (
            "Refused attempts",
            "Requests in the chosen time whose key was refused, whatever the reason.",
            f"SELECT sum(value) AS value FROM metering.pipeline_stats WHERE {counted('refused')}",
            PLAIN,
        ),
        (
            "With revoked keys",
            "Requests in the chosen time with a key that was revoked. Somebody still has it.",
            "SELECT sum(value) AS value FROM metering.pipeline_stats "
            f"WHERE {counted('refused')} AND reason = 'revoked'",
            ANY_IS_BAD,
        ),
        (
            "Revoked, let in",
            "Requests in the chosen time that were let through more than 30 s after their key was revoked. "
            "It is always 0: processes know of a revocation within 5 s.",
            (
                "SELECT sum(value) AS value FROM metering.pipeline_stats AS traffic "
                "INNER JOIN (SELECT key_id, revoked_at FROM metering.api_keys FINAL WHERE revoked_at IS NOT NULL) AS revoked "
                f"ON traffic.labels['key_id'] = revoked.key_id WHERE {counted('out')} "
                "AND at > revoked_at + INTERVAL 30 SECOND"
            ),
            ANY_IS_BAD,
        ),
    )
    return states + tuple(
        stat(
            title=title,
            description=text,
            sql=query,
            unit="short",
            decimals=0,
            steps=steps,
            no_value="None",
            width=3,
        )
        for title, text, query, steps in attempts
    )


def _all() -> Panel:
    return table(
        title="All keys",
        description="Every key, those that work first, by when they end. Requests are those of the chosen time; the last use is "
        f"known to about a minute. Idle: not used for {IDLE_DAYS} days. {_STATE_NOTE}",
        sql=(
            "SELECT key_id, name, state, scopes_text AS scopes, tenant_id AS tenant, requests, refused, "
            "used_at, if(is_idle, 'idle', '') AS idle, ends_at, "
            "if(works, dateDiff('second', $__toTime, ends_at), NULL) AS remaining, created_at, revoked_at, rotated_to "
            f"FROM {KEYS} AS keys LEFT ANY JOIN ("
            "SELECT labels['key_id'] AS key_id, sumIf(value, name = 'in') AS requests, "
            "sumIf(value, name = 'refused') AS refused FROM metering.pipeline_stats "
            "WHERE stage = 'keys' AND name IN ('in', 'refused') AND stat = 'delta' AND $__timeFilter(at) "
            "GROUP BY key_id) AS traffic USING (key_id) "
            "ORDER BY indexOf(['expiring', 'active', 'expired', 'revoked'], state), ends_at IS NULL, ends_at, key_id "
            "LIMIT 500"
        ),
        unit="short",
        no_value=NO_KEYS,
        height=12,
        columns=(
            Column(name="key_id", title="Key", width=125),
            Column(name="name", title="Name", width=135),
            Column(name="state", title="State", cell="color-text", mappings=_STATES, width=90),
            Column(name="scopes", title="May", width=125),
            Column(name="tenant", title="Only tenant", width=100, links=(_TO_TENANT,)),
            Column(name="requests", title="Requests", unit="short", width=90),
            Column(
                name="refused",
                title="Refused",
                unit="short",
                width=90,
                cell="color-text",
                steps=((None, MUTED), (1, WARNING)),
            ),
            Column(name="used_at", title="Last used", unit="dateTimeFromNow", width=120),
            Column(
                name="idle",
                title="Idle",
                width=60,
                cell="color-text",
                mappings={"idle": ("idle", WARNING)},
            ),
            Column(name="ends_at", title="Ends"),
            Column(
                name="remaining",
                title="Ends in",
                width=100,
                unit="s",
                decimals=1,
                cell="color-text",
                steps=((None, BAD), (3 * 86_400, WARNING), (SOON_DAYS * 86_400, MUTED)),
            ),
            Column(name="created_at", title="Made", unit="dateTimeFromNow", width=120),
            Column(name="revoked_at", title="Revoked", unit="dateTimeFromNow", width=120),
            Column(name="rotated_to", title="Rotated to"),
        ),
    )


def _by_key(name: str) -> str:
    """Requests by time and key; beyond the ten largest, all others together."""
    top = (
        "SELECT labels['key_id'] FROM metering.pipeline_stats "
        f"WHERE {counted(name)} GROUP BY 1 ORDER BY sum(value) DESC, 1 LIMIT 10"
    )
    return (
        "SELECT time, if(is_top, concat(if(id = '', '(unknown)', id), if(key_name = '', '', concat(' · ', key_name))), '(others)') AS key, "
        "sum(requests) AS requests FROM ("
        f"SELECT $__timeInterval(at) AS time, labels['key_id'] AS id, id IN ({top}) AS is_top, "
        "sum(value) AS requests FROM metering.pipeline_stats "
        f"WHERE {counted(name)} GROUP BY time, id) AS traffic "
        f"LEFT ANY JOIN (SELECT key_id AS id, name AS key_name FROM {_NAMES}) AS names USING (id) "
        "GROUP BY time, key ORDER BY time, key LIMIT 20000"
    )


def _traffic() -> tuple[Panel, ...]:
    empty = "No requests with a key in this time"
    return (
        timeseries(
            title="Requests by key",
            description="Requests that showed a key, by key; beyond the ten busiest, all others together. "
            "Requests of OTLP over gRPC and HTTP, of the query API and of the ClickHouse endpoint.",
            sql=_by_key("in"),
            unit="short",
            no_value=empty,
            bars=True,
            stacked=True,
            display_name="${__field.labels.key}",
            interval="10m",
            width=16,
        ),
        timeseries(
            title="Requests by door",
            description="Requests that showed a key, by where they came in: OTLP over gRPC or HTTP, the query API, "
            "the ClickHouse endpoint.",
            sql=(
                "SELECT $__timeInterval(at) AS time, labels['transport'] AS transport, sum(value) AS requests "
                f"FROM metering.pipeline_stats WHERE {counted('in')} "
                "GROUP BY time, transport ORDER BY time, transport LIMIT 20000"
            ),
            unit="short",
            no_value=empty,
            bars=True,
            stacked=True,
            display_name="${__field.labels.transport}",
            interval="10m",
            width=8,
        ),
    )


def _refused() -> tuple[Panel, ...]:
    empty = "No key was refused in this time"
    return (
        timeseries(
            title="Refused attempts by reason",
            description="Requests whose key was refused. unknown: nobody has this key. scope, tenant: the key is good, "
            "but not for this.",
            sql=on_grid(
                "SELECT $__timeInterval(at) AS time, toString(reason) AS reason, sum(value) AS requests "
                f"FROM metering.pipeline_stats WHERE {counted('refused')} GROUP BY time, reason",
                "reason",
                "requests",
            ),
            unit="short",
            no_value=empty,
            bars=True,
            stacked=True,
            display_name="${__field.labels.reason}",
            interval="10m",
            width=12,
            height=6,
        ),
        table(
            title="Traffic with revoked keys",
            description="Requests of the chosen time with keys that were revoked: all of them are refused. Find who "
            "still has the key; the transport says at which door it is shown.",
            sql=(
                "SELECT key_id, name, revoked_at, transport, attempts, last_at FROM ("
                "SELECT labels['key_id'] AS key_id, labels['transport'] AS transport, sum(value) AS attempts, "
                "max(at) AS last_at FROM metering.pipeline_stats "
                f"WHERE {counted('refused')} AND reason = 'revoked' GROUP BY key_id, transport) AS tried "
                "LEFT ANY JOIN (SELECT key_id, name, revoked_at FROM metering.api_keys FINAL) AS keys USING (key_id) "
                "ORDER BY attempts DESC, key_id, transport LIMIT 200"
            ),
            unit="short",
            no_value="No revoked key was shown in this time",
            width=12,
            height=6,
            columns=(
                Column(name="key_id", title="Key"),
                Column(name="name", title="Name"),
                Column(name="revoked_at", title="Revoked"),
                Column(name="transport", title="Door", width=90),
                Column(
                    name="attempts",
                    title="Attempts",
                    width=90,
                    unit="short",
                    cell="color-text",
                    steps=((None, BAD),),
                ),
                Column(name="last_at", title="Last", unit="dateTimeFromNow"),
            ),
        ),
        table(
            title="Who is refused",
            description="Refused requests of the chosen time by key, reason and where they came in. A key that nobody has is "
            "not named.",
            sql=(
                "SELECT if(key_id = '', '(unknown)', key_id) AS key, name, reason, transport, attempts, last_at FROM ("
                "SELECT labels['key_id'] AS key_id, toString(reason) AS reason, labels['transport'] AS transport, "
                "sum(value) AS attempts, max(at) AS last_at FROM metering.pipeline_stats "
                f"WHERE {counted('refused')} GROUP BY key_id, reason, transport) AS tried "
                f"LEFT ANY JOIN {_NAMES} AS keys USING (key_id) "
                "ORDER BY attempts DESC, key, reason, transport LIMIT 200"
            ),
            unit="short",
            no_value=empty,
            width=24,
            height=6,
            columns=(
                Column(name="key", title="Key"),
                Column(name="name", title="Name"),
                Column(name="reason", title="Reason"),
                Column(name="transport", title="Door"),
                Column(name="attempts", title="Attempts", unit="short"),
                Column(name="last_at", title="Last", unit="dateTimeFromNow"),
            ),
        ),
    )


def _audit() -> Panel:
    return table(
        title="Changes of keys and tokens",
        description="What was ordered about keys in the chosen time, by which key, the latest first; from the audit log, "
        "which is written before a change is made.",
        sql=(
            "SELECT at AS time, toString(action) AS action, target, key_id AS by, tenant_id AS tenant, request_id "
            "FROM metering.audit_log WHERE $__timeFilter(at) "
            "AND (startsWith(action, 'key.') OR startsWith(action, 'token.')) "
            "ORDER BY time DESC, audit_id LIMIT 200"
        ),
        unit="short",
        height=5,
        no_value="No key was changed in this time",
        columns=(
            Column(name="time", title="When"),
            Column(name="action", title="What"),
            Column(name="target", title="Key"),
            Column(name="by", title="By key"),
            Column(name="tenant", title="Tenant", links=(_TO_TENANT,)),
            Column(name="request_id", title="Request"),
        ),
    )
