"""Variables of dashboards: what Grafana's SDK has no type for is how the ClickHouse plugin asks for values."""

from dataclasses import dataclass, field
from typing import Final

from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as sdk

from grafana.builders.sql import DEFINITIONS, FROM_DAY, UNIT

PLUGIN: Final = "grafana-clickhouse-datasource"
PLUGIN_VERSION: Final = "4.20.0"
DATASOURCE_UID: Final = "metering-clickhouse"
DATASOURCE_NAME: Final = "Metering ClickHouse"

ALL: Final = "$__all"


def datasource() -> common.DataSourceRef:
    """The data source that is chosen in the variable of that name."""
    return common.DataSourceRef(type_val=PLUGIN, uid="${datasource}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A variable.

    Attributes:
        name: As it stands in SQL, and in URLs behind `var-`.
        model: As Grafana has it.
        sql: Query for its values; empty: it has none.
    """

    name: str
    model: sdk.VariableModel = field(repr=False)
    sql: str = ""


def datasource_variable() -> Variable:
    """Which data source every panel reads from."""
    model = sdk.VariableModel(
        type_val=sdk.VariableType.DATASOURCE,
        name="datasource",
        label="Data source",
        description="Where usage is read from.",
        query=PLUGIN,
        current=sdk.VariableOption(text=DATASOURCE_NAME, value=DATASOURCE_UID),
        refresh=sdk.VariableRefresh.ON_DASHBOARD_LOAD,
        regex="",
        options=[],
        allow_custom_value=False,
        skip_url_sync=False,
    )
    return Variable(name="datasource", model=_lean(model))


def query_variable(
    *, name: str, label: str, description: str, sql: str, multi: bool = True
) -> Variable:
    """A choice among what a query answers.

    Args:
        name: Of the variable.
        label: Before the choice.
        description: Behind its label's mark.
        sql: One column: the values; two: value and text, in this order.
        multi: Several may be chosen, or All, which is chosen at first; else the first value is.
    """
    model = sdk.VariableModel(
        type_val=sdk.VariableType.QUERY,
        name=name,
        label=label,
        description=description,
        datasource=datasource(),
        query={
            "refId": f"{name}-values",
            "editorType": "sql",
            "queryType": "table",
            "format": 1,
            "pluginVersion": PLUGIN_VERSION,
            "rawSql": sql,
        },
        definition=sql,
        refresh=sdk.VariableRefresh.ON_TIME_RANGE_CHANGED,
        multi=multi,
        include_all=multi,
        sort=sdk.VariableSort.DISABLED,
        regex="",
        current=sdk.VariableOption(text=["All"], value=[ALL])
        if multi
        else sdk.VariableOption(text="", value=""),
        options=[],
    )
    return Variable(name=name, model=_lean(model), sql=sql)


def text_variable(*, name: str, label: str, description: str) -> Variable:
    """A free text, empty at first. In SQL: `sql.text`."""
    model = sdk.VariableModel(
        type_val=sdk.VariableType.TEXTBOX,
        name=name,
        label=label,
        description=description,
        query="",
        current=sdk.VariableOption(text="", value=""),
        options=[sdk.VariableOption(selected=True, text="", value="")],
    )
    return Variable(name=name, model=_lean(model))


def custom_variable(
    *, name: str, label: str, description: str, values: tuple[str, ...], multi: bool = False
) -> Variable:
    """A choice among fixed values; the first one, or All if several may be chosen, is chosen at first."""
    first = values[0]
    model = sdk.VariableModel(
        type_val=sdk.VariableType.CUSTOM,
        name=name,
        label=label,
        description=description,
        query=",".join(values),
        multi=multi,
        include_all=multi,
        current=sdk.VariableOption(text=["All"], value=[ALL])
        if multi
        else sdk.VariableOption(text=first, value=first),
        options=[
            sdk.VariableOption(selected=value == first and not multi, text=value, value=value)
            for value in values
        ],
        allow_custom_value=False,
    )
    return Variable(name=name, model=_lean(model))


def tenant_variable(*, multi: bool = True) -> Variable:
    """The tenants with usage in the chosen time; one or several."""
    return query_variable(
        name="tenant",
        label="Tenant",
        description="Tenants with usage in the chosen time."
        + (" None chosen: all of them." if multi else ""),
        sql=(
            "SELECT DISTINCT tenant_id FROM metering.usage_day "
            f"WHERE {FROM_DAY} ORDER BY tenant_id LIMIT 10000"
        ),
        multi=multi,
    )


def meter_variable(where: str = "1") -> Variable:
    """The meters with usage in the chosen time; the text says the unit as well.

    Args:
        where: Of which tenants.
    """
    return query_variable(
        name="meter",
        label="Meter",
        description="Meters with usage in the chosen time. None chosen: all of them.",
        sql=(
            f"SELECT meter, if(unit IN ('', '1'), meter, concat(meter, ' (', {UNIT}, ')')) AS text FROM "
            "(SELECT DISTINCT toString(meter) AS meter FROM metering.usage_day "
            f"WHERE {FROM_DAY} AND {where}) AS used LEFT ANY JOIN "
            f"(SELECT meter, unit FROM {DEFINITIONS}) AS definitions "
            "USING (meter) ORDER BY meter LIMIT 1000"
        ),
    )


def _lean(model: sdk.VariableModel) -> sdk.VariableModel:
    """Without what belongs to variables of the type `interval`."""
    model.auto = model.auto_min = model.auto_count = None
    return model
