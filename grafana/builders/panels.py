"""Panels: one function for each kind, with the looks that all dashboards share.

What a panel shows is the caller's; how it looks is decided here once: colours by meaning, legends as tables,
bars for usage and lines for levels, so that the dashboards read as one.
"""

from collections.abc import Sequence
from typing import Final, Literal, Unpack

from grafana_foundation_sdk.models import barchart as sdk_barchart
from grafana_foundation_sdk.models import bargauge as sdk_bargauge
from grafana_foundation_sdk.models import common, piechart
from grafana_foundation_sdk.models import dashboard as sdk
from grafana_foundation_sdk.models import gauge as sdk_gauge
from grafana_foundation_sdk.models import stat as sdk_stat
from grafana_foundation_sdk.models import table as sdk_table
from grafana_foundation_sdk.models import timeseries as sdk_timeseries

from grafana.builders.panel import MUTED, Column, Common, Panel, Target

_NOTHING: Final = "\N{EN DASH}"
_NULL: Final = {
    "type": "special",
    "options": {"match": "null", "result": {"text": _NOTHING, "color": MUTED, "index": 0}},
}
_ANY_TABLE: Final = (
    # `no_value` is for a panel without rows; in a cell it would stand in place of each empty value.
    Column(name="/.*/", matcher="byRegexp", properties={"noValue": _NOTHING, "mappings": [_NULL]}),
    Column(name="/^meter$/", matcher="byRegexp", properties={"custom.width": 190}),
    Column(name="time", matcher="byType", properties={"custom.width": 150}),
)
"""What holds in all tables, before a table's own columns. Columns share what is left, and are 150 wide at least where `min_width` says nothing."""


def stat(
    *,
    sql: str,
    percent_change: bool = False,
    colored: bool = False,
    change_is: Literal["neutral", "good", "bad"] = "neutral",
    series: bool = False,
    fields: str = "",
    **given: Unpack[Common],
) -> Panel:
    """One number, large.

    Args:
        sql: One row; the first number is shown. With `percent_change`: two rows, the earlier period first.
        percent_change: The change from the first row to the last is shown as well.
        colored: The thresholds colour the whole panel, else the number.
        change_is: What a rise means.
        series: The query has a time, and its course is drawn behind the number.
        fields: Name of the column that is shown; empty: each number.
        **given: See `Panel`.
    """
    change = {
        "neutral": common.PercentChangeColorMode.SAME_AS_VALUE,
        "good": common.PercentChangeColorMode.STANDARD,
        "bad": common.PercentChangeColorMode.INVERTED,
    }[change_is]
    sized = _sized(given, 4, 4)
    options = sdk_stat.Options(
        graph_mode=common.BigValueGraphMode.AREA if series else common.BigValueGraphMode.NONE,
        color_mode=common.BigValueColorMode.BACKGROUND
        if colored
        else common.BigValueColorMode.VALUE,
        justify_mode=common.BigValueJustifyMode.AUTO,
        text_mode=common.BigValueTextMode.AUTO,
        wide_layout=True,
        show_percent_change=percent_change,
        percent_change_color_mode=change,
        reduce_options=_last(fields),
        orientation=common.VizOrientation.AUTO,
        # The same in all stats: left alone, each takes the size that fills its panel.
        text=common.VizTextDisplayOptions(
            value_size=40 if sized["width"] >= 4 else 28,
            percent_size=16 if percent_change else None,
        ),
    )
    return Panel(
        kind="stat",
        targets=(Target(sql=sql, series=series),),
        options=options,
        **sized,
    )


