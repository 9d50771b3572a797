"""Pipeline health: what each stage took in, passed on and refused, and how long it took."""

from collections.abc import Sequence

from grafana.builders import sql
from grafana.builders.dashboard import Dashboard
from grafana.builders.layout import Row
from grafana.builders.panel import (
    ANY_IS_BAD,
    ANY_IS_WARNING,
    BAD,
    GOOD,
    MUTED,
    PLAIN,
    WARNING,
    Column,
    Panel,
    Steps,
    dashboard_link,
)
from grafana.builders.panels import stat, table, timeseries
from grafana.builders.variables import Variable, query_variable

STATS = "metering.pipeline_stats"
EMPTY = "The receiver reported nothing in this time"
NOTHING = "Nothing of that in this time"
_WORST = (
    "Percentiles are those of ten seconds each; a point is the highest of its time, by instance."
)


def build() -> Dashboard:
    """The dashboard."""
    return Dashboard(
        uid="metering-pipeline",
        title="Metering / Pipeline health",
        description="The receiver's own numbers, stage by stage: in = out + refused, what waits, and how long things take.",
        variables=(_instance(),),
        time_from="now-6h",
        rows=(
            Row(panels=_figures()),
            Row(title="Does it add up", panels=(_balance(), _between())),
            Row(title="Edge: requests", panels=_edge()),
            Row(title="Ingest: uses of meters", panels=_ingest()),
            Row(title="Spool: durable, not stored yet", panels=_spool()),
            Row(title="Writer: into the database", panels=_writer()),
            Row(title="Memory, meters.yaml, quota counters", panels=_rest()),
        ),
    )


def _instance() -> Variable:
    return query_variable(
        name="instance",
        label="Instance",
        description="Receivers that reported in the chosen time. None chosen: all of them.",
        sql=(
            f"SELECT DISTINCT toString(instance) AS instance FROM {STATS} WHERE stage = 'spool' AND name = 'size' "
            "AND stat = 'value' AND $__timeFilter(at) ORDER BY instance LIMIT 1000"
        ),
    )


def counted(stage: str, names: Sequence[str] | str, kind: str = "delta") -> str:
    """Condition: these numbers of the chosen time and instances, in the order of the table's key."""
    listed = (names,) if isinstance(names, str) else tuple(names)
    of = f"name = '{listed[0]}'" if len(listed) == 1 else f"name IN {listed}"
    return (
        f"stage = '{stage}' AND {of} AND stat = '{kind}' AND $__timeFilter(at) "
        f"AND {sql.chosen('instance', 'instance')}"
    )


def _total(stage: str, name: str, kind: str = "delta") -> str:
    return f"(SELECT sum(value) FROM {STATS} WHERE {counted(stage, name, kind)})"


def _latest(stage: str, name: str) -> str:
    """The last value of a gauge, of all instances that reported in the last five minutes together."""
    return (
        f"SELECT sum(latest) AS value FROM (SELECT argMax(value, at) AS latest FROM {STATS} "
        f"WHERE {counted(stage, name, 'value')} AND at > $__toTime - INTERVAL 5 MINUTE "
        "GROUP BY instance) HAVING count() > 0"
    )


def _highest_latest(stage: str, name: str) -> str:
    return _latest(stage, name).replace("sum(latest)", "max(latest)")


