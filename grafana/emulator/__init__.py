"""What Grafana and its ClickHouse plugin do to a query, done here: for tests and for the previews."""
