"""Pipeline health at a glance: figures, and whether what went in came out."""

from typing import Final

from grafana.builders.dashboards.pipeline_queries import (
    STATS,
    counted,
    highest_latest,
    latest,
    total,
)
from grafana.builders.panel import (
    ANY_IS_BAD,
    ANY_IS_WARNING,
    BAD,
    GOOD,
    WARNING,
    Column,
    Panel,
    Steps,
)
from grafana.builders.panels import stat, table

EMPTY: Final = "The receiver reported nothing in this time"


def figures() -> tuple[Panel, ...]:
    """The numbers at the top."""
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
                f"SELECT if(requests = 0, NULL, {total('edge', 'refused')} / requests) AS value "
                f"FROM (SELECT {total('edge', 'in')} AS requests)"
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
            "In the spool",
            "Bytes that are durable and not in the database yet, at the end of the chosen time. At "
            "METERING_MAX_SPOOL_BYTES (16 GiB unless set) senders have to wait.",
            latest("spool", "size"),
            "bytes",
            ((None, GOOD), (2**30, WARNING), (8 * 2**30, BAD)),
        ),
        (
            "Oldest waits",
            "How long the oldest entry of a spool has waited, at the end of the chosen time. Usage is visible when it is stored.",
            highest_latest("spool", "oldest_age"),
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
            highest_latest("ingest", "meters_stale"),
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


def balance() -> Panel:
    """In, out and refused of each stage."""
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


def between() -> Panel:
    """What a stage passed on, and what the next one has of it."""
    tied = (
        (
            "requests acknowledged by the edge, made durable by ingest",
            total("edge", "out"),
            total("ingest", "requests_out"),
        ),
        (
            "rows made durable, rows stored",
            total("spool", "in"),
            total("writer", "out"),
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