def _figures() -> tuple[Panel, ...]:
    told: tuple[tuple[str, str, str, str, Steps], ...] = (
        (
            "Last report",
            "How long before the end of the chosen time a receiver last wrote its numbers; every ten seconds is "
            "normal.",
            (
                "SELECT toFloat64(dateDiff('second', max(at), $__toTime)) AS value "
                f"FROM {STATS} WHERE {counted('spool', 'size', 'value')} HAVING count() > 0"
            ),
            "s",
            ((None, GOOD), (60, WARNING), (300, BAD)),
        ),
        (
            "Requests refused",
            "Part of the requests that were answered by an error. A sender that gets one of these reasons for good drops "
            "its data: see the reasons below.",
            (
                f"SELECT if(requests = 0, NULL, {_total('edge', 'refused')} / requests) AS value "
                f"FROM (SELECT {_total('edge', 'in')} AS requests)"
            ),
            "percentunit",
            ((None, GOOD), (0.01, WARNING), (0.05, BAD)),
        ),
        (
            "Duplicates",
            "Part of the uses that had been sent before, and count once.",
            (
                "SELECT if(uses = 0, NULL, duplicates / uses) AS value FROM (SELECT "
                "sumIf(value, name = 'in') AS uses, sumIf(value, name = 'refused' AND reason = 'duplicate') AS duplicates "
                f"FROM {STATS} WHERE {counted('ingest', ('in', 'refused'))})"
            ),
            "percentunit",
            ((None, GOOD), (0.05, WARNING), (0.25, BAD)),
        ),
        (
            "Waiting in the spool",
            "Bytes that are durable and not in the database yet, at the end of the chosen time. At "
            "METERING_MAX_SPOOL_BYTES (16 GiB unless set) senders have to wait.",
            _latest("spool", "size"),
            "bytes",
            ((None, GOOD), (2**30, WARNING), (8 * 2**30, BAD)),
        ),
        (
            "Oldest waits",
            "How long the oldest entry of a spool has waited, at the end of the chosen time. Usage is visible when it is stored.",
            _highest_latest("spool", "oldest_age"),
            "s",
            ((None, GOOD), (10, WARNING), (60, BAD)),
        ),
        (
            "Visible after (p99)",
            "99 % of rows were stored at most this long after they were admitted: the highest of the last five minutes.",
            (
                f"SELECT max(value) AS value FROM {STATS} WHERE {counted('writer', 'lag', 'p99')} "
                "AND at > $__toTime - INTERVAL 5 MINUTE HAVING count() > 0"
            ),
            "s",
            ((None, GOOD), (10, WARNING), (60, BAD)),
        ),
        (
            "In quarantine",
            "Uses that went into quarantine in the chosen time: valid, and nobody bills them.",
            (
                f"SELECT sum(value) AS value FROM {STATS} WHERE {counted('ingest', 'refused')} "
                "AND startsWith(reason, 'quarantined.')"
            ),
            "short",
            ANY_IS_WARNING,
        ),
        (
            "meters.yaml",
            "Whether the file of meters was right when it was last read. If not, the meters before are in force.",
            _highest_latest("ingest", "meters_stale"),
            "none",
            ANY_IS_BAD,
        ),
    )
    return tuple(
        stat(
            title=title,
            description=text,
            sql=query,
            unit=unit,
            steps=steps,
            no_value="No report",
            width=3,
            **({"mappings": _STALE} if title == "meters.yaml" else {"decimals": _DECIMALS[unit]}),
        )
        for title, text, query, unit, steps in told
    )


_DECIMALS = {"s": 1, "percentunit": 2, "bytes": 1, "short": 0}
_STALE = {"0": ("in force", GOOD), "1": ("wrong", BAD)}

_STAGES = (
    ("edge, requests", "edge", "in", "out", "refused"),
    ("ingest, requests", "ingest", "requests_in", "requests_out", "requests_refused"),
    ("ingest, uses", "ingest", "in", "out", "refused"),
    (
        "ingest, corrections",
        "ingest",
        "corrections_in",
        "corrections_out",
        "corrections_refused",
    ),
    ("writer, rows", "writer", "in", "out", "refused"),
    ("keys, requests", "keys", "in", "out", "refused"),
)
"""What is counted, and its stage and names."""


def _balance() -> Panel:
    parts = (
        f"SELECT {place} AS place, '{title}' AS what, sumIf(value, name = '{arrived}') AS arrived, "
        f"sumIf(value, name = '{passed}') AS passed, sumIf(value, name = '{refused}') AS refused, "
        f"arrived - passed - refused AS missing FROM {STATS} WHERE {counted(stage, (arrived, passed, refused))} "
        "HAVING count() > 0"
        for place, (title, stage, arrived, passed, refused) in enumerate(_STAGES)
    )
    return table(
        title="In = out + refused",
        description="What each stage took in, passed on and refused in the chosen time. Under way is what is left: requests that "
        "have no answer yet, and what was counted just before or behind the edges of the chosen time. It stays small.",
        sql=(
            "SELECT what, arrived, passed, refused, missing FROM ("
            + " UNION ALL ".join(parts)
            + ") ORDER BY place LIMIT 20"
        ),
        unit="short",
        no_value=EMPTY,
        width=12,
        height=8,
        columns=(
            Column(name="what", title="Stage"),
            Column(name="arrived", title="In", unit="short"),
            Column(name="passed", title="Out", unit="short"),
            Column(name="refused", title="Refused", unit="short"),
            Column(name="missing", title="Under way", unit="short"),
        ),
    )


