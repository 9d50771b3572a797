"""Grafana on top of the usage tables: dashboards, alert rules and provisioning, generated from this code."""
