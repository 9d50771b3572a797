"""Pipeline health: what each stage took in, passed on and refused, and how long it took."""

from collections.abc import Sequence

from grafana.builders import sql
from grafana.builders.dashboard import Dashboard
from grafana.builders.dashboards.pipeline_figures import EMPTY, balance, between, figures
from grafana.builders.dashboards.pipeline_queries import (
    STATS,
    counted,
    counts,
    levels,
    percentiles,
    rates,
)
from grafana.builders.layout import Row
from grafana.builders.panel import (
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
            Row(panels=figures()),
            Row(title="Does it add up", panels=(balance(), between())),
            Row(title="Edge: requests", panels=_edge()),
            Row(title="Ingest: uses of meters", panels=_ingest()),
            Row(title="Spool: durable, not stored yet", panels=_spool()),
            Row(title="Writer: into the database", panels=_writer()),
            Row(title="Memory, meters.yaml, quota counters", panels=_rest(), collapsed=True),
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


_BAR = "5m"
"""A bar for each minute would be a wall."""

_COLORS = (
    # What comes in goes out: `in` is drawn first, and seen on both sides of `out`.
    Column(name="in", color="blue", properties={"custom.lineWidth": 3}),
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
        filled=False,
        interval="1m",
        width=width,
        height=7,
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
        interval=_BAR,
        width=width,
        height=7,
    )


def _lines(
    title: str,
    text: str,
    query: str,
    unit: str,
    *,
    width: int = 8,
    steps: Steps = PLAIN,
    columns: Sequence[Column] = (),
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
        height=7,
        filled=False,
        steps=steps,
        threshold_line=steps is not PLAIN,
        columns=columns,
    )


_THREE = (("in", '"in"'), ("out", "out"), ("refused", "refused"))
_TRANSPORT = "labels['transport']"
_PERCENTILES = {"p50": "green", "p95": "yellow", "p99": "orange"}
_SHADES = {"grpc": "super-light-", "http": "", "api": "dark-", "replay": "light-"}
"""By transport: a percentile has one colour, and each transport its shade of it."""


def _edge() -> tuple[Panel, ...]:
    return (
        _flow(
            "Requests in, out and refused",
            "Requests that arrived, were acknowledged (what they brought is durable), and were answered by an error, a second.",
            rates("edge", _THREE),
            "reqps",
        ),
        _bars(
            "Requests by door",
            "Requests that arrived, by transport: OTLP over gRPC and HTTP, events as JSON (api), replays from quarantine.",
            counts("edge", "in", f"{_TRANSPORT}"),
        ),
        _bars(
            "Refused requests by reason",
            "Requests that were answered by an error. unavailable, spool_full, rate_limited and slow_request are sent again; the "
            "others are for good, and the sender drops its data. cancelled: the sender left.",
            counts("edge", "refused", "toString(reason)"),
        ),
        _lines(
            "Acknowledgement takes",
            f"From a request received to its acknowledgement, fsync included, by transport. {_WORST}",
            percentiles("edge", "ack_duration", _TRANSPORT, kinds=("p50", "p99")),
            "s",
            width=16,
            columns=[
                Column(name=f"{kind} {transport}", color=f"{shade}{_PERCENTILES[kind]}")
                for kind in ("p50", "p99")
                for transport, shade in _SHADES.items()
            ],
        ),
        _lines(
            "Open connections",
            "Connections by transport; the highest of each time.",
            levels("edge", "connections", _TRANSPORT),
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
            rates("ingest", _THREE),
            "cps",
        ),
        _bars(
            "Uses that were not stored, by reason",
            "duplicate: sent before. unchanged: a cumulative point that adds nothing. ignored: no usage. rejected: events of "
            "the JSON API that are wrong. Those in quarantine are in the panel beside.",
            counts(
                "ingest", "refused", "toString(reason)", "NOT startsWith(reason, 'quarantined.')"
            ),
        ),
        timeseries(
            title="Into quarantine, by reason",
            description="Uses that are valid and cannot be billed as they are. They can be replayed when the cause is mended.",
            sql=counts(
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
            interval=_BAR,
            links=(quality,),
            width=8,
            height=7,
        ),
        timeseries(
            title="Duplicates over time",
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
            filled=False,
            interval="1m",
            width=8,
            height=7,
        ),
        _bars(
            "Corrections",
            "Events that were to be voided or replaced (corrections_in), that do not count any more (corrections_out), and that "
            "had been corrected before (corrections_refused).",
            counts(
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
            height=7,
            columns=(
                Column(
                    name="key_id",
                    title="Key",
                    links=(dashboard_link("API keys", "metering-keys"),),
                ),
                Column(name="name", title="Name"),
                Column(name="items", title="Uses", unit="short", width=80),
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
            levels("spool", "size"),
            "bytes",
            steps=((None, GOOD), (8 * 2**30, BAD)),
        ),
        _lines(
            "Entries that wait",
            "Entries of each spool that wait for the database; the highest of each time.",
            levels("spool", "entries"),
            "short",
        ),
        _lines(
            "Age of the oldest entry",
            "How long the oldest entry of each spool has waited; the highest of each time. More than ten seconds: usage is "
            "acknowledged and not visible.",
            levels("spool", "oldest_age"),
            "s",
            steps=((None, GOOD), (10, WARNING)),
        ),
    )


def _writer() -> tuple[Panel, ...]:
    return (
        _flow(
            "Rows in, out and refused",
            "Rows of every attempt to store a batch, those stored, and those of failed attempts, which are tried again; a second.",
            rates("writer", _THREE),
            "cps",
        ),
        _lines(
            "From admitted to stored",
            f"How long rows wait until they are in the database and in every rollup, for each row. {_WORST}",
            percentiles("writer", "lag"),
            "s",
            columns=[Column(name=kind, color=color) for kind, color in _PERCENTILES.items()],
        ),
        _bars(
            "Batches, failures and retries",
            "Batches that were stored, attempts that failed, and attempts after one that failed.",
            counts("writer", ("batches", "failures", "retries"), "toString(name)"),
        ),
        _bars(
            "Rows stored by table",
            "Rows stored in events, quarantine and corrections.",
            counts("writer", "out", "labels['table']"),
            width=12,
        ),
        _bars(
            "Rows of failed attempts, by reason",
            "Rows of attempts that failed. None of them is lost: they wait in the spool and are tried again.",
            counts("writer", "refused", "toString(reason)"),
            width=12,
        ),
    )


def _rest() -> tuple[Panel, ...]:
    return (
        _lines(
            "Identities in memory",
            "Identities of events by which a duplicate is known at once; older ones are looked up in the database.",
            levels("ingest", "ids"),
            "short",
        ),
        _lines(
            "Memory of the identities",
            "Bytes of them, bounded by METERING_MAX_IDS_BYTES (1 GiB unless set).",
            levels("ingest", "ids_size"),
            "bytes",
        ),
        _lines(
            "Streams in the cache",
            "Streams whose tenant, meter and dimensions are known without looking at a point's attributes again.",
            levels("ingest", "streams"),
            "short",
        ),
        timeseries(
            title="Reloads of meters.yaml",
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
            height=7,
        ),
        _bars(
            "Quota counters",
            "loads: counters read from the database. corrections: counters that were wrong, and corrected. unavailable: answers "
            "without counters. load_failures, count_failures: tried again. outages, losses: Redis could not be reached, had "
            "lost its data.",
            counts(
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
            height=7,
        ),
    )