def _between() -> Panel:
    tied = (
        (
            "requests acknowledged by the edge, made durable by ingest",
            _total("edge", "out"),
            _total("ingest", "requests_out"),
        ),
        (
            "rows made durable, rows stored",
            _total("spool", "in"),
            _total("writer", "out"),
        ),
    )
    parts = (
        f"SELECT {place} AS place, '{title}' AS what, {first} AS first, {second} AS second, first - second AS difference"
        for place, (title, first, second) in enumerate(tied)
    )
    return table(
        title="From stage to stage",
        description="What one stage passed on, and what the next one has of it. Rows that wait in the spool are the second "
        "difference; what was counted just outside of the chosen time is in both.",
        sql=(
            "SELECT what, first, second, difference FROM ("
            + " UNION ALL ".join(parts)
            + f") WHERE (SELECT count() FROM {STATS} WHERE {counted('spool', 'size', 'value')}) > 0 "
            "ORDER BY place LIMIT 20"
        ),
        unit="short",
        no_value=EMPTY,
        width=12,
        height=8,
        columns=(
            Column(name="what", title="What"),
            Column(name="first", title="Before", unit="short", width=100),
            Column(name="second", title="Behind", unit="short", width=100),
            Column(name="difference", title="Difference", unit="short", width=100),
        ),
    )


def _rates(stage: str, names: Sequence[tuple[str, str]]) -> str:
    """Numbers of a stage, a second: zero where nothing was counted, a gap where nobody reported.

    A counter that stood still has no row, but the spool's size always has one.
    """
    columns = ", ".join(
        f"sumIf(value, stat = 'delta' AND name = '{name}') / $__interval_s AS {title}"
        for name, title in names
    )
    return (
        f"SELECT $__timeInterval(at) AS time, {columns} FROM {STATS} "
        f"WHERE ({counted(stage, [name for name, _ in names])}) OR ({counted('spool', 'size', 'value')}) "
        "GROUP BY time ORDER BY time LIMIT 20000"
    )


def _counts(stage: str, names: Sequence[str] | str, label: str, where: str = "1") -> str:
    """Counts by time and `label`."""
    return (
        f"SELECT $__timeInterval(at) AS time, {label} AS label, sum(value) AS count FROM {STATS} "
        f"WHERE {counted(stage, names)} AND {where} "
        "GROUP BY time, label ORDER BY time, label LIMIT 20000"
    )


def _levels(stage: str, name: str, label: str = "instance") -> str:
    """Highest value of a gauge by time; of each instance, or by another label, added up over instances."""
    return (
        "SELECT time, label, sum(highest) AS value FROM ("
        f"SELECT $__timeInterval(at) AS time, toString({label}) AS label, instance, max(value) AS highest FROM {STATS} "
        f"WHERE {counted(stage, name, 'value')} GROUP BY time, label, instance) "
        "GROUP BY time, label ORDER BY time, label LIMIT 20000"
    )


def _percentiles(stage: str, name: str, label: str = "''") -> str:
    """p50, p95 and p99 by time, and by a label."""
    text = f"concat(toString(stat), if({label} = '', '', concat(' ', {label})))"
    return (
        f"SELECT $__timeInterval(at) AS time, {text} AS label, max(value) AS seconds FROM {STATS} "
        f"WHERE stage = '{stage}' AND name = '{name}' AND stat IN ('p50', 'p95', 'p99') AND $__timeFilter(at) "
        f"AND {sql.chosen('instance', 'instance')} GROUP BY time, label ORDER BY time, label LIMIT 20000"
    )


_COLORS = (
    Column(name="in", color="blue"),
    Column(name="out", color="green"),
    Column(name="refused", color="red"),
)


def _flow(title: str, text: str, query: str, unit: str, width: int = 8) -> Panel:
    return timeseries(
        title=title,
        description=text,
        sql=query,
        unit=unit,
        no_value=EMPTY,
        legend=("mean", "max"),
        columns=_COLORS,
        interval="1m",
        width=width,
    )


def _bars(title: str, text: str, query: str, width: int = 8) -> Panel:
    return timeseries(
        title=title,
        description=text,
        sql=query,
        unit="short",
        no_value=NOTHING,
        bars=True,
        stacked=True,
        display_name="${__field.labels.label}",
        interval="1m",
        width=width,
    )


def _lines(
    title: str, text: str, query: str, unit: str, *, width: int = 8, steps: Steps = PLAIN
) -> Panel:
    return timeseries(
        title=title,
        description=text,
        sql=query,
        unit=unit,
        no_value=EMPTY,
        legend=("lastNotNull", "max"),
        display_name="${__field.labels.label}",
        interval="1m",
        width=width,
        steps=steps,
        threshold_line=steps is not PLAIN,
    )


