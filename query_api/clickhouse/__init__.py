"""The embedded engine for clients of ClickHouse: its HTTP interface, for Grafana, notebooks and BI tools.

A statement of a reader is parsed by the engine (`formatQuery`), printed in one canonical form, and what was checked is
exactly what runs: `tokens` and `tree` read it, `guard` decides by `policy`, `engine` runs it, `app` speaks HTTP.
"""
