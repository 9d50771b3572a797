"""Overview: how much of every meter was used, by whom, and where the month is heading."""

from grafana.builders import sql
from grafana.builders.dashboard import Dashboard
from grafana.builders.layout import Row
from grafana.builders.panels import timeseries
from grafana.builders.variables import meter_variable, tenant_variable


def build() -> Dashboard:
    """The dashboard."""
    return Dashboard(
        uid="metering-overview",
        title="Metering / Overview",
        description="Usage of all meters: totals with the period before, over time, by tenant, and the month's end.",
        variables=(tenant_variable(), meter_variable(sql.TENANT)),
        rows=(
            Row(
                panels=(
                    timeseries(
                        title="Measurements over time",
                        description="How many measurements each meter counted. " + sql.BUCKET_NOTE,
                        sql=(
                            f"SELECT {sql.time_bucket()} AS time, meter, "
                            "toInt64(sum(quantity_count)) AS measurements "
                            f"FROM {sql.usage_rows('window_start, meter, quantity_count')} "
                            "GROUP BY time, meter ORDER BY time, meter LIMIT 20000"
                        ),
                        unit="short",
                        no_value="No usage in this time",
                        bars=True,
                        stacked=True,
                        display_name="${__field.labels.meter}",
                        width=24,
                    ),
                )
            ),
        ),
    )