def timeseries(
    *,
    sql: str | Sequence[Target],
    bars: bool = False,
    stacked: bool = False,
    filled: bool = True,
    legend: Sequence[str] = ("sum", "max"),
    axis_label: str | None = None,
    threshold_line: bool = False,
    **given: Unpack[Common],
) -> Panel:
    """Values over time: bars for what was used in a window, lines for what is at a moment.

    Args:
        sql: Time first and ascending, then text columns (labels), then numbers; or several such queries.
        bars: Bars instead of lines.
        stacked: On top of each other; for parts of one whole only.
        filled: Lines have a shade below; not good where several lie close together.
        legend: Figures beside each name; none: names alone. A wide panel has them at its right, where there is room for
            more than three series; a narrow one has names alone, below.
        axis_label: What the axis counts.
        threshold_line: Thresholds are drawn as dashed lines.
        **given: See `Panel`.
    """
    targets = (Target(sql=sql, series=True),) if isinstance(sql, str) else tuple(sql)
    lines = common.GraphThresholdsStyleMode
    custom = common.GraphFieldConfig(
        draw_style=common.GraphDrawStyle.BARS if bars else common.GraphDrawStyle.LINE,
        line_interpolation=common.LineInterpolation.LINEAR,
        line_width=1,
        fill_opacity=80 if bars else 10 * filled,
        gradient_mode=common.GraphGradientMode.NONE,
        show_points=common.VisibilityMode.NEVER if bars else common.VisibilityMode.AUTO,
        span_nulls=False,
        axis_soft_min=0,
        axis_label=axis_label,
        stacking=common.StackingConfig(
            mode=common.StackingMode.NORMAL if stacked else common.StackingMode.NONE, group="A"
        ),
        thresholds_style=common.GraphThresholdsStyleConfig(
            mode=lines.DASHED if threshold_line else lines.OFF
        ),
    )
    sized = _sized(given, 12, 9)
    is_wide = sized["width"] >= 12
    options = sdk_timeseries.Options(
        legend=_legend(legend if is_wide else (), right=is_wide),
        tooltip=common.VizTooltipOptions(
            mode=common.TooltipDisplayMode.MULTI, sort=common.SortOrder.DESCENDING
        ),
    )
    return Panel(
        kind="timeseries",
        targets=targets,
        options=options,
        custom=custom,
        color_mode=sdk.FieldColorModeId.PALETTE_CLASSIC,
        **sized,
    )


def table(
    *,
    sql: str,
    sort: str | None = None,
    ascending: bool = False,
    pages: bool = False,
    filters: bool = False,
    **given: Unpack[Common],
) -> Panel:
    """Rows.

    Args:
        sql: With ORDER BY and LIMIT.
        sort: Title of the column that is sorted by; None: the query's order.
        ascending: The smallest first.
        pages: In pages instead of one long list.
        filters: Each column can be filtered by what is in it.
        **given: See `Panel`.
    """
    options = sdk_table.Options(
        show_header=True,
        cell_height=common.TableCellHeight.SM,
        show_type_icons=None,
        footer=common.TableFooterOptions(show=False, reducer=[], enable_pagination=pages),
        sort_by=[common.TableSortByFieldState(display_name=sort, desc=not ascending)]
        if sort
        else [],
    )
    custom = sdk_table.FieldConfig(
        cell_options=common.TableAutoCellOptions(),
        align=common.FieldTextAlignment.AUTO,
        inspect=False,
        filterable=filters,
        min_width=80,
    )
    sized = _sized(given, 24, 9)
    sized["columns"] = (*_ANY_TABLE, *given.get("columns", ()))
    return Panel(
        kind="table",
        targets=(Target(sql=sql),),
        options=options,
        custom=custom,
        **sized,
    )


def bar_gauge(
    *,
    sql: str,
    **given: Unpack[Common],
) -> Panel:
    """A bar for each row, the largest first as the query sorts them.

    Args:
        sql: A text column, the bar's name, and one number; with ORDER BY and LIMIT.
        **given: See `Panel`.
    """
    options = sdk_bargauge.Options(
        display_mode=common.BarGaugeDisplayMode.BASIC,
        value_mode=common.BarGaugeValueMode.TEXT,
        name_placement=common.BarGaugeNamePlacement.LEFT,
        show_unfilled=True,
        sizing=common.BarGaugeSizing.AUTO,
        min_viz_width=8,
        min_viz_height=16,
        max_viz_height=40,
        orientation=common.VizOrientation.HORIZONTAL,
        reduce_options=_rows(),
        text=common.VizTextDisplayOptions(title_size=13, value_size=16),
        legend=common.VizLegendOptions(
            display_mode=common.LegendDisplayMode.LIST,
            placement=common.LegendPlacement.BOTTOM,
            show_legend=False,
            calcs=[],
        ),
    )
    return Panel(
        kind="bargauge",
        targets=(Target(sql=sql),),
        options=options,
        **_sized(given, 12, 9, minimum=0),
    )