_THREE = (("in", '"in"'), ("out", "out"), ("refused", "refused"))
_TRANSPORT = "labels['transport']"


def _edge() -> tuple[Panel, ...]:
    return (
        _flow(
            "Requests in, out and refused",
            "Requests that arrived, were acknowledged (what they brought is durable), and were answered by an error, a second.",
            _rates("edge", _THREE),
            "reqps",
        ),
        _bars(
            "Requests by door",
            "Requests that arrived, by transport: OTLP over gRPC and HTTP, events as JSON (api), replays from quarantine.",
            _counts("edge", "in", f"{_TRANSPORT}"),
        ),
        _bars(
            "Refused requests by reason",
            "Requests that were answered by an error. unavailable, spool_full, rate_limited and slow_request are sent again; the "
            "others are for good, and the sender drops its data. cancelled: the sender left.",
            _counts("edge", "refused", "toString(reason)"),
        ),
        _lines(
            "Acknowledgement takes",
            f"From a request received to its acknowledgement, fsync included, by transport. {_WORST}",
            _percentiles("edge", "ack_duration", _TRANSPORT),
            "s",
            width=16,
        ),
        _lines(
            "Open connections",
            "Connections by transport; the highest of each time.",
            _levels("edge", "connections", _TRANSPORT),
            "short",
        ),
    )


def _ingest() -> tuple[Panel, ...]:
    quality = dashboard_link("Data quality", "metering-quality")
    return (
        _flow(
            "Uses in, out and refused",
            "Uses of a meter in acknowledged requests, those stored for the first time, and those that were not stored as usage, "
            "a second.",
            _rates("ingest", _THREE),
            "cps",
        ),
        _bars(
            "Uses that were not stored, by reason",
            "duplicate: sent before. unchanged: a cumulative point that adds nothing. ignored: no usage. rejected: events of "
            "the JSON API that are wrong. Those in quarantine are in the panel beside.",
            _counts(
                "ingest", "refused", "toString(reason)", "NOT startsWith(reason, 'quarantined.')"
            ),
        ),
        timeseries(
            title="Into quarantine, by reason",
            description="Uses that are valid and cannot be billed as they are. They can be replayed when the cause is mended.",
            sql=_counts(
                "ingest",
                "refused",
                "substring(reason, length('quarantined.') + 1)",
                "startsWith(reason, 'quarantined.')",
            ),
            unit="short",
            no_value="Nothing went into quarantine in this time",
            bars=True,
            stacked=True,
            display_name="${__field.labels.label}",
            interval="1m",
            links=(quality,),
            width=8,
        ),
        timeseries(
            title="Duplicates",
            description="Part of the uses that had been sent before. They count once; many of them mean a sender whose "
            "acknowledgements get lost.",
            sql=(
                "SELECT time, if(uses = 0, 0, duplicates / uses) AS duplicates FROM (SELECT $__timeInterval(at) AS time, "
                "sumIf(value, name = 'in') AS uses, sumIf(value, name = 'refused' AND reason = 'duplicate') AS duplicates "
                f"FROM {STATS} WHERE {counted('ingest', ('in', 'refused'))} GROUP BY time) ORDER BY time LIMIT 20000"
            ),
            unit="percentunit",
            no_value=EMPTY,
            legend=("mean", "max"),
            interval="1m",
            width=8,
        ),
        _bars(
            "Corrections",
            "Events that were to be voided or replaced (corrections_in), that do not count any more (corrections_out), and that "
            "had been corrected before (corrections_refused).",
            _counts(
                "ingest",
                ("corrections_in", "corrections_out", "corrections_refused"),
                "toString(name)",
            ),
        ),
        table(
            title="Keys that wrote for other tenants",
            description="Usage of a tenant that its key may not write, by key: in quarantine as tenant_not_allowed.",
            sql=(
                "SELECT key_id, name, items, last_at FROM (SELECT labels['key_id'] AS key_id, sum(value) AS items, "
                f"max(at) AS last_at FROM {STATS} WHERE {counted('ingest', 'tenant_refused')} GROUP BY key_id) AS tried "
                "LEFT ANY JOIN (SELECT key_id, name FROM metering.api_keys FINAL) AS keys USING (key_id) "
                "ORDER BY items DESC, key_id LIMIT 100"
            ),
            unit="short",
            no_value="No key did in this time",
            width=8,
            columns=(
                Column(
                    name="key_id",
                    title="Key",
                    links=(dashboard_link("API keys", "metering-keys"),),
                ),
                Column(name="name", title="Name"),
                Column(name="items", title="Uses", unit="short"),
                Column(name="last_at", title="Last", unit="dateTimeFromNow"),
            ),
        ),
    )


