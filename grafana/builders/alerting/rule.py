"""What an alert rule is here, and how it is written into a provisioning file.

The file's shape is that of Grafana's provisioning (pkg/services/provisioning/alerting/rules_types.go), not that of
its HTTP API. Each rule is three steps: A asks the database for one number and some texts a row, B takes each row as
an instance (its texts are the labels), C compares.

`$` in a file is a trap: labels, names of groups and folders have variables of the environment put in; annotations
have, in some versions; a query has none, and there `$__toTime` has to stay. So `$` stands in queries only, and
templates say `.Labels` and `.Values`, which are the same as `$labels` and `$values`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Literal

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import expr
from grafana_foundation_sdk.models.common import DataSourceRef

from grafana.builders.variables import DATASOURCE_UID, PLUGIN

FOLDER: Final = "Metering Alerts"
"""Not the folder of the dashboards: which of the two is made first is not the same in every version."""

PRODUCT: Final = "metering"
"""Label of every rule, for policies to match."""

RUNBOOKS_URL: Final = "https://example.com/otel-metering/docs/runbooks"
"""Where docs/runbooks is published: there is no public address yet; `make grafana ARGS="--runbooks-url URL"` sets yours."""

SECONDS: Final = 1
MINUTES: Final = 60
HOURS: Final = 3600
DAYS: Final = 86400

_EXPRESSION: Final = "__expr__"


class Severity(StrEnum):
    """How soon somebody has to look."""

    WARNING = "warning"
    """In working hours."""
    CRITICAL = "critical"
    """Now."""


class NoData(StrEnum):
    """What a rule is when its query has no row."""

    OK = "OK"
    ALERTING = "Alerting"


class OnError(StrEnum):
    """What a rule is when its query fails."""

    KEEP_LAST = "KeepLast"
    """As before. The rule about the data source says that it fails, once, and not each rule again."""
    ERROR = "Error"
    """DatasourceError, at once: for queries that may fail while the others answer, because they read much."""
    ALERTING = "Alerting"
    """As if it were above its threshold."""


@dataclass(frozen=True, slots=True)
class Compare:
    """A comparison of a value with a limit."""

    how: Literal["gt", "gte", "lt", "lte"]
    limit: float


@dataclass(frozen=True, slots=True)
class Panel:
    """The panel that shows what a rule is about: uid of its dashboard, and its title there."""

    dashboard: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """An alert rule.

    Attributes:
        uid: Its name for ever, and that of its page in docs/runbooks. A rule that is dropped has to be named
            in `deleteRules` of some file: Grafana keeps what a file no longer has.
        title: The name of its alerts.
        sql: One number, named value, and texts, which name the instance.
        last_seconds: How far back it looks.
        delay_seconds: How far from now it ends: what has just happened may not be stored yet.
        fires: Beyond this an instance is wrong,
        recovers: and beyond this it is well again: not the same limit, so that it does not flap.
        for_seconds: How long it is wrong before it fires; at least two evaluations.
        keep_seconds: How long it fires on when it is well.
        severity: How soon somebody has to look.
        panel: What shows it.
        summary: Template of one line, for the title of a notification.
        description: Template of what that means.
        no_data: What it is without rows.
        on_error: What it is when the query fails.
    """

    uid: str
    title: str
    sql: str
    last_seconds: int
    delay_seconds: int = 0
    fires: Compare
    recovers: Compare | None
    for_seconds: int
    keep_seconds: int
    severity: Severity
    panel: Panel
    summary: str
    description: str
    no_data: NoData = NoData.OK
    on_error: OnError = OnError.KEEP_LAST


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rules that are evaluated together, one after the other; `interval_seconds` is a multiple of 10."""

    name: str
    interval_seconds: int
    rules: tuple[Rule, ...]


def duration(seconds: int) -> str:
    """As Prometheus writes it, in the largest unit that fits: 90 -> 90s, 300 -> 5m."""
    for unit, length in (("d", DAYS), ("h", HOURS), ("m", MINUTES)):
        if seconds and seconds % length == 0:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def group_as_file(
    group: Group, panel_ids: Mapping[Panel, int], runbooks_url: str
) -> dict[str, Any]:
    """`group` as a provisioning file has it.

    Args:
        group: The rules.
        panel_ids: Id of each panel that they name.
        runbooks_url: Where docs/runbooks is published.

    Raises:
        KeyError: A panel does not exist.
    """
    return {
        "orgId": 1,
        "name": group.name,
        "folder": FOLDER,
        "interval": duration(group.interval_seconds),
        "rules": [_rule(rule, group, panel_ids[rule.panel], runbooks_url) for rule in group.rules],
    }


def _rule(rule: Rule, group: Group, panel_id: int, runbooks_url: str) -> dict[str, Any]:
    return {
        "uid": rule.uid,
        "title": rule.title,
        "condition": "C",
        "data": [_query(rule, group), _step("B", _reduce()), _step("C", _threshold(rule))],
        "dashboardUid": rule.panel.dashboard,
        "panelId": panel_id,
        "noDataState": str(rule.no_data),
        "execErrState": str(rule.on_error),
        "for": duration(rule.for_seconds),
        "keepFiringFor": duration(rule.keep_seconds),
        "labels": {"severity": str(rule.severity), "product": PRODUCT},
        "annotations": {
            "summary": rule.summary,
            "description": rule.description,
            "runbook_url": f"{runbooks_url}/{rule.uid}.md",
        },
        "isPaused": False,
    }


def _query(rule: Rule, group: Group) -> dict[str, Any]:
    return {
        "refId": "A",
        "datasourceUid": DATASOURCE_UID,
        "relativeTimeRange": {
            "from": rule.last_seconds + rule.delay_seconds,
            "to": rule.delay_seconds,
        },
        "model": {
            "refId": "A",
            "datasource": {"type": PLUGIN, "uid": DATASOURCE_UID},
            "editorType": "sql",
            "queryType": "table",
            "format": 1,
            "intervalMs": group.interval_seconds * 1000,
            "maxDataPoints": 43200,
            "rawSql": rule.sql.strip(),
        },
    }


def _step(ref_id: str, model: object) -> dict[str, Any]:
    # Encoded and read again, so that the whole is plain values.
    plain = {"refId": ref_id, **json.loads(json.dumps(model, cls=JSONEncoder))}
    return {"refId": ref_id, "datasourceUid": _EXPRESSION, "model": plain}


def _reduce() -> expr.TypeReduce:
    """A row is a number already; what is no number (0 / 0) is dropped here."""
    return expr.TypeReduce(
        datasource=DataSourceRef(type_val=_EXPRESSION, uid=_EXPRESSION),
        expression="A",
        reducer="last",
        settings=expr.ExprTypeReduceSettings(mode="dropNN"),
    )


def _threshold(rule: Rule) -> expr.TypeThreshold:
    condition = expr.ExprTypeThresholdConditions(
        evaluator=expr.ExprTypeThresholdConditionsEvaluator([rule.fires.limit], rule.fires.how)
    )
    if rule.recovers is not None:
        condition.unload_evaluator = expr.ExprTypeThresholdConditionsUnloadEvaluator(
            [rule.recovers.limit], rule.recovers.how
        )
    return expr.TypeThreshold(
        datasource=DataSourceRef(type_val=_EXPRESSION, uid=_EXPRESSION),
        expression="B",
        conditions=[condition],
    )
