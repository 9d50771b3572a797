"""Typed builders of what Grafana reads: dashboards, alert rules, data sources."""
