"""LLM tokens: how many of which type went to which model, and by whom."""

from grafana.builders import sql
from grafana.builders.dashboard import Dashboard
from grafana.builders.layout import Row
from grafana.builders.panel import Column, Panel, dashboard_link
from grafana.builders.panels import bar_gauge, pie, stat, table, timeseries
from grafana.builders.variables import Variable, query_variable, tenant_variable

MODEL = "dimensions['gen_ai.request.model']"
TYPE = "dimensions['gen_ai.token.type']"
"""Dimensions by OpenTelemetry's GenAI semantic conventions."""

NAME = f"if({MODEL} = '', '(no model)', {MODEL})"
TYPE_NAME = f"if({TYPE} = '', '(no type)', {TYPE})"
WHERE = f"{sql.TENANT} AND {sql.equals('meter', 'llm_meter')}"
EMPTY = "No tokens of this meter in this time"

_TO_TENANT = dashboard_link(
    "All usage of this tenant", "metering-tenant", values={"tenant": "${__data.fields.tenant}"}
)


def build() -> Dashboard:
    """The dashboard."""
    return Dashboard(
        uid="metering-llm",
        title="Metering / LLM tokens",
        description="Tokens of language models: by model and type of token, by tenant, over time.",
        variables=(tenant_variable(), _meter()),
        time_from="now-7d",
        rows=(
            Row(panels=_totals()),
            Row(title="Over time", panels=_over_time()),
            Row(title="By model", panels=_by_model()),
            Row(title="By tenant", panels=_by_tenant()),
        ),
    )


def _meter() -> Variable:
    """One meter, because some count tokens that are among another's."""
    return query_variable(
        name="llm_meter",
        label="Meter",
        description="Meters with a model or a type of token among their dimensions. One at a time: "
        "gen_ai.tokens.cache_read is part of gen_ai.tokens, and llm.tokens may be the same calls again.",
        sql=(
            "SELECT toString(meter) AS meter FROM metering.usage_month "
            "WHERE window_start >= toStartOfMonth($__fromTime, 'UTC') AND window_start <= $__toTime "
            "AND (mapContains(dimensions, 'gen_ai.request.model') OR mapContains(dimensions, 'gen_ai.token.type')) "
            "GROUP BY meter "
            "ORDER BY indexOf(['llm.tokens', 'gen_ai.tokens'], meter) DESC, meter LIMIT 100"
        ),
        multi=False,
    )


def _with_previous(value: str) -> str:
    """Two rows: of the period of the same length before, and of the chosen one."""
    return (
        f"SELECT is_chosen, tokens FROM (SELECT {sql.IS_CURRENT} AS is_chosen, {value} AS tokens "
        f"FROM {sql.usage_rows('tenant_id, dimensions, window_start, quantity_sum', WHERE, start=sql.PREVIOUS_FROM)} "
        "GROUP BY is_chosen) ORDER BY is_chosen LIMIT 2"
    )


def _totals() -> tuple[Panel, ...]:
    tokens = "toFloat64(sum(quantity_sum))"
    told = (
        ("Tokens", "All tokens", tokens),
        (
            "Input tokens",
            "Tokens of prompts",
            f"toFloat64(sumIf(quantity_sum, {TYPE} = 'input'))",
        ),
        (
            "Output tokens",
            "Tokens that models wrote",
            f"toFloat64(sumIf(quantity_sum, {TYPE} = 'output'))",
        ),
    )
    counted = (
        ("Models", "Models that were asked", f"uniqExact({MODEL})"),
        ("Tenants", "Tenants that used tokens", "uniqExact(tenant_id)"),
    )
    ratio = (
        f"if(sumIf(quantity_sum, {TYPE} = 'input') = 0, NULL, "
        f"toFloat64(sumIf(quantity_sum, {TYPE} = 'output')) / toFloat64(sumIf(quantity_sum, {TYPE} = 'input')))"
    )
    changing = tuple(
        stat(
            title=title,
            description=f"{text} of the chosen meter, and the change from the period of the same length before. "
            + sql.WHOLE_NOTE,
            sql=_with_previous(value),
            percent_change=True,
            fields="tokens",
            unit="short",
            no_value=EMPTY,
            width=4,
        )
        for title, text, value in told
    )
    plain = tuple(
        stat(
            title=title,
            description=f"{text} of the chosen meter.",
            sql=f"SELECT toFloat64({value}) AS value FROM {sql.usage_rows('tenant_id, dimensions, quantity_sum', WHERE)} HAVING count() > 0",
            unit="short",
            decimals=0,
            no_value=EMPTY,
            width=4,
        )
        for title, text, value in counted
    )
    return (
        *changing,
        stat(
            title="Output per input",
            description="How many tokens models wrote for each token that they read.",
            sql=f"SELECT {ratio} AS value FROM {sql.usage_rows('dimensions, quantity_sum', WHERE)}",
            unit="percentunit",
            decimals=1,
            no_value=EMPTY,
            width=4,
        ),
        *plain,
    )