def gauge(
    *,
    sql: str,
    **given: Unpack[Common],
) -> Panel:
    """A dial for each row, up to about eight of them. Arguments are those of `bar_gauge`."""
    options = sdk_gauge.Options(
        show_threshold_labels=False,
        show_threshold_markers=True,
        sizing=common.BarGaugeSizing.AUTO,
        orientation=common.VizOrientation.AUTO,
        reduce_options=_rows(),
    )
    return Panel(
        kind="gauge",
        targets=(Target(sql=sql),),
        options=options,
        **_sized(given, 12, 8, minimum=0),
    )


def pie(
    *,
    sql: str,
    **given: Unpack[Common],
) -> Panel:
    """Parts of one whole, for up to ten of them. Arguments are those of `bar_gauge`."""
    options = piechart.Options(
        pie_type=piechart.PieChartType.DONUT,
        display_labels=[],
        reduce_options=_rows(),
        tooltip=common.VizTooltipOptions(
            mode=common.TooltipDisplayMode.SINGLE, sort=common.SortOrder.NONE
        ),
        legend=piechart.PieChartLegendOptions(
            values=[piechart.PieChartLegendValues.VALUE, piechart.PieChartLegendValues.PERCENT],
            display_mode=common.LegendDisplayMode.TABLE,
            placement=common.LegendPlacement.RIGHT,
            show_legend=True,
        ),
    )
    return Panel(
        kind="piechart",
        targets=(Target(sql=sql),),
        options=options,
        color_mode=sdk.FieldColorModeId.PALETTE_CLASSIC,
        **_sized(given, 8, 9),
    )


def bar_chart(
    *,
    sql: str,
    x: str,
    stacked: bool = False,
    legend: bool = False,
    **given: Unpack[Common],
) -> Panel:
    """Bars over categories: months, reasons, steps of a histogram.

    Args:
        sql: The category as text, and a number column for each group of bars.
        x: Name of the category's column.
        stacked: Groups stand on top of each other.
        legend: Names of the groups are shown.
        **given: See `Panel`.
    """
    options = sdk_barchart.Options(
        x_field=x,
        orientation=common.VizOrientation.AUTO,
        bar_width=0.8,
        group_width=0.7,
        bar_radius=0,
        show_value=common.VisibilityMode.AUTO,
        stacking=common.StackingMode.NORMAL if stacked else common.StackingMode.NONE,
        x_tick_label_max_length=0,
        x_tick_label_rotation=0,
        x_tick_label_spacing=0,
        legend=_legend((), shown=legend),
        tooltip=common.VizTooltipOptions(
            mode=common.TooltipDisplayMode.MULTI, sort=common.SortOrder.NONE
        ),
    )
    custom = sdk_barchart.FieldConfig(
        line_width=1,
        fill_opacity=80,
        gradient_mode=common.GraphGradientMode.NONE,
        axis_soft_min=0,
    )
    return Panel(
        kind="barchart",
        targets=(Target(sql=sql),),
        options=options,
        custom=custom,
        color_mode=sdk.FieldColorModeId.PALETTE_CLASSIC
        if legend
        else sdk.FieldColorModeId.THRESHOLDS,
        **_sized(given, 12, 9),
    )


def _last(fields: str = "") -> common.ReduceDataOptions:
    return common.ReduceDataOptions(values=False, calcs=["lastNotNull"], fields=fields)


def _rows() -> common.ReduceDataOptions:
    return common.ReduceDataOptions(values=True, limit=50, calcs=[], fields="")


def _legend(
    calcs: Sequence[str], *, right: bool = False, shown: bool = True
) -> common.VizLegendOptions:
    modes = common.LegendDisplayMode
    places = common.LegendPlacement
    legend = common.VizLegendOptions(
        display_mode=modes.TABLE if calcs else modes.LIST,
        placement=places.RIGHT if right else places.BOTTOM,
        show_legend=shown,
        calcs=list(calcs),
    )
    if calcs:
        titles = {"sum": "Total", "max": "Max", "mean": "Mean", "lastNotNull": "Last *"}
        legend.sort_by = titles.get(calcs[0], calcs[0])
        legend.sort_desc = True
    return legend


def _sized(given: Common, width: int, height: int, *, minimum: float | None = None) -> Common:
    """`given`, and the size where it says none."""
    found: Common = {"width": width, "height": height, **given}
    if minimum is not None:
        found.setdefault("minimum", minimum)
    return found
