"""The alert rules, and the files that Grafana reads them from."""