def _over(name: str, columns: str) -> str:
    """Tokens by time and `name`, of which the ten largest keep their names."""
    top = (
        f"SELECT {name} FROM {sql.usage_rows(f'{columns}, quantity_sum', WHERE)} "
        f"GROUP BY 1 ORDER BY sum(quantity_sum) DESC, 1 LIMIT 10"
    )
    return (
        f"SELECT {sql.time_bucket()} AS time, if({name} IN ({top}), {name}, '(others)') AS name, "
        "toFloat64(sum(quantity_sum)) AS tokens "
        f"FROM {sql.usage_rows(f'window_start, {columns}, quantity_sum', WHERE)} "
        "GROUP BY time, name ORDER BY time, name LIMIT 20000"
    )


def _over_time() -> tuple[Panel, ...]:
    told = (
        ("Tokens by model", "Tokens of each model", NAME, "dimensions", 24),
        ("Tokens by type", "Input and output tokens", TYPE_NAME, "dimensions", 12),
        ("Tokens by tenant", "Tokens of each tenant", "toString(tenant_id)", "tenant_id", 12),
    )
    return tuple(
        timeseries(
            title=title,
            description=f"{text}; beyond the ten largest, all others together. " + sql.BUCKET_NOTE,
            sql=_over(name, columns),
            unit="short",
            no_value=EMPTY,
            bars=True,
            stacked=True,
            display_name="${__field.labels.name}",
            width=width,
        )
        for title, text, name, columns, width in told
    )


def _breakdown(name: str, title: str, other: str) -> str:
    """A row for each `name`, a column called `title`; `other` counts something else of it."""
    return (
        f"SELECT {name} AS {title}, toFloat64(sumIf(quantity_sum, {TYPE} = 'input')) AS input, "
        f"toFloat64(sumIf(quantity_sum, {TYPE} = 'output')) AS output, "
        "toFloat64(sum(quantity_sum)) AS tokens, "
        f"{other}, tokens / sum(tokens) OVER () AS share "
        f"FROM {sql.usage_rows('tenant_id, dimensions, quantity_sum', WHERE)} "
        f"GROUP BY {title} ORDER BY tokens DESC, {title} LIMIT 200"
    )


_NUMBERS = (
    Column(name="input", title="Input", unit="short"),
    Column(name="output", title="Output", unit="short"),
    Column(name="tokens", title="All tokens", unit="short"),
    Column(name="share", title="Share", unit="percentunit", decimals=1, cell="gauge", maximum=1),
)


def _by_model() -> tuple[Panel, ...]:
    return (
        pie(
            title="Share of each model",
            description="Tokens by model; the ten largest.",
            sql=(
                f"SELECT {NAME} AS name, toFloat64(sum(quantity_sum)) AS tokens "
                f"FROM {sql.usage_rows('dimensions, quantity_sum', WHERE)} "
                "GROUP BY name ORDER BY tokens DESC, name LIMIT 10"
            ),
            unit="short",
            no_value=EMPTY,
            width=8,
        ),
        table(
            title="Models and their tokens",
            description="Tokens of each model in the chosen time, by type, and how many tenants used it. "
            "Tokens without a type are only in All tokens.",
            sql=_breakdown(NAME, "model", "uniqExact(tenant_id) AS tenants"),
            unit="short",
            no_value=EMPTY,
            columns=(
                Column(name="model", title="Model"),
                *_NUMBERS,
                Column(name="tenants", title="Tenants", unit="short", width=90),
            ),
            width=16,
        ),
    )


def _by_tenant() -> tuple[Panel, ...]:
    return (
        bar_gauge(
            title="Largest tenants",
            description="Tokens of the ten tenants that used most.",
            sql=(
                "SELECT toString(tenant_id) AS tenant, toFloat64(sum(quantity_sum)) AS tokens "
                f"FROM {sql.usage_rows('tenant_id, quantity_sum', WHERE)} "
                "GROUP BY tenant ORDER BY tokens DESC, tenant LIMIT 10"
            ),
            data_links=(_TO_TENANT,),
            unit="short",
            no_value=EMPTY,
            width=8,
        ),
        table(
            title="Tenants and their tokens",
            description="Tokens of each tenant in the chosen time, by type, and how many models it asked.",
            sql=_breakdown("toString(tenant_id)", "tenant", f"uniqExact({MODEL}) AS models"),
            unit="short",
            no_value=EMPTY,
            columns=(
                Column(name="tenant", title="Tenant", links=(_TO_TENANT,)),
                *_NUMBERS,
                Column(name="models", title="Models", unit="short", width=90),
            ),
            width=16,
        ),
    )
