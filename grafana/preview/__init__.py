"""Pictures of the dashboards, drawn from sample data with Grafana's components; optional, as it needs Node."""
