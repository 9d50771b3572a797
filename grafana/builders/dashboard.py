"""A dashboard: what it is called, its variables, rows, annotations and links, as the JSON that Grafana loads."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as sdk

from grafana.builders.layout import Row, place
from grafana.builders.panel import Target
from grafana.builders.variables import Variable, datasource, datasource_variable

SCHEMA_VERSION: Final = 42
TAG: Final = "metering"


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """Marks in every panel with a time axis.

    Attributes:
        name: Of its switch.
        sql: Columns time, text and, separated by commas, tags.
        color: Of the marks.
        enabled: Shown at first.
    """

    name: str
    sql: str
    color: str
    enabled: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """A dashboard.

    Attributes:
        uid: In its URL, for ever.
        title: As "Metering / Overview".
        description: What it answers.
        variables: Beside that of the data source, which is always the first.
        rows: From top to bottom.
        annotations: Beside those of Grafana itself.
        time_from: Begin of the time that is shown at first, as now-24h.
    """

    uid: str
    title: str
    description: str
    variables: Sequence[Variable]
    rows: Sequence[Row]
    annotations: Sequence[Annotation] = ()
    time_from: str = "now-24h"

    def build(self) -> sdk.Dashboard:
        """As Grafana's SDK has it."""
        variables = [datasource_variable(), *self.variables]
        return sdk.Dashboard(
            uid=self.uid,
            title=self.title,
            description=self.description,
            tags=[TAG],
            timezone="utc",
            editable=False,
            graph_tooltip=sdk.DashboardCursorSync.CROSSHAIR,
            time=sdk.DashboardDashboardTime(from_val=self.time_from, to="now"),
            timepicker=sdk.TimePickerConfig(),
            refresh="1m",
            schema_version=SCHEMA_VERSION,
            version=1,
            panels=place(self.rows),
            templating=sdk.DashboardDashboardTemplating(
                list_val=[variable.model for variable in variables]
            ),
            annotations=sdk.AnnotationContainer(
                list_val=[_own_annotations(), *(_annotation(one) for one in self.annotations)]
            ),
            links=[
                sdk.DashboardLink(
                    title="Metering",
                    type_val=sdk.DashboardLinkType.DASHBOARDS,
                    icon="external link",
                    tooltip="The other dashboards, with this time and these choices",
                    tags=[TAG],
                    as_dropdown=True,
                    include_vars=True,
                    keep_time=True,
                )
            ],
        )

    def to_json(self) -> dict[str, Any]:
        """As in its file. `id` is null: Grafana gives one."""
        encoded: dict[str, Any] = json.loads(json.dumps(self.build(), cls=JSONEncoder))
        return {"id": None, **encoded}

    def panel_id(self, title: str) -> int:
        """Id of the panel of this title.

        Raises:
            KeyError: There is none.
        """
        for panel in panels_of(self.to_json()):
            if panel["title"] == title:
                return int(panel["id"])
        raise KeyError(f"{self.title} has no panel {title!r}")


def panels_of(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """The panels of a dashboard's JSON without the rows' headers; those of closed rows as well."""
    found: list[dict[str, Any]] = []
    for panel in dashboard["panels"]:
        found.extend(panel.get("panels") or [] if panel["type"] == "row" else [panel])
    return found


def _own_annotations() -> sdk.AnnotationQuery:
    return sdk.AnnotationQuery(
        name="Annotations & Alerts",
        datasource=common.DataSourceRef(type_val="grafana", uid="-- Grafana --"),
        enable=True,
        hide=True,
        icon_color="rgba(0, 211, 255, 1)",
        type_val="dashboard",
        built_in=1,
    )


def _annotation(one: Annotation) -> sdk.AnnotationQuery:
    return sdk.AnnotationQuery(
        name=one.name,
        datasource=datasource(),
        enable=one.enabled,
        hide=False,
        icon_color=one.color,
        target=Target(sql=one.sql, ref_id="Anno"),
        built_in=None,
    )
