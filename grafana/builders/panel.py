"""A panel, its queries, links and columns: types of our own, and how Grafana's SDK has them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, Required, TypedDict

from grafana_foundation_sdk.cog import variants
from grafana_foundation_sdk.models import dashboard as sdk

from grafana.builders.variables import PLUGIN_VERSION, datasource

# Colours by meaning, the same everywhere.
GOOD: Final = "green"
WARNING: Final = "orange"
BAD: Final = "red"
NEUTRAL: Final = "blue"
MUTED: Final = "text"

Kind = Literal["stat", "timeseries", "table", "bargauge", "gauge", "piechart", "barchart"]
Steps = Sequence[tuple[float | None, str]]
"""(lower bound, colour); the first bound is None."""

PLAIN: Final[Steps] = ((None, NEUTRAL),)
USED: Final[Steps] = ((None, GOOD), (0.8, WARNING), (1.0, BAD))
"""Of a part of a limit that was used, where 1 is all of it."""
ANY_IS_BAD: Final[Steps] = ((None, GOOD), (1, BAD))
ANY_IS_WARNING: Final[Steps] = ((None, GOOD), (1, WARNING))


@dataclass(frozen=True, slots=True, kw_only=True)
class Target(variants.Dataquery):
    """A query to the ClickHouse plugin.

    Attributes:
        sql: As the plugin gets it, with macros and variables.
        series: A time column first and ascending; text columns become labels. Else a table.
        ref_id: Its name in the panel.
    """

    sql: str
    series: bool = False
    ref_id: str = "A"

    def to_json(self) -> dict[str, object]:
        """As in a dashboard's file. `queryType` is for the editor, `format` for the plugin."""
        return {
            "refId": self.ref_id,
            "datasource": datasource(),
            "pluginVersion": PLUGIN_VERSION,
            "editorType": "sql",
            "queryType": "timeseries" if self.series else "table",
            "format": 0 if self.series else 1,
            "rawSql": self.sql,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A link of a value, or of a panel."""

    title: str
    url: str
    new_tab: bool = False

    def to_json(self) -> dict[str, object]:
        """As in a dashboard's file."""
        return {"title": self.title, "url": self.url, "targetBlank": self.new_tab}


def dashboard_link(
    title: str, uid: str, *, keep: Sequence[str] = (), values: Mapping[str, str] | None = None
) -> Link:
    """To another dashboard: the data source and the time are kept.

    Args:
        title: What is there.
        uid: Of the dashboard.
        keep: Variables that are kept as well.
        values: Variable -> where its value is from, as `${__data.fields.tenant}`.
    """
    kept = [f"${{{name}:queryparam}}" for name in ("datasource", *keep)]
    given = [f"var-{name}={value}" for name, value in (values or {}).items()]
    return Link(title=title, url=f"/d/{uid}?" + "&".join(["${__url_time_range}", *kept, *given]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """How one column of a table, or one series, differs from the panel's rule.

    Attributes:
        name: Of the column in the answer; what else it names, `matcher` says.
        matcher: Grafana's id of it: byName, byFrameRefID for all that one query answers, byRegexp, byType.
        title: Its header; None: its name.
        unit: Grafana's id of it; None: that of the panel.
        decimals: Digits behind the point.
        width: Pixels.
        steps: Thresholds that colour it.
        cell: How a table draws it.
        links: Where its values lead to.
        mappings: Value -> (text, colour).
        color: One fixed colour.
        align: Where its text stands.
        maximum: Where a gauge ends.
        properties: What else Grafana has.
    """

    name: str
    matcher: Literal["byName", "byFrameRefID", "byRegexp", "byType"] = "byName"
    title: str | None = None
    unit: str | None = None
    decimals: int | None = None
    width: int | None = None
    steps: Steps | None = None
    cell: Literal["auto", "color-text", "color-background", "gauge", "json-view"] = "auto"
    links: Sequence[Link] = ()
    mappings: Mapping[str, tuple[str, str]] | None = None
    color: str | None = None
    align: Literal["left", "center", "right"] | None = None
    maximum: float | None = None
    properties: Mapping[str, object] | None = None

    def build(self) -> sdk.DashboardFieldConfigSourceOverrides:
        """As Grafana has it."""
        found: dict[str, object | None] = {
            "displayName": self.title,
            "unit": self.unit,
            "decimals": self.decimals,
            "custom.width": self.width,
            "custom.align": self.align,
            "max": self.maximum,
            "min": 0 if self.maximum is not None else None,
            "thresholds": thresholds(self.steps) if self.steps else None,
            "color": _color(self.color) if self.color else None,
            "links": list(self.links) or None,
            "mappings": [value_map(self.mappings)] if self.mappings else None,
            "custom.cellOptions": _cell(self.cell),
            **(self.properties or {}),
        }
        if self.steps and not self.color:
            found["color"] = sdk.FieldColor(mode=sdk.FieldColorModeId.THRESHOLDS)
        return sdk.DashboardFieldConfigSourceOverrides(
            matcher=sdk.MatcherConfig(id_val=self.matcher, options=self.name),
            properties=[
                sdk.DynamicConfigValue(id_val=name, value=value)
                for name, value in found.items()
                if value is not None
            ],
        )


class Common(TypedDict, total=False):
    """What any panel is given; the first four always. Meanings: `Panel`."""

    title: Required[str]
    description: Required[str]
    unit: Required[str]
    no_value: Required[str]
    decimals: int
    minimum: float
    maximum: float
    steps: Steps
    columns: Sequence[Column]
    links: Sequence[Link]
    data_links: Sequence[Link]
    mappings: Mapping[str, tuple[str, str]]
    display_name: str
    interval: str
    time_from: str
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A panel, without its place.

    Attributes:
        kind: Grafana's id of it.
        title: Unique in its dashboard; variables in it are expanded.
        description: What it shows and how it is counted.
        unit: Grafana's id of it.
        no_value: What it means when there is nothing to show.
        targets: Its queries.
        options: Of its kind.
        custom: Of its kind, for each field.
        color_mode: How values, or series, get their colours.
        decimals: Digits behind the point; None: as many as are needed.
        minimum: Where an axis or a gauge begins.
        maximum: Where it ends.
        steps: Thresholds.
        columns: What differs by column or series.
        links: In the panel's corner.
        data_links: Of its values.
        mappings: Value -> (text, colour).
        display_name: Name of a series, as `${__field.labels.meter}`.
        interval: Shortest interval of the macros, as `1m`.
        time_from: Another time than the dashboard's, as `30d`.
        width: Of 24 columns.
        height: In rows of 30 pixels or so.
    """

    kind: Kind
    title: str
    description: str
    unit: str
    no_value: str
    targets: Sequence[Target]
    options: object
    custom: object | None = None
    color_mode: sdk.FieldColorModeId = sdk.FieldColorModeId.THRESHOLDS
    decimals: int | None = None
    minimum: float | None = None
    maximum: float | None = None
    steps: Steps = PLAIN
    columns: Sequence[Column] = ()
    links: Sequence[Link] = ()
    data_links: Sequence[Link] = ()
    mappings: Mapping[str, tuple[str, str]] | None = None
    display_name: str | None = None
    interval: str | None = None
    time_from: str | None = None
    width: int = 12
    height: int = 8

    def sized(self, width: int, height: int) -> "Panel":
        """The same in another size."""
        return replace(self, width=width, height=height)

    def build(self, panel_id: int, place: sdk.GridPos) -> sdk.Panel:
        """As Grafana has it.

        Args:
            panel_id: Unique in the dashboard.
            place: Where it stands.
        """
        defaults = sdk.FieldConfig(
            unit=self.unit,
            decimals=self.decimals,
            min_val=self.minimum,
            max_val=self.maximum,
            thresholds=thresholds(self.steps),
            color=sdk.FieldColor(mode=self.color_mode),
            no_value=self.no_value,
            display_name=self.display_name,
            custom=self.custom,
        )
        if self.data_links:
            defaults.links = list(self.data_links)  # type: ignore[arg-type] # the SDK's type is that of panels
        if self.mappings:
            defaults.mappings = [value_map(self.mappings)]
        return sdk.Panel(
            type_val=self.kind,
            id_val=panel_id,
            title=self.title,
            description=self.description,
            datasource=datasource(),
            grid_pos=place,
            targets=list(self.targets),
            links=list(self.links) or None,  # type: ignore[arg-type] # as above
            interval=self.interval,
            time_from=self.time_from,
            transparent=None,
            options=self.options,
            field_config=sdk.FieldConfigSource(
                defaults=defaults, overrides=[column.build() for column in self.columns]
            ),
        )


def thresholds(steps: Steps) -> sdk.ThresholdsConfig:
    """Thresholds as Grafana has them."""
    return sdk.ThresholdsConfig(
        mode=sdk.ThresholdsMode.ABSOLUTE,
        steps=[sdk.Threshold(value=value, color=color) for value, color in steps],
    )


def value_map(texts: Mapping[str, tuple[str, str]]) -> sdk.ValueMap:
    """Value -> (text, colour), as Grafana has it."""
    return sdk.ValueMap(
        options={
            value: sdk.ValueMappingResult(text=text, color=color, index=index)
            for index, (value, (text, color)) in enumerate(texts.items())
        }
    )


def _color(color: str) -> sdk.FieldColor:
    return sdk.FieldColor(mode=sdk.FieldColorModeId.FIXED, fixed_color=color)


def _cell(cell: str) -> dict[str, object] | None:
    if cell == "auto":
        return None
    if cell == "gauge":
        return {"type": "gauge", "mode": "basic", "valueDisplayMode": "text"}
    if cell == "color-background":
        return {"type": "color-background", "mode": "basic"}
    return {"type": cell}