def _spool() -> tuple[Panel, ...]:
    return (
        _lines(
            "Bytes that wait",
            "Bytes in each spool that wait for the database; the highest of each time. The line is half of the 16 GiB that a "
            "spool holds unless METERING_MAX_SPOOL_BYTES says otherwise.",
            _levels("spool", "size"),
            "bytes",
            steps=((None, GOOD), (8 * 2**30, BAD)),
        ),
        _lines(
            "Entries that wait",
            "Entries of each spool that wait for the database; the highest of each time.",
            _levels("spool", "entries"),
            "short",
        ),
        _lines(
            "Age of the oldest entry",
            "How long the oldest entry of each spool has waited; the highest of each time. More than ten seconds: usage is "
            "acknowledged and not visible.",
            _levels("spool", "oldest_age"),
            "s",
            steps=((None, GOOD), (10, WARNING)),
        ),
    )


def _writer() -> tuple[Panel, ...]:
    return (
        _flow(
            "Rows in, out and refused",
            "Rows of every attempt to store a batch, those stored, and those of failed attempts, which are tried again; a second.",
            _rates("writer", _THREE),
            "cps",
        ),
        _lines(
            "From admitted to stored",
            f"How long rows wait until they are in the database and in every rollup, for each row. {_WORST}",
            _percentiles("writer", "lag"),
            "s",
        ),
        _bars(
            "Batches, failures and retries",
            "Batches that were stored, attempts that failed, and attempts after one that failed.",
            _counts("writer", ("batches", "failures", "retries"), "toString(name)"),
        ),
        _bars(
            "Rows stored by table",
            "Rows stored in events, quarantine and corrections.",
            _counts("writer", "out", "labels['table']"),
            width=12,
        ),
        _bars(
            "Rows of failed attempts, by reason",
            "Rows of attempts that failed. None of them is lost: they wait in the spool and are tried again.",
            _counts("writer", "refused", "toString(reason)"),
            width=12,
        ),
    )


def _rest() -> tuple[Panel, ...]:
    return (
        _lines(
            "Identities in memory",
            "Identities of events by which a duplicate is known at once; older ones are looked up in the database.",
            _levels("ingest", "ids"),
            "short",
        ),
        _lines(
            "Memory of the identities",
            "Bytes of them, bounded by METERING_MAX_IDS_BYTES (1 GiB unless set).",
            _levels("ingest", "ids_size"),
            "bytes",
        ),
        _lines(
            "Streams in the cache",
            "Streams whose tenant, meter and dimensions are known without looking at a point's attributes again.",
            _levels("ingest", "streams"),
            "short",
        ),
        timeseries(
            title="meters.yaml",
            description="Changes that were applied (reloads), and whether the file was wrong (1: the meters before are in force).",
            sql=(
                "SELECT $__timeInterval(at) AS time, sumIf(value, name = 'meters_reloads') AS reloads, "
                "maxIf(value, name = 'meters_stale') AS wrong "
                f"FROM {STATS} WHERE stage = 'ingest' AND ((name = 'meters_reloads' AND stat = 'delta') OR "
                "(name = 'meters_stale' AND stat = 'value')) AND $__timeFilter(at) "
                f"AND {sql.chosen('instance', 'instance')} GROUP BY time ORDER BY time LIMIT 20000"
            ),
            unit="short",
            decimals=0,
            no_value=EMPTY,
            legend=("max",),
            columns=(Column(name="wrong", color=BAD),),
            interval="1m",
            width=8,
        ),
        _bars(
            "Quota counters",
            "loads: counters read from the database. corrections: counters that were wrong, and corrected. unavailable: answers "
            "without counters. load_failures, count_failures: tried again. outages, losses: Redis could not be reached, had "
            "lost its data.",
            _counts(
                "quota",
                (
                    "unavailable",
                    "loads",
                    "load_failures",
                    "count_failures",
                    "corrections",
                    "outages",
                    "losses",
                ),
                "toString(name)",
            ),
        ),
        stat(
            title="Intervals that are missing here",
            description="Intervals of ten seconds whose numbers could not be written within five minutes, and are lost. Usage "
            "does not depend on them.",
            sql=f"SELECT sum(value) AS value FROM {STATS} WHERE {counted('stats', 'lost')}",
            unit="short",
            decimals=0,
            no_value="None",
            steps=((None, MUTED), (1, WARNING)),
            width=8,
            height=9,
        ),
    )
